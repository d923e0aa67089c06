"""Tables of molecules as the plugin holds them, without its window."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.thunderstorm.jar import Plugin, set_hidden, without_constructor

if TYPE_CHECKING:
    import pandas as pd

ROW = "row of fiji_bridge"
"""A column of the plugin's that remembers where a row came from."""

WHOLE = ("id", "frame", "detections", "gt_id")
"""Columns of whole numbers."""

NAMES = {"uncertainty_xy": "uncertainty"}
"""Columns that later versions of the plugin name otherwise."""


@contextmanager
def results_table(plugin: Plugin, table: "pd.DataFrame") -> Iterator[Any]:
    """Make `table` the plugin's table of results, where formulas look up their variables; give it.

    The plugin keeps one such table a process, with the state of its buttons: a step of post-processing that
    its macros ran once finds its button pressed and does nothing the next time. Here each has a new one.
    """
    IJResultsTable = plugin["results.IJResultsTable"]
    results = generic_table(plugin, table)
    IJResultsTable.setResultsTable(results)
    try:
        yield results
    finally:
        IJResultsTable.setResultsTable(None)


def generic_table(plugin: Plugin, table: "pd.DataFrame | None") -> Any:
    """Give a table of the plugin's that holds `table`, or nothing."""
    results = without_constructor(plugin, "results.IJResultsTable")
    make = plugin["results.TripleStateTableModel"].class_.getDeclaredConstructor()
    make.setAccessible(True)
    model = make.newInstance()
    if table is not None:
        for molecule in molecules(plugin, table):
            model.addRow(molecule)
    set_hidden(results, "model", model)
    return results


def molecules(plugin: Plugin, table: "pd.DataFrame") -> list[Any]:
    """Turn rows into the plugin's molecules, which share one description of the columns."""
    from jpype import JArray, JDouble, JString

    if "id" not in table:
        table = table.assign(id=np.arange(1, len(table) + 1))
    for label, kind in table.dtypes.items():
        if kind.kind not in "biuf":
            raise FijiBridgeError(
                f"The column {label} is not of numbers, as all of ThunderSTORM's are; drop it."
            )
    Molecule, Descriptor = plugin["estimators.PSF.Molecule"], plugin["estimators.PSF.MoleculeDescriptor"]
    labels = [Descriptor.parseColumnLabel(str(label)) for label in table.columns]
    names = [str(label.first) for label in labels]
    descriptor = Descriptor(JArray(JString)([NAMES.get(name, name) for name in names]))
    for column, label in enumerate(labels):
        descriptor.setColumnUnits(label.second, column)
    return [Molecule(descriptor, JArray(JDouble)(row)) for row in table.to_numpy(dtype=float)]


def analog_columns(plugin: Plugin, model: Any) -> dict[str, np.ndarray]:
    """Give the columns of the plugin's table by label, converted by itself to nm and photons."""
    Units = plugin["estimators.PSF.MoleculeDescriptor$Units"]
    columns = {}
    for name in model.getColumnNames() if model.getRowCount() else ():
        unit = Units.getAnalogUnits(model.getColumnUnits(name))
        label = NAMES.get(str(name), str(name)) + (f" [{unit}]" if unit.getLabel() else "")
        columns[label] = np.array(model.getColumnAsDoubles(name, unit))
    return columns


def data_frame(plugin: Plugin, model: Any) -> "pd.DataFrame":
    """Give the plugin's table with its column names, in nm and photons."""
    import pandas as pd

    frame = pd.DataFrame(analog_columns(plugin, model))
    whole = [label for label in WHOLE if label in frame and np.all(frame[label] % 1 == 0)]
    return frame.astype(dict.fromkeys(whole, "int64"))
