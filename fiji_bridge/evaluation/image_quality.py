"""How close an image is to the truth."""

import math
from typing import Any

import numpy as np

from fiji_bridge.errors import FijiBridgeError


def psnr(image: Any, truth: Any, data_range: float) -> float:
    """Peak signal-to-noise ratio of an image, ``10 log10(data_range² / mean squared error)``.

    Parameters
    ----------
    image, truth
        Arrays of one shape, in the same units; nothing is rounded or clipped.
    data_range
        The peak: what the scale of the file spans, 255 for 8 bits.

    Returns
    -------
    float
        In dB; infinite when both are equal.

    Raises
    ------
    FijiBridgeError
        If the shapes differ, an array is empty or not finite, or the range is not positive.
    """
    got, wanted = np.asarray(image, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    if got.shape != wanted.shape:
        raise FijiBridgeError(
            f"The image is {got.shape} and the truth {wanted.shape}; they must have one shape."
        )
    if not got.size:
        raise FijiBridgeError("The image is empty, so it has no PSNR.")
    if not 0 < data_range < math.inf:
        raise FijiBridgeError(f"data_range must be a positive number (255 for 8 bits), not {data_range!r}.")
    error = float(np.mean((got - wanted) ** 2))
    if not math.isfinite(error):
        raise FijiBridgeError("The image or the truth holds NaN or infinite values, so there is no PSNR.")
    return 10 * math.log10(data_range**2 / error) if error else math.inf
