"""Self-supervised denoising for Fiji and ThunderSTORM, and an honest answer to whether it helped.

Importing this package starts neither torch nor a JVM: each public name is loaded when first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fiji_bridge.camera import Camera as Camera
    from fiji_bridge.camera import estimate_camera as estimate_camera
    from fiji_bridge.comparison import compare as compare
    from fiji_bridge.denoising import denoise as denoise
    from fiji_bridge.denoising import load_model as load_model
    from fiji_bridge.denoising import train as train
    from fiji_bridge.errors import FijiBridgeError as FijiBridgeError
    from fiji_bridge.evaluation import evaluate as evaluate
    from fiji_bridge.localizations import read_localizations as read_localizations
    from fiji_bridge.localizations import write_localizations as write_localizations
    from fiji_bridge.localizers import localize as localize
    from fiji_bridge.postprocessing import drift as drift
    from fiji_bridge.postprocessing import postprocess as postprocess
    from fiji_bridge.rendering import render as render
    from fiji_bridge.simulation import simulate as simulate
    from fiji_bridge.stack import open_stack as open_stack
    from fiji_bridge.stack import write_stack as write_stack
    from fiji_bridge.table_formats import export as export

_HOME = {
    "Camera": "camera",
    "FijiBridgeError": "errors",
    "compare": "comparison",
    "denoise": "denoising",
    "drift": "postprocessing",
    "estimate_camera": "camera",
    "evaluate": "evaluation",
    "export": "table_formats",
    "load_model": "denoising",
    "localize": "localizers",
    "open_stack": "stack",
    "postprocess": "postprocessing",
    "read_localizations": "localizations",
    "render": "rendering",
    "simulate": "simulation",
    "train": "denoising",
    "write_localizations": "localizations",
    "write_stack": "stack",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fiji_bridge' has no attribute {name!r}")
    value = getattr(import_module(f"fiji_bridge.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
