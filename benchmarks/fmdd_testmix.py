"""How well single captures of real microscopes are denoised, by every engine and baseline.

FMDD's test mix (Zhang et al. 2019): mean PSNR [dB] and SSIM, 8-bit range, against the average of 50
captures. Each method is trained on the four noisy captures of a type, or on the first alone, which is then
scored alone; each capture is denoised from itself alone. The averages are used for nothing but the score, and
the camera is estimated from the noisy captures. BM3D works between a generalized Anscombe transformation and
its exact unbiased inverse, with the same camera.

Types named `… blurred by 0.5 px` and `1 px` are simulated: the average as the light, Poisson noise as strong
as in the captures, blurred by a Gaussian of that standard deviation, as where optics or resampling come after
the detector. There the average without the noise is the truth.

    python benchmarks/fmdd_testmix.py --minutes 15 --only Confocal_MICE gamma-poisson

A cell, one type by one method, is kept in the CSV file beside this script as soon as it is known; started
again, the benchmark goes on from there. Without --only it fills all that is missing.
"""

import re
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from cells import Cells, budget, mean_psnr, parse, shared_data
from scipy.ndimage import gaussian_filter
from skimage.metrics import structural_similarity

from fiji_bridge import Camera, denoise, estimate_camera, open_stack, train
from fiji_bridge.denoising.noise_models import ENGINES

DATA = shared_data("fmdd_testmix")
COLUMNS = ("type", "method", "trained_on", "psnr_db", "ssim", "minutes", "camera")
METHODS = ("raw", "bm3d", "n2v", "pn2v", *ENGINES)
SIXTEEN_BIT = 64.0
"""Factor on the grey values of simulated captures, so that rounding adds no noise of its own."""


def score(images: np.ndarray, truth: np.ndarray) -> dict[str, str]:
    """Mean PSNR and SSIM over images (n, y, x) of 8-bit range."""
    similar = [
        structural_similarity(a, b, data_range=255)
        for a, b in zip(images.astype(float), truth.astype(float), strict=True)
    ]
    return {
        "psnr_db": f"{mean_psnr(images, truth):.2f}",
        "ssim": f"{np.mean(similar):.4f}",
    }


def load(folder: Path, kind: str) -> np.ndarray:
    return np.asarray(open_stack(sorted(folder.glob(f"{kind}_*.png"))).to_numpy())


def blurred(raw: np.ndarray, truth: np.ndarray, sigma: float) -> np.ndarray:
    """Simulate 16-bit captures of the true light with blurred Poisson noise."""
    camera = estimate_camera(open_stack(raw)).camera
    light = np.maximum(camera.to_photons(truth.astype(np.float64)), 0)
    noise = np.random.default_rng(0).poisson(light) - light
    smooth = gaussian_filter(noise, (0, sigma, sigma))
    return np.round(SIXTEEN_BIT * (camera.to_adu(light + smooth) + 20)).astype(np.uint16)


def recordings() -> Iterator[tuple[str, float]]:
    """Types with the blur of their noise [pixels]."""
    kinds = sorted({re.sub(r"_\d+$", "", path.stem) for path in (DATA / "raw").glob("*.png")})
    for sigma, name in ((0.0, ""), (0.5, " blurred by 0.5 px"), (1.0, " blurred by 1 px")):
        for kind in kinds:
            yield kind + name, sigma


def captures(kind: str, sigma: float) -> tuple[np.ndarray, np.ndarray, float, float]:
    """Give captures and truth (n, y, x), and the scale and offset that make the 8-bit range of them."""
    name = kind.split(" ")[0]
    raw, truth = load(DATA / "raw", name), load(DATA / "gt", name)
    if not sigma:
        return raw, truth, 1.0, 0.0
    return blurred(raw, truth, sigma), truth, SIXTEEN_BIT, 20.0


def run(method: str, stack: np.ndarray, **budget: float | None) -> tuple[np.ndarray, Camera | None]:
    """Denoised captures, and the camera that the method assumed."""
    if method == "raw":
        return stack, None
    model = train(stack, engine=method, **budget)
    return denoise(stack, model).to_numpy(), model.camera


def main() -> None:
    options = parse(__doc__, Path(__file__).with_suffix(".csv"), minutes=15.0)
    cells = Cells(options, COLUMNS, keys=3)
    for kind, sigma in recordings():
        for method in METHODS:
            for number in (4, 1):
                if not cells.wanted(kind, method, f"{number} captures"):
                    continue
                stack, truth, scale, offset = captures(kind, sigma)
                began = time.monotonic()
                images, camera = run(method, stack[:number], **budget(options))
                spent = (time.monotonic() - began) / 60
                cells.keep(
                    **score(images / scale - offset, truth[:number]),
                    minutes=f"{spent:.1f}",
                    camera=camera.options() if camera else "",
                )
    cells.show()


if __name__ == "__main__":
    main()
