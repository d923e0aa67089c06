"""Files of other programs have their names, units and origins, both ways."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fiji_bridge import table_formats
from fiji_bridge.camera import Camera
from fiji_bridge.engines import TABLE_FORMATS
from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.localizations import read_localizations, write_localizations
from fiji_bridge.table_formats import export
from fiji_bridge.thunderstorm.settings import XML, Export

CAMERA = Camera(offset=100.0, photons_per_adu=2.0, pixel_size_nm=100.0)
TABLE = pd.DataFrame(
    {
        "id": [1, 2],
        "frame": [1, 7],
        "x [nm]": [50.0, 1230.0],
        "y [nm]": [150.0, 80.0],
        "sigma [nm]": [130.0, 120.0],
        "intensity [photon]": [700.0, 900.0],
        "offset [photon]": [20.0, 21.0],
        "bkgstd [photon]": [5.0, 6.0],
        "uncertainty [nm]": [8.0, 7.0],
    }
)
SPATIAL = TABLE.drop(columns=["id", "sigma [nm]", "bkgstd [photon]"]).assign(
    **{
        "z [nm]": [-120.0, 310.0],
        "sigma1 [nm]": [120.0, 190.0],
        "sigma2 [nm]": [180.0, 110.0],
        "uncertainty_z [nm]": [21.0, 25.0],
    }
)


def assert_like(found: pd.DataFrame, expected: pd.DataFrame, rtol: float = 1e-6) -> None:
    for name in found:
        np.testing.assert_allclose(found[name], expected[name], rtol=rtol, err_msg=str(name))


# Picasso 0.11.3 fits spots of a simulated movie 0.500 ± 0.005 px left of and above ThunderSTORM's positions,
# since the centre of its first pixel is 0; its `load_locs` keeps rows of finite numbers, none negative.


def test_picasso_counts_frames_from_0_and_pixels_from_their_centres(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    export(TABLE, tmp_path / "a.hdf5", camera=CAMERA, shape=(32, 64))
    with h5py.File(tmp_path / "a.hdf5") as file:
        rows = file["locs"][...]
    assert rows.dtype["frame"] == np.uint32 and rows.dtype["x"] == np.float32
    assert rows["frame"].tolist() == [0, 6]
    np.testing.assert_allclose(rows["x"], [0.0, 11.8], rtol=1e-6)
    np.testing.assert_allclose(rows["y"], [1.0, 0.3], rtol=1e-6)
    np.testing.assert_allclose(rows["lpx"], [0.08, 0.07], rtol=1e-6)
    np.testing.assert_allclose(rows["sx"], rows["sy"])
    about = dict(line.split(": ") for line in (tmp_path / "a.yaml").read_text().splitlines())
    assert (about["Width"], about["Height"], about["Frames"]) == ("64", "32", "7")
    assert float(about["Pixelsize"]) == 100


@pytest.mark.parametrize("table", [TABLE, SPATIAL], ids=["flat", "spatial"])
def test_a_table_goes_to_picasso_and_back(tmp_path: Path, table: pd.DataFrame) -> None:
    pytest.importorskip("h5py")
    export(table, tmp_path / "a.hdf5", camera=CAMERA, shape=(32, 64))
    back = read_localizations(tmp_path / "a.hdf5")
    assert_like(back, table)
    assert set(table) - set(back) <= {"id", "bkgstd [photon]"}
    assert back.attrs["stack_shape"] == (7, 32, 64)
    assert read_localizations(tmp_path / "a.hdf5", camera="pixelsize=200")["x [nm]"][1] == pytest.approx(2460)
    (tmp_path / "a.yaml").unlink()
    with pytest.raises(FijiBridgeError, match="does not say their size"):
        read_localizations(tmp_path / "a.hdf5")


def test_picassos_metadata_inside_a_file_count_as_well(tmp_path: Path) -> None:
    """Since 0.11 Picasso keeps a JSON text there."""
    h5py = pytest.importorskip("h5py")
    export(TABLE, tmp_path / "a.hdf5", camera=CAMERA)
    (tmp_path / "a.yaml").unlink()
    with h5py.File(tmp_path / "a.hdf5", "a") as file:
        file["metadata"] = '[{"Frames": 9, "Height": 20, "Width": 30}, {"Pixelsize": 50.0}]'
    back = read_localizations(tmp_path / "a.hdf5")
    assert back["x [nm]"].tolist() == pytest.approx([25, 615])
    assert back.attrs["stack_shape"] == (9, 20, 30)


def test_picassos_two_files_are_replaced_together_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("h5py")
    out, beside = tmp_path / "a.hdf5", tmp_path / "a.yaml"
    beside.write_text("somebody's")
    with pytest.raises(FijiBridgeError, match=r"a\.yaml goes with a\.hdf5, but is there already without it"):
        export(TABLE, out, camera=CAMERA)
    assert beside.read_text() == "somebody's" and list(tmp_path.iterdir()) == [beside]
    beside.unlink()
    export(TABLE, out, camera=CAMERA)
    export(TABLE, out, camera=CAMERA.replace(pixel_size_nm=50.0))
    assert read_localizations(out)["x [nm]"].tolist() == pytest.approx([50, 1230])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    rename = Path.replace

    def full(self: Path, target: Path) -> Path:
        if Path(target) == out:
            raise OSError(28, "No space left on device")
        return rename(self, target)

    for there in (before, {}):
        if not there:
            for name in before:
                (tmp_path / name).unlink()
        with monkeypatch.context() as broken:
            broken.setattr(Path, "replace", full)
            with pytest.raises(FijiBridgeError, match=r"Could not write .*a\.hdf5: No space left"):
                export(TABLE, out, camera=CAMERA)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == there


@pytest.mark.parametrize("path", ["a.hdf5", "a.csv", "a_sml.mat", "filepath=a.csv"])
@pytest.mark.parametrize(
    ("frame", "said"), [(0, "has a frame 0; number"), (1.5, "1.5 is not a whole number")]
)
def test_frames_count_from_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, frame: float, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FijiBridgeError, match=said):
        export(TABLE.assign(frame=[frame, 7]), path, camera=CAMERA)
    assert list(tmp_path.iterdir()) == []


def test_uncertainties_by_their_later_name_are_written(tmp_path: Path) -> None:
    later = TABLE.rename(columns={"uncertainty [nm]": "uncertainty_xy [nm]"})
    for name, rows in (("a.csv", TABLE), ("b.csv", later)):
        export(rows, tmp_path / name, format="smap")
    assert (tmp_path / "a.csv").read_text() == (tmp_path / "b.csv").read_text()


def test_what_localize_knows_need_not_be_said_again(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    table = TABLE.copy()
    table.attrs |= {"camera_setup": CAMERA.options(), "stack_shape": (40, 32, 64)}
    export(table, tmp_path / "a.hdf5")
    assert read_localizations(tmp_path / "a.hdf5").attrs["stack_shape"] == (40, 32, 64)


# locan 0.22 takes row 0 of each dataset of saveloc/loc, and calls xnmerr an uncertainty; Picasso and MATLAB's
# own format agree.


@pytest.mark.parametrize("table", [TABLE, SPATIAL], ids=["flat", "spatial"])
def test_a_table_goes_to_smap_and_back(tmp_path: Path, table: pd.DataFrame) -> None:
    h5py = pytest.importorskip("h5py")
    export(table, tmp_path / "a_sml.mat")
    assert (tmp_path / "a_sml.mat").read_bytes()[:19] == b"MATLAB 7.3 MAT-file"
    assert (tmp_path / "a_sml.mat").read_bytes()[124:128] == b"\x00\x02IM"
    with h5py.File(tmp_path / "a_sml.mat") as file:
        numbers = file["saveloc/loc"]
        assert numbers["phot"][0][:].tolist() == [700, 900]
        assert numbers["frame"][0][:].tolist() == [1, 7]
        assert {"xnm", "ynm", "bg", "PSFxnm", "PSFynm", "locprecnm", "xnmerr", "channel"} <= set(numbers)
        assert numbers["xnm"].attrs["MATLAB_class"] == b"double"
        assert bytes(file["fileformat/name"][:, 0].astype(np.uint8)) == b"sml"
    assert_like(read_localizations(tmp_path / "a_sml.mat"), table)


def test_smap_files_of_older_matlab_versions_are_read(tmp_path: Path) -> None:
    from scipy.io import savemat

    rows = {
        "xnm": [[50.0], [60.0]],
        "ynm": [[1.0], [2.0]],
        "frame": [[1.0], [3.0]],
        "PSFxnm": [[130.0], [120.0]],
    }
    savemat(tmp_path / "b_sml.mat", {"saveloc": {"loc": rows, "info": {"Width": 5.0}}})
    back = read_localizations(tmp_path / "b_sml.mat")
    assert back.to_dict("list") == {
        "frame": [1, 3], "x [nm]": [50, 60], "y [nm]": [1, 2], "sigma [nm]": [130, 120]
    }  # fmt: skip


def test_smaps_text_has_its_names(tmp_path: Path) -> None:
    export(TABLE, tmp_path / "a.csv", format="smap")
    rows = pd.read_csv(tmp_path / "a.csv")
    names = [
        "frame",
        "xnm",
        "ynm",
        "phot",
        "bg",
        "PSFxnm",
        "PSFynm",
        "locprecnm",
        "xnmerr",
        "ynmerr",
        "channel",
    ]
    assert list(rows) == names
    assert rows["xnm"].tolist() == [50, 1230]


# The programs themselves, where somebody has installed them.


def test_picasso_opens_our_files(tmp_path: Path) -> None:
    io = pytest.importorskip("picasso.io", reason="needs picassosr")
    export(TABLE, tmp_path / "a.hdf5", camera=CAMERA, shape=(32, 64))
    rows, about = io.load_locs(str(tmp_path / "a.hdf5"))
    assert (about[0]["Width"], about[0]["Pixelsize"]) == (64, 100.0)
    np.testing.assert_allclose(rows["x"], [0.0, 11.8], rtol=1e-6)
    export(TABLE, tmp_path / "b.csv", format="thunderstorm-1.4")
    np.testing.assert_allclose(
        io.import_ts(str(tmp_path / "b.csv"), 100.0)[0]["lpx"], [0.08, 0.07], rtol=1e-6
    )
    export(SPATIAL, tmp_path / "c_sml.mat")
    rows, _ = io.import_smap(str(tmp_path / "c_sml.mat"), 100.0)
    np.testing.assert_allclose(rows["z"], SPATIAL["z [nm]"])
    np.testing.assert_allclose(rows["lpz"], SPATIAL["uncertainty_z [nm]"])


def test_locan_opens_our_files(tmp_path: Path) -> None:
    locan = pytest.importorskip("locan", reason="needs locan")
    export(TABLE, tmp_path / "a_sml.mat")
    for name, version in (("b.csv", None), ("c.csv", "thunderstorm-1.4")):
        export(TABLE, tmp_path / name, format=version)
    smap = locan.load_SMAP_file(tmp_path / "a_sml.mat").data
    for found in (smap, *(locan.load_thunderstorm_file(tmp_path / name).data for name in ("b.csv", "c.csv"))):
        np.testing.assert_allclose(found["position_x"], TABLE["x [nm]"])
        np.testing.assert_allclose(found["intensity"], TABLE["intensity [photon]"])
        [label] = {"uncertainty", "uncertainty_x"} & set(found)
        np.testing.assert_allclose(found[label], TABLE["uncertainty [nm]"])


# ThunderSTORM


def test_csv_of_old_and_new_versions_are_the_same_table(tmp_path: Path) -> None:
    export(TABLE, tmp_path / "old.csv")
    export(TABLE, tmp_path / "new.csv", format="thunderstorm-1.4")
    write_localizations(TABLE, tmp_path / "same.csv")
    assert (tmp_path / "old.csv").read_text() == (tmp_path / "same.csv").read_text()
    assert '"uncertainty_xy [nm]"' in (tmp_path / "new.csv").read_text()
    old, new = (read_localizations(tmp_path / name) for name in ("old.csv", "new.csv"))
    pd.testing.assert_frame_equal(old, new)


@pytest.mark.parametrize(
    ("suffix", "name"), [("csv", "CSV (comma separated)"), ("xls", "XLS (tab separated)")]
)
def test_an_option_string_writes_what_the_plugins_command_wrote(
    references: Path, tmp_path: Path, suffix: str, name: str
) -> None:
    path = tmp_path / f"out.{suffix}"
    export(references / "short.csv", f"filepath=[{path}] fileformat=[{name}] id=false chi2=false")
    theirs = (references / f"format.{suffix}").read_text()
    assert path.read_text().splitlines()[0] == theirs.splitlines()[0]
    np.testing.assert_array_equal(
        read_localizations(path), read_localizations(references / f"format.{suffix}")
    )
    export(references / "short.csv", f"filepath=[{path}] fileformat=[{name}] id=true")
    assert "id" in read_localizations(path)


def test_the_names_of_formats_are_those_of_the_command_line() -> None:
    assert tuple(table_formats.FORMATS) == TABLE_FORMATS


@pytest.mark.parametrize(
    ("path", "options", "said"),
    [
        ("a.docx", {}, "names no format: end it in .csv or .xls or .hdf5 or .mat"),
        ("a.json", {}, "thunderstorm convert"),
        ("a.csv", {"format": "picasso"}, "no file of picasso; let it end in .hdf5"),
        ("a.csv", {"format": "xyz"}, "no format 'xyz'"),
        ("a.hdf5", {"camera": None}, "pixelsize="),
        ("a.mat", {}, "name it a_sml.mat"),
        ("filepath=", {}, "names no file"),
        ("filepath=a.xml fileformat=XML", {}, "thunderstorm convert"),
        ("filepath=a.csv height=true", {}, "no column height=; it has id, frame"),
    ],
)
def test_what_cannot_be_written_is_refused_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, options: dict[str, str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FijiBridgeError, match=said.replace("[", r"\[")) as error:
        export(TABLE, path, **({"camera": CAMERA} | options))  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_table_that_lacks_a_column_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    for path, lacking in (("a.hdf5", "intensity [photon]"), ("a_sml.mat", "frame"), ("a.csv", "x [nm]")):
        with pytest.raises(FijiBridgeError, match=lacking.replace("[", r"\[")):
            export(TABLE.drop(columns=lacking), tmp_path / path, camera=CAMERA)
    with pytest.raises(FijiBridgeError, match="written by the plugin"):
        export(TABLE, Export(path=str(tmp_path / "a.xml"), format=XML()))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["none.hdf5", "text.hdf5", "other.hdf5", "text.mat", "old.mat"])
def test_what_is_no_table_is_refused_in_one_sentence(tmp_path: Path, name: str) -> None:
    h5py = pytest.importorskip("h5py")
    for text in ("text.hdf5", "text.mat"):
        (tmp_path / text).write_text("no table")
    (tmp_path / "old.mat").write_bytes(b"MATLAB 5.0 MAT-file" + bytes(300))
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file["image"] = np.zeros(3)
    with pytest.raises(FijiBridgeError, match=name.replace(".", r"\.")) as error:
        read_localizations(tmp_path / name)
    assert "\n" not in str(error.value)


def test_places_that_are_no_numbers_are_not_exported_to_picasso(tmp_path):
    table = pd.DataFrame({"frame": [1, 2], "x [nm]": [100.0, np.inf], "y [nm]": [50.0, 60.0]})
    with pytest.raises(FijiBridgeError, match=r"no finite x \[nm\] in row 2"):
        export(table, tmp_path / "a.hdf5", camera="pixelsize=100")
