"""ThunderSTORM's default analysis on torch: no Java, any device, the plugin's conventions and numbers.

Candidates are found on filtered frames (Ovesný et al., "ThunderSTORM: a comprehensive ImageJ plug-in for PALM
and STORM data analysis and super-resolution imaging", Bioinformatics 30, 2389 (2014)), and a point spread
function is fitted to the pixels around each.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fiji_bridge.camera import Camera
from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.progress import Progress, silent
from fiji_bridge.stack import frame_blocks, open_stack
from fiji_bridge.torch_localizer.fitting import Fitter
from fiji_bridge.torch_localizer.options import Analysis, read_analysis

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

__all__ = ["localize"]

PIXELS_AT_ONCE = 2**20
SPOTS_AT_ONCE = 2**16
"""Candidates fitted together, from as many blocks as it takes: the last few of each fit need many steps."""


def localize(
    stack: xr.DataArray | np.ndarray,
    *,
    camera: Camera,
    options: str = "",
    fit_stack: xr.DataArray | np.ndarray | None = None,
    strength: bool = False,
    device: str | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Find and fit the molecules of a stack.

    Parameters
    ----------
    stack
        (t, y, x) [ADU]; candidates are detected here.
    camera
        Turns ADU into photons and pixels into nm; its pixel size is needed.
    options
        The plugin's `Run analysis` option string; keys left out take its defaults.
    fit_stack
        The same frames in another version, (t, y, x) [ADU]: what is fitted, if not `stack`. Detecting on
        denoised and fitting raw frames keeps the fit's noise model true.
    strength
        Add the column ``strength``: the filtered value at the candidate over that frame's threshold, so that
        the molecules of the threshold ``k*(…)``, k ≥ 1, are the rows with ``strength >= k``.
    device
        ``"cpu"``, ``"cuda"`` or one such device; CUDA where there is one by default.
    progress
        Told of the frames done.

    Returns
    -------
    pandas.DataFrame
        ThunderSTORM's columns; molecules by frame, then in the plugin's order. ``uncertainty [nm]`` is that
        of Thompson et al., Biophys. J. 82, 2775 (2002) with 8π, which is the plugin's; fits that gave no
        finite numbers or left the square of pixels are not in the table.

    Raises
    ------
    FijiBridgeError
        If the options ask for what this engine does not have, the frames are smaller than the fitted
        square, the stacks differ in shape, or the pixel size is unknown.
    """
    import pandas as pd

    analysis = read_analysis(options)
    found_in = open_stack(stack)
    fitted = found_in if fit_stack is None else open_stack(fit_stack)
    _check_shapes(found_in, fitted, analysis.fitter)
    if camera.pixel_size_nm is None:
        raise FijiBridgeError('The pixel size is unknown; give it in nm with --camera "… pixelsize=…".')
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    report = progress or silent
    total = found_in.sizes["t"]
    parts, waiting = [], Candidates.none(analysis.fitter.radius, target)
    report("Localizing", 0, total)
    for start, seen, measured in _blocks(found_in, fitted, camera, target):
        waiting = waiting.join(_detect(analysis, start, seen, measured))
        done = start + len(seen)
        if len(waiting.frame) >= SPOTS_AT_ONCE or done == total:
            parts.append(_measure(analysis.fitter, camera, waiting))
            waiting = Candidates.none(analysis.fitter.radius, target)
        report("Localizing", done, total)
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    if not strength:
        del columns["strength"]
    elif (columns["strength"] < 0).any():
        raise FijiBridgeError(
            "The threshold is negative in some frames, where a strength has no meaning; raise it."
        )
    table = pd.DataFrame({"id": np.arange(1, len(columns["frame"]) + 1), **columns})
    table.attrs["engine"] = "torch"
    return table


def _check_shapes(stack: xr.DataArray, fit_stack: xr.DataArray, fitter: Fitter) -> None:
    source = stack.attrs.get("source", "the stack")
    if stack.dims != ("t", "y", "x"):
        raise FijiBridgeError(
            f"{source} has the axes {stack.dims}; localize one channel and plane (t, y, x) at a time."
        )
    if fit_stack.shape != stack.shape:
        raise FijiBridgeError(
            f"{fit_stack.attrs.get('source', 'fit_stack')} has the shape {fit_stack.shape} and {source} "
            f"{stack.shape}; detect and fit on versions of the same frames."
        )
    side = 2 * fitter.radius + 1
    if min(stack.shape[1:]) < side:
        height, width = stack.shape[1:]
        raise FijiBridgeError(
            f"The frames of {source} are {width}×{height} pixels, too small to fit {side}×{side} of them; "
            "lower fitradius."
        )


def _blocks(
    stack: xr.DataArray, fit_stack: xr.DataArray, camera: Camera, device: torch.device
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Give (first frame, frames to detect on, frames to fit), both (n, y, x) float32 ADU above the offset."""
    frames = max(1, PIXELS_AT_ONCE // math.prod(stack.shape[1:]))
    if fit_stack is stack:
        for start, block in frame_blocks(stack, frames):
            counts = _counts(block, camera, device)
            yield start, counts, counts
        return
    for (start, block), (_, fit_block) in zip(
        frame_blocks(stack, frames), frame_blocks(fit_stack, frames), strict=True
    ):
        yield start, _counts(block, camera, device), _counts(fit_block, camera, device)


def _counts(block: np.ndarray, camera: Camera, device: torch.device) -> Tensor:
    """Bring ADU above the offset; a frame with less is lifted to zero, as the plugin does."""
    if camera.offset_map is None and camera.gain_map is None:
        above = block.astype(np.float32) - np.float32(camera.offset)
    else:
        above = (camera.to_photons(block) / _photons_per_count(camera)).astype(np.float32)
    counts = torch.from_numpy(above).to(device)
    return counts - counts.amin((1, 2), keepdim=True).clamp(max=0)


def _photons_per_count(camera: Camera) -> float:
    return camera.photons_per_adu / (camera.em_gain or 1.0)


@dataclass(frozen=True)
class Candidates:
    """Places to fit.

    Parameters
    ----------
    frame, x, y
        (n,) int64, counted from 0.
    strength
        (n,) float64 filtered value over threshold.
    pixels
        (n, side²) float32 ADU above the offset, y slowest.
    """

    frame: Tensor
    x: Tensor
    y: Tensor
    strength: Tensor
    pixels: Tensor

    @classmethod
    def none(cls, radius: int, device: torch.device) -> Candidates:
        """Give no candidates."""
        empty = torch.zeros(0, dtype=torch.int64, device=device)
        pixels = torch.zeros(0, (2 * radius + 1) ** 2, dtype=torch.float32, device=device)
        return cls(empty, empty, empty, empty.double(), pixels)

    def join(self, other: Candidates) -> Candidates:
        """Put others behind these."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Candidates(*(torch.cat(pair) for pair in pairs))


def _detect(analysis: Analysis, start: int, seen: Tensor, measured: Tensor) -> Candidates:
    variables = analysis.filter(seen)
    thresholds = analysis.threshold(variables)
    frame, x, y = analysis.detector(variables["F"], thresholds).unbind(1)
    radius = analysis.fitter.radius
    height, width = seen.shape[1:]
    inside = (x >= radius) & (x < width - radius) & (y >= radius) & (y < height - radius)
    frame, x, y = frame[inside], x[inside], y[inside]
    # A filtered value and a threshold of zero both, as empty frames have, are equal: a strength of 1.
    strength = (variables["F"][frame, y, x].double() / thresholds[frame].double()).nan_to_num(1.0, torch.inf)
    reach = torch.arange(-radius, radius + 1, device=seen.device)
    rows, columns = y[:, None, None] + reach[:, None], x[:, None, None] + reach
    pixels = measured[frame[:, None, None], rows, columns].flatten(1)
    return Candidates(frame + start, x, y, strength, pixels)


def _measure(fitter: Fitter, camera: Camera, candidates: Candidates) -> dict[str, np.ndarray]:
    to_photons, pixel = _photons_per_count(camera), float(camera.pixel_size_nm or math.nan)
    unit = to_photons if fitter.method.in_photons else 1.0
    fits = [fitter(some.double() * unit) for some in candidates.pixels.split(SPOTS_AT_ONCE)]
    x, y, sigma, intensity, offset = torch.cat([fit.parameters for fit in fits]).unbind(1)
    spread = torch.cat([fit.residual_spread for fit in fits])
    sigma = sigma * pixel
    intensity, offset, spread = (values * (to_photons / unit) for values in (intensity, offset, spread))
    columns = {
        "frame": candidates.frame + 1,
        "x [nm]": (x + candidates.x + 0.5) * pixel,
        "y [nm]": (y + candidates.y + 0.5) * pixel,
        "sigma [nm]": sigma,
        "intensity [photon]": intensity,
        "offset [photon]": offset,
        "bkgstd [photon]": spread,
    }
    if not fitter.method.in_photons:
        columns["chi2"] = torch.cat([fit.chi2 for fit in fits])
    columns["uncertainty [nm]"] = _uncertainty(sigma, intensity, spread, pixel, camera.excess_noise)
    kept = (x.abs() <= fitter.radius) & (y.abs() <= fitter.radius)
    for values in columns.values():
        kept &= values.isfinite()
    columns["strength"] = candidates.strength
    return {name: values[kept].cpu().numpy() for name, values in columns.items()}


def _uncertainty(sigma: Tensor, intensity: Tensor, spread: Tensor, pixel: float, excess: float) -> Tensor:
    """Thompson et al. 2002, equation 17 with 8π; as in the plugin, excess noise doubles only sigma²."""
    variance = (excess * sigma.square() + pixel**2 / 12) / intensity
    background = 8 * math.pi * sigma.pow(4) * spread.square() / (pixel * intensity).square()
    return (variance + background).sqrt()
