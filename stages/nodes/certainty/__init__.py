"""How sure a probe is of each class."""
