"""Frames and rendered images as inline pictures with a scale bar and marked molecules."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Image = npt.NDArray[Any]


@dataclass(frozen=True)
class Window:
    """A rectangle of pixels."""

    top: int
    left: int
    height: int
    width: int

    def of(self, image: Image) -> Image:
        """Cut the rectangle out of an image."""
        return image[self.top : self.top + self.height, self.left : self.left + self.width]

    def around(self, size: int, shape: tuple[int, int]) -> "Window":
        """Give a square of `size` pixels with the same centre, moved and shrunk to lie inside `shape`."""
        height, width = min(size, shape[0]), min(size, shape[1])
        top = np.clip(self.top + (self.height - height) // 2, 0, shape[0] - height)
        left = np.clip(self.left + (self.width - width) // 2, 0, shape[1] - width)
        return Window(int(top), int(left), height, width)


def crowded(points: npt.NDArray[np.float64], shape: tuple[int, int], size: int) -> Window:
    """Find the square of `size` pixels that holds most points.

    Parameters
    ----------
    points
        Positions (x, y) in pixels, (n, 2).
    shape
        Height and width of the frame.
    size
        Side of the square; smaller where the frame is.
    """
    height, width = min(size, shape[0]), min(size, shape[1])
    step = max(1, min(height, width) // 8)
    tops, lefts = np.arange(0, shape[0] - height + 1, step), np.arange(0, shape[1] - width + 1, step)
    x, y = points[:, 0], points[:, 1]
    rows = (y >= tops[:, None]) & (y < tops[:, None] + height)
    columns = (x >= lefts[:, None]) & (x < lefts[:, None] + width)
    inside = rows.astype(int) @ columns.T.astype(int)
    row, column = np.unravel_index(inside.argmax(), inside.shape)
    return Window(int(tops[row]), int(lefts[column]), height, width)


def grey(image: Image, limits: tuple[float, float]) -> Image:
    """Map an image to 8 bits; what lies outside the limits is black or white."""
    low, high = limits
    return (np.clip((image - low) / max(high - low, 1e-12), 0, 1) * 255).round().astype(np.uint8)


def hot(image: Image, peak: float) -> Image:
    """Colour a rendered image on black, `peak` and above white; the square root shows dim structures."""
    from matplotlib import colormaps

    scaled = np.sqrt(np.clip(image / max(peak, 1e-12), 0, 1))
    return np.asarray(colormaps["inferno"](scaled, bytes=True))[..., :3]


def bar_length(width_nm: float) -> float:
    """Choose a scale bar of 1, 2 or 5 times a power of ten, at most a third of the picture, in nm."""
    exponent = 10.0 ** np.floor(np.log10(width_nm / 3))
    return float(max(step * exponent for step in (1, 2, 5) if step * exponent <= width_nm / 3))


def picture(
    pixels: Image,
    window: Window,
    label: str,
    *,
    nm_per_pixel: float | None,
    marks: Mapping[str, npt.NDArray[np.float64]] | None = None,
    outline: Window | None = None,
) -> str:
    """Give an 8-bit image as SVG in coordinates of its pixels.

    Parameters
    ----------
    pixels
        Grey (y, x) or RGB (y, x, 3), as large as the window or, for rendered images, a multiple of it.
    window
        What part of the frame this is.
    label
        Text for those who cannot see it.
    nm_per_pixel
        Size of a pixel of the window, for the scale bar; None leaves it out.
    marks
        Positions (x, y) in pixels of the whole frame, (n, 2), by the name of their class in the style sheet.
    outline
        A part of the frame to draw a frame around.
    """
    import imagecodecs

    data = base64.b64encode(imagecodecs.png_encode(np.ascontiguousarray(pixels), level=9)).decode()
    width, height = window.width, window.height
    parts = [
        f'<svg class="picture" role="img" aria-label="{label}" viewBox="0 0 {width} {height}">',
        f'<image href="data:image/png;base64,{data}" width="{width}" height="{height}" '
        'preserveAspectRatio="none"/>',
    ]
    for name, points in (marks or {}).items():
        parts.append(_marks(name, points, window))
    if outline is not None:
        x, y = outline.left - window.left, outline.top - window.top
        parts.append(
            f'<rect class="outline" x="{x}" y="{y}" width="{outline.width}" height="{outline.height}"/>'
        )
    if nm_per_pixel:
        parts.append(_scale_bar(width, height, nm_per_pixel))
    return "".join([*parts, "</svg>"])


def _marks(name: str, points: npt.NDArray[np.float64], window: Window) -> str:
    """Draw a ring (raw), a square (others) or a cross (truth) around each position inside the window."""
    moved = points - (window.left, window.top)
    inside = moved[((moved >= 0) & (moved <= (window.width, window.height))).all(axis=1)]
    draw = {"raw": _ring, "truth": _cross}.get(name, _square)
    return f'<g class="marks {name}">' + "".join(draw(x, y) for x, y in inside) + "</g>"


def _ring(x: float, y: float) -> str:
    return f'<circle cx="{x:.2f}" cy="{y:.2f}" r="2.2"/>'


def _square(x: float, y: float) -> str:
    return f'<rect x="{x - 2:.2f}" y="{y - 2:.2f}" width="4" height="4"/>'


def _cross(x: float, y: float) -> str:
    return f'<path d="M{x - 1:.2f} {y:.2f}h2M{x:.2f} {y - 1:.2f}v2"/>'


def _scale_bar(width: int, height: int, nm_per_pixel: float) -> str:
    length = bar_length(width * nm_per_pixel)
    text = f"{length / 1000:g} µm" if length >= 1000 else f"{length:g} nm"
    size, margin = max(width, height) * 0.045, max(width, height) * 0.03
    x, y, thick = margin, height - margin, size * 0.22
    bar = f'x="{x:.2f}" y="{y - thick:.2f}" width="{length / nm_per_pixel:.2f}" height="{thick:.2f}"'
    return (
        f'<g class="scale"><rect {bar}/>'
        f'<text x="{x:.2f}" y="{y - size * 0.5:.2f}" font-size="{size:.2f}">{text}</text></g>'
    )


def contrast(image: Image) -> tuple[float, float]:
    """Choose limits that leave 1% of the pixels black and 0.3% white."""
    low, high = np.percentile(image, [1, 99.7])
    return float(low), float(high)
