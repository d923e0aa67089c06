"""Writing a stack block by block, in any order, to a file that appears when it is whole."""

import errno
import math
import os
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
import tifffile

from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.files import replacing

if TYPE_CHECKING:
    import xarray as xr

CLASSIC_TIFF_BYTES = 2**32 - 2**25
"""TIFF's offsets have 32 bits; what lies beyond leaves room for the list of pages."""

IMAGEJ_DTYPES = ("uint8", "uint16", "int16", "float32")

DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")
"""Pixel types that stacks have."""

ZARR_CHUNK_BYTES = 4 << 20


class StackWriter:
    """Write a stack of known size block by block, in any order.

    A context manager: the file appears under its name when the block ends well and every image was written;
    otherwise nothing is left of it.

    Parameters
    ----------
    path
        By its suffix: `.ome.tif` OME-TIFF (BigTIFF); `.tif` or `.tiff` an ImageJ hyperstack, or OME-TIFF
        (BigTIFF) where that cannot be (4 GB and more, 32-bit integers, float64); `.zarr` OME-NGFF 0.4.
    like
        A stack as `open_stack` gives it, for shape, pixel size and axes.
    dtype
        Of the file. Where it is of integers, fractions are rounded and values beyond its range clipped.

    Raises
    ------
    FijiBridgeError
        If the suffix is another, a folder stands in the way, the disk is full, a block does not fit, or
        images are missing at the end.
    """

    def __init__(self, path: str | os.PathLike[str], like: "xr.DataArray", dtype: Any = "float32") -> None:
        self._path = Path(path)
        self._dtype = np.dtype(dtype).newbyteorder("=")
        if not self._path.name.lower().endswith((".tif", ".tiff", ".zarr")):
            raise FijiBridgeError(f"Cannot write {self._path}: its name must end in .tif, .ome.tif or .zarr.")
        if self._dtype.name not in DTYPES:
            raise FijiBridgeError(
                f"Cannot write {self._path}: pixels of the type {self._dtype} are not known."
            )
        if not {"t", "y", "x"} <= set(like.dims) <= set("tczyx"):
            dims = ", ".join(map(str, like.dims))
            raise FijiBridgeError(f"Cannot write {self._path}: the dims are {dims}, not t, c, z, y, x.")
        self._sizes = {dim: int(like.sizes.get(dim, 1)) for dim in "tzcyx"}
        self._positions = [dim for dim in ("c", "z") if dim in like.dims]
        self._pixel_size_nm = like.attrs.get("pixel_size_nm")
        self._slices = like.attrs.get("axes_from_file") == "ZYX" and not self._positions
        self._written = np.zeros([self._sizes[dim] for dim in "tzc"], bool)
        self._cleanup = ExitStack()
        self._target: _Target | None = None

    def __enter__(self) -> Self:
        sizes = dict(self._sizes)
        if self._slices:  # a movie that came as slices goes back as slices; images count alike
            sizes["t"], sizes["z"] = sizes["z"], sizes["t"]
        with ExitStack() as cleanup:
            partial = cleanup.enter_context(replacing(self._path))
            if self._path.suffix.lower() == ".zarr":
                self._target = _ZarrTarget(partial, sizes, self._dtype, self._pixel_size_nm)
            else:
                ome = self._path.stem.lower().endswith(".ome")
                self._target = _TiffTarget(partial, sizes, self._dtype, self._pixel_size_nm, ome)
            cleanup.callback(self._target.close)
            self._cleanup = cleanup.pop_all()
        return self

    def write(self, start_frame: int, block: np.ndarray, **position: int) -> None:
        """Write frames of one channel and z.

        Parameters
        ----------
        start_frame
            Number of the first, counted from 0.
        block
            Frames (n, y, x).
        position
            c and z, as `positions` gives them.
        """
        if self._target is None:
            raise FijiBridgeError(
                f"{self._path} is not open for writing; use StackWriter in a with statement."
            )
        block = np.asarray(block)
        frames, height, width = (self._sizes[dim] for dim in "tyx")
        stop = start_frame + len(block)
        if block.ndim != 3 or block.shape[1:] != (height, width) or not 0 <= start_frame <= stop <= frames:
            raise FijiBridgeError(
                f"A block of shape {block.shape} at frame {start_frame} does not fit into {self._path}, "
                f"which takes {frames} frames of {height} × {width}."
            )
        if set(position) != set(self._positions) or any(
            not 0 <= number < self._sizes[dim] for dim, number in position.items()
        ):
            sizes = {dim: self._sizes[dim] for dim in self._positions}
            raise FijiBridgeError(f"{self._path} has no position {position}; its sizes are {sizes}.")
        z, channel = position.get("z", 0), position.get("c", 0)
        step = self._sizes["z"] * self._sizes["c"]
        first = start_frame * step + z * self._sizes["c"] + channel
        self._target.write(range(first, first + step * len(block), step), _cast(block, self._dtype))
        self._written[start_frame:stop, z, channel] = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        self._target = None
        if kind is not None:
            return bool(self._cleanup.__exit__(kind, error, traceback))
        with self._cleanup:
            missing = int((~self._written).sum())
            if missing:
                of = self._written.size
                raise FijiBridgeError(
                    f"{self._path} was not written: {missing} of {of} images were not given."
                )
        return False


class _Target(Protocol):
    """A file of images (t, z, c, y, x) that takes them by their numbers."""

    def write(self, numbers: range, block: np.ndarray) -> None: ...

    def close(self) -> None: ...


class _TiffTarget:
    """An ImageJ or OME TIFF that is laid out whole at first; images are then written where they belong."""

    def __init__(
        self, path: Path, sizes: dict[str, int], dtype: np.dtype[Any], pixel_size_nm: float | None, ome: bool
    ) -> None:
        shape = tuple(sizes[dim] for dim in "tzcyx")
        self._nbytes = math.prod(shape[-2:]) * dtype.itemsize
        total = self._nbytes * math.prod(shape[:-2])
        imagej = not ome and dtype.name in IMAGEJ_DTYPES and total < CLASSIC_TIFF_BYTES
        options = _imagej_options(pixel_size_nm) if imagej else _ome_options(pixel_size_nm)
        with tifffile.TiffWriter(path, bigtiff=not imagej, imagej=imagej, ome=not imagej) as writer:
            place = writer.write(
                shape=shape, dtype=dtype, photometric="minisblack", returnoffset=True, **options
            )
        if place is None:
            raise OSError(errno.EIO, "the TIFF could not be laid out")
        self._start = int(place[0])
        self._file = path.open("r+b", buffering=0)
        try:
            _reserve(self._file.fileno(), self._start, total)
        except BaseException:
            self._file.close()
            raise

    def write(self, numbers: range, block: np.ndarray) -> None:
        for number, image in zip(numbers, block, strict=True):
            self._file.seek(self._start + number * self._nbytes)
            rest = np.ascontiguousarray(image).data.cast("B")
            while rest:
                rest = rest[self._file.write(rest) or 0 :]

    def close(self) -> None:
        self._file.close()


def _reserve(file: int, start: int, nbytes: int) -> None:
    """Take the disk space now, so that a full disk shows before the work and not after it."""
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(file, start, nbytes)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        # other file systems simply cannot; each write still tells of a full disk


def _imagej_options(pixel_size_nm: float | None) -> dict[str, Any]:
    if pixel_size_nm is None:
        return {"metadata": {"axes": "TZCYX"}}
    per_micron = 1e3 / pixel_size_nm
    metadata = {"axes": "TZCYX", "unit": "\\u00B5m"}  # ImageJ's own spelling of µm
    return {"metadata": metadata, "resolution": (per_micron, per_micron), "resolutionunit": "NONE"}


def _ome_options(pixel_size_nm: float | None) -> dict[str, Any]:
    if pixel_size_nm is None:
        return {"metadata": {"axes": "TZCYX"}}
    size = {f"PhysicalSize{axis}": pixel_size_nm / 1e3 for axis in "XY"}
    unit = {f"PhysicalSize{axis}Unit": "µm" for axis in "XY"}
    per_cm = 1e7 / pixel_size_nm
    metadata = {"axes": "TZCYX", **size, **unit}
    return {"metadata": metadata, "resolution": (per_cm, per_cm), "resolutionunit": "CENTIMETER"}


class _ZarrTarget:
    """An OME-NGFF 0.4 image (Zarr 2) of one resolution."""

    def __init__(
        self, path: Path, sizes: dict[str, int], dtype: np.dtype[Any], pixel_size_nm: float | None
    ) -> None:
        import zarr
        from numcodecs import Zstd

        self._images = [sizes[dim] for dim in "tzc"]
        slices = sizes["z"] > 1 and sizes["t"] == sizes["c"] == 1
        self._moving = "z" if slices else "t"
        self._dims = ["z"] if slices else ["t", *(dim for dim in "cz" if sizes[dim] > 1)]
        dims = [*self._dims, "y", "x"]
        frames = max(1, ZARR_CHUNK_BYTES // (sizes["y"] * sizes["x"] * dtype.itemsize))
        self._frames = min(frames, sizes[self._moving])
        chunk = {**sizes, "t": 1, "c": 1, "z": 1, self._moving: self._frames}
        group = zarr.open_group(str(path), mode="w", zarr_format=2)
        self._array = group.create_array(
            "0",
            shape=tuple(sizes[dim] for dim in dims),
            chunks=tuple(chunk[dim] for dim in dims),
            dtype=dtype,
            compressors=Zstd(level=1),  # blosc, the default, crashes on damaged files
            chunk_key_encoding={"name": "v2", "separator": "/"},
        )
        group.attrs["multiscales"] = [_ngff(dims, pixel_size_nm)]

    def write(self, numbers: range, block: np.ndarray) -> None:
        if not numbers:
            return
        place = {
            dim: int(at) for dim, at in zip("tzc", np.unravel_index(numbers[0], self._images), strict=True)
        }
        first = place[self._moving]
        start = first
        while start < first + len(block):
            # one chunk after another: zarr's threads must not go on writing after an error
            stop = min((start // self._frames + 1) * self._frames, first + len(block))
            key = tuple(slice(start, stop) if dim == self._moving else place[dim] for dim in self._dims)
            self._array[key] = block[start - first : stop - first]
            start = stop

    def close(self) -> None:
        """Have nothing to close: each chunk is a file of its own."""


def _ngff(dims: list[str], pixel_size_nm: float | None) -> dict[str, Any]:
    """Metadata of one image after https://ngff.openmicroscopy.org/0.4/."""
    kind = {"t": "time", "c": "channel"}
    unit = {} if pixel_size_nm is None else {"unit": "nanometer"}
    axes = [{"name": dim, "type": kind.get(dim, "space"), **(unit if dim in "yx" else {})} for dim in dims]
    scale = [float(pixel_size_nm or 1) if dim in "yx" else 1.0 for dim in dims]
    transformations = [{"type": "scale", "scale": scale}]
    return {
        "version": "0.4",
        "axes": axes,
        "datasets": [{"path": "0", "coordinateTransformations": transformations}],
    }


def _cast(block: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """Convert pixels, rounding and clipping where an integer dtype cannot hold them."""
    if dtype.kind in "iu" and block.dtype != dtype:
        limits = np.iinfo(dtype)
        return np.clip(np.rint(block.astype(np.float64)), limits.min, limits.max).astype(dtype)
    return block.astype(dtype, copy=False)
