"""Scores on a labelled split."""
