"""Post-processing gives the rows and numbers of ThunderSTORM's."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fiji_bridge.camera import Camera
from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.localizations import read_localizations
from fiji_bridge.postprocessing import estimate_drift, postprocess

CAMERA = Camera(offset=100.0, photons_per_adu=2.0, pixel_size_nm=100.0)


def table(rows: list[tuple[float, ...]]) -> pd.DataFrame:
    columns = ["frame", "x [nm]", "y [nm]", "sigma [nm]", "intensity [photon]", "bkgstd [photon]"]
    values = pd.DataFrame(rows, columns=[*columns, "uncertainty [nm]"]).astype({"frame": int})
    values.insert(0, "id", np.arange(1, len(values) + 1))
    return values


def blinking(drift: Callable[[np.ndarray], np.ndarray], markers: bool, seed: int = 0) -> pd.DataFrame:
    """Molecules of a fixed structure that blink over 400 frames while the sample moves."""
    rng = np.random.default_rng(seed)
    structure = rng.uniform(1000, 11800, (60, 2))
    frames = np.repeat(np.arange(1, 401), 12)
    places = structure[rng.integers(0, 60, len(frames))] + rng.normal(0, 12, (len(frames), 2))
    if markers:
        frames = np.concatenate([frames, np.tile(np.arange(1, 401), 2)])
        fixed = np.repeat([[500.0, 600.0], [12200.0, 7000.0]], 400, axis=0) + rng.normal(0, 2, (800, 2))
        places = np.concatenate([places, fixed])
    places = places + drift(frames)
    order = np.argsort(frames, kind="stable")
    return table(
        [(f, x, y, 130.0, 900.0, 5.0, 10.0) for f, (x, y) in zip(frames[order], places[order], strict=True)]
    )


def slow(frames: np.ndarray) -> np.ndarray:
    return np.stack([0.4 * frames, -60 * np.sin(frames / 200)], -1)


@pytest.mark.parametrize("post", ["duplicates", "filter"])
@pytest.mark.parametrize("name", ["default", "em_gain"])
def test_the_plugins_macros_keep_the_same_rows(shared_data: Path, name: str, post: str) -> None:
    folder = shared_data / "thunderstorm_reference" / name
    step = {
        "duplicates": "action=duplicates distformula=uncertainty",
        "filter": "action=filter formula=[intensity > 500 & uncertainty < 10]",
    }[post]
    ours = postprocess(read_localizations(folder / "default.csv"), step)
    theirs = read_localizations(folder / f"default__{post}.csv")
    np.testing.assert_allclose(ours["x [nm]"], theirs["x [nm]"], atol=1e-9)


@pytest.mark.parametrize(
    ("formula", "kept"),
    [
        ("frame = 2", [2, 3]),
        ("x > 100 & y < 60 | sigma = 90", [1, 2, 4]),
        ("intensity > mean(intensity)", [3, 4]),
        ("abs(x - 150) != 50", [3]),
        ("std(x)^2 - var(x) < 1e-6 & frame % 2 = 0", [2, 3]),
        ("", [1, 2, 3, 4]),
    ],
)
def test_filters_keep_the_rows_for_which_they_hold(formula: str, kept: list[int]) -> None:
    rows = table(
        [
            (1, 100, 50, 90, 500, 5, 8),
            (2, 200, 50, 120, 600, 5, 9),
            (2, 300, 80, 130, 900, 5, 7),
            (3, 200, 90, 90, 1000, 5, 6),
        ]
    )
    assert list(postprocess(rows, f"action=filter formula=[{formula}]")["id"]) == kept


@pytest.mark.parametrize("formula", ["intensity >", "height > 3", "3 > 2", "sqrt(x) > 1"])
def test_wrong_filters_are_refused(formula: str) -> None:
    with pytest.raises(FijiBridgeError, match="formula"):
        postprocess(table([(1, 0, 0, 100, 500, 5, 8)]), f"action=filter formula=[{formula}]")


def test_of_duplicates_the_most_certain_stays() -> None:
    rows = table([(1, 100, 50, 90, 500, 5, 20), (1, 110, 50, 90, 500, 5, 8), (2, 110, 50, 90, 500, 5, 30)])
    assert list(postprocess(rows, "action=duplicates distformula=uncertainty")["id"]) == [2, 3]
    assert list(postprocess(rows, "action=duplicates distformula=[uncertainty/4]")["id"]) == [1, 2, 3]


def test_density_counts_the_others_within_the_radius() -> None:
    places = np.random.default_rng(1).uniform(0, 1000, (200, 2))
    rows = table([(n, x, y, 100, 500, 5, 8) for n, (x, y) in enumerate(places, 1)])
    distance = np.hypot(*(places[:, None] - places).T)
    expected = np.flatnonzero((distance < 80).sum(0) - 1 >= 3) + 1
    assert list(postprocess(rows, "action=density radius=80 neighbors=3")["id"]) == list(expected)


def test_molecules_that_shine_on_become_one() -> None:
    rows = table(
        [
            (1, 100, 50, 90, 500, 5, 8),
            (2, 104, 50, 110, 300, 4, 8),
            (2, 900, 50, 100, 500, 5, 8),
            (4, 102, 56, 100, 400, 3, 8),
            (9, 102, 50, 100, 400, 3, 8),
        ]
    )
    merged = postprocess(rows, "action=merge dist=20 offframes=1", camera=CAMERA)
    assert list(merged["detections"]) == [3, 1, 1]
    assert list(merged["frame"]) == [1, 2, 9]
    assert merged["x [nm]"][0] == pytest.approx(102)
    assert merged["intensity [photon]"][0] == 1200
    assert merged["id"][0] > rows["id"].max()
    assert merged["uncertainty [nm]"][0] < 8
    assert len(postprocess(rows, "action=merge dist=20 offframes=0", camera=CAMERA)) == 4
    assert len(postprocess(rows, "action=merge dist=20 offframes=9 framespermolecule=2", camera=CAMERA)) == 4


@pytest.mark.parametrize(
    "step",
    ["method=[Cross correlation] steps=8", "method=[Fiducial markers] distancethr=80 ontimeratio=0.5"],
)
def test_drift_is_found_and_taken_out(step: str) -> None:
    found = estimate_drift(blinking(slow, "Fiducial" in step), f"action=drift {step}", camera=CAMERA)
    frames = np.arange(20.0, 381.0)
    true = slow(frames)
    for ours, along in ((found.x, true[:, 0]), (found.y, true[:, 1])):
        error = ours(frames) - along
        assert (error - error.mean()).std() < 5
    still = postprocess(blinking(slow, "Fiducial" in step), f"action=drift {step}", camera=CAMERA)
    left = estimate_drift(still, f"action=drift {step}", camera=CAMERA)
    assert np.ptp(left.x(frames)) < 12


def test_drift_that_cannot_be_found_is_said() -> None:
    rows = blinking(slow, False)
    with pytest.raises(FijiBridgeError, match="markers"):
        postprocess(rows, "action=drift method=[Fiducial markers] ontimeratio=0.9")
    with pytest.raises(FijiBridgeError, match="pixel size"):
        postprocess(rows, "action=drift method=[Cross correlation]")
    with pytest.raises(FijiBridgeError, match="frame"):
        postprocess(rows[rows["frame"] == 1], "action=drift method=[Cross correlation]", camera=CAMERA)


def test_the_plugin_does_the_same(shared_data: Path) -> None:
    from fiji_bridge.imagej.session import find_java
    from fiji_bridge.thunderstorm import find_jar

    if find_jar() is None or find_java() is None:
        pytest.skip("needs ThunderSTORM's jar and Java")
    from fiji_bridge.thunderstorm.postprocessing import postprocess as theirs

    real = read_localizations(shared_data / "thunderstorm_reference" / "em_gain" / "default.csv")
    for rows, step, tolerance in (
        (real, "action=filter formula=[abs(sigma-mean(sigma)) < 2*std(sigma) | (frame=3 & x>5000)]", 0.0),
        (real, "action=duplicates distformula=[3*uncertainty+50]", 0.0),
        (real, "action=merge dist=200 offframes=1 framespermolecule=3", 1e-6),
        (real, "action=drift method=[Cross correlation] steps=5", 0.05),
        (blinking(slow, False), "action=drift method=[Cross correlation] steps=6", 0.05),
        (blinking(slow, True), "action=drift method=[Fiducial markers] distancethr=80 ontimeratio=0.5", 0.5),
    ):
        a, b = postprocess(rows, step, camera=CAMERA), theirs(rows, step, camera=CAMERA)
        assert list(a.columns) == list(b.columns)
        if "Fiducial" in step:
            # Where the drift is zero: at the mean of the first frame here, at its first marker there.
            for column in ("x [nm]", "y [nm]"):
                b[column] += (a[column] - b[column]).median()
        for column in b:
            np.testing.assert_allclose(a[column], b[column], rtol=1e-9, atol=tolerance, err_msg=step)
