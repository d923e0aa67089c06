from itertools import product

import dask.array as da
import numpy as np
import pytest
import xarray as xr

from fiji_bridge import Camera, FijiBridgeError, denoise, estimate_camera, open_stack, train
from fiji_bridge.defects import repaired
from fiji_bridge.simulation import expected_photons

CAMERA = Camera(offset=100.0, photons_per_adu=0.5, read_noise=1.6)
PLACES = [(0, 1), (3, 47), (20, 20), (20, 21), (30, 10), (47, 30)]
"""Edges, near a corner, and two side by side."""


def recorded(light: np.ndarray, frames: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    electrons = rng.poisson(light, (frames, *light.shape)) + rng.normal(0, 1.6, (frames, *light.shape))
    return np.rint(100 + 2 * electrons).clip(0, 65535).astype(np.uint16)


def beads(sigma: float, photons: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x, y = (grid + rng.uniform(-0.5, 0.5, 16) for grid in np.mgrid[6:48:12, 6:48:12].reshape(2, -1))
    bright = np.full(16, photons) * rng.uniform(0.3, 1.7, 16)
    return 5 + expected_photons(x + 0.5, y + 0.5, np.full(16, sigma), bright, (48, 48))


@pytest.mark.parametrize("change", [700, 5000])
def test_hot_pixels_are_found_and_interpolated(change: int) -> None:
    light = beads(1.3, 600.0)
    counts = recorded(light, 30)
    broken = counts.copy()
    at = tuple(np.transpose(PLACES))
    broken[:, *at] += change
    mended, number = repaired(open_stack(broken), None)
    assert (number, mended.dtype) == (len(PLACES), np.uint16)
    values = mended.to_numpy()
    others = np.ones((48, 48), bool)
    others[at] = False
    np.testing.assert_array_equal(values[:, others], counts[:, others])
    expected = 100 + 2 * light[at]
    assert np.all(np.abs(values[:, *at].mean(0) - expected) < 4 + 0.5 * (expected - 100))


def test_whole_rows_and_columns_are_replaced() -> None:
    light = beads(1.3, 600.0)
    counts = recorded(light, 30)
    counts[:, :, 17] += 400
    counts[:, 29] += 400
    mended, number = repaired(open_stack(counts), None)
    assert number == 2 * 48 - 1
    away = np.abs(mended.to_numpy().mean(0) - 100 - 2 * light)
    assert away.max() < 100
    assert np.median(away[:, 17]) < 4


@pytest.mark.parametrize(("sigma", "photons"), list(product((0.4, 0.6, 1.0), (20.0, 300.0, 20000.0))))
@pytest.mark.parametrize("density", [0.005, 0.1])
def test_light_is_left_alone(sigma: float, photons: float, density: float) -> None:
    rng = np.random.default_rng(round(sigma * 10))
    number = round(density * 64**2)
    x, y = rng.uniform(-2, 66, (2, number))
    bright = photons * rng.lognormal(0, 1, number)
    light = 5 + expected_photons(x, y, np.full(number, sigma), bright, (64, 64))
    for frames in (16, 60):
        stack = open_stack(recorded(light, frames))
        assert repaired(stack, None)[1] == 0


def test_blinking_molecules_and_cosmic_rays_are_left_alone() -> None:
    rng = np.random.default_rng(1)
    frames = [recorded(beads(0.6, 3000.0 * (rng.random() < 0.3), i), 1, i) for i in range(24)]
    counts = np.concatenate(frames)
    counts[rng.integers(0, 24, 30), rng.integers(0, 48, 30), rng.integers(0, 48, 30)] += 9000
    assert repaired(open_stack(counts), None)[1] == 0


def test_rare_photons_behind_em_gain_are_left_alone() -> None:
    rng = np.random.default_rng(3)
    photons = rng.poisson(0.07, (16, 128, 128))
    electrons = np.where(photons > 0, rng.gamma(np.maximum(photons, 1), 1000.0), 0)
    counts = np.rint(400 + 0.1 * (electrons + rng.normal(0, 30, photons.shape))).astype(np.uint16)
    assert repaired(open_stack(counts), None)[1] == 0


def test_hot_pixels_are_found_where_the_background_reads_0() -> None:
    rng = np.random.default_rng(4)
    counts = 20 * rng.poisson(0.005, (40, 48, 48))
    at = np.transpose(PLACES[:3])
    counts[:, *at] += rng.poisson(100, (40, 3))
    assert repaired(open_stack(counts.clip(0, 255).astype(np.uint8)), None)[1] == 3


@pytest.mark.parametrize("shape", [(20, 1, 1100, 1000), (60, 5, 96, 96)])
def test_the_camera_is_estimated_without_them_however_few_frames_it_reads(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(5)
    light = 20 + 5 * np.sin(np.arange(shape[-1]) / 9)
    counts = np.rint(100 + 2 * rng.poisson(light, shape)).astype(np.uint16)
    broken = counts.copy()
    hot = rng.random(shape[1:]) < 0.004
    broken[:, hot] += (2 * rng.poisson(rng.exponential(300, hot.sum()), (shape[0], hot.sum()))).astype(
        np.uint16
    )
    clean, left = (
        estimate_camera(xr.DataArray(values, dims=("t", "c", "y", "x"))).camera.photons_per_adu
        for values in (counts, broken)
    )
    assert left == pytest.approx(clean, rel=0.03)


def test_no_frames_of_a_repaired_stack_are_no_mistake() -> None:
    counts = recorded(np.full((48, 48), 20.0), 20)
    counts[:, 5, 9] += 400
    mended, _ = repaired(open_stack(counts), None)
    assert mended[:0].to_numpy().shape == (0, 48, 48)


def test_a_pattern_of_the_sensor_is_left_alone() -> None:
    light = np.full((48, 48), 20.0)
    light[::2, ::2] = 60
    assert repaired(open_stack(recorded(light, 40)), None)[1] == 0


def test_infinite_readings_are_no_hot_pixels() -> None:
    counts = recorded(np.full((48, 48), 20.0), 20).astype(np.float32)
    counts[4, 7, 7] = np.inf
    assert repaired(open_stack(counts), None)[1] == 0


def test_frames_of_a_lazy_computation_are_not_computed_again_and_again() -> None:
    counts = recorded(np.full((48, 48), 20.0), 200)
    counts[:, 5, 9] += 400
    computed = []

    def note(block: np.ndarray) -> np.ndarray:
        computed.append(len(block))
        return block

    chunked = da.from_array(counts, chunks=(100, 48, 48)).map_blocks(note, meta=counts[:0])
    mended, number = repaired(open_stack(xr.DataArray(chunked, dims=("t", "y", "x"))), None)
    assert number == 1
    assert sum(computed) <= 400
    computed.clear()
    estimate_camera(mended)
    assert sum(computed) == 200
    computed.clear()
    mended.compute()
    assert sum(computed) == 200


def test_each_channel_has_its_own() -> None:
    counts = np.stack([recorded(np.full((40, 48), 20.0), 20, seed) for seed in (0, 1)], axis=1)
    broken = counts.copy()
    broken[:, 1, 5, 9] += 400
    stack = open_stack(xr.DataArray(broken, dims=("t", "c", "y", "x"))).chunk({"t": 7})
    mended, number = repaired(stack, None)
    assert number == 1
    assert (mended.dims, mended.attrs) == (stack.dims, stack.attrs)
    np.testing.assert_array_equal(mended[:, 0], counts[:, 0])
    assert abs(float(mended[:, 1, 5, 9].mean()) - 140) < 8
    assert abs(float(mended[9:11, 1, 5, 9].mean()) - 140) < 30


def test_few_frames_or_maps_leave_all_as_it_is() -> None:
    counts = recorded(np.full((48, 48), 20.0), 20)
    counts[:, 5, 9] += 400
    for stack, camera in (
        (open_stack(counts[:15]), None),
        (open_stack(counts), CAMERA.replace(offset_map=np.full((48, 48), 100.0, np.float32))),
        (open_stack(np.zeros((20, 48, 48))), None),
        (open_stack(counts[:, :2]), None),
    ):
        assert repaired(stack, camera) == (stack, 0)


def test_a_denoised_movie_has_no_hot_pixels() -> None:
    counts = recorded(beads(1.3, 300.0), 24)
    broken = counts.copy()
    broken[:, 20, 25] += 500
    for model in (train(broken, camera=CAMERA, steps=30), "single-molecule"):
        denoised = denoise(broken, model, camera=CAMERA)
        assert denoised.attrs["warnings"][-1].startswith("In array 1 hot pixel was found")
        clean = denoise(counts, model, camera=CAMERA)
        assert "hot" not in str(clean.attrs)
        near = (slice(None), slice(15, 26), slice(20, 31))
        assert float(np.abs(denoised - clean)[near].max()) < 12


def test_frames_that_are_not_finite_are_still_named() -> None:
    counts = recorded(np.full((48, 48), 20.0), 20).astype(np.float32)
    counts[4, 3, 3] = np.nan
    with pytest.raises(FijiBridgeError, match="NaN or infinite values in frame 5"):
        denoise(counts, "single-molecule", camera=CAMERA)
