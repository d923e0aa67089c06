"""The plugin's menu as one table: what the command line, the batch macro and the page are made of.

``python -m fiji_bridge.thunderstorm.commands VERB "key=value …"`` is what the batch macro runs.
"""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.files import check_kept, check_target, replacing
from fiji_bridge.macro_options import parse_options
from fiji_bridge.progress import Progress, silent
from fiji_bridge.thunderstorm.protocol import protocol_path
from fiji_bridge.thunderstorm.settings import (
    AnalysisSettings,
    Calibration,
    CrossCorrelationDrift,
    FileFormat,
    PostProcessing,
    check_saved,
)

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from fiji_bridge.camera import Camera
    from fiji_bridge.thunderstorm import Protocol

Found = tuple[str, dict[str, Any]]
"""What a command leaves to print: the text for people and the object for scripts."""


@dataclass(frozen=True)
class Request:
    """What one call of a command is given."""

    input: "Path | xr.DataArray | None" = None
    second: Path | None = None
    options: str = ""
    camera: "Camera | None" = None
    out: Path | None = None
    second_out: Path | None = None
    seed: int = 0
    roi: str | None = None
    processes: int = 1
    protocol: bool = False
    time_limit_s: float | None = None
    stopped_out: Path | None = None
    """Where the frames done go when an analysis stops; beside `out` when left out."""
    jar: Path | None = None
    progress: Progress = silent

    @property
    def given_camera(self) -> "Camera":
        """The camera, which must be there."""
        if self.camera is None:
            raise FijiBridgeError('This needs --camera "offset=… photons2adu=… isemgain=… pixelsize=…".')
        return self.camera

    def read(self) -> "pd.DataFrame":
        """Read the table that is the input."""
        return self.read_table(self.input_file)

    @property
    def input_file(self) -> Path:
        """The input, which is a file for all but stacks."""
        assert isinstance(self.input, Path)
        return self.input

    def write_protocol(self, protocol: "Protocol") -> None:
        """Write how the table came about beside it."""
        assert self.out is not None
        protocol.write(protocol_path(self.out), jar=self.jar)

    def read_protocol(self) -> "Protocol":
        """Read how the input came about, which stands beside it."""
        from fiji_bridge.thunderstorm import Protocol

        return Protocol.read(protocol_path(self.input_file))

    def read_second(self) -> "pd.DataFrame":
        """Read the other table."""
        assert self.second is not None
        return self.read_table(self.second)

    def read_table(self, path: Path) -> "pd.DataFrame":
        """Read a table in the format of its suffix."""
        from fiji_bridge import thunderstorm
        from fiji_bridge.localizations import read_localizations

        if path.suffix.lower() in (".csv", ""):
            return read_localizations(path, camera=self.camera)
        return thunderstorm.import_table(path, camera=self.camera, jar=self.jar)

    def write(self, table: "pd.DataFrame", path: Path | None) -> Found:
        """Write a table in the format of the output's suffix."""
        from fiji_bridge import thunderstorm
        from fiji_bridge.localizations import write_localizations

        assert path is not None
        if path.suffix.lower() == ".csv":
            write_localizations(table, path)
        else:
            thunderstorm.export_table(table, path, camera=self.camera, jar=self.jar)
        return f"{len(table):,} molecules written to {path}", {"out": str(path), "molecules": len(table)}

    def write_image(self, image: "xr.DataArray", path: Path | None) -> Found:
        """Write an image or a stack."""
        from fiji_bridge.rendering import write_image

        assert path is not None
        write_image(image, path)
        return f"{path} written", {"out": str(path), "shape": list(image.shape)}


TABLES = tuple(f".{format_.suffix}" for format_ in FileFormat.modules())
SUFFIXES = {
    "CSV": TABLES,
    "TABLE": TABLES,
    "TIF": (".tif", ".tiff", ".zarr"),
    "CURVE": (".csv",),
    "YAML": (".yaml", ".yml"),
}
"""What the names of outputs may end in."""


EXTRAS = {
    "roi": "region of interest: x,y,width,height in pixels, or a .roi file of ImageJ's",
    "processes": "processes that share out the frames, each with a Java of its own",
    "protocol": "write NAME-protocol.txt beside the table, as the plugin does; after a step, with that step",
    "time_limit_s": "longest time that a macro may take, in seconds (600)",
}
"""What only some commands look at, by the name in `Request`."""


class Command(NamedTuple):
    """One command: its verb, the plugin's commands that it does, and what it takes and gives.

    An output in brackets may be left out.
    """

    verb: str
    menu: str
    does: str
    takes: tuple[str, ...]
    gives: tuple[str, ...]
    run: Callable[[Request], Found]
    python: str
    options: str
    also: tuple[str, ...] = ()
    """Those of `EXTRAS` that it looks at."""


def _localize(request: Request) -> Found:
    from fiji_bridge import thunderstorm

    assert request.out is not None
    settings = AnalysisSettings.parse(request.options)
    kept = request.stopped_out or request.out.with_name(f"{request.out.stem}-stopped{request.out.suffix}")
    saved: list[int] = []

    def keep(table: "pd.DataFrame") -> None:
        request.write(table, kept)
        saved.append(table.attrs["frames"])

    try:
        table = thunderstorm.localize(
            request.input,
            camera=request.given_camera,
            options=settings,
            roi=request.roi,
            processes=request.processes,
            jar=request.jar,
            progress=request.progress,
            stopped=keep,
        )
    except BaseException as error:
        if saved and isinstance(error, FijiBridgeError):
            raise FijiBridgeError(f"{error} The {saved[0]} frames done are in {kept}.") from error
        if saved:
            print(f"fiji-bridge: the {saved[0]} frames done are in {kept}", file=sys.stderr)
        raise
    text, found = request.write(table, request.out)
    if request.protocol:
        name = getattr(request.input, "name", None) or "image"
        roi = table.attrs["roi"] if request.roi else None
        request.write_protocol(thunderstorm.Protocol(name, request.given_camera, settings, roi))
    return " ".join((text, *table.attrs["warnings"])), found | {"warnings": table.attrs["warnings"]}


def _filter(request: Request) -> Found:
    from fiji_bridge import thunderstorm

    return request.write_image(
        thunderstorm.filter_frames(
            request.input,
            request.options,
            camera=request.given_camera,
            jar=request.jar,
            progress=request.progress,
        ),
        request.out,
    )


def _render(request: Request) -> Found:
    from fiji_bridge import thunderstorm

    return request.write_image(
        thunderstorm.render(
            request.read(), request.options, camera=request.given_camera, seed=request.seed, jar=request.jar
        ),
        request.out,
    )


def _postprocess(request: Request) -> Found:
    from fiji_bridge import thunderstorm

    step = PostProcessing.parse(request.options)
    check_saved(step, request.input_file, request.out)
    protocol = request.read_protocol() if request.protocol else None
    table = thunderstorm.postprocess(request.read(), step, camera=request.camera, jar=request.jar)
    found = request.write(table, request.out)
    if protocol is not None:
        request.write_protocol(replace(protocol, steps=(*protocol.steps, step)))
    return found


def _drift(request: Request) -> Found:
    from fiji_bridge import thunderstorm

    assert request.out is not None
    step = PostProcessing.parse(request.options)
    check_saved(step, request.input_file, request.out, request.second_out)
    if request.second_out is not None:
        if not isinstance(step, CrossCorrelationDrift):
            raise FijiBridgeError(f"{step} has no correlations for {request.second_out}; leave that out.")
        step = replace(step, show_correlations=True)
    curve = thunderstorm.drift(request.read(), step.options(), camera=request.camera, jar=request.jar)
    text, found = f"Drift of {len(curve):,} frames written to {request.out}", {"out": str(request.out)}
    if request.second_out is not None:
        more, _ = request.write_image(curve.attrs["correlations"].rename(bin="t"), request.second_out)
        text, found = f"{text}; {more}", found | {"correlations": str(request.second_out)}
    with replacing(request.out) as partial:
        curve.to_csv(partial, index=False)
    return text, found


def _generate(request: Request) -> Found:
    from fiji_bridge import thunderstorm

    frames, truth = thunderstorm.generate(
        request.options,
        camera=request.given_camera,
        seed=request.seed,
        jar=request.jar,
        progress=request.progress,
    )
    text, found = request.write_image(frames, request.out)
    more, _ = request.write(truth, request.second_out)
    return f"{text}; {more}", found | {"ground_truth": str(request.second_out), "molecules": len(truth)}


def _evaluate(request: Request) -> Found:
    from fiji_bridge import thunderstorm

    scores = thunderstorm.evaluate(request.read(), request.read_second(), request.options, jar=request.jar)
    width = max(map(len, scores))
    return "\n".join(f"{name:<{width}}  {value:.6g}" for name, value in scores.items()), dict(scores)


def _colocalize(request: Request) -> Found:
    from fiji_bridge import thunderstorm

    table, same = request.read(), request.second is not None and request.input_file.samefile(request.second)
    first, second = thunderstorm.colocalize(
        table, table if same else request.read_second(), request.options, jar=request.jar
    )
    text, found = request.write(first, request.out)
    more, _ = request.write(second, request.second_out)
    return f"{text}; {more}", found


def _calibrate(request: Request) -> Found:
    from fiji_bridge import thunderstorm

    settings = replace(Calibration.parse(request.options), path=str(request.out))
    found = thunderstorm.calibrate(
        request.input, settings, camera=request.given_camera, roi=request.roi, jar=request.jar
    )
    return f"Calibration written to {request.out}", {"out": str(request.out), **found}


def _convert(request: Request) -> Found:
    protocol = request.read_protocol() if request.protocol else None
    found = request.write(request.read(), request.out)
    if protocol is not None:
        request.write_protocol(protocol)
    return found


def _macro(request: Request) -> Found:
    from fiji_bridge.thunderstorm.display import run_macro

    try:
        code = request.input_file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FijiBridgeError(f"Cannot read the macro {request.input}: {error}.") from error
    answer = run_macro(code, jar=request.jar, timeout_s=request.time_limit_s)
    return answer or "The macro is done.", {"answer": answer}


COMMANDS = (
    Command(
        "localize",
        "Run analysis",
        "find molecules in a stack",
        ("STACK",),
        ("CSV",),
        _localize,
        'localize("movie.tif", camera=camera, options=options)',
        "filter=[Wavelet filter (B-Spline)] threshold=std(Wave.F1) estimator=[PSF: Integrated Gaussian]",
        ("roi", "processes", "protocol"),
    ),
    Command(
        "filter",
        "Run analysis (its filter alone)",
        "filter a stack as before detection",
        ("STACK",),
        ("TIF",),
        _filter,
        'filter_frames("movie.tif", options, camera=camera)',
        "filter=[Median filter] pattern=cross size=3",
    ),
    Command(
        "render",
        "Visualization",
        "draw a table as a super-resolution image",
        ("TABLE",),
        ("TIF",),
        _render,
        "render(table, options, camera=camera)",
        "renderer=[Averaged shifted histograms] magnification=5.0",
    ),
    Command(
        "postprocess",
        "Import/Export > Show results table",
        "filter, remove duplicates, merge, density, drift, z-stage offset",
        ("TABLE",),
        ("CSV",),
        _postprocess,
        "postprocess(table, options, camera=camera)",
        "action=merge dist=20.0 offframes=1",
        ("protocol",),
    ),
    Command(
        "drift",
        "Import/Export > Show results table (the plot of drift)",
        "write the curve of a drift, and the images of its correlations",
        ("TABLE",),
        ("CURVE", "[TIF]"),
        _drift,
        "drift(table, options, camera=camera)",
        "action=drift method=[Cross correlation] steps=5",
    ),
    Command(
        "convert",
        "Import/Export > Import results, Export results, Import ground-truth, Export ground-truth",
        "read a table and write it in the format of the other suffix",
        ("TABLE",),
        ("TABLE",),
        _convert,
        'export_table(import_table("molecules.xml"), "molecules.json")',
        "",
        ("protocol",),
    ),
    Command(
        "generate",
        "Performance testing > Generator of simulated data",
        "make a stack and the table of its molecules",
        (),
        ("TIF", "CSV"),
        _generate,
        "generate(options, camera=camera, seed=0)",
        "psf=[Integrated Gaussian] width=64 height=64 frames=10 density=0.5",
    ),
    Command(
        "evaluate",
        "Performance testing > Performance evaluation",
        "score a table against the truth",
        ("TABLE", "TABLE"),
        (),
        _evaluate,
        "evaluate(table, truth, options)",
        "toleranceradius=50.0 evaluationspace=xy",
    ),
    Command(
        "calibrate",
        "3D calibration > Cylindrical lens calibration",
        "calibrate astigmatism with a stack of beads",
        ("STACK",),
        ("YAML",),
        _calibrate,
        'calibrate("beads.tif", options, camera=camera)',
        "stage=10.0 zrange=400.0 estimator=[Elliptic Gaussian w/ angle] fitradius=7 defocusing=ThunderSTORM",
        ("roi",),
    ),
    Command(
        "colocalize",
        "Colocalization > CBC",
        "coordinate-based colocalization of two tables",
        ("TABLE", "TABLE"),
        ("CSV", "CSV"),
        _colocalize,
        "colocalize(table, other, options)",
        "radiusstep=50 stepcount=10 addnndist=true",
    ),
    Command(
        "macro",
        "any command, windows and all",
        "run a macro of the plugin's own commands on a display (or Xvfb) of its own",
        ("IJM",),
        (),
        _macro,
        "display.run_macro(code)",
        "",
        ("time_limit_s",),
    ),
)


def find(verb: str) -> Command:
    """Give the command of a verb."""
    for command in COMMANDS:
        if command.verb == verb:
            return command
    verbs = ", ".join(command.verb for command in COMMANDS)
    raise FijiBridgeError(f"There is no command {verb!r} of ThunderSTORM's; choose one of {verbs}.")


def run(command: Command, request: Request) -> Found:
    """Run a command when it has the files that it needs, and nothing that it does not look at."""
    given = {"input": request.input, "second": request.second}
    outputs = {"out": request.out, "second-out": request.second_out}
    for files, needed in ((given, command.takes), (outputs, command.gives)):
        for (name, path), wanted in zip(files.items(), (*needed, "", ""), strict=False):
            if wanted and path is None and not wanted.startswith("["):
                where = (
                    "name it after the verb, or as input= in a macro" if name == "input" else f"give --{name}"
                )
                raise FijiBridgeError(f"`{command.verb}` needs a {wanted}; {where}.")
            if path is not None and not wanted:
                raise FijiBridgeError(f"`{command.verb}` has no use for --{name} {path}; leave it out.")
    inputs = [path for path in given.values() if isinstance(path, Path)]
    written = [path for path in outputs.values() if path is not None]
    for path, wanted in zip(written, command.gives, strict=False):
        suffixes = SUFFIXES[wanted.strip("[]")]
        check_kept(inputs, {str(path): path})
        if not path.name.lower().endswith(suffixes):
            raise FijiBridgeError(
                f"`{command.verb}` cannot write {path}; let its name end in {' or '.join(suffixes)}."
            )
        check_target(path)
    if len({path.resolve() for path in written}) < len(written):
        raise FijiBridgeError(f"{written[0]} cannot hold both outputs; give --second-out another name.")
    unused = [name for name in EXTRAS if getattr(request, name) != getattr(Request, name)]
    unused = [option(name) for name in unused if name not in command.also]
    if request.options and not command.options:
        unused.append("--options")
    if unused:
        raise FijiBridgeError(f"`{command.verb}` has no use for {' and '.join(unused)}; leave it out.")
    return command.run(request)


def option(name: str) -> str:
    """Give the command line's name of one of `EXTRAS`."""
    return f"--{name.removesuffix('_s').replace('_', '-')}"


MACRO_KEYS = {
    "input": "",
    **{key: f"--{key}" for key in ("second", "options", "camera", "out", "seed")},
    "secondout": "--second-out",
    "jar": "--thunderstorm-jar",
    **{option(name).replace("-", ""): option(name) for name in EXTRAS},
}
"""Keys of the batch macro, and the options that they stand for."""


def command_line(verb: str, text: str) -> list[str]:
    """Turn the options of the batch macro into those of the command line."""
    words = ["thunderstorm", find(verb).verb]
    for key, value in parse_options(text).items():
        if key == "python":
            continue  # what the macro itself looks at
        if key not in MACRO_KEYS:
            raise FijiBridgeError(f"The macro has no option {key}=; it has {', '.join(MACRO_KEYS)}.")
        if key == "input":
            words.append(value)
        elif key == "protocol":
            words += ["--protocol"] if value.lower() == "true" else []
        else:
            words.append(f"{MACRO_KEYS[key]}={value}")
    return words


def main(arguments: Sequence[str]) -> int:
    """Run what the batch macro hands on: the verb and its options. The last line is the exit code."""
    from fiji_bridge.cli import main as run_line

    verb, _, text = " ".join(arguments).strip().partition(" ")
    os.dup2(sys.stdout.fileno(), sys.stderr.fileno())  # ImageJ's exec hears only one of them
    try:
        code = run_line(command_line(verb, text))
    except FijiBridgeError as error:
        print(f"fiji-bridge: {error}")
        code = 1
    print(f"end {code}")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
