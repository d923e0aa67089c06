"""The camera from the noisy data alone: photon noise grows in proportion to the signal.

For photoelectrons on a linear camera the variance of a pixel is a line in its mean, ``variance = slope · mean
+ constant`` (Foi et al., IEEE Trans. Image Process. 17, 1737, 2008, equation 3), and ``1 / slope`` is the
photons per ADU. The frames are cut into small patches; each gives a mean and, from the highest spatial
frequencies, where a microscope's optics leave little but noise, a variance. Of successive frames that show
the same scene the difference is taken first, so that the scene is gone as well. Patches where something
moved, blinked or has sharp detail betray themselves at half that frequency and are left out. Neighbouring
pixels may share noise, which the highest frequencies would not show, so their correlation is measured too and
the variance corrected for it.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fiji_bridge.camera import Camera
from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.progress import Progress, silent

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["CameraEstimate", "estimate_camera", "sample_frames"]

PATCH = 8
"""Pixels along the side of a patch."""

MOST_FRAMES, MOST_PIXELS, MOST_POSITIONS = 50, 16_000_000, 8
"""How much is read at most: frames, pixels of one movie, channels and z slices."""
RANGE_PIXELS = 500_000
"""Pixels looked at to find the range of values."""

FINE_LIMIT, COARSE_LIMIT, BACKGROUND_LIMIT = 2.5, 1.7, 1.6
"""Times what is expected from where the variance of a patch is more than noise.

At the highest frequencies, at half of them, and, for a uniform background, of all its pixels. Noise alone has
a spread of 0.34, 0.34 and 0.18 there, so that few patches are lost for it."""

CUT_OFF = 0.1
"""Share of pixels at zero with which a patch may have lost part of its noise."""

STILL = 0.5
"""Share of patches in which successive frames must differ by noise alone for their differences to be used."""

LOWEST_WEIGHED = 0.05
"""Share of the mean variance below which a patch gets no more weight: it may have no noise at all."""

DEGREES = 17
"""Degrees of freedom of a patch's variance: 64 pixels over 1.94² for the overlap of the second
differences."""

FEWEST_PATCHES, FEWEST_LEVELS = 4, 8
"""Patches for a line and grey values to see noise in."""

GENUINE = 0.5
"""Share of the spread of the patches' means that must not be noise for them to make a line."""

UNSURE = 0.15
"""Relative spread of the gain from which it is not reliable."""

CORRELATED, CORRELATED_BOTH, ANTICORRELATED = 0.12, 0.05, -0.06
"""Correlation of neighbouring pixels' noise along one axis, along both, and negative, that no camera makes.

Confocal detectors reach 0.06 along their fast axis."""

COARSELY_ROUNDED = 0.08
"""Share of rounding in the noise that cameras stay below: a converter's step is finer than the read noise."""

BENT = 0.2
"""Relative distance from the line that photon noise makes, from where it is no such line."""

MOST_AVERAGED = 128
"""Frames that people average; a finer grid of values is a scaling."""

GRID_VALUES = 70_000
"""More distinct values than 16 bits have are no grid."""

LAGS = 4
"""Pixels up to which the correlation of the noise is measured."""

LEAST_SEEN, MOST_BLURRED = 0.05, 0.3
"""Least share of the noise that is believed to be at the frequencies looked at, and the share at the highest
below which the image is blurred, so that those half as high tell more."""

RESAMPLES = 200
"""Bootstrap resamples for the spread."""

TINY = 1e-12


@dataclass(frozen=True)
class CameraEstimate:
    """A camera found from the data, and how far it can be trusted.

    Parameters
    ----------
    camera
        The best guess, even when not reliable.
    spread
        One standard deviation of `photons_per_adu`, `offset` and `read_noise`, from a bootstrap over regions.
    method
        What was compared.
    warnings
        What speaks against the estimate, a sentence each.
    reliable
        False when a warning means that the data cannot tell.
    noise_correlation
        Of pixels 1, 2, … apart along x, and along y; 0 where it may be chance.
    """

    camera: Camera
    spread: dict[str, float]
    method: str
    warnings: tuple[str, ...]
    reliable: bool
    noise_correlation: tuple[tuple[float, ...], tuple[float, ...]] = ((0.0,), (0.0,))

    @property
    def noise_reach(self) -> int:
        """How far apart pixels share noise [pixels]; 0 where each has its own, as in raw recordings."""
        return _reach(np.array(self.noise_correlation))

    def describe(self) -> str:
        """Give the text for people: values with spread, method, warnings, and the option string."""
        camera, spread = self.camera, self.spread
        size = "unknown" if camera.pixel_size_nm is None else f"{camera.pixel_size_nm:g} nm"
        rounded = camera.replace(
            offset=float(f"{camera.offset:.6g}"),
            photons_per_adu=float(f"{camera.photons_per_adu:.6g}"),
            read_noise=float(f"{camera.read_noise:.4g}"),
        )
        lines = [
            f"Photons per ADU  {_with_spread(camera.photons_per_adu, spread['photons_per_adu'])}",
            f"Offset           {_with_spread(camera.offset, spread['offset'])} ADU",
            f"Read noise     ≥ {_with_spread(camera.read_noise, spread['read_noise'])} electrons RMS",
            f"Pixel size       {size}",
            f"Method           {self.method}",
            "Note             the data cannot tell offset from read noise: the least read noise is "
            "taken, the spreads are those of this choice, and each ADU more of offset would mean "
            f"{camera.photons_per_adu:.3g} electrons² more of it",
            *(f"Warning          {warning}" for warning in self.warnings),
            f"Reliable         {'yes' if self.reliable else 'no; give the camera yourself if you know it'}",
            f'Use it with      --camera "{rounded.options()}"',
        ]
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Give the fields for JSON, with the option string."""
        return {
            "camera": self.camera.as_dict(),
            "options": self.camera.options(),
            "spread": self.spread,
            "method": self.method,
            "warnings": list(self.warnings),
            "reliable": self.reliable,
            "noise_correlation": self.noise_correlation,
            "noise_reach": self.noise_reach,
        }


def estimate_camera(
    stack: Any, *, pixel_size_nm: float | None = None, progress: Progress | None = None
) -> CameraEstimate:
    """Estimate offset, photons per ADU and read noise from noisy data alone.

    Data cannot tell EM gain, which scales the signal and doubles its variance. With it, the result is the
    camera without EM gain whose photons have a variance equal to their mean: its ADU per photon are twice the
    true ones. Nor do data tell offset from read noise, as both only shift the line; the least read noise is
    taken that explains the rounding and the values below the offset.

    Parameters
    ----------
    stack
        (t, y, x) DataArray, or anything that `open_stack` takes. At most 50 frames spread over it are read;
        channels and z slices, where present, are taken to come from one camera.
    pixel_size_nm
        Put into the camera; left out, the stack's.
    progress
        Called before each pair of frames.

    Raises
    ------
    FijiBridgeError
        If the frames are smaller than two patches, or hold NaN or one value only.
    """
    from fiji_bridge.defects import FEWEST, defective, replaced
    from fiji_bridge.stack import open_stack, positions

    stack = open_stack(stack)
    name = stack.attrs.get("source", "the stack")
    parts = [part for _, part in positions(stack)]
    chosen = np.unique(np.linspace(0, len(parts) - 1, min(len(parts), MOST_POSITIONS)).astype(int))
    movies = []
    for part in (parts[i] for i in chosen):
        frames = sample_frames(part, max(2, MOST_FRAMES // len(chosen)))
        enough = len(frames) >= FEWEST
        hot = defective(frames) if enough else defective(part.isel(_middle(part)), 2 * FEWEST)
        frames = replaced(frames, hot)
        movies.append((frames, 1 if len(frames) == part.sizes["t"] else 2))
    frames = np.concatenate([movie for movie, _ in movies])
    _require_noise(frames, name)
    levels = _levels(frames)
    line, method = _find_line(movies, levels, progress or silent)
    return _judge(line, method, levels, pixel_size_nm or stack.attrs.get("pixel_size_nm"), name)


def sample_frames(stack: "xr.DataArray", most: int = MOST_FRAMES) -> np.ndarray:
    """Read all frames of a stack (t, y, x), or successive pairs spread over it; the middle of large ones."""
    from fiji_bridge.stack import some_frames

    stack, window = stack.transpose("t", "y", "x"), _middle(stack)
    most = min(most, max(2, MOST_PIXELS // math.prod(side.stop - side.start for side in window.values())))
    indices = np.arange(stack.sizes["t"])
    if len(indices) > most:
        starts = np.linspace(0, len(indices) - 2, most // 2).astype(int)
        indices = (starts[:, None] + [0, 1]).ravel()
    return some_frames(stack, indices, **window)


def _middle(stack: "xr.DataArray") -> dict[str, slice]:
    """Give the part of large frames that is looked at."""
    most, window = int(MOST_PIXELS**0.5), {}
    for axis in ("y", "x"):
        size = stack.sizes[axis]
        first = max(0, size - most) // 2
        window[axis] = slice(first, min(size, first + most))
    return window


def _require_noise(frames: np.ndarray, name: str) -> None:
    height, width = frames.shape[1:]
    if min(height, width) < PATCH + 4 or height * width < 2 * (PATCH + 4) ** 2:
        raise FijiBridgeError(
            f"{name} is too small ({height}×{width} pixels) to estimate the camera from; give it yourself."
        )
    if not np.isfinite(frames).all():
        raise FijiBridgeError(f"{name} holds NaN or infinite values; repair it before estimating the camera.")
    if frames.min() == frames.max():
        raise FijiBridgeError(
            f"{name} has one value in all pixels; there is no noise to estimate the camera from."
        )


@dataclass(frozen=True)
class Levels:
    """What the values of a stack can be.

    Parameters
    ----------
    step
        Distance between neighbouring values, 0 where there is no such grid.
    top
        Value at which pixels saturate, infinite when none do.
    saturated, zeros
        Share of pixels there, and at 0.
    distinct
        Number of different values.
    low
        Value that one pixel in a thousand is below.
    whole
        Whether all are whole numbers.
    """

    step: float
    top: float
    saturated: float
    zeros: float
    distinct: int
    low: float
    whole: bool


def _levels(frames: np.ndarray) -> Levels:
    values, counts = np.unique(frames, return_counts=True)
    integer = np.issubdtype(frames.dtype, np.integer)
    whole = integer or bool((values == np.round(values)).all())
    # Light that saturates piles up at one value; otherwise the highest values are the rarest.
    piled = len(values) > 2 and counts[-1] >= 10 and counts[-1] > 3 * counts[-2]
    full = piled or (integer and values[-1] == np.iinfo(frames.dtype).max)
    return Levels(
        step=_step(np.diff(values.astype(np.float64)), whole),
        top=float(values[-1]) if full else math.inf,
        saturated=float(counts[-1] / frames.size) if full else 0.0,
        zeros=float(counts[values == 0].sum() / frames.size) if values[0] == 0 else 0.0,
        distinct=len(values),
        low=float(values[np.searchsorted(np.cumsum(counts), 0.001 * frames.size)]),
        whole=whole,
    )


def value_range(stacks: Sequence["xr.DataArray"]) -> tuple[float, float, float]:
    """Find what values stacks of one camera can hold.

    Parameters
    ----------
    stacks
        Each (t, y, x); a few frames of each are read.

    Returns
    -------
    tuple of float
        The distance between neighbouring values [ADU], 0 where there is no such grid; the value below which
        the camera cuts off and that at which pixels saturate [ADU], infinite where there is none.
    """
    each = max(1, RANGE_PIXELS // len(stacks))
    samples = [sample_frames(stack, 8).ravel() for stack in stacks]
    frames = np.concatenate([sample[:: -(-sample.size // each)] for sample in samples])
    values, counts = np.unique(frames, return_counts=True)
    if len(values) < 2:
        return 0.0, -math.inf, math.inf
    levels = _levels(frames)
    piled = len(values) > 2 and counts[0] >= 10 and counts[0] > 3 * counts[1]
    unsigned = np.issubdtype(frames.dtype, np.unsignedinteger)
    return levels.step, 0.0 if unsigned else float(values[0]) if piled else -math.inf, levels.top


def _step(gaps: np.ndarray, whole: bool) -> float:
    """Give the largest number of which all gaps between values are multiples, 0 if there is none."""
    if whole:
        return float(np.gcd.reduce(gaps.astype(np.int64)))
    step = gaps.min()
    multiples = gaps / step
    fits = len(gaps) < GRID_VALUES and np.abs(multiples - np.round(multiples)).max() < 0.01
    return float(step) if fits else 0.0


@dataclass(frozen=True)
class Patches:
    """What was measured on each patch; all fields are (patch, …).

    Parameters
    ----------
    mean
        Mean [ADU].
    fine, coarse
        Variance at the highest spatial frequencies and at half of them [ADU²].
    lagged
        (patch, 2, 1 + LAGS): noise times itself and its neighbours, along x and y [ADU²].
    second, third
        Second and third central moment of one frame [ADU², ADU³].
    clipped, dark
        Shares of pixels that saturate, and that are 0, where a camera without offset cuts the noise off.
    region
        Which part of the field of view it lies in; the bootstrap draws parts.
    """

    mean: np.ndarray
    fine: np.ndarray
    coarse: np.ndarray
    lagged: np.ndarray
    second: np.ndarray
    third: np.ndarray
    clipped: np.ndarray
    dark: np.ndarray
    region: np.ndarray

    def __len__(self) -> int:
        return len(self.mean)

    def __getitem__(self, chosen: np.ndarray) -> "Patches":
        return Patches(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))

    @classmethod
    def joined(cls, parts: "Sequence[Patches]") -> "Patches":
        """Put the patches of several frames together."""
        return cls(*(np.concatenate([getattr(p, name) for p in parts]) for name in cls.__dataclass_fields__))


def _measure_all(groups: Sequence[tuple[np.ndarray, ...]], levels: Levels, progress: Progress) -> Patches:
    parts = []
    for done, group in enumerate(groups):
        progress("Estimating the camera", done, len(groups))
        parts.append(_measure([frame.astype(np.float64) for frame in group], levels))
    progress("Estimating the camera", len(groups), len(groups))
    return Patches.joined(parts)


def _measure(frames: list[np.ndarray], levels: Levels) -> Patches:
    """Measure the patches of one frame, or of two whose difference is taken."""
    first = frames[0]
    signal = first if len(frames) == 1 else (frames[1] - first) / math.sqrt(2)
    fine = _bend(_bend(signal, 0, 1), 1, 1)[1:-1, 1:-1] / 6
    coarse = _bend(_bend(signal, 0, 2), 1, 2) / 6
    # Bent twice along y, hardly any structure is left, and noise shared along x is still all there.
    along_x = _cut(_bend(_bend(signal, 0, 1), 0, 1)[:, 2:-2])
    along_y = _cut(_bend(_bend(signal, 1, 1), 1, 1)[2:-2]).swapaxes(1, 2)
    lagged = [
        [(bent[..., : PATCH - k] * bent[..., k:]).mean(axis=(1, 2)) / 6 for k in range(1 + LAGS)]
        for bent in (along_x, along_y)
    ]
    values = np.stack([_cut(frame[2:-2, 2:-2]) for frame in frames])
    n = PATCH**2
    central = values[0] - values[0].mean(axis=(1, 2), keepdims=True)
    return Patches(
        mean=values.mean(axis=(0, 2, 3)),
        fine=(_cut(fine) ** 2).mean(axis=(1, 2)),
        coarse=(_cut(coarse) ** 2).mean(axis=(1, 2)),
        lagged=np.moveaxis(np.array(lagged), 2, 0),
        second=n / (n - 1) * (central**2).mean(axis=(1, 2)),
        third=n**2 / ((n - 1) * (n - 2)) * (central**3).mean(axis=(1, 2)),
        clipped=(values >= levels.top).mean(axis=(0, 2, 3)),
        dark=(values == 0).mean(axis=(0, 2, 3)),
        region=_regions(first.shape),
    )


def _bend(image: np.ndarray, axis: int, lag: int) -> np.ndarray:
    """Second difference along an axis, which is 2 · lag shorter afterwards."""
    image = np.moveaxis(image, axis, -1)
    bent = image[..., 2 * lag :] - 2 * image[..., lag:-lag] + image[..., : -2 * lag]
    return np.moveaxis(bent, -1, axis)


def _cut(image: np.ndarray) -> np.ndarray:
    """Cut an image into patches: (patch, y, x)."""
    rows, columns = (size // PATCH for size in image.shape)
    image = image[: rows * PATCH, : columns * PATCH]
    return image.reshape(rows, PATCH, columns, PATCH).swapaxes(1, 2).reshape(-1, PATCH, PATCH)


def _regions(shape: tuple[int, ...]) -> np.ndarray:
    rows, columns = ((size - 4) // PATCH for size in shape)
    # Neighbouring patches share what disturbs them, so they are drawn together where there are enough.
    side = 4 if rows * columns >= 256 else 1
    y, x = np.divmod(np.arange(rows * columns), columns)
    return y // side * columns + x // side


@dataclass(frozen=True)
class Line:
    """Patches that hold nothing but noise, and the line that their variance makes.

    Parameters
    ----------
    noise
        The patches kept.
    share
        Their share of all patches that were not saturated.
    slope, constant
        Variance [ADU²] = slope · mean [ADU] + constant, before the correction for correlated noise.
    cut_off
        Whether patches with many zeros were left out and have less noise than the line says.
    """

    noise: Patches
    share: float
    slope: float
    constant: float
    cut_off: bool

    def expected(self) -> np.ndarray:
        """Give the variance expected of each patch [ADU²]."""
        least = max(LOWEST_WEIGHED * float(self.noise.fine.mean()), TINY)
        return np.maximum(self.slope * self.noise.mean + self.constant, least)


def _find_line(
    movies: Sequence[tuple[np.ndarray, int]], levels: Levels, progress: Progress
) -> tuple[Line, str]:
    """Fit the line to differences of successive frames if the scene holds still, to single frames otherwise.

    `movies` are frames (n, y, x) with the distance from one pair of successive frames to the next.
    """
    pairs = [(movie[i], movie[i + 1]) for movie, stride in movies for i in range(0, len(movie) - 1, stride)]
    if pairs:
        line = _fit(_measure_all(pairs, levels, progress))
        if line.share >= STILL:
            what = f"{_count(len(pairs), 'pair')}, {line.share:.0%} of the field differing by noise alone"
            return line, f"differences of successive frames ({what})"
    singles = [(frame,) for movie, _ in movies for frame in movie]
    line = _fit(_measure_all(singles, levels, progress))
    what = f"{_count(len(singles), 'frame')}, {line.share:.0%} of the field free of fine detail"
    moved = ", since successive frames differ by more than noise" if pairs else ""
    return line, f"finest detail of single frames ({what}){moved}"


def _fit(patches: Patches) -> Line:
    """Tell noise from structure and fit the line, from the darker half of the patches upwards."""
    usable = _usable(patches)
    dark, patches = patches[~usable & (patches.clipped == 0)], patches[usable]
    level = max(float(np.abs(patches.mean).max()), TINY)  # both terms of one size, whatever the unit
    terms = np.stack([np.full_like(patches.mean, level), patches.mean])
    least = max(LOWEST_WEIGHED * float(patches.fine.mean()), TINY)
    kept = patches.mean <= np.median(patches.mean)
    slope, constant, covariance = 0.0, float(np.median(patches.fine[kept])), np.zeros((2, 2))
    ratio = np.median(patches.coarse[kept]) / max(constant, least)
    for quantile in (0.5, 0.5, 0.5, 0.75, 0.9, 0.97, 0.99, 1, 1, 1):
        expected = np.maximum(slope * patches.mean + constant, least)
        error = np.sqrt(np.maximum(np.einsum("ip,ij,jp->p", terms, covariance, terms), 0))
        noise = patches.mean <= np.quantile(patches.mean, quantile)
        noise &= patches.fine <= FINE_LIMIT * (expected + 3 * error)
        noise &= patches.coarse <= COARSE_LIMIT * ratio * (expected + 3 * error)
        if noise.sum() < FEWEST_PATCHES:
            break
        kept = noise
        # Weights by the expected variance make this the maximum-likelihood line for χ²-distributed variances.
        weighted = terms[:, kept] / expected[kept] ** 2
        inverse = np.linalg.pinv(weighted @ terms[:, kept].T, hermitian=True)
        constant, slope = (float(value) for value in inverse @ weighted @ patches.fine[kept])
        constant *= level
        covariance = inverse * 2 / DEGREES
        ratio = np.median(patches.coarse[kept]) / max(float(np.median(patches.fine[kept])), least)
    cut_off = len(dark) >= FEWEST_PATCHES and dark.fine.mean() < 0.8 * (slope * dark.mean + constant).mean()
    return Line(patches[kept], float(kept.mean()), slope, constant, bool(cut_off))


def _usable(patches: Patches) -> np.ndarray:
    """Choose patches without saturation, and without noise cut off at zero if enough others are left."""
    whole = patches.clipped == 0
    for chosen in (whole & (patches.dark < CUT_OFF), whole):
        if chosen.sum() >= max(100, 0.05 * len(patches)):
            return chosen
    return whole if whole.sum() >= FEWEST_PATCHES else np.ones_like(whole)


class Solution(NamedTuple):
    """Slope [ADU], constant [ADU²] and noise correlation (2, LAGS): along x and y, at one pixel and more."""

    slope: np.ndarray
    constant: np.ndarray
    correlation: np.ndarray

    def times(self, unit: float) -> "Solution":
        """Give the solution in a unit as many times smaller."""
        return Solution(self.slope * unit, self.constant * unit**2, self.correlation)


def _sums(line: Line, levels: Levels, unit: float) -> np.ndarray:
    """Sum up, by region, all that `_solve` needs, in a unit [ADU] in which no sum is tiny: (region, term)."""
    noise, square = line.noise, unit**2
    expected, m, rounding = line.expected() / square, noise.mean / unit, levels.step**2 / 12 / square
    w, v, coarse = 1 / expected**2, noise.fine / square - rounding, noise.coarse / square - rounding
    # What is left of structure shows least in the dark, where noise is strongest beside it.
    dark = m <= np.median(m)
    lagged = noise.lagged / square
    lagged[..., 0] -= rounding
    lagged = lagged.reshape(-1, 2 * (1 + LAGS)) * (dark / expected)[:, None]
    third, second = noise.third / unit**3, noise.second / square - rounding
    moments = np.stack([third, second, np.ones_like(m), m, v, coarse], axis=1)
    moments *= _background(noise)[:, None]
    lines = [w, w * m, w * m**2, w * v, w * m * v, w * coarse, w * m * coarse]
    terms = np.column_stack([*lines, moments, lagged])
    regions, index = np.unique(noise.region, return_inverse=True)
    sums = np.zeros((len(regions), terms.shape[1]))
    np.add.at(sums, index, terms)
    return sums


def _background(noise: Patches) -> np.ndarray:
    """Choose the patches of a uniform background: even a molecule's faint tail would look like asymmetry."""
    level = np.median(noise.fine)
    usual = np.abs(noise.mean - np.median(noise.mean)) <= 3 * np.sqrt(level) / PATCH
    return usual & (noise.second <= BACKGROUND_LIMIT * level)


def _solve(sums: np.ndarray, uniform: bool, rounding: float) -> Solution:
    """Give the line from sums (…, term), corrected for correlated noise.

    The patches of a `uniform` field make no line. Then the gain comes from the asymmetry of the noise: the
    third central moment of g times a Poisson variable is g times its variance.
    """
    w, wm, wmm, *lines = np.moveaxis(sums[..., :7], -1, 0)
    third, second, count, mean, *variances = np.moveaxis(sums[..., 7:13], -1, 0)
    lagged = sums[..., 13:].reshape(*sums.shape[:-1], 2, 1 + LAGS)
    correlation = lagged[..., 1:] / np.maximum(lagged[..., :1], TINY)
    # The autocorrelation of (1, -2, 1)/√6 is 1, -2/3, 1/6 at 0, 1 and 2 of its steps, of one or two pixels.
    fine, coarse = (
        np.maximum(1 - 4 / 3 * correlation[..., step - 1] + 1 / 3 * correlation[..., 2 * step - 1], 0).prod(
            axis=-1
        )
        for step in (1, 2)
    )
    blurred = fine < MOST_BLURRED
    correction = 1 / np.maximum(np.where(blurred, coarse, fine), LEAST_SEEN)
    if uniform:
        count = np.maximum(count, 1)
        slope = third / np.maximum(second, TINY)
        variance = correction * np.where(blurred, *variances[::-1])
        return Solution(slope, (variance - slope * mean) / count + rounding, correlation)
    wv, wmv = (np.where(blurred, lines[2 + i], lines[i]) for i in (0, 1))
    slope = (w * wmv - wm * wv) / np.maximum(w * wmm - wm**2, TINY)
    return Solution(correction * slope, correction * (wv - slope * wm) / w + rounding, correlation)


def _bootstrap(sums: np.ndarray, uniform: bool, rounding: float) -> Solution:
    regions = len(sums)
    draws = np.random.default_rng(0).multinomial(regions, np.full(regions, 1 / regions), size=RESAMPLES)
    return _solve(draws @ sums, uniform, rounding)


def _split(slope: Any, constant: Any, levels: Levels) -> dict[str, Any]:
    """Split a line's constant into offset and the least read noise that rounding and low values ask for."""
    slope = np.maximum(slope, TINY)
    crossing = -constant / slope
    below = np.maximum(crossing - levels.low, 0)
    # The offset is crossing + σ²/slope, and low lies 3.09 σ (one pixel in a thousand) below the offset.
    sigma = slope / 2 * (3.09 - np.sqrt(np.maximum(3.09**2 - 4 * below / slope, 0)))
    variance = np.maximum(sigma**2, levels.step**2 / 12)
    if levels.low >= 0:
        variance = np.maximum(variance, -crossing * slope)
    return {
        "photons_per_adu": 1 / slope,
        "offset": crossing + variance / slope,
        "read_noise": np.sqrt(variance) / slope,
    }


def _judge(line: Line, method: str, levels: Levels, pixel_size_nm: float | None, name: str) -> CameraEstimate:
    """Make the camera and say what speaks against it."""
    noise_of_means = float(line.expected().mean()) / PATCH**2
    uniform = noise_of_means > (1 - GENUINE) * line.noise.mean.var()
    if uniform:
        method += "; gain from the asymmetry of the noise"
    unit = math.sqrt(float(np.median(line.expected())))
    sums, rounding = _sums(line, levels, unit), levels.step**2 / 12 / unit**2
    found = _solve(sums.sum(axis=0), uniform, rounding).times(unit)
    resampled = _bootstrap(sums, uniform, rounding).times(unit)
    slope, constant = float(found.slope), float(found.constant)
    if slope <= 0:
        # The best guess left: all noise is the photons', above the darkest pixels.
        mean, variance = float(line.noise.mean.mean()), float(line.noise.fine.mean())
        slope = max(variance, levels.step**2 / 12, TINY) / max(mean - levels.low, levels.step, TINY)
        constant = -slope * levels.low
    values = {key: float(value) for key, value in _split(slope, constant, levels).items()}
    camera = Camera(
        values["offset"],
        values["photons_per_adu"],
        read_noise=values["read_noise"],
        pixel_size_nm=pixel_size_nm,
        source=f"estimated from {name}",
    )
    if found.slope > 0:
        spread = {key: _half_width(v) for key, v in _split(*resampled[:2], levels).items()}
        # Also an offset that was held at 0 is no better known than where the line crosses.
        spread["offset"] = _half_width(-resampled.constant / np.maximum(resampled.slope, TINY))
    else:
        spread = dict.fromkeys(values, math.inf)
    doubts = [
        *_doubts_about_values(levels),
        *_doubts_about_line(line, levels, slope),
        *_doubts_about_solution(found, resampled, uniform),
    ]
    warnings = tuple(doubt.sentence for doubt in doubts)
    reliable = not any(doubt.fatal for doubt in doubts)
    along_x, along_y = (tuple(map(float, values)) for values in _significant(found, resampled))
    return CameraEstimate(camera, spread, method, warnings, reliable, (along_x, along_y))


class Doubt(NamedTuple):
    """What speaks against an estimate, and whether it cannot be relied on for it."""

    sentence: str
    fatal: bool = True


def _doubts_about_values(levels: Levels) -> Iterator[Doubt]:
    if levels.saturated >= 0.001:
        yield Doubt(
            f"{levels.saturated:.1%} of the pixels are saturated at {levels.top:g}; their regions were left "
            "out and their light is lost, so record with less light or gain.",
            levels.saturated >= 0.01,
        )
    parts = round(1 / levels.step) if 0 < levels.step < 1 else 0
    if 2 <= parts <= MOST_AVERAGED and abs(parts * levels.step - 1) < 1e-3:
        yield Doubt(
            f"The values are multiples of 1/{parts}, as in an average of {parts} frames; estimate from "
            "single frames."
        )
    elif not levels.whole:
        yield Doubt(
            "The values are not whole numbers, so the stack was scaled, averaged or filtered after "
            "recording; estimate from the raw recording."
        )
    if levels.distinct < FEWEST_LEVELS:
        yield Doubt(f"There are only {levels.distinct} different grey values, too few to see the noise in.")


def _doubts_about_line(line: Line, levels: Levels, slope: float) -> Iterator[Doubt]:
    rounding = levels.step**2 / 12 / max(float(np.median(line.noise.fine)), TINY)
    counted = levels.step > 0 and abs(slope / levels.step - 1) < 0.1
    if rounding > COARSELY_ROUNDED and not counted:
        yield Doubt(
            f"Rounding to grey values makes {min(rounding, 1):.0%} of the noise, more than in a camera's own "
            "files, as after averaging or scaling down to fewer bits; estimate from the raw recording."
        )
    if levels.zeros >= 0.05 and not counted:
        yield Doubt(
            f"{levels.zeros:.0%} of the pixels are 0, so something was subtracted and the noise below was "
            "cut off; estimate from the raw recording.",
            line.cut_off,
        )
    if levels.low >= 0 and line.slope > 0 and line.constant > line.slope * levels.step:
        yield Doubt(
            "There is more noise than photons make even if the offset is 0, as after subtracting a "
            "background; the rest was taken for read noise.",
            fatal=False,
        )
    off = _off_line(line)
    if off > BENT:
        yield Doubt(
            f"The noise is up to {off:.0%} off the line that photon noise makes against brightness, as "
            "after gamma, contrast or background correction; estimate from the raw recording."
        )
    if line.share < 0.25:
        yield Doubt(
            f"Only {line.share:.0%} of the field is free of movement and fine detail; the gain may be off.",
            fatal=False,
        )


def _off_line(line: Line) -> float:
    """Give the largest relative distance of the variance from the line that is significant.

    It is looked for in each eighth of the range of brightness.
    """
    expected, mean, fine = line.expected(), line.noise.mean, line.noise.fine
    low, high = np.quantile(mean, [0.01, 0.995])
    eighth = np.floor((mean - low) / max(high - low, TINY) * 8)
    worst = 0.0
    for part in range(8):
        inside = eighth == part
        if inside.sum() >= 50:
            off = abs(float(fine[inside].mean() / expected[inside].mean()) - 1)
            worst = max(worst, off if off > 4 * math.sqrt(2 / DEGREES / inside.sum()) else 0)
    return worst


def _doubts_about_solution(found: Solution, resampled: Solution, uniform: bool) -> Iterator[Doubt]:
    near = _significant(found, resampled)[:, 0]
    if _shared(near):
        yield Doubt(
            f"Neighbouring pixels share noise (correlation {near[0]:.2f} along x, {near[1]:.2f} along y), as "
            "after smoothing, resampling, registration, sharpening or compression; estimate from the raw "
            "recording."
        )
    if found.slope <= 0:
        yield Doubt("The noise does not grow with the brightness as photon noise does; the gain is a guess.")
        return
    if uniform:
        yield Doubt(
            "The background is equally bright everywhere, so the gain comes from the asymmetry of the noise, "
            "as if there were no EM gain and no read noise, and offset and background cannot be told apart."
        )
    error = _half_width(resampled.slope) / float(found.slope)
    if error > UNSURE:
        yield Doubt(f"Brightness and noise vary too little to tell the gain better than to {error:.0%}.")


def _significant(found: Solution, resampled: Solution) -> np.ndarray:
    """Give the correlation of the noise (2, LAGS), 0 where it may be chance."""
    error = resampled.correlation.std(axis=0)
    return np.where(np.abs(found.correlation) > 3 * error, found.correlation, 0)


def _shared(near: np.ndarray) -> bool:
    """Tell correlations of neighbours along x and y that no camera makes."""
    # A scanning detector's bandwidth makes neighbours alike along its fast axis, never along both.
    return bool(near.max() > CORRELATED or near.min() > CORRELATED_BOTH or near.min() < ANTICORRELATED)


def _reach(correlation: np.ndarray) -> int:
    """Give the largest distance at which the correlation (2, LAGS) matters, if neighbours share noise."""
    if not _shared(correlation[:, 0]):
        return 0
    alike = np.abs(correlation).max(axis=0) > CORRELATED_BOTH
    return max(1, int(np.argmin(np.append(alike, False))))


def _half_width(values: np.ndarray) -> float:
    """Give the standard deviation by quantiles, since that of a ratio may not exist."""
    low, high = np.quantile(values, [0.1587, 0.8413])
    return float(high - low) / 2


def _with_spread(value: float, spread: float) -> str:
    """Write a value with the decimals that its spread leaves."""
    if not 0 < spread < math.inf:
        return f"{value:.4g}"
    decimals = max(0, 1 - math.floor(math.log10(spread)))
    return f"{value:.{decimals}f} ± {spread:.{decimals}f}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
