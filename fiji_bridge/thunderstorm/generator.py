"""`Generator of simulated data`, by the plugin's own classes and repeatably.

The plugin draws from Apache Commons Math's `RandomDataGenerator`, one a thread, seeded by the clock
(``rand.reSeed()``), and each thread takes its share of the frames. Here each frame has a generator of its
own, seeded by the run's seed and its number, so that a seed gives the same stack on any number of threads.
"""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fiji_bridge.errors import FijiBridgeError, require_seed
from fiji_bridge.lens_calibration import read_calibration
from fiji_bridge.localizations import COLUMNS
from fiji_bridge.progress import Progress, silent
from fiji_bridge.thunderstorm.jar import (
    Plugin,
    call_hidden,
    hidden,
    java_errors,
    load,
    lock,
    module,
    require_pixel_size,
    set_camera,
    set_hidden,
    worker_threads,
)
from fiji_bridge.thunderstorm.settings import EllipticalGaussianPSF, Generator
from fiji_bridge.thunderstorm.table import data_frame

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from fiji_bridge.camera import Camera


def generate(
    options: str | Generator = "",
    *,
    camera: "Camera | str",
    seed: int,
    jar: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> tuple["xr.DataArray", "pd.DataFrame"]:
    """Make a stack of simulated molecules with ThunderSTORM's own generator.

    Parameters
    ----------
    options
        The command's option string, such as ``psf=[Integrated Gaussian] width=64 height=64 frames=10``, or
        its value.
    camera
        Offset, gains and pixel size; the plugin simulates neither read noise nor maps.
    seed
        Whole number; the same one gives the same stack.
    jar
        ThunderSTORM's jar; found by `find_jar` when left out.
    threads
        Frames made at a time; the number of processors when left out.
    progress
        Called with the stage, the frames done and their number.

    Returns
    -------
    tuple of xarray.DataArray and pandas.DataFrame
        Frames (t, y, x) uint16 [ADU], and the molecules as the plugin's table of ground truth has them.

    Raises
    ------
    FijiBridgeError
        If an option is wrong, the pixel size is unknown, or a mask or calibration cannot be read.
    """
    import pandas as pd
    import xarray as xr

    settings = options if isinstance(options, Generator) else Generator.parse(options)
    require_seed(seed)
    camera = require_pixel_size(camera)
    _require_files(settings)
    threads = worker_threads(threads)
    with lock:
        plugin = load(jar)
        set_camera(plugin, camera)
        with java_errors(f"ThunderSTORM cannot generate {settings}"):
            run = _Run(plugin, settings, camera, seed)
            stack, table = run.all_frames(threads, progress or silent)
            truth = data_frame(plugin, table)
    if truth.empty:
        truth = pd.DataFrame(
            {label: np.empty(0, int if label in COLUMNS[:2] else float) for label in COLUMNS[:-2]}
        )
    frames = xr.DataArray(stack, dims=("t", "y", "x"), attrs={"pixel_size_nm": camera.pixel_size_nm})
    return frames, truth


def _require_files(settings: Generator) -> None:
    paths = {"maskpath": settings.mask_path, "maskpathbg": settings.background_mask_path}
    if isinstance(settings.psf, EllipticalGaussianPSF):
        paths["calibration"] = settings.psf.calibration_path
        if not settings.psf.calibration_path:
            raise FijiBridgeError("This psf= needs calibration=, the file of a cylindrical lens.")
    for key, path in paths.items():
        if path and not Path(path).is_file():
            raise FijiBridgeError(f"There is no file {path} for {key}=; give another.")
    if "calibration" in paths:
        read_calibration(paths["calibration"])  # with what is none, the plugin draws something else


class _Run:
    """What the frames of one run share."""

    def __init__(self, plugin: Plugin, settings: Generator, camera: "Camera", seed: int) -> None:
        self.plugin, self.settings, self.camera, self.seed = plugin, settings, camera, seed
        # The plugin's command reads masks and makes the background, with what it keeps in its fields.
        self.command = plugin["DataGeneratorPlugIn"]()
        set_hidden(self.command, "width", settings.width_px)
        set_hidden(self.command, "height", settings.height_px)
        set_hidden(self.command, "add_poisson_var", settings.background_photons)
        self.density = call_hidden(self.command, "readMask", settings.mask_path)
        background = call_hidden(self.command, "readMask", settings.background_mask_path)
        set_hidden(self.command, "backgroundMask", background)
        self.intensity = plugin["util.Range"](*settings.intensity_photons)
        drift = settings.drift_nm / float(camera.pixel_size_nm or 1)
        self.drift = plugin["datagen.Drift"](drift, settings.drift_angle_deg, False, settings.frames)

    def all_frames(self, threads: int, progress: Progress) -> tuple[np.ndarray, Any]:
        """Make the stack and the plugin's table of its molecules."""
        settings, table = self.settings, self.plugin["results.GenericTableModel"]()
        stack = np.empty((settings.frames, settings.height_px, settings.width_px), np.uint16)
        for frame, (pixels, emitters) in enumerate(self._made(threads)):
            stack[frame] = pixels
            for emitter in emitters:
                table.addRow(self._described(emitter.molecule, frame))
            progress("Generating with ThunderSTORM", frame + 1, settings.frames)
        table.insertIdColumn()
        return stack, table

    def _made(self, threads: int) -> Iterator[tuple[np.ndarray, Any]]:
        pool = ThreadPoolExecutor(threads, thread_name_prefix="ThunderSTORM")
        try:
            for start in range(0, self.settings.frames, 4 * threads):
                block = range(start, min(start + 4 * threads, self.settings.frames))
                yield from pool.map(self.frame, block)
        finally:
            pool.shutdown(cancel_futures=True)

    def frame(self, number: int) -> tuple[np.ndarray, Any]:
        """Make frame `number`, counted from 0: its pixels and its emitters."""
        settings, made = self.settings, self.plugin["datagen.DataGenerator"]()
        digest = hashlib.sha256(f"{self.seed} {number}".encode()).digest()
        hidden(made, "rand").reSeed(int.from_bytes(digest[:8], "big", signed=True))
        psf = module(self.plugin, "estimators.PSF.ui.IPsfUI", settings.psf)
        size = settings.width_px, settings.height_px
        if settings.single_molecule:
            emitters = made.generateSingleFixedMolecule(*size, 0.0, 0.0, self.intensity, psf)
        else:
            emitters = made.generateMolecules(
                *size, self.density, settings.density_per_um2, self.intensity, psf
            )
        background = call_hidden(self.command, "createBackgroundIntensityImage")
        image = made.renderFrame(*size, number, self.drift, emitters, background)
        return np.array(image.getPixels(), np.int16).view(np.uint16).reshape(size[::-1]), emitters

    def _described(self, molecule: Any, frame: int) -> Any:
        """Complete a molecule as the plugin's command does before it puts it into the table."""
        Units = self.plugin["estimators.PSF.MoleculeDescriptor$Units"]
        molecule.insertParamAt(0, "frame", Units.UNITLESS, float(frame + 1))
        molecule.setParam("offset", Units.DIGITAL, self.camera.offset)
        molecule.setParam("bkgstd", float(np.sqrt(self.settings.background_photons)))
        return molecule
