"""Threads for compiled loops, which let go of the interpreter's lock."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_count: ContextVar[int | None] = ContextVar("threads", default=None)


@contextmanager
def threads_for_loops() -> Iterator[None]:
    """Leave torch one thread and `in_threads` all that it had.

    Between its many small operations torch's threads wait in circles, which takes the processors from ours.
    """
    threads = torch.get_num_threads()
    token = _count.set(threads)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        _count.reset(token)


def in_threads(work: Callable[[slice], None], count: int, at_once: int) -> None:
    """Call `work` with slices of ``range(count)``, on as many threads as torch takes.

    What a slice's thread hands to `in_threads` itself, it does alone.

    Parameters
    ----------
    work
        Fills its slice of arrays that are there already; slices do not depend on each other.
    count
        How much there is to do.
    at_once
        Length of a slice at most; it is less where threads would else have nothing to do, at the end too.
    """
    threads = _count.get() or torch.get_num_threads()
    rounds = -(-count // (at_once * threads))
    length = max(1, -(-count // max(1, rounds * threads)))
    slices = [slice(start, min(start + length, count)) for start in range(0, count, length)]
    threads = min(threads, len(slices))
    if threads <= 1:
        for some in slices:
            work(some)
        return
    with ThreadPoolExecutor(threads, initializer=_count.set, initargs=(1,)) as pool:
        for _ in pool.map(work, slices):
            pass
