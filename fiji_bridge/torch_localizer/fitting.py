"""Fits of one molecule to the pixels around a candidate, for thousands of candidates at once.

The minimizer is the Levenberg-Marquardt algorithm of Moré, "The Levenberg-Marquardt algorithm:
implementation and theory", Lecture Notes in Mathematics 630, 105 (1978), with the trust region, scaling and
stopping rules of MINPACK, which are also the plugin's. On a GPU each step takes every unfinished candidate one
trial further; on a CPU `kernels` does one candidate after another.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from fiji_bridge.torch_localizer import kernels
from fiji_bridge.torch_localizer.threads import in_threads

X, Y, SIGMA, INTENSITY, OFFSET = range(5)
"""Columns of physical parameters: position from the central pixel's centre [px], sigma [px], and the
intensity and offset in the unit of the pixels."""

TOLERANCE = 1e-10
POINT_TOLERANCE = 1e-9
MAX_STEPS = 1001
MAX_TRIALS = 5 * MAX_STEPS
SPOTS_AT_ONCE = {"cpu": 2**9, "gpu": 2**16}
"""Spots that a thread of the CPU takes at a time, and a GPU's caches hold."""

WEIGHT_RANGE = 1000.0
DIMMEST = 1e-6
_TINY = torch.finfo(torch.float64).tiny


class Psf(Protocol):
    """A point spread function in the free parameters of the fit, whose squares keep what must be positive.

    Attributes
    ----------
    kind
        Its number in `kernels`.
    calibration
        (12,) numbers that it needs there, if it does.
    """

    kind: ClassVar[int]
    calibration: np.ndarray

    def free(self, physical: Tensor) -> Tensor:
        """Turn physical parameters (n, 5) into free ones."""

    def physical(self, free: Tensor) -> Tensor:
        """Turn free parameters (n, 5) into physical ones."""

    def __call__(self, free: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluate on a square of pixels.

        Parameters
        ----------
        free
            (n, 5) float64.
        grid
            (side,) pixel positions along each axis [px].

        Returns
        -------
        tuple
            The model (n, side²), y slowest, and its derivatives (n, 5, side²).
        """


class IntegratedGaussian:
    """Symmetric Gaussian integrated over each pixel; free are x, y, sigma, √intensity and √offset."""

    kind: ClassVar = kernels.INTEGRATED
    calibration = np.zeros(12)

    def free(self, physical: Tensor) -> Tensor:  # noqa: D102
        return torch.cat([physical[:, :INTENSITY], physical[:, INTENSITY:].abs().sqrt()], 1)

    def physical(self, free: Tensor) -> Tensor:  # noqa: D102
        return torch.cat([free[:, :SIGMA], free[:, SIGMA : SIGMA + 1].abs(), free[:, INTENSITY:].square()], 1)

    def __call__(self, free: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        sigma, root_intensity, root_offset = (
            free[:, SIGMA, None],
            free[:, INTENSITY, None],
            free[:, OFFSET, None],
        )
        # Both axes at once: (n, 2, side + 1) pixel edges.
        edges = torch.cat([grid - 0.5, grid[-1:] + 0.5]) - free[:, :SIGMA, None]
        scaled = edges / sigma[:, :, None]
        cumulative = 0.5 * torch.erf(scaled * math.sqrt(0.5))
        density = torch.exp(-0.5 * scaled.square()) * (math.sqrt(0.5 / math.pi) / sigma[:, :, None])
        share = cumulative.diff(dim=2)
        by_centre = -density.diff(dim=2)
        by_sigma = -(density * scaled).diff(dim=2)
        intensity = root_intensity.square()
        (sx, sy), (cx, cy), (dx, dy) = share.unbind(1), by_centre.unbind(1), by_sigma.unbind(1)
        spot = _outer(sy, sx)
        derivatives = free.new_empty(len(free), 5, spot.shape[1])
        derivatives[:, X] = intensity * _outer(sy, cx)
        derivatives[:, Y] = intensity * _outer(cy, sx)
        derivatives[:, SIGMA] = intensity * (_outer(dy, sx) + _outer(sy, dx))
        derivatives[:, INTENSITY] = 2 * root_intensity * spot
        derivatives[:, OFFSET] = 2 * root_offset
        return root_offset.square() + intensity * spot, derivatives


class Gaussian:
    """Symmetric Gaussian sampled at pixel centres; free are x, y, √sigma, √intensity and √offset."""

    kind: ClassVar = kernels.SAMPLED
    calibration = np.zeros(12)

    def free(self, physical: Tensor) -> Tensor:  # noqa: D102
        return torch.cat([physical[:, :SIGMA], physical[:, SIGMA:].abs().sqrt()], 1)

    def physical(self, free: Tensor) -> Tensor:  # noqa: D102
        return torch.cat([free[:, :SIGMA], free[:, SIGMA:].square()], 1)

    def __call__(self, free: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        sigma, root_intensity, root_offset = (
            free[:, SIGMA, None].square(),
            free[:, INTENSITY, None],
            free[:, OFFSET, None],
        )
        scaled = (grid - free[:, :SIGMA, None]) / sigma[:, :, None]
        density = torch.exp(-0.5 * scaled.square()) * (math.sqrt(0.5 / math.pi) / sigma[:, :, None])
        (ux, uy), (gx, gy) = scaled.unbind(1), density.unbind(1)
        spot = _outer(gy, gx)
        intensity = root_intensity.square()
        derivatives = free.new_empty(len(free), 5, spot.shape[1])
        derivatives[:, X] = intensity / sigma * _outer(gy, gx * ux)
        derivatives[:, Y] = intensity / sigma * _outer(gy * uy, gx)
        radius2 = (uy.square()[:, :, None] + ux.square()[:, None, :]).flatten(1)
        derivatives[:, SIGMA] = 2 * intensity / free[:, SIGMA, None] * spot * (radius2 - 2)
        derivatives[:, INTENSITY] = 2 * root_intensity * spot
        derivatives[:, OFFSET] = 2 * root_offset
        return root_offset.square() + intensity * spot, derivatives


class Method(Protocol):
    """What a fit minimizes, in the form of a weighted sum of squared residuals.

    Attributes
    ----------
    in_photons
        Whether the pixels have to be photons; the plugin's squares are of A/D counts, chi2 included.
    first_step
        Radius of the first trust region over the scaled length of the starting point.
    """

    in_photons: ClassVar[bool]
    first_step: ClassVar[float]

    def weights(self, pixels: Tensor) -> Tensor:
        """Weights (n, pixels) that do not change during the fit."""

    def misfit(self, pixels: Tensor, model: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Give the misfit (n,) and the roots (n, pixels) of the weights of its squared residuals here."""


class LeastSquares:
    """Least squares with equal weights."""

    in_photons: ClassVar[bool] = False
    first_step: ClassVar[float] = 100.0

    def weights(self, pixels: Tensor) -> Tensor:  # noqa: D102
        return torch.ones_like(pixels)

    def misfit(self, pixels: Tensor, model: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        return (weights * (pixels - model).square()).sum(1), weights.sqrt()


class WeightedLeastSquares(LeastSquares):
    """Least squares with the weight 1/value, which is 1/variance as far as a pixel's variance is its value.

    As in the plugin, no weight is more than 1000 times that of the brightest pixel.
    """

    def weights(self, pixels: Tensor) -> Tensor:  # noqa: D102
        return torch.minimum(1 / pixels, WEIGHT_RANGE / pixels.amax(1, keepdim=True))


class MaximumLikelihood:
    """Poisson deviance, whose minimum has the maximum likelihood, by Fisher scoring.

    The first step is short: a full one, from a start wider than the spot, often ends in a spot so much
    narrower than a pixel that nothing leads out again.
    """

    in_photons: ClassVar[bool] = True
    first_step: ClassVar[float] = 0.1

    def weights(self, pixels: Tensor) -> Tensor:  # noqa: D102
        return torch.ones_like(pixels)

    def misfit(self, pixels: Tensor, model: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        model = model.clamp(min=DIMMEST)
        deviance = 2 * (model - pixels + torch.xlogy(pixels, pixels / model)).sum(1)
        return deviance.clamp(min=0), model.rsqrt()


@dataclass(frozen=True)
class Fitter:
    """One molecule per candidate, fitted with the plugin's starting point and weights.

    Parameters
    ----------
    psf
        The model of a molecule.
    method
        What it minimizes.
    sigma
        Starting sigma [px].
    radius
        The square of pixels reaches this far from the candidate [px].
    """

    psf: Psf
    method: Method
    sigma: float
    radius: int

    def __call__(self, pixels: Tensor, base: Tensor | None = None) -> "Fits":
        """Fit spots.

        Parameters
        ----------
        pixels
            (n, (2·radius + 1)²) float64, y slowest.
        base
            Like `pixels`: a known background that the model stands on; the fitted offset comes on top.
        """
        above = pixels if base is None else pixels - base
        low, high = above.aminmax(dim=1)
        start = pixels.new_zeros(len(pixels), 5)
        start[:, SIGMA] = self.sigma
        start[:, INTENSITY] = (high - low) * (2 * math.pi * self.sigma**2)
        start[:, OFFSET] = low
        free, model = minimize(self.psf, self.method, self.psf.free(start), pixels, base)
        residual = pixels - model
        return Fits(
            parameters=self.psf.physical(free),
            model=model,
            residual_spread=(residual - residual.mean(1, keepdim=True)).square_().mean(1).sqrt(),
            chi2=(self.method.weights(pixels) * residual.square_()).sum(1),
        )


@dataclass(frozen=True)
class Fits:
    """What came out, per spot.

    Parameters
    ----------
    parameters
        (n, 5) x, y, sigma [px], intensity and offset in the unit of the pixels.
    model
        (n, side²) the fitted spot.
    residual_spread
        (n,) standard deviation of pixels minus model.
    chi2
        (n,) weighted sum of squared residuals.
    """

    parameters: Tensor
    model: Tensor
    residual_spread: Tensor
    chi2: Tensor


def minimize(
    psf: Psf, method: Method, start: Tensor, pixels: Tensor, base: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Minimize the misfit over the free parameters of each spot.

    Parameters
    ----------
    psf, method
        What is fitted and how its misfit is measured.
    start
        (n, 5) float64 free parameters to start from.
    pixels
        (n, side²) float64, y slowest.
    base
        (n, side²) known background.

    Returns
    -------
    tuple
        (n, 5) free parameters, not a number where the misfit was not, and the model (n, side²) there.
    """
    on_cpu = pixels.device.type == "cpu"
    return (minimize_one_by_one if on_cpu else minimize_together)(psf, method, start, pixels, base)


def minimize_one_by_one(
    psf: Psf,
    method: Method,
    start: Tensor,
    pixels: Tensor,
    base: Tensor | None = None,
    *,
    emitters: int = 1,
    shared: bool = False,
    bounds: tuple[float, float] = (0.0, math.inf),
) -> tuple[Tensor, Tensor]:
    """Do as `minimize`, on the CPU; this one can fit several molecules a spot, as `kernels.fit_spots` says."""
    points, models = np.empty(start.shape), np.empty(pixels.shape)
    before, data, weights = (t.contiguous().numpy() for t in (start, pixels, method.weights(pixels)))
    below = np.empty((0, pixels.shape[1])) if base is None else base.contiguous().numpy()
    stops = np.array([method.first_step, TOLERANCE, POINT_TOLERANCE, MAX_STEPS, MAX_TRIALS])

    def fit(some: slice) -> None:
        kernels.fit_spots(
            psf.kind,
            psf.calibration,
            method.in_photons,
            emitters,
            shared,
            np.array(bounds),
            stops,
            before[some],
            data[some],
            below[some],
            weights[some],
            points[some],
            models[some],
        )

    in_threads(fit, len(data), SPOTS_AT_ONCE["cpu"])
    return torch.from_numpy(points), torch.from_numpy(models)


def minimize_together(
    psf: Psf, method: Method, start: Tensor, pixels: Tensor, base: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Do as `minimize`, on any device, many spots at a time."""
    radius = math.isqrt(pixels.shape[1]) // 2
    grid = torch.arange(-radius, radius + 1, dtype=torch.float64, device=pixels.device)
    if base is None:
        base = torch.zeros_like(pixels)
    result = torch.full_like(start, torch.nan)
    size = SPOTS_AT_ONCE["gpu"]
    chunks = torch.arange(len(start), device=start.device).split(size)
    search = None
    for number, chunk in enumerate(chunks):
        fresh = _Search.begin(psf, method, grid, chunk, start[chunk], pixels[chunk], base[chunk])
        search = fresh if search is None else search.join(fresh)
        # A few spots take many steps: they go along with the next chunk.
        few = size // 8 if number < len(chunks) - 1 else 0
        while True:
            result[search.index[search.done]] = search.point[search.done]
            left = len(search.index) - int((search.done | search.failed).sum())
            if left <= 0.9 * len(search.index):
                search = search.select(~(search.done | search.failed))
            if left <= few:
                break
            search.step(psf, method, grid)
    model = torch.cat([psf(some, grid)[0] for some in result.split(size)]) if len(result) else pixels
    return result, model + base


def _linearize(
    psf: Psf, method: Method, point: Tensor, pixels: Tensor, base: Tensor, weights: Tensor, grid: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Misfit (n,), and the triangle (n, 5, 5) and target (n, 5) of the linear problem at `point`."""
    model, derivatives = psf(point, grid)
    model = model + base
    misfit, roots = method.misfit(pixels, model, weights)
    columns = torch.cat([derivatives, (pixels - model)[:, None]], 1) * roots[:, None]
    return misfit, *_triangulate(columns)


def _triangulate(columns: Tensor) -> tuple[Tensor, Tensor]:
    """Bring |target - matrix·step| to triangular form by the modified Gram-Schmidt process.

    Normal equations would lose the digits that tell a spot narrower than a pixel where to go. The target goes
    along as one more column, which keeps the solution backward stable (Björck, BIT 7, 1 (1967)).

    Parameters
    ----------
    columns
        (n, 6, m): the matrix's five columns and the target; overwritten.

    Returns
    -------
    tuple
        Upper triangle (n, 5, 5) and target (n, 5).
    """
    rows = columns.new_zeros(len(columns), 5, 6)
    for k in range(5):
        length = columns[:, k].square().sum(1).sqrt()
        unit = columns[:, k] / torch.where(length == 0, 1.0, length)[:, None]
        rows[:, k, k] = length
        rest = columns[:, k + 1 :]
        rows[:, k, k + 1 :] = share = torch.bmm(rest, unit[:, :, None])[:, :, 0]
        rest -= share[:, :, None] * unit[:, None]
    return rows[:, :, :5], rows[:, :, 5]


def _back_substitute(triangle: Tensor, target: Tensor) -> Tensor:
    """Solve; what the pixels do not depend on, such as where in its pixel a very narrow spot is, stays."""
    solution = torch.zeros_like(target)
    for k in reversed(range(5)):
        diagonal = triangle[:, k, k]
        value = target[:, k] - (triangle[:, k, k + 1 :] * solution[:, k + 1 :]).sum(1)
        solution[:, k] = torch.where(diagonal == 0, 0.0, value / diagonal)
    return solution


@dataclass
class _Search:
    """The state of each spot's search.

    Parameters
    ----------
    index
        Number of the spot.
    pixels, base, weights
        What is fitted.
    point, misfit, triangle, target
        Where it stands, and the linear problem there.
    scale
        Largest length of each parameter's derivatives so far.
    reach
        Radius of the trust region, in scaled parameters.
    damping
        Levenberg-Marquardt parameter.
    length
        Length of the point, in scaled parameters.
    trials, steps
        Points tried, and those of them that were better.
    done, failed
        Whether it has converged, or cannot.
    """

    index: Tensor
    pixels: Tensor
    base: Tensor
    weights: Tensor
    point: Tensor
    misfit: Tensor
    triangle: Tensor
    target: Tensor
    scale: Tensor
    reach: Tensor
    damping: Tensor
    length: Tensor
    trials: Tensor
    steps: Tensor
    done: Tensor
    failed: Tensor

    @classmethod
    def begin(
        cls,
        psf: Psf,
        method: Method,
        grid: Tensor,
        index: Tensor,
        start: Tensor,
        pixels: Tensor,
        base: Tensor,
    ) -> "_Search":
        weights = method.weights(pixels)
        misfit, triangle, target = _linearize(psf, method, start, pixels, base, weights, grid)
        scale = _lengths(triangle)
        scale = torch.where(scale == 0, 1.0, scale)
        length = (scale * start).norm(dim=1)
        failed = ~misfit.isfinite()
        return cls(
            index=index,
            pixels=pixels,
            base=base,
            weights=weights,
            point=start,
            misfit=misfit,
            triangle=triangle,
            target=target,
            scale=scale,
            reach=method.first_step * torch.where(length == 0, 1.0, length),
            damping=torch.zeros_like(misfit),
            length=length,
            trials=torch.zeros_like(index),
            steps=torch.zeros_like(index),
            done=~failed & _stationary(misfit, triangle, target),
            failed=failed,
        )

    def select(self, mask: Tensor) -> "_Search":
        return _Search(**{name: value[mask] for name, value in vars(self).items()})

    def join(self, other: "_Search") -> "_Search":
        return _Search(**{name: torch.cat([value, vars(other)[name]]) for name, value in vars(self).items()})

    def step(self, psf: Psf, method: Method, grid: Tensor) -> None:
        """Try one point for each spot, go there if it is better, and change the trust region."""
        step = self._propose()
        point = self.point + step
        misfit, triangle, target = _linearize(
            psf, method, point, self.pixels, self.base, self.weights, grid
        )
        before, first = self.misfit, self.steps == 0
        length = (self.scale * step).norm(dim=1)
        self.reach = torch.where(first, torch.minimum(self.reach, length), self.reach)
        actual = torch.where(0.01 * misfit < before, 1 - misfit / before, -1.0)
        linear = torch.bmm(self.triangle, step[:, :, None]).square().sum((1, 2)) / before
        penalty = self.damping * length.square() / before
        predicted, slope = linear + 2 * penalty, -(linear + penalty)
        ratio = torch.where(predicted == 0, 0.0, actual / predicted)

        shrink = torch.where(actual < 0, 0.5 * slope / (slope + 0.5 * actual), 0.5)
        shrink = torch.where((0.01 * misfit >= before) | (shrink < 0.1), 0.1, shrink)
        poor = ratio <= 0.25
        good = ~poor & ((self.damping == 0) | (ratio >= 0.75))
        shrunk = shrink * torch.minimum(self.reach, 10 * length)
        self.reach = torch.where(poor, shrunk, torch.where(good, 2 * length, self.reach))
        self.damping = self.damping * torch.where(poor, 1 / shrink, torch.where(good, 0.5, 1.0))

        better = ~self.done & (ratio >= 1e-4)
        self.trials += 1
        self.steps += better
        self.length = torch.where(better, (self.scale * point).norm(dim=1), self.length)
        size = torch.maximum(point.abs(), self.point.abs()).clamp(min=1)
        still = ((point - self.point).abs() <= POINT_TOLERANCE * size).all(1)
        settled = (actual.abs() <= TOLERANCE) & (predicted <= TOLERANCE) & (ratio <= 2)
        self.done |= better & (still | (self.steps >= MAX_STEPS))
        self.done |= settled | (self.reach <= TOLERANCE * self.length)

        self.point = torch.where(better[:, None], point, self.point)
        self.misfit = torch.where(better, misfit, self.misfit)
        self.triangle = torch.where(better[:, None, None], triangle, self.triangle)
        self.target = torch.where(better[:, None], target, self.target)
        self.done |= better & _stationary(self.misfit, self.triangle, self.target)
        self.scale = torch.maximum(self.scale, _lengths(self.triangle))
        self.failed = ~self.done & ((self.trials >= MAX_TRIALS) | self.reach.isnan())

    def _propose(self) -> Tensor:
        """Minimize the quadratic model within the trust region."""
        step = _back_substitute(self.triangle, self.target)
        free_length = (self.scale * step).norm(dim=1)
        beyond = free_length - self.reach > 0.1 * self.reach
        self.damping = torch.where(beyond, self.damping, 0.0)
        if bool(beyond.any()):
            self.damping[beyond], step[beyond] = _damped_step(
                self.triangle[beyond],
                self.target[beyond],
                self.scale[beyond],
                self.reach[beyond],
                self.damping[beyond],
                free_length[beyond],
            )
        return step


def _stationary(misfit: Tensor, triangle: Tensor, target: Tensor) -> Tensor:
    """Whether the residual is at right angles to all derivatives."""
    descent = torch.bmm(target[:, None], triangle)[:, 0]
    cosines = descent.abs() / (_lengths(triangle) * misfit.sqrt()[:, None])
    return torch.where(cosines.isnan(), 0.0, cosines).amax(1) <= TOLERANCE


def _damped_step(
    triangle: Tensor, target: Tensor, scale: Tensor, reach: Tensor, damping: Tensor, free_length: Tensor
) -> tuple[Tensor, Tensor]:
    """Find the damping whose step ends at the trust region's border, within a tenth of its radius.

    Newton's method on the inverse of the step's length, between a lower and an upper bound (Moré, section 5).
    """
    slope = (torch.bmm(target[:, None], triangle)[:, 0] / scale).norm(dim=1)
    low, high = torch.zeros_like(reach), slope / reach
    damping = torch.minimum(damping, high)
    damping = torch.where(damping == 0, slope / free_length, damping)
    excess = free_length - reach
    found = torch.zeros_like(reach, dtype=torch.bool)
    problem = torch.cat([triangle, target[:, :, None]], 2).transpose(1, 2)
    for _ in range(11):
        damping = torch.where(damping == 0, (0.001 * high).clamp(min=_TINY), damping)
        penalty = torch.diag_embed(damping.sqrt()[:, None] * scale)
        columns = torch.cat([problem, torch.cat([penalty, torch.zeros_like(penalty[:, :1])], 1)], 2)
        damped, reduced = _triangulate(columns)
        step = _back_substitute(damped, reduced)
        length = (scale * step).norm(dim=1)
        previous, excess = excess, length - reach
        found = found | (excess.abs() <= 0.1 * reach) | ((low == 0) & (excess <= previous) & (previous < 0))
        if bool(found.all()):
            break
        direction = scale.square() * step / length[:, None]
        change = torch.linalg.solve_triangular(damped.transpose(1, 2), direction[:, :, None], upper=False)
        correction = excess / (reach * change.square().sum((1, 2)))
        low = torch.where(excess > 0, torch.maximum(low, damping), low)
        high = torch.where(excess < 0, torch.minimum(high, damping), high)
        damping = torch.where(found, damping, torch.maximum(low, damping + correction))
    return damping, step


def _lengths(triangle: Tensor) -> Tensor:
    return triangle.square().sum(1).sqrt()


def _outer(by_row: Tensor, by_column: Tensor) -> Tensor:
    return (by_row[:, :, None] * by_column[:, None, :]).flatten(1)
