"""What earned the default its place: one part changed at a time.

On FMDD's mice (four captures, each denoised from itself alone; mean PSNR [dB] against the average of 50):

- `camera`: gain and offset known (a line through the variance of the captures around the average), estimated
  from the captures, or ignored (grey values taken for photons);
- `estimator`: posterior mean, maximum of the posterior (MAP) and prior mean of one network;
- `network`: half and twice the channels.

On simulated movies of molecules (PSNR [dB] of the photons against the light without noise, of the range of a
frame on average):

- `likelihood`: every noise model behind an sCMOS camera (read noise 1.5 photons), in a tenth of the light,
  where the camera has no offset and so cuts the noise off at 0, and behind EM gain;
- `neighbours`: frames before and after that the network sees, where molecules last 1, 3 or 10 frames at an
  equal number of molecules and photons in a frame;
- `hot pixels`: one pixel in 500 has a dark current of 20 to 1000 electrons a frame, left so or replaced,
  with a network trained on the movie and with the single-molecule model that ships.

    python benchmarks/denoising_ablations.py --steps 800 --only camera

A cell is kept in the CSV file beside this script as soon as it is known; started again, the benchmark goes on
from there. Without --only it fills all that is missing.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from unittest.mock import patch

import numpy as np
from camera_estimate import truth as camera_truth
from cells import Cells, budget, mean_psnr, parse, shared_data

from fiji_bridge import Camera, denoise, open_stack, simulate, train
from fiji_bridge.denoising import prediction, training
from fiji_bridge.denoising.training import DEFAULT_ENGINE
from fiji_bridge.engines import NOISE_MODELS
from fiji_bridge.evaluation.image_quality import psnr
from fiji_bridge.simulation import expected_photons, record

DATA = shared_data("fmdd_testmix")
COLUMNS = ("part", "variant", "data", "psnr_db", "minutes")
WIDTHS = {"half": (6, 8, 12, 16), "as it is": (12, 16, 24, 32), "twice": (24, 32, 48, 64)}
LIFETIMES = (1, 3, 10)
SCMOS = Camera(offset=100.0, photons_per_adu=1.0, read_noise=1.5, pixel_size_nm=110.0)
CAMERAS = {
    # camera, and how much light there is
    "sCMOS": (SCMOS, 1.0),
    "a tenth of the light": (SCMOS, 0.1),
    "cut off at 0": (SCMOS.replace(offset=0.0), 0.1),
    "EM gain": (SCMOS.replace(photons_per_adu=4.0, em_gain=300.0, read_noise=15.0), 0.3),
}
FRAMES, SIDE = 60, 96
HOT = 500
"""Of how many pixels one is hot."""


@cache
def mice(kind: str) -> np.ndarray:
    return np.asarray(open_stack(sorted((DATA / kind).glob("Confocal_MICE_*.png"))).to_numpy())


def cameras() -> dict[str, Camera | None]:
    _, _, gain, offset = camera_truth(mice("raw").astype(float), mice("gt").astype(float).mean(axis=0))
    known = Camera(offset=offset, photons_per_adu=1 / gain)
    return {"known": known, "estimated": None, "ignored": Camera(offset=0.0, photons_per_adu=1.0)}


@cache
def trained_on_mice(camera: str, width: str, **budget: float | None) -> tuple[object, float]:
    """Give a model, and the minutes its training took."""
    began = time.monotonic()
    model = train(mice("raw"), camera=cameras()[camera], features=WIDTHS[width], **budget)
    return model, (time.monotonic() - began) / 60


def on_mice(camera: str, width: str, estimator: str, **budget: float | None) -> dict[str, str]:
    model, minutes = trained_on_mice(camera, width, **budget)
    images = denoise(mice("raw"), model, estimator=estimator).to_numpy()
    return {"psnr_db": f"{mean_psnr(images, mice('gt')):.2f}", "minutes": f"{minutes:.1f}"}


@cache
def movie(camera: str, lifetime: int) -> tuple[np.ndarray, np.ndarray]:
    """Simulate molecules that last `lifetime` frames: A/D counts and the light [photons], both (t, y, x)."""
    known, brightness = CAMERAS[camera]
    options = f"width={SIDE} height={SIDE} density={0.5 / lifetime} intensityrange=150:500 fwhm_range=250:320"
    molecules = simulate(options=options, frames=FRAMES + lifetime, camera=known).ground_truth
    pixel = SCMOS.pixel_size_nm
    x, y, sigma = (molecules[f"{name} [nm]"].to_numpy() / pixel for name in ("x", "y", "sigma"))
    photons, first = molecules["intensity [photon]"].to_numpy(), molecules["frame"].to_numpy()
    light = np.empty((FRAMES, SIDE, SIDE))
    for frame in range(FRAMES):
        on = (first > frame) & (first <= frame + lifetime)
        light[frame] = 10 + expected_photons(x[on], y[on], sigma[on], photons[on], (SIDE, SIDE))
    light *= brightness
    return record(light, known, np.random.default_rng(0)), light


def on_movie(
    camera: str, lifetime: int, engine: str | None, neighbours: int, **budget: float | None
) -> dict[str, str]:
    counts, light = movie(camera, lifetime)
    known, _ = CAMERAS[camera]
    began = time.monotonic()
    model = train(counts, camera=known, engine=engine or DEFAULT_ENGINE, neighbours=neighbours, **budget)
    return score(counts, light, model, known, (time.monotonic() - began) / 60)


def score(
    counts: np.ndarray, light: np.ndarray, model: object, known: Camera, minutes: float
) -> dict[str, str]:
    found = known.to_photons(denoise(counts, model, camera=known).to_numpy())
    scale = float(np.mean(light.max(axis=(1, 2)) - light.min(axis=(1, 2))))
    scores = [psnr(image, true, scale) for image, true in zip(found, light, strict=True)]
    return {"psnr_db": f"{np.mean(scores):.2f}", "minutes": f"{minutes:.1f}"}


def with_hot_pixels(shipped: str | None, hot: bool, replaced: bool, **budget: float | None) -> dict[str, str]:
    counts, light = movie("sCMOS", 1)
    rng, number = np.random.default_rng(0), SIDE**2 // HOT if hot else 0
    at = np.unravel_index(rng.choice(SIDE**2, number, replace=False), (SIDE, SIDE))
    counts = counts.copy()
    counts[:, *at] += rng.poisson(10 ** rng.uniform(1.3, 3, number), (FRAMES, number)).astype(counts.dtype)
    began = time.monotonic()
    with ExitStack() as left:
        if not replaced:
            for module in (training, prediction):
                left.enter_context(patch.object(module, "repaired", lambda stack, camera: (stack, 0)))
        model = shipped or train(counts, camera=SCMOS, **budget)
        return score(counts, light, model, SCMOS, (time.monotonic() - began) / 60)


def variants() -> list[tuple[str, str, str, Callable[..., dict[str, str]], tuple[object, ...]]]:
    """Part, variant and data of each cell, and what to call with which arguments."""
    rows: list[tuple[str, str, str, Callable[..., dict[str, str]], tuple[object, ...]]] = []
    for camera in ("known", "estimated", "ignored"):
        rows.append(("camera", camera, "mice", on_mice, (camera, "as it is", "mean")))
    for estimator in ("mean", "map", "prior"):
        rows.append(("estimator", estimator, "mice", on_mice, ("estimated", "as it is", estimator)))
    for width in WIDTHS:
        rows.append(("network", width, "mice", on_mice, ("estimated", width, "mean")))
    for camera in CAMERAS:
        for engine in NOISE_MODELS:
            rows.append(("likelihood", engine, camera, on_movie, (camera, 1, engine, 0)))
    for lifetime in LIFETIMES:
        for neighbours in (0, 1, 2):
            data = f"molecules of {lifetime} frames"
            rows.append(
                ("neighbours", str(neighbours), data, on_movie, ("sCMOS", lifetime, None, neighbours))
            )
    for variant, shipped in (("trained on it", None), ("single-molecule", "single-molecule")):
        for data, hot, replaced in (("none", False, True), ("left", True, False), ("replaced", True, True)):
            rows.append(("hot pixels", variant, data, with_hot_pixels, (shipped, hot, replaced)))
    return rows


def main() -> None:
    options = parse(__doc__, Path(__file__).with_suffix(".csv"), minutes=10.0)
    cells = Cells(options, COLUMNS, keys=3)
    for part, variant, data, call, arguments in variants():
        if cells.wanted(part, variant, data):
            cells.keep(**call(*arguments, **budget(options)))
    cells.show()


if __name__ == "__main__":
    main()
