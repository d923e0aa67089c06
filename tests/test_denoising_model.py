"""Model files hold weights and readable text, and nothing that runs."""

import json
import math

import numpy as np
import pytest
import safetensors.torch
import torch

from fiji_bridge.camera import Camera
from fiji_bridge.denoising import Model, denoise, load_model
from fiji_bridge.denoising.model import shipped_models
from fiji_bridge.denoising.network import BlindSpotNetwork
from fiji_bridge.denoising.noise_models import ENGINES, GammaPoisson
from fiji_bridge.errors import FijiBridgeError

WRONG_CONSTANTS = (
    {"center": math.nan},
    {"center": "x"},
    {"spread": 0},
    {"scale": -1},
    {"scale": None},
    {"floor": -5},
    {"excess": 0},
)


def some_model(camera=None):
    torch.manual_seed(0)
    network = BlindSpotNetwork((4, 6)).eval()
    camera = camera or Camera(offset=99.5, photons_per_adu=0.46, read_noise=1.6, pixel_size_nm=108.0)
    return Model(
        network,
        GammaPoisson(5.0, 1.5, 2.56),
        camera,
        {"held_out_nll": 1.25},
        {"source": "cell.tif", "steps": 7},
    )


def rewritten(path, tensors=None, **header):
    """A copy of a model file with some parts changed."""
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = {**file.metadata(), **header}
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    changed = path.with_name("changed.safetensors")
    changed.write_bytes(safetensors.torch.save((tensors or (lambda w: w))(weights), metadata))
    return changed


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "model.safetensors"
    some_model().save(path)
    return path


def test_a_model_comes_back_as_it_was(saved):
    model, back = some_model(), load_model(saved)
    raw = np.random.default_rng(0).poisson(20, (2, 30, 21)).astype(np.uint16) + 95
    np.testing.assert_array_equal(denoise(raw, model), denoise(raw, back))
    assert back.camera == model.camera
    assert back.noise == model.noise
    assert back.metadata == model.metadata
    assert back.report == {"held_out_nll": 1.25}
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_the_header_is_readable_text(saved):
    raw = saved.read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]
    assert json.loads(header["engine"]) == "gamma-poisson"
    assert json.loads(header["architecture"])["features"] == [4, 6]
    assert json.loads(header["camera"])["offset"] == 99.5
    assert json.loads(header["pixel_size_nm"]) == 108.0
    assert json.loads(header["source"]) == "cell.tif"


def test_the_maps_of_an_scmos_camera_travel_with_the_model(tmp_path):
    variance = np.random.default_rng(0).uniform(1, 9, (30, 21))
    camera = Camera(offset=100.0, photons_per_adu=0.5, variance_map=variance)
    some_model(camera).save(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(load_model(tmp_path / "model.safetensors").camera.variance_map, variance)


def test_what_is_no_model_is_refused_in_one_sentence(saved, tmp_path):
    constants, architecture = some_model().noise.constants(), some_model().network.architecture()
    text = tmp_path / "notes.txt"
    text.write_text("no weights here")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(saved.read_bytes()[:-100])
    other = tmp_path / "other.safetensors"
    other.write_bytes(safetensors.torch.save({"weight": torch.zeros(3)}))

    def without_one(weights):
        return dict(list(weights.items())[1:])

    def not_finite(weights):
        return {name: value * float("nan") for name, value in weights.items()}

    cases = {
        tmp_path / "absent.safetensors": "is not there",
        tmp_path: "is a folder",
        text: "is not a model or is damaged",
        cut: "is not a model or is damaged",
        other: "no model of fiji-bridge",
        rewritten(
            saved, engine=json.dumps("gauss")
        ): "asks for the denoising engine 'gauss'; there are poisson-gaussian",
    }
    for path, sentence in cases.items():
        with pytest.raises(FijiBridgeError, match=sentence) as error:
            load_model(path)
        assert path.name in str(error.value) and "\n" not in str(error.value)
    for change in (
        {"tensors": without_one},
        {"architecture": json.dumps({"features": [4, 8]})},
        {"architecture": "{"},
        {"noise": json.dumps({"size": 3})},
        *({"noise": json.dumps(constants | wrong)} for wrong in WRONG_CONSTANTS),
        {"architecture": json.dumps({"features": [4, 10**7], "head": [8]})},
    ):
        with pytest.raises(
            FijiBridgeError, match=r"changed\.safetensors is damaged or from another version"
        ) as error:
            load_model(rewritten(saved, **change))
        assert "\n" not in str(error.value)
    with pytest.raises(FijiBridgeError, match="not finite"):
        load_model(rewritten(saved, not_finite))
    for name, value in (("features", []), ("head", []), ("blind_radius", -1), ("neighbours", 0.5)):
        with pytest.raises(FijiBridgeError, match=f"{name} is .*give whole numbers from"):
            load_model(rewritten(saved, architecture=json.dumps(architecture | {name: value})))


def test_an_unwritable_model_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(FijiBridgeError, match=r"model\.safetensors"):
        some_model().save(tmp_path / "file" / "model.safetensors")


def test_each_model_that_ships_is_small_has_its_page_and_serves_any_camera():
    y, x = np.mgrid[:96, :96]
    spots = np.random.default_rng(1).uniform(5, 91, (12, 2))
    lights = {
        "confocal": 20 + 12 * np.sin(y / 9.0) * np.sin(x / 9.0),
        "single-molecule": 20
        + sum(400 / (2 * np.pi * 1.3**2) * np.exp(-((y - v) ** 2 + (x - u) ** 2) / 3.38) for v, u in spots),
    }
    shipped = shipped_models()
    assert shipped.keys() == lights.keys()
    for name, light in lights.items():
        assert shipped[name].stat().st_size < 10e6
        assert shipped[name].with_suffix(".md").is_file()
        model = load_model(name)
        assert model.camera is None
        raw = 300 + 4 * np.random.default_rng(0).poisson(light, (4, 96, 96))
        denoised = denoise(raw.astype(np.uint16), model).to_numpy()
        truth = 300 + 4 * light
        assert ((denoised - truth) ** 2).mean() < 0.1 * ((raw - truth) ** 2).mean()


def test_a_name_that_no_model_has_is_told_which_there_are():
    with pytest.raises(FijiBridgeError, match="confocal"):
        load_model("konfocal")


@pytest.mark.parametrize("engine", ["gaussian", "poisson-gaussian"])
def test_widths_of_priors_are_kept_also_in_the_dark(tmp_path, engine):
    noise = ENGINES[engine](1.0, 2.0, narrowing=((-0.5, 1.0), (3.0, 0.25)))
    Model(BlindSpotNetwork((2,), head=(3,)), noise, None).save(tmp_path / "model.safetensors")
    assert load_model(tmp_path / "model.safetensors").noise == noise


@pytest.mark.parametrize(
    "narrowing",
    [
        [[]],
        [[1]],
        [[1, 0.5, 3], [2, 0.5, 3]],
        [[[1, 2]]],
        [[1, 1e300]],
        [[3, 0.5], [1, 0.2]],
        [["1", "0.5"]],
        3,
    ],
)
def test_widths_that_no_priors_have_are_refused(tmp_path, monkeypatch, narrowing):
    model = Model(BlindSpotNetwork((2,), head=(3,)), ENGINES["gaussian"](1.0, 2.0), None)
    constants = model.noise.constants() | {"narrowing": narrowing}
    monkeypatch.setattr(type(model.noise), "constants", lambda _: constants)
    model.save(tmp_path / "model.safetensors")
    with pytest.raises(FijiBridgeError, match="damaged"):
        load_model(tmp_path / "model.safetensors")
