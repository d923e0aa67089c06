"""How long a stack takes from ImageJ to Python and back, against a plain copy of its pixels.

    python benchmarks/imagej_conversion.py [--gib 1] [--fiji FOLDER]

Each is timed several times in turn and the best is taken; memory is the highest that the process held above
what it held before, while one conversion ran. With an ImageJ2 or Fiji folder, pyimagej's own conversions are
timed on the same stack.
"""

import argparse
import gc
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from fiji_bridge.imagej import start

HEIGHT = WIDTH = 512


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measured(work: Callable[[], Any]) -> tuple[float, float]:
    """Give the seconds that `work` takes, and the memory it takes above what was there [GiB]."""
    free()
    before, highest, done = resident_bytes(), 0, threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.02):
            highest = max(highest, resident_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - began
    highest = max(highest, resident_bytes())
    done.set()
    watcher.join()
    del result
    return seconds, (highest - before) / 2**30


def free() -> None:
    from jpype import JClass

    gc.collect()
    JClass("java.lang.System").gc()
    time.sleep(0.2)
    gc.collect()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gib", type=float, default=1.0, help="size of the stack [GiB] (default: 1)")
    parser.add_argument("--repeats", type=int, default=5, help="times that each is measured (default: 5)")
    parser.add_argument("--dtype", default="uint16", choices=("uint8", "uint16", "float32"))
    parser.add_argument("--fiji", help="folder of an ImageJ2 or Fiji, to compare with pyimagej in it")
    given = parser.parse_args()
    ij = start(given.fiji, heap=f"{int(3 * given.gib + 1)}g")
    frames = int(given.gib * 2**30 / (HEIGHT * WIDTH * np.dtype(given.dtype).itemsize))
    values = np.random.default_rng(0).integers(0, 256, (frames, HEIGHT, WIDTH), np.uint8).astype(given.dtype)
    stack = xr.DataArray(values, dims=("t", "y", "x"))
    began = time.perf_counter()
    image = ij.to_imagej(stack)
    first = time.perf_counter() - began
    np.testing.assert_array_equal(ij.to_python(image).values, values)

    works: dict[str, Callable[[], Any]] = {
        "plain copy": lambda: values.copy(),
        "to_python": lambda: ij.to_python(image),
        "to_imagej": lambda: ij.to_imagej(stack),
    }
    if ij.gateway is not None:
        python, labelled = ij.gateway.py, stack.rename(y="row", x="col")
        works["pyimagej from_java"] = lambda: python.from_java(image)
        works["pyimagej to_java"] = lambda: python.to_java(labelled)
        works["pyimagej to_imageplus"] = lambda: python.to_imageplus(labelled)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for _ in range(given.repeats):
        for name, work in works.items():
            found[name].append(measured(work))

    print(f"ImageJ {ij.version}, Java {ij.java}; {frames} frames of {HEIGHT} × {WIDTH} {given.dtype}")
    print(f"{'':22}  best [s]  median [s]  times a copy  memory [GiB]")
    copy = min(found["plain copy"])[0]
    for name, runs in found.items():
        seconds, memory = zip(*runs, strict=True)
        best, median = min(seconds), float(np.median(seconds))
        print(f"{name:22}  {best:8.2f}  {median:10.2f}  {best / copy:12.2f}  {max(memory):12.2f}")
    print(f"to_imagej took {first:.2f} s ({first / copy:.2f} copies) the first time, in memory new to Java.")


if __name__ == "__main__":
    main()
