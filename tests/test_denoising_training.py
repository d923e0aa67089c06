"""Training on the noisy stack itself: no bias, no silent collapse, repeatable."""

import numpy as np
import pytest
import torch

from fiji_bridge.camera import Camera
from fiji_bridge.denoising import denoise, load_model, train
from fiji_bridge.denoising.crops import CropPool
from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.progress import silent
from fiji_bridge.stack import open_stack

PHOTONS = Camera(offset=0.0, photons_per_adu=1.0)
SMALL = {"features": (8, 12), "crop": 32, "device": "cpu"}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def spots(frames=12, side=64, brightness=60.0, background=3.0, seed=0):
    """Blinking molecules on a flat background: the light, in photons a pixel."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    light = np.full((frames, side, side), background)
    for frame in light:
        for cy, cx in rng.uniform(0, side, (8, 2)):
            frame += (
                brightness / (2 * np.pi * 1.5**2) * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * 1.5**2))
            )
    return light


def recorded(light, camera, seed=1):
    rng = np.random.default_rng(seed)
    return camera.to_adu(rng.poisson(light) + rng.normal(0, camera.read_noise, light.shape)).astype(
        np.float32
    )


def pool_of(stack, crop=32, camera=PHOTONS):
    return CropPool([open_stack(stack)], camera, torch.device("cpu"), np.random.default_rng(0), crop, silent)


@pytest.mark.parametrize("structured", [False, True], ids=["flat", "structured"])
def test_half_a_photon_under_read_noise_of_two_keeps_its_mean(structured):
    camera = Camera(offset=100.0, photons_per_adu=0.5, read_noise=2.0)
    light = np.full((40, 64, 64), 0.5)
    if structured:
        light = spots(frames=40, brightness=40.0, background=0.1)
        light *= 0.5 / light.mean()
    raw = recorded(light, camera)
    assert (raw < camera.offset).mean() > 0.3  # most dark pixels lie below the offset: clipping would show
    model = train(raw, camera=camera, steps=200, **SMALL)
    denoised = denoise(raw, model).to_numpy()
    before, after = (camera.to_photons(stack.astype(float)) for stack in (raw, denoised))
    assert after.mean() == pytest.approx(before.mean(), rel=0.001)
    assert after[:, 8:-8, 8:-8].mean() == pytest.approx(light[:, 8:-8, 8:-8].mean(), rel=0.04)
    assert np.mean((after - light) ** 2) < 0.05 * np.mean((before - light) ** 2)
    assert after.mean() == pytest.approx(0.5, rel=0.03)  # three standard errors of the recording


def test_molecules_stay_and_the_background_becomes_flat():
    light = spots()
    raw = recorded(light, PHOTONS)
    model = train(raw, camera=PHOTONS, steps=200, **SMALL)
    errors = {}
    for estimator in ("mean", "map", "prior"):
        errors[estimator] = np.mean((denoise(raw, model, estimator=estimator).to_numpy() - light) ** 2)
    assert errors["mean"] < 0.25 * np.mean((raw - light) ** 2)
    assert errors["mean"] < min(errors["map"], errors["prior"])
    report = model.report
    assert report["held_out_nll"] < report["trivial_nll"]
    assert report["held_out_mean_ratio"] == pytest.approx(1, abs=0.05)
    assert report["collapsed"] == []
    assert report["curve"][-1]["step"] == 200


def test_an_em_camera_of_excess_noise_two_is_denoised():
    camera = Camera(offset=50.0, photons_per_adu=10.0, em_gain=100.0, read_noise=20.0)
    rng = np.random.default_rng(5)
    light = spots(brightness=200.0)
    electrons = rng.gamma(np.maximum(rng.poisson(light), 1e-9), camera.em_gain)
    electrons += rng.normal(0, camera.read_noise, light.shape)
    raw = (electrons / camera.photons_per_adu + camera.offset).astype(np.float32)
    model = train(raw, camera=camera, steps=150, **SMALL)
    after = camera.to_photons(denoise(raw, model).to_numpy())
    assert np.mean((after - light) ** 2) < 0.3 * np.mean((camera.to_photons(raw) - light) ** 2)


def test_pixels_of_an_scmos_camera_count_by_their_own_noise():
    rng = np.random.default_rng(6)
    variance = np.where(rng.random((64, 64)) < 0.1, 100.0, 1.0)
    camera = Camera(offset=10.0, photons_per_adu=1.0, variance_map=variance)
    light = spots(frames=20)
    raw = (rng.poisson(light) + rng.normal(0, 1, light.shape) * np.sqrt(variance) + 10).astype(np.float32)
    model = train(raw, camera=camera, steps=150, **SMALL)
    denoised = denoise(raw, model).to_numpy()
    noisy = variance > 1
    error = (denoised - 10 - light) ** 2
    assert error[:, noisy].mean() < 3 * error[:, ~noisy].mean()  # where the raw errors differ 25 times
    assert denoised.mean() == pytest.approx(raw.mean(), rel=0.002)


def test_noise_far_above_the_camera_s_is_a_collapse_and_never_a_result():
    light = np.full((10, 48, 48), 20.0)
    raw = recorded(light, PHOTONS) * 200  # a gain of 200 that the camera does not know
    with pytest.raises(
        FijiBridgeError,
        match=r"collapsed: (9\d|100)% of each pixel's own noise would be kept.*check the camera",
    ):
        train(raw, camera=PHOTONS, steps=120, **SMALL)


def test_a_run_that_diverges_is_tried_again_more_slowly_and_then_given_up():
    raw = recorded(spots(), PHOTONS)
    rates = []

    def watch(stage, done, total):
        rates.append((stage, done))

    with pytest.raises(FijiBridgeError, match="collapsed"):
        train(raw, camera=PHOTONS, steps=120, learning_rate=100.0, progress=watch, **SMALL)
    starts = [done for (_, done), (_, before) in zip(rates[1:], rates, strict=False) if done < before]
    assert len(starts) >= 1  # it began a second time


def test_a_collapse_that_the_second_attempt_mends_is_reported():
    raw = recorded(spots(), PHOTONS)
    model = train(raw, camera=PHOTONS, steps=150, learning_rate=0.15, **SMALL)
    assert len(model.report["collapsed"]) == 1
    light = spots()
    assert np.mean((denoise(raw, model).to_numpy() - light) ** 2) < 0.5 * np.mean((raw - light) ** 2)


def test_the_same_seed_gives_the_same_model():
    raw = recorded(spots(frames=4), PHOTONS)
    one, two, other = (train(raw, camera=PHOTONS, steps=100, seed=seed, **SMALL) for seed in (3, 3, 4))
    for name, weights in one.network.state_dict().items():
        assert weights.equal(two.network.state_dict()[name])
    assert not all(w.equal(other.network.state_dict()[n]) for n, w in one.network.state_dict().items())


def test_training_leaves_torch_s_random_numbers_and_threads_alone():
    raw = recorded(spots(frames=4), PHOTONS)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    train(raw, camera=PHOTONS, steps=60, **SMALL)
    assert torch.get_rng_state().equal(state)
    assert torch.get_num_threads() == threads


def test_one_image_of_odd_size_is_enough():
    light = spots(frames=1, side=63, brightness=300)[:, :41]
    raw = recorded(light, PHOTONS)[0]
    model = train(raw, camera=PHOTONS, steps=100, **SMALL)
    denoised = denoise(raw, model).to_numpy()
    assert denoised.shape == (1, 41, 63)
    assert np.mean((denoised - light) ** 2) < 0.5 * np.mean((raw - light) ** 2)


def test_an_existing_model_is_trained_further():
    raw = recorded(spots(brightness=400.0), PHOTONS)
    first = train(raw, camera=PHOTONS, steps=60, **SMALL)
    weights = {name: value.clone() for name, value in first.network.state_dict().items()}
    second = train(raw, model=first, steps=10, device="cpu", crop=32)  # fresh weights would need more
    assert second.report["held_out_nll"] < second.report["trivial_nll"]
    assert not all(value.equal(weights[name]) for name, value in second.network.state_dict().items())
    assert second.camera == first.camera
    assert all(value.equal(weights[name]) for name, value in first.network.state_dict().items())


def test_the_time_budget_is_kept():
    raw = recorded(spots(), PHOTONS)
    model = train(raw, camera=PHOTONS, max_minutes=0.1, **SMALL)
    assert model.report["minutes"] < 0.2
    assert model.report["stopped"] == "the budget was used"


def test_training_stops_when_the_held_out_likelihood_does_not_improve():
    raw = recorded(np.full((2, 32, 32), 30.0), PHOTONS)  # flat: nothing to learn but one number
    small = {"features": (4,), "head": (4,), "crop": 16, "batch": 1}
    model = train(raw, engine="gaussian", camera=PHOTONS, steps=20_000, device="cpu", **small)
    assert model.report["stopped"] == "the held-out likelihood stopped improving"
    assert model.report["steps"] < 6000


def test_dark_frames_are_left_out_but_never_everything():
    light = spots(frames=20, brightness=500.0, background=2.0)
    light[10:] = 2.0
    pool = pool_of(recorded(light, PHOTONS))
    assert set(pool.corners[:, 1]) == set(range(10))
    flat = pool_of(recorded(np.full((5, 64, 64), 2.0), PHOTONS))
    assert len(flat.corners) == 5 * 9
    assert len(pool_of(np.zeros((2, 64, 64), np.float32) + 1).corners) == 2 * 9


def test_held_out_pixels_never_count_in_training():
    raw = np.arange(3 * 64 * 64, dtype=np.float32).reshape(3, 64, 64)  # each value names its pixel
    pool = pool_of(raw)
    kept_apart = set(pool.held_out.photons[pool.held_out.counts > 0].tolist())
    assert 0.02 < len(kept_apart) / raw.size < 0.08
    rng = np.random.default_rng(0)
    trained = set()
    for _ in range(60):
        batch = pool.draw(rng, 6)
        trained |= set(batch.photons[batch.counts > 0].tolist())
    assert not trained & kept_apart
    assert len(trained | kept_apart) > 0.95 * raw.size


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"engine": "gauss"}, "no denoising engine|there are poisson-gaussian"),
        ({"max_minutes": 0}, "max_minutes is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"batch": 0}, "batch is 0"),
        ({"blind_radius": 40}, "blind_radius is 40"),
        ({"engine": "bm3d", "neighbours": 2}, "has no option neighbours"),
        ({"model": "konfocal"}, "konfocal is not there.*confocal"),
        ({"model": 3}, "3 is no model"),
        ({"camera": "offset=dark"}, "offset"),
        ({"steps": -1}, "steps is -1"),
        ({"batch": 1.5}, "batch is 1.5"),
        ({"neighbours": 1.5}, "neighbours is 1.5"),
        ({"neighbours": True}, "neighbours is True"),
        ({"steps": "5"}, "steps is 5; give a positive number"),
        ({"crop": 3}, "crop is 3; give at least 16"),
        ({"seed": None}, "seed is None"),
        ({"features": 12}, "features is 12"),
        ({"features": ()}, r"features is \(\)"),
        ({"head": (8, 0)}, r"head is \(8, 0\)"),
        ({"device": "abacus"}, "'abacus' cannot be used"),
    ],
)
def test_options_that_cannot_be_are_named(changes, sentence):
    with pytest.raises(FijiBridgeError, match=sentence):
        train(recorded(spots(frames=2), PHOTONS), **{**SMALL, "camera": PHOTONS, "steps": 5, **changes})


def test_images_too_small_to_train_on_are_refused():
    with pytest.raises(FijiBridgeError, match=r"9 pixels across.*at least 16"):
        train(np.ones((5, 9, 40), np.float32), camera=PHOTONS, steps=5, **SMALL)


def test_the_reference_movie_loses_its_noise_and_keeps_its_molecules(shared_data, tmp_path):
    camera = Camera.parse("offset=414.0 photons2adu=3.6 isemgain=false pixelsize=160.0")
    stack = open_stack(shared_data / "thunderstorm_reference" / "default" / "stack.tif")[:12]
    model = train(stack, camera=camera, steps=100, features=(12, 16, 20), device="cpu")
    model.save(tmp_path / "model.safetensors")
    denoised = denoise(stack, load_model(tmp_path / "model.safetensors"), device="cpu")
    before, after = (camera.to_photons(part.to_numpy().astype(float)) for part in (stack, denoised))
    assert after.mean() == pytest.approx(before.mean(), rel=0.002)
    before_width, after_width = (np.subtract(*np.percentile(part, (60, 10))) for part in (before, after))
    assert after_width < 0.25 * before_width
    bright = np.unravel_index(np.argsort(before.ravel())[-200:], before.shape)
    assert after[bright].mean() > 0.8 * before[bright].mean()


def test_neighbouring_frames_help_where_the_scene_stays():
    light = np.repeat(spots(frames=1, brightness=150.0), 12, axis=0)
    raw = recorded(light, PHOTONS)
    errors = []
    for neighbours in (0, 2):
        model = train(raw, camera=PHOTONS, steps=150, neighbours=neighbours, blind_radius=0, **SMALL)
        errors.append(((denoise(raw, model).to_numpy() - light) ** 2).mean())
    assert errors[1] < 0.7 * errors[0]


def test_a_single_image_has_no_neighbours():
    with pytest.raises(FijiBridgeError, match="single frame"):
        train(recorded(spots(frames=1), PHOTONS), camera=PHOTONS, steps=2, neighbours=1, **SMALL)


def test_hot_pixels_leave_the_rest_of_the_image_as_bright_as_it_is():
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:32, :32]
    light = 6 + 20 * np.exp(-((y - 12) ** 2 + (x - 15) ** 2) / 30)
    raw = np.round(rng.poisson(light, (4, 32, 32)) + rng.normal(100, 1.5, (4, 32, 32))).astype(np.uint16)
    raw[1, 5, 5], raw[2, 20, 25] = 6000, 30000
    camera = Camera(offset=100.0, photons_per_adu=1.0, read_noise=1.5)
    model = train(raw, camera=camera, steps=60, features=(16, 16))
    assert model.noise.scale == pytest.approx(1, abs=0.2)
    far = np.ones(raw.shape, bool)
    far[1, 3:8, 3:8] = far[2, 18:23, 23:28] = False
    denoised = denoise(raw, model).to_numpy()
    assert denoised[far].mean() == pytest.approx(raw[far].mean(), rel=0.02)


def test_a_sample_is_no_larger_than_asked_however_many_planes_there_are():
    planes = np.random.default_rng(0).poisson(9, (12, 40, 40)).astype(np.uint16)
    stacks = [open_stack(plane[None]) for plane in planes]
    pool = CropPool(stacks, PHOTONS, torch.device("cpu"), np.random.default_rng(0), 32, silent)
    assert sum(batch.photons.numel() for batch in pool.sample(4 * 40 * 40)) == 4 * 40 * 40
    assert len(pool.sample(1)) == 1

    mixed = [open_stack(planes[:, :20, :20]), *stacks]  # however small the first of them
    pool = CropPool(mixed, PHOTONS, torch.device("cpu"), np.random.default_rng(0), 16, silent)
    assert sum(batch.photons.numel() for batch in pool.sample(4 * 40 * 40)) <= 4 * 40 * 40
