"""Where torch computes."""

import torch

from fiji_bridge.errors import FijiBridgeError


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
        torch.zeros(1, device=device).item()  # which one that holds no numbers, such as meta, cannot give
        return torch.device(device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise FijiBridgeError(
            f"The device {device!r} cannot be used ({reason}); choose cpu or leave it out."
        ) from error
