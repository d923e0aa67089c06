"""Filters that make molecules stand out of the background, with the plugin's arithmetic and borders.

Each is called with frames (n, y, x) float32, in A/D counts above the offset, and gives the variables of
threshold formulas, each like the frames: ``I`` the frames, ``F`` the filtered ones, and what else its
docstring names.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.torch_localizer import kernels
from fiji_bridge.torch_localizer.threads import in_threads

PIXELS_AT_ONCE = 2**19
"""Of frames that a thread filters at a time."""


class Filter(Protocol):
    """What a filter is.

    Attributes
    ----------
    name
        Stands in front of the dot in formulas.
    variables
        Names of what it gives.
    """

    name: ClassVar[str]
    variables: ClassVar[tuple[str, ...]]

    def __call__(self, frames: Tensor) -> dict[str, Tensor]:
        """Filter frames."""


@dataclass(frozen=True)
class NoFilter:
    """Leaves frames as they are."""

    name: ClassVar[str] = "empty"
    variables: ClassVar[tuple[str, ...]] = ("I", "F")

    def __call__(self, frames: Tensor) -> dict[str, Tensor]:  # noqa: D102
        return {"I": frames, "F": frames}


@dataclass(frozen=True)
class BoxFilter:
    """Mean of a square.

    Parameters
    ----------
    size
        Its side [px].
    """

    size: int = 3

    name: ClassVar[str] = "Box"
    variables: ClassVar[tuple[str, ...]] = ("I", "F")

    def __call__(self, frames: Tensor) -> dict[str, Tensor]:  # noqa: D102
        return {"I": frames, "F": convolve(frames, _box(self.size))}


@dataclass(frozen=True)
class DifferenceOfBoxes:
    """Mean of a smaller minus that of a larger square; ``B1`` and ``B2`` are the two.

    Parameters
    ----------
    size1, size2
        Their sides [px].
    """

    size1: int = 3
    size2: int = 5

    name: ClassVar[str] = "DoB"
    variables: ClassVar[tuple[str, ...]] = ("I", "F", "B1", "B2")

    def __call__(self, frames: Tensor) -> dict[str, Tensor]:  # noqa: D102
        first, second = (convolve(frames, _box(size)) for size in (self.size1, self.size2))
        return {"I": frames, "F": first - second, "B1": first, "B2": second}


@dataclass(frozen=True)
class GaussianFilter:
    """Convolution with a Gaussian.

    Parameters
    ----------
    sigma
        Its standard deviation [px].
    """

    sigma: float = 1.6

    name: ClassVar[str] = "Gauss"
    variables: ClassVar[tuple[str, ...]] = ("I", "F")

    def __call__(self, frames: Tensor) -> dict[str, Tensor]:  # noqa: D102
        return {"I": frames, "F": convolve(frames, _gaussian(_size(self.sigma), self.sigma))}


@dataclass(frozen=True)
class LoweredGaussianFilter:
    """Convolution with a Gaussian less its mean, the matched filter of a spot on a flat background.

    Parameters
    ----------
    sigma
        Standard deviation of the Gaussian [px].
    """

    sigma: float = 1.6

    name: ClassVar[str] = "LowGauss"
    variables: ClassVar[tuple[str, ...]] = ("I", "F")

    def __call__(self, frames: Tensor) -> dict[str, Tensor]:  # noqa: D102
        gaussian = _gaussian(_size(self.sigma), self.sigma)
        # The plugin's mean: summed in single precision.
        mean = np.add.accumulate(gaussian, dtype=np.float32)[-1] / np.float32(len(gaussian))
        uniform = np.full(len(gaussian), mean, np.float32)
        return {"I": frames, "F": convolve(frames, gaussian) - convolve(frames, uniform)}


@dataclass(frozen=True)
class DifferenceOfGaussians:
    """Convolution with a Gaussian minus that with another; ``G1`` and ``G2`` are the two.

    Parameters
    ----------
    sigma1, sigma2
        Their standard deviations [px].
    """

    sigma1: float = 1.0
    sigma2: float = 1.6

    name: ClassVar[str] = "DoG"
    variables: ClassVar[tuple[str, ...]] = ("I", "F", "G1", "G2")

    def __call__(self, frames: Tensor) -> dict[str, Tensor]:  # noqa: D102
        size = _size(max(self.sigma1, self.sigma2))
        first, second = (convolve(frames, _gaussian(size, sigma)) for sigma in (self.sigma1, self.sigma2))
        return {"I": frames, "F": first - second, "G1": first, "G2": second}


@dataclass(frozen=True)
class MedianFilter:
    """Median of the pixels of a square or of a cross, as far as they lie in the frame.

    Parameters
    ----------
    size
        Side of the square, or length of the cross's arms together [px].
    cross
        Whether it is a cross.
    """

    size: int = 3
    cross: bool = False

    name: ClassVar[str] = "Med"
    variables: ClassVar[tuple[str, ...]] = ("I", "F")

    def __call__(self, frames: Tensor) -> dict[str, Tensor]:  # noqa: D102
        before, after = self.size // 2, self.size - 1 - self.size // 2
        padded = pad(frames, (before, after, before, after), value=torch.nan)
        height, width = frames.shape[1:]
        shifted = [
            padded[:, j : j + height, i : i + width]
            for j in range(self.size)
            for i in range(self.size)
            if not self.cross or before in (i, j)
        ]
        # Pixels beyond the border are no numbers, which sort behind all others.
        ordered = torch.stack(shifted, -1).sort(-1).values
        count = len(shifted) - ordered.isnan().sum(-1, keepdim=True)
        middle = [ordered.gather(-1, index)[..., 0] for index in ((count - 1) // 2, count // 2)]
        return {"I": frames, "F": (middle[0] + middle[1]) / 2}


@lru_cache
def bspline(order: int, t: float) -> float:
    """Cardinal B-spline of `order` (support 0…order) at `t`, by the Cox–de Boor recursion."""
    if order == 1:
        return 1.0 if 0 <= t < 1 else 0.0
    rising = t * bspline(order - 1, t)
    falling = (order - t) * bspline(order - 1, t - 1)
    return (rising + falling) / (order - 1)


@dataclass(frozen=True)
class WaveletFilter:
    """À-trous wavelet filter with a B-spline kernel: the difference of its first two smooth planes.

    Izeddin et al., "Wavelet analysis for single molecule localization microscopy", Opt. Express 20, 2081
    (2012); order 3 and scale 2 give their kernel (1, 4, 6, 4, 1)/16. ``F1`` and ``F2`` are what the first and
    second smooth plane leave of the frames.

    Parameters
    ----------
    order
        Order of the B-spline (3 is the plugin's default).
    scale
        Distance of its knots [px].
    """

    order: int = 3
    scale: float = 2.0
    kernel: tuple[float, ...] = field(init=False, repr=False)

    name: ClassVar[str] = "Wave"
    variables: ClassVar[tuple[str, ...]] = ("I", "F", "F1", "F2")

    def __post_init__(self) -> None:
        if self.order < 1 or not 0 < self.scale < math.inf:
            raise FijiBridgeError(f"The options scale={self.scale} order={self.order} must both be positive.")
        count = 2 * math.ceil(self.order * self.scale / 2) - 1
        samples = [bspline(self.order, (i - count // 2) / self.scale + self.order / 2) for i in range(count)]
        object.__setattr__(self, "kernel", tuple(s / sum(samples) for s in samples))

    def __call__(self, frames: Tensor) -> dict[str, Tensor]:  # noqa: D102
        weights = np.array(self.kernel, np.float32)
        if frames.device.type == "cpu":
            first_rest, second_rest, difference = in_threads_of_frames(
                kernels.wavelet_planes, frames, weights, outputs=3
            )
            return {"I": frames, "F": difference, "F1": first_rest, "F2": second_rest}
        margin = len(self.kernel) - 1
        padded = pad(frames[:, None], [margin] * 4, mode="replicate")[:, 0]
        first = convolve(padded, weights, replicate=False)
        second = convolve(first, weights, step=2, replicate=False)
        inside = slice(margin, -margin or None)
        first, second = first[:, inside, inside], second[:, inside, inside]
        return {"I": frames, "F": first - second, "F1": frames - first, "F2": frames - second}


def convolve(frames: Tensor, weights: np.ndarray, *, step: int = 1, replicate: bool = True) -> Tensor:
    """Convolve along y and then along x with the same weights.

    Parameters
    ----------
    frames
        (n, y, x) float32.
    weights
        (taps,) float32; tap ``taps // 2`` is the centre.
    step
        Distance of the taps [px].
    replicate
        Whether the border's values go on beyond it, or zeros stand there.
    """
    if frames.device.type != "cpu" or not replicate:
        return _convolve_together(frames, weights, step, replicate)
    return in_threads_of_frames(kernels.convolve_frames, frames, weights, step)[0]


def in_threads_of_frames(
    kernel: Callable[..., None], frames: Tensor, *settings: object, outputs: int = 1
) -> list[Tensor]:
    """Call `kernel` with frames, settings and as many images to overwrite, on the CPU."""
    given = frames.contiguous().numpy()
    out = [np.empty_like(given) for _ in range(outputs)]

    def work(some: slice) -> None:
        kernel(given[some], *settings, *(one[some] for one in out))

    in_threads(work, len(given), max(1, PIXELS_AT_ONCE // math.prod(given.shape[1:])))
    return [torch.from_numpy(one) for one in out]


def _convolve_together(frames: Tensor, weights: np.ndarray, step: int, replicate: bool) -> Tensor:
    """Do as `convolve`, on any device."""
    centre = len(weights) // 2
    before, after = (len(weights) - 1 - centre) * step, centre * step
    for dim, padding in ((-2, (0, 0, before, after)), (-1, (before, after, 0, 0))):
        padded = pad(frames[:, None], padding, mode="replicate" if replicate else "constant")[:, 0]
        length = frames.shape[dim]
        total = torch.zeros_like(frames, dtype=torch.float64)
        for k, weight in enumerate(torch.from_numpy(weights).to(frames.device)):
            total += padded.narrow(dim, (len(weights) - 1 - k) * step, length) * weight
        frames = total.to(torch.float32)
    return frames


def _box(size: int) -> np.ndarray:
    return np.full(size, np.float32(1) / np.float32(size), np.float32)


def _gaussian(size: int, sigma: float) -> np.ndarray:
    distance = np.arange(size) - size // 2
    density = np.exp(-0.5 * (distance / sigma) ** 2) / (math.sqrt(2 * math.pi) * sigma)
    return density.astype(np.float32)


def _size(sigma: float) -> int:
    """Side of the square that the plugin gives a Gaussian."""
    return 1 + 2 * math.ceil(3 * sigma)
