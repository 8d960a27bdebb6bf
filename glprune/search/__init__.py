"""The search for the groups to remove: stages of regularization paths, targets and refits."""
