"""Super-resolution images: localizations drawn on fine pixels."""

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fiji_bridge.errors import FijiBridgeError

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

Array = npt.NDArray[np.float64]

METHODS = ("ash", "histogram", "gaussian")

LARGEST = 400_000_000
"""Pixels of the largest image, 1.6 GB."""

SIGMAS = 4.0
"""How far a Gaussian is drawn, in standard deviations."""

BATCH = 4_000_000
"""Pixels of Gaussians drawn at a time."""


def render(
    table: "pd.DataFrame",
    *,
    method: str = "ash",
    pixel_size_nm: float = 20.0,
    extent_nm: tuple[float, float, float, float] | None = None,
    shifts: int = 2,
    sigma_nm: float | None = None,
) -> "xr.DataArray":
    """Draw localizations as an image in which every molecule weighs 1.

    Parameters
    ----------
    table
        Molecules with ``x [nm]`` and ``y [nm]``; rows with a position that is not finite are left out.
    method
        ``"histogram"`` counts molecules in pixels. ``"ash"``, the plugin's default, averages histograms with
        bins of `shifts` pixels, shifted by single pixels (Scott, Ann. Stat. 13, 1024, 1985); a molecule
        becomes a pyramid (where the plugin's weighs shifts⁴). ``"gaussian"`` integrates a Gaussian of the
        molecule's own ``uncertainty [nm]`` over each pixel.
    pixel_size_nm
        Size of a pixel of the image, in nm.
    extent_nm
        (left, right, top, bottom) of the image in nm, so that images can lie side by side; left out, from 0
        to the outermost molecule. The right and the bottom edge move outwards to whole pixels.
    shifts
        For ``"ash"``, the number of shifts in each direction; 1 gives the histogram.
    sigma_nm
        For ``"gaussian"``, one standard deviation for all instead of their uncertainties.

    Returns
    -------
    xarray.DataArray
        (y, x) float32 in molecules per pixel, with the coordinates of the pixel centres in nm and the
        attributes ``pixel_size_nm``, ``method`` and ``extent_nm``.

    Raises
    ------
    FijiBridgeError
        If a column is missing, an option is not possible, or the image would be too large.
    """
    import xarray as xr

    from fiji_bridge.localizations import require_columns

    if method not in METHODS:
        raise FijiBridgeError(f"Unknown rendering {method!r}; choose one of {', '.join(METHODS)}.")
    if not 0 < pixel_size_nm < math.inf:
        raise FijiBridgeError(
            f"pixel_size_nm must be a positive number of nanometres, not {pixel_size_nm!r}."
        )
    if shifts < 1:
        raise FijiBridgeError(f"shifts must be 1 or more, not {shifts!r}.")
    require_columns(table, ("x [nm]", "y [nm]"), "the table to render")
    points = table[["x [nm]", "y [nm]"]].to_numpy(dtype=float)
    shown = np.isfinite(points).all(axis=1)
    sigma = _sigmas(table, sigma_nm)[shown] if method == "gaussian" else np.empty(0)
    points = points[shown]
    left, right, top, bottom = extent_nm or _extent(points, pixel_size_nm)
    if not (left < right and top < bottom and all(map(math.isfinite, (left, right, top, bottom)))):
        raise FijiBridgeError(
            f"extent_nm must be (left, right, top, bottom), left < right and top < bottom, not {extent_nm}."
        )
    width = max(1, math.ceil((right - left) / pixel_size_nm - 1e-9))
    height = max(1, math.ceil((bottom - top) / pixel_size_nm - 1e-9))
    if height * width > LARGEST:
        raise FijiBridgeError(
            f"An image of {height}×{width} pixels is too large; "
            "give a larger pixel_size_nm or a smaller extent_nm."
        )

    positions = (points - (left, top)) / pixel_size_nm
    if method == "gaussian":
        image = _gaussian(positions, sigma / pixel_size_nm, height, width)
    else:
        image = _histogram(positions, height, width)
        if method == "ash" and shifts > 1:
            image = _shifted(image, shifts)
    centres = [
        start + (np.arange(count) + 0.5) * pixel_size_nm for start, count in ((top, height), (left, width))
    ]
    return xr.DataArray(
        image.astype(np.float32),
        dims=("y", "x"),
        coords={"y": ("y", centres[0], {"units": "nm"}), "x": ("x", centres[1], {"units": "nm"})},
        attrs={
            "pixel_size_nm": float(pixel_size_nm),
            "method": method,
            "extent_nm": (left, left + width * pixel_size_nm, top, top + height * pixel_size_nm),
        },
    )


def _sigmas(table: "pd.DataFrame", sigma_nm: float | None) -> Array:
    from fiji_bridge.localizations import require_columns

    if sigma_nm is not None:
        if not 0 < sigma_nm < math.inf:
            raise FijiBridgeError(f"sigma_nm must be a positive number of nanometres, not {sigma_nm!r}.")
        return np.full(len(table), float(sigma_nm))
    require_columns(table, ("uncertainty [nm]",), "the table to render with Gaussians (or give sigma_nm)")
    sigma = table["uncertainty [nm]"].to_numpy(dtype=float)
    known = sigma[np.isfinite(sigma) & (sigma > 0)]
    # A fit that gave no uncertainty is no better than the others.
    return np.where(np.isfinite(sigma) & (sigma > 0), sigma, known.max() if known.size else 1.0)


def _extent(points: Array, pixel_size_nm: float) -> tuple[float, float, float, float]:
    # The right edge is open, so the outermost molecule needs a pixel that begins at or before it.
    ends = (np.floor(points.max(axis=0) / pixel_size_nm) + 1) * pixel_size_nm if len(points) else np.zeros(2)
    right, bottom = np.maximum(ends, pixel_size_nm)
    return 0.0, float(right), 0.0, float(bottom)


def _histogram(positions: Array, height: int, width: int) -> Array:
    """Count positions (x, y) in pixels; those outside are left out."""
    column, row = np.floor(positions).astype(np.int64).T
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    counts = np.bincount(row[inside] * width + column[inside], minlength=height * width)
    return counts.reshape(height, width).astype(float)


def _shifted(histogram: Array, shifts: int) -> Array:
    """Average the shifted histograms, which is a convolution with a triangle along each axis."""
    from scipy.ndimage import convolve1d

    triangle = (shifts - np.abs(np.arange(1 - shifts, shifts))) / shifts**2
    return convolve1d(
        convolve1d(histogram, triangle, axis=0, mode="constant"), triangle, axis=1, mode="constant"
    )


def _gaussian(positions: Array, sigma: Array, height: int, width: int) -> Array:
    """Add the integral of each Gaussian over each pixel; sizes in pixels."""
    from scipy.special import erf

    image = np.zeros(height * width)
    reach = np.ceil(SIGMAS * sigma).astype(int)
    for size in np.unique(reach):
        members = np.flatnonzero(reach == size)
        span = np.arange(-size, size + 1)
        for start in range(0, len(members), max(1, BATCH // len(span) ** 2)):
            some = members[start : start + max(1, BATCH // len(span) ** 2)]
            pixel = np.floor(positions[some]).astype(np.int64)[:, :, None] + span
            distance = (pixel - positions[some][:, :, None]) / (sigma[some] * math.sqrt(2))[:, None, None]
            step = 1 / (sigma[some] * math.sqrt(2))[:, None, None]
            part = (erf(distance + step) - erf(distance)) / 2
            size_xy = np.array([width, height])[None, :, None]
            part = np.where((pixel >= 0) & (pixel < size_xy), part, 0)
            pixel = np.clip(pixel, 0, size_xy - 1)
            flat = pixel[:, 1, :, None] * width + pixel[:, 0, None, :]
            values = part[:, 1, :, None] * part[:, 0, None, :]
            np.add.at(image, flat.ravel(), values.ravel())
    return image.reshape(height, width)
