"""What is measured beside the shipped model: baselines, stability, drop costs, segments; and the report's records."""
