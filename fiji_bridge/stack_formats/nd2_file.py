"""Nikon ND2, through the package nd2 of the extra `formats`."""

import math
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from fiji_bridge.stack_formats.recording import (
    Planes,
    Recording,
    coloured,
    named,
    needs_extra,
    square,
    truncated,
)


def read(path: Path) -> Recording:
    """Open an ND2 file of one position."""
    try:
        import nd2
    except ImportError as error:
        raise needs_extra(path) from error
    file = nd2.ND2File(path)
    try:
        if file.is_rgb:
            raise coloured(path, "RGB")
        sizes = {axis: size for axis, size in file.sizes.items() if size > 1 and axis not in "YX"}
        loops = [axis for axis in sizes if axis != "C"]
        planned, recorded = math.prod(sizes[axis] for axis in loops), file.attributes.sequenceCount
        if loops == ["T"]:
            sizes["T"] = min(planned, recorded)  # a recording that was stopped
        elif recorded < planned:
            raise truncated(path, f"{recorded} of {planned} frames were recorded")
        axes, lead = named("".join(sizes), tuple(sizes.values()), path)
        channels = sizes.get("C", 1)
        # a stored frame has all channels; image numbers below are those of (frame, channel)
        frames = np.zeros([sizes[axis] for axis in loops], dtype=int)
        for number, place in enumerate(file.loop_indices[: frames.size]):
            frames[tuple(place[axis] for axis in loops)] = number
        images = frames[..., None] * channels + np.arange(channels)
        if "C" in sizes:
            images = np.moveaxis(images, -1, list(sizes).index("C"))
        stored = images.ravel().tolist()
        plane = (file.sizes["Y"], file.sizes["X"])
        size = _pixel_size(file)
        dtype = np.dtype(file.dtype)
    except BaseException:
        file.close()
        raise
    lock = threading.Lock()

    def read_images(numbers: list[int], out: np.ndarray) -> None:
        for place, number in enumerate(numbers):
            frame, channel = divmod(stored[number], channels)
            with lock:
                out[place] = file.read_frame(frame).reshape(channels, *plane)[channel]

    data = Planes(lead, plane, dtype, read_images)
    weakref.finalize(data, file.close)
    return Recording(data, axes, size, (path,))


def _pixel_size(file: Any) -> float | None:
    try:
        channels = getattr(file.metadata, "channels", None)
    except Exception:  # nd2 stumbles over the metadata of rare devices; the images are there all the same
        return None
    if not channels or not all(channels[0].volume.axesCalibrated[:2]):
        return None
    x, y, _ = channels[0].volume.axesCalibration
    return square(x, y, 1e3)
