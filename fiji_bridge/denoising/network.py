"""The blind-spot network: each pixel is predicted from its surroundings and never from itself."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fiji_bridge.errors import FijiBridgeError

SLOPE = 0.1
TINY = 1e-30
"""By how much the first of two pixels may be below the second and still count as the larger."""
NEIGHBOUR_SCALES = 3
"""Scales at which neighbouring frames are looked at."""


class _Activated(torch.autograd.Function):
    """A convolution of images side by side in channels, its activation, and rows of zeros above the result.

    By hand, as autograd would copy each image to pad or join it, and each gradient to crop or part it, which
    on a CPU takes as long as the convolutions.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor, padding: int, above: int, *images: Tensor) -> Tensor:
        """Convolve with `padding` rows of zeros on either side, and a column."""
        parts = weight.split([image.shape[1] for image in images], dim=1)
        result = functional.conv2d(images[0], parts[0], bias, padding=(padding, 1))
        for image, part in zip(images[1:], parts[1:], strict=True):
            result += functional.conv2d(image, part, padding=(padding, 1))
        activated = _below_zeros(result, above)
        torch.ops.aten.leaky_relu.out(result, SLOPE, out=activated[:, :, above:])
        ctx.padding, ctx.above = padding, above
        ctx.save_for_backward(weight, activated, *images)
        return activated

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Give those of weight, bias and images."""
        weight, activated, *images = ctx.saved_tensors
        here = torch.ops.aten.leaky_relu_backward(
            gradients[0][:, :, ctx.above :], activated[:, :, ctx.above :], SLOPE, True
        )
        settings = ([len(weight)], [1, 1], [ctx.padding, 1], [1, 1], False, [0, 0], 1)
        back = []
        for number, part in enumerate(weight.split([image.shape[1] for image in images], dim=1)):
            needed = [ctx.needs_input_grad[4 + number], True, number == 0]
            back.append(torch.ops.aten.convolution_backward(here, images[number], part, *settings, needed))
        of_images, of_parts, of_bias = zip(*back, strict=True)
        return torch.cat(of_parts, dim=1), of_bias[0], None, None, *of_images


class _Halved(torch.autograd.Function):
    """The largest of each 2×2 pixels, under as many rows of zeros as the image has above it, 2 or none.

    With 2, each pixel is first shifted down by one: no coarse pixel has then seen below the upper one of the
    two fine rows it covers.
    """

    @staticmethod
    def forward(ctx: Any, image: Tensor, above: int) -> Tensor:
        """Give the largest of rows, then of columns: a multiple faster than the library's."""
        ctx.shown = slice(above // 2, image.shape[2] - above // 2)
        shown = image[:, :, ctx.shown]
        rows = torch.maximum(shown[:, :, 0::2], shown[:, :, 1::2])
        result = _below_zeros(rows[..., 0::2], above)
        torch.maximum(rows[..., 0::2], rows[..., 1::2], out=result[:, :, above:])
        ctx.above = above
        ctx.save_for_backward(image, rows)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Hand each gradient to the largest, of equals to the first."""
        image, rows = ctx.saved_tensors
        by_row, result = torch.empty_like(rows), torch.zeros_like(image)
        columns = [values[..., first::2] for values in (rows, by_row) for first in (0, 1)]
        _to_larger(gradients[0][:, :, ctx.above :], *columns)
        lines = [values[:, :, ctx.shown][:, :, first::2] for values in (image, result) for first in (0, 1)]
        _to_larger(by_row, *lines)
        return result, None


class _SideBySide(torch.autograd.Function):
    """Images of four rotations, turned back and joined in channels, as rows of pixels."""

    @staticmethod
    def forward(ctx: Any, below: int, *images: Tensor) -> Tensor:
        """Give (n, y, x, channels), without the rows `below`."""
        ctx.below = below
        n, channels, height, width = images[0].shape
        result = images[0].new_empty(n, height - below, width, 4 * channels)
        for turns, (image, part) in enumerate(zip(images, result.chunk(4, dim=-1), strict=True)):
            part.copy_(image[:, :, : image.shape[2] - below].permute(0, 2, 3, 1).rot90(-turns, (1, 2)))
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Turn them as the images were."""
        result: list[Tensor | None] = [None]
        for turns, gradient in enumerate(gradients[0].chunk(4, dim=-1)):
            turned = gradient.rot90(turns, (1, 2))
            result.append(functional.pad(turned, (0, 0, 0, 0, 0, ctx.below)).permute(0, 3, 1, 2))
        return tuple(result)


class _Last(torch.autograd.Function):
    """Weighted sums of features (…, feature) in float32, with gradients as exact as the features.

    bfloat16 would round the mean of the prior to 0.4%.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Give (…, output)."""
        ctx.save_for_backward(features, weight)
        return functional.linear(features.float(), weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        """Give those of features, weight and bias."""
        features, weight = ctx.saved_tensors
        rough = gradients[0].to(features.dtype).flatten(0, -2)
        return (
            (rough @ weight.to(rough.dtype)).view_as(features),
            (rough.T @ features.flatten(0, -2)).float(),
            gradients[0].flatten(0, -2).sum(0),
        )


def _to_larger(gradient: Tensor, first: Tensor, second: Tensor, to_first: Tensor, to_second: Tensor) -> None:
    """Write a gradient to where it belongs; dense copies are a multiple faster than every other pixel."""
    gradient, first, second = (
        part.contiguous(memory_format=torch.channels_last) for part in (gradient, first, second)
    )
    mine = torch.ops.aten.threshold_backward(gradient, first - second, -TINY)
    to_first.copy_(mine)
    to_second.copy_(gradient - mine)


def _below_zeros(like: Tensor, above: int) -> Tensor:
    """Memory for an image like this under rows of zeros."""
    n, channels, height, width = like.shape
    result = like.new_empty((n, height + above, width, channels)).permute(0, 3, 1, 2)
    result[:, :, :above] = 0
    return result


class Conv(nn.Conv2d):
    """A 3×3 convolution with its activation."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3)
        nn.init.kaiming_normal_(self.weight, a=SLOPE)
        nn.init.zeros_(torch.jit.annotate(Tensor, self.bias))

    def forward(self, *images: Tensor, padding: int, above: int) -> Tensor:  # type: ignore[override]
        """Convolve images side by side in channels, padded by rows and a column, to one under zeros."""
        weight, bias = (p.to(images[0].dtype) for p in (self.weight, torch.jit.annotate(Tensor, self.bias)))
        result: Tensor = _Activated.apply(weight, bias, padding, above, *images)
        return result


class UNet(nn.Module):
    """Features as fine as the image, from `inputs` channels.

    `upward`, those of a pixel have seen its own row and rows above, never one below: inside, each image has
    two rows of zeros above it, and convolutions pad no rows.
    """

    def __init__(self, inputs: int, features: Sequence[int], upward: bool) -> None:
        super().__init__()
        self.above, finest = 2 if upward else 0, features[0]
        self.stem = nn.ModuleList([Conv(inputs, finest), Conv(finest, finest)])
        scales = list(pairwise(features))
        self.down = nn.ModuleList(Conv(fine, coarse) for fine, coarse in scales)
        self.up = nn.ModuleList(
            nn.ModuleList([Conv(coarse + fine, fine), Conv(fine, fine)]) for fine, coarse in scales
        )

    def forward(self, x: Tensor, shift: int = 0) -> Tensor:
        """Give (n, features[0], shift + height, width), under `shift` rows of zeros.

        Sides must be multiples of the coarsest stride.
        """
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        full, coarsest = self.above, len(self.down)

        def convolve(layer: nn.Module, *images: Tensor, above: int = full) -> Tensor:
            result: Tensor = layer(*images, padding=1 - full // 2, above=above)
            return result

        x = functional.pad(x, (0, 0, full, 0)).contiguous(memory_format=torch.channels_last)
        x = convolve(self.stem[1], convolve(self.stem[0], x), above=full if coarsest else shift)
        finer = []
        for scale, down in enumerate(self.down, 1):
            finer.append(x)
            # What is shown twice as large has half the zeros.
            x = convolve(down, _Halved.apply(x, full), above=full // 2 if scale == coarsest else full)
        for scale in reversed(range(coarsest)):
            join, refine = self.up[scale].children()
            x = convolve(join, functional.interpolate(x, scale_factor=2.0), finer.pop())
            x = convolve(refine, x, above=full // 2 if scale else shift)
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
            whole = isinstance(values, Sequence) and all(isinstance(v, (int, np.integer)) for v in values)
            if not (whole and values and min(values) >= least):
                raise FijiBridgeError(f"{name} is {values}; give whole numbers from {least} on.")
        self.features, self.head, self.outputs = tuple(features), tuple(head), outputs
        self.blind_radius, self.neighbours = blind_radius, neighbours
        finest = features[0]
        self.half_plane = UNet(1 + 2 * neighbours, features, upward=True)
        self.beside = UNet(2 * neighbours, features[:NEIGHBOUR_SCALES], upward=False) if neighbours else None
        self.mix = nn.Conv2d((5 if neighbours else 4) * finest, head[0], 1)
        self.refine = nn.Sequential(  # every other layer only keeps the numbers that files know weights by
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
            (n, height, width, 4 · features[0]): of the image turned by 0, 90, 180 and 270 degrees, turned
            back.
        """
        turned = [x.rot90(k, (2, 3)).contiguous(memory_format=torch.channels_last) for k in range(4)]
        if torch.is_grad_enabled() and x.shape[-1] == x.shape[-2]:
            branches = self.half_plane(torch.cat(turned), 1 + self.blind_radius).chunk(4)
        else:  # one rotation at a time takes a quarter of the memory, and need not be square
            branches = tuple(self.half_plane(image, 1 + self.blind_radius) for image in turned)
        result: Tensor = _SideBySide.apply(1 + self.blind_radius, *branches)
        return result

    def combine(self, half_planes: Tensor, x: Tensor, turn: int = 0) -> Tensor:
        """Parameters of the prior (n, outputs, height, width) from the four half-planes of images `x`.

        An image turned by 90° has the same half-planes, one place on; the result is that of `turn` quarter
        turns, turned back.
        """
        weight = self.mix.weight.flatten(1)
        planes = half_planes.shape[-1]
        if turn:
            rolled = weight[:, :planes].roll(turn * self.features[0], dims=1)
            weight = torch.cat([rolled, weight[:, planes:]], dim=1)
        if self.beside is not None:
            beside = self.beside(x[:, 1:].rot90(turn, (2, 3))).rot90(-turn, (2, 3))
            half_planes = torch.cat([half_planes, beside.permute(0, 2, 3, 1)], dim=-1)
        features = functional.leaky_relu(functional.linear(half_planes, weight, self.mix.bias), SLOPE, True)
        for layer in self.refine[::2]:
            weight, bias = layer.parameters()
            features = functional.linear(features, weight.flatten(1), bias)
            features = functional.leaky_relu(features, SLOPE, True)
        with torch.autocast(features.device.type, enabled=False):
            result: Tensor = _Last.apply(features, self.last.weight.flatten(1), self.last.bias)
        return result.permute(0, 3, 1, 2)

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
