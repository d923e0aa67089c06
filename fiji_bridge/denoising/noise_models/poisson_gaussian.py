"""Poisson light under a Gamma prior, seen through the readout of a real camera."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn.functional import softplus
from torch.special import gammainc, gammaincc, log_ndtr

from fiji_bridge.denoising.noise_models.gamma_poisson import LOG_SHAPE, GammaPoisson, negative_binomial_nll
from fiji_bridge.denoising.noise_models.protocol import Readout, narrowing, scaled

NODES, EM_NODES, CENSORED_NODES = 24, 32, 64
"""Most numbers of electrons to sum over, without EM gain, with it, and for saturated pixels."""
REACH, EM_REACH = 4.0, 5.0
"""How far the numbers of electrons reach to either side of a reading, and so with EM gain, which has tails
[standard deviations]."""
QUIET = 0.1
"""Noise [photons] below which a reading is the number of electrons itself, whole or not."""
EM_QUIET = 0.05
"""Least noise behind EM gain [photons]: without any, a pixel with no electron would be infinitely sure."""
NEGLIGIBLE = 12.0
"""How much less probable than the most probable is left out [nats]."""
FINE = 0.5
"""Steps of rounding, over the read noise, up to which a series gives the chance to be rounded to each."""
STEEP = 3.0
"""By how many nats the density may change over a step for that."""
NEWTON_STEPS, NEAR_PEAK = 8, 0.1
"""Most steps in search of the most probable number of electrons, and the last [widths of the peak]."""
DOUBLINGS = 40
"""Doublings or halvings that find the posterior's maximum from its mean, and halvings of what is between."""
DARK = 1e-9
"""Light [photons] below which the maximum is at none."""
PIXELS_AT_ONCE = 2**17
"""Pixels to estimate together, each with all its numbers of electrons."""


@dataclass(frozen=True)
class PoissonGaussian(GammaPoisson):
    """Light of a Gamma prior, electrons of a Poisson distribution, then all that a camera does to them.

    The network gives mean m and shape α of a Gamma prior of λ, as for `GammaPoisson`. The number n of
    electrons is then negative binomial (equation 4 of the Gamma-Poisson paper), and the reading z has

        p(z) = Σₙ NB(n; m, α) R(z|n),    E[λ|z] = (α + E[n|z]) / (α/m + 1),

    where the readout R, which no parameter depends on, is exact (`_plain_readout`, `_em_readout`):

    - read noise: a normal distribution of variance σ², per pixel where the camera has a map;
    - EM gain: n electrons become a Gamma variable of shape n (Basden, Haniff and Mackay 2003; Hirsch et al.
      2013), to which read noise is added;
    - rounding: integrated over the A/D step (with EM gain, and below σ, by Sheppard's Δ²/12);
    - clipping: a reading at either end of the range has the probability of all that lies beyond.

    Where many n matter the sum goes over fewer of them, close together where n is small. Readings of less
    noise than `QUIET` photons are taken for n themselves, as `GammaPoisson` does.
    """

    engine: ClassVar[str] = "poisson-gaussian"

    def prior(self, outputs: Tensor, readout: Readout) -> tuple[Tensor, Tensor]:
        """Mean of the Gamma prior of λ [photons], whatever the readout, and its shape α, as float64."""
        root, shape = outputs.double().split(1, dim=1)
        # A root's noise is of one size everywhere; that of no light is the least it can be.
        dark = 2 * math.sqrt(self.floor / self.excess)
        above = softplus(root * self.spread + self.center - dark, beta=4)
        mean = self.scale * self.excess * above * (above + 2 * dark) / 4 + 1e-6
        middle, half = 0.5 * (LOG_SHAPE[1] + LOG_SHAPE[0]), 0.5 * (LOG_SHAPE[1] - LOG_SHAPE[0])
        light = max(self.excess * (self.center**2 - dark**2) / 4, 0.25)
        # A prior as wide as the noise: to a narrow one, light where none was expected is but noise.
        start = math.log(light**2 / (self.excess * (light + self.floor)))
        shape = self._doubted((middle + half * torch.tanh((3 * shape + start - middle) / half)).exp())
        return mean, self._narrowed(mean, shape)

    def nll(self, outputs: Tensor, photons: Tensor, readout: Readout) -> Tensor:
        """Negative log of p(z): a density where the A/D step is 0, else a probability."""
        return -posterior(*self.prior(outputs, readout), photons, readout, moments=False).log_evidence

    def estimate(self, outputs: Tensor, photons: Tensor, readout: Readout, estimator: str = "mean") -> Tensor:
        """Posterior mean, the posterior's maximum (``map``) or the prior's mean (``prior``)."""
        mean, shape = self.prior(outputs, readout)
        if estimator == "prior":
            return mean.expand_as(photons).float()
        seen = _in_parts(mean, shape, photons, readout, mode=estimator == "map")
        result = seen.mode if estimator == "map" else (shape + seen.electrons) / (shape / mean + 1)
        if self.doubt:  # how much light a saturated pixel had, a prior widened by doubt cannot say
            most = torch.maximum(mean, photons)
            result = torch.where(_saturated(photons, readout), result.minimum(most), result)
        return result.float()

    def weight(self, outputs: Tensor, readout: Readout) -> Tensor:
        """Share of the prior in the variance."""
        mean, shape = self.prior(outputs, readout)
        prior = mean.square() / shape
        return prior / (prior + readout.excess * mean + readout.read_variance)

    def balanced(self, outputs: Tensor, photons: Tensor, readout: Readout) -> Self:
        """Scale the mean of the prior until the posterior means sum to the data.

        A clipped reading counts as what it is expected to have been before.
        """

        def imbalance(model: Self) -> tuple[Tensor, Tensor]:
            mean, shape = model.prior(outputs, readout)
            seen = _in_parts(mean, shape, photons, readout)
            missing = (seen.unclipped - (shape + seen.electrons) / (shape / mean + 1)).sum()
            return missing, (mean * (1 - model.weight(outputs, readout))).sum()

        return scaled(self, imbalance)

    def narrowed(self, outputs: Tensor, photons: Tensor, readout: Readout) -> Self:
        """Compare the prior with the readings; see `protocol.narrowing`."""
        mean, shape = replace(self, narrowing=()).prior(outputs, readout)
        noise = readout.excess * mean + readout.read_variance + readout.step**2 / 12
        found, cut_off = (photons - mean).square(), _hidden(photons, readout) | _saturated(photons, readout)
        return replace(self, narrowing=narrowing(mean, mean.square() / shape, noise, found, cut_off))


@dataclass(frozen=True)
class Posterior:
    """What a reading says: log p(z), E[n|z], the reading itself, or what clipping hid of it.

    `mode` is the most probable λ. What is not asked for is 0.
    """

    log_evidence: Tensor
    electrons: Tensor
    unclipped: Tensor
    mode: Tensor


@dataclass(frozen=True)
class _Nodes:
    """Numbers of electrons (node, pixel) to sum over, and what the camera makes of each.

    `gap` (node − 1, pixel) lies between successive numbers; `log_readout` is log R(z|n), and of how many
    numbers each stands for; `unclipped` is the mean of what the camera would have read without clipping,
    given n and the reading.
    """

    number: Tensor
    gap: Tensor
    log_readout: Tensor
    unclipped: Tensor

    @cached_property
    def middle(self) -> Tensor:
        """Middles of what the gaps reach over (node − 1, pixel)."""
        return self.number[:-1] + (self.gap - 1) / 2

    @cached_property
    def sparse(self) -> bool:
        """Whether any number between two nodes is left out."""
        return bool((self.gap > 1).any())


def _in_parts(
    mean: Tensor, shape: Tensor, photons: Tensor, readout: Readout, *, mode: bool = False
) -> Posterior:
    """Give `posterior` of many pixels, some at a time."""
    variance = torch.as_tensor(readout.read_variance).expand_as(photons).flatten()
    values = (mean.expand_as(photons).flatten(), shape.expand_as(photons).flatten(), photons.flatten())
    parts = [
        posterior(prior, width, z, replace(readout, read_variance=noise), evidence=False, mode=mode)
        for prior, width, z, noise in zip(
            *(v.split(PIXELS_AT_ONCE) for v in (*values, variance)), strict=True
        )
    ]
    return _combined(lambda *values: torch.cat(values).view_as(photons), *parts)


def _combined(combine: Callable[..., Tensor], *parts: Posterior) -> Posterior:
    """Make one of several, field by field."""
    return Posterior(*(combine(*(getattr(part, f.name) for part in parts)) for f in fields(Posterior)))


def posterior(
    mean: Tensor,
    shape: Tensor,
    photons: Tensor,
    readout: Readout,
    *,
    evidence: bool = True,
    moments: bool = True,
    mode: bool = False,
) -> Posterior:
    """Sum over the electrons that a reading can come from; gradients go to the prior alone."""
    size = photons.shape
    variance = torch.as_tensor(readout.read_variance, device=photons.device).expand(size).flatten().double()
    mean, shape, z = mean.expand(size).flatten(), shape.expand(size).flatten(), photons.flatten().double()
    quiet = _quiet(z, variance, readout)
    if 0 < int(quiet.sum()) < len(quiet):  # each pixel alone decides how it is read
        parts = [torch.nonzero(some).squeeze(1) for some in (quiet, ~quiet)]
        found = [
            posterior(
                mean[at],
                shape[at],
                z[at],
                replace(readout, read_variance=variance[at]),
                evidence=evidence,
                moments=moments,
                mode=mode,
            )
            for at in parts
        ]
        order = torch.cat(parts).argsort()
        return _combined(lambda *values: torch.cat(values)[order].view(size), *found)
    with torch.no_grad():
        read = _em_readout if readout.excess > 1 else _plain_readout
        nodes = read(z, variance, readout, mean, shape)
        log = _log_counts(nodes, mean, shape).add_(nodes.log_readout)
    total = electrons = unclipped = peak = torch.zeros_like(z)
    if evidence:
        sum_of = log[0] if len(log) == 1 else _SumOfCounts.apply(mean, shape, nodes, log)
        total = sum_of - negative_binomial_nll(nodes.number[0].double(), mean, shape)
    if moments or mode:
        share = log.softmax(0)
        electrons, unclipped = ((share * v).sum(0).double() for v in (nodes.number, nodes.unclipped))
        unclipped = torch.where(_hidden(z, readout), unclipped, z)
        if mode:
            peak = _mode(nodes.number, share, mean, shape)
    result = Posterior(total, electrons, unclipped, peak)
    if readout.highest < math.inf:
        result = _with_saturated(result, mean, shape, z, variance, readout, mode)
    return _combined(lambda values: values.view(size), result)


@torch.no_grad()
def _mode(number: Tensor, share: Tensor, mean: Tensor, shape: Tensor) -> Tensor:
    """Find the posterior's maximum nearest to its mean, by where its slope changes sign.

    n electrons leave a Gamma distribution of λ, of shape α + n and rate α/m + 1. Where their mixture rises, λ
    is below the average of their modes, weighted by their densities there.
    """
    rate, grown = shape / mean + 1, (shape + number).double()
    log = share.double().log() + grown * rate.log() - torch.lgamma(grown)

    def rises(light: Tensor) -> Tensor:
        here = (log + grown * light.log()).softmax(0)
        return (here * (grown - 1)).sum(0) > rate * light

    light = (share * grown).sum(0) / rate
    up = rises(light)
    step = torch.where(up, 2.0, 0.5)
    for _ in range(DOUBLINGS):
        light = torch.where(rises(light) == up, light * step, light)
    low, high = torch.where(up, light / 2, light), torch.where(up, light, light * 2)
    for _ in range(DOUBLINGS):
        middle = (low + high) / 2
        up = rises(middle)
        low, high = torch.where(up, middle, low), torch.where(up, high, middle)
    return torch.where(high > DARK, high, 0.0)


def _quiet(z: Tensor, variance: Tensor, readout: Readout) -> Tensor:
    """Whether a reading is the number of electrons itself: of little noise, and not cut off."""
    calm = (variance + readout.step**2 / 12 < QUIET**2) & (readout.excess <= 1)
    return calm & ~_hidden(z, readout)


def _hidden(z: Tensor, readout: Readout) -> Tensor:
    return z <= readout.lowest + _tolerance(readout.lowest, readout)


def _saturated(z: Tensor, readout: Readout) -> Tensor:
    return z >= readout.highest - _tolerance(readout.highest, readout)


def _tolerance(end: float, readout: Readout) -> float:
    """How far float32 may have moved a reading from the end of the range."""
    return readout.step / 4 or (1e-6 * abs(end) if math.isfinite(end) else 0.0)


def _log_counts(nodes: _Nodes, mean: Tensor, shape: Tensor) -> Tensor:
    """Log of the negative binomial at the nodes over that at the first, by ratios, which float32 holds.

    From n to n + 1 the ratio is (α + n) m / ((n + 1)(α + m)); over a gap h, log Γ(x + h)/Γ(x) is
    h log c − h(h² − 1)/24c² about c = x + (h − 1)/2, exact for h = 1.
    """
    alpha, gap, middle = shape.float(), nodes.gap, nodes.middle
    result = torch.zeros(nodes.number.shape, device=alpha.device)
    if len(gap) == 0:
        return result
    ratio = (alpha + middle).mul_((mean / (shape + mean)).float()).div_(1 + middle).log_()
    if nodes.sparse:
        bend = (alpha + middle).square_().reciprocal_() - (1 + middle).square_().reciprocal_()
        ratio = ratio.sub_(bend.mul_((gap.square() - 1) / 24)).mul_(gap)
    torch.mm(_up_to(gap), ratio, out=result[1:])
    return result


def _up_to(values: Tensor) -> Tensor:
    """Give the matrix whose product sums rows from the first to each: a multiple faster than cumsum."""
    return torch.ones(len(values), len(values), device=values.device).tril_()


class _SumOfCounts(torch.autograd.Function):
    """Log of the sum over numbers of electrons (node, pixel), each given over the first by its `log`.

    Its gradients of mean m and shape α, by hand: α(E[n] − n₀)/m(α + m), and the expectation of
    ψ(α + n) − ψ(α + n₀), less (E[n] − n₀)/(α + m). To either a gap adds by the chance that there are more
    electrons than before it.
    """

    @staticmethod
    def forward(ctx: Any, mean: Tensor, shape: Tensor, nodes: _Nodes, log: Tensor) -> Tensor:
        """Give one number a pixel."""
        most = log.amax(0)
        share = (log - most).exp_()
        total = share.sum(0)
        if any(ctx.needs_input_grad):
            gap = nodes.gap
            more = torch.mm(_up_to(gap).T, share[1:].div_(total)).mul_(gap)
            each = (nodes.middle + shape.float()).reciprocal_()
            if nodes.sparse:
                each = each.addcmul_(each**3, (gap.square() - 1) / 12)
            ctx.save_for_backward(mean, shape, more.sum(0), each.mul_(more).sum(0))
        return most + total.log()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Give those of mean and shape."""
        mean, shape, more, digammas = ctx.saved_tensors
        slope = more / (shape + mean)
        return slope * shape / mean * gradients[0], (digammas - slope) * gradients[0], None, None


def _spread(first: Tensor, last: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Give numbers from `first` to beyond `last`, the gaps between, and how many each stands for.

    Successive whole numbers where they are enough, else growing gaps: a Poisson variable is wider where it
    is larger, and a sum over a smooth peak needs no more than one number for each standard deviation.
    """
    k = torch.arange(most, device=first.device, dtype=torch.float32)[:, None]
    number, beyond = first.float() + k, (last - first).float() - (most - 1)
    if (beyond <= 0).all():
        return number, torch.ones_like(k)[:-1], torch.ones_like(k)
    bend = beyond.clamp(min=0) / max(1, (most - 1) * (most - 2) / 2)
    stands_for = 1 + bend * (k - 0.5).clamp(min=0)
    return number.addcmul_(bend, k * (k - 1) / 2), (1 + bend * k)[:-1], stands_for


def _most_electrons(mean: Tensor, shape: Tensor, share: float = 1.0) -> Tensor:
    """Give the number beyond which a negative binomial has nothing left; its tail is as exp(−n/(m/α + 1)).

    Or what lies a `share` of the way there from its mean.
    """
    return mean + share * (6 * (mean + mean.square() / shape).sqrt() + 8 * (mean / shape + 1))


def _around_peak(
    data: Callable[[Tensor], Tensor],
    width: Callable[[Tensor], Tensor],
    amplified: bool,
    start: Tensor,
    most: Tensor,
    prior: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Give the most probable number of electrons, and those between which the posterior lies.

    Its logarithm climbs by `data` of n, the readout's share, and by log((α + n)m/((n + 1)(α + m)), the
    prior's, until both cancel, somewhere between 0 and `most`. `width` of n is the readout's variance there,
    by the inverse of which `data` falls. Newton's steps find it from `start`, where the readout alone is
    most probable: of two peaks the upper. Amplified, `data` is a logarithm, which they take along. All in
    float32, that is to a small part of the peak's width.
    """
    mean, shape, start, most = (values.float() for values in (*prior, start, most))
    tail = (mean / (shape + mean)).log()
    low, high = torch.zeros_like(most), most
    n, found = torch.minimum(start.clamp(min=0), most), torch.zeros_like(most, dtype=torch.bool)

    def rise(n: Tensor) -> Tensor:  # of the prior, but for `tail`
        return ((shape + n) / (n + 1)).log()

    def sharpness(n: Tensor) -> Tensor:  # by which that falls
        return 1 / (n + 1) - 1 / (n + shape)

    def reach(n: Tensor) -> Tensor:
        return (EM_REACH if amplified else REACH) / (1 / width(n) + sharpness(n).clamp(min=0)).sqrt()

    for _ in range(NEWTON_STEPS):
        climb = data(n) + tail + rise(n)
        rising, noise = climb > 0, width(n)
        low, high = torch.where(rising, n, low), torch.where(rising, high, n)
        bend = 1 / noise + sharpness(n)
        step = climb / bend
        step = noise * torch.expm1(step / noise) if amplified else step
        step = torch.where(bend > 0, n + step, (low + high) / 2).clamp(low, high) - n
        n = torch.where(found, n, n + step)  # so that no pixel depends on how long others take
        found = found | (step.square() * bend.abs() < NEAR_PEAK**2)
        if found.all():
            break
    above = below = reach(n)
    if not amplified:  # of few electrons the prior is sharper than of more; of more than these it has none
        end = _most_electrons(mean, shape, 0.5)
        above = torch.maximum(below, torch.minimum(reach(n + below), end - n))
    # From a peak at 0 it may fall faster than the readout alone would.
    fall = -(data(n) + tail + rise(n).clamp(min=0))
    return n, n - below, n + torch.minimum(above, 3 + NEGLIGIBLE / fall.clamp(min=1e-3))


def _plain_readout(z: Tensor, variance: Tensor, readout: Readout, mean: Tensor, shape: Tensor) -> _Nodes:
    """R(z|n) without EM gain: normal around n, rounded to the step, cut off at the lower end."""
    step = readout.step
    noise = (variance + step**2 / 12).sqrt()
    if _quiet(z, variance, readout).all():
        density = torch.full_like(z, math.log(step or 1.0))[None]
        return _Nodes(z[None], density[:0].float(), density, z[None])
    noise = noise.clamp(min=QUIET)
    square = noise.square()
    climb = (shape * mean / (shape + mean)).log().clamp(min=0)  # the prior's, at most
    light, width, half = z.float(), square.float(), step / 2
    alone = (square - step**2 / 12).clamp(min=(QUIET / 2) ** 2).float()
    sigma = alone.sqrt()

    def data(n: Tensor) -> Tensor:  # within a step nearly all n read alike, beyond it the noise alone is left
        inside = (light - n).clamp(-half, half)
        return inside / width + (light - n - inside) / alone

    peak, first, last = _around_peak(
        data,
        lambda n: torch.where((light - n).abs() > half, alone, width),
        False,
        light,
        z.clamp(min=0) + square * climb + 1,
        (mean, shape),
    )
    # No further than the reading itself allows; of coarse steps, which have sharp ends, all between them.
    near = REACH * sigma
    first = torch.maximum(first, torch.minimum(light - half, peak) - near)
    last = torch.minimum(last, torch.maximum(light + half, peak) + near)
    within = (step > sigma) & ((light - peak).abs() < half + sigma)
    first = torch.where(within, first.minimum(light - half - near), first)
    last = torch.where(within, last.maximum(light + half + near), last)
    hidden = _hidden(z, readout)
    first = first.floor().clamp(min=0).masked_fill(hidden, 0.0)
    last = last.clamp(min=0)
    most = min(NODES, math.ceil(min(2.4 * REACH * float(noise.max()), NODES)) + 3)
    number, gap, stands_for = _spread(first, last, most)
    log_readout = _log_normal(light - number, sigma, step)
    unclipped = number
    if hidden.any():
        below = (readout.lowest + half - number) / sigma
        log_readout = torch.where(hidden, log_ndtr(below), log_readout)
        unclipped = torch.where(hidden, number - sigma * _mills(below), number)
    return _Nodes(number, gap, log_readout + stands_for.log(), unclipped)


def _log_normal(distance: Tensor, sigma: Tensor, step: float) -> Tensor:
    """Log density at distances (node, pixel) from the mean, with a step the log chance to round to there.

    Of steps h that are small beside the noise, and that it changes little over, by a series in κ = (h/σ)² and
    t = distance/σ: the density times h, and (t² − 1)κ/24 − (t⁴ + 4t² − 2)κ²/2880.
    """
    share = step / sigma
    furthest = torch.maximum(distance[0].abs(), distance[-1].abs()) / sigma
    coarse = (share > FINE) | (share * furthest > STEEP)
    if coarse.all():
        return _log_rounded(distance, sigma, step)
    kappa, square = share.square(), (distance / sigma).square_()
    middle = math.log((step or 1.0) / math.sqrt(2 * math.pi)) - sigma.log() - kappa / 24 + kappa**2 / 1440
    result = (square * (kappa**2 / -2880)).add_(kappa / 24 - kappa**2 / 720 - 0.5).mul_(square).add_(middle)
    (at,) = torch.nonzero(coarse, as_tuple=True)
    return result.index_copy_(1, at, _log_rounded(distance[:, at], sigma[at], step)) if len(at) else result


def _log_rounded(distance: Tensor, sigma: Tensor, step: float) -> Tensor:
    """Give the same for steps of any size but 0."""
    away, half = -distance.abs() / sigma, step / 2 / sigma  # in the lower tail float32 keeps its digits
    above, below = log_ndtr(away + half), log_ndtr(away - half)
    return above + torch.log(-torch.expm1(below - above))


def _mills(t: Tensor) -> Tensor:
    """φ(t)/Φ(t): how far beyond its mean a normal variable is, given that it is beyond −t."""
    return (-0.5 * t.square() - 0.5 * math.log(2 * math.pi) - log_ndtr(t)).exp()


def _em_readout(z: Tensor, variance: Tensor, readout: Readout, mean: Tensor, shape: Tensor) -> _Nodes:
    """R(z|n) behind EM gain, in photons: a Gamma variable of shape n and scale 1, and read noise."""
    noise = (variance + readout.step**2 / 12).sqrt().clamp(min=EM_QUIET)
    hidden = _hidden(z, readout)
    square = noise.square()
    y = (z + square).clamp(min=0.1)  # of mean and variance n + σ², as in `_many_amplified`
    climb = (shape * mean / (shape + mean)).clamp(min=1)
    light, width = y.float(), square.float()
    _, first, last = _around_peak(
        lambda n: (light / (n + width)).log(),
        lambda n: n + width,
        True,
        light - width,
        y * climb + 1,
        (mean, shape),
    )
    first = first.floor().clamp(min=0).masked_fill(hidden, 0.0)
    last = (last + 3 * noise + 4).clamp(min=0)
    number, gap, stands_for = _spread(first, last, EM_NODES)
    few = (first == 0) & (last <= EM_NODES - 1)  # each number from 0 is there
    exact, others = (torch.nonzero(some).squeeze(1) for some in (few, ~few))
    log_readout = torch.empty_like(number)
    log_readout[:, exact] = _few_amplified(z[exact], noise[exact], EM_NODES).float().clamp(min=1e-37).log()
    log_readout[:, others] = _many_amplified(z[others], noise[others], number[:, others]).float()
    log_readout += math.log(readout.step or 1.0)
    unclipped = number
    (at,) = torch.nonzero(hidden, as_tuple=True)
    if len(at):
        edge = torch.full_like(z[at], readout.lowest + readout.step / 2)
        log_below, mean_below = _amplified_below(edge, noise[at], number[:, at], few[at])
        log_readout = log_readout.index_copy(1, at, log_below.float())
        unclipped = number.index_copy(1, at, mean_below.float())
    return _Nodes(number, gap, log_readout + stands_for.log(), unclipped)


def _few_amplified(z: Tensor, noise: Tensor, most: int) -> Tensor:
    """Density of Gamma(n) plus normal noise for n from 0, exact, by recurrence.

    With g₀ the normal density and g₁ = exp(σ²/2 − z) Φ(z/σ − σ), partial integration gives
    n gₙ₊₁ = (z − σ²) gₙ + σ² gₙ₋₁.
    """
    shift, square = z - noise.square(), noise.square()
    g = [(-0.5 * (z / noise).square()).exp() / (noise * math.sqrt(2 * math.pi))]
    g.append((square / 2 - z + log_ndtr(shift / noise)).exp())
    for n in range(1, most - 1):
        g.append(((shift * g[n] + square * g[n - 1]) / n).clamp(min=0))
    return torch.stack(g)


def _amplified_below(edge: Tensor, noise: Tensor, number: Tensor, few: Tensor) -> tuple[Tensor, Tensor]:
    """Give log Gₙ, the probability of n electrons to be read below the edge, and the mean reading there.

    With the densities of `_few_amplified`, Gₙ = Gₙ₋₁ − gₙ from G₀ = Φ(edge/σ), and the readings below the
    edge sum to n Gₙ₊₁ − σ² gₙ. Of many electrons the reading plus σ² is a Gamma variable, as in
    `_many_amplified`.
    """
    square, most = noise.square(), len(number)
    density = _few_amplified(edge, noise, most + 1)
    none = log_ndtr(edge / noise).exp()[None]
    below = torch.cat([none, none - density[1:].cumsum(0)]).clamp(min=0)
    n = torch.arange(most, dtype=edge.dtype, device=edge.device)[:, None]
    total = n * below[1:] - square * density[:-1]
    y, shape = (edge + square).clamp(min=1e-6).expand(number.shape), number + square
    many = gammainc(shape, y)
    chance = torch.where(few, below[:-1], many).clamp(min=1e-30)
    total = torch.where(few, total, shape * gammainc(shape + 1, y) - square * many)
    # What rounding leaves of the least probable says nothing, and counts for nothing.
    mean = torch.where(chance > 1e-12, total / chance, edge)
    return chance.log(), torch.minimum(mean, edge)


def _many_amplified(z: Tensor, noise: Tensor, number: Tensor) -> Tensor:
    """Give the same for many electrons: z + σ² has a mean and variance of n + σ², as a Gamma variable has."""
    y, n = (z + noise.square()).clamp(min=0.1), number + noise.square()
    return (n - 1) * y.log() - y - torch.lgamma(n)


def _with_saturated(
    result: Posterior,
    mean: Tensor,
    shape: Tensor,
    z: Tensor,
    variance: Tensor,
    readout: Readout,
    mode: bool,
) -> Posterior:
    """Put in the pixels at the upper end of the range: p is the probability of all that lies beyond."""
    (at,) = torch.nonzero(_saturated(z, readout), as_tuple=True)
    if len(at) == 0:
        return result
    mean, shape, edge = mean[at], shape[at], readout.highest - readout.step / 2
    with torch.no_grad():
        number, log_readout, unclipped = _beyond(mean, shape, variance[at], readout, edge)
    log = log_readout - negative_binomial_nll(number, mean, shape)
    share = log.softmax(0)
    put: Callable[[Tensor, Tensor], Tensor] = lambda whole, part: whole.index_copy(0, at, part)  # noqa: E731
    return Posterior(
        put(result.log_evidence, log.logsumexp(0)),
        put(result.electrons, (share * number).sum(0)),
        put(result.unclipped, (share * unclipped).sum(0)),
        put(result.mode, _mode(number, share, mean, shape)) if mode else result.mode,
    )


def _beyond(
    mean: Tensor, shape: Tensor, variance: Tensor, readout: Readout, edge: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Give electrons (node, pixel) of saturated readings, log P(beyond the edge|n) and the mean there.

    How many there can be only the prior says. They are dense near the edge, and n counts as continuous.
    """
    noise = variance.sqrt().clamp(min=0.5)
    width = noise + (max(edge, 0.0) ** 0.5 if readout.excess > 1 else 0.0)
    spread = (mean + mean.square() / shape).sqrt()
    first = torch.maximum(edge - REACH * width, mean - 6 * spread).clamp(min=0)
    last = (edge - mean).clamp(min=0) + _most_electrons(mean, shape) + REACH * width
    t = torch.linspace(0, 1, CENSORED_NODES, dtype=torch.float64, device=mean.device)[:, None]
    number = first + (last - first) * t**3
    ends = torch.cat([number[:1], number, number[-1:]])
    stands_for = (ends[2:] - ends[:-2]) / 2
    if readout.excess > 1:
        n, limit = number.clamp(min=1e-6), torch.tensor(max(edge, 1e-6), dtype=torch.float64).to(mean)
        share = gammaincc(n, limit).clamp(min=1e-300)
        return number, share.log() + stands_for.log(), n * gammaincc(n + 1, limit) / share
    above = (number - edge) / noise
    return number, log_ndtr(above) + stands_for.log(), number + noise * _mills(above)
