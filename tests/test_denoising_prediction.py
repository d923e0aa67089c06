"""Denoised stacks have the input's units, shape and labels, whole or not at all."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import xarray as xr

import fiji_bridge as fb
from fiji_bridge import simulate, stack
from fiji_bridge.camera import Camera
from fiji_bridge.cli import main
from fiji_bridge.denoising import Model, denoise, load_model
from fiji_bridge.denoising.model import fingerprint
from fiji_bridge.denoising.network import BlindSpotNetwork
from fiji_bridge.denoising.noise_models import GammaPoisson, Poi2Void
from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.stack import open_stack

CAMERA = Camera(offset=100.0, photons_per_adu=0.5, pixel_size_nm=120.0)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Model(BlindSpotNetwork((4, 6)).eval(), GammaPoisson(6.0, 2.0), CAMERA)


def movie(*shape, seed=0):
    return (100 + 2 * np.random.default_rng(seed).poisson(9, shape)).astype(np.uint16)


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (2, 5), (17, 2)])
def test_images_of_any_size(model, size):
    denoised = denoise(movie(3, *size), model)
    assert denoised.shape == (3, *size)
    assert denoised.dtype == np.float32
    assert np.isfinite(denoised).all()


def test_the_result_is_in_the_input_s_units(model):
    raw = movie(2, 40, 40)
    denoised = denoise(raw, model).to_numpy()
    assert abs(denoised.mean() - raw.mean()) < 4
    assert denoised.std() < raw.std()
    # Twice the photons per count, the same counts over the offset: another camera, other photons.
    other = denoise(raw, model, camera=CAMERA.replace(photons_per_adu=1.0)).to_numpy()
    assert not np.allclose(other, denoised)


def test_a_movie_s_frames_see_their_neighbours_whatever_the_blocks(monkeypatch):
    torch.manual_seed(0)
    network = BlindSpotNetwork((4, 6), neighbours=2).eval()
    torch.nn.init.normal_(network.last.weight)
    model = Model(network, GammaPoisson(6.0, 2.0), CAMERA)
    raw = movie(7, 24, 20)
    whole = denoise(raw, model, estimator="prior").to_numpy()
    monkeypatch.setattr(stack, "BLOCK_BYTES", 1)  # one frame a block
    np.testing.assert_allclose(denoise(raw, model, estimator="prior").to_numpy(), whole, rtol=1e-5)
    changed = raw.copy()
    changed[3, 10, 10] += 200
    difference = (np.abs(denoise(changed, model, estimator="prior").to_numpy() - whole) > 0.01).any(
        axis=(1, 2)
    )
    assert difference.tolist() == [False, True, True, True, True, True, False]
    with pytest.raises(FijiBridgeError, match="single frame"):
        denoise(raw[:1], model)


def test_labels_stay_and_channels_and_z_are_denoised_apart(model):
    raw = movie(2, 2, 3, 20, 24)
    stack = xr.DataArray(
        raw, dims=("t", "c", "z", "y", "x"), attrs={"pixel_size_nm": 120.0, "source": "cell.tif"}
    )
    denoised = denoise(stack, model)
    assert denoised.dims == stack.dims
    assert denoised.attrs["pixel_size_nm"] == 120.0
    alone = denoise(raw[:, 1, 2], model)
    np.testing.assert_allclose(denoised.isel(c=1, z=2), alone, rtol=1e-6)


@pytest.mark.parametrize("name", ["out.tif", "out.zarr"])
def test_a_file_holds_what_memory_would(model, tmp_path, name):
    stack = open_stack(movie(7, 30, 26), pixel_size_nm=120.0)
    written = denoise(stack, model, out=tmp_path / name)
    assert written.dtype == np.float32
    assert written.attrs["pixel_size_nm"] == pytest.approx(120.0)
    np.testing.assert_array_equal(open_stack(tmp_path / name), denoise(stack, model))


def test_tiles_leave_no_trace_in_the_image(model):
    raw = movie(1, 150, 130)
    np.testing.assert_allclose(denoise(raw, model, tile=32), denoise(raw, model), rtol=1e-5)


def test_the_fast_way_differs_by_rounding_alone(model):
    raw = movie(2, 64, 48)
    fast, exact = (denoise(raw, model, fast=fast).to_numpy() for fast in (True, False))
    assert np.abs(fast - exact).max() < 0.2 * exact.std()
    assert fast.mean() == pytest.approx(exact.mean(), rel=2e-3)


def test_progress_counts_frames_and_cancelling_leaves_nothing(model, tmp_path):
    told = []
    denoise(movie(5, 20, 20), model, progress=lambda *news: told.append(news))
    assert told[:2] == [("Denoising", 0, 5), ("Judging the model", 0, 5)] and told[-1] == ("Denoising", 5, 5)

    def cancel(stage, done, total):
        if done > 0:
            raise KeyboardInterrupt

    (tmp_path / "out.tif").write_bytes(b"an older result")
    with pytest.raises(KeyboardInterrupt):
        denoise(movie(5, 20, 20), model, out=tmp_path / "out.tif", progress=cancel)
    assert [path.name for path in tmp_path.iterdir()] == ["out.tif"]
    assert (tmp_path / "out.tif").read_bytes() == b"an older result"


@pytest.mark.parametrize("tile", ["64", 0, 64.0])
def test_a_side_that_tiles_cannot_have_is_refused(model, tile):
    with pytest.raises(FijiBridgeError, match=f"tile is {tile!r}; give a whole number"):
        denoise(movie(1, 20, 20), model, tile=tile)


def test_an_estimator_that_the_engine_lacks_is_named(model):
    with pytest.raises(FijiBridgeError, match="no estimator 'median'; choose from mean, map, prior"):
        denoise(movie(1, 20, 20), model, estimator="median")


def test_maps_of_another_size_are_refused(model):
    camera = Camera(offset=100.0, photons_per_adu=0.5, variance_map=np.ones((9, 9)))
    with pytest.raises(FijiBridgeError, match="9×9"):
        denoise(movie(1, 20, 20), model, camera=camera)


def test_the_prior_does_not_look_at_the_pixel_and_the_mean_does(model):
    raw = movie(1, 33, 29)
    changed = raw.copy()
    changed[0, 16, 14] += 60
    for estimator, looks in (("prior", False), ("mean", True), ("map", True)):
        before, after = (
            denoise(stack, model, estimator=estimator).to_numpy()[0, 16, 14] for stack in (raw, changed)
        )
        assert (before != after) == looks


def test_a_model_of_other_images_is_trusted_as_far_as_they_confirm_it(model, tmp_path):
    stripes = 20 + 180 * (np.arange(96) // 3 % 2) * np.ones((2, 96, 1))  # nothing that molecules look like
    raw = np.random.default_rng(0).poisson(stripes).astype(np.uint16)
    raw[0, 50, 50] = 60000  # a hot pixel is no reason to doubt
    photons = Camera(offset=0.0, photons_per_adu=1.0)
    denoised = denoise(raw, "single-molecule", camera=photons, fast=True)
    usual = raw < 60000
    error, before = (np.sqrt(np.mean((of - stripes)[usual] ** 2)) for of in (denoised.to_numpy(), raw))
    assert error < before
    (warning,) = denoised.attrs["warnings"]
    assert re.search(r"does not fit array: .* wrong by \d+%.*train on this stack", warning)
    out = denoise(raw, "single-molecule", camera=photons, fast=True, out=tmp_path / "out.tif")
    assert out.attrs["warnings"] == [warning]
    own = replace(model, camera=photons, details={"trained_on": [fingerprint(open_stack(raw))]})
    known = [raw, raw.astype(np.float32), denoised.copy(data=raw)]  # the last still has its warning
    assert not any("warnings" in denoise(stack, own).attrs for stack in known)
    assert "warnings" in denoise(raw, own, camera=photons.replace(photons_per_adu=2.0)).attrs
    assert "warnings" in denoise(raw.reshape(2, 48, 192), own).attrs
    late = np.concatenate([np.zeros_like(raw), raw])
    assert fingerprint(open_stack(late)) != fingerprint(open_stack(np.zeros_like(late)))


def test_a_model_is_known_for_its_own_after_saving_with_maps_too(model, tmp_path):
    raw = movie(2, 32, 32)
    camera = CAMERA.replace(variance_map=np.full((32, 32), 4.0, np.float32), pixel_size_nm=None)
    own = replace(model, camera=camera, details={"trained_on": [fingerprint(open_stack(raw))]})
    own.save(tmp_path / "own.safetensors")
    told = []
    denoise(
        raw,
        tmp_path / "own.safetensors",
        camera=camera.replace(pixel_size_nm=99.0),
        progress=lambda *news: told.append(news[0]),
    )
    assert "Judging the model" not in told


@pytest.mark.parametrize("shape", [(2, 300, 300), (1, 2, 300, 300)])
def test_all_frames_and_channels_are_judged(shape):
    dims = ("t", "y", "x") if len(shape) == 3 else ("t", "c", "y", "x")
    light = np.full(shape, 20.0)
    light[..., -1:, :, :] = 20 + 180 * (np.arange(300) // 3 % 2)[:, None]
    raw = xr.DataArray(np.random.default_rng(0).poisson(light).astype(np.uint16), dims=dims)
    camera = Camera(offset=0.0, photons_per_adu=1.0)
    denoised = denoise(raw, "single-molecule", camera=camera, fast=True).transpose(*dims).to_numpy()
    error, before = (
        np.sqrt(np.mean((of - light.squeeze()) ** 2, axis=(-1, -2))).ravel()
        for of in (denoised, raw.to_numpy())
    )
    assert (error < 1.02 * before.reshape(error.shape)).all()


def test_light_that_the_model_does_not_know_is_kept_and_a_hot_pixel_not():
    light, camera = np.full((3, 96, 96), 2.0), Camera(offset=0.0, photons_per_adu=1.0)
    y, x = np.mgrid[:96, :96]
    light[1] += 4000 * np.exp(-((y - 40) ** 2 + (x - 50) ** 2) / 2) / (2 * np.pi)
    raw = np.random.default_rng(1).poisson(light).astype(np.uint16)

    def error(of, where):
        return np.sqrt(np.mean((of - light)[where] ** 2))

    denoised = denoise(raw, "confocal", camera=camera, fast=True).to_numpy()
    assert error(denoised, light > 2.5) < 2 * error(raw, light > 2.5)  # 3.6 times without
    raw[1] = raw[0]
    raw[:, 20, 20] = 5000
    denoised = denoise(raw, "confocal", camera=camera, fast=True).to_numpy()
    assert error(denoised, np.s_[:, 30:, 60:]) < 0.2 * error(raw, np.s_[:, 30:, 60:])


def test_a_model_of_such_images_is_trusted(capsys, tmp_path):
    options = "width=64 height=64 density=0.3 intensityrange=300:1000 addpoisssonvar=20"
    known = Camera(offset=100.0, photons_per_adu=1.0, pixel_size_nm=110.0)
    simulate(options=options, frames=3, seed=8, camera=known, out=tmp_path / "movie.tif")
    arguments = ["denoise", str(tmp_path / "movie.tif"), "--model", "single-molecule", "--fast", "--json"]
    camera = ["--camera", "offset=100 photons2adu=1 isemgain=false"]
    assert main([*arguments, *camera, "--out", str(tmp_path / "out.tif")]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["warnings"] == []


def test_no_operation_mixes_tensors_of_two_devices():
    """What only a GPU would show, on machines without one; in a process of its own, as torch is changed."""
    program = Path(__file__).with_name("second_device.py")
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_gives_what_the_cpu_gives(model):
    raw = movie(3, 90, 70)
    np.testing.assert_allclose(
        denoise(raw, model, device="cuda"), denoise(raw, model, device="cpu"), rtol=1e-5
    )


def test_images_brighter_than_the_values_of_a_free_prior_are_refused():
    torch.manual_seed(0)
    noise = Poi2Void(40.0)
    model = Model(BlindSpotNetwork((4, 6), outputs=noise.outputs).eval(), noise, CAMERA)
    assert denoise(movie(1, 24, 24), model).to_numpy().max() < 200
    with pytest.raises(FijiBridgeError, match="values up to 40; train it on them"):
        denoise(movie(1, 24, 24) * np.uint16(6), model)
    with pytest.raises(FijiBridgeError, match="values up to 255"):
        fb.train(movie(2, 32, 32) * np.uint16(8), engine="poi2void-paper", steps=2)


def test_several_files_and_maps_that_are_read_are_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frames = (100 + 2 * np.random.default_rng(0).poisson(30, (4, 32, 32))).astype(np.uint16)
    for name, part in (("a.tif", frames[:2]), ("b.tif", frames[2:]), ("map.tif", frames[0] * 0 + 100)):
        tifffile.imwrite(name, part, photometric="minisblack")
    before = {path.name: path.read_bytes() for path in Path().iterdir()}
    camera = "offset=100 photons2adu=0.5 isemgain=false readnoise=1"
    both = fb.open_stack(["a.tif", "b.tif"])
    for read, setup, out in (
        (["a.tif", "b.tif"], camera, "b.tif"),
        (both, camera, "b.tif"),
        (both, camera, "a.tif"),
        ("a.tif", f"{camera} offsetmap=map.tif", "map.tif"),
    ):
        with pytest.raises(FijiBridgeError, match="another file"):
            denoise(read, "confocal", camera=setup, out=out)
    with pytest.raises(FijiBridgeError, match="another file"):
        fb.localize(both, camera=f"{camera} pixelsize=100", engine="torch", out="b.tif")
    with pytest.raises(FijiBridgeError, match="safetensors"):
        load_model("confocal").save("a.tif")
    assert {path.name: path.read_bytes() for path in Path().iterdir()} == before
