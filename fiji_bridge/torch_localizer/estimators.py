"""Estimators: from the pixels around a candidate to molecules."""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from fiji_bridge.torch_localizer.fitting import OFFSET, Fits, Fitter, SpotNoise, cramer_rao_bounds


@dataclass(frozen=True)
class Spots:
    """What estimators are given.

    Parameters
    ----------
    pixels
        (n, side²) float64, y slowest.
    at
        (n, 2) x and y of the candidate from the central pixel's centre [px].
    photons
        Photons that a unit of the pixels stands for.
    noise
        Known background and variance of the pixels.
    """

    pixels: Tensor
    at: Tensor
    photons: float
    noise: SpotNoise


@dataclass(frozen=True)
class Molecules:
    """What they give.

    Parameters
    ----------
    spot
        (m,) int64, number of the spot that each molecule is in.
    columns
        (m,) float64 each, by the table's names without units: positions from the central pixel's centre and
        widths in pixels, intensities in the pixels' unit, z in nm.
    """

    spot: Tensor
    columns: dict[str, Tensor]


class Estimator(Protocol):
    """What an estimator is.

    Attributes
    ----------
    radius
        The square of pixels that it needs reaches this far from the candidate [px].
    in_photons
        Whether the pixels have to be photons, or A/D counts.
    """

    @property
    def radius(self) -> int: ...  # noqa: D102

    @property
    def in_photons(self) -> bool: ...  # noqa: D102

    def __call__(self, spots: Spots, *, bounds: bool = False) -> Molecules:
        """Estimate; with `bounds` also the Cramér-Rao bounds of the parameters, where the estimator has any.

        Bounds are standard deviations in columns named ``uncertainty_`` and the parameter.
        """


@dataclass(frozen=True)
class NoEstimator:
    """The candidates as they are."""

    radius: int = 0
    in_photons: bool = False

    def __call__(self, spots: Spots, *, bounds: bool = False) -> Molecules:  # noqa: D102
        return _positions(*spots.at.unbind(1))


@dataclass(frozen=True)
class Centroid:
    """Centre of mass; as in the plugin, the place within its pixel is added before the division."""

    radius: int = 3
    in_photons: bool = False

    def __call__(self, spots: Spots, *, bounds: bool = False) -> Molecules:  # noqa: D102
        mass = _square(spots.pixels)
        reach = torch.arange(-self.radius, self.radius + 1, dtype=mass.dtype, device=mass.device)
        x, y = (mass.sum(dim) @ reach for dim in (1, 2))
        total = mass.sum((1, 2))
        return _positions((spots.at[:, 0] + x) / total, (spots.at[:, 1] + y) / total)


@dataclass(frozen=True)
class RadialSymmetry:
    """Point of least distance to the lines along the gradients: Parthasarathy, Nat. Methods 9, 724 (2012).

    Single precision, and slopes of vertical gradients, are the plugin's.
    """

    radius: int = 5
    in_photons: bool = False

    def __call__(self, spots: Spots, *, bounds: bool = False) -> Molecules:  # noqa: D102
        pixels = _square(spots.pixels)
        along_u = _smooth((pixels[:, :-1, 1:] - pixels[:, 1:, :-1]).float())
        along_v = _smooth((pixels[:, :-1, :-1] - pixels[:, 1:, 1:]).float())
        slope = -(along_u + along_v) / (along_u - along_v)
        steepest = torch.finfo(torch.float32).max / 1e5
        slope = slope.nan_to_num(0.0, steepest, steepest)
        reach = torch.arange(slope.shape[1], dtype=torch.float32, device=slope.device) - self.radius + 0.5
        y, x = reach[:, None], reach[None, :]
        intercept = y - slope * x
        strength = along_u.square() + along_v.square()
        total = strength.sum((1, 2), keepdim=True)
        centre_x, centre_y = ((strength * place).sum((1, 2), keepdim=True) / total for place in (x, y))
        distance = ((x - centre_x).double().square() + (y - centre_y).double().square()).sqrt()
        # Squares of steep slopes overflow, and so have no weight.
        weight = ((strength / distance).float() / (slope.square() + 1)).double()
        slope, intercept = slope.double(), intercept.double()
        sw, smw, smmw, sbw, smbw = (
            (weight * factor).sum((1, 2))
            for factor in (torch.ones_like(slope), slope, slope.square(), intercept, slope * intercept)
        )
        determinant = smw.square() - smmw * sw
        return _positions((smbw * sw - smw * sbw) / determinant, (smbw * smw - smmw * sbw) / determinant)


def _smooth(gradients: Tensor) -> Tensor:
    """Average over 3×3 in ImageJ's arithmetic, on which it hangs whether two gradients cancel."""
    third = torch.tensor(1 / 3, dtype=torch.float32)
    scale = 1 / (3 * float(third))
    for dim, padding in ((2, (1, 1, 0, 0)), (1, (0, 0, 1, 1))):
        shares = pad(gradients[:, None], padding, mode="replicate")[:, 0] * third
        length = gradients.shape[dim]
        parts = [shares.narrow(dim, k, length).double() for k in range(3)]
        total = parts[0] + parts[1] + parts[2]
        gradients = (total * scale).float()
    return gradients


def _square(pixels: Tensor) -> Tensor:
    side = math.isqrt(pixels.shape[1])
    return pixels.reshape(-1, side, side)


def _positions(x: Tensor, y: Tensor) -> Molecules:
    return Molecules(torch.arange(len(x), device=x.device), {"x": x, "y": y})


@dataclass(frozen=True)
class _Fitting:
    """What estimators that fit have in common."""

    fitter: Fitter

    @property
    def radius(self) -> int:
        return self.fitter.radius

    @property
    def in_photons(self) -> bool:
        return self.fitter.method.in_photons


@dataclass(frozen=True)
class GaussianFit(_Fitting):
    """Fit of one molecule a spot; those that leave the square are dropped."""

    def __call__(self, spots: Spots, *, bounds: bool = False) -> Molecules:  # noqa: D102
        fits = self.fitter(spots.pixels, spots.at, spots.noise)
        x, y = fits.parameters[:, :2].unbind(1)
        columns = {"x": x, "y": y, **self.fitter.psf.describe(fits.parameters)}
        columns["bkgstd"] = fits.residual_spread
        if not self.in_photons:
            columns["chi2"] = fits.chi2
        if bounds:
            side = math.isqrt(spots.pixels.shape[1])
            found = cramer_rao_bounds(
                self.fitter.psf, fits.free, spots.photons, spots.noise, side=side, fixed=self.fitter.fixed
            )
            columns |= {name: values[:, 0] for name, values in found.items()}
        limit = math.isqrt(spots.pixels.shape[1]) // 2
        spot = ((x.abs() <= limit) & (y.abs() <= limit)).nonzero()[:, 0]
        return Molecules(spot, {name: values[spot] for name, values in columns.items()})


@dataclass(frozen=True)
class MultiEmitterFit(_Fitting):
    """Fits of one, two and more molecules a spot, as many as the pixels call for.

    A molecule more is taken if the fit gains more than chance would, by an F test of the sums of squares, or
    by the likelihood ratio (Huang et al., Biomed. Opt. Express 2, 1377 (2011)). Each has its own position and
    sigma; the offset is common, and each molecule is told an equal part of it. The tests count three degrees
    of freedom a molecule more. Both are as in the plugin.

    Parameters
    ----------
    fitter
        The fit.
    most
        Molecules a spot, at most.
    p_value
        Chance of a gain as large without another molecule, below which it is taken.
    same_intensity
        Whether all molecules of a spot have one intensity.
    photons
        Between which the intensities are kept, in each fit, so that a spot too bright for one molecule is
        taken for several. In the plugin they only change where a fit starts and what is told of it: it fits
        beyond them and tells the limit, of the elliptical Gaussian as its height, in place of the intensity.
    """

    most: int = 5
    p_value: float = 1e-6
    same_intensity: bool = True
    photons: tuple[float, float] | None = None

    def __call__(self, spots: Spots, *, bounds: bool = False) -> Molecules:  # noqa: D102
        parts = [
            self._molecules(found, emitters, chosen, spots, bounds)
            for emitters, (chosen, found) in enumerate(self.fits(spots), 1)
        ]
        spot = torch.cat([part.spot for part in parts])
        order = spot.argsort(stable=True)
        device = spots.pixels.device
        columns = {
            name: torch.cat([part.columns[name] for part in parts])[order].to(device)
            for name in parts[0].columns
        }
        return Molecules(spot[order].to(device), columns)

    def fits(self, spots: Spots) -> list[tuple[Tensor, Fits]]:
        """Give the spots with one, two and more molecules, as numbers (m,), and their fits."""
        pixels, at = spots.pixels.cpu(), spots.at.cpu()
        noise = spots.noise.cpu()
        low, high = self.photons or (0.0, math.inf)
        limits = low / spots.photons, high / spots.photons
        fits = self.fitter(pixels, at, noise, limits=limits)
        count = torch.ones(len(pixels), dtype=torch.int64)
        best = {1: fits}
        accepted_misfit, last = fits.misfit.clone(), fits
        for emitters in range(2, self.most + 1):
            last = self.fitter.with_one_more(
                last, pixels, noise, emitters=emitters, shared=self.same_intensity, limits=limits
            )
            gain = self.chance(accepted_misfit, last.misfit, count, emitters, pixels.shape[1])
            better = torch.from_numpy(gain) < self.p_value
            count[better] = emitters
            accepted_misfit[better] = last.misfit[better]
            best[emitters] = last
        parts = []
        for n, found in best.items():
            chosen = (count == n).nonzero()[:, 0]
            final = found[chosen]
            if n > 1:
                final = self.fitter.finish(
                    final,
                    pixels[chosen],
                    noise[chosen],
                    emitters=n,
                    shared=self.same_intensity,
                    limits=limits,
                )
            parts.append((chosen, final))
        return parts

    def chance(self, before: Tensor, after: Tensor, fewer: Tensor, emitters: int, pixels: int) -> np.ndarray:
        """Give how likely as large a gain is without the molecules more.

        Parameters
        ----------
        before, after
            (n,) misfits with fewer and with all molecules.
        fewer, emitters
            How many those are: (n,), and all.
        pixels
            Of a spot.
        """
        from scipy.stats import chi2, f

        freedom = 5 + 3 * (emitters - 1)
        added = 3 * (emitters - fewer.numpy())
        gained = (before - after).numpy()
        if self.in_photons:
            return chi2.sf(gained, added)
        if pixels <= freedom:
            return np.ones(len(gained))
        return f.sf(gained / added / (after.numpy() / (pixels - freedom)), added, pixels - freedom)

    def _molecules(self, fits: Fits, emitters: int, chosen: Tensor, spots: Spots, bounds: bool) -> Molecules:
        """Give the molecules of the chosen spots; those in the corners beyond the border are dropped."""
        parts = []
        limits = (
            cramer_rao_bounds(
                self.fitter.psf,
                fits.free,
                spots.photons,
                spots.noise.cpu()[chosen],
                emitters=emitters,
                shared=self.same_intensity and emitters > 1,
                side=math.isqrt(spots.pixels.shape[1]),
                fixed=self.fitter.fixed,
            )
            if bounds
            else {}
        )
        for e in range(emitters):
            parameters = fits.parameters.reshape(len(fits.free), emitters, 5)[:, e]
            columns = {
                "x": parameters[:, 0],
                "y": parameters[:, 1],
                **self.fitter.psf.describe(parameters),
                "offset": parameters[:, OFFSET] / emitters,
                "bkgstd": fits.residual_spread,
            }
            if not self.in_photons:
                columns["chi2"] = fits.chi2
            columns |= {name: values[:, e] for name, values in limits.items()}
            parts.append(columns)
        columns = {name: torch.stack([part[name] for part in parts], 1).flatten() for name in parts[0]}
        spot = chosen.repeat_interleave(emitters)
        x, y = columns["x"].abs(), columns["y"].abs()
        limit, inner = self.radius, self.radius + 0.5 - self.fitter.sigma / 2
        kept = (x <= limit) & (y <= limit)
        if emitters > 1:
            kept &= (x <= inner) | (y <= inner)
        return Molecules(spot[kept], {name: values[kept] for name, values in columns.items()})
