"""`fiji-bridge …`: parses the command line, calls the public functions, draws progress."""

import argparse
import errno
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import fiji_bridge
from fiji_bridge.engines import ENGINES, ESTIMATORS, TABLE_FORMATS, TARGETED, UNCERTAINTIES, UNTRAINED
from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.files import check_kept, check_model_target, check_target, jsonable
from fiji_bridge.macro_options import parse_options

INTERRUPTED = 130
"""What a shell reports for a program that Ctrl-C ended: 128 + SIGINT."""

Result = tuple[str, dict[str, Any]]
"""What a command leaves to print: the text for people and the object for scripts."""


class Bar:
    """Draws progress on standard error: a bar with remaining time per stage that lasts over a second."""

    def __init__(self) -> None:
        self._stage: str | None = None
        self._bar: Any = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show that `done` of `total` steps of `stage` are finished."""
        from tqdm import tqdm

        if stage != self._stage:
            self.close()
            self._stage = stage
            self._bar = tqdm(
                desc=stage,
                total=total,
                file=sys.stderr,
                delay=1.0,
                mininterval=0.2 if sys.stderr.isatty() else 10.0,  # a log file is no screen
                dynamic_ncols=True,
            )
        if self._bar.total != total:
            self._bar.total = total
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Finish the bar that is being drawn."""
        if self._bar is not None:
            self._bar.close()
        self._stage, self._bar = None, None


class UsageError(Exception):
    """The command line itself is wrong; its text is the complaint."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaint is one sentence, as every other complaint of the program is."""

    def error(self, message: str) -> NoReturn:
        """Complain about the command line."""
        if message.endswith("expected one argument"):
            message += " (one that begins with - goes behind an equals sign, as in --roi=-1,0,9,9)"
        raise UsageError(f"{message}; see `{self.prog} --help`.")


def positive(text: str) -> float:
    """Read a positive, finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (0 < value < math.inf):
        raise argparse.ArgumentTypeError(f"must be a positive number, not {text!r}")
    return value


def path_or_none(text: str) -> Path | None:
    """Read a path; macros, which cannot leave an option out, give an empty one instead."""
    return Path(text) if text else None


def count(text: str) -> int:
    """Read a whole number of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return value


def build_parser() -> Parser:
    """Describe every command; their names and defaults are those of the Python functions."""
    parser = Parser(prog="fiji-bridge", description=fiji_bridge.__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--version", action="version", version=f"fiji-bridge {fiji_bridge.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(
        name: str, run: Callable[[argparse.Namespace, Bar], Result], text: str
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        sub.add_argument(
            "--json", action="store_true", help="print one JSON object as the last line of standard output"
        )
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        return sub

    def stacks(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "stack",
            nargs="+",
            metavar="STACK",
            help="TIFF, OME-TIFF, Zarr, PNG, a folder; several files are one stack",
        )
        sub.add_argument("--batch", action="store_true", help="take each STACK as a stack of its own")
        sub.add_argument(
            "--pixel-size", type=positive, metavar="NM", help="size of a pixel in nm, in place of the file's"
        )

    def camera(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--camera",
            metavar="SETUP",
            help="ThunderSTORM's Camera setup string, e.g. \"offset=414.0 photons2adu=3.6 isemgain=false "
            'pixelsize=160.0", and readnoise= [electrons] beside them; left out: estimated from the data',
        )

    def training(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--max-minutes", type=positive, metavar="M", help="train for at most so long")
        sub.add_argument("--device", help="cuda or cpu; left out: CUDA when present")
        sub.add_argument("--seed", type=int, default=0, help="seed of the random numbers (default 0)")

    def localizing(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--options", default="", metavar="STRING", help="ThunderSTORM's Run analysis string")
        sub.add_argument(
            "--engine",
            choices=["thunderstorm", "torch"],
            help="the real plugin, or ours without Java; left out: the plugin if its jar and Java are there",
        )
        sub.add_argument("--thunderstorm-jar", type=Path, metavar="JAR", help="your Thunder_STORM.jar")

    sub = command(
        "calibrate", run_calibrate, "Estimate the camera from a noisy stack alone, with the spread."
    )
    stacks(sub)

    sub = command("train", run_train, "Train a blind-spot network on the noisy stack itself.")
    stacks(sub)
    sub.add_argument("--out", required=True, type=Path, metavar="MODEL", help="the model file (.safetensors)")
    camera(sub)
    sub.add_argument(
        "--engine",
        choices=ENGINES,
        metavar="ENGINE",
        help=f"noise model or published method: {', '.join(ENGINES)} (default: that of MODEL, or the first)",
    )
    sub.add_argument(
        "--targets",
        nargs="+",
        metavar="STACK",
        help=f"what the engines {' and '.join(TARGETED)} shall learn to give, of the same shape",
    )
    sub.add_argument("--model", metavar="MODEL", help="a model to go on from: a file, or one that ships")
    sub.add_argument(
        "--neighbours",
        type=int,
        default=0,
        metavar="N",
        help="frames before and after each that the network sees as well (default 0)",
    )
    sub.add_argument(
        "--blind-radius",
        type=int,
        metavar="PIXELS",
        help="hide pixels so far around each; left out: noise they share is measured and undone if it can be",
    )
    sub.add_argument(
        "--steps", type=count, metavar="N", help="train for at most N steps; alone, it repeats exactly"
    )
    training(sub)

    sub = command(
        "denoise", run_denoise, "Denoise a stack with a trained model; float32 in the input's units."
    )
    stacks(sub)
    how = sub.add_mutually_exclusive_group(required=True)
    how.add_argument("--model", metavar="MODEL", help="what `train` wrote, or the name of one that ships")
    how.add_argument(
        "--engine", choices=UNTRAINED, help="without a model, by a method that needs no training"
    )
    sub.add_argument(
        "--out", required=True, type=Path, metavar="FILE", help=".tif or .zarr; with --batch a folder"
    )
    camera(sub)
    sub.add_argument("--estimator", default=ESTIMATORS[0], choices=ESTIMATORS, help="default: posterior mean")
    sub.add_argument("--device", help="cuda or cpu; left out: CUDA when present")
    sub.add_argument("--fast", action="store_true", help="three times as fast on a CPU, some 0.03 dB less")

    sub = command("localize", run_localize, "Detect and localize molecules; writes a ThunderSTORM CSV.")
    stacks(sub)
    sub.add_argument(
        "--out", required=True, type=Path, metavar="CSV", help="the table; with --batch a folder"
    )
    camera(sub)
    localizing(sub)
    sub.add_argument("--fit-stack", type=Path, metavar="STACK", help="fit on this version of the frames")
    sub.add_argument("--strength", action="store_true", help="add the column strength, in thresholds")
    sub.add_argument("--device", help="where torch computes, cuda or cpu; left out: CUDA when present")
    beyond = sub.add_argument_group("what only the torch engine has, and so chooses it")
    beyond.add_argument(
        "--false-alarm-rate",
        type=positive,
        metavar="RATE",
        help="detect by likelihood ratio, with so many false alarms a pixel of an empty frame, such as 1e-4",
    )
    beyond.add_argument(
        "--uncertainty",
        choices=UNCERTAINTIES,
        help=f"formula of the uncertainty (default {UNCERTAINTIES[0]}, the plugin's)",
    )
    beyond.add_argument(
        "--background", type=Path, metavar="FILE", help="light that is not of molecules, each pixel [photons]"
    )
    beyond.add_argument(
        "--variance", type=Path, metavar="FILE", help="variance of each pixel's read noise [photons²]"
    )
    beyond.add_argument(
        "--known-sigma", action="store_true", help="keep sigma= of the options, without fitting it"
    )

    def table(sub: argparse.ArgumentParser, options: str) -> None:
        sub.add_argument(
            "table", type=Path, metavar="TABLE", help="ThunderSTORM .csv, Picasso .hdf5, SMAP .mat"
        )
        if options:
            sub.add_argument("--options", default="", metavar="STRING", help=options)
        sub.add_argument("--camera", metavar="SETUP", help="Camera setup string, for the pixel size")

    sub = command("postprocess", run_postprocess, "Do a step of ThunderSTORM's post-processing of a table.")
    table(sub, "Show results table string: action=filter, duplicates, density, merge, drift or offset")
    sub.add_argument("--out", required=True, type=Path, metavar="CSV", help="the table to write")

    sub = command("drift", run_drift, "Write the curve of the drift that a table shows.")
    table(sub, "action=drift method=[Cross correlation] or [Fiducial markers] …; save=true path= keeps it")
    sub.add_argument("--out", required=True, type=Path, metavar="CSV", help="frame, x and y in nm")

    sub = command("render", run_render, "Draw a table as a super-resolution image, as ThunderSTORM does.")
    table(sub, "Visualization string, such as renderer=[Normalized Gaussian] magnification=10")
    sub.add_argument("--out", required=True, type=Path, metavar="FILE", help="the image: .tif or .zarr")
    sub.add_argument("--seed", type=int, default=0, help="seed of the random numbers (default 0)")

    sub = command("export", run_export, "Write a table for ThunderSTORM, Picasso, SMAP or locan.")
    table(sub, "")
    sub.add_argument("--out", required=True, type=Path, metavar="FILE", help="its suffix names the format")
    sub.add_argument("--format", choices=TABLE_FORMATS, help="in place of the suffix's")

    sub = command("evaluate", run_evaluate, "Compare localizations with ground truth, as the plugin does.")
    sub.add_argument("table", type=Path, metavar="CSV", help="localizations in ThunderSTORM's CSV")
    sub.add_argument("--ground-truth", required=True, type=Path, metavar="CSV", help="the true molecules")
    sub.add_argument(
        "--radius", type=positive, default=50.0, metavar="NM", help="matching radius in nm (default 50)"
    )
    camera(sub)

    sub = command(
        "simulate", run_simulate, "Make a stack with known molecules, as the plugin's generator does."
    )
    sub.add_argument("--out", required=True, type=Path, metavar="TIF", help="the stack to write")
    sub.add_argument(
        "--ground-truth", required=True, type=Path, metavar="CSV", help="the table of molecules to write"
    )
    sub.add_argument("--options", default="", metavar="STRING", help="the generator's option string")
    sub.add_argument("--camera", metavar="SETUP", help="Camera setup string; left out: the plugin's defaults")
    sub.add_argument("--frames", type=count, metavar="N", help="number of frames (before --options)")
    sub.add_argument("--seed", type=int, default=0, help="seed of the random numbers (default 0)")

    sub = command(
        "compare", run_compare, "Raw against denoised, end to end: did denoising help? Leaves a report."
    )
    stacks(sub)
    sub.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="folder for the report and its tables"
    )
    sub.add_argument(
        "--ground-truth", type=path_or_none, metavar="CSV", help="the true molecules, when known"
    )
    sub.add_argument(
        "--model", type=path_or_none, metavar="MODEL", help="denoise with this model; left out: train one"
    )
    camera(sub)
    localizing(sub)
    training(sub)

    sub = command("demo", run_demo, "Simulate molecules and run `compare` on them, in a few minutes.")
    sub.add_argument(
        "--out", type=Path, default=Path("fiji-bridge-demo"), metavar="DIR", help="default %(default)s"
    )
    localizing(sub)
    training(sub)

    sub = command(
        "thunderstorm", run_thunderstorm, "Every command of the ThunderSTORM plugin, by the plugin, headless."
    )
    sub.add_argument(
        "verb", metavar="VERB", help="localize, filter, render, postprocess, … as in macros/ThunderSTORM.md"
    )
    sub.add_argument("input", nargs="?", type=path_or_none, metavar="FILE", help="the stack or the table")
    sub.add_argument("--second", type=path_or_none, metavar="FILE", help="ground truth, or other channel")
    sub.add_argument("--options", default="", metavar="STRING", help="the plugin's option string")
    sub.add_argument("--camera", metavar="SETUP", help="ThunderSTORM's Camera setup string")
    sub.add_argument("--out", type=path_or_none, metavar="FILE", help="what to write; its suffix chooses")
    sub.add_argument("--second-out", type=path_or_none, metavar="FILE", help="the second table to write")
    sub.add_argument("--seed", type=int, default=0, help="seed of the random numbers (default 0)")
    sub.add_argument(
        "--roi", metavar="X,Y,W,H", help="region of interest in pixels, or a .roi file (localize, calibrate)"
    )
    sub.add_argument(
        "--processes",
        type=count,
        default=1,
        metavar="N",
        help="each with a Java of its own, at most two a processor (localize)",
    )
    sub.add_argument(
        "--protocol", action="store_true", help="write NAME-protocol.txt beside the table, as the plugin does"
    )
    sub.add_argument("--time-limit", type=positive, metavar="S", help="of a macro, in seconds (default 600)")
    sub.add_argument("--thunderstorm-jar", type=path_or_none, metavar="JAR", help="your Thunder_STORM.jar")

    sub = command(
        "install", run_install, "Put the menu Plugins > Fiji Bridge into a Fiji, or take it out again."
    )
    sub.add_argument(
        "--fiji",
        type=Path,
        metavar="DIR",
        help="the Fiji or ImageJ folder; left out: what FIJI_BRIDGE_FIJI names",
    )
    sub.add_argument("--uninstall", action="store_true", help="take the menu out")

    sub = command("doctor", run_doctor, "Say what of Java, ThunderSTORM, torch, GPU and Fiji is here.")
    sub.add_argument("--thunderstorm-jar", type=Path, metavar="JAR", help="your Thunder_STORM.jar")
    sub.add_argument("--fiji", type=Path, metavar="DIR", help="your Fiji folder")
    return parser


def sources(arguments: argparse.Namespace, given: Sequence[str] | None = None) -> list[Any]:
    """Give the stacks meant: each path its own with --batch, else all of them one."""
    paths: list[Path] = [Path(path) for path in given or arguments.stack]
    if arguments.batch:
        return list(paths)
    return [paths[0] if len(paths) == 1 else paths]


def opened(source: Any, arguments: argparse.Namespace) -> Any:
    """Open a stack, with the pixel size of the command line if one is given."""
    return fiji_bridge.open_stack(source, pixel_size_nm=arguments.pixel_size)


def outputs(arguments: argparse.Namespace, suffix: str) -> list[Path]:
    """Give one output for each source: --out itself, or with --batch a file of the stack's name in it."""
    if not arguments.batch:
        return [arguments.out]
    stems = [Path(path).name.removesuffix(Path(path).suffix) for path in arguments.stack]
    twice = {stem for stem in stems if stems.count(stem) > 1}
    if twice:
        raise FijiBridgeError(
            f"Two stacks are named {twice.pop()!r}, so their outputs in {arguments.out} would collide."
        )
    return [arguments.out / f"{stem}{suffix}" for stem in stems]


def check_output(stack: Sequence[str], *outs: Path) -> None:
    """Stop before the work if its outputs would replace what is read or could not be written."""
    check_kept(stack, {f"--out {out}": out for out in outs})
    for out in outs:
        check_target(out)


def read_as_well(arguments: argparse.Namespace) -> list[str]:
    """Files beside the stack that the command reads."""
    names = ("fit_stack", "background", "variance", "ground_truth", "model")
    named = (str(value) for name in names if (value := getattr(arguments, name, None)))
    # A model may be the name of one that ships.
    return [*named_in_options(arguments), *filter(os.path.isfile, named)]


def named_in_options(arguments: argparse.Namespace) -> list[str]:
    """Files that the camera's and the analysis' option strings name."""
    camera, options = camera_of(arguments), parse_options(getattr(arguments, "options", None) or "")
    maps = [] if camera is None else camera.map_files.values()
    return [*maps, *filter(os.path.isfile, options.values())]


def check_table(table: Path, options: str, out: Path) -> None:
    """Stop before the work if a step on a table would replace a file, or misname one."""
    from fiji_bridge.thunderstorm.settings import PostProcessing, check_saved

    check_output([str(table)], out)
    if out.suffix.lower() not in (".csv", ".txt"):
        raise FijiBridgeError(f"--out {out} would be a table as CSV; end it in .csv, and `export` that.")
    check_saved(PostProcessing.parse(options), table, out)


def batch(arguments: argparse.Namespace, suffix: str, one: Callable[[Any, Path], Result]) -> Result:
    """Do `one` for each stack; with several, a stack that fails does not stop the rest."""
    jobs = list(zip(sources(arguments), outputs(arguments, suffix), strict=True))
    read = [*arguments.stack, *read_as_well(arguments)]
    if suffix:
        check_output(read, *(out for _, out in jobs))
    else:  # the folders of `compare`
        from fiji_bridge.comparison import written

        for _, folder in jobs:
            check_kept(read, written(folder, arguments.model))
    if len(jobs) == 1:
        return one(*jobs[0])
    results: list[dict[str, Any]] = []
    for source, out in jobs:
        try:
            text, found = one(source, out)
            print(text, file=sys.stderr)
            results.append({"stack": str(source), **found})
        except FijiBridgeError as error:
            print(f"fiji-bridge: {error}", file=sys.stderr)
            results.append({"stack": str(source), "error": str(error)})
    failed = sum("error" in result for result in results)
    text = f"{len(results) - failed} of {len(results)} stacks done, {failed} failed."
    return text, {"stacks": results, "failed": failed}


def run_calibrate(arguments: argparse.Namespace, bar: Bar) -> Result:
    """Estimate the camera."""
    texts, found = [], []
    for source in sources(arguments):
        estimate = fiji_bridge.estimate_camera(opened(source, arguments), progress=bar)
        texts.append(estimate.describe())
        found.append({"stack": str(source), **estimate.as_dict()})
    return "\n\n".join(texts), found[0] if len(found) == 1 else {"stacks": found}


def camera_of(arguments: argparse.Namespace) -> Any:
    """Read --camera, or None when it was left out."""
    given = getattr(arguments, "camera", None)
    return fiji_bridge.Camera.parse(given) if given else None


def run_train(arguments: argparse.Namespace, bar: Bar) -> Result:
    """Train a model and write it."""
    check_output([*arguments.stack, *(arguments.targets or []), *read_as_well(arguments)], arguments.out)
    camera = camera_of(arguments)
    stacks = [opened(source, arguments) for source in sources(arguments)]
    check_model_target(arguments.out)
    targets = arguments.targets and [
        opened(source, arguments) for source in sources(arguments, arguments.targets)
    ]
    model = fiji_bridge.train(
        stacks,
        targets=targets,
        camera=camera,
        engine=arguments.engine,
        model=None if arguments.model is None else fiji_bridge.load_model(arguments.model),
        neighbours=arguments.neighbours,
        blind_radius=arguments.blind_radius,
        steps=arguments.steps,
        max_minutes=arguments.max_minutes,
        device=arguments.device,
        seed=arguments.seed,
        progress=bar,
    )
    model.save(arguments.out)
    report = model.report
    text = f"Trained {report['steps']:,} steps in {report['minutes']:.1f} minutes; {report['stopped']}.\n"
    if "held_out_nll" in report:
        text += (
            f"Held-out loss {report['held_out_nll']:.4f} nats a pixel"
            f" (trivial: {report['trivial_nll']:.4f}).\n"
        )
    text += f"Model written to {arguments.out}"
    return text, {"model": str(arguments.out), **model.metadata}


def run_denoise(arguments: argparse.Namespace, bar: Bar) -> Result:
    """Denoise one stack, or each of a batch."""
    camera = camera_of(arguments)
    trained = None if arguments.model is None else fiji_bridge.load_model(arguments.model)

    def one(source: Any, out: Path) -> Result:
        stack = opened(source, arguments)
        denoised = fiji_bridge.denoise(
            stack,
            trained or fiji_bridge.train(stack, camera=camera, engine=arguments.engine, progress=bar),
            camera=camera,
            estimator=arguments.estimator,
            out=out,
            device=arguments.device,
            fast=arguments.fast,
            progress=bar,
        )
        shape = dict(zip(map(str, denoised.dims), denoised.shape, strict=True))
        warnings = denoised.attrs.get("warnings", [])
        return "\n".join((*warnings, f"Denoised stack written to {out}")), {
            "out": str(out),
            "shape": shape,
            "estimator": arguments.estimator,
            "warnings": warnings,
        }

    return batch(arguments, ".tif", one)


def run_localize(arguments: argparse.Namespace, bar: Bar) -> Result:
    """Localize molecules in one stack, or in each of a batch."""
    camera = camera_of(arguments)
    if arguments.batch and arguments.fit_stack is not None and len(arguments.stack) > 1:
        raise FijiBridgeError("--fit-stack belongs to one stack; run `localize` without --batch for it.")
    if arguments.device and arguments.engine == "thunderstorm":
        raise FijiBridgeError("--device is of the torch engine; leave it out, or use --engine torch.")
    engine = "torch" if arguments.device else arguments.engine
    names = ("false_alarm_rate", "uncertainty", "background", "variance", "known_sigma")
    settings = {name: value for name in names if (value := getattr(arguments, name))}

    def one(source: Any, out: Path) -> Result:
        table = fiji_bridge.localize(
            opened(source, arguments),
            camera=camera,
            options=arguments.options,
            engine=engine,
            fit_stack=arguments.fit_stack,
            strength=arguments.strength,
            thunderstorm_jar=arguments.thunderstorm_jar,
            device=arguments.device,
            out=out,
            progress=bar,
            **settings,
        )
        used, warnings = table.attrs["engine"], table.attrs["warnings"]
        text = f"{len(table):,} localizations written to {out} (engine: {used})"
        found = {"out": str(out), "localizations": len(table), "engine": used, "warnings": warnings}
        return "\n".join((*warnings, text)), found

    return batch(arguments, ".csv", one)


def run_postprocess(arguments: argparse.Namespace, bar: Bar) -> Result:
    """Do one step of post-processing."""
    check_table(arguments.table, arguments.options, arguments.out)
    table = fiji_bridge.postprocess(
        arguments.table, arguments.options, camera=camera_of(arguments), out=arguments.out
    )
    text = f"{len(table):,} molecules written to {arguments.out}"
    return text, {"out": str(arguments.out), "molecules": len(table)}


def run_drift(arguments: argparse.Namespace, bar: Bar) -> Result:
    """Find the drift."""
    check_table(arguments.table, arguments.options, arguments.out)
    curve = fiji_bridge.drift(
        arguments.table, arguments.options, camera=camera_of(arguments), out=arguments.out
    )
    text = f"Drift of {len(curve):,} frames written to {arguments.out}"
    return text, {"out": str(arguments.out), "frames": len(curve)}


def run_render(arguments: argparse.Namespace, bar: Bar) -> Result:
    """Draw a table."""
    check_output([arguments.table], arguments.out)
    image = fiji_bridge.render(
        arguments.table,
        arguments.options,
        camera=camera_of(arguments),
        seed=arguments.seed,
        out=arguments.out,
    )
    size = {"shape": list(image.shape), "pixel_size_nm": image.attrs["pixel_size_nm"]}
    return f"{arguments.out} written", {"out": str(arguments.out), **size}


def run_export(arguments: argparse.Namespace, bar: Bar) -> Result:
    """Write a table in the format of another program."""
    check_output([arguments.table], arguments.out)
    table = fiji_bridge.read_localizations(arguments.table, camera=camera_of(arguments))
    fiji_bridge.export(table, arguments.out, format=arguments.format, camera=camera_of(arguments))
    text = f"{len(table):,} molecules written to {arguments.out}"
    return text, {"out": str(arguments.out), "molecules": len(table)}


def run_thunderstorm(arguments: argparse.Namespace, bar: Bar) -> Result:
    """Run one of the plugin's commands."""
    from fiji_bridge.thunderstorm import commands

    return commands.run(
        commands.find(arguments.verb),
        commands.Request(
            input=arguments.input,
            second=arguments.second,
            options=arguments.options,
            camera=camera_of(arguments),
            out=arguments.out,
            second_out=arguments.second_out,
            seed=arguments.seed,
            roi=arguments.roi or None,
            processes=arguments.processes,
            protocol=arguments.protocol,
            time_limit_s=arguments.time_limit,
            jar=arguments.thunderstorm_jar,
            progress=bar,
        ),
    )


def run_evaluate(arguments: argparse.Namespace, bar: Bar) -> Result:
    """Score localizations against ground truth."""
    found = fiji_bridge.evaluate(
        arguments.table, arguments.ground_truth, radius_nm=arguments.radius, camera=camera_of(arguments)
    )
    values = found.as_dict()
    width = max(map(len, values))
    lines = [f"{name:<{width}}  {value:.6g}" for name, value in values.items()]
    return "\n".join(lines), values


def run_simulate(arguments: argparse.Namespace, bar: Bar) -> Result:
    """Make a stack with known molecules."""
    if arguments.out.resolve() == arguments.ground_truth.resolve():
        raise FijiBridgeError(
            f"--out and --ground-truth are both {arguments.out}; give each a file of its own."
        )
    check_output(named_in_options(arguments), arguments.out, arguments.ground_truth)
    made = fiji_bridge.simulate(
        options=arguments.options,
        camera=camera_of(arguments),
        frames=arguments.frames,
        seed=arguments.seed,
        out=arguments.out,
        ground_truth=arguments.ground_truth,
        progress=bar,
    )
    frames, molecules = made.stack.sizes["t"], len(made.ground_truth)
    text = f"{frames} frames, {molecules:,} molecules: {arguments.out} and {arguments.ground_truth} written"
    return text, {
        "out": str(arguments.out),
        "ground_truth": str(arguments.ground_truth),
        "frames": frames,
        "molecules": molecules,
        "camera": made.camera.options(),
    }


def run_compare(arguments: argparse.Namespace, bar: Bar) -> Result:
    """Find out whether denoising helped, on one stack or on each of a batch."""
    camera = camera_of(arguments)
    if arguments.batch and arguments.ground_truth is not None and len(arguments.stack) > 1:
        raise FijiBridgeError("--ground-truth belongs to one stack; run `compare` without --batch for it.")

    def one(source: Any, out: Path) -> Result:
        return told(
            fiji_bridge.compare(
                opened(source, arguments),
                out=out,
                ground_truth=arguments.ground_truth,
                model=arguments.model,
                camera=camera,
                **comparing(arguments, bar),
            ),
            out,
        )

    return batch(arguments, "", one)


def comparing(arguments: argparse.Namespace, bar: Bar) -> dict[str, Any]:
    """Give the options that `compare` and `demo` share."""
    return {
        "options": arguments.options,
        "engine": arguments.engine,
        "thunderstorm_jar": arguments.thunderstorm_jar,
        "max_minutes": arguments.max_minutes,
        "device": arguments.device,
        "seed": arguments.seed,
        "progress": bar,
    }


def told(comparison: Any, out: Path) -> Result:
    """Say what a comparison found and where its report is."""
    figures = comparison.as_dict()
    return "\n".join((*figures["warnings"], comparison.verdict, f"Report: {out / 'report.html'}")), figures


def run_demo(arguments: argparse.Namespace, bar: Bar) -> Result:
    """Simulate molecules with the generator's defaults and compare on them."""
    from fiji_bridge.demo import demo

    comparison = demo(arguments.out, **comparing(arguments, bar))
    return told(comparison, arguments.out)


def run_install(arguments: argparse.Namespace, bar: Bar) -> Result:
    """Put the menu into a Fiji, or take it out."""
    from fiji_bridge.imagej.install import install, uninstall
    from fiji_bridge.thunderstorm.jar import FIJI_VARIABLE

    folder = arguments.fiji or os.environ.get(FIJI_VARIABLE)
    if not folder:
        raise FijiBridgeError(f"Give the Fiji or ImageJ folder with --fiji, or set {FIJI_VARIABLE} to it.")
    if arguments.uninstall:
        removed = uninstall(folder)
        text = f"The menu was taken out of {folder}." if removed else f"The menu was not in {folder}."
        return text, {"removed": [str(path) for path in removed]}
    written = install(folder)
    lines = "".join(f"\n  {path}" for path in written)
    return (
        f"Plugins > Fiji Bridge is in {folder} now; start it anew, or use Help > Refresh Menus.{lines}",
        {"installed": [str(path) for path in written]},
    )


def run_doctor(arguments: argparse.Namespace, bar: Bar) -> Result:
    """Say what is found on this machine and what to do about the rest."""
    from fiji_bridge.doctor import diagnose

    checks = diagnose(thunderstorm_jar=arguments.thunderstorm_jar, fiji=arguments.fiji)
    lines = [str(check) for check in checks]
    return "\n".join(lines), {"checks": [check.as_dict() for check in checks]}


def complaint(error: BaseException) -> str:
    """Give the one sentence for an error."""
    if isinstance(error, FijiBridgeError):
        return str(error)
    if isinstance(error, OSError):
        where = f" {error.filename}" if error.filename else ""
        if error.errno == errno.ENOSPC:
            return f"The disk is full; free some room or choose another place for the output{where}."
        return f"Cannot use{where or ' a file'}: {error.strerror or error}."
    if isinstance(error, MemoryError):
        return "There is not enough memory for this; close other programs or process a smaller stack."
    return (
        f"This is a fault of fiji-bridge, not yours ({type(error).__name__}: {error}); --debug shows where."
    )


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Walk from an error to what it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def failed(sentence: str, code: int, as_json: bool) -> int:
    """Say what went wrong, for people and, if asked for, for scripts; give the exit code."""
    print(f"fiji-bridge: {sentence}", file=sys.stderr)
    if as_json:
        print(json.dumps({"error": sentence}))
    return code


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns
    -------
    int
        0 when all is well, 1 after a mistake that one sentence on standard error explains (also when a
        stack of a batch failed), 2 after wrong options, 130 after Ctrl-C.
    """
    # A job started in the background by a script has SIGINT ignored; whoever then sends it means it.
    for name in (signal.SIGINT, signal.SIGTERM):  # what batch systems send; helpers are to end as well
        signal.signal(name, signal.default_int_handler)
    given = sys.argv[1:] if arguments is None else arguments
    try:
        parsed = build_parser().parse_args(given)
    except UsageError as error:
        return failed(str(error), 2, "--json" in given)
    bar = Bar()
    started = time.monotonic()
    try:
        text, found = parsed.run(parsed, bar)
        bar.close()
    except BaseException as error:
        bar.close()
        if any(isinstance(cause, KeyboardInterrupt) for cause in causes(error)):
            return failed("stopped.", INTERRUPTED, parsed.json)
        if isinstance(error, SystemExit) or parsed.debug:
            raise
        return failed(complaint(error), 1, parsed.json)
    if parsed.json:
        seconds = round(time.monotonic() - started, 3)
        print(json.dumps(jsonable({**found, "seconds": seconds}), allow_nan=False))
    else:
        print(text)
    return 1 if found.get("failed") else 0


def entry() -> NoReturn:
    """Be the console script: run and leave with the exit code, even if nobody reads our output any more."""
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)


if __name__ == "__main__":
    entry()
