"""A simulated twin of a recording: the same molecules, background and camera, with the truth known.

Without ground truth nobody can count the false molecules in a recording, and the usual stand-ins mislead:
denoising always lowers the fitted uncertainty, and a lower threshold always finds more. So frames are
simulated that look like the recording, as in a parametric bootstrap (Efron & Tibshirani, An Introduction to
the Bootstrap, 1993, section 6.5). They go through the same network and the same localizer, and there the
false ones are counted.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from fiji_bridge.camera import Camera

Array = npt.NDArray[np.float64]

FRAMES = 100
"""Frames of a twin at most."""

LEAST_MOLECULES = 100
"""With fewer molecules in its frames a twin says nothing."""

SMOOTHING = 3.0
"""Standard deviation [pixels] to which the background is smoothed."""

SAME_NM = 200.0
"""Detections of two ways nearer than this are one molecule."""

NEEDED = ("frame", "x [nm]", "y [nm]", "sigma [nm]", "intensity [photon]")


@dataclass(frozen=True)
class Twin:
    """Simulated frames and what is in them.

    Attributes
    ----------
    stack
        (t, y, x) in A/D counts.
    molecules
        The truth, in ThunderSTORM's columns; frames count from 1.
    first
        Index of the recording's frame that the first one imitates.
    """

    stack: "xr.DataArray"
    molecules: "pd.DataFrame"
    first: int

    def of(self, table: "pd.DataFrame") -> "pd.DataFrame":
        """Give the rows of a recording's table that lie in the imitated frames."""
        return table[table["frame"].between(self.first + 1, self.first + self.stack.sizes["t"])]


def twin_of(
    movie: "xr.DataArray", tables: Mapping[str, "pd.DataFrame"], camera: "Camera", *, seed: int = 0
) -> Twin | None:
    """Simulate frames like those in the middle of a recording.

    The molecules are those that the raw frames gave, and those that only the denoised ones did (fitted on
    raw frames), so that neither way has the truth to itself. The background of a pixel is what the molecules
    leave of the mean frame, smoothed, and follows the frames' median.

    Parameters
    ----------
    movie
        The recording (t, y, x) in A/D counts.
    tables
        Its molecules found the ways ``raw`` and ``hybrid``.
    camera
        Its camera, with a pixel size.
    seed
        Seed of the noise.

    Returns
    -------
    Twin or None
        None if the molecules have no intensity and width, or are too few.
    """
    from fiji_bridge.simulation import record
    from fiji_bridge.stack import frame_blocks, open_stack

    count = min(movie.sizes["t"], FRAMES)
    first = (movie.sizes["t"] - count) // 2
    part = movie.isel(t=slice(first, first + count))
    molecules = _molecules(tables, first, count)
    if molecules is None:
        return None
    shape = (movie.sizes["y"], movie.sizes["x"])
    mean, medians = np.zeros(shape), np.zeros(count)
    for start, block in frame_blocks(part):
        for index, frame in enumerate(np.asarray(camera.to_photons(block), dtype=float), start=start):
            left = frame - _light(molecules, index + 1, shape, camera)
            mean += left / count
            medians[index] = np.median(left)
    background = _smooth(mean)
    frames = np.empty((count, *shape), dtype=np.uint16)
    for index in range(count):
        drift = medians[index] - medians.mean()
        expected = np.maximum(background + drift, 0) + _light(molecules, index + 1, shape, camera)
        frames[index] = record(expected, camera, np.random.default_rng([seed, index]))
    stack = open_stack(frames, pixel_size_nm=camera.pixel_size_nm)
    stack.attrs["source"] = "the simulated twin"
    return Twin(stack, molecules, first)


def _molecules(tables: Mapping[str, "pd.DataFrame"], first: int, count: int) -> "pd.DataFrame | None":
    """Join what raw frames gave with what only denoised ones did, leaving out fits that went astray."""
    import pandas as pd

    if any(column not in tables[way] for way in ("raw", "hybrid") for column in NEEDED):
        return None
    raw, hybrid = (
        table.loc[table["frame"].between(first + 1, first + count), list(NEEDED)]
        for table in (tables["raw"], tables["hybrid"])
    )
    together = pd.concat([raw, hybrid[_new(hybrid, raw)]], ignore_index=True)
    sigma, photons = together["sigma [nm]"], together["intensity [photon]"]
    sound = sigma.between(sigma.median() / 3, sigma.median() * 3) & photons.between(0, 20 * photons.median())
    together = together[sound].assign(frame=together["frame"].astype(int) - first).reset_index(drop=True)
    return together if len(together) >= LEAST_MOLECULES else None


def _new(rows: "pd.DataFrame", known: "pd.DataFrame") -> npt.NDArray[np.bool_]:
    """Say which rows have no known molecule near them in their frame."""
    from scipy.spatial import KDTree

    if rows.empty or known.empty:
        return np.ones(len(rows), dtype=bool)
    # Frames become a third coordinate, far enough apart to keep them from each other.
    spread = np.array([10 * SAME_NM, 1.0, 1.0])
    points, others = (
        table[["frame", "x [nm]", "y [nm]"]].to_numpy(dtype=float) * spread for table in (rows, known)
    )
    distance, _ = KDTree(others).query(points)
    return np.asarray(distance > SAME_NM)


def _light(molecules: "pd.DataFrame", frame: int, shape: tuple[int, int], camera: "Camera") -> Array:
    """Give the mean photons of one frame's molecules, (y, x)."""
    from fiji_bridge.simulation import expected_photons

    here = molecules[molecules["frame"] == frame]
    x, y, sigma = (
        here[name].to_numpy(dtype=float) / camera.pixel_size_nm for name in ("x [nm]", "y [nm]", "sigma [nm]")
    )
    return expected_photons(x, y, sigma, here["intensity [photon]"].to_numpy(dtype=float), shape)


def _smooth(image: Array) -> Array:
    from scipy.ndimage import gaussian_filter

    return np.asarray(gaussian_filter(image, SMOOTHING, mode="nearest"))
