"""Hot pixels of movies, found and replaced before a camera is estimated or a network sees them.

A network takes such a pixel for light: one trained on other images spreads it over its neighbours, one
trained on the movie itself learns to leave it as it is, and either way it is found as a molecule.
"""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.ndimage import minimum_filter

from fiji_bridge.stack import positions, seen_through, some_frames
from fiji_bridge.stack_formats.recording import padded

if TYPE_CHECKING:
    import xarray as xr

    from fiji_bridge.camera import Camera

FEWEST, MOST = 16, 100
"""Frames without which a pixel is not known to be hot throughout, and frames looked at, spread evenly."""
SHARPNESS = 8.0
"""How many times brighter than its neighbours. Light is at most 4.3 times, through a Gaussian PSF of a sigma
of 0.5 pixels over square pixels, and 7.5 times of 0.4."""
STANDS_OUT, OWN = 1.0, 4.0
"""How much brighter at least, in standard deviations of a neighbour's reading, and in standard errors of its
own mean, which a few rare photons behind EM gain do not reach."""
SURE = 2.0
"""By how many standard errors neighbours may be brighter than they seem."""
AROUND = 9
"""Side of the square whose darkest pixel has background alone [pixels]."""
LINE = 0.5
"""Share of hot pixels from which all of a row or column is hot."""
PATTERN = 0.05
"""Share of hot pixels above which they are a pattern of the sensor, such as a colour mosaic."""
TOGETHER = 2**25
"""Pixels to read together."""

NEAREST = [(0, -1), (0, 1), (-1, 0), (1, 0), (-1, -1), (-1, 1), (1, -1), (1, 1)]
SMOOTH = np.array([0.5] * 4 + [-0.25] * 4)
"""Weights of these places that give the middle of any surface of third order."""


def repaired(stack: "xr.DataArray", camera: "Camera | None") -> "tuple[xr.DataArray, int]":
    """Replace hot pixels of a stack, each channel and z apart; see `defective` and `replaced`.

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


def defective(series: Any, most: int = MOST) -> np.ndarray:
    """Find hot pixels of a movie.

    An image is light through a lens, a sum of copies of its PSF over some background. If one of these, a
    Gaussian integrated over pixels, is centred on a pixel or beside it, then the mean of the pixels left and
    right of it has some share of its light at least, wherever it is centred, and so has the mean of those
    above and below; hence so has any sum of them. A pixel that is brighter than one of these means by more
    than `SHARPNESS` times saw no such light (as for cosmic rays in L.A.Cosmic: van Dokkum, PASP 113, 1420,
    2001). Single rows and columns of hot pixels are found, too; the outermost pixels of an image are judged
    along its edge, corners and outermost lines not at all. Of hot pixels side by side two are found, not
    four in a square.

    Parameters
    ----------
    series
        (t, y, x), an array or an opened stack. A pixel must be hot in both halves of its frames; with less
        than `FEWEST` none is known to be.
    most
        Frames to look at, spread evenly.

    Returns
    -------
    numpy.ndarray
        (y, x), true where a pixel is.
    """
    frames, *size = series.shape
    if frames < FEWEST or min(size) < 3:
        return np.zeros(size, bool)
    numbers = np.unique(np.linspace(0, frames - 1, most).astype(int))
    with np.errstate(invalid="ignore", over="ignore"):  # NaN is named by whoever reads all frames
        halves, variance = _statistics(series, numbers)
        mean = np.mean(halves, axis=0)
        dark = minimum_filter(mean, AROUND)
        usual = np.sort(_sides(np.pad(variance, 1, mode="edge")), axis=0)[1:3].mean(0)
        # Where they read but 0, light, which varies as much as there is of it, would give them this share.
        noise = np.sqrt(np.where(usual > 0, usual, variance / SHARPNESS))
        left, right, above, below = _sides(np.pad(mean, 1, constant_values=np.inf))
        beside = np.minimum(left + right, above + below) / 2 - dark
        doubt = SURE * noise / math.sqrt(2 * len(numbers))
        apart, always = mean - dark, np.min(halves - dark, axis=0)
        hot = (apart > SHARPNESS * (beside + doubt)) & (apart > STANDS_OUT * noise) & (always > apart / 2)
        hot &= (apart > OWN * np.sqrt(variance / len(numbers))) & (variance > 0) & np.isfinite(apart)
    hot |= (hot.mean(0) > LINE) | (hot.mean(1) > LINE)[:, None]
    return hot if hot.mean() <= PATTERN else np.zeros_like(hot)


def _statistics(series: Any, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give the means (2, y, x) of every other of some frames and of the rest, and the variance of readings.

    The variance from one frame to the next, so that what bleaches or moves slowly adds little.
    """
    size = series.shape[1:]
    sums, squares = np.zeros((2, *size), np.float32), np.zeros(size, np.float32)
    each = max(1, TOGETHER // math.prod(size))
    for first in range(0, len(numbers), each):
        some = numbers[first : first + each]
        block = series[some] if isinstance(series, np.ndarray) else some_frames(series, some)
        for place, frame in enumerate(block, first):
            now = frame.astype(np.float32)
            if place == 0:
                start = before = now  # near the mean, so that sums keep their digits
            sums[place % 2] += now - start
            squares += (now - before) ** 2
            before = now
    counts = np.array([len(numbers[half::2]) for half in (0, 1)], np.float32)
    return start + sums / counts[:, None, None], squares / (2 * (len(numbers) - 1))


def _sides(framed: np.ndarray) -> np.ndarray:
    """Give what is left of each pixel, right of it, above and below (4, y, x), of an image with a margin."""
    return np.stack([framed[1:-1, :-2], framed[1:-1, 2:], framed[:-2, 1:-1], framed[2:, 1:-1]])


def replaced(frames: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Give frames (t, …, y, x) with other readings for the pixels of a mask (…, y, x).

    In each frame that of the eight neighbours that comes nearest to what a smooth image has there: a value
    that the camera can give.
    """
    height, width = mask.shape[-2:]
    hidden, flat = mask.ravel(), frames.reshape(len(frames), mask.size)
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
