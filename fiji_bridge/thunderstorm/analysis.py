"""ThunderSTORM's `Run analysis` by the plugin's own classes, frames in parallel.

The plugin's command needs windows; the filters, detectors and estimators behind it do not. They are set up
and called here in the order in which the command does, so the molecules are the plugin's.
"""

import difflib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np

from fiji_bridge.camera import Camera
from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.imagej.session import macro_options
from fiji_bridge.localizations import COLUMNS, REQUIRED
from fiji_bridge.macro_options import DEFAULT_OPTIONS, format_options, parse_options
from fiji_bridge.progress import Progress, silent
from fiji_bridge.thunderstorm.jar import PACKAGE, Plugin, java_errors, load, lock, reason

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

MODULES = {
    "filter": "filters.ui.IFilterUI",
    "detector": "detectors.ui.IDetectorUI",
    "estimator": "estimators.ui.IEstimatorUI",
}
"""Option keys that choose a module, and the class of the modules among which they choose."""

COMPARES_WITH_THRESHOLD_ONLY = ("local maximum", "non-maximum suppression")
"""Detectors that find at a higher threshold a part of what they find at a lower one."""

NAMES = {"uncertainty_xy": "uncertainty"}
"""Columns that later versions of the plugin name otherwise."""

BLOCK_PIXELS = 16 << 20
"""Pixels of a stack that are held at a time."""


def localize(
    stack: Any,
    *,
    camera: Camera,
    options: str = "",
    fit_stack: Any = None,
    strength: bool = False,
    jar: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
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
        Option string of the plugin's `Run analysis`; keys left out take the plugin's defaults, keys of
        renderers are ignored.
    fit_stack
        Frames of the same shape [ADU]: molecules are then detected in `stack` and fitted in these.
    strength
        Add the column ``strength``: the filtered image at the candidate pixel over that frame's threshold, so
        that the molecules found at k times the threshold are the rows with strength ≥ k.
    jar
        ThunderSTORM's jar; found by `find_jar` when left out.
    threads
        Frames worked on at a time; the number of processors when left out.
    progress
        Called with the stage, the frames done and their number.

    Returns
    -------
    pandas.DataFrame
        One row a molecule in the plugin's order (by frame, then as detected), with the columns, units and
        values of its table: nm and photons, frames from 1, the first pixel's centre at half a pixel.

    Raises
    ------
    FijiBridgeError
        If there is no jar or Java, an option or the threshold formula is wrong, the pixel size is unknown,
        the stacks differ in shape, or `strength` is asked of a setting that has none.
    """
    frames = _frames(stack)
    fit_frames = None if fit_stack is None else _frames(fit_stack)
    if fit_frames is not None and fit_frames.shape != frames.shape:
        raise FijiBridgeError(
            f"fit_stack has the shape {fit_frames.shape} and the stack {frames.shape}; they must be the same."
        )
    if camera.pixel_size_nm is None:
        raise FijiBridgeError('The pixel size is unknown; give it with --camera "… pixelsize=…" (nm).')
    threads = threads or os.cpu_count() or 1
    with lock:
        analysis = Analysis(load(jar), camera, options, threads, strength)
        return _table(_all_frames(analysis, frames, fit_frames, threads, progress or silent), analysis)


def _frames(source: Any) -> "xr.DataArray":
    from fiji_bridge.stack import open_stack

    frames = source if hasattr(source, "dims") else open_stack(source)
    if tuple(frames.dims) != ("t", "y", "x"):
        raise FijiBridgeError(
            f"Localization takes frames (t, y, x), not {tuple(frames.dims)}; choose a channel and a plane."
        )
    return frames


class Analysis:
    """The plugin's modules, set up for one run and used by several threads at a time."""

    def __init__(self, plugin: Plugin, camera: Camera, options: str, threads: int, strength: bool) -> None:
        """Do what the plugin's command does before the first frame."""
        self.plugin, self.camera, self.strength = plugin, camera, strength
        defaults = parse_options(DEFAULT_OPTIONS)
        self.settings = {key: defaults[key] for key in MODULES} | parse_options(options)
        if strength:
            _require_strength(self.settings)
        self._plain = camera.replace(
            offset_map=None, gain_map=None, variance_map=None, map_files={}, read_noise=0.0
        )
        with macro_options(self._plain.options()), java_errors("ThunderSTORM does not take this camera"):
            plugin["CameraSetupPlugIn"]().run("")
        self._require_known_keys()
        filters, chosen = self._choose("filter")
        self._estimator = self._module("estimator")
        # Two of the three detectors keep a frame's threshold in themselves: one a thread.
        self._detectors: SimpleQueue[Any] = SimpleQueue()
        for _ in range(threads):
            self._detectors.put(self._module("detector"))
        self._thresholder = plugin["thresholding.Thresholder"]
        self._thresholder.loadFilters(filters)
        self._thresholder.setActiveFilter(chosen)
        detector = self._detectors.get()
        with java_errors(f"The option threshold={self.settings.get('threshold')} is not a threshold formula"):
            self._thresholder.parseThreshold(detector.getThreadLocalImplementation().getThresholdFormula())
        self._detectors.put(detector)

    def _module(self, kind: str) -> Any:
        modules, chosen = self._choose(kind)
        return modules[chosen]

    def _choose(self, kind: str) -> tuple[Any, int]:
        """Give all modules of a kind and the place of the one that the options choose, its options read."""
        modules = self._modules(MODULES[kind])
        names, wanted = [str(module.getName()) for module in modules], self.settings[kind]
        chosen = next((i for i, name in enumerate(names) if name.lower() == wanted.lower()), None)
        if chosen is None:
            raise FijiBridgeError(f"ThunderSTORM has no {kind}=[{wanted}]; it has {', '.join(names)}.")
        complaint = _read_options(modules[chosen], self.settings)
        if complaint:
            culprit = self._culprit(modules[chosen], complaint)
            raise FijiBridgeError(f"ThunderSTORM's {names[chosen]} does not take {culprit}: {complaint}")
        return modules, chosen

    def _culprit(self, module: Any, complaint: str) -> str:
        """Find the option without which the module takes the others, since the plugin does not name it."""
        quoted = [key for key, value in self.settings.items() if value in complaint]
        for key in [*quoted, *self.settings]:
            others = {name: text for name, text in self.settings.items() if name != key}
            if key not in MODULES and _read_options(module, others) is None:
                return f"the option {key}={self.settings[key]}"
        return f"its options ({', '.join(sorted(_option_keys(module)))}) as given"

    def _require_known_keys(self) -> None:
        """Refuse a misspelt option, which the plugin would ignore; a macro's other options may stay."""
        modules = [module for interface in MODULES.values() for module in self._modules(interface)]
        known = set(MODULES).union(*map(_option_keys, modules))
        for key in self.settings:
            similar = [] if key in known else difflib.get_close_matches(key, known, 1, 0.8)
            if similar:
                raise FijiBridgeError(f"ThunderSTORM has no option {key}=; write {similar[0]}=.")

    def _modules(self, interface: str) -> Any:
        return self.plugin["ModuleLoader"].getUIModules(self.plugin[interface].class_)

    def frame(self, number: int, image: np.ndarray, fit_image: np.ndarray | None) -> dict[str, np.ndarray]:
        """Find the molecules of frame `number` (from 1), given as (y, x) [ADU]: its columns by label."""
        from jpype import JException

        detector = self._detectors.get()
        try:
            return self._frame(number, detector.getThreadLocalImplementation(), image, fit_image)
        except JException as error:
            if "Formula" in error.getClass().getName():
                what = f"The option threshold={self.settings['threshold']} has no value in"
            else:
                what = f"With {format_options(self.settings)}, ThunderSTORM cannot analyse"
            raise FijiBridgeError(f"{what} frame {number}: {reason(error)}") from error
        finally:
            self._detectors.put(detector)

    def _frame(
        self, number: int, detector: Any, image: np.ndarray, fit_image: np.ndarray | None
    ) -> dict[str, np.ndarray]:
        detected = self._processor(image)
        fitted = detected if fit_image is None else self._processor(fit_image)
        estimator = self._estimator.getThreadLocalImplementation()
        self._thresholder.setCurrentImage(detected)
        filtered = self._thresholder.getActiveFilter().filterImage(detected)
        candidates = detector.detectMoleculeCandidates(filtered)
        if not self.strength:
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

    def _processor(self, image: np.ndarray) -> Any:
        """Give ImageJ the image above the camera's offset, lifted as by the plugin when a pixel is below."""
        from jpype import JArray, JClass, JFloat

        if self.camera.offset_map is not None or self.camera.gain_map is not None:
            image = self._plain.to_adu(self.camera.to_photons(image))
        counts = image.astype(np.float32) - np.float32(self.camera.offset)
        counts -= min(counts.min(), np.float32(0))
        return JClass("ij.process.FloatProcessor")(
            counts.shape[1], counts.shape[0], JArray(JFloat)(counts.ravel())
        )

    def _columns(self, molecules: Any) -> dict[str, np.ndarray]:
        """Give the values of the plugin's molecules, converted by its own table to nm and photons."""
        Units = self.plugin["estimators.PSF.MoleculeDescriptor$Units"]
        table = self.plugin["results.GenericTableModel"]()
        for molecule in molecules:
            table.addRow(molecule)
        columns = {}
        for name in table.getColumnNames() if molecules.size() else ():
            unit = Units.getAnalogUnits(table.getColumnUnits(name))
            label = NAMES.get(str(name), str(name)) + (f" [{unit}]" if unit.getLabel() else "")
            columns[label] = np.array(table.getColumnAsDoubles(name, unit))
        return columns


def _read_options(module: Any, settings: dict[str, str]) -> str | None:
    """Let a module read its options; give the plugin's complaint if it has one."""
    from jpype import JException

    options = format_options(settings)
    try:
        with macro_options(options):
            module.readMacroOptions(options)
    except JException as error:
        return reason(error)
    return None


def _option_keys(module: Any) -> set[str]:
    """Give the option keys that a module of the plugin reads; its fields hold them."""
    keys, declaring = set(), module.getClass()
    while str(declaring.getName()).startswith(PACKAGE):
        for field in declaring.getDeclaredFields():
            field.setAccessible(True)
            kind = str(field.getType().getName())
            if ".macroui.ParameterKey" in kind:
                keys.add(str(field.get(module)).lower())
            elif kind.startswith(PACKAGE) and kind.endswith("UI"):
                keys |= _option_keys(field.get(module))
        declaring = declaring.getSuperclass()
    return keys


def _require_strength(settings: dict[str, str]) -> None:
    if settings["detector"].lower() not in COMPARES_WITH_THRESHOLD_ONLY:
        raise FijiBridgeError(
            f"detector=[{settings['detector']}] finds other molecules at another threshold, so it has no "
            "strength; use [Local maximum] or [Non-maximum suppression]."
        )
    if settings.get("full_image_fitting", "false").lower() == "true":
        raise FijiBridgeError(
            "full_image_fitting=true fits molecules together, so they have no strength; leave it out."
        )


def _all_frames(
    analysis: Analysis,
    frames: "xr.DataArray",
    fit_frames: "xr.DataArray | None",
    threads: int,
    progress: Progress,
) -> Iterator[dict[str, np.ndarray]]:
    from jpype import JClass

    IJ, total = JClass("ij.IJ"), frames.sizes["t"]
    pool = ThreadPoolExecutor(threads, thread_name_prefix="ThunderSTORM")
    try:
        done = 0
        for block in _blocks(frames, fit_frames):
            running = [pool.submit(analysis.frame, *frame) for frame in block]
            for future in running:
                yield future.result()
                done += 1
                progress("Localizing with ThunderSTORM", done, total)
    except BaseException:
        # The plugin looks at ImageJ's Escape key between two molecules; a frame can take seconds.
        IJ.setKeyDown(JClass("java.awt.event.KeyEvent").VK_ESCAPE)
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        IJ.resetEscape()


def _blocks(
    frames: "xr.DataArray", fit_frames: "xr.DataArray | None"
) -> Iterator[list[tuple[int, np.ndarray, np.ndarray | None]]]:
    """Give the frames of both stacks, numbered from 1, a block at a time."""
    from fiji_bridge.stack import frame_blocks

    size = max(1, BLOCK_PIXELS // (frames.sizes["y"] * frames.sizes["x"]))
    fits = frame_blocks(fit_frames, size) if fit_frames is not None else None
    for start, block in frame_blocks(frames, size):
        fit_block = next(fits)[1] if fits else [None] * len(block)
        yield [
            (start + i + 1, image, fit) for i, (image, fit) in enumerate(zip(block, fit_block, strict=True))
        ]


def _table(frames: Iterator[dict[str, np.ndarray]], analysis: Analysis) -> "pd.DataFrame":
    import pandas as pd

    found = [frame for frame in frames if frame]
    if found:
        table = pd.DataFrame({label: np.concatenate([frame[label] for frame in found]) for label in found[0]})
    else:
        fitted = analysis.settings["estimator"].lower().startswith("psf")
        labels = [*(COLUMNS[1:] if fitted else REQUIRED), *(["strength"] if analysis.strength else [])]
        table = pd.DataFrame({label: np.empty(0, int if label == "frame" else float) for label in labels})
    table.insert(0, "id", np.arange(1, len(table) + 1))
    return table
