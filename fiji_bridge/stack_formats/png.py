"""Grey PNG of 8 or 16 bits."""

import struct
from pathlib import Path

import numpy as np

from fiji_bridge.stack_formats.recording import Planes, Recording, coloured, truncated

COLOURS = {2: "RGB", 3: "a colour palette", 4: "grey with transparency", 6: "RGB with transparency"}


def read(path: Path) -> Recording:
    """Open a PNG; its header says all that is needed, and its list of chunks whether it is whole."""
    with path.open("rb") as file:
        head = file.read(26)
        if len(head) < 26:
            raise truncated(path, "its header is cut off")
        width, height, depth, colour = struct.unpack(">IIBB", head[16:])
        if colour in COLOURS:
            raise coloured(path, COLOURS[colour])
        position, name = 8, b""
        while name != b"IEND":
            file.seek(position)
            chunk = file.read(8)
            if len(chunk) < 8:
                raise truncated(path, "its end is missing")
            length, name = struct.unpack(">I4s", chunk)
            position += length + 12

    def read_image(numbers: list[int], out: np.ndarray) -> None:
        import imagecodecs

        out[:] = imagecodecs.png_decode(path.read_bytes())

    dtype = np.dtype("uint16" if depth == 16 else "uint8")
    return Recording(Planes((), (height, width), dtype, read_image), "", None, (path,))
