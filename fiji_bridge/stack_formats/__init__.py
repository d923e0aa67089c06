"""What files hold and how their frames are read when they are asked for, one module for each format."""

import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.stack_formats.recording import Arranged, Joined, Picked, Recording

__all__ = ["Arranged", "Joined", "Picked", "Recording", "images_in", "is_zarr", "read", "read_zarr"]

MAGIC = {
    b"II*\0": "tiff",
    b"MM\0*": "tiff",
    b"II+\0": "tiff",
    b"MM\0+": "tiff",
    b"\x89PNG\r\n\x1a\n": "png",
    b"ZISRAWFILE": "czi_file",
    b"\xda\xce\xbe\x0a": "nd2_file",
    b"\0\0\0\x0cjP  ": "nd2_file",
}
"""Module for the bytes that a file begins with; SPE has none and goes by its suffix."""

SUFFIXES = (".tif", ".tiff", ".btf", ".tf2", ".tf8", ".lsm", ".stk", ".png", ".nd2", ".czi", ".spe")
"""Files that count as images in a folder."""


def read(path: Path) -> Recording:
    """Open a file of any known format, or a Zarr folder.

    Raises
    ------
    FijiBridgeError
        If the file is missing, empty, damaged, not an image, or no stack of grey images.
    """
    if path.is_dir():
        return read_zarr(path)
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise FijiBridgeError(f"Cannot open {path}: {error.strerror or error}.") from error
    if not head:
        raise FijiBridgeError(f"{path} is an empty file (zero bytes); record or copy it again.")
    module = next((module for magic, module in MAGIC.items() if head.startswith(magic)), None)
    if module is None and path.suffix.lower() == ".spe":
        module = "spe"
    if module is None:
        raise FijiBridgeError(
            f"{path} is not an image that can be read; give a TIFF, OME-TIFF, PNG, ND2, CZI or SPE file, "
            "a Zarr store or a folder of images."
        )
    reader: Callable[[Path], Recording] = import_module(f"{__name__}.{module}").read
    try:
        return reader(path)
    except (FijiBridgeError, MemoryError):
        raise
    except Exception as error:  # whatever a damaged file makes a parser raise
        reason = str(error) or type(error).__name__
        raise FijiBridgeError(
            f"{path} cannot be read and may be damaged ({reason}); copy it again."
        ) from error


def read_zarr(source: object) -> Recording:
    """Open a Zarr store by its path, or a zarr array or group."""
    from fiji_bridge.stack_formats.ngff import read as reader

    return reader(source)


def is_zarr(path: Path) -> bool:
    """Tell a Zarr store from a folder of images."""
    return any((path / name).is_file() for name in ("zarr.json", ".zarray", ".zgroup", ".zattrs"))


def images_in(folder: Path) -> list[Path]:
    """Give the images in a folder in natural order: `2.tif` before `10.tif`."""
    try:
        files = sorted(folder.iterdir(), key=lambda file: natural(file.name))
    except OSError as error:
        raise FijiBridgeError(f"Cannot look into {folder}: {error.strerror or error}.") from error
    found = [file for file in files if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")]
    if not found:
        raise FijiBridgeError(f"The folder {folder} has no images in it ({', '.join(SUFFIXES)}).")
    return found


def natural(name: str) -> list[tuple[int, int, str]]:
    """Give a sort key by which the numbers in names count as numbers."""
    pieces = [piece for piece in re.split(r"(\d+)", name.lower()) if piece]
    return [(0, int(piece), "") if piece.isdecimal() else (1, 0, piece) for piece in pieces] + [(0, -1, name)]
