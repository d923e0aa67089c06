"""A trained denoiser: what it holds, and the file it is kept in."""

import hashlib
import json
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import safetensors
import safetensors.torch
import torch
import xarray as xr

from fiji_bridge import __version__
from fiji_bridge.camera import Camera
from fiji_bridge.camera_estimation import value_range
from fiji_bridge.denoising.network import BlindSpotNetwork
from fiji_bridge.denoising.noise_models import ENGINES, NoiseModel, Readout
from fiji_bridge.denoising.whitening import Whitening
from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.files import check_model_target, replacing
from fiji_bridge.stack import positions

if TYPE_CHECKING:
    from fiji_bridge.denoising.baselines import Baseline

FORMAT = "fiji-bridge blind-spot model"
MAPS = ("offset_map", "gain_map", "variance_map")


class Denoiser(ABC):
    """What `train` gives and `denoise` takes: `Model`, or one of `baselines.BASELINES`.

    Attributes
    ----------
    engine, estimators
        Its name, and what it can give, the default first.
    camera, report, details, whitening
        As in `Model`.
    """

    camera: Camera | None
    report: dict[str, Any]
    details: dict[str, Any]
    whitening: Whitening = Whitening()

    @property
    @abstractmethod
    def engine(self) -> str: ...  # noqa: D102

    @property
    @abstractmethod
    def estimators(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def assumed_camera(self) -> Camera | None:
        """What the method takes every camera for, None where it heeds the real one."""
        return None

    @property
    def neighbours(self) -> int:
        """Frames seen on either side of each."""
        return 0

    @property
    def for_any_camera(self) -> bool:
        """Whether it is for stacks of any camera, each pixel with noise of its own, as those that ship."""
        return False

    @abstractmethod
    def contents(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Give the tensors, and as JSON the rest, from which `from_contents` makes this denoiser again."""

    @classmethod
    @abstractmethod
    def from_contents(
        cls, tensors: dict[str, torch.Tensor], metadata: dict[str, Any], camera: Camera
    ) -> Self:
        """Make a denoiser again; what `metadata` has beside `contents` is its report and details."""

    @property
    def metadata(self) -> dict[str, Any]:
        """All but the tensors and the camera's maps, as it stands in the file."""
        return {
            "engine": self.engine,
            **self.contents()[1],
            "camera": self.camera and self.camera.replace(**dict.fromkeys(MAPS)).as_dict(),
            "pixel_size_nm": self.camera and self.camera.pixel_size_nm,
            "report": self.report,
            **self.details,
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file: weights, and readable JSON in its header. Nothing in it can run code.

        Raises
        ------
        FijiBridgeError
            If the name does not end in .safetensors, or the file cannot be written.
        """
        check_model_target(path)
        tensors = {name: value.contiguous() for name, value in self.contents()[0].items()}
        for name in MAPS:
            if (values := getattr(self.camera, name, None)) is not None:
                tensors[f"camera.{name}"] = torch.from_numpy(np.ascontiguousarray(values))
        header = {key: json.dumps(value) for key, value in self.metadata.items()} | {"format": FORMAT}
        with replacing(path) as partial:
            partial.write_bytes(safetensors.torch.save(tensors, header))


@dataclass(frozen=True)
class Model(Denoiser):
    """A blind-spot network with its noise model and the camera it was trained with.

    Attributes
    ----------
    network
        The network, on the CPU.
    noise
        The noise model: one of `noise_models.ENGINES`, with its constants.
    camera
        From A/D counts to photons; what `denoise` assumes unless told otherwise. None in a model for any
        camera, as those that ship are: then `denoise` estimates the stack's.
    report
        How training went: `curve` (step, minutes, held-out likelihood and so on), `held_out_nll` and
        `trivial_nll` [nats per pixel], `weight` (of a pixel's own value), `held_out_mean_ratio` (mean of the
        denoised over mean of the raw photons, on pixels not trained on), `collapsed` (why attempts were given
        up), `stopped` (why training ended).
    details
        Where the model comes from: `source`, `version`, and `trained_on`, the `fingerprint` of each stack.
    whitening
        Filters around the network that give each pixel its own noise, where pixels share it.
    """

    network: BlindSpotNetwork
    noise: NoiseModel
    camera: Camera | None
    report: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    whitening: Whitening = field(default_factory=Whitening)

    @property
    def engine(self) -> str:
        """Name of the noise model."""
        return self.noise.engine

    @property
    def estimators(self) -> tuple[str, ...]:
        """What the noise model can give."""
        return self.noise.estimators

    @property
    def assumed_camera(self) -> Camera | None:
        """The noise model's."""
        return self.noise.assumed_camera

    @property
    def neighbours(self) -> int:
        """The network's."""
        return self.network.neighbours

    @property
    def for_any_camera(self) -> bool:
        """Whether it has neither a camera nor a wide blind spot."""
        return self.camera is None and self.network.blind_radius == 0

    def contents(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Give weights, and architecture and noise model."""
        weights = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        rest = {"architecture": self.network.architecture(), "noise": self.noise.constants()}
        return weights, rest | {"noise_correlation": self.whitening.correlation}

    @classmethod
    def from_contents(
        cls, tensors: dict[str, torch.Tensor], metadata: dict[str, Any], camera: Camera | None
    ) -> "Model":
        """Make a model again."""
        constants = metadata.pop("noise")
        for name, value in constants.items():
            least = {"center": -math.inf, "floor": 0.0}.get(name, 1e-30)
            if name == "narrowing":
                _check_narrowing(value)
            elif not least <= value < math.inf:
                raise ValueError(name)
        noise = ENGINES[metadata.pop("engine")](**constants)
        with torch.device("meta"):  # nothing is as large as the file says before its weights are
            network = BlindSpotNetwork(**metadata.pop("architecture"))
        if network.outputs != noise.outputs:
            raise ValueError("outputs")
        weights = {name.removeprefix("network."): value for name, value in tensors.items()}
        network.load_state_dict(weights, assign=True)
        along_x, along_y = map(tuple, metadata.pop("noise_correlation", ((), ())))
        whitening = Whitening((along_x, along_y))
        return cls(network.eval(), noise, camera, metadata.pop("report", {}), metadata, whitening)


def shipped_models() -> dict[str, Path]:
    """Find the models that ship, by name."""
    package = Path(__file__).parents[1]  # in a checkout they stand beside it
    folders = (package / "models", package.parent / "models")
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.safetensors"))}


def load_model(path: str | os.PathLike[str]) -> "Model | Baseline":
    """Read a model that its `save` wrote, or one that ships, by its name.

    Raises
    ------
    FijiBridgeError
        If the file is missing, damaged, no model of ours, or of an engine that this version does not have.
    """
    shipped = shipped_models()
    path = shipped.get(str(path), path)
    if not Path(path).is_file():
        raise FijiBridgeError(
            f"{path} is {'a folder' if Path(path).is_dir() else 'not there'}; name a model file, or a model"
            f" that ships: {', '.join(shipped) or 'none yet'}."
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
        kind = denoiser_class(metadata["engine"], str(path))
        maps = {name: tensors.pop(f"camera.{name}").numpy() for name in MAPS if f"camera.{name}" in tensors}
        camera = (of := metadata.pop("camera")) and Camera.from_dict(of).replace(**maps)
        metadata.pop("pixel_size_nm", None)
        model = kind.from_contents(tensors, metadata, camera)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise FijiBridgeError(
            f"The model {path} is damaged or from another version; train it again."
        ) from error
    if not all(torch.isfinite(value).all() for value in tensors.values()):
        raise FijiBridgeError(f"The model {path} has weights that are not finite; train it again.")
    return model


def describe(source: str, steps: int) -> dict[str, Any]:
    """Give a new model's details."""
    return {"source": source, "steps": steps, "version": __version__}


def fingerprint(stack: xr.DataArray) -> str:
    """Tell a stack from others, whatever its name or type of numbers: by three of its frames."""
    every = [(series, frame) for _, series in positions(stack) for frame in range(series.sizes["t"])]
    told = hashlib.sha256(str(stack.shape).encode())
    for place in sorted({0, len(every) // 2, len(every) - 1}):
        series, frame = every[place]
        told.update(np.asarray(series[frame], np.float32).tobytes())
    return told.hexdigest()[:16]


def _check_narrowing(pairs: Any) -> None:
    known = np.asarray(pairs)
    if len(pairs) and not (known.ndim == 2 and known.shape[1] == 2 and known.dtype.kind in "iuf"):
        raise ValueError("narrowing")
    means, shares = known.reshape(-1, 2).T
    sound = (np.abs(means) < 1e30).all() and (np.diff(means) > 0).all()
    if not (sound and ((shares > 0) & (shares <= 1)).all()):
        raise ValueError("narrowing")


def denoiser_class(engine: str, where: str = "the engine option") -> "type[Model] | type[Baseline]":
    """Find what an engine's models are.

    Raises
    ------
    FijiBridgeError
        If there is no engine of that name.
    """
    from fiji_bridge.denoising.baselines import BASELINES  # which are made of this module's parts

    if engine in ENGINES:
        return Model
    if engine in BASELINES:
        return BASELINES[engine]
    raise FijiBridgeError(
        f"{where} asks for the denoising engine {engine!r}; there are {', '.join([*ENGINES, *BASELINES])}."
    )


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 natively; emulated, it would be slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, name, lambda: False)() for name in names)


def readout_of(camera: Camera, stacks: Sequence[xr.DataArray], device: torch.device) -> Readout:
    """Noise of a camera, and the values that its stacks (t, y, x) can hold, for images on a device."""
    known = camera.read_variance
    variance = torch.from_numpy(known).to(device) if isinstance(known, np.ndarray) else float(known)
    if camera.offset_map is not None or camera.gain_map is not None:
        return Readout(camera.excess_noise, variance)  # each pixel would have a range of its own
    step, *ends = value_range(stacks)
    lowest, highest = (end if math.isinf(end) else float(camera.to_photons(np.float64(end))) for end in ends)
    return Readout(camera.excess_noise, variance, step / float(camera.adu_per_photon), lowest, highest)
