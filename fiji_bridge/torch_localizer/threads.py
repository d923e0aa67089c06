"""Threads for compiled loops, which let go of the interpreter's lock."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch


def in_threads(work: Callable[[slice], None], count: int, at_once: int) -> None:
    """Call `work` with slices of ``range(count)``, on as many threads as torch takes.

    Parameters
    ----------
    work
        Fills its slice of arrays that are there already; slices do not depend on each other.
    count
        How much there is to do.
    at_once
        Length of a slice.
    """
    slices = [slice(start, min(start + at_once, count)) for start in range(0, count, at_once)]
    threads = min(torch.get_num_threads(), len(slices))
    if threads <= 1:
        for some in slices:
            work(some)
        return
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(work, slices):
            pass
