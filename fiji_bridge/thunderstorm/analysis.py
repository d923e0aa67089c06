"""ThunderSTORM's `Run analysis` by the plugin's own classes, frames in parallel.

The plugin's command needs windows; the filters, detectors and estimators behind it do not. They are set up
and called here in the order in which the command does, so the molecules are the plugin's.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fiji_bridge.camera import Camera
from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.lens_calibration import read_calibration
from fiji_bridge.localizations import COLUMNS, REQUIRED
from fiji_bridge.progress import Progress, silent
from fiji_bridge.thunderstorm.jar import (
    Plugin,
    java_errors,
    load,
    lock,
    module,
    plain,
    reason,
    require_pixel_size,
    set_camera,
    whole_number,
    worker_threads,
)
from fiji_bridge.thunderstorm.regions import Region, bounds, checked, java_roi
from fiji_bridge.thunderstorm.settings import (
    AnalysisSettings,
    EllipticalGaussian,
    GaussianFit,
    ImageFilter,
    LocalMaximum,
    NonMaximumSuppression,
)
from fiji_bridge.thunderstorm.table import analog_columns

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

COMPARES_WITH_THRESHOLD_ONLY = (LocalMaximum, NonMaximumSuppression)
"""Detectors that find at a higher threshold a part of what they find at a lower one."""

BLOCK_PIXELS = 16 << 20
"""Pixels of a stack that are held at a time."""

SHARES = 8
"""Blocks that each of several processes gets, where the stack is small: the last ones end together."""

Block = list[tuple[int, np.ndarray, np.ndarray | None]]
"""Frames with their numbers, from 1, and their versions to fit."""


class Found(NamedTuple):
    """What there is in a frame: columns by label, or why the plugin could not analyse it."""

    columns: dict[str, np.ndarray]
    failed: str = ""


@dataclass(frozen=True)
class Job:
    """What an analysis is set up with, here or in another process."""

    camera: Camera
    settings: AnalysisSettings
    shape: tuple[int, int]
    region: tuple[int, ...] | Path | np.ndarray | None
    strength: bool
    threads: int
    jar: str | os.PathLike[str] | None


def localize(
    stack: Any,
    *,
    camera: Camera | str,
    options: str | AnalysisSettings = "",
    fit_stack: Any = None,
    roi: Region | None = None,
    strength: bool = False,
    jar: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    processes: int = 1,
    progress: Progress | None = None,
    stopped: Callable[["pd.DataFrame"], None] | None = None,
) -> "pd.DataFrame":
    """Find molecules with the ThunderSTORM plugin itself (Ovesný et al., Bioinformatics 30, 2389, 2014).

    Parameters
    ----------
    stack
        Frames (t, y, x) [ADU]: anything that `open_stack` takes, or what it gave.
    camera
        Camera; the plugin knows no per-pixel maps, so with maps the frames are first brought to the camera's
        scalar offset and gain.
    options
        Option string of the plugin's `Run analysis`, or its value; keys left out take the plugin's defaults,
        a renderer is not used.
    fit_stack
        Frames of the same shape [ADU]: molecules are then detected in `stack` and fitted in these.
    roi
        Region of interest: ``(x, y, width, height)`` or ``"x,y,width,height"`` [pixels], a boolean mask
        (y, x), or the path of an ImageJ ``.roi`` file. As in the plugin, the frames are cropped to the
        rectangle around it, filters and thresholds look at all of that, candidates outside are dropped, and
        positions count from the rectangle's corner, which is in ``attrs["roi"]``.
    strength
        Add the column ``strength``: the filtered image at the candidate pixel over that frame's threshold, so
        that the molecules found at k times the threshold are the rows with strength ≥ k.
    jar
        ThunderSTORM's jar; found by `find_jar` when left out.
    threads
        Frames worked on at a time; the number of processors when left out.
    processes
        Processes that share out the frames, and the threads, each with a Java of its own; 1 is this one, and
        at most there are as many as frames, or twice as many as processors. It changes nothing in the table.
    progress
        Called with the stage, the frames done and their number.
    stopped
        Called with the table of the frames done, of which ``attrs["frames"]`` is the number, when the
        analysis is cancelled or fails half-way; what stopped it goes on after that.

    Returns
    -------
    pandas.DataFrame
        One row a molecule in the plugin's order (by frame, then as detected), with the columns, units and
        values of its table: nm and photons, frames from 1, the first pixel's centre at half a pixel.
        ``attrs["warnings"]`` names frames that the plugin could not analyse, such as black ones, and went on
        without; ``attrs["roi"]`` is x, y, width and height [pixels] of what was analysed.

    Raises
    ------
    FijiBridgeError
        If there is no jar or Java, an option or the threshold formula is wrong, the pixel size is unknown,
        the stacks differ in shape, the region is none, a process ends, or `strength` is asked of a setting
        that has none.
    """
    camera = require_pixel_size(camera)
    frames = frames_of(stack)
    fit_frames = None if fit_stack is None else frames_of(fit_stack)
    if fit_frames is not None and fit_frames.shape != frames.shape:
        raise FijiBridgeError(
            f"fit_stack has the shape {fit_frames.shape} and the stack {frames.shape}; they must be the same."
        )
    processes = whole_number(processes, "processes")
    settings = options if isinstance(options, AnalysisSettings) else AnalysisSettings.parse(options)
    _require_calibration(settings)
    if strength:
        _require_strength(settings)
    total, shape = frames.sizes["t"], (frames.sizes["y"], frames.sizes["x"])
    processors = os.cpu_count() or 1
    if processes > (most := max(1, min(total, 2 * processors))):
        raise FijiBridgeError(
            f"processes is {processes}, but {total} frames and {processors} processors keep no more than "
            f"{most} busy; give fewer."
        )
    job = Job(camera, settings, shape, checked(roi, shape), strength, worker_threads(threads), jar)
    size = max(1, BLOCK_PIXELS // (shape[0] * shape[1]))
    if processes > 1:
        size = min(size, max(1, total // (SHARES * processes)))
    report, done = progress or silent, list[Found]()
    with _running(job, processes) as analysis:
        try:
            for found in analysis.frames(_blocks(frames, fit_frames, size)):
                done.append(found)  # those before an error stay
                report("Localizing with ThunderSTORM", len(done), total)
        except BaseException:
            if stopped is not None and done:
                stopped(_table(done, job, analysis.bounds))
            raise
        if done and all(found.failed for found in done):
            raise FijiBridgeError(f"{_failure(done)}, nor any other.")
        return _table(done, job, analysis.bounds)


def _running(job: Job, processes: int) -> AbstractContextManager[Any]:
    """Give what has `bounds` and `frames`: an `Analysis`, or several processes with one each."""
    if processes == 1:
        return _here(job)
    from fiji_bridge.thunderstorm.processes import processes as others

    return others(job, processes)


@contextmanager
def _here(job: Job) -> "Iterator[Analysis]":
    with lock:
        yield Analysis(job)


def filter_frames(
    stack: Any,
    options: str | ImageFilter,
    *,
    camera: Camera | str,
    jar: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> "xr.DataArray":
    """Filter frames as the plugin does before it detects molecules.

    Parameters
    ----------
    stack
        Frames (t, y, x) [ADU]: anything that `open_stack` takes.
    options
        The filter: ``filter=[Wavelet filter (B-Spline)] scale=2.0 order=3``, or its value.
    camera
        Its offset is subtracted first.
    jar
        ThunderSTORM's jar; found by `find_jar` when left out.
    threads
        Frames worked on at a time; the number of processors when left out.
    progress
        Called with the stage, the frames done and their number.

    Returns
    -------
    xarray.DataArray
        Filtered frames (t, y, x) float32 [ADU], in the places and with the coordinates of `stack`.

    Raises
    ------
    FijiBridgeError
        If an option is wrong, or there is no jar or Java.
    """
    import xarray as xr

    from fiji_bridge.stack import frame_blocks

    settings = options if isinstance(options, ImageFilter) else ImageFilter.parse(options)
    known = Camera.of(camera)
    frames, threads = frames_of(stack), worker_threads(threads)
    filtered, report = np.empty(frames.shape, np.float32), progress or silent
    with lock, ThreadPoolExecutor(threads, thread_name_prefix="ThunderSTORM") as pool:
        made = module(load(jar), "filters.ui.IFilterUI", settings)

        def work(image: np.ndarray) -> np.ndarray:
            out = made.getThreadLocalImplementation().filterImage(processor(image, known))
            return np.array(out.getPixels(), np.float32).reshape(image.shape)

        for start, block in frame_blocks(frames):
            with java_errors(f"ThunderSTORM cannot filter with {settings}"):
                for i, image in enumerate(pool.map(work, block), start):
                    filtered[i] = image
                    report("Filtering with ThunderSTORM", i + 1, len(filtered))
    attrs = dict(frames.attrs, options=str(settings))
    return xr.DataArray(filtered, dims=frames.dims, coords=frames.coords, attrs=attrs)


def frames_of(source: Any) -> "xr.DataArray":
    """Give frames (t, y, x) of anything that `open_stack` takes."""
    from fiji_bridge.stack import open_stack

    frames = source if hasattr(source, "dims") else open_stack(source)
    if tuple(frames.dims) != ("t", "y", "x"):
        raise FijiBridgeError(
            f"Localization takes frames (t, y, x), not {tuple(frames.dims)}; choose a channel and a plane."
        )
    return frames


def processor(image: np.ndarray, camera: Camera, roi: Any = None) -> Any:
    """Give ImageJ the image above the camera's offset, lifted as by the plugin when a pixel is below."""
    from jpype import JArray, JClass, JFloat

    if camera.offset_map is not None or camera.gain_map is not None:
        image = plain(camera).to_adu(camera.to_photons(image))
    if roi is not None:
        x, y, width, height = bounds(roi)
        image = image[y : y + height, x : x + width]
    counts = image.astype(np.float32) - np.float32(camera.offset)
    counts -= min(counts.min(), np.float32(0))
    made = JClass("ij.process.FloatProcessor")(
        counts.shape[1], counts.shape[0], JArray(JFloat)(counts.ravel())
    )
    if roi is not None:
        made.setMask(roi.getMask())
    return made


def load_filters(plugin: Plugin, chosen: ImageFilter) -> Any:
    """Hand the plugin all its filters, which threshold formulas may name; give the chosen one, set up."""
    from jpype import JClass

    interface = "filters.ui.IFilterUI"
    filters = JClass("java.util.Vector")(plugin["ModuleLoader"].getUIModules(plugin[interface].class_))
    place = [str(each.getName()) for each in filters].index(chosen.fixed["filter"])
    made = module(plugin, interface, chosen)
    filters.set(place, made)
    plugin["thresholding.Thresholder"].loadFilters(filters)
    plugin["thresholding.Thresholder"].setActiveFilter(place)
    return made


class Analysis:
    """The plugin's modules, set up for one run and used by several threads at a time."""

    def __init__(self, job: Job) -> None:
        """Do what the plugin's command does before the first frame."""
        self.plugin = plugin = load(job.jar)
        self._job, settings = job, job.settings
        self._roi = java_roi(job.region, job.shape)
        self.bounds = bounds(self._roi)
        set_camera(plugin, job.camera)
        load_filters(plugin, settings.filter)
        self._estimator = module(plugin, "estimators.ui.IEstimatorUI", settings.estimator)
        # Two of the three detectors keep a frame's threshold in themselves: one a thread.
        self._detectors: SimpleQueue[Any] = SimpleQueue()
        for _ in range(job.threads):
            self._detectors.put(module(plugin, "detectors.ui.IDetectorUI", settings.detector))
        self._thresholder = plugin["thresholding.Thresholder"]
        detector = self._detectors.get()
        with java_errors(f"The option threshold={self._threshold} is not a threshold formula"):
            self._thresholder.parseThreshold(detector.getThreadLocalImplementation().getThresholdFormula())
        self._detectors.put(detector)

    @property
    def _threshold(self) -> str:
        return self._job.settings.detector.as_options()["threshold"]

    def frames(self, blocks: Iterable[Block]) -> Iterator[Found]:
        """Find the molecules of all frames, in their order."""
        from jpype import JClass

        IJ, pool = JClass("ij.IJ"), ThreadPoolExecutor(self._job.threads, thread_name_prefix="ThunderSTORM")
        try:
            for block in blocks:
                for future in [pool.submit(self._found, *frame) for frame in block]:
                    yield future.result()
        except BaseException:
            # The plugin looks at ImageJ's Escape key between two molecules; a frame can take seconds.
            IJ.setKeyDown(JClass("java.awt.event.KeyEvent").VK_ESCAPE)
            raise
        finally:
            pool.shutdown(cancel_futures=True)
            IJ.resetEscape()

    def _found(self, number: int, image: np.ndarray, fit_image: np.ndarray | None) -> Found:
        """Find the molecules of frame `number` (from 1), given as (y, x) [ADU]."""
        from jpype import JException

        detector = self._detectors.get()
        try:
            return Found(self._frame(number, detector.getThreadLocalImplementation(), image, fit_image))
        except JException as error:
            if "Formula" in error.getClass().getName():
                raise FijiBridgeError(
                    f"The option threshold={self._threshold} has no value in frame {number}: {reason(error)}"
                ) from error
            return Found({}, reason(error))  # the plugin, too, goes on without it
        finally:
            self._detectors.put(detector)

    def _frame(
        self, number: int, detector: Any, image: np.ndarray, fit_image: np.ndarray | None
    ) -> dict[str, np.ndarray]:
        camera = self._job.camera
        detected = processor(image, camera, self._roi)
        fitted = detected if fit_image is None else processor(fit_image, camera, self._roi)
        estimator = self._estimator.getThreadLocalImplementation()
        self._thresholder.setCurrentImage(detected)
        filtered = self._thresholder.getActiveFilter().filterImage(detected)
        candidates = detector.detectMoleculeCandidates(filtered)
        candidates = self.plugin["util.Point"].applyRoiMask(self._roi, candidates)
        if not self._job.strength:
            columns = self._columns(estimator.estimateParameters(fitted, candidates))
        else:
            threshold = float(detector.getThresholdValue())
            columns = self._with_strength(number, estimator, fitted, candidates, threshold)
        count = len(next(iter(columns.values()), ()))
        return {"frame": np.full(count, number)} | columns if count else {}

    def _with_strength(
        self, number: int, estimator: Any, fitted: Any, candidates: Any, threshold: float
    ) -> dict[str, np.ndarray]:
        from jpype import JClass

        if threshold < 0:
            raise FijiBridgeError(
                f"The threshold of frame {number} is {threshold:g}; multiples of it make no sweep, so "
                "choose a formula that is never negative, such as std(Wave.F1)."
            )
        Vector = JClass("java.util.Vector")
        found, strengths = Vector(), []
        # One at a time, because the estimator does not say which candidates it gave up.
        for candidate in candidates:
            molecules = estimator.estimateParameters(fitted, Vector([candidate]))
            found.addAll(molecules)
            value = float(candidate.getVal())
            strengths += [value / threshold if threshold else np.inf] * molecules.size()
        columns = self._columns(found)
        return columns | {"strength": np.array(strengths)} if columns else columns

    def _columns(self, molecules: Any) -> dict[str, np.ndarray]:
        """Give the values of the plugin's molecules, converted by its own table to nm and photons."""
        table = self.plugin["results.GenericTableModel"]()
        for molecule in molecules:
            table.addRow(molecule)
        return analog_columns(self.plugin, table)


def _require_calibration(settings: AnalysisSettings) -> None:
    if isinstance(settings.estimator, EllipticalGaussian):
        path = settings.estimator.calibration_path
        if not path or not Path(path).is_file():
            raise FijiBridgeError(
                f"The option calibrationpath={path} names no file; the estimator for astigmatism needs the "
                "calibration of a cylindrical lens."
            )
        read_calibration(path)  # what is none, the plugin would not explain


def _require_strength(settings: AnalysisSettings) -> None:
    if not isinstance(settings.detector, COMPARES_WITH_THRESHOLD_ONLY):
        raise FijiBridgeError(
            f"detector=[{settings.detector.fixed['detector']}] finds other molecules at another threshold, "
            "so it has no strength; use [Local maximum] or [Non-maximum suppression]."
        )
    if isinstance(settings.estimator, GaussianFit) and settings.estimator.full_image_fitting:
        raise FijiBridgeError(
            "full_image_fitting=true fits molecules together, so they have no strength; leave it out."
        )


def _blocks(frames: "xr.DataArray", fit_frames: "xr.DataArray | None", size: int) -> Iterator[Block]:
    """Give the frames of both stacks, numbered from 1, a block at a time."""
    from fiji_bridge.stack import frame_blocks

    fits = frame_blocks(fit_frames, size) if fit_frames is not None else None
    for start, block in frame_blocks(frames, size):
        fit_block = next(fits)[1] if fits else [None] * len(block)
        yield [
            (start + i + 1, image, fit) for i, (image, fit) in enumerate(zip(block, fit_block, strict=True))
        ]


def _failure(done: list[Found]) -> str:
    number, why = next((i, found.failed) for i, found in enumerate(done, 1) if found.failed)
    return f"ThunderSTORM cannot analyse frame {number} ({why.rstrip('.')})"


def _table(done: list[Found], job: Job, analysed: tuple[int, ...]) -> "pd.DataFrame":
    import pandas as pd

    full = [found.columns for found in done if found.columns]
    if full:
        table = pd.DataFrame(
            {label: np.concatenate([columns[label] for columns in full]) for label in full[0]}
        )
    else:
        fitted = isinstance(job.settings.estimator, GaussianFit)
        labels = [*(COLUMNS[1:] if fitted else REQUIRED), *(["strength"] if job.strength else [])]
        table = pd.DataFrame({label: np.empty(0, int if label == "frame" else float) for label in labels})
    table.insert(0, "id", np.arange(1, len(table) + 1))
    failed = sum(bool(found.failed) for found in done)
    table.attrs = {"frames": len(done), "roi": analysed, "warnings": ()}
    if failed:
        table.attrs["warnings"] = (
            f"{_failure(done)}; {failed} of {len(done)} frames failed and have no molecules, as in the"
            " plugin.",
        )
    return table
