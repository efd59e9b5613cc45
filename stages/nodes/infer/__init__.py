"""Label maps of a teacher."""
