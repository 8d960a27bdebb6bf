"""``GlprunePruning``, a pass of Olive workflows (``glprune[olive]``): prune first, quantise later.

Olive finds third-party passes through the file given to ``olive run --package-config``, which replaces
its own list; ``python -m glprune.integrations.olive FILE`` writes that list with this pass added.
Source: ``olive run --help`` and "How to add new optimization Pass", microsoft.github.io/Olive.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from glprune.pipeline import run
from glprune.schema import bundle as bundles
from glprune.schema.recipe_loading import load_recipe

try:
    from olive.hardware.accelerator import AcceleratorSpec
    from olive.model import ONNXModelHandler, PyTorchModelHandler
    from olive.package_config import OlivePackageConfig
    from olive.passes import Pass
    from olive.passes.olive_pass import PassConfigParam
except ImportError as error:
    raise SystemExit(f"glprune: this needs {error.name}; pip install 'glprune[olive]'.") from None
_ENTRY = {
    "module_path": "glprune.integrations.olive.GlprunePruning",
    "supported_providers": ["*"],
    "supported_accelerators": ["*"],
    "supported_precisions": ["*"],
    "supported_algorithms": [],
    "supported_quantization_encodings": [],
}


class GlprunePruning(Pass):  # type: ignore[misc]  # the package has no types
    """Prunes the weights file of a PyTorch model with a glprune recipe and returns the slim ONNX model.

    The bundle with the report is in the folder ``bundle`` of the pass; the report does not cover the
    changes of later passes.
    """

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, PassConfigParam]:
        return {
            "recipe": PassConfigParam(type_=str, required=True, description="A glprune recipe (YAML)."),
            "overrides": PassConfigParam(
                type_=list[str], default_value=[], description="Changes as --set takes them: key=value."
            ),
            "accept_original": PassConfigParam(
                type_=bool,
                default_value=False,
                description="Go on where the model does not look like the one that was trained.",
            ),
        }

    def _run_for_config(
        self, model: PyTorchModelHandler, config: Any, output_model_path: str
    ) -> ONNXModelHandler:
        recipe = load_recipe(config.recipe, config.overrides)
        result = run(
            recipe,
            model.model_path,
            Path(output_model_path) / "bundle",
            overwrite=True,
            accept_original=config.accept_original,
        )
        attributes = {"glprune_bundle": str(result.bundle)}
        return ONNXModelHandler(str(result.bundle / bundles.ONNX), model_attributes=attributes)


def package_config() -> dict[str, Any]:
    """Return Olive's list of passes with this one added, for ``--package-config``."""
    listed: dict[str, Any] = json.loads(
        Path(OlivePackageConfig.get_default_config_path()).read_text(encoding="utf-8")
    )
    listed["passes"]["GlprunePruning"] = _ENTRY
    return listed


def main() -> None:
    """Write the list of passes to the file named on the command line."""
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        raise SystemExit(
            "glprune: name the file to write: python -m glprune.integrations.olive olive_packages.json"
        )
    Path(sys.argv[1]).write_text(json.dumps(package_config(), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
