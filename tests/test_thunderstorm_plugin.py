"""All of the plugin beside its analysis, headless, against its own commands run on a display.

The references in data/thunderstorm are explained there.
"""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from scipy import ndimage
from waiting import alive, until

from fiji_bridge import thunderstorm
from fiji_bridge.camera import Camera
from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.stack import open_stack
from fiji_bridge.thunderstorm import jar as jars
from fiji_bridge.thunderstorm import processes, regions
from fiji_bridge.thunderstorm import settings as ts
from fiji_bridge.thunderstorm.display import run_macro

DATA = Path(__file__).parent / "data" / "thunderstorm"
_spec = importlib.util.spec_from_file_location("make_references", DATA / "make_references.py")
made = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(made)

CAMERA = Camera.parse(made.CAMERA)
NUMBER = r"-?\d+\.\d+(?:E-?\d+)?"


@pytest.fixture(scope="module")
def flat(plugin, references):
    """The molecules of the display run; the plugin wrote their ids, from 1."""
    return pd.read_csv(references / "flat.csv").astype({"id": int, "frame": int})


@pytest.fixture(scope="module")
def spatial(plugin, references):
    return pd.read_csv(references / "spatial_wlsq.csv")


def assert_same(found, path, rtol=1e-9, frames=None):
    """Compare with a table that the plugin wrote, which leaves out the ids."""
    expected = pd.read_csv(path)
    expected = expected if frames is None else expected[expected["frame"] <= frames]
    found, expected = (table.drop(columns="id", errors="ignore") for table in (found, expected))
    assert list(found.columns) == list(expected.columns)
    assert len(found) == len(expected) > 0
    np.testing.assert_allclose(found.to_numpy(float), expected.to_numpy(float), rtol=rtol, atol=1e-9)


def options_of_analysis(fit, folder):
    return (
        f"{made.ANALYSIS} estimator=[PSF: Elliptical Gaussian (3D astigmatism)] sigma=1.6 fitradius=5 {fit}"
        f" calibrationpath=[{folder}/lens_polynomial.yaml] renderer=[No Renderer]"
    )


def test_molecules_are_those_of_the_display_run(references, flat):
    found = thunderstorm.localize(references / "flat.tif", camera=CAMERA, options=made.FLAT)
    assert_same(found, references / "flat.csv", 1e-6)


@pytest.mark.parametrize("fit", made.FITS_3D)
def test_positions_in_space_by_an_astigmatic_calibration(plugin, references, fit):
    options = options_of_analysis(made.FITS_3D[fit], references)
    frames = 2 if fit == "mfa" else 8  # which takes long
    stack = tifffile.imread(references / "spatial.tif")[:frames]
    found = thunderstorm.localize(stack, camera=CAMERA, options=options)
    assert_same(found, references / f"spatial_{fit}.csv", 1e-6, frames)


@pytest.mark.parametrize("name", made.FOUND)
def test_settings_that_the_shared_references_lack(references, plugin, name):
    frames = 1 if name == "several" else made.FOUND_FRAMES  # which takes long
    stack = tifffile.imread(references / "flat.tif")[:frames]
    found = thunderstorm.localize(stack, camera=CAMERA, options=made.complete(made.FOUND[name]))
    assert_same(found, references / f"found_{name}.csv", 1e-6, frames)


# Regions of interest: the plugin's positions count from the corner of the rectangle around them.


def region_options(analysis):
    return made.complete({"roi": made.FLAT, "watershed": made.WATERSHED}[analysis])


@pytest.mark.parametrize("analysis", ["roi", "watershed"])
@pytest.mark.parametrize("region", made.REGIONS)
def test_a_region_of_interest_is_analysed_as_by_the_plugin(references, plugin, region, analysis):
    found = thunderstorm.localize(
        references / "flat.tif",
        camera=CAMERA,
        options=region_options(analysis),
        roi=references / f"{region}.roi",
    )
    assert_same(found, references / f"{analysis}_{region}.csv")


def test_a_region_may_be_given_in_numbers_or_as_a_mask(references, plugin):
    for rectangle in ((5, 8, 20, 17), "5,8,20,17", np.array([5, 8, 20, 17])):
        found = thunderstorm.localize(
            references / "flat.tif", camera=CAMERA, options=region_options("roi"), roi=rectangle
        )
        assert_same(found, references / "roi_rectangle.csv")
        assert found.attrs["roi"] == (5, 8, 20, 17)
    shape = (32, 32)
    oval = regions.java_roi(references / "oval.roi", shape)
    masks = [np.array([[bool(oval.contains(x, y)) for x in range(32)] for y in range(32)])]
    masks.append(np.random.default_rng(0).random(shape) > 0.5)
    for mask in masks:
        roi = regions.java_roi(mask, shape)
        np.testing.assert_array_equal(
            [[bool(roi.contains(x, y)) for x in range(32)] for y in range(32)], mask
        )
    found = thunderstorm.localize(
        references / "flat.tif", camera=CAMERA, options=region_options("roi"), roi=masks[0]
    )
    assert_same(found, references / "roi_oval.csv")


def test_a_region_crops_what_is_fitted_as_well(references, plugin):
    frames = tifffile.imread(references / "flat.tif")[:4]
    common = {"camera": CAMERA, "options": made.FLAT, "roi": (3, 2, 25, 21), "strength": True}
    plain = thunderstorm.localize(frames, **common)
    brighter = thunderstorm.localize(frames, fit_stack=2 * (frames - 100.0) + 100, **common)
    assert len(plain) == len(brighter) > 5
    ratio = np.median(brighter["intensity [photon]"] / plain["intensity [photon]"])
    assert ratio == pytest.approx(2, abs=0.01)
    np.testing.assert_array_equal(plain["strength"], brighter["strength"])


@pytest.mark.parametrize(
    ("roi", "sentence"),
    [
        ("20,20,20,5", "20, 20, 20, 5\\) is not inside the frames, which are 32 pixels wide and 32 high"),
        ((0, 0, 0, 4), "is not inside the frames"),
        ((1, 2, 3), "is no region; give x,y,width,height"),
        ((1.5, 2, 3, 4), "is no region"),
        ("gone.roi", "no file gone.roi; roi takes x,y,width,height or a .roi file"),
        (np.zeros((32, 32), bool), "with 0 pixels inside"),
        (np.ones((4, 4), bool), r"boolean one of the frames' shape \(32, 32\)"),
        (DATA / "README.md", "README.md is no selection with an area"),
    ],
    ids=str,
)
def test_a_region_that_is_none_is_refused(references, plugin, roi, sentence):
    with pytest.raises(FijiBridgeError, match=sentence) as error:
        thunderstorm.localize(references / "flat.tif", camera=CAMERA, roi=roi)
    assert "\n" not in str(error.value)


def test_a_mask_may_be_an_array_with_labels_or_a_list(references, plugin):
    stack = open_stack(references / "flat.tif")
    mask = stack[0] > np.median(stack[0])
    wanted = thunderstorm.localize(stack, camera=CAMERA, options=made.FLAT, roi=mask.to_numpy())
    assert 0 < len(wanted) < len(thunderstorm.localize(stack, camera=CAMERA, options=made.FLAT))
    for roi in (mask, mask.to_numpy().tolist()):
        found = thunderstorm.localize(stack, camera=CAMERA, options=made.FLAT, roi=roi)
        pd.testing.assert_frame_equal(found, wanted)


def test_when_every_frame_fails_no_frame_is_said_to_be_done(references, plugin):
    kept = []
    with pytest.raises(FijiBridgeError, match="nor any other"):
        thunderstorm.localize(
            references / "flat.tif", camera=CAMERA, roi=(1, 1, 1, 1), options=made.FLAT, stopped=kept.append
        )
    assert not kept


def test_a_selection_without_an_area_is_refused(references, plugin, tmp_path):
    from jpype import JClass

    JClass("ij.io.RoiEncoder").save(JClass("ij.gui.Line")(1, 1, 9, 9), str(tmp_path / "line.roi"))
    with pytest.raises(FijiBridgeError, match=r"line\.roi is no selection with an area"):
        thunderstorm.localize(references / "flat.tif", camera=CAMERA, roi=tmp_path / "line.roi")


# Processes. Each starts a Java, which takes seconds.


def test_processes_share_the_frames_and_change_nothing(references, plugin):
    stack = tifffile.imread(references / "flat.tif")
    stack[9] = 100  # which cannot be analysed by this threshold
    common = {
        "camera": made.CAMERA,
        "options": made.FLAT.replace("threshold=std(Wave.F1)", "threshold=std(I)/max(I)"),
        "roi": references / "polygon.roi",
        "fit_stack": stack,
        "strength": True,
    }
    here = thunderstorm.localize(stack, **common)
    seen = []
    shared = thunderstorm.localize(
        stack, processes=2, progress=lambda stage, done, total: seen.append((done, total)), **common
    )
    pd.testing.assert_frame_equal(shared, here, check_exact=True)
    assert shared.attrs == here.attrs and "frame 10" in here.attrs["warnings"][0]
    assert seen == [(i + 1, 24) for i in range(24)]


@pytest.mark.parametrize("stop", ["killed", "cancelled"])
def test_workers_that_stop_leave_the_frames_done(references, flat, monkeypatch, stop):
    started, kept = [], []
    start = processes._Worker.__init__

    def noted(worker):
        start(worker)
        started.append(worker._process)

    def progress(stage, done, total):
        if done == 5 and stop == "killed":
            for process in started:
                process.kill()
        elif done == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(processes._Worker, "__init__", noted)
    wanted, sentence = {
        "killed": (
            FijiBridgeError,
            r"A worker process .* ended while it analysed frames \d+ to \d+ .*status -9",
        ),
        "cancelled": (KeyboardInterrupt, None),
    }[stop]
    with pytest.raises(wanted, match=sentence):
        thunderstorm.localize(
            references / "flat.tif",
            camera=CAMERA,
            options=made.FLAT,
            processes=2,
            threads=2,
            progress=progress,
            stopped=kept.append,
        )
    assert len(started) == 2 and all(process.poll() is not None for process in started)
    frames = kept[0].attrs["frames"]
    assert 5 <= frames < 24
    assert_same(kept[0], references / "flat.csv", 1e-6, frames)


def test_what_a_worker_cannot_do_is_told_as_here(references, plugin):
    for options, sentence in (
        ({"options": "threshold=std(Wave.F9)"}, "is not a threshold formula: Variable 'F9' does not exist"),
        ({"processes": 0}, "processes is 0; give a whole number of at least 1"),
    ):
        with pytest.raises(FijiBridgeError, match=sentence):
            thunderstorm.localize(references / "flat.tif", camera=CAMERA, **{"processes": 2} | options)


# Post-processing. Twice, since the plugin's own macros do nothing the second time.


@pytest.mark.parametrize("step", made.STEPS)
def test_each_step_of_postprocessing_gives_the_plugins_table_each_time(references, flat, step, tmp_path):
    for _ in range(2):
        options = made.STEPS[step].format(folder=tmp_path)
        assert_same(thunderstorm.postprocess(flat, options, camera=CAMERA), references / f"flat_{step}.csv")


def test_density_in_space(references, spatial):
    step = "action=density radius=900.0 dimensions=3D neighbors=3"
    assert_same(thunderstorm.postprocess(spatial, step), references / "spatial_density.csv")


@pytest.mark.parametrize("step", ["drift_correlation", "drift_fiducials"])
def test_the_curve_of_a_drift_and_its_file_are_the_plugins(references, flat, step, tmp_path):
    options = made.STEPS[step].format(folder=tmp_path)
    curve = thunderstorm.drift(flat, options, camera=CAMERA)
    saved, theirs = (json.loads((where / f"{step}.json").read_text()) for where in (tmp_path, references))
    assert saved == theirs
    corrected = pd.read_csv(references / f"flat_{step}.csv")
    at = curve.set_index("frame").loc[flat["frame"]]
    for label in ("x [nm]", "y [nm]"):
        np.testing.assert_allclose(flat[label] - at[label].to_numpy(), corrected[label], rtol=1e-12)
    points = curve.attrs["points"]
    scale = CAMERA.pixel_size_nm if theirs["units"] == "PIXEL" else 1
    np.testing.assert_allclose(points["x [nm]"], np.array(theirs["driftDataX"]) * scale)
    loaded = f"action=drift method=[Load from file] path=[{references / step}.json]"
    assert_same(thunderstorm.postprocess(flat, loaded, camera=CAMERA), references / f"flat_{step}.csv")


def test_correlation_images_are_the_plugins(references, flat):
    curve = thunderstorm.drift(flat, made.CORRELATE, camera=CAMERA)
    images = curve.attrs["correlations"]
    np.testing.assert_array_equal(images, tifffile.imread(references / "correlations.tif"))
    assert images.dims == ("bin", "y", "x") and images.attrs["pixel_size_nm"] == 50
    np.testing.assert_array_equal(images["bin"], curve.attrs["points"]["frame"][1:])
    # The coordinates say which drift a maximum means; the plugin's own is found with subpixel precision.
    for image, x in zip(images, curve.attrs["points"]["x [nm]"][1:], strict=True):
        best = image.where(image == image.max(), drop=True)
        assert abs(float(best["x"][0]) - x) < 100
    without = thunderstorm.drift(flat, made.CORRELATE.replace("tions=true", "tions=false"), camera=CAMERA)
    assert "correlations" not in without.attrs
    pd.testing.assert_frame_equal(without, curve)


def test_drift_that_cannot_be_found_is_told(flat, tmp_path):
    for options, sentence in (
        ("action=drift method=[Fiducial markers] distancethr=1 ontimeratio=0.9", "No fiducial markers found"),
        (f"action=drift method=[Load from file] path={tmp_path}/none.json", "no file .*none.json"),
        ("action=merge", "finds no drift"),
    ):
        with pytest.raises(FijiBridgeError, match=sentence):
            thunderstorm.drift(flat, options, camera=CAMERA)
    for steps in (20, 1000):
        with pytest.raises(
            FijiBridgeError, match=f"steps={steps} divides 110 molecules in 24 frames into bins"
        ):
            thunderstorm.drift(flat, f"action=drift steps={steps}", camera=CAMERA)
    (tmp_path / "none.json").write_text("no drift")
    with pytest.raises(FijiBridgeError, match=r"none\.json is no drift that ThunderSTORM saved"):
        thunderstorm.drift(
            flat, f"action=drift method=[Load from file] path={tmp_path}/none.json", camera=CAMERA
        )
    with pytest.raises(FijiBridgeError, match="pixel size is unknown"):
        thunderstorm.postprocess(flat, "action=drift")
    with pytest.raises(FijiBridgeError, match="lacks the column z"):
        thunderstorm.postprocess(flat, "action=density dimensions=3D")


@pytest.mark.parametrize("action", ["merge", "duplicates", "density", "drift"])
def test_positions_that_are_none_are_named(flat, action):
    lost = flat.assign(**{"x [nm]": flat["x [nm]"].where(flat["id"] != 4)})
    with pytest.raises(
        FijiBridgeError, match=rf"action={action} has no finite x \[nm\] in row 4 and 0 others"
    ):
        thunderstorm.postprocess(lost, f"action={action}", camera=CAMERA)
    kept = thunderstorm.postprocess(lost, "action=filter formula=[x > 0]")
    assert len(kept) == len(flat) - 1


def test_columns_that_the_plugin_does_not_know_are_merged_without_a_trace(references, flat, capfd):
    more = flat.assign(**{"colour": 100.0 + flat["frame"], "area [nm^2]": 2.0})
    merged = thunderstorm.postprocess(more, made.STEPS["merge"])
    assert_same(merged.drop(columns=["colour", "area [nm^2]"]), references / "flat_merge.csv")
    np.testing.assert_array_equal(merged["colour"], 100 + merged["frame"])  # that of the first
    assert "java" not in "".join(capfd.readouterr())


# Images.


@pytest.mark.parametrize("image", made.IMAGES)
def test_rendered_images_are_the_plugins_pixel_by_pixel(references, flat, spatial, image):
    table = spatial if image.endswith("3d") else flat
    found = thunderstorm.render(table, f"{made.REGION} {made.IMAGES[image]}", camera=CAMERA)
    expected = tifffile.imread(references / f"{image}.tif")
    assert expected.max() > 0
    np.testing.assert_array_equal(found, expected)
    magnification = ts.Visualization.parse(made.IMAGES[image]).renderer.magnification
    assert found.attrs["pixel_size_nm"] == pytest.approx(CAMERA.pixel_size_nm / magnification)
    assert found["x"][0] == pytest.approx(200 + found.attrs["pixel_size_nm"] / 2)
    assert found["y"][0] == pytest.approx(300 + found.attrs["pixel_size_nm"] / 2)


def test_jittered_histograms_are_repeatable_and_keep_every_molecule(flat):
    options = "renderer=Histograms avg=20 magnification=4.0 imleft=-10 imtop=-10 imwidth=60 imheight=60"
    one, same, other = (thunderstorm.render(flat, options, camera=CAMERA, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)
    assert float(one.sum()) == pytest.approx(len(flat), rel=1e-5)


def test_a_colourful_image_has_the_values_of_the_plain_one(spatial):
    plain, colourful = (
        thunderstorm.render(spatial, f"{made.IMAGES['ash_3d']} {more}", camera=CAMERA, shape=(36, 36))
        for more in ("", "colorizez=false")
    )
    np.testing.assert_array_equal(plain, colourful)
    assert plain.dims == ("z", "y", "x")
    np.testing.assert_allclose(plain["z"], [-50, 50, 150, 250])


# Filters. The plugin shows a filtered image only when `Preview` is clicked in its dialog.


@pytest.mark.parametrize("number", range(made.FILTERS))
def test_a_filtered_image_is_the_one_that_the_plugin_previews(references, plugin, number):
    module = list(ts.ImageFilter.modules())[number]
    stack = tifffile.imread(references / "flat.tif")[:2]
    found = thunderstorm.filter_frames(stack, module(), camera=CAMERA)
    assert found.dims == ("t", "y", "x") and found.dtype == np.float32
    previewed = tifffile.imread(references / f"filtered{number}.tif")
    if module is ts.NoFilter:
        assert float(found.max()) > 100
    np.testing.assert_array_equal(found[0], previewed)


CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], bool)


@pytest.mark.parametrize(("pattern", "footprint"), [("box", np.ones((3, 3), bool)), ("cross", CROSS)])
def test_the_median_filter_has_the_pattern_of_its_option(references, plugin, pattern, footprint):
    stack = tifffile.imread(references / "flat.tif")[:3]
    found = thunderstorm.filter_frames(stack, f"filter=[Median filter] pattern={pattern}", camera=CAMERA)
    expected = [ndimage.median_filter(frame - 100.0, footprint=footprint) for frame in stack.astype(float)]
    inside = (slice(None), slice(2, -2), slice(2, -2))
    np.testing.assert_array_equal(found.values[inside], np.stack(expected)[inside])


# The companions.


def test_the_generator_gives_the_same_stack_for_a_seed_on_any_number_of_threads(plugin):
    options = "psf=[Gaussian] fwhm_range=250:300 width=24 height=20 frames=7 density=2.0 driftdist=100.0"
    one, many = (thunderstorm.generate(options, camera=CAMERA, seed=5, threads=threads) for threads in (1, 3))
    np.testing.assert_array_equal(one[0], many[0])
    pd.testing.assert_frame_equal(one[1], many[1])
    other, _ = thunderstorm.generate(options, camera=CAMERA, seed=6)
    assert not np.array_equal(one[0], other)
    assert one[0].shape == (7, 20, 24) and one[0].dtype == np.uint16


def test_generated_stacks_are_of_the_kind_of_the_plugins_own(references, plugin):
    """The same settings as the display run's stack of molecules in space: its random numbers differ."""
    options = (
        f"psf=[Eliptical Gaussian (3D astigmatism)] calibration=[{references}/lens.yaml] z_range=-250:250"
        " width=36 height=36 frames=8 intensityrange=1500:2500 density=1.0 addpoisssonvar=20.0"
    )
    stack, truth = thunderstorm.generate(options, camera=CAMERA, seed=0)
    theirs, their_truth = (
        tifffile.imread(references / "spatial.tif"),
        pd.read_csv(references / "spatial_truth.csv"),
    )
    assert list(truth.columns.drop("id")) == list(their_truth.columns.drop("id", errors="ignore"))
    assert stack.shape == theirs.shape and stack.dtype == theirs.dtype
    # Poisson numbers of molecules with a mean of 104, and of photons of the background.
    assert abs(len(truth) - len(their_truth)) < 6 * np.sqrt(2 * 104)
    assert np.median(stack) == pytest.approx(np.median(theirs), abs=1.5)
    for label in truth.columns.drop(["id", "frame", "x [nm]", "y [nm]"]):
        low, high = their_truth[label].min(), their_truth[label].max()
        assert (
            truth[label].between(low - 0.2 * (high - low) - 1e-6, high + 0.2 * (high - low) + 1e-6).all()
        ), label


def test_a_bead_of_the_generator_stands_where_the_truth_says(plugin):
    options = "psf=[Integrated Gaussian] fwhm_range=250:250 width=17 height=17 frames=4 singlefixed=true"
    bright = f"{options} intensityrange=20000:20000 addpoisssonvar=1.0 driftdist=300.0 driftangle=90.0"
    stack, truth = thunderstorm.generate(bright, camera=CAMERA, seed=1)
    found = thunderstorm.localize(stack, camera=CAMERA, options="sigma=1.1 threshold=3*std(Wave.F1)")
    assert len(found) == len(truth) == 4
    np.testing.assert_allclose(found[["x [nm]", "y [nm]"]], truth[["x [nm]", "y [nm]"]], atol=5)
    assert truth["y [nm]"].iloc[-1] - truth["y [nm]"].iloc[0] == pytest.approx(300)


@pytest.mark.parametrize(
    ("run", "options"),
    [
        ("flat", "toleranceradius=50.0 evaluationspace=xy"),
        ("spatial", "toleranceradius=100.0 evaluationspace=xyz"),
    ],
)
def test_the_evaluation_writes_what_the_plugins_wrote(references, flat, spatial, run, options):
    table, truth = {"flat": flat, "spatial": spatial}[run], pd.read_csv(references / f"{run}_truth.csv")
    scores = thunderstorm.evaluate(table, truth, options)
    wanted = pd.read_csv(references / f"{run}_evaluation.csv", index_col=0).iloc[0]
    assert list(scores) == list(wanted.index)
    np.testing.assert_allclose(list(scores.values()), wanted, atol=5.01e-4)  # the plugin wrote three digits


def test_colocalization_adds_the_plugins_columns(references, flat):
    options = "radiusstep=60 dimensions=2D stepcount=6 addcbc=true addnndist=true addnncount=true"
    found, other = thunderstorm.colocalize(flat, pd.read_csv(references / "flat_truth.csv"), options)
    assert_same(found, references / "flat_cbc.csv")
    assert list(other.columns[-8:]) == list(found.columns[-8:])


def test_channels_are_those_that_the_options_name(references, flat):
    truth = pd.read_csv(references / "flat_truth.csv")
    options = "radiusstep=60 stepcount=6 addnndist=true"
    first, second = thunderstorm.colocalize(flat, truth, options)
    swapped = f"{options} channel1=[Ground-truth table] channel2=[Results table]"
    for found, expected in zip(thunderstorm.colocalize(flat, truth, swapped), (second, first), strict=True):
        pd.testing.assert_frame_equal(found, expected)
    alone, _ = thunderstorm.colocalize(flat, flat, options)
    named, _ = thunderstorm.colocalize(flat, truth, f"{options} channel2=[Results table]")
    pd.testing.assert_frame_equal(named, alone)
    assert alone["nn_dist [nm]"].min() > 0  # a molecule is no neighbour of itself


@pytest.mark.parametrize(
    ("name", "defocus"), [("lens_polynomial", "ThunderSTORM"), ("lens_huang", "Huang '08")]
)
def test_a_calibration_is_the_plugins_own_file(references, plugin, name, defocus, tmp_path):
    wanted = (references / f"{name}.yaml").read_text()
    angle = float(wanted.split("angle: ")[1].split(",")[0])
    options = made.CALIBRATE.format(folder=tmp_path, name=name, defocus=f"[{defocus}]")
    beads = tifffile.imread(references / "beads.tif")
    numbers = thunderstorm.calibrate(beads, options, camera=CAMERA, angle_rad=angle)
    # Its threads finish in any order, and so sums differ in their last digits.
    written = (tmp_path / f"{name}.yaml").read_text()
    assert re.sub(NUMBER, "0", written).split() == re.sub(NUMBER, "0", wanted).split()
    found, expected = (list(map(float, re.findall(NUMBER, text))) for text in (written, wanted))
    np.testing.assert_allclose(found, expected, rtol=1e-8)
    assert numbers["angle"] == angle
    free = thunderstorm.calibrate(beads, options, camera=CAMERA)
    assert free["angle"] == pytest.approx(angle, abs=0.01)  # the plugin draws it at random


def test_a_calibration_looks_only_into_its_region(references, plugin, tmp_path):
    wanted = (references / "lens_region.yaml").read_text()
    angle = float(wanted.split("angle: ")[1].split(",")[0])
    options = made.CALIBRATE.format(folder=tmp_path, name="lens", defocus="ThunderSTORM")
    thunderstorm.calibrate(
        references / "beads.tif", options, camera=CAMERA, angle_rad=angle, roi=(3, 4, 19, 18)
    )
    written = (tmp_path / "lens.yaml").read_text()
    found, expected = (list(map(float, re.findall(NUMBER, text))) for text in (written, wanted))
    np.testing.assert_allclose(found, expected, rtol=1e-8)


@pytest.mark.parametrize("text", ["hello: 3", "!!x.PolynomialCalibration\na1: x", "\0\1"])
def test_a_file_that_is_no_calibration_is_refused(references, plugin, tmp_path, text):
    path = tmp_path / "lens.yaml"
    path.write_text(text)
    for call in (
        lambda: thunderstorm.localize(
            references / "spatial.tif",
            camera=CAMERA,
            options=options_of_analysis("", "").replace("/lens_polynomial.yaml", str(path)),
        ),
        lambda: thunderstorm.generate(
            f"psf=[Eliptical Gaussian (3D astigmatism)] calibration={path} frames=1", camera=CAMERA, seed=0
        ),
    ):
        with pytest.raises(FijiBridgeError, match=r"lens\.yaml is not a calibration of a cylindrical lens"):
            call()


def test_a_calibration_without_beads_is_refused_in_one_sentence(plugin):
    with pytest.raises(FijiBridgeError, match="frames at different heights"):
        thunderstorm.calibrate(np.full((1, 16, 16), 100.0), "", camera=CAMERA)
    noise = np.random.default_rng(0).poisson(20, (12, 16, 16)) + 100.0
    with pytest.raises(FijiBridgeError, match="cannot calibrate with this stack: ") as error:
        thunderstorm.calibrate(noise, "detector=[Local maximum] threshold=1e6", camera=CAMERA)
    assert "\n" not in str(error.value)


# Files.


@pytest.mark.parametrize("suffix", made.FORMATS)
def test_every_format_is_written_and_read_as_by_the_plugin(references, plugin, suffix, tmp_path):
    short = pd.read_csv(references / "short.csv")
    ids = "id=true" if suffix == "xml" else "id=false"
    path = tmp_path / f"table.{suffix}"
    options = f"filepath=[{path}] fileformat=[{made.FORMATS[suffix]}] {ids} chi2=false"
    thunderstorm.export_table(short, options, camera=CAMERA)
    assert path.read_bytes() == (references / f"format.{suffix}").read_bytes()
    back = thunderstorm.import_table(
        f"filepath=[{references}/format.{suffix}] fileformat=[{made.FORMATS[suffix]}] startingframe=3",
        camera=CAMERA,
    )
    assert_same(back, references / f"format_{suffix}_back.csv")


@pytest.mark.parametrize("suffix", made.FORMATS)
def test_a_table_goes_to_a_path_and_back(references, plugin, suffix, tmp_path):
    short = pd.read_csv(references / "short.csv").drop(columns="chi2")
    path = thunderstorm.export_table(short, tmp_path / f"table.{suffix}", camera=CAMERA)
    back = thunderstorm.import_table(path, camera=CAMERA)
    assert set(back.columns) == set(short.columns)
    np.testing.assert_allclose(back, short[back.columns], rtol=1e-6)  # tagged spot files are float32


def test_files_that_cannot_be_are_told(references, plugin, tmp_path):
    short = pd.read_csv(references / "short.csv")
    for sentence, call in {
        "chi2": lambda: thunderstorm.export_table(short, tmp_path / "a.gpb", camera=CAMERA),
        "of no format of ThunderSTORM's": lambda: thunderstorm.export_table(short, tmp_path / "a.docx"),
        "no file .*gone.csv": lambda: thunderstorm.import_table(tmp_path / "gone.csv"),
        r"cannot be read as XML \(1.3 cannot read one without the column id\)": lambda: (
            thunderstorm.export_table(short, f"filepath=[{tmp_path}/noid.xml] fileformat=XML id=false"),
            thunderstorm.import_table(tmp_path / "noid.xml"),
        ),
    }.items():
        with pytest.raises(FijiBridgeError, match=sentence) as error:
            call()
        assert "\n" not in str(error.value)
    assert not (tmp_path / "a.gpb").exists()


@pytest.mark.parametrize("name", ["JSON", "YAML"])
def test_an_id_in_a_file_makes_no_column_without_a_name(references, plugin, name, tmp_path):
    """The plugin reads one of zeros beside the others, and then fails to export its own table."""
    short = pd.read_csv(references / "short.csv")
    options = f"filepath=[{tmp_path}/ids] fileformat={name}"
    thunderstorm.export_table(short, f"{options} id=true")
    assert set(thunderstorm.import_table(options).columns) == set(short.columns)


@pytest.mark.parametrize("name", [*made.PROTOCOLS, "steps"])
def test_the_protocol_is_the_plugins_own_file_and_is_read_back(references, plugin, name, tmp_path):
    theirs = (references / f"{name}-protocol.txt").read_text()
    theirs = re.sub(r"/\S*(?=/lens_polynomial.yaml)", str(references), theirs)  # where it was then
    (tmp_path / "theirs.txt").write_text(theirs)
    protocol = thunderstorm.Protocol.read(tmp_path / "theirs.txt")
    assert protocol.write(tmp_path / "ours.txt").read_text() == theirs
    assert thunderstorm.Protocol.read(tmp_path / "ours.txt") == protocol
    if name == "steps":
        assert protocol.camera.em_gain == 12 and protocol.roi == (5, 8, 20, 17)
        folder = protocol.steps[0].path.rpartition("/")[0]
        assert list(protocol.steps) == [ts.PostProcessing.parse(step) for step in made.protocol_steps(folder)]
    else:
        options = made.complete(made.PROTOCOLS[name].format(folder=references))
        assert protocol.analysis == ts.AnalysisSettings.parse(options)
        assert protocol.camera == CAMERA and protocol.image == "first.tif"


def test_a_protocol_goes_with_an_exported_table(references, flat, tmp_path):
    protocol = thunderstorm.Protocol("a.tif", CAMERA, ts.AnalysisSettings.parse(made.FLAT))
    thunderstorm.export_table(flat, tmp_path / "a.b.csv", protocol=protocol)
    assert thunderstorm.Protocol.read(tmp_path / "a.b-protocol.txt") == protocol
    none = f"filepath={tmp_path}/c.json fileformat=JSON saveprotocol=false"
    thunderstorm.export_table(flat, none, protocol=protocol)
    assert not (tmp_path / "c-protocol.txt").exists()
    for text in ("", "ThunderSTORM (1.3)\n{", "ThunderSTORM (1.3)\n{} {} {} {} {} []", "no"):
        (tmp_path / "bad.txt").write_text(text)
        with pytest.raises(FijiBridgeError, match=r"bad\.txt is not a measurement protocol"):
            thunderstorm.Protocol.read(tmp_path / "bad.txt")
    with pytest.raises(FijiBridgeError, match=r"Cannot read the protocol .*gone\.txt"):
        thunderstorm.Protocol.read(tmp_path / "gone.txt")


# Known traps.


def test_an_analysis_that_is_cancelled_hands_on_the_frames_done(references, flat):
    kept = []

    def cancel(stage, done, total):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        thunderstorm.localize(
            references / "flat.tif", camera=CAMERA, options=made.FLAT, progress=cancel, stopped=kept.append
        )
    [table] = kept
    assert table.attrs["frames"] == 5
    expected = flat[flat["frame"] <= 5]
    np.testing.assert_allclose(table[flat.columns].to_numpy(float), expected.to_numpy(float), rtol=1e-6)


def test_a_frame_that_the_plugin_cannot_analyse_is_named_and_left_out(references):
    """Where a frame has one value everywhere, this threshold finds molecules that cannot be fitted."""
    stack = tifffile.imread(references / "flat.tif")[:5]
    options = made.FLAT.replace("threshold=std(Wave.F1)", "threshold=std(I)/max(I)")
    whole = thunderstorm.localize(stack, camera=CAMERA, options=options)
    stack[2] = 100
    table = thunderstorm.localize(stack, camera=CAMERA, options=options)
    assert list(table["x [nm]"]) == list(whole.loc[whole["frame"] != 3, "x [nm]"])
    [warning] = table.attrs["warnings"]
    assert "cannot analyse frame 3 (" in warning and "1 of 5 frames failed" in warning
    with pytest.raises(FijiBridgeError, match=r"cannot analyse frame 1 .*nor any other"):
        thunderstorm.localize(np.full_like(stack, 100), camera=CAMERA, options=options)


def test_a_number_of_threads_that_cannot_be_is_refused(references):
    with pytest.raises(FijiBridgeError, match="threads is -1"):
        thunderstorm.localize(references / "flat.tif", camera=CAMERA, threads=-1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("magnification=0.001", "would be empty; raise magnification="),
        ("magnification=1.0 imwidth=0.1 imheight=0.1", "would be empty; raise magnification="),
        ("magnification=1e6", "GB, more than 1.6 GB; lower magnification="),
        ("imwidth=20", "both imwidth= and imheight="),
    ],
)
def test_an_image_without_pixels_or_with_too_many_is_refused(flat, options, said):
    with pytest.raises(FijiBridgeError, match=said):
        thunderstorm.render(flat, f"renderer=[Scatter plot] {options}", camera=CAMERA)


def test_a_wavelet_that_would_take_for_ever_is_refused():
    """The plugin's splines take twice as long for each order, where nothing can stop them."""
    with pytest.raises(FijiBridgeError, match=r"order= must be a whole number from 1 to 20, not 50"):
        ts.AnalysisSettings.parse("order=50")


def test_a_camera_may_be_given_as_its_setup(references, flat):
    found = thunderstorm.localize(references / "flat.tif", camera=made.CAMERA, options=made.FLAT)
    assert_same(found, references / "flat.csv", 1e-6)
    merged = thunderstorm.postprocess(flat, made.STEPS["merge"], camera=made.CAMERA)
    assert_same(merged, references / "flat_merge.csv")
    image = thunderstorm.render(flat, "renderer=[Scatter plot] magnification=1", camera=made.CAMERA)
    assert image.attrs["pixel_size_nm"] == 100


def test_a_simulation_without_molecules_has_an_empty_table_of_truth(plugin):
    options = "psf=[Gaussian] width=16 height=16 frames=2 density=0.0"
    _, truth = thunderstorm.generate(options, camera=CAMERA, seed=0)
    assert len(truth) == 0 and {"frame", "x [nm]", "y [nm]"} <= set(truth.columns)


def test_uncertainty_with_em_gain_doubles_only_the_photon_term(references, plugin):
    """Thompson's formula of the plugin (Molecule's emccdThompson), with the excess noise on s² alone."""
    stack = tifffile.imread(references / "flat.tif")[:6]
    em = Camera.parse("offset=100.0 isemgain=true gainem=10.0 photons2adu=20.0 pixelsize=100.0")
    plain, gained = (
        thunderstorm.localize(stack, camera=camera, options=made.FLAT) for camera in (CAMERA, em)
    )
    np.testing.assert_allclose(gained["intensity [photon]"], plain["intensity [photon]"], rtol=1e-6)
    a, s2 = 100.0, plain["sigma [nm]"] ** 2
    n, b = plain["intensity [photon]"], plain["bkgstd [photon]"]
    background = 8 * np.pi * s2**2 * b**2 / (a**2 * n**2)
    for table, excess in ((plain, 1), (gained, 2)):
        expected = np.sqrt((excess * s2 + a**2 / 12) / n + background)
        np.testing.assert_allclose(table["uncertainty [nm]"], expected, rtol=1e-6)


def test_curly_quotes_capitals_and_a_later_versions_string_change_nothing(references, flat):
    recorded = (
        "filter=“Wavelet filter (B-Spline)” scale=2.0 order=3 detector=[local maximum] Threshold=std(Wave.F1)"
        " estimator=[PSF: Integrated Gaussian] sigma=1.3 FitRadius=3 method=[Weighted Least squares]"
        " connectivity=8-neighbourhood numericalderivatives=false renderer=[Histograms] colorize=false"
    )
    found = thunderstorm.localize(references / "flat.tif", camera=CAMERA, options=recorded)
    assert_same(found, references / "flat.csv", 1e-6)
    later = flat.rename(columns={"uncertainty [nm]": "uncertainty [nm]"})
    kept = thunderstorm.postprocess(later, "action=filter formula=[uncertainty_xy < 10]")
    assert 0 < len(kept) == (flat["uncertainty [nm]"] < 10).sum()


def test_a_jar_of_another_version_or_damaged_is_told_in_one_sentence(plugin, tmp_path):
    def jar(name, version):
        path = tmp_path / name
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("cz/cuni/lf1/lge/ThunderSTORM/AnalysisPlugIn.class", b"no class at all")
            if version:
                archive.writestr("plugins.config", f"# Version: {version}\n")
        return path

    from jpype import JArray, JClass

    for name, version, sentence in (
        ("later.jar", "1.4-dev", "is ThunderSTORM 1.4-dev and lacks the class ModuleLoader of 1.3"),
        ("unnamed.jar", None, "is ThunderSTORM of an unknown version and lacks"),
        ("damaged.jar", "1.3", "is damaged: its class ModuleLoader cannot be loaded"),
    ):
        path, URL = jar(name, version), JClass("java.net.URL")
        loader = JClass("java.net.URLClassLoader")(JArray(URL)([URL(path.as_uri())]))
        with pytest.raises(FijiBridgeError, match=sentence) as error:
            jars.Plugin(loader, path)["ModuleLoader"]
        assert "\n" not in str(error.value)
    broken = tmp_path / "broken.jar"
    broken.write_bytes((tmp_path / "later.jar").read_bytes()[:60])
    with pytest.raises(FijiBridgeError, match="is not a jar file"):
        jars.require_jar(broken)


# The plugin's commands on a display. One run holds all, because each takes seconds.


def test_a_macro_of_the_plugins_commands_runs_on_a_display_of_its_own(
    plugin, display, references, monkeypatch, tmp_path
):
    """And ends when a dialog waits for an answer that nobody can give: what was written until then stays."""
    monkeypatch.setenv("DISPLAY", display)
    code = made.line("Camera setup", made.CAMERA) + f'open("{references}/flat.tif");\n'
    code += made.line("Run analysis", f"{made.FLAT} renderer=[No Renderer]")
    code += made.export(tmp_path / "flat.csv", made.ALL_2D)
    code += 'showMessage("A question", "is this seen?");'
    with pytest.raises(
        FijiBridgeError, match=r"waits in the dialog 'A question', which says: is this seen\?"
    ):
        run_macro(code, timeout_s=120)
    assert (tmp_path / "flat.csv").read_text() == (references / "flat.csv").read_text()


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('waitForUser("A stop", "look here");', "waits in the dialog 'A stop', which says: look here"),
        (
            'Dialog.createNonBlocking("Size"); Dialog.addNumber("radius", 3); Dialog.show();',
            "waits in the dialog 'Size', which says: radius 3",
        ),
        ('run("Quit");', "it quits ImageJ, perhaps before its work is done"),
    ],
)
def test_a_macro_that_waits_for_somebody_or_quits_is_told(plugin, display, monkeypatch, line, sentence):
    monkeypatch.setenv("DISPLAY", display)
    with pytest.raises(FijiBridgeError, match=sentence):
        run_macro(line, timeout_s=120)


def test_a_macro_has_a_time_limit(plugin, display, monkeypatch):
    monkeypatch.setenv("DISPLAY", display)
    with pytest.raises(FijiBridgeError, match=r"did not end within 0\.5 s"):
        run_macro("while (true) wait(100);", timeout_s=0.5)


def test_a_macro_needs_a_display(monkeypatch, tmp_path):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    jar = tmp_path / "Thunder_STORM.jar"
    with zipfile.ZipFile(jar, "w") as archive:
        archive.writestr("cz/cuni/lf1/lge/ThunderSTORM/AnalysisPlugIn.class", b"")
    with pytest.raises(FijiBridgeError, match=r"need a display, and DISPLAY is not set; .*install Xvfb"):
        run_macro("", jar=jar)


def test_a_table_of_a_later_version_and_one_with_text(plugin):
    row = {
        "frame": [1, 2],
        "x [nm]": [10.0, 500.0],
        "y [nm]": [10.0, 20.0],
        "uncertainty_xy [nm]": [5.0, 30.0],
    }
    kept = thunderstorm.postprocess(pd.DataFrame(row), "action=filter formula=[uncertainty < 20]")
    assert list(kept["frame"]) == [1]
    with pytest.raises(FijiBridgeError, match="The column note is not of numbers"):
        thunderstorm.postprocess(pd.DataFrame(row | {"note": ["a", "b"]}), "action=merge")


def in_a_process(arguments, folder, **environment):
    """Run a Python with these arguments in a folder; give its exit code and all that it printed."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stdout + done.stderr


def test_files_of_the_working_folder_do_not_stand_in_for_modules(references, plugin, display, tmp_path):
    (tmp_path / "queue.py").write_text("raise ImportError('shadowed')")
    (tmp_path / "macro.ijm").write_text("return toString(40 + 2);")
    command = ["-P", "-m", "fiji_bridge.cli", "thunderstorm"]
    stack = ["localize", str(references / "flat.tif"), "--camera", CAMERA.options(), "--options", made.FLAT]
    code, said = in_a_process([*command, *stack, "--out", "two.csv", "--processes", "2"], tmp_path)
    assert code == 0, said
    code, said = in_a_process([*command, "macro", "macro.ijm"], tmp_path, DISPLAY=display)
    assert code == 0 and "42" in said, said


def test_names_with_letters_of_any_language_survive_a_plain_locale(plugin, tmp_path):
    code = """
import sys, pandas as pd
from fiji_bridge import Camera, thunderstorm
from fiji_bridge.thunderstorm.settings import AnalysisSettings
camera = Camera.parse("offset=414.0 photons2adu=3.6 pixelsize=160.0")
protocol = thunderstorm.Protocol("naïve μm.tif", camera, AnalysisSettings())
table = pd.DataFrame({"frame": [1], "x [nm]": [20.0], "y [nm]": [30.0]})
thunderstorm.export_table(table, "µ.csv", protocol=protocol)
assert thunderstorm.Protocol.read("µ-protocol.txt") == protocol
assert len(thunderstorm.import_table("µ.csv")) == 1
"""
    code, said = in_a_process(["-X", "utf8", "-c", code], tmp_path, LC_ALL="C")
    assert code == 0, said


def test_the_plugin_s_tables_of_units_are_filled_before_threads_come(plugin, tmp_path):
    """Filled by several at once, x had no unit in the columns of some runs."""
    code = """
from fiji_bridge.thunderstorm import jar
plugin = jar.load()
fields = plugin.java_class("estimators.PSF.MoleculeDescriptor$Units").getDeclaredFields()
for field in fields:
    field.setAccessible(True)
    if str(field.getName()) in ("allUnits", "allUnitsNames", "groups", "groupMap"):
        print(field.getName(), field.get(None) is not None)
"""
    code, said = in_a_process(["-c", code], tmp_path)
    assert code == 0 and said.count("True") == 4, said


def test_json_with_a_missing_value_is_refused_by_the_column_s_name(flat, tmp_path):
    table = flat.assign(**{"uncertainty [nm]": np.nan})
    with pytest.raises(FijiBridgeError, match=r"JSON has no missing .* as in 'uncertainty \[nm\]'"):
        thunderstorm.export_table(table, tmp_path / "a.json")
    thunderstorm.export_table(table.drop(columns="uncertainty [nm]"), tmp_path / "a.json")


@pytest.mark.parametrize("wanted", [None, "2", 1.5, float("nan"), 0])
def test_processes_and_threads_are_whole_numbers(references, plugin, wanted):
    with pytest.raises(FijiBridgeError, match=r"^processes is .*; give a whole number of at least 1\.$"):
        thunderstorm.localize(references / "flat.tif", camera=CAMERA, processes=wanted)


@pytest.mark.parametrize(("frames", "processors", "most"), [(3, 64, 3), (500, 2, 4), (500, None, 2)])
def test_more_processes_than_there_is_work_for_are_refused(monkeypatch, frames, processors, most):
    monkeypatch.setattr("os.cpu_count", lambda: processors)
    movie = np.zeros((frames, 4, 4), np.uint16)
    with pytest.raises(FijiBridgeError, match=f"{frames} frames and .* keep no more than {most} busy"):
        thunderstorm.localize(movie, camera=CAMERA, processes=most + 1)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at the processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_macro_ends_with_the_program_that_runs_it(plugin, tmp_path, number):
    if shutil.which("Xvfb") is None:
        pytest.skip("no Xvfb on this machine")
    (tmp_path / "macro.ijm").write_text(f'File.saveString("x", "{tmp_path}/runs"); while (true) wait(100);')
    environment = {name: value for name, value in os.environ.items() if name != "DISPLAY"}
    program = subprocess.Popen(
        [sys.executable, "-m", "fiji_bridge.cli", "thunderstorm", "macro", str(tmp_path / "macro.ijm")],
        env={**environment, "TMPDIR": str(tmp_path)},
        stderr=subprocess.DEVNULL,
    )
    until((tmp_path / "runs").exists, 120)
    helpers = descendants(program.pid)
    assert len(helpers) >= 2, "Xvfb, and the process with ImageJ"
    program.send_signal(number)
    program.wait(30)
    until(lambda: not any(map(alive, helpers)), 30)


def descendants(pid):
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    found = [int(child) for child in children]
    return found + [each for child in found for each in descendants(child)]
