"""How sure a teacher is of each of its labels."""
