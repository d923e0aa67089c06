"""What the torch engine has beyond the plugin is reached in Python and on the command line."""

import contextlib
import importlib.util
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from scipy.special import erf

import fiji_bridge as fb
from fiji_bridge.cli import main
from fiji_bridge.engines import UNCERTAINTIES
from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.imagej.commands import BEYOND, LOCALIZE
from fiji_bridge.localizers import TORCH_SETTINGS
from fiji_bridge.simulation import record
from fiji_bridge.torch_localizer import localize
from fiji_bridge.torch_localizer.threads import threads_for_loops

DATA = Path(__file__).parent / "data" / "thunderstorm"
_spec = importlib.util.spec_from_file_location("make_references", DATA / "make_references.py")
assert _spec is not None and _spec.loader is not None
made: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(made)

CAMERA = "offset=100.0 photons2adu=1.0 isemgain=false pixelsize=100.0"
MLE = "method=[Maximum likelihood] sigma=1.2"
ELLIPTICAL = "estimator=[PSF: Elliptical Gaussian (3D astigmatism)]"


@pytest.fixture(scope="module")
def movie(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frames of one molecule each at (19.3, 20.6) px, on light that rises to the right."""
    edges = np.arange(41)
    part = [np.diff(erf((edges - centre) / (1.2 * np.sqrt(2)))) / 2 for centre in (20.6, 19.3)]
    light = 4 + 0.3 * np.arange(40) * np.ones((40, 1))
    frames = np.random.default_rng(0).poisson(600 * np.outer(*part) + light, (12, 40, 40)) + 100
    folder = tmp_path_factory.mktemp("movie")
    tifffile.imwrite(folder / "movie.tif", frames.astype(np.uint16), photometric="minisblack")
    np.save(folder / "light.npy", light)
    tifffile.imwrite(folder / "variance.tif", np.full((40, 40), 2.0, np.float32))
    np.save(folder / "small.npy", light[:3])
    return folder


def told(*arguments: object) -> tuple[int, dict[str, Any]]:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
        code = main([*map(str, arguments), "--json"])
    return code, json.loads(said.getvalue().strip().splitlines()[-1])


def test_every_setting_gives_the_same_table_from_python_and_the_command_line(movie: Path) -> None:
    out = movie / "out.csv"
    settings = {
        "false_alarm_rate": 1e-6,
        "uncertainty": "crlb",
        "background": movie / "light.npy",
        "variance": movie / "variance.tif",
    }
    flags = [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", value)]
    code, found = told(
        *("localize", movie / "movie.tif", "--out", out, "--camera", CAMERA, "--options", MLE),
        *(*flags, "--known-sigma", "--strength", "--fit-stack", movie / "movie.tif"),
    )
    assert code == 0, found
    assert found["engine"] == "torch" and found["localizations"] == 12
    table = fb.localize(
        movie / "movie.tif", camera=CAMERA, options=MLE, known_sigma=True, strength=True, **settings
    )
    pd.testing.assert_frame_equal(fb.read_localizations(out), table, check_dtype=False)
    assert {"uncertainty_x [nm]", "uncertainty_intensity [photon]", "strength"} <= set(table)
    assert np.allclose(table["sigma [nm]"], 120)
    # The light is in the background, so nothing is left for the offset.
    assert abs(table["offset [photon]"].mean()) < 1


def test_every_setting_has_the_same_name_in_the_menu(movie: Path) -> None:
    settings = {"false_alarm_rate": 1e-6, "uncertainty": "crlb", "known_sigma": True}
    settings |= {"background": movie / "light.npy", "variance": movie / "variance.tif"}
    given = " ".join(f"{name}={str(value).lower()}" for name, value in settings.items())
    found = LOCALIZE.run(f"input={movie}/movie.tif camera=[{CAMERA}] options=[{MLE}] render=0 {given}")
    table = fb.localize(movie / "movie.tif", camera=CAMERA, options=MLE, **settings)
    pd.testing.assert_frame_equal(found.tables["localizations movie.tif"], table)
    assert set(TORCH_SETTINGS) == set(settings) == {parameter.key for parameter in BEYOND}


def test_the_menu_fits_on_other_frames_than_those_it_detects_on(movie: Path) -> None:
    frames = tifffile.imread(movie / "movie.tif")
    tifffile.imwrite(movie / "brighter.tif", 2 * (frames - 100) + 100, photometric="minisblack")
    tifffile.imwrite(movie / "short.tif", frames[:5], photometric="minisblack")
    line = f"input={movie}/movie.tif camera=[{CAMERA}] options=[{MLE}] localizer=torch render=0"
    found = LOCALIZE.run(f"{line} fit_stack=[{movie}/brighter.tif]").tables["localizations movie.tif"]
    settings: dict[str, Any] = {"camera": CAMERA, "options": MLE, "engine": "torch"}
    table = fb.localize(movie / "movie.tif", fit_stack=movie / "brighter.tif", **settings)
    pd.testing.assert_frame_equal(found, table)
    own = fb.localize(movie / "movie.tif", **settings)
    assert found["intensity [photon]"].median() > 1.8 * own["intensity [photon]"].median()
    for name, said in (("short.tif", "same frames"), ("none.tif", r"none\.tif")):
        with pytest.raises(FijiBridgeError, match=said):
            LOCALIZE.run(f"{line} fit_stack=[{movie}/{name}]")


def test_settings_of_the_menu_at_their_defaults_choose_no_engine(
    movie: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def localize(stack: Any, **options: Any) -> None:
        given.update(options)
        raise FijiBridgeError("enough")

    monkeypatch.setattr(fb, "localize", localize)
    with pytest.raises(FijiBridgeError, match="enough"):
        LOCALIZE.run(LOCALIZE.options({"input": f"{movie}/movie.tif"}))
    assert given["engine"] is None and not given.keys() & set(TORCH_SETTINGS)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("false_alarm_rate=often", "must be a number such as 1e-4"),
        ("false_alarm_rate=0.9", "between 0 and 0.5"),
        ("false_alarm_rate=1e-5 localizer=thunderstorm", "Only the torch engine has false_alarm_rate"),
        ("uncertainty=guess", "takes thompson or mortensen or crlb"),
        ("known_sigma=maybe", "takes false or true"),
        ("background=none.tif", "none.tif"),
    ],
)
def test_bad_settings_of_the_menu_are_told_in_one_sentence(movie: Path, options: str, said: str) -> None:
    with pytest.raises(FijiBridgeError, match=said) as error:
        LOCALIZE.run(f"input={movie}/movie.tif camera=[{CAMERA}] options=[{MLE}] {options}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("rate", [np.float32(1e-5), np.float64(1e-5), 1e-5])
def test_a_rate_may_be_a_number_of_numpys(movie: Path, rate: Any) -> None:
    assert len(fb.localize(movie / "movie.tif", camera=CAMERA, options=MLE, false_alarm_rate=rate)) == 12


def test_a_background_brighter_than_the_frames_is_refused(movie: Path, tmp_path: Path) -> None:
    """Not in a few of them, such as those before the laser is on."""
    light = np.load(movie / "light.npy")
    known = {"camera": CAMERA, "options": MLE}
    for background in (light + 100, 2 * light, np.broadcast_to(light + 100, (12, 40, 40))):
        with pytest.raises(FijiBridgeError, match=r"photons a pixel, but .*movie\.tif only 10\.\d in all"):
            fb.localize(movie / "movie.tif", background=background, **known)
    frames = tifffile.imread(movie / "movie.tif")
    frames[:5] = 100
    for background in (light / 2, light[None] * (frames > 100).any((1, 2))[:, None, None]):
        assert len(fb.localize(frames, background=background, **known)) >= 7
    code, found = told(
        *("localize", movie / "movie.tif", "--out", tmp_path / "a.csv", "--camera", CAMERA, "--options", MLE),
        *("--background", movie / "movie.tif"),
    )
    assert code == 1 and "give it in photons, without the camera's offset" in found["error"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("device", "said"), [("meta", "'meta' cannot be used"), ("abacus", "'abacus' cannot be used")]
)
def test_a_device_that_holds_no_numbers_is_refused(movie: Path, device: str, said: str) -> None:
    with pytest.raises(FijiBridgeError, match=said) as error:
        fb.localize(movie / "movie.tif", camera=CAMERA, engine="torch", device=device)
    assert "\n" not in str(error.value)


def test_a_rate_of_false_alarms_is_what_an_empty_movie_shows(movie: Path) -> None:
    empty = (np.random.default_rng(1).poisson(8, (20, 128, 128)) + 100).astype(np.uint16)
    with_rate = [
        len(fb.localize(empty, camera=CAMERA, options=MLE, false_alarm_rate=rate)) for rate in (1e-3, 1e-5)
    ]
    # Of neighbouring pixels above the threshold only the highest counts.
    assert 0.3 * 1e-3 * empty.size < with_rate[0] < 1.2 * 1e-3 * empty.size
    assert with_rate[1] < 15


@pytest.mark.parametrize("formula", UNCERTAINTIES)
def test_each_formula_of_the_uncertainty_is_about_the_spread_of_the_positions(
    movie: Path, formula: str
) -> None:
    table = fb.localize(movie / "movie.tif", camera=CAMERA, options=MLE, uncertainty=formula)
    bright = table[table["intensity [photon]"] > 300]
    spread = np.sqrt(bright["x [nm]"].var() / 2 + bright["y [nm]"].var() / 2)
    assert 0.5 < float(bright["uncertainty [nm]"].median()) / spread < 2


@pytest.mark.parametrize("fit", ["wlsq", "lsq", "mle"])
def test_positions_in_space_by_the_plugins_own_calibration_are_the_plugins(
    references: Path, fit: str
) -> None:
    options = f"{made.ANALYSIS} {ELLIPTICAL} sigma=1.6 fitradius=5 {made.FITS_3D[fit]}"
    table = fb.localize(
        references / "spatial.tif",
        camera=made.CAMERA,
        options=f"{options} calibrationpath=[{references}/lens_polynomial.yaml]",
        engine="torch",
    )
    theirs = pd.read_csv(references / f"spatial_{fit}.csv")
    assert list(table)[1:] == list(theirs) and len(table) == len(theirs)
    # The plugin's maximum likelihood stops a little early, and its squares within the same tolerance of the
    # minimum elsewhere, as it fits the height and not the intensity.
    tolerance = 0.2 if fit == "mle" else 0.03
    for name in ("x [nm]", "y [nm]", "z [nm]", "sigma1 [nm]", "sigma2 [nm]"):
        np.testing.assert_allclose(table[name], theirs[name], atol=tolerance, err_msg=name)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--false-alarm-rate", 0.7], "between 0 and 0.5"),
        (["--false-alarm-rate", 1e-4, "--engine", "thunderstorm"], "use --engine torch"),
        (
            ["--false-alarm-rate", 1e-4, "--options", "estimator=[Radial symmetry]"],
            "needs the molecules' sigma",
        ),
        (["--known-sigma", "--options", "estimator=[No estimator]"], "symmetric Gaussian"),
        (["--uncertainty", "crlb", "--options", "estimator=[Radial symmetry]"], "fits of a Gaussian"),
        (["--background", "light.npy", "--options", "estimator=[Radial symmetry]"], "fits of a Gaussian"),
        (["--background", "small.npy"], "shape"),
        (["--background", "none.npy"], "Cannot read background"),
        (["--variance", "none.tif"], "Cannot open"),
        (["--variance", "small.npy", "--false-alarm-rate", 1e-4], "shape"),
        (["--options", ELLIPTICAL, "--engine", "torch"], "needs calibrationpath="),
        (
            ["--options", f"{ELLIPTICAL} calibrationpath=none.yaml", "--engine", "torch"],
            "Cannot read the calib",
        ),
        (["--device", "abacus", "--engine", "torch"], "device 'abacus' cannot be used"),
        (["--fit-stack", "light.npy", "--engine", "torch"], "light.npy"),
    ],
)
def test_bad_settings_are_told_in_one_sentence(
    movie: Path, monkeypatch: pytest.MonkeyPatch, flags: list[object], said: str
) -> None:
    monkeypatch.chdir(movie)
    code, found = told("localize", "movie.tif", "--out", "bad.csv", "--camera", CAMERA, *flags)
    assert code == 1 and said in found["error"] and "\n" not in found["error"]
    assert not (movie / "bad.csv").exists()


def test_unknown_settings_are_told_in_one_sentence(movie: Path) -> None:
    for settings, said in (
        ({"sigma": 3}, "no setting sigma"),
        ({"false_alarm_rate": "often"}, "a number such as"),
        ({"uncertainty": "guess"}, "choose one of thompson, mortensen, crlb"),
        ({"background": np.full((40, 40), np.nan)}, "zero or a positive number"),
        ({"variance": np.ones((12, 40, 40))}, "one map"),
        ({"background": np.full((40, 40), "dark")}, "background must be an array of numbers"),
        ({"background": [[1.0], [1.0, 2.0]]}, "background must be an array of numbers"),
        ({"variance": np.full((40, 40), 1j), "false_alarm_rate": 1e-4}, "variance must be an array of num"),
        ({"fit_stack": np.full((12, 40, 40), "1")}, "pixels of the type"),
    ):
        with pytest.raises(FijiBridgeError, match=said):
            fb.localize(movie / "movie.tif", camera=CAMERA, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("frames", "said"),
    [
        (np.full((3, 40, 40), "1"), "pixels of the type str"),
        (np.full((3, 40, 40), None), "pixels of the type object"),
        ([["dark", "light"], ["light", "dark"]], "pixels of the type str"),
        ([np.zeros((40, 40)), np.zeros((40, 41))], "different sizes"),
        (np.zeros((3, 40, 40), complex), "pixels of the type complex"),
        (None, "dimensions"),
    ],
)
def test_what_is_no_frames_of_numbers_is_told_in_one_sentence(frames: Any, said: str) -> None:
    for find in (fb.localize, localize):
        with pytest.raises(FijiBridgeError, match=said) as error:
            find(frames, camera=fb.Camera.parse(CAMERA))
        assert "\n" not in str(error.value)


# Tables on the command line


def test_a_table_goes_through_every_command(movie: Path, references: Path) -> None:
    camera = ("--camera", made.CAMERA)
    for command, out, options in (
        ("postprocess", "merged.csv", ["--options", made.STEPS["merge"]]),
        ("drift", "drift.csv", ["--options", "action=drift method=[Cross correlation] steps=4"]),
        ("render", "image.tif", ["--options", f"{made.REGION} {made.IMAGES['gauss']}"]),
        ("export", "out.hdf5", []),
        ("export", "later.csv", ["--format", "thunderstorm-1.4"]),
    ):
        code, found = told(command, references / "flat.csv", "--out", movie / out, *options, *camera)
        assert code == 0, found
        assert found["out"] == str(movie / out)
    np.testing.assert_array_equal(
        tifffile.imread(movie / "image.tif"), tifffile.imread(references / "gauss.tif")
    )
    merged = fb.read_localizations(movie / "merged.csv")
    assert len(merged) == len(pd.read_csv(references / "flat_merge.csv"))
    assert list(pd.read_csv(movie / "drift.csv")) == ["frame", "x [nm]", "y [nm]"]
    flat = fb.read_localizations(references / "flat.csv")
    back = fb.read_localizations(movie / "out.hdf5")
    np.testing.assert_allclose(back["x [nm]"], flat["x [nm]"], rtol=1e-6)
    assert "uncertainty_xy" in (movie / "later.csv").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["postprocess", "flat.csv", "--out", "flat.csv", "--options", "action=merge"],
            "is the input itself",
        ),
        (["postprocess", "flat.csv", "--out", "a.csv"], "Choose action="),
        (["postprocess", "none.csv", "--out", "a.csv", "--options", "action=merge"], "none.csv"),
        (["drift", "flat.csv", "--out", "a.csv", "--options", "action=merge"], "finds no drift"),
        (["render", "flat.csv", "--out", "a.tif"], "pixelsize="),
        (["render", "flat.csv", "--out", "a.png", "--camera", CAMERA], "a.png"),
        (["render", "flat.csv", "--out", "a.tif", "--camera", CAMERA, "--seed", -1], "seed must be 0"),
        (["export", "flat.csv", "--out", "a.hdf5"], "pixelsize="),
        (["export", "flat.csv", "--out", "a.xml"], "names no format"),
    ],
)
def test_bad_tables_and_options_are_told_in_one_sentence(
    references: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    monkeypatch.chdir(references)
    code, found = told(*words)
    assert code == 1 and said in found["error"] and "\n" not in found["error"]
    assert not any(Path(name).exists() for name in ("a.csv", "a.tif", "a.hdf5", "a.xml"))


def test_a_known_sigma_is_one_that_the_options_name():
    frames = np.random.default_rng(0).poisson(20, (2, 32, 32)).astype(np.float64)
    camera = fb.Camera(offset=0.0, photons_per_adu=1.0, pixel_size_nm=100.0)
    with pytest.raises(FijiBridgeError, match="add sigma="):
        fb.localize(frames, camera=camera, known_sigma=True)
    fb.localize(frames, camera=camera, known_sigma=True, options="sigma=1.3")


def test_outputs_do_not_replace_what_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    camera = "offset=0.0 photons2adu=1.0 isemgain=false pixelsize=100.0"
    rng = np.random.default_rng(0)
    tifffile.imwrite("movie.tif", rng.poisson(20, (4, 32, 32)).astype(np.uint16), photometric="minisblack")
    tifffile.imwrite("fit.tif", rng.poisson(20, (4, 32, 32)).astype(np.uint16), photometric="minisblack")
    np.save("map.npy", np.full((32, 32), 1.0))
    table = pd.DataFrame({"frame": [1, 2], "x [nm]": [500.0, 600.0], "y [nm]": [500.0, 600.0]})
    fb.write_localizations(table, "a.csv")
    before = {name: Path(name).read_bytes() for name in ("movie.tif", "fit.tif", "map.npy", "a.csv")}
    drift = "action=drift method=[Cross correlation] steps=2 save=true path="
    for line in (
        ["localize", "movie.tif", "--camera", camera, "--fit-stack", "fit.tif", "--out", "fit.tif"],
        ["localize", "movie.tif", "--camera", camera, "--variance", "map.npy", "--out", "map.npy"],
        ["localize", "movie.tif", "--engine", "thunderstorm", "--device", "cpu", "--out", "b.csv"],
        ["drift", "a.csv", "--camera", camera, "--options", f"{drift}a.csv", "--out", "d.csv"],
        ["drift", "a.csv", "--camera", camera, "--options", f"{drift}d.csv", "--out", "d.csv"],
        ["postprocess", "a.csv", "--camera", camera, "--options", f"{drift}a.csv", "--out", "d.csv"],
        ["postprocess", "a.csv", "--options", "action=merge dist=20", "--out", "d.hdf5"],
        ["export", "a.csv", "--out", "filepath=a.csv x=false"],
    ):
        assert main(line) == 1, line
        for name, content in before.items():
            assert Path(name).read_bytes() == content, line
    assert sorted(path.name for path in Path().iterdir()) == sorted(before)
    assert main(["export", "a.csv", "--out", "filepath=a.csv"]) == 0
    assert Path("filepath=a.csv").is_file() and Path("a.csv").read_bytes() == before["a.csv"]


@pytest.mark.parametrize("variance", [0.0, 25.0])
def test_known_read_noise_below_the_offset_biases_neither_light_nor_uncertainty(variance):
    rng = np.random.default_rng(3)
    side, middles = 128, np.arange(8, 128, 16)
    y, x = (
        place.ravel() + rng.uniform(-0.5, 0.5, 64) for place in np.meshgrid(middles, middles, indexing="ij")
    )
    edges = np.arange(side + 1)
    across, down = (np.diff(erf((edges - place[:, None]) / (1.3 * 2**0.5)), axis=1) / 2 for place in (x, y))
    light = 5 + 1500 * np.einsum("ky,kx->yx", down, across)
    frames = rng.poisson(light, (12, side, side)) + rng.normal(0, variance**0.5, (12, side, side)) + 100
    known = {"variance": np.full((side, side), variance)} if variance else {}
    options = "method=[Maximum likelihood] sigma=1.3 fitradius=5"
    camera = fb.Camera(100.0, 1.0, pixel_size_nm=100.0)
    table = fb.localize(
        frames, camera=camera, options=options, uncertainty="crlb", false_alarm_rate=1e-6, **known
    )
    assert len(table) == pytest.approx(12 * 64, abs=2)
    assert table["offset [photon]"].median() == pytest.approx(5, abs=0.3)
    found = table["x [nm]"].to_numpy() / 100
    nearest = np.hypot(found[:, None] - x, table["y [nm]"].to_numpy()[:, None] / 100 - y).argmin(1)
    error = 100 * (found - x[nearest])
    z = (error / table["uncertainty_x [nm]"]).to_numpy()
    assert np.std(z[np.abs(error) < 100]) == pytest.approx(1, abs=0.08)


@pytest.mark.parametrize(
    "camera",
    ["", "isemgain=true gainem=100.0", "readnoise=10.0", "isemgain=true gainem=50.0 readnoise=100.0"],
)
def test_the_rate_of_false_alarms_holds_behind_every_camera(camera):
    known = fb.Camera.parse(f"offset=1000.0 photons2adu=2.0 pixelsize=100.0 {camera}")
    light = np.full((12, 192, 192), 20.0)
    empty = record(light, known, np.random.default_rng(1))
    table = fb.localize(empty, camera=known, options="sigma=1.3", false_alarm_rate=1e-3)
    assert 1e-4 < len(table) / empty.size < 2e-3


def test_calls_that_overlap_give_torch_its_threads_back():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        first, second = threads_for_loops(), threads_for_loops()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        second.__exit__(None, None, None)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_no_background_is_not_too_bright_where_the_offset_is_a_little_high():
    raw = np.random.default_rng(0).poisson(3, (2, 32, 32)).astype(np.uint16) + 98
    camera = fb.Camera(offset=104.0, photons_per_adu=1.0, pixel_size_nm=100.0)
    localize(raw, camera=camera, background=np.zeros((32, 32)))


@pytest.mark.parametrize("given", ["2500:500", "-5:100"])
def test_a_range_of_intensities_goes_upwards_from_no_less_than_0(given):
    several = f"mfaenabled=true fixed_intensity=true expected_intensity={given}"
    options = f"estimator=[PSF: Integrated Gaussian] {several}"
    camera = fb.Camera(offset=100.0, photons_per_adu=1.0, pixel_size_nm=100.0)
    with pytest.raises(FijiBridgeError, match=f"expected_intensity.*{given.split(':')[0]}"):
        localize(np.full((1, 32, 32), 100, np.uint16), camera=camera, options=options)


def test_nor_do_they_in_python(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = {"camera": CAMERA, "engine": "torch"}
    rng = np.random.default_rng(0)
    tifffile.imwrite("movie.tif", rng.poisson(120, (4, 32, 32)).astype(np.uint16), photometric="minisblack")
    np.save("map.npy", np.full((32, 32), 1.0))
    table = pd.DataFrame({"frame": [1, 2], "x [nm]": [500.0, 600.0], "y [nm]": [500.0, 600.0]})
    fb.write_localizations(table, "a.csv")
    before = {name: Path(name).read_bytes() for name in ("movie.tif", "map.npy", "a.csv")}
    drift = "action=drift method=[Cross correlation] steps=2"
    for call in (
        lambda: fb.localize("movie.tif", out="movie.tif", **settings),
        lambda: fb.localize("movie.tif", background="map.npy", out="map.npy", **settings),
        lambda: fb.localize(np.ones((4, 32, 32)) + 100, fit_stack="movie.tif", out="movie.tif", **settings),
        lambda: fb.drift("a.csv", drift, camera=CAMERA, out="a.csv"),
        lambda: fb.drift("a.csv", f"{drift} save=true path=a.csv", camera=CAMERA),
        lambda: fb.postprocess("a.csv", f"{drift} save=true path=a.csv", camera=CAMERA),
        lambda: fb.postprocess("a.csv", "action=merge dist=20", out="a.csv"),
        lambda: fb.export("a.csv", "a.csv", format="smap"),
        lambda: fb.export("a.csv", "filepath=a.csv fileformat=[CSV (comma separated)]"),
    ):
        with pytest.raises(FijiBridgeError, match="another file"):
            call()
        assert {path.name: path.read_bytes() for path in Path().iterdir()} == before
    fb.export("a.csv", "b.csv", format="smap")


def test_a_fitted_stack_is_checked_against_the_camera(movie):
    frames = fb.open_stack(movie / "movie.tif").to_numpy()
    with pytest.raises(FijiBridgeError, match="offset"):
        fb.localize(frames, camera=CAMERA, engine="torch", fit_stack=frames - 100)


def test_doubts_about_an_estimated_camera_are_told(tmp_path):
    rng = np.random.default_rng(0)
    flat = rng.poisson(20, (6, 48, 48)).astype(np.uint16) + np.uint16(100)
    tifffile.imwrite(tmp_path / "flat.tif", flat, photometric="minisblack")
    words = ["localize", tmp_path / "flat.tif", "--out", tmp_path / "o.csv", "--engine", "torch"]
    code, found = told(*words, "--pixel-size", 100)
    assert code == 0 and found["warnings"]
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
        main([*map(str, words), "--pixel-size", "100"])
    assert found["warnings"][0] in said.getvalue()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"uncertainty": ["crlb"]}, "no uncertainty"),
        ({"camera": {"offset": 1}}, "give a Camera"),
        ({"pixel_size_nm": 0}, "positive number of nanometres"),
        ({"options": "threshold=" + 600 * "(" + "1" + 600 * ")"}, "too long or too deep"),
        ({"options": "threshold=" + 150 * "(" + "1" + 150 * ")"}, "too long or too deep"),
    ],
)
def test_what_is_no_setting_is_refused_in_a_sentence(movie, wrong, said):
    with pytest.raises(FijiBridgeError, match=said):
        fb.localize(movie / "movie.tif", **{"camera": CAMERA, "engine": "torch"} | wrong)


def test_a_known_sigma_may_be_written_in_capitals(movie):
    settings = {"camera": CAMERA, "engine": "torch", "known_sigma": True}
    tables = [
        fb.localize(movie / "movie.tif", options=f"{key}=1.3", **settings) for key in ("sigma", "Sigma")
    ]
    pd.testing.assert_frame_equal(*tables)
