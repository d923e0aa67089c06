"""The steps of `Show results table`, by the plugin's own classes and as often as wanted."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.files import replacing
from fiji_bridge.imagej.session import macro_options
from fiji_bridge.localizations import REQUIRED, require_columns, require_positions
from fiji_bridge.thunderstorm.jar import (
    Plugin,
    call_hidden,
    hidden,
    java_errors,
    load,
    lock,
    require_pixel_size,
    set_camera,
    set_hidden,
    without_constructor,
)
from fiji_bridge.thunderstorm.settings import (
    CrossCorrelationDrift,
    FiducialDrift,
    FilterResults,
    LocalDensity,
    Merge,
    PostProcessing,
    RemoveDuplicates,
    SavedDrift,
    StageOffset,
)
from fiji_bridge.thunderstorm.table import ROW, data_frame, results_table

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from fiji_bridge.camera import Camera

Drift = CrossCorrelationDrift | FiducialDrift | SavedDrift


def postprocess(
    table: "pd.DataFrame",
    options: str | PostProcessing,
    *,
    camera: "Camera | str | None" = None,
    jar: str | os.PathLike[str] | None = None,
) -> "pd.DataFrame":
    """Do one step of post-processing as ThunderSTORM's `Show results table` does.

    Parameters
    ----------
    table
        Molecules, as `localize` gives them.
    options
        The step, as a value or as the command's option string: ``action=duplicates distformula=uncertainty``,
        ``action=filter formula=[intensity > 500 & uncertainty < 10]``, ``action=merge``, ``action=density``,
        ``action=offset`` or ``action=drift``. Names in formulas are those of the columns, without units.
    camera
        Its pixel size [nm] is needed for drift by cross correlation, and for formulas in pixels or ADU.
    jar
        ThunderSTORM's jar; found by `find_jar` when left out.

    Returns
    -------
    pandas.DataFrame
        The table afterwards. Rows that a step only keeps have their ids; merged molecules have new ones, at
        the end of numbers, and the column ``detections``.

    Raises
    ------
    FijiBridgeError
        If the step is unknown, a formula is wrong, a needed column or the pixel size is missing, or the
        plugin finds no drift; if a step that looks at positions is given one that is not finite.
    """
    step = options if isinstance(options, PostProcessing) else PostProcessing.parse(options)
    name = f"action={step.fixed['action']}"
    require = require_positions if step.of_places else require_columns
    require(table, REQUIRED, f"The table for {name}")
    if table.empty:  # without rows the plugin has no columns that it could check formulas by
        from fiji_bridge.postprocessing import postprocess as without_java  # which reads this package

        return without_java(table, step, camera=camera)
    if isinstance(step, FilterResults) and not step.formula:
        return table.copy()
    if "id" in table and not table["id"].is_unique:
        raise FijiBridgeError(f"The table for {name} has an id twice; number the molecules anew.")
    only_keeps = type(step) in ONLY_KEEP
    numbered = table.assign(**{ROW: np.arange(len(table))}) if only_keeps else table
    with lock:
        plugin = _ready(step, camera, jar)
        with (
            results_table(plugin, numbered) as results,
            java_errors(f"{_blamed(step)} cannot be applied"),
        ):
            STEPS[type(step)](plugin, results, step)
            after = data_frame(plugin, results.getModel())
    if only_keeps:
        rows = after[ROW].to_numpy(int) if len(after) else []
        return table.iloc[rows].reset_index(drop=True)
    return after


def drift(
    table: "pd.DataFrame",
    options: str | Drift,
    *,
    camera: "Camera | str | None" = None,
    jar: str | os.PathLike[str] | None = None,
) -> "pd.DataFrame":
    """Give the drift that ``action=drift`` finds, or has from a file, without applying it.

    Parameters
    ----------
    table, options, camera, jar
        As for `postprocess`.

    Returns
    -------
    pandas.DataFrame
        ``frame``, ``x [nm]`` and ``y [nm]`` of the smooth curve that is subtracted, a row a frame from the
        first to the last with molecules. ``attrs["points"]`` has what the curve goes through, by the same
        names: the centres of the bins, or the positions of the markers. With ``showcorrelations=true``,
        ``attrs["correlations"]`` has the images that the plugin shows: an `xarray.DataArray` (bin, y, x)
        float32 of the first bin with each later one, whose coordinates are the frame at the middle of the bin
        and the drift [nm] that a maximum there means.

    Raises
    ------
    FijiBridgeError
        As `postprocess`.
    """
    step = options if not isinstance(options, str) else PostProcessing.parse(options)
    if not isinstance(step, Drift):
        raise FijiBridgeError(f"action={step.fixed['action']} finds no drift; write action=drift.")
    require_positions(table, REQUIRED, "The table for action=drift")
    if table.empty:
        raise FijiBridgeError("A table without molecules has no drift.")
    with lock:
        plugin = _ready(step, camera, jar)
        with results_table(plugin, table) as results, java_errors(f"{_blamed(step)} cannot be applied"):
            found = _drift(plugin, results, step)
            curve = _curve(plugin, found)
            if isinstance(step, CrossCorrelationDrift) and step.show_correlations:
                curve.attrs["correlations"] = _correlations(plugin, found, curve)
            return curve


def _ready(step: PostProcessing, camera: "Camera | str | None", jar: Any) -> Plugin:
    if isinstance(step, (CrossCorrelationDrift, SavedDrift)):  # in pixels
        require_pixel_size(camera)
    plugin = load(jar)
    if camera is not None:
        set_camera(plugin, camera)
    return plugin


def _blamed(step: PostProcessing) -> str:
    for key, value in step.as_options().items():
        if "formula" in key:
            return f"The option {key}={value}"
    return f"The step {step}"


def _module(plugin: Plugin, results: Any, name: str) -> Any:
    """Make the plugin's step and give it the table's model, as the table's window would."""
    made = plugin[f"results.{name}"]()
    set_hidden(made, "model", results.getModel())
    return made


def _filter(plugin: Plugin, results: Any, step: FilterResults) -> None:
    call_hidden(_module(plugin, results, "ResultsFilter"), "applyToModel", results.getModel(), step.formula)


def _duplicates(plugin: Plugin, results: Any, step: RemoveDuplicates) -> None:
    made = _module(plugin, results, "DuplicatesFilter")
    call_hidden(made, "applyToModel", results.getModel(), step.distance_formula)


def _density(plugin: Plugin, results: Any, step: LocalDensity) -> None:
    """Do the job that the plugin's step would hand to a thread; the step itself looks at its buttons."""
    made = _module(plugin, results, "LocalDensityFilter")
    with macro_options(step.options()):
        hidden(made, "params").readMacroOptions()
    if step.dimensions == "3D" and not results.columnExists("z"):
        raise FijiBridgeError("The table for action=density dimensions=3D lacks the column z [nm]; use 2D.")
    job = without_constructor(plugin, "results.LocalDensityFilter$1")
    set_hidden(job, "this$0", made)
    set_hidden(job, "val$table", results)
    call_hidden(job, "doJob")


def _merge(plugin: Plugin, results: Any, step: Merge) -> None:
    model = results.getModel()
    if step.distance_nm == 0:
        return  # as the plugin does
    _keep_first(plugin, model.getColumnNames())
    merged = plugin["results.ResultsGrouping"].getMergedMolecules(
        model, step.distance_nm, step.off_frames, step.most_frames, step.z_weight
    )
    model.reset()
    for molecule in merged:
        model.addRow(molecule)


def _keep_first(plugin: Plugin, columns: Any) -> None:
    """Let merged molecules have the first one's value in columns that the plugin does not know.

    That is what it does anyway, but with a stack trace for each molecule.
    """
    operations = plugin["estimators.PSF.MoleculeDescriptor$MergingOperations"]
    if operations.allParams is None:
        operations.init()
    for column in columns:
        operations.allParams.putIfAbsent(column, operations.NONE)


def _offset(plugin: Plugin, results: Any, step: StageOffset) -> None:
    made = _module(plugin, results, "ResultsStageOffset")
    set_hidden(made, "table", without_constructor(plugin, "results.ResultsTableWindow"))
    call_hidden(made, "applyToModel", step.frames_per_position, step.positions, step.step_nm, step.first_nm)


def _correct_drift(plugin: Plugin, results: Any, step: Drift) -> None:
    call_hidden(
        _module(plugin, results, "ResultsDriftCorrection"),
        "applyToResultsTable",
        _drift(plugin, results, step),
    )


def _drift(plugin: Plugin, results: Any, step: Drift) -> Any:
    """Find the drift, and save it if that is wanted."""
    made, model = _module(plugin, results, "ResultsDriftCorrection"), results.getModel()
    if isinstance(step, SavedDrift):
        if not Path(step.path).is_file():
            raise FijiBridgeError(f"There is no file {step.path} to read drift from; give path=.")
        with java_errors(f"{step.path} is no drift that ThunderSTORM saved"):
            loaded = call_hidden(made, "loadResultsFromFile", step.path)
            loaded.getInterpolatedDrift(1.0)
            return loaded
    if isinstance(step, CrossCorrelationDrift):
        found = _by_correlation(plugin, model, step)
    else:
        found = plugin["drift.FiducialDriftEstimator"]().estimateDrift(
            call_hidden(made, "getClonedMoleculeList"), step.distance_nm, step.on_time_ratio, step.smoothing
        )
    if step.save:
        with replacing(step.path) as partial:
            call_hidden(made, "saveResultsToFile", found, str(partial))
    return found


def _by_correlation(plugin: Plugin, model: Any, step: CrossCorrelationDrift) -> Any:
    pixel = plugin["estimators.PSF.MoleculeDescriptor$Units"].PIXEL
    x, y = (model.getColumnAsDoubles(name, pixel) for name in ("x", "y"))
    frame = model.getColumnAsDoubles("frame", None)
    frames, smallest = len(np.unique(np.array(frame))), len(frame) // step.bins
    blamed = (
        f"steps={step.bins} divides {len(frame)} molecules in {frames} frames into bins of {smallest}, which "
        "are too small to correlate; give fewer steps="
    )
    if frames < step.bins:
        raise FijiBridgeError(f"{blamed}, at most as many as frames with molecules.")
    with java_errors(blamed):
        return plugin["drift.CorrelationDriftEstimator"].estimateDriftFromCoords(
            x, y, frame, step.bins, step.magnification, -1, -1, step.show_correlations
        )


def _correlations(plugin: Plugin, found: Any, curve: "pd.DataFrame") -> "xr.DataArray":
    """Give the images in which the maxima were looked for; the first bin is correlated with each other."""
    import xarray as xr

    stack, size = found.getCorrelationImages(), int(found.getCorrelationImages().getWidth())
    nm = plugin["estimators.PSF.MoleculeDescriptor$Units"].NANOMETER
    scale = float(found.getUnits().convertTo(nm, found.getScaleFactor()))
    pixels = [np.array(stack.getPixels(i + 1), np.float32) for i in range(stack.getSize())]
    drift = (size // 2 - np.arange(size)) * scale
    return xr.DataArray(
        np.stack(pixels).reshape(-1, size, size),
        dims=("bin", "y", "x"),
        coords={"bin": curve.attrs["points"]["frame"][1:], "y": drift, "x": drift},
        attrs={"pixel_size_nm": scale},
    )


def _curve(plugin: Plugin, found: Any) -> "pd.DataFrame":
    import pandas as pd

    nm = plugin["estimators.PSF.MoleculeDescriptor$Units"].NANOMETER
    scale = float(found.getUnits().convertTo(nm, 1.0))
    frames = np.arange(found.getMinFrame(), found.getMaxFrame() + 1)
    curve = [found.getInterpolatedDrift(float(frame)) for frame in frames]
    table = pd.DataFrame(
        {"frame": frames, "x [nm]": [p.x * scale for p in curve], "y [nm]": [p.y * scale for p in curve]}
    )
    table.attrs["points"] = {
        "frame": np.array(found.getDriftDataFrame()),
        "x [nm]": np.array(found.getDriftDataX()) * scale,
        "y [nm]": np.array(found.getDriftDataY()) * scale,
    }
    return table


STEPS: dict[type[PostProcessing], Callable[[Plugin, Any, Any], None]] = {
    FilterResults: _filter,
    LocalDensity: _density,
    RemoveDuplicates: _duplicates,
    Merge: _merge,
    CrossCorrelationDrift: _correct_drift,
    FiducialDrift: _correct_drift,
    SavedDrift: _correct_drift,
    StageOffset: _offset,
}

ONLY_KEEP = (FilterResults, LocalDensity, RemoveDuplicates)
"""Steps that choose among the rows and change none."""
