"""Outputs that appear whole or not at all."""

import math
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fiji_bridge.errors import FijiBridgeError


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside `path`, renamed to it when the block ends well and removed otherwise.

    The temporary keeps the suffix, since writers choose the format by it. Works for files and, as Zarr
    stores are, for folders; an existing Zarr folder is replaced, any other folder never is.

    Parameters
    ----------
    path
        Where the output shall stand.

    Yields
    ------
    pathlib.Path
        Where to write meanwhile, in the same folder, so that the renaming is atomic.

    Raises
    ------
    FijiBridgeError
        If the folder is missing and cannot be made, is not writable, or `path` is an ordinary folder.
    """
    with _partial(path) as (partial, target):
        yield partial
        if partial.is_dir() and target.is_dir():  # a folder cannot be renamed over another
            with _swapped(partial, target):
                pass
        else:
            partial.replace(target)


@contextmanager
def replacing_pair(
    path: str | os.PathLike[str], beside: str | os.PathLike[str]
) -> Iterator[tuple[Path, Path]]:
    """Give temporary paths, as `replacing`, of a file and of one beside it that belongs to it.

    Both are put in place or neither. A file at `beside` without one at `path` is something else and stays.

    Yields
    ------
    tuple
        Where to write meanwhile what becomes `path` and what becomes `beside`.

    Raises
    ------
    FijiBridgeError
        As `replacing`, and if only `beside` is there.
    """
    with _partial(beside) as (second, companion), _partial(path) as (first, target):
        if companion.exists() and not target.exists():
            raise FijiBridgeError(
                f"{companion} goes with {target.name}, but is there already without it; move it away or "
                "choose another name."
            )
        yield first, second
        with _swapped(second, companion):
            first.replace(target)


def check_kept(read: Iterable[str | os.PathLike[str]], outs: Mapping[str, str | os.PathLike[str]]) -> None:
    """Refuse outputs, by what the user calls them, that would replace what is read.

    A recording may have many files, of which one or their folder is named: none of them is replaced, nor a
    store or folder that has one of them in it.

    Raises
    ------
    FijiBridgeError
        If one would.
    """
    from fiji_bridge.stack_formats import is_zarr

    given = {Path(os.path.realpath(path)) for path in read}
    targets = {name: Path(os.path.realpath(out)) for name, out in outs.items()}
    if any(target.exists() for target in targets.values()):
        given |= {Path(os.path.realpath(file)) for path in given for file in _recorded_with(path)}
    stores = {path for path in given if is_zarr(path)}
    for name, target in targets.items():
        kept = stores.intersection(target.parents) or any(target in path.parents for path in given)
        if target in given or (target.exists() and kept):
            raise FijiBridgeError(
                f"{name} is the input itself or a part of it; name another file to keep it."
            )


def _recorded_with(path: Path) -> Sequence[Path]:
    """All files of the recording that one of them, or their folder, opens."""
    from fiji_bridge import stack_formats

    try:
        if path.is_file():
            return stack_formats.read(path).files
        return stack_formats.images_in(path) if path.is_dir() else ()
    except FijiBridgeError:  # no recording, or one that its own command will complain of
        return ()


@contextmanager
def _partial(path: str | os.PathLike[str]) -> Iterator[tuple[Path, Path]]:
    """Give a temporary path, removed in the end, and the path whose place it is to take."""
    target = check_target(path)
    partial = target.with_name(f".{target.stem}-{uuid.uuid4().hex[:8]}{target.suffix}")
    try:
        yield partial, target
    except OSError as error:
        raise FijiBridgeError(f"Could not write {target}: {error.strerror or error}.") from error
    finally:
        remove(partial)


@contextmanager
def _swapped(partial: Path, target: Path) -> Iterator[None]:
    """Put it in the target's place, and everything back if the block fails."""
    old = partial.with_name(f"{partial.name}.old")
    try:
        if target.exists():
            target.replace(old)
        partial.replace(target)
        yield
    except BaseException:
        if not partial.exists():
            remove(target)
        if old.exists():
            old.replace(target)
        raise
    remove(old)


def check_target(path: str | os.PathLike[str]) -> Path:
    """Make sure that an output can stand at `path`, before the work whose result it shall hold.

    Raises
    ------
    FijiBridgeError
        If the folder is missing and cannot be made, is not writable, or `path` is an ordinary folder.
    """
    target = Path(path)
    if target.is_dir() and not (target.suffix == ".zarr" and _replaceable(target)):
        raise FijiBridgeError(f"{target} is a folder; name a file to write.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "a file stands there" if isinstance(error, FileExistsError) else error.strerror
        raise FijiBridgeError(
            f"Cannot make the folder {target.parent} for {target.name}: {reason}."
        ) from error
    if not os.access(target.parent, os.W_OK):
        raise FijiBridgeError(
            f"Cannot write {target}: the folder {target.parent} is not writable; choose another."
        )
    return target


def check_model_target(path: str | os.PathLike[str]) -> Path:
    """Make sure that a model can be written to `path`, and that it does not take a recording's place.

    Raises
    ------
    FijiBridgeError
        As `check_target`, and if the name does not end in .safetensors.
    """
    if Path(path).suffix != ".safetensors":
        raise FijiBridgeError(f"{path} is no name for a model; let it end in .safetensors.")
    return check_target(path)


def _replaceable(folder: Path) -> bool:
    """Tell a Zarr store, or an empty folder, from one that only has the name of a store."""
    metadata = ("zarr.json", ".zgroup", ".zarray")
    return any((folder / name).is_file() for name in metadata) or not any(folder.iterdir())


def remove(path: Path) -> None:
    """Delete a file or a folder if it is there."""
    if path.is_dir():
        for _ in range(40):
            shutil.rmtree(path, ignore_errors=True)
            time.sleep(0.05)  # a thread of zarr's may still write the chunk that was interrupted
            if not path.exists():
                return
    else:
        path.unlink(missing_ok=True)


def jsonable(value: Any) -> Any:
    """Turn paths, tuples and NumPy values into what JSON has; NaN and infinity become null."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if hasattr(value, "tolist"):
        return jsonable(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
