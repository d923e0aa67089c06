"""Errors of isolated molecules over the Cramér-Rao bound, and whether the reported uncertainties are true.

Simulates single molecules (sigma 1.3 px, background 5 photons a pixel) of 100 to 5,000 photons, localizes
each by maximum likelihood from the true pixel, with sigma fitted and with sigma known, and prints the root
mean square error over that of the bounds and the standard deviation of error / uncertainty (1 is right); with
``--plugin`` also the ThunderSTORM plugin's on the same frames. The bound is that of x at the true parameters,
with sigma, intensity and background unknown, from the pixels that are fitted. ``optimum`` is the error over
the bound of the best of 20 fits of the same pixels from starts all over them, the truth among them: what
exceeds the bound there is the estimator's, not the search's. ``lost`` is the share without a row within
2.5 px.
"""

import argparse
from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from fiji_bridge.camera import Camera
from fiji_bridge.localizers import localize
from fiji_bridge.torch_localizer.fitting import (
    Fitter,
    IntegratedGaussian,
    MaximumLikelihood,
    SpotNoise,
    cramer_rao_bounds,
)

SIDE, CENTRE, SIGMA, BACKGROUND, RADIUS = 21, 10, 1.3, 5.0, 6
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


def bounds_of(place: np.ndarray, photons: float) -> np.ndarray:
    """Cramér-Rao bound of x [nm] of each molecule, by its true parameters."""
    psf = IntegratedGaussian()
    true = np.column_stack(
        [place / 100 - 0.5 - CENTRE, np.full((len(place), 3), (SIGMA, photons, BACKGROUND))]
    )
    free = psf.free(torch.from_numpy(true))
    found = cramer_rao_bounds(psf, free, 1.0, SpotNoise(), side=2 * RADIUS + 1)
    return 100 * found["uncertainty_x"][:, 0].numpy()


def optimum(frames: np.ndarray, place: np.ndarray, photons: float, known: bool) -> np.ndarray:
    """Give the error along x [nm] of the likelihood's highest of many maxima."""
    inside = slice(CENTRE - RADIUS, CENTRE + RADIUS + 1)
    pixels = torch.from_numpy(frames[:, inside, inside].astype(np.float64).reshape(len(frames), -1) - 100)
    fitter = Fitter(IntegratedGaussian(), MaximumLikelihood(), SIGMA, RADIUS, fixed=known)
    true = place / 100 - 0.5 - CENTRE
    starts = [true] + [np.full_like(true, (x, y)) for x in (-2, 0, 2) for y in (-2, 0, 2)]
    least, error = np.full(len(frames), np.inf), np.full(len(frames), np.nan)
    for sigma in (SIGMA,) if known else (0.5 * SIGMA, SIGMA):
        for start in starts:
            begin = replace(fitter, sigma=sigma)
            fits = begin(pixels, torch.from_numpy(start))
            better = fits.misfit.numpy() < least
            least[better] = fits.misfit.numpy()[better]
            error[better] = 100 * (fits.parameters[:, 0].numpy() - true[:, 0])[better]
    return error


def errors(table: pd.DataFrame, place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give the row nearest to the truth of each frame, and its error along x [nm]."""
    true = place[table["frame"].to_numpy() - 1]
    distance = np.hypot(table["x [nm]"] - true[:, 0], table["y [nm]"] - true[:, 1])
    rows = distance.groupby(table["frame"]).idxmin().to_numpy()
    rows = rows[distance[rows] < 250]
    return rows, (table["x [nm]"].to_numpy() - true[:, 0])[rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000, help="molecules of each brightness")
    parser.add_argument("--photons", type=float, nargs="+", default=(100, 150, 200, 500, 1000, 2000, 5000))
    parser.add_argument("--plugin", action="store_true", help="also run the ThunderSTORM plugin")
    arguments = parser.parse_args()
    options = f"filter=[No filter] threshold=500 sigma={SIGMA} fitradius={RADIUS} method=[Maximum likelihood]"
    rows = []
    for number, photons in enumerate(arguments.photons):
        frames, place = frames_of(photons, arguments.count, number)
        # Candidates are taken from the true picture: what is measured here is the fit.
        seen = np.full_like(frames, 110)
        seen[:, CENTRE, CENTRE] = 1000
        runs = {"fitted": {"engine": "torch"}, "known": {"engine": "torch", "known_sigma": True}}
        if arguments.plugin:
            runs["plugin"] = {"engine": "thunderstorm"}
        bound = np.sqrt((bounds_of(place, photons) ** 2).mean())
        row: dict[str, float] = {"photons": photons, "bound [nm]": bound}
        for name, settings in runs.items():
            table = localize(
                seen, camera=CAMERA, options=options, fit_stack=frames, **settings,
                **({"uncertainty": "crlb"} if name != "plugin" else {}),
            )  # fmt: skip
            found, error = errors(table, place)
            reported = table["uncertainty [nm]"].to_numpy()[found]
            row |= {
                f"{name} lost": 1 - len(found) / len(frames),
                f"{name} rmse/bound": np.sqrt((error**2).mean()) / bound,
                f"{name} z": (error / reported).std(),
            }
            if name != "plugin":
                best = optimum(frames, place, photons, name == "known")
                row[f"{name} optimum"] = np.sqrt((best[np.abs(best) < 250] ** 2).mean()) / bound
        rows.append(row)
    print(pd.DataFrame(rows).set_index("photons").to_string(float_format=lambda value: f"{value:.3f}"))


if __name__ == "__main__":
    main()
