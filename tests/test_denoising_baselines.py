"""Published denoisers behind the same calls as ours."""

import builtins
import importlib.util
import json
import logging
import math
import os
import random
import signal
import tempfile

import numpy as np
import pytest
import tifffile
import torch

from fiji_bridge import engines
from fiji_bridge.camera import Camera
from fiji_bridge.cli import main
from fiji_bridge.denoising import baselines, denoise, load_model, train
from fiji_bridge.denoising.baselines import BASELINES, N2N, PN2V, MixtureNoise, UNet
from fiji_bridge.denoising.noise_models import ENGINES
from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.evaluation.image_quality import psnr
from fiji_bridge.progress import silent
from fiji_bridge.stack import open_stack

CAMERA = Camera(offset=100.0, photons_per_adu=0.5, read_noise=1.0)
PACKAGES = {"bm3d": "bm3d", "n2v": "careamics", "n2n": "careamics", "care": "careamics"}
SMALL = {"samples": 40, "features": (8, 16), "batch": 4, "crop": 32, "learning_rate": 3e-3}


def needs(engine):
    package = PACKAGES.get(engine)
    # A package that another torch keeps from being installed may be there in an empty first version.
    module = "careamics.models" if package == "careamics" else package
    try:
        missing = package and importlib.util.find_spec(module) is None
    except ModuleNotFoundError:
        missing = True
    if missing:
        pytest.skip(f'{package} is not installed; it comes with pip install "fiji-bridge[baselines]"')


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """One thread, and CAREamics's patches and batches small enough for a test."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(baselines.CAREamics, "patch", 32)
    monkeypatch.setattr(baselines.CAREamics, "batch", 4)
    yield
    torch.set_num_threads(threads)


def scene(frames=4, height=75, width=90):
    """Light of odd size [photons]: waves and a bright spot."""
    y, x = np.mgrid[:height, :width]
    light = 20 + 15 * np.sin(x / 6) * np.cos(y / 9) + 60 * np.exp(-((y - 40) ** 2 + (x - 30) ** 2) / 30)
    return np.broadcast_to(light, (frames, height, width))


def recorded(light, camera=CAMERA, seed=1):
    rng = np.random.default_rng(seed)
    return camera.to_adu(rng.poisson(light) + rng.normal(0, camera.read_noise, light.shape)).astype(
        np.float32
    )


def trained(engine, raw, steps=100, seed=0, progress=silent, **settings):
    if engine == "pn2v":  # as `train` does, with fewer channels
        return PN2V.train(
            *([open_stack(raw)], None, CAMERA),
            **{"device": torch.device("cpu"), "minutes": math.inf, "steps": steps, "seed": seed},
            **{"progress": progress, **SMALL},
        )
    if engine == "care":
        settings = {"targets": CAMERA.to_adu(scene(len(raw), *raw.shape[1:])), **settings}
    return train(
        raw, engine=engine, camera=CAMERA, steps=steps, seed=seed, device="cpu", progress=progress, **settings
    )


@pytest.fixture(scope="module")
def models():
    """A model of each engine, trained when first asked for."""
    raw, made = recorded(scene()), {}

    def get(engine):
        needs(engine)
        if engine not in made:
            made[engine] = trained(engine, raw, steps={"n2v": 120, "pn2v": 200}.get(engine, 60))
        return raw, made[engine]

    return get


@pytest.mark.parametrize("engine", BASELINES)
def test_noise_goes_and_structure_stays(models, engine):
    raw, model = models(engine)
    truth = CAMERA.to_adu(scene())
    denoised = denoise(raw, model, device="cpu").to_numpy()
    assert denoised.shape == raw.shape and denoised.dtype == np.float32
    # N2V, which learns from 0.2% of the pixels a step, would need more steps than a test has.
    assert psnr(denoised, truth, 300) > psnr(raw, truth, 300) + (2 if engine == "n2v" else 5)
    assert denoised.mean() == pytest.approx(truth.mean(), rel=0.02)
    spot = truth[0] > np.percentile(truth, 99.5)
    assert denoised[:, spot].mean() - 100 > 0.7 * (truth[:, spot].mean() - 100)


@pytest.mark.parametrize("engine", BASELINES)
def test_a_model_comes_back_from_its_file_as_it_was(models, engine, tmp_path):
    raw, model = models(engine)
    model.save(tmp_path / "model.safetensors")
    back = load_model(tmp_path / "model.safetensors")
    assert type(back) is type(model) and back.engine == engine
    assert json.loads(json.dumps(back.metadata)) == json.loads(json.dumps(model.metadata))
    assert back.camera == model.camera
    one, two = (denoise(raw[:1], m, device="cpu").to_numpy() for m in (model, back))
    # BM3D's threads add up in any order.
    np.testing.assert_allclose(one, two, rtol=1e-5 if engine == "bm3d" else 0)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("engine", ["n2v", "pn2v"])
def test_tiles_do_not_show(models, engine):
    model = models(engine)[1]
    raw = recorded(scene(1, 101, 122))
    whole, tiled = (denoise(raw, model, device="cpu", tile=tile).to_numpy() for tile in (512, 14))
    assert np.abs(whole - tiled).max() < 1e-3


@pytest.mark.parametrize("engine", BASELINES)
@pytest.mark.parametrize("size", [(5, 7), (4, 40), (33, 17)])
def test_any_size_is_denoised(models, engine, size):
    model = models(engine)[1]
    assert denoise(np.full((2, *size), 150.0), model, device="cpu").shape == (2, *size)


@pytest.mark.parametrize("engine", BASELINES)
def test_the_report_tells_how_training_went(models, engine):
    report = models(engine)[1].report
    assert set(report) >= {"steps", "minutes", "stopped", "device"}
    assert report["steps"] == 0 if engine == "bm3d" else 0 < report["steps"] <= 300


def test_bm3d_keeps_the_mean_at_low_light_and_under_em_gain():
    needs("bm3d")
    for camera in (
        Camera(offset=50.0, photons_per_adu=1.0, read_noise=1.0),
        Camera(offset=50.0, photons_per_adu=10.0, em_gain=100.0, read_noise=20.0),
    ):
        rng = np.random.default_rng(2)
        light = scene(1, 128, 128) / 10
        electrons = rng.poisson(light).astype(float)
        if camera.em_gain:
            electrons = rng.gamma(np.maximum(electrons, 1e-9), camera.em_gain)
        electrons += rng.normal(0, camera.read_noise, light.shape)
        raw = electrons / camera.photons_per_adu + camera.offset
        model = train(raw, engine="bm3d", camera=camera)
        denoised = camera.to_photons(denoise(raw, model).to_numpy())
        assert denoised.mean() == pytest.approx(light.mean(), rel=0.05)
        assert np.mean((denoised - light) ** 2) < 0.3 * np.mean((camera.to_photons(raw) - light) ** 2)


def test_bm3d_is_ready_at_once_and_fast_is_its_first_stage():
    needs("bm3d")
    raw = recorded(scene(1))
    model = train(raw, engine="bm3d", camera=CAMERA, max_minutes=1e-6)
    assert model.report["stopped"] == "BM3D needs no training"
    truth = CAMERA.to_adu(scene(1))
    best, fast = (psnr(denoise(raw, model, fast=fast).to_numpy(), truth, 300) for fast in (False, True))
    assert best != fast > psnr(raw, truth, 300) + 5


def test_pn2v_s_estimate_lies_between_its_prior_and_the_pixel(models):
    raw, model = models("pn2v")
    mean, prior = (denoise(raw, model, estimator=name, device="cpu").to_numpy() for name in ("mean", "prior"))
    share = np.sum((mean - prior) * (raw - prior)) / np.sum((raw - prior) ** 2)
    assert 0.01 < share < 0.5
    with pytest.raises(FijiBridgeError, match="no estimator 'map'"):
        denoise(raw, model, estimator="map")


def test_the_mixture_starts_as_the_camera_s_noise():
    noise = MixtureNoise(50.0, 10.0, excess=2.0, read_variance=9.0)
    with torch.no_grad():
        noise.table[1] = 0  # all components in the middle
        seen = torch.linspace(-20, 20, 8001)
        for photons in (1.0, 50.0, 90.0):
            density = noise.log_likelihood(seen, torch.tensor((photons - 50) / 10)).exp() * (40 / 8000)
            mean = float((density * seen).sum()) * 10 + 50
            assert float(density.sum()) == pytest.approx(1, abs=1e-3)
            assert mean == pytest.approx(photons, abs=0.1)
            variance = float((density * (seen * 10 + 50 - photons) ** 2).sum())
            assert variance == pytest.approx(2 * photons + 9, rel=0.01)


def test_a_fitted_mixture_is_a_density_of_mean_0_near_the_true_one():
    rng = np.random.default_rng(3)
    light = rng.uniform(2, 30, 60_000)
    noisy = rng.poisson(light) + rng.normal(0, 0.5, light.shape)
    noise = MixtureNoise(16.0, 9.0, excess=1.0, read_variance=4.0)  # a camera that is wrong by far
    scaled = [torch.from_numpy((values - 16) / 9).float() for values in (light, noisy)]
    before = noise.log_likelihood(scaled[1], scaled[0]).mean().item()
    noise.fit(*scaled, silent)
    assert noise.log_likelihood(scaled[1], scaled[0]).mean().item() > before + 0.02
    seen = torch.linspace(-10, 10, 4001)
    for photons in (4.0, 25.0):
        density = noise.log_likelihood(seen, torch.tensor((photons - 16) / 9)).exp() * (20 / 4000)
        counts = seen * 9 + 16
        assert float(density.sum()) == pytest.approx(1, abs=1e-3)
        assert float((density * counts).sum()) == pytest.approx(photons, abs=0.05)
        assert float((density * (counts - photons) ** 2).sum()) == pytest.approx(photons + 0.25, rel=0.1)


def test_a_blind_spot_never_holds_its_own_value():
    x = torch.arange(2 * 9 * 6.0).reshape(2, 1, 9, 6)  # each value names its pixel
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        hidden, where = baselines._with_blind_spots(x, 0.3, generator)
        assert where.flatten(1).any(1).all()
        assert ((hidden[:, 0] != x[:, 0]) == where).all()
        apart = (hidden[:, 0] - x[:, 0])[where].abs()
        assert apart.max() <= 2 * 6 + 2  # two rows and two columns


def test_pn2v_s_network_sees_no_further_than_its_tiles_allow():
    network = UNet((3, 4, 5), 2)
    x = torch.zeros(1, 1, 128, 128).requires_grad_()
    for y in (64, 65, 67):
        (gradient,) = torch.autograd.grad(network(x)[0, :, y, 64].sum(), x)
        rows = gradient[0, 0].abs().sum(1).nonzero().flatten()
        assert int((rows - y).abs().max()) <= 8 * network.stride


def test_noise2noise_pairs_each_frame_with_others():
    raw = np.arange(5.0)[:, None, None] * np.ones((5, 16, 16)) + 200
    raw[:, 0, 0] += 1
    pairs = N2N.pairs([open_stack(raw)], None, CAMERA, np.random.default_rng(0), silent)
    seen = {(float(image[3, 3]), float(aim[3, 3])) for image, aim in zip(*pairs, strict=True)}
    assert len(seen) == 5 * N2N.partners
    assert all(image != aim for image, aim in seen)


def test_noise2noise_learns_from_targets_when_given():
    needs("n2n")
    one, two = (recorded(scene(2), seed=seed) for seed in (1, 2))
    model = train(one, targets=two, engine="n2n", camera=CAMERA, steps=40, device="cpu")
    truth = CAMERA.to_adu(scene(2))
    assert psnr(denoise(one, model, device="cpu"), truth, 300) > psnr(one, truth, 300) + 3


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"engine": "care"}, "'care' learns from clean images; give them as targets"),
        ({"engine": "n2n"}, "'n2n' needs two of each scene"),
        ({"engine": "n2v", "targets": np.ones((1, 40, 40))}, "'n2v' trains without targets"),
        ({"engine": "gamma-poisson", "targets": np.ones((1, 40, 40))}, "trains without targets"),
        ({"engine": "n2n", "targets": np.ones((1, 40, 41))}, r"shapes \[\(1, 40, 41\)\].*\[\(1, 40, 40\)\]"),
        ({"engine": "n3v"}, "there are poisson-gaussian.*bm3d, n2v, n2n, care, pn2v"),
    ],
)
def test_what_an_engine_cannot_work_with_is_said_in_one_sentence(settings, sentence, monkeypatch):
    monkeypatch.setattr(baselines, "_require", lambda *a, **k: None)  # installed or not
    with pytest.raises(FijiBridgeError, match=sentence) as error:
        train(recorded(scene(1, 40, 40)), camera=CAMERA, steps=3, **settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("engine", ["n2v", "pn2v"])
def test_images_too_small_to_train_on_are_refused(engine, monkeypatch):
    monkeypatch.setattr(baselines, "_require", lambda *a, **k: None)
    with pytest.raises(FijiBridgeError, match=r"9 pixels across.*at least 16"):
        train(np.ones((5, 9, 40), np.float32) + 200, camera=CAMERA, steps=3, engine=engine)


def test_one_image_of_the_smallest_size_is_enough():
    needs("n2v")
    raw = recorded(scene(1, 16, 19))
    assert denoise(raw, trained("n2v", raw, steps=2), device="cpu").shape == (1, 16, 19)


@pytest.mark.parametrize("engine", PACKAGES)
def test_a_missing_extra_is_named_with_what_installs_it(engine, monkeypatch):
    importing = builtins.__import__

    def missing(name, *arguments):
        if name.split(".")[0] in ("bm3d", "careamics"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return importing(name, *arguments)

    monkeypatch.setattr(baselines, "import_module", missing)
    raw = recorded(scene(2))
    with pytest.raises(FijiBridgeError, match=r'pip install "fiji-bridge\[baselines\]"') as error:
        train(raw, engine=engine, camera=CAMERA, steps=3, targets=raw if engine == "care" else None)
    assert repr(engine) in str(error.value) and "\n" not in str(error.value)


class StopError(Exception):
    """What a caller's progress raises."""


@pytest.mark.parametrize("engine", ["n2v", "pn2v"])
@pytest.mark.parametrize("reason", [StopError, KeyboardInterrupt])
def test_training_stops_when_progress_raises(engine, reason, tmp_path, monkeypatch):
    needs(engine)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    handler = signal.getsignal(signal.SIGINT)
    stages = []

    def cancel(stage, done, total):
        stages.append(stage)
        if stages.count("Training") == 3:
            raise reason

    with pytest.raises(reason):
        trained(engine, recorded(scene(2)), steps=100, progress=cancel)
    assert stages.count("Training") == 3
    assert not any(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGINT) is handler


def test_careamics_leaves_no_trace(tmp_path, monkeypatch, capfd):
    needs("n2v")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    kept = dict(os.environ)
    np.random.seed(5)
    random.seed(5)
    states = (np.random.get_state()[1].tolist(), random.getstate(), torch.get_rng_state().tolist())
    level = logging.getLogger("lightning").level
    trained("n2v", recorded(scene(2)), steps=3)
    assert not any(tmp_path.iterdir())
    assert dict(os.environ) == kept
    assert states == (np.random.get_state()[1].tolist(), random.getstate(), torch.get_rng_state().tolist())
    assert logging.getLogger("lightning").level == level
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("engine", ["n2v", "pn2v"])
def test_the_same_seed_gives_the_same_model(engine):
    needs(engine)
    raw = recorded(scene(2))
    one, two, other = (trained(engine, raw, steps=4, seed=seed).contents()[0] for seed in (3, 3, 4))
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert not all(torch.equal(value, other[name]) for name, value in one.items())


def test_the_time_budget_is_kept():
    needs("n2v")
    model = train(
        recorded(scene(2)), engine="n2v", camera=CAMERA, max_minutes=0.01, steps=10**6, device="cpu"
    )
    assert model.report["stopped"] == "the budget was used"
    assert model.report["minutes"] < 0.1


def test_without_steps_careamics_trains_its_default_epochs(monkeypatch):
    needs("n2v")
    monkeypatch.setattr(baselines.CAREamics, "epochs", 2)
    monkeypatch.setattr(baselines.CAREamics, "least", 3)
    model = train(recorded(scene(1, 40, 40)), engine="n2v", camera=CAMERA, max_minutes=5, device="cpu")
    assert model.report["epochs"] == 2
    assert model.report["stopped"] == "2 epochs were done, CAREamics's default"


def test_a_damaged_file_of_a_baseline_is_refused(models, tmp_path):
    _, model = models("pn2v")
    weights, metadata = model.contents()

    def changed(contents):
        path = tmp_path / "changed.safetensors"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PN2V, "contents", lambda self: contents)
            model.save(path)
        return path

    name = "network.last.weight"
    with pytest.raises(FijiBridgeError, match="damaged or from another version"):
        load_model(changed(({key: value for key, value in weights.items() if key != name}, metadata)))
    with pytest.raises(FijiBridgeError, match="not finite"):
        load_model(changed(({**weights, name: weights[name] * math.nan}, metadata)))


def test_a_baseline_cannot_be_trained_further(models):
    raw, model = models("pn2v")
    with pytest.raises(FijiBridgeError, match="'pn2v' cannot be trained further"):
        train(raw, engine="pn2v", model=model, steps=3)


def test_the_command_line_denoises_without_a_model_and_trains_with_targets(tmp_path, capsys):
    needs("bm3d")
    raw, out, model = tmp_path / "raw.tif", tmp_path / "out.tif", tmp_path / "m.safetensors"
    tifffile.imwrite(raw, recorded(scene(2)))
    camera = ("--camera", "offset=100 photons2adu=0.5 readnoise=1")
    assert main(["denoise", str(raw), "--engine", "bm3d", "--out", str(out), *camera]) == 0
    assert tifffile.imread(out).shape == (2, 75, 90)
    given = ["train", str(raw), "--targets", str(out), "--out", str(model), *camera]
    assert main([*given, "--engine", "bm3d"]) == 1
    assert "'bm3d' trains without targets" in capsys.readouterr().err
    assert main(["train", str(raw), "--engine", "bm3d", "--out", str(model), *camera]) == 0
    assert main(["denoise", str(raw), "--model", str(model), "--out", str(out)]) == 0
    assert main(["denoise", str(raw), "--out", str(out)]) == 2
    assert main(["train", str(raw), "--engine", "bm4d", "--out", str(model)]) == 2


def test_the_names_of_the_engines_are_those_of_their_classes():
    assert tuple(ENGINES) == engines.NOISE_MODELS
    assert tuple(BASELINES) == engines.BASELINES
    assert {*engines.TARGETED, *engines.UNTRAINED} <= {*BASELINES}
