"""Princeton Instruments SPE 2.x (WinSpec, WinView) and 3.0 (LightField).

The layout is that of "SPE 3.0 File Format Specification", Teledyne Princeton Instruments 4411-0140 (2019): a
header of 4100 bytes, frames one after the other, and in 3.0 a footer in XML that says how large a frame is
and how far it is to the next.
"""

import struct
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.stack_formats.recording import Planes, Recording, read_raw, truncated

HEADER = 4100
DTYPE = {0: "<f4", 1: "<i4", 2: "<i2", 3: "<u2", 5: "<f8", 6: "u1", 8: "<u4"}
PIXEL_FORMAT = {"MonochromeUnsigned16": "<u2", "MonochromeUnsigned32": "<u4", "MonochromeFloating32": "<f4"}


def read(path: Path) -> Recording:
    """Open an SPE file with one region of interest."""
    size = path.stat().st_size
    with path.open("rb") as file:
        header = file.read(HEADER)
        if len(header) < HEADER:
            raise truncated(path, "it is shorter than the header of an SPE file")
        width, height = (struct.unpack_from("<H", header, offset)[0] for offset in (42, 656))
        kind, frames, version, footer = (
            struct.unpack_from(code, header, offset)[0]
            for code, offset in (("<h", 108), ("<i", 1446), ("<f", 1992), ("<Q", 678))
        )
        dtype, end = DTYPE.get(kind), size
        step = width * height * np.dtype(dtype or "u1").itemsize
        if version >= 3:
            if not HEADER < footer < size:
                raise truncated(path, "its footer is missing")
            file.seek(footer)
            end = footer
            frames, width, height, dtype, step = _footer(file.read(), path)
    if dtype is None or min(width, height, frames, step) < 1:
        raise FijiBridgeError(f"{path} is not an SPE file that can be read; its header describes no image.")
    if HEADER + frames * step > end:
        raise truncated(path, f"{max(end - HEADER, 0) // step} of {frames} frames are there")
    stored = np.dtype(dtype)

    def read_images(numbers: list[int], out: np.ndarray) -> None:
        with path.open("rb") as file:
            for place, number in enumerate(numbers):
                read_raw(file, HEADER + number * step, out[place], stored)

    return Recording(
        Planes((frames,), (height, width), stored.newbyteorder("="), read_images), "T", None, (path,)
    )


def _footer(text: bytes, path: Path) -> tuple[int, int, int, str | None, int]:
    """Give frames, width, height, pixel type and the bytes from frame to frame."""
    frame = ElementTree.fromstring(text).find("{*}DataFormat/{*}DataBlock[@type='Frame']")
    regions = [] if frame is None else frame.findall("{*}DataBlock[@type='Region']")
    if frame is None or len(regions) != 1:
        raise FijiBridgeError(f"{path} has {len(regions)} regions of interest; record or export one.")
    width, height = (int(regions[0].get(key) or 0) for key in ("width", "height"))
    dtype = PIXEL_FORMAT.get(frame.get("pixelFormat") or "")
    return int(frame.get("count") or 0), width, height, dtype, int(frame.get("stride") or 0)
