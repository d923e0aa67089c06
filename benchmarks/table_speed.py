"""Speed of images and post-processing, as ratios to ThunderSTORM's own classes on the same table in one run.

Molecules lie on filaments in frames of 512×512 pixels. Each is done by ours and by the plugin, once to warm
up and then measured; the plugin's time has the columns' way to Java and the image's way back in it.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from fiji_bridge import postprocessing, rendering, thunderstorm
from fiji_bridge.camera import Camera

CAMERA = Camera(offset=100.0, photons_per_adu=1.0, pixel_size_nm=100.0)
SIDE = 512
RENDERERS = {
    "averaged shifted histograms": "renderer=[Averaged shifted histograms] magnification=5",
    "the same in 20 slices": "renderer=[Averaged shifted histograms] magnification=5 threed=true"
    " zrange=-500:50:500",
    "normalized Gaussian": "renderer=[Normalized Gaussian] magnification=5",
    "histogram": "renderer=Histograms magnification=5",
    "histogram, 10 averages": "renderer=Histograms magnification=5 avg=10",
    "scatter": "renderer=[Scatter plot] magnification=5",
}
STEPS = {
    "filter": "action=filter formula=[intensity > 500 & uncertainty < 15]",
    "duplicates": "action=duplicates distformula=uncertainty",
    "density": "action=density radius=50 neighbors=5",
    "merge": "action=merge dist=20 offframes=1",
    "drift": "action=drift method=[Cross correlation] steps=5",
}


def filaments(count: int) -> pd.DataFrame:
    """Make molecules that blink on 300 curved filaments."""
    rng = np.random.default_rng(0)
    which = rng.integers(0, 300, count)
    along, (x, y, angle, bend) = rng.uniform(-1, 1, count), rng.uniform(-1, 1, (4, 300))
    direction = np.pi * angle[which] + bend[which] * along
    centre = SIDE * 50.0
    table = {
        "frame": np.sort(rng.integers(1, max(2, count // 100), count)),
        "x [nm]": centre * (1 + 0.8 * x[which] + 0.3 * along * np.cos(direction)),
        "y [nm]": centre * (1 + 0.8 * y[which] + 0.3 * along * np.sin(direction)),
        "z [nm]": 300 * along * bend[which],
        "sigma [nm]": rng.normal(130, 8, count),
        "intensity [photon]": rng.exponential(600, count) + 200,
        "bkgstd [photon]": rng.uniform(4, 6, count),
        "uncertainty [nm]": rng.uniform(5, 20, count),
    }
    return pd.DataFrame({"id": np.arange(1, count + 1), **table})


def seconds(work: Callable[[], Any]) -> np.ndarray:
    """Give the time of the second of two runs, and that of all processors together."""
    work()
    start = np.array([time.perf_counter(), time.process_time()])
    work()
    return np.array([time.perf_counter(), time.process_time()]) - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--molecules", type=int, default=1_000_000, help="that are drawn")
    parser.add_argument("--rows", type=int, default=50_000, help="of the table that is post-processed")
    arguments = parser.parse_args()
    region = f"imwidth={SIDE} imheight={SIDE}"
    drawn, table = filaments(arguments.molecules), filaments(arguments.rows)
    jobs = [(rendering.render, thunderstorm.render, drawn, n, f"{o} {region}") for n, o in RENDERERS.items()]
    jobs += [(postprocessing.postprocess, thunderstorm.postprocess, table, n, o) for n, o in STEPS.items()]
    print(f"{'':28} molecules  ours [s]  plugin [s]  ratio  of processor time")
    for our, their, rows, name, options in jobs:
        ours, theirs = (seconds(partial(work, rows, options, camera=CAMERA)) for work in (our, their))
        wall, processor = theirs / ours
        line = f"{name:28} {len(rows):9,} {ours[0]:9.3f} {theirs[0]:11.3f} {wall:6.1f} {processor:18.1f}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
