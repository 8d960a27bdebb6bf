"""The result of a run for Python and notebooks; it needs no PyTorch, so any bundle can be opened anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from glprune.audit.parsed_bundle import read_report
from glprune.errors import UsageError
from glprune.report.html import render_findings
from glprune.report.sentences import main_metric
from glprune.schema.metrics import label

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from glprune.schema.report import Report


@dataclass(frozen=True)
class Result:
    """The result of a run. Notebooks display the findings of its report.

    Attributes:
        bundle: The folder with the slim model and its report.
        report: The report as records.
    """

    bundle: Path
    report: Report

    @classmethod
    def load(cls, bundle: str | Path) -> Result:
        """Open a bundle. It is read, not verified.

        Raises:
            GlpruneError: The folder is not a bundle, or its report cannot be read.
        """
        return cls(Path(bundle), read_report(Path(bundle)))

    def plot_path(self) -> Figure:
        """Plot the norm of every feature along the regularisation path; kept and removed differ in colour."""
        from glprune.report.plots import path_figure  # noqa: PLC0415 - loads matplotlib

        return _tight(path_figure(self.report.path, self.report.features))

    def plot_metric(self) -> Figure:
        """Plot the number of kept features and the validation metric along the regularisation path."""
        from glprune.report.plots import metric_figure  # noqa: PLC0415 - loads matplotlib

        selection = self.report.selection
        return _tight(metric_figure(self.report.path, label(selection.metric), selection.reference))

    def plot_frontier(self) -> Figure:
        """Plot the metric of every size of the frontier with its 95 % interval.

        Raises:
            UsageError: The recipe had no ``target.frontier``.
        """
        from glprune.report.plots import frontier_figure  # noqa: PLC0415 - loads matplotlib

        if self.report.frontier is None:
            raise UsageError(f"{self.bundle} has no frontier; run its recipe with target.frontier.")
        metric = main_metric(self.report)
        return _tight(frontier_figure(self.report.frontier, label(metric.name), metric.original))

    def _repr_html_(self) -> str:
        """Return the findings as HTML without scripts or external requests; styles apply to them alone."""
        return render_findings(self.report, str(self.bundle))


def _tight(figure: Figure) -> Figure:
    figure.set_layout_engine("tight")
    return figure
