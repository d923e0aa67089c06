"""Fits of one molecule to the pixels around a candidate, for thousands of candidates at once.

The minimizer is the Levenberg-Marquardt algorithm of Moré, "The Levenberg-Marquardt algorithm:
implementation and theory", Lecture Notes in Mathematics 630, 105 (1978), with the trust region, scaling and
stopping rules of MINPACK, which are also the plugin's. On a GPU each step takes every unfinished candidate
one trial further; on a CPU `kernels` does one candidate after another.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol, cast

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
SELECTION_STEPS = 50
"""Of a fit that only has to tell whether there is a molecule more; the plugin's take as many."""

SPOTS_AT_ONCE = {"cpu": 2**9, "gpu": 2**16}
"""Spots that a thread of the CPU takes at a time, and a GPU's caches hold."""

WEIGHT_RANGE = 1000.0
DIMMEST = 1e-6
"""Light of a pixel [photons] that counts as none."""

FAINTEST = 0.1
"""Part of a spot's mean that an offset starts from at least."""

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

    def start(self, low: Tensor, high: Tensor, sigma: float) -> Tensor:
        """Guess physical parameters (n, 5) from the darkest and the brightest pixels (n,) of spots."""

    def describe(self, physical: Tensor) -> dict[str, Tensor]:
        """Name what the parameters after x and y say."""

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

    def start(self, low: Tensor, high: Tensor, sigma: float) -> Tensor:  # noqa: D102
        return _symmetric_start(low, high, sigma)

    def describe(self, physical: Tensor) -> dict[str, Tensor]:  # noqa: D102
        return dict(zip(("sigma", "intensity", "offset"), physical[:, SIGMA:].unbind(1), strict=True))

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

    def start(self, low: Tensor, high: Tensor, sigma: float) -> Tensor:  # noqa: D102
        return _symmetric_start(low, high, sigma)

    def describe(self, physical: Tensor) -> dict[str, Tensor]:  # noqa: D102
        return dict(zip(("sigma", "intensity", "offset"), physical[:, SIGMA:].unbind(1), strict=True))

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


class Astigmatic:
    """Elliptical Gaussian sampled at pixel centres, whose widths are those of a calibrated lens at z.

    The third parameter is z [nm]; free are x, y, z, √intensity and √offset.

    Parameters
    ----------
    calibration
        See `read_calibration`.
    """

    kind: ClassVar = kernels.ASTIGMATIC

    def __init__(self, calibration: np.ndarray) -> None:
        self.calibration = calibration

    def free(self, physical: Tensor) -> Tensor:  # noqa: D102
        return torch.cat([physical[:, :INTENSITY], physical[:, INTENSITY:].abs().sqrt()], 1)

    def physical(self, free: Tensor) -> Tensor:  # noqa: D102
        return torch.cat([free[:, :INTENSITY], free[:, INTENSITY:].square()], 1)

    def start(self, low: Tensor, high: Tensor, sigma: float) -> Tensor:  # noqa: D102
        zero = torch.zeros_like(low)
        sigma1, sigma2 = self._widths(zero)
        return torch.stack([zero, zero, zero, (high - low) * (2 * math.pi * sigma1 * sigma2), low], 1)

    def describe(self, physical: Tensor) -> dict[str, Tensor]:  # noqa: D102
        z, intensity, offset = physical[:, SIGMA:].unbind(1)
        sigma1, sigma2 = self._widths(z)
        return {"z": z, "sigma1": sigma1, "sigma2": sigma2, "intensity": intensity, "offset": offset}

    def _widths(self, z: Tensor) -> list[Tensor]:
        return [self._squared_width(axis, z)[0].sqrt() for axis in (0, 1)]

    def _squared_width(self, axis: int, z: Tensor) -> tuple[Tensor, Tensor]:
        """Squared width [px²] of an axis, and its derivative by z."""
        w0, a, b, c, d = self.calibration[2 + 5 * axis : 7 + 5 * axis].tolist()
        if self.calibration[0] == 0:
            width = b + a * (z - c).square() + d * (z - c).pow(3)
            return width.square(), 2 * width * (2 * a * (z - c) + 3 * d * (z - c).square())
        u = (z - c) / d
        slope = (2 * u + 3 * a * u.square() + 4 * b * u.pow(3)) / d
        return w0**2 / 4 * (1 + u.square() + a * u.pow(3) + b * u.pow(4)), w0**2 / 4 * slope

    def __call__(self, free: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        x, y, z, root, root_offset = (free[:, k, None, None] for k in range(5))
        cosine, sine = math.cos(self.calibration[1]), math.sin(self.calibration[1])
        dx, dy = grid - x, grid[:, None] - y
        (first, first_slope), (second, second_slope) = (self._squared_width(axis, z) for axis in (0, 1))
        u, v = (dx * cosine - dy * sine) / first, (dx * sine + dy * cosine) / second
        peak = 0.5 / (math.pi * (first * second).sqrt())
        share = peak * torch.exp(-0.5 * (u.square() * first + v.square() * second))
        spot = root.square() * share
        broader = u.square() * first_slope + v.square() * second_slope
        derivatives = torch.stack(
            [
                spot * (u * cosine + v * sine),
                spot * (v * cosine - u * sine),
                0.5 * spot * (broader - first_slope / first - second_slope / second),
                2 * root * share,
                (2 * root_offset).expand_as(spot),
            ],
            1,
        )
        return (root_offset.square() + spot).flatten(1), derivatives.flatten(2)


def _symmetric_start(low: Tensor, high: Tensor, sigma: float) -> Tensor:
    zero = torch.zeros_like(low)
    return torch.stack([zero, zero, zero + sigma, (high - low) * (2 * math.pi * sigma**2), low], 1)


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
    fixed
        Whether sigma is known and stays as it is.
    """

    psf: Psf
    method: Method
    sigma: float
    radius: int
    fixed: bool = False

    def __call__(
        self,
        pixels: Tensor,
        at: Tensor | None = None,
        noise: "SpotNoise | None" = None,
        *,
        limits: tuple[float, float] = (0.0, math.inf),
    ) -> "Fits":
        """Fit spots.

        Parameters
        ----------
        pixels
            (n, side²) float64, y slowest.
        at
            (n, 2) x and y to start from, from the central pixel's centre [px]; left out, the centre.
        noise
            What is known of the pixels.
        limits
            Between which the intensity is kept.
        """
        noise = noise or SpotNoise()
        above = pixels if noise.background is None else pixels - noise.background
        start = self.psf.start(*above.aminmax(dim=1), self.sigma)
        if self.method.in_photons or noise.background is not None or noise.variance is not None:
            # From no offset at all, whose root has no slope, no step leads away.
            start[:, OFFSET] = torch.maximum(start[:, OFFSET], FAINTEST * above.mean(1).clamp(min=DIMMEST))
        if at is not None:
            start[:, :SIGMA] = at
        return self._fit(self.psf.free(start), pixels, noise, limits=limits)

    def with_one_more(
        self,
        before: "Fits",
        pixels: Tensor,
        noise: "SpotNoise",
        *,
        emitters: int,
        shared: bool,
        limits: tuple[float, float],
    ) -> "Fits":
        """Fit a molecule more than `before` has, which starts where the fit leaves most light.

        Parameters
        ----------
        before
            The fits of ``emitters - 1`` molecules.
        pixels, noise, limits
            As for a single molecule; on the CPU.
        emitters, shared
            How many molecules, and whether they have one intensity.
        """
        residual = pixels - before.model
        side = math.isqrt(pixels.shape[1])
        low, high = residual.aminmax(dim=1)
        new = self.psf.start(low, high, self.sigma)
        brightest = residual.argmax(1)
        new[:, X], new[:, Y] = brightest % side - side // 2, brightest // side - side // 2
        old = before.parameters.reshape(len(pixels), emitters - 1, 5).clone()
        # Fits of too few molecules are too wide and too bright.
        old[:, :, SIGMA] = self.psf.start(low, high, self.sigma)[:, None, SIGMA]
        share = old[:, :, INTENSITY].sum(1) / emitters
        molecules = torch.cat([old, new[:, None]], 1)
        molecules[:, :, INTENSITY] = share[:, None]
        free = self.psf.free(molecules.flatten(0, 1)).reshape(len(pixels), emitters, 5)
        offset = free[:, :1, OFFSET]
        if shared:
            parts = [free[:, :, :INTENSITY].flatten(1), free[:, :1, INTENSITY], offset]
        else:
            parts = [free[:, :, :OFFSET].flatten(1), offset]
        return self._fit(
            torch.cat(parts, 1),
            pixels,
            noise,
            emitters=emitters,
            shared=shared,
            limits=limits,
            steps=SELECTION_STEPS,
        )

    def finish(
        self,
        fits: "Fits",
        pixels: Tensor,
        noise: "SpotNoise",
        *,
        emitters: int,
        shared: bool,
        limits: tuple[float, float],
    ) -> "Fits":
        """Go on with fits of several molecules, as given to `with_one_more`, until they stand still."""
        return self._fit(
            fits.free, pixels, noise, emitters=emitters, shared=shared, limits=limits, steps=MAX_STEPS
        )

    def _fit(
        self,
        start: Tensor,
        pixels: Tensor,
        noise: "SpotNoise",
        *,
        emitters: int = 1,
        shared: bool = False,
        limits: tuple[float, float] = (0.0, math.inf),
        steps: int = MAX_STEPS,
    ) -> "Fits":
        # Read noise of variance v is as good as Poisson noise of v photons more, in the pixels and the model
        # (Huang et al., Nat. Methods 10, 653 (2013)); squares have it in their weights, of at most 1/v.
        weights = self.method.weights(
            pixels if noise.variance is None else pixels.clamp(min=0) + noise.variance
        )
        base, data = noise.background, pixels
        if self.method.in_photons and noise.variance is not None:
            data = (pixels + noise.variance).clamp(min=0)
            base = noise.variance if base is None else base + noise.variance
        if pixels.device.type == "cpu":
            bounds = math.sqrt(limits[0]), math.sqrt(limits[1])
            free, model, misfit = minimize_one_by_one(
                self.psf, self.method, start, data, weights, base,
                emitters=emitters, shared=shared, bounds=(*bounds, float(self.fixed)), steps=steps,
            )  # fmt: skip
        else:
            free, model, misfit = minimize_together(
                self.psf, self.method, start, data, weights, base, fixed=self.fixed
            )
        residual = data - model
        parameters = self.psf.physical(_molecules(free, emitters, shared).flatten(0, 1))
        return Fits(
            free=free,
            parameters=parameters if emitters == 1 else parameters.reshape(len(free), emitters, 5),
            model=pixels - residual,
            misfit=misfit,
            residual_spread=(residual - residual.mean(1, keepdim=True)).square_().mean(1).sqrt(),
            chi2=(weights * residual.square_()).sum(1),
        )


@dataclass(frozen=True)
class SpotNoise:
    """What is known of the pixels of spots.

    Parameters
    ----------
    background
        (n, side²) light that does not come from the molecules; the fitted offset comes on top.
    variance
        (n, side²) of the noise besides that of the light.
    """

    background: Tensor | None = None
    variance: Tensor | None = None

    def cpu(self) -> "SpotNoise":
        """Give the same on the CPU."""
        return self._each(lambda values: values.cpu())

    def __getitem__(self, index: Tensor | slice) -> "SpotNoise":
        return self._each(lambda values: values[index])

    def scaled(self, unit: float) -> "SpotNoise":
        """Give the same in pixels `unit` times as large."""
        return SpotNoise(
            None if self.background is None else self.background * unit,
            None if self.variance is None else self.variance * unit**2,
        )

    def _each(self, change: Callable[[Tensor], Tensor]) -> "SpotNoise":
        return SpotNoise(*(None if v is None else change(v) for v in (self.background, self.variance)))


@dataclass(frozen=True)
class Fits:
    """What came out, per spot.

    Parameters
    ----------
    free
        (n, p) free parameters, as in `kernels.fit_spots`.
    parameters
        (n, 5) physical parameters, (n, m, 5) if there are several molecules a spot.
    model
        (n, side²) the fitted spot.
    misfit
        (n,) deviance or sum of squares; infinite where the fit failed.
    residual_spread
        (n,) standard deviation of pixels minus model.
    chi2
        (n,) weighted sum of squared residuals.
    """

    free: Tensor
    parameters: Tensor
    model: Tensor
    misfit: Tensor
    residual_spread: Tensor
    chi2: Tensor

    def __getitem__(self, some: Tensor) -> "Fits":
        return Fits(**{name: values[some] for name, values in vars(self).items()})


def _molecules(free: Tensor, emitters: int, shared: bool) -> Tensor:
    """Give each molecule's own free parameters, (n, m, 5)."""
    each = (len(free), emitters, 3 if shared else 4)
    own = free[:, : -2 if shared else -1].reshape(each)
    common = free[:, -2:] if shared else free[:, -1:]
    return torch.cat([own, common[:, None].expand(-1, emitters, -1)], 2)


def cramer_rao_bounds(
    psf: Psf,
    free: Tensor,
    photons: float,
    noise: SpotNoise,
    *,
    side: int,
    emitters: int = 1,
    shared: bool = False,
    fixed: bool = False,
) -> dict[str, Tensor]:
    """Give the Cramér-Rao bounds of unbiased estimates from Poisson noise at the fitted parameters.

    Ober et al., Biophys. J. 86, 1185 (2004), equations 5 and 6; all parameters of the fit are unknown.

    Parameters
    ----------
    psf, free, emitters, shared, fixed
        What was fitted, whether with a known width, and the free parameters (n, p) found.
    photons
        Photons that a unit of the pixels stands for.
    noise
        What was known of the pixels, in their unit.
    side
        Of the square of pixels.

    Returns
    -------
    dict
        (n, m) standard deviations ``uncertainty_x`` and so on, m molecules a spot, in the units of
        `Psf.describe`.
    """
    points = free.cpu().clone()
    roots = [p for p in range(points.shape[1] - 1) if p == 3 * emitters or (not shared and p % 4 == 3)]
    points[:, [*roots, -1]] *= math.sqrt(photons)
    points[:, -1] = points[:, -1].abs().clamp(min=math.sqrt(DIMMEST))
    known = noise.cpu().scaled(photons)
    parts = [part for part in (known.background, known.variance) if part is not None]
    base = torch.stack(parts).sum(0).numpy() if parts else np.empty((0, side**2))
    given, variances = points.contiguous().numpy(), np.empty(points.shape)

    def work(some: slice) -> None:
        kernels.cramer_rao(
            psf.kind,
            psf.calibration,
            emitters,
            shared,
            float(fixed),
            side,
            given[some],
            base[some],
            variances[some],
        )

    in_threads(work, len(given), SPOTS_AT_ONCE["cpu"])
    own = _molecules(torch.from_numpy(variances).sqrt(), emitters, shared)
    root = _molecules(points, emitters, shared)[:, :, INTENSITY]
    bounds = {
        "uncertainty_x": own[:, :, X],
        "uncertainty_y": own[:, :, Y],
        "uncertainty_intensity": 2 * root.abs() * own[:, :, INTENSITY] / photons,
    }
    if isinstance(psf, Astigmatic):
        bounds["uncertainty_z"] = own[:, :, SIGMA]
    return {name: values.to(free.device) for name, values in bounds.items()}


def minimize_one_by_one(
    psf: Psf,
    method: Method,
    start: Tensor,
    pixels: Tensor,
    weights: Tensor,
    base: Tensor | None = None,
    *,
    emitters: int = 1,
    shared: bool = False,
    bounds: tuple[float, float, float] = (0.0, math.inf, 0.0),
    steps: int = MAX_STEPS,
) -> tuple[Tensor, Tensor, Tensor]:
    """Minimize the misfit over the free parameters of each spot, on the CPU.

    Parameters
    ----------
    psf, method
        What is fitted and how its misfit is measured.
    start
        (n, p) float64 free parameters to start from.
    pixels, weights
        (n, side²) float64, y slowest, and their weights.
    base
        (n, side²) known background.
    emitters, shared, bounds, steps
        See `kernels.fit_spots`; `steps` is the number of accepted points at most.

    Returns
    -------
    tuple
        (n, p) free parameters, not a number where the misfit was not, and the model (n, side²) and the
        misfit (n,) there, the latter infinite where the fit failed.
    """
    points, models, misfits = np.empty(start.shape), np.empty(pixels.shape), np.empty(len(pixels))
    before, data, known = (t.contiguous().numpy() for t in (start, pixels, weights))
    below = np.empty((0, pixels.shape[1])) if base is None else base.contiguous().numpy()
    stops = np.array([method.first_step, TOLERANCE, POINT_TOLERANCE, steps, MAX_TRIALS])

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
            known[some],
            points[some],
            models[some],
            misfits[some],
        )

    in_threads(fit, len(data), max(1, SPOTS_AT_ONCE["cpu"] // emitters**2))
    return torch.from_numpy(points), torch.from_numpy(models), torch.from_numpy(misfits)


def minimize_together(
    psf: Psf,
    method: Method,
    start: Tensor,
    pixels: Tensor,
    weights: Tensor,
    base: Tensor | None = None,
    *,
    fixed: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Do as `minimize_one_by_one`, on any device, many spots of one molecule at a time."""
    side = math.isqrt(pixels.shape[1])
    grid = torch.arange(side, dtype=torch.float64, device=pixels.device) - side // 2
    if base is None:
        base = torch.zeros_like(pixels)
    if fixed:
        psf = cast(Psf, _OfKnownWidth(psf))
    result = torch.full_like(start, torch.nan)
    size = SPOTS_AT_ONCE["gpu"]
    chunks = torch.arange(len(start), device=start.device).split(size)
    search = None
    for number, chunk in enumerate(chunks):
        some = (start[chunk], pixels[chunk], weights[chunk], base[chunk])
        fresh = _Search.begin(psf, method, grid, chunk, *some)
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
    model = model + base
    misfit = method.misfit(pixels, model, weights)[0]
    return result, model, torch.where(result[:, 0].isnan(), torch.inf, misfit)


class _OfKnownWidth:
    """A point spread function on whose width nothing depends."""

    def __init__(self, psf: Psf) -> None:
        self.psf = psf

    def __call__(self, free: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
        model, derivatives = self.psf(free, grid)
        derivatives[:, SIGMA] = 0
        return model, derivatives


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
        weights: Tensor,
        base: Tensor,
    ) -> "_Search":
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
        misfit, triangle, target = _linearize(psf, method, point, self.pixels, self.base, self.weights, grid)
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
