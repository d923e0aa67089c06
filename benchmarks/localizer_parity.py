"""Our localizer on torch against the ThunderSTORM 1.3 plugin, on the stacks that the plugin analysed.

Prints, for each of the plugin's runs, how many of its rows ours has within 0.5 nm in the same frame, of all
and of those that the ground truth confirms within 50 nm, how many ours has besides, how much the columns
differ among those, and both tables' Jaccard index.

With ``--plugin``, where its jar is, a second table says of each fit how many of the plugin's rows it finds
again itself when its frames are turned by 180°, which changes little but the order of its sums; and of the
rows that ours lacks, how many our fit of the same pixels is as good as (to 1e-6 of the likelihood or the sum
of squares that is minimized, and where the numbers of molecules differ by the test that decides on one more)
or worse than.

Run ``python benchmarks/localizer_parity.py [FOLDER]``, where FOLDER holds ``default`` and ``em_gain``.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.optimize import minimize
from scipy.spatial import cKDTree

from fiji_bridge import thunderstorm
from fiji_bridge.camera import Camera
from fiji_bridge.evaluation import evaluate
from fiji_bridge.evaluation.matching import match
from fiji_bridge.localizations import read_localizations
from fiji_bridge.stack import open_stack
from fiji_bridge.thunderstorm import jar
from fiji_bridge.thunderstorm.settings import AnalysisSettings, EllipticalGaussian
from fiji_bridge.torch_localizer import Candidates, _detect, localize
from fiji_bridge.torch_localizer.estimators import GaussianFit, MultiEmitterFit, Spots
from fiji_bridge.torch_localizer.fitting import INTENSITY, Astigmatic, SpotNoise
from fiji_bridge.torch_localizer.options import read_analysis

REFERENCE = Path(__file__).resolve().parents[2] / "shared" / "data" / "thunderstorm_reference"
RADIUS_NM = 0.5
CONFIRMING_NM = 50.0
COMPARED = (
    "sigma [nm]",
    "intensity [photon]",
    "offset [photon]",
    "bkgstd [photon]",
    "chi2",
    "uncertainty [nm]",
)


def pairs(ours: pd.DataFrame, theirs: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Pair rows that are each other's nearest within 0.5 nm in one frame; gives the row numbers of both."""
    # Frames so far apart that no pair crosses them.
    space = [
        table[["x [nm]", "y [nm]"]].assign(f=table["frame"] * 1e6).to_numpy() for table in (ours, theirs)
    ]
    if not len(ours) or not len(theirs):
        return np.zeros(0, int), np.zeros(0, int)
    to_ours, to_theirs = cKDTree(space[0]), cKDTree(space[1])
    distance, there = to_theirs.query(space[0], distance_upper_bound=RADIUS_NM)
    here = np.flatnonzero(np.isfinite(distance))
    back = to_ours.query(space[1][there[here]])[1]
    mutual = here[back == here]
    return mutual, there[mutual]


def confirmed_rows(table: pd.DataFrame, truth: pd.DataFrame) -> np.ndarray:
    """Give the rows that the ground truth confirms."""
    points = [(each["frame"].to_numpy(), each[["x [nm]", "y [nm]"]].to_numpy()) for each in (table, truth)]
    return match(*points[0], *points[1], CONFIRMING_NM)[0]


def share(found: np.ndarray, of: np.ndarray) -> float:
    """Give the share of rows that are among those found."""
    return len(np.intersect1d(found, of)) / max(len(of), 1)


def jaccard(table: pd.DataFrame, truth: pd.DataFrame) -> float:
    """Give the Jaccard index of a table."""
    return evaluate(table, truth, radius_nm=CONFIRMING_NM).jaccard


def compare(
    ours: pd.DataFrame, theirs: pd.DataFrame, here: np.ndarray, there: np.ndarray, confirmed: np.ndarray
) -> dict[str, float]:
    """Share of their molecules found, share of ours beside them, and 99th percentiles of the differences."""
    result = {
        "rows": len(theirs),
        "confirmed": share(there, confirmed),
        "found": len(there) / len(theirs),
        "extra": 1 - len(here) / max(len(ours), 1),
    }
    one, other = ours.loc[here], theirs.loc[there]
    distance = np.hypot(*(one[c].to_numpy() - other[c].to_numpy() for c in ("x [nm]", "y [nm]")))
    result["distance [nm]"] = np.percentile(distance, 99)
    for column in COMPARED:
        if column in ours and column in theirs:
            ratio = one[column].to_numpy() / other[column].to_numpy()
            result[column.split()[0]] = np.percentile(np.abs(ratio - 1), 99)
    return result


class Judge:
    """Compares the plugin's fits with ours on the same pixels.

    Parameters
    ----------
    stack
        (t, y, x) [ADU].
    camera, options
        As in `localize`; the estimator must fit.
    """

    def __init__(self, stack: np.ndarray, camera: Camera, options: str) -> None:
        analysis = read_analysis(options)
        self.estimator = estimator = analysis.estimator
        assert isinstance(estimator, GaussianFit | MultiEmitterFit)
        found = Candidates.join(_detect(analysis, camera, torch.device("cpu"), 0, stack, stack, True))
        photons = camera.photons_per_adu / (camera.em_gain or 1.0)
        unit = photons if estimator.in_photons else 1.0
        self.counts, self.unit, self.pixel_nm = found.pixels.double(), unit, camera.pixel_size_nm
        self.frame = found.frame.numpy() + 1
        self.pixel = torch.stack([found.x, found.y], 1).numpy()
        self.at = found.at
        spots = Spots(self.counts * unit, found.at, photons / unit, SpotNoise())
        everywhere = torch.arange(len(self.counts))
        fits = (
            estimator.fits(spots)
            if isinstance(estimator, MultiEmitterFit)
            else [(everywhere, estimator.fitter(spots.pixels, spots.at))]
        )
        self.misfit, self.count = np.empty(len(everywhere)), np.empty(len(everywhere), int)
        for number, (chosen, some) in enumerate(fits, 1):
            self.misfit[chosen], self.count[chosen] = some.misfit.numpy(), number
        self.plugin = jar.load(None)
        jar.set_camera(self.plugin, camera)
        settings = AnalysisSettings.parse(options).estimator
        made = jar.module(self.plugin, "estimators.ui.IEstimatorUI", settings).getThreadLocalImplementation()
        if isinstance(settings, EllipticalGaussian):
            made = jar.hidden(made, "estimator")
        self.fitter, self.limits = jar.hidden(made, "fitter"), np.array([0.0, np.inf])
        if isinstance(estimator, MultiEmitterFit):
            if estimator.photons is not None:
                self.limits = np.array(estimator.photons) / spots.photons
            # It only decides how far in the corners molecules may be that are shown.
            jar.set_hidden(self.fitter, "defaultSigma", -1e9)

    def __call__(self, rows: pd.DataFrame) -> dict[str, int]:
        """Count the rows of the plugin's where our fit is as good, where it is worse, and the unplaced."""
        result = {"lacking": len(rows), "as good": 0, "worse": 0, "unplaced": 0}
        known: dict[int, tuple[np.ndarray, float]] = {}
        for frame, *place in rows[["frame", "x [nm]", "y [nm]"]].to_numpy():
            place = np.array(place) / self.pixel_nm
            near = np.abs(place - self.pixel - 0.5).max(1) <= self.estimator.radius + 1e-9
            said = "unplaced"
            for spot in np.flatnonzero(near & (self.frame == frame)):
                if spot not in known:
                    known[spot] = self._theirs(spot)
                molecules, misfit = known[spot]
                distance = np.abs(molecules[:, :2] + self.pixel[spot] + 0.5 - place).max(1).min()
                if distance < 1e-5 and np.isfinite(misfit):
                    said = "as good" if self._as_good(spot, misfit, len(molecules)) else "worse"
            result[said] += 1
        return result

    def _theirs(self, spot: int) -> tuple[np.ndarray, float]:
        """Give the plugin's molecules (n, 5) at a candidate, in our parameters, and their misfit.

        Of intensities beyond the limits the plugin tells the limit but fits on with the true one: they are
        then taken to be the best there are.
        """
        from jpype import JArray, JDouble, JException, JInt

        radius, limits = self.estimator.radius, self.limits * (1 + 1e-9 * np.array([1, -1]))
        reach = np.arange(-radius, radius + 1)
        side = len(reach)
        x, y = (JArray(JInt)(grid.tolist()) for grid in (np.tile(reach, side), np.repeat(reach, side)))
        counts = self.counts[spot]
        image = self.plugin["estimators.OneLocationFitter$SubImage"](
            side, side, x, y, JArray(JDouble)(counts.tolist()), *self.at[spot].tolist()
        )
        try:
            found = self.fitter.fit(image)
        except JException:
            return np.full((1, 5), np.nan), np.nan
        each = [found] if found.isSingleMolecule() else list(found.getDetections())
        molecules = np.array([self._parameters(molecule) for molecule in each]).reshape(-1, 5)
        told = molecules[:, INTENSITY] / self._areas(molecules)
        beyond = np.flatnonzero((told <= limits[0]) | (told >= limits[1]))
        if not len(beyond):
            return molecules, self._misfit_of(spot, molecules)

        def misfit(intensities: np.ndarray) -> float:
            changed = molecules.copy()
            changed[beyond, INTENSITY] = intensities**2
            return self._misfit_of(spot, changed)

        best = minimize(misfit, np.sqrt(molecules[beyond, INTENSITY]), method="Nelder-Mead")
        return molecules, best.fun

    def _misfit_of(self, spot: int, molecules: np.ndarray) -> float:
        fitter, pixels = self.estimator.fitter, self.counts[spot][None] * self.unit
        grid = torch.arange(-fitter.radius, fitter.radius + 1, dtype=torch.float64)
        model = fitter.psf(fitter.psf.free(torch.from_numpy(molecules)), grid)[0].sum(0, keepdim=True)
        return float(fitter.method.misfit(pixels, model, fitter.method.weights(pixels))[0])

    def _areas(self, molecules: np.ndarray) -> np.ndarray:
        """Give the intensity over what the plugin limits, which is the height of an elliptical Gaussian."""
        psf = self.estimator.fitter.psf
        if not isinstance(psf, Astigmatic):
            return np.ones(len(molecules))
        widths = psf.describe(torch.from_numpy(molecules))
        return 2 * math.pi * (widths["sigma1"] * widths["sigma2"]).numpy()

    def _parameters(self, molecule: Any) -> list[float]:
        third = "z" if isinstance(self.estimator.fitter.psf, Astigmatic) else "sigma"
        names = ("x", "y", third, "intensity", "offset")
        units = (1, 1, 1, self.unit, self.unit)
        return [float(molecule.getParam(name)) * unit for name, unit in zip(names, units, strict=True)]

    def _as_good(self, spot: int, misfit: float, molecules: int) -> bool:
        ours, count = self.misfit[spot], int(self.count[spot])
        if count == molecules:
            return ours <= misfit * (1 + 1e-6)
        fewer, more = sorted((count, molecules))
        before, after = (misfit, ours) if molecules == fewer else (ours, misfit)
        chance = self.estimator.chance(
            torch.tensor([before]), torch.tensor([after]), torch.tensor([fewer]), more, self.counts.shape[1]
        )[0]
        return bool((chance < self.estimator.p_value) == (count == more))


def found_again(stack: np.ndarray, camera: Camera, options: str, theirs: pd.DataFrame) -> np.ndarray:
    """Turn the frames by 180°, let the plugin analyse them, and give its rows that are there again.

    All that changes is the order in which its sums are formed, so the rows that are not there have been
    decided by the last digit; but connected components are cut and rounded in other places, too.
    """
    table = thunderstorm.localize(np.ascontiguousarray(stack[:, ::-1, ::-1]), camera=camera, options=options)
    for column, pixels in (("x [nm]", stack.shape[2]), ("y [nm]", stack.shape[1])):
        table[column] = pixels * camera.pixel_size_nm - table[column]
    return pairs(table, theirs)[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=REFERENCE)
    parser.add_argument("--device", default=None, help="torch device, such as cpu or cuda")
    parser.add_argument("--plugin", action="store_true", help="also ask the plugin itself")
    arguments = parser.parse_args()
    rows, judged = [], []
    for name in ("default", "em_gain"):
        folder = arguments.folder / name
        reference = json.loads((folder / "reference.json").read_text())
        camera, stack = Camera.parse(reference["camera"]), open_stack(folder / "stack.tif")
        pixels, truth = stack.to_numpy(), read_localizations(folder / "ground_truth.csv")
        for run, settings in reference["runs"].items():
            if "post" in settings:
                continue
            given = {"camera": camera, "options": settings["options"]}
            ours = localize(stack, **given, device=arguments.device)
            theirs = read_localizations(folder / f"{run}.csv")
            here, there = pairs(ours, theirs)
            confirmed = confirmed_rows(theirs, truth)
            row = {"run": f"{name}/{run}"} | compare(ours, theirs, here, there, confirmed)
            row |= {"Jaccard": jaccard(ours, truth), "theirs": jaccard(theirs, truth)}
            rows.append(row)
            if not arguments.plugin or "bkgstd [photon]" not in theirs:
                continue
            lacking = np.setdiff1d(np.arange(len(theirs)), there)
            again = found_again(pixels, theirs=theirs, **given)
            row = {"run": f"{name}/{run}", "confirmed again": share(again, confirmed)}
            row |= {"again": len(again) / len(theirs)}
            judged.append(row | Judge(pixels, **given)(theirs.loc[lacking]))
    print("Shares of rows; 99th percentiles of distances and of relative differences of the other columns.")
    print(pd.DataFrame(rows).set_index("run").to_string(float_format=lambda value: f"{value:.4g}"))

    if judged:
        print(
            "The plugin's own rows found again in turned frames, and how good the fits are that ours lacks."
        )
        print(pd.DataFrame(judged).set_index("run").to_string(float_format=lambda value: f"{value:.4g}"))


if __name__ == "__main__":
    main()
