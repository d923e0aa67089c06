"""How well single captures of real microscopes are denoised, against BM3D with the same camera.

For every type in FMDD's test mix (Zhang et al. 2019): mean PSNR [dB, 8-bit range] against the average of 50
captures, of the raw captures, of BM3D between a generalized Anscombe transformation and its exact unbiased
inverse, and of this project trained on the four noisy captures, or on the first one alone (then that one is
scored). Each capture is denoised from itself alone; the averages are used for nothing but the score; the
camera is estimated from the noisy captures.

    python benchmarks/fmdd_psnr.py [--only Confocal_MICE] [--minutes 10]

Every figure is kept in a CSV file as soon as it is known; started again, the benchmark goes on from there.
"""

import argparse
import csv
import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fiji_bridge import Camera, denoise, estimate_camera, open_stack, train
from fiji_bridge.files import replacing

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "fmdd_testmix"
COLUMNS = ("type", "method", "psnr_db", "minutes", "camera")


def psnr(images: np.ndarray, truth: np.ndarray) -> float:
    """Mean over images (n, y, x) of 8-bit range, in dB."""
    errors = np.mean((images.astype(float) - truth) ** 2, axis=(1, 2))
    return float(np.mean(10 * np.log10(255**2 / errors)))


def bm3d(raw: np.ndarray, camera: Camera) -> np.ndarray:
    """BM3D under Poisson-Gaussian noise (Mäkitalo and Foi, IEEE Trans. Image Process. 22, 91, 2013)."""
    import bm3d as package

    variance = camera.read_variance
    photons = camera.to_photons(raw.astype(np.float64))
    stable = 2 * np.sqrt(np.maximum(photons + 3 / 8 + variance, 0))
    low, high = stable.min(), stable.max()
    smooth = np.stack([package.bm3d((image - low) / (high - low), 1 / (high - low)) for image in stable])
    d = np.maximum(smooth * (high - low) + low, 2 * np.sqrt(3 / 8 + variance))
    root = np.sqrt(3 / 2)
    unbiased = d**2 / 4 + root / (4 * d) - 11 / (8 * d**2) + 5 * root / (8 * d**3) - 1 / 8 - variance
    return np.asarray(camera.to_adu(np.maximum(unbiased, 0)))


def load(folder: Path, kind: str) -> np.ndarray:
    return np.asarray(open_stack(sorted(folder.glob(f"{kind}_*.png"))).to_numpy())


def methods(raw: np.ndarray, minutes: float) -> dict[str, Callable[[], tuple[np.ndarray, Camera | None]]]:
    """Images of each method and the camera it assumed."""

    def ours(captures: np.ndarray) -> tuple[np.ndarray, Camera]:
        model = train(captures, max_minutes=minutes)
        return denoise(captures, model).to_numpy(), model.camera

    def classical() -> tuple[np.ndarray, Camera]:
        camera = estimate_camera(open_stack(raw)).camera
        return bm3d(raw, camera), camera

    return {
        "raw": lambda: (raw, None),
        "BM3D": classical,
        "ours, 4 captures": lambda: ours(raw),
        "ours, 1 capture": lambda: ours(raw[:1]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", metavar="TYPE", help="one type, such as Confocal_MICE")
    parser.add_argument("--minutes", type=float, default=10.0, help="training time of each network [minutes]")
    parser.add_argument("--data", type=Path, default=DATA, help="folder with raw/ and gt/")
    parser.add_argument("--out", type=Path, default=Path("fmdd_psnr.csv"), help="table to fill")
    options = parser.parse_args()

    kinds = sorted({re.sub(r"_\d+$", "", path.stem) for path in (options.data / "raw").glob("*.png")})
    if options.only:
        kinds = [kind for kind in kinds if kind == options.only] or parser.error(
            f"--only: there are {', '.join(kinds)}"
        )
    rows = list(csv.DictReader(options.out.open())) if options.out.exists() else []
    known = {(row["type"], row["method"]): row for row in rows}
    print(f"{'type':20} {'method':18} {'PSNR [dB]':>9} {'minutes':>8}  camera", flush=True)
    for kind in kinds:
        raw, truth = load(options.data / "raw", kind), load(options.data / "gt", kind)
        for method, run in methods(raw, options.minutes).items():
            if (kind, method) not in known:
                began = time.monotonic()
                images, camera = run()
                row = {
                    "type": kind,
                    "method": method,
                    "psnr_db": f"{psnr(images, truth[: len(images)]):.2f}",
                    "minutes": f"{(time.monotonic() - began) / 60:.1f}",
                    "camera": camera.options() if camera else "",
                }
                rows.append(row)
                known[kind, method] = row
                with replacing(options.out) as partial, partial.open("w", newline="") as file:
                    table = csv.DictWriter(file, COLUMNS)
                    table.writeheader()
                    table.writerows(rows)
            row = known[kind, method]
            print(
                f"{kind:20} {method:18} {row['psnr_db']:>9} {row['minutes']:>8}  {row['camera']}", flush=True
            )


if __name__ == "__main__":
    main()
