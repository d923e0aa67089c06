"""The real ThunderSTORM plugin, all of it, run without a display on arrays and tables."""

from fiji_bridge.thunderstorm.analysis import filter_frames, localize
from fiji_bridge.thunderstorm.calibration import calibrate
from fiji_bridge.thunderstorm.evaluation import colocalize, evaluate, evaluate_with_plugin
from fiji_bridge.thunderstorm.files import export_table, import_table
from fiji_bridge.thunderstorm.generator import generate
from fiji_bridge.thunderstorm.jar import find_jar
from fiji_bridge.thunderstorm.postprocessing import drift, postprocess
from fiji_bridge.thunderstorm.protocol import Protocol
from fiji_bridge.thunderstorm.rendering import render

__all__ = [
    "Protocol",
    "calibrate",
    "colocalize",
    "drift",
    "evaluate",
    "evaluate_with_plugin",
    "export_table",
    "filter_frames",
    "find_jar",
    "generate",
    "import_table",
    "localize",
    "postprocess",
    "render",
]
