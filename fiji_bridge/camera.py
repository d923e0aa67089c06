"""The camera: what turns photons into the numbers of a file, and back."""

import dataclasses
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.macro_options import format_options, parse_options

if TYPE_CHECKING:
    import xarray as xr

    from fiji_bridge.camera_estimation import CameraEstimate as CameraEstimate
    from fiji_bridge.camera_estimation import estimate_camera as estimate_camera

__all__ = ["Camera", "CameraEstimate", "estimate_camera"]

PLUGIN_DEFAULTS = {"offset": 414.0, "photons2adu": 3.6, "gainem": 100.0}
"""What ThunderSTORM 1.3 takes for keys of `Camera setup` that are left out."""

NUMBERS = ("offset", "photons2adu", "gainem", "pixelsize", "readnoise")
MAPS = {"offsetmap": "offset_map", "gainmap": "gain_map", "variancemap": "variance_map"}
KEYS = (*NUMBERS, "isemgain", *MAPS)
IGNORED = ("quantumefficiency",)
"""Keys of other ThunderSTORM versions; photons here are photoelectrons, so it changes nothing."""

BELOW_OFFSET = 0.95
"""With more of the pixels below it than this, an offset cannot be what the camera adds to every pixel."""


def _positive(value: float) -> bool:
    return 0 < value < math.inf


def _not_negative(value: float) -> bool:
    return 0 <= value < math.inf


SCALARS = (
    ("offset", "offset", math.isfinite, "a finite number of A/D counts"),
    ("photons2adu", "photons_per_adu", _positive, "a positive number of photons per A/D count"),
    ("gainem", "em_gain", _positive, "a positive EM gain"),
    ("readnoise", "read_noise", _not_negative, "zero or a positive number of electrons"),
    ("pixelsize", "pixel_size_nm", _positive, "a positive number of nanometres"),
)
"""Option key, field, what must hold, and that in words."""


@dataclass(frozen=True, eq=False)
class Camera:
    """How photons became the numbers (A/D counts, ADU) in a file.

    A pixel that receives λ photoelectrons on average has the mean ``offset + λ · em_gain / photons_per_adu``
    and, in photons, the variance ``excess_noise · λ + read_variance``.

    Parameters
    ----------
    offset
        Base level [ADU].
    photons_per_adu
        Photoelectrons per A/D count at the converter; ThunderSTORM's `photons2adu`.
    em_gain
        Electron-multiplying gain, None for a camera without.
    read_noise
        Read noise [electrons RMS] where it arises, after any EM gain: ``read_noise / em_gain`` in photons.
    pixel_size_nm
        Size of a pixel in the sample [nm], None when unknown.
    offset_map, gain_map, variance_map
        Per-pixel values (y, x) of an sCMOS camera, in the units of Huang et al., Nat. Methods 10, 653 (2013):
        offset [ADU], gain [ADU per photoelectron], read variance [ADU²]. A map takes the place of its scalar.
    source
        Where the values come from, for reports.
    map_files
        Files that the maps were read from, by option key (`offsetmap`, `gainmap`, `variancemap`).

    Raises
    ------
    FijiBridgeError
        If a value is not a number or not possible; the sentence names the option.
    """

    offset: float
    photons_per_adu: float
    em_gain: float | None = None
    read_noise: float = 0.0
    pixel_size_nm: float | None = None
    offset_map: np.ndarray | None = field(default=None, repr=False)
    gain_map: np.ndarray | None = field(default=None, repr=False)
    variance_map: np.ndarray | None = field(default=None, repr=False)
    source: str = "given by the user"
    map_files: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key, name, holds, wanted in SCALARS:
            value = getattr(self, name)
            if value is None and name in ("em_gain", "pixel_size_nm"):
                continue
            if not isinstance(value, (int, float, np.number)) or not holds(float(value)):
                raise FijiBridgeError(f"The camera's {key} must be {wanted}, not {value!r}.")
            object.__setattr__(self, name, float(value))
        shapes = set()
        for key, name in MAPS.items():
            values = getattr(self, name)
            if values is None:
                continue
            values = _checked_map(key, values)
            object.__setattr__(self, name, values)
            shapes.add(values.shape)
        if len(shapes) > 1:
            raise FijiBridgeError(f"The camera's maps have different shapes (y, x): {sorted(shapes)}.")

    def __eq__(self, other: object) -> bool:
        """Compare all but where the values come from."""
        if not isinstance(other, Camera):
            return NotImplemented
        return {**self.as_dict(), "source": None} == {**other.as_dict(), "source": None}

    @overload
    @classmethod
    def of(cls, given: "Camera | str") -> "Camera": ...

    @overload
    @classmethod
    def of(cls, given: "Camera | str | None") -> "Camera | None": ...

    @classmethod
    def of(cls, given: "Camera | str | None") -> "Camera | None":
        """Give the camera that was given as such or as an option string; None stays None."""
        if not (given is None or isinstance(given, str) or hasattr(given, "pixel_size_nm")):
            raise FijiBridgeError(f"The camera is {given!r}; give a Camera, or ThunderSTORM's string of one.")
        return cls.parse(given) if isinstance(given, str) else given

    @classmethod
    def parse(cls, text: str, *, source: str = "given by the user") -> "Camera":
        """Read ThunderSTORM's `Camera setup` option string, and our keys beside its own.

        Parameters
        ----------
        text
            For example ``offset=414.0 photons2adu=3.6 isemgain=false pixelsize=160.0 readnoise=1.5``.
            ThunderSTORM 1.3's keys are `offset` [ADU], `photons2adu` [photons per ADU], `isemgain` (true or
            false), `gainem` and `pixelsize` [nm]; ours are `readnoise` [electrons RMS] and the files
            `offsetmap` [ADU], `gainmap` [ADU per photoelectron] and `variancemap` [ADU²] (TIFF, PNG or .npy).
            Capitals in keys make no difference. A key left out takes the plugin's default, except that the
            pixel size stays unknown, and that a map's median stands for its scalar.
        source
            Kept in `Camera.source`.

        Raises
        ------
        FijiBridgeError
            If a key is unknown, a value is not what it must be, or a map cannot be read.
        """
        options = _in_small_letters(parse_options(text))
        if not options:
            raise FijiBridgeError(
                "The camera is empty; give at least offset= and photons2adu= or leave it out to estimate it."
            )
        for key in options:
            if key not in KEYS and key not in IGNORED:
                raise FijiBridgeError(f"The camera has the unknown key {key!r}; known are {', '.join(KEYS)}.")
        number = {key: _number(key, options[key]) for key in NUMBERS if key in options}
        files = {key: options[key] for key in MAPS if key in options}
        maps = {MAPS[key]: _read_map(key, path) for key, path in files.items()}
        if "offset_map" in maps:
            number.setdefault("offset", float(np.median(maps["offset_map"])))
        if "gain_map" in maps:
            number.setdefault("photons2adu", 1 / float(np.median(maps["gain_map"])))
        number = {**PLUGIN_DEFAULTS, **number}
        if "variance_map" in maps:
            spread = float(np.sqrt(np.median(maps["variance_map"])))
            number.setdefault("readnoise", spread * number["photons2adu"])
        camera = cls(
            offset=number["offset"],
            photons_per_adu=number["photons2adu"],
            em_gain=number["gainem"],
            read_noise=number.get("readnoise", 0.0),
            pixel_size_nm=number.get("pixelsize"),
            source=source,
            map_files=files,
            **maps,
        )
        return camera if _has_em_gain(options) else camera.replace(em_gain=None)

    def options(self) -> str:
        """Give the option string that `parse` reads; ThunderSTORM's own keys come first.

        Raises
        ------
        FijiBridgeError
            If a map was given as an array, which has no file to name.
        """
        options = {"offset": repr(self.offset), "isemgain": "false" if self.em_gain is None else "true"}
        if self.em_gain is not None:
            options["gainem"] = repr(self.em_gain)
        options["photons2adu"] = repr(self.photons_per_adu)
        if self.pixel_size_nm is not None:
            options["pixelsize"] = repr(self.pixel_size_nm)
        if self.read_noise:
            options["readnoise"] = repr(self.read_noise)
        for key, name in MAPS.items():
            if getattr(self, name) is None:
                continue
            if key not in self.map_files:
                raise FijiBridgeError(
                    f"The camera's {key} is an array; save it to a file and name that to write it as option."
                )
            options[key] = self.map_files[key]
        return format_options(options)

    def replace(self, **changes: Any) -> "Camera":
        """Give a camera that differs in some fields."""
        files = {key: path for key, path in self.map_files.items() if MAPS[key] not in changes}
        return dataclasses.replace(self, **{"map_files": files, **changes})

    def as_dict(self) -> dict[str, Any]:
        """Give the fields for JSON; a map is its file's name when it has one, nested lists otherwise."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "map_files"}
        for key, name in MAPS.items():
            if fields[name] is not None:
                fields[name] = self.map_files.get(key) or fields[name].tolist()
        return fields

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Camera":
        """Make the camera that `as_dict` described, reading its maps' files again."""
        values = dict(fields)
        files = {key: values[name] for key, name in MAPS.items() if isinstance(values.get(name), str)}
        values |= {MAPS[key]: _read_map(key, path) for key, path in files.items()}
        return cls(**values, map_files=files)

    @property
    def adu_per_photon(self) -> float | np.ndarray:
        """A/D counts that one photoelectron makes, EM gain included: a number, or (y, x) with a gain map."""
        return (1 / self.photons_per_adu if self.gain_map is None else self.gain_map) * (self.em_gain or 1.0)

    @property
    def excess_noise(self) -> float:
        """Factor on the photon variance: 2 with EM gain (Hirsch et al., PLoS One 8, e53671, 2013), else 1."""
        return 1.0 if self.em_gain is None else 2.0

    @property
    def read_variance(self) -> float | np.ndarray:
        """Variance of a dark pixel [photon²]: a number, or (y, x) with a variance map."""
        if self.variance_map is not None:
            return self.variance_map / self.adu_per_photon**2
        return (self.read_noise / (self.em_gain or 1.0)) ** 2

    def to_photons(self, adu: Any) -> Any:
        """Turn A/D counts into photons; float32 for integers of up to 16 bits and float32, else float64.

        Parameters
        ----------
        adu
            Array or DataArray, (..., y, x) where the camera has maps.
        """
        dtype = _working_dtype(adu)
        offset, gain = self._offset(), self.adu_per_photon
        return (_as(adu, dtype) - _as(offset, dtype)) / _as(gain, dtype)

    def to_adu(self, photons: Any) -> Any:
        """Turn photons into A/D counts, neither rounded nor clipped: the inverse of `to_photons`."""
        dtype = _working_dtype(photons)
        offset, gain = self._offset(), self.adu_per_photon
        return _as(photons, dtype) * _as(gain, dtype) + _as(offset, dtype)

    def check(self, stack: "xr.DataArray") -> None:
        """Refuse a stack that this camera cannot have recorded.

        Parameters
        ----------
        stack
            (t, y, x); some 50 frames spread over it are read.

        Raises
        ------
        FijiBridgeError
            If a map has another shape than the frames, or the offset lies above the data.
        """
        from fiji_bridge.camera_estimation import sample_frames

        name = stack.attrs.get("source", "the stack")
        height, width = stack.sizes["y"], stack.sizes["x"]
        for key, field_name in MAPS.items():
            values = getattr(self, field_name)
            if values is not None and values.shape != (height, width):
                raise FijiBridgeError(
                    f"The camera's {key} is {values.shape[0]}×{values.shape[1]} pixels (y×x) and the frames "
                    f"of {name} are {height}×{width}; crop the map to the recorded region."
                )
        frames = sample_frames(stack)
        offset: float | np.ndarray = self.offset
        # Of very large frames only the middle was read, which a map does not fit.
        if self.offset_map is not None and self.offset_map.shape == frames.shape[1:]:
            offset = self.offset_map
        rounding = 0.5 if frames.dtype.kind in "ui" else 0.0
        below = float(np.mean(frames < offset - rounding))
        if below >= BELOW_OFFSET:
            key = "offset" if self.offset_map is None else "offsetmap"
            raise FijiBridgeError(
                f"The camera's {key} ({self.offset:g} ADU) is above {below:.1%} of the pixels of {name} "
                f"(median {np.median(frames):g}, maximum {frames.max():g}); give the camera's base level, or "
                "leave the camera out to have it estimated."
            )

    def _offset(self) -> float | np.ndarray:
        return self.offset if self.offset_map is None else self.offset_map


def _in_small_letters(options: Mapping[str, str]) -> dict[str, str]:
    """Write keys as ImageJ's recorder does; the plugin's dialog shows them with capitals."""
    small: dict[str, str] = {}
    for key, value in options.items():
        key = key.lower()
        if small.setdefault(key, value) != value:
            raise FijiBridgeError(
                f"The camera's {key} is given twice, as {small[key]} and as {value}; leave one out."
            )
    return small


def _number(key: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise FijiBridgeError(f"The camera's {key} must be a number, not {text!r}.") from None


def _has_em_gain(options: Mapping[str, str]) -> bool:
    if "isemgain" not in options:
        if "gainem" in options:
            raise FijiBridgeError(
                "The camera has gainem= without isemgain=; add isemgain=true, or false to record without it."
            )
        return False
    text = options["isemgain"].strip().lower()
    if text not in ("true", "false"):
        raise FijiBridgeError(f"The camera's isemgain must be true or false, not {options['isemgain']!r}.")
    return text == "true"


def _read_map(key: str, path: str | os.PathLike[str]) -> np.ndarray:
    if Path(path).suffix.lower() == ".npy":
        try:
            values = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise FijiBridgeError(f"Cannot read the camera's {key} {path}: {error}.") from error
    else:
        from fiji_bridge.stack import open_stack

        values = open_stack(path).to_numpy()
    return _checked_map(key, values[0] if values.ndim == 3 and len(values) == 1 else values)


def _checked_map(key: str, values: np.ndarray) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim != 2 or values.dtype.kind not in "uif" or not np.isfinite(values).all():
        raise FijiBridgeError(f"The camera's {key} must be one image (y, x) of finite numbers.")
    if key == "gainmap" and values.min() <= 0:
        raise FijiBridgeError("The camera's gainmap must be positive everywhere [ADU per photoelectron].")
    if key == "variancemap" and values.min() < 0:
        raise FijiBridgeError("The camera's variancemap must not be negative [ADU²].")
    return values.astype(np.float64)


def _working_dtype(values: Any) -> np.dtype:
    dtype = getattr(values, "dtype", None)
    return np.result_type(np.float64 if dtype is None else dtype, np.float32)


def _as(values: Any, dtype: np.dtype) -> Any:
    return values.astype(dtype) if hasattr(values, "astype") else np.asarray(values, dtype=dtype)[()]


def __getattr__(name: str) -> Any:
    # The estimation makes cameras, so it can only be imported after this module.
    if name not in ("CameraEstimate", "estimate_camera"):
        raise AttributeError(f"module 'fiji_bridge.camera' has no attribute {name!r}")
    from fiji_bridge import camera_estimation

    return getattr(camera_estimation, name)
