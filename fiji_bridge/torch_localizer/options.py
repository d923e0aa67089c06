"""What the plugin's `Run analysis` settings ask of the torch engine."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import numpy as np
import torch

from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.lens_calibration import read_calibration
from fiji_bridge.thunderstorm import settings as plugin
from fiji_bridge.torch_localizer import detectors, filters
from fiji_bridge.torch_localizer.estimators import (
    Centroid,
    Estimator,
    GaussianFit,
    MultiEmitterFit,
    NoEstimator,
    RadialSymmetry,
)
from fiji_bridge.torch_localizer.fitting import (
    Astigmatic,
    Fitter,
    Gaussian,
    IntegratedGaussian,
    LeastSquares,
    MaximumLikelihood,
    Method,
    Psf,
    WeightedLeastSquares,
)
from fiji_bridge.torch_localizer.likelihood_ratio import LikelihoodRatio, false_alarm_threshold
from fiji_bridge.torch_localizer.thresholds import Threshold

FILTERS: dict[type[plugin.ImageFilter], Callable[[Any], filters.Filter]] = {
    plugin.WaveletFilter: lambda s: filters.WaveletFilter(s.order, s.scale),
    plugin.BoxFilter: lambda s: filters.BoxFilter(s.size_px),
    plugin.DifferenceOfBoxFilters: lambda s: filters.DifferenceOfBoxes(s.first_size_px, s.second_size_px),
    plugin.GaussianFilter: lambda s: filters.GaussianFilter(s.sigma_px),
    plugin.LoweredGaussianFilter: lambda s: filters.LoweredGaussianFilter(s.sigma_px),
    plugin.DifferenceOfGaussiansFilter: lambda s: filters.DifferenceOfGaussians(
        s.first_sigma_px, s.second_sigma_px
    ),
    plugin.MedianFilter: lambda s: filters.MedianFilter(s.size_px, s.pattern == "cross"),
    plugin.NoFilter: lambda s: filters.NoFilter(),
}
DETECTORS: dict[type[plugin.Detector], Callable[[Any], detectors.Detector]] = {
    plugin.LocalMaximum: lambda s: detectors.LocalMaxima(s.connectivity == "8-neighbourhood"),
    plugin.NonMaximumSuppression: lambda s: detectors.NonMaximumSuppression(s.radius_px),
    plugin.ConnectedComponents: lambda s: detectors.ConnectedComponents(s.watershed),
}
PSFS: dict[type[plugin.GaussianFit], Callable[[Any], Psf]] = {
    plugin.IntegratedGaussian: lambda s: IntegratedGaussian(),
    plugin.Gaussian: lambda s: Gaussian(),
    plugin.EllipticalGaussian: lambda s: Astigmatic(read_calibration(s.calibration_path)),
}
METHODS: dict[str, Method] = {
    "Weighted Least squares": WeightedLeastSquares(),
    "Least squares": LeastSquares(),
    "Maximum likelihood": MaximumLikelihood(),
}


@dataclass(frozen=True)
class Analysis:
    """The steps that turn frames into molecules.

    Parameters
    ----------
    filter, threshold, detector, estimator
        The steps.
    whole_frames
        Whether the estimator is given each frame from its best candidate on, not the square around each
        candidate.
    """

    filter: filters.Filter
    threshold: Threshold
    detector: detectors.Detector
    estimator: Estimator
    whole_frames: bool = False


def read_analysis(text: str) -> Analysis:
    """Read an option string; keys left out take the plugin's defaults.

    Raises
    ------
    FijiBridgeError
        If a key is unknown or a value is not possible.
    """
    settings = plugin.AnalysisSettings.parse(text)
    chosen = FILTERS[type(settings.filter)](settings.filter)
    # Of the filters that are not chosen, formulas see the plugin's defaults.
    others = [make(kind()) for kind, make in FILTERS.items()]
    estimator = settings.estimator
    return Analysis(
        filter=chosen,
        threshold=Threshold(settings.detector.threshold, chosen, {other.name: other for other in others}),  # type: ignore[attr-defined]
        detector=DETECTORS[type(settings.detector)](settings.detector),
        estimator=_estimator(estimator),
        whole_frames=isinstance(estimator, plugin.GaussianFit) and estimator.full_image_fitting,
    )


def with_known_sigma(analysis: Analysis) -> Analysis:
    """Give the same analysis with sigma kept where its fits start.

    Raises
    ------
    FijiBridgeError
        If it fits no sigma.
    """
    estimator = analysis.estimator
    if not isinstance(estimator, GaussianFit | MultiEmitterFit) or isinstance(
        estimator.fitter.psf, Astigmatic
    ):
        raise FijiBridgeError("A known sigma is for fits of a symmetric Gaussian; choose such an estimator.")
    return replace(analysis, estimator=replace(estimator, fitter=replace(estimator.fitter, fixed=True)))


def with_likelihood_ratio(
    analysis: Analysis, rate: float, photons: float, variance: np.ndarray | None
) -> Analysis:
    """Give the same analysis with candidates where a likelihood ratio says that molecules are.

    Parameters
    ----------
    analysis
        What else is done; its fits start with the sigma that is looked for.
    rate
        Of false alarms, a pixel.
    photons
        Photons that an A/D count stands for.
    variance
        (y, x) of the noise besides that of the light [photons²].

    Raises
    ------
    FijiBridgeError
        If the analysis has no sigma, or the rate is not possible.
    """
    if isinstance(rate, bool) or not isinstance(rate, Real):
        raise FijiBridgeError(f"false_alarm_rate must be a number such as 1e-4, not {rate!r}.")
    estimator = analysis.estimator
    if not isinstance(estimator, GaussianFit | MultiEmitterFit):
        raise FijiBridgeError(
            "A likelihood ratio needs the molecules' sigma; choose an estimator with sigma=."
        )
    known = None if variance is None else torch.from_numpy(np.asarray(variance, np.float64))
    ratio = LikelihoodRatio(estimator.fitter.sigma, photons, known)
    limit = false_alarm_threshold(float(rate))
    return replace(analysis, filter=ratio, threshold=Threshold(repr(limit), ratio))


def _estimator(settings: plugin.Estimator) -> Estimator:
    match settings:
        case plugin.RadialSymmetry():
            return RadialSymmetry(settings.fit_radius_px)
        case plugin.Centroid():
            return Centroid(settings.fit_radius_px)
        case plugin.NoEstimator():
            return NoEstimator()
        case plugin.GaussianFit():
            psf, method = PSFS[type(settings)](settings), METHODS[settings.method]
            if not settings.multi_emitter:
                return GaussianFit(Fitter(psf, method, settings.sigma_px, settings.fit_radius_px))
            # The plugin's multi-emitter fits have no weights, whatever is asked for.
            method = method if method.in_photons else LeastSquares()
            return MultiEmitterFit(
                Fitter(psf, method, settings.sigma_px, settings.fit_radius_px),
                most=max(1, settings.most_molecules),
                p_value=settings.p_value,
                same_intensity=settings.same_intensity,
                photons=settings.intensity_photons if settings.limit_intensity else None,
            )
    raise FijiBridgeError(f"The torch engine does not have estimator=[{settings.fixed['estimator']}].")
