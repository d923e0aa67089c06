"""Images of molecules are those of ThunderSTORM's renderers, without Java."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile

import fiji_bridge as fb
from fiji_bridge.camera import Camera
from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.rendering import render
from fiji_bridge.simulation import simulate
from fiji_bridge.thunderstorm import generate
from fiji_bridge.thunderstorm.settings import AveragedShiftedHistograms, Visualization

DATA = Path(__file__).parent / "data" / "thunderstorm"
_spec = importlib.util.spec_from_file_location("make_references", DATA / "make_references.py")
made = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(made)

CAMERA = Camera.parse(made.CAMERA)
WHOLE = "imleft=-10 imtop=-10 imwidth=60 imheight=50"


def table(x, y, **columns):
    return pd.DataFrame({"x [nm]": np.asarray(x, float), "y [nm]": np.asarray(y, float), **columns})


def cloud(count=400, seed=0):
    """Molecules in and around a region of 32×24 pixels of 100 nm."""
    rng = np.random.default_rng(seed)
    return table(
        rng.uniform(-300, 3500, count),
        rng.uniform(-300, 2700, count),
        **{
            "z [nm]": rng.uniform(-500, 500, count),
            "uncertainty [nm]": rng.uniform(5, 60, count),
            "uncertainty_z [nm]": rng.uniform(10, 200, count),
        },
    )


@pytest.mark.parametrize("image", made.IMAGES)
def test_images_are_those_of_the_plugins_own_command(references, image):
    molecules = pd.read_csv(references / ("spatial_wlsq.csv" if image.endswith("3d") else "flat.csv"))
    found = render(molecules, f"{made.REGION} {made.IMAGES[image]}", camera=CAMERA)
    expected = tifffile.imread(references / f"{image}.tif")
    assert found.dtype == np.float32 and expected.max() > 0
    np.testing.assert_array_equal(found, expected)


RENDERERS = [
    "renderer=[Averaged shifted histograms] magnification=7.3 shifts=3",
    "renderer=[Averaged shifted histograms] magnification=2 threed=true zrange=-300:70:250 zshifts=3",
    "renderer=[Normalized Gaussian] magnification=6.7",
    "renderer=[Normalized Gaussian] magnification=4 dxforce=true dx=35",
    "renderer=[Normalized Gaussian] magnification=2.5 threed=true zrange=-250:90:300",
    "renderer=[Normalized Gaussian] magnification=3 threed=true zrange=-250:90:300 dzforce=true dz=40",
    "renderer=Histograms magnification=9",
    "renderer=Histograms magnification=4.4 threed=true zrange=-200:50:200",
    "renderer=[Scatter plot] magnification=5",
    "renderer=[Scatter plot] magnification=2.2 threed=true zrange=-200:50:200",
]


@pytest.mark.parametrize("options", RENDERERS)
def test_other_settings_and_molecules_at_the_edges_are_the_plugins_too(plugin, options):
    from fiji_bridge.thunderstorm import render as by_plugin

    # Of a number of pixels that is not whole the plugin draws the rest where the next row begins, or fails.
    region = "imleft=2 imtop=3 imwidth=30 imheight=20"
    ours, theirs = (
        draw(cloud(1500), f"{region} {options}", camera=CAMERA, seed=1) for draw in (render, by_plugin)
    )
    assert ours.dims == theirs.dims and ours.attrs == theirs.attrs
    assert float(theirs.max()) > 0
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)
    for axis in ours.dims:
        np.testing.assert_allclose(ours[axis], theirs[axis])


def test_jittered_histograms_have_the_statistics_of_the_plugins(plugin):
    from fiji_bridge.thunderstorm import render as by_plugin

    molecules = table(np.full(400, 1000.0), np.full(400, 1500.0), **{"uncertainty [nm]": np.full(400, 90.0)})
    options = f"renderer=Histograms avg=50 magnification=2 {WHOLE}"
    for draw in (render, by_plugin):
        image = draw(molecules, options, camera=CAMERA, seed=3).astype(float)
        total, x, y = (float((image * weight).sum()) for weight in (1, image.x, image.y))
        assert total == pytest.approx(400, abs=0.01)
        assert (x / total, y / total) == (pytest.approx(1000, abs=3), pytest.approx(1500, abs=3))
        spread = np.sqrt(float((image * (image.x - 1000) ** 2).sum()) / total)
        assert spread == pytest.approx(np.hypot(90, 50 / np.sqrt(12)), abs=2)  # and that of a pixel


def test_jitter_repeats_by_its_seed_and_is_forced_to_the_width_that_is_given():
    molecules = cloud()
    options = f"renderer=Histograms avg=20 magnification=4.0 {WHOLE}"
    one, same, other = (render(molecules, options, camera=CAMERA, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)
    assert float(one.sum()) == pytest.approx(len(molecules), rel=1e-5)
    dot = table([1000], [1000], **{"uncertainty [nm]": [500.0]})
    narrow = render(dot, f"{options} dxforce=true dx=1", camera=CAMERA)
    wide = render(dot, options, camera=CAMERA)
    assert float(narrow.max()) > 0.2 and int((narrow > 0).sum()) <= 4 < int((wide > 0).sum())


def test_every_molecule_weighs_one_or_as_often_as_histograms_are_shifted():
    for renderer, weight in (
        ("Histograms", 1),
        ("[Normalized Gaussian] dx=80", 1),
        ("[Averaged shifted histograms] shifts=3", 81),
        ("[Averaged shifted histograms] shifts=2 threed=true zrange=-900:100:900 zshifts=3", 144),
    ):
        image = render(cloud(), f"renderer={renderer} {WHOLE}", camera=CAMERA)
        assert float(image.sum(dtype=float)) == pytest.approx(400 * weight, rel=0.008), renderer


def test_bands_on_threads_change_no_pixel(monkeypatch):
    molecules = cloud(3000)
    for options in RENDERERS:
        images = []
        for threads in (1, 5):
            monkeypatch.setattr("numba.config.NUMBA_NUM_THREADS", threads)
            images.append(render(molecules, f"{made.REGION} {options}", camera=CAMERA))
        np.testing.assert_array_equal(*images)


def test_torch_keeps_its_number_of_threads():
    """Denoising afterwards with more threads than free cores takes a multiple of the time."""
    program = """
import pandas as pd, torch
from fiji_bridge import render
torch.set_num_threads(1)
molecules = pd.DataFrame({"x [nm]": [500.0, 900.0], "y [nm]": [700.0, 300.0]})
for renderer in ("Histograms", "[Normalized Gaussian] dx=80", "[Averaged shifted histograms]"):
    render(molecules, f"renderer={renderer}", camera="pixelsize=100.0")
print(torch.get_num_threads())
"""
    environment = {**os.environ, "NUMBA_NUM_THREADS": "3"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.stdout == "1\n", done.stderr


def test_the_image_says_where_its_pixels_lie():
    options = "imleft=2 imtop=3 imwidth=20 imheight=18 magnification=4 threed=true zrange=-100:50:100"
    image = render(cloud(), options, camera="pixelsize=100.0")
    assert image.dims == ("z", "y", "x") and image.shape == (4, 72, 80)
    assert image.attrs["pixel_size_nm"] == 25 and image.attrs["z_step_nm"] == 50
    assert [float(image[axis][0]) for axis in "xyz"] == [212.5, 312.5, -75.0]
    for renderer in ("Normalized Gaussian", "Averaged shifted histograms", "Scatter plot", "Histograms"):
        deep = f"renderer=[{renderer}] {options.replace('-100:50:100', '-500:100:500')} dz=20"
        one = render(table([700], [800], **{"z [nm]": [-50.0]}), deep, camera="pixelsize=100.0")
        assert float(one.z[one.sum(("y", "x")).to_numpy().argmax()]) == -50
    flat = render(cloud(), Visualization(renderer=AveragedShiftedHistograms()), camera=CAMERA, shape=(30, 40))
    assert flat.dims == ("y", "x") and flat.shape == (150, 200)


def test_without_a_region_the_image_is_that_of_the_stack_or_what_the_molecules_span():
    molecules = table([5, 1234], [5, 710])
    assert render(molecules, "magnification=1", camera=CAMERA).shape == (8, 13)
    molecules.attrs |= {"camera_setup": made.CAMERA, "stack_shape": (9, 20, 30)}
    assert render(molecules, "magnification=2").shape == (40, 60)


def test_molecules_without_a_position_are_left_out_and_without_an_uncertainty_have_the_usual():
    unknown = table([np.nan, 500], [10, 500], **{"uncertainty [nm]": [5.0, np.nan]})
    image = render(unknown, f"renderer=[Normalized Gaussian] dx=30 {WHOLE}", camera=CAMERA)
    usual = render(unknown[1:], f"renderer=[Normalized Gaussian] dx=30 dxforce=true {WHOLE}", camera=CAMERA)
    assert np.isfinite(image).all()
    np.testing.assert_array_equal(image, usual)


def test_a_molecule_in_a_part_of_a_pixel_at_the_edge_is_left_out():
    options = "renderer=Histograms magnification=1 imwidth=3.5 imheight=2.5"
    image = render(table([250, 320, 10], [50, 50, 220]), options, camera=CAMERA)
    assert image.to_numpy().tolist() == [[0, 0, 1], [0, 0, 0]]


def test_an_image_is_written_with_its_pixel_size(tmp_path):
    fb.write_localizations(cloud().assign(frame=1), tmp_path / "molecules.csv")
    image = render(
        tmp_path / "molecules.csv", f"magnification=5 {WHOLE}", camera=CAMERA, out=tmp_path / "image.tif"
    )
    back = fb.open_stack(tmp_path / "image.tif")
    np.testing.assert_array_equal(back[0], image)
    assert back.attrs["pixel_size_nm"] == pytest.approx(20)
    slices = render(cloud(), f"threed=true {WHOLE}", camera=CAMERA, out=tmp_path / "slices.tif")
    assert tifffile.imread(tmp_path / "slices.tif").shape == slices.shape


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("renderer=[Oil painting]", r"no renderer=\[Oil painting\]"),
        ("renderer=[No Renderer]", "draws nothing"),
        ("magnification=0", "magnification= must be"),
        ("shifts=0", "shifts= must be"),
        ("magnfication=5", "write magnification="),
        (
            "magnification=5000 imwidth=500 imheight=500",
            r"2\.5e\+06 × 2\.5e\+06 pixels, 2\.5e\+04 GB, more than 1\.6 GB; lower magnification=",
        ),
        ("magnification=1e300 imwidth=500 imheight=500", r"5e\+302 × 5e\+302 pixels, inf GB"),
        ("magnification=1e308 imwidth=500 imheight=500", r"inf × inf pixels, inf GB"),
        ("imwidth=1e300 imheight=1e300", "lower magnification="),
        (
            "threed=true zrange=0:1e-9:1 imwidth=5 imheight=5",
            r"25 × 25 × 1e\+09 pixels, 2\.5e\+03 GB.*zrange=",
        ),
        ("magnification=0.01 imwidth=5 imheight=5", r"0\.05 × 0\.05 pixels would be empty; raise magnif"),
        ("magnification=1e-320 imwidth=5 imheight=5", "would be empty"),
        ("imwidth=20", "both imwidth= and imheight="),
        ("imheight=20", "both imwidth= and imheight="),
        ("threed=true zrange=100:50:0", "zrange= must be"),
    ],
)
def test_what_cannot_be_rendered_is_refused_in_a_sentence(options, said):
    with pytest.raises(FijiBridgeError, match=said) as error:
        render(table([1], [1]), options, camera=CAMERA)
    assert "\n" not in str(error.value) and len(str(error.value)) < 250


def test_molecules_far_off_are_told_by_the_size_of_their_image():
    with pytest.raises(FijiBridgeError, match=r"5e\+1\d × 5 pixels.*imleft="):
        render(table([1, 1e13], [1, 1]), camera=CAMERA)


@pytest.mark.parametrize("seed", [-1, 2.5, "one", None, 2**63])
def test_a_seed_is_a_whole_number_and_not_negative(seed):
    for options in ("renderer=Histograms avg=3", ""):
        with pytest.raises(FijiBridgeError, match=f"seed must be 0 or a positive whole number, not {seed!r}"):
            render(cloud(), f"{options} {WHOLE}", camera=CAMERA, seed=seed)
    with pytest.raises(FijiBridgeError, match="seed must be 0 or a positive whole number"):
        generate("", camera=CAMERA, seed=seed)
    with pytest.raises(FijiBridgeError, match="seed must be 0 or a positive whole number"):
        simulate(seed=seed)


def test_uncertainties_by_their_later_name_are_drawn():
    later = cloud().rename(columns={"uncertainty [nm]": "uncertainty_xy [nm]"})
    options = f"renderer=[Normalized Gaussian] {WHOLE}"
    np.testing.assert_array_equal(*(render(rows, options, camera=CAMERA) for rows in (later, cloud())))


def test_what_lacks_is_named():
    with pytest.raises(FijiBridgeError, match=r"y \[nm\]"):
        render(pd.DataFrame({"x [nm]": [1.0]}), camera=CAMERA)
    with pytest.raises(FijiBridgeError, match="pixel size"):
        render(table([1], [1]))
    with pytest.raises(FijiBridgeError, match="imwidth="):
        render(table([], []), camera=CAMERA)
    assert float(render(table([], []), "imwidth=4 imheight=3", camera=CAMERA).sum()) == 0
