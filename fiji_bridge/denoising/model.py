"""A trained denoiser: what it holds, and the file it is kept in."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch

from fiji_bridge import __version__
from fiji_bridge.camera import Camera
from fiji_bridge.denoising.likelihood import ENGINES, NoiseModel, Readout
from fiji_bridge.denoising.network import BlindSpotNetwork
from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.files import replacing

FORMAT = "fiji-bridge blind-spot model"
MAPS = ("offset_map", "gain_map", "variance_map")


@dataclass(frozen=True)
class Model:
    """A blind-spot network with its noise model and the camera it was trained with.

    Attributes
    ----------
    network
        The network, on the CPU.
    noise
        The noise model: one of `likelihood.ENGINES`, with its constants.
    camera
        From A/D counts to photons; what `denoise` assumes unless told otherwise.
    report
        How training went: `curve` (step, minutes, held-out likelihood and so on), `held_out_nll` and
        `trivial_nll` [nats per pixel], `weight` (of a pixel's own value), `held_out_mean_ratio` (mean of the
        denoised over mean of the raw photons, on pixels not trained on), `collapsed` (why attempts were given
        up), `stopped` (why training ended).
    details
        Where the model comes from: `source`, `version`.
    """

    network: BlindSpotNetwork
    noise: NoiseModel
    camera: Camera
    report: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def metadata(self) -> dict[str, Any]:
        """All but the weights and the camera's maps, as it stands in the file."""
        camera = self.camera.replace(**dict.fromkeys(MAPS)).as_dict()
        return {
            "engine": self.noise.engine,
            "architecture": self.network.architecture(),
            "noise": self.noise.constants(),
            "camera": camera,
            "pixel_size_nm": self.camera.pixel_size_nm,
            "report": self.report,
            **self.details,
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file: weights, and readable JSON in its header. Nothing in it can run code.

        Raises
        ------
        FijiBridgeError
            If the file cannot be written.
        """
        tensors = {f"network.{name}": value.contiguous() for name, value in self.network.state_dict().items()}
        for name in MAPS:
            if (values := getattr(self.camera, name)) is not None:
                tensors[f"camera.{name}"] = torch.from_numpy(np.ascontiguousarray(values))
        header = {key: json.dumps(value) for key, value in self.metadata.items()} | {"format": FORMAT}
        with replacing(path) as partial:
            partial.write_bytes(safetensors.torch.save(tensors, header))


def load_model(path: str | os.PathLike[str]) -> Model:
    """Read a model that `Model.save` wrote.

    Raises
    ------
    FijiBridgeError
        If the file is missing, damaged, no model of ours, or of an engine that this version does not have.
    """
    if not Path(path).is_file():
        raise FijiBridgeError(
            f"{path} is {'a folder' if Path(path).is_dir() else 'not there'}; name a model file."
        )
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except OSError as error:
        raise FijiBridgeError(f"Cannot read the model {path}: {error.strerror or error}.") from error
    except safetensors.SafetensorError as error:
        raise FijiBridgeError(
            f"{path} is not a model or is damaged ({error}); give a file that train wrote."
        ) from error
    if header.pop("format", None) != FORMAT:
        raise FijiBridgeError(
            f"{path} is a safetensors file but no model of fiji-bridge; give a file that train wrote."
        )
    try:
        metadata: dict[str, Any] = {key: json.loads(value) for key, value in header.items()}
        kind = noise_model_class(metadata.pop("engine"), str(path))
        network = BlindSpotNetwork(**metadata.pop("architecture"))
        noise = kind(**metadata.pop("noise"))
        maps = {name: tensors.pop(f"camera.{name}").numpy() for name in MAPS if f"camera.{name}" in tensors}
        camera = Camera.from_dict(metadata.pop("camera")).replace(**maps)
        network.load_state_dict({name.removeprefix("network."): value for name, value in tensors.items()})
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise FijiBridgeError(
            f"The model {path} is damaged or from another version; train it again."
        ) from error
    if not all(torch.isfinite(value).all() for value in network.state_dict().values()):
        raise FijiBridgeError(f"The model {path} has weights that are not finite; train it again.")
    metadata.pop("pixel_size_nm", None)
    return Model(network.eval(), noise, camera, metadata.pop("report", {}), metadata)


def describe(source: str, steps: int) -> dict[str, Any]:
    """Give a new model's details."""
    return {"source": source, "steps": steps, "version": __version__}


def noise_model_class(engine: str, where: str = "the engine option") -> type[NoiseModel]:
    """Find a noise model by name.

    Raises
    ------
    FijiBridgeError
        If there is none of that name.
    """
    if engine not in ENGINES:
        raise FijiBridgeError(
            f"{where} asks for the denoising engine {engine!r}; there are {', '.join(ENGINES)}."
        )
    return ENGINES[engine]


def choose_device(device: str | None) -> torch.device:
    """CUDA if there is one, unless a device is named.

    Raises
    ------
    FijiBridgeError
        If torch cannot use the device.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(1, device=device)
        return torch.device(device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise FijiBridgeError(
            f"The device {device!r} cannot be used ({reason}); choose cpu or leave it out."
        ) from error


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 natively; emulated, it would be slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, name, lambda: False)() for name in names)


def readout_of(camera: Camera, device: torch.device) -> Readout:
    """Noise of a camera, for images on a device."""
    variance = camera.read_variance
    if isinstance(variance, np.ndarray):
        return Readout(camera.excess_noise, torch.from_numpy(variance).to(device))
    return Readout(camera.excess_noise, float(variance))
