"""What ThunderSTORM does with its table, by the plugin's own classes: post-processing and evaluation."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.localizations import REQUIRED, require_columns
from fiji_bridge.macro_options import parse_options
from fiji_bridge.thunderstorm.jar import Plugin, java_errors, load, lock

if TYPE_CHECKING:
    import pandas as pd

ACTIONS = {
    "duplicates": ("results.DuplicatesFilter", "distformula", "uncertainty"),
    "filter": ("results.ResultsFilter", "formula", ""),
}
"""Actions of `Show results table`: the plugin's class, the option with its formula, the default of that."""

ROW = "row of fiji_bridge"


def postprocess(
    table: "pd.DataFrame", options: str, *, jar: str | os.PathLike[str] | None = None
) -> "pd.DataFrame":
    """Remove duplicates or filter a table as ThunderSTORM's `Show results table` does.

    Parameters
    ----------
    table
        Molecules, as `localize` gives them.
    options
        Option string of the command: ``action=duplicates distformula=uncertainty`` or
        ``action=filter formula=[intensity > 500 & uncertainty < 10]``. Names in formulas are those of the
        columns, without units.
    jar
        ThunderSTORM's jar; found by `find_jar` when left out.

    Returns
    -------
    pandas.DataFrame
        The rows that stay, with their ids.

    Raises
    ------
    FijiBridgeError
        If the action is unknown, the formula is wrong, or a needed column is missing.
    """
    settings = parse_options(options)
    action = settings.get("action", "")
    if action not in ACTIONS:
        raise FijiBridgeError(f"action={action} is not one of {', '.join(ACTIONS)}.")
    name, key, default = ACTIONS[action]
    formula = settings.get(key, default)
    require_columns(table, REQUIRED, f"The table for action={action}")
    if not formula or table.empty:
        return table.copy()
    if "id" in table and not table["id"].is_unique:
        raise FijiBridgeError(f"The table for action={action} has an id twice; number the molecules anew.")
    with lock:
        plugin = load(jar)
        with (
            _results_table(plugin, table) as model,
            java_errors(f"The option {key}={formula} cannot be applied"),
        ):
            _apply(plugin, plugin[name](), model, formula)
            kept = np.array(model.getColumnAsDoubles(ROW, None), dtype=int)
    return table.iloc[kept].reset_index(drop=True)


def _apply(plugin: Plugin, module: Any, model: Any, formula: str) -> None:
    # The public way asks the table's window, which cannot be made without a display.
    from jpype import JClass

    apply = module.getClass().getDeclaredMethod(
        "applyToModel", plugin["results.GenericTableModel"].class_, JClass("java.lang.String").class_
    )
    apply.setAccessible(True)
    apply.invoke(module, model, formula)


@contextmanager
def _results_table(plugin: Plugin, table: "pd.DataFrame") -> Iterator[Any]:
    """Make `table` the plugin's table of results, where formulas look up their variables; give its model."""
    from jpype import JClass

    IJResultsTable = plugin["results.IJResultsTable"]
    # Its constructor makes a window, so it is created as deserialization creates objects: without that.
    Factory, Object = JClass("sun.reflect.ReflectionFactory"), JClass("java.lang.Object")
    blank = Factory.getReflectionFactory().newConstructorForSerialization(
        IJResultsTable.class_, Object.class_.getConstructor()
    )
    results, model = blank.newInstance(), _model(plugin, table)
    field = plugin["results.GenericTable"].class_.getDeclaredField("model")
    field.setAccessible(True)
    field.set(results, model)
    IJResultsTable.setResultsTable(results)
    try:
        yield model
    finally:
        IJResultsTable.setResultsTable(None)


def _model(plugin: Plugin, table: "pd.DataFrame") -> Any:
    make = plugin["results.TripleStateTableModel"].class_.getDeclaredConstructor()
    make.setAccessible(True)
    model = make.newInstance()
    for molecule in _molecules(plugin, table.assign(**{ROW: np.arange(len(table))})):
        model.addRow(molecule)
    return model


def _molecules(plugin: Plugin, table: "pd.DataFrame") -> list[Any]:
    """Turn rows into the plugin's molecules, which share one description of the columns."""
    from jpype import JArray, JDouble, JString

    if "id" not in table:
        table = table.assign(id=np.arange(1, len(table) + 1))
    Molecule, Descriptor = plugin["estimators.PSF.Molecule"], plugin["estimators.PSF.MoleculeDescriptor"]
    labels = [Descriptor.parseColumnLabel(str(label)) for label in table.columns]
    descriptor = Descriptor(JArray(JString)([label.first for label in labels]))
    for column, label in enumerate(labels):
        descriptor.setColumnUnits(label.second, column)
    return [Molecule(descriptor, JArray(JDouble)(row)) for row in table.to_numpy(dtype=float)]


def evaluate_with_plugin(
    table: "pd.DataFrame",
    ground_truth: "pd.DataFrame",
    *,
    radius_nm: float = 50.0,
    jar: str | os.PathLike[str] | None = None,
) -> dict[str, float]:
    """Score molecules against the truth with the plugin's own matching (`Performance evaluation`, lateral).

    Parameters
    ----------
    table, ground_truth
        Molecules and truth, with ``frame``, ``x [nm]`` and ``y [nm]``.
    radius_nm
        Largest distance of a match [nm].
    jar
        ThunderSTORM's jar; found by `find_jar` when left out.

    Returns
    -------
    dict
        ``tp``, ``fp``, ``fn`` and ``mean_distance_nm``, which the plugin calls RMSE lateral.
    """
    for columns, where in ((table, "The table"), (ground_truth, "The ground truth")):
        require_columns(columns, REQUIRED, where)
    with lock:
        plugin = load(jar)
        with java_errors("ThunderSTORM could not match the molecules"):
            pairs, wrong, missed = _matched(plugin, table, ground_truth, radius_nm)
    distance = float(np.mean(pairs)) if pairs else float("nan")
    return {"tp": len(pairs), "fp": wrong, "fn": missed, "mean_distance_nm": distance}


def _matched(
    plugin: Plugin, table: "pd.DataFrame", truth: "pd.DataFrame", radius_nm: float
) -> tuple[list[float], int, int]:
    from jpype import JClass

    Vector, nm = JClass("java.util.Vector"), plugin["estimators.PSF.MoleculeDescriptor$Units"].NANOMETER
    matcher = plugin["util.MoleculeMatcher"](False, radius_nm**2, nm)
    distances, wrong, missed = [], 0, 0
    for frame in np.union1d(table["frame"], truth["frame"]):
        found, true = (Vector(_molecules(plugin, part[part["frame"] == frame])) for part in (table, truth))
        pairs, extra, lost = Vector(), Vector(), Vector()
        matcher.matchMolecules(found, true, pairs, extra, lost)
        distances += [float(pair.first.getDistLateral(pair.second, nm)) for pair in pairs]
        wrong, missed = wrong + extra.size(), missed + lost.size()
    return distances, wrong, missed
