"""A teacher's label maps with noise in them."""
