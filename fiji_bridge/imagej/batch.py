"""A command on every stack of a folder, for the macros of headless ImageJ.

A macro can only start a program and get, when that ends, what it printed. So the first call leaves a process
that does the batch, and every further call waits for the next lines of it. That process loads neither torch
nor Java: the stacks are done by a worker, which is replaced when it dies of one. All of it ends by itself,
with its half-written outputs removed, when the macro is gone.
"""

import contextlib
import csv
import os
import queue
import secrets
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing import AuthenticationError, get_context
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

from fiji_bridge import stack_formats
from fiji_bridge.camera import Camera
from fiji_bridge.cli import complaint
from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.files import check_target
from fiji_bridge.imagej.commands import COMMANDS, Command, Value, find
from fiji_bridge.macro_options import parse_options
from fiji_bridge.stack import write_stack

SUFFIX = {"denoise": ".tif", "train": ".safetensors", "localize": ".csv", "compare": ""}
"""What the output of a stack is called, after the stack's name."""

OWN = {"model": ".safetensors", "truth": ".csv"}
"""Keys for which a folder stands for one file a stack, named after it."""

PATIENCE_S = 30.0
"""After so long without a macro that asks, nobody is there any more."""

BROKEN = (OSError, EOFError, AuthenticationError)
"""What a connection whose other end is gone, or is somebody else's, raises."""

TURN_S = 5.0
"""How long an asking macro waits for a line before it asks anew."""


@dataclass(frozen=True)
class Job:
    """One stack of a batch.

    Attributes
    ----------
    stack
        Its file or Zarr folder.
    name
        What its outputs are called.
    values
        What the command takes, by key, with this stack's input and output.
    product
        The file that is there when the job is done.
    """

    stack: Path
    name: str
    values: Mapping[str, Value]
    product: Path


@dataclass(frozen=True)
class Batch:
    """A command and the stacks it is for.

    Attributes
    ----------
    left_out
        Names in the folder that are no images.
    log
        The table of what became of each stack; several runs add to it.
    settings
        The options, without input and output, as they stand in the log.
    """

    command: Command
    jobs: list[Job]
    left_out: list[str]
    log: Path
    settings: str
    counts: Counter[str] = field(default_factory=Counter)

    def run(self, work: Callable[[Command, Job], str]) -> Iterator[str]:
        """Do the stacks one after the other and give a line for each, and one of counts.

        A stack is skipped when the log says that it was done with the same options and its output is there,
        newer than what it was made from.
        """
        if self.left_out:
            yield f"Left out, being no images: {', '.join(self.left_out)}"
        before = self._done_before()
        for number, job in enumerate(self.jobs, 1):
            started = time.monotonic()
            if str(job.stack.resolve()) in before and _up_to_date(self.command, job):
                status, said = "skip", f"Done before: {job.product}"
            else:
                try:
                    status, said = "ok", work(self.command, job)
                except FijiBridgeError as error:
                    status, said = "FAIL", str(error)
            seconds, said = time.monotonic() - started, " ".join(said.split())
            self.counts[status] += 1
            if status != "skip":
                self._log(job, status, seconds, said)
            yield f"{number}/{len(self.jobs)} {status:4} {job.stack.name}  {seconds:.1f} s  {said}"
        done, skipped = self.counts["ok"], self.counts["skip"]
        yield (
            f"{done + skipped} of {len(self.jobs)} stacks done ({skipped} of them before),"
            f" {self.counts['FAIL']} failed. Log: {self.log}"
        )

    @property
    def code(self) -> int:
        """The exit code: 0 when all stacks are done, 1 when one failed."""
        return int(self.counts["FAIL"] > 0)

    def _done_before(self) -> set[str]:
        last: dict[str, tuple[str, str]] = {}
        with contextlib.suppress(FileNotFoundError), self.log.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file, dialect="excel-tab"):
                last[row["stack"]] = (row["status"], row["options"])
        return {stack for stack, found in last.items() if found == ("ok", self.settings)}

    def _log(self, job: Job, status: str, seconds: float, said: str) -> None:
        new = not self.log.exists()
        with self.log.open("a", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, dialect="excel-tab")
            if new:
                writer.writerow(["stack", "status", "seconds", "message", "options"])
            writer.writerow([job.stack.resolve(), status, f"{seconds:.1f}", said, self.settings])


def plan(command: Command, options: str) -> Batch:
    """Find the stacks and look at the options before any work.

    Parameters
    ----------
    command
        What to do with each stack.
    options
        Its option string, but `input` is a folder of stacks (or one stack) and `output` a folder; `python` is
        the macro's own.

    Raises
    ------
    FijiBridgeError
        If there is no stack, an option is wrong, or the output folder is that of the stacks or cannot be
        written to.
    """
    given = parse_options(options)
    given.pop("python", None)
    values = command.values(given)
    for key in ("input", "output"):
        if not values[key]:
            raise FijiBridgeError(f"Give {key}=[path of a folder].")
    if values.get("camera"):
        Camera.parse(str(values["camera"]))
    parse_options(str(values.get("options", "")))
    source, folder = Path(str(values["input"])), Path(str(values["output"]))
    stacks, left_out = _stacks(source, folder)
    if folder.resolve() == stacks[0].parent.resolve():
        raise FijiBridgeError(f"{folder} is the folder of the stacks themselves; give another output=.")
    _check_files(command, values, len(stacks))
    log = check_target(folder / f"batch_{command.cli}.tsv")
    jobs = [_job(command, values, *pair) for pair in zip(stacks, _names(stacks), strict=True)]
    return Batch(command, jobs, left_out, log, command.options({**values, "input": "", "output": ""}))


def do(command: Command, job: Job, progress: Callable[[str, int, int], None]) -> str:
    """Run a command on one stack, write what it would show as an image, and give what it says."""
    result = command.run(job.values, progress=progress)
    if command.cli == "localize":
        for image in result.images.values():
            write_stack(image, job.product.with_name(f"{job.name}_rendered.tif"))
    return result.text


def _stacks(source: Path, output: Path) -> tuple[list[Path], list[str]]:
    """Give the stacks in natural order, and the names of what is none."""
    if not source.exists():
        raise FijiBridgeError(f"There is no {source}; give input=[folder of stacks].")
    if source.is_file() or stack_formats.is_zarr(source):
        return [source], []
    try:
        entries = sorted(source.iterdir(), key=lambda entry: stack_formats.natural(entry.name))
    except OSError as error:
        raise FijiBridgeError(f"Cannot look into {source}: {error.strerror or error}.") from error
    stacks, left_out, covered = [], [], {output.resolve()} if output.is_dir() else set[Path]()
    for entry in entries:
        if entry.name.startswith(".") or entry.resolve() in covered:
            continue
        if stack_formats.is_zarr(entry) if entry.is_dir() else _is_image(entry):
            stacks.append(entry)
            covered |= _set_of(entry)
        else:
            left_out.append(entry.name)
    if not stacks:
        raise FijiBridgeError(f"The folder {source} has no stacks in it; TIFF, Zarr, ND2, CZI, SPE or PNG.")
    return stacks, left_out


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in stack_formats.SUFFIXES


def _set_of(path: Path) -> set[Path]:
    """Give the files that are opened with this one: long recordings are split into sets of OME-TIFF."""
    if ".ome." not in path.name.lower() or path.is_dir():
        return set()
    try:
        return {file.resolve() for file in stack_formats.read(path).files}
    except FijiBridgeError:
        return set()  # said again when its turn comes


def _names(stacks: list[Path]) -> list[str]:
    """Give the names of the outputs: those of the stacks, with their suffixes where two would be the same."""
    same = Counter(stack.stem.casefold() for stack in stacks)
    names = [stack.stem if same[stack.stem.casefold()] == 1 else stack.name for stack in stacks]
    # a.png beside a.tif is called a.png, which may be the stem of another.
    return names if len(set(names)) == len(names) else [stack.name for stack in stacks]


def _check_files(command: Command, values: Mapping[str, Value], stacks: int) -> None:
    for key in _read_by(command, values):
        path = Path(str(values[key]))
        if not path.exists():
            raise FijiBridgeError(f"There is no {path}; {command.name!r} was told to take it as {key}.")
    if stacks > 1 and values.get("truth") and Path(str(values["truth"])).is_file():
        raise FijiBridgeError(
            f"{values['truth']} is the truth of one stack; give truth=[folder] with a CSV named after each."
        )
    if stacks > 1 and values.get("fit_stack"):
        raise FijiBridgeError(
            f"fit_stack={values['fit_stack']} belongs to one stack; leave it out of a batch."
        )


def _job(command: Command, values: Mapping[str, Value], stack: Path, name: str) -> Job:
    suffix = SUFFIX[command.cli]
    out = Path(str(values["output"])) / f"{name}{suffix}"
    own = {
        key: str(Path(str(values[key])) / f"{name}{OWN[key]}")
        for key in OWN.keys() & values.keys()
        if values[key] and Path(str(values[key])).is_dir()
    }
    given = {**values, **own, "input": str(stack), "output": str(out)}
    return Job(stack, name, given, out if suffix else out / "report.html")


def _read_by(command: Command, values: Mapping[str, Value]) -> list[str]:
    """Give the keys that name a file to read; a model without a suffix is one that ships."""
    named = {
        p.key: Path(str(values[p.key])) for p in command.parameters if p.kind == "open" and values[p.key]
    }
    return [key for key, path in named.items() if key != "model" or path.suffix or path.exists()]


def _up_to_date(command: Command, job: Job) -> bool:
    sources = [Path(str(job.values[key])) for key in _read_by(command, job.values)]
    try:
        return job.product.stat().st_mtime >= max(source.stat().st_mtime for source in sources)
    except OSError:
        return False


class Worker:
    """A Python of its own for the stacks, so that one that kills it does not stop the rest.

    `heard` tells whether somebody still waits for the batch.
    """

    def __init__(self, heard: Callable[[], bool]) -> None:
        self._heard = heard
        self._pipe: Connection | None = None
        self._process: Any = None

    def __call__(self, command: Command, job: Job) -> str:
        """Do a job and give what the command says.

        Raises
        ------
        FijiBridgeError
            If the command found something wrong, or the worker died.
        SystemExit
            If nobody waits any more.
        """
        if self._pipe is None:
            self._start()
        assert self._pipe is not None
        try:
            self._pipe.send((command.name, job))
            while not self._pipe.poll(1.0):
                if not self._heard():
                    sys.exit(1)
            done, said = self._pipe.recv()
        except (EOFError, OSError) as error:
            code = self.close()
            raise FijiBridgeError(
                f"Python ended while at work on it (exit code {code}), perhaps for want of memory."
            ) from error
        if not done:
            raise FijiBridgeError(said)
        return str(said)

    @property
    def pid(self) -> int | None:
        """The process that works, or None."""
        return self._process.pid if self._pipe else None

    def close(self) -> int | None:
        """Let the worker end, cancelling what it has in hand, and give its exit code."""
        if self._pipe is None:
            return None
        self._pipe.close()
        self._pipe = None
        self._process.join()
        return int(self._process.exitcode)

    def _start(self) -> None:
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs,))
        self._process.start()
        theirs.close()  # or the end of the worker would not end the pipe


def _work(pipe: Connection) -> None:
    """Do the jobs that come through the pipe until it ends; its end cancels the one in hand."""

    def progress(stage: str, done: int, total: int) -> None:
        if pipe.poll():  # nothing is sent before the answer, so this is the end
            raise EOFError

    with contextlib.suppress(EOFError, OSError):
        while True:
            name, job = pipe.recv()
            command = find(name)
            assert command is not None
            try:
                answer = True, do(command, job, progress)
            except Exception as error:
                answer = False, complaint(error)
            pipe.send(answer)


class Desk:
    """Where the lines of a batch wait for whoever asks."""

    def __init__(self) -> None:
        self.closed = threading.Event()
        self._lines: queue.Queue[str] = queue.Queue()
        self._asked = time.monotonic()
        self._key = secrets.token_bytes(16)
        self._listener = Listener(("127.0.0.1", 0), authkey=self._key)
        threading.Thread(target=self._hand_out, daemon=True).start()

    @property
    def more(self) -> str:
        """The last line of an answer that is not the last."""
        return f"more {self._listener.address[1]} {self._key.hex()}"

    def heard(self) -> bool:
        """Tell whether somebody asked lately."""
        return time.monotonic() - self._asked < PATIENCE_S

    def put(self, line: str) -> None:
        """Leave a line; ``end CODE`` is the last."""
        self._lines.put(line)

    def _hand_out(self) -> None:
        while not self.closed.is_set():
            with contextlib.suppress(*BROKEN), self._listener.accept() as connection:
                self._asked = time.monotonic()
                lines = list(self._waiting())
                last = bool(lines) and lines[-1].startswith("end ")
                connection.send_bytes("\n".join([*lines, *([] if last else [self.more])]).encode())
                self._asked = time.monotonic()
                if last:
                    self.closed.set()

    def _waiting(self) -> Iterator[str]:
        with contextlib.suppress(queue.Empty):
            yield self._lines.get(timeout=TURN_S)
            while True:
                yield self._lines.get_nowait()


def start(task: str) -> str:
    """Start a batch in a process of its own and give its first lines."""
    server = subprocess.Popen(
        [sys.executable, "-P", "-m", __spec__.name, "serve", task],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
    )
    assert server.stdout is not None
    return server.stdout.read().decode()  # ends when `serve` closes it


def follow(port: str, key: str) -> str:
    """Wait for the next lines of the batch there."""
    try:
        with Client(("127.0.0.1", int(port)), authkey=bytes.fromhex(key)) as connection:
            return connection.recv_bytes().decode()
    except BROKEN:
        return "The Python that did the batch was ended from outside; run it again to go on.\nend 1"


def serve(task: str) -> None:
    """Do a batch, leaving its lines for `follow`."""
    name, _, options = task.partition(" ")
    command = next(command for command in COMMANDS if command.cli == name)
    try:
        batch = plan(command, options)
    except Exception as error:
        _answer(f"{complaint(error)}\nend 1")
        return
    desk = Desk()
    _answer(desk.more)
    try:
        with contextlib.closing(Worker(desk.heard)) as worker:
            for line in batch.run(worker):
                desk.put(line)
        desk.put(f"end {batch.code}")
    except Exception as error:
        desk.put(complaint(error))
        desk.put("end 1")
    while desk.heard() and not desk.closed.wait(1.0):
        pass


def _answer(text: str) -> None:
    """Be the answer of `start`, and let it end."""
    sys.stdout.buffer.write(text.encode())
    sys.stdout.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def main(encoding: str, task: str) -> None:
    """Answer a macro, in its encoding: `task` is a command and its options, or where to go on."""
    if encoding == "serve":
        return serve(task)
    said = follow(*task.split()[1:]) if task.startswith("more ") else start(task)
    try:
        spelled = said.encode(encoding, "replace")
    except LookupError:  # Java has some that Python does not know
        spelled = said.encode("ascii", "replace")
    sys.stdout.buffer.write(spelled)
    return None


if __name__ == "__main__":
    main(*sys.argv[1:])
