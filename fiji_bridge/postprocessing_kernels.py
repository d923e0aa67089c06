"""The loops of `postprocessing` over molecules and their neighbours, compiled by numba."""

import numpy as np
from numba import njit


@njit(nogil=True, cache=True)
def duplicates(starts, x, y, radius, uncertainty):
    """Tell the molecules that have one nearer than their radius that is no less certain.

    Parameters
    ----------
    starts
        (frames + 1,) where the rows of each frame begin, and the end of the last.
    x, y, radius, uncertainty
        (n,) in the order of the frames and, in each, of x.

    Returns
    -------
    ndarray
        (n,) bool.
    """
    found = np.zeros(len(x), np.bool_)
    for frame in range(len(starts) - 1):
        first, end = starts[frame], starts[frame + 1]
        for row in range(first, end):
            for step in (-1, 1):
                other = row + step
                while first <= other < end and abs(x[other] - x[row]) < radius[row] and not found[row]:
                    square = (x[other] - x[row]) ** 2 + (y[other] - y[row]) ** 2
                    if square < radius[row] ** 2 and uncertainty[other] <= uncertainty[row]:
                        found[row] = True
                    other += step
    return found


@njit(nogil=True, cache=True)
def chains(frames, place, distance, off, most, recent):
    """Join each molecule to the nearest open chain of frames before, if that is nearer than the distance.

    Several of one frame can join the same chain, as in the plugin, which then is where the last of them is.

    Parameters
    ----------
    frames
        (n,) int64, not falling.
    place
        (n, 3) float64.
    distance
        In the units of the places.
    off
        Frames without the molecule after which its chain is closed. Negative: as many as twice its length,
        looked at after each frame that has molecules.
    most
        Frames after which a chain is closed in any case; 0 for never.
    recent
        How many of the last molecules of a chain have their mean where it is looked for.

    Returns
    -------
    ndarray
        (n,) int64 number of each molecule's chain, in the order in which they begin.
    """
    count = len(frames)
    number = np.empty(count, np.int64)
    before = np.empty(count, np.int64)  # the row before in the same chain
    # Of each chain:
    last, began, length = np.empty(count, np.int64), np.empty(count, np.int64), np.empty(count, np.int64)
    active, seen = np.empty(count, np.int64), np.empty((count, 3))
    chain_count = active_count = 0
    start = 0
    while start < count:
        frame = frames[start]
        end = start
        while end < count and frames[end] == frame:
            end += 1
        kept = 0
        for index in range(active_count):
            chain = active[index]
            if off >= 0:
                closed = frame - 1 - frames[last[chain]] > off
            else:
                closed = frames[start - 1] - frames[last[chain]] > 2 * length[chain]
            if not (closed or (most > 0 and frame - frames[began[chain]] >= most)):
                active[kept] = chain
                kept += 1
        active_count = kept
        for index in range(active_count):
            seen[index] = _recent_place(place, last[active[index]], before, recent)
        order = np.argsort(seen[:active_count, 0])
        along = seen[:active_count, 0][order]
        waiting = active_count
        for row in range(start, end):
            joined = -1
            if waiting:
                chain = active[order[_nearest(seen, order, along, place[row])]]
                where = _recent_place(place, last[chain], before, recent)
                if ((where - place[row]) ** 2).sum() < distance**2:
                    joined = chain
            if joined >= 0:
                before[row] = last[joined]
                length[joined] += 1
            else:
                joined = chain_count
                chain_count += 1
                before[row], began[joined], length[joined] = -1, row, 1
                active[active_count] = joined
                active_count += 1
            last[joined] = row
            number[row] = joined
        start = end
    return number


@njit(nogil=True, cache=True)
def _recent_place(place, row, before, recent):
    """Give the mean place of a row and of those before it in its chain."""
    total, taken = np.zeros(3), 0
    while row >= 0 and taken < recent:
        total += place[row]
        taken += 1
        row = before[row]
    return total / taken


@njit(nogil=True, cache=True)
def _nearest(places, order, along, wanted):
    """Find the nearest of places that `order` sorts by their first coordinates, which are `along`."""
    right = np.searchsorted(along, wanted[0])
    left = right - 1
    best, square = -1, np.inf
    while left >= 0 or right < len(along):
        to_left = wanted[0] - along[left] if left >= 0 else np.inf
        to_right = along[right] - wanted[0] if right < len(along) else np.inf
        if min(to_left, to_right) ** 2 > square:
            break
        if to_left <= to_right:
            index, left = left, left - 1
        else:
            index, right = right, right + 1
        distance = ((places[order[index]] - wanted) ** 2).sum()
        if distance < square:
            best, square = index, distance
    return best
