"""Detectors: which pixels of a filtered frame are candidates for a molecule."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d, pad


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
            (candidates, 3) int64 of frame, x and y, in this order of significance, which is the plugin's.
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
        found = (filtered >= threshold[:, None, None]) & (filtered >= 0)
        found &= filtered == max_pool2d(filtered[:, None], 2 * r + 1, stride=1, padding=r)[:, 0]
        inside = torch.zeros_like(found)
        inside[:, r:-r, r:-r] = True
        return _positions(found & inside)


def _positions(mask: Tensor) -> Tensor:
    return mask.transpose(1, 2).nonzero()
