"""What a run made, as Python and notebooks see it; no PyTorch, so that a bundle made elsewhere opens too."""

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
    """What a run made. In a notebook it displays as the findings of its report.

    Attributes:
        bundle: The folder with the slim model and its report.
        report: The report as records.
    """

    bundle: Path
    report: Report

    @classmethod
    def load(cls, bundle: str | Path) -> Result:
        """Open a bundle that a run wrote, here or elsewhere. It is read, not verified.

        Raises:
            GlpruneError: It is no bundle, or its report cannot be read.
        """
        return cls(Path(bundle), read_report(Path(bundle)))

    def plot_path(self) -> Figure:
        """The norm of every feature along the regularisation path, in two colours: kept and removed."""
        from glprune.report.plots import path_figure

        return _laid_out(path_figure(self.report.path, self.report.features))

    def plot_metric(self) -> Figure:
        """Features left and the validation metric along the regularisation path."""
        from glprune.report.plots import metric_figure

        chosen = self.report.selection
        return _laid_out(metric_figure(self.report.path, label(chosen.metric), chosen.reference))

    def _repr_html_(self) -> str:
        """The findings as HTML without scripts, outside requests, or styles that reach beyond them."""
        return render_findings(self.report, str(self.bundle))


def _laid_out(figure: Figure) -> Figure:
    figure.set_layout_engine("tight")
    return figure
