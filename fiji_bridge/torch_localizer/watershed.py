"""The watershed of ImageJ's "Find Maxima…", segmented particles without tolerance, which the plugin uses.

Patches grow from the maxima downwards, through 254 grey levels, one direction after another, and never into a
pixel where two would meet. ImageJ and this algorithm of it (M. Schmid) are in the public domain.
"""

import numpy as np
from numba import njit

_DX, _DY = np.array([0, 1, 1, 1, 0, -1, -1, -1]), np.array([-1, -1, 0, 1, 1, 1, 0, -1])
"""The eight directions, clockwise from the one upwards."""

_ORDER = np.array([7, 3, 1, 5, 0, 4, 2, 6])
_TOP = 255
_LISTED, _SEEN, _PEAK, _LEVELLED = 1, 2, 4, 8


def _growth_table() -> np.ndarray:
    """Say into which pixels a patch may grow: (256 sets of neighbours in patches, 8 directions)."""
    table = np.zeros((256, 8), np.bool_)
    for neighbours in range(256):
        there = [bool(neighbours >> d & 1) for d in range(8)]
        table[neighbours] = [there[(d + 4) % 8] for d in range(8)]
        # Beside a neighbour that shares an edge, the corners make no difference.
        joined = [there[d] or (d % 2 and (there[d - 1] or there[(d + 1) % 8])) for d in range(8)]
        changes = sum(bool(joined[d]) != bool(joined[(d + 1) % 8]) for d in range(8))
        if changes >= 4:
            table[neighbours] = False
    return table


_GROWS = _growth_table()


@njit(nogil=True, cache=True)
def watershed(images, segments):
    """Cut images along the valleys between their maxima.

    Parameters
    ----------
    images
        (n, y, x) float32.
    segments
        (n, y, x) bool, overwritten: False on the cuts.
    """
    height, width = images.shape[1:]
    marks, levels = np.empty((height, width), np.uint8), np.empty((height, width), np.uint8)
    queue = np.empty(height * width, np.int64)
    for n in range(images.shape[0]):
        image = images[n]
        lowest, highest = image.min(), image.max()
        if lowest == highest:
            segments[n] = True
            continue
        peaks = _maxima(image, lowest, highest)
        marks[:] = 0
        _mark_peaks(image, peaks, marks, queue)
        _quantize(image, lowest, highest, marks, levels)
        _level_false_peaks(peaks, marks, levels, queue)
        _grow(levels, queue)
        _remove_loose_ends(levels)
        segments[n] = levels == _TOP


@njit(nogil=True, cache=True)
def _maxima(image, lowest, highest):
    """List the pixels that no neighbour exceeds, from the lowest to the highest."""
    height, width = image.shape
    factor = np.float32(2e9 / np.float64(highest - lowest))
    keys = np.empty(height * width, np.int64)
    count = 0
    for y in range(height):
        for x in range(width):
            value = image[y, x]
            if value == lowest:
                continue
            is_maximum = True
            for d in range(8):
                i, j = x + _DX[d], y + _DY[d]
                if 0 <= i < width and 0 <= j < height and image[j, i] > value:
                    is_maximum = False
                    break
            if is_maximum:
                keys[count] = np.int64((value - lowest) * factor) << 32 | (y * width + x)
                count += 1
    return np.sort(keys[:count]) & 0xFFFFFFFF


@njit(nogil=True, cache=True)
def _mark_peaks(image, peaks, marks, queue):
    """Mark the plateaus that have no higher neighbour anywhere."""
    height, width = image.shape
    for k in range(len(peaks) - 1, -1, -1):
        first = peaks[k]
        y0, x0 = first // width, first % width
        if marks[y0, x0] & _SEEN:
            continue
        value = image[y0, x0]
        queue[0], length, at, is_peak = first, 1, 0, True
        marks[y0, x0] |= _LISTED
        while at < length:
            y, x = queue[at] // width, queue[at] % width
            for d in range(8):
                i, j = x + _DX[d], y + _DY[d]
                if not (0 <= i < width and 0 <= j < height) or marks[j, i] & _LISTED:
                    continue
                if marks[j, i] & _SEEN or image[j, i] > value:
                    is_peak = False
                    break
                if image[j, i] == value:
                    queue[length] = j * width + i
                    length += 1
                    marks[j, i] |= _LISTED
            at += 1
        for at in range(length):
            y, x = queue[at] // width, queue[at] % width
            marks[y, x] = _SEEN | (_PEAK if is_peak else 0)


@njit(nogil=True, cache=True)
def _quantize(image, lowest, highest, marks, levels):
    height, width = image.shape
    low = np.float64(lowest)
    span = np.float64(highest) - low
    offset, factor = low - span * (1 / 253 / 2 - 1e-6), 253 / span
    for y in range(height):
        for x in range(width):
            if marks[y, x] & _PEAK:
                levels[y, x] = _TOP
            else:
                level = 1 + int(np.floor((np.float64(image[y, x]) - offset) * factor + 0.5))
                levels[y, x] = min(max(level, 1), 254)


@njit(nogil=True, cache=True)
def _level_false_peaks(peaks, marks, levels, queue):
    """Bring a maximum that is no peak down to where its surroundings reach a peak."""
    height, width = levels.shape
    for k in range(len(peaks) - 1, -1, -1):
        first = peaks[k]
        y0, x0 = first // width, first % width
        if marks[y0, x0] & (_PEAK | _LEVELLED):
            continue
        low = np.int64(levels[y0, x0]) + 1
        queue[0], length, above = first, 1, 1
        marks[y0, x0] |= _LISTED
        reached = False
        while not reached and low > 0:
            low -= 1
            above, at = length, 0
            while at < length and not reached:
                y, x = queue[at] // width, queue[at] % width
                for d in range(8):
                    i, j = x + _DX[d], y + _DY[d]
                    if not (0 <= i < width and 0 <= j < height) or marks[j, i] & _LISTED:
                        continue
                    high_enough = levels[j, i] >= low
                    if marks[j, i] & _PEAK or (marks[j, i] & _LEVELLED and high_enough):
                        reached = True
                        break
                    if high_enough and not marks[j, i] & _LEVELLED:
                        queue[length] = j * width + i
                        length += 1
                        marks[j, i] |= _LISTED
                at += 1
        for at in range(length):
            y, x = queue[at] // width, queue[at] % width
            marks[y, x] &= 255 - _LISTED
            if at < above:
                levels[y, x] = low
                marks[y, x] |= _LEVELLED


@njit(nogil=True, cache=True)
def _grow(levels, queue):
    """Grow the patches of the top level through the levels below it, from the highest to the lowest."""
    height, width = levels.shape
    counts, starts = np.zeros(256, np.int64), np.zeros(257, np.int64)
    for y in range(height):
        for x in range(width):
            if levels[y, x] < _TOP:
                counts[levels[y, x]] += 1
    for level in range(1, 256):
        starts[level + 1] = starts[level] + (counts[level] if level < _TOP else 0)
    filled = starts.copy()
    for y in range(height):
        for x in range(width):
            level = levels[y, x]
            if level < _TOP:
                queue[filled[level]] = y * width + x
                filled[level] += 1
    for level in range(254, 0, -1):
        left, idle, turn = counts[level], 0, 0
        start = starts[level]
        while left > 0 and idle <= 8:
            added = _grow_towards(_ORDER[turn % 8], levels, queue[start : start + left])
            left -= added
            idle = 1 if added else idle + 1
            turn += 1
        if left == 0 or level == 1:
            continue
        below = level - 1
        while below > 1 and counts[below] == 0:
            below -= 1
        # What was not reached, for want of a neighbour, waits for the next level if it is at the border.
        end = starts[below] + counts[below]
        for k in range(start, start + left):
            y, x = queue[k] // width, queue[k] % width
            if x == 0 or y == 0 or x == width - 1 or y == height - 1:
                queue[end] = queue[k]
                end += 1
        counts[below] = end - starts[below]


@njit(nogil=True, cache=True)
def _grow_towards(direction, levels, waiting):
    """Let patches grow by a pixel in one direction; those still waiting move to the front."""
    height, width = levels.shape
    added = np.empty(len(waiting), np.int64)
    grown = kept = 0
    for k in range(len(waiting)):
        y, x = waiting[k] // width, waiting[k] % width
        neighbours = 0
        for d in range(8):
            i, j = x + _DX[d], y + _DY[d]
            if 0 <= i < width and 0 <= j < height and levels[j, i] == _TOP:
                neighbours |= 1 << d
        if _GROWS[neighbours, direction]:
            added[grown] = waiting[k]
            grown += 1
        else:
            waiting[kept] = waiting[k]
            kept += 1
    for k in range(grown):
        levels[added[k] // width, added[k] % width] = _TOP
    return grown


@njit(nogil=True, cache=True)
def _remove_loose_ends(levels):
    """Fill the patches and lines that do not part anything."""
    height, width = levels.shape
    for y in range(height):
        for x in range(width):
            if levels[y, x] == _TOP:
                continue
            lines = _lines_from(levels, x, y)
            if lines <= 1:
                levels[y, x] = _TOP
            i, j = x, y
            while lines == 1:
                lines = 0
                for d in range(0, 8, 2):
                    a, b = i + _DX[d], j + _DY[d]
                    if 0 <= a < width and 0 <= b < height and levels[b, a] != _TOP:
                        beyond = _lines_from(levels, a, b)
                        if beyond <= 1:
                            i, j, lines = a, b, beyond
                            levels[j, i] = _TOP
                            break


@njit(nogil=True, cache=True)
def _lines_from(levels, x, y):
    """Count the lines of pixels below the top level that go out from a pixel; beyond the border all are."""
    height, width = levels.shape
    count = 0
    before = first = True
    for d in range(8):
        i, j = x + _DX[d], y + _DY[d]
        here = before
        if 0 <= i < width and 0 <= j < height:
            low = levels[j, i] != _TOP
            if d % 2 == 0:
                here = low
            elif not low:
                here = False
        else:
            here = True
        if here and not before:
            count += 1
        before = here
        if d == 0:
            first = here
    return count + (1 if first and not before else 0)
