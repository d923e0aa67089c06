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

_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "cache": True,
    "error_model": "numpy",
    "fastmath": {"reassoc", "contract", "arcp", "nsz"},
}
_EXACT = {**_OPTIONS, "fastmath": {"contract"}}
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
    axes, edges = np.empty((2, 3, side)), np.empty((4, 2 * side + 2))
    shapes = np.empty((emitters, 4, m))
    columns, trial_columns = np.empty((p + 1, m)), np.empty((p + 1, m))
    mean, trial_mean = np.empty(m), np.empty(m)
    rows, trial_rows = np.empty((p, p + 1)), np.empty((p, p + 1))
    augmented, damped = np.empty((p + 1, 2 * p)), np.empty((p, p + 1))
    point, trial, step = np.empty(p), np.empty(p), np.empty(p)
    scale, lengths = np.empty(p), np.empty(p)
    flat, logs = np.zeros(m), np.empty((2, m))
    first_step, tolerance, point_tolerance = stops[0], stops[1], stops[2]
    for n in range(spots):
        below = base[n] if base.shape[0] > 0 else flat
        data, weight = pixels[n], weights[n]
        for k in range(p):
            point[k] = start[n, k]
        own = _own_deviance(data, mean, logs) if likelihood else 0.0
        _keep_within(point, bounds, emitters, shared)
        misfit = _linearize(
            kind, calibration, likelihood, emitters, shared, bounds, point, data, own, below, weight,
            axes, edges, shapes, logs, mean, columns, rows,
        )  # fmt: skip
        length = 0.0
        for k in range(p):
            lengths[k] = _column_length(rows, k)
            scale[k] = lengths[k] if lengths[k] != 0 else 1.0
            length += (scale[k] * point[k]) ** 2
        length = math.sqrt(length)
        reach = first_step * (length if length != 0 else 1.0)
        damping = 0.0
        steps = trials = 0
        failed = not math.isfinite(misfit)
        done = not failed and _is_stationary(rows, lengths, misfit, tolerance)
        while not (done or failed):
            damping = _propose(rows, scale, reach, damping, augmented, damped, step)
            for k in range(p):
                trial[k] = point[k] + step[k]
            _keep_within(trial, bounds, emitters, shared)
            trial_misfit = _linearize(
                kind, calibration, likelihood, emitters, shared, bounds, trial, data, own, below, weight,
                axes, edges, shapes, logs, trial_mean, trial_columns, trial_rows,
            )  # fmt: skip
            step_length = linear = 0.0
            for k in range(p):
                step_length += (scale[k] * step[k]) ** 2
            for i in range(p):
                total = 0.0
                for k in range(i, p):
                    total += rows[i, k] * step[k]
                linear += total * total
            step_length = math.sqrt(step_length)
            if steps == 0:
                reach = min(reach, step_length)
            actual = 1 - trial_misfit / misfit if 0.01 * trial_misfit < misfit else -1.0
            linear /= misfit
            penalty = damping * step_length**2 / misfit
            predicted, slope = linear + 2 * penalty, -(linear + penalty)
            ratio = actual / predicted if predicted != 0 else 0.0
            if ratio <= 0.25:
                shrink = 0.5 * slope / (slope + 0.5 * actual) if actual < 0 else 0.5
                if 0.01 * trial_misfit >= misfit or shrink < 0.1:
                    shrink = 0.1
                reach = shrink * min(reach, 10 * step_length)
                damping /= shrink
            elif damping == 0 or ratio >= 0.75:
                reach = 2 * step_length
                damping *= 0.5
            trials += 1
            done = abs(actual) <= tolerance and predicted <= tolerance and ratio <= 2
            if ratio >= 1e-4:
                steps += 1
                still = True
                length = 0.0
                for k in range(p):
                    size = max(abs(trial[k]), abs(point[k]), 1.0)
                    still = still and abs(trial[k] - point[k]) <= point_tolerance * size
                    length += (scale[k] * trial[k]) ** 2
                length = math.sqrt(length)
                point, trial = trial, point
                columns, trial_columns = trial_columns, columns
                rows, trial_rows = trial_rows, rows
                mean, trial_mean = trial_mean, mean
                misfit = trial_misfit
                for k in range(p):
                    lengths[k] = _column_length(rows, k)
                done = done or still or steps >= stops[3]
                done = done or _is_stationary(rows, lengths, misfit, tolerance)
                for k in range(p):
                    scale[k] = max(scale[k], lengths[k])
            done = done or reach <= tolerance * length
            failed = not done and (trials >= stops[4] or math.isnan(reach))
        misfits[n] = misfit if done else math.inf
        for k in range(p):
            points[n, k] = point[k] if done else math.nan
        for i in range(m):
            models[n, i] = mean[i]


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


@njit(**_OPTIONS)
def _keep_within(point, bounds, emitters, shared):
    if bounds[1] == math.inf:
        return
    if shared:
        point[3 * emitters] = min(max(abs(point[3 * emitters]), bounds[0]), bounds[1])
    else:
        for e in range(emitters):
            point[4 * e + 3] = min(max(abs(point[4 * e + 3]), bounds[0]), bounds[1])


@njit(**_OPTIONS)
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


@njit(**_OPTIONS)
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


@njit(**_OPTIONS)
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


@njit(**_OPTIONS)
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


@njit(**_OPTIONS)
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


@njit(**_OPTIONS)
def _astigmatic(calibration, x, y, z, side, shape):
    """Elliptical Gaussian of height 1 and its derivatives by x, y and z."""
    radius = side // 2
    cosine, sine = math.cos(calibration[1]), math.sin(calibration[1])
    first_width, first_slope = _squared_width(calibration, 2, z)
    second_width, second_slope = _squared_width(calibration, 7, z)
    for j in range(side):
        dy = j - radius - y
        for i in range(side):
            dx = i - radius - x
            u, v = (dx * cosine - dy * sine) / first_width, (dx * sine + dy * cosine) / second_width
            value = math.exp(-0.5 * (u * u * first_width + v * v * second_width))
            at = j * side + i
            shape[0, at] = value
            shape[1, at] = value * (u * cosine + v * sine)
            shape[2, at] = value * (v * cosine - u * sine)
            shape[3, at] = 0.5 * value * (u * u * first_slope + v * v * second_slope)


@njit(**_OPTIONS)
def _deviance(data, own, mean, roots, logs):
    """Poisson deviance of the model and the roots of the weights of its squared residuals.

    `own` is what the data alone contribute.
    """
    for i in range(len(data)):
        roots[i] = max(mean[i], 1e-6)
    _logarithm(roots, logs[0], logs[1])
    total = own
    for i in range(len(data)):
        total += roots[i] - data[i] * logs[1, i]
    for i in range(len(data)):
        roots[i] = 1 / math.sqrt(roots[i])
    return max(2 * total, 0.0)


@njit(**_OPTIONS)
def _own_deviance(data, work, logs):
    for i in range(len(data)):
        work[i] = max(data[i], _TINY)
    _logarithm(work, logs[0], logs[1])
    total = 0.0
    for i in range(len(data)):
        total += data[i] * logs[1, i] - data[i]
    return total


@njit(**_OPTIONS)
def _triangulate(columns, rows):
    """Bring the problem to triangular form; `columns` are overwritten.

    The normal equations do where enough digits are left of every column, as of nearly all spots.
    """
    if not _factorize(columns, rows):
        _orthogonalize(columns, rows)


@njit(**_OPTIONS)
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


@njit(**_OPTIONS)
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


@njit(**_OPTIONS)
def _column_length(rows, k):
    total = 0.0
    for i in range(k + 1):
        total += rows[i, k] ** 2
    return math.sqrt(total)


@njit(**_OPTIONS)
def _is_stationary(rows, lengths, misfit, tolerance):
    """Whether the residual is at right angles to all derivatives, or nothing is left of it."""
    p = rows.shape[0]
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


@njit(**_OPTIONS)
def _back_substitute(rows, step):
    """Solve; what the pixels do not depend on, such as where in its pixel a very narrow spot is, stays."""
    p = rows.shape[0]
    for k in range(p - 1, -1, -1):
        total = rows[k, p]
        for j in range(k + 1, p):
            total -= rows[k, j] * step[j]
        step[k] = total / rows[k, k] if rows[k, k] != 0 else 0.0


@njit(**_OPTIONS)
def _scaled_length(scale, step):
    total = 0.0
    for k in range(len(step)):
        total += (scale[k] * step[k]) ** 2
    return math.sqrt(total)


@njit(**_OPTIONS)
def _propose(rows, scale, reach, damping, augmented, damped, step):
    """Minimize the quadratic model within the trust region; gives the damping that does it.

    Newton's method on the inverse of the step's length, between a lower and an upper bound (Moré, section 5).
    """
    p = rows.shape[0]
    _back_substitute(rows, step)
    free_length = _scaled_length(scale, step)
    if not free_length - reach > 0.1 * reach:
        return 0.0
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
        _back_substitute(damped, step)
        length = _scaled_length(scale, step)
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
def convolve_frames(frames, weights, step, replicate, out):
    """Convolve each frame along y, then along x.

    Parameters
    ----------
    frames
        (n, y, x) float32.
    weights
        (taps,) float32, `step` pixels apart; the centre is tap ``taps // 2``.
    step
        Distance of the taps [px].
    replicate
        Whether the border's values go on beyond it, or zeros stand there.
    out
        Like `frames`, overwritten.
    """
    rows = np.empty(frames.shape[1:], np.float32)
    for n in range(frames.shape[0]):
        _convolve(frames[n], weights, step, replicate, rows, out[n])


@njit(nogil=True, cache=True)
def wavelet_planes(frames, weights, first_rest, second_rest, difference):
    """Give what the first and the second smooth plane leave of each frame, and their difference.

    Beyond a margin of replicated pixels stand zeros, as in the plugin.
    """
    margin = len(weights) - 1
    height, width = frames.shape[1:]
    padded = np.empty((height + 2 * margin, width + 2 * margin), np.float32)
    rows, first, second = np.empty_like(padded), np.empty_like(padded), np.empty_like(padded)
    for n in range(frames.shape[0]):
        frame = frames[n]
        for y in range(height + 2 * margin):
            row = frame[min(max(y - margin, 0), height - 1)]
            padded[y, :margin] = row[0]
            padded[y, margin : margin + width] = row
            padded[y, margin + width :] = row[width - 1]
        _convolve(padded, weights, 1, False, rows, first)
        _convolve(first, weights, 2, False, rows, second)
        for y in range(height):
            for x in range(width):
                value, one, two = frame[y, x], first[y + margin, x + margin], second[y + margin, x + margin]
                first_rest[n, y, x] = value - one
                second_rest[n, y, x] = value - two
                difference[n, y, x] = one - two


@njit(nogil=True, cache=True)
def _convolve(frame, weights, step, replicate, rows, out):
    taps = len(weights)
    centre = taps // 2
    height, width = frame.shape
    left, right = (taps - 1 - centre) * step, centre * step
    total = np.empty(width)
    padded = np.zeros(width + left + right, np.float32)
    nothing = np.zeros(width, np.float32)
    for y in range(height):
        total[:] = 0.0
        for k in range(0, taps, 2):
            source, other = y + (centre - k) * step, y + (centre - k - 1) * step
            if replicate:
                source, other = min(max(source, 0), height - 1), min(max(other, 0), height - 1)
            row = frame[source] if 0 <= source < height else nothing
            if k + 1 < taps:
                second = frame[other] if 0 <= other < height else nothing
                _add_taps(total, row, weights[k], second, weights[k + 1])
            else:
                _add_tap(total, row, weights[k])
        for x in range(width):
            rows[y, x] = total[x]
    for y in range(height):
        if replicate:
            padded[:left] = rows[y, 0]
            padded[left + width :] = rows[y, width - 1]
        padded[left : left + width] = rows[y]
        total[:] = 0.0
        for k in range(0, taps, 2):
            row = padded[left + (centre - k) * step :]
            if k + 1 < taps:
                second = padded[left + (centre - k - 1) * step :]
                _add_taps(total, row, weights[k], second, weights[k + 1])
            else:
                _add_tap(total, row, weights[k])
        for x in range(width):
            out[y, x] = total[x]


# Products in single and sums in double precision, one after the other, are the plugin's, down to ties of
# neighbours.


@njit(nogil=True, cache=True)
def _add_tap(total, row, weight):
    for x in range(len(total)):
        total[x] += row[x] * weight


@njit(nogil=True, cache=True)
def _add_taps(total, row, weight, second, second_weight):
    for x in range(len(total)):
        total[x] = (total[x] + row[x] * weight) + second[x] * second_weight


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
    found = 0
    for n in range(images.shape[0]):
        image, limit = images[n], max(thresholds[n], lowest)
        for y in range(height):
            for x in range(width):
                value = image[y, x]
                if not value >= limit:
                    continue
                highest = True
                for j in range(max(0, y - radius), min(height, y + radius + 1)):
                    for i in range(max(0, x - radius), min(width, x + radius + 1)):
                        if image[j, i] > value and (diagonal or i == x or j == y):
                            highest = False
                if highest:
                    if found < out.shape[0]:
                        out[found, 0], out[found, 1], out[found, 2] = n, x, y
                    found += 1
    return found
