"""The auditor's half: read, verify, compare and sign bundles, without PyTorch, training code or data.

``verify`` runs all checks; each is a module of ``checks``. ``bundle_files``, ``onnx_reader`` and
``safetensors_reader`` read the files of a bundle strictly, ``findings`` has the results and exit codes,
``signing`` the signatures. ``diff`` compares two reports, ``explain`` collects what a report states about
one feature. Their functions are imported from the modules, as in ``from glprune.audit.verify import verify``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from glprune._lazy import lazy_names

if TYPE_CHECKING:
    from glprune.audit.findings import Check, Finding, Verdict
    from glprune.audit.verify import VerificationOptions

__all__ = [
    "Check",
    "Finding",
    "Verdict",
    "VerificationOptions",
]

__getattr__ = lazy_names(
    __name__,
    {
        "Check": "findings",
        "Finding": "findings",
        "Verdict": "findings",
        "VerificationOptions": "verify",
    },
)
