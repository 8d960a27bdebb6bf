"""Processes, checkpoints, the output folder, determinism and progress events."""
