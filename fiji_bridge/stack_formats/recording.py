"""What every format's reader gives: an array that reads when it is sliced, its axes and its pixel size."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from xml.etree import ElementTree

import numpy as np

from fiji_bridge.errors import FijiBridgeError

NM_PER_UNIT = {
    "m": 1e9,
    "meter": 1e9,
    "cm": 1e7,
    "mm": 1e6,
    "millimeter": 1e6,
    "µm": 1e3,
    "um": 1e3,
    "micron": 1e3,
    "microns": 1e3,
    "micrometer": 1e3,
    "nm": 1.0,
    "nanometer": 1.0,
    "å": 0.1,
    "angstrom": 0.1,
    "pm": 1e-3,
    "in": 2.54e7,
    "inch": 2.54e7,
}


@dataclass(frozen=True)
class Recording:
    """What a file holds, as it is stored."""

    data: Any
    """Has `shape` and `dtype`, and reads when it is sliced."""
    axes: str
    """A letter among T, C and Z for each dimension before the last two, which are y and x."""
    pixel_size_nm: float | None
    files: tuple[Path, ...]
    """All files that it is read from."""


class Planes:
    """Looks like an array (…, y, x) whose images are read one by one when they are asked for.

    Parameters
    ----------
    lead
        Shape of the dimensions before y and x.
    plane
        Height and width.
    dtype
        Of the pixels.
    read
        Called with numbers of images, in C order of `lead`, and an array (number, y, x) to fill with them.
        Several threads may call it at once.
    """

    def __init__(
        self,
        lead: tuple[int, ...],
        plane: tuple[int, int],
        dtype: np.dtype[Any],
        read: Callable[[list[int], np.ndarray], None],
    ) -> None:
        self.shape = (*lead, *plane)
        self.dtype = dtype
        self._numbers = np.arange(math.prod(lead)).reshape(lead)
        self._read = read

    def __getitem__(self, key: Any) -> np.ndarray:
        key = padded(key, len(self.shape))
        numbers = np.asarray(self._numbers[key[:-2]])
        out = np.empty((numbers.size, *self.shape[-2:]), self.dtype)
        self._read(numbers.ravel().tolist(), out)
        return out.reshape(*numbers.shape, *self.shape[-2:])[(..., *key[-2:])]


class Arranged:
    """Looks like `data` with its axes in another order.

    Done underneath dask, since dask reads too much when its own transposing stands before a slice.

    Parameters
    ----------
    data
        An array.
    axes
        A letter for each of its dimensions.
    wanted
        The order to show them in; those left out must be of length one, those added are.
    """

    def __init__(self, data: Any, axes: str, wanted: str) -> None:
        sizes = dict(zip(axes, data.shape, strict=True))
        self.shape = tuple(sizes.get(axis, 1) for axis in wanted)
        self.dtype = data.dtype
        self._data = data
        self._axes = axes
        self._wanted = wanted
        self._added = [axis for axis in wanted if axis not in axes]
        order = self._added + [axis for axis in axes if axis in wanted]
        self._order = [order.index(axis) for axis in wanted]

    def __getitem__(self, key: Any) -> np.ndarray:
        asked = dict(zip(self._wanted, padded(key, len(self.shape)), strict=True))
        single = [axis for axis, item in asked.items() if isinstance(item, int | np.integer)]
        slices = {axis: slice(item, item + 1) if axis in single else item for axis, item in asked.items()}
        block = np.asarray(self._data[tuple(slices.get(axis, 0) for axis in self._axes)])
        block = block[(None,) * len(self._added)].transpose(self._order)
        return block[tuple(0 if axis in single else slice(None) for axis in self._wanted)]


class Picked:
    """Looks like `data` (t, …, y, x) at one place along the axes between."""

    def __init__(self, data: Any, place: Sequence[int]) -> None:
        self.shape = (data.shape[0], *data.shape[-2:])
        self.dtype = data.dtype
        self._data = data
        self._place = place

    def __getitem__(self, key: Any) -> np.ndarray:
        first, *rest = padded(key, 3)
        return np.asarray(self._data[(first, *self._place, *rest)])


class Joined:
    """Looks like several arrays one after the other along their first axis."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self._parts = parts
        self._starts = np.cumsum([0, *(part.shape[0] for part in parts)])
        self.shape = (int(self._starts[-1]), *parts[0].shape[1:])
        self.dtype = parts[0].dtype

    def __getitem__(self, key: Any) -> np.ndarray:
        first, *rest = padded(key, len(self.shape))
        if isinstance(first, int | np.integer):
            return self[(slice(first, first + 1), *rest)][0]
        wanted = np.arange(self.shape[0])[first]
        owners = np.searchsorted(self._starts, wanted, side="right") - 1
        blocks = [np.empty((0, *self.shape[1:]), self.dtype)[(slice(None), *rest)]]
        for owner in np.unique(owners):
            inside = wanted[owners == owner] - self._starts[owner]
            frames = slice(int(inside[0]), int(inside[-1]) + 1, first.step)
            blocks.append(np.asarray(self._parts[owner][(frames, *rest)]))
        return blocks[1] if len(blocks) == 2 else np.concatenate(blocks)


def padded(key: Any, ndim: int) -> tuple[Any, ...]:
    """Give an index with an entry for each dimension."""
    key = key if isinstance(key, tuple) else (key,)
    return key + (slice(None),) * (ndim - len(key))


def read_raw(file: BinaryIO, offset: int, out: np.ndarray, stored: np.dtype[Any]) -> None:
    """Read an uncompressed image into `out`; turn its bytes around when `stored` has another order."""
    file.seek(offset)
    rest = out.data.cast("B")
    while rest:
        count = file.readinto(rest)  # type: ignore[attr-defined]
        if not count:
            raise EOFError("the file ends within it")
        rest = rest[count:]
    if not stored.isnative:
        out.byteswap(inplace=True)


def truncated(path: Path, detail: str) -> FijiBridgeError:
    """Give the error for a file that ends before its images do."""
    return FijiBridgeError(f"{path} is truncated: {detail}; copy or record it again.")


def coloured(path: Path, kind: str) -> FijiBridgeError:
    """Give the error for an image with more than one sample a pixel."""
    return FijiBridgeError(f"{path} is a colour image ({kind}); save its channels as grey images.")


def named(lead: str, sizes: tuple[int, ...], path: Path) -> tuple[str, tuple[int, ...]]:
    """Take pages that nothing names (I, Q) as frames in time; refuse axes beyond time, channel and z."""
    if lead and set(lead) <= set("IQ"):
        return "T", (math.prod(sizes),)
    unknown = [axis for axis in lead if axis not in "TCZ"]
    if len(unknown) == 1 and unknown[0] in "IQ" and "T" not in lead:
        return lead.replace(unknown[0], "T"), sizes
    if unknown:
        kinds = {"R": "positions", "P": "positions", "S": "scenes or samples", "M": "mosaic tiles"}
        what = kinds.get(unknown[0], f"entries along the axis {unknown[0]}")
        count = sizes[lead.index(unknown[0])]
        raise FijiBridgeError(f"{path} holds {count} {what}; save the one wanted by itself.")
    return lead, sizes


def nm_per(unit: Any) -> float | None:
    """Nanometres in a unit as microscopy software spells it; None for pixels and unknown ones."""
    spelled = with_micro_sign(str(unit or "")).strip().lower()
    return NM_PER_UNIT.get(spelled, NM_PER_UNIT.get(spelled.replace("metre", "meter")))


def with_micro_sign(unit: str) -> str:
    """Write each spelling of micro as the micro sign: the Greek letter, and ImageJ's escape."""
    return unit.replace("\\u00B5", "µ").replace("\\u00b5", "µ").replace("μ", "µ")


def square(x: Any, y: Any, nm_per_unit: float | None) -> float | None:
    """Give the size of a pixel [nm]; None when it is not said, not positive, or not square (to 1%)."""
    try:
        width, height = float(x), float(x if y is None else y)
    except (TypeError, ValueError):
        return None
    if nm_per_unit is None or not 0 < width < math.inf or not abs(height / width - 1) < 0.01:
        return None
    return float(f"{width * nm_per_unit:.6g}")  # files store fractions of limited precision


def xml(text: str | None) -> ElementTree.Element:
    """Parse XML; what is not gives an empty element."""
    try:
        return ElementTree.fromstring(text or "<none/>")
    except ElementTree.ParseError:
        return ElementTree.Element("none")


def needs_extra(path: Path) -> FijiBridgeError:
    """Give the error for a format whose package is not installed."""
    kind = path.suffix.lstrip(".").upper()
    return FijiBridgeError(f'{path} is {kind}, which needs: pip install "fiji-bridge[formats]".')
