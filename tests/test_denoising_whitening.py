import numpy as np
import pytest
from scipy import ndimage

from fiji_bridge import Camera, denoise, estimate_camera, load_model, open_stack, train
from fiji_bridge.denoising.whitening import Whitening, undo_sharing

SHARED = Whitening(((0.26, 0.018), (0.2, 0.0)))
"""As of noise blurred by 0.5 pixels along x, and less along y."""


def recording(sigma, gain=30.0, frames=4, side=96):
    """Smooth light [photons], and photon noise around it blurred behind the detector [A/D counts]."""
    y, x = np.mgrid[:side, :side] / 7.0
    light = np.broadcast_to(40 + 25 * np.sin(x) * np.cos(y), (frames, side, side))
    noise = np.random.default_rng(3).poisson(light) - light
    blurred = ndimage.gaussian_filter(noise, (0, sigma, sigma), mode="mirror")
    return light, np.round(200 + gain * (light + blurred)).astype(np.uint16)


@pytest.mark.parametrize(("sigma", "whitened", "radius"), [(0, False, 0), (0.5, True, 0), (1.0, False, 3)])
def test_noise_that_pixels_share_is_undone_or_widens_the_blind_spot(sigma, whitened, radius):
    light, raw = recording(sigma)
    model = train(raw, steps=100, features=(8, 12), crop=32, device="cpu")
    assert bool(model.whitening) == whitened
    assert model.network.blind_radius == radius
    denoised = (denoise(raw, model).to_numpy() - 200) / 30
    assert ((denoised - light) ** 2).mean() < 0.5 * (((raw - 200.0) / 30 - light) ** 2).mean()


def test_blurring_gives_the_images_back():
    images = np.random.default_rng(0).normal(300, 20, (2, 64, 48)).astype(np.float32)
    whitened = SHARED.whiten(open_stack(images)).to_numpy()
    assert whitened.std() > 1.2 * images.std()
    inside = np.s_[:, 9:-9, 9:-9]
    np.testing.assert_allclose(SHARED.blur(whitened)[inside], images[inside], rtol=2e-4)
    np.testing.assert_allclose(whitened.mean(), images.mean(), rtol=1e-3)


def test_without_sharing_nothing_is_done():
    stack, camera = open_stack(np.arange(512.0).reshape(2, 16, 16)), Camera(100.0, 0.5, read_noise=1.0)
    nothing = Whitening(((0.0, 0.0), (0.0, 0.0)))
    assert not nothing
    assert nothing.whiten(stack) is stack
    assert nothing.camera(camera) is camera
    assert nothing.blur(stack.to_numpy())[1, 2, 3] == stack.to_numpy()[1, 2, 3]


def test_the_kernel_of_the_blur_and_the_gain_before_it_are_found():
    _, raw = recording(0.5)
    stack = open_stack(raw)
    estimate = estimate_camera(stack)
    assert estimate.noise_reach == 1
    whitening = undo_sharing(estimate, stack)
    point = np.zeros((1, 33, 33))
    point[0, 16, 16] = 1.0
    expected = ndimage.gaussian_filter(point, (0, 0.5, 0.5))
    assert abs(whitening.blur(point) - expected).max() < 0.02
    # Blurred, a pixel varies less than its photons would make it; whitened as they do: 30 ADU a photon.
    assert 1 / estimate.camera.photons_per_adu < 0.55 * 30
    assert 1 / whitening.camera(estimate.camera).photons_per_adu == pytest.approx(30, rel=0.1)
    assert estimate_camera(whitening.whiten(stack)).noise_reach == 0


@pytest.mark.parametrize("sigma", [0, 1.0])
def test_raw_noise_and_noise_too_smooth_to_be_undone_are_left(sigma):
    stack = open_stack(recording(sigma)[1])
    assert not undo_sharing(estimate_camera(stack), stack)


def test_the_camera_s_maps_are_those_of_the_whitened_images():
    y, x = np.mgrid[:32, :40]
    maps = {
        "offset_map": 100 + 3 * ((x + y) % 2),
        "gain_map": 2 + 0.01 * x,
        "variance_map": 4 + 0.1 * y,
    }
    camera = Camera(100.0, 0.5, **{name: values.astype(np.float64) for name, values in maps.items()})
    own = SHARED.camera(camera)
    share = own.photons_per_adu / camera.photons_per_adu
    assert 0.4 < share < 0.6
    np.testing.assert_allclose(own.gain_map, camera.gain_map / share)
    np.testing.assert_allclose(own.variance_map, camera.variance_map / share)
    dark = SHARED.whiten(open_stack(camera.offset_map[None])).to_numpy()[0]
    np.testing.assert_allclose(own.offset_map, dark, rtol=1e-5)


def test_a_model_keeps_its_filter_and_frames_may_be_lazy_and_in_parts(tmp_path):
    light, raw = recording(0.5)
    model = train(raw, steps=60, features=(16, 16), seed=1)
    assert model.whitening
    model.save(tmp_path / "model.safetensors")
    again = load_model(tmp_path / "model.safetensors")
    assert again.whitening == model.whitening
    pieces = open_stack(raw).chunk({"t": 1, "y": 50, "x": 30})
    out = denoise(pieces, again, out=tmp_path / "out.tif").to_numpy()
    np.testing.assert_allclose(out, denoise(raw, model).to_numpy(), rtol=1e-4)
    assert ((out - 200) / 30).mean() == pytest.approx(light.mean(), rel=0.01)


def test_a_model_that_ships_sees_the_whitened_image():
    light, raw = recording(0.5)
    model = load_model("confocal")
    assert not model.whitening
    stack = open_stack(raw)
    estimate = estimate_camera(stack)
    whitening = undo_sharing(estimate, stack)
    own = whitening.camera(estimate.camera)
    by_hand = whitening.blur(denoise(whitening.whiten(stack), model, camera=own).to_numpy())
    np.testing.assert_allclose(denoise(raw, model).to_numpy(), by_hand, rtol=1e-5)
    told = denoise(raw, "confocal", camera=estimate.camera.options()).to_numpy()
    np.testing.assert_allclose(told, by_hand, rtol=1e-5)
    error, raw_error = (((image - 200) / 30 - light).std() for image in (by_hand, raw))
    assert error < 0.5 * raw_error
