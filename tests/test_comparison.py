"""Comparison: the sweep, whether a difference is real, and a verdict that follows from it."""

import itertools
import json
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from fiji_bridge.camera import Camera
from fiji_bridge.comparison import compare
from fiji_bridge.comparison.scoring import Gain, Scored, best, cross_validated, gain, per_frame
from fiji_bridge.comparison.sweep import FACTORS, Sweep
from fiji_bridge.comparison.twin import twin_of
from fiji_bridge.comparison.verdict import Score, judge
from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.evaluation.matching import STATISTICS, SUMS
from fiji_bridge.files import jsonable


def counts_of(found, false, *, molecules=40, frames=60, error_nm=10.0, seed=0):
    """Counts of each frame for a way that finds a share of the molecules, and false ones besides."""
    rng = np.random.default_rng(seed)
    tp = rng.binomial(molecules, found, frames)
    squared = tp * error_nm**2 * rng.gamma(40, 1 / 40, frames)
    return np.stack(
        [tp, rng.poisson(false, frames), molecules - tp, tp * error_nm * 0.9, squared], axis=1
    ).astype(float)


def jaccard(counts):
    return float(STATISTICS["jaccard"](counts.sum(axis=0)))


def scores_of(raw, **others):
    def summary(way):
        jaccard, rmse = (float(STATISTICS[name](way.sum(axis=0))) for name in ("jaccard", "rmse_nm"))
        return jaccard, rmse, jaccard

    return {"raw": Score(*summary(raw))} | {
        name: Score(*summary(way), gain(way, raw, "jaccard"), gain(way, raw, "rmse_nm"))
        for name, way in others.items()
    }


def test_the_sweep_contains_the_users_own_threshold():
    assert 1.0 in FACTORS and np.all(np.diff(FACTORS) > 0)


def test_a_higher_threshold_keeps_a_subset_of_the_molecules():
    rng = np.random.default_rng(1)
    table = pd.DataFrame(
        {
            "id": range(1, 501),
            "frame": 1,
            "x [nm]": rng.uniform(0, 1e4, 500),
            "strength": rng.gamma(2, 1, 500),
        }
    )
    sweep = Sweep({float(FACTORS[0]): table}, FACTORS, 1)
    found = sweep.detections()
    assert found[0] > found[-1] and np.all(np.diff(found) <= 0)
    for low, high in itertools.pairwise(FACTORS):
        assert set(sweep.at(high)["x [nm]"]) <= set(sweep.at(low)["x [nm]"])
    own = sweep.at(1.0)
    assert len(own) == (table["strength"] >= 1).sum()
    assert "strength" not in own and list(own["id"]) == list(range(1, len(own) + 1))


def test_without_strength_each_threshold_is_the_run_made_at_it():
    runs = {1.0: pd.DataFrame({"frame": [1, 1]}), 2.0: pd.DataFrame({"frame": [1]})}
    sweep = Sweep(runs, np.array([1.0, 2.0]), 1)
    assert list(sweep.detections()) == [2, 1]


def test_frames_without_molecules_count_as_empty_frames():
    table = pd.DataFrame(
        {"frame": [2], "tp": [3], "fp": [1], "fn": [0], "sum_distance": [9.0], "sum_squared": [30.0]}
    )
    counts = per_frame(SimpleNamespace(per_frame=table), 3)
    assert counts.shape == (3, len(SUMS)) and counts[0].sum() == counts[2].sum() == 0
    assert list(counts[1]) == [3, 1, 0, 9, 30]


def test_the_best_threshold_is_the_one_with_the_highest_jaccard():
    counts = np.stack([counts_of(0.9, 60), counts_of(0.8, 2), counts_of(0.2, 0)])
    assert best(counts) == 1


def test_choosing_thresholds_on_other_frames_takes_the_flattery_out_of_a_sweep():
    """Twenty thresholds that are equally good in truth: the best of them looks better than it is."""
    flattered, honest = [], []
    for seed in range(20):
        counts = np.stack([counts_of(0.6, 6, frames=10, seed=100 * seed + k) for k in range(20)])
        flattered.append(jaccard(counts[best(counts)]))
        honest.append(jaccard(cross_validated(counts)))
    expected = 0.6 * 40 / (40 + 6)
    assert np.mean(flattered) > expected + 0.015
    assert abs(np.mean(honest) - expected) < 0.01


def test_the_interval_of_a_gain_covers_the_truth_about_95_times_in_100():
    inside = 0
    for seed in range(200):
        raw, way = counts_of(0.6, 5, seed=2 * seed), counts_of(0.63, 5, seed=2 * seed + 1)
        found = gain(way, raw, "jaccard", seed=seed, samples=300)
        inside += found.low <= (0.63 - 0.6) * 40 / 45 <= found.high
    assert 180 <= inside <= 198


def test_when_denoising_finds_more_molecules_it_is_recommended():
    verdict = judge(
        scores_of(counts_of(0.6, 5), denoised=counts_of(0.75, 5, seed=1), hybrid=counts_of(0.68, 5, seed=2))
    )
    assert verdict.recommended == "denoised"
    assert verdict.headline.startswith("Denoising helped")


def test_of_two_ways_that_help_the_better_one_is_recommended():
    verdict = judge(
        scores_of(counts_of(0.6, 5), denoised=counts_of(0.68, 5, seed=1), hybrid=counts_of(0.75, 5, seed=2))
    )
    assert verdict.recommended == "hybrid"


def test_when_denoising_loses_molecules_the_raw_frames_are_recommended_and_the_harm_is_said():
    verdict = judge(
        scores_of(counts_of(0.7, 5), denoised=counts_of(0.5, 5, seed=1), hybrid=counts_of(0.6, 5, seed=2))
    )
    assert verdict.recommended == "raw"
    assert "harm" in verdict.headline and "worse" in str(verdict)


def test_when_the_difference_is_within_chance_the_raw_frames_are_recommended():
    verdict = judge(
        scores_of(counts_of(0.7, 5), denoised=counts_of(0.7, 5, seed=1), hybrid=counts_of(0.7, 5, seed=2))
    )
    assert verdict.recommended == "raw"
    assert "did not help" in verdict.headline and "no clear difference" in str(verdict)


def test_a_few_frames_are_not_enough_for_a_verdict():
    raw, way = counts_of(0.5, 5, frames=4), counts_of(0.9, 1, frames=4, seed=1)
    assert np.isnan(gain(way, raw, "jaccard").low)
    verdict = judge(scores_of(raw, denoised=way, hybrid=way))
    assert verdict.recommended == "raw" and "Too few frames" in verdict.headline


def test_positions_that_get_worse_are_named_even_when_more_molecules_are_found():
    verdict = judge(scores_of(counts_of(0.6, 5), denoised=counts_of(0.75, 5, error_nm=20, seed=1)))
    assert verdict.recommended == "denoised"
    assert "Positions are worse" in str(verdict)


def test_what_speaks_against_the_scores_overrules_them():
    scores = scores_of(counts_of(0.6, 5), denoised=counts_of(0.8, 5, seed=1))
    verdict = judge(scores, twin=True, doubts=("The twin does not look like the recording.",))
    assert verdict.recommended == "raw" and "Cannot tell" in verdict.headline
    assert "does not look like" in str(verdict)


def test_without_any_score_the_verdict_says_that_it_cannot_tell():
    verdict = judge({}, doubts=("No molecules were found.",))
    assert verdict.recommended == "raw" and verdict.sentences == ("No molecules were found.",)


@pytest.mark.parametrize("rate", [0.5, 2.0, 8.0])
def test_the_threshold_for_a_rate_of_false_detections_lies_between_its_neighbours(rate):
    factors = np.array([0.5, 1.0, 2.0, 4.0])
    counts = np.zeros((4, 10, len(SUMS)))
    counts[:, :, 1] = np.array([16, 4, 1, 0])[:, None]
    found = Scored(factors, [], counts).at_false_rate(rate)
    assert np.interp(np.log(found), np.log(factors), [16, 4, 1, 0]) == pytest.approx(rate)


def test_signs_of_gains():
    assert Gain(0.1, 0.05, 0.2).sign == 1
    assert Gain(-0.1, -0.2, -0.05).sign == -1
    assert Gain(0.1, -0.1, 0.2).sign == Gain(0.1, np.nan, np.nan).sign == 0


def test_figures_survive_json_and_missing_numbers_are_null():
    figures = {
        "a": np.float32(0.5),
        "b": np.array([1.0, np.nan]),
        "c": (np.int64(3), float("inf")),
        "d": None,
        1: True,
    }
    assert json.loads(json.dumps(jsonable(figures), allow_nan=False)) == {
        "a": 0.5,
        "b": [1.0, None],
        "c": [3, None],
        "d": None,
        "1": True,
    }


CAMERA = "offset=100.0 photons2adu=0.5 isemgain=false pixelsize=100.0 readnoise=1.0"
SMALL = {"steps": 150, "features": (8, 12, 16), "batch": 4, "crop": 32, "learning_rate": 4e-3}
OUTPUTS = {
    "report.html",
    "result.json",
    "raw.csv",
    "denoised.csv",
    "hybrid.csv",
    "denoised.tif",
    "model.safetensors",
}


@pytest.fixture(scope="module")
def movie():
    """A short simulated movie."""
    from fiji_bridge.simulation import simulate

    options = "width=48 height=48 density=0.4 fwhm_range=200:300 intensityrange=300:900 addpoisssonvar=20"
    return simulate(options=options, camera=Camera.parse(CAMERA), frames=24, seed=2)


@pytest.fixture(scope="module")
def compared(movie, tmp_path_factory):
    """That movie compared, with a small network that trains for a few seconds."""
    from fiji_bridge import denoising

    stages = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(denoising, "train", partial(denoising.train, **SMALL))
        comparison = compare(
            movie.stack,
            out=tmp_path_factory.mktemp("compared"),
            ground_truth=movie.ground_truth,
            camera=CAMERA,
            engine="torch",
            progress=lambda stage, done, total: stages.append((stage, done, total)),
        )
    return comparison, stages


def test_a_comparison_leaves_every_output_whole(compared):
    comparison, _ = compared
    assert {file.name for file in comparison.folder.iterdir()} == OUTPUTS
    written = json.loads((comparison.folder / "result.json").read_text())
    assert written == comparison.as_dict()
    assert written["recommended"] in ("raw", "denoised", "hybrid")
    assert comparison.verdict.startswith(written["headline"])


def test_both_tables_are_what_the_users_own_threshold_gives(compared, movie):
    from fiji_bridge.localizations import read_localizations
    from fiji_bridge.localizers import localize

    comparison, _ = compared
    direct = localize(movie.stack, camera=CAMERA, engine="torch")
    written = read_localizations(comparison.folder / "raw.csv")
    assert len(written) == len(direct) > 50 and "strength" not in written
    for column in ("frame", "x [nm]", "y [nm]", "intensity [photon]"):
        np.testing.assert_allclose(written[column], direct[column], rtol=1e-6)


def test_the_scores_at_the_users_own_threshold_are_those_of_the_written_tables(compared, movie):
    from fiji_bridge.evaluation import evaluate

    comparison, _ = compared
    for way, found in comparison.as_dict()["ways"].items():
        score = evaluate(comparison.folder / f"{way}.csv", movie.ground_truth)
        assert found["own"]["tp"] == score.tp and found["own"]["fp"] == score.fp
        assert found["own"]["rmse_nm"] == pytest.approx(score.rmse_nm)
        assert found["best"]["jaccard"] >= found["own"]["jaccard"] - 1e-12
        assert found["best"]["jaccard"] == pytest.approx(max(found["sweep"]["jaccard"]))


def test_the_hybrid_has_the_molecules_of_the_denoised_frames_at_positions_of_the_raw_ones(compared):
    comparison, _ = compared
    ways = comparison.as_dict()["ways"]
    assert ways["hybrid"]["sweep"]["factor"] == ways["denoised"]["sweep"]["factor"]
    detections = np.array([ways[way]["sweep"]["detections"] for way in ("denoised", "hybrid")])
    assert np.abs(detections[0] - detections[1]).max() <= 0.1 * detections.max()


def test_progress_never_runs_backwards(compared):
    _, stages = compared
    assert all(0 <= done <= total for _, done, total in stages)
    assert any(stage == "Training" for stage, _, _ in stages)


def test_without_truth_the_ways_are_judged_on_a_simulated_twin(compared, movie, tmp_path):
    comparison, _ = compared
    found = compare(
        movie.stack,
        out=tmp_path,
        camera=CAMERA,
        engine="torch",
        model=comparison.folder / "model.safetensors",
    ).as_dict()
    assert found["basis"] == "simulated twin" and "twin" in found["verdict"]
    assert not found["trained_here"] and not (tmp_path / "model.safetensors").exists()
    twin = found["twin"]
    assert twin["detections_in_twin"] == pytest.approx(twin["detections_in_recording"], rel=0.2)
    assert 'id="truth"' in (tmp_path / "report.html").read_text()


def test_hot_pixels_are_no_molecules_of_any_way(compared, movie, tmp_path):
    comparison, _ = compared
    broken = movie.stack.copy(data=movie.stack.to_numpy())
    broken[:, 20::25, 20::25] += 3000
    number = broken[0, 20::25, 20::25].size
    found = compare(
        broken, out=tmp_path, camera=CAMERA, engine="torch", model=comparison.folder / "model.safetensors"
    )
    figures = found.as_dict()
    assert f"{number} hot pixels were found" in figures["warnings"][0]
    assert "raw.csv and hybrid.csv" in figures["warnings"][1]
    for way, table in comparison.tables.items():
        assert len(found.tables[way]) == pytest.approx(len(table), rel=0.1)
    assert figures["twin"]["detections_in_twin"] == pytest.approx(len(found.tables["raw"]), rel=0.2)


def test_a_twin_is_as_bright_as_its_recording(movie):
    camera = Camera.parse(CAMERA)
    twin = twin_of(movie.stack, {"raw": movie.ground_truth, "hybrid": movie.ground_truth}, camera)
    assert len(twin.molecules) == len(movie.ground_truth)
    real, made = (stack.to_numpy().astype(float) for stack in (movie.stack, twin.stack))
    assert made.mean() == pytest.approx(real.mean(), rel=0.005)
    assert made.std() == pytest.approx(real.std(), rel=0.03)
    assert np.corrcoef(real.ravel(), made.ravel())[0, 1] > 0.5
    assert not np.array_equal(real, made)


def test_a_molecule_found_both_ways_is_in_the_twin_once(movie):
    truth = movie.ground_truth
    shifted = truth.assign(**{"x [nm]": truth["x [nm]"] + 20.0})
    half = truth[::2]
    twin = twin_of(movie.stack, {"raw": half, "hybrid": shifted}, Camera.parse(CAMERA))
    assert len(half) < len(twin.molecules) <= len(truth)
    assert np.isin(half["x [nm]"], twin.molecules["x [nm]"]).all()


def test_too_few_molecules_make_no_twin(movie):
    few = movie.ground_truth.iloc[:20]
    assert twin_of(movie.stack, {"raw": few, "hybrid": few}, Camera.parse(CAMERA)) is None


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"camera": None}, "pixelsize="),
        ({"ground_truth": pd.DataFrame({"frame": [99], "x [nm]": [5.0], "y [nm]": [5.0]})}, "frame 99"),
        ({"ground_truth": pd.DataFrame({"frame": [1], "x [nm]": [5.0]})}, "y [nm]"),
        ({"options": "threshold=std(Wave.F1"}, "threshold"),
        ({"options": "detektor=[Local maximum]"}, "detektor"),
    ],
)
def test_a_mistake_is_found_before_the_training_and_leaves_nothing(movie, tmp_path, changes, says):
    stack = movie.stack.copy()
    stack.attrs = {**stack.attrs, "pixel_size_nm": None}
    out = tmp_path / "out"
    with pytest.raises(FijiBridgeError) as caught:
        compare(stack, **{"out": out, "camera": CAMERA, "engine": "torch", **changes})
    assert says in str(caught.value)
    assert not out.exists()


def test_channels_are_refused_in_one_sentence(tmp_path):
    import xarray as xr

    stack = xr.DataArray(np.zeros((3, 2, 16, 16), np.uint16), dims=("t", "c", "y", "x"))
    with pytest.raises(FijiBridgeError, match="2 channels"):
        compare(stack, out=tmp_path / "out", camera=CAMERA)


def test_a_file_in_place_of_the_output_folder_is_refused(movie, tmp_path):
    (tmp_path / "taken").touch()
    with pytest.raises(FijiBridgeError, match="is a file"):
        compare(movie.stack, out=tmp_path / "taken", camera=CAMERA)
