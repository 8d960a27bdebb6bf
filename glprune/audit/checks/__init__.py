"""The checks of ``glprune verify``, one module each."""
