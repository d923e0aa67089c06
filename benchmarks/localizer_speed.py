"""Speed and memory of our localizer, as ratios to others on the same stack in the same run.

Simulates the plugin's default data (and 3 and 10 times its density with ``--dense``, of which multi-emitter
fits get the fewer frames the denser they are), runs ours and the ThunderSTORM plugin on it by WLSQ, by MLE
and, with fewer frames, by multi-emitter fits, each once to warm up and then measured; where Picasso is
installed, its fits of the same spots too. ``--memory`` instead runs ours on TIFF files of 1,000, 10,000 and
100,000 frames, and prints peak memory. ``--detection`` instead prints what each filter with its threshold and
detector takes, a frame.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tifffile

from fiji_bridge.camera import Camera
from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.evaluation import evaluate
from fiji_bridge.localizers import localize
from fiji_bridge.simulation import simulate

CAMERA = Camera(offset=100.0, photons_per_adu=1.0, pixel_size_nm=80.0)
RUNS = {
    "WLSQ": "",
    "MLE": "method=[Maximum likelihood]",
    "multi-emitter": "method=[Maximum likelihood] mfaenabled=true nmax=3 keep_same_intensity=false "
    "fixed_intensity=true expected_intensity=500:2500",
}
WITHOUT_FILES = "width=128 height=128"


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """Give the result, the seconds and the processor seconds that it took."""
    wall, processor = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - wall, time.process_time() - processor


def compare(frames: int, density: float, device: str | None) -> list[dict[str, Any]]:
    """Run ours and the plugin on one stack."""
    made = simulate(options=f"{WITHOUT_FILES} density={density}", camera=CAMERA, frames=frames)
    stack = made.stack.to_numpy()
    rows = []
    for name, options in RUNS.items():
        some = stack if name != "multi-emitter" else stack[: max(5, round(frames / (200 * density)))]
        truth = made.ground_truth[made.ground_truth["frame"] <= len(some)]
        for engine in ("torch", "thunderstorm"):
            settings = {"device": device} if engine == "torch" else {}

            def run(engine: str = engine, settings: Any = settings) -> Any:
                return localize(some, camera=CAMERA, options=options, engine=engine, **settings)  # noqa: B023

            try:
                run()  # warms up: Java compiles what it runs often
                table, wall, processor = timed(run)
            except FijiBridgeError as error:
                print(f"{name}, {engine}: {error}")
                continue
            scored = evaluate(table, truth, radius_nm=50.0)
            rows.append(
                {
                    "density": density,
                    "run": name,
                    "engine": engine,
                    "molecules/s": len(table) / wall,
                    "a processor's": len(table) / processor,
                    "frames/s": len(some) / wall,
                    "Jaccard": scored.jaccard,
                    "RMSE [nm]": scored.rmse_nm,
                }
            )
    return rows


def peers(count: int) -> list[dict[str, Any]]:
    """Fit the same spots with Picasso, where it is installed, and with ours."""
    import torch

    from fiji_bridge.torch_localizer.fitting import (
        Fitter,
        IntegratedGaussian,
        LeastSquares,
        MaximumLikelihood,
    )

    rng = np.random.default_rng(0)
    psf, grid = IntegratedGaussian(), torch.arange(-3, 4, dtype=torch.float64)
    true = np.column_stack([rng.uniform(-0.5, 0.5, (count, 2)), np.full((count, 3), (1.3, 900.0, 10.0))])
    model = psf(psf.free(torch.from_numpy(true)), grid)[0]
    spots = rng.poisson(model.numpy()).astype(np.float32)
    pixels = torch.from_numpy(spots).double()
    maximum, least = (Fitter(psf, method, 1.3, 3) for method in (MaximumLikelihood(), LeastSquares()))
    fits: dict[str, Callable[[], Any]] = {
        "ours MLE": lambda: maximum(pixels),
        "ours LSQ": lambda: least(pixels),
    }
    square = spots.reshape(-1, 7, 7)
    try:
        from picasso import gausslq, gaussmle

        fits["Picasso MLE"] = lambda: gaussmle.gaussmle(square, 0.001, 100, method="sigma")
        fits["Picasso LSQ"] = lambda: gausslq.fit_spots(square)
    except ImportError:
        print("Picasso is not installed.")
    rows = []
    for name, work in fits.items():
        work()
        _, wall, processor = timed(work)
        rows.append({"fit": name, "fits/s": count / wall, "a processor's": count / processor})
    return rows


def detection(frames: int) -> list[dict[str, Any]]:
    """Measure filter, threshold and detector alone, of each kind."""
    stack = simulate(options=WITHOUT_FILES, camera=CAMERA, frames=frames).stack.to_numpy()
    names = ("Wave.F1", "Box.F", "DoB.F", "Gauss.F", "LowGauss.F", "DoG.F", "Med.F")
    filters = (
        "Wavelet filter (B-Spline)", "Averaging (Box) filter", "Difference of averaging filters",
        "Gaussian filter", "Lowered Gaussian filter", "Difference-of-Gaussians filter", "Median filter",
    )  # fmt: skip
    runs = {
        name: f"filter=[{kind}] threshold=2*std({name}) estimator=[No estimator]"
        for name, kind in zip(names, filters, strict=True)
    }
    rows = []
    for name, options in [*runs.items(), ("likelihood ratio", "")]:
        rate = {"false_alarm_rate": 1e-4} if name == "likelihood ratio" else {}

        def run(options: str = options, rate: Any = rate) -> Any:
            return localize(stack, camera=CAMERA, options=options, engine="torch", device="cpu", **rate)

        run()
        table, wall, processor = timed(run)
        rows.append(
            {
                "run": name,
                "candidates": len(table),
                "µs a frame": 1e6 * wall / frames,
                "of processors": 1e6 * processor / frames,
            }
        )
    return rows


def peak_memory(path: str) -> float:
    """Localize a file; gives the process's peak [MiB]."""
    table = localize(path, camera=CAMERA, options="threshold=3*std(Wave.F1)", engine="torch", device="cpu")
    print(f"{len(table)} molecules", file=sys.stderr)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def write_frames(path: Path, frames: int) -> None:
    """Write a TIFF of 64×64 pixel frames, four molecules each."""
    block = np.random.default_rng(0).poisson(20, (100, 64, 64)).astype(np.uint16) + np.uint16(100)
    block[:, 20::24, 20::24] += 200
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        pages = (block[n % len(block)] for n in range(frames))
        file.write(pages, shape=(frames, 64, 64), dtype=np.uint16, photometric="minisblack")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=2000)
    parser.add_argument("--dense", action="store_true", help="also 3 and 10 times the density")
    parser.add_argument("--device", default=None, help="torch device, such as cpu or cuda")
    parser.add_argument("--memory", action="store_true", help="measure memory instead")
    parser.add_argument("--detection", action="store_true", help="measure detection alone instead")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak_of:
        print(peak_memory(arguments.peak_of))
        return
    if arguments.memory:
        with tempfile.TemporaryDirectory() as folder:
            for frames in (1000, 10_000, 100_000):
                path = Path(folder) / "stack.tif"
                write_frames(path, frames)
                command = [sys.executable, __file__, "--peak-of", str(path)]
                result = subprocess.run(command, capture_output=True, text=True, check=True)
                print(f"{frames:>7} frames: {float(result.stdout):,.0f} MiB, {result.stderr.strip()}")
        return
    if arguments.detection:
        table = pd.DataFrame(detection(max(1, arguments.frames // 10)))
        print(table.to_string(index=False, float_format=lambda value: f"{value:.0f}"))
        return
    densities = (0.1, 0.3, 1.0) if arguments.dense else (0.1,)
    rows = [row for density in densities for row in compare(arguments.frames, density, arguments.device)]
    table = pd.DataFrame(rows)
    print(table.to_string(index=False, float_format=lambda value: f"{value:.4g}"))
    speed = table.pivot(
        index=["density", "run"], columns="engine", values=["molecules/s", "a processor's", "Jaccard"]
    )
    if "thunderstorm" in table["engine"].to_numpy():
        ratios = speed.xs("torch", axis=1, level=1) / speed.xs("thunderstorm", axis=1, level=1)
        print("Ours over the plugin's:")
        print(ratios.to_string(float_format=lambda value: f"{value:.3g}"))
    print(pd.DataFrame(peers(20_000)).to_string(index=False, float_format=lambda value: f"{value:,.0f}"))


if __name__ == "__main__":
    main()
