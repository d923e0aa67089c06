import json
import math

import numpy as np
import pandas as pd
import pytest
import tifffile
from scipy.stats import chi2, kstest

from fiji_bridge.camera import Camera
from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.localizations import read_localizations
from fiji_bridge.simulation import Generator, expected_photons, record, simulate

SMALL = "width=64 height=48 frames=12 density=1"
NO_MOLECULES = "density=0 width=128 height=128 frames=10"


def reference(shared_data, recording):
    """Give options, camera, stack (photons) and truth of a stack that the plugin's generator made."""
    folder = shared_data / "thunderstorm_reference" / recording
    settings = json.loads((folder / "reference.json").read_text())
    camera = Camera.parse(settings["camera"])
    photons = camera.to_photons(tifffile.imread(folder / "stack.tif").astype(float))
    return settings["generate"], camera, photons, read_localizations(folder / "ground_truth.csv")


def mean_frame(molecules, background, camera, shape):
    pixel = camera.pixel_size_nm
    return background + expected_photons(
        molecules["x [nm]"] / pixel,
        molecules["y [nm]"] / pixel,
        molecules["sigma [nm]"] / pixel,
        molecules["intensity [photon]"],
        shape,
    )


def mean_stack(truth, generator, camera):
    shape = (generator.height, generator.width)
    return np.stack(
        [
            mean_frame(truth[truth["frame"] == frame], generator.addpoisssonvar, camera, shape)
            for frame in range(1, generator.frames + 1)
        ]
    )


def noise_variance(mean, camera):
    rounding = (camera.photons_per_adu / (camera.em_gain or 1)) ** 2 / 12
    return camera.excess_noise * mean + camera.read_variance + rounding


@pytest.mark.parametrize("recording", ["default", "em_gain"])
def test_the_plugins_own_frames_are_our_mean_frames_plus_shot_noise(shared_data, recording):
    options, camera, photons, truth = reference(shared_data, recording)
    generator = Generator.parse(options)
    mean = mean_stack(truth, generator, camera)
    bright = mean > 1.5 * generator.addpoisssonvar
    scaled = ((photons - mean) / np.sqrt(noise_variance(mean, camera)))[bright]
    assert bright.sum() > 15_000
    assert abs(scaled.mean()) < 4 / math.sqrt(scaled.size)
    assert (scaled**2).mean() == pytest.approx(1, abs=0.04)
    for axis in (1, 2):
        slope = np.gradient(mean, axis=axis)
        shift = np.sum((photons - mean) * slope / mean) / np.sum(slope**2 / mean)
        assert abs(shift) < 0.01, "pixels: the plugin's molecules lie where ours do"


@pytest.mark.parametrize(("recording", "bin_width"), [("default", 1), ("em_gain", 40)])
def test_recording_the_same_mean_gives_the_plugins_distribution_of_counts(shared_data, recording, bin_width):
    options, camera, photons, truth = reference(shared_data, recording)
    generator = Generator.parse(options)
    mean = mean_stack(truth, generator, camera)
    dark = mean < 1.001 * generator.addpoisssonvar
    theirs = np.rint(camera.to_adu(photons)).astype(int)[dark] // bin_width
    ours = record(mean, camera, np.random.default_rng(1)).astype(int)[dark] // bin_width
    first, second = (
        np.bincount(values, minlength=1 + max(theirs.max(), ours.max())) for values in (theirs, ours)
    )
    filled = first + second > 40
    statistic = np.sum((first - second)[filled] ** 2 / (first + second)[filled])
    assert chi2.sf(statistic, filled.sum() - 1) > 1e-4


@pytest.mark.parametrize("recording", ["default", "em_gain"])
def test_molecules_are_drawn_as_the_plugin_draws_them(shared_data, recording):
    options, camera, photons, theirs = reference(shared_data, recording)
    simulation = simulate(options=options, camera=camera, seed=3)
    ours, pixel = simulation.ground_truth, camera.pixel_size_nm
    assert simulation.stack.shape == photons.shape
    assert list(ours.columns) == list(theirs.columns)
    generator = Generator.parse(options)
    expected = generator.density * photons.size * (pixel / 1000) ** 2
    for table in (ours, theirs):
        assert abs(len(table) - expected) < 4 * math.sqrt(expected)
        low, high = np.array(generator.fwhm_range) / (2 * math.sqrt(2 * math.log(2)))
        ranges = {
            "x [nm]": (0, generator.width * pixel),
            "y [nm]": (0, generator.height * pixel),
            "sigma [nm]": (low, high),
            "intensity [photon]": generator.intensityrange,
        }
        for column, (start, end) in ranges.items():
            assert kstest(table[column], "uniform", (start, end - start)).pvalue > 1e-4, column
    for column in ("offset [photon]", "bkgstd [photon]"):
        assert np.unique(ours[column]) == pytest.approx(np.unique(theirs[column]))
    assert abs(simulation.camera.to_photons(simulation.stack.to_numpy()).mean() - photons.mean()) < 1


def test_the_number_of_molecules_in_a_frame_is_poisson():
    truth = simulate(options="width=60 height=40 frames=800 density=1 addpoisssonvar=0", seed=1).ground_truth
    counts = np.bincount(truth["frame"], minlength=801)[1:]
    expected = 60 * 40 * 0.08**2
    assert counts.mean() == pytest.approx(expected, abs=4 * math.sqrt(expected / 800))
    assert counts.var() / counts.mean() == pytest.approx(1, abs=4 * math.sqrt(2 / 800))


@pytest.mark.parametrize(
    "setup",
    [
        "offset=414 photons2adu=3.6",
        "offset=100 photons2adu=0.5",
        "offset=200 photons2adu=0.8 readnoise=5",
        "offset=100 photons2adu=4.8 isemgain=true gainem=150 readnoise=60",
    ],
)
def test_a_background_has_the_mean_and_the_variance_of_its_camera(setup):
    camera = Camera.parse(setup)
    adu = simulate(options=f"{NO_MOLECULES} addpoisssonvar=30", camera=camera, seed=2).stack.to_numpy()
    variance = (30 * camera.excess_noise + camera.read_variance) * camera.adu_per_photon**2 + 1 / 12
    assert adu.mean() == pytest.approx(
        camera.offset + 30 * camera.adu_per_photon, abs=4 * math.sqrt(variance / adu.size) + 0.03
    )
    assert adu.var() == pytest.approx(variance, rel=0.03)


def test_maps_give_each_pixel_its_own_offset_gain_and_read_noise():
    rng = np.random.default_rng(4)
    offset, gain = rng.uniform(90, 110, (20, 24)), rng.uniform(1.5, 2.5, (20, 24))
    variance = rng.uniform(1, 100, (20, 24))
    camera = Camera(
        offset=100,
        photons_per_adu=0.5,
        pixel_size_nm=100,
        offset_map=offset,
        gain_map=gain,
        variance_map=variance,
    )
    options = "width=24 height=20 frames=4000 density=0 addpoisssonvar=20"
    adu = simulate(options=options, camera=camera).stack.to_numpy().astype(float)
    expected = 20 * gain**2 + variance + 1 / 12
    assert np.abs((adu.mean(axis=0) - offset - 20 * gain) / np.sqrt(expected / 4000)).max() < 5
    assert np.abs(adu.var(axis=0) / expected - 1).max() < 5 * math.sqrt(2 / 4000)
    with pytest.raises(FijiBridgeError, match="offset_map"):
        simulate(options="width=20 height=24", camera=camera)


def test_all_photons_of_a_molecule_arrive_at_its_place():
    image = expected_photons([30.3], [20.8], [1.4], [1000.0], (40, 60))
    assert image.sum() == pytest.approx(1000, rel=1e-5)
    centres = np.arange(60) + 0.5
    assert (image.sum(axis=0) * centres).sum() / 1000 == pytest.approx(30.3, abs=1e-4)
    assert (image.sum(axis=1) * centres[:40]).sum() / 1000 == pytest.approx(20.8, abs=1e-4)
    at_centre = expected_photons([30.3], [20.8], [1.4], [1000.0], (40, 60), psf="Gaussian")
    assert at_centre[20, 30] == pytest.approx(
        1000 * math.exp(-(0.2**2 + 0.3**2) / 2 / 1.4**2) / (2 * math.pi * 1.4**2)
    )


def test_molecules_at_the_edge_lose_what_falls_outside():
    image = expected_photons([0.0, 59.999, 30], [20, 20, 40], [1, 1, 1], [800, 800, 800], (40, 60))
    assert image.sum() == pytest.approx(1200, rel=1e-3)


def test_drawing_in_small_batches_changes_nothing(monkeypatch):
    rng = np.random.default_rng(5)
    drawn = rng.uniform(0, 60, 50), rng.uniform(0, 40, 50), rng.uniform(0.5, 40, 50), rng.uniform(1, 9, 50)
    whole = expected_photons(*drawn, (40, 60))
    monkeypatch.setattr("fiji_bridge.simulation.BATCH_PIXELS", 10_000)
    assert np.allclose(whole, expected_photons(*drawn, (40, 60)), rtol=1e-12)


def test_the_same_seed_gives_the_same_recording_whatever_the_blocks(monkeypatch):
    whole = simulate(options=SMALL, seed=7)
    monkeypatch.setattr("fiji_bridge.simulation.BLOCK_PIXELS", 5 * 64 * 48)
    again, shorter, other = (
        simulate(options=SMALL, seed=7),
        simulate(options=SMALL, seed=7, frames=4),
        simulate(options=SMALL, seed=8),
    )
    assert np.array_equal(whole.stack, again.stack)
    pd.testing.assert_frame_equal(whole.ground_truth, again.ground_truth)
    assert np.array_equal(whole.stack[:4], shorter.stack)
    assert not np.array_equal(whole.stack, other.stack)


@pytest.mark.parametrize("name", ["stack.tif", "stack.zarr"])
def test_files_hold_what_memory_holds(tmp_path, name):
    told = []
    kept = simulate(options=SMALL, seed=7)
    simulation = simulate(
        options=SMALL,
        seed=7,
        out=tmp_path / name,
        ground_truth=tmp_path / "truth.csv",
        progress=lambda *state: told.append(state),
    )
    assert simulation.stack.dtype == np.uint16
    assert simulation.stack.attrs["pixel_size_nm"] == pytest.approx(80)
    assert np.array_equal(simulation.stack, kept.stack)
    written = read_localizations(tmp_path / "truth.csv")
    pd.testing.assert_frame_equal(written, kept.ground_truth, check_dtype=False, rtol=1e-12)
    assert told[0] == ("Simulating", 0, 12) and told[-1] == ("Simulating", 12, 12)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_a_simulation_that_is_stopped_leaves_nothing(tmp_path, monkeypatch, stop):
    monkeypatch.setattr("fiji_bridge.simulation.BLOCK_PIXELS", 64 * 48)

    def cancel(stage, done, total):
        if done == 5:
            raise stop

    with pytest.raises(stop):
        simulate(
            options=SMALL, out=tmp_path / "stack.tif", ground_truth=tmp_path / "truth.csv", progress=cancel
        )
    assert list(tmp_path.iterdir()) == []


def test_drift_moves_the_density_in_its_direction_and_drops_molecules_that_leave():
    options = "width=100 height=100 frames=50 density=2 driftdist=4000 driftangle=90"
    truth = simulate(
        options=options, camera=Camera.parse("offset=0 photons2adu=1 pixelsize=100")
    ).ground_truth
    last = truth[truth["frame"] == 50]
    assert last["y [nm]"].min() >= 4000
    assert last["y [nm]"].max() < 10_000
    assert last["x [nm]"].min() < 500
    assert len(last) == pytest.approx(2 * 10 * 6, abs=4 * math.sqrt(120))
    assert truth.loc[truth["frame"] == 1, "y [nm]"].min() < 500


def test_a_single_fixed_molecule_stands_in_the_middle_of_every_frame():
    simulation = simulate(
        options="width=20 height=30 frames=6 singlefixed=true fwhm_range=200 intensityrange=500"
    )
    truth = simulation.ground_truth
    assert truth["frame"].tolist() == [1, 2, 3, 4, 5, 6]
    assert truth[["x [nm]", "y [nm]"]].drop_duplicates().to_numpy().tolist() == [[10.5 * 80, 15.5 * 80]]
    assert set(truth["intensity [photon]"]) == {500}
    assert np.unravel_index(simulation.stack.to_numpy().sum(axis=0).argmax(), (30, 20)) == (15, 10)


def test_masks_say_where_molecules_and_background_are(tmp_path):
    half = np.zeros((6, 4), np.uint8)
    half[:, 2:] = 200
    half[:3, 2:] = 100
    tifffile.imwrite(tmp_path / "half mask.tif", half)
    options = (
        f"width=64 height=60 frames=60 density=4 maskpath=[{tmp_path / 'half mask.tif'}] addpoisssonvar=0"
    )
    truth = simulate(options=options, seed=9).ground_truth
    assert truth["x [nm]"].min() >= 32 * 80
    whole = 4 * 64 * 60 * 0.08**2 * 60 / 4
    upper = (truth["y [nm]"] < 30 * 80).sum()
    assert upper == pytest.approx(whole / 2, abs=4 * math.sqrt(whole / 2))
    assert len(truth) - upper == pytest.approx(whole, abs=4 * math.sqrt(whole))

    options = (
        f"width=64 height=60 frames=60 density=0 maskpathbg=[{tmp_path / 'half mask.tif'}] addpoisssonvar=40"
    )
    camera = Camera.parse("offset=100 photons2adu=1")
    mean = simulate(options=options, camera=camera).stack.mean("t").to_numpy() - 100
    assert np.all(mean[:, :32] == 0)
    assert mean[:30, 32:].mean() == pytest.approx(20, abs=0.1)
    assert mean[30:, 32:].mean() == pytest.approx(40, abs=0.1)


def test_counts_beyond_16_bits_saturate_and_those_below_0_stay_0():
    bright = simulate(
        options=f"{NO_MOLECULES} addpoisssonvar=300000", camera=Camera.parse("offset=10 photons2adu=1")
    )
    assert int(bright.stack.min()) == 65535
    dark = simulate(
        options=f"{NO_MOLECULES} addpoisssonvar=0", camera=Camera.parse("offset=0 photons2adu=1 readnoise=3")
    )
    assert int(dark.stack.min()) == 0
    assert int(dark.stack.max()) < 30


def test_what_is_left_out_takes_the_plugins_defaults():
    simulation = simulate(frames=1)
    assert simulation.stack.shape == (1, 256, 256)
    assert simulation.camera.pixel_size_nm == 80
    assert simulation.stack.mean() > 414 + 30 / 3.6
    assert simulate(frames=1, camera=Camera.parse("offset=1 photons2adu=2")).camera.pixel_size_nm == 80
    assert Generator.parse("") == Generator()
    assert Generator.parse("psf=gaussian FWHM_range=300").fwhm_range == (300, 300)


def test_no_molecules_are_an_empty_table_that_can_be_read_back(tmp_path):
    simulation = simulate(options=NO_MOLECULES, ground_truth=tmp_path / "truth.csv")
    assert len(simulation.ground_truth) == 0
    assert list(read_localizations(tmp_path / "truth.csv").columns) == list(simulation.ground_truth.columns)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("density=-1", "density"),
        ("density=nan", "density"),
        ("width=0", "width"),
        ("height=-4", "height"),
        ("width=2.5", "width must be a whole number"),
        ("frames=0", "frames"),
        ("psf=Airy", "Airy.*Integrated Gaussian"),
        ("psf=[Eliptical Gaussian (3D astigmatism)]", "not available"),
        ("intensityrange=900:700", "intensityrange"),
        ("intensityrange=-5:700", "intensityrange"),
        ("fwhm_range=0:100", "fwhm_range"),
        ("fwhm_range=1:2:3", "fwhm_range must be from:to"),
        ("addpoisssonvar=-30", "addpoisssonvar"),
        ("driftdist=inf", "driftdist"),
        ("singlefixed=maybe", "singlefixed must be true or false"),
        ("dencity=1", "dencity"),
        ("maskpath=/nowhere/mask.tif", "maskpath.*mask.tif"),
    ],
)
def test_what_cannot_be_simulated_is_refused_in_a_sentence_and_leaves_nothing(tmp_path, options, said):
    with pytest.raises(FijiBridgeError, match=said):
        simulate(options=options, out=tmp_path / "stack.tif", ground_truth=tmp_path / "truth.csv")
    assert list(tmp_path.iterdir()) == []


def test_a_negative_seed_is_refused():
    with pytest.raises(FijiBridgeError, match="seed"):
        simulate(seed=-1, frames=1)


def test_the_camera_may_be_given_as_its_setup():
    setup = "offset=50 photons2adu=2 pixelsize=90"
    given, parsed = (
        simulate(options=SMALL, camera=camera, seed=1) for camera in (setup, Camera.parse(setup))
    )
    assert given.camera == parsed.camera
    np.testing.assert_array_equal(given.stack, parsed.stack)
