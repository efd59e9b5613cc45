"""One label map from many."""
