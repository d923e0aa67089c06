"""How good localizations and images are, judged by truth where there is some and by themselves where not."""

from fiji_bridge.evaluation.image_quality import psnr
from fiji_bridge.evaluation.matching import Difference, Evaluation, bootstrap_difference, evaluate
from fiji_bridge.evaluation.resolution import FourierRingCorrelation, frc
from fiji_bridge.evaluation.sbr import iterative_threshold, signal_to_background

__all__ = [
    "Difference",
    "Evaluation",
    "FourierRingCorrelation",
    "bootstrap_difference",
    "evaluate",
    "frc",
    "iterative_threshold",
    "psnr",
    "signal_to_background",
]
