"""The blind-spot network: each pixel is predicted from its surroundings and never from itself."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 0.1


class UpwardConv(nn.Conv2d):
    """A 3×3 convolution that sees its own row and the two above it, never one below."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3)
        nn.init.kaiming_normal_(self.weight, a=SLOPE)
        nn.init.zeros_(torch.jit.annotate(Tensor, self.bias))

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, keeping height and width."""
        return F.leaky_relu(
            F.conv2d(F.pad(x, (0, 0, 2, 0)), self.weight, self.bias, padding=(0, 1)), SLOPE, True
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
        scales = list(zip(features[:-1], features[1:], strict=True))
        self.down = nn.ModuleList(UpwardConv(fine, coarse) for fine, coarse in scales)
        self.up = nn.ModuleList(
            nn.Sequential(UpwardConv(coarse + fine, fine), UpwardConv(fine, fine)) for fine, coarse in scales
        )
        self.mix = nn.Sequential(
            nn.Conv2d(4 * finest, head, 1),
            nn.LeakyReLU(SLOPE, True),
            nn.Conv2d(head, head // 2, 1),
            nn.LeakyReLU(SLOPE, True),
        )
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
        """What is needed to build the same network: keyword arguments of this class."""
        return {"features": list(self.features), "head": self.hidden, "outputs": self.outputs}

    def half_planes(self, x: Tensor) -> list[Tensor]:
        """Features of the four half-planes, each in the orientation of its rotation undone.

        Parameters
        ----------
        x
            Images (n, 1, height, width), sides multiples of `stride`.

        Returns
        -------
        list of torch.Tensor
            Four times (n, features[0], height, width), by rotation of 0, 90, 180 and 270 degrees.
        """
        turned = [x.rot90(k, (2, 3)).contiguous(memory_format=torch.channels_last) for k in range(4)]
        if torch.is_grad_enabled() and x.shape[-1] == x.shape[-2]:
            branches = self._look_up(torch.cat(turned)).chunk(4)
        else:  # one rotation at a time takes a quarter of the memory, and need not be square
            branches = tuple(self._look_up(image) for image in turned)
        return [branch.rot90(-k, (2, 3)) for k, branch in enumerate(branches)]

    def combine(self, half_planes: Sequence[Tensor]) -> Tensor:
        """Parameters of the prior (n, outputs, height, width) from the four half-planes."""
        features = self.mix(torch.cat(list(half_planes), dim=1))
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
        return F.pad(x, (0, -width % self.stride, 0, -height % self.stride))

    def _look_up(self, x: Tensor) -> Tensor:
        """Features of the rows strictly above each pixel."""
        scales = [self.stem(x)]
        for down in self.down:
            scales.append(down(F.max_pool2d(_shift_down(scales[-1]), 2)))
        x = scales.pop()
        for up in reversed(self.up):
            x = up(torch.cat([F.interpolate(x, scale_factor=2.0), scales.pop()], dim=1))
        return _shift_down(x)


def _shift_down(x: Tensor) -> Tensor:
    return F.pad(x, (0, 0, 1, -1))
