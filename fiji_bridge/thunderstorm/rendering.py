"""`Visualization`: super-resolution images by the plugin's own renderers."""

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from fiji_bridge.errors import FijiBridgeError, require_seed
from fiji_bridge.localizations import as_table, frame_shape, require_columns
from fiji_bridge.thunderstorm.jar import (
    hidden,
    java_errors,
    load,
    lock,
    module,
    require_pixel_size,
    set_camera,
)
from fiji_bridge.thunderstorm.settings import Histograms, NoRenderer, Visualization

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from fiji_bridge.camera import Camera


def render(
    table: "pd.DataFrame",
    options: str | Visualization,
    *,
    camera: "Camera | str",
    shape: tuple[int, int] | None = None,
    seed: int | None = None,
    jar: str | os.PathLike[str] | None = None,
) -> "xr.DataArray":
    """Draw a table as ThunderSTORM's `Visualization` does.

    Parameters
    ----------
    table
        Molecules with ``x [nm]`` and ``y [nm]``; ``z [nm]``, ``uncertainty [nm]`` and ``uncertainty_z [nm]``
        are used as the renderer does.
    options
        The command's option string, such as ``renderer=[Averaged shifted histograms] magnification=5.0``
        with ``imleft= imtop= imwidth= imheight=`` [pixels of the camera], or its value.
    camera
        Its pixel size [nm] gives that of the image: divided by the magnification.
    shape
        Height and width of the raw image [pixels], drawn when the options name no region; what the molecules
        span, from 0, when left out.
    seed
        Makes ``renderer=Histograms`` with ``avg=`` repeatable: it jitters the molecules at random.
    jar
        ThunderSTORM's jar; found by `find_jar` when left out.

    Returns
    -------
    xarray.DataArray
        (y, x), or (z, y, x) with ``threed=true``, float32 as the plugin has it, with the coordinates of the
        pixel centres [nm] and the attributes ``pixel_size_nm``, ``z_step_nm`` and ``options``.

    Raises
    ------
    FijiBridgeError
        If an option is wrong, a column or the pixel size is missing, or the image would be too large.
    """
    from fiji_bridge.rendering import image_shape, labelled, region_of  # which reads this package's settings

    settings = options if isinstance(options, Visualization) else Visualization.parse(options)
    if seed is not None:
        require_seed(seed)
    table = as_table(table)
    require_columns(table, ("x [nm]", "y [nm]"), "The table to draw")
    camera = require_pixel_size(camera)
    pixel = float(camera.pixel_size_nm or 0)
    if isinstance(settings.renderer, NoRenderer):
        raise FijiBridgeError("renderer=[No Renderer] draws nothing; choose another.")
    region = region_of(settings, table, pixel, shape or frame_shape(table))
    image_shape(settings.renderer, region)
    with lock:
        plugin = load(jar)
        set_camera(plugin, camera)
        renderer = module(plugin, "rendering.ui.IRendererUI", settings.renderer)
        with java_errors(f"ThunderSTORM cannot draw with {settings}"):
            renderer.setSize(*region)
            method = renderer.getImplementation()
            if seed is not None and isinstance(settings.renderer, Histograms):
                hidden(method, "rnd").setSeed(seed)
            method.reset()
            method.addToImage(*_columns(table, pixel))
            image = _pixels(method.getRenderedImage())
    return labelled(image, settings, region, pixel)


def _columns(table: "pd.DataFrame", pixel_nm: float) -> list[Any]:
    """Give x, y, z, dx and dz in the units in which the plugin's command hands them on."""
    from jpype import JArray, JDouble

    def column(label: str, unit: float) -> Any:
        return JArray(JDouble)(table[label].to_numpy(float) / unit) if label in table else None

    return [
        column("x [nm]", pixel_nm),
        column("y [nm]", pixel_nm),
        column("z [nm]", 1.0),
        column("uncertainty [nm]", pixel_nm),
        column("uncertainty_z [nm]", 1.0),
    ]


def _pixels(image: Any) -> np.ndarray:
    stack, size = image.getStack(), (image.getHeight(), image.getWidth())
    slices = [np.array(stack.getPixels(i + 1), np.float32).reshape(size) for i in range(stack.getSize())]
    return np.stack(slices)
