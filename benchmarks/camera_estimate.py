"""The camera estimated from noisy frames alone, against the variance of those frames around ground truth.

    python benchmarks/camera_estimate.py [../shared/data]

Prints one table. The truth of a type in `fmdd_testmix` is a line through the variance of raw - gt against gt,
an average of 50 captures rounded to 8 bits; BPAE cells moved meanwhile, which adds to that variance. For
`fmdd_bpae_50` it is a line through the variance of all 50 captures against their mean, pixel by pixel. `var`
is what matters for denoising: the estimated variance over the true one, the median over brightness. The
stacks of ThunderSTORM have a known camera; with EM gain it is the effective one, of twice as many ADU per
photon, to which an estimate without EM gain corresponds.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from fiji_bridge import Camera, estimate_camera, open_stack

LAYOUT = "{:22s} {:11s} {:>14s}  {:>15s} {:>17s} {:>6s} {:>5s}  {}"
TYPES = ["Confocal_MICE", "Confocal_BPAE_R", "Confocal_BPAE_G", "TwoPhoton_BPAE_R"]


def binned(mean: np.ndarray, squares: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Average the squared deviations over bins of mean with as many pixels each: mean, variance, pixels."""
    edges = np.unique(np.quantile(mean, np.linspace(0.05, 1, 40)))
    index = np.digitize(mean, edges[1:-1])
    pixels = np.bincount(index)
    return np.bincount(index, mean) / pixels, np.bincount(index, squares) / pixels, pixels


def truth(frames: np.ndarray, clean: np.ndarray) -> tuple[np.ndarray, np.ndarray, float, float]:
    """Give binned means and variances around `clean`, and the slope and zero crossing of their line."""
    kept = clean >= np.quantile(clean, 0.05)
    squares = ((frames - clean) ** 2).mean(axis=0)
    mean, variance, pixels = binned(clean[kept], squares[kept])
    good = variance > 1
    slope, constant = np.polyfit(mean[good], variance[good], 1, w=np.sqrt(pixels[good]) / variance[good])
    return mean[good], variance[good], float(slope), float(-constant / slope)


def row(
    name: str, what: str, frames: np.ndarray, known: str, bins: tuple[np.ndarray, np.ndarray] | None
) -> None:
    estimate = estimate_camera(frames)
    camera, spread = estimate.camera, estimate.spread
    ratio = "-"
    if bins is not None:
        mean, variance = bins
        expected = (camera.to_photons(mean) + camera.read_variance) / camera.photons_per_adu**2
        ratio = f"{np.median(expected / variance):.2f}"
    gain = 1 / camera.photons_per_adu
    error = spread["photons_per_adu"] * gain**2
    found = f"{gain:.3f} ± {error:.3f}"
    offset = f"{camera.offset:.2f} ± {spread['offset']:.2f}"
    trust = "yes" if estimate.reliable else "no"
    print(LAYOUT.format(name, what, known, found, offset, f"{camera.read_noise:.2f}", ratio, trust))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="?", type=Path, default=Path("../shared/data"))
    data = parser.parse_args().data
    print(LAYOUT.format("gain in ADU per photon,", "", "truth:", "estimate:", "", "read", "", ""))
    print(LAYOUT.format("offset in ADU", "", "gain, offset", "gain", "offset", "noise", "var", "reliable"))
    for kind in TYPES:
        frames = open_stack(sorted((data / "fmdd_testmix/raw").glob(f"{kind}_*.png"))).to_numpy()
        clean = open_stack(data / f"fmdd_testmix/gt/{kind}_1.png").to_numpy()[0].astype(float)
        mean, variance, slope, crossing = truth(frames, clean)
        known = f"{slope:.3f}, {crossing:.2f}"
        row(kind, "4 captures", frames, known, (mean, variance))
        row(kind, "1 capture", frames[:1], known, (mean, variance))
    for field in ("1", "19"):
        frames = open_stack(data / f"fmdd_bpae_50/raw/{field}").to_numpy()
        mean, variance, slope, crossing = truth(
            frames * np.sqrt(50 / 49), frames.mean(axis=0) * np.sqrt(50 / 49)
        )
        known = f"{slope:.3f}, {crossing:.2f}"
        row(f"BPAE nuclei, field {field}", "50 captures", frames, known, (mean, variance))
        row(f"BPAE nuclei, field {field}", "1 capture", frames[:1], known, (mean, variance))
    for name in ("default", "em_gain"):
        folder = data / "thunderstorm_reference" / name
        camera = Camera.parse(json.loads((folder / "reference.json").read_text())["camera"])
        frames = open_stack(folder / "stack.tif").to_numpy()
        known = f"{float(camera.adu_per_photon) * camera.excess_noise:.3f}, {camera.offset:g}"
        row(f"ThunderSTORM {name}", "50 frames", frames, known, None)
        row(f"ThunderSTORM {name}", "1 frame", frames[:1], known, None)
    frames = open_stack(data / "sm_tetrapod_real").to_numpy()
    row("tetrapod, real", "20 frames", frames, "unknown", None)
    row("tetrapod, real", "1 frame", frames[:1], "unknown", None)


if __name__ == "__main__":
    main()
