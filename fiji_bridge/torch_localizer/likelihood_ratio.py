"""Detection by likelihood ratio: a molecule on the background around, or the background alone.

For each pixel, the Poisson likelihood of its square with a molecule of known width at the centre is compared
with that without one; intensity and background are free. Twice the logarithm of the ratio follows, without a
molecule, a chi-squared distribution of one degree of freedom (Wilks' theorem), of which the half counts that
is brighter than the background; so a rate of false alarms says where to cut. Smith et al., "Probability-based
particle detection that enables threshold-free and robust in vivo single-molecule tracking", Mol. Biol. Cell
26, 4057 (2015).
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from scipy.special import erf
from scipy.stats import norm
from torch import Tensor
from torch.nn.functional import conv2d, pad

from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.torch_localizer.filters import in_threads_of_frames
from fiji_bridge.torch_localizer.kernels import LEAST, likelihood_ratio

ITERATIONS = 4
"""Of Fisher scoring for intensity and background; from the least-squares start two do nearly all."""


@dataclass(frozen=True)
class LikelihoodRatio:
    """Filter whose values are in standard deviations of a frame without molecules.

    Parameters
    ----------
    sigma
        Of the molecules' Gaussian [px].
    photons
        Photons that a unit of the frames stands for.
    variance
        (y, x) of the noise besides that of the light [photons²], or None.
    """

    sigma: float
    photons: float = 1.0
    variance: Tensor | None = None

    name: ClassVar[str] = "LR"
    variables: ClassVar[tuple[str, ...]] = ("I", "F")

    def __call__(self, frames: Tensor) -> dict[str, Tensor]:
        """Give, for frames (n, y, x), as ``F`` the signed root of twice the logarithm of the ratio."""
        if frames.device.type == "cpu":
            return {"I": frames, "F": self._one_by_one(frames)}
        radius = math.ceil(3 * self.sigma)
        data = frames.double() * self.photons
        noise = torch.zeros_like(data) if self.variance is None else self.variance.to(data).expand_as(data)
        # Read noise is as good as Poisson noise of as much more light (Huang et al. 2013).
        data = pad((data + noise)[:, None], [radius] * 4, mode="replicate")
        noise = pad(noise[:, None], [radius] * 4, mode="replicate")
        share = torch.from_numpy(_share(self.sigma, radius)).to(data.device)
        spot = torch.outer(share, share)
        pixels = spot.numel()

        def around(values: Tensor, kernel: Tensor) -> Tensor:
            return conv2d(values, kernel[None, None])

        total = around(data, torch.ones_like(spot))
        read = around(noise, torch.ones_like(spot))
        background = ((total - read) / pixels).clamp(min=LEAST)
        without = _log_likelihood_flat(data, noise, background, spot)
        # Least squares is the start, and Fisher scoring goes on from there.
        overlap, square, weight = around(data - noise, spot), spot.square().sum(), spot.sum()
        intensity = (overlap - weight * (total - read) / pixels) / (square - weight**2 / pixels)
        offset = (((total - read) - weight * intensity) / pixels).clamp(min=LEAST)
        sign = torch.where(intensity >= 0, 1.0, -1.0)
        rows = [(j, i) for j in range(2 * radius + 1) for i in range(2 * radius + 1)]
        height, width = frames.shape[1:]
        for step in range(ITERATIONS + 1):
            score = [torch.zeros_like(offset) for _ in range(5)]
            likelihood = torch.zeros_like(offset)
            for j, i in rows:
                share = spot[j, i]
                seen = data[:, :, j : j + height, i : i + width]
                model = (offset + share * intensity).clamp(min=LEAST) + noise[
                    :, :, j : j + height, i : i + width
                ]
                if step == ITERATIONS:
                    likelihood += seen * model.log() - model
                    continue
                inverse = 1 / model
                residual = seen * inverse - 1
                for k, part in enumerate(
                    (share * residual, residual, share**2 * inverse, share * inverse, inverse)
                ):
                    score[k] += part
            if step < ITERATIONS:
                determinant = (score[2] * score[4] - score[3].square()).clamp(min=1e-30)
                intensity = intensity + (score[4] * score[0] - score[3] * score[1]) / determinant
                offset = offset + (score[2] * score[1] - score[3] * score[0]) / determinant
                offset = offset.clamp(min=LEAST)
                intensity = torch.maximum(intensity, -0.9 * offset / spot.max())
        gain = (2 * (likelihood - without)).clamp(min=0).sqrt()
        return {"I": frames, "F": (sign * gain)[:, 0].float()}

    def _one_by_one(self, frames: Tensor) -> Tensor:
        noise = np.empty((0, 0)) if self.variance is None else self.variance.double().contiguous().numpy()
        share = _share(self.sigma, math.ceil(3 * self.sigma))
        return in_threads_of_frames(likelihood_ratio, frames * self.photons, noise, share, ITERATIONS)[0]


def _log_likelihood_flat(data: Tensor, noise: Tensor, background: Tensor, spot: Tensor) -> Tensor:
    side = len(spot)
    height, width = background.shape[2:]
    if not bool(noise.any()):
        total = conv2d(data, torch.ones_like(spot)[None, None])
        return total * background.log() - spot.numel() * background
    likelihood = torch.zeros_like(background)
    for j in range(side):
        for i in range(side):
            model = background + noise[:, :, j : j + height, i : i + width]
            likelihood += data[:, :, j : j + height, i : i + width] * model.log() - model
    return likelihood


def _share(sigma: float, radius: int) -> np.ndarray:
    """Share of a molecule's light in each row or column of the square around it."""
    edges = (np.arange(2 * radius + 2) - radius - 0.5) / (sigma * math.sqrt(2))
    return np.diff(erf(edges)) / 2


def false_alarm_threshold(rate: float) -> float:
    """Give the value that a pixel of a frame without molecules exceeds at this rate.

    Raises
    ------
    FijiBridgeError
        If the rate is not between 0 and 0.5.
    """
    if not 0 < rate < 0.5:
        raise FijiBridgeError(f"A rate of false alarms lies between 0 and 0.5 a pixel, unlike {rate!r}.")
    return float(norm.isf(rate))
