"""Zeiss CZI, through the package czifile of the extra `formats`."""

import math
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.stack_formats.recording import (
    Planes,
    Recording,
    coloured,
    named,
    needs_extra,
    square,
    truncated,
    xml,
)


def read(path: Path) -> Recording:
    """Open a CZI file of one scene without mosaic tiles."""
    try:
        import czifile
    except ImportError as error:
        raise needs_extra(path) from error
    file = czifile.CziFile(str(path))
    try:
        entries = [entry for entry in file.subblock_directory if not entry.pyramid_type]
        if not entries:
            raise truncated(path, "no image can be found in it")
        places, planes = zip(*(_place(entry) for entry in entries), strict=True)
        if len(set(planes)) > 1:
            raise FijiBridgeError(f"{path} has images of different sizes; save images of one size.")
        starts = {axis: np.array([place[axis] for place in places]) for axis in places[0]}
        starts = {axis: start - start.min() for axis, start in starts.items() if np.ptp(start)}
        axes, lead = named("".join(starts), tuple(int(start.max()) + 1 for start in starts.values()), path)
        if len(entries) != math.prod(lead):
            raise truncated(path, f"{len(entries)} of {math.prod(lead)} images can be found")
        numbers = np.ravel_multi_index(tuple(starts.values()), lead) if lead else np.zeros(1, int)
        entry_at = dict(zip(numbers.tolist(), entries, strict=True))
        first = _image(file, entries[0])
        if first.size != math.prod(planes[0]):
            raise coloured(path, f"{first.shape[-1]} samples a pixel")
        size = _pixel_size(file.metadata())
    except BaseException:
        file.close()
        raise
    lock = threading.Lock()

    def read_images(numbers: list[int], out: np.ndarray) -> None:
        for place, number in enumerate(numbers):
            with lock:
                image = _image(file, entry_at[number])
            out[place] = image.reshape(out.shape[1:])

    data = Planes(lead, planes[0], first.dtype, read_images)
    weakref.finalize(data, file.close)
    return Recording(data, axes, size, (path,))


def _place(entry: Any) -> tuple[dict[str, int], tuple[int, int]]:
    """Give a subblock's place along each axis, mosaic tile M and scene S too, and its height and width."""
    axes = getattr(entry, "dims", None) or entry.axes.rstrip("0")  # czifile of 2026, and of 2019
    place = dict(zip(axes, entry.start, strict=False))
    shape = dict(zip(axes, entry.shape, strict=False))
    place["M"] = entry.mosaic_index or 0
    place["S"] = getattr(entry, "scene_index", place.get("S", 0))
    return {axis: start for axis, start in place.items() if axis not in "YX"}, (shape["Y"], shape["X"])


def _image(file: Any, entry: Any) -> np.ndarray:
    segment = entry.data_segment() if hasattr(entry, "data_segment") else entry.read_segment_data(file)
    return np.asarray(segment.data())


def _pixel_size(metadata: str | None) -> float | None:
    root = xml(metadata)
    x, y = (root.findtext(f".//Scaling/Items/Distance[@Id='{axis}']/Value") for axis in "XY")
    return square(x, y, 1e9)
