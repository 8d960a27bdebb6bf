"""The trained network: loading it, its task and outputs, its predictions and its size."""
