"""Detectors: which pixels of a filtered frame are candidates for a molecule."""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import max_pool2d, pad

from fiji_bridge.torch_localizer import kernels
from fiji_bridge.torch_localizer.threads import in_threads
from fiji_bridge.torch_localizer.watershed import watershed

PIXELS_AT_ONCE = 2**19
"""Of images that a thread searches at a time."""


class Detector(Protocol):
    """Finds candidates; a third detector is one more class like this."""

    def __call__(self, filtered: Tensor, threshold: Tensor) -> Tensor:
        """Find candidates.

        Parameters
        ----------
        filtered
            (n, y, x) float32.
        threshold
            (n,) float32, one a frame.

        Returns
        -------
        Tensor
            (candidates, 3) float64 of frame, x and y [px], in the plugin's order.
        """


@dataclass(frozen=True)
class LocalMaxima:
    """Pixels at or above the threshold that no neighbour exceeds; equal neighbours are all candidates.

    Parameters
    ----------
    diagonal
        Whether the 8 neighbours count, or the 4 that share an edge.
    """

    diagonal: bool = True

    def __call__(self, filtered: Tensor, threshold: Tensor) -> Tensor:  # noqa: D102
        if filtered.device.type == "cpu":
            return _maxima(filtered, threshold, 1, self.diagonal)
        padded = pad(filtered, (1, 1, 1, 1), value=-torch.inf)
        across = torch.maximum(padded[:, :, :-2], padded[:, :, 2:])
        if self.diagonal:
            column = torch.maximum(padded[:, :, 1:-1], across)
            neighbours = torch.maximum(column[:, :-2], column[:, 2:])
        else:
            neighbours = torch.maximum(padded[:, :-2, 1:-1], padded[:, 2:, 1:-1])
        neighbours = torch.maximum(neighbours, across[:, 1:-1])
        return _positions((filtered >= neighbours) & (filtered >= threshold[:, None, None]))


@dataclass(frozen=True)
class NonMaximumSuppression:
    """Pixels at or above the threshold that are the maximum of the square around them.

    The plugin's dilation starts from zero, so that only values of zero and above are found, and leaves out a
    border as wide as the radius.

    Parameters
    ----------
    radius
        Half the side of the square, without its centre [px].
    """

    radius: int = 1

    def __call__(self, filtered: Tensor, threshold: Tensor) -> Tensor:  # noqa: D102
        r = self.radius
        if filtered.device.type == "cpu":
            maxima = _maxima(filtered, threshold, r, True, lowest=0.0)
            inside = (maxima[:, 1:] >= r) & (maxima[:, 1:] < torch.tensor(filtered.shape[:0:-1]) - r)
            return maxima[inside.all(1)]
        found = (filtered >= threshold[:, None, None]) & (filtered >= 0)
        found &= filtered == max_pool2d(filtered[:, None], 2 * r + 1, stride=1, padding=r)[:, 0]
        inside = torch.zeros_like(found)
        inside[:, r:-r, r:-r] = True
        return _positions(found & inside)


@dataclass(frozen=True)
class ConnectedComponents:
    """Centroids of the patches of pixels at or above the threshold; corners connect.

    Parameters
    ----------
    watershed
        Whether patches are cut along the valleys between their maxima.
    """

    watershed: bool = False

    def __call__(self, filtered: Tensor, threshold: Tensor) -> Tensor:  # noqa: D102
        from scipy.ndimage import label

        device = filtered.device
        images = filtered.cpu().contiguous().numpy()
        above = (images >= threshold.cpu().numpy()[:, None, None]) & (images != 0)
        if self.watershed:
            segments = np.empty(images.shape, np.bool_)

            def cut(some: slice) -> None:
                watershed(np.where(above[some], images[some], np.float32(0)), segments[some])

            in_threads(cut, len(images), max(1, PIXELS_AT_ONCE // math.prod(images.shape[1:])))
            above &= segments
        # The plugin looks for patches column by column.
        connected = np.zeros((3, 3, 3), np.bool_)
        connected[1] = True
        labels, count = label(above.transpose(0, 2, 1), connected)
        frame, x, y = np.nonzero(labels)
        member = labels[frame, x, y] - 1
        pixels = np.bincount(member, minlength=count)
        centres = [np.bincount(member, weights=along, minlength=count) / pixels for along in (frame, x, y)]
        return torch.from_numpy(np.stack(centres, 1)).to(device)


def _maxima(
    filtered: Tensor, threshold: Tensor, radius: int, diagonal: bool, lowest: float = -np.inf
) -> Tensor:
    """Do as the detectors above, on the CPU."""
    images, limits = filtered.contiguous().numpy(), threshold.numpy()
    at_once = max(1, PIXELS_AT_ONCE // (images.shape[1] * images.shape[2]))
    parts: dict[int, np.ndarray] = {}

    def search(some: slice) -> None:
        out = np.empty((64 * at_once, 3), np.int64)
        settings = images[some], limits[some], radius, diagonal, np.float32(lowest)
        count = kernels.find_maxima(*settings, out)
        if count > len(out):
            out = np.empty((count, 3), np.int64)
            kernels.find_maxima(*settings, out)
        found = out[:count]
        found[:, 0] += some.start
        height, width = images.shape[1:]
        parts[some.start] = found[((found[:, 0] * width + found[:, 1]) * height + found[:, 2]).argsort()]

    in_threads(search, len(images), at_once)
    return torch.from_numpy(np.concatenate([parts[start] for start in sorted(parts)])).double()


def _positions(mask: Tensor) -> Tensor:
    return mask.transpose(1, 2).nonzero().double()
