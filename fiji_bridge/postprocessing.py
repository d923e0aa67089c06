"""ThunderSTORM's post-processing of tables without Java: filter, duplicates, density, merge, drift, stage.

Steps are the plugin's own, as values of `fiji_bridge.thunderstorm.settings` or as its option strings, and
give its rows and numbers.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import fft
from scipy.interpolate import CubicSpline, PPoly
from scipy.spatial import cKDTree

from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.files import check_kept, replacing
from fiji_bridge.formulas import Call, Node, Number, Operation, Variable, parse_formula
from fiji_bridge.localizations import (
    POSITION_COLUMNS,
    REQUIRED,
    as_table,
    camera_of,
    require_columns,
    require_frames,
    require_positions,
    save_csv,
    without_unit,
)
from fiji_bridge.rendering import Region, draw
from fiji_bridge.thunderstorm.settings import (
    AveragedShiftedHistograms,
    CrossCorrelationDrift,
    FiducialDrift,
    FilterResults,
    LocalDensity,
    Merge,
    PostProcessing,
    RemoveDuplicates,
    SavedDrift,
    StageOffset,
    check_saved,
)

if TYPE_CHECKING:
    from fiji_bridge.camera import Camera

Array = npt.NDArray[np.float64]

_PLACE = ["x [nm]", "y [nm]"]


def postprocess(
    table: pd.DataFrame | str | os.PathLike[str],
    options: str | PostProcessing,
    *,
    camera: Camera | str | None = None,
    out: str | os.PathLike[str] | None = None,
) -> pd.DataFrame:
    """Do one step of ThunderSTORM's post-processing.

    Parameters
    ----------
    table
        Molecules, or the path of their file.
    options
        The step, as a value or as the option string of the plugin's `Show results table`: ``action=filter
        formula=[intensity > 500 & uncertainty < 10]``, ``action=duplicates distformula=uncertainty``,
        ``action=density``, ``action=merge dist=20 offframes=1``, ``action=drift`` (see `drift`) or
        ``action=offset``. Names in formulas are those of the columns, without units.
    camera
        Its pixel size is needed for drift by cross correlation, and its excess noise counts in the
        uncertainty of merged molecules. Left out: the one that the table was localized with.
    out
        CSV file to write the table to, for ThunderSTORM to open; not the one read.

    Returns
    -------
    pandas.DataFrame
        The table afterwards. Merged molecules have the column ``detections`` and new ids, above all others.

    Raises
    ------
    FijiBridgeError
        If the step or a formula cannot be read, a needed column or the pixel size is missing, no drift is
        found, or a file cannot be read or written.
    """
    step = PostProcessing.parse(options) if isinstance(options, str) else options
    _check_files(table, step, out)
    table = as_table(table, camera)
    require = require_positions if step.of_places else require_columns
    where = f"The table for action={step.fixed['action']}"
    require(table, REQUIRED, where)
    require_frames(table, where)
    after = _STEPS[type(step)](table, step, camera_of(table, camera))
    after.attrs = dict(table.attrs)
    if out is not None:
        with replacing(out) as partial:
            save_csv(after, partial)
    return after


def _check_files(
    table: pd.DataFrame | str | os.PathLike[str], step: PostProcessing, out: str | os.PathLike[str] | None
) -> None:
    """Keep what is read, and the files that are written apart."""
    read = [table] if isinstance(table, (str, os.PathLike)) else []
    if isinstance(step, SavedDrift):
        read.append(step.path)
    if out is not None:
        check_kept(read, {f"out={out}": out})
    check_saved(step, *(Path(file) for file in (*read, out) if file))


def _image(table: pd.DataFrame) -> npt.NDArray[np.int64]:
    """Give the image each molecule lies in a number: of a channel and plane, only its own are neighbours."""
    names = [name for name in POSITION_COLUMNS.values() if name in table]
    if not names:
        return np.zeros(len(table), np.int64)
    return table.groupby(names, dropna=False).ngroup().to_numpy(np.int64)


def _rows(table: pd.DataFrame, kept: npt.NDArray[np.bool_]) -> pd.DataFrame:
    return table[kept].reset_index(drop=True)


# Formulas

_STATISTICS: Mapping[str, Callable[[Any], Any]] = {
    "mean": np.mean,
    "median": np.median,
    "std": np.std,
    "var": np.var,
    "max": np.max,
    "min": np.min,
    "sum": np.sum,
    "abs": np.abs,
}
_OPERATIONS: Mapping[str, Callable[[Any, Any], Any]] = {
    "+": np.add,
    "-": np.subtract,
    "*": np.multiply,
    "/": np.divide,
    "%": np.fmod,
    "^": np.power,
    "=": np.equal,
    "!=": np.not_equal,
    "<": np.less,
    ">": np.greater,
    "&": np.logical_and,
    "|": np.logical_or,
}


def _value(node: Node, columns: Mapping[str, Array], formula: str) -> Any:
    """Evaluate: an array with a value a row, or one number."""
    match node:
        case Number(value):
            return value
        case Variable(owner, name):
            if owner or name not in columns:
                raise FijiBridgeError(
                    f"The formula {formula!r} uses {f'{owner}.' if owner else ''}{name}, "
                    f"but the table has {', '.join(columns)}."
                )
            return columns[name]
        case Call(function, argument):
            inner = _value(argument, columns, formula)
            if not np.size(inner):
                return inner if function == "abs" else math.nan  # of no molecules
            return _STATISTICS[function](inner) if function == "abs" or np.ndim(inner) else inner
        case Operation(sign, left, right):
            operands = (_value(side, columns, formula) for side in (left, right))
            with np.errstate(all="ignore"):
                return np.asarray(_OPERATIONS[sign](*operands), float)[()]


def _evaluate(table: pd.DataFrame, formula: str) -> Any:
    columns = {without_unit(name): table[name].to_numpy(float) for name in table}
    return _value(parse_formula(formula), columns, formula)


def _filter(table: pd.DataFrame, formula: str) -> npt.NDArray[np.bool_]:
    if not formula.strip():
        return np.ones(len(table), np.bool_)
    result = _evaluate(table, formula)
    if not np.ndim(result):
        raise FijiBridgeError(f"The formula {formula!r} says the same of every row; name a column in it.")
    return np.asarray(result != 0)


# Neighbours


def _duplicates(table: pd.DataFrame, formula: str) -> npt.NDArray[np.bool_]:
    """Tell the molecules that have one in their radius, in the same frame, that is no less certain.

    As in the plugin, of two that are equally certain none stays.
    """
    require_columns(table, ("uncertainty [nm]",), "The table for duplicates")
    from fiji_bridge.postprocessing_kernels import duplicates

    radius = np.broadcast_to(np.asarray(_evaluate(table, formula), float), len(table))
    radius = np.where(np.isfinite(radius), np.abs(radius), 0.0)
    x, y = table[_PLACE].to_numpy(float).T
    frames = table.groupby([_image(table), "frame"]).ngroup().to_numpy()
    order = np.lexsort((x, frames))
    starts = np.append(np.unique(frames[order], return_index=True)[1], len(table))
    uncertainty = table["uncertainty [nm]"].to_numpy(float)
    found = np.empty(len(table), np.bool_)
    found[order] = duplicates(starts, x[order], y[order], radius[order], uncertainty[order])
    return found


def _neighbours(table: pd.DataFrame, step: LocalDensity) -> npt.NDArray[np.int64]:
    """Count the other molecules nearer than the radius, of all frames of their channel and plane."""
    names = [*_PLACE, "z [nm]"] if step.dimensions == "3D" else _PLACE
    require_columns(table, names, "The table for density")
    below = np.nextafter(step.radius_nm, 0)
    place = np.column_stack([table[names], 2 * step.radius_nm * _image(table)])  # out of the others' reach
    return cKDTree(place).query_ball_point(place, below, return_length=True) - 1


# Molecules that shine on


def _chains(
    table: pd.DataFrame, place: Array, distance: float, *, off: int, most: int = 0, recent: int = 1
) -> npt.NDArray[np.int64]:
    """Give each molecule the number of its chain; see `postprocessing_kernels.chains`."""
    from fiji_bridge.postprocessing_kernels import chains

    frames, image = table["frame"].to_numpy(np.int64), _image(table)
    number, known = np.empty(len(table), np.int64), 0
    for one in np.unique(image):
        rows = np.flatnonzero(image == one)
        rows = rows[np.argsort(frames[rows], kind="stable")]
        number[rows] = known + chains(frames[rows], place[rows], distance, off, most, recent)
        known = int(number[rows].max()) + 1
    return number


_MEAN = ("x", "y", "z", "sigma", "sigma1", "sigma2", "offset", "angle")
_SUM = ("intensity", "bkgstd")
_LEAST = ("id", "frame")
_FIRST = ("z_rel", *POSITION_COLUMNS.values())
"""The first as in the plugin, which does not know how to merge it; the others are the same of all."""


def _merged(table: pd.DataFrame, step: Merge, camera: Camera | None) -> pd.DataFrame:
    if step.distance_nm == 0:
        return table.copy()
    if "id" not in table:
        table = table.assign(id=np.arange(1, len(table) + 1))
    place = np.zeros((len(table), 3))
    place[:, :2] = table[_PLACE]
    if "z [nm]" in table:
        place[:, 2] = table["z [nm]"] * step.z_weight
    number = _chains(table, place, step.distance_nm, off=step.off_frames, most=step.most_frames)
    ways = {**dict.fromkeys(_SUM, "sum"), **dict.fromkeys(_LEAST, "min"), **dict.fromkeys(_FIRST, "first")}
    how = {name: ways.get(without_unit(name), "mean") for name in table}
    order = np.argsort(table["frame"].to_numpy(), kind="stable")
    merged = table.iloc[order].groupby(number[order]).agg(how)[list(table)]
    merged["detections"] = np.bincount(number)
    several = (merged["detections"] > 1).to_numpy()
    for name in table:
        # What is true of one molecule only, such as its chi2, is not a number of several.
        if without_unit(name) not in (*_MEAN, *ways):
            merged.loc[several, name] = np.nan
    if "uncertainty [nm]" in merged:
        _renew_uncertainty(merged, camera)
    merged = merged.sort_values(["frame", "id"], kind="stable")
    several = (merged["detections"] > 1).to_numpy()
    merged.loc[several, "id"] = table["id"].max() + 1 + np.arange(several.sum())
    return merged.sort_values(["frame", "id"], kind="stable").reset_index(drop=True)


def _renew_uncertainty(merged: pd.DataFrame, camera: Camera | None) -> None:
    """Calculate it anew by the plugin's formula, as the plugin does for all rows; see `torch_localizer`."""
    widths = ["sigma [nm]"] * 2 if "sigma [nm]" in merged else ["sigma1 [nm]", "sigma2 [nm]"]
    needed = {*widths, "intensity [photon]", "bkgstd [photon]"}
    if camera is None or camera.pixel_size_nm is None or not needed <= set(merged):
        return
    variance, pixel = merged[widths].prod(axis=1, skipna=False), camera.pixel_size_nm
    shot = (camera.excess_noise * variance + pixel**2 / 12) / merged["intensity [photon]"]
    ratio = merged["bkgstd [photon]"] / (pixel * merged["intensity [photon]"])
    merged["uncertainty [nm]"] = np.sqrt(shot + 8 * math.pi * variance**2 * ratio**2)


def _on_stage(table: pd.DataFrame, step: StageOffset) -> pd.DataFrame:
    """Add the stage's position to z, which is kept as z_rel; without a z the molecules lie in its plane."""
    position = (table["frame"].to_numpy() - 1) // step.frames_per_position % step.positions
    height = step.first_nm + position * step.step_nm
    if "z [nm]" in table:
        before = table.drop(columns="z_rel [nm]", errors="ignore")
        table = before.rename(columns={"z [nm]": "z_rel [nm]"})
    return table.assign(**{"z [nm]": table.get("z_rel [nm]", 0.0) + height})


# Drift

Drift = CrossCorrelationDrift | FiducialDrift | SavedDrift


@dataclass(frozen=True)
class _Motion:
    """How far the sample has moved since the start [nm], as functions of the frame.

    Parameters
    ----------
    x, y
        Piecewise polynomials of the frame, straight beyond their ends.
    points
        ``frame``, ``x [nm]`` and ``y [nm]`` of what they go through.
    frames
        The first and the last with molecules.
    scale
        Camera pixels per pixel of the correlated images; None for drift that was not found so.
    """

    x: PPoly
    y: PPoly
    points: dict[str, Array]
    frames: tuple[int, int]
    scale: float | None = None

    def at(self, frames: npt.ArrayLike) -> Array:
        """Give x and y [nm], (n, 2)."""
        return np.stack([_value_of(curve, np.asarray(frames, float)) for curve in (self.x, self.y)], 1)


def drift(
    table: pd.DataFrame | str | os.PathLike[str],
    options: str | Drift,
    *,
    camera: Camera | str | None = None,
    out: str | os.PathLike[str] | None = None,
) -> pd.DataFrame:
    """Give the drift that ``action=drift`` finds, or has from a file, without applying it.

    By ``method=[Cross correlation]`` images of successive stretches of the movie are correlated with the
    first (Mlodzianoski et al., Opt. Express 19, 15009 (2011)); ``method=[Fiducial markers]`` follows the
    molecules that shine long; ``method=[Load from file] path=…`` reads what ``save=true path=…`` of either
    wrote, here or in the plugin.

    Parameters
    ----------
    table, options, camera
        As for `postprocess`.
    out
        CSV file to write the curve to; not the one read.

    Returns
    -------
    pandas.DataFrame
        ``frame``, ``x [nm]`` and ``y [nm]`` of the smooth curve that is subtracted, a row a frame from the
        first to the last with molecules. ``attrs["points"]`` has what the curve goes through, by the same
        names: the centres of the stretches, or the positions of the markers.

    Raises
    ------
    FijiBridgeError
        If there are too few frames or molecules, no marker shines long enough, the pixel size is missing, or
        a file cannot be read or written.
    """
    step = PostProcessing.parse(options) if isinstance(options, str) else options
    if not isinstance(step, Drift):
        raise FijiBridgeError(f"action={step.fixed['action']} finds no drift; write action=drift.")
    _check_files(table, step, out)
    table = as_table(table, camera)
    require_positions(table, REQUIRED, "The table for action=drift")
    motion = _motion(table, step, camera_of(table, camera))
    frames = np.arange(motion.frames[0], motion.frames[1] + 1)
    curve = pd.DataFrame({"frame": frames, **dict(zip(_PLACE, motion.at(frames).T, strict=True))})
    if out is not None:
        with replacing(out) as partial:
            curve.to_csv(partial, index=False, lineterminator="\n")
    curve.attrs["points"] = motion.points
    return curve


def _without_drift(table: pd.DataFrame, step: Drift, camera: Camera | None) -> pd.DataFrame:
    place = table[_PLACE].to_numpy(float) - _motion(table, step, camera).at(table["frame"])
    return table.assign(**dict(zip(_PLACE, place.T, strict=True)))


def _motion(table: pd.DataFrame, step: Drift, camera: Camera | None) -> _Motion:
    """Find the drift, or read it, and save it if that is wanted."""
    pixel = camera.pixel_size_nm if camera is not None else None
    if isinstance(step, SavedDrift):
        return _read_motion(step.path, pixel)
    if pixel is None and isinstance(step, CrossCorrelationDrift):
        raise FijiBridgeError('Drift by cross correlation needs the pixel size: --camera "… pixelsize=…".')
    if table["frame"].nunique() < 2:
        raise FijiBridgeError("Drift needs molecules in more than one frame.")
    if isinstance(step, FiducialDrift):
        motion = _marked(table, step)
    else:
        assert pixel is not None
        motion = _correlated(table, step, pixel)
    if step.save:
        _write_motion(motion, step.path, pixel)
    return motion


def _correlated(table: pd.DataFrame, step: CrossCorrelationDrift, pixel: float) -> _Motion:
    ordered = table.sort_values("frame", kind="stable")
    place, frames = ordered[_PLACE].to_numpy(float) / pixel, ordered["frame"].to_numpy(float)
    bins = _stretches(frames, step.bins)
    centres = np.array([(frames[part.start] + frames[part.stop - 1]) / 2 for part in bins])
    size = np.ceil(place.max(0)).astype(int)
    fine = _Correlation(place[bins[0]], size, step.magnification)
    coarse = _Correlation(place[bins[0]], size, 1.0)
    shifts = np.zeros((len(bins), 2))
    for number, part in enumerate(bins[1:], 1):
        image = coarse(place[part])
        rows, columns = np.indices(image.shape)
        # The plugin takes the mask's centre along y from x as well.
        middle = shifts[number - 1, 0] * step.magnification + len(image) / 2
        mask = np.exp(-((columns - middle) ** 2 + (rows - middle) ** 2) / (2 * len(image) ** 2))
        image = image * mask
        brightest = np.unravel_index(image.argmax(), image.shape)[::-1]
        peak = _peak(image, np.array(brightest, float))
        full = fine(place[part])
        peak = _peak(full, len(full) // 2 + step.magnification * (peak - len(image) // 2))
        shifts[number] = (len(full) // 2 - peak) / step.magnification
    smooth = len(bins) >= 4
    shifts *= pixel
    curves = [_loess(centres, along, 0.5) if smooth else along for along in shifts.T]
    ends = int(frames[0]), int(frames[-1])
    x, y = (_curve(centres, along, ends, smooth=smooth) for along in curves)
    return _Motion(x, y, _points(centres, shifts), ends, 1 / step.magnification)


def _points(frames: Array, place: Array) -> dict[str, Array]:
    return {"frame": frames, **dict(zip(_PLACE, place.T, strict=True))}


def _stretches(frames: Array, count: int) -> list[slice]:
    """Cut sorted frames into stretches of as many molecules, without cutting a frame."""
    size, at, parts = len(frames) // count, 0, []
    for number in range(count):
        end = len(frames) if number == count - 1 else min(at + size, len(frames))
        while 0 < end < len(frames) and frames[end] == frames[end - 1]:
            end += 1
        if end <= at:
            raise FijiBridgeError(f"There are too few molecules for {count} stretches; lower steps=.")
        parts.append(slice(at, end))
        at = end
    return parts


class _Correlation:
    """Correlates images of positions [px] with that of the first ones."""

    def __init__(self, first: Array, size: npt.NDArray[np.int64], magnification: float) -> None:
        self.size, self.magnification = size, magnification
        image = self._image(first)
        self.side = 2 ** math.ceil(math.log2(max(image.shape)))
        self.first = fft.rfft2(self._padded(image), workers=-1)

    def __call__(self, places: Array) -> Array:
        product = self.first * np.conj(fft.rfft2(self._padded(self._image(places)), workers=-1))
        return fft.fftshift(fft.irfft2(product, s=(self.side, self.side), workers=-1))

    def _image(self, places: Array) -> Array:
        width, height = self.size.tolist()
        settings = AveragedShiftedHistograms(magnification=self.magnification, shifts=2)
        region = Region(0.0, 0.0, float(width), float(height))
        return draw(settings, region, pd.DataFrame(places, columns=_PLACE), 1.0)[0].astype(float)

    def _padded(self, image: Array) -> Array:
        low = [(self.side - length) // 2 for length in image.shape]
        return np.pad(
            image, [(a, self.side - length - a) for a, length in zip(low, image.shape, strict=True)]
        )


def _peak(image: Array, near: Array, radius: int = 5) -> Array:
    """Find the centre of a peak (x, y) by radial symmetry; beside the border, where it was."""
    import torch

    from fiji_bridge.torch_localizer.estimators import RadialSymmetry, Spots
    from fiji_bridge.torch_localizer.fitting import SpotNoise

    x, y = near.astype(int)
    height, width = image.shape
    if not (radius <= x < width - radius and radius <= y < height - radius):
        return near
    square = image[y - radius : y + radius + 1, x - radius : x + radius + 1].astype(np.float32)
    pixels = torch.from_numpy(square.astype(float).reshape(1, -1))
    spots = Spots(pixels, torch.zeros(1, 2, dtype=torch.float64), 1.0, SpotNoise())
    found = RadialSymmetry(radius)(spots).columns
    return np.array([x + float(found["x"][0]), y + float(found["y"][0])])


def _loess(at: Array, values: Array, bandwidth: float) -> Array:
    """Smooth by local lines with tricube weights: Cleveland, J. Am. Stat. Assoc. 74, 829 (1979).

    Of `at`, which does not fall but may have a value several times, the nearest part `bandwidth` counts.
    """
    count = max(2, min(len(at), int(bandwidth * len(at))))
    smooth = np.empty(len(at))
    low = 0
    for i, centre in enumerate(at):
        # By no more than one point a step, as in the plugin, even if the next is nearer as well.
        if i and low + count < len(at) and at[low + count] - centre < centre - at[low]:
            low += 1
        near = slice(low, low + count)
        distance = np.abs(at[near] - centre)
        reach = max(centre - at[low], at[low + count - 1] - centre)
        weight = np.clip(1 - (distance / reach) ** 3, 0, None) ** 3 if reach > 0 else np.ones(count)
        mean = np.average(at[near], weights=weight)
        level = np.average(values[near], weights=weight)
        spread = np.average((at[near] - mean) ** 2, weights=weight)
        slope = np.average((at[near] - mean) * (values[near] - level), weights=weight)
        smooth[i] = level + (slope / spread * (centre - mean) if spread > 1e-12 else 0.0)
    return smooth


def _curve(at: Array, values: Array, ends: tuple[int, int], *, smooth: bool) -> PPoly:
    """Interpolate, and go on as a line to the ends."""
    if smooth and len(at) >= 3:
        inner: PPoly = CubicSpline(at, values, bc_type="natural")
    else:
        inner = PPoly(np.stack([np.diff(values) / np.diff(at), values[:-1]]), at)
    knots, parts = inner.x, list(inner.c.T)
    degree = len(inner.c) - 1

    def line(level: float, slope: float) -> Array:
        return np.array([0.0] * (degree - 1) + [slope, level])

    if knots[0] != ends[0]:
        slope = float(inner(knots[0], 1))
        parts.insert(0, line(values[0] - (knots[0] - ends[0]) * slope, slope))
        knots = np.insert(knots, 0, ends[0])
    if inner.x[-1] != ends[1]:
        parts.append(line(float(inner(inner.x[-1])), float(inner(inner.x[-1], 1))))
        knots = np.append(knots, ends[1])
    return PPoly(np.stack(parts, 1), knots)


def _value_of(curve: PPoly, frames: Array) -> Array:
    first, last = curve.x[0], curve.x[-1]
    inside = curve(np.clip(frames, first, last))
    return (
        inside
        + float(curve(first, 1)) * np.minimum(frames - first, 0)
        + float(curve(last, 1)) * np.maximum(frames - last, 0)
    )


def _marked(table: pd.DataFrame, step: FiducialDrift) -> _Motion:
    ordered = table.sort_values("frame", kind="stable")
    frames, place = ordered["frame"].to_numpy(float), ordered[_PLACE].to_numpy(float)
    known = np.unique(frames)
    spatial = np.pad(place, ((0, 0), (0, 1)))
    number = _chains(ordered, spatial, step.distance_nm, off=-1, recent=5)
    least = step.on_time_ratio * (known[-1] - known[0])
    lengths = np.bincount(number)
    rows = np.flatnonzero(lengths[number] > least)
    if not len(rows):
        raise FijiBridgeError(
            f"No molecule shines in more than {least:.0f} frames, as markers must; lower ontimeratio= or "
            "raise distancethr=."
        )
    rows = rows[np.argsort(number[rows], kind="stable")]
    marker = np.unique(number[rows], return_inverse=True)[1]
    moved = place[rows] - _marker_places(frames[rows], marker, place[rows])[marker]
    order = np.argsort(frames[rows], kind="stable")
    at, moved = frames[rows][order], moved[order] - moved[order[0]]
    distinct, first = np.unique(at, return_index=True)
    ends = int(known[0]), int(known[-1])
    if len(distinct) < 2:
        raise FijiBridgeError(
            "The markers shine in one frame only; lower ontimeratio= or raise distancethr=."
        )
    x, y = (
        _curve(distinct, _loess(at, along, step.smoothing)[first], ends, smooth=True) for along in moved.T
    )
    return _Motion(x, y, _points(at, moved), ends)


def _marker_places(frames: Array, marker: npt.NDArray[np.int64], place: Array) -> Array:
    """Find each marker's own place, by least squares of one movement for all.

    What frames with several markers do not say stays as it is where each marker is seen first.
    """
    from scipy.sparse import coo_matrix, hstack
    from scipy.sparse.linalg import lsqr

    at, group = np.unique(frames, return_inverse=True)
    ones, rows = np.ones(len(frames)), np.arange(len(frames))
    markers = coo_matrix((ones, (rows, marker)))
    system = hstack([markers, coo_matrix((ones, (rows, group)), shape=(len(frames), len(at)))]).tocsr()
    start = place[np.unique(marker, return_index=True)[1]]
    away = place - start[marker]
    found = [lsqr(system, along, atol=1e-12, btol=1e-12)[0][: len(start)] for along in away.T]
    return start + np.stack(found, 1)


# The plugin's file of a drift: curves and points in JSON, in nm or camera pixels

_UNITS = {"PIXEL": None, "NANOMETER": 1.0, "MICROMETER": 1000.0}


def _write_motion(motion: _Motion, path: str, pixel: float | None) -> None:
    in_pixels = motion.scale is not None and pixel is not None
    unit = float(pixel) if in_pixels and pixel is not None else 1.0

    def function(curve: PPoly) -> dict[str, Any]:
        parts = [np.trim_zeros(part[::-1] / unit, "b") for part in curve.c.T]
        coefficients = [{"coefficients": part.tolist() or [0.0]} for part in parts]
        return {"knots": curve.x.tolist(), "polynomials": coefficients, "n": len(parts)}

    text: dict[str, Any] = {} if motion.scale is None else {"scale": motion.scale}
    text |= {"xFunction": function(motion.x), "yFunction": function(motion.y)}
    text |= {"driftDataFrame": motion.points["frame"].tolist()}
    for name, label in zip(("driftDataX", "driftDataY"), _PLACE, strict=True):
        text[name] = (motion.points[label] / unit).tolist()
    text |= {"minFrame": motion.frames[0], "maxFrame": motion.frames[1]}
    text["units"] = "PIXEL" if in_pixels else "NANOMETER"
    with replacing(path) as partial:
        partial.write_text(json.dumps(text, separators=(",", ":")), encoding="utf-8")


def _read_motion(path: str, pixel: float | None) -> _Motion:
    if not Path(path).is_file():
        raise FijiBridgeError(f"There is no file {path} to read drift from; give path=.")
    try:
        text = json.loads(Path(path).read_text(encoding="utf-8"))
        unit = _UNITS[text["units"]]
        if unit is None and pixel is None:
            raise FijiBridgeError(f'{path} is in pixels: give their size with --camera "… pixelsize=…" (nm).')
        unit = unit or float(pixel or 1.0)
        curves = {}
        for axis, name in (("x", "xFunction"), ("y", "yFunction")):
            parts = [np.asarray(part["coefficients"], float) for part in text[name]["polynomials"]]
            order = max(map(len, parts))
            padded = [np.pad(part, (0, order - len(part)))[::-1] for part in parts]
            curves[axis] = PPoly(np.stack(padded, 1) * unit, np.asarray(text[name]["knots"], float))
        place = [np.asarray(text[name], float) * unit for name in ("driftDataX", "driftDataY")]
        points = _points(np.asarray(text["driftDataFrame"], float), np.stack(place, 1))
        ends = int(text["minFrame"]), int(text["maxFrame"])
        return _Motion(curves["x"], curves["y"], points, ends, text.get("scale"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FijiBridgeError(f"{path} is not a drift that ThunderSTORM saved: {error!r}.") from error


_STEPS: Mapping[type[PostProcessing], Callable[[pd.DataFrame, Any, Camera | None], pd.DataFrame]] = {
    FilterResults: lambda table, step, camera: _rows(table, _filter(table, step.formula)),
    RemoveDuplicates: lambda table, step, camera: _rows(table, ~_duplicates(table, step.distance_formula)),
    LocalDensity: lambda table, step, camera: _rows(table, _neighbours(table, step) >= step.least_neighbours),
    Merge: _merged,
    StageOffset: lambda table, step, camera: _on_stage(table, step),
    CrossCorrelationDrift: _without_drift,
    FiducialDrift: _without_drift,
    SavedDrift: _without_drift,
}
