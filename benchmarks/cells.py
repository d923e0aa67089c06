"""Tables that are filled cell by cell, over many runs and machines."""

import csv
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock

from fiji_bridge.evaluation.image_quality import psnr
from fiji_bridge.files import replacing


class Cells:
    """A CSV file of finished cells, each with the command and the hardware that made it.

    Parameters
    ----------
    path
        The file; read if it is there, and written after each cell.
    columns
        Names of the columns, of which the first `keys` name a cell.
    only
        Words that a cell's name must have, all of them; None for all cells.
    """

    def __init__(self, path: Path, columns: Sequence[str], keys: int, only: Sequence[str] | None) -> None:
        self.path, self.columns, self.only = path, (*columns, "hardware", "command"), only or ()
        self._keys = self.columns[:keys]
        self._rows = self._read()
        self._name: tuple[str, ...] = ()

    def wanted(self, *name: str) -> bool:
        """Whether a cell is asked for and still missing; `keep` then means this one."""
        self._name = name
        known = any(tuple(row[key] for key in self._keys) == name for row in self._rows)
        words = " ".join(name).split()
        asked = all(word in words for word in self.only)
        if asked and not known:
            print(f"{', '.join(name)} …", file=sys.stderr, flush=True)
        return asked and not known

    def keep(self, **values: str) -> None:
        """Add the cell last wanted to the file."""
        row = dict(zip(self._keys, self._name, strict=True)) | values
        row |= {"hardware": hardware(), "command": "python " + shlex.join(relative(sys.argv))}
        with FileLock(self.path.with_suffix(".lock")):  # others may fill other cells
            self._rows = [*self._read(), row]
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
            if all(word in " ".join(row[key] for key in self._keys).split() for word in self.only):
                self._print(row)

    def _print(self, row: dict[str, str]) -> None:
        print(" | ".join(row[column] for column in self.columns[:-2]), flush=True)


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
