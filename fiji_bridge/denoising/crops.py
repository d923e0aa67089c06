"""The data a network is trained on: crops with signal, and blocks kept apart to judge by."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from torch.nn.functional import avg_pool2d

from fiji_bridge.camera import Camera
from fiji_bridge.denoising.model import readout_of
from fiji_bridge.denoising.network import neighbouring
from fiji_bridge.denoising.noise_models import Readout
from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.progress import Progress
from fiji_bridge.stack import frame_blocks, positions

POOL_PIXELS = 2**26
"""Pixels kept in memory to draw crops from; longer stacks are represented by frames spread over them."""
LOW_SIGNAL = 0.3
"""Crops with less structure than this share of the average crop's are left out."""
HELD_OUT = 0.05
"""Share of the pixels that is kept apart, in at most `BLOCKS` blocks."""
BLOCKS = 12
SAMPLED_SIDE = 512
"""Most of a frame that a sample shows [pixels]."""
SMALLEST = 16
"""Side of the smallest image to train on [pixels]."""


@dataclass(frozen=True)
class Batch:
    """Crops to train on or to judge by.

    `seen` (n, 1 + 2 · neighbours, y, x) [photons] starts with the current frames; `readout` is their noise,
    and `counts` (n, 1, y, x) is 1 for pixels that count and 0 for others.
    """

    seen: Tensor
    readout: Readout
    counts: Tensor

    @property
    def photons(self) -> Tensor:
        """The current frames (n, 1, y, x)."""
        return self.seen[:, :1]


class CropPool:
    """Frames in memory, in photons, from which random crops are drawn.

    Parameters
    ----------
    stacks
        Stacks of one camera; sizes may differ.
    camera
        From A/D counts to photons.
    device
        Where the frames are kept.
    rng
        Chooses frames, when not all fit, and the blocks kept apart.
    crop
        Side of a crop [pixels]; smaller images give smaller crops.
    progress
        Called while reading.
    neighbours
        Frames to show on either side of a crop's own.

    Attributes
    ----------
    corners
        Crops with signal: (group, frame, top, left), a group being a stack, or one channel and z of it.
    readout
        Of the camera and these stacks.
    held_out
        Windows whose middles are never trained on; only these count.

    Raises
    ------
    FijiBridgeError
        If the images are too small, or the camera cannot have recorded them.
    """

    def __init__(
        self,
        stacks: Sequence[xr.DataArray],
        camera: Camera,
        device: torch.device,
        rng: np.random.Generator,
        crop: int,
        progress: Progress,
        neighbours: int = 0,
    ) -> None:
        groups = [part for stack in stacks for _, part in positions(stack)]
        self._smallest = min(min(part.sizes["y"], part.sizes["x"]) for part in groups)
        if self._smallest < SMALLEST:
            raise FijiBridgeError(
                f"{groups[0].attrs.get('source', 'The stack')} has images of {self._smallest} pixels across;"
                f" training needs at least {SMALLEST}."
            )
        self.crop, self.neighbours = min(crop, self._smallest), neighbours
        self.readout = readout_of(camera, groups, device)
        share = min(1.0, POOL_PIXELS / sum(part.size for part in groups))
        # One of each for each group: (t, y, x), (t, y, x) and (y, x).
        self._photons: list[Tensor] = []
        self._counts: list[Tensor] = []
        self._variance: list[Tensor] = []
        for done, part in enumerate(groups):
            progress("Reading frames", done, len(groups))
            camera.check(part)
            if share < 1:
                part = part.isel(t=_spread(part.sizes["t"], share, neighbours, rng))
            blocks = [np.asarray(camera.to_photons(block), np.float32) for _, block in frame_blocks(part)]
            photons = torch.from_numpy(np.concatenate(blocks)).to(device)
            variance = torch.as_tensor(camera.read_variance, dtype=torch.float32, device=device)
            self._photons.append(photons)
            self._counts.append(torch.ones_like(photons, dtype=torch.bool))
            self._variance.append(variance.expand(photons.shape[1:]))
        self.corners = self._with_signal()
        self.held_out = self._keep_apart(rng)

    def draw(self, rng: np.random.Generator, number: int) -> Batch:
        """Cut random crops, turned and mirrored at random; pixels kept apart do not count."""
        crops = []
        for group, frame, *corner in self.corners[rng.integers(len(self.corners), size=number)]:
            half = self.crop // 2
            top, left = (
                int(np.clip(start + rng.integers(-half, half + 1), 0, side - self.crop))
                for start, side in zip(corner, self._photons[group].shape[1:], strict=True)
            )
            crop = self._cut(group, frame, top, left, self.crop).rot90(int(rng.integers(4)), (1, 2))
            crops.append(crop.flip(2) if rng.integers(2) else crop)
        return self._batch(crops)

    def sample(self, pixels: int) -> list[Batch]:
        """Give frames spread over the data, at most some `pixels` in all, of large frames the middle."""
        every = [(group, frame) for group, frames in enumerate(self._photons) for frame in range(len(frames))]
        largest = max(frames[0].numel() for frames in self._photons)
        most = min(SAMPLED_SIDE, int(pixels**0.5))
        number = min(len(every), max(1, pixels // min(largest, most**2)))
        batches = []
        for place in np.linspace(0, len(every) - 1, number).astype(int):
            group, frame = every[place]
            starts = (max(0, (side - most) // 2) for side in self._photons[group].shape[1:])
            middle = tuple(slice(start, start + most) for start in starts)
            batches.append(self._batch([self._window(group, frame, middle)]))
        return batches

    def _cut(self, group: int, frame: int, top: int, left: int, side: int) -> Tensor:
        return self._window(group, frame, (slice(top, top + side), slice(left, left + side)))

    def _window(self, group: int, frame: int, window: tuple[slice, ...]) -> Tensor:
        images = (
            *self._around(self._photons[group], frame),
            self._counts[group][frame],
            self._variance[group],
        )
        return torch.stack([image[window].float() for image in images])

    def _around(self, photons: Tensor, frame: int) -> list[Tensor]:
        """Give a frame and its neighbours."""
        numbers = neighbouring(np.array([frame]), len(photons), self.neighbours)[0]
        return [photons[number] for number in (frame, *numbers)]

    def _batch(self, images: Sequence[Tensor]) -> Batch:
        seen, counts, variance = torch.stack(tuple(images)).split([1 + 2 * self.neighbours, 1, 1], dim=1)
        return Batch(seen, replace(self.readout, read_variance=variance), counts)

    def _with_signal(self) -> np.ndarray:
        """Corners of half-overlapping crops that cover the frames, without those of little or no signal.

        Signal is the spread of the photons after a 3×3 mean, which molecules and structures widen. A tenth of
        the crops always stays.
        """
        corners, signals = [], []
        for group, frames in enumerate(self._photons):
            grid = [
                sorted({*range(0, side - self.crop + 1, self.crop // 2), side - self.crop})
                for side in frames.shape[1:]
            ]
            for frame, image in enumerate(frames):
                smooth = avg_pool2d(image[None], 3, 1)[0]
                for top in grid[0]:
                    for left in grid[1]:
                        corners.append((group, frame, top, left))
                        window = smooth[top : top + self.crop - 2, left : left + self.crop - 2]
                        signals.append(window.std())
        signal = torch.stack(signals).cpu().numpy()
        return np.array(corners)[signal >= min(LOW_SIGNAL * signal.mean(), np.quantile(signal, 0.9))]

    def _keep_apart(self, rng: np.random.Generator) -> Batch:
        """Take the middles of some windows with signal out of training."""
        total = sum(photons.numel() for photons in self._photons)
        window = min(2 * self.crop, self._smallest)
        side = max(4, min(window // 2, int((HELD_OUT * total) ** 0.5)))
        number = min(int(np.clip(HELD_OUT * total / side**2, 1, BLOCKS)), len(self.corners))
        middle = slice((window - side) // 2, (window - side) // 2 + side)
        windows = []
        for group, frame, *corner in self.corners[rng.choice(len(self.corners), number, replace=False)]:
            top, left = (
                min(start, length - window)
                for start, length in zip(corner, self._photons[group].shape[1:], strict=True)
            )
            images = self._cut(group, frame, top, left, window)
            images[-2] = 0
            images[-2, middle, middle] = 1
            windows.append(images)
            self._counts[group][frame, top : top + window, left : left + window][middle, middle] = False
        return self._batch(windows)


def _spread(total: int, share: float, neighbours: int, rng: np.random.Generator) -> np.ndarray:
    """Choose a share of the frames; with neighbours in runs, that most keep their own neighbours."""
    run = 1 if neighbours == 0 else 16 * neighbours
    starts = np.arange(0, total, run)
    few = max(1, int(share * len(starts)))
    chosen = np.sort(rng.choice(starts, few, replace=False))
    return np.concatenate([np.arange(start, min(start + run, total)) for start in chosen])
