"""The blind-spot network: each pixel is predicted from its surroundings and never from itself."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fiji_bridge.errors import FijiBridgeError

SLOPE = 0.1
NEIGHBOUR_SCALES = 3
"""Scales at which neighbouring frames are looked at."""


class Conv(nn.Conv2d):
    """A 3×3 convolution with its activation.

    `upward`, it sees its own row and the two above, never one below.
    """

    def __init__(self, inputs: int, outputs: int, upward: bool) -> None:
        super().__init__(inputs, outputs, 3)
        self.upward = upward
        nn.init.kaiming_normal_(self.weight, a=SLOPE)
        nn.init.zeros_(torch.jit.annotate(Tensor, self.bias))

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, keeping height and width."""
        if self.upward and torch.is_grad_enabled():
            x = functional.pad(x, (0, 0, 2, 0))
            x = functional.conv2d(x, self.weight, self.bias, padding=(0, 1))
        elif self.upward:  # two rows too many cost less than a padded copy, unless they need a gradient
            x = functional.conv2d(x, self.weight, self.bias, padding=(2, 1))[:, :, :-2]
        else:
            x = functional.conv2d(x, self.weight, self.bias, padding=1)
        return functional.leaky_relu(x, SLOPE, True)


class UNet(nn.Module):
    """Features as fine as the image, from `inputs` channels.

    `upward`, those of a pixel have seen its own row and rows above, never one below.
    """

    def __init__(self, inputs: int, features: Sequence[int], upward: bool) -> None:
        super().__init__()
        self.upward, finest = upward, features[0]
        self.stem = nn.Sequential(Conv(inputs, finest, upward), Conv(finest, finest, upward))
        scales = list(pairwise(features))
        self.down = nn.ModuleList(Conv(fine, coarse, upward) for fine, coarse in scales)
        self.up = nn.ModuleList(
            nn.Sequential(Conv(coarse + fine, fine, upward), Conv(fine, fine, upward))
            for fine, coarse in scales
        )

    def forward(self, x: Tensor) -> Tensor:
        """Give (n, features[0], height, width); sides must be multiples of the coarsest stride."""
        scales = [self.stem(x)]
        for down in self.down:
            # Shifted by a row, no coarse pixel has seen below the upper one of the two fine rows it covers.
            finer = _shift_down(scales[-1], 1) if self.upward else scales[-1]
            scales.append(down(_halved(finer)))
        x = scales.pop()
        for up in reversed(self.up):
            x = up(torch.cat([functional.interpolate(x, scale_factor=2.0), scales.pop()], dim=1))
        return x


class BlindSpotNetwork(nn.Module):
    """Laine's rotational blind-spot U-Net (Laine et al. 2019, section 3).

    One U-Net whose every layer looks upwards only is run on the image in four rotations; shifted by one pixel
    and rotated back, its features see the four half-planes around a pixel, which 1×1 convolutions combine.
    Everything outside the image counts as 0 in the network's units. (Reflecting the image there would show
    the centre pixel its own mirror image.)

    Shifted by more than one pixel, they leave a square blind spot, for noise that neighbouring pixels share.
    Of movies, neighbouring frames may be seen whole: their noise is not that of the current frame's pixel.
    The half-planes show them too, so that the network can tell what changed.

    Parameters
    ----------
    features
        Channels at each scale, finest first; each scale has half the resolution of the one before.
    head
        Channels of the 1×1 convolutions.
    outputs
        Channels of the result: parameters of the prior, which the noise model interprets.
    blind_radius
        How far the blind spot reaches from its middle [pixels]; 0 hides the pixel alone.
    neighbours
        Frames seen on either side of the current one.
    """

    def __init__(
        self,
        features: Sequence[int] = (12, 16, 24, 32),
        head: Sequence[int] = (64, 32),
        outputs: int = 2,
        blind_radius: int = 0,
        neighbours: int = 0,
    ) -> None:
        super().__init__()
        for name, values, least in (
            ("features", features, 1),
            ("head", head, 1),
            ("outputs", [outputs], 1),
            ("blind_radius", [blind_radius], 0),
            ("neighbours", [neighbours], 0),
        ):
            if not values or not all(isinstance(v, (int, np.integer)) and v >= least for v in values):
                raise FijiBridgeError(f"{name} is {values}; give whole numbers from {least} on.")
        self.features, self.head, self.outputs = tuple(features), tuple(head), outputs
        self.blind_radius, self.neighbours = blind_radius, neighbours
        finest = features[0]
        self.half_plane = UNet(1 + 2 * neighbours, features, upward=True)
        self.beside = UNet(2 * neighbours, features[:NEIGHBOUR_SCALES], upward=False) if neighbours else None
        self.mix = nn.Conv2d((5 if neighbours else 4) * finest, head[0], 1)
        self.refine = nn.Sequential(
            *(
                layer
                for sizes in pairwise(head)
                for layer in (nn.Conv2d(*sizes, 1), nn.LeakyReLU(SLOPE, True))
            )
        )
        self.last = nn.Conv2d(head[-1], outputs, 1)
        nn.init.normal_(self.last.weight, std=1e-2)
        nn.init.zeros_(torch.jit.annotate(Tensor, self.last.bias))

    @property
    def stride(self) -> int:
        """Pixels between two samples of the coarsest scale: tiles must start at multiples of it."""
        return 2 ** (len(self.features) - 1)

    @property
    def halo(self) -> int:
        """How far a pixel sees, in pixels, rounded up to a multiple of `stride`."""
        inner = range(1, len(self.features) - 1)
        # Two rows for each convolution; at each change of scale, two more.
        reach = (
            5 if len(self.features) == 1 else 1 + 10 + sum(8 * 2**level for level in inner) + 2 * self.stride
        )
        return -(-(reach + self.blind_radius) // self.stride) * self.stride

    def architecture(self) -> dict[str, object]:
        """Give what builds the same network: keyword arguments of this class."""
        return {
            "features": list(self.features),
            "head": list(self.head),
            "outputs": self.outputs,
            "blind_radius": self.blind_radius,
            "neighbours": self.neighbours,
        }

    def half_planes(self, x: Tensor) -> Tensor:
        """Features of the four half-planes around each pixel.

        Parameters
        ----------
        x
            The image and its neighbouring frames (n, 1 + 2 · neighbours, height, width), sides multiples of
            `stride`.

        Returns
        -------
        torch.Tensor
            (n, 4 · features[0], height, width): of the image turned by 0, 90, 180 and 270 degrees, turned
            back.
        """
        turned = [x.rot90(k, (2, 3)).contiguous(memory_format=torch.channels_last) for k in range(4)]
        if torch.is_grad_enabled() and x.shape[-1] == x.shape[-2]:
            branches = self.half_plane(torch.cat(turned)).chunk(4)
        else:  # one rotation at a time takes a quarter of the memory, and need not be square
            branches = tuple(self.half_plane(image) for image in turned)
        shifted = (_shift_down(branch, 1 + self.blind_radius) for branch in branches)
        back = (branch.rot90(-k, (2, 3)) for k, branch in enumerate(shifted))
        # Turned images have mixed orders in memory, of which the next convolution would take the slowest.
        return torch.cat([image.contiguous(memory_format=torch.channels_last) for image in back], dim=1)

    def combine(self, half_planes: Tensor, x: Tensor, turn: int = 0) -> Tensor:
        """Parameters of the prior (n, outputs, height, width) from the four half-planes of images `x`.

        An image turned by 90° has the same half-planes, one place on; the result is that of `turn` quarter
        turns, turned back.
        """
        planes = half_planes.shape[1]
        weight = self.mix.weight
        if turn:
            rolled = weight[:, :planes].roll(turn * self.features[0], dims=1)
            weight = torch.cat([rolled, weight[:, planes:]], dim=1)
        if self.beside is not None:
            turned = x[:, 1:].rot90(turn, (2, 3)).contiguous(memory_format=torch.channels_last)
            half_planes = torch.cat([half_planes, self.beside(turned).rot90(-turn, (2, 3))], dim=1)
        features = self.refine(
            functional.leaky_relu(functional.conv2d(half_planes, weight, self.mix.bias), SLOPE, True)
        )
        with torch.autocast(features.device.type, enabled=False):  # bfloat16 would round the mean to 0.4%
            result: Tensor = self.last(features.float())
        return result

    def forward(self, x: Tensor) -> Tensor:
        """Parameters of the prior at every pixel of images (n, 1 + 2 · neighbours, y, x) of any size."""
        height, width = x.shape[-2:]
        x = self.pad(x)
        return self.combine(self.half_planes(x), x)[..., :height, :width]

    def pad(self, x: Tensor) -> Tensor:
        """Extend to multiples of `stride` with zeros, to the right and below."""
        height, width = x.shape[-2:]
        return functional.pad(x, (0, -width % self.stride, 0, -height % self.stride))


def neighbouring(frames: np.ndarray, total: int, neighbours: int) -> np.ndarray:
    """Numbers of the `neighbours` frames before and after each of these frames, of `total` in all.

    Where there are none, before the first and after the last, the frames on the other side stand in, never
    the frame itself: its own pixels would come in.
    """
    offsets = np.delete(np.arange(-neighbours, neighbours + 1), neighbours)
    numbers = frames[:, None] + offsets
    mirrored = np.where((numbers < 0) | (numbers >= total), frames[:, None] - offsets, numbers)
    beyond = (mirrored < 0) | (mirrored >= total)
    nearest = np.where(frames[:, None] + 1 < total, frames[:, None] + 1, frames[:, None] - 1)
    return np.where(beyond, nearest, mirrored)


def _halved(x: Tensor) -> Tensor:
    """Give the largest of each 2×2 pixels."""
    if torch.is_grad_enabled():
        return functional.max_pool2d(x, 2)
    rows = torch.maximum(x[:, :, 0::2], x[:, :, 1::2])  # a fifth of the time, but for gradients
    return torch.maximum(rows[..., 0::2], rows[..., 1::2])


def _shift_down(x: Tensor, rows: int) -> Tensor:
    return functional.pad(x, (0, 0, rows, -rows))
