"""The resolution of super-resolution images, measured from the data alone."""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fiji_bridge.errors import FijiBridgeError

if TYPE_CHECKING:
    import pandas as pd

Array = npt.NDArray[np.float64]

THRESHOLD = 1 / 7

LARGEST = 8192
"""Side of the largest rendered image in pixels, which takes about 2 GB to transform."""


@dataclass(frozen=True)
class FourierRingCorrelation:
    """Correlation of two independent halves of the data against spatial frequency.

    Attributes
    ----------
    resolution_nm
        Inverse of the frequency where the smoothed correlation first falls below the threshold; NaN where it
        is below from the start or never falls below.
    threshold
        1/7.
    frequency
        Spatial frequencies [1/nm], (n,).
    correlation
        Fourier ring correlation at each, (n,).
    smoothed
        The curve that is compared with the threshold, (n,).
    """

    resolution_nm: float
    threshold: float
    frequency: Array = field(repr=False)
    correlation: Array = field(repr=False)
    smoothed: Array = field(repr=False)


def frc(
    first: "pd.DataFrame | npt.ArrayLike",
    second: "pd.DataFrame | npt.ArrayLike | None" = None,
    *,
    pixel_size_nm: float = 10.0,
    split: str = "blocks",
    seed: int = 0,
) -> FourierRingCorrelation:
    """Measure resolution by Fourier ring correlation.

    Two independent images of the same structure agree in the Fourier rings that the data resolve. The
    resolution is where their correlation falls below 1/7 (Nieuwenhuizen et al., Nat. Methods 10, 557, 2013,
    equation 1; Banterle et al., J. Struct. Biol. 183, 363, 2013). As in the first of these, the images fade
    to 0 at their edges and the curve is smoothed before it is compared with the threshold.

    A molecule that is localized in both halves correlates with itself and makes the resolution look better
    than that of the structure. Splitting by blocks of frames keeps most molecules in one half, splitting by
    parity does not. Halves that went through one denoiser are no longer independent.

    Parameters
    ----------
    first, second
        Either two sets of localizations (``x [nm]``, ``y [nm]``) or two images (y, x) of one shape; or one
        set of localizations, which is split in two by ``frame``.
    pixel_size_nm
        Size of the pixels of the images, or of those that localizations are rendered to; a quarter of the
        expected resolution or less.
    split
        How one set is halved: ``"blocks"``, runs of neighbouring frames (at most 500, and at least 20 runs
        where there are frames enough) drawn at random, or ``"parity"``, odd against even frames.
    seed
        Seed of the draw.

    Raises
    ------
    FijiBridgeError
        If a column is missing, a half is empty, the images differ in shape or are smaller than 8 pixels, or
        the rendered image would be larger than 8192 pixels.
    """
    import pandas as pd

    if not 0 < pixel_size_nm < math.inf:
        raise FijiBridgeError(
            f"pixel_size_nm must be a positive number of nanometres, not {pixel_size_nm!r}."
        )
    if isinstance(first, pd.DataFrame):
        halves = _halves(first, split, seed) if second is None else (first, second)
        images = _rendered(halves, pixel_size_nm)
    elif second is None:
        raise FijiBridgeError(
            "One image cannot be correlated with itself; give two images of the same structure."
        )
    else:
        images = _checked(first), _checked(second)
        if images[0].shape != images[1].shape:
            raise FijiBridgeError(
                f"The images are {images[0].shape} and {images[1].shape}; they must have one shape."
            )
    frequency, correlation = _ring_correlation(*images)
    frequency = frequency / pixel_size_nm
    smoothed = _smooth(correlation)
    return FourierRingCorrelation(_crossing(frequency, smoothed), THRESHOLD, frequency, correlation, smoothed)


def _halves(table: "pd.DataFrame", split: str, seed: int) -> "tuple[pd.DataFrame, pd.DataFrame]":
    from fiji_bridge.localizations import require_columns

    require_columns(table, ("frame",), "the table of localizations")
    if table.empty:
        raise FijiBridgeError("The table of localizations is empty, so it has no resolution.")
    frame = table["frame"].to_numpy()
    frame = (frame - frame.min()).astype(int)
    if split == "parity":
        chosen = frame % 2 == 0
    elif split == "blocks":
        length = int(np.clip((frame.max() + 1) // 20, 1, 500))
        block = frame // length
        order = np.random.default_rng(seed).permutation(block.max() + 1)
        chosen = order[block] % 2 == 0
    else:
        raise FijiBridgeError(f'split must be "blocks" or "parity", not {split!r}.')
    return table[chosen], table[~chosen]


def _rendered(halves: "tuple[Any, Any]", pixel_size_nm: float) -> tuple[Array, Array]:
    """Count the localizations of both halves in the pixels of one common square."""
    from fiji_bridge.localizations import require_columns

    columns = ["x [nm]", "y [nm]"]
    points = []
    for half in halves:
        require_columns(half, columns, "the table of localizations")
        points.append(half[columns].to_numpy(dtype=float))
        if not len(half):
            raise FijiBridgeError("One half of the localizations is empty; give molecules from more frames.")
        if not np.isfinite(points[-1]).all():
            raise FijiBridgeError(
                "The table of localizations has a position that is not a finite number; remove it."
            )
    low = np.min([half.min(axis=0) for half in points], axis=0)
    high = np.max([half.max(axis=0) for half in points], axis=0)
    size = max(8, int((high - low).max() // pixel_size_nm) + 1)
    if size > LARGEST:
        raise FijiBridgeError(
            f"{(high - low).max() / 1000:.3g} µm are {size} pixels of {pixel_size_nm:g} nm, over {LARGEST}; "
            "give a larger pixel_size_nm or a part of the field of view."
        )
    images = []
    for half in points:
        column, row = np.minimum((half - low) // pixel_size_nm, size - 1).astype(int).T
        images.append(
            np.bincount(row * size + column, minlength=size * size).reshape(size, size).astype(float)
        )
    return images[0], images[1]


def _checked(image: Any) -> Array:
    values = np.asarray(image, dtype=np.float64)
    if values.ndim != 2 or min(values.shape) < 8:
        raise FijiBridgeError(
            f"Fourier ring correlation needs images (y, x) of 8 pixels or more, not {values.shape}."
        )
    if not np.isfinite(values).all():
        raise FijiBridgeError("An image for Fourier ring correlation holds NaN or infinite values.")
    return values


def _ring_correlation(first: Array, second: Array) -> tuple[Array, Array]:
    """Correlate rings one frequency step of the shorter side wide; frequencies in cycles per pixel."""
    from scipy.fft import rfft2
    from scipy.signal.windows import tukey

    height, width = first.shape
    window = np.outer(tukey(height, 0.25), tukey(width, 0.25))
    a, b = (rfft2((image - image.mean()) * window, workers=1) for image in (first, second))
    steps = min(height, width)
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]) * steps
    ring = np.rint(radius).astype(int)
    inside = (ring >= 1) & (ring <= steps // 2)
    # A column of the half spectrum stands for two of the whole one, but for the first and, if even, the last.
    twice = np.full(a.shape, 2.0)
    twice[:, 0] = 1
    if width % 2 == 0:
        twice[:, -1] = 1

    def total(values: Array) -> npt.NDArray[Any]:
        return np.bincount(ring[inside], (values * twice)[inside], minlength=steps // 2 + 1)[1:]

    shared = total((a * b.conj()).real)
    power = np.sqrt(total(np.abs(a) ** 2) * total(np.abs(b) ** 2))
    correlation = np.divide(shared, power, out=np.zeros_like(shared), where=power > 0)
    return np.arange(1, steps // 2 + 1) / steps, correlation


def _smooth(correlation: Array) -> Array:
    """Average over a twentieth of the curve, less towards its ends; short curves stay as they are."""
    at = np.arange(len(correlation))
    half = np.minimum(len(correlation) // 40, np.minimum(at, at[::-1]))
    sums = np.concatenate([[0.0], np.cumsum(correlation)])
    return (sums[at + half + 1] - sums[at - half]) / (2 * half + 1)


def _crossing(frequency: Array, curve: Array) -> float:
    """Interpolate where the curve first falls below the threshold, and give the inverse frequency."""
    below = np.flatnonzero(curve < THRESHOLD)
    if not below.size or below[0] == 0:
        return math.nan
    at = int(below[0])
    part = (curve[at - 1] - THRESHOLD) / (curve[at - 1] - curve[at])
    return float(1 / (frequency[at - 1] + part * (frequency[at] - frequency[at - 1])))
