"""The small student that measures a teacher."""
