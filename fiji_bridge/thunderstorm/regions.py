"""Regions of interest: what part of the frames the plugin looks at."""

import os
import re
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fiji_bridge.errors import FijiBridgeError

Region = str | os.PathLike[str] | Sequence[int] | np.ndarray
"""A rectangle x, y, width, height [pixels], a mask (y, x) that is true inside, or an ImageJ .roi file."""


def checked(region: Region | None, shape: tuple[int, int]) -> tuple[int, ...] | Path | np.ndarray | None:
    """Read a region and make sure that it is one of frames (y, x); a file is only looked for.

    Raises
    ------
    FijiBridgeError
        If it is none of the three, is empty, or reaches out of the frames.
    """
    if region is None:
        return None
    if isinstance(region, (str, os.PathLike)):
        numbers = re.fullmatch(r"\s*\(?(-?[\d.]+(?:[\s,]+-?[\d.]+)*)\)?\s*", str(region))
        if not numbers or not re.search(r"\d", numbers[1]):
            return _file(Path(region))
        given: Any = [_number(number) for number in re.split(r"[\s,]+", numbers[1])]
    else:
        given = region
    try:
        values = np.asarray(given)
    except ValueError:  # rows of unlike lengths
        values = np.empty(0)
    return _mask(values, shape) if values.ndim == 2 else _rectangle(values, shape)


def _number(text: str) -> int | str:
    return int(text) if re.fullmatch(r"-?\d+", text) else text


def _file(path: Path) -> Path:
    if not path.is_file():
        raise FijiBridgeError(
            f"There is no file {path}; roi takes x,y,width,height or a .roi file of ImageJ's."
        )
    return path.absolute()


def _mask(mask: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    if mask.dtype != bool or mask.shape != shape or not mask.any():
        raise FijiBridgeError(
            f"roi is a mask of {mask.dtype} {mask.shape} with {np.count_nonzero(mask)} pixels inside; give a "
            f"boolean one of the frames' shape {shape} (y, x) that is true somewhere."
        )
    return mask


def _rectangle(region: np.ndarray, shape: tuple[int, int]) -> tuple[int, ...]:
    if region.shape != (4,) or region.dtype.kind not in "iu":
        raise FijiBridgeError(
            f"roi={reprlib.repr(region.tolist())} is no region; give x,y,width,height in whole pixels, a "
            "mask (y, x) or a .roi file of ImageJ's."
        )
    x, y, width, height = (int(number) for number in region)
    _require_inside((x, y, width, height), shape, f"roi={x},{y},{width},{height}")
    return x, y, width, height


def _require_inside(bounds: tuple[int, ...], shape: tuple[int, int], name: str) -> None:
    x, y, width, height = bounds
    if min(x, y) < 0 or min(width, height) < 1 or x + width > shape[1] or y + height > shape[0]:
        raise FijiBridgeError(
            f"{name} (x, y, width, height: {x}, {y}, {width}, {height}) is not inside the frames, which are "
            f"{shape[1]} pixels wide and {shape[0]} high; choose a region in them."
        )


def java_roi(region: tuple[int, ...] | Path | np.ndarray | None, shape: tuple[int, int]) -> Any:
    """Give what `checked` gave as an `ij.gui.Roi`, the whole frame for None.

    Raises
    ------
    FijiBridgeError
        If a file is no selection of ImageJ's, has no area, or reaches out of the frames (y, x).
    """
    from jpype import JArray, JByte, JClass

    if region is None or isinstance(region, tuple):
        return JClass("ij.gui.Roi")(*(region or (0, 0, shape[1], shape[0])))
    if isinstance(region, Path):
        return _decoded(region, shape)
    inside = np.where(region, -1, 0).astype(np.int8)  # Java's bytes are signed
    pixels = JClass("ij.process.ByteProcessor")(shape[1], shape[0], JArray(JByte)(inside.ravel()))
    pixels.setThreshold(255, 255, pixels.NO_LUT_UPDATE)
    return JClass("ij.plugin.filter.ThresholdToSelection")().convert(pixels)


def _decoded(path: Path, shape: tuple[int, int]) -> Any:
    from jpype import JClass, JException

    try:
        roi = JClass("ij.io.RoiDecoder")(str(path)).getRoi()
    except JException:
        roi = None
    if roi is None or not roi.isArea():
        raise FijiBridgeError(
            f"{path} is no selection with an area; save one in ImageJ with File > Save As > Selection."
        )
    _require_inside(bounds(roi), shape, str(path))
    return roi


def bounds(roi: Any) -> tuple[int, int, int, int]:
    """Give x, y, width and height [pixels] of the rectangle around a Java region."""
    box = roi.getBounds()
    return int(box.x), int(box.y), int(box.width), int(box.height)
