"""Tables that are filled cell by cell, over many runs and machines, and the data that they are made from."""

import argparse
import csv
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock

from fiji_bridge.denoising.baselines import CAREamics
from fiji_bridge.evaluation.image_quality import psnr
from fiji_bridge.files import replacing


class Cells:
    """A CSV file of finished cells, each with the command and the hardware that made it.

    Parameters
    ----------
    options
        What `parse` gave: the file, read if it is there and written after each cell, and the cells asked for.
    columns
        Names of the columns, of which the first `keys` name a cell.
    """

    def __init__(self, options: argparse.Namespace, columns: Sequence[str], keys: int) -> None:
        self.path, self.columns, self._options = options.out, (*columns, "hardware", "command"), options
        self._keys = self.columns[:keys]
        self._rows = self._read()
        self._name: tuple[str, ...] = ()

    def wanted(self, *name: str) -> bool:
        """Whether a cell is asked for and still missing; `keep` then means this one."""
        self._name = name
        known = any(tuple(row[key] for key in self._keys) == name for row in self._rows)
        missing = self._asked(name) and not known
        if missing:
            print(f"{', '.join(name)} …", file=sys.stderr, flush=True)
        return missing

    def _asked(self, name: Sequence[str]) -> bool:
        words = " ".join(name).split()
        return all(w in words for w in self._options.only) and not any(
            w in words for w in self._options.without
        )

    def keep(self, **values: str) -> None:
        """Add the cell last wanted to the file."""
        row = dict(zip(self._keys, self._name, strict=True)) | values
        row |= {"hardware": hardware(), "command": "python " + shlex.join(relative(sys.argv))}
        with FileLock(self.path.with_suffix(".lock")):  # others may fill other cells
            others = [other for other in self._read() if any(other[key] != row[key] for key in self._keys)]
            self._rows = [*others, row]
            self._write()
        self._print(row)

    def _read(self) -> list[dict[str, str]]:
        if not self.path.exists():
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def _write(self) -> None:
        with replacing(self.path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, self.columns)
            table.writeheader()
            table.writerows(self._rows)

    def show(self) -> None:
        """Print all cells asked for."""
        print("\n" + " | ".join(self.columns[:-2]))
        for row in self._rows:
            if self._asked([row[key] for key in self._keys]):
                self._print(row)

    def _print(self, row: dict[str, str]) -> None:
        print(" | ".join(row[column] for column in self.columns[:-2]), flush=True)


def parse(description: str, out: Path, minutes: float) -> argparse.Namespace:
    """Read which cells to fill in which file, and how long and with what numbers a network is trained."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    words: dict[str, Any] = {"metavar": "WORD", "nargs": "+", "default": []}
    parser.add_argument("--only", **words, help="cells whose name has all of these words")
    parser.add_argument("--without", **words, help="leave out cells whose name has one of these words")
    parser.add_argument("--minutes", type=float, default=minutes, help="training time of a network [minutes]")
    parser.add_argument("--steps", type=int, help="steps of training, in place of --minutes")
    parser.add_argument("--out", type=Path, default=out, help="table to fill")
    parser.add_argument(
        "--careamics-bfloat16",
        action="store_true",
        help="train CAREamics's networks in mixed precision: on many CPUs half as long",
    )
    options = parser.parse_args()
    if options.careamics_bfloat16:
        CAREamics.precision = "bf16-mixed"
    return options


def budget(options: argparse.Namespace) -> dict[str, float | None]:
    """Give how long to train as arguments of `train`."""
    return {"max_minutes": None if options.steps else options.minutes, "steps": options.steps}


def shared_data(*names: str) -> Path:
    """Give a folder of the shared data; ends the program where it is not there."""
    folder = Path(__file__).resolve().parents[2].joinpath("shared", "data", *names)
    if not folder.is_dir():
        sys.exit(f"There is no {folder}; the benchmarks need the project's shared folder beside it.")
    return folder


def mean_psnr(images: np.ndarray, truth: np.ndarray) -> float:
    """Mean over images (n, y, x) of 8-bit range [dB]."""
    return float(np.mean([psnr(image, right, 255) for image, right in zip(images, truth, strict=True)]))


def relative(arguments: Sequence[str]) -> list[str]:
    """Give a command line as from the project's root."""
    return [f"benchmarks/{Path(arguments[0]).name}", *arguments[1:]]


def hardware() -> str:
    """Name what computes."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
