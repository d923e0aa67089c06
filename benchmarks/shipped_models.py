"""The models in models/: how they are trained, and what they are worth on data that they have not seen.

    python benchmarks/shipped_models.py train confocal --minutes 30
    python benchmarks/shipped_models.py score confocal

`confocal` is trained on FMDD's confocal BPAE nuclei (field of view 1) and the test mix without its mice, and
scored on the mice: PSNR of the model as it is, of the model trained on for some minutes, and of a network
trained for as long from nothing. `single-molecule` is trained on simulated movies of many brightnesses,
densities and widths of the PSF, and scored on others by the error of the photons. Each is also used on what
the other is for. Neither keeps its camera, so that each serves any.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import xarray as xr
from cells import mean_psnr, shared_data

from fiji_bridge import Camera, denoise, estimate_camera, load_model, open_stack, simulate, train

ROOT = Path(__file__).resolve().parents[1]
DATA = shared_data()
PHOTONS = Camera(offset=0.0, photons_per_adu=1.0)
SCMOS = Camera(offset=100.0, photons_per_adu=1.0, read_noise=1.5, pixel_size_nm=110.0)
MOVIES = {
    # new molecules / µm² and frame, photons of a molecule and of the background, FWHM of the PSF [nm]
    "dim": "density=0.3 intensityrange=80:300 addpoisssonvar=5 fwhm_range=220:300",
    "dim, bright background": "density=0.3 intensityrange=100:400 addpoisssonvar=50 fwhm_range=220:300",
    "usual": "density=0.3 intensityrange=300:1000 addpoisssonvar=20 fwhm_range=220:350",
    "bright": "density=0.3 intensityrange=1000:4000 addpoisssonvar=60 fwhm_range=220:350",
    "dense": "density=1.5 intensityrange=200:1000 addpoisssonvar=15 fwhm_range=220:320",
    "defocused": "density=0.3 intensityrange=300:1500 addpoisssonvar=20 fwhm_range=350:800",
}
UNSEEN = "density=0.5 intensityrange=150:500 addpoisssonvar=15 fwhm_range=250:320"


def photons(paths: list[Path]) -> xr.DataArray:
    """Give captures in photons, by the camera estimated from them."""
    stack = open_stack(sorted(paths))
    camera = estimate_camera(stack).camera
    return open_stack(np.asarray(camera.to_photons(stack.to_numpy()), np.float32))


def confocal() -> tuple[list[xr.DataArray], Camera]:
    mix = DATA / "fmdd_testmix" / "raw"
    kinds = sorted({path.name.rsplit("_", 1)[0] for path in mix.glob("*.png")} - {"Confocal_MICE"})
    nuclei = sorted((DATA / "fmdd_bpae_50" / "raw" / "1").glob("*.png"))[:8]
    return [photons(nuclei), *(photons(list(mix.glob(f"{kind}_*.png"))) for kind in kinds)], PHOTONS


def movie(options: str, seed: int, camera: Camera = SCMOS) -> np.ndarray:
    made = simulate(options=f"width=96 height=96 {options}", frames=40, seed=seed, camera=camera)
    return np.asarray(made.stack.to_numpy())


def single_molecule() -> tuple[list[xr.DataArray], Camera]:
    return [open_stack(movie(options, seed)) for seed, options in enumerate(MOVIES.values())], SCMOS


SETS: dict[str, Callable[[], tuple[list[xr.DataArray], Camera]]] = {
    "confocal": confocal,
    "single-molecule": single_molecule,
}


def train_model(name: str, minutes: float) -> None:
    stacks, camera = SETS[name]()
    last = [-1]

    def progress(stage: str, done: int, total: int) -> None:
        if total and done * 20 // total != last[0]:
            last[0] = done * 20 // total
            print(f"{stage} {done / total:.0%}", file=sys.stderr, flush=True)

    model = train(stacks, camera=camera, max_minutes=minutes, blind_radius=0, progress=progress)
    details = {**model.details, "source": f"benchmarks/shipped_models.py train {name} --minutes {minutes:g}"}
    replace(model, camera=None, details=details).save(ROOT / "models" / f"{name}.safetensors")
    print(f"{model.report['steps']} steps in {model.report['minutes']} minutes; {model.report['stopped']}")


def test_set(name: str) -> tuple[np.ndarray, Callable[[np.ndarray], str], Camera]:
    """Give captures, what scores them denoised, and their camera."""
    if name == "confocal":
        raw, truth = (
            open_stack(sorted((DATA / "fmdd_testmix" / kind).glob("Confocal_MICE_*.png"))).to_numpy()
            for kind in ("raw", "gt")
        )

        def psnr(images: np.ndarray) -> str:
            return f"{mean_psnr(images, truth):.2f} dB"

        return raw, psnr, estimate_camera(open_stack(raw)).camera
    raw = movie(UNSEEN, 100)
    # The same molecules without noise: so much light that none shows, in as many fewer counts.
    bright = UNSEEN.replace("150:500", "1.5e6:5e6").replace("=15 ", "=1.5e5 ")
    ideal = Camera(offset=100.0, photons_per_adu=1e3, pixel_size_nm=110.0)
    truth = (movie(bright, 100, ideal).astype(float) - 100) / 10

    def error(images: np.ndarray) -> str:
        return f"{np.sqrt(np.mean((SCMOS.to_photons(images) - truth) ** 2)):.3f} photons RMS"

    return raw, error, SCMOS


def score_model(name: str, budgets: tuple[float, ...]) -> None:
    raw, score, camera = test_set(name)
    model = load_model(name)
    print(f"raw: {score(raw)}", flush=True)
    for fast in (False, True):
        began = time.monotonic()
        found = score(denoise(raw, model, camera=camera, fast=fast).to_numpy())
        print(f"as it is{', fast' if fast else ''}: {found} in {time.monotonic() - began:.0f} s", flush=True)
    other = next(each for each in SETS if each != name)
    strange, rate, recorded_by = test_set(other)
    found = rate(denoise(strange, model, camera=recorded_by).to_numpy())
    print(f"on what {other} is for: {found}, raw {rate(strange)}", flush=True)
    for minutes in budgets:
        for start, what in ((model, "trained on"), (None, "from nothing")):
            tuned = train(raw, model=start, camera=camera, max_minutes=minutes)
            print(f"{what}, {minutes:g} minutes: {score(denoise(raw, tuned).to_numpy())}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["train", "score"])
    parser.add_argument("name", choices=list(SETS))
    parser.add_argument("--minutes", type=float, default=30.0, help="training time [minutes]")
    options = parser.parse_args()
    if options.what == "train":
        train_model(options.name, options.minutes)
    else:
        score_model(options.name, (0.5, 1.0, 2.0))


if __name__ == "__main__":
    main()
