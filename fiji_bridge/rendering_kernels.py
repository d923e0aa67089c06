"""The loops of `rendering`, compiled by numba.

Each draws molecules in their order into the rows `first` to `last` of an image (z, y, x) float32, so that
bands of rows can be drawn on several threads and every sum is formed in one order, which is the plugin's as
well. Positions are in pixels and slices of the image; they are never negative along x and y.
"""

import math

import numpy as np
from numba import njit

_ERFC = (
    -1.26551223,
    1.00002368,
    0.37409196,
    0.09678418,
    -0.18628806,
    0.27886807,
    -1.13520398,
    1.48851587,
    -0.82215223,
    0.17087277,
)


@njit(nogil=True, cache=True)
def count(image, first, last, x, y, z, weight):
    """Add `weight` to the pixel of each molecule."""
    slices, _, width = image.shape
    for n in range(len(x)):
        u, v, w = int(x[n]), int(y[n]), int(z[n])
        if first <= v < last and u < width and 0 <= w < slices:
            image[w, v, u] += weight


@njit(nogil=True, cache=True)
def mark(image, first, last, x, y, z):
    """Set the pixel of each molecule to 1."""
    slices, _, width = image.shape
    for n in range(len(x)):
        u, v, w = int(x[n]), int(y[n]), int(z[n])
        if first <= v < last and u < width and 0 <= w < slices:
            image[w, v, u] = 1.0


@njit(nogil=True, cache=True)
def shifted_histograms(image, first, last, x, y, z, shifts, z_shifts):
    """Add a pyramid for each molecule: as many counts as shifted bins hold the pixel and the molecule."""
    slices, _, width = image.shape
    for n in range(len(x)):
        u, v, w = int(x[n]), int(y[n]), int(z[n])
        low, high = max(v - shifts + 1, first), min(v + shifts, last)
        if low >= high or w <= -z_shifts or w >= slices + z_shifts:
            continue
        left, right = max(u - shifts + 1, 0), min(u + shifts, width)
        for k in range(max(w - z_shifts + 1, 0), min(w + z_shifts, slices)):
            depth = z_shifts - abs(k - w)
            for row in range(low, high):
                height = depth * (shifts - abs(row - v))
                for column in range(left, right):
                    image[k, row, column] += np.float32(height * (shifts - abs(column - u)))


@njit(nogil=True, cache=True)
def gaussians(image, first, last, x, y, z, spread, z_spread, most, deep):
    """Add the integral of a Gaussian of the sum 1 over each pixel, to three standard deviations.

    Parameters
    ----------
    image, first, last, x, y, z
        As for the others; z in slices.
    spread, z_spread
        Standard deviation of each molecule, in pixels and in slices.
    most
        Largest radius that is drawn [px].
    deep
        Whether the image has slices; each then holds what lies in it by the plugin's count, which has the
        first slice end where the range of z begins.
    """
    slices, _, width = image.shape
    along_x, along_y = np.empty(2 * most + 1), np.empty(2 * most + 1)
    for n in range(len(x)):
        u, v, w = int(x[n]), int(y[n]), int(z[n])
        radius = min(math.ceil(3 * spread[n]), most)
        low, high = max(v - radius, first), min(v + radius + 1, last)
        reach = max(int(3 * z_spread[n]), 1) if deep else 0
        if low >= high or w + reach < 0 or w - reach >= slices:
            continue
        left, right = max(u - radius, 0), min(u + radius + 1, width)
        _integrals(along_x, left, right, x[n], spread[n])
        _integrals(along_y, low, high, y[n], spread[n])
        for k in range(max(w - reach, 0), min(w + reach + 1, slices)):
            part = 2.0
            if deep:
                scale = 1 / (math.sqrt(2.0) * z_spread[n])
                part = _erf((z[n] - (k - 1)) * scale) - _erf((z[n] - k) * scale)
            for row in range(low, high):
                for column in range(left, right):
                    value = 0.125 * along_x[column - left] * along_y[row - low] * part
                    image[k, row, column] += np.float32(value)


@njit(nogil=True, cache=True)
def _integrals(parts, first, last, at, spread):
    """Give twice the integral of a Gaussian over each of the pixels `first` to `last`."""
    scale = 1 / (math.sqrt(2.0) * spread)
    before = _erf((first - at) * scale)
    for pixel in range(first, last):
        after = _erf((pixel + 1 - at) * scale)
        parts[pixel - first] = after - before
        before = after


@njit(nogil=True, cache=True)
def _erf(value):
    """Give the error function to 1.2e-7, by the series that the plugin draws with.

    Press et al., Numerical Recipes, 2nd edition (1992), section 6.2.
    """
    t = 1 / (1 + 0.5 * abs(value))
    exponent = 0.0
    for coefficient in _ERFC[::-1]:
        exponent = exponent * t + coefficient
    rest = t * math.exp(exponent - value * value)
    return 1 - rest if value >= 0 else rest - 1
