"""Time from a noisy stack to a good one, and how near training and prediction come to bare convolutions.

1. CAREamics' N2V at its own defaults, then the default engine, on the same captures (FMDD's mice), machine
   and run: minutes that the default engine needs to reach N2V's final PSNR, and the seconds in which each
   predicts a stack. N2V's 30 epochs of these captures, each all patches once, are 480 steps; ours of that
   name have 100 steps at least, and then N2V is better and takes six times as long.
2. Floating-point operations a second of a training step and of prediction, over those of the same
   convolutions alone, forward and backward, with the same shapes, memory format and precision.

    python benchmarks/denoising_speed.py [--skip-n2v] [--n2v-steps 480] [--device cuda]
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cells import mean_psnr
from torch import nn
from torch.overrides import TorchFunctionMode

from fiji_bridge import denoise, estimate_camera, open_stack, train
from fiji_bridge.denoising.crops import CropPool
from fiji_bridge.denoising.model import has_bfloat16
from fiji_bridge.denoising.network import BlindSpotNetwork
from fiji_bridge.denoising.noise_models import ENGINES
from fiji_bridge.denoising.prediction import symmetric_outputs
from fiji_bridge.denoising.training import DEFAULT_ENGINE, Schedule, _Run
from fiji_bridge.devices import choose_device, keeping_memory
from fiji_bridge.progress import silent

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "fmdd_testmix"
CHECKPOINTS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Training times at which the default engine is scored [minutes]."""


def timed(call: Callable[[], object], device: torch.device, seconds: float = 4.0) -> float:
    """Median time of a call [s]."""
    call()
    spent: list[float] = []
    while sum(spent) < seconds or len(spent) < 3:
        began = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        spent.append(time.perf_counter() - began)
    return float(np.median(spent))


class Convolutions(TorchFunctionMode):
    """Notes the shapes of images and kernels, and the padding, of each convolution that runs meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[torch.Size, torch.Size, Any]] = []

    def __torch_function__(self, function: Any, types: Any, given: Any = (), options: Any = None) -> Any:
        """Note and call."""
        options = options or {}
        if function is torch.conv2d:
            image, kernel = given[:2]
            padding = options.get("padding", given[4] if len(given) > 4 else 0)
            self.seen.append((image.shape, kernel.shape, padding))
        return function(*given, **options)


def convolutions_of(call: Callable[[], object]) -> list[tuple[torch.Size, torch.Size, Any]]:
    """Shapes of the convolutions of a call."""
    with Convolutions() as noted:
        call()
    return noted.seen


def bare(
    shapes: list[tuple[torch.Size, torch.Size, Any]], device: torch.device, half: bool, backward: bool
) -> tuple[Callable[[], None], float]:
    """Run plain convolutions of these shapes; also give their floating-point operations."""
    dtype = torch.bfloat16 if half else torch.float32
    work, operations = [], 0.0
    for shape, kernel, padding in shapes:
        given, weight = (
            torch.randn(s, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
            for s in (shape, kernel)
        )
        result = nn.functional.conv2d(given, weight, padding=padding)
        back = torch.ones_like(result)
        work.append((given.requires_grad_(backward), weight.requires_grad_(backward), padding, back))
        operations += 2 * result.numel() * weight[0].numel() * (3 if backward else 1)

    def call() -> None:
        for given, weight, padding, back in work:
            with torch.set_grad_enabled(backward):
                result = nn.functional.conv2d(given, weight, padding=padding)
                if backward:
                    torch.autograd.grad(result, (given, weight), back)

    return call, operations


@keeping_memory()
def efficiency(raw: np.ndarray, device: torch.device) -> None:
    """Print rates of training steps and prediction against bare convolutions."""
    camera = estimate_camera(open_stack(raw)).camera
    pool = CropPool([open_stack(raw)], camera, device, np.random.default_rng(0), 64, silent)
    light = np.concatenate([part.photons.flatten().cpu().numpy() for part in pool.sample(2**20)])
    noise = ENGINES[DEFAULT_ENGINE].fit(light, camera.excess_noise, float(np.min(camera.read_variance)))
    network = BlindSpotNetwork(outputs=noise.outputs).to(device)
    run = _Run(network, noise, pool, Schedule(10**6, 1e9, 6, 2e-3, 100), 0, time.monotonic())
    half = has_bfloat16(device)
    print(f"{'':12} {'ours [ms]':>10} {'bare [ms]':>10} {'bare/ours':>10} {'GFLOP/s':>9}")

    def step() -> None:
        run._step(1e-4, 10**6)

    report("training", timed(step, device), bare(convolutions_of(step), device, half, True), device)

    image = noise.normalize(torch.from_numpy(np.asarray(camera.to_photons(raw[:1]), np.float32))[:, None])
    image = image.to(device)
    for name, symmetries, low in (("prediction", 8, False), ("fast", 4, half)):

        def predict(symmetries: int = symmetries, low: bool = low) -> None:
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=low):
                symmetric_outputs(network.eval(), image, symmetries)

        report(name, timed(predict, device), bare(convolutions_of(predict), device, low, False), device)


def report(
    name: str, ours: float, convolutions: tuple[Callable[[], None], float], device: torch.device
) -> None:
    call, operations = convolutions
    least, rate = timed(call, device), operations / ours / 1e9
    print(
        f"{name:12} {1e3 * ours:10.1f} {1e3 * least:10.1f} {least / ours:10.2f} {rate:9.0f}",
        flush=True,
    )


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
