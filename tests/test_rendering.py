import math

import numpy as np
import pandas as pd
import pytest

from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.rendering import render


def table(x, y, **columns):
    return pd.DataFrame({"x [nm]": np.asarray(x, float), "y [nm]": np.asarray(y, float), **columns})


def cloud(count=400, seed=0):
    rng = np.random.default_rng(seed)
    return table(
        rng.uniform(0, 2000, count),
        rng.uniform(0, 1200, count),
        **{"uncertainty [nm]": rng.uniform(5, 30, count)},
    )


def test_a_histogram_counts_the_molecules_of_each_pixel():
    image = render(table([5, 15, 16, 39.9], [5, 25, 25, 0]), method="histogram", pixel_size_nm=10)
    assert image.dims == ("y", "x")
    assert image.to_numpy().tolist() == [[1, 0, 0, 1], [0, 0, 0, 0], [0, 2, 0, 0]]


def test_the_image_is_labelled_with_its_pixel_size_and_place():
    image = render(cloud(), pixel_size_nm=25, extent_nm=(100, 1110, 200, 700))
    assert image.shape == (20, 41)
    assert image.attrs["pixel_size_nm"] == 25
    assert image.attrs["extent_nm"] == (100, 1125, 200, 700)
    assert (float(image.x[0]), float(image.y[0])) == (112.5, 212.5)


def test_averaged_shifted_histograms_are_the_average_of_shifted_histograms():
    molecules, shifts, pixel = cloud(), 3, 50
    expected = np.zeros((40, 60))
    for down in range(shifts):
        for right in range(shifts):
            edges = [
                np.arange(start - shifts * pixel, 4000, shifts * pixel)
                for start in (pixel * down, pixel * right)
            ]
            counts = np.histogram2d(molecules["y [nm]"], molecules["x [nm]"], edges)[0] / shifts**2
            fine = np.kron(counts, np.ones((shifts, shifts)))[shifts - down :, shifts - right :]
            expected += fine[:40, :60] / shifts**2
    image = render(molecules, pixel_size_nm=pixel, shifts=shifts, extent_nm=(0, 3000, 0, 2000))
    assert np.allclose(image, expected, atol=1e-6)


@pytest.mark.parametrize("method", ["histogram", "ash", "gaussian"])
def test_every_molecule_weighs_one(method):
    image = render(cloud(), method=method, pixel_size_nm=20, extent_nm=(-200, 2200, -200, 1400))
    assert float(image.sum()) == pytest.approx(400, rel=2e-4)


def test_a_gaussian_has_the_place_and_the_width_of_its_molecule():
    image = render(
        table([507], [311], **{"uncertainty [nm]": [40]}),
        method="gaussian",
        pixel_size_nm=5,
        extent_nm=(0, 1000, 0, 600),
    ).astype(float)
    x = float((image * image.x).sum() / image.sum())
    assert x == pytest.approx(507, abs=0.1)
    assert float((image * image.y).sum() / image.sum()) == pytest.approx(311, abs=0.1)
    variance = float((image * (image.x - x) ** 2).sum() / image.sum())
    assert math.sqrt(variance) == pytest.approx(40, rel=0.005)
    centre = image.sel(x=507, y=311, method="nearest")
    assert float(centre) == pytest.approx(25 / (2 * math.pi * 40**2), rel=0.01)


def test_one_width_for_all_needs_no_uncertainties():
    one = render(table([100], [100]), method="gaussian", sigma_nm=15, extent_nm=(0, 200, 0, 200))
    same = render(
        table([100], [100], **{"uncertainty [nm]": [15]}), method="gaussian", extent_nm=(0, 200, 0, 200)
    )
    assert np.array_equal(one, same)


def test_molecules_outside_are_left_out_and_those_at_the_edge_are_cut():
    molecules = table([-50, 100, 350], [100, 100, 100])
    assert float(render(molecules, method="histogram", extent_nm=(0, 300, 0, 200)).sum()) == 1
    half = render(
        table([0], [100]), method="gaussian", sigma_nm=10, extent_nm=(0, 200, 0, 200), pixel_size_nm=5
    )
    assert float(half.sum()) == pytest.approx(0.5, abs=1e-3)


def test_batches_of_gaussians_do_not_change_the_image(monkeypatch):
    whole = render(cloud(), method="gaussian", pixel_size_nm=10)
    monkeypatch.setattr("fiji_bridge.rendering.BATCH", 1000)
    assert np.allclose(whole, render(cloud(), method="gaussian", pixel_size_nm=10), atol=1e-7)


def test_a_molecule_whose_uncertainty_is_unknown_is_drawn_as_wide_as_the_widest():
    molecules = table([100, 300], [100, 100], **{"uncertainty [nm]": [12, math.nan]})
    image = render(molecules, method="gaussian", extent_nm=(0, 400, 0, 200), pixel_size_nm=10)
    assert np.allclose(image[:, :20], image[:, 20:], atol=1e-7)


def test_an_empty_table_is_a_dark_image_and_unknown_positions_are_left_out():
    assert float(render(table([], []), extent_nm=(0, 100, 0, 60)).sum()) == 0
    assert float(render(table([math.nan, 50], [10, 10]), method="histogram").sum()) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "oil"}, "ash, histogram, gaussian"),
        ({"pixel_size_nm": 0}, "pixel_size_nm"),
        ({"pixel_size_nm": 1e-3, "extent_nm": (0, 1e5, 0, 1e5)}, "too large"),
        ({"shifts": 0}, "shifts"),
        ({"extent_nm": (10, 0, 0, 10)}, "extent_nm"),
        ({"method": "gaussian"}, "uncertainty"),
        ({"method": "gaussian", "sigma_nm": -1}, "sigma_nm"),
    ],
)
def test_what_cannot_be_rendered_is_refused_in_a_sentence(options, said):
    with pytest.raises(FijiBridgeError, match=said):
        render(table([1], [1]), **options)


def test_a_table_without_positions_is_refused():
    with pytest.raises(FijiBridgeError, match=r"y \[nm\]"):
        render(pd.DataFrame({"x [nm]": [1.0]}))
