"""Stacks of frames: opened lazily with their pixel size, read in blocks of frames, written as they come."""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import numpy as np

from fiji_bridge import stack_formats
from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.progress import Progress, silent
from fiji_bridge.stack_writer import DTYPES, StackWriter

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["StackWriter", "frame_blocks", "open_stack", "positions", "write_stack"]

DIMS: tuple[str, ...] = ("t", "c", "z", "y", "x")
MOST_CHANNELS = 7
"""What ImageJ can show at once."""

CHUNK_BYTES = 16 << 20
BLOCK_BYTES = 64 << 20


def open_stack(source: Any, *, pixel_size_nm: float | None = None) -> "xr.DataArray":
    """Open a stack of frames without reading it.

    Parameters
    ----------
    source
        The path of a TIFF, BigTIFF, OME-TIFF (any one file of a split set), ImageJ hyperstack, Zarr array or
        group (OME-NGFF: its full resolution), PNG, SPE, or, with the extra `formats`, ND2 or CZI; a folder of
        such images, taken in natural order (`2.tif` before `10.tif`); a list of paths, one stack in the order
        given; an array (y, x) or (t, y, x); a DataArray with some of the dims t, c, z, y, x; a zarr array or
        group.
    pixel_size_nm
        Size of a pixel in the sample [nm]; takes the place of what the file says.

    Returns
    -------
    xarray.DataArray
        Dims (t, c, z, y, x), of which c and z only when longer than one; dtype as in the file. Backed by
        dask: only frames that are asked for are read. Attributes: `pixel_size_nm` (None when not known; what
        printers and screens call resolution does not count), `source` (for messages), `axes_from_file`,
        such as "TYX", and `files` where several were named.

    Raises
    ------
    FijiBridgeError
        If a file is missing, truncated, damaged, empty, no image, in colour, of mixed sizes, or of pixels
        other than integers of 8, 16 or 32 bits and floats of 32 or 64; if the pixel size is not positive.

    Notes
    -----
    A single image is a stack of one frame. Where nothing names the pages of a TIFF, they are frames. ImageJ
    saves movies as "slices" unless told otherwise, so a file with z alone, without time and channels, is
    taken for a movie; `axes_from_file` is then "ZYX", and `StackWriter` writes slices again. So is a file of
    more than seven channels and nothing else, which is what tifffile makes of an array without named axes.
    """
    import xarray as xr

    if pixel_size_nm is not None and not 0 < pixel_size_nm < math.inf:
        raise FijiBridgeError(f"The pixel size must be a positive number of nanometres, not {pixel_size_nm}.")
    opened = _as_stack(source) if isinstance(source, xr.DataArray) else _labelled(*_recorded(source))
    height, width = opened.shape[-2:]
    if min(height, width) < 2:
        raise FijiBridgeError(f"{_name(opened)} is too small: its frames are {width} × {height} pixels.")
    if pixel_size_nm is not None:
        opened.attrs["pixel_size_nm"] = float(pixel_size_nm)
    if isinstance(source, list | tuple) and isinstance(source[0], str | os.PathLike) and len(source) > 1:
        opened.attrs["files"] = [str(path) for path in source]
    return opened


def files_of(stack: "xr.DataArray") -> list[str]:
    """Give what a stack was opened from, as far as that is known: files, or a folder."""
    named = stack.attrs.get("files") or [stack.attrs.get("source")]
    return [str(path) for path in named if path]


def positions(stack: "xr.DataArray") -> Iterator[tuple[dict[str, int], "xr.DataArray"]]:
    """Give each channel and z position as a stack (t, y, x) of its own.

    Yields
    ------
    tuple of dict and xarray.DataArray
        Where it stands, such as ``{"c": 1, "z": 0}`` (empty for a stack without c and z), and the stack.
    """
    dims = [dim for dim in DIMS[1:3] if dim in stack.dims]
    opened = _opened(stack)
    for numbers in product(*(range(stack.sizes[dim]) for dim in dims)):
        where: dict[str, int] = dict(zip(dims, numbers, strict=True))
        if where and opened is not None:
            picked = _lazy(_Guarded(stack_formats.Picked(opened, numbers), _name(stack), opened.stored))
            yield where, _named(picked, ("t", "y", "x"), dict(stack.attrs))
        else:
            yield where, stack.isel(where).transpose("t", "y", "x")


def frame_blocks(stack: "xr.DataArray", frames: int | None = None) -> Iterator[tuple[int, np.ndarray]]:
    """Read a stack (t, y, x) block by block.

    Parameters
    ----------
    stack
        One of those that `positions` gives.
    frames
        Frames a block; as many as make about 64 MB when left out.

    Yields
    ------
    tuple of int and numpy.ndarray
        Number of the block's first frame, counted from 0, and the block (n, y, x); do not write to it.

    Raises
    ------
    FijiBridgeError
        If the stack still has channels or z, a frame cannot be read, or a pixel is NaN or infinite; messages
        count frames from 1, as ImageJ does.
    """
    if set(stack.dims) != {"t", "y", "x"}:
        dims = ", ".join(map(str, stack.dims))
        raise FijiBridgeError(f"{_name(stack)} has the dims {dims}; take its positions() one by one.")
    stack = stack.transpose("t", "y", "x")
    if frames is None:
        frames = max(1, BLOCK_BYTES // (math.prod(stack.shape[1:]) * stack.dtype.itemsize))
    if frames < 1:
        raise FijiBridgeError(f"A block must have at least one frame, not {frames}.")
    opened = _opened(stack)
    given = opened if opened is not None and opened.in_memory else stack
    for first in range(0, stack.sizes["t"], frames):
        block = np.asarray(given[first : first + frames])
        if block.dtype.kind == "f" and not np.isfinite(block).all():
            frame = first + int(np.flatnonzero(~np.isfinite(block).all(axis=(1, 2)))[0]) + 1
            raise FijiBridgeError(
                f"{_name(stack)} has NaN or infinite values in frame {frame}; leave that frame out."
            )
        yield first, block


def some_frames(
    stack: "xr.DataArray", numbers: np.ndarray, y: slice = slice(None), x: slice = slice(None)
) -> np.ndarray:
    """Read frames of a stack (t, y, x) by number, or windows of them, and no others if the file can do so.

    Dask alone would read whole chunks, which between frames spread over a movie is all of it.
    """
    opened = _opened(stack)
    if opened is None or opened.stored > 1:
        return stack.isel(t=numbers, y=y, x=x).to_numpy()
    return np.concatenate([opened[number : number + 1, y, x] for number in numbers.tolist()])


def seen_through(stack: "xr.DataArray", view: Callable[[Any], Any]) -> "xr.DataArray":
    """Give an opened stack of which `view` shows the data otherwise, of the same shape and type.

    Underneath dask, as each format's reader is, so that a single frame is still read alone.
    """
    opened = _opened(stack)
    if opened is None:  # what is computed comes a chunk at a time
        data, chunks, stored = stack.data, stack.data.chunks, max(1, *stack.data.chunks[0])
    else:
        data, chunks, stored = opened, None, opened.stored
    guarded = _Guarded(view(data), _name(stack), stored)
    lazy = _lazy(guarded, chunks)
    _OPENED[lazy.name] = guarded
    return stack.copy(data=lazy)


def write_stack(
    stack: "xr.DataArray", path: str | os.PathLike[str], *, progress: Progress | None = None
) -> None:
    """Write a stack block by block, in its own dtype, to one of the formats of `StackWriter`.

    `progress` is told how many images, over all frames, channels and z, are done.
    """
    stack = open_stack(stack)
    done, total = 0, math.prod(stack.shape[:-2])
    with StackWriter(path, stack, stack.dtype) as writer:
        for where, frames in positions(stack):
            for first, block in frame_blocks(frames):
                writer.write(first, block, **where)
                done += len(block)
                (progress or silent)("Writing frames", done, total)


def _recorded(source: Any) -> tuple[Any, str, float | None, str]:
    """Give array, axes before y and x, pixel size and name of what `open_stack` was given."""
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if path.is_dir() and not stack_formats.is_zarr(path):
            return *_joined(stack_formats.images_in(path)), str(path)
        recording = stack_formats.read(path)
        return recording.data, recording.axes, recording.pixel_size_nm, str(path)
    if isinstance(source, Sequence) and all(isinstance(item, str | os.PathLike) for item in source):
        paths = [Path(item) for item in source]
        if not paths:
            raise FijiBridgeError("No file was given; name at least one image.")
        if len(paths) == 1:
            return _recorded(paths[0])
        return *_joined(paths), f"{paths[0]} and {len(paths) - 1} more"
    if type(source).__module__.partition(".")[0] == "zarr":
        recording = stack_formats.read_zarr(source)
        return recording.data, recording.axes, recording.pixel_size_nm, str(recording.files[0])
    try:
        array = np.asarray(source)
    except ValueError as error:
        raise FijiBridgeError(
            "The frames have different sizes; give one array (t, y, x) of numbers."
        ) from error
    if array.ndim not in (2, 3):
        raise FijiBridgeError(
            f"The array has {array.ndim} dimensions; give (y, x), (t, y, x) or a DataArray with named dims."
        )
    return array, "T"[: array.ndim - 2], None, "array"


def _joined(paths: Sequence[Path]) -> tuple[Any, str, float | None]:
    """Open files as one stack along t; a set that one file opened is not opened again by its others."""
    opened: list[stack_formats.Recording] = []
    covered: set[Path] = set()
    for path in paths:
        if path.resolve() in covered:
            continue
        recording = stack_formats.read(path)
        if len(recording.files) > 1:
            covered.update(file.resolve() for file in recording.files)
        opened.append(recording)
    if len(opened) == 1:
        return opened[0].data, opened[0].axes, opened[0].pixel_size_nm
    parts = [_time_first(recording) for recording in opened]
    first, axes = parts[0]
    for recording, (part, part_axes) in zip(opened, parts, strict=True):
        if (part.shape[1:], part.dtype, part_axes) != (first.shape[1:], first.dtype, axes):
            raise FijiBridgeError(
                f"{recording.files[0]} has {_kind(part, part_axes)} but {opened[0].files[0]} has "
                f"{_kind(first, axes)}; the frames of one stack must be alike."
            )
    sizes = {recording.pixel_size_nm for recording in opened}
    return stack_formats.Joined([part for part, _ in parts]), axes, sizes.pop() if len(sizes) == 1 else None


def _time_first(recording: stack_formats.Recording) -> tuple[Any, str]:
    """Give a recording's array with time as its first axis, and its axes then."""
    axes = _movie(recording.axes, recording.data.shape)
    wanted = "T" + axes.replace("T", "")
    return _arranged(recording.data, axes, wanted), wanted


def _arranged(data: Any, axes: str, wanted: str) -> Any:
    return data if axes == wanted else stack_formats.Arranged(data, f"{axes}YX", f"{wanted}YX")


def _movie(axes: str, shape: tuple[int, ...]) -> str:
    """Take for time the only axis longer than one: z always, channels when ImageJ could not show them."""
    long = {axis: size for axis, size in zip(axes, shape, strict=False) if size > 1}
    if set(long) == {"Z"} or (set(long) == {"C"} and long["C"] > MOST_CHANNELS):
        (axis,) = long
        return axes.replace("T", "t").replace(axis, "T").replace("t", axis)
    return axes


def _kind(data: Any, axes: str) -> str:
    """Say what frames are like, for a message."""
    height, width = data.shape[-2:]
    more = [f"{size} {axis.lower()}" for axis, size in zip(axes[1:], data.shape[1:-2], strict=True)]
    return ", ".join([f"{width} × {height} pixels of {data.dtype}", *more])


_OPENED: WeakValueDictionary[str, "_Guarded"] = WeakValueDictionary()
"""What stands under the dask arrays that were opened here, by their names.

Dask slices underneath only once and reads a whole chunk for a second slice, so `positions` goes back to it.
"""


def _opened(stack: "xr.DataArray") -> "_Guarded | None":
    """Give what stands under a stack, if it was opened here and is still whole."""
    return _OPENED.get(getattr(stack.data, "name", ""))


class _Guarded:
    """Reads `data` in the machine's byte order; what goes wrong becomes an error that names the source.

    `stored` is how many frames the file keeps in one piece.
    """

    def __init__(self, data: Any, source: str, stored: int = 1) -> None:
        self.stored = stored
        self.shape = tuple(data.shape)
        self.ndim = len(self.shape)
        self.dtype = np.dtype(data.dtype).newbyteorder("=")
        self.in_memory = isinstance(data, np.ndarray)
        self._data = data
        self._source = source

    def __getitem__(self, key: Any) -> np.ndarray:
        try:
            return np.asarray(self._data[key]).astype(self.dtype, copy=False)
        except (FijiBridgeError, MemoryError):
            raise
        except Exception as error:  # each format's library raises its own
            reason = str(error) or type(error).__name__
            raise FijiBridgeError(f"{self._source} cannot be read and may be damaged: {reason}.") from error


def _labelled(data: Any, axes: str, pixel_size_nm: float | None, source: str) -> "xr.DataArray":
    """Wrap what was opened into the DataArray that `open_stack` promises."""
    _require_pixels(data, source)
    movie = _movie(axes, data.shape)
    sizes = dict(zip(movie, data.shape, strict=False))
    wanted = "T" + "".join(axis for axis in "CZ" if sizes.get(axis, 1) > 1)
    stored = dict(zip(movie, getattr(data, "chunks", None) or (), strict=False)).get("T", 1)
    guarded = _Guarded(_arranged(data, movie, wanted), source, stored)
    lazy = _lazy(guarded)
    _OPENED[lazy.name] = guarded
    long = "".join(axis for axis, size in zip(axes, data.shape, strict=False) if size > 1)
    attrs = {"pixel_size_nm": pixel_size_nm, "source": source, "axes_from_file": f"{long}YX"}
    return _named(lazy, (*wanted.lower(), "y", "x"), attrs)


def _lazy(guarded: _Guarded, chunks: Any = None) -> Any:
    import dask.array as da

    meta = np.empty((0,) * guarded.ndim, guarded.dtype)
    chunks = chunks or _chunks(guarded, guarded.stored)
    return da.from_array(guarded, chunks=chunks, name=False, meta=meta)


def _named(lazy: Any, dims: tuple[str, ...], attrs: dict[str, Any]) -> "xr.DataArray":
    import xarray as xr

    return xr.DataArray(lazy, dims=dims, attrs=attrs).rename(None)  # it takes dask's name


def _as_stack(stack: "xr.DataArray") -> "xr.DataArray":
    """Bring a DataArray into the form that `open_stack` promises; what it says of itself is kept."""
    name = _name(stack)
    if not {"y", "x"} <= set(stack.dims) <= set(DIMS):
        dims = ", ".join(map(str, stack.dims))
        raise FijiBridgeError(f"{name} has the dims {dims}; name them among t, c, z, y and x.")
    _require_pixels(stack, name)
    size = stack.attrs.get("pixel_size_nm")
    if size is not None and not (isinstance(size, int | float | np.number) and 0 < size < math.inf):
        raise FijiBridgeError(
            f"{name} has the pixel size {size}; it must be a positive number of nanometres."
        )
    axes = "".join(str(dim) for dim in stack.dims).upper()
    attrs = {"pixel_size_nm": size, "source": name, "axes_from_file": axes, **stack.attrs}
    stack = stack.squeeze([dim for dim in ("c", "z") if stack.sizes.get(dim) == 1], drop=True)
    if "t" not in stack.dims:
        stack = stack.expand_dims("t")
    stack = stack.transpose(*(dim for dim in DIMS if dim in stack.dims))
    stack = stack.astype(stack.dtype.newbyteorder("="), copy=False)
    if not hasattr(stack.data, "dask"):
        stack = stack.chunk(dict(zip(stack.dims, _chunks(stack), strict=True)))
    return stack.rename(None).assign_attrs(attrs)


def _require_pixels(data: Any, name: str) -> None:
    if 0 in data.shape:
        raise FijiBridgeError(f"{name} is empty: its shape is {tuple(data.shape)}.")
    if np.dtype(data.dtype).name not in DTYPES:
        raise FijiBridgeError(
            f"{name} has pixels of the type {data.dtype.name}; save it as 8-, 16- or 32-bit."
        )


def _chunks(data: Any, stored: int = 1) -> tuple[int, ...]:
    """Give chunks of whole frames: one channel and z, and as many frames as make `CHUNK_BYTES`.

    The chunks of `stored` frames that a file has are not divided, so that none is decompressed twice.
    """
    frames = max(1, CHUNK_BYTES // (math.prod(data.shape[-2:]) * data.dtype.itemsize))
    frames = min(math.ceil(frames / stored) * stored, data.shape[0])
    return (frames, *(1 for _ in data.shape[1:-2]), *data.shape[-2:])


def _name(stack: "xr.DataArray") -> str:
    return str(stack.attrs.get("source") or stack.name or "The stack")
