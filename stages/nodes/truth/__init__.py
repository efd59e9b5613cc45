"""The ground truth of a split, decoded once."""
