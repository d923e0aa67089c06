"""Denoising stacks of any size and length with a trained model."""

import copy
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from torch.nn.functional import avg_pool2d

from fiji_bridge.camera import Camera
from fiji_bridge.defects import repaired
from fiji_bridge.denoising.baselines import Baseline
from fiji_bridge.denoising.model import MAPS, Model, fingerprint, has_bfloat16, load_model, readout_of
from fiji_bridge.denoising.network import BlindSpotNetwork, neighbouring
from fiji_bridge.denoising.noise_models.protocol import outliers
from fiji_bridge.denoising.whitening import noise_of, undo_sharing
from fiji_bridge.devices import choose_device, keeping_memory
from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.files import check_kept
from fiji_bridge.progress import Progress, silent
from fiji_bridge.stack import StackWriter, files_of, frame_blocks, open_stack, positions

TILE = 512
"""Side of the tiles that large frames are cut into [pixels], without their halo."""
SMALLEST_TILE = 8
PIXELS_AT_ONCE = 2**19
"""Pixels that go through the network together."""
WINDOWS, WINDOW, JUDGING_PIXELS = 16, 256, 2**17
"""How many windows of which side [pixels] a network is judged by on a stack unlike its own, and how many of
their pixels count."""
WARNED = 0.2
"""Relative error of what the network expects above which a model does not fit a stack."""


@keeping_memory()
def denoise(
    stack: Any,
    model: Model | Baseline | str | os.PathLike[str],
    *,
    camera: Camera | str | None = None,
    estimator: str = "mean",
    out: str | os.PathLike[str] | None = None,
    device: str | None = None,
    fast: bool = False,
    tile: int = TILE,
    progress: Progress | None = None,
) -> xr.DataArray:
    """Denoise a stack.

    On a stack or with a camera that the model was not trained with, the prior is given a relative error of
    its mean, the one that makes the stack most probable (`noise_models.protocol.doubting`): what the network
    does not know is taken from the pixels themselves. Where there is no such error, the stack says how much
    of the prior's width is true (`noise_models.protocol.narrowing`).

    Parameters
    ----------
    stack
        What `open_stack` takes, or an opened stack. Channels and z are denoised apart. Hot pixels of movies
        are replaced (`defects.defective`).
    model
        From `train` or `load_model`, or what `load_model` takes: a file, or the name of a model that ships.
    camera
        The camera of this stack, or ThunderSTORM's `Camera setup` string; the model's if left out, and
        estimated if that has none.
    estimator
        ``mean`` of the posterior (equation 5 of the Gamma-Poisson paper), its maximum ``map``, or ``prior``,
        the mean of the prior, which does not look at the pixel itself.
    out
        File to write to (.tif or .zarr), block by block; it appears when it is whole.
    device
        ``cuda``, ``cpu``, …; CUDA if there is one, unless given.
    fast
        Average the prior over 4 orientations of the image, not 8, and compute in bfloat16 where the processor
        has it: three times as fast on a CPU, with rounding errors of 0.1% and some 0.03 dB less.
    tile
        Side of the tiles that large frames are cut into [pixels]; the result does not depend on it.
    progress
        Called with the frames done; may raise to cancel.

    Returns
    -------
    xarray.DataArray
        float32 in the units of the input (A/D counts, offset included), of the same dimensions and
        attributes; read lazily from `out` where that is given, in memory otherwise. Where the model does not
        fit the stack, or pixels of it were replaced, ``attrs["warnings"]`` says so.

    Raises
    ------
    FijiBridgeError
        If the model lacks the estimator, the camera does not fit the frames, or `out` cannot be written.
    """
    if isinstance(model, (str, os.PathLike)):
        model = load_model(model)
    if not isinstance(model, (Model, Baseline)):
        raise FijiBridgeError(f"{model!r} is no model; give what train or load_model returned.")
    if not (isinstance(tile, (int, np.integer)) and tile >= SMALLEST_TILE):
        raise FijiBridgeError(f"tile is {tile!r}; give a whole number from {SMALLEST_TILE} pixels on.")
    if estimator not in model.estimators:
        raise FijiBridgeError(
            f"The model's engine {model.engine!r} has no estimator {estimator!r}; choose from"
            f" {', '.join(model.estimators)}."
        )
    progress = progress or silent
    opened, camera = open_stack(stack), Camera.of(camera)
    if out is not None:
        maps = camera.map_files.values() if camera else ()
        check_kept([*files_of(opened), *maps], {f"out={out}": out})
    mended, replaced = repaired(opened, camera or model.camera)
    camera = model.assumed_camera or camera or model.camera
    whitening = model.whitening
    if camera is None or model.for_any_camera:
        estimate = noise_of(mended, camera, progress)
        camera = camera or estimate.camera
        if model.for_any_camera:
            whitening = undo_sharing(estimate, mended)
    seen, own = whitening.whiten(mended), whitening.camera(camera)
    where = choose_device(device)
    judge, doubts = None, []
    if isinstance(model, Model):
        worker = _Worker(model, own, seen, estimator, where, fast, tile)
        denoised: Callable[..., Any] = worker.denoise
        if estimator != "prior" and not _trained_on(model, camera, opened):
            judge = worker.adapt
    else:
        denoised = _in_parts(model.predictor(own, estimator, where, fast, tile))
    total = opened.size // (opened.sizes["y"] * opened.sizes["x"])
    margin = model.neighbours

    def blocks() -> Iterator[tuple[dict[str, int], int, np.ndarray]]:
        done = 0
        progress("Denoising", 0, total)
        for position, series in positions(seen):
            own.check(series)
            if margin and series.sizes["t"] < 2:
                raise FijiBridgeError(
                    f"{opened.attrs.get('source', 'The stack')} has a single frame, and the model was trained"
                    " to see neighbouring frames; use a model trained without."
                )
            if judge:
                doubts.append(judge(series, progress))
            for first, block in frame_blocks(series):
                for offset, frames in denoised(*_with_margin(series, first, block, margin)):
                    yield position, first + offset, whitening.blur(frames)
                    done += len(frames)
                    progress("Denoising", done, total)

    if out is None:
        result = xr.zeros_like(opened, dtype=np.float32).compute()
        for position, first, frames in blocks():
            result[{**position, "t": slice(first, first + len(frames))}] = frames
        return _with_warnings(result, doubts, replaced, opened)
    with StackWriter(out, opened, dtype="float32") as writer:
        for position, first, frames in blocks():
            writer.write(first, frames, **position)
    written = open_stack(out, pixel_size_nm=opened.attrs.get("pixel_size_nm"))
    return _with_warnings(written, doubts, replaced, opened)


def _trained_on(model: Model, camera: Camera, stack: xr.DataArray) -> bool:
    """Whether the model was trained on this stack, as this camera sees it."""
    names = ("offset", "photons_per_adu", "em_gain", "read_noise", *MAPS)
    same = model.camera is not None and all(
        np.array_equal(getattr(camera, name), getattr(model.camera, name)) for name in names
    )
    return same and fingerprint(stack) in str(model.details.get("trained_on"))


def _with_warnings(
    result: xr.DataArray, doubts: list[float], replaced: int, stack: xr.DataArray
) -> xr.DataArray:
    """Say in the attributes of a result whether the model did not fit the stack, and pixels were replaced."""
    source, warnings = stack.attrs.get("source", "the stack"), []
    if max(doubts, default=0.0) >= WARNED:
        warnings.append(
            f"The model does not fit {source}: what it expects of a pixel is wrong by {max(doubts):.0%}, so"
            " it was trusted less than the pixel itself; train on this stack."
        )
    if replaced:
        pixels = "1 hot pixel was" if replaced == 1 else f"{replaced:,} hot pixels were"
        warnings.append(f"In {source} {pixels} found; what stands there now is interpolated.")
    result.attrs = {name: value for name, value in result.attrs.items() if name != "warnings"}
    if warnings:
        result.attrs["warnings"] = warnings
    return result


def _in_parts(
    predict: Callable[[np.ndarray], np.ndarray],
) -> Callable[[np.ndarray, slice], Iterator[tuple[int, np.ndarray]]]:
    """Denoise some frames of a block (n, y, x) at a time, for progress and memory's sake."""

    def denoise(block: np.ndarray, own: slice) -> Iterator[tuple[int, np.ndarray]]:
        together = max(1, PIXELS_AT_ONCE // block[0].size)
        for first in range(own.start, own.stop, together):
            yield first - own.start, predict(block[first : min(first + together, own.stop)])

    return denoise


class _Worker:
    """A model on its device, ready for blocks of frames."""

    def __init__(
        self,
        model: Model,
        camera: Camera,
        stack: xr.DataArray,
        estimator: str,
        device: torch.device,
        fast: bool,
        tile: int,
    ) -> None:
        self.network = copy.deepcopy(model.network).to(device).eval()
        self.noise = self.unjudged = model.noise
        self.camera, self.estimator, self.device = camera, estimator, device
        self.readout = readout_of(camera, [series for _, series in positions(stack)], device)
        self.symmetries, self.tile = 4 if fast else 8, tile
        self.half = fast and has_bfloat16(device)

    @torch.no_grad()
    def denoise(self, frames: np.ndarray, own: slice) -> Iterator[tuple[int, np.ndarray]]:
        """Denoise some of the `own` of these frames (t, y, x) at a time, in and out in A/D counts."""
        side = min(self.tile + 2 * self.network.halo, max(frames.shape[1:]))
        together = max(1, PIXELS_AT_ONCE // side**2)
        for first in range(own.start, own.stop, together):
            numbers = np.arange(first, min(first + together, own.stop))
            outputs, photons = self._outputs(frames, numbers, self.symmetries)
            result = self.noise.estimate(outputs, photons, self.readout, self.estimator)
            yield (
                first - own.start,
                np.asarray(self.camera.to_adu(result[:, 0].cpu().numpy()), np.float32),
            )

    @torch.no_grad()
    def adapt(self, series: xr.DataArray, progress: Progress) -> float:
        """Let the noise model judge the network by windows spread over frames that it was not trained on.

        Gives the relative error that it found.
        """
        rng, total = np.random.default_rng(0), series.sizes["t"]
        number = WINDOWS if max(series.shape[1:]) > WINDOW else min(WINDOWS, total)
        rows: list[tuple[Tensor, ...]] = []
        for done, frame in enumerate(np.linspace(0, total - 1, number).round().astype(int)):
            progress("Judging the model", done, number)
            near = slice(max(0, frame - self.network.neighbours), frame + self.network.neighbours + 1)
            starts = [int(rng.integers(max(1, side - WINDOW + 1))) for side in series.shape[1:]]
            window = tuple(slice(start, start + WINDOW) for start in starts)
            rows.append(self._judging(np.asarray(series[near]), frame - near.start, window))
        outputs, photons, variance = (torch.cat(part) for part in zip(*rows, strict=True))
        some = torch.from_numpy(rng.permutation(len(photons))[:JUDGING_PIXELS]).to(self.device)
        readout = replace(self.readout, read_variance=variance[some])
        self.noise = self.unjudged.adapted(outputs[some], photons[some], readout)
        return float(getattr(self.noise, "doubt", 0.0))

    def _judging(self, frames: np.ndarray, number: int, window: tuple[slice, ...]) -> tuple[Tensor, ...]:
        """Give outputs, photons and read variance of pixels of a frame, as images of one pixel.

        Single pixels that stand out are hot or dead, and no light that the network had to know of.
        """
        outputs, photons = self._outputs(frames, np.array([number]), 4, window)
        variance = torch.as_tensor(self.readout.read_variance, device=self.device)
        variance = variance[window] if variance.ndim else variance
        readout = replace(self.readout, read_variance=variance)
        out = outliers(self.unjudged, outputs, photons, readout).float()
        alone = (out > 0) & (avg_pool2d(out, 3, 1, 1, divisor_override=1) < 2)
        parts = (outputs, photons, variance.expand_as(photons))
        return tuple(part.movedim(1, -1)[~alone[:, 0]][..., None, None] for part in parts)

    def _outputs(
        self, frames: np.ndarray, numbers: np.ndarray, symmetries: int, window: tuple[slice, ...] = ()
    ) -> tuple[Tensor, Tensor]:
        """Give what the network says of some of these frames (t, y, x), and their photons (n, 1, y, x).

        Of a window (y, x) of them, if one is given.
        """
        shown = np.column_stack([numbers, neighbouring(numbers, len(frames), self.network.neighbours)])
        adu, inverse = np.unique(shown, return_inverse=True)
        light = np.asarray(self.camera.to_photons(frames[adu]), np.float32)[(slice(None), *window)]
        photons = torch.from_numpy(np.ascontiguousarray(light)).to(self.device)
        seen = photons[torch.from_numpy(inverse.reshape(shown.shape)).to(self.device)]
        with (
            torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
            torch.autocast(self.device.type, torch.bfloat16, enabled=self.half),
        ):
            outputs = tiled_outputs(self.network, self.noise.normalize(seen), symmetries, self.tile)
        return outputs, seen[:, :1]


def _with_margin(
    series: xr.DataArray, first: int, block: np.ndarray, margin: int
) -> tuple[np.ndarray, slice]:
    """Put the frames before and after a block to it, as many as there are, and say which are its own."""
    if not margin:
        return block, slice(0, len(block))
    ends = max(0, first - margin), min(series.sizes["t"], first + len(block) + margin)
    before, after = first - ends[0], ends[1] - first - len(block)
    read = [np.asarray(series[frame]) for frame in (*range(ends[0], first), *range(ends[1] - after, ends[1]))]
    return np.stack([*read[:before], *block, *read[before:]]), slice(before, before + len(block))


def symmetric_outputs(network: BlindSpotNetwork, x: Tensor, symmetries: int = 8) -> Tensor:
    """Average the outputs of the network over orientations of the images (n, 1 + 2 · neighbours, y, x).

    Turning the image by 90° only passes the half-planes on by one place, so the four rotations cost one pass
    and four times the 1×1 convolutions; mirroring takes a second pass.
    """
    height, width = x.shape[-2:]
    padded = network.pad(x)
    total = torch.zeros(())
    for mirrored in range(2 if symmetries == 8 else 1):
        image = padded.flip(3) if mirrored else padded
        planes = network.half_planes(image)
        for turn in range(4 if symmetries > 1 else 1):
            outputs = network.combine(planes, image, turn)
            total = total.to(outputs) + (outputs.flip(3) if mirrored else outputs)
    return total[..., :height, :width] / symmetries


def tiled_outputs(network: BlindSpotNetwork, x: Tensor, symmetries: int = 8, tile: int = TILE) -> Tensor:
    """Compute `symmetric_outputs` by tiles that see as far as the network does, so that none shows."""
    height, width = x.shape[-2:]
    step = -(-tile // network.stride) * network.stride
    if max(height, width) <= step + 2 * network.halo:
        return symmetric_outputs(network, x, symmetries)
    result = x.new_empty(len(x), network.outputs, height, width)
    for top in range(0, height, step):
        for left in range(0, width, step):
            start_y, start_x = max(0, top - network.halo), max(0, left - network.halo)
            stop_y, stop_x = min(height, top + step), min(width, left + step)
            seen = x[..., start_y : stop_y + network.halo, start_x : stop_x + network.halo]
            outputs = symmetric_outputs(network, seen, symmetries)
            result[..., top:stop_y, left:stop_x] = outputs[..., top - start_y :, left - start_x :][
                ..., : stop_y - top, : stop_x - left
            ]
    return result
