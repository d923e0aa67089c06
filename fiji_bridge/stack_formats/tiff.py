"""TIFF, BigTIFF, OME-TIFF (sets of files too), ImageJ and Micro-Manager TIFF."""

import logging
import math
import struct
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import tifffile

from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.stack_formats.recording import (
    Planes,
    Recording,
    coloured,
    named,
    nm_per,
    read_raw,
    square,
    truncated,
    xml,
)

# tifffile logs what it finds wrong, and Python prints that when nobody listens; here it becomes an error.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

PRINTING_NM = 5000.0
"""Dots per inch or centimetre that mean larger pixels than this describe a printout: 72 dpi is 352 µm."""

COLOURS = {2: "RGB", 5: "CMYK", 6: "YCbCr", 8: "CIELAB"}
PALETTE = 3


def read(path: Path) -> Recording:
    """Open a TIFF; of a set of OME-TIFF files any one gives the whole, of several positions its own."""
    with tifffile.TiffFile(path) as tif:
        master = _ome_master(tif, path)
        if master is None:
            return _read(tif, path)
    with tifffile.TiffFile(master) as tif:
        return _read(tif, path)


def _read(tif: tifffile.TiffFile, path: Path) -> Recording:
    """Read a file, or a set that `path` is one file of."""
    if not tif.pages:
        raise truncated(path, "no image can be found in it")
    _require_grey(tif.pages.first, path)
    found = _only_image(tif, path)
    _require_whole_list(tif, found, path)
    _require_set(tif, path)
    found = _without_unrecorded(found, path)
    images = _Images(found, path)
    data = Planes(found.sizes, found.plane, images.dtype, images.read)
    return Recording(data, found.axes, _pixel_size(tif), tuple(dict.fromkeys(images.paths)))


@dataclass(frozen=True)
class _Found:
    """The image in a file: axes before y and x, their sizes, height and width, tifffile's kind of it."""

    axes: str
    sizes: tuple[int, ...]
    plane: tuple[int, int]
    kind: str
    pages: list[Any]
    """In C order of the sizes, None for those not in the file; only one where all images are one piece."""
    start: int | None
    """Where that piece begins."""


def _ome_master(tif: tifffile.TiffFile, path: Path) -> Path | None:
    """Give the file that describes the set when this one only points to it."""
    pointer = xml(tif.ome_metadata).find("{*}BinaryOnly") if tif.is_ome else None
    if pointer is None:
        return None
    master = path.with_name(pointer.get("MetadataFile") or path.name)
    if master == path or not master.is_file() or master.suffix.lower() not in (".tif", ".tiff"):
        raise FijiBridgeError(
            f"{path} is one of a set and needs {master.name}; put that TIFF in the same folder."
        )
    return master


def _require_grey(page: tifffile.TiffPage, path: Path) -> None:
    photometric = int(page.photometric or 0)
    if photometric == PALETTE:
        raise FijiBridgeError(
            f"{path} has a colour palette; save it as grey (ImageJ: Image > Lookup Tables > Grays)."
        )
    if photometric in COLOURS or page.samplesperpixel > 1:
        raise coloured(path, COLOURS.get(photometric, f"{page.samplesperpixel} samples a pixel"))


def _only_image(tif: tifffile.TiffFile, path: Path) -> _Found:
    """Find the one image in the file."""
    series = [item for item in tif.series if not item.keyframe.is_reduced]
    if not series:
        raise FijiBridgeError(f"{path} holds nothing but thumbnails; save the full images.")
    first = series[0]
    alike = len({(item.shape, item.dtype, item.kind) for item in series}) == 1
    if len(series) > 1 and alike and first.kind in ("shaped", "generic") and len(first.shape) == 2:
        # written frame after frame, so that each became an image of its own
        pages = [page for item in series for page in item.pages]
        return _Found("T", (len(pages),), first.shape, first.kind, pages, None)
    if len(series) > 1:
        # positions of a Micro-Manager acquisition, one a file
        in_file = [item for item in series if any(_in_file(item.pages, path))]
        if len(in_file) != 1:
            shapes = " and ".join(" × ".join(map(str, item.shape)) for item in series[:2])
            raise FijiBridgeError(
                f"{path} holds {len(series)} separate images ({shapes}); save the one wanted by itself."
            )
        (first,) = in_file
    shape = zip(first.get_axes(squeeze=False), first.get_shape(squeeze=False), strict=True)
    kept = [(axis, size) for axis, size in shape if size > 1 or axis in "YX"]
    axes, sizes = "".join(axis for axis, _ in kept), tuple(size for _, size in kept)
    if not axes.endswith("YX"):
        raise FijiBridgeError(f"{path} has the axes {axes}; save grey images along time, channel and z.")
    lead, count, start = axes[:-2], sizes[:-2], first.dataoffset
    pages = list(first.pages) if start is None else [first.keyframe]
    if "R" in lead and start is None:
        lead, count, pages = _position_of(path, lead, count, pages)
    lead, count = named(lead, count, path)
    return _Found(lead, count, (sizes[-2], sizes[-1]), first.kind, pages, start)


def _in_file(pages: Iterable[Any], path: Path) -> list[bool]:
    name = str(path.resolve())
    return [page is not None and page.parent.filehandle.path == name for page in pages]


def _position_of(
    path: Path, axes: str, sizes: tuple[int, ...], pages: list[Any]
) -> tuple[str, tuple[int, ...], list[Any]]:
    """Take the position (axis R) whose images are in the file `path`, when it is only one."""
    inside = np.array(_in_file(pages, path)).reshape(sizes)
    axis = axes.index("R")
    here = np.flatnonzero(np.moveaxis(inside, axis, 0).reshape(sizes[axis], -1).any(axis=1))
    if len(here) != 1:
        return axes, sizes, pages
    kept = np.arange(inside.size).reshape(sizes).take(here[0], axis=axis)
    return axes.replace("R", ""), kept.shape, [pages[number] for number in kept.flat]


def _require_whole_list(tif: tifffile.TiffFile, found: _Found, path: Path) -> None:
    """Refuse a file whose list of pages breaks off, or that has fewer images than ImageJ says it wrote."""
    if found.kind == "imagej":
        return  # ImageJ says how many there are; that each lies within the file is checked with their places
    if tif.is_imagej and found.kind in ("generic", "uniform"):
        said, images = int((tif.imagej_metadata or {}).get("images", 1)), math.prod(found.sizes)
        if said > images:
            raise truncated(path, f"ImageJ wrote {said} images and only {images} can be found")
    pages = len(tif.pages)  # walks the whole list
    position = tif.pages.next_page_offset
    if position is None:
        return
    tif.filehandle.seek(position)
    link = tif.filehandle.read(tif.tiff.offsetsize)
    if (
        len(link) < tif.tiff.offsetsize
        or struct.unpack(tif.tiff.offsetformat, link)[0] >= tif.filehandle.size
    ):
        raise truncated(path, f"its list of pages breaks off after {pages}")


def _require_set(tif: tifffile.TiffFile, path: Path) -> None:
    """Refuse an image of which a file is missing; other positions' files need not be there."""
    if not tif.is_ome:
        return
    root = xml(tif.ome_metadata)
    own = root.get("UUID")
    images = [
        {uuid.text: uuid.get("FileName", "") for uuid in image.iterfind(".//{*}UUID")}
        for image in root.iterfind("{*}Image")
    ]
    mine = [files for files in images if path.name in files.values()]
    for files in mine or [files for files in images if own in files]:  # the second of a file that was renamed
        for uuid, name in files.items():
            if uuid != own and name and not path.with_name(name).is_file():
                raise FijiBridgeError(
                    f"{path} is one of a set and {name} is missing; put it in the same folder."
                )


def _without_unrecorded(found: _Found, path: Path) -> _Found:
    """Drop time points at the end that were planned and not recorded: a stopped Micro-Manager acquisition."""
    if None not in found.pages:
        return found
    there = np.array([page is not None for page in found.pages]).reshape(found.sizes)
    if "T" in found.axes:
        time = found.axes.index("T")
        whole = [bool(part.all()) for part in np.moveaxis(there, time, 0)]
        frames = sum(whole)
        if frames and all(whole[:frames]):
            kept = np.arange(there.size).reshape(found.sizes).take(range(frames), axis=time)
            return replace(found, sizes=kept.shape, pages=[found.pages[number] for number in kept.flat])
    raise truncated(path, f"image {int(np.flatnonzero(~there)[0]) + 1} of {there.size} is missing")


class _Images:
    """Where each image stands and how it is decoded; files are open only while they are read."""

    def __init__(self, found: _Found, path: Path) -> None:
        pages, count = found.pages, math.prod(found.sizes)
        keyframe = pages[0].keyframe
        if keyframe.dtype is None:
            raise FijiBridgeError(f"{path} has pixels of an unknown type; save it as 8-, 16- or 32-bit.")
        alike = {id(page.keyframe): page.keyframe for page in pages}.values()
        if any((page.shape, page.dtype) != (keyframe.shape, keyframe.dtype) for page in alike):
            raise FijiBridgeError(f"{path} has pages of different sizes or types; save images of one kind.")
        self.dtype = np.dtype(keyframe.dtype).newbyteorder("=")
        self._stored = self.dtype.newbyteorder(keyframe.parent.byteorder)
        self._raw = bool(keyframe.is_final)
        nbytes = math.prod(found.plane) * self.dtype.itemsize
        if found.start is not None:
            pages = pages * count
            self._starts = [found.start + number * nbytes for number in range(count)]
        elif len(pages) != count:
            raise FijiBridgeError(
                f"{path} does not store one image a page; save it as an ImageJ or OME TIFF."
            )
        else:
            self._starts = [page.dataoffsets[0] if len(page.dataoffsets) else 0 for page in pages]
        self._pages = pages
        parents = {id(page.parent): page.parent for page in found.pages}
        files = {number: Path(parent.filehandle.path) for number, parent in parents.items()}
        self.paths = [files[id(page.parent)] for page in pages]
        if self._raw:
            ends = [start + nbytes if start else 0 for start in self._starts]
        else:
            ends = [_end(page) for page in pages]
            for page in alike:
                page.decode  # noqa: B018 - making a decoder may read the file, so it is made while it is open
        self._require_inside(ends)

    def _require_inside(self, ends: list[int]) -> None:
        size = {path: path.stat().st_size for path in dict.fromkeys(self.paths)}
        for number, (end, path) in enumerate(zip(ends, self.paths, strict=True), 1):
            if not 0 < end <= size[path]:
                raise truncated(path, f"image {number} of {len(ends)} lies beyond its end")

    def read(self, numbers: list[int], out: np.ndarray) -> None:
        with ExitStack() as stack:
            files: dict[Path, BinaryIO] = {}
            for place, number in enumerate(numbers):
                path = self.paths[number]
                try:
                    if path not in files:
                        files[path] = stack.enter_context(path.open("rb", buffering=0))  # type: ignore[arg-type]
                    if self._raw:
                        read_raw(files[path], self._starts[number], out[place], self._stored)
                    else:
                        _read_segments(files[path], self._pages[number], out[place])
                except MemoryError:
                    raise
                except Exception as error:  # each decoder raises its own
                    reason = getattr(error, "strerror", None) or error
                    raise FijiBridgeError(
                        f"{path}: image {number + 1} cannot be read and may be damaged: {reason}."
                    ) from error


def _end(page: Any) -> int:
    ends = [start + size for start, size in zip(page.dataoffsets, page.databytecounts, strict=True)]
    return max(ends, default=0)


def _read_segments(file: BinaryIO, page: Any, out: np.ndarray) -> None:
    """Read an image that is compressed or tiled."""
    keyframe = page.keyframe
    for number, (offset, size) in enumerate(zip(page.dataoffsets, page.databytecounts, strict=True)):
        file.seek(offset)
        segment, (_, _, row, column, _), shape = keyframe.decode(
            file.read(size) if size else None,
            number,
            jpegtables=page.jpegtables,
            jpegheader=keyframe.jpegheader,
        )
        part = out[row : row + shape[1], column : column + shape[2]]
        part[:] = keyframe.nodata if segment is None else segment[0, : part.shape[0], : part.shape[1], 0]


def _pixel_size(tif: tifffile.TiffFile) -> float | None:
    """Give the pixel size [nm] that OME, Micro-Manager, LSM, or ImageJ and TIFF tags say, in this order."""
    if tif.is_ome:
        pixels = xml(tif.ome_metadata).find(".//{*}Pixels")
        size = None if pixels is None else _ome_pixel_size(dict(pixels.attrib))
        if size is not None:
            return size
    if tif.is_micromanager:
        summary = (tif.micromanager_metadata or {}).get("Summary", {})
        return square(summary.get("PixelSize_um"), None, 1e3)
    if tif.is_lsm:
        lsm = tif.lsm_metadata or {}
        return square(lsm.get("VoxelSizeX"), lsm.get("VoxelSizeY"), 1e9)
    return _tag_pixel_size(tif)


def _ome_pixel_size(pixels: dict[str, str]) -> float | None:
    """Read OME-XML's `Pixels`; its unit is µm where none is given."""
    x, y = (nm_per(pixels.get(f"PhysicalSize{axis}Unit", "µm")) for axis in "XY")
    if x != y and "PhysicalSizeY" in pixels:
        return None
    return square(pixels.get("PhysicalSizeX"), pixels.get("PhysicalSizeY"), x)


def _tag_pixel_size(tif: tifffile.TiffFile) -> float | None:
    tags = tif.pages.first.tags
    across, down = (_ratio(tags.valueof(name)) for name in ("XResolution", "YResolution"))
    if not (across and down):
        return None
    printing = {2: "inch", 3: "cm"}.get(int(tags.valueof("ResolutionUnit", default=2)))
    unit = (tif.imagej_metadata or {}).get("unit") if tif.is_imagej else None
    unit = printing if unit is None else unit
    size = square(1 / across, 1 / down, nm_per(unit))
    return None if size is not None and unit in ("inch", "cm") and size > PRINTING_NM else size


def _ratio(value: Any) -> float:
    return value[0] / value[1] if isinstance(value, tuple) and value[1] else 0.0
