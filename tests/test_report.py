"""The report: one page that needs nothing from outside itself and shows what was found."""

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from fiji_bridge.comparison import Comparison
from fiji_bridge.comparison.sweep import FACTORS
from fiji_bridge.comparison.verdict import WAYS
from fiji_bridge.files import jsonable
from fiji_bridge.report import draw, images, write_report

SECTIONS = ("frames", "detections", "truth", "histograms", "rendered", "camera", "training", "repeat")
PIXEL = 100.0


def table_of(rng, molecules=300, frames=10, side=48):
    position = rng.uniform(2, side - 2, (molecules, 2)) * PIXEL
    return pd.DataFrame(
        {
            "id": range(1, molecules + 1),
            "frame": rng.integers(1, frames + 1, molecules),
            "x [nm]": position[:, 0],
            "y [nm]": position[:, 1],
            "sigma [nm]": rng.normal(130, 15, molecules),
            "intensity [photon]": rng.gamma(5, 150, molecules),
            "uncertainty [nm]": rng.gamma(8, 1.2, molecules),
        }
    )


def evaluation(jaccard):
    return {
        **{"tp": 200, "fp": 30, "fn": 60, "jaccard": jaccard, "precision": 0.9, "recall": 0.8, "f1": 0.85},
        **{"mean_distance_nm": 9.1, "rmse_nm": 11.2},
    }


@pytest.fixture
def comparison(tmp_path):
    return made_up(tmp_path)


def made_up(folder):
    """A comparison as `compare` leaves it, with made-up figures."""
    rng = np.random.default_rng(0)
    dims = ("t", "y", "x")
    stack = xr.DataArray(rng.poisson(60, (10, 48, 48)).astype(np.uint16), dims=dims)
    denoised = xr.DataArray(np.full((10, 48, 48), 60, np.float32), dims=dims)
    tables = {way: table_of(rng) for way in WAYS}
    curve = np.clip(0.9 - 0.2 * np.abs(np.log2(FACTORS)), 0.05, None)
    ways = {
        way: {
            "label": label,
            "detections": len(tables[way]),
            "medians": {"uncertainty [nm]": 9.3, "intensity [photon]": 700.0, "sigma [nm]": 130.0},
            "sweep": {
                "factor": FACTORS,
                "detections": (900 / FACTORS).astype(int),
                **dict.fromkeys(("jaccard", "precision", "recall"), curve - 0.03 * k),
            },
            "own": evaluation(0.8 - 0.03 * k),
            "best": evaluation(0.9 - 0.03 * k),
            "best_factor": 1.0,
        }
        for k, (way, label) in enumerate(WAYS.items())
    }
    looks = [{"step": 100 * k, "held_out_nll": 3 + 1 / k, "training_nll": 2.9 + 1 / k} for k in range(1, 20)]
    report = {
        **{
            "steps": 2000,
            "minutes": 1.5,
            "device": "cpu",
            "stopped": "the budget was used",
            "held_out_nll": 3.05,
        },
        **{"trivial_nll": 3.4, "weight": 0.2, "collapsed": [], "held_out_mean_ratio": 1.001, "curve": looks},
    }
    figures = {
        "verdict": "Denoising did not help: localize the raw frames. The best was 0.9.",
        "headline": "Denoising did not help: localize the raw frames.",
        "sentences": ["The best was 0.9 <on raw frames> & elsewhere."],
        "recommended": "raw",
        "basis": "ground truth",
        "radius_nm": 50.0,
        "warnings": ["The noise of neighbouring pixels is correlated."],
        "stack": {"source": "a & b.tif", "frames": 10, "height": 48, "width": 48, "dtype": "uint16"},
        "camera": {
            **{
                "offset": 100.0,
                "photons_per_adu": 1.5,
                "em_gain": None,
                "read_noise": 1.2,
                "pixel_size_nm": PIXEL,
            },
            **{"source": "given by the user", "maps": []},
        },
        "engine": "torch",
        "options": "threshold=std(Wave.F1)",
        "threshold": "std(Wave.F1)",
        "macro": 'run("Camera setup", "offset=100.0");\nrun("Run analysis", "threshold=std(Wave.F1)");',
        "estimator": "mean",
        "model": {"engine": "gamma-poisson", "report": report, "source": "a & b.tif"},
        "trained_here": True,
        "ways": ways,
        "twin": {},
        "frc": {"raw": 31.0, "denoised": None, "hybrid": 30.5},
        "seconds": {"training": 90.2, "denoising": 3.0},
        "versions": {"fiji-bridge": "0.1.0"},
    }
    return Comparison(folder, jsonable(figures), tables, stack, denoised, tables["raw"])


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """The page of that comparison."""
    return draw(made_up(tmp_path_factory.mktemp("report")))


class Page(HTMLParser):
    """Collects what a browser would load, the ids, and whether the tags nest."""

    VOID = frozenset({"meta", "br", "input", "img", "link", "hr"})

    def __init__(self, text):
        super().__init__()
        self.loads, self.ids, self.open, self.text = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in ("src", "href", "data", "action", "xlink:href", "srcset"):
                self.loads.append(value)
            if name == "id":
                self.ids.append(value)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, (tag, self.open)
        self.open.pop()

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_needs_nothing_from_outside_itself(text):
    page = Page(text)
    assert page.open == []
    assert page.loads and all(link.startswith(("data:image/png;base64,", "#")) for link in page.loads)
    assert "://" not in text and "@import" not in text and "<script src" not in text
    assert all(
        target in page.ids for target in re.findall(r'url\(#([^)]*)\)|href="#([^"]*)"', text)[0] if target
    )


def test_each_id_is_there_once(text):
    ids = Page(text).ids
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("section", SECTIONS)
def test_each_section_is_there(text, section):
    assert section in Page(text).ids


def test_the_page_begins_with_the_verdict_and_names_every_way(text):
    text = "".join(Page(text).text)
    assert "Denoising did not help: localize the raw frames." in text
    for label in WAYS.values():
        assert label in text


def test_it_says_that_a_smaller_uncertainty_is_not_a_better_position(text):
    assert "does not mean better positions" in text


def test_text_from_files_cannot_break_the_page(text):
    assert "<on raw frames>" not in text and "&lt;on raw frames&gt; &amp; elsewhere" in text


def test_without_truth_no_scores_are_shown(comparison):
    for found in comparison.figures["ways"].values():
        for name in ("own", "best", "best_factor"):
            del found[name]
    comparison.figures["basis"] = "none"
    page = Page(draw(comparison))
    assert "truth" not in page.ids and "detections" in page.ids


@pytest.mark.parametrize("way", ["raw", "denoised"])
def test_a_way_that_finds_no_molecule_still_gives_a_page(comparison, way):
    comparison.tables[way] = comparison.tables[way].iloc[:0]
    found = comparison.figures["ways"][way]
    found["detections"] = 0
    for which in ("best", "own"):
        found[which] |= dict.fromkeys(("precision", "mean_distance_nm", "rmse_nm"))  # 0 of 0
    assert Page(draw(comparison)).open == []


def test_without_molecules_at_all_there_is_a_page(comparison):
    for way, table in comparison.tables.items():
        comparison.tables[way] = table.iloc[:0]
    assert Page(draw(comparison)).open == []


def test_the_page_is_small_and_appears_whole(comparison):
    path = comparison.folder / "report.html"
    write_report(comparison, path)
    assert 50_000 < path.stat().st_size < 3_000_000
    assert [file.name for file in Path(comparison.folder).iterdir()] == ["report.html"]


def test_the_enlarged_part_is_where_the_molecules_crowd():
    points = np.array([[90.0, 20.0], [92.0, 21.0], [95.0, 25.0], [10.0, 80.0]])
    window = images.crowded(points, (100, 120), 16)
    inside = (points >= (window.left, window.top)) & (points < (window.left + 16, window.top + 16))
    assert inside.all(axis=1).sum() == 3
    assert window.of(np.zeros((100, 120))).shape == (16, 16)


def test_small_frames_are_shown_whole():
    window = images.crowded(np.empty((0, 2)), (20, 12), 40)
    assert window == images.Window(0, 0, 20, 12)
    assert images.Window(5, 5, 10, 10).around(64, (30, 40)) == images.Window(0, 0, 30, 40)


@pytest.mark.parametrize(
    "width, bar", [(1000.0, 200.0), (12_800.0, 2000.0), (40_960.0, 10_000.0), (300.0, 100.0)]
)
def test_a_scale_bar_has_a_round_length(width, bar):
    assert images.bar_length(width) == pytest.approx(bar)


def test_molecules_are_marked_where_they_are():
    window = images.Window(10, 20, 8, 8)
    drawn = images.picture(
        np.zeros((8, 8), np.uint8),
        window,
        "frame",
        nm_per_pixel=100,
        marks={"raw": np.array([[24.5, 12.25], [90, 90]])},
    )
    assert drawn.count("<circle") == 1 and 'cx="4.50" cy="2.25"' in drawn
