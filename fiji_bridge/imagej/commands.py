"""The commands that ImageJ's users see: what each takes, what it does, what it gives.

This table is the one source of the menu's dialogs, of the commands inside a Python session and of the
documentation pages, so that the option string that the recorder writes is the one that all of them take.
Nothing here knows Java; torch is loaded when a command is run.
"""

import difflib
import math
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import TYPE_CHECKING, Any

from fiji_bridge.camera import Camera
from fiji_bridge.engines import ENGINES, ESTIMATORS, UNCERTAINTIES
from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.files import check_kept, check_model_target, check_target
from fiji_bridge.macro_options import format_options, parse_options
from fiji_bridge.progress import Progress, silent
from fiji_bridge.stack import open_stack

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from fiji_bridge.denoising.model import Denoiser

Value = str | float
"""What a parameter holds: text (paths too) or a number."""


@dataclass(frozen=True)
class Parameter:
    """One field of a command's dialog, one key of its option string.

    Parameters
    ----------
    label
        As the dialog shows it. Its first word, in lower case, is the key: that is ImageJ's own rule, so
        underscores stand where the dialog shows spaces.
    kind
        ``open`` (an existing file or folder), ``save`` (a file to write), ``folder`` (to write into),
        ``text``, ``number`` or ``choice``. (No boxes to tick: an option string leaves an unticked one out, so
        it could not have "ticked" as its default.)
    default
        What the field holds at first; an empty text means "left out".
    help
        What to put there, in a sentence.
    choices
        Of a ``choice``.
    cli
        The option of the command line that says the same, empty for a word without one; None when there is
        none.
    """

    label: str
    kind: str
    default: Value
    help: str
    choices: tuple[str, ...] = ()
    cli: str | None = None

    @property
    def key(self) -> str:
        """The name in option strings."""
        return self.label.split()[0].lower()

    def read(self, text: str) -> Value:
        """Give the value that an option string holds.

        Raises
        ------
        FijiBridgeError
            If it is not a number, or not one of the choices.
        """
        if self.kind == "number":
            return self._number(text)
        if self.kind == "choice" and text not in self.choices:
            choices = " or ".join(self.choices)
            raise FijiBridgeError(f"The option {self.key} takes {choices}, not {text!r}.")
        return text

    def _number(self, text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not 0 <= value < math.inf:
            raise FijiBridgeError(f"The option {self.key} takes a number of at least 0, not {text!r}.")
        return value


@dataclass(frozen=True)
class Result:
    """What a command leaves to be shown.

    Attributes
    ----------
    text
        What happened, in a sentence or two.
    images
        Stacks and images by the title of their window; dims are some of t, c, z, y, x.
    tables
        Tables by the title of their window.
    page
        A report to look at.
    """

    text: str
    images: Mapping[str, "xr.DataArray"] = field(default_factory=dict)
    tables: Mapping[str, "pd.DataFrame"] = field(default_factory=dict)
    page: Path | None = None


@dataclass(frozen=True)
class Command:
    """A command of the menu.

    Attributes
    ----------
    name
        By which a macro in a Python session runs it: ``run("Blind-spot denoise", …)``.
    menu
        Its entry under Plugins ▸ Fiji Bridge, by which the recorder knows it. A session answers to both.
    cli
        The command of ``fiji-bridge`` that does the same.
    does
        What it is for, in a sentence.
    gives
        What appears, in a sentence.
    parameters
        The fields of its dialog, in order.
    act
        Does it: values by key, the stack, its title and progress in, the result out.
    example
        Values for the example of its page; the rest stay at their defaults.
    python
        The Python line that does the same as the example.
    image_for
        Values of the first parameter with which the current image is worked on when `input` is empty; None
        when it always is. With them, `act` opens the input itself.
    """

    name: str
    menu: str
    cli: str
    does: str
    gives: str
    parameters: tuple[Parameter, ...]
    act: Callable[[Mapping[str, Any], "xr.DataArray", str, Progress], Result]
    example: Mapping[str, Value]
    python: str
    image_for: tuple[str, ...] | None = None

    def takes_image(self, values: Mapping[str, Value]) -> bool:
        """Tell whether the current image is worked on."""
        wanted = self.image_for is None or values[self.parameters[0].key] in self.image_for
        return wanted and not values["input"]

    def values(self, options: str | Mapping[str, Any]) -> dict[str, Value]:
        """Read an option string, or values by key; what is left out has its default.

        Raises
        ------
        FijiBridgeError
            If an option is unknown or has a value it cannot have.
        """
        given = parse_options(options) if isinstance(options, str) else options
        known = {parameter.key: parameter for parameter in self.parameters}
        for key in given:
            if key not in known:
                near = difflib.get_close_matches(key, known, 1)
                hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(known)}."
                raise FijiBridgeError(f"{self.name!r} has no option {key!r}; {hint}")
        return {
            key: parameter.read(str(given[key])) if key in given else parameter.default
            for key, parameter in known.items()
        }

    def options(self, values: Mapping[str, Value] | None = None) -> str:
        """Write values, the defaults where there are none, as ImageJ's recorder does."""
        given = {key: f"{v:.15g}" if isinstance(v, float) else str(v) for key, v in (values or {}).items()}
        told = {
            key: f"{value:.15g}" if isinstance(value, float) else value
            for key, value in self.values(given).items()
        }
        return " ".join(format_options({key: text}) if text else f"{key}=[]" for key, text in told.items())

    def run(
        self,
        options: str | Mapping[str, Any],
        image: "xr.DataArray | None" = None,
        title: str = "",
        progress: Progress | None = None,
    ) -> Result:
        """Do it.

        Parameters
        ----------
        options
            The option string, or values by key.
        image
            The current image, dims some of t, c, z, y, x [A/D counts]; used when no `input` is given.
        title
            The current image's title.
        progress
            Called with the stage, what is done and the total; may raise to cancel.

        Returns
        -------
        Result
            What to show.

        Raises
        ------
        FijiBridgeError
            If there is neither an image nor an input, an output would replace what is read, or whatever the
            command itself finds wrong.
        """
        values = self.values(options)
        read, written = (
            {p.key: str(values[p.key]) for p in self.parameters if p.kind == kind and values[p.key]}
            for kind in ("open", "save")
        )
        camera = _camera(values) if "camera" in values else None
        maps = [] if camera is None else camera.map_files.values()
        stack = read.pop("input", None) or ("" if image is None else str(image.attrs.get("source", "")))
        beside = [*maps, *filter(os.path.isfile, read.values())]  # a model may be the name of one that ships
        outs = {f"{key}={path}": path for key, path in written.items()}
        check_kept([*beside, *([stack] if stack else [])], outs)
        if self.image_for is None and (source := values["input"]):
            image, title = open_stack(Path(str(source))), Path(str(source)).name
        if image is None and self.takes_image(values):
            raise FijiBridgeError(f"{self.name!r} needs an image: open one, or give input=[path of a stack].")
        return self.act(values, image, title, progress or silent)  # type: ignore[arg-type]


def find(name: str) -> Command | None:
    """Give the command of that name, the session's or the menu's; None when there is none."""
    return next((command for command in COMMANDS if name in (command.name, command.menu)), None)


def _as_movie(image: "xr.DataArray") -> tuple["xr.DataArray", bool]:
    """Open an image, and take slices for frames where they are its only axis, as ImageJ saves movies."""
    slices = image.sizes.get("z", 1) > 1 and image.sizes.get("t", 1) == image.sizes.get("c", 1) == 1
    if slices:
        image = image.squeeze([dim for dim in ("t", "c") if dim in image.dims], drop=True).rename(z="t")
    return open_stack(image), slices


def _like(image: "xr.DataArray", slices: bool) -> "xr.DataArray":
    """Give frames back as the slices that they were."""
    return image.rename(t="z") if slices else image


def _camera(values: Mapping[str, Any]) -> Camera | None:
    return Camera.parse(values["camera"]) if values["camera"] else None


def _minutes(values: Mapping[str, Any]) -> float | None:
    return values["minutes"] or None


def _engine(values: Mapping[str, Any]) -> str | None:
    return None if values["localizer"] == "automatic" else str(values["localizer"])


def _path(values: Mapping[str, Any], key: str) -> Path | None:
    """Give a path to write to, in a folder that can be written, or None when it was left out."""
    return check_target(Path(values[key])) if values[key] else None


def _required(values: Mapping[str, Any], key: str, what: str) -> Path:
    if not values[key]:
        raise FijiBridgeError(f"Give {key}=[{what}].")
    return Path(values[key])


def _train(values: Mapping[str, Any], image: "xr.DataArray", title: str, progress: Progress) -> Result:
    import fiji_bridge

    out = check_model_target(_required(values, "output", "path of the model file to write"))
    movie, _ = _as_movie(image)
    model = fiji_bridge.train(
        movie,
        camera=_camera(values),
        engine=values["engine"],
        neighbours=int(values["neighbouring"]),
        max_minutes=_minutes(values),
        steps=int(values["steps"]) or None,
        progress=progress,
    )
    model.save(out)
    return Result(f"Trained on {title}: {_course(model)} Model written to {out}.")


def _course(model: "Denoiser") -> str:
    report = model.report
    return f"{report['steps']:,} steps in {report['minutes']:.1f} minutes; {report['stopped']}."


def _denoise(values: Mapping[str, Any], image: "xr.DataArray", title: str, progress: Progress) -> Result:
    import fiji_bridge

    out = _path(values, "output")
    movie, slices = _as_movie(image)
    said = f"Denoised {title}."
    if values["model"]:
        model = fiji_bridge.load_model(values["model"])
    else:
        model = fiji_bridge.train(
            movie, camera=_camera(values), max_minutes=_minutes(values), progress=progress
        )
        said += f" Trained on it first: {_course(model)}"
    denoised = fiji_bridge.denoise(
        movie, model, camera=_camera(values), estimator=values["estimator"], out=out, progress=progress
    )
    said += "".join(f" {warning}" for warning in denoised.attrs.get("warnings", ()))
    if out:
        said += f" Written to {out}."
    return Result(said, images={f"denoised {title}": _like(denoised, slices)})


def _localize(values: Mapping[str, Any], image: "xr.DataArray", title: str, progress: Progress) -> Result:
    import fiji_bridge
    from fiji_bridge.localizations import camera_of
    from fiji_bridge.thunderstorm.settings import AveragedShiftedHistograms, Visualization

    out = _path(values, "output")
    movie, _ = _as_movie(image)
    table = fiji_bridge.localize(
        movie,
        camera=_camera(values),
        options=values["options"],
        engine=_engine(values),
        fit_stack=values["fit_stack"] or None,
        out=out,
        pixel_size_nm=values["pixel_size"] or None,
        progress=progress,
        **_beyond(values),
    )
    said = f"{len(table):,} localizations in {title} (engine: {table.attrs['engine']})."
    said += "".join(f" {warning}" for warning in table.attrs["warnings"])
    if out:
        said += f" Written to {out}."
    rendered = {}
    if values["render"] and len(table):
        known = camera_of(table)
        assert known is not None and known.pixel_size_nm is not None
        fine = AveragedShiftedHistograms(magnification=known.pixel_size_nm / values["render"])
        rendered = {f"rendered {title}": fiji_bridge.render(table, Visualization(renderer=fine))}
    return Result(said, images=rendered, tables={f"localizations {title}": table})


def _beyond(values: Mapping[str, Any]) -> dict[str, Any]:
    """Give the settings that only the torch engine has, and that are not as at first."""
    given = {p.key: values[p.key] for p in BEYOND if values[p.key] != p.default}
    with suppress(KeyError, ValueError):  # the engine says what it has to be
        given["false_alarm_rate"] = float(given["false_alarm_rate"])
    if "known_sigma" in given:
        given["known_sigma"] = True
    return given


def _compare(values: Mapping[str, Any], image: "xr.DataArray", title: str, progress: Progress) -> Result:
    import pandas as pd

    import fiji_bridge

    out = _required(values, "output", "folder for the report")
    movie, slices = _as_movie(image)
    if values["pixel_size"]:
        movie = open_stack(movie, pixel_size_nm=values["pixel_size"])
    found = fiji_bridge.compare(
        movie,
        out=out,
        ground_truth=values["truth"] or None,
        model=values["model"] or None,
        camera=_camera(values),
        options=values["options"],
        engine=_engine(values),
        max_minutes=_minutes(values),
        progress=progress,
    )
    counts = {"way": list(found.tables), "localizations": [len(table) for table in found.tables.values()]}
    return Result(
        " ".join((found.verdict, *found.figures["warnings"], f"Report: {out / 'report.html'}")),
        images={f"denoised {title}": _like(found.denoised, slices)},
        tables={f"comparison {title}": pd.DataFrame(counts)},
        page=out / "report.html",
    )


def _thunderstorm(
    values: Mapping[str, Any], image: "xr.DataArray | None", title: str, progress: Progress
) -> Result:
    import pandas as pd

    from fiji_bridge.thunderstorm import commands as plugin

    command = plugin.find(values["verb"])
    source: Path | xr.DataArray | None = None
    if values["input"]:
        source, title = Path(values["input"]), Path(values["input"]).name
    elif image is not None and "STACK" in command.takes:
        source = _as_movie(image)[0]
    if "YAML" in command.gives:
        _required(values, "output", "path of the .yaml file to write")
    with TemporaryDirectory(prefix="thunderstorm-") as folder:
        named = [_path(values, key) for key in ("output", "other")]
        kinds = (*command.gives, "", "")[:2]
        out, other = (
            path or (Path(folder) / f"{place}{SHOWN[kind]}" if kind in SHOWN else None)
            for place, (path, kind) in enumerate(zip(named, kinds, strict=True))
        )
        request = plugin.Request(
            input=source,
            second=Path(values["second"]) if values["second"] else None,
            options=values["options"],
            camera=_camera(values),
            out=out,
            second_out=other,
            seed=int(values["seed"]),
            roi=values["roi"] or None,
            stopped_out=None if values["output"] else Path(gettempdir()) / f"{title}-stopped.csv",
            progress=progress,
        )
        said, found = plugin.run(command, request)
        if [out, other] != named:  # the text would name files that go
            count = f", {found['molecules']:,} molecules" if "molecules" in found else ""
            written = ", ".join(str(path) for path in named if path)
            parts = (f"ThunderSTORM's {command.verb}{count}.", written and f"Written: {written}.")
            said = " ".join(filter(None, (*parts, *found.get("warnings", ()))))
        names = f"{command.verb} {title}".strip(), f"{command.verb} (2)"
        made = zip(names, kinds, (out, other), strict=True)
        shown = [(name, kind, path) for name, kind, path in made if path]
        images = {name: open_stack(path).compute() for name, kind, path in shown if "TIF" in kind}
        tables = {name: request.read_table(path) for name, kind, path in shown if kind in TABLES}
    if not tables and not images:
        tables = {f"{command.verb} {title}": pd.DataFrame([found])}
    return Result(said, images=images, tables=tables)


TABLES = ("CSV", "TABLE", "CURVE")
SHOWN = {"TIF": ".tif", **dict.fromkeys(TABLES, ".csv")}
"""What is shown where no output is named, and the file that it goes through."""

VERBS = (
    *("localize", "filter", "render", "postprocess", "drift", "convert", "generate", "evaluate", "calibrate"),
    "colocalize",
)
"""The verbs of `fiji_bridge.thunderstorm.commands`, but `macro`, which ImageJ runs itself."""

_CAMERA_SETUP = "offset=414.0 photons2adu=3.6 isemgain=false pixelsize=160.0"

INPUT = Parameter(
    "Input (empty: the current image)",
    "open",
    "",
    "A stack on disk: TIFF, OME-TIFF, Zarr, or a folder of images in natural order. Leave it empty to work on"
    " the image in front.",
    cli="",
)
CAMERA = Parameter(
    "Camera (empty: estimated)",
    "text",
    "",
    "ThunderSTORM's Camera setup, such as offset=414.0 photons2adu=3.6 isemgain=false pixelsize=160.0, and"
    " readnoise= in electrons. Left empty, it is estimated from the image.",
    cli="--camera",
)
MINUTES = Parameter("Minutes of training", "number", 5.0, "Train for at most so long.", cli="--max-minutes")
PIXEL_SIZE = Parameter(
    "Pixel_size [nm] (0: as calibrated)",
    "number",
    0.0,
    "Size of a pixel in the sample, in place of the image's calibration; 0 takes the camera's or the"
    " image's.",
    cli="--pixel-size",
)
OPTIONS = Parameter(
    "Options of ThunderSTORM",
    "text",
    "",
    "What ImageJ's recorder writes for ThunderSTORM's Run analysis; keys left out take the plugin's"
    " defaults.",
    cli="--options",
)
LOCALIZER = Parameter(
    "Localizer",
    "choice",
    "automatic",
    "The real ThunderSTORM plugin, or our torch engine, which needs no Java; automatic takes the plugin when"
    " its jar is there.",
    ("automatic", "thunderstorm", "torch"),
    cli="--engine",
)

BEYOND = (
    Parameter(
        "False_alarm_rate (empty: by threshold)",
        "text",  # ImageJ shows numbers with three decimals
        "",
        "Detect by likelihood ratio, with so many false alarms a pixel of an empty frame, such as 1e-5, for"
        " molecules of the options' sigma, in place of filter and threshold. This and the next four choose"
        " the torch engine.",
        cli="--false-alarm-rate",
    ),
    Parameter(
        "Uncertainty",
        "choice",
        UNCERTAINTIES[0],
        "Formula of the uncertainty: thompson is the plugin's; crlb, the Cramer-Rao bound of the fit.",
        UNCERTAINTIES,
        cli="--uncertainty",
    ),
    Parameter(
        "Known_sigma",
        "choice",
        "false",
        "Keep the options' sigma, without fitting it, which locates dim molecules better.",
        ("false", "true"),
        cli="--known-sigma",
    ),
    Parameter(
        "Background (empty: fitted)",
        "open",
        "",
        "Light that is not of molecules, one value a pixel, or a pixel and frame, in photons: .tif or .npy.",
        cli="--background",
    ),
    Parameter(
        "Variance (empty: of light alone)",
        "open",
        "",
        "Variance of each pixel's read noise in squared photons, as of sCMOS cameras: .tif or .npy.",
        cli="--variance",
    ),
)
"""What only the torch engine has, by its names there; anything but these defaults chooses that engine."""

DENOISE = Command(
    "Blind-spot denoise",
    "Denoise...",
    "denoise",
    "Denoises a stack with a trained model or, without one, with a network that is first trained on this very"
    " stack.",
    "The denoised stack as a 32-bit image in the input's units, with its calibration. Hot pixels of movies"
    " are interpolated.",
    (
        INPUT,
        Parameter(
            "Model (empty: train on this stack)",
            "open",
            "",
            "A model that Train wrote. Left empty, one is trained on this stack and forgotten afterwards.",
            cli="--model",
        ),
        MINUTES,
        CAMERA,
        Parameter(
            "Estimator",
            "choice",
            "mean",
            "mean: the posterior mean, the best in the mean square; map: the most probable value; prior: what"
            " the surroundings alone say.",
            ESTIMATORS[:3],
            cli="--estimator",
        ),
        Parameter(
            "Output (empty: only show it)", "save", "", "A .tif or .zarr to write as well.", cli="--out"
        ),
    ),
    _denoise,
    {"input": "/data/movie.tif", "model": "/data/movie.safetensors", "output": "/data/denoised.tif"},
    'fb.denoise("/data/movie.tif", fb.load_model("/data/movie.safetensors"), out="/data/denoised.tif")',
)

TRAIN = Command(
    "Blind-spot train",
    "Train...",
    "train",
    "Trains a blind-spot network on a noisy stack, without clean data, and keeps it as a model for Denoise.",
    "The model file.",
    (
        INPUT,
        Parameter("Output model file", "save", "", "The .safetensors file to write.", cli="--out"),
        MINUTES,
        CAMERA,
        Parameter(
            "Engine",
            "choice",
            ENGINES[0],
            "The noise model, or a published method to compare with.",
            tuple(engine for engine in ENGINES if engine != "care"),  # which needs targets
            cli="--engine",
        ),
        Parameter(
            "Neighbouring frames (0: none)",
            "number",
            0.0,
            "Frames before and after each that the network sees as well, for movies in which molecules or the"
            " scene stay for several frames.",
            cli="--neighbours",
        ),
        Parameter(
            "Steps at most (0: as time allows)",
            "number",
            0.0,
            "End training after so many steps, however fast the computer is.",
            cli="--steps",
        ),
    ),
    _train,
    {"input": "/data/movie.tif", "output": "/data/movie.safetensors", "minutes": 10.0},
    'fb.train("/data/movie.tif", max_minutes=10).save("/data/movie.safetensors")',
)

COMPARE = Command(
    "Compare raw and denoised",
    "Compare raw and denoised...",
    "compare",
    "Finds out whether denoising helps to localize the molecules of a stack: trains, denoises, localizes"
    " both, and judges.",
    "The report (report.html) with its tables in the folder, the verdict, the denoised stack.",
    (
        INPUT,
        Parameter("Output folder", "folder", "", "Where the report and its tables go.", cli="--out"),
        Parameter(
            "Model (empty: train on this stack)", "open", "", "A model that Train wrote.", cli="--model"
        ),
        MINUTES,
        Parameter(
            "Truth (may stay empty)",
            "open",
            "",
            "The true molecules as a ThunderSTORM CSV, when known.",
            cli="--ground-truth",
        ),
        CAMERA,
        PIXEL_SIZE,
        LOCALIZER,
        OPTIONS,
    ),
    _compare,
    {
        "input": "/data/movie.tif",
        "output": "/data/report",
        "truth": "/data/molecules.csv",
        "camera": _CAMERA_SETUP,
    },
    "fb.compare(\n"
    '    "/data/movie.tif",\n'
    '    out="/data/report",\n'
    '    ground_truth="/data/molecules.csv",\n'
    "    max_minutes=5,\n"
    f'    camera="{_CAMERA_SETUP}",\n'
    ")",
)

LOCALIZE = Command(
    "Localize molecules",
    "Localize...",
    "localize",
    "Detects and localizes single molecules with ThunderSTORM's analysis.",
    "The table of molecules in nm and photons and, if wanted, a super-resolution image.",
    (
        INPUT,
        CAMERA,
        PIXEL_SIZE,
        LOCALIZER,
        OPTIONS,
        Parameter(
            "Fit_stack (empty: the same frames)",
            "open",
            "",
            "The same frames in another version, such as the raw ones of a denoised stack: molecules are"
            " found in the input and fitted here.",
            cli="--fit-stack",
        ),
        *BEYOND,
        Parameter(
            "Output (empty: only show it)", "save", "", "A ThunderSTORM .csv to write as well.", cli="--out"
        ),
        Parameter(
            "Render [nm a pixel, 0: no image]",
            "number",
            20.0,
            "Draw the molecules as a super-resolution image with pixels of this size.",
        ),
    ),
    _localize,
    {
        "input": "/data/movie.tif",
        "camera": _CAMERA_SETUP,
        "options": "filter=[Wavelet filter (B-Spline)] threshold=1.5*std(Wave.F1)",
        "output": "/data/molecules.csv",
    },
    "fb.localize(\n"
    '    "/data/movie.tif",\n'
    f'    camera="{_CAMERA_SETUP}",\n'
    '    options="filter=[Wavelet filter (B-Spline)] threshold=1.5*std(Wave.F1)",\n'
    '    out="/data/molecules.csv",\n'
    ")",
)

THUNDERSTORM = Command(
    "ThunderSTORM headless",
    "ThunderSTORM headless...",
    "thunderstorm",
    "Runs any command of the ThunderSTORM plugin by the plugin's own classes, without its windows: analysis,"
    " post-processing, drift, rendering, simulation, evaluation, calibration, colocalization, file formats.",
    "Tables and images as the plugin makes them, shown and, where outputs are named, written. What each verb"
    " takes and gives is in ThunderSTORM.md.",
    (
        Parameter("Verb", "choice", VERBS[0], "What to do.", VERBS, cli=""),
        Parameter(
            "Input (empty: the current image)",
            "open",
            "",
            "A stack or a table, as the verb needs. Left empty, localize, filter and calibrate work on the"
            " image in front.",
            cli="",
        ),
        Parameter("Second table", "open", "", "Ground truth, or the other channel.", cli="--second"),
        Parameter(
            "Options of ThunderSTORM",
            "text",
            "",
            "What ImageJ's recorder writes for the plugin's command, such as action=merge dist=20.0.",
            cli="--options",
        ),
        Parameter(
            "Camera setup",
            "text",
            "",
            "ThunderSTORM's Camera setup, such as offset=414.0 photons2adu=3.6 isemgain=false"
            " pixelsize=160.0.",
            cli="--camera",
        ),
        Parameter(
            "Roi (empty: all)",
            "text",
            "",
            "Region of interest of localize and calibrate: x,y,width,height in pixels, or a .roi file. The"
            " selection on the image is not looked at.",
            cli="--roi",
        ),
        Parameter("Output (empty: only show it)", "save", "", "A file; its suffix chooses.", cli="--out"),
        Parameter(
            "Other output",
            "save",
            "",
            "The truth of generate, the second table of colocalize, the correlations of drift.",
            cli="--second-out",
        ),
        Parameter("Seed of random numbers", "number", 0.0, "For generate and render.", cli="--seed"),
    ),
    _thunderstorm,
    {
        "verb": "postprocess",
        "input": "/data/molecules.csv",
        "options": "action=merge dist=20.0 offframes=1",
        "output": "/data/merged.csv",
    },
    "from fiji_bridge import thunderstorm\n\n"
    'table = thunderstorm.import_table("/data/molecules.csv")\n'
    'table = thunderstorm.postprocess(table, "action=merge dist=20.0 offframes=1")\n'
    'thunderstorm.export_table(table, "/data/merged.csv")',
    image_for=("localize", "filter", "calibrate"),
)

COMMANDS = (DENOISE, TRAIN, COMPARE, LOCALIZE, THUNDERSTORM)
