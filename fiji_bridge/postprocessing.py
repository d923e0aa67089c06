"""ThunderSTORM's post-processing of tables without Java: filter, duplicates, density, merge, drift, stage.

Steps are the plugin's own, as values of `fiji_bridge.thunderstorm.settings` or as its option strings, and
give its rows and numbers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.interpolate import CubicSpline
from scipy.spatial import cKDTree

from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.formulas import Call, Node, Number, Operation, Variable, parse_formula
from fiji_bridge.localizations import REQUIRED, require_columns
from fiji_bridge.thunderstorm.settings import (
    CrossCorrelationDrift,
    FiducialDrift,
    FilterResults,
    LocalDensity,
    Merge,
    PostProcessing,
    RemoveDuplicates,
    StageOffset,
)

if TYPE_CHECKING:
    from fiji_bridge.camera import Camera

Array = npt.NDArray[np.float64]
Curve = Callable[[Array], Array]

_PLACE = ["x [nm]", "y [nm]"]
_UNIT = re.compile(r"\s*\[.*\]$")


def postprocess(
    table: pd.DataFrame, options: str | PostProcessing, *, camera: Camera | None = None
) -> pd.DataFrame:
    """Do one step of post-processing.

    Parameters
    ----------
    table
        Molecules.
    options
        The step: ``action=filter formula=[intensity > 500 & uncertainty < 10]``, ``action=duplicates
        distformula=uncertainty``, ``action=density``, ``action=merge``, ``action=drift`` or
        ``action=offset``. Names in formulas are those of the columns, without units.
    camera
        Its pixel size is needed for drift by cross correlation, and its excess noise counts in the
        uncertainty of merged molecules.

    Returns
    -------
    pandas.DataFrame
        The table afterwards. Merged molecules have the column ``detections`` and new ids, above all others.

    Raises
    ------
    FijiBridgeError
        If the step or a formula cannot be read, a needed column or the pixel size is missing, or no drift is
        found.
    """
    step = PostProcessing.parse(options) if isinstance(options, str) else options
    require_columns(table, REQUIRED, f"The table for {step.fixed['action']}")
    if table.empty:
        return table.copy()
    match step:
        case FilterResults():
            return _rows(table, _filter(table, step.formula))
        case RemoveDuplicates():
            return _rows(table, ~_duplicates(table, step.distance_formula))
        case LocalDensity():
            return _rows(table, _neighbours(table, step) >= step.least_neighbours)
        case Merge():
            return _merged(table, step, camera)
        case StageOffset():
            return _on_stage(table, step)
        case CrossCorrelationDrift() | FiducialDrift():
            return _without_drift(table, step, camera)
    raise FijiBridgeError(f"{step} is not done here; use the plugin for it.")


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
            return _STATISTICS[function](inner) if function == "abs" or np.ndim(inner) else inner
        case Operation(sign, left, right):
            operands = (_value(side, columns, formula) for side in (left, right))
            with np.errstate(all="ignore"):
                return np.asarray(_OPERATIONS[sign](*operands), float)[()]


def _evaluate(table: pd.DataFrame, formula: str) -> Any:
    columns = {_UNIT.sub("", str(name)): table[name].to_numpy(float) for name in table}
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
    uncertainty = table["uncertainty [nm]"].to_numpy()
    radius = np.broadcast_to(np.asarray(_evaluate(table, formula), float), len(table))
    radius = np.where(np.isfinite(radius), np.abs(radius), 0.0)
    place = table[_PLACE].to_numpy()
    duplicate = np.zeros(len(table), np.bool_)
    for rows in table.groupby("frame", sort=True).indices.values():
        near = cKDTree(place[rows]).query_ball_point(place[rows], radius[rows])
        for row, others in zip(rows, near, strict=True):
            others = rows[[other for other in others if rows[other] != row]]
            inside = ((place[others] - place[row]) ** 2).sum(1) < radius[row] ** 2
            duplicate[row] = (uncertainty[others[inside]] <= uncertainty[row]).any()
    return duplicate


def _neighbours(table: pd.DataFrame, step: LocalDensity) -> npt.NDArray[np.int64]:
    """Count the other molecules nearer than the radius, of all frames."""
    names = [*_PLACE, "z [nm]"] if step.dimensions == "3D" else _PLACE
    require_columns(table, names, "The table for density")
    place = table[names].to_numpy()
    below = np.nextafter(step.radius_nm, 0)
    return cKDTree(place).query_ball_point(place, below, return_length=True) - 1


# Molecules that shine on


class _Strategy(NamedTuple):
    """How long a molecule stays open and where it is looked for: functions of its rows so far."""

    closed: Callable[[int, list[int]], bool]
    place: Callable[[list[int]], Array]


def _chains(table: pd.DataFrame, place: Array, distance: float, strategy: _Strategy) -> list[list[int]]:
    """Join each molecule to the nearest open chain of frames before, if that is within the distance.

    Several of one frame can join the same chain, as in the plugin.
    """
    chains: list[list[int]] = []
    active: list[list[int]] = []
    for frame, rows in sorted(table.groupby("frame").indices.items()):
        active = [chain for chain in active if not strategy.closed(int(frame), chain)]
        nearest = np.full(len(rows), -1)
        if active:
            tree = cKDTree(np.array([strategy.place(chain) for chain in active]))
            nearest = tree.query(place[rows])[1]
        known = list(active)
        for row, index in zip(rows.tolist(), nearest, strict=True):
            if index >= 0 and ((strategy.place(known[index]) - place[row]) ** 2).sum() < distance**2:
                known[index].append(row)
            else:
                chains.append([row])
                active.append(chains[-1])
    return chains


_MEAN = ("x", "y", "z", "sigma", "sigma1", "sigma2", "offset", "angle")
_SUM = ("intensity", "bkgstd")
_LEAST = ("id", "frame")


def _merged(table: pd.DataFrame, step: Merge, camera: Camera | None) -> pd.DataFrame:
    if step.distance_nm == 0:
        return table.copy()
    if "id" not in table:
        table = table.assign(id=np.arange(1, len(table) + 1))
    frames, place = table["frame"].to_numpy(), np.zeros((len(table), 3))
    place[:, :2] = table[_PLACE]
    if "z [nm]" in table:
        place[:, 2] = table["z [nm]"] * step.z_weight

    def closed(frame: int, chain: list[int]) -> bool:
        long_enough = step.most_frames > 0 and frame - frames[chain[0]] >= step.most_frames
        return bool(long_enough or frame - 1 - frames[chain[-1]] > step.off_frames)

    chains = _chains(table, place, step.distance_nm, _Strategy(closed, lambda chain: place[chain[-1]]))
    number = np.empty(len(table), np.int64)
    for index, chain in enumerate(chains):
        number[chain] = index
    how = {}
    for name in table:
        bare = _UNIT.sub("", str(name))
        how[name] = "sum" if bare in _SUM else "min" if bare in _LEAST else "mean"
    merged = table.groupby(number).agg(how)[list(table)]
    merged["detections"] = np.bincount(number)
    several = (merged["detections"] > 1).to_numpy()
    for name in table:
        # What is true of one molecule only, such as its chi2, is not a number of several.
        if _UNIT.sub("", str(name)) not in (*_MEAN, *_SUM, *_LEAST):
            merged.loc[several, name] = np.nan
    if "uncertainty [nm]" in merged:
        _renew_uncertainty(merged, camera)
    merged = merged.sort_values(["frame", "id"], kind="stable")
    several = (merged["detections"] > 1).to_numpy()
    merged.loc[several, "id"] = table["id"].max() + 1 + np.arange(several.sum())
    return merged.sort_values(["frame", "id"], kind="stable").reset_index(drop=True)


def _renew_uncertainty(merged: pd.DataFrame, camera: Camera | None) -> None:
    """Calculate it anew by the plugin's formula, as the plugin does for all rows; see `torch_localizer`."""
    needed = ("sigma [nm]", "intensity [photon]", "bkgstd [photon]")
    if camera is None or camera.pixel_size_nm is None or not set(needed) <= set(merged):
        return
    variance, pixel = merged["sigma [nm]"] ** 2, camera.pixel_size_nm
    shot = (camera.excess_noise * variance + pixel**2 / 12) / merged["intensity [photon]"]
    ratio = merged["bkgstd [photon]"] / (pixel * merged["intensity [photon]"])
    merged["uncertainty [nm]"] = np.sqrt(shot + 8 * math.pi * variance**2 * ratio**2)


def _on_stage(table: pd.DataFrame, step: StageOffset) -> pd.DataFrame:
    """Add the stage's position to z; where there is no z, the molecules lie in its plane."""
    position = (table["frame"].to_numpy() - 1) // step.frames_per_position % step.positions
    height = step.first_nm + position * step.step_nm
    return table.assign(**{"z [nm]": table.get("z [nm]", 0.0) + height})


# Drift


@dataclass(frozen=True)
class Drift:
    """How far the sample has moved since the start [nm], as functions of the frame."""

    x: Curve
    y: Curve


def _without_drift(
    table: pd.DataFrame, step: CrossCorrelationDrift | FiducialDrift, camera: Camera | None
) -> pd.DataFrame:
    drift = estimate_drift(table, step, camera=camera)
    frames = table["frame"].to_numpy(float)
    return table.assign(
        **{"x [nm]": table["x [nm]"] - drift.x(frames), "y [nm]": table["y [nm]"] - drift.y(frames)}
    )


def estimate_drift(
    table: pd.DataFrame,
    step: CrossCorrelationDrift | FiducialDrift | str,
    *,
    camera: Camera | None = None,
) -> Drift:
    """Estimate the drift of a movie from its molecules.

    Parameters
    ----------
    table, camera
        As for `postprocess`.
    step
        ``action=drift method=[Cross correlation]`` (images of successive stretches against the first, after
        Mlodzianoski et al., Opt. Express 19, 15009 (2011)) or ``method=[Fiducial markers]``.

    Raises
    ------
    FijiBridgeError
        If there are too few frames or molecules, no marker shines long enough, or the pixel size is missing.
    """
    if isinstance(step, str):
        parsed = PostProcessing.parse(step)
        if not isinstance(parsed, CrossCorrelationDrift | FiducialDrift):
            raise FijiBridgeError(f"{step!r} does not estimate drift.")
        step = parsed
    if table["frame"].nunique() < 2:
        raise FijiBridgeError("Drift needs molecules in more than one frame.")
    return (
        _correlated(table, step, camera) if isinstance(step, CrossCorrelationDrift) else _marked(table, step)
    )


def _correlated(table: pd.DataFrame, step: CrossCorrelationDrift, camera: Camera | None) -> Drift:
    if camera is None or camera.pixel_size_nm is None:
        raise FijiBridgeError('Drift by cross correlation needs the pixel size: --camera "… pixelsize=…".')
    pixel = camera.pixel_size_nm
    ordered = table.sort_values("frame", kind="stable")
    place, frames = ordered[_PLACE].to_numpy() / pixel, ordered["frame"].to_numpy(float)
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
    if len(bins) >= 4:
        shifts = np.stack([_loess(centres, along, 0.5) for along in shifts.T], 1)
    return Drift(*(_curve(centres, along * pixel, smooth=len(bins) >= 4) for along in shifts.T))


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
        self.first = np.fft.rfft2(self._padded(image))

    def __call__(self, places: Array) -> Array:
        product = self.first * np.conj(np.fft.rfft2(self._padded(self._image(places))))
        return np.fft.fftshift(np.fft.irfft2(product, s=(self.side, self.side)))

    def _image(self, places: Array) -> Array:
        from fiji_bridge.rendering import render

        width, height = self.size.tolist()
        table = pd.DataFrame(places, columns=_PLACE)
        extent = (0.0, float(width), 0.0, float(height))
        image = render(table, pixel_size_nm=1 / self.magnification, extent_nm=extent, shifts=2)
        return image.to_numpy().astype(float) * 16

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
    """Smooth by local lines with tricube weights: Cleveland, J. Am. Stat. Assoc. 74, 829 (1979)."""
    count = max(2, min(len(at), int(bandwidth * len(at))))
    smooth = np.empty(len(at))
    low = 0
    for i, centre in enumerate(at):
        while low + count < len(at) and at[low + count] - centre < centre - at[low]:
            low += 1
        near = slice(low, low + count)
        distance = np.abs(at[near] - centre)
        reach = distance.max() * 1.000001
        weight = (1 - (distance / reach) ** 3) ** 3 if reach > 0 else np.ones(count)
        mean = np.average(at[near], weights=weight)
        level = np.average(values[near], weights=weight)
        spread = np.average((at[near] - mean) ** 2, weights=weight)
        slope = np.average((at[near] - mean) * (values[near] - level), weights=weight)
        smooth[i] = level + (slope / spread * (centre - mean) if spread > 1e-12 else 0.0)
    return smooth


def _curve(at: Array, values: Array, *, smooth: bool) -> Curve:
    """Interpolate, and go on as a line beyond the ends."""
    if not smooth or len(at) < 3:
        slopes = np.diff(values) / np.diff(at)
        ends = slopes[0], slopes[-1]
        inner: Curve = lambda frames: np.interp(frames, at, values)  # noqa: E731
    else:
        spline = CubicSpline(at, values, bc_type="natural")
        ends, inner = (float(spline(at[0], 1)), float(spline(at[-1], 1))), spline

    def curve(frames: Array) -> Array:
        before, after = np.minimum(frames - at[0], 0), np.maximum(frames - at[-1], 0)
        return inner(np.clip(frames, at[0], at[-1])) + ends[0] * before + ends[1] * after

    return curve


def _marked(table: pd.DataFrame, step: FiducialDrift) -> Drift:
    frames, place = table["frame"].to_numpy(float), table[_PLACE].to_numpy()
    strategy = _Strategy(
        closed=lambda frame, chain: frame - 1 - frames[chain[-1]] > 2 * len(chain) - 1,
        place=lambda chain: place[chain[-5:]].mean(0),
    )
    chains = _chains(table, place, step.distance_nm, strategy)
    least = step.on_time_ratio * (frames.max() - frames.min())
    markers = [chain for chain in chains if len(chain) > least]
    if not markers:
        raise FijiBridgeError(
            f"No molecule shines in more than {least:.0f} frames, as markers must; lower ontimeratio= or "
            "raise distancethr=."
        )
    rows = np.concatenate(markers)
    marker = np.repeat(np.arange(len(markers)), [len(chain) for chain in markers])
    moved = place[rows] - _marker_places(frames[rows], marker, place[rows])[marker]
    at, group = np.unique(frames[rows], return_inverse=True)
    curves = []
    for along in moved.T:
        mean = np.bincount(group, along) / np.bincount(group)
        mean = _loess(at, mean - mean[0], step.smoothing) if len(at) >= 4 else mean - mean[0]
        curves.append(_curve(at, mean, smooth=len(at) >= 4))
    return Drift(*curves)


def _marker_places(frames: Array, marker: npt.NDArray[np.int64], place: Array) -> Array:
    """Find each marker's own place, by least squares of one movement for all."""
    from scipy.sparse import coo_matrix, hstack
    from scipy.sparse.linalg import lsqr

    at, group = np.unique(frames, return_inverse=True)
    ones, rows = np.ones(len(frames)), np.arange(len(frames))
    markers = coo_matrix((ones, (rows, marker)))
    system = hstack([markers, coo_matrix((ones, (rows, group)), shape=(len(frames), len(at)))]).tocsr()
    return np.stack(
        [lsqr(system, along, atol=1e-12, btol=1e-12)[0][: marker.max() + 1] for along in place.T], 1
    )
