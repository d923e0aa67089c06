import json
import time

import numpy as np
import pytest
import tifffile
from scipy import ndimage

from fiji_bridge.camera import Camera, estimate_camera
from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.stack import open_stack

SETUP = "offset=414.0 isemgain=false photons2adu=3.6 pixelsize=160.0"


# --- the camera itself


def test_the_plugins_own_setup_string_is_read_and_given_back():
    camera = Camera.parse(SETUP)
    assert (camera.offset, camera.photons_per_adu, camera.pixel_size_nm) == (414, 3.6, 160)
    assert camera.em_gain is None
    assert camera.options() == SETUP
    assert Camera.parse(camera.options()) == camera


def test_a_whole_camera_survives_its_option_string_and_json():
    camera = Camera(100.5, 4.8, em_gain=150.0, read_noise=60.0, pixel_size_nm=106.7)
    assert Camera.parse(camera.options()) == camera
    assert Camera.from_dict(json.loads(json.dumps(camera.as_dict()))) == camera
    assert camera.replace(offset=99) != camera


def test_keys_left_out_take_the_plugins_defaults_and_the_pixel_size_stays_unknown():
    camera = Camera.parse("pixelsize=100")
    assert (camera.offset, camera.photons_per_adu, camera.em_gain) == (414.0, 3.6, None)
    assert Camera.parse("offset=100 photons2adu=2 isemgain=true").em_gain == 100
    assert Camera.parse("offset=100 photons2adu=2").pixel_size_nm is None
    assert Camera.parse("offset=100 gainem=50 isemgain=false").em_gain is None
    assert Camera.parse("offset=100 quantumefficiency=0.9").offset == 100


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("offset=414 photons2adu=0", "photons2adu"),
        ("photons2adu=-3.6", "photons2adu"),
        ("photons2adu=nan", "photons2adu"),
        ("photons2adu=inf", "photons2adu"),
        ("offset=many", "offset"),
        ("offset=nan", "offset"),
        ("offset=", "offset"),
        ("isemgain=true gainem=0", "gainem"),
        ("isemgain=false gainem=-5", "gainem"),
        ("isemgain=perhaps", "isemgain"),
        ("gainem=100", "isemgain"),
        ("pixelsize=0", "pixelsize"),
        ("pixelsize=-160", "pixelsize"),
        ("readnoise=-1", "readnoise"),
        ("readnoise=nan", "readnoise"),
        ("offset=414 gain=3", "gain"),
        ("offsetmap=missing.npy", "missing.npy"),
        ("gainmap=missing.tif", "missing.tif"),
        ("", "empty"),
    ],
)
def test_an_impossible_camera_is_refused_in_one_sentence_that_names_the_key(text, key):
    with pytest.raises(FijiBridgeError) as error:
        Camera.parse(text)
    assert key in str(error.value)
    assert str(error.value).count("\n") == 0


def test_adu_become_photons_as_in_the_plugin_and_come_back():
    camera = Camera(100.0, 4.8, em_gain=150.0)
    adu = np.array([[100, 100 + 150 / 4.8 * 20], [90, 5000]])
    assert camera.to_photons(adu)[0] == pytest.approx([0, 20])
    assert camera.to_photons(adu)[1, 0] < 0
    assert camera.to_adu(camera.to_photons(adu)) == pytest.approx(adu)
    assert camera.to_photons(adu.astype(np.uint16)).dtype == np.float32
    assert camera.to_photons(100) == 0


def test_labels_and_laziness_survive_the_conversion(tmp_path):
    tifffile.imwrite(tmp_path / "movie.tif", np.full((3, 32, 40), 424, np.uint16), photometric="minisblack")
    stack = open_stack(tmp_path / "movie.tif")
    photons = Camera.parse(SETUP).to_photons(stack)
    assert photons.dims == stack.dims
    assert photons.chunks is not None
    assert photons.dtype == np.float32
    assert float(photons.mean()) == pytest.approx(36)


def test_simulated_photons_have_the_variance_that_the_camera_states():
    rng = np.random.default_rng(0)
    photons = rng.poisson(20, 200_000)
    plain = Camera(100.0, 0.5, read_noise=2.0)
    adu = 100 + photons / 0.5 + rng.normal(0, 2 / 0.5, photons.shape)
    assert plain.to_photons(adu).var() == pytest.approx(
        plain.excess_noise * 20 + plain.read_variance, rel=0.02
    )
    em = Camera(100.0, 10.0, em_gain=200.0, read_noise=50.0)
    adu = 100 + (rng.gamma(photons + 1e-9, 200) + rng.normal(0, 50, photons.shape)) / 10
    assert em.to_photons(adu).mean() == pytest.approx(20, rel=0.01)
    assert em.to_photons(adu).var() == pytest.approx(em.excess_noise * 20 + em.read_variance, rel=0.03)


# --- per-pixel maps


@pytest.fixture
def maps(tmp_path):
    rng = np.random.default_rng(1)
    values = {
        "offsetmap": rng.normal(100, 2, (24, 32)).astype(np.float32),
        "gainmap": rng.normal(2.2, 0.1, (24, 32)).astype(np.float32),
        "variancemap": rng.uniform(4, 40, (24, 32)).astype(np.float32),
    }
    tifffile.imwrite(tmp_path / "my offset.tif", values["offsetmap"])
    tifffile.imwrite(tmp_path / "gain.tif", values["gainmap"])
    np.save(tmp_path / "variance.npy", values["variancemap"])
    files = {"offsetmap": "[{}/my offset.tif]", "gainmap": "{}/gain.tif", "variancemap": "{}/variance.npy"}
    return values, " ".join(f"{key}={name.format(tmp_path)}" for key, name in files.items())


def test_maps_correct_each_pixel_by_its_own_offset_gain_and_variance(maps):
    values, text = maps
    camera = Camera.parse(text)
    photons = np.random.default_rng(2).poisson(30, (400, 24, 32))
    noise = np.random.default_rng(3).normal(size=photons.shape) * np.sqrt(values["variancemap"])
    adu = (values["offsetmap"] + values["gainmap"] * photons + noise).astype(np.float32)
    back = camera.to_photons(adu)
    assert np.abs(back.mean(axis=0) - 30).max() < 6 * np.sqrt(50 / 400)
    assert np.mean(back.var(axis=0) / (30 + camera.read_variance)) == pytest.approx(1, abs=0.02)
    assert camera.to_adu(back) == pytest.approx(adu, rel=1e-5)
    assert camera.to_photons(open_stack(adu)).shape == adu.shape


def test_maps_give_the_scalars_of_programs_that_know_no_maps(maps):
    values, text = maps
    camera = Camera.parse(text)
    assert camera.offset == pytest.approx(np.median(values["offsetmap"]))
    assert camera.photons_per_adu == pytest.approx(1 / np.median(values["gainmap"]))
    assert Camera.parse(text + " offset=99").offset == 99


def test_maps_survive_options_and_json_by_the_names_of_their_files(maps):
    camera = Camera.parse(maps[1])
    assert Camera.parse(camera.options()) == camera
    described = json.dumps(camera.as_dict())
    assert len(described) < 1000
    assert Camera.from_dict(json.loads(described)) == camera
    assert camera.replace(gain_map=None).options().count("map=") == 2


def test_maps_given_as_arrays_have_no_option_string(maps):
    camera = Camera(100.0, 0.5, offset_map=maps[0]["offsetmap"])
    assert Camera.from_dict(json.loads(json.dumps(camera.as_dict()))) == camera
    with pytest.raises(FijiBridgeError, match="offsetmap"):
        camera.options()


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("gainmap", np.zeros((8, 8))),
        ("gainmap", np.full((8, 8), np.nan)),
        ("variancemap", np.full((8, 8), -1.0)),
        ("offsetmap", np.zeros((2, 8, 8))),
    ],
)
def test_an_impossible_map_is_refused_by_its_key(tmp_path, name, values):
    np.save(tmp_path / "map.npy", values)
    with pytest.raises(FijiBridgeError, match=name):
        Camera.parse(f"offset=100 {name}={tmp_path}/map.npy")


def test_a_map_must_fit_the_frames(maps):
    camera = Camera.parse(maps[1])
    camera.check(open_stack(np.full((2, 24, 32), 140, np.uint16)))
    with pytest.raises(FijiBridgeError, match=r"offsetmap is 24×32.*are 32×32"):
        camera.check(open_stack(np.full((2, 32, 32), 140, np.uint16)))


def test_an_offset_above_the_data_is_refused(shared_data):
    stack = open_stack(shared_data / "thunderstorm_reference/default/stack.tif")
    Camera.parse(SETUP).check(stack)
    for offset in (430, 1000):
        with pytest.raises(FijiBridgeError, match=f"offset .{offset} ADU. is above"):
            Camera.parse(SETUP).replace(offset=offset).check(stack)


# --- the camera from noisy data alone


def captures(shared_data, kind):
    return open_stack(sorted((shared_data / "fmdd_testmix/raw").glob(f"{kind}_*.png"))).to_numpy()


@pytest.fixture(scope="module")
def mice(shared_data):
    return captures(shared_data, "Confocal_MICE")


@pytest.fixture(scope="module")
def nuclei(shared_data):
    return open_stack(shared_data / "fmdd_bpae_50/raw/19").to_numpy()


@pytest.fixture(scope="module")
def molecules(shared_data):
    return open_stack(shared_data / "thunderstorm_reference/default/stack.tif").to_numpy()


def spread_cells(rng, frames=8, size=256):
    """Mean photons of a smooth scene and photon counts from it: (t, y, x)."""
    y, x = np.mgrid[:size, :size] - size / 2
    mean = 4 + 60 * np.exp(-(x**2 + y**2) / (2 * (size / 5) ** 2))
    return rng.poisson(mean, (frames, size, size))


def binned_variance(frames, clean, darkest=0.3, bins=20):
    """Variance of frames around the clean image by its brightness, without the darkest: (mean, variance)."""
    squares = ((frames - clean) ** 2).mean(axis=0)
    edges = np.unique(np.quantile(clean, np.linspace(darkest, 1, bins)))
    index = np.digitize(clean, edges).ravel()
    inside = np.bincount(index)
    return (np.bincount(index, v.ravel())[1:] / inside[1:] for v in (clean, squares))


@pytest.mark.parametrize(("frames", "tolerance"), [(4, 0.04), (1, 0.08)])
def test_mice_get_the_gain_that_variance_against_ground_truth_says(mice, frames, tolerance):
    # Gain 5.1 and offset 3.5 by variance of raw - gt against gt, from still captures and from a single one.
    estimate = estimate_camera(mice[:frames])
    assert 1 / estimate.camera.photons_per_adu == pytest.approx(5.1, rel=tolerance)
    assert estimate.camera.offset == pytest.approx(3.5, abs=0.3)
    assert estimate.reliable and estimate.warnings == ()
    assert ("successive" if frames > 1 else "single") in estimate.method


@pytest.mark.parametrize("kind", ["Confocal_MICE", "Confocal_BPAE_R", "Confocal_BPAE_G", "TwoPhoton_BPAE_R"])
@pytest.mark.parametrize("frames", [4, 1])
def test_the_noise_predicted_is_that_around_the_ground_truth(shared_data, kind, frames):
    raw = captures(shared_data, kind)
    clean = open_stack(shared_data / f"fmdd_testmix/gt/{kind}_1.png").to_numpy()[0].astype(float)
    mean, variance = binned_variance(raw, clean)
    camera = estimate_camera(raw[:frames]).camera
    predicted = (camera.to_photons(mean) + camera.read_variance) / camera.photons_per_adu**2
    assert np.median(predicted / variance) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("field", ["1", "19"])
def test_bpae_nuclei_get_the_line_that_fifty_captures_make(shared_data, field):
    raw = open_stack(shared_data / "fmdd_bpae_50/raw" / field).to_numpy()
    clean = raw.mean(axis=0)
    mean, variance = binned_variance(raw * np.sqrt(50 / 49), clean * np.sqrt(50 / 49), 0.05)
    slope, constant = np.polyfit(mean, variance, 1, w=1 / variance)
    # Over 50 captures the lamp and the cells changed a little, which adds to that variance.
    for frames in (raw[:10], raw[:2], raw[7]):
        camera = estimate_camera(frames).camera
        assert 1 / camera.photons_per_adu == pytest.approx(slope, rel=0.08)
        assert camera.offset == pytest.approx(-constant / slope, abs=0.15)


def test_the_spread_is_that_of_repeated_recordings(nuclei):
    estimates = [estimate_camera(frame) for frame in nuclei[:16]]
    for name in ("photons_per_adu", "offset"):
        values = [getattr(estimate.camera, name) for estimate in estimates]
        stated = np.median([estimate.spread[name] for estimate in estimates])
        assert 0.5 < np.std(values, ddof=1) / stated < 2


def test_sparse_molecules_give_the_gain_and_say_that_offset_and_background_look_alike(molecules):
    estimate = estimate_camera(molecules)
    assert estimate.camera.photons_per_adu == pytest.approx(3.6, rel=0.1)
    assert estimate.camera.offset == pytest.approx(414, abs=1)
    assert estimate.camera.read_noise < 1.2
    assert not estimate.reliable
    assert any("offset and background cannot be told apart" in warning for warning in estimate.warnings)
    assert estimate_camera(molecules[0]).camera.photons_per_adu == pytest.approx(3.6, rel=0.3)


def test_with_em_gain_the_effective_gain_comes_out(shared_data):
    estimate = estimate_camera(shared_data / "thunderstorm_reference/em_gain/stack.tif")
    effective = 2 * 150 / 4.8
    assert 1 / estimate.camera.photons_per_adu == pytest.approx(effective, rel=0.15)
    assert abs(estimate.camera.offset - 100) < 2 * estimate.spread["offset"]


def test_an_emccd_with_cells_gives_effective_gain_and_offset():
    rng = np.random.default_rng(4)
    photons = spread_cells(rng)
    frames = np.round(rng.gamma(photons + 1e-9, 300) / 10 + 200 + rng.normal(0, 3, photons.shape)).astype(
        np.uint16
    )
    estimate = estimate_camera(frames)
    assert 1 / estimate.camera.photons_per_adu == pytest.approx(60, rel=0.04)
    assert estimate.camera.offset == pytest.approx(200, abs=15)
    assert estimate.reliable


def test_real_molecules_calibrate_from_the_movie_as_from_one_frame(shared_data):
    stack = open_stack(shared_data / "sm_tetrapod_real")
    movie, single = estimate_camera(stack), estimate_camera(stack[5])
    assert movie.camera.photons_per_adu == pytest.approx(single.camera.photons_per_adu, rel=0.15)
    assert movie.spread["offset"] > 0
    assert any("more noise than photons make" in warning for warning in movie.warnings)
    frames = stack.to_numpy().astype(float)
    difference = (frames[1:] - frames[:-1]) / np.sqrt(2)
    quiet = frames.mean(axis=0) < 40
    expected = movie.camera.to_photons(frames.mean(axis=0)[quiet].mean()) + movie.camera.read_variance
    measured = difference[:, quiet].var() * movie.camera.photons_per_adu**2
    assert expected == pytest.approx(measured, rel=0.1)


def test_scmos_read_noise_shifts_the_offset_and_the_variance_stays_right():
    rng = np.random.default_rng(5)
    photons = spread_cells(rng)
    frames = np.round(photons / 0.46 + 100 + rng.normal(0, 1.6 / 0.46, photons.shape)).astype(np.uint16)
    camera = estimate_camera(frames).camera
    assert camera.photons_per_adu == pytest.approx(0.46, rel=0.03)
    for level in (4, 20, 60):
        variance = camera.to_photons(100 + level / 0.46) + camera.read_variance
        assert variance == pytest.approx(level + 1.6**2 + 0.46**2 / 12, rel=0.05)


def test_bleaching_and_drift_do_not_fool_it(mice):
    rng = np.random.default_rng(6)
    bright = ndimage.gaussian_filter(spread_cells(rng, 1)[0].astype(float), 8)
    fading = np.stack([rng.poisson(bright * factor) / 0.46 + 100 for factor in (1, 0.9, 0.8, 0.7)])
    assert estimate_camera(np.round(fading).astype(np.uint16)).camera.photons_per_adu == pytest.approx(
        0.46, rel=0.05
    )
    drifting = np.stack([mice[i, 10 * i : 400 + 10 * i, 20 * i : 400 + 20 * i] for i in range(4)])
    assert 1 / estimate_camera(drifting).camera.photons_per_adu == pytest.approx(5.1, rel=0.08)


def test_scenes_that_have_nothing_in_common_are_taken_one_by_one():
    rng = np.random.default_rng(7)
    scenes = []
    for seed in range(4):
        smooth = ndimage.gaussian_filter(np.random.default_rng(seed).random((256, 256)), 2)
        mean = 50 + 3000 * (smooth - smooth.min())
        scenes.append(np.round(rng.poisson(mean) / 0.5 + 100))
    estimate = estimate_camera(np.array(scenes, np.uint16))
    assert 1 / estimate.camera.photons_per_adu == pytest.approx(2, rel=0.15)


# --- when the data cannot tell


def blurred(frames, sigma):
    return np.round(ndimage.gaussian_filter(frames.astype(float), (0, sigma, sigma))).astype(np.uint8)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda raw: np.minimum(raw, 40), "saturated at 40"),
        (lambda raw: np.minimum(raw.astype(int) * 4, 255).astype(np.uint8), "saturated at 255"),
        (lambda raw: raw.mean(axis=0).astype(np.float32), "average of 4 frames"),
        (lambda raw: (raw / 255).astype(np.float32), "not whole numbers"),
        (lambda raw: blurred(raw, 0.5), "share noise"),
        (lambda raw: blurred(raw[:1], 0.5), "share noise"),
        (lambda raw: blurred(raw, 1), "share noise"),
        (lambda raw: ndimage.median_filter(raw[0], 3), "share noise"),
        (lambda raw: ndimage.zoom(raw[0], 1.3, order=1), "share noise"),
        (lambda raw: ndimage.zoom(raw[0], 0.7, order=3), "share noise"),
        (lambda raw: ndimage.shift(raw, (0, 0.5, 0.5), order=1), "share noise"),
        (lambda raw: ndimage.rotate(raw[0], 5, order=1, reshape=False)[60:-60, 60:-60], "share noise"),
        (lambda raw: (raw > 10).astype(np.uint8), "2 different grey values"),
        (lambda raw: 255 - raw, "does not grow"),
        (lambda raw: np.clip(raw.astype(int) - 12, 0, 255).astype(np.uint8), "pixels are 0"),
        (lambda raw: np.round(np.sqrt(raw / 255) * 255).astype(np.uint8), "off the line"),
        (lambda raw: np.round((raw / 255) ** 1.5 * 255).astype(np.uint8), "off the line"),
    ],
    ids=[
        "saturated at a level of its own",
        "saturated at the top",
        "averaged",
        "scaled to 1",
        "smoothed",
        "one smoothed frame",
        "smoothed more",
        "median filtered",
        "enlarged",
        "reduced",
        "registered",
        "rotated",
        "two levels",
        "inverted",
        "background subtracted",
        "gamma below 1",
        "gamma above 1",
    ],
)
def test_what_spoils_an_estimate_is_named_and_it_is_not_called_reliable(mice, spoil, said):
    estimate = estimate_camera(spoil(mice))
    assert any(said in warning for warning in estimate.warnings), estimate.warnings
    assert not estimate.reliable
    assert all(warning.endswith(".") for warning in estimate.warnings)
    assert estimate.camera.photons_per_adu > 0


def test_an_average_rounded_back_to_grey_values_is_told_by_its_rounding(nuclei, shared_data):
    averages = np.round(nuclei[:48].reshape(3, 16, *nuclei.shape[1:]).mean(axis=1)).astype(np.uint8)
    for frames in (averages, open_stack(shared_data / "fmdd_testmix/gt/Confocal_MICE_1.png")):
        estimate = estimate_camera(frames)
        assert any("Rounding" in warning for warning in estimate.warnings)
        assert not estimate.reliable


def test_saturation_of_a_few_pixels_does_not_bias_the_gain(mice):
    clipped = np.minimum(mice, 120)
    estimate = estimate_camera(clipped)
    assert 1 / estimate.camera.photons_per_adu == pytest.approx(5.1, rel=0.05)
    assert any("saturated" in warning for warning in estimate.warnings)


def test_noise_without_photons_is_not_given_a_gain():
    noise = np.random.default_rng(8).normal(100, 5, (4, 128, 128)).round().astype(np.uint16)
    estimate = estimate_camera(noise)
    assert not estimate.reliable
    assert any("guess" in warning or "better than" in warning for warning in estimate.warnings)


def test_counted_photons_are_not_taken_for_rounded_averages():
    rng = np.random.default_rng(9)
    counts = rng.binomial(spread_cells(rng), 0.02).astype(np.uint8)
    estimate = estimate_camera(counts)
    estimate.camera.check(open_stack(counts // 2))
    assert estimate.camera.photons_per_adu == pytest.approx(1, rel=0.05)
    assert estimate.camera.offset == pytest.approx(0, abs=0.15)
    assert estimate.reliable and estimate.warnings == ()


def test_contrast_that_only_multiplies_leaves_the_photons_alone(mice):
    plain, stretched = estimate_camera(mice), estimate_camera(mice.astype(np.uint16) * 16)
    assert stretched.camera.photons_per_adu * 16 == pytest.approx(plain.camera.photons_per_adu)
    assert stretched.camera.read_noise == pytest.approx(plain.camera.read_noise)
    assert stretched.reliable


@pytest.mark.parametrize(
    ("frames", "said"),
    [
        (np.full((3, 64, 64), 7, np.uint8), "one value"),
        (np.arange(64, dtype=np.uint8).reshape(8, 8), "too small"),
        (np.where(np.eye(64) > 0, np.nan, 1).astype(np.float32), "NaN"),
    ],
)
def test_frames_without_noise_to_see_are_refused(frames, said):
    with pytest.raises(FijiBridgeError, match=said):
        estimate_camera(frames)


# --- how it is used


def test_of_a_long_movie_only_some_frames_are_read():
    import dask.array
    import xarray as xr

    class Recording:
        shape, dtype, ndim = (5000, 64, 64), np.dtype(np.uint16), 3
        read = 0

        def __getitem__(self, index):
            chosen = np.arange(self.shape[0])[index[0]]
            Recording.read += np.size(chosen)
            rng = np.random.default_rng(0)
            return (rng.poisson(30, (np.size(chosen), 64, 64)) + 100).astype(np.uint16)

    pixels = dask.array.from_array(
        Recording(), chunks=(10, 64, 64), asarray=False, meta=np.empty((0, 0, 0), np.uint16)
    )
    estimate_camera(xr.DataArray(pixels, dims=("t", "y", "x")))
    assert 50 <= Recording.read <= 600


def test_a_hundred_frames_take_a_few_seconds():
    rng = np.random.default_rng(11)
    frames = np.tile(spread_cells(rng, 10, 512), (10, 1, 1)).astype(np.uint16) * 2 + 100
    calls = []
    started = time.perf_counter()
    estimate_camera(frames, progress=lambda *call: calls.append(call))
    assert time.perf_counter() - started < 15
    assert calls[-1][1] == calls[-1][2] == 25


def test_the_estimate_describes_itself_and_its_option_string_can_be_used_again(mice):
    estimate = estimate_camera(mice, pixel_size_nm=80)
    text = estimate.describe()
    for part in ("Photons per ADU", "±", "Offset", "Read noise", "electrons", "Method", "Reliable", "80 nm"):
        assert part in text
    again = Camera.parse(text.split('--camera "')[1].split('"')[0])
    assert again.photons_per_adu == pytest.approx(estimate.camera.photons_per_adu, rel=1e-4)
    assert again.offset == pytest.approx(estimate.camera.offset, rel=1e-4)
    described = json.loads(json.dumps(estimate.as_dict()))
    assert Camera.parse(described["options"]).offset == estimate.camera.offset
    assert set(described["spread"]) == {"photons_per_adu", "offset", "read_noise"}
    assert described["reliable"] is True


def test_the_estimate_names_its_source_and_takes_the_files_pixel_size(tmp_path, mice):
    from fiji_bridge.stack import write_stack

    write_stack(open_stack(mice, pixel_size_nm=120), tmp_path / "cells.tif")
    estimate = estimate_camera(tmp_path / "cells.tif")
    assert estimate.camera.pixel_size_nm == pytest.approx(120)
    assert "cells.tif" in estimate.camera.source
    assert Camera.parse("offset=1").source == "given by the user"


def test_the_same_data_give_the_same_estimate(mice):
    assert estimate_camera(mice) == estimate_camera(mice)


@pytest.mark.parametrize("factor", [1e-3, 1e3, 1e5])
def test_the_unit_of_the_numbers_makes_no_difference(factor):
    rng = np.random.default_rng(2)
    light = 20 + 60 * ndimage.gaussian_filter(rng.random((96, 96)), 6) ** 2 * 20
    raw = 100 + 2.5 * rng.poisson(light, (4, 96, 96)) + rng.normal(0, 2, (4, 96, 96))
    plain, scaled = (estimate_camera(raw * each).camera for each in (1.0, factor))
    assert scaled.photons_per_adu * factor == pytest.approx(plain.photons_per_adu, rel=1e-3)
    assert scaled.offset / factor == pytest.approx(plain.offset, rel=1e-3)


def test_capitals_in_keys_make_no_difference():
    small = "offset=100.0 photons2adu=2.0 isemgain=true gainem=10 pixelsize=160.0"
    shown = "offset=100.0 photons2ADU=2.0 isEmGain=true gainEm=10 pixelSize=160.0"
    assert Camera.parse(shown) == Camera.parse(small)
    with pytest.raises(FijiBridgeError, match="The camera's offset is given twice, as 1 and as 2"):
        Camera.parse("offset=1 Offset=2 photons2adu=1")
