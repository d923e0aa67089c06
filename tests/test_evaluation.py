import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy.signal.windows import tukey

from fiji_bridge.camera import Camera
from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.evaluation import (
    bootstrap_difference,
    evaluate,
    frc,
    iterative_threshold,
    psnr,
    signal_to_background,
)

PLUGIN_NAMES = {
    "jaccard": "Jaccard index",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1-measure",
    "mean_distance_nm": "RMSE lateral [nm]",
    "mean_distance_x_nm": "RMSE x [nm]",
    "mean_distance_y_nm": "RMSE y [nm]",
}


def molecules(*rows):
    """Make a table of (frame, x, y)."""
    return pd.DataFrame(rows, columns=["frame", "x [nm]", "y [nm]"])


def scattered(rng, count, frames, size):
    return pd.DataFrame(
        {
            "frame": rng.integers(1, frames + 1, count),
            "x [nm]": rng.uniform(0, size, count),
            "y [nm]": rng.uniform(0, size, count),
        }
    )


@pytest.mark.parametrize("recording", ["default", "em_gain"])
def test_every_figure_of_the_plugins_performance_evaluation_is_reproduced(shared_data, recording):
    folder = shared_data / "thunderstorm_reference" / recording
    runs = json.loads((folder / "reference.json").read_text())["runs"]
    evaluated = {name: run["evaluation"] for name, run in runs.items() if "evaluation" in run}
    assert len(evaluated) >= 6
    for name, plugin in evaluated.items():
        found = evaluate(folder / f"{name}.csv", folder / "ground_truth.csv", radius_nm=50)
        counts = [plugin[f"# of {which}"] for which in ("TP", "FP", "FN")]
        assert [found.tp, found.fp, found.fn] == counts, name
        for ours, theirs in PLUGIN_NAMES.items():
            assert getattr(found, ours) == pytest.approx(plugin[theirs], rel=1e-9), (name, ours)


def gale_shapley(found, true, radius):
    """Match one frame as the plugin's source does, one proposal at a time."""
    distance = np.hypot(*(found[:, None] - true[None]).transpose(2, 0, 1))
    wishes = [[m for m in np.argsort(row, kind="stable") if row[m] <= radius] for row in distance]
    engaged, free = {}, list(range(len(found)))
    while free:
        suitor = free.pop(0)
        while wishes[suitor]:
            wanted = wishes[suitor].pop(0)
            rival = engaged.get(wanted)
            if rival is None:
                engaged[wanted] = suitor
                break
            if distance[rival, wanted] < distance[suitor, wanted]:
                engaged[wanted] = suitor
                free.append(rival)
                break
    return {(suitor, wanted): distance[suitor, wanted] for wanted, suitor in engaged.items()}


def test_matching_equals_one_proposal_at_a_time_in_crowded_frames():
    rng = np.random.default_rng(1)
    found, true = scattered(rng, 1500, 40, 300), scattered(rng, 1000, 40, 300)
    columns = ["x [nm]", "y [nm]"]
    pairs, distance = 0, 0.0
    for frame in range(1, 41):
        matched = gale_shapley(
            found.loc[found["frame"] == frame, columns].to_numpy(),
            true.loc[true["frame"] == frame, columns].to_numpy(),
            60.0,
        )
        pairs += len(matched)
        distance += sum(matched.values())
    result = evaluate(found, true, radius_nm=60)
    assert result.tp == pairs
    assert result.mean_distance_nm == pytest.approx(distance / pairs, rel=1e-12)


def test_of_two_detections_of_one_molecule_the_farther_counts_as_in_the_plugin():
    result = evaluate(molecules((1, 105, 100), (1, 120, 100)), molecules((1, 100, 100)))
    assert (result.tp, result.fp, result.fn) == (1, 1, 0)
    assert result.mean_distance_nm == 20


def test_a_detection_that_lost_its_nearest_molecule_takes_the_next():
    found = molecules((1, 110, 100), (1, 85, 100))
    true = molecules((1, 100, 100), (1, 130, 100))
    result = evaluate(found, true)
    assert (result.tp, result.fp, result.fn) == (2, 0, 0)
    assert result.mean_distance_nm == pytest.approx((20 + 15) / 2)


def test_a_shifted_table_has_the_shift_as_its_error():
    true = scattered(np.random.default_rng(2), 40, 40, 10_000)
    found = true.assign(**{"x [nm]": true["x [nm]"] + 6, "y [nm]": true["y [nm]"] - 8})
    result = evaluate(found, true)
    assert (result.tp, result.fp, result.fn) == (40, 0, 0)
    expected = {"mean_distance": 10, "rmse": 10, "mean_distance_x": 6, "rmse_y": 8}
    for name, value in expected.items():
        assert getattr(result, f"{name}_nm") == pytest.approx(value, rel=1e-9)


def test_the_true_root_mean_square_is_not_the_plugins_mean_distance():
    true = molecules((1, 0, 0), (2, 0, 0))
    result = evaluate(molecules((1, 30, 0), (2, 0, 40)), true)
    assert result.mean_distance_nm == 35
    assert result.rmse_nm == pytest.approx(math.sqrt((30**2 + 40**2) / 2))
    assert (result.mean_distance_x_nm, result.rmse_x_nm) == (15, pytest.approx(30 / math.sqrt(2)))


def test_the_radius_itself_still_counts_and_other_frames_never_do():
    true = molecules((1, 0, 0), (2, 500, 0))
    assert evaluate(molecules((1, 30, 40)), true).tp == 1
    assert evaluate(molecules((1, 30, 40.000001)), true).tp == 0
    assert evaluate(molecules((2, 0, 0)), true).tp == 0


def test_a_table_agrees_perfectly_with_itself_even_where_molecules_coincide():
    true = molecules((1, 10, 10), (1, 10, 10), (3, 10, 10))
    result = evaluate(true, true)
    assert (result.jaccard, result.rmse_nm) == (1, 0)


def test_frames_absent_from_either_table_count_as_misses_or_false():
    result = evaluate(molecules((1, 0, 0), (7, 0, 0)), molecules((1, 0, 0), (4, 0, 0)))
    assert (result.tp, result.fp, result.fn) == (1, 1, 1)
    assert result.per_frame[["frame", "tp", "fp", "fn"]].to_numpy().tolist() == [
        [1, 1, 0, 0],
        [4, 0, 0, 1],
        [7, 0, 1, 0],
    ]


def test_sums_over_frames_give_the_whole():
    rng = np.random.default_rng(3)
    result = evaluate(scattered(rng, 400, 20, 2000), scattered(rng, 300, 20, 2000))
    sums = result.per_frame.sum()
    assert (sums["tp"], sums["fp"], sums["fn"]) == (result.tp, result.fp, result.fn)
    assert sums["sum_distance"] / result.tp == pytest.approx(result.mean_distance_nm)
    assert math.sqrt(sums["sum_squared"] / result.tp) == pytest.approx(result.rmse_nm)


def test_empty_tables_have_no_precision_but_a_recall():
    true = molecules((1, 0, 0))
    nothing = evaluate(molecules(), true)
    assert (nothing.fn, nothing.recall, nothing.f1) == (1, 0, 0)
    assert math.isnan(nothing.precision) and math.isnan(nothing.rmse_nm)
    assert evaluate(true, molecules()).precision == 0
    assert math.isnan(evaluate(molecules(), molecules()).jaccard)


def test_files_in_other_units_and_spellings_are_the_same_molecules(tmp_path):
    true = molecules((1, 1000, 2000), (2, 3000, 500))
    path = tmp_path / "truth.csv"
    path.write_text("frame,x [um],y [um]\n1,1.0,2.0\n2,3.0,0.5\n")
    assert evaluate(true, path).jaccard == 1
    assert evaluate(str(path), true).rmse_nm == pytest.approx(0, abs=1e-9)
    path.write_text("frame,x [px],y [px]\n1,10,20\n2,30,5\n")
    assert evaluate(path, true, camera=Camera.parse("offset=0 pixelsize=100")).jaccard == 1
    with pytest.raises(FijiBridgeError, match=r"truth\.csv.*pixelsize"):
        evaluate(path, true)


def test_a_csv_without_the_needed_columns_is_named_with_the_column(tmp_path):
    path = tmp_path / "truth.csv"
    path.write_text("frame,x [nm]\n1,5\n")
    with pytest.raises(FijiBridgeError, match=r"truth\.csv.*y \[nm\]"):
        evaluate(molecules((1, 0, 0)), path)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (molecules((1, 0, math.nan)), r"Row 1 .*y \[nm\]"),
        (molecules((1, 0, 0), (1, math.inf, 0)), r"Row 2 .*x \[nm\]"),
        (molecules((1.5, 0, 0)), "whole number"),
        (molecules((1, "far", 0)), "not a number"),
        (molecules((1, 0, 0)).drop(columns="frame"), "frame"),
        ([(1, 2, 3)], "CSV file or a DataFrame"),
    ],
)
def test_what_is_no_molecule_is_refused_in_a_sentence(table, said):
    with pytest.raises(FijiBridgeError, match=said):
        evaluate(table, molecules((1, 0, 0)))


@pytest.mark.parametrize("radius", [0, -5, math.nan, math.inf])
def test_a_radius_must_be_positive(radius):
    with pytest.raises(FijiBridgeError, match="radius"):
        evaluate(molecules((1, 0, 0)), molecules((1, 0, 0)), radius_nm=radius)


def counts(tp, fp, fn):
    frames = len(tp)
    table = pd.DataFrame({"frame": np.arange(1, frames + 1), "tp": tp, "fp": fp, "fn": fn})
    return table.assign(sum_distance=10.0 * table["tp"], sum_squared=120.0 * table["tp"])


def test_a_table_does_not_differ_from_itself():
    rng = np.random.default_rng(4)
    one = counts(*rng.poisson((20, 3, 5), (50, 3)).T)
    assert bootstrap_difference(one, one) == (0, 0, 0)


def test_the_bootstrap_interval_holds_the_true_difference_nineteen_times_of_twenty():
    rng = np.random.default_rng(5)
    truth, held, rounds = 16 / 22 - 14 / 24, 0, 200
    for seed in range(rounds):
        a = counts(rng.poisson(16, 80), rng.poisson(2, 80), rng.poisson(4, 80))
        b = counts(rng.poisson(14, 80), rng.poisson(4, 80), rng.poisson(6, 80))
        found = bootstrap_difference(a, b, samples=300, seed=seed)
        held += found.low <= truth <= found.high
    assert 0.89 * rounds <= held <= 0.995 * rounds


def test_pairing_removes_what_both_tables_share():
    rng = np.random.default_rng(6)
    crowding = rng.poisson(5, 60) + 1
    a, b = counts(20 * crowding, crowding**2, crowding), counts(20 * crowding + 1, crowding**2, crowding)
    paired = bootstrap_difference(b, a)
    unpaired = bootstrap_difference(b, a.assign(frame=rng.permutation(a["frame"])))
    assert paired.low > 0
    assert paired.high - paired.low < 0.3 * (unpaired.high - unpaired.low)


def test_a_bootstrap_in_small_batches_is_the_same(monkeypatch):
    a, b = counts([5, 9, 4], [1, 0, 2], [2, 2, 2]), counts([6, 7, 3], [0, 0, 1], [1, 4, 3])
    whole = bootstrap_difference(a, b, "rmse_nm", samples=200), bootstrap_difference(a, b, samples=200)
    monkeypatch.setattr("fiji_bridge.evaluation.matching.BOOTSTRAP_BATCH", 100)
    assert whole == (
        bootstrap_difference(a, b, "rmse_nm", samples=200),
        bootstrap_difference(a, b, samples=200),
    )


def test_an_unknown_statistic_is_refused():
    with pytest.raises(FijiBridgeError, match="jaccard"):
        bootstrap_difference(counts([1], [0], [0]), counts([1], [0], [0]), "luck")


def test_psnr_of_a_known_error():
    truth = np.arange(12.0).reshape(3, 4)
    assert psnr(truth + 2, truth, 255) == pytest.approx(20 * math.log10(255 / 2))
    assert psnr(truth, truth, 255) == math.inf
    assert psnr(np.uint8([[0]]), np.uint8([[255]]), 255) == 0


@pytest.mark.parametrize(
    ("image", "truth", "data_range"),
    [
        (np.zeros((2, 2)), np.zeros((2, 3)), 1),
        (np.zeros(0), np.zeros(0), 1),
        ([np.nan], [0], 1),
        ([1], [0], 0),
    ],
)
def test_psnr_of_what_cannot_be_compared_is_refused(image, truth, data_range):
    with pytest.raises(FijiBridgeError):
        psnr(image, truth, data_range)


def sites(rng, *, count, size, sigma, mean):
    """Localize random sites a Poisson number of times each, with a precision of sigma; frames at random."""
    place = rng.uniform(0, size, (count, 2))
    times = rng.poisson(2 * mean, count)
    xy = np.repeat(place, times, axis=0) + rng.normal(0, sigma, (times.sum(), 2))
    return pd.DataFrame({"frame": rng.integers(1, 1001, len(xy)), "x [nm]": xy[:, 0], "y [nm]": xy[:, 1]})


@pytest.mark.parametrize("split", ["parity", "blocks"])
@pytest.mark.parametrize(("sigma", "mean"), [(10, 10), (20, 4)])
def test_fourier_ring_correlation_finds_a_resolution_known_in_closed_form(split, sigma, mean):
    # Sites at random, each localized m times a half: FRC(q) = m e / (m e + 1) with e = exp(-(2 π σ q)²).
    table = sites(np.random.default_rng(7), count=3000, size=8000, sigma=sigma, mean=mean)
    expected = 2 * math.pi * sigma / math.sqrt(math.log(6 * mean))
    found = frc(table, pixel_size_nm=5, split=split)
    assert found.resolution_nm == pytest.approx(expected, rel=0.05)
    decay = mean * np.exp(-((2 * np.pi * sigma * found.frequency) ** 2))
    assert np.abs(found.smoothed - decay / (decay + 1))[5:].max() < 0.08


def test_two_noisy_images_correlate_as_their_spectra_say():
    # A signal of the spectrum S = exp(-(2 π s q)²) and white noise N: S / (S + N) is 1/7 where S = N / 6.
    rng = np.random.default_rng(8)
    height, width, blur, noise = 400, 512, 3.0, 0.06
    q = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    white = np.fft.fft2(rng.standard_normal((height, width)))
    signal = np.fft.ifft2(white * np.exp(-((2 * np.pi * blur * q) ** 2) / 2)).real
    images = [signal + math.sqrt(noise) * rng.standard_normal((height, width)) for _ in range(2)]
    expected = 2 * math.pi * blur / math.sqrt(math.log(6 / noise)) * 100
    assert frc(*images, pixel_size_nm=100).resolution_nm == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("shape", [(20, 24), (25, 20), (31, 33)])
def test_the_correlation_of_a_ring_is_that_of_the_whole_fourier_plane(shape):
    rng = np.random.default_rng(12)
    common = rng.standard_normal(shape)
    images = [common + rng.standard_normal(shape) for _ in range(2)]
    window = np.outer(tukey(shape[0], 0.25), tukey(shape[1], 0.25))
    a, b = (np.fft.fft2((image - image.mean()) * window) for image in images)
    steps = min(shape)
    ring = np.rint(np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.fftfreq(shape[1])[None]) * steps)
    expected = []
    for number in range(1, steps // 2 + 1):
        first, second = a[ring == number], b[ring == number]
        expected.append(np.vdot(second, first).real / np.linalg.norm(first) / np.linalg.norm(second))
    found = frc(*images, pixel_size_nm=50)
    assert found.correlation == pytest.approx(expected, abs=1e-12)
    assert found.frequency == pytest.approx(np.arange(1, steps // 2 + 1) / steps / 50)


def test_images_that_share_nothing_or_everything_have_no_resolution():
    rng = np.random.default_rng(9)
    one, other = rng.standard_normal((2, 128, 128))
    assert math.isnan(frc(one, other).resolution_nm)
    same = frc(one, one)
    assert math.isnan(same.resolution_nm) and same.correlation.min() == pytest.approx(1)


def test_molecules_that_stay_on_flatter_the_split_by_parity():
    rng = np.random.default_rng(10)
    place, start = rng.uniform(0, 5000, (4000, 2)), rng.integers(0, 1000, 4000)
    frames = (start[:, None] + np.arange(6)).ravel() + 1
    xy = np.repeat(place, 6, axis=0) + rng.normal(0, 10, (len(frames), 2))
    table = pd.DataFrame({"frame": frames, "x [nm]": xy[:, 0], "y [nm]": xy[:, 1]})
    parity, blocks = (
        frc(table, pixel_size_nm=10, split=split).smoothed[5:100].mean() for split in ("parity", "blocks")
    )
    assert parity > 0.6
    assert blocks < 0.25


@pytest.mark.parametrize(
    ("arguments", "options", "said"),
    [
        ((molecules(),), {}, "empty"),
        ((molecules((1, 0, 0), (1, 5, 5)),), {}, "half"),
        ((molecules((1, 0, 0), (2, 9e9, 5)),), {}, "larger pixel_size_nm"),
        ((molecules((1, 0, 0), (2, math.nan, 5)),), {}, "finite"),
        ((molecules((1, 0, 0), (2, 1, 5)),), {"split": "halves"}, "blocks"),
        ((molecules((1, 0, 0), (2, 1, 5)),), {"pixel_size_nm": 0}, "pixel_size_nm"),
        ((np.zeros((32, 32)),), {}, "two images"),
        ((np.zeros((32, 32)), np.zeros((32, 31))), {}, "one shape"),
        ((np.zeros(32), np.zeros(32)), {}, "8 pixels"),
    ],
)
def test_what_has_no_fourier_ring_correlation_is_refused(arguments, options, said):
    with pytest.raises(FijiBridgeError, match=said):
        frc(*arguments, **options)


def test_signal_to_background_of_two_levels():
    image = np.full((10, 10), 110.0)
    image[:2, :3] = 160
    assert iterative_threshold(image) == 135
    assert signal_to_background(image, offset=100) == pytest.approx(6)
    assert signal_to_background(image) == pytest.approx(160 / 110)
    assert math.isnan(signal_to_background(np.ones((4, 4))))


def test_the_iterative_threshold_lies_midway_between_the_means():
    rng = np.random.default_rng(11)
    image = np.concatenate([rng.normal(100, 10, 9000), rng.normal(200, 30, 1000)])
    threshold = iterative_threshold(image)
    assert threshold == pytest.approx(
        (image[image > threshold].mean() + image[image <= threshold].mean()) / 2
    )
    assert 120 < threshold < 170
    with pytest.raises(FijiBridgeError, match="NaN"):
        iterative_threshold([1, np.nan])
