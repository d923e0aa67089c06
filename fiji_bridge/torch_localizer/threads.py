"""Threads for compiled loops, which let go of the interpreter's lock."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from threading import Lock

import torch

_count: ContextVar[int | None] = ContextVar("threads", default=None)


@dataclass
class _Borrowed:
    """Threads that torch had before the first of several blocks took them, and how many blocks have them."""

    lock: Lock = field(default_factory=Lock)
    threads: int = 0
    blocks: int = 0


_borrowed = _Borrowed()


@contextmanager
def threads_for_loops() -> Iterator[None]:
    """Leave torch one thread and `in_threads` all that it had.

    Between its many small operations torch's threads wait in circles, which takes the processors from ours.
    Blocks that overlap, in several of the caller's threads, all give back what the first found.
    """
    with _borrowed.lock:
        if not _borrowed.blocks:
            _borrowed.threads = torch.get_num_threads()
        _borrowed.blocks += 1
    torch.set_num_threads(1)
    token = _count.set(_borrowed.threads)
    try:
        yield
    finally:
        _count.reset(token)
        torch.set_num_threads(_borrowed.threads)
        with _borrowed.lock:
            _borrowed.blocks -= 1


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
