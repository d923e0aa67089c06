"""Time from a noisy stack to a good one, and how near training and prediction come to bare convolutions.

1. CAREamics' N2V at its own defaults, then the default engine, on the same captures (FMDD's mice), machine
   and run: minutes that the default engine needs to reach N2V's final PSNR, and the seconds in which each
   predicts a stack. N2V's 30 epochs of these captures, each all patches once, are 480 steps; ours of that
   name have 100 steps at least, and then N2V is better and takes six times as long.
2. Floating-point operations a second of a training step and of prediction, over those of the same
   convolutions alone, forward and backward, with the same shapes, memory format and precision. Training
   once more with a camera of 1.6 electrons of read noise, for which the likelihood sums over electrons.

    python benchmarks/denoising_speed.py [--skip-n2v] [--n2v-steps 480] [--device cuda]
"""

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from cells import mean_psnr, shared_data
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fiji_bridge import denoise, estimate_camera, open_stack, train
from fiji_bridge.denoising.crops import CropPool
from fiji_bridge.denoising.model import has_bfloat16
from fiji_bridge.denoising.network import BlindSpotNetwork, Conv
from fiji_bridge.denoising.noise_models import ENGINES
from fiji_bridge.denoising.prediction import symmetric_outputs
from fiji_bridge.denoising.training import DEFAULT_ENGINE, Schedule, _Run
from fiji_bridge.devices import choose_device, keeping_memory
from fiji_bridge.progress import silent

DATA = shared_data("fmdd_testmix")
WARM_UP = 30
"""Steps before a step is timed."""
CHECKPOINTS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Training times at which the default engine is scored [minutes]."""


def timed(calls: Sequence[Callable[[], object]], device: torch.device, seconds: float = 12.0) -> list[float]:
    """Median times of calls [s], taken in turns, so that what else the machine does meets all alike."""
    spent: list[list[float]] = []
    while len(spent) < 4 or np.sum(spent) < seconds:
        spent.append([])
        for call in calls:
            began = time.perf_counter()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize()
            spent[-1].append(time.perf_counter() - began)
    return [float(t) for t in np.median(spent[1:], axis=0)]


class Products(TorchFunctionMode):
    """Notes the shapes of pixels and weights of matrix products, 1×1 convolutions, that run meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[torch.Size, torch.Size, Any]] = []

    def __torch_function__(self, function: Any, types: Any, given: Any = (), options: Any = None) -> Any:
        """Note and call."""
        if function is nn.functional.linear:
            self.seen.append((given[0].shape, given[1].shape, None))
        return function(*given, **(options or {}))


def convolutions_of(
    network: BlindSpotNetwork, call: Callable[[], object]
) -> list[tuple[torch.Size, torch.Size, Any]]:
    """Shapes of images and kernels, and the padding, of the convolutions of a call.

    Images whose channels a kernel takes together count as one, as if they had been joined for nothing.
    """
    with Products() as noted:

        def note(layer: Conv, images: tuple[Tensor, ...], options: dict[str, Any]) -> None:
            n, _, height, width = images[0].shape
            shape = torch.Size([n, layer.in_channels, height, width])
            noted.seen.append((shape, layer.weight.shape, (options["padding"], 1)))

        layers = [layer for layer in network.modules() if isinstance(layer, Conv)]
        hooks = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
        call()
        for hook in hooks:
            hook.remove()
    return noted.seen


def bare(
    shapes: list[tuple[torch.Size, torch.Size, Any]], device: torch.device, half: bool, backward: bool
) -> tuple[Callable[[], None], float]:
    """Run plain convolutions of these shapes; also give their floating-point operations."""
    dtype = torch.bfloat16 if half else torch.float32
    work, operations = [], 0.0
    for shape, kernel, padding in shapes:
        given, weight = (torch.randn(s, device=device, dtype=dtype) for s in (shape, kernel))
        if padding is not None:
            given, weight = (t.contiguous(memory_format=torch.channels_last) for t in (given, weight))
        function = partial(nn.functional.conv2d, padding=padding) if padding else nn.functional.linear
        result = function(given, weight)
        back = torch.ones_like(result)
        work.append((function, given.requires_grad_(backward), weight.requires_grad_(backward), back))
        operations += 2 * result.numel() * weight[0].numel() * (3 if backward else 1)

    def call() -> None:
        for function, given, weight, back in work:
            with torch.set_grad_enabled(backward):
                result = function(given, weight)
                if backward:
                    torch.autograd.grad(result, (given, weight), back)

    return call, operations


@keeping_memory()
def efficiency(raw: np.ndarray, device: torch.device) -> None:
    """Print rates of training steps and prediction against bare convolutions."""
    camera = estimate_camera(open_stack(raw)).camera
    half = has_bfloat16(device)
    print(f"{'':20} {'ours [ms]':>10} {'bare [ms]':>10} {'bare/ours':>10} {'GFLOP/s':>9}")
    # The last of them predicts, too.
    for name, own in (("with read noise", camera.replace(read_noise=1.6)), ("training", camera)):
        pool = CropPool([open_stack(raw)], own, device, np.random.default_rng(0), 64, silent)
        light = np.concatenate([part.photons.flatten().cpu().numpy() for part in pool.sample(2**20)])
        noise = ENGINES[DEFAULT_ENGINE].fit(light, own.excess_noise, float(np.min(own.read_variance)))
        network = BlindSpotNetwork(outputs=noise.outputs).to(device)
        run = _Run(network, noise, pool, Schedule(10**6, 1e9, 6, 2e-3, 100), 0, time.monotonic())
        step = partial(run._step, 1e-4, 10**6)
        for _ in range(WARM_UP):  # as of a network that has learnt something
            run._step(2e-3, 10**6)
        report(name, step, bare(convolutions_of(network, step), device, half, True), device)

    image = noise.normalize(torch.from_numpy(np.asarray(camera.to_photons(raw[:1]), np.float32))[:, None])
    image = image.to(device)
    for name, symmetries, low in (("prediction", 8, False), ("fast", 4, half)):

        def predict(symmetries: int = symmetries, low: bool = low) -> None:
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=low):
                symmetric_outputs(network.eval(), image, symmetries)

        report(name, predict, bare(convolutions_of(network, predict), device, low, False), device)


def report(
    name: str, call: Callable[[], None], convolutions: tuple[Callable[[], None], float], device: torch.device
) -> None:
    alone, operations = convolutions
    ours, least = timed([call, alone], device)
    rate = operations / ours / 1e9
    print(f"{name:20} {1e3 * ours:10.1f} {1e3 * least:10.1f} {least / ours:10.2f} {rate:9.0f}", flush=True)


def against_n2v(raw: np.ndarray, truth: np.ndarray, device: str, steps: int | None) -> None:
    """Print how long N2V at CAREamics' defaults takes, and when the default engine is as good."""
    began = time.monotonic()
    model = train(raw, engine="n2v", device=device, steps=steps, max_minutes=600)
    minutes = (time.monotonic() - began) / 60
    began = time.monotonic()
    goal = mean_psnr(denoise(raw, model, device=device).to_numpy(), truth)
    prediction = time.monotonic() - began
    print(f"N2V: {goal:.2f} dB after {minutes:.2f} minutes; prediction {prediction:.1f} s", flush=True)
    for allowed in CHECKPOINTS:
        began = time.monotonic()
        model = train(raw, device=device, max_minutes=allowed)
        spent = (time.monotonic() - began) / 60
        for fast in (False, True):
            began = time.monotonic()
            reached = mean_psnr(denoise(raw, model, device=device, fast=fast).to_numpy(), truth)
            prediction = time.monotonic() - began
            print(
                f"{DEFAULT_ENGINE}{', fast' if fast else ''}: {reached:.2f} dB after {spent:.2f} minutes"
                f" ({spent / minutes:.2f} of N2V's); prediction {prediction:.1f} s",
                flush=True,
            )
        if reached >= goal:
            break


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", help="cuda or cpu; left out: CUDA when present")
    parser.add_argument("--skip-n2v", action="store_true", help="only the second part")
    parser.add_argument("--n2v-steps", type=int, metavar="N", help="steps of N2V; left out: its 30 epochs")
    options = parser.parse_args()
    device = choose_device(options.device)
    raw, truth = (
        open_stack(sorted((DATA / kind).glob("Confocal_MICE_*.png"))).to_numpy() for kind in ("raw", "gt")
    )
    efficiency(raw, device)
    if not options.skip_n2v:
        against_n2v(raw, truth, str(device), options.n2v_steps)


if __name__ == "__main__":
    main()
