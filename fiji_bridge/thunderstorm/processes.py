"""An analysis shared out among worker processes, each with a Java of its own.

Parent and workers talk through pipes: the job, then a block of frames at a time, pickled. A worker ends when
its input does, so also when the parent was killed.
"""

import os
import pickle
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from queue import SimpleQueue
from typing import Any

from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.thunderstorm.analysis import Analysis, Block, Found, Job

AHEAD = 2
"""Blocks a worker that wait in memory."""


class _Worker:
    """One process, as the parent sees it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "fiji_bridge.thunderstorm.processes"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the parent, which ends the others
        )

    def ask(self, question: Any, doing: str) -> Iterator[Any]:
        """Hand over a job or a block, and give the answers as they come; text ends them."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            pickle.dump(question, self._process.stdin, pickle.HIGHEST_PROTOCOL)
            self._process.stdin.flush()
            while not isinstance(answer := pickle.load(self._process.stdout), str):
                yield answer
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            status = self._process.wait()
            advice = ", perhaps for want of memory; use fewer processes" if status < 0 else ""
            raise FijiBridgeError(
                f"A worker process of ThunderSTORM's ended while it {doing} (exit status {status}){advice}."
            ) from error
        if answer:
            raise FijiBridgeError(answer)

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()


Answers = SimpleQueue[Found | BaseException | None]
"""What is found in a block, as it comes; None or an error ends it."""


class Processes:
    """The workers of one analysis; used as an `Analysis`."""

    def __init__(self, workers: list[_Worker], pool: ThreadPoolExecutor, job: Job) -> None:
        self._pool, self._room = pool, AHEAD * len(workers)
        self._idle: SimpleQueue[_Worker] = SimpleQueue()
        job = replace(job, threads=max(1, job.threads // len(workers)))
        for answers in pool.map(lambda worker: list(worker.ask(job, "started")), workers):
            (self.bounds,) = answers
        for worker in workers:
            self._idle.put(worker)

    def frames(self, blocks: Iterable[Block]) -> Iterator[Found]:
        """Find the molecules of all frames, in their order."""
        waiting: deque[Answers] = deque()
        for block in blocks:
            waiting.append(SimpleQueue())
            self._pool.submit(self._block, block, waiting[-1])
            if len(waiting) > self._room:
                yield from _found(waiting.popleft())
        while waiting:
            yield from _found(waiting.popleft())

    def _block(self, block: Block, answers: Answers) -> None:
        worker = self._idle.get()
        try:
            for found in worker.ask(block, f"analysed frames {block[0][0]} to {block[-1][0]}"):
                answers.put(found)
            answers.put(None)
        except BaseException as error:
            answers.put(error)
        finally:
            self._idle.put(worker)


def _found(answers: Answers) -> Iterator[Found]:
    while (answer := answers.get()) is not None:
        if isinstance(answer, BaseException):
            raise answer
        yield answer


@contextmanager
def processes(job: Job, number: int) -> Iterator[Processes]:
    """Start workers for a job, and end them with the block, however it ends."""
    workers: list[_Worker] = []
    pool = ThreadPoolExecutor(number, thread_name_prefix="ThunderSTORM")
    try:
        for _ in range(number):
            workers.append(_Worker())
        yield Processes(workers, pool, job)
    finally:
        for worker in workers:
            worker.kill()
        pool.shutdown(cancel_futures=True)


def _main() -> None:
    """Be a worker."""
    from_parent, to_parent = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # ImageJ prints

    def answer(what: Any) -> None:
        pickle.dump(what, to_parent, pickle.HIGHEST_PROTOCOL)
        to_parent.flush()

    with suppress(EOFError, BrokenPipeError):
        try:
            analysis = Analysis(pickle.load(from_parent))
            answer(analysis.bounds)
            answer("")
        except FijiBridgeError as error:
            answer(str(error))
        while True:
            block = pickle.load(from_parent)
            try:
                for found in analysis.frames([block]):
                    answer(found)
                answer("")
            except FijiBridgeError as error:
                answer(str(error))
    os._exit(0)  # Java would go on


if __name__ == "__main__":
    _main()
