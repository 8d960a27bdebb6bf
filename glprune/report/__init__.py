"""Render a report as a page, as Markdown and as pictures (no PyTorch)."""
