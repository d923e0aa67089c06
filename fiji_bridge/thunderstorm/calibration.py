"""`Cylindrical lens calibration` from a stack of beads, by the plugin's own classes."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.files import replacing
from fiji_bridge.imagej import session
from fiji_bridge.thunderstorm.analysis import frames_of, load_filters
from fiji_bridge.thunderstorm.jar import java_errors, load, lock, module, set_camera
from fiji_bridge.thunderstorm.regions import Region, checked, java_roi
from fiji_bridge.thunderstorm.settings import Calibration, Defocus

if TYPE_CHECKING:
    from fiji_bridge.camera import Camera


def calibrate(
    stack: Any,
    options: str | Calibration,
    *,
    camera: "Camera | str",
    roi: Region | None = None,
    angle_rad: float | None = None,
    jar: str | os.PathLike[str] | None = None,
) -> dict[str, float]:
    """Calibrate a cylindrical lens as ThunderSTORM's `Cylindrical lens calibration` does.

    Parameters
    ----------
    stack
        Beads moved through the focus in equal steps, (t, y, x) [ADU]: anything that `open_stack` takes.
    options
        The command's option string, such as ``stage=10.0 zrange=400.0 saveto=lens.yaml``, with those of the
        filter, the detector, the estimator and ``defocusing=``, or its value.
    camera
        The camera; the command itself looks only at whether fits are in photons.
    roi
        Region of interest with the beads, as for `localize`.
    angle_rad
        Angle of the lens [rad]. The plugin finds it as the mean of 100 random resamplings, and so another one
        each time by some thousandths; given, the calibration is repeatable.
    jar
        ThunderSTORM's jar; found by `find_jar` when left out.

    Returns
    -------
    dict
        The numbers of the calibration, by the names of the plugin's file: ``angle`` and w0, a, b, c and d of
        both axes (``a1``, ``a2``, …). The file itself is written when ``saveto=`` names one.

    Raises
    ------
    FijiBridgeError
        If an option is wrong, the stack is none, or the plugin can fit no bead.
    """
    settings = options if isinstance(options, Calibration) else Calibration.parse(options)
    frames = frames_of(stack)
    if frames.sizes["t"] < 2:
        raise FijiBridgeError("A calibration needs a stack of frames at different heights, not one frame.")
    shape = frames.sizes["y"], frames.sizes["x"]
    region = checked(roi, shape)
    with lock:
        plugin = load(jar)
        set_camera(plugin, camera)
        image = session.start().to_imagej(frames.astype("float32"), "beads")
        with java_errors("ThunderSTORM cannot calibrate with this stack"):
            image_filter = load_filters(plugin, settings.filter)  # formulas look at the filter that was run
            detector = module(plugin, "detectors.ui.IDetectorUI", settings.detector)
            estimator = plugin["estimators.ui.CalibrationEstimatorUI"]()
            with session.macro_options(settings.estimator.options()):
                estimator.readMacroOptions(settings.estimator.options())
            defocus = _defocus(plugin, settings.defocus)
            process = plugin["calibration.CalibrationProcess"](
                image_filter,
                detector,
                estimator,
                defocus,
                settings.stage_step_nm,
                settings.z_range_nm,
                image,
                java_roi(region, shape),
            )
            if angle_rad is None:
                process.estimateAngle()
            else:
                process.setAngle(angle_rad)
            process.fitQuadraticPolynomials()
            found = process.getCalibration(defocus)
            if settings.path:
                _save(found, Path(settings.path))
    return {name: float(getattr(found, name)) for name in NUMBERS}


NUMBERS = ("angle", *(f"{letter}{axis}" for axis in (1, 2) for letter in ("w0", "a", "b", "c", "d")))


def _defocus(plugin: Any, wanted: Defocus) -> Any:
    curves = plugin["ModuleLoader"].getUIModules(plugin["calibration.DefocusFunction"].class_)
    return next(curve for curve in curves if curve.getName() == wanted.fixed["defocusing"])


def _save(calibration: Any, path: Path) -> None:
    """Write the file as the plugin does; its class is named in it, so that the plugin reads it back."""
    from jpype import JClass

    loader = calibration.getClass().getClassLoader()
    text = JClass("org.yaml.snakeyaml.Yaml", loader=loader)().dump(calibration)
    with replacing(path) as partial:
        partial.write_text(str(text), encoding="utf-8")
