"""The page about ThunderSTORM, written from the tables of commands and settings.

``python -m fiji_bridge.thunderstorm.page macros`` writes `ThunderSTORM.md` into that folder.
"""

import shlex
import sys
from pathlib import Path

from fiji_bridge.imagej.commands import THUNDERSTORM, VERBS
from fiji_bridge.imagej.pages import page_name
from fiji_bridge.macro_options import format_options
from fiji_bridge.thunderstorm import settings as ts
from fiji_bridge.thunderstorm.commands import COMMANDS, EXTRAS, Command, option

CAMERA = "offset=414.0 isemgain=false photons2adu=3.6 pixelsize=160.0"

TESTS = {
    "localize": ("test_thunderstorm.py", "test_every_setting_gives_the_plugins_own_molecules"),
    "filter": ("test_thunderstorm_plugin.py", "test_a_filtered_image_is_the_one_that_the_plugin_previews"),
    "render": ("test_thunderstorm_plugin.py", "test_rendered_images_are_the_plugins_pixel_by_pixel"),
    "postprocess": (
        "test_thunderstorm_plugin.py",
        "test_each_step_of_postprocessing_gives_the_plugins_table_each_time",
    ),
    "drift": ("test_thunderstorm_plugin.py", "test_the_curve_of_a_drift_and_its_file_are_the_plugins"),
    "convert": ("test_thunderstorm_plugin.py", "test_every_format_is_written_and_read_as_by_the_plugin"),
    "generate": ("test_thunderstorm_plugin.py", "test_generated_stacks_are_of_the_kind_of_the_plugins_own"),
    "evaluate": ("test_thunderstorm_plugin.py", "test_the_evaluation_writes_what_the_plugins_wrote"),
    "calibrate": ("test_thunderstorm_plugin.py", "test_a_calibration_is_the_plugins_own_file"),
    "colocalize": ("test_thunderstorm_plugin.py", "test_colocalization_adds_the_plugins_columns"),
    "macro": (
        "test_thunderstorm_plugin.py",
        "test_a_macro_of_the_plugins_commands_runs_on_a_display_of_its_own",
    ),
}
"""The test that compares each command with the plugin's own run: its file and its name."""

SPATIAL = ("test_thunderstorm_plugin.py", "test_positions_in_space_by_an_astigmatic_calibration")
COMPARED = {
    ts.EllipticalGaussian: SPATIAL,
    ts.EllipticalGaussianPSF: TESTS["generate"],
    ts.GaussianPSF: (
        "test_thunderstorm_plugin.py",
        "test_the_generator_gives_the_same_stack_for_a_seed_on_any_number_of_threads",
    ),
    ts.IntegratedGaussianPSF: (
        "test_thunderstorm_plugin.py",
        "test_a_bead_of_the_generator_stands_where_the_truth_says",
    ),
}

EXTRA_PYTHON = {
    "roi": (
        "localize(…, roi=(x, y, width, height))",
        "test_a_region_of_interest_is_analysed_as_by_the_plugin",
    ),
    "processes": ("localize(…, processes=4)", "test_processes_share_the_frames_and_change_nothing"),
    "protocol": (
        'export_table(…, protocol=Protocol("movie.tif", camera, settings))',
        "test_the_protocol_is_the_plugins_own_file_and_is_read_back",
    ),
    "time_limit_s": ("display.run_macro(code, timeout_s=60)", "test_a_macro_has_a_time_limit"),
}
"""The Python of each of `EXTRAS`, and its test."""

GROUPS: dict[type[ts.Settings], str] = {
    ts.ImageFilter: "filter",
    ts.Detector: "localize",
    ts.Estimator: "localize",
    ts.Renderer: "render",
    ts.PostProcessing: "postprocess",
    ts.PSF: "generate",
    ts.CalibrationEstimator: "calibrate",
    ts.Defocus: "calibrate",
    ts.FileFormat: "convert",
}
"""Kinds of modules, and the command that uses them."""

NOT_HERE = {
    "Camera setup": "Every function takes `camera=` and sets the plugin's camera itself.",
    "Import/Export > Show results table (undo, reset, units)": (
        "State of a window: here each step gives a new table, always in nm and photons."
    ),
    "Import/Export > Show ground-truth table": "A window; the truth is a table like the others.",
    "Run analysis: preview, overlay; Show results table: histogram, restrict to ROI": (
        "Looking and clicking in windows: needs a display. `filter_frames` is what the preview shows;"
        " `action=filter formula=[x > … & y < …]` restricts to a region."
    ),
    "Check for updates...": "Asks the network for a newer plugin, in a window.",
    "About ThunderSTORM...": "A window with text.",
}
"""What of the menu has no function of its own, and why."""


def page() -> str:
    """Write the page."""
    lines = [
        "# ThunderSTORM",
        "",
        "The whole plugin (version 1.3, your own jar), run by its own classes without a display on any Java",
        "from 11 up, and compared with its own commands on a display. Written by",
        "`python -m fiji_bridge.thunderstorm.page macros`.",
        "",
        "## Commands",
        "",
        "| command of the plugin | runs | Python (`from fiji_bridge.thunderstorm import …`) | test |",
        "|---|---|---|---|",
        *(_command_row(command) for command in COMMANDS),
        *(f"| {name} | – | {reason} | – |" for name, reason in NOT_HERE.items()),
        "",
        "On the command line, and as a batch macro (`Batch_ThunderSTORM.ijm`, in any ImageJ, headless):",
        "",
        "```",
        *(_shell_line(command) for command in COMMANDS),
        "```",
        "",
        "```",
        *(_macro_line(command) for command in COMMANDS),
        "```",
        "",
        f"In a running Fiji or ImageJ, and in a session of `fiji_bridge.imagej.start()`, "
        f"[{THUNDERSTORM.menu.removesuffix('...')}]({page_name(THUNDERSTORM)}) does the same:",
        "",
        "```",
        *(_menu_line(command) for command in COMMANDS if command.verb in VERBS),
        "```",
        "",
        "More options:",
        "",
        "| command line | batch macro | of | what it is | Python | test |",
        "|---|---|---|---|---|---|",
        *map(_extra_row, EXTRAS),
        _row(
            "`--second-out`",
            "`secondout=`",
            "`drift`",
            "images of the correlations, which `showcorrelations=true` shows in the plugin",
            '`drift(table, options, camera=camera).attrs["correlations"]`',
            _test(("test_thunderstorm_plugin.py", "test_correlation_images_are_the_plugins")),
        ),
        "",
        "The option strings are those that ImageJ's recorder writes. As values they are in",
        "`fiji_bridge.thunderstorm.settings`, both ways: `AnalysisSettings.parse(text)` and `.options()`.",
        "",
        "Without Java, by the same option strings: `localize`, `postprocess`, `drift`, `render`, `export`,",
        "`simulate` and `evaluate` of `fiji_bridge`, and the commands of these names of `fiji-bridge`.",
        "",
        "## Modules",
        "",
        "All run headless. The options have the plugin's defaults; it reads those in *italics* only with",
        "others.",
        "",
        "| module | Python | options | test |",
        "|---|---|---|---|",
        *(_module_row(module, verb) for group, verb in GROUPS.items() for module in group.modules()),
        "",
        "## Traps of the plugin, and what happens here",
        "",
        "| in the plugin | here |",
        "|---|---|",
        *(f"| {trap} | {here} |" for trap, here in TRAPS.items()),
        "",
    ]
    return "\n".join(lines)


TRAPS = {
    "An option that is misspelt, in capitals, or a flag without `=` silently takes the default.": (
        "Capitals and flags are read as meant; a misspelt one is refused with the right name."
    ),
    (
        "`sigma=` of a Gaussian filter and of the fit are one option: the first one given counts for both."
    ): "Refused when they differ.",
    (
        "A macro that filters, merges or removes duplicates does nothing the second time: its "
        "button stays pressed."
    ): "Each step has a table of its own.",
    "An error opens a dialog, and a macro waits for ever.": (
        "One sentence, as an error; on a display the dialog's text."
    ),
    (
        'The command that calibrates fails in a macro with "Index -1" unless an analysis ran before.'
    ): "It needs none.",
    "The angle of a calibration is drawn at random each time.": "`angle_rad=` gives a repeatable one.",
    (
        "XML without the column `id` cannot be read back; JSON and YAML with it give a nameless "
        "column of zeros."
    ): "A path of XML gets the `id`; the nameless column is left out.",
    "The protocol buffer cannot hold `chi2`.": "Says so; in Python leave it out with `chi2=false`.",
    (
        "`expected_intensity=` limits no fit: only its start, and the intensity that is written, of an "
        "elliptical Gaussian the height."
    ): "The same headless; the torch engine limits the fits.",
    "The `offset` of a multi-emitter fit is the background over the number of its molecules.": (
        "The same, by the torch engine too."
    ),
    "What it calls RMSE is the mean distance.": "Kept, by its name, in `evaluate`.",
    "The table cannot open on Java 13 and later, even with a display.": (
        "Headless it is not opened; `macro` adds the class that Java lost."
    ),
}
"""What goes wrong in the plugin without a word, and what happens here."""


def _command_row(command: Command) -> str:
    runs = "on a display" if command.verb == "macro" else "headless"
    return f"| {command.menu} | {runs} | `{command.python}` | {_test(TESTS[command.verb])} |"


def _module_row(module: type[ts.Settings], verb: str) -> str:
    settings = module()
    written = settings.as_options()
    for key in module.fixed:
        del written[key]
    options = [f"`{format_options({key: value})}`" for key, value in written.items()]
    more = sorted(module.keys() - written.keys() - module.fixed.keys())
    name = ", ".join(f"{key}=[{value}]" for key, value in module.fixed.items())
    options += [f"*`{key}=`*" for key in more]
    return f"| `{name}` | `{module.__name__}` | {' '.join(options) or '–'} | {_test(tested(module, verb))} |"


def tested(module: type[ts.Settings], verb: str) -> tuple[str, str]:
    """Give the test that compares a module: its file and its name."""
    if module in COMPARED:
        return COMPARED[module]
    return TESTS[verb]


def _test(where: tuple[str, str]) -> str:
    return f"[{where[1].removeprefix('test_').replace('_', ' ')}](../tests/{where[0]})"


EXAMPLES = {"STACK": "movie.tif", "TABLE": "molecules.csv", "IJM": "macro.ijm"}
WRITTEN = {
    "TIF": "out.tif",
    "CSV": "out.csv",
    "CURVE": "out.csv",
    "YAML": "lens.yaml",
    "TABLE": "molecules.json",
}


def example(command: Command) -> dict[str, str]:
    """Give an example's options by name."""
    given = dict(zip(("input", "second"), (EXAMPLES[kind] for kind in command.takes), strict=False))
    if "second" in given:
        given["second"] = "truth.csv"
    if command.options:
        given["options"] = command.options
    if command.verb not in ("evaluate", "colocalize", "macro"):
        given["camera"] = CAMERA
    always = [kind for kind in command.gives if not kind.startswith("[")]
    given |= dict(zip(("out", "second-out"), (WRITTEN[kind] for kind in always), strict=False))
    if "second-out" in given:
        given["second-out"] = "second.csv"
    return given


def _shell_line(command: Command) -> str:
    words = ["fiji-bridge", "thunderstorm", command.verb]
    for name, value in example(command).items():
        words += [value] if name == "input" else [f"--{name}", value]
    return shlex.join(words)


def _macro_line(command: Command) -> str:
    given = {name.replace("-", ""): value for name, value in example(command).items()}
    task = f"{command.verb} {format_options(given)}"
    return f'java -Djava.awt.headless=true -cp ij.jar ij.ImageJ -batch Batch_ThunderSTORM.ijm "{task}"'


def _menu_line(command: Command) -> str:
    """Write what a macro of a running ImageJ calls."""
    keys = {"out": "output", "second-out": "other"}
    given = {keys.get(name, name): value for name, value in example(command).items()}
    return f'run("{THUNDERSTORM.menu}", "{format_options({"verb": command.verb} | given)}");'


def _extra_row(name: str) -> str:
    verbs = ", ".join(f"`{command.verb}`" for command in COMMANDS if name in command.also)
    key = option(name).replace("-", "")
    python, test = EXTRA_PYTHON[name]
    where = ("test_thunderstorm_plugin.py", test)
    return _row(f"`{option(name)}`", f"`{key}=`", verbs, EXTRAS[name], f"`{python}`", _test(where))


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def write_page(folder: Path) -> Path:
    """Write the page into `folder` and say where."""
    path = folder / "ThunderSTORM.md"
    path.write_text(page(), encoding="utf-8")
    return path


if __name__ == "__main__":
    print(write_page(Path(sys.argv[1])))
