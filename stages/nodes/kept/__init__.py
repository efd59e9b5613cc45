"""Scores of a teacher, kept beside its label maps."""
