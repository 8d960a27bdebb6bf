"""CI systems: annotations, job summaries, metrics and gates."""
