"""`Import results` and `Export results`, in every format that the plugin has."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.files import replacing
from fiji_bridge.localizations import REQUIRED, require_columns, without_unit
from fiji_bridge.thunderstorm.jar import Plugin, java_errors, load, lock, set_camera
from fiji_bridge.thunderstorm.protocol import Protocol, protocol_path
from fiji_bridge.thunderstorm.settings import JSON, XML, Export, FileFormat, Import
from fiji_bridge.thunderstorm.table import data_frame, generic_table

if TYPE_CHECKING:
    import pandas as pd

    from fiji_bridge.camera import Camera

NAMELESS = "None"
"""The column of zeros that the plugin makes of an id in JSON and YAML, and then cannot export."""


def import_table(
    options: str | Import | os.PathLike[str],
    *,
    camera: "Camera | str | None" = None,
    jar: str | os.PathLike[str] | None = None,
) -> "pd.DataFrame":
    """Read a table in one of the plugin's formats, by the plugin itself.

    Parameters
    ----------
    options
        A path, whose suffix names the format (csv, xls, xml, json, yaml, gpb, tsf); or the option string of
        `Import results` with ``filepath=`` and ``fileformat=``; or its value.
    camera
        Converts pixels and ADU in the file to nm and photons.
    jar
        ThunderSTORM's jar; found by `find_jar` when left out.

    Returns
    -------
    pandas.DataFrame
        The file's columns in nm and photons, numbered anew as the plugin does.

    Raises
    ------
    FijiBridgeError
        If the file is missing or not of its format, or an option is wrong.
    """
    settings = _settings(Import, options)
    if not Path(settings.path).is_file():
        raise FijiBridgeError(f"There is no file {settings.path} to import; give filepath=.")
    with lock:
        plugin = load(jar)
        if camera is not None:
            set_camera(plugin, camera)
        name = settings.format.fixed["fileformat"]
        hint = " (1.3 cannot read one without the column id)" if settings.format == XML() else ""
        with java_errors(f"{settings.path} cannot be read as {name}{hint}"):
            results = generic_table(plugin, None)
            results.setOriginalState()
            _format(plugin, settings.format).importFromFile(settings.path, results, settings.first_frame)
            return data_frame(plugin, results.getModel()).drop(columns=NAMELESS, errors="ignore")


def export_table(
    table: "pd.DataFrame",
    options: str | Export | os.PathLike[str],
    *,
    camera: "Camera | str | None" = None,
    protocol: Protocol | None = None,
    jar: str | os.PathLike[str] | None = None,
) -> Path:
    """Write a table in one of the plugin's formats, by the plugin itself.

    Parameters
    ----------
    table
        Molecules.
    options
        A path, whose suffix names the format (csv, xls, xml, json, yaml, gpb, tsf); or the option string of
        `Export results` with ``filepath=``, ``fileformat=`` and columns such as ``chi2=false``; or its value.
        As in the plugin, the first column (``id``) is written only when it is named, or for a path of XML,
        which 1.3 cannot read back without.
    camera
        Tagged spot files keep its pixel size, and the protocol buffer whether it has EM gain.
    protocol
        How the table came about; written beside it as ``NAME-protocol.txt`` unless ``saveprotocol=false``.
    jar
        ThunderSTORM's jar; found by `find_jar` when left out.

    Returns
    -------
    pathlib.Path
        The file.

    Raises
    ------
    FijiBridgeError
        If the format cannot hold a column, an option is wrong, or the file cannot be written.
    """
    settings = _settings(Export, options)
    require_columns(table, REQUIRED, f"The table for {settings.path}")
    with lock:
        plugin = load(jar)
        if camera is not None:
            set_camera(plugin, camera)
        results = generic_table(plugin, table)
        columns = settings.chosen([str(name) for name in results.getColumnNames()])
        if isinstance(settings.format, JSON):
            _require_finite(table[[name for name in table if without_unit(name) in columns]], settings.path)
        with replacing(settings.path) as partial:
            name = settings.format.fixed["fileformat"]
            with java_errors(f"{settings.path} cannot be written as {name}"):
                from jpype import JClass

                wanted = JClass("java.util.ArrayList")(columns)
                _format(plugin, settings.format).exportToFile(str(partial), results, wanted)
        if protocol is not None and settings.save_protocol:
            protocol.write(protocol_path(settings.path), jar=jar)
    return Path(settings.path)


def _require_finite(table: "pd.DataFrame", path: str) -> None:
    numbers = table.select_dtypes("number")
    lacking = numbers.columns[~np.isfinite(numbers).all()]
    if len(lacking):
        raise FijiBridgeError(
            f"{path} cannot be written: JSON has no missing or infinite values, as in {lacking[0]!r};"
            " take another format, or leave that column out."
        )


def _settings(kind: Any, options: Any) -> Any:
    """Read options, or make them for a path by its suffix."""
    if isinstance(options, kind):
        return options
    text = os.fspath(options)
    if "filepath=" in text.lower():
        return kind.parse(text)
    suffix = Path(text).suffix.lower().lstrip(".")
    formats = {each.suffix: each for each in FileFormat.modules()}
    if suffix not in formats:
        raise FijiBridgeError(f"{text} is of no format of ThunderSTORM's; it has {', '.join(formats)}.")
    with_id = {"columns": ("id",)} if kind is Export and formats[suffix] is XML else {}
    return kind(path=text, format=formats[suffix](), **with_id)


def _format(plugin: Plugin, wanted: FileFormat) -> Any:
    modules = plugin["ModuleLoader"].getModules(plugin["ImportExport.IImportExport"].class_)
    return next(m for m in modules if m.getName() == wanted.fixed["fileformat"])
