"""A teacher's softmax, at its network's own stride."""
