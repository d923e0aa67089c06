"""Post-processing gives the rows and numbers of ThunderSTORM's."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fiji_bridge.camera import Camera
from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.localizations import read_localizations
from fiji_bridge.postprocessing import drift, postprocess

DATA = Path(__file__).parent / "data" / "thunderstorm"
_spec = importlib.util.spec_from_file_location("make_references", DATA / "make_references.py")
assert _spec is not None and _spec.loader is not None
made: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(made)

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


def flat(references: Path) -> pd.DataFrame:
    """Molecules that drift, with the numbers and ids of the plugin's own display run."""
    return pd.read_csv(references / "flat.csv").astype({"id": int, "frame": int})


def assert_same(found: pd.DataFrame, path: Path, tolerance: float = 1e-9) -> None:
    expected = pd.read_csv(path)
    found, expected = (rows.drop(columns="id", errors="ignore") for rows in (found, expected))
    assert list(found.columns) == list(expected.columns)
    assert len(found) == len(expected) > 0
    np.testing.assert_allclose(found.to_numpy(float), expected.to_numpy(float), rtol=1e-9, atol=tolerance)


@pytest.mark.parametrize("step", made.STEPS)
def test_each_step_gives_the_table_of_the_plugins_own_command(
    references: Path, step: str, tmp_path: Path
) -> None:
    rows, options = flat(references), made.STEPS[step].format(folder=tmp_path)
    # The plugin looks for the places of markers by a simplex, which stops at a hundredth of a nanometre.
    tolerance = {"drift_correlation": 1e-5, "drift_fiducials": 0.02}.get(step, 1e-9)
    assert_same(postprocess(rows, options, camera=made.CAMERA), references / f"flat_{step}.csv", tolerance)


def test_density_in_space(references: Path) -> None:
    spatial = pd.read_csv(references / "spatial_wlsq.csv").astype({"frame": int})
    step = "action=density radius=900.0 dimensions=3D neighbors=3"
    assert_same(postprocess(spatial, step), references / "spatial_density.csv")


@pytest.mark.parametrize("step", ["drift_correlation", "drift_fiducials"])
def test_the_file_of_a_drift_is_the_plugins(references: Path, step: str, tmp_path: Path) -> None:
    rows = flat(references)
    curve = drift(rows, made.STEPS[step].format(folder=tmp_path), camera=made.CAMERA)
    ours, theirs = (json.loads((where / f"{step}.json").read_text()) for where in (tmp_path, references))
    assert ours.keys() == theirs.keys() and ours["units"] == theirs["units"]
    for function in ("xFunction", "yFunction"):
        assert [len(part["coefficients"]) for part in ours[function]["polynomials"]] == [
            len(part["coefficients"]) for part in theirs[function]["polynomials"]
        ]
        assert ours[function]["n"] == theirs[function]["n"]
        np.testing.assert_allclose(ours[function]["knots"], theirs[function]["knots"])
    for name in ("driftDataX", "driftDataY", "driftDataFrame", "minFrame", "maxFrame"):
        np.testing.assert_allclose(ours[name], theirs[name], atol=0.02)
    loaded = f"action=drift method=[Load from file] path=[{references / step}.json]"
    assert_same(postprocess(rows, loaded, camera=made.CAMERA), references / f"flat_{step}.csv")
    again = drift(rows, f"action=drift method=[Load from file] path={tmp_path}/{step}.json", camera=CAMERA)
    np.testing.assert_allclose(again, curve, atol=1e-9)
    np.testing.assert_allclose(again.attrs["points"]["x [nm]"], curve.attrs["points"]["x [nm]"])


def test_the_plugin_reads_the_file_of_our_drift(plugin: object, references: Path, tmp_path: Path) -> None:
    from fiji_bridge.thunderstorm import postprocess as by_plugin

    rows = flat(references)
    for step in ("drift_correlation", "drift_fiducials"):
        ours = postprocess(rows, made.STEPS[step].format(folder=tmp_path), camera=made.CAMERA)
        loaded = f"action=drift method=[Load from file] path={tmp_path}/{step}.json"
        theirs = by_plugin(rows, loaded, camera=CAMERA)
        np.testing.assert_allclose(ours["x [nm]"], theirs["x [nm]"], rtol=1e-12)
        np.testing.assert_allclose(ours["y [nm]"], theirs["y [nm]"], rtol=1e-12)


@pytest.mark.parametrize(
    "step",
    ["method=[Cross correlation] steps=8", "method=[Fiducial markers] distancethr=80 ontimeratio=0.5"],
)
def test_drift_is_found_and_taken_out(step: str, tmp_path: Path) -> None:
    rows = blinking(slow, "Fiducial" in step)
    curve = drift(rows, f"action=drift {step}", camera=CAMERA, out=tmp_path / "curve.csv")
    np.testing.assert_allclose(pd.read_csv(tmp_path / "curve.csv"), curve)
    assert curve["frame"].tolist() == list(range(1, 401))
    error = (curve[["x [nm]", "y [nm]"]].to_numpy() - slow(curve["frame"].to_numpy()))[20:380]
    assert (error - error.mean(0)).std(0).max() < 5
    still = postprocess(rows, f"action=drift {step}", camera=CAMERA)
    left = drift(still, f"action=drift {step}", camera=CAMERA)[20:380]
    assert np.ptp(left["x [nm]"]) < 12


def test_a_saved_drift_goes_on_straight_beyond_its_frames(tmp_path: Path) -> None:
    rows = blinking(slow, False)
    save = f"action=drift method=[Cross correlation] steps=8 save=true path={tmp_path}/drift.json"
    inside = drift(rows[rows["frame"].between(40, 360)], save, camera=CAMERA)
    load = f"action=drift method=[Load from file] path={tmp_path}/drift.json"
    moved = (rows["x [nm]"] - postprocess(rows, load, camera=CAMERA)["x [nm]"]).groupby(rows["frame"]).mean()
    np.testing.assert_allclose(moved.loc[40:360], inside["x [nm]"], atol=1e-6)
    np.testing.assert_allclose(np.diff(moved.loc[362:], 2), 0, atol=1e-6)


@pytest.mark.parametrize("content", ["", "{}", '{"units": "MILES"}', "[1, 2]", '{"units": "NANOMETER"}'])
def test_what_is_no_saved_drift_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "drift.json").write_text(content)
    with pytest.raises(FijiBridgeError, match=r"drift\.json is not a drift that ThunderSTORM saved"):
        postprocess(
            table([(1, 0, 0, 9, 9, 9, 9)]), f"action=drift method=[Load from file] path={tmp_path}/drift.json"
        )


def test_drift_that_cannot_be_found_is_said(tmp_path: Path) -> None:
    rows = blinking(slow, False)
    with pytest.raises(FijiBridgeError, match="markers"):
        postprocess(rows, "action=drift method=[Fiducial markers] ontimeratio=0.9")
    with pytest.raises(FijiBridgeError, match="pixel size"):
        postprocess(rows, "action=drift method=[Cross correlation]")
    with pytest.raises(FijiBridgeError, match="frame"):
        postprocess(rows[rows["frame"] == 1], "action=drift method=[Cross correlation]", camera=CAMERA)
    with pytest.raises(FijiBridgeError, match="needs path="):
        drift(rows, "action=drift method=[Cross correlation] save=true", camera=CAMERA)
    with pytest.raises(FijiBridgeError, match=r"no file .*none\.json"):
        drift(rows, f"action=drift method=[Load from file] path={tmp_path}/none.json")
    with pytest.raises(FijiBridgeError, match="finds no drift"):
        drift(rows, "action=merge")
    with pytest.raises(FijiBridgeError, match="more than one frame"):
        drift(rows[:0], "action=drift method=[Fiducial markers]")


def test_a_table_keeps_what_is_known_of_its_stack_and_needs_no_camera_again(tmp_path: Path) -> None:
    rows = blinking(slow, False)
    rows.attrs["camera_setup"] = CAMERA.options()
    still = postprocess(rows, "action=drift method=[Cross correlation]", out=tmp_path / "still.csv")
    assert postprocess(still, "action=merge dist=20").attrs == rows.attrs
    np.testing.assert_allclose(read_localizations(tmp_path / "still.csv"), still)
    again = postprocess(tmp_path / "still.csv", "action=filter formula=[frame < 50]")
    assert again["frame"].max() == 49


def stepped() -> pd.DataFrame:
    """Molecules with a height of their own in the frames of a stage of two positions."""
    rows = table([(frame, 100, 50, 90, 500, 5, 8) for frame in (1, 2, 3, 4)])
    rows.insert(4, "z [nm]", [10.0, -20.0, 30.0, 0.0])
    return rows


STAGE = "action=offset framesperstagepos=1 stagepositions=2 stagestep=100 firstposoffset=-50"


def test_the_height_above_the_stage_is_kept_beside_that_with_it() -> None:
    once = postprocess(stepped(), STAGE)
    assert list(once) == [*(name.replace("z [nm]", "z_rel [nm]") for name in stepped()), "z [nm]"]
    assert once["z_rel [nm]"].tolist() == [10, -20, 30, 0]
    assert once["z [nm]"].tolist() == [-40, 30, -20, 50]
    twice = postprocess(once, STAGE)
    assert twice["z_rel [nm]"].tolist() == once["z [nm]"].tolist()
    assert twice["z [nm]"].tolist() == [-90, 80, -70, 100]
    flat = postprocess(stepped().drop(columns="z [nm]"), STAGE)
    assert flat["z [nm]"].tolist() == [-50, 50, -50, 50] and "z_rel [nm]" not in flat


def test_the_height_above_the_stage_is_the_plugins(plugin: object) -> None:
    from fiji_bridge.thunderstorm.postprocessing import postprocess as theirs

    ours, expected = stepped(), stepped()
    for _ in range(2):
        ours, expected = postprocess(ours, STAGE), theirs(expected, STAGE)
        assert set(ours) == set(expected)
        for column in expected:
            np.testing.assert_allclose(ours[column], expected[column], err_msg=column)
    assert list(postprocess(stepped(), STAGE)) == list(theirs(stepped(), STAGE))


def test_molecules_in_space_that_shine_on_become_one() -> None:
    rows = postprocess(in_space(), STAGE)
    merged = postprocess(rows.iloc[::-1], "action=merge dist=60 offframes=1 zcoordweight=0.1", camera=CAMERA)
    assert merged["detections"].tolist() == [1, 4]
    # What the plugin cannot merge stays the first one's.
    assert merged["z_rel [nm]"].tolist() == [70, 10]
    assert merged["z [nm]"][1] == pytest.approx(np.mean([-40, 30, -20, 50]))
    width = 120.0 * 150.0
    expected = (width + 100**2 / 12) / 2000 + 8 * np.pi * width**2 * 20**2 / (100 * 2000) ** 2
    assert merged["uncertainty [nm]"][1] == pytest.approx(np.sqrt(expected))


def in_space() -> pd.DataFrame:
    rows = pd.concat([stepped(), stepped()[:1].assign(**{"x [nm]": 900.0, "z [nm]": 70.0})])
    rows = rows.rename(columns={"sigma [nm]": "sigma1 [nm]"}).assign(id=range(1, 6))
    rows["sigma1 [nm]"] = 120.0
    rows.insert(6, "sigma2 [nm]", 150.0)
    return rows.reset_index(drop=True)


def test_molecules_in_space_are_merged_as_by_the_plugin(plugin: object) -> None:
    from fiji_bridge.thunderstorm.postprocessing import postprocess as theirs

    step = "action=merge dist=60 offframes=1 zcoordweight=0.1"
    ours, expected = (
        each(postprocess(in_space(), STAGE), step, camera=CAMERA) for each in (postprocess, theirs)
    )
    assert list(ours) == list(expected)
    for column in expected.drop(columns="id"):
        np.testing.assert_allclose(ours[column], expected[column], rtol=1e-9, err_msg=column)


WRONG = [
    ("action=filter formula=[hight > 3]", "uses hight"),
    ("action=filter formula=[x >]", "Cannot read the formula"),
    ("action=filter formula=[mean(x) > 3]", "says the same of every row"),
    ("action=duplicates distformula=[2*width]", "uses width"),
    ("action=density dimensions=3D", r"lacks the column z \[nm\]"),
    ("action=drift method=[Cross correlation]", "needs the pixel size"),
    ("action=drift method=[Load from file] path=none.json", "no file none.json"),
    ("action=drift method=[Fiducial markers]", "more than one frame"),
]


@pytest.mark.parametrize(("step", "said"), WRONG)
def test_a_table_without_molecules_takes_no_wrong_options(step: str, said: str, tmp_path: Path) -> None:
    rows = table([(1, 0, 0, 100, 500, 5, 8)])[:0]
    with pytest.raises(FijiBridgeError, match=said):
        postprocess(rows, step, out=tmp_path / "out.csv")
    with pytest.raises(FijiBridgeError, match="key 'pixels'"):
        postprocess(rows, "action=merge", camera="pixels=100")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "step",
    [
        "filter formula=[abs(x - mean(x)) > 3 & y < max(y)]",
        *("filter", "duplicates", "density", "merge", "merge dist=0", "offset stagestep=5"),
    ],
)
def test_a_table_without_molecules_stays_one(step: str, tmp_path: Path) -> None:
    rows = table([(1, 0, 0, 100, 500, 5, 8)])[:0]
    after = postprocess(rows, f"action={step}", camera=CAMERA, out=tmp_path / "out.csv")
    assert len(after) == 0 and set(rows) <= set(after)
    assert list(read_localizations(tmp_path / "out.csv")) == list(after)


@pytest.mark.parametrize(("step", "said"), WRONG)
def test_nor_does_it_by_the_plugin(step: str, said: str) -> None:
    from fiji_bridge.thunderstorm.postprocessing import postprocess as theirs

    with pytest.raises(FijiBridgeError, match=said):
        theirs(table([(1, 0, 0, 100, 500, 5, 8)])[:0], step)


@pytest.mark.parametrize(
    ("step", "kept"), [("filter formula=[uncertainty < 9]", 1), ("duplicates distformula=[1000]", 1)]
)
def test_uncertainties_by_their_later_name_count(step: str, kept: int) -> None:
    rows = table([(1, 100, 50, 90, 500, 5, 20), (1, 110, 50, 90, 500, 5, 8)])
    later = rows.rename(columns={"uncertainty [nm]": "uncertainty_xy [nm]"})
    pd.testing.assert_frame_equal(postprocess(later, f"action={step}"), postprocess(rows, f"action={step}"))
    assert len(postprocess(later, f"action={step}")) == kept


def test_the_plugin_does_the_same(plugin: object, shared_data: Path) -> None:
    from fiji_bridge.thunderstorm.postprocessing import postprocess as theirs

    real = read_localizations(shared_data / "thunderstorm_reference" / "em_gain" / "default.csv")
    for rows, step, tolerance in (
        (real, "action=filter formula=[abs(sigma-mean(sigma)) < 2*std(sigma) | (frame=3 & x>5000)]", 0.0),
        (real, "action=duplicates distformula=[3*uncertainty+50]", 0.0),
        (real, "action=merge dist=200 offframes=1 framespermolecule=3", 1e-6),
        (real, "action=drift method=[Cross correlation] steps=5", 0.05),
        (blinking(slow, False), "action=drift method=[Cross correlation] steps=6", 0.05),
        (blinking(slow, True), "action=drift method=[Fiducial markers] distancethr=80 ontimeratio=0.5", 0.05),
    ):
        a, b = postprocess(rows, step, camera=CAMERA), theirs(rows, step, camera=CAMERA)
        assert list(a.columns) == list(b.columns)
        for column in b:
            np.testing.assert_allclose(a[column], b[column], rtol=1e-9, atol=tolerance, err_msg=step)


@pytest.mark.parametrize(
    "step", ["merge dist=20", "density radius=60", "drift steps=2", "drift method=[Fiducial markers]"]
)
@pytest.mark.parametrize(("column", "value"), [("x [nm]", np.nan), ("y [nm]", np.inf), ("frame", np.nan)])
def test_positions_that_are_no_numbers_are_refused(step: str, column: str, value: float) -> None:
    table = pd.DataFrame({"frame": np.arange(1.0, 9.0), "x [nm]": np.arange(8.0), "y [nm]": np.arange(8.0)})
    table.loc[3, column] = value
    with pytest.raises(FijiBridgeError, match=r"has no finite .* in row 4"):
        postprocess(table, f"action={step}", camera=Camera(0.0, 1.0, pixel_size_nm=100.0))


@pytest.mark.parametrize("frames", [[0, 1], [1, 2.5]])
def test_frames_are_whole_numbers_from_1(frames):
    table = pd.DataFrame({"frame": frames, "x [nm]": [1.0, 2.0], "y [nm]": [1.0, 2.0], "z [nm]": [0.0, 0.0]})
    with pytest.raises(FijiBridgeError, match="frame"):
        postprocess(table, "action=offset framesperstagepos=2 stagepositions=3 stagestep=100")


@pytest.mark.parametrize(
    "step",
    [
        "action=duplicates distformula=uncertainty",
        "action=density neighbors=12 radius=60",
        "action=merge dist=150",
    ],
)
def test_channels_and_planes_are_taken_apart(step: str) -> None:
    one = blinking(slow, markers=False)
    one = one[one["frame"] <= 60].reset_index(drop=True)
    two = one.assign(**{"x [nm]": one["x [nm]"] + 40})
    parts = [part.assign(channel=1 + k, slice=3 - k) for k, part in enumerate((one, two))]
    both = pd.concat(parts, ignore_index=True)
    both["id"] = np.arange(1, len(both) + 1)
    expected = [postprocess(part, step).drop(columns="id") for part in parts]
    after = postprocess(both, step).drop(columns="id")
    assert 0 < len(expected[0]) < len(one)
    for channel, alone in enumerate(expected, 1):
        found = after[after["channel"] == channel]
        names = ["frame", "x [nm]", "y [nm]"]
        same = [rows.sort_values(names).reset_index(drop=True) for rows in (found, alone)]
        pd.testing.assert_frame_equal(*same)
    assert after["slice"].isin([2, 3]).all()
