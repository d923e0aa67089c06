"""Our localizer on torch against the ThunderSTORM 1.3 plugin, on the stacks that the plugin analysed.

Prints, for each of the plugin's runs, how many of its rows ours has within 0.5 nm in the same frame, of all
and of those that the ground truth confirms within 50 nm, how many ours has besides, how much the columns
differ among those, and both tables' Jaccard index. Run
``python benchmarks/localizer_parity.py [FOLDER]``, where FOLDER holds ``default`` and ``em_gain``.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from fiji_bridge.camera import Camera
from fiji_bridge.evaluation import evaluate
from fiji_bridge.evaluation.matching import match
from fiji_bridge.localizations import read_localizations
from fiji_bridge.stack import open_stack
from fiji_bridge.torch_localizer import localize

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


def compare(ours: pd.DataFrame, theirs: pd.DataFrame, truth: pd.DataFrame) -> dict[str, float]:
    """Share of their molecules found, share of ours beside them, and 99th percentiles of the differences."""
    i, j = pairs(ours, theirs)
    points = [
        (table["frame"].to_numpy(), table[["x [nm]", "y [nm]"]].to_numpy()) for table in (theirs, truth)
    ]
    confirmed = match(*points[0], *points[1], CONFIRMING_NM)[0]
    result = {
        "rows": len(theirs),
        "confirmed": len(np.intersect1d(j, confirmed)) / max(len(confirmed), 1),
        "found": len(i) / len(theirs),
        "extra": 1 - len(i) / max(len(ours), 1),
        "Jaccard": evaluate(ours, truth, radius_nm=CONFIRMING_NM).jaccard,
        "theirs": evaluate(theirs, truth, radius_nm=CONFIRMING_NM).jaccard,
    }
    distance = np.hypot(
        *(ours.loc[i, c].to_numpy() - theirs.loc[j, c].to_numpy() for c in ("x [nm]", "y [nm]"))
    )
    result["distance [nm]"] = np.percentile(distance, 99)
    for column in COMPARED:
        if column in ours and column in theirs:
            a, b = ours.loc[i, column].to_numpy(), theirs.loc[j, column].to_numpy()
            result[column.split()[0]] = np.percentile(np.abs(a / b - 1), 99)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=REFERENCE)
    parser.add_argument("--device", default=None, help="torch device, such as cpu or cuda")
    arguments = parser.parse_args()
    rows = []
    for name in ("default", "em_gain"):
        folder = arguments.folder / name
        reference = json.loads((folder / "reference.json").read_text())
        camera, stack = Camera.parse(reference["camera"]), open_stack(folder / "stack.tif")
        truth = read_localizations(folder / "ground_truth.csv")
        for run, settings in reference["runs"].items():
            if "post" in settings:
                continue
            ours = localize(stack, camera=camera, options=settings["options"], device=arguments.device)
            theirs = read_localizations(folder / f"{run}.csv")
            rows.append({"run": f"{name}/{run}", **compare(ours, theirs, truth)})
    print("Shares of rows; 99th percentiles of distances and of relative differences of the other columns.")
    print(pd.DataFrame(rows).set_index("run").to_string(float_format=lambda value: f"{value:.4g}"))


if __name__ == "__main__":
    main()
