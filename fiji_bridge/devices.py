"""Where torch computes."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fiji_bridge.errors import FijiBridgeError

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
"""Parameters of glibc's mallopt."""


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


@contextmanager
def keeping_memory() -> Iterator[None]:
    """Let the C library keep the memory of freed tensors for the next ones, and give it back at the end.

    glibc returns large blocks to the system as soon as they are free; the next tensor's memory then comes
    page by page again, in a quarter of the time of a training step on a CPU.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if library is None or not hasattr(library, "malloc_trim"):  # another C library
        yield
        return
    try:
        library.mallopt(TRIM_THRESHOLD, -1)
        library.mallopt(MMAP_MAX, 0)
        yield
    finally:  # to where glibc itself goes once it has seen large blocks come and go
        library.mallopt(MMAP_MAX, 65536)
        library.mallopt(MMAP_THRESHOLD, 2**25)
        library.mallopt(TRIM_THRESHOLD, 2**26)
        library.malloc_trim(0)
