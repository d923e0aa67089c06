"""The Python behind the menu of a Fiji: it does what macros ask for, and stays for the next command.

The macro (`macros/Menu.ijm`) and this process meet in a folder a job, in memory where the system has one:

1. ``python -m fiji_bridge.imagej.worker begin BYTES ENCODING`` makes the folder, starts the worker unless one
   is there, and says where the folder and the worker's pulse are.
2. The macro leaves ``image-*.tif`` (the current image, some frames a file) and ``request`` (lines key=value).
3. The worker writes ``status`` as it goes, and in the end ``result`` with the files it names.
4. The macro writes ``alive`` all the while and ``read`` at last. Where ``alive`` stops, the job is cancelled;
   where the worker's pulse stops, the macro says so.

One worker serves every ImageJ of a user that calls this Python; jobs wait for each other. It ends when it was
idle for a quarter of an hour, or when the package is another than it started with.
"""

import codecs
import contextlib
import hashlib
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import platformdirs
from filelock import FileLock, Timeout

import fiji_bridge
from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.imagej.convert import SIGNED_OFFSET

if TYPE_CHECKING:
    import xarray as xr

    from fiji_bridge.imagej.commands import Command, Value

IDLE_S = 900.0
"""How long a worker waits for the next command."""
SILENT_S = 20.0
"""After so long without a sign of its macro a job is given up."""
LEFT_S = 600.0
"""The same while ImageJ writes or opens images, which takes time."""
ABANDONED_S = 86400.0
"""After so long without a sign no worker of any version still has a job in hand."""
LOOK_S = 0.05
MESSAGE_WIDTH = 90
"""Characters in a line of a message window, which does not wrap."""
ROOM = 4
"""Free room wanted in memory, in sizes of the image: it, the 32-bit result, and some."""


_HEARD: dict[Path, tuple[float, float]] = {}
"""Last sign of each job's macro: time of its file, and monotonic time when that was seen."""


class StoppedError(FijiBridgeError):
    """The macro is gone: there is nobody to tell."""


@dataclass(frozen=True)
class Place:
    """Where the workers of this user and this Python are.

    Attributes
    ----------
    control
        Folder with the lock that the worker holds, its pulse and its log.
    roots
        Folders that jobs can be in: memory first, where the system has such.
    """

    control: Path
    roots: tuple[Path, ...]

    @classmethod
    def of_this_python(cls) -> "Place":
        """Find it, making what is missing."""
        sources = Path(fiji_bridge.__file__).parent.rglob("*.py")
        caches = platformdirs.user_cache_path("fiji_bridge")
        changed = max(source.stat().st_mtime for source in sources)
        state = f"{platform.node()} {sys.executable} {caches} {changed}"  # homes are shared between machines
        name = "fiji_bridge-" + hashlib.sha256(state.encode()).hexdigest()[:12]
        temporary = [Path("/dev/shm"), Path(tempfile.gettempdir())]
        control = caches / name
        control.mkdir(parents=True, exist_ok=True)
        roots = []
        for folder in temporary:
            with contextlib.suppress(OSError):
                (folder / name).mkdir(mode=0o700, exist_ok=True)
                if (folder / name).stat().st_uid == control.stat().st_uid:  # not somebody else's trap
                    roots.append(folder / name)
        if not roots:
            raise FijiBridgeError(f"Cannot write to {temporary[-1]}; set TMPDIR to a folder that can be.")
        return cls(control, tuple(roots))

    @property
    def lock(self) -> FileLock:
        """What the worker holds as long as it lives."""
        return FileLock(self.control / "lock")

    @property
    def pulse(self) -> Path:
        """File that changes every second while the worker lives; its log is beside it."""
        return self.control / "pulse"

    def clear(self) -> None:
        """Take the folders away, but not a log with something in it."""
        log = self.pulse.with_suffix(".log")
        with contextlib.suppress(OSError):
            for root in self.roots:
                root.rmdir()
            self.pulse.unlink(missing_ok=True)
            if not log.stat().st_size:
                shutil.rmtree(self.control, ignore_errors=True)

    def job_folder(self, size: int) -> Path:
        """Make a folder for an image of `size` bytes.

        Raises
        ------
        FijiBridgeError
            If there is no room for it anywhere.
        """
        for root in self.roots:
            if shutil.disk_usage(root).free > ROOM * size + 2**20:
                folder = Path(tempfile.mkdtemp(prefix="job-", dir=root))
                (folder / "cwd").write_text(str(Path.cwd()), encoding="utf-8")
                return folder
        raise FijiBridgeError(
            f"There is no room for this image of {size / 2**20:.0f} MB in {self.roots[-1].parent}; free some,"
            " or save the image and give its path as input."
        )


def begin(size: int) -> str:
    """Give a macro a folder for its job, and start the worker unless it is there."""
    place = Place.of_this_python()
    folder = place.job_folder(size)  # before the look at the lock: see the end of `serve`
    if not _lives(place):
        _start(place)
    return f"folder={folder}\npulse={place.pulse}"


def _lives(place: Place) -> bool:
    """Say whether a worker is there, even one so busy that its pulse stands still."""
    try:
        with place.lock.acquire(timeout=0):
            return False
    except Timeout:
        return True


def _start(place: Place) -> None:
    windows = getattr(subprocess, "CREATE_NO_WINDOW", 0) | getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)
    with place.pulse.with_suffix(".log").open("ab") as log:
        subprocess.Popen(
            [sys.executable, "-P", "-m", "fiji_bridge.imagej.worker", "serve"],
            stdin=subprocess.DEVNULL,
            stdout=log,  # not ours: ImageJ waits until that is closed
            stderr=log,
            start_new_session=True,
            creationflags=windows,
        )


def serve(idle: float = IDLE_S) -> None:
    """Do jobs until there was none for so long [s], or the package changed."""
    place = Place.of_this_python()
    with contextlib.suppress(Timeout):
        with place.lock.acquire(timeout=1.0):  # longer than a look at it takes
            threading.Thread(target=_beat, args=(place.pulse,), daemon=True).start()
            _sweep(place)
            waited = time.monotonic()
            while time.monotonic() - waited < idle and place == Place.of_this_python():
                for _ in range(20):  # to look at the package's files less often
                    for job in _jobs(place):
                        job.do()
                        waited = time.monotonic()
                    time.sleep(LOOK_S)
        if any(folder for root in place.roots for folder in root.glob("job-*")):
            serve(idle)  # begun after the last look, while the lock was still held
        else:
            place.clear()


def _beat(pulse: Path) -> None:
    number = 0
    while True:
        number += 1
        with contextlib.suppress(OSError):  # Windows, while the macro reads it
            pulse.write_text(f"{os.getpid()} {number}")
        time.sleep(1.0)


def _sweep(place: Place) -> None:
    """Take away what workers of other Pythons and versions, killed, left in memory."""
    for root in place.roots:
        for folder in root.parent.glob("fiji_bridge-*/job-*"):
            if Job(folder)._silence() > ABANDONED_S:
                shutil.rmtree(folder, ignore_errors=True)  # only what is this user's


def _jobs(place: Place) -> "list[Job]":
    """Give the jobs that wait, oldest first, and take away what nobody waits for any more."""
    jobs = [Job(folder) for root in place.roots for folder in root.glob("job-*")]
    for job in jobs:
        if job.forgotten:
            shutil.rmtree(job.folder, ignore_errors=True)
    return sorted((job for job in jobs if job.waits), key=lambda job: job.age, reverse=True)


@dataclass(frozen=True)
class Job:
    """What one macro asked for, in its folder."""

    folder: Path

    @property
    def waits(self) -> bool:
        """Whether the request is whole and has no result yet."""
        return "end" in self._request() and not (self.folder / "result").exists()

    @property
    def age(self) -> float:
        """Seconds since it was asked for."""
        return self._since("request")

    @property
    def forgotten(self) -> bool:
        """Whether the macro has read the result, or gives no sign any more."""
        if (self.folder / "read").exists():
            return True
        return self._silence() > (SILENT_S if self.waits else LEFT_S)

    def do(self) -> None:
        """Do it, and leave the result or one sentence."""
        from fiji_bridge.cli import complaint

        try:
            with contextlib.chdir((self.folder / "cwd").read_text(encoding="utf-8")):  # ImageJ's
                lines = list(self._lines())
        except StoppedError:
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        except Exception as error:
            lines = [f"error={part}" for part in textwrap.wrap(complaint(error), MESSAGE_WIDTH)]
            if not isinstance(error, FijiBridgeError):
                traceback.print_exc()  # into the log
        with contextlib.suppress(FileNotFoundError):
            self._write("result", "\n".join(lines) + "\n", _known(self._request().get("encoding", "utf-8")))

    def _lines(self) -> Iterator[str]:
        from fiji_bridge.imagej.commands import find
        from fiji_bridge.stack import write_stack

        request = self._request()
        command = find(request["command"])
        if command is None:
            raise FijiBridgeError(
                f"The menu asks for {request['command']!r}, which this version has not; run"
                " `fiji-bridge install` again."
            )
        image = self._image(request)
        result = command.run(
            _values(command, request), image, request.get("title", ""), progress=self._progress
        )
        for number, (title, made) in enumerate(result.images.items(), 1):
            alike = "alike" if image is not None and made.size == image.size else "other"
            name = f"result-{number}.tif"
            write_stack(made, self.folder / name, progress=self._progress)
            yield f"image={name}\t{alike}\t{_line(title)}"
        for number, (title, table) in enumerate(result.tables.items(), 1):
            name = f"table-{number}.csv"
            table.to_csv(self.folder / name, index=False)
            yield f"table={name}\t{_line(title)}"
        if result.page:
            yield f"page={result.page.absolute().as_uri()}"
        yield f"text={_line(result.text)}"

    def _request(self) -> dict[str, str]:
        try:
            raw = (self.folder / "request").read_bytes()
        except OSError:
            return {}
        encoding = next(
            (line[9:].decode() for line in raw.splitlines() if line.startswith(b"encoding=")), "utf-8"
        )
        lines = raw.decode(_known(encoding), errors="replace").splitlines()
        return {key: value for line in lines for key, _, value in [line.partition("=")]}

    def _image(self, request: dict[str, str]) -> "xr.DataArray | None":
        import xarray as xr

        from fiji_bridge.stack import open_stack
        from fiji_bridge.stack_formats.recording import nm_per

        parts: list[Path] = sorted(self.folder.glob("image-*.tif"))
        if not parts:
            return None
        scale = nm_per(request.get("unit"))
        size = scale and scale * float(request["pixel_width"])
        image = open_stack(parts if len(parts) > 1 else parts[0], pixel_size_nm=size or None)
        if "signed" in request:
            image = (image.astype(np.int32) - SIGNED_OFFSET).astype(np.int16).assign_attrs(image.attrs)
        image.attrs["source"] = request.get("title", "the image")
        frames, slices, channels = (int(request.get(axis, -1)) for axis in ("frames", "slices", "channels"))
        if max(slices, channels) < 2:
            return image
        planes = image.data.reshape(frames, slices, channels, *image.shape[-2:])  # ImageJ's order
        named = xr.DataArray(planes, dims=("t", "z", "c", "y", "x"), attrs=image.attrs)
        return named.transpose("t", "c", "z", "y", "x")

    def _progress(self, stage: str, done: int, total: int) -> None:
        if self._silence() > SILENT_S:
            raise StoppedError("The macro ended.")
        share = done / total if total else 0.0
        with contextlib.suppress(OSError):  # Windows, while the macro reads it
            self._write("status", f"{share:.4f}|{stage} {100 * share:.0f}%")

    def _silence(self) -> float:
        """Seconds since the macro's last sign, without those in which the machine slept."""
        silent = min(map(self._since, ("alive", "request", "cwd")))
        sign, now = time.time() - silent, time.monotonic()
        seen, heard = _HEARD.get(self.folder, (-math.inf, 0.0))
        if sign > seen + LOOK_S:
            heard = now if seen > 0 else now - silent
            _HEARD[self.folder] = sign, heard
        return now - heard

    def _since(self, name: str) -> float:
        """Seconds since a file changed; infinite when it is not there."""
        try:
            return time.time() - (self.folder / name).stat().st_mtime
        except OSError:
            return math.inf

    def _write(self, name: str, text: str, encoding: str = "ascii") -> None:
        """Write a file that is whole when it appears."""
        partial = self.folder / f".{name}"
        partial.write_text(text, encoding=encoding, errors="replace")
        partial.replace(self.folder / name)


def _values(command: "Command", request: dict[str, str]) -> "str | dict[str, Value]":
    """Give the recorded option string, or what was entered in the dialog."""
    if "options" in request and not any(f":{p.key}" in request for p in command.parameters):
        return request["options"]
    return {p.key: request[f":{p.key}"] for p in command.parameters if f":{p.key}" in request}


def _line(text: str) -> str:
    return " ".join(text.split())


def main() -> None:
    """Be the program that the macro calls."""
    what, *rest = sys.argv[1:]
    if what == "serve":
        serve()
    elif what == "lives":
        print(_lives(Place.of_this_python()))
    else:
        size, encoding = rest
        sys.stdout.reconfigure(encoding=_known(encoding), errors="replace")  # type: ignore[union-attr]
        try:
            print(begin(int(float(size))))
        except (FijiBridgeError, OSError) as error:
            print(f"error={error}")


def _known(encoding: str) -> str:
    """Give Java's name of an encoding, or ASCII for one that Python has not."""
    try:
        return codecs.lookup(encoding).name
    except LookupError:
        return "ascii"


if __name__ == "__main__":
    main()
