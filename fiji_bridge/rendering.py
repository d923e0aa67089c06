"""ThunderSTORM's super-resolution images without Java: its renderers, pixel by pixel."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fiji_bridge.errors import FijiBridgeError, require_seed
from fiji_bridge.localizations import as_table, camera_of, frame_shape, require_columns
from fiji_bridge.thunderstorm.settings import (
    AveragedShiftedHistograms,
    Histograms,
    NoRenderer,
    NormalizedGaussian,
    Rendering,
    ScatterPlot,
    Visualization,
)

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from fiji_bridge.camera import Camera

LARGEST_GB = 1.6
"""Size of the largest image, of four bytes a pixel."""


class Region(NamedTuple):
    """The part of the raw image that is drawn [pixels of the camera]."""

    left: float
    top: float
    width: float
    height: float


def render(
    table: pd.DataFrame | str | os.PathLike[str],
    options: str | Visualization = "",
    *,
    camera: Camera | str | None = None,
    shape: tuple[int, int] | None = None,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
) -> xr.DataArray:
    """Draw molecules as ThunderSTORM's `Visualization` does.

    By ``renderer=``: ``[Averaged shifted histograms]`` (Scott, Ann. Stat. 13, 1024 (1985); each molecule
    counts shifts⁴, with slices zshifts² as often), ``[Normalized Gaussian]`` (integrated over each pixel, as
    wide as the molecule's uncertainty), ``Histograms`` or ``[Scatter plot]``.

    Parameters
    ----------
    table
        Molecules with ``x [nm]`` and ``y [nm]``, or the path of their file; ``z [nm]``, ``uncertainty [nm]``
        and ``uncertainty_z [nm]`` are used as the renderer does. A row without a position is left out, and an
        uncertainty that is missing or not positive is that of ``dx=`` or ``dz=`` (the plugin draws NaN).
    options
        The command's option string, such as ``renderer=[Averaged shifted histograms] magnification=5.0
        shifts=2 threed=false`` with ``imleft= imtop= imwidth= imheight=`` [pixels of the camera], or its
        value.
    camera
        Its pixel size [nm] gives that of the image: divided by the magnification. Left out: that of the
        camera with which the table was localized.
    shape
        Height and width of the raw image [pixels], drawn when the options name no region. Left out: those of
        the stack that was localized, or what the molecules span, from 0.
    seed
        Of the random numbers of ``renderer=Histograms`` with ``avg=``, which jitters the molecules.
    out
        Image to write as well: .tif, with the pixel size, or .zarr.

    Returns
    -------
    xarray.DataArray
        (y, x), or (z, y, x) with ``threed=true``, float32 as in the plugin, with the coordinates of the pixel
        centres [nm] and the attributes ``pixel_size_nm``, ``z_step_nm`` and ``options``. ``colorizez`` is a
        matter of the display.

    Raises
    ------
    FijiBridgeError
        If an option is wrong, a column or the pixel size is missing, the image would be too large, or a file
        cannot be read or written.
    """
    settings = Visualization.parse(options) if isinstance(options, str) else options
    require_seed(seed)
    table = as_table(table, camera)
    require_columns(table, ("x [nm]", "y [nm]"), "The table to draw")
    known = camera_of(table, camera)
    if known is None or known.pixel_size_nm is None:
        raise FijiBridgeError('An image needs the camera\'s pixel size: --camera "… pixelsize=…" (nm).')
    pixel = known.pixel_size_nm
    region = region_of(settings, table, pixel, shape or frame_shape(table))
    image = labelled(draw(settings.renderer, region, table, pixel, seed=seed), settings, region, pixel)
    if out is not None:
        write_image(image, out)
    return image


def region_of(
    settings: Visualization, table: pd.DataFrame, pixel_nm: float, shape: tuple[int, int] | None
) -> Region:
    """Choose what is drawn: the region of the options, or else the raw image, or what the molecules span.

    Raises
    ------
    FijiBridgeError
        If the options give a width or a height alone, or nothing says how large the image is.
    """
    left, top = settings.left_px, settings.top_px
    if settings.width_px and settings.height_px:
        return Region(left, top, settings.width_px, settings.height_px)
    if settings.width_px or settings.height_px:
        raise FijiBridgeError("A region needs both imwidth= and imheight=; give the other one, or neither.")
    if shape is not None:
        return Region(left, top, shape[1], shape[0])
    ends = [table[label].max() for label in ("x [nm]", "y [nm]")]
    if not np.isfinite(ends).all():
        raise FijiBridgeError("A table without molecules has no size; give imwidth= and imheight=.")
    width, height = (
        max(float(np.floor(end / pixel_nm)) + 1 - start, 1.0)
        for end, start in zip(ends, (left, top), strict=True)
    )
    return Region(left, top, width, height)


def labelled(image: np.ndarray, settings: Visualization, region: Region, pixel_nm: float) -> xr.DataArray:
    """Name the axes of an image (z, y, x) and say where its pixels lie [nm].

    The plugin's normalized Gaussian draws all light one slice higher, so that its slices lie one lower.
    """
    import xarray as xr

    renderer: Any = settings.renderer
    size = pixel_nm / renderer.magnification
    centres = [np.arange(n) + 0.5 for n in image.shape]
    coords: dict[str, Any] = {
        "y": region.top * pixel_nm + centres[1] * size,
        "x": region.left * pixel_nm + centres[2] * size,
    }
    attrs = {"pixel_size_nm": size, "options": str(settings)}
    if not renderer.three_d:
        return xr.DataArray(image[0], dims=("y", "x"), coords=coords, attrs=attrs)
    start, step, _ = renderer.z_range_nm
    start -= step if isinstance(renderer, NormalizedGaussian) else 0
    coords = {"z": start + centres[0] * step} | coords
    return xr.DataArray(image, dims=("z", "y", "x"), coords=coords, attrs=attrs | {"z_step_nm": step})


def write_image(image: xr.DataArray, out: str | os.PathLike[str]) -> None:
    """Write an image (y, x), or slices (z, y, x), to a format of `StackWriter`."""
    from fiji_bridge.stack_writer import StackWriter

    if "z" in image.dims:
        image = image.rename(z="t").assign_attrs(axes_from_file="ZYX")
    if "t" not in image.dims:
        image = image.expand_dims("t")
    with StackWriter(out, image, image.dtype) as writer:
        writer.write(0, image.to_numpy())


def draw(renderer: Any, region: Region, table: pd.DataFrame, pixel_nm: float, *, seed: int = 0) -> np.ndarray:
    """Draw molecules with a renderer of `thunderstorm.settings`.

    Parameters
    ----------
    renderer
        Its settings.
    region
        What is drawn.
    table
        Molecules; a pixel of the camera is `pixel_nm` of their units.
    seed
        Of the random numbers.

    Returns
    -------
    numpy.ndarray
        (z, y, x) float32; one slice unless the renderer has a depth.

    Raises
    ------
    FijiBridgeError
        If it draws nothing, or the image would be too large.
    """
    if isinstance(renderer, NoRenderer):
        raise FijiBridgeError("renderer=[No Renderer] draws nothing; choose another.")
    image = np.zeros(image_shape(renderer, region), np.float32)
    _DRAW[type(renderer)](renderer, image, _Molecules.of(renderer, region, table, pixel_nm), seed)
    return image


def image_shape(renderer: Any, region: Region) -> tuple[int, ...]:
    """Give the number of slices, rows and columns of an image.

    Raises
    ------
    FijiBridgeError
        If there are none, or too many.
    """
    with np.errstate(over="ignore"):
        # In the plugin's own order of operations, since the last digit can decide on a pixel.
        resolution = 1 / np.float64(renderer.magnification)
        height = (region.top + region.height - region.top) / resolution
        width = (region.left + region.width - region.left) / resolution
        start, step, end = renderer.z_range_nm
        shape = np.floor([(end - start) / step if renderer.three_d else 1, height, width])
        gigabytes = 4e-9 * shape.prod()
    if not (shape >= 1).all():
        raise FijiBridgeError(
            f"An image of {width:.4g} × {height:.4g} pixels would be empty; raise magnification=, or draw a "
            "larger region."
        )
    if gigabytes > LARGEST_GB:
        size = " × ".join(f"{length:.4g}" for length in shape[::-1][: 2 + renderer.three_d])
        raise FijiBridgeError(
            f"The image would have {size} pixels, {gigabytes:.3g} GB, more than {LARGEST_GB:g} GB; lower "
            "magnification=, draw less by imleft= imtop= imwidth= imheight=, or take wider steps in zrange=."
        )
    slices, rows, columns = map(int, shape)
    return slices, rows, columns


class _Molecules(NamedTuple):
    """Where molecules are and how uncertain, in the plugin's units: camera pixels, and nm along z."""

    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    dx: np.ndarray
    dz: np.ndarray
    usual_dx: float
    renderer: Any
    region: Region

    @classmethod
    def of(cls, renderer: Any, region: Region, table: pd.DataFrame, pixel_nm: float) -> _Molecules:
        def uncertainty(label: str, unit: float, usual: float, forced: bool) -> np.ndarray:
            if forced or label not in table:
                return np.full(len(table), usual)
            values = table[label].to_numpy(float) / unit
            return np.where((values > 0) & np.isfinite(values), values, usual)

        # The renderers that use no uncertainties have no such options.
        usual_dx = getattr(renderer, "uncertainty_nm", 1.0) / pixel_nm
        usual_dz = getattr(renderer, "z_uncertainty_nm", 1.0)
        forced = [getattr(renderer, name, True) for name in ("force_uncertainty", "force_z_uncertainty")]
        z = table["z [nm]"].to_numpy(float) if renderer.three_d and "z [nm]" in table else 0.0
        molecules = cls(
            table["x [nm]"].to_numpy(float) / pixel_nm,
            table["y [nm]"].to_numpy(float) / pixel_nm,
            np.broadcast_to(z, len(table)),
            uncertainty("uncertainty [nm]", pixel_nm, usual_dx, forced[0]),
            uncertainty("uncertainty_z [nm]", 1.0, usual_dz, forced[1]),
            usual_dx,
            renderer,
            region,
        )
        known = np.isfinite(molecules.x) & np.isfinite(molecules.y) & np.isfinite(molecules.z)
        return molecules if known.all() else molecules.only(known)

    def only(self, some: np.ndarray) -> _Molecules:
        """Choose some of them."""
        return self._replace(**{name: getattr(self, name)[some] for name in ("x", "y", "z", "dx", "dz")})

    def inside(self) -> _Molecules:
        """Leave out those beside the region."""
        left, top, width, height = self.region
        inside = (self.x >= left) & (self.x < left + width) & (self.y >= top) & (self.y < top + height)
        return self if inside.all() else self.only(inside)

    def placed(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Give x, y and z of molecules inside, in pixels and slices of the image."""
        resolution = 1 / self.renderer.magnification
        z = np.zeros(len(self.x))
        if self.renderer.three_d:
            start, step, _ = self.renderer.z_range_nm
            z = np.clip((self.z - start) / step, -1e9, 1e9)
        return (self.x - self.region.left) / resolution, (self.y - self.region.top) / resolution, z


def _by_rows(kernel: Callable[..., None], image: np.ndarray, *arguments: Any) -> None:
    """Run a kernel on bands of rows, in threads."""
    from numba import config

    rows = image.shape[1]
    # numba's own function would start its threads, which sets torch's number of threads as well.
    bands = min(config.NUMBA_NUM_THREADS, rows)  # type: ignore[attr-defined]
    edges = [rows * band // bands for band in range(bands + 1)]
    if bands == 1:
        kernel(image, 0, rows, *arguments)
        return
    with ThreadPoolExecutor(bands) as pool:
        for _ in pool.map(lambda band: kernel(image, edges[band], edges[band + 1], *arguments), range(bands)):
            pass


def _draw_histogram(renderer: Histograms, image: np.ndarray, molecules: _Molecules, seed: int) -> None:
    from fiji_bridge.rendering_kernels import count

    if not renderer.averages:
        _by_rows(count, image, *molecules.inside().placed(), np.float32(1))
        return
    random = np.random.default_rng(seed)
    for _ in range(renderer.averages):
        jitter = random.standard_normal((3, len(molecules.x)))
        moved = molecules._replace(
            x=molecules.x + jitter[0] * molecules.dx,
            y=molecules.y + jitter[1] * molecules.dx,
            z=molecules.z + jitter[2] * molecules.dz,
        )
        _by_rows(count, image, *moved.inside().placed(), np.float32(1 / renderer.averages))


def _draw_scatter(renderer: ScatterPlot, image: np.ndarray, molecules: _Molecules, seed: int) -> None:
    from fiji_bridge.rendering_kernels import mark

    _by_rows(mark, image, *molecules.inside().placed())


def _draw_ash(
    renderer: AveragedShiftedHistograms, image: np.ndarray, molecules: _Molecules, seed: int
) -> None:
    from fiji_bridge.rendering_kernels import shifted_histograms

    x, y, z = molecules.inside().placed()
    if renderer.three_d:
        z = np.where(z == len(image), z - 1, z)  # the end of the range belongs to its last slice
    z_shifts = renderer.z_shifts if renderer.three_d else 1
    _by_rows(shifted_histograms, image, x, y, z, renderer.shifts, z_shifts)


def _draw_gaussians(
    renderer: NormalizedGaussian, image: np.ndarray, molecules: _Molecules, seed: int
) -> None:
    from fiji_bridge.rendering_kernels import gaussians

    resolution = 1 / renderer.magnification
    shown = molecules.inside()
    z_step = renderer.z_range_nm[1] if renderer.three_d else 1.0
    # The plugin draws no wider than five times the option's own, whatever the uncertainties.
    most = int(molecules.usual_dx / resolution * 5)
    spread = shown.dx / resolution
    _by_rows(gaussians, image, *shown.placed(), spread, shown.dz / z_step, most, renderer.three_d)


_DRAW: Mapping[type[Rendering], Callable[[Any, np.ndarray, _Molecules, int], None]] = {
    AveragedShiftedHistograms: _draw_ash,
    ScatterPlot: _draw_scatter,
    NormalizedGaussian: _draw_gaussians,
    Histograms: _draw_histogram,
}
