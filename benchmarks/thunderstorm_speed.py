"""ThunderSTORM's analysis headless by its classes, against the plugin's own macro on a display.

    python benchmarks/thunderstorm_speed.py [--frames 500] [--size 256] [--cores 2] [--repeats 3]

Both analyse the same simulated stack on the same cores, each time in a new process with a new Java, in turn.
Seconds of the analysis are those of `localize` and of `run("Run analysis", …)`, reading the stack included,
and Java's warming up; of the whole, those of the process from its start to the written table. CPU is the
time of all cores for the whole, which other work on the machine disturbs least; memory is the highest that
one process held. The best of the repeats is taken, and the molecules are compared. The macro runs twice: with
the memory management that Java takes by itself (G1), as in an ImageJ that users start, and with that of ours.
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


def ours(stack: Path, table: Path, options: str, cores: int, processes: int = 1) -> float:
    """Analyse headless; give the seconds of the analysis alone."""
    import pandas  # noqa: F401
    import xarray  # noqa: F401 - imported before the clock starts, as ImageJ has loaded its own classes

    load()
    began = time.perf_counter()
    found = thunderstorm.localize(
        stack, camera=Camera.parse(CAMERA), options=options, threads=cores, processes=processes
    )
    seconds = time.perf_counter() - began
    write_localizations(found, table)
    return seconds


def ours_in_processes(stack: Path, table: Path, options: str, cores: int) -> float:
    """As `ours`, a process a core."""
    return ours(stack, table, options, cores, processes=cores)


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


def plugins_as_users_have_it(stack: Path, table: Path, options: str, cores: int) -> float:
    """As `plugins`, with the collector that Java itself takes, not the one of our ImageJ."""
    os.environ["JAVA_TOOL_OPTIONS"] = "-XX:+UseG1GC"
    return plugins(stack, table, options, cores)


WAYS = {
    "headless, by its classes": ours,
    "its own macro, Java's defaults": plugins_as_users_have_it,
    "its own macro, our Java options": plugins,
    "headless, a process a core": ours_in_processes,
}


def one(way: str, stack: str, table: str, options: str, cores: str) -> None:
    """Run one way in this process and print what it took."""
    seconds = WAYS[way](Path(stack), Path(table), options, int(cores))
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = sum(each.ru_utime + each.ru_stime for each in used)
    memory = used[0 if way == "headless, by its classes" else 1].ru_maxrss / 2**20
    print(json.dumps({"analysis": seconds, "cpu": cpu, "memory": memory}))


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
    difference = max(
        float(np.abs(tables[0][label] - tables[1][label]).max()) for label in ("x [nm]", "y [nm]")
    )
    print(f"{given.frames} frames of {given.size} x {given.size} on {len(cores)} cores, {settings}")
    print(f"{len(tables[0]):,} and {len(tables[1]):,} molecules, at most {difference:.1e} nm apart\n")
    columns = {"analysis": "analysis [s]", "whole": "whole [s]", "cpu": "CPU [s]", "memory": "memory [GiB]"}
    print(f"{'':32}" + "".join(f"{title:>14}" for title in columns.values()))
    for way, took in best.items():
        print(f"{way:32}" + "".join(f"{took[key]:14.2f}" for key in columns))
    mine, *others = best.values()
    for way, theirs in zip(list(best)[1:], others, strict=True):
        print(f"{way + ' / ours':32}" + "".join(f"{theirs[key] / mine[key]:14.2f}" for key in columns))


if __name__ == "__main__":
    one(*sys.argv[2:]) if sys.argv[1:2] == ["--one"] else main()
