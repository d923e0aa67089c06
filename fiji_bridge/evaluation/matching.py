"""Localizations against ground truth, as ThunderSTORM's `Performance evaluation` counts them."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fiji_bridge.errors import FijiBridgeError

if TYPE_CHECKING:
    import pandas as pd

    from fiji_bridge.camera import Camera

Array = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]

SUMS = ("tp", "fp", "fn", "sum_distance", "sum_squared")
"""What is summed in each frame; every figure follows from these sums over frames."""

BOOTSTRAP_BATCH = 4_000_000
"""Frames drawn at a time, which bounds the memory of a bootstrap over many frames."""


@dataclass(frozen=True)
class Evaluation:
    """How a table of molecules agrees with the truth.

    Ratios and distances are NaN where they are not defined, as the precision of an empty table.

    Attributes
    ----------
    radius_nm
        How far a detection may lie from its molecule.
    tp, fp, fn
        Detections matched to a molecule, detections without one, and molecules without a detection.
    mean_distance_nm
        Mean lateral distance of the matched pairs; the plugin calls it "RMSE lateral".
    rmse_nm
        Root mean square lateral distance of the matched pairs.
    mean_distance_x_nm, mean_distance_y_nm
        Mean absolute difference along an axis; the plugin calls them "RMSE x" and "RMSE y".
    rmse_x_nm, rmse_y_nm
        Root mean square difference along an axis.
    per_frame
        One row for each frame that has a detection or a molecule, in order: ``frame``, ``tp``, ``fp``,
        ``fn``, ``sum_distance`` [nm] and ``sum_squared`` [nm²] of the lateral distances.
    """

    radius_nm: float
    tp: int
    fp: int
    fn: int
    mean_distance_nm: float
    rmse_nm: float
    mean_distance_x_nm: float
    mean_distance_y_nm: float
    rmse_x_nm: float
    rmse_y_nm: float
    per_frame: "pd.DataFrame" = field(repr=False)

    @property
    def jaccard(self) -> float:
        """Jaccard index, tp / (tp + fp + fn)."""
        return _ratio(self.tp, self.tp + self.fp + self.fn)

    @property
    def precision(self) -> float:
        """Part of the detections that are molecules."""
        return _ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float:
        """Part of the molecules that are detected."""
        return _ratio(self.tp, self.tp + self.fn)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    def as_dict(self) -> dict[str, float]:
        """Give every figure by its name."""
        names = ("tp", "fp", "fn", "jaccard", "precision", "recall", "f1", "mean_distance_nm", "rmse_nm")
        axes = ("mean_distance_x_nm", "mean_distance_y_nm", "rmse_x_nm", "rmse_y_nm", "radius_nm")
        return {name: getattr(self, name) for name in names + axes}


def evaluate(
    table: "str | os.PathLike[str] | pd.DataFrame",
    ground_truth: "str | os.PathLike[str] | pd.DataFrame",
    *,
    radius_nm: float = 50.0,
    camera: "Camera | None" = None,
) -> Evaluation:
    """Compare localizations with the molecules that are really there.

    Frame by frame, detections and molecules no further apart than the radius are paired by stable matching
    (Gale & Shapley, Am. Math. Mon. 69, 9, 1962): every detection proposes to its molecules from the nearest
    on, and a molecule that several want keeps the farthest of them. That last rule is a slip of ThunderSTORM
    1.3 (it should be the nearest); it is kept because figures must be comparable with the plugin's. On its
    own simulations it leaves the counts as they would be and raises the mean distance by 0 to 2%.

    Unlike in the plugin, molecules that share one position each count, and ``z`` never takes part.

    Parameters
    ----------
    table, ground_truth
        Molecules with the columns ``frame``, ``x [nm]`` and ``y [nm]``, or the paths of their CSV files.
        Frames may be absent from either, and either may be empty.
    radius_nm
        Largest lateral distance of a detection from its molecule, in nm.
    camera
        Gives the pixel size for files with positions in pixels; others do not need it.

    Returns
    -------
    Evaluation

    Raises
    ------
    FijiBridgeError
        If a file cannot be read, a column is missing, a value is not a finite number, or the radius is not
        positive.
    """
    import pandas as pd

    if not (isinstance(radius_nm, (int, float, np.number)) and 0 < radius_nm < math.inf):
        raise FijiBridgeError(f"The radius must be a positive number of nanometres, not {radius_nm!r}.")
    found_frame, found = _positions(table, "the table of localizations", camera)
    true_frame, true = _positions(ground_truth, "the ground truth", camera)
    rows, molecules = match(found_frame, found, true_frame, true, float(radius_nm))

    offset = found[rows] - true[molecules]
    squared = (offset**2).sum(axis=1)
    distance = np.sqrt(squared)
    frames, number = np.unique(np.concatenate([found_frame, true_frame]), return_inverse=True)
    found_number, true_number = number[: len(found)], number[len(found) :]

    def count(numbers: Rows, weights: Array | None = None) -> npt.NDArray[Any]:
        return np.bincount(numbers, weights, minlength=len(frames))

    tp = count(found_number[rows])
    per_frame = pd.DataFrame(
        {
            "frame": frames,
            "tp": tp,
            "fp": count(found_number) - tp,
            "fn": count(true_number) - tp,
            "sum_distance": count(found_number[rows], distance),
            "sum_squared": count(found_number[rows], squared),
        }
    )
    mean_x, mean_y = _mean(np.abs(offset))
    square_x, square_y = _mean(offset**2)
    return Evaluation(
        radius_nm=float(radius_nm),
        tp=len(rows),
        fp=len(found) - len(rows),
        fn=len(true) - len(rows),
        mean_distance_nm=float(_mean(distance)),
        rmse_nm=math.sqrt(_mean(squared)),
        mean_distance_x_nm=float(mean_x),
        mean_distance_y_nm=float(mean_y),
        rmse_x_nm=math.sqrt(square_x),
        rmse_y_nm=math.sqrt(square_y),
        per_frame=per_frame,
    )


def match(found_frame: Rows, found: Array, true_frame: Rows, true: Array, radius: float) -> tuple[Rows, Rows]:
    """Pair detections with molecules of the same frame; see `evaluate` for the rule.

    Parameters
    ----------
    found_frame, true_frame
        Frame of each point, (n,).
    found, true
        Positions, (n, 2), in the units of the radius.
    radius
        Largest distance within a pair.

    Returns
    -------
    rows, molecules
        Indices into `found` and `true`, one of each for a pair.
    """
    suitor, wanted, squared = _neighbours(found_frame, found, true_frame, true, radius)
    order = np.lexsort((wanted, squared, suitor))
    suitor, wanted, squared = suitor[order], wanted[order], squared[order]
    # Pairs of one detection lie together, nearest first: `proposal` points at the one it makes next.
    suitors, proposal = np.unique(suitor, return_index=True)
    last = np.append(proposal[1:], len(suitor))
    engaged = np.full(len(true), -1)
    free = np.arange(len(suitors))
    # The outcome of deferred acceptance does not depend on the order of proposals, so all propose at once.
    while free.size:
        free = free[proposal[free] < last[free]]
        made = proposal[free]
        proposal[free] += 1
        rivals = np.concatenate([engaged[engaged >= 0], made])
        rivals = rivals[np.lexsort((-rivals, squared[rivals], wanted[rivals]))]
        keeps = np.append(wanted[rivals][1:] != wanted[rivals][:-1], True)[: len(rivals)]
        engaged[wanted[rivals[keeps]]] = rivals[keeps]
        free = np.searchsorted(suitors, suitor[rivals[~keeps]])
    pairs = engaged[engaged >= 0]
    return suitor[pairs], wanted[pairs]


def _neighbours(
    found_frame: Rows, found: Array, true_frame: Rows, true: Array, radius: float
) -> tuple[Rows, Rows, Array]:
    """List all pairs of one frame within the radius: indices of both, and squared distances."""
    from scipy.spatial import KDTree

    # Frames become a third coordinate, so far apart that points of two frames are never neighbours.
    trees = [
        KDTree(np.column_stack([points, frame * (4 * radius)]))
        for points, frame in ((found, found_frame), (true, true_frame))
    ]
    near = trees[0].sparse_distance_matrix(trees[1], radius * (1 + 1e-9), output_type="ndarray")
    rows, molecules = near["i"].astype(np.int64), near["j"].astype(np.int64)
    squared = ((found[rows] - true[molecules]) ** 2).sum(axis=1)
    inside = squared <= radius**2
    return rows[inside], molecules[inside], squared[inside]


class Difference(NamedTuple):
    """A difference and its 95% confidence interval."""

    value: float
    low: float
    high: float


STATISTICS: dict[str, Callable[[Array], Array]] = {
    "jaccard": lambda sums: _ratios(sums[..., 0], sums[..., :3].sum(axis=-1)),
    "precision": lambda sums: _ratios(sums[..., 0], sums[..., 0] + sums[..., 1]),
    "recall": lambda sums: _ratios(sums[..., 0], sums[..., 0] + sums[..., 2]),
    "f1": lambda sums: _ratios(2 * sums[..., 0], 2 * sums[..., 0] + sums[..., 1] + sums[..., 2]),
    "mean_distance_nm": lambda sums: _ratios(sums[..., 3], sums[..., 0]),
    "rmse_nm": lambda sums: np.sqrt(_ratios(sums[..., 4], sums[..., 0])),
}
"""What can be bootstrapped: figures computed from sums over frames, (…, `SUMS`)."""


def bootstrap_difference(
    per_frame_a: "pd.DataFrame",
    per_frame_b: "pd.DataFrame",
    statistic: str = "jaccard",
    samples: int = 2000,
    seed: int = 0,
) -> Difference:
    """Say by how much `a` differs from `b`, and how sure that is.

    Both are scored on the same resampled frames (paired percentile bootstrap: Efron & Tibshirani, An
    Introduction to the Bootstrap, 1993, chapter 13). Frames are drawn one by one, as if independent:
    molecules that stay on for several frames make the interval too narrow.

    Parameters
    ----------
    per_frame_a, per_frame_b
        `Evaluation.per_frame` of two tables against the same truth; a frame absent from one counts nothing
        there.
    statistic
        One of `STATISTICS`.
    samples
        Number of resamplings.
    seed
        Seed of the resampling.

    Returns
    -------
    Difference
        Statistic of `a` minus that of `b`, and the ends of its 95% interval; NaN without frames.

    Raises
    ------
    FijiBridgeError
        If the statistic is unknown or there are no resamplings.
    """
    if statistic not in STATISTICS:
        raise FijiBridgeError(f"Unknown statistic {statistic!r}; choose one of {', '.join(STATISTICS)}.")
    if samples < 1:
        raise FijiBridgeError(f"The number of bootstrap samples must be at least 1, not {samples}.")
    figure = STATISTICS[statistic]
    tables = [table.set_index("frame")[list(SUMS)] for table in (per_frame_a, per_frame_b)]
    frames = tables[0].index.union(tables[1].index)
    if frames.empty:
        return Difference(math.nan, math.nan, math.nan)
    a, b = (table.reindex(frames, fill_value=0).to_numpy(dtype=float) for table in tables)
    rng = np.random.default_rng(seed)
    batch = max(1, BOOTSTRAP_BATCH // len(frames))
    differences = []
    for start in range(0, samples, batch):
        size = min(batch, samples - start)
        weights = rng.multinomial(len(frames), np.full(len(frames), 1 / len(frames)), size=size).astype(float)
        differences.append(figure(weights @ a) - figure(weights @ b))
    drawn = np.concatenate(differences)
    drawn = drawn[np.isfinite(drawn)]
    low, high = np.percentile(drawn, [2.5, 97.5]) if drawn.size else (math.nan, math.nan)
    return Difference(float(figure(a.sum(axis=0)) - figure(b.sum(axis=0))), float(low), float(high))


def _positions(
    table: "str | os.PathLike[str] | pd.DataFrame", name: str, camera: "Camera | None"
) -> tuple[Rows, Array]:
    """Give frame (n,) and position (n, 2) in nm of each molecule; `name` says which table in messages."""
    from fiji_bridge.localizations import REQUIRED, read_localizations, require_columns

    if isinstance(table, (str, os.PathLike)):
        name = str(Path(table))
        table = read_localizations(table, camera=camera)
    if not hasattr(table, "columns"):
        raise FijiBridgeError(f"Expected a CSV file or a DataFrame for {name}, not {type(table).__name__}.")
    require_columns(table, REQUIRED, name)
    try:
        values = table[list(REQUIRED)].to_numpy(dtype=float)
    except (TypeError, ValueError) as error:
        raise FijiBridgeError(
            f"A value of frame, x [nm] or y [nm] in {name} is not a number: {error}."
        ) from error
    wrong = ~np.isfinite(values)
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise FijiBridgeError(
            f"Row {row + 1} of {name} has {values[row, column]} in the column {REQUIRED[column]}; "
            "remove that molecule."
        )
    frames = values[:, 0].astype(np.int64)
    if (frames != values[:, 0]).any():
        row = int(np.argmax(frames != values[:, 0]))
        raise FijiBridgeError(
            f"Row {row + 1} of {name} has the frame {values[row, 0]}, which is not a whole number."
        )
    return frames, values[:, 1:]


def _mean(values: Array) -> Any:
    return values.mean(axis=0) if len(values) else np.full(values.shape[1:], np.nan)[()]


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def _ratios(part: Array, whole: Array) -> Array:
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)
