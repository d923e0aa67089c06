"""Tables of molecules go to ThunderSTORM and come back unchanged, whatever version wrote them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.localizations import COLUMNS, read_localizations, require_columns, write_localizations


@dataclass
class PixelsAndPhotons:
    """What a table in camera units needs of a camera."""

    pixel_size_nm: float | None = 100.0
    photons_per_adu: float = 4.8
    em_gain: float | None = 150.0


def molecules(count: int = 5) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    table = pd.DataFrame(rng.uniform(1, 1000, (count, len(COLUMNS))), columns=list(COLUMNS))
    table["id"] = np.arange(1, count + 1)
    table["frame"] = np.arange(count) // 2 + 1
    return table


@pytest.mark.parametrize("count", [0, 1, 5])
def test_a_table_comes_back_bit_for_bit(tmp_path: Path, count: int) -> None:
    table = molecules(count)
    write_localizations(table, tmp_path / "a.csv")
    pd.testing.assert_frame_equal(
        read_localizations(tmp_path / "a.csv"), table, check_dtype=count > 0, check_index_type=False
    )


def test_the_file_looks_as_the_plugin_writes_it(tmp_path: Path, shared_data: Path) -> None:
    theirs = shared_data / "thunderstorm_reference" / "default" / "default.csv"
    write_localizations(read_localizations(theirs), tmp_path / "a.csv")
    ours, plugins = (path.read_text().splitlines() for path in (tmp_path / "a.csv", theirs))
    assert ours[:2] == plugins[:2]
    assert len(ours) == len(plugins)


def test_missing_and_infinite_numbers_are_written_as_java_reads_them(tmp_path: Path) -> None:
    table = molecules(3)
    table.loc[0, "chi2"] = np.nan
    table.loc[1, "chi2"] = np.inf
    write_localizations(table, tmp_path / "a.csv")
    text = (tmp_path / "a.csv").read_text()
    assert "NaN" in text
    assert "Infinity" in text
    pd.testing.assert_frame_equal(read_localizations(tmp_path / "a.csv"), table)


def test_ids_are_given_to_a_table_that_has_none(tmp_path: Path) -> None:
    write_localizations(molecules(3).drop(columns="id"), tmp_path / "a.csv")
    assert list(read_localizations(tmp_path / "a.csv")["id"]) == [1, 2, 3]


@pytest.mark.parametrize("name", ["ground_truth", "no_estimator", "mle", "gauss"])
def test_every_kind_of_reference_table_reads(shared_data: Path, name: str) -> None:
    path = shared_data / "thunderstorm_reference" / "default" / f"{name}.csv"
    table = read_localizations(path)
    assert len(table) == len(path.read_text().splitlines()) - 1
    assert table["frame"].between(1, 50).all()
    assert table["x [nm]"].between(0, 128 * 160).all()


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "text",
    [
        "id,frame,x [nm],y [nm],uncertainty [nm]\n1,2,30.5,40,5\n",
        '"id","frame","x [nm]","y [nm]","uncertainty_xy [nm]"\n1.0,2.0,30.5,40.0,5.0\n',
        "\ufeffid, frame, x [nm], y [nm], uncertainty [nm]\n1, 2, 30.5, 40, 5\n\n",
        "id\tframe\tx [nm]\ty [nm]\tuncertainty [nm]\n1\t2\t30.5\t40\t5\n",
        "id;frame;x [um];y [um];uncertainty [um]\r\n1;2;0.0305;0.04;0.005\r\n",
    ],
)
def test_old_and_new_headers_mean_the_same(tmp_path: Path, text: str) -> None:
    table = read_localizations(write(tmp_path / "a.csv", text))
    assert list(table.columns) == ["id", "frame", "x [nm]", "y [nm]", "uncertainty [nm]"]
    assert table.iloc[0].tolist() == pytest.approx([1, 2, 30.5, 40, 5])


def test_pixels_and_adu_are_converted_by_the_camera(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "frame,x [px],y [px],intensity [ADU]\n1,2,3,1000\n")
    table = read_localizations(path, camera=PixelsAndPhotons())  # type: ignore[arg-type]
    assert list(table.columns) == ["frame", "x [nm]", "y [nm]", "intensity [photon]"]
    assert table.iloc[0].tolist() == pytest.approx([1, 200, 300, 1000 * 4.8 / 150])


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "empty"),
        ("\n\n", "empty"),
        ("id,x [nm],y [nm]\n1,2,3\n", "frame"),
        ("frame,x [nm]\n1,2\n", "y [nm]"),
        ("frame,x,y\n1,2,3\n", "x [nm]"),
        ("frame,x [px],y [px]\n1,2,3\n", "pixelsize"),
        ("frame,x [nm],y [nm],intensity [ADU]\n1,2,3,4\n", "--camera"),
        ("frame,x [nm],y [nm]\n1,2,3\n2,oops,3\n", "'oops'"),
        ("frame,x [nm],y [nm]\n1,2,3\n2,oops,3\n", "row 2"),
        ("frame,x [nm],y [nm]\n1.5,2,3\n", "1.5"),
        ("frame,x [nm],y [nm]\n,2,3\n", "whole number"),
        ("frame,x [nm],y [nm]\n0,2,3\n", "from 1"),
        ("frame,x [nm],y [nm]\n1,2,3\n1,2,3,4,5\n", "not a CSV"),
    ],
)
def test_a_bad_file_is_refused_in_one_sentence(tmp_path: Path, text: str, named: str) -> None:
    path = write(tmp_path / "bad.csv", text)
    with pytest.raises(FijiBridgeError) as error:
        read_localizations(path)
    assert "bad.csv" in str(error.value)
    assert named in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "image.csv").write_bytes(bytes(range(256)) * 10)
    for path in (tmp_path, tmp_path / "missing.csv", tmp_path / "image.csv"):
        with pytest.raises(FijiBridgeError, match=path.name):
            read_localizations(path)


def test_nothing_is_written_when_a_column_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FijiBridgeError, match="frame"):
        write_localizations(molecules().drop(columns="frame"), tmp_path / "a.csv")
    assert list(tmp_path.iterdir()) == []


def test_require_columns_names_the_column_and_the_file() -> None:
    require_columns(molecules(), ["x [nm]", "chi2"], "table.csv")
    with pytest.raises(FijiBridgeError, match=r"table.csv lacks the column z \[nm\]"):
        require_columns(molecules(), ["x [nm]", "z [nm]"], "table.csv")
