"""The answer in plain words."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from fiji_bridge.comparison.scoring import Gain

WAYS = {
    "raw": "raw frames",
    "denoised": "denoised frames",
    "hybrid": "detected on denoised, fitted on raw",
}
"""The three ways of localizing, by the names used in files and for people."""

ADVICE = {
    "raw": "localize the raw frames",
    "denoised": "localize the denoised frames",
    "hybrid": "detect molecules on the denoised frames and fit them on the raw ones",
}


@dataclass(frozen=True)
class Score:
    """How one way did.

    Attributes
    ----------
    jaccard, rmse_nm
        At the best threshold of the sweep.
    own_jaccard
        At the user's own threshold.
    gain, rmse_gain
        Difference to raw frames of the cross-validated Jaccard index and of the RMSE in nm (None for raw).
    """

    jaccard: float
    rmse_nm: float
    own_jaccard: float
    gain: Gain | None = None
    rmse_gain: Gain | None = None


@dataclass(frozen=True)
class Verdict:
    """Which way to take, in one line and then with the figures."""

    recommended: str
    headline: str
    sentences: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join((self.headline, *self.sentences))


def judge(scores: Mapping[str, Score], *, twin: bool = False, doubts: tuple[str, ...] = ()) -> Verdict:
    """Recommend a way of localizing.

    Another way than raw frames is recommended only if the whole confidence interval of its gain lies above 0;
    of two such ways, the one that gains more.

    Parameters
    ----------
    scores
        Score of each way in `WAYS`; none if nothing could be scored, which `doubts` then explain.
    twin
        The molecules scored are those of a simulated twin, not of the recording.
    doubts
        Sentences that say why the scores cannot be trusted; if there are any, raw frames are recommended.

    Returns
    -------
    Verdict
    """
    gains = {way: score.gain for way, score in scores.items() if score.gain is not None}
    better = [way for way, found in gains.items() if found.sign > 0]
    recommended = max(better, key=lambda way: gains[way].value) if better and not doubts else "raw"
    where = " on a simulated twin of this recording" if twin else ""
    found = doubts or (*(_compared(way, scores) for way in gains), *_own_threshold(scores))
    return Verdict(recommended, _headline(gains, recommended, where, doubts), found)


def _headline(gains: Mapping[str, Gain], recommended: str, where: str, doubts: tuple[str, ...]) -> str:
    if doubts:
        return f"Cannot tell whether denoising helps: {ADVICE['raw']}."
    if recommended != "raw":
        return f"Denoising helped{where}: {ADVICE[recommended]}."
    if all(found.sign < 0 for found in gains.values()):
        return f"Denoising did harm{where}: {ADVICE['raw']}."
    if all(math.isnan(found.low) for found in gains.values()):
        return f"Too few frames to tell whether denoising helps: {ADVICE['raw']}."
    return f"Denoising did not help{where}: {ADVICE['raw']}."


def _compared(way: str, scores: Mapping[str, Score]) -> str:
    """Say how one way did against raw frames at the best threshold of each."""
    score, raw = scores[way], scores["raw"]
    assert score.gain is not None
    found = {1: "better", -1: "worse", 0: "no clear difference"}[score.gain.sign]
    text = f"{WAYS[way].capitalize()}: {found}. Best Jaccard index {score.jaccard:.3f}, raw {raw.jaccard:.3f}"
    if not math.isnan(score.gain.low):
        value, low, high = (f"{number:+.3f}".replace("-", "−") for number in score.gain)
        text += f"; with thresholds chosen on other frames {value} (95% confidence interval {low} to {high})"
    return f"{text}. {_positions(score, raw)}."


def _positions(score: Score, raw: Score) -> str:
    sign = score.rmse_gain.sign if score.rmse_gain is not None else 0
    found = {1: "Positions are worse", -1: "Positions are better", 0: "Positions are as good"}[sign]
    return f"{found} (RMSE {score.rmse_nm:.1f} nm, raw {raw.rmse_nm:.1f} nm)"


def _own_threshold(scores: Mapping[str, Score]) -> tuple[str, ...]:
    values = ", ".join(f"{WAYS[way]} {score.own_jaccard:.3f}" for way, score in scores.items())
    return (f"Jaccard index at your own threshold: {values}.",)
