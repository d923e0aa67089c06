"""ThunderSTORM's analysis on torch: no Java, any device, the plugin's conventions and numbers.

Candidates are found on filtered frames (Ovesný et al., "ThunderSTORM: a comprehensive ImageJ plug-in for PALM
and STORM data analysis and super-resolution imaging", Bioinformatics 30, 2389 (2014)), and a point spread
function is fitted to the pixels around each.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fiji_bridge.camera import Camera
from fiji_bridge.devices import choose_device
from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.macro_options import parse_options
from fiji_bridge.progress import Progress, silent
from fiji_bridge.stack import frame_blocks, open_stack
from fiji_bridge.thunderstorm.settings import as_meant
from fiji_bridge.torch_localizer import kernels
from fiji_bridge.torch_localizer.detectors import ConnectedComponents
from fiji_bridge.torch_localizer.estimators import Estimator, GaussianFit, MultiEmitterFit, Spots
from fiji_bridge.torch_localizer.fitting import SpotNoise
from fiji_bridge.torch_localizer.options import (
    Analysis,
    read_analysis,
    with_known_sigma,
    with_likelihood_ratio,
)
from fiji_bridge.torch_localizer.threads import in_threads, threads_for_loops
from fiji_bridge.torch_localizer.uncertainty import UNCERTAINTIES

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

__all__ = ["localize"]

PIXELS_AT_ONCE = {"cpu": 2**23, "cuda": 2**24}
"""Of frames that are read together."""

SPOTS_AT_ONCE = 2**16
"""Candidates kept, from as many blocks as it takes, and on a GPU fitted together: the last few of each fit
need many steps."""

TO_A_THREAD = {"pixels": 2**19, "spots": 2**12}
"""Of what a thread of the CPU takes at a time, so that it stays in the processor's caches."""


def localize(
    stack: xr.DataArray | np.ndarray,
    *,
    camera: Camera,
    options: str = "",
    fit_stack: xr.DataArray | np.ndarray | None = None,
    strength: bool = False,
    uncertainty: str = "thompson",
    background: np.ndarray | None = None,
    variance: np.ndarray | None = None,
    known_sigma: bool = False,
    false_alarm_rate: float | None = None,
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
    uncertainty
        ``"thompson"``, the plugin's (equation 17 of Thompson et al., Biophys. J. 82, 2775 (2002), with 8π);
        ``"mortensen"``, for least squares or maximum likelihood as fitted (Mortensen et al., Nat. Methods 7,
        377 (2010), in the closed form of Rieger and Stallinga, ChemPhysChem 15, 664 (2014)); ``"crlb"``, the
        Cramér-Rao bound of the fit's own pixels and parameters, with the columns ``uncertainty_x [nm]``,
        ``uncertainty_y [nm]`` and, as far as they are fitted, those of z and of the intensity.
    background
        (y, x) or (t, y, x): light that is not from molecules [photons]; the fitted offset comes on top of it.
    variance
        (y, x) variance of the noise besides that of the light, such as the camera's read noise [photons²]. A
        camera's own is used with `false_alarm_rate` alone: denoised frames are not as noisy as their camera.
    known_sigma
        Whether the options' sigma is the molecules' own and is not fitted, which brings the positions of dim
        ones closer to their Cramér-Rao bound.
    false_alarm_rate
        Detect by likelihood ratio, for molecules of the options' sigma, in place of the options' filter and
        threshold: the share of the pixels of an empty frame that would be taken for molecules, such as 1e-4.
        EM gain counts, and without `variance` the camera's read noise, also in the fits.
    device
        ``"cpu"``, ``"cuda"`` or one such device; CUDA where there is one by default.
    progress
        Told of the frames done.

    Returns
    -------
    pandas.DataFrame
        ThunderSTORM's columns; molecules by frame, then in the plugin's order. Fits that gave no finite
        numbers or left the square of pixels are not in the table.

    Raises
    ------
    FijiBridgeError
        If an option is not possible, the frames are smaller than the fitted square, stacks or maps differ in
        shape, the background is brighter than the frames, or the pixel size is unknown.

    Notes
    -----
    With ``mfaenabled=true``, ``offset [photon]`` is the plugin's: the fitted background of a pixel over the
    number of molecules that were fitted together. ``expected_intensity=`` limits the fits themselves, other
    than in the plugin, which fits without limits and only writes them in place of what is beyond.
    """
    import pandas as pd

    analysis = read_analysis(options)
    if not isinstance(uncertainty, str) or uncertainty not in UNCERTAINTIES:
        raise FijiBridgeError(
            f"There is no uncertainty {uncertainty!r}; choose one of {', '.join(UNCERTAINTIES)}."
        )
    if strength and isinstance(analysis.detector, ConnectedComponents):
        raise FijiBridgeError(
            "The centroid of connected components has no strength: at a higher threshold it finds other "
            "places. Choose another detector."
        )
    if not isinstance(analysis.estimator, GaussianFit | MultiEmitterFit):
        for name, used in (
            (f"uncertainty={uncertainty}", uncertainty != "thompson"),
            ("background", background is not None),
            ("variance", variance is not None),
        ):
            if used:
                raise FijiBridgeError(f"{name} is for fits of a Gaussian; choose such an estimator.")
    background, variance = _numbers("background", background), _numbers("variance", variance)
    if known_sigma:
        analysis = with_known_sigma(analysis)
        if "sigma" not in as_meant(parse_options(options)):
            raise FijiBridgeError(
                "A known sigma is that of the options, which name none; add sigma= [pixels] to them."
            )
    found_in = open_stack(stack)
    if false_alarm_rate is not None:
        if variance is None and np.any(camera.read_variance):
            variance = np.broadcast_to(camera.read_variance, found_in.shape[1:])
        # Over its excess noise, light behind EM gain has the variance of as many photons.
        excess = camera.excess_noise
        photons = _photons_per_count(camera) / excess
        known = None if variance is None else variance / excess**2
        analysis = with_likelihood_ratio(analysis, false_alarm_rate, photons, known)
    fitted = found_in if fit_stack is None else open_stack(fit_stack)
    _check_shapes(found_in, fitted, analysis)
    # Behind EM gain light has `excess_noise` times a Poisson variable's variance; to the fits, all noise has.
    among_light = None if variance is None else variance / camera.excess_noise
    maps = _Maps.read(background, among_light, found_in.shape)
    if camera.pixel_size_nm is None:
        raise FijiBridgeError('The pixel size is unknown; give it in nm with --camera "… pixelsize=…".')
    target = choose_device(device)
    if target.type not in PIXELS_AT_ONCE:
        raise FijiBridgeError(f"Molecules are localized on {' or '.join(PIXELS_AT_ONCE)}, not on {device}.")
    if maps.background is not None:
        _check_background(maps.background, fitted, camera)
    report = progress or silent
    total = found_in.sizes["t"]
    measure = _Measurement(analysis.estimator, camera, maps, uncertainty)
    parts: list[dict[str, np.ndarray]] = []
    waiting: list[Candidates] = []
    report("Localizing", 0, total)
    with threads_for_loops():
        for start, seen, measured in _ahead(_blocks(found_in, fitted, target)):
            waiting += _detect(analysis, camera, target, start, seen, measured, variance is None)
            done = start + len(seen)
            if sum(len(some.frame) for some in waiting) >= SPOTS_AT_ONCE or done == total:
                parts.append(measure(Candidates.join(waiting)))
                waiting = []
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


def _numbers(name: str, values: np.ndarray | None) -> np.ndarray | None:
    if values is None:
        return None
    try:
        array = np.asarray(values)
        if array.dtype.kind in "biufO":
            return array.astype(np.float64)
    except (TypeError, ValueError):  # rows of different lengths, or things
        pass
    raise FijiBridgeError(f"{name} must be an array of numbers, one a pixel.")


def _check_shapes(stack: xr.DataArray, fit_stack: xr.DataArray, analysis: Analysis) -> None:
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
    side = 2 * analysis.estimator.radius + 1
    height, width = stack.shape[1:]
    if analysis.whole_frames:
        if height != width:
            raise FijiBridgeError(
                f"full_image_fitting takes square frames, but {source}'s are {width}×{height}; crop them."
            )
    elif min(height, width) < side:
        raise FijiBridgeError(
            f"The frames of {source} are {width}×{height} pixels, too small to fit {side}×{side} of them; "
            "lower fitradius."
        )


def _check_background(background: np.ndarray, stack: xr.DataArray, camera: Camera) -> None:
    """Refuse a background (t or 1, y, x) [photons] above all light, by some of the frames."""
    some = np.unique(np.linspace(0, len(stack) - 1, 9).astype(int))
    light = max(0.0, float(camera.to_photons(stack[some].to_numpy()).mean()))
    given = float(background[some if len(background) > 1 else [0]].mean())
    if given > 1.2 * light + 1:  # what a camera's offset, or an estimate, may well be wrong by
        raise FijiBridgeError(
            f"The background has {given:.3g} photons a pixel, but {stack.attrs.get('source', 'the stack')} "
            f"only {light:.3g} in all; give it in photons, without the camera's offset."
        )


def _blocks(
    stack: xr.DataArray, fit_stack: xr.DataArray, device: torch.device
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Give (first frame, frames to detect on, frames to fit), both (n, y, x) [ADU]."""
    frames = max(1, PIXELS_AT_ONCE[device.type] // math.prod(stack.shape[1:]))
    if fit_stack is stack:
        for start, block in frame_blocks(stack, frames):
            yield start, block, block
        return
    for (start, block), (_, fit_block) in zip(
        frame_blocks(stack, frames), frame_blocks(fit_stack, frames), strict=True
    ):
        yield start, block, fit_block


def _ahead(blocks: Iterator[Any]) -> Iterator[Any]:
    """Read each block while the one before it is worked on."""
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(next, blocks, None)
        while (block := coming.result()) is not None:
            coming = reader.submit(next, blocks, None)
            yield block


def _counts(block: np.ndarray, camera: Camera, device: torch.device, lift: bool) -> Tensor:
    """Bring ADU above the offset; with `lift`, a frame with less is raised to zero, as the plugin does.

    Where the read noise is known it explains values below the offset, and a raised frame would have light
    that is not there.
    """
    if camera.offset_map is None and camera.gain_map is None:
        above = np.subtract(block, np.float32(camera.offset), dtype=np.float32, casting="same_kind")
    else:
        above = (camera.to_photons(block) / _photons_per_count(camera)).astype(np.float32)
    counts = torch.from_numpy(above).to(device)
    if not lift:
        return counts
    lowest = counts.amin((1, 2), keepdim=True).clamp(max=0)
    return counts - lowest if bool(lowest.any()) else counts


def _photons_per_count(camera: Camera) -> float:
    return camera.photons_per_adu / (camera.em_gain or 1.0)


@dataclass(frozen=True)
class _Maps:
    """What is known of the pixels: (t or 1, y, x) float64 background [photons] and variance [photons²]."""

    background: np.ndarray | None
    variance: np.ndarray | None

    @classmethod
    def read(
        cls, background: np.ndarray | None, variance: np.ndarray | None, shape: tuple[int, ...]
    ) -> _Maps:
        if variance is not None and np.ndim(variance) != 2:
            raise FijiBridgeError(f"variance must be one map (y, x), not {np.ndim(variance)}-dimensional.")
        maps: list[np.ndarray | None] = []
        for name, values in (("background", background), ("variance", variance)):
            if values is None:
                maps.append(None)
                continue
            if values.shape not in (shape, shape[1:]):
                raise FijiBridgeError(
                    f"{name} has the shape {values.shape}, but the stack {shape}; give one value a pixel."
                )
            if not (np.isfinite(values).all() and (values >= 0).all()):
                raise FijiBridgeError(f"{name} must be zero or a positive number at every pixel.")
            maps.append(values.reshape(-1, *shape[1:]))
        return cls(*maps)

    def around(self, candidates: Candidates, photons: float) -> SpotNoise:
        """Give what is known of the candidates' pixels, in units of as many photons."""
        side = math.isqrt(candidates.pixels.shape[1])
        reach = np.arange(side) - side // 2
        frame, x, y = (t.cpu().numpy()[:, None, None] for t in (candidates.frame, candidates.x, candidates.y))
        rows, columns = y + reach[:, None], x + reach

        def crop(values: np.ndarray | None, unit: float) -> Tensor | None:
            if values is None:
                return None
            cropped = values[frame if len(values) > 1 else np.zeros_like(frame), rows, columns]
            pixels = torch.from_numpy(cropped.reshape(len(cropped), side**2) / unit)
            return pixels.to(candidates.pixels.device)

        return SpotNoise(crop(self.background, photons), crop(self.variance, photons**2))


@dataclass(frozen=True)
class Candidates:
    """Places to fit.

    Parameters
    ----------
    frame, x, y
        (n,) int64 frame and pixel, counted from 0.
    at
        (n, 2) float64 x and y from the centre of the pixel [px].
    strength
        (n,) float64 filtered value over threshold.
    pixels
        (n, side²) float32 ADU above the offset, y slowest.
    """

    frame: Tensor
    x: Tensor
    y: Tensor
    at: Tensor
    strength: Tensor
    pixels: Tensor

    @classmethod
    def join(cls, parts: list[Candidates]) -> Candidates:
        """Put candidates behind each other."""
        columns = zip(*(vars(part).values() for part in parts), strict=True)
        return cls(*(torch.cat(column) for column in columns))

    def __getitem__(self, some: slice | Tensor) -> Candidates:
        return Candidates(*(values[some] for values in vars(self).values()))


def _detect(
    analysis: Analysis,
    camera: Camera,
    device: torch.device,
    start: int,
    seen: np.ndarray,
    measured: np.ndarray,
    lift: bool,
) -> list[Candidates]:
    """Find the candidates of a block of frames, whose first is number `start`; `lift` as for `_counts`.

    Those whose square of pixels would leave the frame are left out, for all slices at once.
    """
    parts: dict[int, Candidates] = {}

    def work(some: slice) -> None:
        counts = _counts(seen[some], camera, device, lift)
        fitted = counts if measured is seen else _counts(measured[some], camera, device, lift)
        parts[some.start] = _candidates(analysis, start + some.start, counts, fitted)

    frames = max(1, TO_A_THREAD["pixels"] // math.prod(seen.shape[1:]))
    in_threads(work, len(seen), frames if device.type == "cpu" else len(seen))
    found = Candidates.join([parts[first] for first in sorted(parts)])
    if analysis.whole_frames:
        return [found]
    height, width = seen.shape[1:]
    radius = analysis.estimator.radius
    inside = (found.x >= radius) & (found.x < width - radius)
    inside &= (found.y >= radius) & (found.y < height - radius)
    return [found[inside]]


def _candidates(analysis: Analysis, start: int, seen: Tensor, measured: Tensor) -> Candidates:
    variables = analysis.filter(seen)
    thresholds = analysis.threshold(variables)
    found = analysis.detector(variables["F"], thresholds)
    whole = found.long()
    frame, x, y = whole.unbind(1)
    # A filtered value and a threshold of zero both, as empty frames have, are equal: a strength of 1.
    strength = (variables["F"][frame, y, x].double() / thresholds[frame].double()).nan_to_num(1.0, torch.inf)
    if not analysis.whole_frames:
        pixels = _squares(measured, whole, analysis.estimator.radius)
        return Candidates(frame + start, x, y, found[:, 1:] - whole[:, 1:], strength, pixels)
    best = [int(i[strength[i].argmax()]) for i in ((frame == n).nonzero()[:, 0] for n in frame.unique())]
    height, width = seen.shape[1:]
    frame, place, strength = frame[best], found[best, 1:], strength[best]
    x, y = torch.full_like(frame, width // 2), torch.full_like(frame, height // 2)
    at = place - torch.stack([x, y], 1)
    return Candidates(frame + start, x, y, at, strength, measured[frame].flatten(1))


def _squares(frames: Tensor, places: Tensor, radius: int) -> Tensor:
    """Give the pixels (n, side²) around places (n, 3) of frame, x and y; squares are moved into the frame."""
    if frames.device.type == "cpu":
        out = np.empty((len(places), (2 * radius + 1) ** 2), np.float32)
        kernels.crop_squares(frames.contiguous().numpy(), places.numpy(), radius, out)
        return torch.from_numpy(out)
    reach = torch.arange(-radius, radius + 1, device=frames.device)
    height, width = frames.shape[1:]
    frame, x, y = places[:, :, None, None].unbind(1)
    x, y = x.clamp(radius, width - 1 - radius), y.clamp(radius, height - 1 - radius)
    return frames[frame, y + reach[:, None], x + reach].flatten(1)


@dataclass(frozen=True)
class _Measurement:
    """Turns candidates into columns of the table."""

    estimator: Estimator
    camera: Camera
    maps: _Maps
    uncertainty: str

    def __call__(self, candidates: Candidates) -> dict[str, np.ndarray]:
        parts: dict[int, dict[str, np.ndarray]] = {}

        def work(some: slice) -> None:
            parts[some.start] = self._some(candidates[some])

        at_once = TO_A_THREAD["spots"] if candidates.pixels.device.type == "cpu" else SPOTS_AT_ONCE
        in_threads(work, max(1, len(candidates.frame)), at_once)
        columns = [parts[start] for start in sorted(parts)]
        return {name: np.concatenate([part[name] for part in columns]) for name in columns[0]}

    def _some(self, candidates: Candidates) -> dict[str, np.ndarray]:
        to_photons, pixel = _photons_per_count(self.camera), float(self.camera.pixel_size_nm or math.nan)
        # A unit of the estimator's pixels in ADU, and in photons.
        unit = to_photons if self.estimator.in_photons else 1.0
        photons = to_photons / unit
        spots = Spots(
            candidates.pixels.double() * unit, candidates.at, photons, self.maps.around(candidates, photons)
        )
        found = self.estimator(spots, bounds=self.uncertainty == "crlb")
        place = torch.stack([candidates.x, candidates.y])[:, found.spot] + 0.5
        units = {
            **dict.fromkeys(("x", "y", "sigma", "sigma1", "sigma2"), (" [nm]", pixel)),
            **dict.fromkeys(("uncertainty_x", "uncertainty_y"), (" [nm]", pixel)),
            **dict.fromkeys(("z", "uncertainty_z"), (" [nm]", 1.0)),
            **dict.fromkeys(("intensity", "offset", "bkgstd"), (" [photon]", photons)),
            "uncertainty_intensity": (" [photon]", photons),
            "chi2": ("", 1.0),
        }
        named = found.columns | {"x": found.columns["x"] + place[0], "y": found.columns["y"] + place[1]}
        columns = {"frame": candidates.frame[found.spot] + 1}
        columns |= {name + units[name][0]: values * units[name][1] for name, values in named.items()}
        estimate = UNCERTAINTIES[self.uncertainty](columns, self.camera, self.estimator.in_photons)
        bounds = {name: columns.pop(name) for name in list(columns) if name.startswith("uncertainty_")}
        if estimate is not None:
            columns["uncertainty [nm]"] = estimate
        widening = math.sqrt(self.camera.excess_noise)
        columns |= {name: values * widening for name, values in bounds.items()}
        kept = torch.ones(len(found.spot), dtype=torch.bool, device=found.spot.device)
        for values in columns.values():
            kept &= values.isfinite()
        columns["strength"] = candidates.strength[found.spot]
        return {name: values[kept].cpu().numpy() for name, values in columns.items()}
