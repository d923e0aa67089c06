"""Raw against denoised, end to end, and whether denoising helped."""

import json
import math
import os
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fiji_bridge.comparison.localizing import Localizer
from fiji_bridge.comparison.scoring import Scored, cross_validated, gain, score
from fiji_bridge.comparison.sweep import Sweep
from fiji_bridge.comparison.verdict import WAYS, Score, Verdict, judge
from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.files import check_kept, jsonable, replacing
from fiji_bridge.macro_options import DEFAULT_OPTIONS, format_options, parse_options
from fiji_bridge.progress import Progress, silent

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from fiji_bridge.camera import Camera
    from fiji_bridge.denoising import Model

__all__ = ["WAYS", "Comparison", "Verdict", "compare"]

RADIUS_NM = 50.0
"""How near a molecule a detection counts as true: the default of the plugin's evaluation."""

NEAR_NM = 300.0
"""What is farther than this from every molecule is noise: the width of a PSF."""

ALIKE = 1.35
"""A twin must show as many molecules as the recording, to this factor, to speak for it."""

FRC_PIXEL_NM = 10.0

MEDIANS = ("uncertainty [nm]", "intensity [photon]", "sigma [nm]")

TRAINED = "model.safetensors"
WRITTEN = ("report.html", "result.json", "denoised.tif", "raw.csv", "denoised.csv", "hybrid.csv")
"""What a comparison leaves in its folder, beside the model if it trained one."""


@dataclass(frozen=True)
class Comparison:
    """What a comparison found.

    Attributes
    ----------
    folder
        Where the outputs are.
    figures
        Everything that ``result.json`` holds.
    tables
        Molecules at the user's own threshold by way: ``raw``, ``denoised``, ``hybrid``.
    stack, denoised
        The frames (t, y, x) before, but for hot pixels, and after, lazy.
    truth
        Table of the true molecules, if known.
    """

    folder: Path
    figures: dict[str, Any] = field(repr=False)
    tables: Mapping[str, "pd.DataFrame"] = field(repr=False)
    stack: "xr.DataArray" = field(repr=False)
    denoised: "xr.DataArray" = field(repr=False)
    truth: "pd.DataFrame | None" = field(default=None, repr=False)

    @property
    def verdict(self) -> str:
        """Whether denoising helped, in plain words."""
        return str(self.figures["verdict"])

    @property
    def recommended(self) -> str:
        """The way to take: ``raw``, ``denoised`` or ``hybrid``."""
        return str(self.figures["recommended"])

    def as_dict(self) -> dict[str, Any]:
        """Give all figures, ready for JSON."""
        return self.figures


@dataclass(frozen=True)
class Judgement:
    """What the ways were judged by (``basis``), how they did, and what speaks against relying on it."""

    basis: str
    scored: Mapping[str, Scored] = field(default_factory=dict)
    twin: Mapping[str, Any] = field(default_factory=dict)
    doubts: tuple[str, ...] = ()


class Clock:
    """Keeps how long each part of the work took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time the block."""
        started = time.monotonic()
        yield
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.monotonic() - started, 2)


def written(folder: Path, model: object) -> dict[str, Path]:
    """Give the files that a comparison writes, one more without a `model`, by what they are called."""
    return {str(folder / name): folder / name for name in (*WRITTEN, *(() if model else (TRAINED,)))}


def compare(
    stack: Any,
    *,
    out: str | os.PathLike[str],
    ground_truth: "str | os.PathLike[str] | pd.DataFrame | None" = None,
    model: "str | os.PathLike[str] | Model | None" = None,
    camera: "str | Camera | None" = None,
    options: str = "",
    engine: str | None = None,
    thunderstorm_jar: str | os.PathLike[str] | None = None,
    max_minutes: float | None = None,
    estimator: str = "mean",
    device: str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Comparison:
    """Find out whether denoising a stack helps to localize its molecules.

    Trains on the stack (or takes a model), denoises it, and localizes three ways: the raw frames, the
    denoised frames, and molecules detected on denoised frames but fitted on raw ones. Hot pixels are
    interpolated before (`fiji_bridge.defects`). Each way is read at many detection thresholds, so that none
    wins by a lucky threshold. The ways are then judged by the truth where it is known, and otherwise on a
    simulated twin of the recording (see `fiji_bridge.comparison.twin`).

    Parameters
    ----------
    stack
        What `fiji_bridge.open_stack` takes: one movie (t, y, x).
    out
        Folder for ``report.html``, ``result.json``, ``raw.csv``, ``denoised.csv``, ``hybrid.csv``,
        ``denoised.tif`` and, if one was trained, ``model.safetensors``.
    ground_truth
        The true molecules: a ThunderSTORM CSV or a table.
    model
        Denoise with this model; None trains one on the stack.
    camera
        Camera, or ThunderSTORM's `Camera setup` string; None estimates it from the stack.
    options
        ThunderSTORM's `Run analysis` string; keys left out take the plugin's defaults.
    engine, thunderstorm_jar
        Which localizer, see `fiji_bridge.localize`.
    max_minutes
        Longest training.
    estimator
        What the denoiser gives: ``mean``, ``map`` or ``prior``.
    device
        ``cuda`` or ``cpu``; None takes CUDA when present.
    seed
        Seed of the training, the resampling and the twin.
    progress
        Called with the stage, the steps done and their number.

    Returns
    -------
    Comparison

    Raises
    ------
    FijiBridgeError
        If an input cannot be used.
    """
    from fiji_bridge.camera import Camera
    from fiji_bridge.defects import repaired
    from fiji_bridge.denoising import denoise, load_model, train
    from fiji_bridge.localizations import write_localizations
    from fiji_bridge.report import write_report
    from fiji_bridge.stack import files_of, open_stack

    progress, clock, folder = progress or silent, Clock(), Path(out)
    movie = _one_movie(open_stack(stack))
    _check_folder(folder)
    camera = Camera.of(camera)
    read = (*files_of(movie), *(camera.map_files.values() if camera else ()), ground_truth, model)
    check_kept(
        [path for path in read if isinstance(path, (str, os.PathLike))],
        written(folder, model),
    )
    truth = None if ground_truth is None else _known_molecules(ground_truth, movie)
    wanted = parse_options(options)
    network = load_model(model) if isinstance(model, (str, os.PathLike)) else model
    trained = network is None
    with clock("camera"):
        camera, warnings, about_camera = _camera(movie, camera, progress)

    # Hot pixels would be molecules that no twin has, and make denoising out to be better than it is.
    raw, replaced = repaired(movie, camera)
    localizer = Localizer(camera, wanted, engine, thunderstorm_jar, device, progress)
    with clock("localizing"):  # before the training: a wrong option should not be found out after minutes
        ways = {"raw": localizer.sweep(raw, "raw frames")}
    if network is None:
        with clock("training"):
            network = train(
                movie, camera=camera, max_minutes=max_minutes, device=device, seed=seed, progress=progress
            )
        network.save(folder / TRAINED)
    denoised_by = partial(
        denoise, model=network, camera=camera, estimator=estimator, device=device, progress=progress
    )
    with clock("denoising"):
        denoised = denoised_by(movie, out=folder / "denoised.tif")
    with clock("localizing"):
        ways |= _two_denoised_ways(localizer, raw, denoised)
    tables = {way: sweep.at(1.0) for way, sweep in ways.items()}
    for way, table in tables.items():
        write_localizations(table, folder / f"{way}.csv")

    with clock("judging"):
        if truth is not None:
            judged = Judgement("ground truth", _scored(ways, truth, progress))
        else:
            judged = _judged_by_twin(raw, ways, tables, localizer, denoised_by, seed=seed, progress=progress)
    scores = _scores(judged.scored, seed)
    verdict = judge(scores, twin=truth is None, doubts=judged.doubts)
    warnings += denoised.attrs.get("warnings", ())
    if replaced:
        warnings.append(
            "So it is for raw.csv and hybrid.csv: take these, as localize interpolates nothing in raw frames."
        )

    figures = {
        "verdict": str(verdict),
        "headline": verdict.headline,
        "sentences": verdict.sentences,
        "recommended": verdict.recommended,
        "basis": judged.basis,
        "radius_nm": RADIUS_NM,
        "warnings": [*warnings, *_edge_warnings(judged.scored)],
        "stack": _about_stack(movie),
        "camera": about_camera,
        "engine": localizer.engine,
        "options": format_options({**parse_options(DEFAULT_OPTIONS), **wanted}),
        "threshold": localizer.threshold,
        "macro": _macro(camera, wanted),
        "estimator": estimator,
        "model": network.metadata,
        "trained_here": trained,
        "ways": _about_ways(ways, tables, judged.scored, scores),
        "twin": judged.twin,
        "frc": _resolutions(tables),
        "seconds": clock.seconds,
        "versions": _versions(),
    }
    comparison = Comparison(folder, jsonable(figures), tables, raw, denoised, truth)
    with clock("report"):
        write_report(comparison, folder / "report.html")
    comparison.figures["seconds"] = dict(clock.seconds)
    with replacing(folder / "result.json") as partial_file:
        partial_file.write_text(json.dumps(comparison.figures, indent=1, allow_nan=False), encoding="utf-8")
    return comparison


def _one_movie(stack: "xr.DataArray") -> "xr.DataArray":
    """Refuse a stack with channels or slices."""
    for dim, name in (("c", "channels"), ("z", "slices")):
        if dim in stack.dims:
            raise FijiBridgeError(
                f"{stack.attrs.get('source', 'The stack')} has {stack.sizes[dim]} {name}, and a comparison "
                f"takes one movie; save the one you mean as a stack of its own."
            )
    return stack


def _check_folder(folder: Path) -> None:
    """Refuse an output folder that cannot be made."""
    standing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not standing.is_dir():
        raise FijiBridgeError(
            f"--out {folder}: {standing} is a file; name a folder for the report and its tables."
        )
    if not os.access(standing, os.W_OK):
        raise FijiBridgeError(f"--out {folder}: the folder {standing} is not writable; choose another.")


def _known_molecules(ground_truth: Any, movie: "xr.DataArray") -> "pd.DataFrame":
    """Read the truth and refuse that of another movie."""
    import pandas as pd

    from fiji_bridge.localizations import REQUIRED, read_localizations, require_columns

    if isinstance(ground_truth, pd.DataFrame):
        truth, source = ground_truth, "the ground truth"
        require_columns(truth, REQUIRED, source)
    else:
        truth, source = read_localizations(ground_truth), str(ground_truth)
    if truth.empty:
        raise FijiBridgeError(
            f"{source} has no molecules; leave --ground-truth out when the truth is not known."
        )
    if truth["frame"].max() > movie.sizes["t"]:
        raise FijiBridgeError(
            f"{source} has a molecule in frame {truth['frame'].max():g}, but "
            f"{movie.attrs.get('source', 'the stack')} has {movie.sizes['t']} frames; give the ground truth "
            "of this stack."
        )
    return truth


def _camera(
    movie: "xr.DataArray", camera: "str | Camera | None", progress: Progress
) -> tuple["Camera", list[str], dict[str, Any]]:
    """Give the camera with a pixel size, warnings about it, and what the report says of it."""
    from fiji_bridge.camera import Camera, estimate_camera

    camera = Camera.of(camera)
    pixel_size = (camera.pixel_size_nm if camera else None) or movie.attrs.get("pixel_size_nm")
    if not pixel_size:
        raise FijiBridgeError(
            f"{movie.attrs.get('source', 'The stack')} does not say its pixel size; give it in nm with "
            "--pixel-size, or as pixelsize= in --camera."
        )
    if camera is not None:
        camera = camera.replace(pixel_size_nm=float(pixel_size))
        camera.check(movie)
        return camera, [], _about_camera(camera)
    estimate = estimate_camera(movie, pixel_size_nm=float(pixel_size), progress=progress)
    about = {**_about_camera(estimate.camera), "spread": estimate.spread, "reliable": estimate.reliable}
    return estimate.camera, list(estimate.warnings), about


def _about_camera(camera: "Camera") -> dict[str, Any]:
    maps = ("offset_map", "gain_map", "variance_map")
    fields = {name: value for name, value in camera.as_dict().items() if name not in maps}
    return {**fields, "maps": [name for name in maps if getattr(camera, name) is not None]}


def _two_denoised_ways(
    localizer: Localizer,
    movie: "xr.DataArray",
    denoised: "xr.DataArray",
    like: Mapping[str, Sweep] | None = None,
) -> dict[str, Sweep]:
    """Localize denoised frames, and again with the fit on raw ones; at the factors of `like`, if given."""
    factors = like["denoised"].factors if like else None
    first = localizer.sweep(denoised, "denoised frames", factors=factors)
    second = localizer.sweep(denoised, "fitted on raw frames", fit_stack=movie, factors=first.factors)
    return {"denoised": first, "hybrid": second}


def _scored(
    ways: Mapping[str, Sweep], truth: "pd.DataFrame", progress: Progress, radius_nm: float = RADIUS_NM
) -> dict[str, Scored]:
    return {
        way: score(sweep, truth, WAYS[way], radius_nm=radius_nm, progress=progress)
        for way, sweep in ways.items()
    }


def _judged_by_twin(
    movie: "xr.DataArray",
    ways: Mapping[str, Sweep],
    tables: Mapping[str, "pd.DataFrame"],
    localizer: Localizer,
    denoised_by: Any,
    *,
    seed: int,
    progress: Progress,
) -> Judgement:
    """Judge the ways on a simulated twin."""
    from fiji_bridge.comparison.twin import LEAST_MOLECULES, twin_of

    twin = twin_of(movie, tables, localizer.camera, seed=seed)
    if twin is None:
        why = (
            f"No ground truth was given, and fewer than {LEAST_MOLECULES} molecules with an intensity and a "
            "sigma were found, which is not enough to judge on a simulation of this recording."
        )
        return Judgement("none", doubts=(why,))
    found = {"raw": localizer.sweep(twin.stack, "raw frames of the twin", factors=ways["raw"].factors)}
    found |= _two_denoised_ways(localizer, twin.stack, denoised_by(twin.stack), like=ways)
    scored = _scored(found, twin.molecules, progress)
    here, there = len(twin.of(tables["raw"])), len(found["raw"].at(1.0))
    about = {
        "frames": twin.stack.sizes["t"],
        "first_frame": twin.first + 1,
        "molecules": len(twin.molecules),
        "detections_in_recording": here,
        "detections_in_twin": there,
        "equal": _at_equal_false_rate(ways, _scored(found, twin.molecules, progress, NEAR_NM)),
    }
    doubts: tuple[str, ...] = ()
    if not here / ALIKE <= there <= here * ALIKE:
        doubts = (
            f"The simulated twin of this recording does not resemble it: {there:,} molecules were found in "
            f"its raw frames at your threshold, and {here:,} in the recording's; its scores say little.",
        )
    return Judgement("simulated twin", scored, about, doubts)


def _at_equal_false_rate(ways: Mapping[str, Sweep], scored: Mapping[str, Scored]) -> dict[str, Any]:
    """Count the recording's detections where each way has as many false ones as raw frames at factor 1.

    False is here what has no molecule anywhere near; a molecule at a wrong position was still detected.
    """
    raw = scored["raw"]
    rate = max(float(raw.false_per_frame()[raw.own]), 1 / ways["raw"].frames)
    factors = {way: found.at_false_rate(rate) for way, found in scored.items()}
    return {
        "false_per_frame": rate,
        "ways": {way: {"factor": k, "detections": len(ways[way].at(k))} for way, k in factors.items()},
    }


def _scores(scored: Mapping[str, Scored], seed: int) -> dict[str, Score]:
    """Summarize each way for the verdict."""
    chosen = {way: cross_validated(found.counts) for way, found in scored.items()}
    scores = {}
    for way, found in scored.items():
        top, own = found.evaluations[found.best], found.evaluations[found.own]
        against = [
            None if way == "raw" else gain(chosen[way], chosen["raw"], statistic, seed=seed)
            for statistic in ("jaccard", "rmse_nm")
        ]
        scores[way] = Score(top.jaccard, top.rmse_nm, own.jaccard, *against)
    return scores


def _edge_warnings(scored: Mapping[str, Scored]) -> list[str]:
    """Say where the best threshold lies at an end of the sweep, so that a better one may lie beyond."""
    warnings = []
    for way, found in scored.items():
        if found.best in (0, len(found.factors) - 1):
            end = "lowest" if found.best == 0 else "highest"
            warnings.append(
                f"The best threshold for {WAYS[way]} is the {end} of the sweep "
                f"({found.factors[found.best]:.2g} times yours); a better one may lie beyond it."
            )
    return warnings


def _about_stack(movie: "xr.DataArray") -> dict[str, Any]:
    frames, height, width = (movie.sizes[dim] for dim in ("t", "y", "x"))
    return {
        "source": movie.attrs.get("source", "array"),
        "frames": frames,
        "height": height,
        "width": width,
        "dtype": str(movie.dtype),
    }


def _about_ways(
    ways: Mapping[str, Sweep],
    tables: Mapping[str, "pd.DataFrame"],
    scored: Mapping[str, Scored],
    scores: Mapping[str, Score],
) -> dict[str, Any]:
    """Give every figure of every way."""
    about: dict[str, Any] = {}
    for way, sweep in ways.items():
        medians = {column: float(tables[way][column].median()) for column in MEDIANS if column in tables[way]}
        curves: dict[str, Any] = {"factor": sweep.factors, "detections": sweep.detections()}
        about[way] = {"label": WAYS[way], "detections": len(tables[way]), "medians": medians, "sweep": curves}
        if not scored:
            continue
        found = scored[way]
        curves |= {name: found.curve(name) for name in ("jaccard", "precision", "recall", "rmse_nm")}
        curves["false_per_frame"] = found.false_per_frame()
        about[way] |= {
            "own": found.evaluations[found.own].as_dict(),
            "best": found.evaluations[found.best].as_dict(),
            "best_factor": found.factors[found.best],
            "gain": {
                name: None if difference is None else difference._asdict()
                for name, difference in (("jaccard", scores[way].gain), ("rmse_nm", scores[way].rmse_gain))
            },
        }
    return about


def _macro(camera: "Camera", wanted: Mapping[str, str]) -> str:
    """Give the macro lines that do the same analysis in Fiji."""
    plain = camera.replace(read_noise=0.0, offset_map=None, gain_map=None, variance_map=None)
    analysis = format_options({**parse_options(DEFAULT_OPTIONS), **wanted, "renderer": "No Renderer"})
    return f'run("Camera setup", "{plain.options()}");\nrun("Run analysis", "{analysis}");'


def _resolutions(tables: Mapping[str, "pd.DataFrame"]) -> dict[str, float | None]:
    """Measure the Fourier ring correlation resolution of every table, None where the data cannot tell."""
    from fiji_bridge.evaluation import frc

    found: dict[str, float | None] = {}
    for way, table in tables.items():
        extent = float(np.ptp(table[["x [nm]", "y [nm]"]].to_numpy(), axis=0).max()) if len(table) else 0.0
        try:
            resolution = frc(table, pixel_size_nm=max(FRC_PIXEL_NM, extent / 4096)).resolution_nm
        except FijiBridgeError:
            resolution = math.nan
        # The first few rings hold the outline of the field of view, not a structure.
        found[way] = resolution if resolution < extent / 10 else None
    return found


def _versions() -> dict[str, str]:
    found = {"Python": platform.python_version()}
    for package in ("fiji-bridge", "torch", "numpy", "scipy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed as a package"
    return found
