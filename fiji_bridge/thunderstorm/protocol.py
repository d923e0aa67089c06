"""The measurement protocol that the plugin writes beside an exported table: how the table came about.

The plugin's own class writes it. The plugin cannot read it back; here it becomes the settings again, so that
the analysis can be repeated, or later steps be added.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from fiji_bridge.camera import PLUGIN_DEFAULTS, Camera
from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.files import replacing
from fiji_bridge.imagej.session import macro_options
from fiji_bridge.macro_options import format_options, parse_options
from fiji_bridge.thunderstorm.jar import (
    Plugin,
    hidden,
    java_errors,
    load,
    lock,
    module,
    require_pixel_size,
    set_camera,
    set_hidden,
    without_constructor,
)
from fiji_bridge.thunderstorm.settings import AnalysisSettings, PostProcessing
from fiji_bridge.thunderstorm.table import results_table

CLASSES = {
    "filter": "ResultsFilter",
    "density": "LocalDensityFilter",
    "duplicates": "DuplicatesFilter",
    "merge": "ResultsGrouping",
    "drift": "ResultsDriftCorrection",
    "offset": "ResultsStageOffset",
}
"""The plugin's class of each step."""

HEAD = "ThunderSTORM ("


def protocol_path(table: str | os.PathLike[str]) -> Path:
    """Give the path at which the plugin puts the protocol of a table's file."""
    path = Path(table)
    return path.with_name(f"{path.stem}-protocol.txt")


@dataclass(frozen=True)
class Protocol:
    """How a table came about.

    Attributes
    ----------
    image
        The stack's name.
    camera
        The camera; the file has what `Camera setup` has, so neither maps nor read noise.
    analysis
        Filter, detector and estimator; the file does not have the renderer.
    roi
        x, y, width and height [pixels] of what was analysed; None for whole frames.
    steps
        Post-processing, in order.
    """

    image: str
    camera: Camera
    analysis: AnalysisSettings
    roi: tuple[int, ...] | None = None
    steps: tuple[PostProcessing, ...] = ()

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Read a file that the plugin, or `write`, wrote.

        Raises
        ------
        FijiBridgeError
            If there is no such file, or it is no protocol.
        """
        try:
            raw = Path(path).read_bytes()
        except OSError as error:
            raise FijiBridgeError(f"Cannot read the protocol {path}: {error.strerror}.") from error
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            text = raw.decode("latin-1")  # as the plugin writes it on some Windows
        try:
            if not text.startswith(HEAD):
                raise ValueError(text)
            image, camera, *modules, steps = _values(text)
            return cls(
                image["title"],
                _camera(camera),
                AnalysisSettings.parse(
                    " ".join(map(_module_options, ("filter", "detector", "estimator"), modules))
                ),
                tuple(image["roiBounds"][key] for key in ("x", "y", "width", "height"))
                if "roiBounds" in image
                else None,
                tuple(PostProcessing.parse(_with_action(step["options"])) for step in steps),
            )
        except (ValueError, KeyError, TypeError, StopIteration) as error:
            raise FijiBridgeError(f"{path} is not a measurement protocol of ThunderSTORM's.") from error

    def write(self, path: str | os.PathLike[str], *, jar: str | os.PathLike[str] | None = None) -> Path:
        """Write it, by the plugin's own class.

        Raises
        ------
        FijiBridgeError
            If there is no jar or Java, or the file cannot be written.
        """
        from jpype import JDouble

        with lock:
            plugin = load(jar)
            set_camera(plugin, require_pixel_size(self.camera))
            protocol = plugin["results.MeasurementProtocol"]()
            protocol.imageInfo = self._image(plugin)
            protocol.cameraSettings = plugin["CameraSetupPlugIn"].exportSettings()
            if self.camera.em_gain is None:  # else the file would have that of the camera before
                protocol.cameraSettings.put("gain", JDouble(PLUGIN_DEFAULTS["gainem"]))
            protocol.filter = module(plugin, "filters.ui.IFilterUI", self.analysis.filter)
            protocol.detector = module(plugin, "detectors.ui.IDetectorUI", self.analysis.detector)
            protocol.estimator = module(plugin, "estimators.ui.IEstimatorUI", self.analysis.estimator)
            for part in (protocol.detector, protocol.estimator):
                part.getThreadLocalImplementation()  # the fields that are written have their values after it
            with results_table(plugin, None) as results, java_errors(f"{path} cannot be written"):
                window = without_constructor(plugin, "results.ResultsTableWindow")
                history = plugin["results.OperationsHistoryPanel"]()
                set_hidden(window, "operationsStackPanel", history)
                set_hidden(results, "tableWindow", window)
                for step in self.steps:
                    history.addOperation(_operation(plugin, step))
                with replacing(path) as partial:
                    protocol.export(str(partial))
        return Path(path)

    def _image(self, plugin: Plugin) -> Any:
        from jpype import JClass

        info = JClass("java.util.HashMap")()
        info.put("title", self.image)
        info.put("roiBounds", JClass("java.awt.Rectangle")(*self.roi) if self.roi else None)
        return info


def _operation(plugin: Plugin, step: PostProcessing) -> Any:
    """Give the plugin's entry of a step in its history."""
    made = plugin[f"results.{CLASSES[step.fixed['action']]}"]()
    with macro_options(step.options()):
        hidden(made, "params").readMacroOptions()
    make = plugin.java_class("results.PostProcessingModule$DefaultOperation").getDeclaredConstructors()[0]
    make.setAccessible(True)
    return make.newInstance(made)


def _values(text: str) -> list[Any]:
    """Give the JSON values that stand between the headings."""
    values, at, decoder = [], text.index("\n"), json.JSONDecoder()
    while (at := min((text.find(sign, at) for sign in "{[" if sign in text[at:]), default=-1)) >= 0:
        value, at = decoder.raw_decode(text, at)
        values.append(value)
    return values


def _camera(settings: dict[str, Any]) -> Camera:
    return Camera(
        offset=settings["offset"],
        photons_per_adu=settings["photons2ADU"],
        em_gain=settings["gain"] if settings["isEmGain"] else None,
        pixel_size_nm=settings["pixelSize"],
    )


def _module_options(kind: str, described: dict[str, Any]) -> str:
    """Give the option string of a module; the plugin leaves the name of `No estimator` out."""
    tracked = dict(described["parameters"]["trackedParameters"])
    tracked |= described.get("crowdedField", {}).get("params", {}).get("trackedParameters", {})
    options = {kind: described.get("name", "No estimator")}
    for key, values in tracked.items():
        value = values["value"]
        options[key] = str(value).lower() if isinstance(value, bool) else str(value)
    return format_options(options)


def _with_action(options: str) -> str:
    """Name the step whose options these are, which the plugin leaves out."""
    given = parse_options(options).keys()
    step = next(step for step in PostProcessing.modules() if given and given <= step.keys())
    return f"action={step.fixed['action']} {options}"
