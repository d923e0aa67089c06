"""Published denoisers to compare with, behind the calls of our own.

`BM3D` (Dabov et al. 2007) needs no training. `N2V` (Krull et al. 2019), `N2N` (Lehtinen et al. 2018) and
`CARE` (Weigert et al. 2018) are CAREamics's, which trains them at its own defaults; `PN2V` (Krull et al.
2020), which CAREamics 0.3.5 can describe but not train, is written here. All work on photons, so that a
camera's maps and another camera's gain are taken care of.

The packages behind them come with ``pip install "fiji-bridge[baselines]"`` and are imported when used.
"""

import logging
import math
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from torch.nn import functional

from fiji_bridge.camera import Camera
from fiji_bridge.denoising.crops import POOL_PIXELS, SMALLEST
from fiji_bridge.denoising.model import Denoiser, describe
from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.progress import Progress
from fiji_bridge.stack import frame_blocks, positions

Predictor = Callable[[np.ndarray], np.ndarray]
"""From frames (n, y, x) in A/D counts to denoised ones, float32."""

BUDGET = "the budget was used"


@dataclass(frozen=True, kw_only=True)
class Baseline(Denoiser):
    """What the baselines share.

    Attributes
    ----------
    camera
        From A/D counts to photons; what `denoise` assumes unless told otherwise.
    report
        How training went: `steps`, `minutes`, `stopped` (why it ended), `device`, and what an engine adds.
    details
        Where the model comes from: `source`, `version`.
    """

    engine: ClassVar[str]  # type: ignore[misc]
    estimators: ClassVar[tuple[str, ...]] = ("mean",)  # type: ignore[misc]

    camera: Camera
    report: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)

    @classmethod
    @abstractmethod
    def train(
        cls,
        stacks: list[xr.DataArray],
        targets: list[xr.DataArray] | None,
        camera: Camera,
        *,
        device: torch.device,
        minutes: float,
        steps: int | None,
        seed: int,
        progress: Progress,
    ) -> Self:
        """Train on opened stacks, for at most so many minutes and steps."""

    @abstractmethod
    def predictor(
        self, camera: Camera, estimator: str, device: torch.device, fast: bool, tile: int
    ) -> Predictor:
        """Make ready for frames of a camera; `tile` is the side of the pieces of large frames [pixels]."""


class BM3D(Baseline):
    """BM3D between a generalized Anscombe transformation and its exact unbiased inverse.

    Mäkitalo and Foi, IEEE Trans. Image Process. 22, 91 (2013), equations 2 and 9. With `fast` only BM3D's
    first stage, hard thresholding, is done. As it looks for similar patches, frames larger than `tile` come
    out slightly different for another `tile`. The package `bm3d` is free for non-commercial use only.
    """

    engine: ClassVar[str] = "bm3d"  # type: ignore[misc]
    reach: ClassVar[int] = 32
    """Pixels around a tile in which similar patches are looked for."""
    least: ClassVar[int] = 32
    """Side to which smaller images are padded [pixels]: the package fails where no patch fits."""

    @classmethod
    def train(
        cls,
        stacks: list[xr.DataArray],
        targets: list[xr.DataArray] | None,
        camera: Camera,
        *,
        device: torch.device,
        minutes: float,
        steps: int | None,
        seed: int,
        progress: Progress,
    ) -> Self:
        """Take the camera: there is nothing to train."""
        _require("bm3d", cls.engine)
        report = {"steps": 0, "minutes": 0.0, "stopped": "BM3D needs no training", "device": "cpu"}
        return cls(camera=camera, report=report, details=_details(stacks, 0, "bm3d"))

    def contents(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Give nothing: the camera is all."""
        return {}, {}

    @classmethod
    def from_contents(cls, tensors: dict[str, Tensor], metadata: dict[str, Any], camera: Camera) -> Self:
        """Take the camera."""
        del metadata["engine"]
        return cls(camera=camera, report=metadata.pop("report", {}), details=metadata)

    def predictor(
        self, camera: Camera, estimator: str, device: torch.device, fast: bool, tile: int
    ) -> Predictor:
        """Make ready; the device is not used, BM3D runs on the processor."""
        package = _require("bm3d", self.engine)
        stage = package.BM3DStages.HARD_THRESHOLDING if fast else package.BM3DStages.ALL_STAGES
        # Light of excess noise F² is, divided by F², light without.
        variance = np.asarray(camera.read_variance) / camera.excess_noise**2

        def smooth(image: np.ndarray, spread: float) -> np.ndarray:
            padding = [(0, max(0, self.least - side)) for side in image.shape]
            padded = np.pad(image, padding, mode="symmetric")
            height, width = image.shape
            return np.asarray(package.bm3d(padded, spread, stage_arg=stage))[:height, :width]

        def one(photons: np.ndarray) -> np.ndarray:
            stable = 2 * np.sqrt(np.maximum(photons + 3 / 8 + variance, 0))
            low, span = stable.min(), max(float(np.ptp(stable)), 1.0)
            scaled = (stable[None] - low) / span
            pieces = _by_tiles(lambda part: smooth(part[0], 1 / span)[None], scaled, tile, self.reach, 1)
            root = np.sqrt(3 / 2)
            # Below this the transformation has no inverse: no light gives less on average.
            d = np.maximum(pieces[0] * span + low, 2 * np.sqrt(3 / 8 + variance))
            unbiased = d**2 / 4 + root / (4 * d) - 11 / (8 * d**2) + 5 * root / (8 * d**3) - 1 / 8 - variance
            return np.maximum(unbiased, 0)

        def predict(adu: np.ndarray) -> np.ndarray:
            photons = camera.to_photons(np.asarray(adu, np.float64)) / camera.excess_noise
            light = np.stack([one(image) for image in photons]) * camera.excess_noise
            return np.asarray(camera.to_adu(light), np.float32)

        return predict


@dataclass(frozen=True, kw_only=True)
class CAREamics(Baseline):
    """A U-Net that CAREamics trained.

    Attributes
    ----------
    weights, architecture
        Of CAREamics's U-Net: state and keyword arguments.
    scaling
        Mean and standard deviation of the input, and of what the network gives [photons].
    """

    epochs: ClassVar[int] = 30
    """CAREamics's default; `steps`, where given, takes its place."""
    least: ClassVar[int] = 100
    """Steps that an epoch has at least. CAREamics lowers the learning rate, and stops, after some epochs
    without progress; on a single image its epochs, all data once, are a step or two: several count as one.
    """
    patch: ClassVar[int] = 64
    """Side of a training patch [pixels]; smaller images take smaller ones."""
    batch: ClassVar[int] = 16
    precision: ClassVar[str] = "32-true"
    """Lightning's name of the numbers trained with, CAREamics's default."""
    validation: ClassVar[int] = 8
    """Patches kept apart for CAREamics's learning rate and, for CARE, choice of weights: its default."""

    weights: dict[str, Tensor] = field(repr=False)
    architecture: dict[str, Any]
    scaling: tuple[float, float, float, float]

    @classmethod
    def pairs(
        cls,
        stacks: list[xr.DataArray],
        targets: list[xr.DataArray] | None,
        camera: Camera,
        rng: np.random.Generator,
        progress: Progress,
    ) -> tuple[list[np.ndarray], list[np.ndarray] | None]:
        """Give what to train on: images (y, x) [photons] and, for supervised engines, one target each."""
        images, aims = _frames(stacks, targets, camera, rng, progress)
        return _flat(images), None if aims is None else _flat(aims)

    @classmethod
    def train(
        cls,
        stacks: list[xr.DataArray],
        targets: list[xr.DataArray] | None,
        camera: Camera,
        *,
        device: torch.device,
        minutes: float,
        steps: int | None,
        seed: int,
        progress: Progress,
    ) -> Self:
        """Let CAREamics train: as many epochs as is its default, or `steps`, and at most so many minutes.

        Raises
        ------
        FijiBridgeError
            If CAREamics is not installed, or the stacks are too small or too few for the engine.
        """
        began = time.monotonic()
        _require("careamics.careamist", cls.engine, quietly=True)
        images, aims = cls.pairs(stacks, targets, camera, np.random.default_rng(seed), progress)
        scaling = (*_mean_and_spread(images), *_mean_and_spread(aims or images))
        images, aims = _mirrored(images), None if aims is None else _mirrored(aims)
        settings, together = cls._settings(images, scaling, aims is not None, device, steps, seed)
        watch = _Watch(progress, began, minutes)
        with tempfile.TemporaryDirectory(prefix="fiji-bridge-") as folder, _contained():
            network, architecture, trainer = _careamics_run(cls.engine, settings, images, aims, folder, watch)
        weights = watch.best or network.state_dict()
        if watch.late or (steps is not None and trainer.global_step >= steps):
            stopped = BUDGET
        elif trainer.current_epoch >= cls.epochs * together:
            stopped = f"{cls.epochs} epochs were done, CAREamics's default"
        else:
            stopped = "the validation loss stopped improving"
        report: dict[str, Any] = {
            "steps": int(trainer.global_step),
            "epochs": round(trainer.current_epoch / together, 2),
            "minutes": round((time.monotonic() - began) / 60, 2),
            "stopped": stopped,
            "device": str(device),
        }
        return cls(
            camera=camera,
            weights={name: value.detach().cpu().clone() for name, value in weights.items()},
            architecture=architecture,
            scaling=scaling,
            report=report,
            details=_details(stacks, report["steps"], "careamics"),
        )

    @classmethod
    def _settings(
        cls,
        images: Sequence[np.ndarray],
        scaling: tuple[float, float, float, float],
        supervised: bool,
        device: torch.device,
        steps: int | None,
        seed: int,
    ) -> tuple[dict[str, Any], int]:
        """Give the arguments of CAREamics's configuration, and how many of its epochs make one."""
        # Two patches at least, one to train on and one kept apart; in less than 32×32 N2V masks no pixel.
        for patch in (cls.patch, 32):
            fits = sum(math.prod(side // patch for side in image.shape) for image in images)
            if fits >= 2:
                break
        together = math.ceil(cls.least * cls.batch / fits)
        normalization = dict(
            zip(("input_means", "input_stds"), ([value] for value in scaling[:2]), strict=True)
        )
        if supervised:
            normalization |= {"target_means": [scaling[2]], "target_stds": [scaling[3]]}
        trainer = {
            "accelerator": device.type if device.type in ("cpu", "mps") else "gpu",
            "devices": [device.index or 0] if device.type == "cuda" else 1,
            "enable_model_summary": False,
            "max_steps": -1 if steps is None else steps,
            "precision": cls.precision,
        }
        settings: dict[str, Any] = {
            "experiment_name": cls.engine,
            "data_type": "array",
            "axes": "YX",
            "patch_size": [patch, patch],
            "batch_size": cls.batch,
            "num_epochs": cls.epochs * together if steps is None else -1,
            "n_val_patches": min(cls.validation, fits // 2),
            "normalization_params": normalization,
            "lr_scheduler_params": {"patience": 10 * together},  # 10 is torch's default
            "trainer_params": trainer,
            "seed": seed + 1,  # 0 is refused
        }
        # Its worker processes are forks, which a Java machine in this process does not survive.
        jpype = sys.modules.get("jpype")
        if jpype is not None and jpype.isJVMStarted():
            settings["num_workers"] = 0
        if (
            cls.engine == "care"
        ):  # the others, which compare noise with noise, do not stop early; 3 is Lightning's
            settings["early_stopping_params"] = {
                "monitor": "val_loss",
                "mode": "min",
                "patience": 3 * together,
            }
        return settings, together

    def contents(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Give the weights, and architecture and scaling."""
        weights = {f"network.{name}": value for name, value in self.weights.items()}
        return weights, {"architecture": self.architecture, "scaling": list(self.scaling)}

    @classmethod
    def from_contents(cls, tensors: dict[str, Tensor], metadata: dict[str, Any], camera: Camera) -> Self:
        """Make a model again; the network itself is built when it is used."""
        del metadata["engine"]
        return cls(
            camera=camera,
            weights={name.removeprefix("network."): value for name, value in tensors.items()},
            architecture=metadata.pop("architecture"),
            scaling=metadata.pop("scaling"),
            report=metadata.pop("report", {}),
            details=metadata,
        )

    def predictor(
        self, camera: Camera, estimator: str, device: torch.device, fast: bool, tile: int
    ) -> Predictor:
        """Build the network; frames are cut into tiles with all around them that it sees."""
        unet = _require("careamics.models.unet", self.engine, quietly=True)
        network = unet.UNet(**self.architecture)
        network.load_state_dict(self.weights)
        network.to(device).eval()
        stride = 2 ** self.architecture["depth"]
        mean, spread, target_mean, target_spread = self.scaling

        @torch.no_grad()
        def piece(photons: np.ndarray) -> np.ndarray:
            x = torch.from_numpy((photons - mean) / spread)[:, None].to(device)
            result: np.ndarray = network(x)[:, 0].float().cpu().numpy() * target_spread + target_mean
            return result

        return _on_photons(piece, camera, tile, stride)


class N2V(CAREamics):
    """Noise2Void (Krull et al., CVPR 2019), trained on the noisy stack alone."""

    engine: ClassVar[str] = "n2v"  # type: ignore[misc]


class N2N(CAREamics):
    """Noise2Noise (Lehtinen et al., ICML 2018): noisy to as noisy, of one scene.

    Without targets each frame is paired with others of its stack, so that they must show one scene. In a
    movie, whatever blinks or moves is averaged away.
    """

    engine: ClassVar[str] = "n2n"  # type: ignore[misc]
    partners: ClassVar[int] = 3
    """Other frames that a frame is paired with."""

    @classmethod
    def pairs(
        cls,
        stacks: list[xr.DataArray],
        targets: list[xr.DataArray] | None,
        camera: Camera,
        rng: np.random.Generator,
        progress: Progress,
    ) -> tuple[list[np.ndarray], list[np.ndarray] | None]:
        """Pair each frame with its target, or with others of its stack."""
        if targets is not None:
            return super().pairs(stacks, targets, camera, rng, progress)
        images: list[np.ndarray] = []
        aims: list[np.ndarray] = []
        for frames in _frames(stacks, None, camera, rng, progress)[0]:
            order = rng.permutation(len(frames))
            for shift in range(1, min(cls.partners + 1, len(frames))):
                images += list(frames[order])
                aims += list(frames[np.roll(order, shift)])
        if not images:
            raise FijiBridgeError(
                f"{stacks[0].attrs.get('source', 'The stack')} has single frames, and the engine 'n2n' needs"
                " two of each scene; give targets or take n2v."
            )
        return images, aims


class CARE(CAREamics):
    """CARE (Weigert et al., Nat. Methods 15, 1090, 2018): noisy to clean."""

    engine: ClassVar[str] = "care"  # type: ignore[misc]

    @classmethod
    def pairs(
        cls,
        stacks: list[xr.DataArray],
        targets: list[xr.DataArray] | None,
        camera: Camera,
        rng: np.random.Generator,
        progress: Progress,
    ) -> tuple[list[np.ndarray], list[np.ndarray] | None]:
        """Pair each frame with its clean target."""
        if targets is None:
            raise FijiBridgeError("The engine 'care' learns from clean images; give them as targets.")
        return super().pairs(stacks, targets, camera, rng, progress)


@dataclass(frozen=True, kw_only=True)
class PN2V(Baseline):
    """Probabilistic Noise2Void (Krull et al., Front. Comput. Sci. 2, 5, 2020), bootstrapped.

    A U-Net with blind spots gives samples of the prior of each pixel; a noise model their likelihood;
    training maximizes the mean likelihood over the samples, and the estimate is the mean of the samples
    weighted by it. The noise model is a mixture of Gaussians that depends on the light, fitted to pairs of a
    Noise2Void estimate and the noisy pixel (Prakash et al., ISBI 2020, "bootstrapped").

    Smaller than in the paper: 32 channels at the finest scale, not 64, and 200 samples, not 800. A variance
    map of the camera counts as its mean.

    Attributes
    ----------
    network, noise
        The U-Net and the noise model, on the CPU.
    scaling
        Mean and standard deviation of the data [photons].
    """

    engine: ClassVar[str] = "pn2v"  # type: ignore[misc]
    estimators: ClassVar[tuple[str, ...]] = ("mean", "prior")  # type: ignore[misc]
    bootstrap: ClassVar[float] = 0.35
    """Share of the training that goes into the Noise2Void estimate."""
    masked: ClassVar[float] = 1 / 32
    """Share of the pixels of a crop that are blind spots."""
    together: ClassVar[int] = 2**21
    """Samples whose likelihood is computed at once."""

    network: "UNet" = field(repr=False)
    noise: "MixtureNoise" = field(repr=False)
    scaling: tuple[float, float]

    @classmethod
    def train(
        cls,
        stacks: list[xr.DataArray],
        targets: list[xr.DataArray] | None,
        camera: Camera,
        *,
        device: torch.device,
        minutes: float,
        steps: int | None,
        seed: int,
        progress: Progress,
        samples: int = 200,
        features: Sequence[int] = (32, 64, 128),
        batch: int = 8,
        crop: int = 64,
        learning_rate: float = 1e-3,
    ) -> Self:
        """Train as Noise2Void, fit the noise model to what comes out, and go on as Probabilistic Noise2Void.

        Parameters
        ----------
        stacks, targets, camera, device, minutes, steps, seed, progress
            As in `fiji_bridge.train`; `steps` is 20,000 if left out.
        samples
            Of each pixel's prior; 800 in the paper.
        features
            Channels of the U-Net at each scale.
        batch, crop, learning_rate
            Crops in a step, their side [pixels], and Adam's rate, which falls to 0.
        """
        began = time.monotonic()
        rng = np.random.default_rng(seed)
        frames = _frames(stacks, None, camera, rng, progress)[0]
        scaling = _mean_and_spread(_flat(frames))
        pool = [torch.from_numpy((part - scaling[0]) / scaling[1]).to(device) for part in frames]
        noise = MixtureNoise(*scaling, camera.excess_noise, float(np.mean(camera.read_variance))).to(device)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            network = UNet(features, samples).to(device)
        generator = torch.Generator(device).manual_seed(seed)
        total = steps or 20_000
        optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
        done, passed, fitted = 0, 0.0, False
        while passed < 1:
            if passed >= cls.bootstrap and not fitted:
                noise.fit(*_guesses(network, pool, rng), progress)
                fitted = True
            x = _crops(pool, rng, batch, crop)
            hidden, where = _with_blind_spots(x, cls.masked, generator)
            priors = network.samples(network(hidden).movedim(1, -1)[where])
            seen = x[:, 0][where]
            if fitted:
                loss = -noise.evidence(seen, priors).mean()
            else:
                loss = functional.mse_loss(priors.mean(1), seen)
            optimizer.param_groups[0]["lr"] = learning_rate * (0.5 + 0.5 * math.cos(math.pi * passed))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            done += 1
            passed = max(done / total, (time.monotonic() - began) / 60 / minutes)
            progress("Training", min(1000, int(1000 * passed)), 1000)
        report = {
            "steps": done,
            "minutes": round((time.monotonic() - began) / 60, 2),
            "stopped": BUDGET,
            "device": str(device),
        }
        return cls(
            camera=camera,
            network=network.cpu().eval(),
            noise=noise.cpu(),
            scaling=scaling,
            report=report,
            details=_details(stacks, done),
        )

    def contents(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Give network and noise model, and what builds them."""
        tensors = {
            f"{part}.{name}": value.detach()
            for part, module in (("network", self.network), ("noise", self.noise))
            for name, value in module.state_dict().items()
        }
        return tensors, {
            "architecture": {
                "features": list(self.network.features),
                "samples": self.network.last.out_features,
            },
            "scaling": list(self.scaling),
            "noise": {"excess": self.noise.excess, "read_variance": self.noise.read_variance},
        }

    @classmethod
    def from_contents(cls, tensors: dict[str, Tensor], metadata: dict[str, Any], camera: Camera) -> Self:
        """Make a model again."""
        del metadata["engine"]
        scaling = metadata.pop("scaling")
        network = UNet(**metadata.pop("architecture"))
        noise = MixtureNoise(*scaling, **metadata.pop("noise"))
        for part, module in (("network.", network), ("noise.", noise)):
            module.load_state_dict(
                {name.removeprefix(part): value for name, value in tensors.items() if name.startswith(part)}
            )
        return cls(
            camera=camera,
            network=network.eval(),
            noise=noise,
            scaling=scaling,
            report=metadata.pop("report", {}),
            details=metadata,
        )

    def predictor(
        self, camera: Camera, estimator: str, device: torch.device, fast: bool, tile: int
    ) -> Predictor:
        """Make ready; the samples of a tile are made and weighted some pixels at a time."""
        network = UNet(self.network.features, self.network.last.out_features).to(device).eval()
        network.load_state_dict(self.network.state_dict())
        noise = MixtureNoise(*self.scaling, self.noise.excess, self.noise.read_variance).to(device)
        noise.load_state_dict(self.noise.state_dict())
        mean, spread = self.scaling
        few = max(1, self.together // network.last.out_features)

        @torch.no_grad()
        def piece(photons: np.ndarray) -> np.ndarray:
            x = torch.from_numpy((photons - mean) / spread).to(device)
            pixels = zip(
                network(x[:, None]).movedim(1, -1).flatten(0, 2).split(few),
                x.flatten().split(few),
                strict=True,
            )
            found = []
            for features, seen in pixels:
                samples = network.samples(features)
                weights = (
                    noise.log_likelihood(seen[:, None], samples).softmax(1) if estimator == "mean" else None
                )
                found.append(samples.mean(1) if weights is None else (weights * samples).sum(1))
            return torch.cat(found).view(x.shape).cpu().numpy() * spread + mean

        return _on_photons(piece, camera, tile, network.stride)


class UNet(nn.Module):
    """A plain U-Net (Ronneberger et al. 2015), its last layer apart so that it need not run on every pixel.

    Parameters
    ----------
    features
        Channels at each scale, finest first.
    samples
        Outputs a pixel.
    """

    def __init__(self, features: Sequence[int], samples: int) -> None:
        super().__init__()
        self.features = tuple(features)
        inputs = (1, *features)
        self.down = nn.ModuleList(
            _two_convolutions(before, after) for before, after in zip(inputs, features, strict=False)
        )
        self.up = nn.ModuleList(_two_convolutions(fine + coarse, fine) for fine, coarse in pairwise(features))
        self.last = nn.Linear(features[0], samples)
        # Samples that begin far apart, which training draws together slowly, would keep the pixel's noise.
        with torch.no_grad():
            for values, common in ((self.last.weight, self.last.weight[0]), (self.last.bias, 0)):
                values.copy_(torch.lerp(torch.zeros_like(values) + common, values, 0.2))

    @property
    def stride(self) -> int:
        """Pixels between two samples of the coarsest scale."""
        return 2 ** (len(self.features) - 1)

    def forward(self, x: Tensor) -> Tensor:
        """Give features (n, features[0], y, x) of images (n, 1, y, x), sides multiples of `stride`."""
        scales: list[Tensor] = []
        for level, block in enumerate(self.down):
            x = block(functional.max_pool2d(x, 2) if level else x)
            scales.append(x)
        for block, fine in zip(reversed(self.up), reversed(scales[:-1]), strict=True):
            x = block(torch.cat([fine, functional.interpolate(x, scale_factor=2.0)], dim=1))
        return x

    def samples(self, features: Tensor) -> Tensor:
        """Draw the prior of pixels: (pixels, samples) from their features (pixels, features[0])."""
        result: Tensor = self.last(features)
        return result


def _two_convolutions(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.LeakyReLU(0.1, True),
        nn.Conv2d(outputs, outputs, 3, padding=1),
        nn.LeakyReLU(0.1, True),
    )


class MixtureNoise(nn.Module):
    """A mixture of Gaussians for a noisy pixel given its light, after Prakash et al. (ISBI 2020).

    The components' weights, means and variances are linear in the light, up to the function that keeps them
    possible, and in units of the camera's noise: before any fit the model is that of the camera, of variance
    ``excess · light + read_variance``. Light and pixel are given as networks see them, normalized.

    Parameters
    ----------
    mean, spread
        Mean and standard deviation of the data [photons].
    excess, read_variance
        Noise of the camera [photons, photons²].
    components
        Gaussians in the mixture.
    """

    floor = 0.1
    """Photons below which the noise of light falls no further."""

    def __init__(
        self, mean: float, spread: float, excess: float, read_variance: float, components: int = 3
    ) -> None:
        super().__init__()
        self.mean, self.spread, self.excess, self.read_variance = mean, spread, excess, read_variance
        start = torch.zeros(3, 2, components)
        start[1, 0] = torch.linspace(-0.5, 0.5, components)  # alike, they would learn alike
        self.table = nn.Parameter(start)

    def log_likelihood(self, seen: Tensor, light: Tensor) -> Tensor:
        """Log density of pixels given their light (broadcast against each other)."""
        photons = (light * self.spread + self.mean).clamp(min=self.floor)
        sigma = (self.excess * photons + self.read_variance).sqrt() / self.spread
        distance = (seen - light) / sigma
        bend = light.clamp(-3, 10)  # beyond the data the lines are not known
        logit, center, width = (
            [constant + slope * bend for constant, slope in zip(*rows, strict=True)] for rows in self.table
        )
        total = torch.stack(logit).logsumexp(0)
        # The mean of the noise is 0, or the light would not be known: PN2V's own condition.
        middle = sum((part - total).exp() * value for part, value in zip(logit, center, strict=True))
        parts = [
            part - total - log_sigma - 0.5 * ((distance - value + middle) * (-log_sigma).exp()).square()
            for part, value, log_sigma in zip(logit, center, width, strict=True)
        ]
        return torch.stack(parts).logsumexp(0) - sigma.log() - 0.5 * math.log(2 * math.pi)

    def evidence(self, seen: Tensor, priors: Tensor) -> Tensor:
        """Log of the mean likelihood of pixels (n) over samples of their prior (n, samples)."""
        return self.log_likelihood(seen[:, None], priors).logsumexp(1) - math.log(priors.shape[1])

    def fit(self, light: Tensor, seen: Tensor, progress: Progress, steps: int = 300) -> None:
        """Fit to pairs of estimated light and noisy pixel, by maximum likelihood."""
        optimizer = torch.optim.Adam(self.parameters(), lr=0.02)
        rng = torch.Generator(light.device).manual_seed(0)
        for step in range(steps):
            progress("Fitting the noise model", step, steps)
            some = torch.randint(len(light), (4096,), generator=rng, device=light.device)
            loss = -self.log_likelihood(seen[some], light[some]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        self.requires_grad_(False)


def _crops(pool: Sequence[Tensor], rng: np.random.Generator, number: int, side: int) -> Tensor:
    """Cut random crops (number, 1, side, side), turned and mirrored at random."""
    smallest = min(min(part.shape[1:]) for part in pool)
    side = min(side, smallest - smallest % 16 if smallest >= 16 else smallest)
    chances = np.array([part.numel() for part in pool], float)
    crops = []
    for group in rng.choice(len(pool), number, p=chances / chances.sum()):
        frames = pool[group]
        top, left = (int(rng.integers(length - side + 1)) for length in frames.shape[1:])
        crop = frames[int(rng.integers(len(frames))), top : top + side, left : left + side]
        crop = crop.rot90(int(rng.integers(4)), (0, 1))
        crops.append(crop.flip(1) if rng.integers(2) else crop)
    return torch.stack(crops)[:, None]


def _with_blind_spots(x: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Put random neighbours, at most 2 pixels off, in the place of some pixels of images (n, 1, y, x).

    Returns
    -------
    tuple of torch.Tensor
        The images, and which pixels were replaced (n, y, x).
    """
    images, device = x[:, 0], x.device
    where = torch.rand(images.shape, generator=generator, device=device) < share
    where[:, 0, 0] |= ~where.flatten(1).any(1)  # at least one
    image, row, column = where.nonzero(as_tuple=True)
    number = torch.randint(24, row.shape, generator=generator, device=device)
    number = number + (number >= 12).long()  # 12 would be the pixel itself
    down, right = number // 5 - 2, number % 5 - 2
    height, width = images.shape[1:]
    # Outside the image the neighbour on the other side is taken.
    down = torch.where((row + down < 0) | (row + down >= height), -down, down)
    right = torch.where((column + right < 0) | (column + right >= width), -right, right)
    hidden = images.clone()
    hidden[image, row, column] = images[image, row + down, column + right]
    return hidden[:, None], where


@torch.no_grad()
def _guesses(
    network: UNet, pool: Sequence[Tensor], rng: np.random.Generator, pixels: int = 2**19
) -> tuple[Tensor, Tensor]:
    """Mean of the prior, and the noisy pixel, for pixels of frames chosen at random."""
    light, seen = [], []
    for part in pool:
        height, width = (length - length % network.stride for length in part.shape[1:])
        share = max(1, int(pixels / len(pool) / part[0].numel()))
        for frame in rng.permutation(len(part))[:share]:
            x = part[int(frame), :height, :width]
            features = network(x[None, None]).movedim(1, -1).flatten(0, 2)
            # The mean of the samples is linear in the features.
            light.append(features @ network.last.weight.mean(0) + network.last.bias.mean())
            seen.append(x.flatten())
    return torch.cat(light), torch.cat(seen)


def _on_photons(piece: Predictor, camera: Camera, tile: int, stride: int) -> Predictor:
    """Make a U-Net of pieces of photons into one of frames of A/D counts.

    Two convolutions a scale on the way down and up and interpolation between see at most 8 strides far.
    """

    def predict(adu: np.ndarray) -> np.ndarray:
        photons = np.asarray(camera.to_photons(adu), np.float32)
        light = [_by_tiles(piece, image[None], tile, 8 * stride, stride)[0] for image in photons]
        return np.asarray(camera.to_adu(np.stack(light)), np.float32)

    return predict


def _by_tiles(piece: Predictor, images: np.ndarray, tile: int, halo: int, stride: int) -> np.ndarray:
    """Work on images (n, y, x) by tiles that see `halo` pixels further, cut at multiples of `stride`.

    Sides are padded to multiples of `stride` by reflection.
    """
    height, width = images.shape[1:]
    padding = [(0, 0), *((0, -side % stride) for side in (height, width))]
    padded = np.pad(images, padding, mode="symmetric")
    step = -(-tile // stride) * stride
    result = np.empty_like(padded)
    for top in range(0, height, step):
        for left in range(0, width, step):
            start_y, start_x = max(0, top - halo), max(0, left - halo)
            seen = padded[:, start_y : top + step + halo, start_x : left + step + halo]
            inner = (slice(top - start_y, top - start_y + step), slice(left - start_x, left - start_x + step))
            result[:, top : top + step, left : left + step] = piece(np.ascontiguousarray(seen))[:, *inner]
    return result[:, :height, :width]


def _frames(
    stacks: Sequence[xr.DataArray],
    targets: Sequence[xr.DataArray] | None,
    camera: Camera,
    rng: np.random.Generator,
    progress: Progress,
) -> tuple[list[np.ndarray], list[np.ndarray] | None]:
    """Read the frames to train on, (t, y, x) [photons] for each stack, channel and z, and their targets.

    Raises
    ------
    FijiBridgeError
        If the images are too small, or the camera cannot have recorded them.
    """
    groups = [part for stack in stacks for _, part in positions(stack)]
    aims = None if targets is None else [part for stack in targets for _, part in positions(stack)]
    smallest = min(min(part.sizes["y"], part.sizes["x"]) for part in groups)
    if smallest < SMALLEST:
        raise FijiBridgeError(
            f"{groups[0].attrs.get('source', 'The stack')} has images of {smallest} pixels across;"
            f" training needs at least {SMALLEST}."
        )
    share = min(1.0, POOL_PIXELS / sum(part.size for part in groups))

    def read(part: xr.DataArray) -> np.ndarray:
        blocks = (camera.to_photons(block) for _, block in frame_blocks(part))
        return np.concatenate([np.asarray(block, np.float32) for block in blocks])

    images: list[np.ndarray] = []
    cleaner: list[np.ndarray] = []
    for done, part in enumerate(groups):
        progress("Reading frames", done, len(groups))
        camera.check(part)
        few = max(1, int(share * part.sizes["t"]))
        chosen = np.sort(rng.choice(part.sizes["t"], few, replace=False)) if share < 1 else slice(None)
        images.append(read(part.isel(t=chosen)))
        if aims is not None:
            cleaner.append(read(aims[done].isel(t=chosen)))
    return images, None if aims is None else cleaner


def _mirrored(images: Sequence[np.ndarray], least: int = 64) -> list[np.ndarray]:
    """Continue images by mirror images where a side is shorter than two of the smallest patches."""
    return [np.pad(i, [(0, max(0, least - side)) for side in i.shape], mode="symmetric") for i in images]


def _flat(groups: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Images (y, x) of all groups."""
    return [image for frames in groups for image in frames]


def _mean_and_spread(images: Sequence[np.ndarray]) -> tuple[float, float]:
    """Mean and standard deviation of all pixels."""
    number = sum(image.size for image in images)
    mean = sum(float(image.sum(dtype=np.float64)) for image in images) / number
    square = sum(float(np.square(image - mean).sum(dtype=np.float64)) for image in images) / number
    return mean, max(square**0.5, 1e-3)


def _details(stacks: Sequence[xr.DataArray], steps: int, package: str | None = None) -> dict[str, Any]:
    """Where a model comes from, with the version of the package that made it."""
    source = ", ".join(str(stack.attrs.get("source", "array")) for stack in stacks)
    return describe(source, steps) | ({} if package is None else {package: version(package)})


def _require(module: str, engine: str, quietly: bool = False) -> Any:
    """Import a module of an optional package.

    Raises
    ------
    FijiBridgeError
        If it is not installed, or another version without that module.
    """
    try:
        with _hushed() if quietly else warnings.catch_warnings():
            return import_module(module)
    except ImportError as error:
        raise FijiBridgeError(
            f'The denoising engine {engine!r} needs: pip install "fiji-bridge[baselines]" ({error}).'
        ) from error


def _careamics_run(
    engine: str,
    settings: dict[str, Any],
    images: list[np.ndarray],
    aims: list[np.ndarray] | None,
    folder: str,
    watch: "_Watch",
) -> tuple[nn.Module, dict[str, Any], Any]:
    """Train with CAREamics, its files in `folder`; give network, architecture and Lightning's trainer."""
    from careamics.careamist import CAREamist
    from careamics.config import factories
    from lightning.pytorch import Callback

    create = getattr(factories, f"create_advanced_{engine}_config")

    class Watching(Callback):  # type: ignore[misc]
        """Passes on what Lightning tells."""

        def on_train_batch_end(self, trainer: Any, *arguments: Any) -> None:
            """Tell progress, and stop in time."""
            watch.step(trainer)

        def on_validation_end(self, trainer: Any, module: Any) -> None:
            """Remember the best weights."""
            if engine == "care":  # the others compare noise with noise
                watch.validated(trainer, module.model)

    careamist = CAREamist(
        create(**settings), work_dir=Path(folder), callbacks=[Watching()], enable_progress_bar=False
    )
    try:
        careamist.train(train_data=images, train_data_target=aims)
    except _CancelledError as cancelled:
        raise cancelled.reason from None
    return careamist.model.model, careamist.config.algorithm_config.model.model_dump(), careamist.trainer


class _CancelledError(Exception):
    """Wraps what progress raised, since Lightning ends the program on a KeyboardInterrupt."""

    def __init__(self, reason: BaseException) -> None:
        super().__init__(str(reason))
        self.reason = reason


class _Watch:
    """Keeps the time of a training, tells its progress, and remembers its best weights."""

    def __init__(self, progress: Progress, began: float, minutes: float) -> None:
        self.progress, self.began, self.minutes = progress, began, minutes
        self.late = False
        self.loss = math.inf
        self.best: dict[str, Tensor] | None = None

    def step(self, trainer: Any) -> None:
        """Look at the clock after a step."""
        spent = (time.monotonic() - self.began) / 60 / self.minutes
        if spent >= 1:
            self.late = trainer.should_stop = True
            trainer.limit_val_batches = 0
        passed = max(spent, trainer.global_step / trainer.estimated_stepping_batches)
        try:
            self.progress("Training", min(1000, int(1000 * passed)), 1000)
        except BaseException as error:
            raise _CancelledError(error) from error

    def validated(self, trainer: Any, network: nn.Module) -> None:
        """Look at the loss on the patches kept apart."""
        loss = float(trainer.callback_metrics.get("val_loss", math.inf))
        if not trainer.sanity_checking and loss < self.loss:
            self.loss = loss
            self.best = {name: value.detach().clone() for name, value in network.state_dict().items()}


@contextmanager
def _contained() -> Iterator[None]:
    """Keep Lightning's traces from the rest of the program.

    It seeds every source of random numbers, sets environment variables, talks, and on Ctrl-C ignores further
    ones and exits.
    """
    kept, numbers, state = dict(os.environ), random.getstate(), np.random.get_state()
    handler = signal.getsignal(signal.SIGINT)
    try:
        with torch.random.fork_rng(), _hushed():
            yield
    except SystemExit as leaving:
        if not isinstance(leaving.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from None
    finally:
        random.setstate(numbers)
        np.random.set_state(state)
        for name in os.environ.keys() - kept.keys():
            del os.environ[name]
        os.environ.update(kept)


@contextmanager
def _hushed() -> Iterator[None]:
    """Let CAREamics and Lightning say nothing but errors."""
    for name in ("lightning", "careamics"):
        logging.getLogger(name)
    talkers = [
        logger
        for name, logger in logging.root.manager.loggerDict.items()
        if name.split(".")[0] in ("lightning", "careamics") and isinstance(logger, logging.Logger)
    ]
    levels = [logger.level for logger in talkers]
    for logger in talkers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(talkers, levels, strict=True):
            logger.setLevel(level)


BASELINES: dict[str, type[Baseline]] = {kind.engine: kind for kind in (BM3D, N2V, N2N, CARE, PN2V)}
