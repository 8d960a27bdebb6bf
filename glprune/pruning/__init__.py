"""Units of a network, the plan to remove them, its verification and the removal itself."""
