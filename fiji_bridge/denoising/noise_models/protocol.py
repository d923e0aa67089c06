"""What training and prediction ask of a noise model, and what noise models share."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar, Protocol, Self, TypeVar

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from fiji_bridge.camera import Camera

DOUBTS = (0.01, 10.0)
"""Least and most doubt, beside none."""
OUTLIER = 10.0
"""Standard deviations of a hot or dead pixel, which tells nothing of the network or the light."""
NO_DOUBT = 1e-4
"""Gain of likelihood below which there is no doubt [nats a pixel]."""
RANKS = (0.25, 0.5, 0.75, 0.875, 0.94, 0.97)
"""Ranks of brightness between which the width of priors is judged."""
APART = 0.1
"""Least difference between those brightnesses, in standard deviations of the noise."""
NARROWEST = 0.1
"""Least share of a prior's variance that is kept."""
UNCERTAIN_NOISE = 0.1
"""Relative error of the noise's variance that an estimated camera may have."""
MANY = 0.01
"""Share of readings cut off at an end of the range from which they hide how far others lie from the mean."""

Narrowing = tuple[tuple[float, float], ...]
"""Means of a prior, growing, and the share of its variance that is true there."""


@dataclass(frozen=True)
class Readout:
    """What the camera adds: a pixel of mean λ photons has variance ``excess · λ + read_variance``.

    `read_variance`, in photons², is a number or a tensor that broadcasts against the images (…, y, x).
    Readings lie `step` photons apart (0: on no grid) from `lowest` to `highest` [photons]; a reading at
    either end stands for all that the camera cut off there.
    """

    excess: float = 1.0
    read_variance: float | Tensor = 0.0
    step: float = 0.0
    lowest: float = -math.inf
    highest: float = math.inf


class NoiseModel(Protocol):
    """What training and prediction ask of a noise model. Images are (n, 1, y, x), in photons.

    `assumed_camera` is what a method takes every camera for, None for those that heed the real one.
    """

    engine: ClassVar[str]
    outputs: ClassVar[int]
    estimators: ClassVar[tuple[str, ...]]
    assumed_camera: ClassVar[Camera | None]

    @classmethod
    def fit(cls, photons: np.ndarray, excess: float, read_variance: float) -> Self:
        """Choose the constants of a new model from a sample of the data."""
        ...

    def constants(self) -> dict[str, Any]:
        """Keyword arguments that make this model again."""
        ...

    def normalize(self, photons: Tensor) -> Tensor:
        """Give what the network sees: order 1, and 0 outside the image."""
        ...

    def nll(self, outputs: Tensor, photons: Tensor, readout: Readout) -> Tensor:
        """Negative log likelihood of each observed pixel [nats]."""
        ...

    def estimate(self, outputs: Tensor, photons: Tensor, readout: Readout, estimator: str) -> Tensor:
        """Denoised images [photons]."""
        ...

    def weight(self, outputs: Tensor, readout: Readout) -> Tensor:
        """How much of a pixel's own value goes into its estimate, 0 to 1."""
        ...

    def narrowed(self, outputs: Tensor, photons: Tensor, readout: Readout) -> Self:
        """Correct the width of the priors by images that the network was not trained on."""
        ...

    def balanced(self, outputs: Tensor, photons: Tensor, readout: Readout) -> Self:
        """Correct the model so that its estimates keep the mean of these images."""
        ...

    def adapted(self, outputs: Tensor, photons: Tensor, readout: Readout) -> Self:
        """Let the model trust the network as far as these images, unlike those trained on, confirm it."""
        ...


def outliers(noise: NoiseModel, outputs: Tensor, photons: Tensor, readout: Readout) -> Tensor:
    """Find pixels further from what their surroundings say than `OUTLIER` of its standard deviations."""
    expected = noise.estimate(outputs, photons, readout, "prior")
    variance = readout.excess * expected.clamp(min=0) + readout.read_variance
    variance = variance / (1 - noise.weight(outputs, readout)).clamp(min=1e-3)
    return (photons - expected).square() > OUTLIER**2 * variance


class _Scaled(Protocol):
    @property
    def scale(self) -> float: ...


class _Doubting(Protocol):
    @property
    def doubt(self) -> float: ...
    def nll(self, outputs: Tensor, photons: Tensor, readout: Readout) -> Tensor: ...
    def narrowed(self, outputs: Tensor, photons: Tensor, readout: Readout) -> Self: ...


_Model = TypeVar("_Model", bound=_Scaled)
_Doubter = TypeVar("_Doubter", bound=_Doubting)


def doubting(model: _Doubter, outputs: Tensor, photons: Tensor, readout: Readout) -> _Doubter:
    """Choose the `doubt` of a model under which these images are the most probable.

    That is the relative error of the prior's mean, which the network cannot know of images unlike those that
    it was trained on. As the network does not see the pixel itself, the likelihood is honest. Where there is
    no doubt, the images judge the priors' width.
    """
    model = replace(model, narrowing=(), doubt=0.0)  # type: ignore[type-var]

    def improbable(doubt: float) -> float:
        model_of = replace(model, doubt=doubt)  # type: ignore[type-var]
        return float(model_of.nll(outputs, photons, readout).mean())

    found = minimize_scalar(
        lambda log: improbable(math.exp(log)),
        bounds=[math.log(end) for end in DOUBTS],
        method="bounded",
        options={"xatol": 0.1},
    )
    if found.fun < improbable(0.0) - NO_DOUBT:
        return replace(model, doubt=math.exp(found.x))  # type: ignore[type-var]
    return model.narrowed(outputs, photons, readout)


def narrowing(mean: Tensor, prior: Tensor, noise: Tensor, found: Tensor, cut_off: Tensor) -> Narrowing:
    """Compare the variances of priors with those that readings show, from mean and variances of each pixel.

    `found` is (z − m)², on average the sum of both variances, so that what it has beyond the noise is the
    error of the prior's mean; where many readings are cut off it is not. The likelihood makes priors wider
    than that: it was learnt from one orientation and less light, and where noise has tails that no Poisson
    variable has, as of photomultipliers, width stands for those. The posterior mean is a mean weighted by
    these variances, whatever the distributions (Bühlmann 1967), and best with the true ones.
    """
    if mean.numel() == 0:
        return ()
    values = torch.broadcast_tensors(mean, prior, noise, found, cut_off)
    mean, prior, noise, found, cut_off = (value.flatten().double() for value in values)
    order, shares, edges = mean.argsort(), [], [0]
    for place in (order[int(rank * len(order))] for rank in RANKS):
        if mean[place] - mean[order[edges[-1]]] > APART * noise[place].sqrt():
            edges.append(int((mean < mean[place]).sum()))
    for at in (order[first:last] for first, last in pairwise([*edges, len(order)])):
        expected, error = float(prior[at].mean()), (found - noise)[at]
        excess = expected - float(error.mean())
        uncertain = (
            float(error.var(correction=0)) / len(at) + (UNCERTAIN_NOISE * float(noise[at].mean())) ** 2
        )
        sure = excess**2 / max(excess**2 + uncertain, 1e-12)
        known = excess > 0 and float(cut_off[at].mean()) < MANY
        shares.append(
            (float(mean[at].mean()), max(1 - sure * excess / expected, NARROWEST) if known else 1.0)
        )
    return tuple(shares)


def share_at(mean: Tensor, known: Narrowing) -> Tensor:
    """Interpolate the share of the variance at these means."""
    at, shares = torch.tensor(known, dtype=mean.dtype, device=mean.device).T.contiguous()
    right = torch.searchsorted(at, mean.contiguous()).clamp(max=len(at) - 1)
    left = (right - 1).clamp(min=0)
    part = ((mean - at[left]) / (at[right] - at[left]).clamp(min=1e-12)).clamp(0, 1)
    return shares[left] + part * (shares[right] - shares[left])


def scaled(model: _Model, imbalance: Callable[[_Model], tuple[Tensor, Tensor]]) -> _Model:
    """Scale the mean of a model's prior until nothing is missing.

    `imbalance` gives by how much the sum of the estimates is below that of the data, and the derivative of
    that over the log of the scale.
    """
    for _ in range(20):
        missing, slope = imbalance(model)
        change = float((missing / slope).clamp(-0.1, 0.1))
        model = replace(model, scale=model.scale * math.exp(change))  # type: ignore[type-var]
        if abs(change) < 1e-6:
            break
    return model


def poisson_like(photons: Tensor, readout: Readout) -> Tensor:
    """Change photons to the y whose variance is its mean."""
    return (photons.double() + readout.read_variance / readout.excess) / readout.excess


def root_of(y: Tensor) -> Tensor:
    """Anscombe's 2√(y + 3/8), whose noise is 1, continued along its tangent below 0."""
    return torch.where(y < 0, 2 * 0.375**0.5 + y / 0.375**0.5, 2 * (y.clamp(min=0) + 0.375).sqrt())
