"""ThunderSTORM's analysis headless by its classes, against the plugin's own macro on a display.

    python benchmarks/thunderstorm_speed.py [--frames 500] [--size 256] [--cores 2] [--repeats 3]

Both analyse the same simulated stack on the same cores, each time in a new process with a new Java, in turn.
Seconds of the analysis are those of `localize` and of `run("Run analysis", …)`, reading the stack included,
and Java's warming up; of the whole, those of the process from its start to the written table. Memory is the
highest that the process held. The best of the repeats is taken, and the molecules are compared.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from fiji_bridge import thunderstorm
from fiji_bridge.camera import Camera
from fiji_bridge.localizations import read_localizations, write_localizations
from fiji_bridge.stack_writer import StackWriter
from fiji_bridge.thunderstorm.display import run_macro
from fiji_bridge.thunderstorm.jar import load
from fiji_bridge.thunderstorm.settings import AnalysisSettings, NoRenderer

CAMERA = "offset=414.0 isemgain=false photons2adu=3.6 pixelsize=160.0"


def ours(stack: Path, table: Path, options: str, cores: int) -> float:
    """Analyse headless; give the seconds of the analysis alone."""
    load()
    began = time.perf_counter()
    found = thunderstorm.localize(stack, camera=Camera.parse(CAMERA), options=options, threads=cores)
    seconds = time.perf_counter() - began
    write_localizations(found, table)
    return seconds


def plugins(stack: Path, table: Path, options: str, cores: int) -> float:
    """Analyse by the plugin's own commands; give the seconds of its analysis alone."""
    export = f"filepath={table} fileformat=[CSV (comma separated)] id=true saveprotocol=false"
    macro = f"""
        run("Camera setup", "{CAMERA}");
        began = getTime();
        open("{stack}");
        run("Run analysis", "{options}");
        seconds = (getTime() - began) / 1000;
        run("Export results", "{export}");
        return "" + seconds;
    """
    return float(run_macro(macro, threads=cores, timeout_s=36000))


WAYS = {"headless, by its classes": ours, "its own macro under Xvfb": plugins}


def one(way: str, stack: str, table: str, options: str, cores: str) -> None:
    """Run one way in this process and print what it took."""
    seconds = WAYS[way](Path(stack), Path(table), options, int(cores))
    who = resource.RUSAGE_SELF if way == "headless, by its classes" else resource.RUSAGE_CHILDREN
    print(json.dumps({"analysis": seconds, "memory": resource.getrusage(who).ru_maxrss / 2**20}))


def measured(way: str, stack: Path, table: Path, options: str, cores: list[int]) -> dict[str, float]:
    """Run one way in a new process on these cores."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, __file__, "--one", way, stack, table, options, str(len(cores))],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    whole = time.perf_counter() - began
    return json.loads(done.stdout.splitlines()[-1]) | {"whole": whole}


def simulated(folder: Path, frames: int, size: int) -> Path:
    """Write the plugin's default simulation."""
    stack, _ = thunderstorm.generate(
        f"psf=[Integrated Gaussian] width={size} height={size} frames={frames}",
        camera=Camera.parse(CAMERA),
        seed=0,
    )
    with StackWriter(folder / "stack.tif", stack, stack.dtype) as writer:
        writer.write(0, stack.to_numpy())
    return folder / "stack.tif"


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--frames", type=int, default=500)
    parser.add_argument("--size", type=int, default=256, help="width and height in pixels")
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--options", default="", help="Run analysis string; the plugin's defaults if empty")
    given = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[: given.cores]
    settings = AnalysisSettings.parse(f"{given.options} renderer=[No Renderer]")
    assert isinstance(settings.renderer, NoRenderer)
    best: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        stack = simulated(folder, given.frames, given.size)
        for repeat in range(given.repeats):
            for number, way in enumerate(WAYS):
                table = folder / f"{number}.csv"
                took = measured(way, stack, table, settings.options(), cores)
                best[way] = {key: min(value, best.get(way, took)[key]) for key, value in took.items()}
                print(f"{repeat + 1}/{given.repeats} {way}: {took}", file=sys.stderr)
        tables = [read_localizations(folder / f"{number}.csv") for number in range(len(WAYS))]
    mine, theirs = (best[way] for way in WAYS)
    difference = max(
        float(np.abs(tables[0][label] - tables[1][label]).max()) for label in ("x [nm]", "y [nm]")
    )
    print(f"{given.frames} frames of {given.size} x {given.size} on {len(cores)} cores, {settings}")
    print(f"{len(tables[0]):,} and {len(tables[1]):,} molecules, at most {difference:.1e} nm apart\n")
    print(f"{'':28} {'analysis [s]':>12} {'whole [s]':>10} {'memory [GiB]':>13}")
    for way, took in best.items():
        print(f"{way:28} {took['analysis']:12.2f} {took['whole']:10.2f} {took['memory']:13.2f}")
    ratios = [theirs[key] / mine[key] for key in ("analysis", "whole", "memory")]
    print(f"{'the plugin over ours':28} {ratios[0]:12.2f} {ratios[1]:10.2f} {ratios[2]:13.2f}")


if __name__ == "__main__":
    one(*sys.argv[2:]) if sys.argv[1:2] == ["--one"] else main()
