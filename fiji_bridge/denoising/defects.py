"""Hot and dead pixels of movies, found and replaced before a network sees them.

A network takes such a pixel for light: one trained on other images spreads it over its neighbours, one
trained on the movie itself learns to leave it as it is, and either way it is found as a molecule.
"""

from itertools import product
from typing import Any

import numpy as np
import xarray as xr

from fiji_bridge.camera import Camera
from fiji_bridge.stack import positions

FEWEST, MOST = 8, 100
"""Frames without which a pixel is not known to be always so, and frames looked at, spread over a movie."""
STANDS_OUT = 2.0
"""How far a defective pixel is from its surroundings, in standard deviations of a single reading."""
SHARPNESS = 8.0
"""How many times further than its neighbours: of light at most 8 through a lens, down to a PSF of 0.4 px."""
SURE = 2.0
"""By how many standard errors a neighbour may be further than it seems."""

NEAREST = [(0, -1), (0, 1), (-1, 0), (1, 0), (-1, -1), (-1, 1), (1, -1), (1, 1)]
SMOOTH = np.array([0.5] * 4 + [-0.25] * 4)
"""Weights of these places that give the middle of any surface of third order."""
RING = [(dy, dx) for dy, dx in product(range(-2, 3), repeat=2) if max(abs(dy), abs(dx)) == 2]


def repaired(stack: xr.DataArray, camera: Camera | None) -> tuple[xr.DataArray, int]:
    """Replace hot and dead pixels, frame by frame, by what their neighbours show.

    A pixel is defective whose mean over time differs from those around by more than its readings' standard
    deviation `STANDS_OUT` times, and `SHARPNESS` times as much as that of the third of its neighbours does:
    no lens makes a point of light so sharp (the idea of L.A.Cosmic, van Dokkum, PASP 113, 1420, 2001). As two
    neighbours may be defective too, so are whole columns.

    Parameters
    ----------
    stack
        An opened stack; each channel and z is looked at apart. With less than `FEWEST` frames none is known.
    camera
        With a map of offset or gain it knows each pixel as it is, and nothing is replaced.

    Returns
    -------
    tuple of xarray.DataArray and int
        The stack, of the same type, read when asked for, and how many pixels are replaced.
    """
    if camera is not None and (camera.offset_map is not None or camera.gain_map is not None):
        return stack, 0
    mask = np.reshape([_defective(series) for _, series in positions(stack)], stack.shape[1:])
    number = int(mask.sum())
    if not number:
        return stack, 0
    data = stack.chunk({"y": -1, "x": -1}).data

    def replace(frames: np.ndarray, block_info: Any = None) -> np.ndarray:
        """Replace those of a block: some frames, channels and z."""
        where = [slice(*ends) for ends in block_info[0]["array-location"][1:]]
        return _replace(frames, mask[tuple(where)])

    mended: xr.DataArray = stack.copy(data=data.map_blocks(replace, dtype=stack.dtype, meta=data._meta))
    return mended, number


def _defective(series: xr.DataArray) -> np.ndarray:
    """Find pixels (y, x) of a movie (t, y, x) that stand out alone in the mean over time."""
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


def _sorted(image: np.ndarray, places: list[tuple[int, int]]) -> np.ndarray:
    """Give what each pixel has at these places around it, in order (rank, y, x); edges mirror."""
    height, width = image.shape
    padded = np.pad(image, 2, mode="reflect")
    shown = [padded[2 + dy : 2 + dy + height, 2 + dx : 2 + dx + width] for dy, dx in places]
    return np.sort(np.stack(shown), axis=0)


def _replace(frames: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Put in, for each pixel of a mask (…, y, x), what a smooth image (t, …, y, x) has there.

    From its eight neighbours, or the mean of those that are no defects.
    """
    height, width = mask.shape[-2:]
    hidden, flat = mask.ravel(), frames.reshape(len(frames), -1)
    at = np.flatnonzero(hidden)
    y, x = at // width % height, at % width
    columns, good = [], []
    for dy, dx in NEAREST:
        inside = (y + dy >= 0) & (y + dy < height) & (x + dx >= 0) & (x + dx < width)
        place = np.where(inside, at + dy * width + dx, at)
        columns.append(flat[:, place].astype(np.float64))
        good.append(~hidden[place])
    known = np.array(good, float)
    weights = np.where(known.all(0), SMOOTH[:, None], known / known.sum(0).clip(1))
    values = np.einsum("ptn,pn->tn", np.stack(columns), weights)
    if frames.dtype.kind != "f":
        limits = np.iinfo(frames.dtype)
        values = np.rint(values).clip(limits.min, limits.max)
    mended, some = flat.copy(), known.any(0)
    mended[:, at[some]] = values[:, some]
    return mended.reshape(frames.shape)
