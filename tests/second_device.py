"""A second device made of Python, for what only a GPU would show: tensors of two devices in one operation.

Its tensors lie in the CPU's memory, where each operation is done, but meet the CPU's own in none. Run as a
program it does what a GPU would do, there and on the CPU, and ends with an error where the results differ.
"""

from typing import Any

import numpy as np
import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

NAME = "second"


class Module(backend_registration._DummyBackendModule):
    """What torch asks of a device."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


class Elsewhere(torch.Tensor):
    """A tensor of the second device around one of the CPU."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "Elsewhere":
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, inner.stride(), inner.storage_offset(), dtype=inner.dtype, device=f"{NAME}:0"
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return operate(function, args, kwargs or {})


class SecondDevice(TorchDispatchMode):
    """In this block the second device is there."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return operate(function, args, kwargs or {})


def operate(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Do an operation on the CPU, and refuse what no GPU could."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    there = [t for t in tensors if isinstance(t, Elsewhere)]
    strange = [t for t in tensors if not isinstance(t, Elsewhere) and t.dim()]
    copies = function is torch.ops.aten.copy_.default
    # A GPU's tensor takes the CPU's numbers of places.
    indexes = function.overloadpacket.__name__.startswith(("index", "_index_put"))
    if there and strange and not copies and not (indexes and there[0] is args[0]):
        raise RuntimeError(f"{function} was given tensors of two devices")
    wanted = kwargs.get("device")
    if wanted is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    plain = tree_map(lambda leaf: leaf.inner if isinstance(leaf, Elsewhere) else leaf, (args, kwargs))
    result = function(*plain[0], **plain[1])
    if copies:
        return args[0]
    if (torch.device(wanted).type if wanted is not None else NAME if there else "cpu") != NAME:
        return result
    known = {id(t.inner): t for t in there}  # what was written to is given back itself

    def outside(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        return known[id(leaf)] if id(leaf) in known else Elsewhere(leaf)

    return tree_map(outside, result)


def moved(make: Any) -> Any:
    """Give a maker of tensors that can make them on the second device, which C++ alone cannot."""

    def to_device(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
        if device is None or torch.device(device).type != NAME or isinstance(data, Elsewhere):
            return make(data, *args, device=None if isinstance(data, Elsewhere) else device, **kwargs)
        return make(data, *args, **kwargs).to(NAME)

    return to_device


class Generator:
    """Random numbers, which are drawn on the CPU wherever they go."""

    generator = torch.Generator

    def __new__(cls, device: Any = None) -> torch.Generator:  # type: ignore[misc]
        return cls.generator()


def new_tensor(self: torch.Tensor, data: Any) -> torch.Tensor:
    return torch.tensor(data, dtype=self.dtype, device=self.device)


def set_up() -> None:
    """Make torch know the device, which is there in one thread alone."""
    torch.set_num_threads(1)
    backend_registration._setup_privateuseone_for_python_backend(NAME, Module())
    torch.__future__.set_swap_module_params_on_conversion(True)
    torch.Generator = Generator  # type: ignore[assignment, misc]
    torch.tensor, torch.as_tensor = moved(torch.tensor), moved(torch.as_tensor)
    torch.Tensor.new_tensor = new_tensor  # type: ignore[assignment, method-assign]


def main() -> None:
    from fiji_bridge import Camera, denoise, load_model, train
    from fiji_bridge.simulation import expected_photons
    from fiji_bridge.torch_localizer import PIXELS_AT_ONCE, localize

    set_up()
    PIXELS_AT_ONCE[NAME] = PIXELS_AT_ONCE["cuda"]
    rng = np.random.default_rng(0)
    x, y = rng.uniform(4, 44, (2, 12))
    light = 10 + expected_photons(x, y, np.full(12, 1.3), np.full(12, 800.0), (48, 48))
    raw = np.rint(100 + 2 * (rng.poisson(light, (6, 48, 48)) + rng.normal(0, 1.6, (6, 48, 48)))).astype("u2")
    camera = Camera(offset=100.0, photons_per_adu=0.5, read_noise=1.6, pixel_size_nm=100.0)
    started = load_model("single-molecule")

    def work(device: str) -> tuple[np.ndarray, list[Any]]:
        model = train(raw, model=started, camera=camera, steps=3, batch=2, crop=32, device=device)
        image = denoise(raw[:1], model, device=device).to_numpy()
        ways = ({"uncertainty": "crlb"}, {"false_alarm_rate": 1e-4})
        return image, [localize(raw, camera=camera, device=device, **way) for way in ways]

    expected = work("cpu")
    with SecondDevice():
        mine = torch.ones(2, device=NAME)
        try:
            mine + torch.ones(2)
        except RuntimeError:
            pass
        else:
            raise SystemExit("The second device mixes with the CPU, and would show nothing.")
        found = work(NAME)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-3, atol=0.5)
    for table, other in zip(found[1], expected[1], strict=True):
        np.testing.assert_allclose(table.to_numpy(), other.to_numpy(), rtol=1e-4)


if __name__ == "__main__":
    main()
