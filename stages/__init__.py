"""The pipeline: one module per node of the graph."""
