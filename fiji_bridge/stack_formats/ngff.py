"""Zarr arrays and groups, versions 2 and 3, and OME-NGFF images in them."""

import os
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.stack_formats.recording import Recording, nm_per, padded, square, truncated


def read(source: Any) -> Recording:
    """Open a Zarr array, or a group with one image; of an OME-NGFF image the full resolution.

    Parameters
    ----------
    source
        A path, or a zarr array or group.
    """
    import zarr

    name = source if isinstance(source, Path) else Path(str(source.store_path))
    if isinstance(source, Path):
        try:
            source = zarr.open(str(source), mode="r")
        except Exception as error:  # its errors have no common base
            raise FijiBridgeError(
                f"{name} is not a Zarr array or group that can be read ({error})."
            ) from error
    if isinstance(source, zarr.Array):
        return _recording(source, _dimension_names(source), None, name)
    attributes = dict(source.attrs)
    ngff = attributes.get("ome", attributes)  # NGFF 0.5 and later, 0.4 and before
    if "multiscales" in ngff:
        return _read_multiscales(source, ngff["multiscales"][0], name)
    images = sorted(key for key, _ in source.groups() if key != "OME")
    if "bioformats2raw.layout" in ngff and len(images) == 1:
        return read(source[images[0]])
    arrays = dict(source.arrays())
    if len(arrays) != 1:
        found = ", ".join([*sorted(arrays), *images]) or "nothing"
        raise FijiBridgeError(
            f"{name} is a Zarr group without one single image ({found}); give the path of one."
        )
    (array,) = arrays.values()
    return _recording(array, _dimension_names(array), None, name)


def _read_multiscales(group: Any, image: dict[str, Any], name: Path) -> Recording:
    level = image["datasets"][0]
    try:
        array = group[level["path"]]
    except KeyError as error:
        raise FijiBridgeError(f"{name} has lost its array {level['path']}; copy the whole folder.") from error
    described = image.get("axes") or list("tczyx"[-array.ndim :])
    axes = [{"name": axis} if isinstance(axis, str) else axis for axis in described]
    scale = np.ones(array.ndim)
    for transformations in (level.get("coordinateTransformations"), image.get("coordinateTransformations")):
        for transformation in transformations or []:
            if transformation.get("type") == "scale":
                scale = scale * np.asarray(transformation["scale"], dtype=float)
    size = square(scale[-1], scale[-2], nm_per(axes[-1].get("unit")))
    return _recording(array, [axis["name"] for axis in axes], size, name)


def _dimension_names(array: Any) -> list[str] | None:
    """Give the dimension names of Zarr 3, or those that xarray puts into Zarr 2."""
    names = getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS")
    return None if not names or None in names else list(names)


def _recording(array: Any, names: list[str] | None, size: float | None, path: Path) -> Recording:
    if names is None and array.ndim not in (2, 3, 5):
        raise FijiBridgeError(
            f"{path} has {array.ndim} dimensions without names; name them among t, c, z, y, x."
        )
    names = names or list({2: "yx", 3: "tyx", 5: "tczyx"}[array.ndim])
    axes = "".join(name.upper() if name in list("tczyx") else name[:1].upper() for name in names)
    known = axes.endswith("YX") and set(axes[:-2]) <= set("TCZ") and len(set(axes)) == array.ndim
    if not known or len(axes) != array.ndim:
        raise FijiBridgeError(
            f"{path} has the dimensions {', '.join(names)}; expected some of t, c, z, then y, x."
        )
    return Recording(_guarded(array), axes[:-2], size, (path,))


def _guarded(array: Any) -> Any:
    """Check the chunks of blosc-compressed arrays on disk before blosc sees them."""
    root = getattr(array.store, "root", None)
    blosc = any(type(compressor).__name__.startswith("Blosc") for compressor in array.compressors)
    return _WholeChunks(array, Path(root) / array.path) if blosc and root and array.shards is None else array


class _WholeChunks:
    """Looks like a Zarr array; refuses a chunk that was cut short, which makes blosc crash the process."""

    def __init__(self, array: Any, folder: Path) -> None:
        self.shape, self.dtype, self.chunks = array.shape, array.dtype, array.chunks
        self._array = array
        self._folder = folder

    def __getitem__(self, key: Any) -> Any:
        touched = [
            np.unique(np.arange(size)[item] // chunk)
            for item, size, chunk in zip(padded(key, len(self.shape)), self.shape, self.chunks, strict=True)
        ]
        for place in product(*(numbers.tolist() for numbers in touched)):
            self._require_whole(self._folder / self._array.metadata.encode_chunk_key(place))
        return self._array[key]

    def _require_whole(self, chunk: Path) -> None:
        try:
            with chunk.open("rb") as file:
                head = file.read(16)
                size = os.fstat(file.fileno()).st_size
        except FileNotFoundError:
            return  # a chunk that was never written has the fill value
        if size < 16 or size < int.from_bytes(head[12:], "little"):
            raise truncated(chunk, "the rest of its compressed pixels is missing")
