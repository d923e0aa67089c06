"""The blind-spot network: each pixel is predicted from its surroundings and never from itself."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

SLOPE = 0.1


class UpwardConv(nn.Conv2d):
    """A 3×3 convolution that sees its own row and the two above it, never one below."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3)
        nn.init.kaiming_normal_(self.weight, a=SLOPE)
        nn.init.zeros_(torch.jit.annotate(Tensor, self.bias))

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, keeping height and width."""
        return functional.leaky_relu(
            functional.conv2d(functional.pad(x, (0, 0, 2, 0)), self.weight, self.bias, padding=(0, 1)),
            SLOPE,
            True,
        )


class BlindSpotNetwork(nn.Module):
    """Laine's rotational blind-spot U-Net (Laine et al. 2019, section 3).

    One U-Net whose every layer looks upwards only is run on the image in four rotations; shifted by one pixel
    and rotated back, its features see the four half-planes around a pixel, which 1×1 convolutions combine.
    Everything outside the image counts as 0 in the network's units. (Reflecting the image there would show
    the centre pixel its own mirror image.)

    Parameters
    ----------
    features
        Channels at each scale, finest first; each scale has half the resolution of the one before.
    head
        Channels of the 1×1 convolutions.
    outputs
        Channels of the result: parameters of the prior, which the noise model interprets.
    """

    def __init__(self, features: Sequence[int] = (24, 32, 48, 64), head: int = 64, outputs: int = 2) -> None:
        super().__init__()
        self.features, self.hidden, self.outputs = tuple(features), head, outputs
        finest = features[0]
        self.stem = nn.Sequential(UpwardConv(1, finest), UpwardConv(finest, finest))
        scales = list(pairwise(features))
        self.down = nn.ModuleList(UpwardConv(fine, coarse) for fine, coarse in scales)
        self.up = nn.ModuleList(
            nn.Sequential(UpwardConv(coarse + fine, fine), UpwardConv(fine, fine)) for fine, coarse in scales
        )
        self.mix = nn.Conv2d(4 * finest, head, 1)
        self.refine = nn.Sequential(nn.Conv2d(head, head // 2, 1), nn.LeakyReLU(SLOPE, True))
        self.last = nn.Conv2d(head // 2, outputs, 1)
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
        return -(-reach // self.stride) * self.stride

    def architecture(self) -> dict[str, object]:
        """Give what builds the same network: keyword arguments of this class."""
        return {"features": list(self.features), "head": self.hidden, "outputs": self.outputs}

    def half_planes(self, x: Tensor) -> Tensor:
        """Features of the four half-planes around each pixel.

        Parameters
        ----------
        x
            Images (n, 1, height, width), sides multiples of `stride`.

        Returns
        -------
        torch.Tensor
            (n, 4 · features[0], height, width): of the image turned by 0, 90, 180 and 270 degrees, turned
            back.
        """
        turned = [x.rot90(k, (2, 3)).contiguous(memory_format=torch.channels_last) for k in range(4)]
        if torch.is_grad_enabled() and x.shape[-1] == x.shape[-2]:
            branches = self._look_up(torch.cat(turned)).chunk(4)
        else:  # one rotation at a time takes a quarter of the memory, and need not be square
            branches = tuple(self._look_up(image) for image in turned)
        return torch.cat([branch.rot90(-k, (2, 3)) for k, branch in enumerate(branches)], dim=1)

    def combine(self, half_planes: Tensor, turn: int = 0) -> Tensor:
        """Parameters of the prior (n, outputs, height, width) from the four half-planes.

        An image turned by 90° has the same half-planes, one place on; the result is that of `turn` quarter
        turns, turned back.
        """
        weight = self.mix.weight.roll(turn * self.features[0], dims=1)
        features = self.refine(
            functional.leaky_relu(functional.conv2d(half_planes, weight, self.mix.bias), SLOPE, True)
        )
        with torch.autocast(features.device.type, enabled=False):  # bfloat16 would round the mean to 0.4%
            result: Tensor = self.last(features.float())
        return result

    def forward(self, x: Tensor) -> Tensor:
        """Parameters of the prior at every pixel of images (n, 1, height, width) of any size."""
        height, width = x.shape[-2:]
        return self.combine(self.half_planes(self.pad(x)))[..., :height, :width]

    def pad(self, x: Tensor) -> Tensor:
        """Extend to multiples of `stride` with zeros, to the right and below."""
        height, width = x.shape[-2:]
        return functional.pad(x, (0, -width % self.stride, 0, -height % self.stride))

    def _look_up(self, x: Tensor) -> Tensor:
        """Features of the rows strictly above each pixel."""
        scales = [self.stem(x)]
        for down in self.down:
            scales.append(down(functional.max_pool2d(_shift_down(scales[-1]), 2)))
        x = scales.pop()
        for up in reversed(self.up):
            x = up(torch.cat([functional.interpolate(x, scale_factor=2.0), scales.pop()], dim=1))
        return _shift_down(x)


def _shift_down(x: Tensor) -> Tensor:
    return functional.pad(x, (0, 0, 1, -1))
