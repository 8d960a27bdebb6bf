"""Penalties with their proximal operators, the proximal optimizers, and training at one lambda."""
