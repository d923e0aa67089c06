import ast
import inspect
import shlex
from pathlib import Path

import numpy as np
import pytest
import tifffile
from stack_files import ome_set

import fiji_bridge
from fiji_bridge.cli import build_parser
from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.imagej.commands import COMMANDS, DENOISE, LOCALIZE, Command, find
from fiji_bridge.imagej.pages import command_line, macro_line, page, page_name
from fiji_bridge.macro_options import DEFAULT_OPTIONS, parse_options

MACROS = Path(__file__).resolve().parents[1] / "macros"

each_command = pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.cli)


@each_command
def test_a_commands_page_is_what_its_table_says(command: Command) -> None:
    committed = (MACROS / page_name(command)).read_text(encoding="utf-8")
    assert committed == page(command), "run `python -m fiji_bridge.imagej.pages macros`"


@each_command
def test_a_documented_macro_line_is_read_back_as_the_example(command: Command) -> None:
    line = macro_line(command)
    assert line.startswith(f'run("{command.menu}", "')
    options = line.split('", "', 1)[1].removesuffix('");')
    values = command.values(options)
    assert {key: values[key] for key in command.example} == dict(command.example)
    assert command.options(values) == options


@each_command
def test_a_documented_shell_line_is_one_that_the_program_takes(command: Command) -> None:
    words = shlex.split(command_line(command))
    parsed = build_parser().parse_args(words[1:])
    assert parsed.command == command.cli
    given = parsed.stack if hasattr(parsed, "stack") else [parsed.input]
    assert [str(path) for path in given] == [command.example["input"]]


@each_command
def test_a_documented_python_line_calls_functions_as_they_are(command: Command) -> None:
    tree = ast.parse(command.python)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    checked = 0
    modules = {"fb": fiji_bridge}
    for line in tree.body:
        if isinstance(line, ast.ImportFrom):
            exec(ast.unparse(line), modules)
    for call in calls:
        assert isinstance(call.func, ast.Attribute)
        if isinstance(call.func.value, ast.Name):
            function = getattr(modules[call.func.value.id], call.func.attr)
            inspect.signature(function).bind(*call.args, **{word.arg: word for word in call.keywords})
            checked += 1
    assert checked


@each_command
def test_no_key_can_be_mistaken_for_one_inside_another_keys_value(command: Command) -> None:
    # ImageJ takes the first `key=` that no letter stands before, even inside brackets.
    keys = {parameter.key for parameter in command.parameters}
    inside = {
        "camera": parse_options("offset=1 photons2adu=1 isemgain=true gainem=1 pixelsize=160 readnoise=1"),
        "options": parse_options(DEFAULT_OPTIONS),
    }
    assert len(keys) == len(command.parameters)
    for key in keys & set(inside):
        assert not keys & set(inside[key])


def test_commands_are_found_by_either_of_their_names() -> None:
    for command in COMMANDS:
        assert find(command.name) is find(command.menu) is command
    assert find("Gaussian Blur...") is None


def test_left_out_options_have_the_values_of_the_page() -> None:
    assert LOCALIZE.values("camera=[offset=100]") == {
        "input": "",
        "camera": "offset=100",
        "pixel_size": 0.0,
        "localizer": "automatic",
        "options": "",
        "fit_stack": "",
        "false_alarm_rate": "",
        "uncertainty": "thompson",
        "known_sigma": "false",
        "background": "",
        "variance": "",
        "output": "",
        "render": 20.0,
    }


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("modl=x", "did you mean model"),
        ("colour=red", "no option 'colour'"),
        ("minutes=soon", "minutes takes a number"),
        ("minutes=-1", "minutes takes a number"),
        ("estimator=median", "takes mean or map or prior"),
        ("model=[unclosed", "not closed"),
    ],
)
def test_a_wrong_option_is_one_sentence(options: str, sentence: str) -> None:
    with pytest.raises(FijiBridgeError, match=sentence):
        DENOISE.run(options)


@pytest.mark.parametrize("key", ["input", "fit_stack", "background", "variance"])
def test_an_output_does_not_replace_what_is_read(key: str, tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(b"somebody's")
    options = f"input={tmp_path}/b.tif " if key != "input" else ""
    with pytest.raises(FijiBridgeError, match=r"output=.*a\.tif is the input itself"):
        LOCALIZE.run(f"{options}{key}={tmp_path}/a.tif output={tmp_path}/x/../a.tif")
    assert (tmp_path / "a.tif").read_bytes() == b"somebody's"


def test_nor_a_map_of_the_camera_or_another_file_of_the_recording(tmp_path: Path) -> None:
    frames = np.full((4, 32, 32), 100, np.uint16)
    first, second = ome_set(tmp_path, frames, per_file=2)
    dark = tmp_path / "dark.tif"
    tifffile.imwrite(dark, np.full((32, 32), 100, np.float32))
    for out in (second, dark):
        before = out.read_bytes()
        camera = f"camera=[offsetmap={dark} photons2adu=1]"
        with pytest.raises(FijiBridgeError, match=r"output=.* is the input itself or a part of it"):
            DENOISE.run(f"input={first} model=confocal {camera} output={out}")
        assert out.read_bytes() == before


def test_a_command_without_an_image_says_so() -> None:
    with pytest.raises(FijiBridgeError, match="needs an image"):
        DENOISE.run("model=x")
