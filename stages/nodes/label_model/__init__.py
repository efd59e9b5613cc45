"""How far each teacher is to be trusted with each class, from labels alone."""
