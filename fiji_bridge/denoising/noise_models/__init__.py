"""Noise models: what a network's output says about a pixel, and what its value then says about its light.

A noise model is one file with one class behind the protocol `NoiseModel`, and one line in `ENGINES`.
"""

from fiji_bridge.denoising.noise_models.gamma_poisson import GammaPoisson
from fiji_bridge.denoising.noise_models.gaussian import Gaussian
from fiji_bridge.denoising.noise_models.poi2void import Poi2Void, Poi2VoidPaper
from fiji_bridge.denoising.noise_models.poisson_gaussian import PoissonGaussian
from fiji_bridge.denoising.noise_models.protocol import NoiseModel, Readout

__all__ = [
    "ENGINES",
    "GammaPoisson",
    "Gaussian",
    "NoiseModel",
    "Poi2Void",
    "Poi2VoidPaper",
    "PoissonGaussian",
    "Readout",
]

ENGINES: dict[str, type[NoiseModel]] = {
    kind.engine: kind for kind in (PoissonGaussian, GammaPoisson, Gaussian, Poi2Void, Poi2VoidPaper)
}
