import errno
import os
from pathlib import Path

import pytest

from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.files import replacing


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_output_appears_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "new" / "report.html"
    with replacing(target) as partial:
        partial.write_text("half")
        assert not target.exists() and partial.suffix == ".html"
    assert target.read_text() == "half" and names(target.parent) == ["report.html"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_fails_leaves_the_old_output_alone(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "table.csv"
    target.write_text("old")
    with pytest.raises(error), replacing(target) as partial:
        partial.write_text("new")
        raise error
    assert target.read_text() == "old" and names(tmp_path) == ["table.csv"]


def test_a_full_disk_is_one_sentence_that_names_the_output(tmp_path: Path) -> None:
    target = tmp_path / "a.tif"
    with pytest.raises(FijiBridgeError) as error, replacing(target) as partial:
        partial.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert str(error.value) == f"Could not write {target}: {os.strerror(errno.ENOSPC)}."
    assert names(tmp_path) == []


def test_a_zarr_store_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "a.zarr"
    for chunk in ("0.0", "1.0"):
        with replacing(target) as partial:
            partial.mkdir()
            (partial / ".zgroup").write_text("{}")
            (partial / chunk).write_text("pixels")
    assert names(target) == [".zgroup", "1.0"] and names(tmp_path) == ["a.zarr"]


def test_a_store_that_cannot_be_put_in_place_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "a.zarr"
    target.mkdir()
    (target / ".zgroup").write_text("old")
    original = Path.replace

    def refuse(self: Path, other: Path) -> Path:
        if other == target and self.suffix == ".zarr":
            raise OSError(errno.EIO, "input/output error")
        return original(self, other)

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(FijiBridgeError, match=r"a\.zarr"), replacing(target) as partial:
        partial.mkdir()
    assert (target / ".zgroup").read_text() == "old" and names(tmp_path) == ["a.zarr"]


@pytest.mark.parametrize("name", ["results", "results.zarr"])
def test_a_folder_that_is_no_output_is_never_replaced(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.txt").write_text("precious")
    with pytest.raises(FijiBridgeError, match=f"{name} is a folder"), replacing(tmp_path / name):
        pass
    assert names(tmp_path / name) == ["thesis.txt"]


def test_a_file_where_a_folder_should_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("a file")
    told = pytest.raises(FijiBridgeError, match=r"Cannot make the folder .*notes for a\.tif")
    with told, replacing(tmp_path / "notes" / "a.tif"):
        pass


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_folder_that_is_not_writable_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(FijiBridgeError, match="not writable"), replacing(tmp_path / "a.tif"):
            pass
    finally:
        tmp_path.chmod(0o700)
