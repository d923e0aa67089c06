"""Training on the noisy stacks themselves."""

import copy
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from torch.nn.functional import conv2d

from fiji_bridge.camera import Camera
from fiji_bridge.camera_estimation import estimate_camera
from fiji_bridge.defects import repaired
from fiji_bridge.denoising.baselines import BASELINES, Baseline
from fiji_bridge.denoising.crops import SMALLEST, Batch, CropPool
from fiji_bridge.denoising.model import (
    Model,
    denoiser_class,
    describe,
    fingerprint,
    has_bfloat16,
    load_model,
)
from fiji_bridge.denoising.network import BlindSpotNetwork
from fiji_bridge.denoising.noise_models import ENGINES, NoiseModel
from fiji_bridge.denoising.noise_models.protocol import outliers
from fiji_bridge.denoising.optimizer import Optimizer
from fiji_bridge.denoising.prediction import symmetric_outputs
from fiji_bridge.denoising.whitening import Whitening, noise_of, undo_sharing
from fiji_bridge.devices import choose_device, keeping_memory
from fiji_bridge.engines import NOISE_MODELS, TARGETED
from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.progress import Progress, silent
from fiji_bridge.stack import open_stack

DEFAULT_ENGINE = NOISE_MODELS[0]
INTERVAL = 100
"""Steps between two looks at the held-out likelihood."""
WARM_SHARE = 0.1
"""Share of the budget after which the learning rate has risen, however few steps a slow machine has done."""
DIMMED = 0.5
"""Share of the light, at most, that the crops of a step are shown without."""
INPUT_IS_OUTPUT = 0.95
"""With more than this weight on a pixel's own value, the denoised image would be the raw one."""
TOLERANCE = 0.02
"""Nats a pixel by which a sound network may lose to the trivial predictor: on flat data none can win."""
BALANCED_PIXELS = 2**18, 2**20
"""Least and most pixels on which the mean of the denoised data is made that of the raw."""
IMBALANCE = 1e-3
"""Relative standard error of that mean, from which on there are enough."""


@dataclass(frozen=True)
class Schedule:
    """How long and how to train; fields as in `train`, and below.

    `warm_up` [steps] is how long the learning rate rises, `decay` the share of the whole over which it falls,
    `averaging` the memory of the averaged weights a step, `patience` how many looks at the held-out
    likelihood may pass without an improvement of more than `improvement` [nats per pixel].
    """

    steps: int
    minutes: float
    batch: int
    learning_rate: float
    warm_up: int
    decay: float = 0.3
    averaging: float = 0.998
    patience: int = 25
    improvement: float = 1e-4


class _CollapseError(Exception):
    """The network does no better than a predictor that needs none."""


@keeping_memory()
def train(
    stacks: Any,
    *,
    targets: Any = None,
    camera: Camera | str | None = None,
    engine: str | None = None,
    max_minutes: float | None = None,
    steps: int | None = None,
    model: Model | Baseline | str | os.PathLike[str] | None = None,
    device: str | None = None,
    seed: int = 0,
    neighbours: int = 0,
    blind_radius: int | None = None,
    features: Sequence[int] = (12, 16, 24, 32),
    head: Sequence[int] = (64, 32),
    batch: int = 6,
    crop: int = 64,
    learning_rate: float = 2e-3,
    progress: Progress | None = None,
) -> Model | Baseline:
    """Train a blind-spot network on noisy stacks, the very ones it will denoise.

    Hot pixels of movies are replaced first (`defects.defective`). Random crops with signal are turned and
    mirrored and shown with less light; Muon and Adam follow the likelihood of each pixel given its
    surroundings (equation 4 of the Gamma-Poisson paper), and an average of the weights is kept. Some blocks
    of pixels are never trained on: when their likelihood stops improving, or the budget nears its end, the
    learning rate falls to 0, and the weights that served them best are returned. They also say how wide the
    priors truly are (`noise_models.protocol.narrowing`).

    Parameters
    ----------
    stacks
        What `open_stack` takes (a path, paths of one stack, an array), or a sequence of opened stacks.
    targets
        For the engines ``n2n`` (as noisy, of the same scenes) and ``care`` (clean): a stack, or a sequence of
        them, of the shapes of `stacks`.
    camera
        From A/D counts to photons, or ThunderSTORM's `Camera setup` string; if left out that of `model`, and
        without either estimated from the first stack.
    engine
        Noise model, one of `noise_models.ENGINES`, or a published method, one of `baselines.BASELINES`, with
        the training of its authors (`features`, `batch`, `crop` and `learning_rate` are of our network); left
        out that of `model`, else `DEFAULT_ENGINE`.
    max_minutes
        Wall time to train for, at most; 10 if neither it nor `steps` is given.
    steps
        Steps to train for, at most; 20,000 if left out.
    model
        A model to go on from, in place of fresh weights, or what `load_model` takes.
    device
        ``cuda``, ``cpu``, …; CUDA if there is one, unless given.
    seed
        Of the weights and the crops. With `steps` alone as budget a run repeats exactly on one machine.
    neighbours
        Frames before and after each that the network may see whole: for movies where the scene, or a
        molecule, stays for several frames, and whose frames do not share noise.
    blind_radius
        How far noise is shared between pixels, which the network must not see around the one it predicts
        [pixels]. Left out, sharing is measured on the first stack: raw data of most cameras has none, a
        little is undone by a filter (`Whitening`), and where that cannot be, pixels are hidden.
    features, head
        Channels of the network at each scale, and of the 1×1 convolutions behind.
    batch, crop
        Crops in a step, and their side [pixels].
    learning_rate
        At its highest, as for Adam.
    progress
        Called with the stage and how far it is; may raise to cancel.

    Returns
    -------
    Model or baselines.Baseline
        A `Model`, or one of `baselines.BASELINES`, with the course of training in its `report`.

    Raises
    ------
    FijiBridgeError
        If the images are too small or the camera cannot have recorded them, if training collapses twice, or
        if the engine's package is not installed.
    """
    began = time.monotonic()
    progress = progress or silent
    positive = {"max_minutes": max_minutes, "steps": steps, "batch": batch, "crop": crop}
    for name, value in (positive | {"learning_rate": learning_rate}).items():
        if value is not None and not (isinstance(value, (int, float, np.number)) and value > 0):
            raise FijiBridgeError(f"{name} is {value}; give a positive number.")
    counts: dict[str, Any] = {"neighbours": neighbours, "seed": seed}
    counts |= {} if blind_radius is None else {"blind_radius": blind_radius}
    for name, value in counts.items():
        if not (_is_whole(value) and 0 <= value < 2**63):
            raise FijiBridgeError(f"{name} is {value}; give 0 or a positive whole number.")
    for name, value in (("steps", steps), ("batch", batch), ("crop", crop)):
        if value is not None and not _is_whole(value):
            raise FijiBridgeError(f"{name} is {value}; give a whole number.")
    if crop < SMALLEST:
        raise FijiBridgeError(f"crop is {crop}; give at least {SMALLEST} pixels.")
    seed, neighbours = int(seed), int(neighbours)
    if isinstance(model, (str, os.PathLike)):
        model = load_model(model)
    if model is not None and not isinstance(model, (Model, Baseline)):
        raise FijiBridgeError(f"{model!r} is no model to go on from; give what train or load_model returned.")
    engine = engine or (DEFAULT_ENGINE if model is None else model.engine)
    denoiser_class(engine)
    if model is not None and model.engine != engine:
        raise FijiBridgeError(
            f"The model to go on from is of engine {model.engine!r}, not {engine!r}; name its engine."
        )
    if model is not None and not isinstance(model, Model):
        raise FijiBridgeError(f"A model of engine {engine!r} cannot be trained further; leave the model out.")
    _check_shape(engine, model, neighbours, blind_radius)
    if max_minutes is None:
        max_minutes = math.inf if steps is not None else 10.0
    where, camera = choose_device(device), Camera.of(camera)
    given = _open(stacks)
    aims = None if targets is None else _open(targets)
    _check_targets(engine, given, aims)
    whitening = Whitening()
    if model is not None:
        camera, whitening = camera or model.camera, model.whitening
        neighbours, blind_radius = model.network.neighbours, model.network.blind_radius
    opened = [repaired(stack, camera)[0] for stack in given]
    aims = aims and [repaired(stack, camera)[0] for stack in aims]
    if engine in BASELINES:
        camera = camera or estimate_camera(opened[0], progress=progress).camera
        return BASELINES[engine].train(
            opened, aims, camera, device=where, minutes=max_minutes, steps=steps, seed=seed, progress=progress
        )

    kind = ENGINES[engine]
    camera = kind.assumed_camera or camera
    if camera is None or blind_radius is None:
        estimate = noise_of(opened[0], camera, progress)
        camera = camera or estimate.camera
        if blind_radius is None or (model is not None and model.for_any_camera):
            whitening = Whitening() if kind.assumed_camera else undo_sharing(estimate, opened[0])
        if blind_radius is None:
            blind_radius = 0 if whitening else estimate.noise_reach
    if neighbours and min(stack.sizes["t"] for stack in opened) < 2:
        raise FijiBridgeError(
            f"{_name(opened[0])} has a single frame; neighbours need a movie, so leave that option out."
        )
    steps = steps or 20_000
    schedule = Schedule(steps, max_minutes, batch, learning_rate, warm_up=min(100, 1 + steps // 10))
    whitened, own = [whitening.whiten(stack) for stack in opened], whitening.camera(camera)
    pool = CropPool(whitened, own, where, np.random.default_rng(seed), crop, progress, neighbours)
    if 2 * blind_radius >= pool.crop:
        raise FijiBridgeError(
            f"blind_radius is {blind_radius}, and crops are {pool.crop} pixels across; give less than half"
            " of that."
        )
    if model is not None:  # with the width that its network learnt
        noise = kind(**{k: v for k, v in model.noise.constants().items() if k != "narrowing"})
    else:
        light = np.concatenate([part.photons.flatten().cpu().numpy() for part in pool.sample(2**20)])
        noise = kind.fit(light, own.excess_noise, float(np.min(own.read_variance)))
        shape = {"neighbours": neighbours, "blind_radius": blind_radius, "features": features, "head": head}
    trivial = _trivial_nll(noise, pool, blind_radius)
    failures: list[str] = []
    while True:
        attempt = seed + len(failures)
        network = copy.deepcopy(model.network) if model else _fresh(attempt, outputs=noise.outputs, **shape)
        run = _Run(network.to(where), noise, pool, schedule, attempt, began)
        try:
            report = run.train(trivial, progress)
            break
        except _CollapseError as collapse:
            failures.append(str(collapse))
            spent = (time.monotonic() - began) / 60 / max_minutes
            if len(failures) == 2 or spent > 0.9:
                raise FijiBridgeError(
                    f"Training on {_name(opened[0])} collapsed: {collapse}; check the camera (offset, gain,"
                    " read noise), train longer, or leave this stack as it is."
                ) from None
            schedule = replace(schedule, learning_rate=schedule.learning_rate / 3)
    balanced, ratio = _balance(run.best, noise, pool, progress)
    report |= {"trivial_nll": trivial, "collapsed": failures, "held_out_mean_ratio": ratio}
    source = ", ".join(str(stack.attrs.get("source", "array")) for stack in opened)
    details = describe(source, report["steps"]) | {"trained_on": [fingerprint(stack) for stack in given]}
    return Model(run.best.cpu(), balanced, camera, report, details, whitening)


class _Run:
    """One attempt at training."""

    def __init__(
        self,
        network: BlindSpotNetwork,
        noise: NoiseModel,
        pool: CropPool,
        schedule: Schedule,
        seed: int,
        began: float,
    ) -> None:
        self.noise, self.pool, self.schedule, self.began = noise, pool, schedule, began
        self.network = network.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.average = copy.deepcopy(self.network).eval()
        self.best = copy.deepcopy(self.average)
        self.rng = np.random.default_rng(seed)
        self.device = next(network.parameters()).device
        self.dice = torch.Generator(self.device).manual_seed(seed)
        self.half = has_bfloat16(self.device)
        self.optimizer = Optimizer(list(self.network.parameters()))

    def train(self, trivial: float, progress: Progress) -> dict[str, Any]:
        """Train until the budget or the improvement ends; `best` has the weights.

        Raises
        ------
        _CollapseError
            As soon as it shows.
        """
        schedule, start = self.schedule, self._minutes()
        allowed = max(schedule.minutes - start, 1e-9)
        decay_from, end, stopped = 1 - schedule.decay, 1.0, "the budget was used"
        curve: list[dict[str, float]] = []
        best, best_weight, reference, looks = math.inf, 0.0, math.inf, 0
        step, passed, recent = 0, 0.0, 0.0
        while passed < end:
            falling = 0.5 + 0.5 * math.cos(math.pi * max(0.0, passed - decay_from) / (end - decay_from))
            rising = min(1.0, max((step + 1) / schedule.warm_up, passed / WARM_SHARE))
            rate = schedule.learning_rate * rising * falling
            loss = self._step(rate, step)
            recent += (loss - recent) / min(step + 1, INTERVAL)
            step += 1
            passed = max(step / schedule.steps, (self._minutes() - start) / allowed)
            progress("Training", min(1000, int(1000 * passed / end)), 1000)
            if step % INTERVAL and passed < end:
                continue
            held_out, weight = self._look()
            curve.append(
                {
                    "step": step,
                    "minutes": round(self._minutes(), 3),
                    "training_nll": recent,
                    "held_out_nll": held_out,
                    "weight": weight,
                    "learning_rate": rate,
                }
            )
            if held_out < best:
                best, best_weight = held_out, weight
                self.best.load_state_dict(self.average.state_dict())
            looks = 0 if held_out < reference - schedule.improvement else looks + 1
            reference = min(reference, held_out) if looks == 0 else reference
            if looks >= schedule.patience and passed < decay_from:
                decay_from, end = passed, passed / (1 - schedule.decay)
                stopped = "the held-out likelihood stopped improving"
            if passed > 0.25 and (weight > INPUT_IS_OUTPUT or held_out > trivial + 1):
                stopped = "it grew worse than the neighbours' mean or kept the pixels' own noise"
                break
        if best_weight > INPUT_IS_OUTPUT:
            raise _CollapseError(f"{100 * best_weight:.0f}% of each pixel's own noise would be kept")
        if not best <= trivial + TOLERANCE:
            raise _CollapseError(
                f"its held-out likelihood, {best:.3f} nats a pixel, is worse than the {trivial:.3f}"
                " of the neighbours' mean"
            )
        precision = "bfloat16" if self.half else "float32"
        return {
            "steps": step,
            "minutes": round(self._minutes(), 2),
            "stopped": stopped,
            "held_out_nll": best,
            "weight": best_weight,
            "device": str(self.device),
            "precision": precision,
            "curve": curve,
        }

    def _minutes(self) -> float:
        return (time.monotonic() - self.began) / 60

    def _step(self, rate: float, step: int) -> float:
        batch = self.pool.draw(self.rng, self.schedule.batch)
        loss = _mean_nll(self._outputs(self.network, self._fainter(batch)), self.noise, batch)
        if not torch.isfinite(loss):
            raise _CollapseError("its likelihood is no longer finite")
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step(rate)
        memory = min(self.schedule.averaging, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.network.parameters()), 1 - memory)
        return loss.item()

    def _fainter(self, batch: Batch) -> Batch:
        """Show crops as if recorded with less light, so that no noise is seen twice and learnt by heart.

        With a share p of the light and made as bright again, a pixel of variance v has v (1 - p)/p more.
        Pixels that share noise are left as they are, since that noise would be of another kind.
        """
        if self.network.blind_radius:
            return batch
        share = 1 - DIMMED * torch.rand(len(batch.seen), 1, 1, 1, device=self.device, generator=self.dice)
        variance = batch.readout.excess * batch.seen + batch.readout.read_variance
        added = ((1 - share) / share * variance.clamp(min=0)).sqrt()
        noise = torch.randn(batch.seen.shape, device=self.device, generator=self.dice)
        return replace(batch, seen=batch.seen + added * noise)

    @torch.no_grad()
    def _look(self) -> tuple[float, float]:
        """Held-out likelihood of the averaged weights, and the weight they give to a pixel's own value."""
        batch = self.pool.held_out
        outputs = self._outputs(self.average, batch)
        weight = self.noise.weight(outputs, batch.readout)[batch.counts > 0].mean()
        return float(_mean_nll(outputs, self.noise, batch)), float(weight)

    def _outputs(self, network: BlindSpotNetwork, batch: Batch) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            outputs: Tensor = network(self.noise.normalize(batch.seen))
        return outputs


def _mean_nll(outputs: Tensor, noise: NoiseModel, batch: Batch) -> Tensor:
    nll = noise.nll(outputs, batch.photons, batch.readout)
    return (nll * batch.counts).sum() / batch.counts.sum().clamp(min=1)


def _is_whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _name(stack: xr.DataArray) -> str:
    return str(stack.attrs.get("source", "the stack"))


def _fresh(seed: int, **shape: Any) -> BlindSpotNetwork:
    with torch.random.fork_rng(devices=[]):  # weights are drawn on the CPU, whatever trains them
        torch.default_generator.manual_seed(seed)
        return BlindSpotNetwork(**shape)


def _trivial_nll(noise: NoiseModel, pool: CropPool, blind_radius: int) -> float:
    """Held-out likelihood of the best prior that is linear in the mean of the nearest pixels not hidden.

    It includes one prior for all pixels. A network has to beat it, or on flat data to equal it.
    """
    hidden, side = 2 * blind_radius + 1, 2 * blind_radius + 3
    ring = torch.full((1, 1, side, side), 1 / (side**2 - hidden**2))
    ring[..., 1:-1, 1:-1] = 0
    table = torch.zeros(2, noise.outputs, dtype=torch.float64, requires_grad=True)

    def mean_nll(batch: Batch) -> Tensor:
        seen = conv2d(noise.normalize(batch.photons), ring.to(batch.photons.device), padding=side // 2)
        slope, start = table.to(seen.device)[:, None, :, None, None]
        return _mean_nll(seen.double() * slope + start, noise, batch)

    batches = pool.sample(min(2**17, 2**22 // noise.outputs))
    optimizer = torch.optim.LBFGS([table], max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = torch.stack([mean_nll(batch) for batch in batches]).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        return float(mean_nll(pool.held_out))


@torch.no_grad()
def _balance(
    network: BlindSpotNetwork, noise: NoiseModel, pool: CropPool, progress: Progress
) -> tuple[NoiseModel, float]:
    """Make the mean of the denoised data that of the raw; give their ratio on held-out pixels.

    First the held-out pixels judge how wide the priors are.

    Pixels that no light and noise explain, hot or dead ones, do not count.
    """
    batches = [*pool.sample(2 * _enough_pixels(pool) // noise.outputs), pool.held_out]
    rows: list[tuple[Tensor, ...]] = []
    for done, batch in enumerate(batches):
        progress("Balancing the mean", done, len(batches))
        outputs = symmetric_outputs(network, noise.normalize(batch.seen))
        known = batch.counts.bool() if batch is pool.held_out else torch.ones_like(batch.counts).bool()
        usual = (known & ~outliers(noise, outputs, batch.photons, batch.readout)).flatten()
        variance = torch.as_tensor(batch.readout.read_variance).expand_as(batch.photons)
        # All pixels in a row, as images of one pixel.
        columns = [outputs.movedim(1, -1).flatten(0, 2)[..., None, None]]
        columns += [values.flatten()[:, None, None, None] for values in (batch.photons, variance)]
        rows.append(tuple(column[usual] for column in columns))
    *trained_on, (apart, light, variance_apart) = rows
    outputs, photons, variance = (torch.cat(part) for part in zip(*trained_on, strict=True))
    readout, readout_apart = (replace(pool.readout, read_variance=v) for v in (variance, variance_apart))
    noise = noise.narrowed(apart, light, readout_apart).balanced(outputs, photons, readout)
    denoised = noise.estimate(apart, light, readout_apart, noise.estimators[0])
    return noise, float(denoised.double().sum() / light.double().sum())


def _enough_pixels(pool: CropPool) -> int:
    """Give the number of pixels whose noise leaves their mean known to `IMBALANCE`."""
    light = torch.cat([batch.photons.flatten() for batch in pool.sample(BALANCED_PIXELS[0] // 4)])
    mean = max(float(light.mean()), 1e-3)
    variance = pool.readout.excess * mean + float(torch.as_tensor(pool.readout.read_variance).float().mean())
    return int(np.clip(variance / (IMBALANCE * mean) ** 2, *BALANCED_PIXELS))


def _open(stacks: Any) -> list[xr.DataArray]:
    several = (
        isinstance(stacks, (list, tuple)) and stacks and all(isinstance(s, xr.DataArray) for s in stacks)
    )
    return [open_stack(stack) for stack in (stacks if several else [stacks])]


def _check_shape(
    engine: str, model: Model | Baseline | None, neighbours: int, blind_radius: int | None
) -> None:
    """Refuse what the network shall see where that is not free to choose."""
    fixed = model.network if isinstance(model, Model) else None
    asked = (("neighbours", neighbours or None), ("blind_radius", blind_radius))
    for name, value in asked:
        if value is None:
            continue
        if engine in BASELINES:
            raise FijiBridgeError(f"The engine {engine!r} has no option {name}; leave it out.")
        known = value if fixed is None else getattr(fixed, name)
        if known != value:
            raise FijiBridgeError(
                f"The model to go on from has {name}={known}, not {value}; leave that option out."
            )


def _check_targets(engine: str, stacks: list[xr.DataArray], targets: list[xr.DataArray] | None) -> None:
    """Refuse targets that the engine has no use for or that do not fit."""
    if targets is None:
        return
    if engine not in TARGETED:
        raise FijiBridgeError(
            f"The engine {engine!r} trains without targets; leave them out, or take {' or '.join(TARGETED)}."
        )
    shapes, wanted = ([tuple(stack.shape) for stack in part] for part in (targets, stacks))
    if shapes != wanted:
        raise FijiBridgeError(
            f"The targets have the shapes {shapes} and the stacks {wanted}; give each stack a target of its"
            " shape."
        )
