"""The table of molecules: ThunderSTORM's columns, read from and written to its CSV files.

Every localizer returns this table and everything after reads it. Frames count from 1 and the centre of the
first pixel lies at half a pixel, as in ThunderSTORM.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fiji_bridge.camera import Camera
from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.files import replacing

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = (
    "id",
    "frame",
    "x [nm]",
    "y [nm]",
    "sigma [nm]",
    "intensity [photon]",
    "offset [photon]",
    "bkgstd [photon]",
    "chi2",
    "uncertainty [nm]",
)
"""The columns of the plugin's default analysis, in its order."""

REQUIRED = ("frame", "x [nm]", "y [nm]")
"""What a table needs to be a table of molecules."""

POSITION_COLUMNS = {"c": "channel", "z": "slice"}
"""Columns that tell the channels and planes of a stack apart, counted from 1."""

CAMERA_SETUP, STACK_SHAPE = "camera_setup", "stack_shape"
"""What ``attrs`` of a table say of its stack: the camera's setup string, and frames, height and width."""

_LABEL = re.compile(r"\s*(?P<name>.*?)\s*(?:\[(?P<unit>[^\]]*)\])?\s*")
_UNIT = re.compile(r"\s*\[.*\]$")
_COUNTS = ("id", "frame")


def read_localizations(path: str | os.PathLike[str], *, camera: Camera | str | None = None) -> pd.DataFrame:
    """Read a table that any version of ThunderSTORM wrote, or one laid out like it, or Picasso's or SMAP's.

    Parameters
    ----------
    path
        A CSV file; tabs and semicolons do as separators, quotes in the header are optional. Or .hdf5 or .h5
        of Picasso, or .mat (version 7.3) of SMAP.
    camera
        Converts positions in pixels and intensities in ADU; tables in nm and photons do not need it.

    Returns
    -------
    pandas.DataFrame
        The file's columns in nm and photons; ``uncertainty_xy`` of later versions is named
        ``uncertainty [nm]``. ``attrs["source"]`` is the path. Files of Picasso also say the pixel size and
        the size of the stack, for `render` and `export`.

    Raises
    ------
    FijiBridgeError
        If the file cannot be read, lacks ``frame``, ``x`` or ``y``, has a value that is not a number, counts
        frames from 0, or needs a camera that was not given.
    """
    path, camera = Path(path), Camera.of(camera)
    source = str(path)
    if path.suffix.lower() in (".hdf5", ".h5", ".mat"):
        from fiji_bridge.table_formats import read_hdf5

        table = read_hdf5(path, camera)
    else:
        table = _in_house_units(_known_names(_read_text_table(path)), camera, source)
    require_columns(table, REQUIRED, source)
    for column in table.columns:
        table[column] = _numbers(table[column], source)
    for column in table.columns.intersection(list(_COUNTS)):
        table[column] = _counts(table[column], source)
    require_frames(table, source)
    table.attrs["source"] = source
    return table


def as_table(
    table: pd.DataFrame | str | os.PathLike[str], camera: Camera | str | None = None
) -> pd.DataFrame:
    """Give a table with its columns by their usual names, or read it from its file."""
    if isinstance(table, (str, os.PathLike)):
        return read_localizations(table, camera=camera)
    return _known_names(table)


def camera_of(table: pd.DataFrame, camera: Camera | str | None = None) -> Camera | None:
    """Give the camera that is known, or else the one with which the table was localized."""
    return Camera.of(camera or table.attrs.get(CAMERA_SETUP))


def frame_shape(table: pd.DataFrame) -> tuple[int, int] | None:
    """Give height and width [pixels] of the frames in which the table was localized, where that is known."""
    shape = table.attrs.get(STACK_SHAPE)
    return shape and (int(shape[-2]), int(shape[-1]))


def write_localizations(table: pd.DataFrame, path: str | os.PathLike[str]) -> None:
    """Write a table as ThunderSTORM does, so that it opens there.

    Every value is a decimal number, the labels stand in quotes, and missing numbers are ``NaN``.

    Raises
    ------
    FijiBridgeError
        If the table lacks ``frame``, ``x [nm]`` or ``y [nm]``, or the file cannot be written.
    """
    require_columns(table, REQUIRED, f"the table for {path}")
    with replacing(path) as partial:
        save_csv(table, partial)


def save_csv(table: pd.DataFrame, path: Path, *, separator: str = ",", number: bool = True) -> None:
    """Write as `write_localizations` does, to a path that the caller puts in place.

    `number` gives ids to a table that has none.
    """
    import csv

    if number and "id" not in table:
        table = table.copy()
        table.insert(0, "id", range(1, len(table) + 1))
    # Java reads "Infinity", not "inf".
    spelled = table.astype("float64").astype(object).replace({math.inf: "Infinity", -math.inf: "-Infinity"})
    spelled.to_csv(
        path, sep=separator, index=False, quoting=csv.QUOTE_NONNUMERIC, na_rep="NaN", lineterminator="\n"
    )


def without_unit(label: object) -> str:
    """Give the name of a column, by which formulas and option strings know it."""
    return _UNIT.sub("", str(label))


def require_columns(table: pd.DataFrame, columns: Iterable[str], where: str) -> None:
    """Refuse a table that lacks one of `columns`, naming it and `where` (a file or option)."""
    missing = [column for column in columns if column not in table]
    if missing:
        have = ", ".join(map(str, table.columns)) or "none"
        raise FijiBridgeError(f"{where} lacks the column {' and '.join(missing)}; it has {have}.")


def require_positions(table: pd.DataFrame, columns: Sequence[str], where: str) -> None:
    """Refuse a table that lacks one of these columns, or has NaN or infinity in one."""
    require_columns(table, columns, where)
    for column in columns:
        wrong = np.flatnonzero(~np.isfinite(table[column].to_numpy(float)))
        if len(wrong):
            raise FijiBridgeError(
                f"{where} has no finite {column} in row {wrong[0] + 1} and {len(wrong) - 1} others; remove "
                "such rows first, for instance by action=filter formula=[x > 0 & y > 0]."
            )


def require_frames(table: pd.DataFrame, where: str) -> None:
    """Refuse frames that are not whole numbers from 1."""
    first = _counts(table["frame"], where).min()
    if first < 1:
        raise FijiBridgeError(f"{where} has a frame {first}; number the frames from 1.")


def _read_text_table(path: Path) -> pd.DataFrame:
    import pandas as pd

    if path.is_dir():
        raise FijiBridgeError(f"{path} is a folder; name a CSV file of molecules.")
    try:
        with path.open(encoding="utf-8-sig") as file:
            header = file.readline()
            if not header.strip():
                raise FijiBridgeError(f"{path} is empty; expected a CSV file of molecules with a header.")
            file.seek(0)
            separator = max(",;\t", key=header.count)
            return pd.read_csv(
                file, sep=separator, skipinitialspace=True, index_col=False, skip_blank_lines=True
            )
    except OSError as error:
        raise FijiBridgeError(f"Cannot read {path}: {error.strerror or error}.") from error
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        reason = str(error).splitlines()[0]
        raise FijiBridgeError(f"{path} is not a CSV file of molecules: {reason}.") from error


def _known_names(table: pd.DataFrame) -> pd.DataFrame:
    """Put labels in one spelling: ``name [unit]``, with the plugin's later names as its earlier ones."""
    names: dict[str, str] = {}
    for label in table.columns:
        match = _LABEL.fullmatch(str(label).replace("\n", " "))
        name, unit = (match["name"], match["unit"]) if match else (str(label), None)
        name = "uncertainty" if name == "uncertainty_xy" else name
        spelled = f"{name} [{unit.strip()}]" if unit else name
        names[label] = str(label) if spelled in names.values() else spelled
    return table if list(names.values()) == list(table.columns) else table.rename(columns=names)


def _in_house_units(table: pd.DataFrame, camera: Camera | None, source: str) -> pd.DataFrame:
    for label in list(table.columns):
        match = _LABEL.fullmatch(label)
        if not match or match["unit"] not in ("px", "um", "ADU"):
            continue
        factor, unit = _conversion(match["unit"], camera, f"{source} has {label}")
        table[label] = _numbers(table[label], source) * factor
        table = table.rename(columns={label: f"{match['name']} [{unit}]"})
    return table


def _conversion(unit: str, camera: Camera | None, what: str) -> tuple[float, str]:
    if unit == "um":
        return 1000.0, "nm"
    if unit == "px":
        if camera is None or camera.pixel_size_nm is None:
            raise FijiBridgeError(f'{what}: give the pixel size with --camera "… pixelsize=…" (nm).')
        return camera.pixel_size_nm, "nm"
    if camera is None:
        raise FijiBridgeError(f'{what}: give the camera with --camera "offset=… photons2adu=… pixelsize=…".')
    return camera.photons_per_adu / (camera.em_gain or 1.0), "photon"


def _numbers(column: pd.Series, source: str) -> pd.Series:
    import pandas as pd

    if pd.api.types.is_numeric_dtype(column):
        return column
    numbers = pd.to_numeric(column, errors="coerce")
    wrong = numbers.isna() & column.notna()
    if wrong.any():
        row = int(wrong.to_numpy().argmax())
        value = column.iloc[row]
        raise FijiBridgeError(
            f"{source}, row {row + 1}: {value!r} in the column {column.name} is not a number."
        )
    return numbers


def _counts(column: pd.Series, source: str) -> pd.Series:
    wrong = ~(column % 1 == 0)
    if wrong.any():
        row = int(wrong.to_numpy().argmax())
        value = column.iloc[row]
        raise FijiBridgeError(f"{source}, row {row + 1}: {column.name} {value} is not a whole number.")
    return column.astype("int64")
