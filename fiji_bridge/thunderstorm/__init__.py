"""The real ThunderSTORM plugin, run without a display on frames given as arrays."""

from fiji_bridge.thunderstorm.analysis import localize
from fiji_bridge.thunderstorm.jar import find_jar
from fiji_bridge.thunderstorm.table import evaluate_with_plugin, postprocess

__all__ = ["evaluate_with_plugin", "find_jar", "localize", "postprocess"]
