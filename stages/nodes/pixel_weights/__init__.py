"""How sure the label model is of each fused label."""
