"""The main job on a stack that is made on the spot, for whoever wants to see what the program does."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import fiji_bridge
from fiji_bridge.progress import Progress

if TYPE_CHECKING:
    from fiji_bridge.comparison import Comparison

# The plugin's generator with its own defaults but for the frame's size and number, which keep the demo
# short; pixels of 160 nm are those of the recordings that the seed paper imitates.
GENERATOR = "width=128 height=128 frames=100"
CAMERA = "offset=414.0 isemgain=false photons2adu=3.6 pixelsize=160.0"
MINUTES = 2.0


def demo(
    out: Path,
    *,
    max_minutes: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    **options: Any,
) -> "Comparison":
    """Simulate molecules as ThunderSTORM's generator does and find out whether denoising helps with them.

    Parameters
    ----------
    out
        Folder for ``stack.tif``, ``ground_truth.csv`` and what `fiji_bridge.compare` leaves.
    max_minutes
        Longest training, in minutes (2 when left out).
    seed
        Seed of the simulation and of the training.
    progress
        Called with the stage, the steps done and their number.
    **options
        Passed on to `fiji_bridge.compare`.

    Returns
    -------
    fiji_bridge.comparison.Comparison
        What the comparison found; its camera is the one the simulation used.
    """
    stack, truth = out / "stack.tif", out / "ground_truth.csv"
    camera = fiji_bridge.Camera.parse(CAMERA)
    fiji_bridge.simulate(
        options=GENERATOR, camera=camera, seed=seed, out=stack, ground_truth=truth, progress=progress
    )
    return fiji_bridge.compare(
        stack,
        out=out,
        ground_truth=truth,
        camera=camera,
        max_minutes=max_minutes or MINUTES,
        seed=seed,
        progress=progress,
        **options,
    )
