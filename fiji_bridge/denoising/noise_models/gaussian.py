"""Gaussian light under Gaussian noise, the variance of which grows with the light."""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import numpy as np
from torch import Tensor
from torch.nn.functional import softplus

from fiji_bridge.camera import Camera
from fiji_bridge.denoising.noise_models.protocol import (
    Narrowing,
    Readout,
    doubting,
    narrowing,
    scaled,
    share_at,
)


@dataclass(frozen=True)
class Gaussian:
    """Laine's approximation (Laine et al. 2019, section 4) with the noise of a camera.

    The network gives mean μ and standard deviation s of a normal prior; the noise is taken for normal, of
    variance F²μ + σ² (equation 6 there, with read noise). Everything is linear in the pixel, so read noise
    and negative values need no care; what is lost is the shape of the Poisson distribution at low light.

    Attributes
    ----------
    center, spread
        Mean and standard deviation of the data [photons], which normalize the network's input.
    scale
        Factor on the prior's mean, by which training makes the mean of the denoised data that of the raw.
    narrowing, doubt
        As of `GammaPoisson`.
    """

    engine: ClassVar[str] = "gaussian"
    outputs: ClassVar[int] = 2
    estimators: ClassVar[tuple[str, ...]] = ("mean", "prior")
    assumed_camera: ClassVar[Camera | None] = None

    center: float
    spread: float
    scale: float = 1.0
    narrowing: Narrowing = ()
    doubt: float = 0.0

    def __post_init__(self) -> None:
        """Take lists, which files have, for tuples."""
        object.__setattr__(self, "narrowing", tuple(map(tuple, self.narrowing)))

    @classmethod
    def fit(cls, photons: np.ndarray, excess: float, read_variance: float) -> "Gaussian":
        """Normalize by mean and standard deviation."""
        return cls(float(np.mean(photons)), max(float(np.std(photons)), 0.5))

    def constants(self) -> dict[str, Any]:
        """Keyword arguments of this class."""
        return {name: value for name, value in asdict(self).items() if name != "doubt"}

    def normalize(self, photons: Tensor) -> Tensor:
        """Photons, made order 1."""
        return (photons - self.center) / self.spread

    def prior(self, outputs: Tensor, readout: Readout) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and variance of the prior and variance of the noise, in photons and photons²."""
        mean, width = outputs.double().split(1, dim=1)
        mean = self.scale * (self.center + self.spread * mean)
        noise = readout.excess * mean.clamp(min=1e-2) + readout.read_variance
        # A width of 0 is as wide as the noise of an average pixel.
        start = math.sqrt(max(self.center, 1.0))
        prior = (start * softplus(3 * width + math.log(math.e - 1))).square() + 1e-6
        prior = prior + (self.doubt * mean).square()
        return mean, prior * share_at(mean, self.narrowing) if self.narrowing else prior, noise

    def nll(self, outputs: Tensor, photons: Tensor, readout: Readout) -> Tensor:
        """Negative log of the normal density with both variances added."""
        mean, prior, noise = self.prior(outputs, readout)
        variance = prior + noise
        return 0.5 * ((photons.double() - mean).square() / variance + (2 * math.pi * variance).log())

    def estimate(self, outputs: Tensor, photons: Tensor, readout: Readout, estimator: str = "mean") -> Tensor:
        """Posterior mean, which is the posterior's maximum too, or the prior's mean (``prior``)."""
        mean, prior, noise = self.prior(outputs, readout)
        if estimator == "mean":
            mean = (prior * photons + noise * mean) / (prior + noise)
        return mean.expand_as(photons).float()

    def weight(self, outputs: Tensor, readout: Readout) -> Tensor:
        """Share of the prior in the variance."""
        _, prior, noise = self.prior(outputs, readout)
        return prior / (prior + noise)

    def balanced(self, outputs: Tensor, photons: Tensor, readout: Readout) -> "Gaussian":
        """Scale the mean of the prior until the posterior means sum to the data."""

        def imbalance(model: Gaussian) -> tuple[Tensor, Tensor]:
            mean, _, _ = model.prior(outputs, readout)
            missing = (photons.double() - model.estimate(outputs, photons, readout)).sum()
            return missing, (mean * (1 - model.weight(outputs, readout))).sum()

        return scaled(self, imbalance)

    def narrowed(self, outputs: Tensor, photons: Tensor, readout: Readout) -> "Gaussian":
        """Compare the prior with the readings; see `protocol.narrowing`."""
        mean, prior, noise = replace(self, narrowing=()).prior(outputs, readout)
        found, cut_off = (photons.double() - mean).square(), photons <= readout.lowest
        return replace(self, narrowing=narrowing(mean, prior, noise, found, cut_off))

    def adapted(self, outputs: Tensor, photons: Tensor, readout: Readout) -> "Gaussian":
        """Widen the prior as far as these images ask for; narrow it where there is no doubt."""
        return doubting(self, outputs, photons, readout)
