"""The real plugin, headless: its molecules are those that its own macros found with a display."""

import json
import time
import zipfile

import numpy as np
import pandas as pd
import pytest
import tifffile

from fiji_bridge import thunderstorm
from fiji_bridge.camera import Camera
from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.thunderstorm import jar as jars

FRAMES = {"mfa": 1, "gauss": 3}
"""Frames compared of the settings that take long; 8 of the others."""

SETTINGS = {
    "default": (
        "default lsq mle gaussian_wlsq gaussian_mle radial_symmetry centroid no_estimator threshold_2std"
        " threshold_residual connectivity4 nms connected_components connected_components_watershed diff_box"
        " gauss lowered_gauss dog wavelet_s4o2 fitradius5 mfa"
    ),
    "em_gain": "default mle lsq nms radial_symmetry threshold_2std",
}
RUNS = [(data, name) for data, names in SETTINGS.items() for name in names.split()]


class Reference:
    """One of the reference stacks with what the plugin found on it."""

    def __init__(self, folder):
        self.folder = folder
        described = json.loads((folder / "reference.json").read_text())
        self.camera, self.runs = Camera.parse(described["camera"]), described["runs"]
        self.stack = tifffile.imread(folder / "stack.tif")

    def table(self, name, frames=None):
        table = pd.read_csv(self.folder / f"{name}.csv")
        return table if frames is None else table[table["frame"] <= frames]

    def localize(self, name="default", frames=None, **options):
        options.setdefault("options", self.runs[name]["options"])
        return thunderstorm.localize(self.stack[:frames], camera=self.camera, **options)


@pytest.fixture(scope="module")
def references(plugin, shared_data):
    folder = shared_data / "thunderstorm_reference"
    return {name: Reference(folder / name) for name in SETTINGS}


@pytest.fixture(scope="module")
def reference(references):
    return references["default"]


def assert_same_molecules(found, expected):
    assert list(found.columns) == list(expected.columns)
    np.testing.assert_allclose(found.to_numpy(float), expected.to_numpy(float), rtol=1e-6, atol=0)


def test_the_list_of_settings_is_complete(references):
    for name, reference in references.items():
        fitted = [run for run, described in reference.runs.items() if "post" not in described]
        assert sorted(fitted) == sorted(SETTINGS[name].split())


@pytest.mark.parametrize(("data", "name"), RUNS)
def test_every_setting_gives_the_plugins_own_molecules(references, data, name):
    frames = FRAMES.get(name, 8)
    assert_same_molecules(references[data].localize(name, frames), references[data].table(name, frames))


@pytest.mark.parametrize("data", SETTINGS)
def test_postprocessing_keeps_the_plugins_rows_however_often_it_is_run(references, data):
    reference = references[data]
    table = reference.localize("default")
    assert_same_molecules(table, reference.table("default"))
    for _ in range(2):
        for action in ("duplicates", "filter"):
            name = f"default__{action}"
            kept = thunderstorm.postprocess(table, reference.runs[name]["post"])
            assert_same_molecules(kept, reference.table(name))


def test_the_plugins_own_evaluation_scores_the_reference_run_as_it_did_with_a_display(reference):
    truth, wanted = reference.table("ground_truth"), reference.runs["nms"]["evaluation"]
    score = thunderstorm.evaluate_with_plugin(reference.table("nms"), truth)
    assert [score[key] for key in ("tp", "fp", "fn")] == [wanted[f"# of {key}"] for key in ("TP", "FP", "FN")]
    assert score["mean_distance_nm"] == pytest.approx(wanted["RMSE lateral [nm]"], rel=1e-12)


@pytest.mark.parametrize(
    "setting",
    [
        "detector=[Local maximum]",
        "detector=[Non-maximum suppression] radius=2",
        "filter=[Difference-of-Gaussians filter]",
    ],
)
def test_rows_by_strength_are_the_molecules_of_a_higher_threshold(references, setting):
    reference = references["em_gain"]
    swept = reference.localize(frames=3, options=f"{setting} threshold=0.5*(std(Wave.F1))", strength=True)
    sizes = []
    for k in (1.0, 1.7, 3.0, 6.0):
        direct = reference.localize(frames=3, options=f"{setting} threshold={0.5 * k}*(std(Wave.F1))")
        rows = swept[swept["strength"] >= k].drop(columns=["id", "strength"])
        np.testing.assert_array_equal(rows, direct.drop(columns="id"))
        sizes.append(len(direct))
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < sizes[0]


def test_multi_emitter_fits_have_the_strength_of_their_candidate(reference):
    options = "mfaenabled=true nmax=2"
    plain = reference.localize(frames=1, options=options)
    strong = reference.localize(frames=1, options=options, strength=True)
    assert_same_molecules(strong.drop(columns="strength"), plain)
    assert strong["strength"].duplicated().any()


def test_the_number_of_threads_changes_nothing(reference):
    one, four = (reference.localize(frames=12, threads=threads) for threads in (1, 4))
    pd.testing.assert_frame_equal(one, four)


def test_detection_and_fit_can_use_different_stacks(reference):
    # Detected where the left half alone was kept, fitted in frames twice as bright.
    raw, offset, pixel = reference.stack[:4], reference.camera.offset, reference.camera.pixel_size_nm
    left = np.where(np.arange(raw.shape[2]) < 64, raw, offset)
    brighter = 2 * (raw - offset) + offset
    options = "threshold=5 method=[Least squares]"
    everywhere = reference.localize(frames=4, options=options)
    found = thunderstorm.localize(left, camera=reference.camera, options=options, fit_stack=brighter)
    assert found["x [nm]"].max() < 70 * pixel
    inside = [table[table["x [nm]"] < 50 * pixel] for table in (everywhere, found)]
    assert len(inside[0]) == len(inside[1]) > 20
    for column, factor in (("x [nm]", 1), ("y [nm]", 1), ("intensity [photon]", 2)):
        here, there = (table[column].to_numpy() for table in inside)
        assert np.median(np.abs(there / here - factor)) < 1e-3


def test_per_pixel_maps_correct_the_frames_first(reference):
    frames = reference.stack[:2]
    offset = np.random.default_rng(0).integers(-30, 30, frames.shape[1:]) + reference.camera.offset
    gain = np.full(frames.shape[1:], 1 / reference.camera.photons_per_adu)
    camera = reference.camera.replace(offset_map=offset, gain_map=gain)
    uneven = frames + (offset - reference.camera.offset)
    table = thunderstorm.localize(uneven, camera=camera)
    np.testing.assert_allclose(table, reference.localize(frames=2), rtol=1e-3)


def test_a_stack_without_molecules_gives_an_empty_table_with_the_usual_columns(reference):
    table = reference.localize(frames=2, options="threshold=1e9", strength=True)
    assert len(table) == 0
    assert list(table.columns) == [*reference.table("default").columns, "strength"]


def test_cancelling_stops_the_work_and_leaves_the_plugin_usable(reference):
    def cancel(stage, done, total):
        seen.append((done, total, time.monotonic()))
        raise KeyboardInterrupt

    seen = []
    # The frames after the first, which is empty, hold hundreds of molecules that take long to fit.
    frames = np.concatenate([np.full_like(reference.stack[:1], 500), reference.stack])
    options = "threshold=10 mfaenabled=true"
    with pytest.raises(KeyboardInterrupt):
        thunderstorm.localize(frames, camera=reference.camera, options=options, progress=cancel)
    [(done, total, cancelled)] = seen
    assert (done, total) == (1, 51)
    assert time.monotonic() - cancelled < 2
    assert_same_molecules(reference.localize(frames=1), reference.table("default", 1))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("sigma=wide", "option sigma= must be a positive finite number, not 'wide'"),
        ("fitradius=0", "option fitradius= must be a positive whole number, not 0"),
        ("mfaenabled=true nmax=x", "option nmax= must be zero or a positive whole number, not 'x'"),
        ("method=[Fast]", "option method= must be one of .*Least squares"),
        ("filter=[Wavelets]", r"no filter=\[Wavelets\]; it has Wavelet filter"),
        ("detector=Maximum", r"no detector=\[Maximum\]; it has Local maximum"),
        ("estimator=Gauss", r"no estimator=\[Gauss\]; it has PSF: Integrated Gaussian"),
        ("threshold=std(Wave.F1", r"threshold=std\(Wave.F1 is not a threshold formula: .*Expected `\)`"),
        ("threshold=std(Wave.F9)", "is not a threshold formula: Variable 'F9' does not exist"),
        ("threshold=Wave.F1", "threshold=Wave.F1 has no value in frame 1: .*must be a scalar"),
        ("treshold=20", "no option treshold= here; write threshold="),
        (
            "estimator=[PSF: Elliptical Gaussian (3D astigmatism)]",
            "calibrationpath= names no file",
        ),
    ],
)
def test_a_wrong_option_is_named_in_one_sentence(reference, options, sentence):
    with pytest.raises(FijiBridgeError, match=sentence) as error:
        reference.localize(frames=1, options=options)
    assert "\n" not in str(error.value)


def test_options_of_renderers_may_stay_in_a_recorded_macro(reference):
    recorded = "renderer=[Averaged shifted histograms] magnification=5.0 colorize=false shifts=2 repaint=50"
    found = reference.localize(frames=1, options=recorded)
    assert_same_molecules(found, reference.table("default", 1))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"options": "detector=[Centroid of connected components]", "strength": True}, "has no strength"),
        ({"options": "full_image_fitting=true", "strength": True}, "have no strength"),
        ({"options": "threshold=-1", "strength": True}, "threshold of frame 1 is -1"),
        ({"fit_stack": np.zeros((1, 8, 8))}, r"fit_stack has the shape \(1, 8, 8\)"),
        ({"camera": Camera(100.0, 1.0)}, "pixel size is unknown"),
    ],
)
def test_what_cannot_be_done_is_refused(reference, arguments, sentence):
    camera = arguments.pop("camera", reference.camera)
    with pytest.raises(FijiBridgeError, match=sentence):
        thunderstorm.localize(reference.stack[:1], camera=camera, **arguments)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("action=filter formula=[intensity >]", "formula=intensity > cannot be applied: Syntax error"),
        ("action=filter formula=[brightness > 5]", "Variable 'brightness' does not exist"),
        ("action=filter formula=[3]", "must be a vector"),
        ("action=marge", r"no action=\[marge\]; it has filter, density"),
    ],
)
def test_a_wrong_formula_is_named(reference, options, sentence):
    with pytest.raises(FijiBridgeError, match=sentence):
        thunderstorm.postprocess(reference.table("default", 1), options)


# Finding the jar needs neither Java nor the plugin.


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """A machine without a plugin, whose user data directory is in `tmp_path`."""
    monkeypatch.setattr(jars, "user_folder", lambda: tmp_path / "user")
    monkeypatch.delenv(jars.JAR_VARIABLE, raising=False)
    monkeypatch.delenv(jars.FIJI_VARIABLE, raising=False)
    return tmp_path


def put(path, entry=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(entry or "cz/cuni/lf1/lge/ThunderSTORM/AnalysisPlugIn.class", b"")
    return path


def test_the_jar_that_is_named_comes_first_then_fiji_then_the_users_folder(alone, monkeypatch):
    assert thunderstorm.find_jar() is None
    own = put(alone / "user" / "Thunder_STORM.jar")
    assert thunderstorm.find_jar() == own
    in_fiji = put(alone / "Fiji.app" / "plugins" / "SMLM" / "thunder-STORM-1.3.jar")
    monkeypatch.setenv(jars.FIJI_VARIABLE, str(alone / "Fiji.app"))
    assert thunderstorm.find_jar() == in_fiji
    assert thunderstorm.find_jar(fiji=put(alone / "Other" / "readme.jar").parent) == own
    by_variable = put(alone / "variable.jar")
    monkeypatch.setenv(jars.JAR_VARIABLE, str(by_variable))
    assert thunderstorm.find_jar() == by_variable
    explicit = put(alone / "explicit.jar")
    assert thunderstorm.find_jar(explicit) == explicit


def test_a_jar_or_folder_that_was_named_must_exist(alone, monkeypatch):
    with pytest.raises(FijiBridgeError, match=r"--thunderstorm-jar names .*none.jar"):
        thunderstorm.find_jar(alone / "none.jar")
    with pytest.raises(FijiBridgeError, match="--fiji names"):
        thunderstorm.find_jar(fiji=alone / "none")
    monkeypatch.setenv(jars.JAR_VARIABLE, str(alone / "gone.jar"))
    with pytest.raises(FijiBridgeError, match=f"{jars.JAR_VARIABLE} names .*gone.jar"):
        thunderstorm.find_jar()


def test_without_a_jar_it_says_where_it_looked_and_how_to_give_one(alone):
    with pytest.raises(
        FijiBridgeError, match=r"found in .*user; put Thunder_STORM.jar there, or name it"
    ) as error:
        jars.require_jar()
    assert jars.JAR_VARIABLE in str(error.value)
    text = alone / "Thunder_STORM.jar"
    text.write_text("not a jar")
    with pytest.raises(FijiBridgeError, match="is not a jar file"):
        jars.require_jar(text)
    with pytest.raises(FijiBridgeError, match="is not ThunderSTORM: it lacks the class"):
        jars.require_jar(put(alone / "other.jar", "ij/IJ.class"))
