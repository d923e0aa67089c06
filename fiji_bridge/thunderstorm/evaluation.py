"""`Performance evaluation` and `CBC`: tables against tables, by the plugin's own classes."""

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.localizations import REQUIRED, require_columns, require_positions
from fiji_bridge.thunderstorm.jar import Plugin, call_hidden, hidden, java_errors, load, lock
from fiji_bridge.thunderstorm.settings import (
    GROUND_TRUTH_TABLE,
    RESULTS_TABLE,
    Colocalization,
    Evaluation,
)
from fiji_bridge.thunderstorm.table import molecules

if TYPE_CHECKING:
    import pandas as pd

RADIUS = "Distance radius [nm]"


def evaluate(
    table: "pd.DataFrame",
    ground_truth: "pd.DataFrame",
    options: str | Evaluation = "",
    *,
    jar: str | os.PathLike[str] | None = None,
) -> dict[str, float]:
    """Score molecules against the truth as ThunderSTORM's `Performance evaluation` does.

    Parameters
    ----------
    table, ground_truth
        Molecules and truth, with ``frame``, ``x [nm]`` and ``y [nm]``, in space with ``z [nm]``.
    options
        The command's option string, such as ``toleranceradius=50.0 evaluationspace=xyz``, or its value.
    jar
        ThunderSTORM's jar; found by `find_jar` when left out.

    Returns
    -------
    dict
        What the command writes, by its names: ``"# of TP"``, ``"Jaccard index"``, ``"RMSE lateral [nm]"``
        and so on. What the plugin calls RMSE is the mean distance of the pairs.

    Raises
    ------
    FijiBridgeError
        If an option is wrong, a column is missing, or a table is empty.
    """
    settings = options if isinstance(options, Evaluation) else Evaluation.parse(options)
    spatial = settings.space == "xyz"
    for columns, where in ((table, "The table"), (ground_truth, "The ground truth")):
        require_positions(columns, (*REQUIRED, "z [nm]") if spatial else REQUIRED, where)
        if columns.empty:
            raise FijiBridgeError(f"{where} is empty, and ThunderSTORM scores no empty tables.")
    with lock:
        plugin = load(jar)
        nm = plugin["estimators.PSF.MoleculeDescriptor$Units"].NANOMETER
        with java_errors("ThunderSTORM could not match the molecules"):
            pairs, wrong, missed = _matched(plugin, table, ground_truth, settings.radius_nm, spatial)
            command, found = plugin["PerformanceEvaluationPlugIn"](), pairs.size()
            # "xy", "z" and so on are the ends of the names of its methods.
            errors = {end: float(call_hidden(command, f"calcRMSE{end}", pairs, nm)) for end in ENDS}
    with np.errstate(invalid="ignore", divide="ignore"):
        tp, fp, fn = np.float64(found), np.float64(wrong), np.float64(missed)
        precision, recall = tp / (tp + fp), tp / (tp + fn)
        scores = {
            RADIUS: settings.radius_nm,
            "# of TP": tp,
            "# of FP": fp,
            "# of FN": fn,
            "Jaccard index": tp / (tp + fp + fn),
            "precision": precision,
            "recall": recall,
            "F1-measure": 2 * precision * recall / (precision + recall),
        }
    return {name: float(value) for name, value in scores.items()} | {
        f"RMSE {ENDS[end]} [nm]": value for end, value in errors.items()
    }


ENDS = {"x": "x", "y": "y", "xy": "lateral", "z": "axial", "xyz": "total"}
"""What its methods and its columns are called."""


def evaluate_with_plugin(
    table: "pd.DataFrame",
    ground_truth: "pd.DataFrame",
    *,
    radius_nm: float = 50.0,
    jar: str | os.PathLike[str] | None = None,
) -> dict[str, float]:
    """Score molecules against the truth with the plugin's own matching, by the names of our scores.

    Parameters
    ----------
    table, ground_truth
        Molecules and truth, with ``frame``, ``x [nm]`` and ``y [nm]``; either may be empty.
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
        nm = plugin["estimators.PSF.MoleculeDescriptor$Units"].NANOMETER
        with java_errors("ThunderSTORM could not match the molecules"):
            pairs, wrong, missed = _matched(plugin, table, ground_truth, radius_nm, False)
            distances = [float(pair.first.getDistLateral(pair.second, nm)) for pair in pairs]
    distance = float(np.mean(distances)) if distances else float("nan")
    return {"tp": len(distances), "fp": wrong, "fn": missed, "mean_distance_nm": distance}


def _matched(
    plugin: Plugin, table: "pd.DataFrame", truth: "pd.DataFrame", radius_nm: float, spatial: bool
) -> tuple[Any, int, int]:
    """Match frame by frame: the pairs, and how many were wrong and missed."""
    from jpype import JClass

    Vector, nm = JClass("java.util.Vector"), plugin["estimators.PSF.MoleculeDescriptor$Units"].NANOMETER
    matcher = plugin["util.MoleculeMatcher"](spatial, radius_nm**2, nm)
    matched, wrong, missed = Vector(), 0, 0
    for frame in np.union1d(table["frame"], truth["frame"]):
        found, true = (Vector(molecules(plugin, part[part["frame"] == frame])) for part in (table, truth))
        pairs, extra, lost = Vector(), Vector(), Vector()
        matcher.matchMolecules(found, true, pairs, extra, lost)
        matched.addAll(pairs)
        wrong, missed = wrong + extra.size(), missed + lost.size()
    return matched, wrong, missed


def colocalize(
    table: "pd.DataFrame",
    other: "pd.DataFrame",
    options: str | Colocalization = "",
    *,
    jar: str | os.PathLike[str] | None = None,
) -> tuple["pd.DataFrame", "pd.DataFrame"]:
    """Compare two channels by ThunderSTORM's `CBC` (Malkusch et al., Histochem. Cell Biol. 137, 1, 2012).

    Parameters
    ----------
    table, other
        The plugin's results and ground-truth tables, with ``x [nm]`` and ``y [nm]``, in space with
        ``z [nm]``; the same table twice compares a channel with itself.
    options
        The command's option string, such as ``radiusstep=50 stepcount=10 addcbc=true``, or its value. As in
        the plugin, ``channel1=[Results table]`` and ``channel2=[Ground-truth table]`` unless said otherwise.
    jar
        ThunderSTORM's jar; found by `find_jar` when left out.

    Returns
    -------
    tuple of pandas.DataFrame
        The tables of the first and the second channel with the columns that the options add: ``cbc``,
        ``nn_dist [nm]`` and ``neighbors_in_dist_50`` and so on [relative density].

    Raises
    ------
    FijiBridgeError
        If an option is wrong, a column is missing, or a table is empty.
    """
    from jpype import JArray, JDouble

    settings = options if isinstance(options, Colocalization) else Colocalization.parse(options)
    tables = {RESULTS_TABLE: table, GROUND_TRUTH_TABLE: other}
    table, other = tables[settings.first], tables[settings.second]
    columns = ["x [nm]", "y [nm]", *(["z [nm]"] if settings.dimensions == "3D" else [])]
    for channel, where in ((table, "The first channel"), (other, "The second channel")):
        require_positions(channel, columns, where)
        if channel.empty:
            raise FijiBridgeError(f"{where} is empty, and CBC needs molecules in both.")
    with lock:
        plugin = load(jar)
        with java_errors("ThunderSTORM could not compare the channels"):
            first = JArray(JDouble, 2)(table[columns].to_numpy(float).tolist())
            # The plugin knows by the object that a channel is compared with itself.
            second = first if other is table else JArray(JDouble, 2)(other[columns].to_numpy(float).tolist())
            cbc = plugin["colocalization.CBC"](first, second, settings.radius_step_nm, settings.steps)
            values = cbc.calculateFirstChannelCBC(), cbc.calculateSecondChannelCBC()
            return (
                _with_colocalization(table, values[0], cbc, "firstChannel", settings),
                _with_colocalization(other, values[1], cbc, "secondChannel", settings),
            )


def _with_colocalization(
    table: "pd.DataFrame", values: Any, cbc: Any, channel: str, settings: Colocalization
) -> "pd.DataFrame":
    added = {}
    if settings.add_cbc:
        added["cbc"] = np.array(values)
    if settings.add_distance:
        added["nn_dist [nm]"] = np.array(hidden(cbc, f"{channel}NearestNeighborDistances"))
    if settings.add_counts:
        for i, counts in enumerate(hidden(cbc, f"{channel}NeighborsInDistance")):
            added[f"neighbors_in_dist_{(i + 1) * settings.radius_step_nm}"] = np.array(counts)
    return table.assign(**added)
