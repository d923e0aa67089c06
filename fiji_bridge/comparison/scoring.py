"""Whether one way of localizing beats another, judged by known molecules."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from fiji_bridge.comparison.sweep import Array, Sweep
from fiji_bridge.evaluation import Evaluation, bootstrap_difference, evaluate
from fiji_bridge.evaluation.matching import STATISTICS, SUMS
from fiji_bridge.progress import Progress

if TYPE_CHECKING:
    import pandas as pd

FALSE = SUMS.index("fp")

LEAST_FRAMES = 8
"""With fewer frames a bootstrap over frames says nothing, and no interval is given."""

BLOCKS = 50
"""Frames are resampled in at most so many runs of neighbours, since a molecule that stays on links them."""


@dataclass(frozen=True)
class Scored:
    """A sweep judged by known molecules.

    Attributes
    ----------
    factors
        Factors of the threshold.
    evaluations
        What `fiji_bridge.evaluate` says at each.
    counts
        Hits and misses of each frame at each factor, (factors, frames, `SUMS`).
    """

    factors: Array
    evaluations: list[Evaluation]
    counts: Array

    @property
    def best(self) -> int:
        """Index of the factor with the highest Jaccard index."""
        return best(self.counts)

    @property
    def own(self) -> int:
        """Index of the user's own threshold."""
        return int(np.flatnonzero(self.factors == 1)[0])

    def curve(self, statistic: str) -> Array:
        """Give a figure of `STATISTICS` at each factor."""
        return STATISTICS[statistic](self.counts.sum(axis=1))

    def false_per_frame(self) -> Array:
        """Mean number of detections in a frame, at each factor, that are no molecule."""
        return self.counts[..., FALSE].mean(axis=1)

    def at_false_rate(self, rate: float) -> float:
        """Find the lowest threshold factor at which no more than `rate` detections a frame are false."""
        rates = self.false_per_frame()
        first = int(np.argmax(rates <= rate)) if (rates <= rate).any() else len(rates) - 1
        if first == 0 or rates[first] > rate:
            return float(self.factors[first])
        around = [first, first - 1]
        return float(np.exp(np.interp(rate, rates[around], np.log(self.factors[around]))))


def score(sweep: Sweep, truth: "pd.DataFrame", label: str, *, radius_nm: float, progress: Progress) -> Scored:
    """Evaluate a sweep against known molecules."""
    evaluations = []
    for done, factor in enumerate(sweep.factors, start=1):
        evaluations.append(evaluate(sweep.at(float(factor)), truth, radius_nm=radius_nm))
        progress(f"Evaluating ({label})", done, len(sweep.factors))
    return Scored(
        sweep.factors, evaluations, np.stack([per_frame(found, sweep.frames) for found in evaluations])
    )


def per_frame(evaluation: Evaluation, frames: int) -> Array:
    """Give an evaluation's counts for every frame, (frames, `SUMS`); frames without molecules count 0."""
    table = evaluation.per_frame.set_index("frame").reindex(range(1, frames + 1), fill_value=0)
    return table[list(SUMS)].to_numpy(dtype=float)


def best(counts: Array) -> int:
    """Index of the factor with the highest Jaccard index; of a plateau, the one nearest its middle."""
    scores = np.nan_to_num(STATISTICS["jaccard"](counts.sum(axis=1)))
    top = np.flatnonzero(scores >= scores.max() - 1e-12)
    return int(top[len(top) // 2])


def blocks(frames: int) -> npt.NDArray[np.int64]:
    """Give the number of the block of neighbours that each frame belongs to."""
    return np.arange(frames) * min(frames, BLOCKS) // frames


def cross_validated(counts: Array) -> Array:
    """Count each frame at a threshold that was chosen on other frames.

    The best of many thresholds flatters whoever has the more ragged curve. So the frames are split into two
    halves of alternating blocks, and each half is scored at the factor that is best on the other half.

    Parameters
    ----------
    counts
        Counts at each factor, (factors, frames, `SUMS`).

    Returns
    -------
    ndarray
        Counts of each frame, (frames, `SUMS`).
    """
    half = blocks(counts.shape[1]) % 2
    chosen = np.empty(counts.shape[1:])
    for side in (0, 1):
        elsewhere = counts[:, half != side]
        factor = best(elsewhere if elsewhere.shape[1] else counts)
        chosen[half == side] = counts[factor, half == side]
    return chosen


class Gain(NamedTuple):
    """A difference to the raw frames with its 95% confidence interval (NaN when the data cannot give one)."""

    value: float
    low: float
    high: float

    @property
    def sign(self) -> int:
        """1 when surely above 0, -1 when surely below, else 0."""
        return int(self.low > 0) - int(self.high < 0)


def gain(way: Array, raw: Array, statistic: str, *, seed: int = 0, samples: int = 4000) -> Gain:
    """Say by how much one way differs from raw frames, by `fiji_bridge.evaluation.bootstrap_difference`.

    Parameters
    ----------
    way, raw
        Counts of each frame, (frames, `SUMS`).
    statistic
        What to compare, one of `STATISTICS`.
    seed, samples
        Of the resampling.
    """
    found = Gain(*bootstrap_difference(_by_block(way), _by_block(raw), statistic, samples=samples, seed=seed))
    return found if len(raw) >= LEAST_FRAMES else Gain(found.value, np.nan, np.nan)


def _by_block(counts: Array) -> "pd.DataFrame":
    import pandas as pd

    return (
        pd.DataFrame(counts, columns=list(SUMS))
        .groupby(blocks(len(counts)))
        .sum()
        .rename_axis("frame")
        .reset_index()
    )
