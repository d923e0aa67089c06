"""Files of molecules: ThunderSTORM's CSV of its old and new versions, Picasso's HDF5, SMAP's MAT and CSV.

What a program calls a column and in which units is one table each below, for both directions.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.files import check_kept, replacing, replacing_pair
from fiji_bridge.localizations import (
    CAMERA_SETUP,
    REQUIRED,
    STACK_SHAPE,
    as_table,
    camera_of,
    frame_shape,
    require_columns,
    require_frames,
    require_positions,
    save_csv,
    without_unit,
)
from fiji_bridge.thunderstorm.settings import CSV, XLS, Export

if TYPE_CHECKING:
    import h5py
    import pandas as pd

    from fiji_bridge.camera import Camera

PICASSO_COLUMNS = {
    "x": ("x [nm]", "px"),
    "y": ("y [nm]", "px"),
    "photons": ("intensity [photon]", ""),
    "sx": ("sigma1 [nm]", "px"),
    "sy": ("sigma2 [nm]", "px"),
    "bg": ("offset [photon]", ""),
    "lpx": ("uncertainty_x [nm]", "px"),
    "lpy": ("uncertainty_y [nm]", "px"),
    "z": ("z [nm]", ""),
    "lpz": ("uncertainty_z [nm]", ""),
}
"""Picasso's columns, ours, and whether it counts in pixels."""

PICASSO_OWN = ("ellipticity", "net_gradient")
"""Columns of Picasso's that follow from others or from its detection."""

SMAP_COLUMNS = {
    "frame": "frame",
    "xnm": "x [nm]",
    "ynm": "y [nm]",
    "znm": "z [nm]",
    "phot": "intensity [photon]",
    "bg": "offset [photon]",
    "PSFxnm": "sigma1 [nm]",
    "PSFynm": "sigma2 [nm]",
    "locprecnm": "uncertainty [nm]",
    "locprecznm": "uncertainty_z [nm]",
    "xnmerr": "uncertainty_x [nm]",
    "ynmerr": "uncertainty_y [nm]",
    "channel": "channel",
}
"""SMAP's names, and ours; locan reads the last two uncertainties."""

STAND_INS = {
    "sigma1 [nm]": "sigma [nm]",
    "sigma2 [nm]": "sigma [nm]",
    "uncertainty_x [nm]": "uncertainty [nm]",
    "uncertainty_y [nm]": "uncertainty [nm]",
}
"""Columns of round spots for those of each axis."""


def export(
    table: pd.DataFrame | str | os.PathLike[str],
    path: str | os.PathLike[str] | Export,
    *,
    format: str | None = None,
    camera: Camera | str | None = None,
    shape: tuple[int, int] | None = None,
) -> Path:
    """Write a table for ThunderSTORM, Picasso, SMAP or locan.

    Parameters
    ----------
    table
        Molecules, or the path of their file.
    path
        The file to write. Or the option string of ThunderSTORM's `Export results`, with ``filepath=``,
        ``fileformat=[CSV (comma separated)]`` or ``[XLS (tab separated)]``, and columns such as
        ``chi2=false``; as in the plugin the first column, ``id``, is then written only when it is named.
    format
        Left out, it follows from the file's name:

        ==================== ============ ==============================================================
        ``thunderstorm``     .csv, .xls   of ThunderSTORM 1.3, separated by commas or tabs
        ``thunderstorm-1.4`` .csv         with ``uncertainty_xy``, as later versions write and Picasso reads
        ``picasso``          .hdf5        and a .yaml beside it, replaced or kept with it; frames from 0, the
                                          first pixel's centre at 0
        ``smap``             .mat, .csv   SMAP's names; locan and Picasso read the .mat, as ``…_sml.mat``
        ==================== ============ ==============================================================
    camera
        Its pixel size is needed for Picasso. Left out: the one that the table was localized with.
    shape
        Height and width of the movie [pixels], for Picasso. Left out: those of the stack that was localized,
        or what the molecules span.

    Returns
    -------
    pathlib.Path
        The file.

    Raises
    ------
    FijiBridgeError
        If the format is unknown or does not fit the name, a column or the pixel size is missing, frames are
        not counted from 1, h5py is not installed, a .yaml of something else is there, or the file cannot be
        written.
    """
    if isinstance(path, str) and "filepath=" in path.lower():
        path = Export.parse(path)
    if isinstance(table, (str, os.PathLike)):
        target = path.path if isinstance(path, Export) else path
        check_kept([table], {str(target): target} if target else {})
    table = as_table(table, camera)
    if isinstance(path, Export):
        return _export_as_told(table, path)
    path = Path(path)
    name = format or next((n for n, f in FORMATS.items() if path.suffix.lower() in f.suffixes), None)
    if name is None:
        raise FijiBridgeError(
            f"{path} names no format: end it in {_listed(s for f in FORMATS.values() for s in f.suffixes)}. "
            "The plugin's other formats are written by `fiji-bridge thunderstorm convert`."
        )
    if name not in FORMATS:
        raise FijiBridgeError(f"There is no format {name!r}; choose one of {', '.join(FORMATS)}.")
    chosen = FORMATS[name]
    if path.suffix.lower() not in chosen.suffixes:
        raise FijiBridgeError(f"{path} is no file of {name}; let it end in {_listed(chosen.suffixes)}.")
    require = require_columns if name.startswith("thunderstorm") else require_positions
    require(table, REQUIRED, f"The table for {path}")
    require_frames(table, f"The table for {path}")
    chosen.write(table, path, camera_of(table, camera), shape or frame_shape(table))
    return path


def _listed(words: Iterable[str]) -> str:
    return " or ".join(dict.fromkeys(words))


def _export_as_told(table: pd.DataFrame, settings: Export) -> Path:
    """Write what the plugin's `Export results` would."""
    if not settings.path:
        raise FijiBridgeError("filepath= names no file to export to.")
    if not isinstance(settings.format, CSV | XLS):
        raise FijiBridgeError(
            f"fileformat=[{settings.format.fixed['fileformat']}] is written by the plugin: "
            "`fiji-bridge thunderstorm convert`."
        )
    require_columns(table, REQUIRED, f"the table for {settings.path}")
    require_frames(table, f"The table for {settings.path}")
    if "id" not in table:
        table = table.assign(id=np.arange(1, len(table) + 1))[["id", *table]]
    bare = {without_unit(name): name for name in table}
    unknown = [name for name in (*settings.columns, *settings.left_out) if name not in bare]
    if unknown:
        raise FijiBridgeError(
            f"The table for {settings.path} has no column {unknown[0]}=; it has {', '.join(bare)}."
        )
    kept = [bare[name] for name in settings.chosen(list(bare))]
    with replacing(settings.path) as partial:
        save_csv(
            table[kept], partial, separator="," if isinstance(settings.format, CSV) else "\t", number=False
        )
    return Path(settings.path)


def _write_thunderstorm(table: pd.DataFrame, path: Path, camera: Any, shape: Any) -> None:
    with replacing(path) as partial:
        save_csv(table, partial, separator="," if path.suffix.lower() == ".csv" else "\t")


def _write_later_thunderstorm(table: pd.DataFrame, path: Path, camera: Any, shape: Any) -> None:
    _write_thunderstorm(
        table.rename(columns={"uncertainty [nm]": "uncertainty_xy [nm]"}), path, camera, shape
    )


def _write_picasso(
    table: pd.DataFrame, path: Path, camera: Camera | None, shape: tuple[int, int] | None
) -> None:
    if camera is None or camera.pixel_size_nm is None:
        raise FijiBridgeError('Picasso counts in pixels: give their size with --camera "… pixelsize=…" (nm).')
    require_columns(table, ("intensity [photon]",), f"the table for {path}")
    pixel = camera.pixel_size_nm
    columns: dict[str, Any] = {"frame": table["frame"].to_numpy(np.uint32) - np.uint32(1)}
    for name, (label, unit) in PICASSO_COLUMNS.items():
        label = label if label in table else STAND_INS.get(label, label)
        if label in table:
            columns[name] = (table[label].to_numpy(float) / (pixel if unit else 1.0)).astype(np.float32)
    for name in ("x", "y"):
        columns[name] = (table[f"{name} [nm]"].to_numpy(float) / pixel - 0.5).astype(np.float32)
    if "sx" in columns and "sy" in columns:
        wide, narrow = np.maximum(columns["sx"], columns["sy"]), np.minimum(columns["sx"], columns["sy"])
        columns["ellipticity"] = ((wide - narrow) / wide).astype(np.float32)
    columns["net_gradient"] = columns["photons"]
    spans = [int(np.ceil(table[label].max() / pixel)) if len(table) else 1 for label in ("y [nm]", "x [nm]")]
    height, width = shape or spans
    stack = table.attrs.get(STACK_SHAPE)
    frames = int(stack[0] if stack else table["frame"].max() if len(table) else 0)
    about = {
        "Byte Order": "<",
        "Data Type": "uint16",
        "Frames": frames,
        "Height": max(1, int(height)),
        "Width": max(1, int(width)),
        "Generated by": "fiji_bridge",
        "Pixelsize": float(pixel),
        "Box Size": 7,
    }
    records = np.empty(len(table), [(name, values.dtype) for name, values in columns.items()])
    for name, values in columns.items():
        records[name] = values
    with replacing_pair(path, path.with_suffix(".yaml")) as (partial, description):
        with _hdf5(partial, "w") as file:
            file.create_dataset("locs", data=records)
        lines = (f"{key}: {value!r}\n" for key, value in about.items())
        description.write_text("".join(lines), encoding="utf-8")


def _smap_columns(table: pd.DataFrame) -> dict[str, np.ndarray]:
    columns = {"channel": np.zeros(len(table))}
    for name, label in SMAP_COLUMNS.items():
        label = label if label in table else STAND_INS.get(label, label)
        if label in table:
            columns[name] = table[label].to_numpy(np.float64)
    return {name: columns[name] for name in SMAP_COLUMNS if name in columns}


def _write_smap(table: pd.DataFrame, path: Path, camera: Camera | None, shape: Any) -> None:
    columns = _smap_columns(table)
    if path.suffix.lower() == ".csv":
        import pandas as pd

        with replacing(path) as partial:
            pd.DataFrame(columns).to_csv(partial, index=False, lineterminator="\n")
        return
    if not path.stem.endswith("_sml"):
        raise FijiBridgeError(f"SMAP knows its files by _sml.mat; name it {path.stem}_sml.mat.")
    with replacing(path) as partial:
        with _hdf5(partial, "w", userblock_size=512) as file:
            _matlab(file, {"saveloc": {"loc": columns}, "fileformat": {"name": "sml"}})
        _mark_as_matlab(partial)


def _matlab(group: h5py.Group, content: Mapping[str, Any]) -> None:
    """Write structs of text and columns of numbers as MATLAB 7.3 does, with the axes the other way round."""
    for name, value in content.items():
        if isinstance(value, Mapping):
            struct = group.create_group(name)
            struct.attrs["MATLAB_class"] = np.bytes_("struct")
            _matlab(struct, value)
        elif isinstance(value, str):
            text = group.create_dataset(name, data=np.array([[ord(letter)] for letter in value], np.uint16))
            text.attrs["MATLAB_class"] = np.bytes_("char")
            text.attrs["MATLAB_int_decode"] = np.int32(2)
        else:
            group.create_dataset(name, data=value[None]).attrs["MATLAB_class"] = np.bytes_("double")


def _mark_as_matlab(path: Path) -> None:
    """Fill the block before the HDF5 content, by which MATLAB tells its files."""
    said = f"MATLAB 7.3 MAT-file, written by fiji_bridge on {time.strftime('%c')} HDF5 schema 1.00 ."
    with path.open("r+b") as file:
        file.write(said.encode("ascii", "replace")[:116].ljust(116) + bytes(8) + b"\x00\x02IM")


class _Format(NamedTuple):
    suffixes: tuple[str, ...]
    write: Callable[[Any, Path, Any, Any], None]


FORMATS: Mapping[str, _Format] = {
    "thunderstorm": _Format((".csv", ".xls"), _write_thunderstorm),
    "thunderstorm-1.4": _Format((".csv",), _write_later_thunderstorm),
    "picasso": _Format((".hdf5",), _write_picasso),
    "smap": _Format((".mat", ".csv"), _write_smap),
}
"""Formats by name; of those that take a suffix, the first is its own."""


def _hdf5(path: Path, mode: str, **options: Any) -> h5py.File:
    try:
        import h5py
    except ImportError:
        raise FijiBridgeError(f"{path.suffix} files need h5py: install fiji-bridge[hdf5].") from None
    return h5py.File(path, mode, **options)


def read_hdf5(path: Path, camera: Camera | None) -> pd.DataFrame:
    """Read a table of Picasso's or SMAP's, in our columns and units; see `localizations.read_localizations`.

    Raises
    ------
    FijiBridgeError
        If the file is neither, or the pixel size is unknown.
    """
    if not path.is_file():
        raise FijiBridgeError(f"Cannot read {path}: there is no such file.")
    try:
        if path.suffix.lower() == ".mat" and path.read_bytes()[:10] == b"MATLAB 5.0":
            return _from_smap(_old_matlab(path))
        with _hdf5(path, "r") as file:
            if "locs" in file:
                return _from_picasso(file["locs"][...], path, _described(file, path), camera)
            if "saveloc/loc" in file:
                numbers = {name: np.ravel(values) for name, values in file["saveloc/loc"].items()}
                return _from_smap({k: v for k, v in numbers.items() if v.dtype.kind in "fiu"})
    except (OSError, ValueError, KeyError, TypeError, NotImplementedError) as error:
        raise FijiBridgeError(f"Cannot read {path}: {error}.") from error
    raise FijiBridgeError(f"{path} has neither Picasso's locs nor SMAP's saveloc/loc.")


def _old_matlab(path: Path) -> dict[str, np.ndarray]:
    from scipy.io import loadmat

    found = loadmat(path, struct_as_record=False, squeeze_me=True)["saveloc"].loc
    columns = {name: np.atleast_1d(getattr(found, name)) for name in found._fieldnames}
    return {name: values for name, values in columns.items() if values.dtype.kind in "fiu"}


def _described(file: h5py.File, path: Path) -> dict[str, float]:
    """Find the numbers that Picasso keeps beside a table, or since 0.11 in it as well."""
    beside = path.with_suffix(".yaml")
    text = beside.read_text(encoding="utf-8") if beside.is_file() else ""
    if not text and "metadata" in file:
        inside = file["metadata"][()]
        text = inside.decode() if isinstance(inside, bytes) else str(inside)
    found = re.findall(r'(?:^|[{," ])(Pixelsize|Frames|Height|Width)"?: *([-+.\deE]+)', text, re.MULTILINE)
    return {key: float(value) for key, value in reversed(found)}


def _from_picasso(
    records: np.ndarray, path: Path, about: Mapping[str, float], camera: Camera | None
) -> pd.DataFrame:
    import pandas as pd

    from fiji_bridge.macro_options import format_options

    pixel = (camera.pixel_size_nm if camera is not None else None) or about.get("Pixelsize")
    if pixel is None:
        raise FijiBridgeError(
            f'{path} counts in pixels and does not say their size: --camera "… pixelsize=…" (nm).'
        )
    theirs = {name: records[name].astype(np.float64) for name in records.dtype.names or ()}
    columns = {"frame": theirs.pop("frame") + 1}
    for name, (label, unit) in PICASSO_COLUMNS.items():
        if name in theirs:
            columns[label] = (theirs.pop(name) + (0.5 if name in "xy" else 0.0)) * (pixel if unit else 1.0)
    if {"uncertainty_x [nm]", "uncertainty_y [nm]"} <= set(columns):
        squares = columns["uncertainty_x [nm]"] ** 2 + columns["uncertainty_y [nm]"] ** 2
        columns["uncertainty [nm]"] = np.sqrt(squares / 2)
    table = _round_spots(pd.DataFrame(columns | {k: v for k, v in theirs.items() if k not in PICASSO_OWN}))
    setup = camera.options() if camera is not None else format_options({"pixelsize": repr(float(pixel))})
    table.attrs[CAMERA_SETUP] = setup
    if {"Frames", "Height", "Width"} <= set(about):
        table.attrs[STACK_SHAPE] = tuple(int(about[key]) for key in ("Frames", "Height", "Width"))
    return table


def _from_smap(columns: Mapping[str, np.ndarray]) -> pd.DataFrame:
    import pandas as pd

    ours = {
        label: columns[name].astype(np.float64) for name, label in SMAP_COLUMNS.items() if name in columns
    }
    if "sigma2 [nm]" not in ours and "sigma1 [nm]" in ours:
        ours["sigma [nm]"] = ours.pop("sigma1 [nm]")
    if "channel" in ours and not ours["channel"].any():
        del ours["channel"]
    return _round_spots(pd.DataFrame(ours))


def _round_spots(table: pd.DataFrame) -> pd.DataFrame:
    """Put one column for those of each axis where both are the same."""
    for x, y in (("sigma1 [nm]", "sigma2 [nm]"), ("uncertainty_x [nm]", "uncertainty_y [nm]")):
        if {x, y} <= set(table) and np.array_equal(table[x], table[y], equal_nan=True):
            table = table.assign(**{STAND_INS[x]: table[x]}).drop(columns=[x, y])
    return table
