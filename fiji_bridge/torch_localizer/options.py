"""What the plugin's `Run analysis` options ask of the torch engine."""

import math
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TypeVar

from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.macro_options import DEFAULT_OPTIONS, parse_options
from fiji_bridge.torch_localizer.detectors import Detector, LocalMaxima, NonMaximumSuppression
from fiji_bridge.torch_localizer.filters import WaveletFilter
from fiji_bridge.torch_localizer.fitting import (
    Fitter,
    Gaussian,
    IntegratedGaussian,
    LeastSquares,
    MaximumLikelihood,
    Method,
    Psf,
    WeightedLeastSquares,
)
from fiji_bridge.torch_localizer.thresholds import Threshold

_T = TypeVar("_T")

WAVELET = "Wavelet filter (B-Spline)"
LOCAL_MAXIMUM, NON_MAXIMUM = "Local maximum", "Non-maximum suppression"
NEIGHBOURS = {"4-neighbourhood": False, "8-neighbourhood": True}
PSFS: dict[str, type[IntegratedGaussian] | type[Gaussian]] = {
    "PSF: Integrated Gaussian": IntegratedGaussian,
    "PSF: Gaussian": Gaussian,
}
METHODS: dict[str, type[LeastSquares] | type[MaximumLikelihood]] = {
    "Weighted Least squares": WeightedLeastSquares,
    "Least squares": LeastSquares,
    "Maximum likelihood": MaximumLikelihood,
}

KEYS = (
    "filter detector estimator renderer scale order size size1 size2 sigma sigma1 sigma2 connectivity "
    "threshold radius watershed fitradius method full_image_fitting mfaenabled keep_same_intensity nmax "
    "fixed_intensity expected_intensity pvalue calibrationpath z_range dimensions magnification avg dx "
    "dxforce dz dzforce zrange zshifts colorizez threed shifts repaint"
)
"""All that a recorded analysis can have; what belongs to the renderer or to another module is not used."""


@dataclass(frozen=True)
class Analysis:
    """The steps that turn frames into molecules."""

    filter: WaveletFilter
    threshold: Threshold
    detector: Detector
    fitter: Fitter


def read_analysis(text: str) -> Analysis:
    """Read an option string; keys left out take the plugin's defaults.

    Raises
    ------
    FijiBridgeError
        If a key is unknown, a value is not possible, or asks for what only the plugin has.
    """
    options = parse_options(text)
    known = KEYS.split()
    for key in options:
        if key not in known:
            near = get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else "leave it out."
            raise FijiBridgeError(f"`Run analysis` has no option {key}; {hint}")
    options = {**parse_options(DEFAULT_OPTIONS), "radius": "1", **options}
    for key in ("full_image_fitting", "mfaenabled"):
        _choose(options, key, {"false": False})
    _choose(options, "filter", {WAVELET: WaveletFilter})
    wavelet = WaveletFilter(order=_whole(options, "order"), scale=_positive(options, "scale"))
    detectors: dict[str, type[LocalMaxima] | type[NonMaximumSuppression]] = {
        LOCAL_MAXIMUM: LocalMaxima,
        NON_MAXIMUM: NonMaximumSuppression,
    }
    detector: Detector
    if _choose(options, "detector", detectors) is LocalMaxima:
        detector = LocalMaxima(diagonal=_choose(options, "connectivity", NEIGHBOURS))
    else:
        detector = NonMaximumSuppression(radius=_whole(options, "radius"))
    psf: Psf = _choose(options, "estimator", PSFS)()
    method: Method = _choose(options, "method", METHODS)()
    fitter = Fitter(psf, method, _positive(options, "sigma"), _whole(options, "fitradius"))
    return Analysis(
        wavelet, Threshold(options["threshold"], wavelet.name, wavelet.variables), detector, fitter
    )


def _choose(options: dict[str, str], key: str, known: dict[str, _T]) -> _T:
    for name, value in known.items():
        if name.lower() == options[key].lower():
            return value
    raise FijiBridgeError(
        f"The torch engine does not have {key}=[{options[key]}], only "
        f"{' or '.join(f'[{name}]' for name in known)}; use --engine thunderstorm for it."
    )


def _positive(options: dict[str, str], key: str) -> float:
    try:
        value = float(options[key])
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise FijiBridgeError(f"The option {key} must be a positive number, not {options[key]!r}.")
    return value


def _whole(options: dict[str, str], key: str) -> int:
    value = _positive(options, key)
    if value != int(value):
        raise FijiBridgeError(f"The option {key} must be a whole number, not {options[key]!r}.")
    return int(value)
