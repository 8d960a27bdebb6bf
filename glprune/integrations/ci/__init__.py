"""CI systems: annotations, job summaries, test reports, metrics and gates.

``outcome`` is what a command reports, ``systems`` detects the CI system and writes it there: ``github``
(annotations, job summary), ``gitlab`` (JUnit and OpenMetrics reports), ``dvc`` (metrics and plots). ``gate``
compares a bundle with limits.
"""

from glprune.integrations.ci.outcome import Annotation, Metric, Outcome, TestCase

__all__ = ["Annotation", "Metric", "Outcome", "TestCase"]
