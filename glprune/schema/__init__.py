"""Data models of the files glprune reads and writes: recipe, report, plan, input schema and manifest (no PyTorch)."""
