"""Filters that make molecules stand out of the background, with the plugin's arithmetic and borders."""

import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from fiji_bridge.errors import FijiBridgeError


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
    (2012); order 3 and scale 2 give their kernel (1, 4, 6, 4, 1)/16.

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

    name: ClassVar = "Wave"
    variables: ClassVar = ("I", "F", "F1", "F2")

    def __post_init__(self) -> None:
        if self.order < 1 or not 0 < self.scale < math.inf:
            raise FijiBridgeError(f"The options scale={self.scale} order={self.order} must both be positive.")
        count = 2 * math.ceil(self.order * self.scale / 2) - 1
        samples = [bspline(self.order, (i - count // 2) / self.scale + self.order / 2) for i in range(count)]
        object.__setattr__(self, "kernel", tuple(s / sum(samples) for s in samples))

    def __call__(self, frames: Tensor) -> dict[str, Tensor]:
        """Filter frames.

        Parameters
        ----------
        frames
            (n, y, x) float32, A/D counts above the offset.

        Returns
        -------
        dict
            The variables of threshold formulas, each like `frames`: ``I`` the frames, ``F`` the filtered
            ones, ``F1`` and ``F2`` what the first and second smooth plane leave of the frames.
        """
        margin = len(self.kernel) - 1
        first = self._smooth(pad(frames[:, None], [margin] * 4, mode="replicate")[:, 0], step=1)
        second = self._smooth(first, step=2)
        inside = slice(margin, -margin or None)
        first, second = first[:, inside, inside], second[:, inside, inside]
        return {"I": frames, "F": first - second, "F1": frames - first, "F2": frames - second}

    def _smooth(self, images: Tensor, step: int) -> Tensor:
        """Convolve both ways with the kernel's samples `step` pixels apart; zero beyond the border."""
        reach = step * (len(self.kernel) // 2)
        weights = torch.tensor(self.kernel, dtype=torch.float32, device=images.device)
        for dim, padding in ((-2, (0, 0, reach, reach)), (-1, (reach, reach))):
            padded, length = pad(images, padding), images.shape[dim]
            total = torch.zeros_like(images, dtype=torch.float64)
            # Products in single and sums in double precision are the plugin's, down to ties of neighbours.
            for k, weight in enumerate(weights):
                total += padded.narrow(dim, k * step, length) * weight
            images = total.to(torch.float32)
        return images
