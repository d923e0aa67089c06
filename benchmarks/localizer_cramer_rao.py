"""Errors of isolated molecules over the Cramér-Rao bound, and whether the reported uncertainties are true.

Simulates single molecules (sigma 1.3 px, background 5 photons a pixel) of 100 to 5,000 photons, localizes
each by maximum likelihood from the true pixel, with sigma fitted and with sigma known, and prints the root
mean square error over the bound and the standard deviation of error / uncertainty (1 is right); with
``--plugin`` also the ThunderSTORM plugin's on the same frames.
"""

import argparse

import numpy as np
import pandas as pd

from fiji_bridge.camera import Camera
from fiji_bridge.localizers import localize

SIDE, CENTRE, SIGMA, BACKGROUND = 21, 10, 1.3, 5.0
CAMERA = Camera(offset=100.0, photons_per_adu=1.0, pixel_size_nm=100.0)


def frames_of(photons: float, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Give frames (count, y, x) [ADU] of one molecule each, and its place (count, 2) [nm]."""
    rng = np.random.default_rng(seed)
    place = CENTRE + rng.uniform(-0.5, 0.5, (count, 2))
    x, y = (integrated_gaussian(place[:, axis]) for axis in (0, 1))
    light = BACKGROUND + photons * y[:, :, None] * x[:, None, :]
    return (rng.poisson(light) + 100).astype(np.uint16), (place + 0.5) * 100


def integrated_gaussian(centre: np.ndarray) -> np.ndarray:
    """Share of a molecule's light in each row or column of pixels, (n, SIDE)."""
    from scipy.special import erf

    edges = (np.arange(SIDE + 1) - 0.5 - centre[:, None]) / (SIGMA * np.sqrt(2))
    return np.diff(erf(edges), axis=1) / 2


def errors(table: pd.DataFrame, place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give the row nearest to the truth of each frame, and its error along x [nm]."""
    true = place[table["frame"].to_numpy() - 1]
    distance = np.hypot(table["x [nm]"] - true[:, 0], table["y [nm]"] - true[:, 1])
    rows = distance.groupby(table["frame"]).idxmin().to_numpy()
    rows = rows[distance[rows] < 250]
    return rows, (table["x [nm]"].to_numpy() - true[:, 0])[rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=4000, help="molecules of each brightness")
    parser.add_argument("--plugin", action="store_true", help="also run the ThunderSTORM plugin")
    arguments = parser.parse_args()
    options = f"filter=[No filter] threshold=500 sigma={SIGMA} fitradius=6 method=[Maximum likelihood]"
    rows = []
    for number, photons in enumerate((100, 150, 200, 500, 1000, 2000, 5000)):
        frames, place = frames_of(photons, arguments.count, number)
        # Candidates are taken from the true picture: what is measured here is the fit.
        seen = np.full_like(frames, 110)
        seen[:, CENTRE, CENTRE] = 1000
        runs = {"fitted": {"engine": "torch"}, "known": {"engine": "torch", "known_sigma": True}}
        if arguments.plugin:
            runs["plugin"] = {"engine": "thunderstorm"}
        row: dict[str, float] = {"photons": photons}
        for name, settings in runs.items():
            table = localize(
                seen, camera=CAMERA, options=options, fit_stack=frames, **settings,
                **({"uncertainty": "crlb"} if name != "plugin" else {}),
            )  # fmt: skip
            found, error = errors(table, place)
            reported = table["uncertainty [nm]"].to_numpy()[found]
            row |= {
                f"{name} n": len(found),
                f"{name} rmse": np.sqrt((error**2).mean()),
                f"{name} z": (error / reported).std(),
            }
            if name == "known":
                row["bound"] = np.sqrt((reported**2).mean())
        for name in runs:
            row[f"{name} rmse/bound"] = row.pop(f"{name} rmse") / row["bound"]
        rows.append(row)
    print(pd.DataFrame(rows).set_index("photons").to_string(float_format=lambda value: f"{value:.3f}"))


if __name__ == "__main__":
    main()
