"""Tables for other programs have their names, units and origins."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fiji_bridge.camera import Camera
from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.exports import write_picasso, write_smap
from fiji_bridge.localizations import read_localizations, write_localizations

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


def test_picasso_counts_frames_from_0_and_pixels_from_their_centres(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    write_picasso(TABLE, tmp_path / "a.hdf5", camera=CAMERA, width_px=64, height_px=32)
    with h5py.File(tmp_path / "a.hdf5") as file:
        rows = file["locs"][...]
    assert rows["frame"].tolist() == [0, 6]
    np.testing.assert_allclose(rows["x"], [0.0, 11.8], rtol=1e-6)
    np.testing.assert_allclose(rows["y"], [1.0, 0.3], rtol=1e-6)
    np.testing.assert_allclose(rows["lpx"], [0.08, 0.07], rtol=1e-6)
    np.testing.assert_allclose(rows["sx"], rows["sy"])
    about = dict(line.split(": ") for line in (tmp_path / "a.yaml").read_text().splitlines())
    assert about["Width"] == "64"
    assert about["Height"] == "32"
    assert about["Frames"] == "7"
    assert float(about["Pixelsize"]) == 100


def test_smap_has_its_names(tmp_path: Path) -> None:
    write_smap(TABLE, tmp_path / "a.csv")
    rows = pd.read_csv(tmp_path / "a.csv")
    assert list(rows) == ["frame", "xnm", "ynm", "phot", "bg", "PSFxnm", "locprecnm"]
    assert rows["xnm"].tolist() == [50, 1230]
    h5py = pytest.importorskip("h5py")
    write_smap(TABLE, tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["saveloc/loc/phot"][...].tolist() == [700, 900]


def test_what_cannot_be_written_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(FijiBridgeError, match="hdf5"):
        write_picasso(TABLE, tmp_path / "a.csv", camera=CAMERA, width_px=9, height_px=9)
    with pytest.raises(FijiBridgeError, match="intensity"):
        write_picasso(
            TABLE.drop(columns="intensity [photon]"),
            tmp_path / "a.hdf5",
            camera=CAMERA,
            width_px=9,
            height_px=9,
        )
    with pytest.raises(FijiBridgeError, match="suffix"):
        write_smap(TABLE, tmp_path / "a.txt")
    assert list(tmp_path.iterdir()) == []


def test_csv_of_old_and_new_versions_are_the_same_table(tmp_path: Path) -> None:
    write_localizations(TABLE, tmp_path / "old.csv")
    text = (tmp_path / "old.csv").read_text()
    (tmp_path / "new.csv").write_text(text.replace("uncertainty [nm]", "uncertainty_xy [nm]"))
    old, new = (read_localizations(tmp_path / name) for name in ("old.csv", "new.csv"))
    pd.testing.assert_frame_equal(old, new)
