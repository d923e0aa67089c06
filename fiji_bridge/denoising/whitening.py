"""Noise that neighbouring pixels share a little, made independent and back.

Optics and electronics behind the detector, or a gentle filter, leave noise that was drawn pixel by pixel and
then blurred: ``h * n`` with a small kernel `h`. As long as `h` keeps all frequencies, its inverse gives each
pixel its own noise again, so that nothing needs to be hidden but the pixel itself; what was denoised is
blurred by `h` at the end, noise left over with it. (A prewhitening filter, as in matched filtering; Turin,
IRE Trans. Inf. Theory 6, 311, 1960.)
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import xarray as xr
from scipy.ndimage import convolve1d

from fiji_bridge.camera import Camera
from fiji_bridge.camera_estimation import CameraEstimate, estimate_camera
from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.progress import Progress

LEAST_POWER = 0.2
"""Least share of the noise along one axis, of that of all frequencies alike, from which it can be undone."""
FREQUENCIES, HALF_WIDTH = 256, 8
"""Samples of the spectrum, and pixels that a kernel reaches."""


@dataclass(frozen=True)
class Whitening:
    """Filters that make shared noise independent and back, the same for all pixels.

    Attributes
    ----------
    correlation
        Of the noise, along x and along y, each at distances of 1, 2, … pixels; without any, there is nothing
        to do and nothing is done.
    """

    correlation: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())

    def __bool__(self) -> bool:
        return any(map(any, self.correlation))

    def camera(self, camera: Camera) -> Camera:
        """Camera of the whitened images: blurred noise is weaker than the light that made it is."""
        if not self:
            return camera
        share = float(1 / np.prod([_spectrum(values)[0] for values in self.correlation]))
        maps = {
            "gain_map": lambda values: values / share,
            "variance_map": lambda values: values / share,
            "offset_map": lambda values: _filter(values, self._inverse),
        }
        return camera.replace(
            photons_per_adu=camera.photons_per_adu * share,
            read_noise=camera.read_noise * share**0.5,
            **{
                name: change(values)
                for name, change in maps.items()
                if (values := getattr(camera, name)) is not None
            },
        )

    def whiten(self, stack: xr.DataArray) -> xr.DataArray:
        """Give a stack (…, y, x) [A/D counts] as float32 with its noise independent, read when asked for."""
        if not self:
            return stack
        whitened: xr.DataArray = xr.apply_ufunc(
            lambda images: _filter(images, self._inverse),
            stack.chunk({"y": -1, "x": -1}),
            dask="parallelized",
            output_dtypes=[np.float32],
            keep_attrs=True,
        )
        return whitened

    def blur(self, images: np.ndarray) -> np.ndarray:
        """Undo it for images (n, y, x)."""
        return _filter(images, self._kernels) if self else images

    @cached_property
    def _kernels(self) -> list[np.ndarray]:
        return [_kernel(_spectrum(values) ** 0.5) for values in self.correlation]

    @cached_property
    def _inverse(self) -> list[np.ndarray]:
        return [_kernel(_spectrum(values) ** -0.5) for values in self.correlation]


def noise_of(stack: xr.DataArray, camera: Camera | None, progress: Progress) -> CameraEstimate:
    """Estimate camera and shared noise; of a stack that cannot tell, a camera that is given will do."""
    try:
        return estimate_camera(stack, progress=progress)
    except FijiBridgeError:
        if camera is None:
            raise
        return CameraEstimate(camera, {}, "given", (), reliable=True)


def undo_sharing(estimate: CameraEstimate, stack: xr.DataArray) -> Whitening:
    """Find what makes the noise of a stack independent; nothing where it is, or where that cannot be done."""
    whitening = Whitening(estimate.noise_correlation)
    weakest = min(np.min(_spectrum(values)) for values in whitening.correlation)
    if not estimate.noise_reach or weakest < LEAST_POWER:
        return Whitening()
    return Whitening() if estimate_camera(whitening.whiten(stack)).noise_reach else whitening


def _spectrum(correlation: tuple[float, ...]) -> np.ndarray:
    """Power of the noise at each frequency, of which the mean is 1."""
    angle = 2 * np.pi * np.fft.fftfreq(FREQUENCIES)
    lags = np.arange(1, len(correlation) + 1)
    return np.asarray(1 + 2 * np.cos(np.outer(angle, lags)) @ np.array(correlation))


def _kernel(transfer: np.ndarray) -> np.ndarray:
    """Symmetric kernel of a sum of 1."""
    values = np.roll(np.fft.ifft(transfer).real, HALF_WIDTH)[: 2 * HALF_WIDTH + 1]
    return values / values.sum()


def _filter(images: np.ndarray, kernels: list[np.ndarray]) -> np.ndarray:
    along_x, along_y = kernels
    filtered = convolve1d(np.asarray(images, np.float64), along_x, axis=-1, mode="mirror")
    return convolve1d(filtered, along_y, axis=-2, mode="mirror").astype(np.float32)
