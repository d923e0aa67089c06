"""Poisson light under a Gamma prior."""

from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from fiji_bridge.camera import Camera
from fiji_bridge.denoising.noise_models.protocol import (
    Narrowing,
    Readout,
    doubting,
    narrowing,
    poisson_like,
    root_of,
    scaled,
    share_at,
)

LOG_SHAPE = (float(np.log(1e-2)), float(np.log(1e6)))


@dataclass(frozen=True)
class GammaPoisson:
    """Poisson light under a Gamma prior: equations 3 to 5 of the Gamma-Poisson paper.

    With read variance σ² and excess noise F², the value z of a pixel of mean λ photons has variance
    F²λ + σ². The model works on y = (z + σ²/F²)/F², whose mean and variance are equal, as a Poisson
    variable's are. The change is linear, so nothing is clipped. The network gives, for each pixel, the
    mean m and the shape α of a Gamma prior of rate β = α/m.

    At fixed α the likelihood's derivative over m is α(y − m)/(m(α + m)), linear in y. So the best m is the
    mean of y given its surroundings, however y is distributed: read noise leaves no bias. Where y is
    negative, log Γ(α + y) has poles; it matters only for α, and `negative_binomial_nll` continues it.

    Attributes
    ----------
    center, spread
        Mean and standard deviation of the data's square roots, which normalize the network's input.
    floor
        Smallest read variance over excess noise [photons]: what is added before the square root.
    excess
        Excess noise of the camera trained with.
    scale
        Factor on the prior's mean, by which training makes the mean of the denoised data that of the raw.
    narrowing
        Share of the prior's variance that is true, by its mean; see `protocol.narrowing`.
    doubt
        Standard deviation of the prior's mean itself, relative to it; see `protocol.doubting`. It belongs to
        the images denoised, and so is not kept in a file.
    """

    engine: ClassVar[str] = "gamma-poisson"
    outputs: ClassVar[int] = 2
    estimators: ClassVar[tuple[str, ...]] = ("mean", "map", "prior")
    assumed_camera: ClassVar[Camera | None] = None

    center: float
    spread: float
    floor: float = 0.0
    excess: float = 1.0
    scale: float = 1.0
    narrowing: Narrowing = ()
    doubt: float = 0.0

    def __post_init__(self) -> None:
        """Take lists, which files have, for tuples."""
        object.__setattr__(self, "narrowing", tuple(map(tuple, self.narrowing)))

    @classmethod
    def fit(cls, photons: np.ndarray, excess: float, read_variance: float) -> Self:
        """Normalize by the mean and the spread of the square roots of the data."""
        floor = read_variance / excess
        root = root_of(torch.as_tensor((photons + floor) / excess))
        return cls(float(root.mean()), max(float(root.std()), 0.5), floor, excess)

    def constants(self) -> dict[str, Any]:
        """Keyword arguments of this class."""
        return {name: value for name, value in asdict(self).items() if name != "doubt"}

    def normalize(self, photons: Tensor) -> Tensor:
        """Square roots, whose noise is the same in the dark and in the light, made order 1."""
        return (root_of((photons + self.floor) / self.excess) - self.center) / self.spread

    def prior(self, outputs: Tensor, readout: Readout) -> tuple[Tensor, Tensor]:
        """Mean of the Gamma prior of y and its shape α, as float64."""
        root, shape = outputs.double().split(1, dim=1)
        # The square of a positive root, since a root's noise, and so its gradient, is of one size everywhere.
        mean = self.scale * (softplus(root * self.spread + self.center, beta=4) / 2).square() + 1e-6
        middle, half = 0.5 * (LOG_SHAPE[1] + LOG_SHAPE[0]), 0.5 * (LOG_SHAPE[1] - LOG_SHAPE[0])
        start = 2 * np.log(max(self.center / 2, 0.5))  # a prior as wide as the noise
        shape = self._doubted((middle + half * torch.tanh((3 * shape + start - middle) / half)).exp())
        # What another camera changes, or a pixel noisier than the quietest, is known, not learnt; the width
        # of the prior of λ stays.
        mean = mean * (self.excess / readout.excess)
        extra = (readout.read_variance / readout.excess - self.floor) / readout.excess
        noisier = (1 + extra / mean).clamp(min=1e-3)
        mean = mean * noisier
        return mean, self._narrowed(mean, shape * noisier.square())

    def _narrowed(self, mean: Tensor, shape: Tensor) -> Tensor:
        """Take the part of the prior's variance that is true."""
        return shape / share_at(mean, self.narrowing) if self.narrowing else shape

    def _doubted(self, shape: Tensor) -> Tensor:
        """Add the variance of its mean to that of the prior, which over the mean's square is 1/shape."""
        return 1 / (1 / shape + self.doubt**2) if self.doubt else shape

    def nll(self, outputs: Tensor, photons: Tensor, readout: Readout) -> Tensor:
        """Equation 4, for any real value of a pixel."""
        mean, shape = self.prior(outputs, readout)
        return negative_binomial_nll(poisson_like(photons, readout), mean, shape)

    def estimate(self, outputs: Tensor, photons: Tensor, readout: Readout, estimator: str = "mean") -> Tensor:
        """Posterior mean (equation 5), the posterior's maximum (``map``) or the prior's mean (``prior``)."""
        mean, shape = self.prior(outputs, readout)
        y, rate = poisson_like(photons, readout), shape / mean
        if estimator == "mean":
            result = (shape + y) / (rate + 1)
        elif estimator == "map":
            result = (shape + y - 1).clamp(min=0) / (rate + 1)
        else:
            result = mean.expand_as(y)
        return (result * readout.excess - readout.read_variance / readout.excess).float()

    def weight(self, outputs: Tensor, readout: Readout) -> Tensor:
        """1/(β + 1) of equation 5."""
        mean, shape = self.prior(outputs, readout)
        return mean / (shape + mean)

    def balanced(self, outputs: Tensor, photons: Tensor, readout: Readout) -> Self:
        """Scale the mean of the prior until the posterior means sum to the data."""

        def imbalance(model: Self) -> tuple[Tensor, Tensor]:
            mean, _ = model.prior(outputs, readout)
            missing = (photons.double() - model.estimate(outputs, photons, readout)).sum() / readout.excess
            return missing, (mean * (1 - model.weight(outputs, readout))).sum()

        return scaled(self, imbalance)

    def narrowed(self, outputs: Tensor, photons: Tensor, readout: Readout) -> Self:
        """Compare the prior with the readings; see `protocol.narrowing`."""
        wide = replace(self, narrowing=())
        mean, shape = wide.prior(outputs, readout)
        found, cut_off = (poisson_like(photons, readout) - mean).square(), photons <= readout.lowest
        return replace(self, narrowing=narrowing(mean, mean.square() / shape, mean, found, cut_off))

    def adapted(self, outputs: Tensor, photons: Tensor, readout: Readout) -> Self:
        """Widen the prior as far as these images ask for; narrow it where there is no doubt."""
        return doubting(self, outputs, photons, readout)


def negative_binomial_nll(y: Tensor, mean: Tensor, shape: Tensor) -> Tensor:
    """Equation 4 with β = α/mean, for real y: the Gamma prior integrated over gives a negative binomial.

    Below 0, where log Γ(α + y) − log Γ(α) would meet a pole and reward ever wider priors, its expansion for
    large α takes over, which knows y by its mean and variance alone: y log α + y(y − 1)/2α, kept finite for
    small α. Terms in the mean are left as they are, so that its estimate stays unbiased. log Γ(y + 1), which
    no parameter depends on, counts as 0 below 0.
    """
    result: Tensor = _NegativeBinomial.apply(*torch.broadcast_tensors(y, mean, shape))
    return result


class _NegativeBinomial(torch.autograd.Function):
    """`negative_binomial_nll` of values of one size; gradients, of mean and shape, by hand.

    In float64 on a CPU, those of autograd took longer than a tenth of a training step.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, mean: Tensor, shape: Tensor) -> Tensor:
        """Give one number for each."""
        above, log_rate = y.clamp(min=0), torch.log1p(mean / shape)
        gammas = torch.lgamma(shape + above).sub_(torch.lgamma(shape)).sub_(torch.lgamma(above + 1))
        expanded = y * (shape.log() + (y - 1) / (2 * (shape + 1)))
        gammas = torch.where(y < 0, expanded, gammas)
        ctx.save_for_backward(y, mean, shape, log_rate)
        return torch.log1p(shape / mean).mul_(y).addcmul_(shape, log_rate).sub_(gammas)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Give those of mean and shape."""
        y, mean, shape, log_rate = ctx.saved_tensors
        short = (mean - y) / (mean + shape)
        gammas = torch.digamma(shape + y.clamp(min=0)).sub_(torch.digamma(shape))
        gammas = torch.where(y < 0, y * (1 / shape - (y - 1) / (2 * (shape + 1).square())), gammas)
        of_shape = log_rate.sub(short).sub_(gammas).mul_(gradients[0])
        return None, short.mul_(shape).div_(mean).mul_(gradients[0]), of_shape
