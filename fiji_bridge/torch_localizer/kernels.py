"""The minimizer of `fitting`, one spot after another, compiled by numba: what the CPU runs.

Batches of small problems suit a GPU. A CPU does a spot faster from start to end in its first-level cache, by
an order of magnitude, so that the algorithm is here once more in scalar form; a test holds the two together.
"""

import math
from typing import Any

import numpy as np
from numba import njit
from numpy.polynomial import chebyshev
from scipy.special import erfcx

INTEGRATED, SAMPLED, ASTIGMATIC = range(3)
"""Kinds of point spread function."""

ALONE = 5
"""Parameters of a spot of one molecule."""

LANES = 16
"""Spots that go through the same arithmetic together, as the processor's vectors take them."""

BLOCK = 4
"""Pixels of a row that are summed in the processor's registers."""

DIMMEST = 1e-6
"""Light of a pixel [photons] that counts as none."""

CHUNK = 64
"""Pixels of a row whose likelihood ratios go through the same arithmetic together."""

LEAST = 1e-3
"""Photons a pixel of the dimmest background that a likelihood ratio takes for possible."""

FRESH, SEARCHING, DONE, FAILED = range(4)
"""Of a search, its status: not begun, and so on."""

STATUS, MISFIT, REACH, DAMPING, LENGTH, STEPS, TRIALS = range(7)
"""Numbers of a search: those of its point, radius of the trust region, Levenberg-Marquardt parameter, length
of the point in scaled parameters, accepted and tried points."""

POINT, TRIAL, STEP, SCALE, LENGTHS = range(5)
"""Vectors of a search: where it stands, what it tries and the way there, the largest lengths of the
derivatives so far, by which parameters are scaled, and those at the point."""

_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "cache": True,
    "error_model": "numpy",
    "fastmath": {"reassoc", "contract", "arcp", "nsz"},
}
# What allocates nothing need not count references to arrays, whose atomic counters took a fifth of the time.
_INNER = {**_OPTIONS, "_nrt": False}
_EXACT = {**_INNER, "fastmath": {"contract"}}
_IN_ORDER = {**_INNER, "fastmath": False}
# Where the number of parameters is written out, their short loops become straight lines.
_INLINE = {**_INNER, "forceinline": True}
_TINY = np.finfo(np.float64).tiny

# Loops over arrays without branches run eight values at a time, which calls of the C library do not. So the
# exponential, the error function and the logarithm are here as polynomials, exact to 1e-14.
_SHIFT = 1.5 * 2.0**52
_LOG2_HIGH, _LOG2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10
_EXP = tuple(1 / math.factorial(k) for k in range(13, -1, -1))
_LOG = tuple(2 / (2 * k + 1) for k in range(10, -1, -1))
_LARGEST, _BEND = 6.0, 3.75
_SPAN = 2 / ((_LARGEST - _BEND) / (_LARGEST + _BEND) + 1)


def _scaled_complement(v):
    """Give exp(z²)·erfc(z) over v in -1…1, where z runs from 0 to `_LARGEST`."""
    u = (v + 1) / _SPAN - 1
    return erfcx(_BEND * (1 + u) / (1 - u))


_ERFC = tuple(chebyshev.cheb2poly(chebyshev.chebinterpolate(_scaled_complement, 16))[::-1].tolist())


@njit(**_OPTIONS)
def fit_spots(
    kind,
    calibration,
    likelihood,
    emitters,
    shared,
    bounds,
    stops,
    start,
    pixels,
    base,
    weights,
    points,
    models,
    misfits,
):
    """Minimize the misfit of each spot.

    Parameters
    ----------
    kind
        ``INTEGRATED``, ``SAMPLED`` or ``ASTIGMATIC``.
    calibration
        (12,) float64, of the astigmatic kind: see `lens_calibration.read_calibration`.
    likelihood
        Whether the misfit is the Poisson deviance and not the weighted sum of squares.
    emitters, shared
        How many molecules a spot has, and whether they have one intensity between them.
    bounds
        (3,) between which the free intensities stay, and whether the widths stay as they are (1 or 0).
    stops
        (5,) radius of the first trust region, tolerances of misfit and of point, accepted and tried points
        at most.
    start
        (n, p) free parameters: x, y, width and intensity of each molecule, then the offset; where `shared`,
        the intensity stands once, before the offset.
    pixels, base, weights
        (n, side²), y slowest; `base` is a known background, or has no rows.
    points, models, misfits
        (n, p), (n, side²) and (n,), overwritten: the free parameters of the minimum, not numbers where there
        is none, and the model and the misfit there.
    """
    spots, m = pixels.shape
    p = start.shape[1]
    side = int(math.sqrt(m) + 0.5)
    together = emitters == 1 and kind != ASTIGMATIC
    lanes = LANES if together else 1
    flat, logs = np.zeros(m), np.empty((2, m))
    axes, edges = np.empty((2, 3, side)), np.empty((4, 2 * side + 2))
    shapes = np.empty((emitters, 4, m))
    columns, mean = np.empty((p + 1, m)), np.empty(m)
    augmented, damped = np.empty((p + 1, 2 * p)), np.empty((p, p + 1))
    # What stands in the lanes.
    spot, state = np.full(lanes, -1), np.zeros((lanes, 7))
    vectors, triangles = np.empty((lanes, 5, p)), np.empty((lanes, 2, p, p + 1))
    wide = -(-side // BLOCK) * BLOCK
    seen, work = np.zeros(3 * side * wide * lanes), np.zeros(3 * side * wide * lanes)
    tried, own, found = np.ones((p, lanes)), np.zeros(lanes), np.empty(lanes)
    lines, borders = np.zeros((2, wide * 3 * lanes)), np.empty((4, (2 * side + 2) * lanes))
    values, partial, sums = np.empty((3, side * wide * lanes)), np.empty(14 * lanes), np.empty(20 * lanes)
    triangle, exact = np.empty(30 * lanes), np.zeros(lanes)
    coming = 0
    while True:
        left = 0
        for lane in range(lanes):
            if spot[lane] < 0 and coming < spots:
                n = coming
                coming += 1
                spot[lane] = n
                state[lane, STATUS] = FRESH
                own[lane] = _own_deviance(pixels[n], mean, logs) if likelihood else 0.0
                point, trial = vectors[lane, POINT], vectors[lane, TRIAL]
                for k in range(p):
                    point[k] = trial[k] = start[n, k]
                _keep_within(trial, bounds, emitters, shared)
                if together:
                    below = base[n] if base.shape[0] > 0 else flat
                    for j in range(side):
                        for i in range(side):
                            at = 3 * (j * wide + i) * lanes + lane
                            seen[at] = pixels[n, j * side + i]
                            seen[at + lanes] = below[j * side + i]
                            seen[at + 2 * lanes] = weights[n, j * side + i]
            if spot[lane] >= 0:
                left += 1
                for k in range(p):
                    tried[k, lane] = vectors[lane, TRIAL, k]
        if left == 0:
            break
        if together:
            _sum_up(
                kind, likelihood, tried, seen, own, lines, borders, values, work, partial, sums, found
            )  # fmt: skip
            _decompose_sums(sums, tried, bounds, partial, triangle, exact)
        for lane in range(lanes):
            n = spot[lane]
            if n < 0:
                continue
            trial, rows = vectors[lane, TRIAL], triangles[lane, 1]
            if together and exact[lane] != 0:
                for k in range(p):
                    for j in range(k, p + 1):
                        rows[k, j] = triangle[((p + 1) * k + j) * lanes + lane]
            else:
                found[lane] = _linearize(
                    kind, calibration, likelihood, emitters, shared, bounds, trial, pixels[n], own[lane],
                    base[n] if base.shape[0] > 0 else flat, weights[n],
                    axes, edges, shapes, logs, mean, columns, rows,
                )  # fmt: skip
                for j in range(side):
                    for i in range(side):
                        work[3 * (j * wide + i) * lanes + lane] = mean[j * side + i]
            if together:
                better = _judge(found[lane], stops, state[lane], vectors[lane], triangles[lane], ALONE)
            else:
                better = _judge(found[lane], stops, state[lane], vectors[lane], triangles[lane], p)
            if better:
                for j in range(side):
                    for i in range(side):
                        models[n, j * side + i] = work[3 * (j * wide + i) * lanes + lane]
            if state[lane, STATUS] == SEARCHING:
                if together:
                    _propose(state[lane], vectors[lane], triangles[lane, 0], augmented, damped, ALONE)
                else:
                    _propose(state[lane], vectors[lane], triangles[lane, 0], augmented, damped, p)
                _keep_within(trial, bounds, emitters, shared)
                continue
            done = state[lane, STATUS] == DONE
            misfits[n] = state[lane, MISFIT] if done else math.inf
            for k in range(p):
                points[n, k] = vectors[lane, POINT, k] if done else math.nan
            spot[lane] = -1


@njit(**_INLINE)
def _judge(misfit, stops, state, vectors, triangles, p):
    """Take the trial point or leave it, and change the trust region; tells which.

    Parameters
    ----------
    misfit
        At the trial point.
    stops
        See `fit_spots`.
    state
        The search's ``STATUS`` and the other numbers named with it.
    vectors
        (5, p) ``POINT``, ``TRIAL`` and so on.
    triangles
        (2, p, p + 1) of the linear problems at the point and at the trial.
    p
        Number of parameters.
    """
    point, trial, step = vectors[POINT], vectors[TRIAL], vectors[STEP]
    scale, lengths = vectors[SCALE], vectors[LENGTHS]
    first_step, tolerance, point_tolerance = stops[0], stops[1], stops[2]
    if state[STATUS] == FRESH:
        _go_there(misfit, state, vectors, triangles, p)
        length = 0.0
        for k in range(p):
            scale[k] = lengths[k] if lengths[k] != 0 else 1.0
            length += (scale[k] * point[k]) ** 2
        length = math.sqrt(length)
        state[REACH] = first_step * (length if length != 0 else 1.0)
        state[LENGTH] = length
        state[DAMPING] = state[STEPS] = state[TRIALS] = 0.0
        if not math.isfinite(misfit):
            state[STATUS] = FAILED
        elif _is_stationary(triangles[0], lengths, misfit, tolerance, p):
            state[STATUS] = DONE
        else:
            state[STATUS] = SEARCHING
        return True
    before, damping, reach = state[MISFIT], state[DAMPING], state[REACH]
    step_length = linear = 0.0
    for k in range(p):
        step_length += (scale[k] * step[k]) ** 2
    for i in range(p):
        total = 0.0
        for k in range(i, p):
            total += triangles[0, i, k] * step[k]
        linear += total * total
    step_length = math.sqrt(step_length)
    if state[STEPS] == 0:
        reach = min(reach, step_length)
    actual = 1 - misfit / before if 0.01 * misfit < before else -1.0
    linear /= before
    penalty = damping * step_length**2 / before
    predicted, slope = linear + 2 * penalty, -(linear + penalty)
    ratio = actual / predicted if predicted != 0 else 0.0
    if ratio <= 0.25:
        shrink = 0.5 * slope / (slope + 0.5 * actual) if actual < 0 else 0.5
        if 0.01 * misfit >= before or shrink < 0.1:
            shrink = 0.1
        reach = shrink * min(reach, 10 * step_length)
        damping /= shrink
    elif damping == 0 or ratio >= 0.75:
        reach = 2 * step_length
        damping *= 0.5
    state[DAMPING], state[REACH] = damping, reach
    state[TRIALS] += 1
    done = abs(actual) <= tolerance and predicted <= tolerance and ratio <= 2
    better = ratio >= 1e-4
    if better:
        state[STEPS] += 1
        still = True
        length = 0.0
        for k in range(p):
            size = max(abs(trial[k]), abs(point[k]), 1.0)
            still = still and abs(trial[k] - point[k]) <= point_tolerance * size
            length += (scale[k] * trial[k]) ** 2
        state[LENGTH] = math.sqrt(length)
        _go_there(misfit, state, vectors, triangles, p)
        done = done or still or state[STEPS] >= stops[3]
        done = done or _is_stationary(triangles[0], lengths, misfit, tolerance, p)
        for k in range(p):
            scale[k] = max(scale[k], lengths[k])
    if done or reach <= tolerance * state[LENGTH]:
        state[STATUS] = DONE
    elif state[TRIALS] >= stops[4] or math.isnan(reach):
        state[STATUS] = FAILED
    return better


@njit(**_INLINE)
def _go_there(misfit, state, vectors, triangles, p):
    state[MISFIT] = misfit
    rows, trial_rows = triangles[0], triangles[1]
    for k in range(p):
        vectors[POINT, k] = vectors[TRIAL, k]
        total = 0.0
        for i in range(k + 1):
            total += trial_rows[i, k] ** 2
        vectors[LENGTHS, k] = math.sqrt(total)
        for i in range(k, p + 1):
            rows[k, i] = trial_rows[k, i]


@njit(**_OPTIONS)
def cramer_rao(kind, calibration, emitters, shared, fixed, side, points, base, variances):
    """Give the variance bound of each free parameter: the diagonal of the Fisher information's inverse.

    The parameters are as in `fit_spots`, in photons; `variances` is overwritten.
    """
    m, p = side * side, points.shape[1]
    axes, edges = np.empty((2, 3, side)), np.empty((4, 2 * side + 2))
    shapes, logs, mean = np.empty((emitters, 4, m)), np.empty((2, m)), np.empty(m)
    columns, rows, inverse = np.empty((p + 1, m)), np.empty((p, p + 1)), np.empty((p, p))
    flat, unbounded = np.zeros(m), np.array([0.0, np.inf, fixed])
    for n in range(points.shape[0]):
        below = base[n] if base.shape[0] > 0 else flat
        _linearize(
            kind, calibration, True, emitters, shared, unbounded, points[n], flat, 0.0, below, flat,
            axes, edges, shapes, logs, mean, columns, rows,
        )  # fmt: skip
        # The information is RᵀR, and its inverse the product of R's inverse with that's transpose.
        for k in range(p):
            for i in range(p - 1, -1, -1):
                total = 1.0 if i == k else 0.0
                for j in range(i + 1, p):
                    total -= rows[i, j] * inverse[j, k]
                # What the pixels do not depend on, or is known, has no part in it.
                inverse[i, k] = total / rows[i, i] if i <= k and rows[i, i] != 0 else 0.0
        for i in range(p):
            total = 0.0
            for k in range(p):
                total += inverse[i, k] ** 2
            variances[n, i] = total


@njit(**_INNER)
def _keep_within(point, bounds, emitters, shared):
    if bounds[1] == math.inf:
        return
    if shared:
        point[3 * emitters] = min(max(abs(point[3 * emitters]), bounds[0]), bounds[1])
    else:
        for e in range(emitters):
            point[4 * e + 3] = min(max(abs(point[4 * e + 3]), bounds[0]), bounds[1])


@njit(**_INNER)
def _linearize(
    kind, calibration, likelihood, emitters, shared, bounds, point, data, own, base, weight,
    axes, edges, shapes, logs, mean, columns, rows,
):  # fmt: skip
    """Give the misfit at `point`; leave the model in `mean`, the linear problem's triangle in `rows`."""
    m, p = len(data), len(point)
    stride = 3 if shared else 4
    offset = point[p - 1]
    for i in range(m):
        mean[i] = base[i] + offset * offset
    for e in range(emitters):
        x, y, width = point[stride * e], point[stride * e + 1], point[stride * e + 2]
        root = point[3 * emitters] if shared else point[4 * e + 3]
        shape = shapes[e]
        if kind == ASTIGMATIC:
            _astigmatic(calibration, x, y, width, axes.shape[2], shape)
        else:
            if kind == INTEGRATED:
                _integrated(x, y, width, edges, axes)
            else:
                _sampled(x, y, width, axes)
            _outer(axes, shape)
        intensity = root * root
        for i in range(m):
            mean[i] += intensity * shape[0, i]
    # The last row holds the roots of the weights until the residual replaces them.
    roots = columns[p]
    if likelihood:
        misfit = _deviance(data, own, mean, roots, logs)
    else:
        misfit = 0.0
        for i in range(m):
            residual = data[i] - mean[i]
            misfit += weight[i] * residual * residual
            roots[i] = weight[i]
        for i in range(m):
            roots[i] = math.sqrt(roots[i])
    if shared:
        for i in range(m):
            columns[3 * emitters, i] = 0.0
    for e in range(emitters):
        root = point[3 * emitters] if shared else point[4 * e + 3]
        intensity = root * root
        shape = shapes[e]
        k = stride * e
        for i in range(m):
            scaled = intensity * roots[i]
            columns[k, i] = scaled * shape[1, i]
            columns[k + 1, i] = scaled * shape[2, i]
            columns[k + 2, i] = scaled * shape[3, i]
        if shared:
            for i in range(m):
                columns[3 * emitters, i] += 2 * root * roots[i] * shape[0, i]
        else:
            for i in range(m):
                columns[k + 3, i] = 2 * root * roots[i] * shape[0, i]
    for i in range(m):
        columns[p - 1, i] = 2 * offset * roots[i]
        columns[p, i] = roots[i] * (data[i] - mean[i])
    if bounds[1] < math.inf:
        _free_within(point, bounds, emitters, shared, columns)
    if bounds[2] != 0:
        for e in range(emitters):
            columns[stride * e + 2] = 0.0
    _triangulate(columns, rows)
    return misfit


# Lanes: what all of them take part in stands lane fastest in one dimension, or in slices of it, at distances
# known at compile time; only so do loops over the lanes become the processor's vectors.


@njit(**_INNER)
def _sum_up(kind, likelihood, tried, seen, own, lines, borders, logs, work, partial, sums, found):
    """Sum over the pixels of one-molecule spots what `_decompose_sums` makes triangles of, all lanes at once.

    A row of pixels has one share of the light along y; so its weights and residuals are first summed with the
    shares along x and their derivatives.

    Parameters
    ----------
    kind, likelihood
        As in `fit_spots`.
    tried
        (5, lanes) points.
    seen
        (pixels × 3 × lanes,) pixels, base and weights; rows of pixels go on, with no weight, to a multiple of
        ``BLOCK``.
    own
        (lanes,) what the pixels alone contribute to the deviance.
    lines
        (2, row of pixels × 3 × lanes) work space, zero at first.
    borders, logs, partial
        Work space.
    work
        (pixels × 3 × lanes), overwritten: model, weight and weighted residual.
    sums
        (20 × lanes,), overwritten: the upper triangle of the products of the derivatives by x, y, width,
        intensity and offset and of the residual, without that of the residual with itself.
    found
        (lanes,) misfits, overwritten.
    """
    wide = lines.shape[1] // (3 * LANES)
    side = len(seen) // (wide * 3 * LANES)
    _share_out(kind, tried, side, lines, borders)
    along_x, along_y, light = lines[0], lines[1], partial[: 2 * LANES]
    found[:] = 0.0
    for j in range(side):
        for v in range(LANES):
            light[v] = tried[3, v] * tried[3, v] * along_y[3 * j * LANES + v]
            light[LANES + v] = tried[4, v] * tried[4, v]
        for i in range(0, wide, BLOCK):
            at = (j * wide + i) * LANES
            _model_light(light, along_x[3 * i * LANES :], seen[3 * at :], work[3 * at :], logs[0, at:])
    if likelihood:
        _logarithm(logs[0], logs[1], logs[2])
    for at in range(0, side * wide * LANES, BLOCK * LANES):
        if likelihood:
            _add_deviance(seen[3 * at :], logs[0, at:], logs[2, at:], work[3 * at :], found)
        else:
            _add_squares(seen[3 * at :], work[3 * at :], found)
    if likelihood:
        for v in range(LANES):
            found[v] = max(2 * (found[v] + own[v]), 0.0)
    sums[:] = 0.0
    for j in range(side):
        partial[:] = 0.0
        for i in range(0, wide, BLOCK):
            _add_block(work[3 * (j * wide + i) * LANES :], along_x[3 * i * LANES :], partial)
        _add_row(partial, along_y[3 * j * LANES :], sums)


@njit(**_INNER)
def _model_light(light, share, seen, work, bright):
    for v in range(LANES):
        for i in range(BLOCK):
            value = seen[(3 * i + 1) * LANES + v] + light[LANES + v] + light[v] * share[3 * i * LANES + v]
            work[3 * i * LANES + v] = value
            bright[i * LANES + v] = max(value, DIMMEST)


@njit(**_INNER)
def _add_squares(seen, work, found):
    for v in range(LANES):
        total = 0.0
        for i in range(BLOCK):
            at = 3 * i * LANES + v
            weight, residual = seen[at + 2 * LANES], seen[at] - work[at]
            work[at + LANES] = weight
            work[at + 2 * LANES] = weight * residual
            total += weight * residual * residual
        found[v] += total


@njit(**_INNER)
def _add_deviance(seen, bright, logarithm, work, found):
    for v in range(LANES):
        total = 0.0
        for i in range(BLOCK):
            at = 3 * i * LANES + v
            data, given, light = seen[at], seen[at + 2 * LANES], bright[i * LANES + v]
            weight = given / light
            work[at + LANES] = weight
            work[at + 2 * LANES] = (data - work[at]) * weight
            total += given * (light - data * logarithm[i * LANES + v])
        found[v] += total


@njit(**_INNER)
def _add_block(work, along_x, partial):
    for v in range(LANES):
        w1 = ws = wc = wd = wss = wsc = wsd = wcc = wcd = wdd = r1 = rs = rc = rd = 0.0
        for i in range(BLOCK):
            w, r = work[(3 * i + 1) * LANES + v], work[(3 * i + 2) * LANES + v]
            s, c, d = (
                along_x[3 * i * LANES + v],
                along_x[(3 * i + 1) * LANES + v],
                along_x[(3 * i + 2) * LANES + v],
            )
            by_s, by_c, by_d = w * s, w * c, w * d
            w1 += w
            ws += by_s
            wc += by_c
            wd += by_d
            wss += by_s * s
            wsc += by_s * c
            wsd += by_s * d
            wcc += by_c * c
            wcd += by_c * d
            wdd += by_d * d
            r1 += r
            rs += r * s
            rc += r * c
            rd += r * d
        partial[v] += w1
        partial[LANES + v] += ws
        partial[2 * LANES + v] += wc
        partial[3 * LANES + v] += wd
        partial[4 * LANES + v] += wss
        partial[5 * LANES + v] += wsc
        partial[6 * LANES + v] += wsd
        partial[7 * LANES + v] += wcc
        partial[8 * LANES + v] += wcd
        partial[9 * LANES + v] += wdd
        partial[10 * LANES + v] += r1
        partial[11 * LANES + v] += rs
        partial[12 * LANES + v] += rc
        partial[13 * LANES + v] += rd


@njit(**_INNER)
def _add_row(partial, along_y, sums):
    for v in range(LANES):
        share, centre, width = along_y[v], along_y[LANES + v], along_y[2 * LANES + v]
        s, c, d = partial[LANES + v], partial[2 * LANES + v], partial[3 * LANES + v]
        ss, sc, sd = partial[4 * LANES + v], partial[5 * LANES + v], partial[6 * LANES + v]
        cc, cd, dd = partial[7 * LANES + v], partial[8 * LANES + v], partial[9 * LANES + v]
        rs, rc, rd = partial[11 * LANES + v], partial[12 * LANES + v], partial[13 * LANES + v]
        sums[v] += share * share * cc
        sums[LANES + v] += share * centre * sc
        sums[2 * LANES + v] += share * (width * sc + share * cd)
        sums[3 * LANES + v] += share * share * sc
        sums[4 * LANES + v] += share * c
        sums[5 * LANES + v] += share * rc
        sums[6 * LANES + v] += centre * centre * ss
        sums[7 * LANES + v] += centre * (width * ss + share * sd)
        sums[8 * LANES + v] += centre * share * ss
        sums[9 * LANES + v] += centre * s
        sums[10 * LANES + v] += centre * rs
        sums[11 * LANES + v] += width * width * ss + 2 * width * share * sd + share * share * dd
        sums[12 * LANES + v] += share * (width * ss + share * sd)
        sums[13 * LANES + v] += width * s + share * d
        sums[14 * LANES + v] += width * rs + share * rd
        sums[15 * LANES + v] += share * share * ss
        sums[16 * LANES + v] += share * s
        sums[17 * LANES + v] += share * rs
        sums[18 * LANES + v] += partial[v]
        sums[19 * LANES + v] += partial[10 * LANES + v]


@njit(**_INNER)
def _decompose_sums(sums, tried, bounds, factors, triangle, exact):
    """Do as `_factorize`, for all lanes; `exact` tells of which, as 1 or 0.

    Parameters
    ----------
    sums, tried, bounds
        As in `_sum_up` and `fit_spots`.
    factors
        (6 × lanes,) work space.
    triangle
        (5 × 6 × lanes,), overwritten.
    exact
        (lanes,), overwritten.
    """
    # Where it is not limited, the root may as well be negative.
    limited = bounds[1] < math.inf
    for v in range(LANES):
        root, offset = tried[3, v], tried[4, v]
        beyond = limited and not bounds[0] < root < bounds[1]
        beyond = beyond and (sums[17 * LANES + v] * root < 0) == (root <= bounds[0])
        factors[v] = factors[LANES + v] = root * root
        factors[2 * LANES + v] = 0.0 if bounds[2] != 0 else root * root
        factors[3 * LANES + v] = 0.0 if beyond else 2 * root
        factors[4 * LANES + v] = 2 * offset
        factors[5 * LANES + v] = 1.0
        exact[v] = 1.0
    at = 0
    for k in range(5):
        row = triangle[6 * k * LANES :]
        for j in range(k, 6):
            _scale(sums[at:], factors[k * LANES :], factors[j * LANES :], row[j * LANES :])
            at += LANES
    for k in range(5):
        row = triangle[6 * k * LANES :]
        diagonal = row[k * LANES :]
        inverse = factors
        for v in range(LANES):
            inverse[v] = diagonal[v]
        for i in range(k):
            other = triangle[6 * i * LANES :]
            for j in range(k, 6):
                _subtract(other[k * LANES :], other[j * LANES :], row[j * LANES :])
        for v in range(LANES):
            whole, left = inverse[v], diagonal[v]
            exact[v] = exact[v] if left > 1e-6 * whole or whole == 0 else 0.0
            inverse[v] = 1 / math.sqrt(left if left > 0 else 1.0)
        for j in range(k, 6):
            _multiply(inverse, row[j * LANES :])


@njit(**_INNER)
def _scale(values, first, second, out):
    for v in range(LANES):
        out[v] = values[v] * first[v] * second[v]


@njit(**_INNER)
def _subtract(first, second, out):
    for v in range(LANES):
        out[v] -= first[v] * second[v]


@njit(**_INNER)
def _multiply(values, out):
    for v in range(LANES):
        out[v] *= values[v]


@njit(**_INNER)
def _share_out(kind, tried, side, lines, borders):
    """Do as `_integrated` or `_sampled`, for all lanes."""
    radius = side // 2
    count = side + 1 if kind == INTEGRATED else side
    first = -0.5 - radius if kind == INTEGRATED else -1.0 * radius
    scaled, density, cumulative, work = borders[0], borders[1], borders[2], borders[3]
    for v in range(LANES):
        sigma = tried[2, v] if kind == INTEGRATED else tried[2, v] * tried[2, v]
        work[v] = 1 / sigma
    for a in range(2):
        for i in range(count):
            at = (a * count + i) * LANES
            for v in range(LANES):
                scaled[at + v] = (i + first - tried[a, v]) * work[v]
    size = 2 * count * LANES
    _normal(scaled[:size], density[:size], cumulative[:size], work[:size])
    for v in range(LANES):
        sigma = tried[2, v] if kind == INTEGRATED else tried[2, v] * tried[2, v]
        work[v] = math.sqrt(0.5 / math.pi) / sigma
        work[LANES + v] = 1 / tried[2, v]
    for a in range(2):
        out = lines[a]
        for i in range(side):
            at = (a * count + i) * LANES
            if kind == INTEGRATED:
                _integrated_share(scaled, density, cumulative, work, at, out, 3 * i * LANES)
            else:
                _sampled_share(scaled, density, work, at, out, 3 * i * LANES)


@njit(**_INNER)
def _integrated_share(scaled, density, cumulative, peak, at, out, to):
    for v in range(LANES):
        here, there = peak[v] * density[at + v], peak[v] * density[at + LANES + v]
        out[to + v] = cumulative[at + LANES + v] - cumulative[at + v]
        out[to + LANES + v] = here - there
        out[to + 2 * LANES + v] = here * scaled[at + v] - there * scaled[at + LANES + v]


@njit(**_INNER)
def _sampled_share(scaled, density, peak, at, out, to):
    for v in range(LANES):
        u, value, inverse = scaled[at + v], density[at + v] * peak[v], peak[LANES + v]
        out[to + v] = value
        out[to + LANES + v] = value * u * inverse * inverse
        out[to + 2 * LANES + v] = value * (u * u - 1) * 2 * inverse


@njit(**_INNER)
def _free_within(point, bounds, emitters, shared, columns):
    """Take out of the linear problem the intensities that stand at a bound and would go beyond."""
    p = len(point)
    for e in range(1 if shared else emitters):
        k = 3 * emitters if shared else 4 * e + 3
        if bounds[0] < point[k] < bounds[1]:
            continue
        descent = 0.0
        for i in range(columns.shape[1]):
            descent += columns[k, i] * columns[p, i]
        if (descent < 0) == (point[k] <= bounds[0]):
            for i in range(columns.shape[1]):
                columns[k, i] = 0.0


@njit(**_INNER)
def _integrated(x, y, sigma, edges, axes):
    """Along each axis: the share of the light in each pixel, and its derivatives by centre and sigma."""
    side = axes.shape[2]
    radius = side // 2
    scaled, density, cumulative = edges[0], edges[1], edges[2]
    for i in range(side + 1):
        scaled[i] = (i - 0.5 - radius - x) / sigma
        scaled[side + 1 + i] = (i - 0.5 - radius - y) / sigma
    _normal(scaled, density, cumulative, edges[3])
    peak = math.sqrt(0.5 / math.pi) / sigma
    for a in range(2):
        axis, at = axes[a], a * (side + 1)
        for i in range(side):
            j = at + i
            axis[0, i] = cumulative[j + 1] - cumulative[j]
            axis[1, i] = peak * (density[j] - density[j + 1])
            axis[2, i] = peak * (density[j] * scaled[j] - density[j + 1] * scaled[j + 1])


@njit(**_INNER)
def _sampled(x, y, root, axes):
    """Do as `_integrated`, of a Gaussian sampled at pixel centres whose sigma is the square of `root`."""
    side = axes.shape[2]
    radius = side // 2
    sigma = root * root
    for a in range(2):
        axis = axes[a]
        centre = x if a == 0 else y
        for i in range(side):
            scaled = (i - radius - centre) / sigma
            density = math.exp(-0.5 * scaled * scaled) * (math.sqrt(0.5 / math.pi) / sigma)
            axis[0, i] = density
            axis[1, i] = density * scaled / sigma
            axis[2, i] = density * (scaled * scaled - 1) * (2 / root)


@njit(**_EXACT)
def _normal(scaled, density, cumulative, work):
    """Give exp(-scaled²/2), and the integral of the normal distribution from 0."""
    exponent, bits = work.view(np.int64), density.view(np.int64)
    for i in range(len(scaled)):
        work[i] = max(-0.5 * scaled[i] * scaled[i], -708.0) * 1.4426950408889634 + _SHIFT
    for i in range(len(scaled)):
        whole = work[i] - _SHIFT
        rest = max(-0.5 * scaled[i] * scaled[i], -708.0) - whole * _LOG2_HIGH - whole * _LOG2_LOW
        total = _EXP[0]
        total = total * rest + _EXP[1]
        total = total * rest + _EXP[2]
        total = total * rest + _EXP[3]
        total = total * rest + _EXP[4]
        total = total * rest + _EXP[5]
        total = total * rest + _EXP[6]
        total = total * rest + _EXP[7]
        total = total * rest + _EXP[8]
        total = total * rest + _EXP[9]
        total = total * rest + _EXP[10]
        total = total * rest + _EXP[11]
        total = total * rest + _EXP[12]
        total = total * rest + _EXP[13]
        density[i] = total
    for i in range(len(scaled)):
        bits[i] += exponent[i] << 52
    for i in range(len(scaled)):
        z = min(abs(scaled[i]) * 0.7071067811865476, _LARGEST)
        v = ((z - _BEND) / (z + _BEND) + 1) * _SPAN - 1
        total = _ERFC[0]
        total = total * v + _ERFC[1]
        total = total * v + _ERFC[2]
        total = total * v + _ERFC[3]
        total = total * v + _ERFC[4]
        total = total * v + _ERFC[5]
        total = total * v + _ERFC[6]
        total = total * v + _ERFC[7]
        total = total * v + _ERFC[8]
        total = total * v + _ERFC[9]
        total = total * v + _ERFC[10]
        total = total * v + _ERFC[11]
        total = total * v + _ERFC[12]
        total = total * v + _ERFC[13]
        total = total * v + _ERFC[14]
        total = total * v + _ERFC[15]
        total = total * v + _ERFC[16]
        cumulative[i] = math.copysign(0.5 - 0.5 * total * density[i], scaled[i])


@njit(**_EXACT)
def _logarithm(values, exponent, mantissa):
    """Give the logarithm of positive numbers in `mantissa`; both are overwritten."""
    given, bits, powers = values.view(np.int64), mantissa.view(np.int64), exponent.view(np.int64)
    for i in range(len(values)):
        powers[i] = (given[i] >> 52) | 0x4330000000000000
        bits[i] = (given[i] & 0x000FFFFFFFFFFFFF) | 0x3FF0000000000000
    for i in range(len(values)):
        large = mantissa[i] > 1.4142135623730951
        value = 0.5 * mantissa[i] if large else mantissa[i]
        power = exponent[i] - (4503599627370496.0 + 1023.0) + (1.0 if large else 0.0)
        s = (value - 1) / (value + 1)
        square = s * s
        total = _LOG[0]
        total = total * square + _LOG[1]
        total = total * square + _LOG[2]
        total = total * square + _LOG[3]
        total = total * square + _LOG[4]
        total = total * square + _LOG[5]
        total = total * square + _LOG[6]
        total = total * square + _LOG[7]
        total = total * square + _LOG[8]
        total = total * square + _LOG[9]
        total = total * square + _LOG[10]
        mantissa[i] = total * s + power * 0.6931471805599453


@njit(**_INNER)
def _outer(axes, shape):
    side = axes.shape[2]
    along_x, along_y = axes[0], axes[1]
    for j in range(side):
        share, centre, width = along_y[0, j], along_y[1, j], along_y[2, j]
        at = j * side
        for i in range(side):
            shape[0, at + i] = share * along_x[0, i]
            shape[1, at + i] = share * along_x[1, i]
            shape[2, at + i] = centre * along_x[0, i]
            shape[3, at + i] = width * along_x[0, i] + share * along_x[2, i]


@njit(**_OPTIONS)
def _squared_width(c, at, z):
    """Squared width of a calibrated axis and its derivative by z; the five numbers stand at `c[at]`."""
    if c[0] == 0:
        from_focus = z - c[at + 3]
        width = c[at + 2] + c[at + 1] * from_focus**2 + c[at + 4] * from_focus**3
        slope = 2 * c[at + 1] * from_focus + 3 * c[at + 4] * from_focus**2
        return width * width, 2 * width * slope
    depth = c[at + 4]
    u = (z - c[at + 3]) / depth
    half = 0.25 * c[at] * c[at]
    value = half * (1 + u**2 + c[at + 1] * u**3 + c[at + 2] * u**4)
    return value, half * (2 * u + 3 * c[at + 1] * u**2 + 4 * c[at + 2] * u**3) / depth


@njit(**_INNER)
def _astigmatic(calibration, x, y, z, side, shape):
    """Elliptical Gaussian whose integral is 1, and its derivatives by x, y and z."""
    radius = side // 2
    cosine, sine = math.cos(calibration[1]), math.sin(calibration[1])
    first_width, first_slope = _squared_width(calibration, 2, z)
    second_width, second_slope = _squared_width(calibration, 7, z)
    peak = 0.5 / (math.pi * math.sqrt(first_width * second_width))
    fading = first_slope / first_width + second_slope / second_width
    for j in range(side):
        dy = j - radius - y
        for i in range(side):
            dx = i - radius - x
            u, v = (dx * cosine - dy * sine) / first_width, (dx * sine + dy * cosine) / second_width
            value = peak * math.exp(-0.5 * (u * u * first_width + v * v * second_width))
            at = j * side + i
            shape[0, at] = value
            shape[1, at] = value * (u * cosine + v * sine)
            shape[2, at] = value * (v * cosine - u * sine)
            shape[3, at] = 0.5 * value * (u * u * first_slope + v * v * second_slope - fading)


@njit(**_INNER)
def _deviance(data, own, mean, roots, logs):
    """Poisson deviance of the model and the roots of the weights of its squared residuals.

    `own` is what the data alone contribute.
    """
    for i in range(len(data)):
        roots[i] = max(mean[i], DIMMEST)
    _logarithm(roots, logs[0], logs[1])
    total = own
    for i in range(len(data)):
        total += roots[i] - data[i] * logs[1, i]
    for i in range(len(data)):
        roots[i] = 1 / math.sqrt(roots[i])
    return max(2 * total, 0.0)


@njit(**_INNER)
def _own_deviance(data, work, logs):
    for i in range(len(data)):
        work[i] = max(data[i], _TINY)
    _logarithm(work, logs[0], logs[1])
    total = 0.0
    for i in range(len(data)):
        total += data[i] * logs[1, i] - data[i]
    return total


@njit(**_INNER)
def _triangulate(columns, rows):
    """Bring the problem to triangular form; `columns` are overwritten.

    The normal equations do where enough digits are left of every column, as of nearly all spots.
    """
    if not _factorize(columns, rows):
        _orthogonalize(columns, rows)


@njit(**_INNER)
def _factorize(columns, rows):
    """Do as `_triangulate` by Cholesky's decomposition; tells whether that is exact to ten digits."""
    p, m = rows.shape[0], columns.shape[1]
    for k in range(p):
        column = columns[k]
        for j in range(k, p + 1):
            other = columns[j]
            share = 0.0
            for i in range(m):
                share += column[i] * other[i]
            rows[k, j] = share
        whole = rows[k, k]
        if whole == 0:
            continue
        for i in range(k):
            factor = rows[i, k]
            for j in range(k, p + 1):
                rows[k, j] -= factor * rows[i, j]
        if not rows[k, k] > 1e-6 * whole:
            return False
        inverse = 1 / math.sqrt(rows[k, k])
        for j in range(k, p + 1):
            rows[k, j] *= inverse
    return True


@njit(**_INNER)
def _orthogonalize(columns, rows):
    """Do as `_triangulate` by the modified Gram-Schmidt process; the target goes along."""
    p, m = rows.shape[0], columns.shape[1]
    for k in range(p):
        column = columns[k]
        total = 0.0
        for i in range(m):
            total += column[i] * column[i]
        length = math.sqrt(total)
        rows[k, k] = length
        inverse = 1 / length if length != 0 else 0.0
        for i in range(m):
            column[i] *= inverse
        for j in range(k + 1, p + 1):
            other = columns[j]
            share = 0.0
            for i in range(m):
                share += column[i] * other[i]
            rows[k, j] = share
            for i in range(m):
                other[i] -= share * column[i]


@njit(**_INLINE)
def _is_stationary(rows, lengths, misfit, tolerance, p):
    """Whether the residual is at right angles to all derivatives, or nothing is left of it."""
    if misfit == 0:
        return True
    norm = math.sqrt(misfit)
    for k in range(p):
        descent = 0.0
        for i in range(k + 1):
            descent += rows[i, p] * rows[i, k]
        if abs(descent) > tolerance * lengths[k] * norm:
            return False
    return True


@njit(**_INLINE)
def _back_substitute(rows, step, p):
    """Solve; what the pixels do not depend on, such as where in its pixel a very narrow spot is, stays."""
    for k in range(p - 1, -1, -1):
        total = rows[k, p]
        for j in range(k + 1, p):
            total -= rows[k, j] * step[j]
        step[k] = total / rows[k, k] if rows[k, k] != 0 else 0.0


@njit(**_INLINE)
def _scaled_length(scale, step, p):
    total = 0.0
    for k in range(p):
        total += (scale[k] * step[k]) ** 2
    return math.sqrt(total)


@njit(**_INLINE)
def _propose(state, vectors, rows, augmented, damped, p):
    """Leave in ``TRIAL`` where the linear problem sends the search within its trust region."""
    scale, step, reach = vectors[SCALE], vectors[STEP], state[REACH]
    _back_substitute(rows, step, p)
    free_length = _scaled_length(scale, step, p)
    if free_length - reach > 0.1 * reach:
        damping = state[DAMPING]
        state[DAMPING] = _minimize_within(rows, scale, reach, damping, free_length, augmented, damped, step)
    else:
        state[DAMPING] = 0.0
    for k in range(p):
        vectors[TRIAL, k] = vectors[POINT, k] + step[k]


@njit(**_INNER)
def _minimize_within(rows, scale, reach, damping, free_length, augmented, damped, step):
    """Minimize the quadratic model on the border of the trust region; gives the damping that does it.

    Newton's method on the inverse of the step's length, between a lower and an upper bound (Moré, section 5).
    """
    p = rows.shape[0]
    slope = 0.0
    for k in range(p):
        total = 0.0
        for i in range(k + 1):
            total += rows[i, p] * rows[i, k]
        slope += (total / scale[k]) ** 2
    slope = math.sqrt(slope)
    low, high = 0.0, slope / reach
    damping = min(damping, high)
    if damping == 0:
        damping = slope / free_length
    excess = free_length - reach
    for trial in range(11):
        if damping == 0:
            damping = max(0.001 * high, _TINY)
        root = math.sqrt(damping)
        for k in range(p + 1):
            for i in range(p):
                augmented[k, i] = rows[i, k] if i <= k else 0.0
                augmented[k, p + i] = root * scale[k] if i == k else 0.0
        _triangulate(augmented, damped)
        _back_substitute(damped, step, p)
        length = _scaled_length(scale, step, p)
        previous, excess = excess, length - reach
        if trial == 10 or abs(excess) <= 0.1 * reach or (low == 0 and excess <= previous < 0):
            break
        # Forward substitution in the triangle's transpose; `augmented` is free by now.
        change = augmented[0]
        total = 0.0
        for k in range(p):
            value = scale[k] * scale[k] * step[k] / length
            for i in range(k):
                value -= damped[i, k] * change[i]
            change[k] = value / damped[k, k]
            total += change[k] * change[k]
        correction = excess / (reach * total)
        if excess > 0:
            low = max(low, damping)
        if excess < 0:
            high = min(high, damping)
        damping = max(low, damping + correction)
    return damping


@njit(nogil=True, cache=True)
def convolve_frames(frames, weights, step, out):
    """Convolve each frame along y, then along x; the border's values go on beyond it.

    Parameters
    ----------
    frames
        (n, y, x) float32.
    weights
        (taps,) float32, `step` pixels apart; the centre is tap ``taps // 2``.
    step
        Distance of the taps [px].
    out
        Like `frames`, overwritten.
    """
    height, width = frames.shape[1:]
    reach = (len(weights) - 1) * step
    before = reach - len(weights) // 2 * step
    padded = np.empty((height + reach, width + reach), np.float32)
    rows, total = np.empty(height * padded.shape[1], np.float32), np.empty(height * padded.shape[1])
    smooth = np.empty((height, padded.shape[1]), np.float32)
    for n in range(frames.shape[0]):
        _replicate(frames[n], before, 0, padded)
        _convolve(padded.reshape(-1), padded.shape[1], weights, step, rows, total, smooth.reshape(-1))
        for y in range(height):
            out[n, y] = smooth[y, :width]


@njit(nogil=True, cache=True)
def wavelet_planes(frames, weights, first_rest, second_rest, difference):
    """Give what the first and the second smooth plane leave of each frame, and their difference.

    Beyond a margin of replicated pixels stand zeros, as in the plugin.
    """
    margin, ring = len(weights) - 1, len(weights) // 2
    height, width = frames.shape[1:]
    padded = np.zeros((height + 2 * (margin + ring), width + 2 * (margin + ring)), np.float32)
    wide = padded.shape[1]
    first, second = np.empty((height + 2 * margin) * wide, np.float32), np.empty(height * wide, np.float32)
    rows, total = np.empty(first.size, np.float32), np.empty(first.size)
    inside = margin * wide + margin
    # The same memory, for whole numbers.
    counts, whole_rows = padded.view(np.int32), rows.view(np.int32)
    whole_first, whole_second = first.view(np.int32), second.view(np.int32)
    default = len(weights) == 5 and (16 * weights == np.array([1, 4, 6, 4, 1])).all()
    for n in range(frames.shape[0]):
        out = first_rest[n], second_rest[n], difference[n]
        if default and _are_counts(frames[n]):
            _replicate(frames[n], margin, ring, counts)
            _convolve_counts(counts.reshape(-1), wide, 1, whole_rows, whole_first)
            _convolve_counts(whole_first, wide, 2, whole_rows[: second.size], whole_second)
            _subtract_planes(frames[n], whole_first[inside:], whole_second, wide, 2.0**-8, 2.0**-16, *out)
        else:
            _replicate(frames[n], margin, ring, padded)
            _convolve(padded.reshape(-1), wide, weights, 1, rows, total, first)
            _convolve(first, wide, weights, 2, rows[: second.size], total, second)
            _subtract_planes(frames[n], first[inside:], second, wide, 1.0, 1.0, *out)


@njit(**_IN_ORDER)
def _subtract_planes(
    frame, first, second, wide, first_unit, second_unit, first_rest, second_rest, difference
):  # fmt: skip
    """Do the subtractions of `wavelet_planes`; planes have rows of `wide` pixels and units of their own."""
    height, width = frame.shape
    unit, finer_unit = np.float32(first_unit), np.float32(second_unit)
    for y in range(height):
        row, smooth, smoother = frame[y], first[y * wide :], second[y * wide :]
        rest, smooth_rest, out = first_rest[y], second_rest[y], difference[y]
        for x in range(width):
            once, twice = np.float32(smooth[x]) * unit, np.float32(smoother[x]) * finer_unit
            rest[x] = row[x] - once
            smooth_rest[x] = row[x] - twice
            out[x] = once - twice


@njit(**_IN_ORDER)
def _replicate(frame, before, ring, padded):
    """Put a frame, `before` pixels from its start, into a larger one whose rest its border fills.

    A ring as wide around that one stays as it is.
    """
    height, width = frame.shape
    for y in range(padded.shape[0] - 2 * ring):
        given, row = frame[min(max(y - before, 0), height - 1)], padded[ring + y][ring:]
        for x in range(before):
            row[x] = given[0]
        inside = row[before:]
        for x in range(width):
            inside[x] = given[x]
        for x in range(before + width, len(row) - ring):
            row[x] = given[width - 1]


@njit(**_IN_ORDER)
def _convolve(pixels, wide, weights, step, rows, total, out):
    """Convolve a frame of rows of `wide` pixels along y and then along x, where all taps lie in it.

    A frame in one piece makes long loops. At the end of each row of `out` stand numbers without meaning, of
    taps that reach into the next row, which the last has not.
    """
    _weigh(pixels, step * wide, weights, total, rows)
    _weigh(rows, step, weights, total, out[: len(out) - (len(weights) - 1) * step])


# Products in single and sums in double precision, one after the other, are the plugin's, down to ties of
# neighbours.


@njit(**_IN_ORDER)
def _weigh(pixels, distance, weights, total, out):
    taps, count = len(weights), len(out)
    if taps == 5:  # as in the default filter
        _weigh_five(
            weights, pixels[4 * distance :], pixels[3 * distance :], pixels[2 * distance :],
            pixels[distance:], pixels, out,
        )  # fmt: skip
        return
    total[:count] = 0.0
    for k in range(taps):
        _add_one(total, weights[k], pixels[(taps - 1 - k) * distance :], count)
    for x in range(count):
        out[x] = total[x]


@njit(**_IN_ORDER)
def _weigh_five(weights, first, second, third, fourth, fifth, out):
    a, b, c, d, e = weights[0], weights[1], weights[2], weights[3], weights[4]
    for x in range(len(out)):
        total = np.float64(first[x] * a) + second[x] * b
        out[x] = ((total + third[x] * c) + fourth[x] * d) + fifth[x] * e


@njit(**_IN_ORDER)
def _add_one(total, weight, pixels, count):
    for x in range(count):
        total[x] += pixels[x] * weight


# Whole pixels with the default weights, (1, 4, 6, 4, 1)/16, have whole sums in a unit 16 times as small each
# time: after all four convolutions, 31 bits and a sign hold those of pixels of 15 bits, and all on the way.
# Of the products only those with 6 may have more than the 24 bits of single precision; double precision would
# sum them without error. So integers that are rounded where it would round give the same, and the processor
# takes twice as many of them at a time.


@njit(**_IN_ORDER)
def _are_counts(frame):
    """Whether all pixels are whole numbers of 15 bits and a sign."""
    height, width = frame.shape
    for y in range(height):
        row = frame[y]
        other = False
        for x in range(width):
            value = row[x]
            other |= (np.float32(np.int32(value)) != value) | (not abs(value) < np.float32(2**15))
        if other:
            return False
    return True


@njit(**_IN_ORDER)
def _convolve_counts(pixels, wide, step, rows, out):
    """Do as `_convolve` with whole pixels; the unit of `out` is 1/256 of theirs."""
    _weigh_counts(pixels, step * wide, rows)
    _weigh_counts(rows, step, out[: len(out) - 4 * step])


@njit(**_IN_ORDER)
def _weigh_counts(pixels, distance, out):
    first, second, third = pixels, pixels[distance:], pixels[2 * distance :]
    fourth, fifth = pixels[3 * distance :], pixels[4 * distance :]
    for x in range(len(out)):
        six = np.int32(np.float32(third[x]) * np.float32(6))
        total = np.int32(first[x] + fifth[x] + ((second[x] + fourth[x]) << 2) + six)
        out[x] = np.int32(np.float32(total))


@njit(**_IN_ORDER)
def crop_squares(frames, places, radius, out):
    """Copy the square around each place, moved into the frame where it would leave it.

    Parameters
    ----------
    frames
        (n, y, x) float32.
    places
        (places, 3) int64 of frame, x and y.
    radius
        Half the side of the square, without its centre [px].
    out
        (places, side²) float32, overwritten.
    """
    side = 2 * radius + 1
    height, width = frames.shape[1:]
    for i in range(len(places)):
        frame, square = frames[places[i, 0]], out[i]
        left = min(max(places[i, 1] - radius, 0), width - side)
        top = min(max(places[i, 2] - radius, 0), height - side)
        for j in range(side):
            row = frame[top + j, left:]
            for k in range(side):
                square[j * side + k] = row[k]


@njit(**_OPTIONS)
def moments(images, mean, variance):
    """Give each image's mean and its sample variance, for (n, …) float32 images in one piece."""
    flat = images.reshape(images.shape[0], -1)
    pixels = flat.shape[1]
    for n in range(flat.shape[0]):
        image = flat[n]
        total = 0.0
        for i in range(pixels):
            total += np.float64(image[i])
        centre = total / pixels
        squares = 0.0
        for i in range(pixels):
            squares += (np.float64(image[i]) - centre) ** 2
        mean[n] = centre
        variance[n] = squares / (pixels - 1)


@njit(nogil=True, cache=True)
def find_maxima(images, thresholds, radius, diagonal, lowest, out):
    """List the pixels at or above the threshold that no neighbour exceeds.

    Parameters
    ----------
    images
        (n, y, x) float32.
    thresholds
        (n,) float32.
    radius
        How far neighbours are away along each axis [px].
    diagonal
        Whether those off the axes count.
    lowest
        What the pixels must have at least besides.
    out
        (candidates, 3) int64 of image, x and y, overwritten as far as it reaches.

    Returns
    -------
    int
        How many there are.
    """
    height, width = images.shape[1:]
    marks = np.zeros(-(-width // 8) * 8, np.bool_)
    eights = marks.view(np.int64)
    found = 0
    for n in range(images.shape[0]):
        image, limit = images[n], max(thresholds[n], lowest)
        for y in range(height):
            _mark_peaks(image[max(0, y - 1)], image[y], image[min(height - 1, y + 1)], limit, marks)
            for eight in range(len(eights)):
                if eights[eight] == 0:
                    continue
                for x in range(8 * eight, min(8 * eight + 8, width)):
                    if marks[x] and _is_highest(image, x, y, radius, diagonal):
                        if found < out.shape[0]:
                            out[found, 0], out[found, 1], out[found, 2] = n, x, y
                        found += 1
    return found


@njit(**_IN_ORDER)
def _mark_peaks(above, row, below, limit, marks):
    """Mark the pixels of a row at or above the limit that no neighbour next to them exceeds.

    They are few, and this is without branches, which the processor cannot foresee in noise.
    """
    last = len(row) - 1
    for x in range(last + 1):
        value = row[x]
        marks[x] = (value >= limit) & (not above[x] > value) & (not below[x] > value)
    for x in range(last):
        marks[x] &= not row[x + 1] > row[x]
    for x in range(last):
        marks[x + 1] &= not row[x] > row[x + 1]


@njit(**_IN_ORDER)
def _is_highest(image, x, y, radius, diagonal):
    """Whether no pixel of the square around a pixel exceeds it, or none on the square's axes."""
    height, width = image.shape
    value = image[y, x]
    for j in range(max(0, y - radius), min(height, y + radius + 1)):
        for i in range(max(0, x - radius), min(width, x + radius + 1)):
            if image[j, i] > value and (diagonal or i == x or j == y):
                return False
    return True


@njit(**_OPTIONS)
def likelihood_ratio(frames, noise, spot, steps, out):
    """Give the signed root of twice the logarithm of the likelihood ratio of a molecule at each pixel.

    Parameters
    ----------
    frames
        (n, y, x) float32 [photons].
    noise
        (y, x) variance besides that of the light [photons²], or no rows.
    spot
        (side,) share of a molecule's light in each row and column of the square around it.
    steps
        Of Fisher scoring for intensity and background.
    out
        Like `frames`, overwritten.
    """
    height, width = frames.shape[1:]
    side = len(spot)
    radius = side // 2
    wide = -(-width // CHUNK) * CHUNK
    noisy = noise.shape[0] > 0
    # Read noise is as good as Poisson noise of as much more light (Huang et al. 2013).
    read, light = np.zeros((2, height + 2 * radius, wide + 2 * radius), np.float32)
    if noisy:
        _replicate(noise.astype(np.float32), radius, 0, read)
    work, single, found = np.empty((10, CHUNK)), np.empty(7 * CHUNK, np.float32), np.empty(CHUNK, np.float32)
    for n in range(frames.shape[0]):
        _replicate(frames[n], radius, 0, light)
        for y in range(height):
            for x in range(0, width, CHUNK):
                _likelihood_ratio_chunk(light, read, y, x, noisy, spot, steps, work, single, found)
                here = out[n, y, x:]
                for i in range(min(CHUNK, width - x)):
                    here[i] = found[i]


@njit(**_OPTIONS)
def _likelihood_ratio_chunk(light, read, top, left, noisy, spot, steps, work, single, out):
    side = len(spot)
    total, overlap, start, flat = work[0], work[1], work[2], work[3]
    model, logarithm, exponent, likelihood = work[4], work[5], work[6], work[7]
    bright, below = work[8], work[9]
    pixels, weight, square, highest = side * side, 0.0, 0.0, 0.0
    for j in range(side):
        for i in range(side):
            share = spot[j] * spot[i]
            weight += share
            square += share * share
            highest = max(highest, share)
    total[:] = 0.0
    overlap[:] = 0.0
    for j in range(side):
        _add_seen(light[top + j, left:], spot, spot[j], total, overlap)
    # Least squares is the start, and Fisher scoring goes on from there, in single precision: at its maximum
    # the likelihood is flat.
    place, sums = single[: 2 * CHUNK], single[2 * CHUNK :]
    for x in range(CHUNK):
        intensity = (overlap[x] - weight * total[x] / pixels) / (square - weight * weight / pixels)
        flat[x] = max(total[x] / pixels, LEAST)
        start[x] = place[x] = intensity
        place[CHUNK + x] = max((total[x] - weight * intensity) / pixels, LEAST)
        likelihood[x] = 0.0
    for _ in range(steps):
        sums[:] = 0.0
        for j in range(side):
            _add_score(light[top + j, left:], read[top + j, left:], spot, spot[j], place, sums)
        _score(place, sums, highest)
    for x in range(CHUNK):
        bright[x], below[x] = place[x], place[CHUNK + x]
    for j in range(side):
        seen, noise = light[top + j, left:], read[top + j, left:]
        for i in range(side):
            share = spot[j] * spot[i]
            _model_pixels(noise, i, share, bright, below, model)
            _logarithm(model, exponent, logarithm)
            _add_likelihood(seen, noise, i, share, bright, below, logarithm, likelihood, 1.0)
            if noisy:
                _model_pixels(noise, i, 0.0, bright, flat, model)
                _logarithm(model, exponent, logarithm)
                _add_likelihood(seen, noise, i, 0.0, bright, flat, logarithm, likelihood, -1.0)
    if not noisy:
        model[:] = flat
        _logarithm(model, exponent, logarithm)
        for x in range(CHUNK):
            likelihood[x] -= total[x] * logarithm[x] - pixels * flat[x]
    for x in range(CHUNK):
        out[x] = math.copysign(math.sqrt(max(2 * likelihood[x], 0.0)), start[x])


@njit(**_OPTIONS)
def _add_seen(light, spot, row, total, overlap):
    for i in range(len(spot)):
        share = row * spot[i]
        for x in range(CHUNK):
            total[x] += light[i + x]
            overlap[x] += share * light[i + x]


@njit(**_OPTIONS)
def _add_score(light, read, spot, row, place, sums):
    for i in range(len(spot)):
        share = np.float32(row * spot[i])
        for x in range(CHUNK):
            model = max(place[CHUNK + x] + share * place[x], np.float32(LEAST)) + read[i + x]
            inverse = np.float32(1) / model
            residual = (light[i + x] + read[i + x]) * inverse - np.float32(1)
            sums[x] += share * residual
            sums[CHUNK + x] += residual
            sums[2 * CHUNK + x] += share * share * inverse
            sums[3 * CHUNK + x] += share * inverse
            sums[4 * CHUNK + x] += inverse


@njit(**_OPTIONS)
def _score(place, sums, highest):
    for x in range(CHUNK):
        a, b = np.float64(sums[x]), np.float64(sums[CHUNK + x])
        c, d = np.float64(sums[2 * CHUNK + x]), np.float64(sums[3 * CHUNK + x])
        e = np.float64(sums[4 * CHUNK + x])
        determinant = max(c * e - d * d, 1e-30)
        below = max(place[CHUNK + x] + (c * b - d * a) / determinant, LEAST)
        place[x] = max(place[x] + (e * a - d * b) / determinant, -0.9 * below / highest)
        place[CHUNK + x] = below


@njit(**_OPTIONS)
def _model_pixels(read, i, share, bright, below, model):
    for x in range(CHUNK):
        model[x] = max(below[x] + share * bright[x], LEAST) + read[i + x]


@njit(**_OPTIONS)
def _add_likelihood(light, read, i, share, bright, below, logarithm, likelihood, sign):
    for x in range(CHUNK):
        noise = np.float64(read[i + x])
        model = max(below[x] + share * bright[x], LEAST) + noise
        likelihood[x] += sign * ((light[i + x] + noise) * logarithm[x] - model)
