"""The data a network is trained on: crops with signal, and blocks kept apart to judge by."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from torch.nn.functional import avg_pool2d

from fiji_bridge.camera import Camera
from fiji_bridge.denoising.likelihood import Readout
from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.progress import Progress
from fiji_bridge.stack import frame_blocks, positions

POOL_PIXELS = 2**26
"""Pixels kept in memory to draw crops from; longer stacks are represented by frames spread over them."""
LOW_SIGNAL = 0.3
"""Crops with less structure than this share of the average crop's are left out."""
HELD_OUT = 0.05
"""Share of the pixels that is kept apart."""
SMALLEST = 16
"""Side of the smallest image to train on [pixels]."""


@dataclass(frozen=True)
class Batch:
    """Crops (n, 1, y, x) in photons, the noise of their pixels, and which pixels count (1 or 0)."""

    photons: Tensor
    readout: Readout
    counts: Tensor


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
    """

    def __init__(
        self,
        stacks: Sequence[xr.DataArray],
        camera: Camera,
        device: torch.device,
        rng: np.random.Generator,
        crop: int,
        progress: Progress,
    ) -> None:
        series = [part for stack in stacks for _, part in positions(stack)]
        smallest = min(min(part.sizes["y"], part.sizes["x"]) for part in series)
        if smallest < SMALLEST:
            raise FijiBridgeError(
                f"{series[0].attrs.get('source', 'The stack')} has images of {smallest} pixels across;"
                f" training needs at least {SMALLEST}."
            )
        self.crop = min(crop, smallest)
        self.excess = camera.excess_noise
        self.frames: list[Tensor] = []
        share = min(1.0, POOL_PIXELS / sum(part.size for part in series))
        for done, part in enumerate(series):
            progress("Reading frames", done, len(series))
            camera.check(part)
            chosen = np.sort(rng.choice(part.sizes["t"], max(1, int(share * part.sizes["t"])), replace=False))
            blocks = [camera.to_photons(block) for _, block in frame_blocks(part.isel(t=chosen))]
            self.frames.append(
                torch.from_numpy(np.concatenate(blocks).astype(np.float32))[:, None].to(device)
            )
        self.read_variance = [
            torch.as_tensor(camera.read_variance, dtype=torch.float32)
            .expand(1, *frames.shape[-2:])
            .to(device)
            for frames in self.frames
        ]
        self.corners = self._with_signal()
        self.counts = [torch.ones_like(frames, dtype=torch.bool) for frames in self.frames]
        self.held_out = self._keep_apart(rng)

    def draw(self, rng: np.random.Generator, number: int) -> Batch:
        """Random crops, turned and mirrored at random."""
        crops = []
        for group, frame, top, left in self.corners[rng.integers(len(self.corners), size=number)]:
            height, width = self.frames[group].shape[-2:]
            top, left = (
                int(np.clip(corner + rng.integers(-self.crop // 2, self.crop // 2 + 1), 0, side - self.crop))
                for corner, side in ((top, height), (left, width))
            )
            window = (slice(top, top + self.crop), slice(left, left + self.crop))
            parts = [self.frames[group][frame], self.counts[group][frame], self.read_variance[group]]
            crop = torch.stack([part[(0, *window)].float() for part in parts]).rot90(
                int(rng.integers(4)), (1, 2)
            )
            crops.append(crop.flip(2) if rng.integers(2) else crop)
        photons, counts, variance = torch.stack(crops).split(1, dim=1)
        return Batch(photons, Readout(self.excess, variance), counts)

    def sample(self, pixels: int = 2**20) -> list[Batch]:
        """Whole frames spread over the data, some `pixels` together; only pixels to train on count."""
        batches = []
        for frames, counts, variance in zip(self.frames, self.counts, self.read_variance, strict=True):
            wanted = max(1, int(pixels / len(self.frames) / frames[0].numel()))
            for index in np.unique(np.linspace(0, len(frames) - 1, wanted).astype(int)):
                batches.append(
                    Batch(
                        frames[index : index + 1],
                        Readout(self.excess, variance[None]),
                        counts[index : index + 1],
                    )
                )
        return batches

    def _with_signal(self) -> np.ndarray:
        """Corners (group, frame, top, left) of crops on a grid, without those of little or no signal.

        Signal is the spread of the photons after a 3×3 mean, which molecules and structures widen. A tenth of
        the crops always stays.
        """
        corners, signals = [], []
        for group, frames in enumerate(self.frames):
            rows, columns = (_grid(side, self.crop) for side in frames.shape[-2:])
            for frame, image in enumerate(frames):
                smooth = avg_pool2d(image, 3, 1)[0]
                for top in rows:
                    for left in columns:
                        window = smooth[top : top + self.crop - 2, left : left + self.crop - 2]
                        corners.append((group, frame, top, left))
                        signals.append(float(window.std()))
        signal = np.array(signals)
        return np.array(corners)[signal >= min(LOW_SIGNAL * signal.mean(), float(np.quantile(signal, 0.9)))]

    def _keep_apart(self, rng: np.random.Generator) -> Batch:
        """Take blocks in the middle of some windows with signal out of training."""
        batches = []
        total = sum(frames.numel() for frames in self.frames)
        smallest = min(min(frames.shape[-2:]) for frames in self.frames)
        window = min(2 * self.crop, smallest)
        side = max(4, min(window // 2, int((HELD_OUT * total) ** 0.5)))
        blocks = int(np.clip(HELD_OUT * total / side**2, 1, 12))
        for group, frame, top, left in self.corners[
            rng.choice(len(self.corners), blocks, replace=len(self.corners) < blocks)
        ]:
            height, width = self.frames[group].shape[-2:]
            top, left = min(top, height - window), min(left, width - window)
            margin = (window - side) // 2
            block = (slice(top + margin, top + margin + side), slice(left + margin, left + margin + side))
            self.counts[group][(frame, 0, *block)] = False
            outer = (slice(top, top + window), slice(left, left + window))
            counts = torch.zeros(1, 1, window, window, device=self.frames[group].device)
            counts[..., margin : margin + side, margin : margin + side] = 1
            readout = Readout(self.excess, self.read_variance[group][(None, 0, *outer)][None])
            batches.append(Batch(self.frames[group][(frame, 0, *outer)][None, None], readout, counts))
        return Batch(
            torch.cat([batch.photons for batch in batches]),
            Readout(
                self.excess, torch.cat([torch.as_tensor(batch.readout.read_variance) for batch in batches])
            ),
            torch.cat([batch.counts for batch in batches]),
        )


def _grid(side: int, crop: int) -> list[int]:
    """Corners of half-overlapping crops that cover a side."""
    return sorted({*range(0, side - crop + 1, max(1, crop // 2)), side - crop})
