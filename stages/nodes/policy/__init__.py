"""Which teacher each class is taken from."""
