"""Hot and dead pixels of movies, found and replaced before a camera is estimated or a network sees them.

A network takes such a pixel for light: one trained on other images spreads it over its neighbours, one
trained on the movie itself learns to leave it as it is, and either way it is found as a molecule.
"""

from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from fiji_bridge.stack import positions, seen_through
from fiji_bridge.stack_formats.recording import padded

if TYPE_CHECKING:
    import xarray as xr

    from fiji_bridge.camera import Camera

FEWEST, MOST = 8, 100
"""Frames without which a pixel is not known to be always so, and frames looked at, spread over a movie."""
STANDS_OUT = 2.0
"""How far a defective pixel is from its surroundings, in standard deviations of a single reading."""
SHARPNESS = 8.0
"""How many times further than its neighbours. Light is not so sharp: of a PSF of 0.5 pixels 5 times."""
SURE = 2.0
"""By how many standard errors a neighbour may be further than it seems."""

NEAREST = [(0, -1), (0, 1), (-1, 0), (1, 0), (-1, -1), (-1, 1), (1, -1), (1, 1)]
SMOOTH = np.array([0.5] * 4 + [-0.25] * 4)
"""Weights of these places that give the middle of any surface of third order."""
RING = [(dy, dx) for dy, dx in product(range(-2, 3), repeat=2) if max(abs(dy), abs(dx)) == 2]


def repaired(stack: "xr.DataArray", camera: "Camera | None") -> "tuple[xr.DataArray, int]":
    """Replace hot and dead pixels of a stack, each channel and z apart; see `defective` and `replaced`.

    Parameters
    ----------
    stack
        An opened stack.
    camera
        With a map of offset or gain it knows each pixel as it is, and nothing is replaced.

    Returns
    -------
    tuple of xarray.DataArray and int
        The stack, of the same type, read when asked for, and how many pixels are replaced.
    """
    if camera is not None and (camera.offset_map is not None or camera.gain_map is not None):
        return stack, 0
    mask = np.reshape([defective(series) for _, series in positions(stack)], stack.shape[1:])
    number = int(mask.sum())
    return (seen_through(stack, lambda data: _Repaired(data, mask)), number) if number else (stack, 0)


def defective(series: Any) -> np.ndarray:
    """Find hot and dead pixels of a movie.

    They are those whose mean over time differs from the surroundings by more than `STANDS_OUT` standard
    deviations of the readings there, and by `SHARPNESS` times as much as the third of its neighbours does: no
    lens makes a point of light so sharp (the idea of L.A.Cosmic, van Dokkum, PASP 113, 1420, 2001). As two
    neighbours may be defective too, whole columns are found.

    Parameters
    ----------
    series
        (t, y, x), an array or an opened stack, of which `MOST` frames are read. With less than `FEWEST`
        frames no pixel is known to be defective.

    Returns
    -------
    numpy.ndarray
        (y, x), true where a pixel is.
    """
    frames, height, width = series.shape
    if frames < FEWEST or min(height, width) < 5:
        return np.zeros((height, width), bool)
    numbers = np.unique(np.linspace(0, frames - 1, MOST).astype(int))
    start = np.asarray(series[0], np.float32)  # near the mean, so that squares keep their digits
    total, squares = np.zeros_like(start), np.zeros_like(start)
    with np.errstate(invalid="ignore", over="ignore"):  # NaN is named by whoever reads all frames
        for number in numbers:
            change = np.asarray(series[int(number)], np.float32) - start
            total += change
            squares += change**2
        mean = start + total / len(numbers)
        variance = (squares - total**2 / len(numbers)) / (len(numbers) - 1)
        noise = np.sqrt(_sorted(variance, NEAREST)[3:5].mean(0).clip(0))
        doubt = SURE * noise / len(numbers) ** 0.5
        near, level = _sorted(mean, NEAREST), _sorted(mean, RING)[7:9].mean(0)
        found = np.zeros((height, width), bool)
        for sign, third in ((1, near[5]), (-1, near[2])):
            apart, beside = sign * (mean - level), sign * (third - level)
            sharp = apart > SHARPNESS * np.maximum(beside + doubt, 0)
            found |= sharp & (apart > STANDS_OUT * noise) & (noise > 0)
    return found


def replaced(frames: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Give frames (t, …, y, x) with other readings for the pixels of a mask (…, y, x).

    In each frame that of the eight neighbours that comes nearest to what a smooth image has there: a value
    that the camera can give.
    """
    height, width = mask.shape[-2:]
    hidden, flat = mask.ravel(), frames.reshape(len(frames), -1)
    at = np.flatnonzero(hidden)
    y, x = at // width % height, at % width
    shown, known = [], []
    for dy, dx in NEAREST:
        inside = (y + dy >= 0) & (y + dy < height) & (x + dx >= 0) & (x + dx < width)
        place = np.where(inside, at + dy * width + dx, at)
        shown.append(flat[:, place])
        known.append(~hidden[place])
    readings, good = np.stack(shown), np.stack(known)
    weights = np.where(good.all(0), SMOOTH[:, None], good / good.sum(0).clip(1))
    middle = np.einsum("ptn,pn->tn", readings, weights)
    away = np.where(good[:, None], np.abs(readings - middle), np.inf)
    nearest = np.take_along_axis(readings, away.argmin(0)[None], 0)[0]
    result = flat.copy()
    result[:, at] = np.where(good.any(0), nearest, flat[:, at])
    return result.reshape(frames.shape)


class _Repaired:
    """Looks like `data` (t, …, y, x) with pixels of a mask (…, y, x) replaced."""

    def __init__(self, data: Any, mask: np.ndarray) -> None:
        self.shape, self.dtype = data.shape, data.dtype
        self._data, self._mask = data, mask

    def __getitem__(self, key: Any) -> np.ndarray:
        first, *places, rows, columns = padded(key, len(self.shape))
        frames = np.asarray(self._data[(first, *places)])
        several = frames if frames.ndim > self._mask[tuple(places)].ndim else frames[None]
        result = replaced(several, self._mask[tuple(places)])
        return (result if several is frames else result[0])[..., rows, columns]


def _sorted(image: np.ndarray, places: list[tuple[int, int]]) -> np.ndarray:
    """Give what each pixel has at these places around it, in order (rank, y, x); edges mirror."""
    height, width = image.shape
    beyond = np.pad(image, 2, mode="reflect")
    shown = [beyond[2 + dy : 2 + dy + height, 2 + dx : 2 + dx + width] for dy, dx in places]
    return np.sort(np.stack(shown), axis=0)
