"""First-order steps."""
