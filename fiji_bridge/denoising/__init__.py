"""Blind-spot denoising, trained on the noisy stack itself."""

from fiji_bridge.denoising.model import Model, load_model
from fiji_bridge.denoising.prediction import denoise
from fiji_bridge.denoising.training import train

__all__ = ["Model", "denoise", "load_model", "train"]
