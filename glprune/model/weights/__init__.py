"""The file of trained weights: its kind, the state dict that it holds, and reparametrized weights.

``file`` needs no PyTorch.
"""
