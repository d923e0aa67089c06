"""Denoising over noise regimes: trained on one field of view, used on another (Poi2Void, tables 1 to 3).

FMDD's confocal BPAE nuclei (Zhang et al. 2019), 50 captures of two fields of view. Noise regimes NR1 to NR5
are averages of 1, 2, 4, 8 and 16 captures. Each method is trained on all averages of field of view 1 in a
regime and used on three averages of field of view 19 in the same regime, spread over the recording, because
its cells brighten by 15% from the first capture to the last. n2n has other averages of field of view 1 as
targets and care, the supervised U-Net, its average of 50. The camera is estimated from single captures of
field of view 1, and the averages have as many times its photons per A/D count.

`psnr_db` is against the average of all 50 captures, as published; `psnr_apart_db` against the average of the
captures that are not in the image scored. Rows named `METHOD from mice` were trained on the mice of FMDD's
test mix. `prediction` is of the whole image, or of crops of 128 pixels: a grid of 4 × 4, or a stride of 64
with the overlaps averaged.

    python benchmarks/fmdd_regimes.py --minutes 5 --only gamma-poisson NR1

A cell is kept in the CSV file beside this script as soon as it is known; started again, the benchmark goes on
from there. Without --only it fills all that is missing.
"""

import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from cells import Cells, budget, parse, shared_data

from fiji_bridge import Camera, denoise, estimate_camera, open_stack, train
from fiji_bridge.denoising.noise_models import ENGINES
from fiji_bridge.evaluation.image_quality import psnr

DATA = shared_data()
COLUMNS = ("method", "regime", "estimator", "prediction", "psnr_db", "psnr_apart_db", "minutes")
REGIMES = {"NR1": 1, "NR2": 2, "NR3": 4, "NR4": 8, "NR5": 16}
METHODS = (
    "raw",
    "bm3d",
    "n2v",
    "pn2v",
    "n2n",
    "care",
    *ENGINES,
    *(f"{engine} from mice" for engine in ENGINES),
)
SCORED = 3
"""Images scored in each regime."""
CROP = 128


@cache
def captures(field: int) -> np.ndarray:
    """Single captures (50, y, x)."""
    folder = DATA / "fmdd_bpae_50" / "raw" / str(field)
    return open_stack(sorted(folder.glob("*.png"))).to_numpy().astype(np.float32)


@cache
def single_camera(folder: str) -> Camera:
    if folder == "mice":
        paths = sorted((DATA / "fmdd_testmix" / "raw").glob("Confocal_MICE_*.png"))
        return estimate_camera(open_stack(paths)).camera
    return estimate_camera(open_stack(captures(1).astype(np.uint8))).camera


def averaging(camera: Camera, number: int) -> Camera:
    """Give the camera of averages: as many times the photons per count, and read noise by its root."""
    return camera.replace(
        photons_per_adu=camera.photons_per_adu * number, read_noise=camera.read_noise * number**0.5
    )


def averages(field: int, number: int) -> np.ndarray:
    """Averages of captures that no two share (n, y, x)."""
    single = captures(field)
    whole = len(single) // number * number
    return single[:whole].reshape(-1, number, *single.shape[1:]).mean(axis=1)


@cache
def trained(method: str, number: int, **budget: float | None) -> tuple[object, float]:
    """Model of a method for averages of `number` captures, and the minutes its training took."""
    began = time.monotonic()
    engine, _, sample = method.partition(" from ")
    if sample:
        paths = sorted((DATA / "fmdd_testmix" / "raw").glob("Confocal_MICE_*.png"))
        model = train(open_stack(paths), engine=engine, camera=single_camera("mice"), **budget)
    else:
        noisy = averages(1, number)
        targets = {
            "n2n": lambda: np.roll(noisy, 1, axis=0),
            "care": lambda: np.broadcast_to(captures(1).mean(axis=0), noisy.shape),
        }.get(engine, lambda: None)()
        camera = averaging(single_camera("BPAE"), number)
        model = train(noisy, targets=targets, engine=engine, camera=camera, **budget)
    return model, (time.monotonic() - began) / 60


def by_crops(predict: Callable[[np.ndarray], np.ndarray], images: np.ndarray, stride: int) -> np.ndarray:
    """Predict crops on their own, and average where they overlap."""
    total, weight = np.zeros(images.shape), np.zeros(images.shape)
    for top in range(0, images.shape[1] - CROP + 1, stride):
        for left in range(0, images.shape[2] - CROP + 1, stride):
            window = np.s_[:, top : top + CROP, left : left + CROP]
            total[window] += predict(images[window])
            weight[window] += 1
    return total / weight


def run(method: str, regime: str, estimator: str, prediction: str, **budget: float | None) -> dict[str, str]:
    number = REGIMES[regime]
    images = averages(19, number)
    images = images[[int((i + 0.5) / SCORED * len(images)) for i in range(SCORED)]]
    spent, result = 0.0, images
    if method != "raw":
        model, spent = trained(method, 1 if " from " in method else number, **budget)
        camera = averaging(single_camera("BPAE"), number)

        def predict(part: np.ndarray) -> np.ndarray:
            return denoise(part, model, camera=camera, estimator=estimator).to_numpy()

        stride = {"grid": CROP, "strided": CROP // 2}.get(prediction)
        result = by_crops(predict, images, stride) if stride else predict(images)
    single = captures(19).astype(float)
    everything = single.mean(axis=0)
    apart = [(single.sum(axis=0) - number * image) / (len(single) - number) for image in images]
    return {
        "psnr_db": f"{np.mean([psnr(a, everything, 255) for a in result]):.2f}",
        "psnr_apart_db": f"{np.mean([psnr(a, b, 255) for a, b in zip(result, apart, strict=True)]):.2f}",
        "minutes": f"{spent:.1f}",
    }


def main() -> None:
    options = parse(__doc__, Path(__file__).with_suffix(".csv"), minutes=5.0)
    cells = Cells(options, COLUMNS, keys=4)
    for method in METHODS:
        for regime in REGIMES:
            kind = ENGINES.get(method.partition(" ")[0])
            for estimator in kind.estimators if kind else ("mean",):
                for prediction in (
                    ("whole", "strided", "grid") if method.startswith("poi2void") else ("whole",)
                ):
                    if cells.wanted(method, regime, estimator, prediction):
                        cells.keep(**run(method, regime, estimator, prediction, **budget(options)))
    cells.show()


if __name__ == "__main__":
    main()
