"""Chains of nodes that processes of their own make, here or on a cluster."""
