"""Stacks with known molecules, by the rules of ThunderSTORM's `Generator of simulated data`."""

import math
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fiji_bridge.camera import Camera
from fiji_bridge.errors import FijiBridgeError, require_seed
from fiji_bridge.files import replacing
from fiji_bridge.macro_options import parse_options
from fiji_bridge.progress import Progress, silent

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

Array = npt.NDArray[np.float64]
Range = tuple[float, float]

DEFAULT_CAMERA = Camera(
    offset=414.0,
    photons_per_adu=3.6,
    pixel_size_nm=80.0,
    source="the defaults of ThunderSTORM's Camera setup",
)
"""What ThunderSTORM 1.3's `Camera setup` holds after installation."""

PSFS = ("Integrated Gaussian", "Gaussian")

FWHM_PER_SIGMA = 2 * math.sqrt(2 * math.log(2))

SIGMAS = 5.0
"""How far the plugin draws a molecule, in standard deviations."""

BLOCK_PIXELS = 4_000_000
"""Pixels simulated between two writes."""

BATCH_PIXELS = 4_000_000
"""Pixels of molecules drawn at a time."""


@dataclass(frozen=True)
class Generator:
    """The generator's settings, with the plugin's names and defaults.

    Attributes
    ----------
    psf
        "Integrated Gaussian" (over each pixel) or "Gaussian" (at its centre).
    fwhm_range
        Full width at half maximum from which each molecule's is drawn uniformly, in nm.
    width, height, frames
        Size of the stack.
    intensityrange
        Photons of a molecule in a frame, drawn uniformly.
    density
        Mean number of molecules in a frame, per µm².
    driftdist, driftangle
        Way of the linear drift from the first to the last frame, in nm, and its direction from x to y, in
        degrees.
    addpoisssonvar
        Mean background of a pixel, in photons.
    maskpath, maskpathbg
        Images, scaled to a maximum of 1, by which the density and the background are multiplied.
    singlefixed
        One molecule in the middle of each frame instead.
    """

    psf: str = "Integrated Gaussian"
    fwhm_range: Range = (200.0, 350.0)
    width: int = 256
    height: int = 256
    frames: int = 1000
    intensityrange: Range = (700.0, 900.0)
    density: float = 0.1
    driftdist: float = 0.0
    driftangle: float = 0.0
    addpoisssonvar: float = 30.0
    maskpath: str = ""
    maskpathbg: str = ""
    singlefixed: bool = False

    def __post_init__(self) -> None:
        for key, least in (("width", 2), ("height", 2), ("frames", 1)):
            _require(
                key, getattr(self, key), getattr(self, key) >= least, f"a whole number of {least} or more"
            )
        for key in ("density", "addpoisssonvar"):
            _require(key, getattr(self, key), 0 <= getattr(self, key) < math.inf, "zero or a positive number")
        for key in ("driftdist", "driftangle"):
            _require(key, getattr(self, key), math.isfinite(getattr(self, key)), "a finite number")
        for key, lowest in (("fwhm_range", "positive"), ("intensityrange", "not negative")):
            low, high = getattr(self, key)
            enough = low > 0 if lowest == "positive" else low >= 0
            _require(
                key,
                f"{low:g}:{high:g}",
                low <= high < math.inf and enough,
                f"from:to, {lowest}, from no more than to",
            )

    @classmethod
    def parse(cls, options: str) -> "Generator":
        """Read the generator's macro option string; keys left out take the defaults.

        Raises
        ------
        FijiBridgeError
            If a key or PSF is unknown, or a value is not what it must be; the sentence names the key.
        """
        values: dict[str, Any] = {}
        for given, text in parse_options(options).items():
            key = given.lower()
            if key == "psf":
                values[key] = _psf(text)
            elif key in cls.__dataclass_fields__:
                values[key] = _value(key, text.strip(), type(cls.__dataclass_fields__[key].default))
            elif key != "calibration":  # of the 3-D PSF; recorded macros may hold it
                raise FijiBridgeError(
                    f"The generator has no option {given!r}; it knows {', '.join(cls.__dataclass_fields__)}."
                )
        return cls(**values)


@dataclass(frozen=True)
class Simulation:
    """A simulated recording.

    Attributes
    ----------
    stack
        (t, y, x), 16-bit A/D counts; lazy when it was written to a file.
    ground_truth
        One row for each molecule in a frame, in ThunderSTORM's columns.
    camera
        The camera that recorded it, pixel size included.
    """

    stack: "xr.DataArray"
    ground_truth: "pd.DataFrame"
    camera: Camera


def simulate(
    *,
    options: str = "",
    camera: Camera | str | None = None,
    frames: int | None = None,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    ground_truth: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Simulation:
    """Make a stack with known molecules, as ThunderSTORM's `Generator of simulated data` does.

    In every frame each pixel holds a Poisson number of new molecules. The expected photons of molecules and
    background become Poisson counts, with EM gain the outcome of a gamma distribution (Ovesný et al.,
    Bioinformatics 30, 2389, 2014, supplementary note 12), and A/D counts rounded to 16 bits. Read noise,
    which the plugin does not have, is added when the camera has some, and per-pixel maps are obeyed.

    The numbers depend on the seed and the frame only, not on how many frames are made.

    Parameters
    ----------
    options
        The generator's option string; see `Generator`.
    camera
        The camera, or a `Camera setup` string; left out, the plugin's default (80 nm pixels). Without a
        pixel size it has 80 nm.
    frames
        Number of frames, instead of the one in `options`.
    seed
        Seed of all random numbers.
    out
        File to write the stack to, in blocks; left out, it stays in memory.
    ground_truth
        CSV file to write the molecules to.
    progress
        Called with the stage, the frames done and their number.

    Returns
    -------
    Simulation
        Its table has the plugin's columns: ``offset [photon]`` is the camera's base level (times photons per
        count over EM gain, not the background), ``bkgstd [photon]`` the square root of the mean background.

    Raises
    ------
    FijiBridgeError
        If an option is unknown or not possible, or a file cannot be read or written.
    """
    import pandas as pd

    from fiji_bridge.localizations import write_localizations
    from fiji_bridge.stack import StackWriter, open_stack

    require_seed(seed)
    generator = Generator.parse(options)
    if frames is not None:
        generator = replace(generator, frames=frames)
    camera = Camera.of(camera) or DEFAULT_CAMERA
    if camera.pixel_size_nm is None:
        camera = camera.replace(pixel_size_nm=DEFAULT_CAMERA.pixel_size_nm)
    shape = (generator.frames, generator.height, generator.width)
    _check_maps(camera, shape[1:])
    blocks = _blocks(generator, camera, seed)
    tables = []
    tell = progress or silent
    with ExitStack() as outputs:
        truth_file = outputs.enter_context(replacing(ground_truth)) if ground_truth is not None else None
        if out is None:
            pixels = np.empty(shape, dtype=np.uint16)
        else:
            writer = outputs.enter_context(StackWriter(out, _template(shape, camera), dtype="uint16"))
        tell("Simulating", 0, generator.frames)
        for start, block, table in blocks:
            if out is None:
                pixels[start : start + len(block)] = block
            else:
                writer.write(start, block)
            tables.append(table)
            tell("Simulating", start + len(block), generator.frames)
        truth = pd.concat(tables, ignore_index=True)
        truth.insert(0, "id", np.arange(1, len(truth) + 1))
        if truth_file is not None:
            write_localizations(truth, truth_file)
    stack = open_stack(pixels if out is None else out, pixel_size_nm=camera.pixel_size_nm)
    if out is None:
        stack.attrs["source"] = "a simulation"
    return Simulation(stack, truth, camera)


def expected_photons(
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    sigma: npt.ArrayLike,
    photons: npt.ArrayLike,
    shape: tuple[int, int],
    *,
    psf: str = "Integrated Gaussian",
) -> Array:
    """Give the mean photons that molecules send to each pixel.

    Parameters
    ----------
    x, y
        Positions in pixels, (n,); the centre of the first pixel is at 0.5.
    sigma
        Standard deviation of each PSF in pixels, (n,).
    photons
        Photons of each molecule, (n,).
    shape
        Height and width of the image.
    psf
        "Integrated Gaussian" or "Gaussian" (its value at the pixel's centre).

    Returns
    -------
    ndarray
        (y, x). As in the plugin, a molecule reaches 5 standard deviations far.
    """
    centre = np.stack([np.asarray(y, dtype=float), np.asarray(x, dtype=float)], axis=1)
    width, light = np.asarray(sigma, dtype=float), np.asarray(photons, dtype=float)
    image = np.zeros(shape)
    if not len(centre):
        return image
    side = np.minimum(2 * SIGMAS * width.max() + 2, shape).astype(np.int64)
    batch = max(1, BATCH_PIXELS // int(side.prod()))
    for start in range(0, len(centre), batch):
        some = slice(start, start + batch)
        _add_light(image, centre[some], width[some], light[some], side, psf)
    return image


def _add_light(image: Array, centre: Array, sigma: Array, photons: Array, side: Any, psf: str) -> None:
    """Add molecules to an image within windows of `side` pixels; positions are (n, (y, x))."""
    from scipy.special import erf

    reach = SIGMAS * sigma[:, None]
    size = np.array(image.shape)
    first = np.clip(np.floor(centre - reach).astype(np.int64), 0, size - side)
    parts, pixels = [], []
    for axis in (0, 1):
        pixel = first[:, axis, None] + np.arange(side[axis])
        offset = pixel - centre[:, axis, None]
        if psf == "Integrated Gaussian":
            scale = 1 / (math.sqrt(2) * sigma[:, None])
            part = (erf((offset + 1) * scale) - erf(offset * scale)) / 2
        else:
            part = np.exp(-(((offset + 0.5) / sigma[:, None]) ** 2) / 2) / (
                math.sqrt(2 * math.pi) * sigma[:, None]
            )
        low, high = np.floor(centre[:, axis, None] - reach), np.floor(centre[:, axis, None] + reach)
        parts.append(np.where((pixel >= low) & (pixel <= high), part, 0))
        pixels.append(pixel)
    values = photons[:, None, None] * parts[0][:, :, None] * parts[1][:, None, :]
    np.add.at(image, (pixels[0][:, :, None], pixels[1][:, None, :]), values)


def record(expected: npt.ArrayLike, camera: Camera, rng: np.random.Generator) -> npt.NDArray[np.uint16]:
    """Record an image of mean photons once.

    Parameters
    ----------
    expected
        Mean photons of each pixel, (…, y, x).
    camera
        The camera.
    rng
        Source of the noise.

    Returns
    -------
    ndarray
        A/D counts, rounded and limited to 16 bits.
    """
    photons = rng.poisson(np.maximum(expected, 0)).astype(float)
    if camera.em_gain is not None:
        # Electrons at the output are gamma distributed with the photons as shape and the gain as scale
        # (Basden et al., MNRAS 345, 985, 2003); `to_adu` multiplies by the gain.
        photons = rng.standard_gamma(photons)
    if np.any(camera.read_variance):
        photons += rng.standard_normal(photons.shape) * np.sqrt(camera.read_variance)
    adu = np.floor(np.asarray(camera.to_adu(photons)) + 0.5)
    return np.clip(adu, 0, np.iinfo(np.uint16).max).astype(np.uint16)


def _blocks(
    generator: Generator, camera: Camera, seed: int
) -> Iterator[tuple[int, npt.NDArray[np.uint16], "pd.DataFrame"]]:
    """Make the frames and their molecules, block by block."""
    assert camera.pixel_size_nm is not None
    shape = (generator.height, generator.width)
    density = _mask("maskpath", generator.maskpath)
    background = generator.addpoisssonvar * _resized(_mask("maskpathbg", generator.maskpathbg), shape)
    length = max(1, BLOCK_PIXELS // (generator.height * generator.width))
    for start in range(0, generator.frames, length):
        block = np.empty((min(length, generator.frames - start), *shape), dtype=np.uint16)
        tables = []
        for index in range(len(block)):
            rng = np.random.default_rng([seed, start + index])
            molecules = _molecules(generator, camera.pixel_size_nm, density, start + index, rng)
            expected = background + expected_photons(*molecules, shape, psf=generator.psf)
            block[index] = record(expected, camera, rng)
            tables.append(_truth(molecules, start + index, generator, camera))
        yield start, block, _joined(tables)


def _molecules(
    generator: Generator, pixel_size_nm: float, density: Array, frame: int, rng: np.random.Generator
) -> tuple[Array, Array, Array, Array]:
    """Draw x, y and sigma [pixels] and photons of one frame's molecules."""
    size = np.array([generator.width, generator.height])
    position: Array
    if generator.singlefixed:
        position = size[:, None] / 2 + 0.5
    else:
        cell = size / density.shape[::-1]
        counts = rng.poisson(generator.density * cell.prod() * (pixel_size_nm / 1000) ** 2 * density.T)
        position = (np.repeat(np.indices(counts.shape).reshape(2, -1), counts.ravel(), axis=1)).astype(float)
        position = (position + rng.random(position.shape)) * cell[:, None]
    count = position.shape[1]
    fwhm, photons = (_uniform(rng, ends, count) for ends in (generator.fwhm_range, generator.intensityrange))
    sigma = fwhm / FWHM_PER_SIGMA / pixel_size_nm
    angle = math.radians(generator.driftangle)
    way = generator.driftdist / pixel_size_nm * frame / max(1, generator.frames - 1)
    position = position + way * np.array([[math.cos(angle)], [math.sin(angle)]])
    stays = ((position >= 0) & (position < size[:, None])).all(axis=0)
    x, y = position[:, stays]
    return x, y, sigma[stays], photons[stays]


def _uniform(rng: np.random.Generator, ends: Range, count: int) -> Array:
    return rng.uniform(ends[0], ends[1], count)


def _truth(
    molecules: tuple[Array, Array, Array, Array], frame: int, generator: Generator, camera: Camera
) -> dict[str, Any]:
    x, y, sigma, photons = molecules
    pixel = camera.pixel_size_nm
    assert pixel is not None
    return {
        "frame": np.full(len(x), frame + 1),
        "x [nm]": x * pixel,
        "y [nm]": y * pixel,
        "sigma [nm]": sigma * pixel,
        "intensity [photon]": photons,
        # The plugin converts the base level from counts to photons as if it were an intensity.
        "offset [photon]": np.full(len(x), camera.offset * camera.photons_per_adu / (camera.em_gain or 1)),
        "bkgstd [photon]": np.full(len(x), math.sqrt(generator.addpoisssonvar)),
    }


def _joined(tables: list[dict[str, Any]]) -> "pd.DataFrame":
    import pandas as pd

    return pd.DataFrame({column: np.concatenate([table[column] for table in tables]) for column in tables[0]})


def _mask(key: str, path: str) -> Array:
    """Read a mask (y, x) and scale its maximum to 1; no path is one cell of 1."""
    from fiji_bridge.stack import open_stack

    if not path.strip():
        return np.ones((1, 1))
    try:
        image = open_stack(path.strip())
    except FijiBridgeError as error:
        raise FijiBridgeError(f"The generator's {key} cannot be used: {error}") from error
    values = np.squeeze(np.asarray(image, dtype=np.float64))
    if values.ndim != 2:
        raise FijiBridgeError(f"The generator's {key} {path} must hold one image (y, x), not {image.shape}.")
    if not np.isfinite(values).all() or values.max() <= 0:
        raise FijiBridgeError(f"The generator's {key} {path} must have finite pixels, some of them above 0.")
    return np.maximum(values, 0) / values.max()


def _resized(mask: Array, shape: tuple[int, int]) -> Array:
    """Take the nearest pixel of the mask for each pixel of the frame."""
    row, column = (np.arange(size) * have // size for size, have in zip(shape, mask.shape, strict=True))
    return mask[row[:, None], column[None, :]]


def _template(shape: tuple[int, ...], camera: Camera) -> "xr.DataArray":
    """Describe the stack to be written, without its pixels."""
    import dask.array
    import xarray as xr

    return xr.DataArray(
        dask.array.zeros(shape, dtype=np.uint16, chunks=(1, *shape[1:])),
        dims=("t", "y", "x"),
        attrs={"pixel_size_nm": camera.pixel_size_nm, "source": "a simulation"},
    )


def _check_maps(camera: Camera, shape: tuple[int, ...]) -> None:
    for name in ("offset_map", "gain_map", "variance_map"):
        values = getattr(camera, name)
        if values is not None and values.shape != shape:
            raise FijiBridgeError(
                f"The camera's {name} is {values.shape} and the frames are {shape} (y, x); "
                "set the generator's height and width to the size of the map."
            )


def _psf(text: str) -> str:
    for name in PSFS:
        if name.lower() == text.strip().lower():
            return name
    if text.strip().lower().startswith("eliptical gaussian"):
        raise FijiBridgeError(
            f"The PSF {text!r} (3-D astigmatism) is not available here; "
            f"choose psf=[{PSFS[0]}] or psf={PSFS[1]}."
        )
    raise FijiBridgeError(f"Unknown PSF {text!r}; choose psf=[{PSFS[0]}] or psf={PSFS[1]}.")


def _value(key: str, text: str, kind: type) -> Any:
    """Turn an option's text into what the generator's default is."""
    wanted = {int: "a whole number", float: "a number", tuple: "from:to or one number", bool: "true or false"}
    try:
        if kind is tuple:
            ends = [float(part) for part in text.split(":")]
            if len(ends) > 2:
                raise ValueError
            return ends[0], ends[-1]
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        return kind(text)
    except (ValueError, KeyError):
        raise FijiBridgeError(f"The generator's {key} must be {wanted[kind]}, not {text!r}.") from None


def _require(key: str, value: Any, holds: bool, wanted: str) -> None:
    if not holds:
        raise FijiBridgeError(f"The generator's {key} must be {wanted}, not {value}.")
