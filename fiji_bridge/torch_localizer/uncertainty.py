"""How uncertain a fitted position is [nm], from the columns of its fit."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fiji_bridge.camera import Camera

Columns = Mapping[str, Tensor]


def thompson(columns: Columns, camera: Camera, likelihood: bool) -> Tensor | None:
    """Thompson et al., Biophys. J. 82, 2775 (2002), equation 17 with 8π, for any method of fitting.

    This is the plugin's: of a camera with EM gain, the excess noise doubles only the first term's sigma².
    """
    variance = _psf_variance(columns)
    if variance is None:
        return None
    intensity, spread = columns["intensity [photon]"], columns["bkgstd [photon]"]
    pixel = camera.pixel_size_nm or math.nan
    shot = (camera.excess_noise * variance + pixel**2 / 12) / intensity
    background = 8 * math.pi * variance.square() * spread.square() / (pixel * intensity).square()
    return (shot + background).sqrt()


def mortensen(columns: Columns, camera: Camera, likelihood: bool) -> Tensor | None:
    """Mortensen et al., Nat. Methods 7, 377 (2010), equation 6 for least squares.

    For maximum likelihood it is the closed form of its equation 5 by Rieger and Stallinga, ChemPhysChem 15,
    664 (2014). Excess noise doubles the variance, that of the background with it, which is measured so.
    """
    variance = _psf_variance(columns)
    if variance is None:
        return None
    intensity, spread = columns["intensity [photon]"], columns["bkgstd [photon]"]
    pixel = camera.pixel_size_nm or math.nan
    widened = variance + pixel**2 / 12
    background = spread.square() / camera.excess_noise
    tau = 2 * math.pi * widened * background / (intensity * pixel**2)
    factor = 1 + 4 * tau + (2 * tau / (1 + 4 * tau)).sqrt() if likelihood else 16 / 9 + 4 * tau
    return (camera.excess_noise * widened / intensity * factor).sqrt()


def cramer_rao(columns: Columns, camera: Camera, likelihood: bool) -> Tensor | None:
    """Root mean square of the bounds along x and y; excess noise doubles the variance."""
    if "uncertainty_x [nm]" not in columns:
        return None
    bounds = torch.stack([columns["uncertainty_x [nm]"], columns["uncertainty_y [nm]"]])
    return (camera.excess_noise * bounds.square().mean(0)).sqrt()


def _psf_variance(columns: Columns) -> Tensor | None:
    if "sigma [nm]" in columns:
        return columns["sigma [nm]"].square()
    if "sigma1 [nm]" in columns:
        return columns["sigma1 [nm]"] * columns["sigma2 [nm]"]
    return None


UNCERTAINTIES: dict[str, Callable[[Columns, Camera, bool], Tensor | None]] = {
    "thompson": thompson,
    "mortensen": mortensen,
    "crlb": cramer_rao,
}
