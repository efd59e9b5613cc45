"""The final student."""
