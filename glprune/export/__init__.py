"""Write ONNX files, run them with ONNX Runtime, and rebuild the slim network from a bundle.

- ``onnx_export``, ``exporters``, ``shrink``, ``diagnosis``: a network as one checked ONNX file.
- ``shipped_model``, ``metadata``, ``signature``: the shipped file, its metadata, inputs and outputs.
- ``onnx_runtime``, ``latency``: outputs and latency of ONNX files.
- ``int8``: the shipped file in 8-bit integers.
- ``plan_writer``, ``golden``, ``slim_network``: the plan, golden vectors, and the network rebuilt from them.
- ``plugin_hooks``: exporters and reporters of other packages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from glprune._lazy import lazy_names

if TYPE_CHECKING:
    from glprune.export.onnx_export import OnnxSignature, export_onnx
    from glprune.export.onnx_runtime import OnnxFile
    from glprune.export.shipped_model import ShippedModel
    from glprune.export.slim_network import load

__all__ = [
    "OnnxFile",
    "OnnxSignature",
    "ShippedModel",
    "export_onnx",
    "load",
]

__getattr__ = lazy_names(
    __name__,
    {
        "OnnxFile": "onnx_runtime",
        "OnnxSignature": "onnx_export",
        "ShippedModel": "shipped_model",
        "export_onnx": "onnx_export",
        "load": "slim_network",
    },
)
