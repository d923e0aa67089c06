"""Poi2Void: Poisson light under a prior that is free at a grid of values."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from fiji_bridge.camera import Camera
from fiji_bridge.denoising.noise_models.protocol import Readout, poisson_like
from fiji_bridge.errors import FijiBridgeError

VALUES = 256
ENTROPY = 1e-2
TOO_BRIGHT = 1e-3
"""Share of readings that may be beyond the largest value and its noise."""


@dataclass(frozen=True)
class Poi2Void:
    """The non-parametric prior of Rao, Ventura and Hagen (equations 2 to 7), in photons.

    The network's softmax is the probability P(x) of each of 256 values of λ; the loss is
    −log Σ P(z|x)P(x) plus 0.01 times the entropy of P(x). Logarithms are taken of the softmax at once, so
    that nothing needs clipping. The values of λ cover the data's range, evenly in the square root, in which
    Poisson noise is even.

    Attributes
    ----------
    top
        The largest λ [photons].
    """

    engine: ClassVar[str] = "poi2void"
    outputs: ClassVar[int] = VALUES
    estimators: ClassVar[tuple[str, ...]] = ("mean", "map", "argmax", "prior")
    assumed_camera: ClassVar[Camera | None] = None

    top: float

    @classmethod
    def fit(cls, photons: np.ndarray, excess: float, read_variance: float) -> "Poi2Void":
        """Cover the data."""
        return cls(max(float(np.max(photons)), 4.0))

    def constants(self) -> dict[str, Any]:
        """Keyword arguments of this class."""
        return asdict(self)

    def values(self, device: torch.device) -> Tensor:
        """Give the λ values (values, 1, 1)."""
        return torch.linspace(0.2, self.top**0.5, VALUES, device=device).square()[:, None, None]

    def normalize(self, photons: Tensor) -> Tensor:
        """Divide the data by its range."""
        return photons / self.top

    def _log_likelihood(self, photons: Tensor, readout: Readout) -> Tensor:
        expected = poisson_like(self.values(photons.device), readout).float()
        y = poisson_like(photons, readout).clamp(min=0).float()
        return y * expected.log() - expected - torch.lgamma(y + 1)

    def nll(self, outputs: Tensor, photons: Tensor, readout: Readout) -> Tensor:
        """Equation 4."""
        log_prior = outputs.log_softmax(1)
        entropy = -(log_prior.exp() * log_prior).sum(1, keepdim=True)
        evidence = (self._log_likelihood(photons, readout) + log_prior).logsumexp(1, keepdim=True)
        return ENTROPY * entropy - evidence

    def estimate(self, outputs: Tensor, photons: Tensor, readout: Readout, estimator: str = "mean") -> Tensor:
        """Give the posterior's expected value (``mean``, equation 7) or maximum (``map``, equation 6).

        Of the prior alone: its maximum (``argmax``, equation 5) or its mean (``prior``).
        """
        log = outputs.log_softmax(1)
        if estimator in ("mean", "map"):
            log = log + self._log_likelihood(photons, readout)
        values = self.values(outputs.device)
        if estimator in ("map", "argmax"):
            result = values.flatten()[log.argmax(1, keepdim=True)]
        else:
            result = (log.softmax(1) * values).sum(1, keepdim=True)
        return result.expand_as(photons)

    def weight(self, outputs: Tensor, readout: Readout) -> Tensor:
        """Give the share that a prior of the same mean and variance would leave to the pixel."""
        prior, values = outputs.double().softmax(1), self.values(outputs.device)
        mean = (prior * values).sum(1, keepdim=True)
        variance = (prior * values.square()).sum(1, keepdim=True) - mean.square()
        return variance / (variance + readout.excess * mean + readout.read_variance)

    def balanced(self, outputs: Tensor, photons: Tensor, readout: Readout) -> "Poi2Void":
        """Leave it: it has nothing to scale."""
        return self

    def narrowed(self, outputs: Tensor, photons: Tensor, readout: Readout) -> "Poi2Void":
        """Leave it: its priors have no width of their own."""
        return self

    def adapted(self, outputs: Tensor, photons: Tensor, readout: Readout) -> Self:
        """Leave it: its priors have no width of their own. Images beyond its values are refused."""
        return self.for_light(photons)

    def for_light(self, photons: Tensor) -> Self:
        """Give the model itself if it has values for these images.

        Raises
        ------
        FijiBridgeError
            If they are brighter, as all that is would be given the largest value.
        """
        if float((photons > self.top + 5 * self.top**0.5).float().mean()) > TOO_BRIGHT:
            raise FijiBridgeError(
                f"The images have up to {float(photons.max()):.4g} photons a pixel and the engine"
                f" {self.engine!r} values up to {self.top:.4g}; train it on them, or choose another engine."
            )
        return self


@dataclass(frozen=True)
class Poi2VoidPaper(Poi2Void):
    """Poi2Void as published: 8-bit grey values stand for photons, whatever the camera.

    λ takes the values 1 to 256, and the network sees grey values over 255. `recipe` has the paper's training:
    ``train(…, engine="poi2void-paper", **Poi2VoidPaper.recipe)``; without, it is trained as the others are.
    """

    engine: ClassVar[str] = "poi2void-paper"
    assumed_camera: ClassVar[Camera | None] = Camera(offset=0.0, photons_per_adu=1.0)
    recipe: ClassVar[Mapping[str, Any]] = {
        "batch": 1,
        "crop": 128,
        "learning_rate": 5e-6,
        "steps": 100 * 14_400,
    }

    top: float = 255.0

    @classmethod
    def fit(cls, photons: np.ndarray, excess: float, read_variance: float) -> "Poi2VoidPaper":
        """Make sure that the data have 8 bits."""
        return cls().for_light(torch.from_numpy(photons))

    def values(self, device: torch.device) -> Tensor:
        """Give 1 to 256 (values, 1, 1)."""
        return torch.arange(1.0, VALUES + 1, device=device)[:, None, None]
