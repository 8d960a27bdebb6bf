"""C5: compute the figures of the report again; ``consistency`` runs all parts."""
