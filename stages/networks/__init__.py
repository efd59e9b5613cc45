"""How teachers and students are loaded and built."""
