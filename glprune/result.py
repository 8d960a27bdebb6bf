"""The result of a run for Python and notebooks; it needs no PyTorch, so any bundle can be opened anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from glprune.audit.verify import read_report
from glprune.report.html import render_findings
from glprune.report.sentences import label

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

    def _repr_html_(self) -> str:
        """Return the findings as HTML without scripts or external requests; styles apply to them alone."""
        return render_findings(self.report, str(self.bundle))


def _tight(figure: Figure) -> Figure:
    figure.set_layout_engine("tight")
    return figure
