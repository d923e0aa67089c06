"""ImageJ's images as labelled arrays and back: dimensions by name, calibration, look-up tables.

Each plane is copied once, as a whole. ImageJ keeps planes in the order channel, slice, frame (XYCZT); arrays
have the dims (t, c, z, y, x), of which t, c and z only when longer than one.
"""

import math
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.stack_formats.recording import nm_per, square

if TYPE_CHECKING:
    import xarray as xr

DIMS = ("t", "c", "z", "y", "x")
DTYPES: dict[int, np.dtype[Any]] = {8: np.dtype(np.uint8), 16: np.dtype(np.uint16), 32: np.dtype(np.float32)}
"""ImageJ's types by their bits a pixel."""
RGB_BITS = 24
SIGNED_OFFSET = 32768
"""ImageJ holds signed 16-bit values as unsigned ones this much higher, and says so in the calibration."""
EXACT_IN_FLOAT32 = 1 << 24
LONGEST_PLANE = 2**31 - 16
MODES = {1: "composite", 2: "color", 3: "grayscale"}
"""How ImageJ shows channels."""
MOST_SHOWN = 7
"""Channels that ImageJ can overlay."""
BLOCK_BYTES = 64 << 20
_BUFFER_BYTES = 2**31 - 1
CHUNK_BYTES = 16 << 20
_SECONDS = {
    **dict.fromkeys(("s", "sec", "second", "seconds"), 1.0),
    **dict.fromkeys(("ms", "msec"), 1e-3),
    **dict.fromkeys(("us", "µs", "usec"), 1e-6),
    **dict.fromkeys(("min", "minute", "minutes"), 60.0),
    **dict.fromkeys(("h", "hour", "hours"), 3600.0),
}


def to_python(image: Any) -> "xr.DataArray":
    """Give an image of ImageJ's as a labelled array.

    Parameters
    ----------
    image
        An `ij.ImagePlus`.

    Returns
    -------
    xarray.DataArray
        Dims (t, c, z, y, x), of which t, c and z only when longer than one; uint8, uint16, float32, or int16
        where ImageJ's calibration says that 16-bit values are signed. A colour image has its red, green and
        blue as c. A copy; but a virtual stack gives an array backed by dask that reads planes when they are
        asked for, as long as the image is open. Attributes: `pixel_size_nm` (None when not calibrated in a
        length, or not square), `z_step_nm`, `frame_interval_s`, `source` (the title), and `imagej`, a dict
        of what else `to_imagej` restores: the calibration as it stands, display ranges, look-up tables.

    Raises
    ------
    FijiBridgeError
        If it is no ImagePlus, was closed, or is in colour and has channels besides.
    """
    import xarray as xr

    planes = _Planes(_require_image(image))
    sizes = dict(zip(DIMS, planes.shape, strict=True))
    data = planes.lazy() if planes.virtual else planes[...]
    dims = [dim for dim in DIMS if sizes[dim] > 1 or dim in "yx"]
    kept = tuple(slice(None) if dim in dims else 0 for dim in DIMS)
    return xr.DataArray(data[kept], dims=dims, attrs=_attributes(image, planes))


def _require_image(image: Any) -> Any:
    from jpype import JClass

    if not isinstance(image, JClass("ij.ImagePlus")):
        raise FijiBridgeError(f"to_python takes an ImagePlus, not {type(image).__name__}.")
    if not image.isProcessor() or image.getWidth() == 0:
        raise FijiBridgeError(f"The image {image.getTitle()} was closed; keep it open, or convert it before.")
    if image.getBitDepth() == RGB_BITS and image.getNChannels() > 1:
        raise FijiBridgeError(
            f"{image.getTitle()} is in colour and has channels besides; split it with Image ▸ Color first."
        )
    return image


class _Planes:
    """An image's planes as one array (t, c, z, y, x), read when indexed."""

    ndim = len(DIMS)

    def __init__(self, image: Any) -> None:
        self._stack = image.getStack()
        self.virtual = bool(self._stack.isVirtual())
        self._channels, self._slices, frames = (
            int(size) for size in (image.getNChannels(), image.getNSlices(), image.getNFrames())
        )
        bits = int(image.getBitDepth())
        self.rgb = bits == RGB_BITS
        self.signed = bits == 16 and bool(image.getCalibration().isSigned16Bit())
        self._stored: np.dtype[Any] = np.dtype(np.uint32) if self.rgb else DTYPES[bits]
        self.dtype = self._stored
        if self.rgb or self.signed:
            self.dtype = np.dtype(np.uint8 if self.rgb else np.int16)
        channels = 3 if self.rgb else self._channels
        self.shape = (frames, channels, self._slices, int(image.getHeight()), int(image.getWidth()))
        self._title = str(image.getTitle())
        self._reading = threading.Lock()  # a virtual stack reads one plane at a time

    def lazy(self) -> Any:
        """Give a dask array of whole planes."""
        import dask.array as da

        frames = max(1, CHUNK_BYTES // (math.prod(self.shape[1:]) * self.dtype.itemsize))
        chunks = (min(frames, self.shape[0]), *self.shape[1:])
        if frames == 1:
            chunks = (1, self.shape[1] if self.rgb else 1, 1, *self.shape[3:])
        meta = np.empty((0,) * self.ndim, self.dtype)
        return da.from_array(self, chunks=chunks, name=False, meta=meta, fancy=False)

    def __getitem__(self, key: Any) -> np.ndarray:
        parts = _parts(key, self.ndim)
        frames, channels, slices = (
            range(size)[part] if isinstance(part, slice) else (part,)
            for part, size in zip(parts, self.shape[:3], strict=False)
        )
        out = np.empty((len(frames), len(channels), len(slices), *self.shape[3:]), self.dtype)
        for i, t in enumerate(frames):
            for k, z in enumerate(slices):
                if self.rgb:
                    plane = self._plane(t, 0, z)
                    for j, c in enumerate(channels):
                        np.right_shift(plane, 16 - 8 * c, out=out[i, j, k], casting="unsafe")
                    continue
                for j, c in enumerate(channels):
                    plane = self._plane(t, c, z)
                    if self.signed:
                        np.subtract(plane, SIGNED_OFFSET, out=out[i, j, k], casting="unsafe", dtype=np.int32)
                    else:
                        out[i, j, k] = plane
        return out[(*(slice(None) if isinstance(part, slice) else 0 for part in parts[:3]), *parts[3:])]

    def _plane(self, t: int, c: int, z: int) -> np.ndarray:
        from jpype import JException

        number = 1 + c + self._channels * (z + self._slices * t)
        try:
            if not self.virtual:
                pixels = self._stack.getPixels(number)
            else:
                with self._reading:
                    self._check_file(number)
                    pixels = self._stack.getProcessor(number).getPixels()
        except JException as error:
            raise FijiBridgeError(f"ImageJ cannot read plane {number} of {self._title}: {error}") from error
        if pixels is None:
            raise FijiBridgeError(f"Plane {number} of {self._title} is gone; was the image closed?")
        return np.frombuffer(memoryview(pixels), self._stored).reshape(self.shape[3:])

    def _check_file(self, number: int) -> None:
        """Complain where the file behind a virtual stack is gone or cut: ImageJ would give zeros."""
        from jpype import JClass

        if isinstance(self._stack, JClass("ij.plugin.FileInfoVirtualStack")):
            field = JClass("ij.plugin.FileInfoVirtualStack").class_.getDeclaredField("info")
            field.setAccessible(True)
            info = field.get(self._stack)[number - 1]
            path = Path(str(info.getFilePath()))
            plain = info.compression <= JClass("ij.io.FileInfo").COMPRESSION_NONE
            end = info.getOffset() + info.width * info.height * info.getBytesPerPixel() if plain else 0
        elif type(self._stack) is JClass("ij.VirtualStack"):
            path, end = Path(str(self._stack.getDirectory()), str(self._stack.getFileName(number))), 0
        else:
            return
        if not path.is_file() or path.stat().st_size < end:
            state = "is cut off" if path.is_file() else "is gone"
            raise FijiBridgeError(f"Plane {number} of {self._title} cannot be read: {path} {state}.")


def _parts(key: Any, ndim: int) -> list[Any]:
    """Give one slice or number a dimension."""
    parts = list(key) if isinstance(key, tuple) else [key]
    if Ellipsis in parts:
        at = parts.index(Ellipsis)
        parts[at : at + 1] = [slice(None)] * (ndim - len(parts) + 1)
    return parts + [slice(None)] * (ndim - len(parts))


def _attributes(image: Any, planes: _Planes) -> dict[str, Any]:
    cal = image.getCalibration()
    unit = str(cal.getUnit())
    per = nm_per(unit)
    interval = float(cal.frameInterval) * _SECONDS.get(str(cal.getTimeUnit()), math.nan)
    calibration = {
        "unit": unit,
        "z_unit": str(cal.getZUnit()),
        "pixel_width": float(cal.pixelWidth),
        "pixel_height": float(cal.pixelHeight),
        "pixel_depth": float(cal.pixelDepth),
        "origin": (float(cal.xOrigin), float(cal.yOrigin), float(cal.zOrigin)),
        "frame_interval": float(cal.frameInterval),
        "time_unit": str(cal.getTimeUnit()),
        "fps": float(cal.fps),
    }
    if cal.calibrated() and not planes.signed and cal.getFunction() != cal.CUSTOM:
        coefficients = cal.getCoefficients()
        calibration["values"] = {
            "function": int(cal.getFunction()),
            "coefficients": None if coefficients is None else [float(value) for value in coefficients],
            "unit": str(cal.getValueUnit()),
        }
    per_z = nm_per(str(cal.getZUnit()))
    z_step = cal.pixelDepth * per_z if per_z and image.getNSlices() > 1 else None
    return {
        "pixel_size_nm": square(cal.pixelWidth, cal.pixelHeight, per),
        "z_step_nm": None if z_step is None else float(f"{z_step:.6g}"),
        "frame_interval_s": interval if 0 < interval < math.inf else None,
        "source": str(image.getTitle()),
        "imagej": {**calibration, **({"rgb": True} if planes.rgb else _display(image, planes))},
    }


def _display(image: Any, planes: _Planes) -> dict[str, Any]:
    """Give the range shown and the look-up table of each channel."""
    composite = bool(image.isComposite())
    luts = list(image.getLuts()) if composite else [image.getProcessor().getLut()]
    ranges = [(float(lut.min), float(lut.max)) for lut in luts]
    if not composite:
        ranges = [(float(image.getDisplayRangeMin()), float(image.getDisplayRangeMax()))]
    lower = SIGNED_OFFSET if planes.signed else 0
    return {
        "display_ranges": [(least - lower, most - lower) for least, most in ranges],
        "luts": np.stack([_lut_values(lut) for lut in luts]),
        "mode": MODES.get(int(image.getMode())) if composite else None,
    }


def _lut_values(lut: Any) -> np.ndarray:
    """Give a look-up table as (3, 256) uint8."""
    from jpype import JArray, JByte

    values = []
    for name in ("getReds", "getGreens", "getBlues"):
        part = JArray(JByte)(256)
        getattr(lut, name)(part)
        values.append(np.frombuffer(memoryview(part), np.uint8))
    return np.stack(values)


def to_imagej(array: Any, title: str | None = None) -> Any:
    """Give an array as an image of ImageJ's, which is not shown.

    Parameters
    ----------
    array
        A DataArray with dims among t, c, z, y, x, in any order, or an array (y, x) or (t, y, x). uint8,
        uint16 and float32 are kept. bool becomes 8-bit, 0 and 255; int8 and int16 become signed 16-bit; other
        numbers become 32-bit, which is refused where it would round them. Of a lazy array, some frames are
        in memory at a time.
    title
        The name of the image; what the attribute `source` says when left out.

    Returns
    -------
    ij.ImagePlus
        With the calibration, display ranges and look-up tables that the attributes of `to_python` hold;
        `pixel_size_nm`, `z_step_nm` and `frame_interval_s` go before what the dict `imagej` says.

    Raises
    ------
    FijiBridgeError
        If the dims are others, there are no pixels, values cannot be held without loss, or Java's memory is
        too small.
    """
    from jpype import JClass

    data = _arranged(array)
    name = title or Path(str(data.attrs.get("source") or "array")).name
    said = data.attrs.get("imagej") or {}
    kind = _Kind(data, name, said)
    stack = _stack(data, kind, name)
    image = JClass("ij.ImagePlus")(name, stack)
    sizes = dict(zip(DIMS, data.shape, strict=True))
    image.setDimensions(1 if kind.rgb else sizes["c"], sizes["z"], sizes["t"])
    image.setOpenAsHyperStack(True)
    _calibrate(image, data.attrs, said, kind.signed)
    return image if kind.rgb else _shown(image, said, kind.signed)


def _arranged(array: Any) -> "xr.DataArray":
    """Name the dims and bring them into the order (t, c, z, y, x)."""
    import xarray as xr

    if isinstance(array, np.ma.MaskedArray):
        raise FijiBridgeError("ImageJ's images have no mask; give values for all pixels with .filled().")
    if not isinstance(array, xr.DataArray):
        try:
            array = np.asarray(array)
        except (TypeError, ValueError, RuntimeError) as error:
            raise FijiBridgeError(f"{type(array).__name__} makes no array: {error}") from error
        if array.ndim not in (2, 3):
            raise FijiBridgeError(
                f"The array has {array.ndim} dimensions; give (y, x), (t, y, x), or a DataArray with dims."
            )
        array = xr.DataArray(array, dims=("t", "y", "x")[-array.ndim :])
    if not {"y", "x"} <= set(array.dims) <= set(DIMS):
        raise FijiBridgeError(
            f"The array has the dims {', '.join(map(str, array.dims))}; name them among t, c, z, y and x."
        )
    if 0 in array.shape:
        raise FijiBridgeError(f"The array is empty: its shape is {array.shape}.")
    if array.sizes["y"] * array.sizes["x"] > LONGEST_PLANE:
        raise FijiBridgeError("ImageJ's planes have at most 2,147,483,632 pixels; crop the image.")
    missing = {dim: 1 for dim in DIMS if dim not in array.dims}
    return array.expand_dims(missing).transpose(*DIMS)


_HELD_AS = {
    **dict.fromkeys(("bool", "uint8"), np.uint8),
    **dict.fromkeys(("uint16", "int8", "int16"), np.uint16),
}


class _Kind:
    """How ImageJ holds the pixels of an array."""

    def __init__(self, data: "xr.DataArray", name: str, said: Mapping[str, Any]) -> None:
        self._given, self._name = data.dtype, name
        self.rgb = bool(said.get("rgb")) and data.dtype == np.uint8 and data.sizes["c"] == 3
        self.signed = data.dtype.name in ("int8", "int16")
        if data.dtype.kind not in "buif":
            raise FijiBridgeError(f"{name} has pixels of the type {data.dtype}; ImageJ takes real numbers.")
        self.dtype = np.dtype(_HELD_AS.get(data.dtype.name, np.float32))

    def stored(self, block: np.ndarray) -> np.ndarray:
        """Give pixels as ImageJ holds them, contiguous and in the machine's byte order."""
        if self._given.kind == "b":
            return block.astype(np.uint8) * np.uint8(255)
        if self.signed:
            return (block.astype(np.int32) + SIGNED_OFFSET).astype(np.uint16)
        with np.errstate(over="ignore"):
            stored = np.ascontiguousarray(block, self.dtype)
        if self._given.kind in "iu" and self.dtype.kind == "f":
            exact = block.min() >= -EXACT_IN_FLOAT32 and block.max() <= EXACT_IN_FLOAT32
        else:
            exact = self._given.itemsize <= 4 or np.array_equal(stored, block, equal_nan=True)
        if not exact:
            raise FijiBridgeError(
                f"{self._name} holds {self._given} values that ImageJ's 32-bit pixels would round; if that "
                'will do, convert it first with .astype("float32").'
            )
        return stored


def _stack(data: "xr.DataArray", kind: _Kind, name: str) -> Any:
    """Copy the planes into Java, in ImageJ's order."""
    from jpype import JClass

    height, width = data.shape[-2:]
    count = math.prod(data.shape[:3]) // (3 if kind.rgb else 1)
    stack = JClass("ij.ImageStack")(width, height, count)
    number = 1
    try:
        for block in _blocks(data.transpose("t", "z", "c", "y", "x")):
            stored = kind.stored(block)
            stored = _packed(stored) if kind.rgb else stored
            for pixels in _java_arrays(stored.reshape(-1, height * width)):
                stack.setPixels(pixels, number)
                number += 1
    except JClass("java.lang.OutOfMemoryError") as error:
        most = JClass("java.lang.Runtime").getRuntime().maxMemory() / 1e9
        raise FijiBridgeError(
            f"Java's memory of {most:.1f} GB is too small for {name}; start ImageJ with a larger heap, such "
            'as heap="8g", or close images.'
        ) from error
    return stack


def _blocks(data: "xr.DataArray") -> Iterator[np.ndarray]:
    """Read an array (t, z, c, y, x) in pieces that have its planes in order."""
    frames, slices = data.shape[:2]
    at_once = max(1, BLOCK_BYTES // (math.prod(data.shape[2:]) * data.dtype.itemsize))
    for t in range(0, frames, max(1, at_once // slices)):
        for z in range(0, slices, at_once):
            yield data[t : t + max(1, at_once // slices), z : z + at_once].to_numpy()


def _packed(block: np.ndarray) -> np.ndarray:
    """Make ImageJ's colour pixels of (…, c, y, x)."""
    red, green, blue = (block[..., c, :, :].astype(np.int32) for c in range(3))
    return (red << 16 | green << 8 | blue) | np.int32(-1 << 24)


def _java_arrays(planes: np.ndarray) -> Iterator[Any]:
    """Copy planes (n, pixels) into new arrays of Java's.

    Through a buffer that shares NumPy's memory: Java's arrays can also be made of NumPy's directly, but that
    takes three times as long.
    """
    from jpype import JArray, JByte, JClass, JFloat, JInt, JShort
    from jpype.nio import convertToDirectBuffer

    kind, view = {
        "uint8": (JByte, None),
        "uint16": (JShort, "asShortBuffer"),
        "float32": (JFloat, "asFloatBuffer"),
        "int32": (JInt, "asIntBuffer"),
    }[planes.dtype.name]
    new, native = JArray(kind), JClass("java.nio.ByteOrder").nativeOrder()
    pixels = planes.shape[1]
    if planes.nbytes > _BUFFER_BYTES:
        signed = planes.view(planes.dtype.str.replace("u", "i"))
        yield from (new(plane) for plane in signed)
        return
    buffer = convertToDirectBuffer(planes.reshape(-1).view(np.uint8).data).order(native)
    buffer = getattr(buffer, view)() if view else buffer
    for _ in planes:
        array = new(pixels)
        buffer.get(array)
        yield array


def _calibrate(image: Any, attrs: Mapping[str, Any], said: Mapping[str, Any], signed: bool) -> None:
    cal = image.getCalibration()
    unit, per = said.get("unit", "pixel"), nm_per(said.get("unit"))
    z_unit = said.get("z_unit", unit)
    width, height, depth = (said.get(f"pixel_{name}", 1.0) for name in ("width", "height", "depth"))
    size, step = _positive(attrs, "pixel_size_nm"), _positive(attrs, "z_step_nm")
    interval = _positive(attrs, "frame_interval_s")
    if size and not _close(size, square(width, height, per)):
        unit, per = (unit, per) if per else ("µm", 1e3)
        width = height = size / per
    if step and not _close(step, depth * (nm_per(z_unit) or math.nan)):
        z_unit, depth = (unit, step / per) if per else ("µm", step / 1e3)
    cal.setUnit(unit)
    if z_unit != unit:
        cal.setZUnit(z_unit)  # also where only one of the two is known
    cal.pixelWidth, cal.pixelHeight, cal.pixelDepth = width, height, depth
    cal.xOrigin, cal.yOrigin, cal.zOrigin = said.get("origin", (0.0, 0.0, 0.0))
    cal.frameInterval, time_unit = said.get("frame_interval", 0.0), said.get("time_unit", "sec")
    if interval and not _close(interval, cal.frameInterval * _SECONDS.get(time_unit, 0)):
        cal.frameInterval, time_unit = interval, "sec"
    cal.setTimeUnit(time_unit)
    cal.fps = said.get("fps", cal.fps)
    if signed:
        cal.setSigned16BitCalibration()
    elif "values" in said and image.getBitDepth() < 32:
        values = said["values"]
        cal.setFunction(values["function"], values["coefficients"], values["unit"])
    image.setCalibration(cal)


def _positive(attrs: Mapping[str, Any], name: str) -> float | None:
    value = attrs.get(name)
    if value is None:
        return None
    if not isinstance(value, int | float | np.number) or not 0 < value < math.inf:
        raise FijiBridgeError(f"{name} must be a positive number, not {value!r}.")
    return float(value)


def _close(first: float, second: float | None) -> bool:
    return second is not None and math.isclose(first, second, rel_tol=1e-5)


def _shown(image: Any, said: Mapping[str, Any], signed: bool) -> Any:
    """Show an image as `said`, a composite where it has channels."""
    from jpype import JClass

    channels = int(image.getNChannels())
    luts = said.get("luts", ())
    mode = said.get("mode", "composite" if channels <= MOST_SHOWN else "grayscale")
    if channels > 1 and mode is not None:
        number = {name: number for number, name in MODES.items()}[mode]
        image = JClass("ij.CompositeImage")(image, number)
    if len(luts) != (channels if image.isComposite() else 1):
        return image  # made of another image than it was
    shift = SIGNED_OFFSET if signed else 0
    ranges = [(least + shift, most + shift) for least, most in said["display_ranges"]]
    for channel, (values, (least, most)) in enumerate(zip(luts, ranges, strict=True), 1):
        lut = _java_lut(values, least, most)
        if image.isComposite():
            image.setChannelLut(lut, channel)
        else:
            image.setLut(lut)
            image.setDisplayRange(least, most)
    if image.isComposite():
        image.updateAndDraw()
    return image


def _java_lut(values: np.ndarray, least: float, most: float) -> Any:
    from jpype import JClass

    red, green, blue = _java_arrays(np.ascontiguousarray(values, np.uint8))
    lut = JClass("ij.process.LUT")(red, green, blue)
    lut.min, lut.max = least, most
    return lut
