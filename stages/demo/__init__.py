"""The demo: five generated cities, and the experiments on them."""
