"""How far the signal stands out from the background, where there is no truth to compare with."""

import math
from typing import Any

import numpy as np

from fiji_bridge.errors import FijiBridgeError

ROUNDS = 1000


def iterative_threshold(image: Any) -> float:
    """Find the grey value that lies midway between the means of the pixels above and below it.

    Ridler & Calvard, IEEE Trans. Syst. Man Cybern. 8, 630 (1978), started at the mean of the image.

    Parameters
    ----------
    image
        Array of any shape, in any units.

    Returns
    -------
    float
        In the units of the image; for a constant image its value.

    Raises
    ------
    FijiBridgeError
        If the image is empty or not finite.
    """
    values = np.sort(np.asarray(image, dtype=np.float64), axis=None)
    if not values.size:
        raise FijiBridgeError("The image is empty, so it has no threshold.")
    if not np.isfinite(values[[0, -1]]).all():
        raise FijiBridgeError("The image holds NaN or infinite values, so it has no threshold.")
    sums = np.cumsum(values)
    threshold = float(sums[-1] / values.size)
    for _ in range(ROUNDS):
        below = int(np.searchsorted(values, threshold, side="right"))
        if below == values.size:
            break
        moved = float(sums[below - 1] / below + (sums[-1] - sums[below - 1]) / (values.size - below)) / 2
        if moved == threshold:
            break
        threshold = moved
    return threshold


def signal_to_background(image: Any, *, offset: float = 0.0) -> float:
    """Divide the mean of the pixels above `iterative_threshold` by the mean of the others.

    A higher ratio does not mean that more molecules can be told apart: flattening the background raises it.

    Parameters
    ----------
    image
        Array of any shape.
    offset
        What the camera adds to every pixel, in the units of the image; it would pull the ratio towards 1.

    Returns
    -------
    float
        NaN for a constant image, infinite where the mean background does not exceed the offset.
    """
    values = np.asarray(image, dtype=np.float64)
    above = values > iterative_threshold(values)
    if not above.any():
        return math.nan
    background = float(values[~above].mean()) - offset
    return (float(values[above].mean()) - offset) / background if background > 0 else math.inf
