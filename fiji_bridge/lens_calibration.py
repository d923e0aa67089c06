"""Calibrations of a cylindrical lens: how the widths of an astigmatic spot depend on z."""

import re
from pathlib import Path

import numpy as np

from fiji_bridge.errors import FijiBridgeError

_ENTRY = re.compile(r"(\w+)\s*:\s*([-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)\s*(?=[,}]|$)", re.MULTILINE)
"""On a line of its own, or in braces as version 1.3 writes it."""

_NUMBERS = ("w0", "a", "b", "c", "d")


def read_calibration(path: str) -> np.ndarray:
    """Read a calibration that ThunderSTORM saved.

    Its two kinds are the polynomial ``b + a·(z-c)² + d·(z-c)³`` and ``w0/2·√(1 + u² + a·u³ + b·u⁴)`` with
    u = (z-c)/d, which is that of Huang et al., Science 319, 810 (2008); widths in pixels, z in nm.

    Parameters
    ----------
    path
        A YAML file.

    Returns
    -------
    ndarray
        (12,) kind (0 polynomial, 1 Huang), angle [rad], then w0, a, b, c and d of each axis.

    Raises
    ------
    FijiBridgeError
        If there is no such file or it is not a calibration.
    """
    if not path.strip():
        raise FijiBridgeError("The elliptical Gaussian needs calibrationpath=, the file of a calibration.")
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FijiBridgeError(f"Cannot read the calibration {path}: {reason}.") from error
    kinds = {"PolynomialCalibration": 0.0, "DaostormCalibration": 1.0}
    kind = next((number for name, number in kinds.items() if name in text), None)
    values = {name: float(number) for name, number in _ENTRY.findall(text)}
    keys = ["angle", *(f"{name}{axis}" for axis in (1, 2) for name in _NUMBERS)]
    missing = [key for key in keys if key not in values and not key.startswith("w0")]
    if kind is None or missing:
        what = f"it lacks {', '.join(missing)}" if missing else "it names no kind of calibration"
        raise FijiBridgeError(f"{path} is not a calibration of a cylindrical lens: {what}.")
    return np.array([kind, *(values.get(key, 1.0) for key in keys)])
