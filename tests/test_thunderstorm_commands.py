"""ThunderSTORM on the command line, as a batch macro, and on its page."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import tifffile

from fiji_bridge import thunderstorm
from fiji_bridge.camera import Camera
from fiji_bridge.cli import build_parser, main
from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.imagej import session
from fiji_bridge.imagej.commands import THUNDERSTORM, VERBS
from fiji_bridge.thunderstorm import commands, page
from fiji_bridge.thunderstorm import settings as ts

ROOT = Path(__file__).resolve().parents[1]
CAMERA = "offset=100.0 isemgain=false photons2adu=2.0 pixelsize=100.0"

each_command = pytest.mark.parametrize("command", commands.COMMANDS, ids=lambda command: command.verb)


def lines(start):
    text = (ROOT / "macros" / "ThunderSTORM.md").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line.startswith(start)]


def test_the_page_is_what_the_tables_say():
    committed = (ROOT / "macros" / "ThunderSTORM.md").read_text(encoding="utf-8")
    assert committed == page.page(), "run `python -m fiji_bridge.thunderstorm.page macros`"


def test_every_test_that_the_page_names_exists():
    named = [*page.TESTS.values(), *page.COMPARED.values()]
    named += [("test_thunderstorm_plugin.py", test) for _, test in page.EXTRA_PYTHON.values()]
    named += [page.tested(module, verb) for group, verb in page.GROUPS.items() for module in group.modules()]
    for file, test in named:
        assert f"def {test}(" in (ROOT / "tests" / file).read_text(encoding="utf-8")


def test_every_command_of_the_plugins_menu_has_a_row(plugin):
    import zipfile

    from fiji_bridge.thunderstorm.jar import require_jar

    with zipfile.ZipFile(require_jar()) as archive:
        menu = re.findall(r'^Plugins>[^,]*, "([^"]+)"', archive.read("plugins.config").decode(), re.MULTILINE)
    text = (ROOT / "macros" / "ThunderSTORM.md").read_text(encoding="utf-8")
    missing = [name for name in menu if name != "-" and name not in text]
    assert len(menu) > 12 and not missing


def test_every_group_of_modules_is_on_the_page():
    groups = {kind for kind in ts.Settings.__subclasses__() if list(kind.modules()) != [kind]}
    assert groups == set(page.GROUPS)


@each_command
def test_the_python_of_the_page_calls_functions_that_exist(command):
    for name in re.findall(r"([\w.]+)\(", command.python):
        found = thunderstorm
        for part in name.split("."):
            found = getattr(found, part, None) or __import__(
                f"fiji_bridge.thunderstorm.{part}", fromlist=["_"]
            )
        assert callable(found)


@pytest.mark.parametrize(
    ("shell", "macro"), list(zip(lines("fiji-bridge thunderstorm"), lines("java "), strict=True))
)
def test_a_shell_line_of_the_page_is_taken_and_its_macro_line_means_the_same(shell, macro):
    parsed = build_parser().parse_args(shlex.split(shell)[1:])
    command = commands.find(parsed.verb)
    task = re.search(r'"(.*)"$', macro)[1]
    verb, _, text = task.partition(" ")
    again = build_parser().parse_args(commands.command_line(verb, text))
    assert vars(again) == vars(parsed)
    if parsed.options:
        kind = {
            "localize": ts.AnalysisSettings,
            "filter": ts.ImageFilter,
            "render": ts.Visualization,
            "postprocess": ts.PostProcessing,
            "drift": ts.PostProcessing,
            "generate": ts.Generator,
            "evaluate": ts.Evaluation,
            "calibrate": ts.Calibration,
            "colocalize": ts.Colocalization,
        }[command.verb]
        kind.parse(parsed.options)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("nonsense", "There is no command 'nonsense' of ThunderSTORM's; choose one of localize"),
        ("evaluate a.csv", "`evaluate` needs a TABLE; give --second"),
        ("localize a.tif", "`localize` needs a CSV; give --out"),
        ("localize a.tif --out b.csv --second c.csv", "has no use for --second c.csv"),
        ("postprocess a.csv --out a.csv", "a.csv is the input itself"),
        ("postprocess a.csv --out ../here/a.csv", "a.csv is the input itself"),
        ("localize a.tif --out b.txt", "cannot write b.txt; let its name end in .csv"),
        ("colocalize a.csv --second b.csv --out c.csv --second-out c.csv", "cannot hold both outputs"),
        ("convert a.csv --out c.json --options chi2=false", "has no use for --options"),
        ("localize a.tif --out b.csv", "This needs --camera"),
        ("localize --out b.csv", "`localize` needs a STACK; name it after the verb, or as input= in a macro"),
        ("render a.csv --out b.tif --roi 1,2,3,4", "`render` has no use for --roi; leave it out"),
        (
            "drift a.csv --out b.csv --processes 2 --protocol --time-limit 3",
            "has no use for --processes and --protocol and --time-limit",
        ),
        (
            "drift a.csv --out b.csv --second-out c.tif --options action=drift method=[Fiducial markers]",
            "has no correlations for c.tif",
        ),
        (
            "postprocess a.csv --out b.csv --protocol --options action=merge",
            "Cannot read the protocol a-protocol.txt",
        ),
        (
            "postprocess a.csv --out b.csv --options action=drift save=true path=a.csv",
            "path=a.csv; name another",
        ),
        (
            "drift a.csv --out b.csv --options action=drift save=true path=./b.csv",
            "path=./b.csv; name another",
        ),
        ("drift a.csv --out b.csv --options action=drift save=true", "save=true needs path="),
        ("macro gone.ijm", "Cannot read the macro gone.ijm"),
    ],
)
def test_a_wrong_line_gets_one_sentence(line, sentence, capsys, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    words, _, options = line.partition("--options ")
    assert main(["thunderstorm", *words.split(), *([f"--options={options}"] if options else [])]) == 1
    [said] = capsys.readouterr().err.strip().splitlines()
    assert sentence in said


@pytest.mark.parametrize(
    "line",
    [line for line in lines("run(") if "ThunderSTORM headless..." in line],
    ids=lambda line: line[32:45],
)
def test_a_menu_line_of_the_page_means_the_same(line):
    options = THUNDERSTORM.values(re.fullmatch(r'run\("ThunderSTORM headless...", "(.*)"\);', line)[1])
    command = commands.find(options["verb"])
    told = {"out": "output", "second-out": "other"}
    wanted = {told.get(key, key): value for key, value in page.example(command).items()}
    assert {key: options[key] for key in wanted} == wanted
    assert [c.verb for c in commands.COMMANDS if c.verb != "macro"] == list(VERBS)


def test_extra_options_mean_the_same_in_a_macro():
    text = "input=a.tif roi=1,2,3,4 processes=3 protocol=true timelimit=9.5"
    parsed = build_parser().parse_args(commands.command_line("localize", text))
    assert (parsed.roi, parsed.processes, parsed.protocol, parsed.time_limit) == ("1,2,3,4", 3, True, 9.5)
    assert not build_parser().parse_args(commands.command_line("localize", "protocol=false")).protocol


def test_the_macros_own_mistakes_get_one_sentence():
    with pytest.raises(FijiBridgeError, match="no option sed=; it has input"):
        commands.command_line("generate", "sed=3")


def run(*words, capsys):
    assert main(["thunderstorm", *map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def test_from_simulation_to_score_on_the_command_line(plugin, tmp_path, capsys):
    made = run(
        *("generate", "--camera", CAMERA, "--seed", "4", "--out", tmp_path / "movie.tif"),
        *("--second-out", tmp_path / "truth.csv"),
        *("--options", "psf=[Integrated Gaussian] width=32 height=32 frames=6 density=1.0"),
        capsys=capsys,
    )
    assert tifffile.imread(tmp_path / "movie.tif").shape == (6, 32, 32)
    assert made["molecules"] == len(pd.read_csv(tmp_path / "truth.csv"))
    movie, table = tmp_path / "movie.tif", tmp_path / "found.csv"
    found = run(
        "localize", movie, "--camera", CAMERA, "--out", table, "--options", "sigma=1.3", capsys=capsys
    )
    kept = tmp_path / "kept.json"
    fewer = run("postprocess", table, "--options", "action=duplicates", "--out", kept, capsys=capsys)
    assert 0 < fewer["molecules"] <= found["molecules"]
    back = run("convert", kept, "--out", tmp_path / "kept.csv", capsys=capsys)
    assert back["molecules"] == fewer["molecules"]
    scores = run("evaluate", table, "--second", tmp_path / "truth.csv", capsys=capsys)
    assert scores["# of TP"] + scores["# of FN"] == made["molecules"]
    image = tmp_path / "image.tif"
    options = "renderer=[Scatter plot] magnification=2 imwidth=32 imheight=32 threed=true zrange=-100:100:100"
    run("render", table, "--camera", CAMERA, "--out", image, "--options", options, capsys=capsys)
    assert tifffile.imread(image).shape == (2, 64, 64)
    run("filter", movie, "--camera", CAMERA, "--out", image, "--options", "filter=[No filter]", capsys=capsys)
    assert tifffile.imread(image).shape == (6, 32, 32)


def test_a_protocol_grows_with_each_step(plugin, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stack, _ = thunderstorm.generate(
        "psf=[Gaussian] width=32 height=30 frames=6 density=2.0", camera=CAMERA, seed=3
    )
    tifffile.imwrite("movie.tif", stack.to_numpy())
    options = ("--options", "sigma=1.3", "--camera", CAMERA, "--roi", "4,5,24,20", "--protocol")
    run("localize", "movie.tif", *options, "--out", "found.csv", capsys=capsys)
    assert pd.read_csv("found.csv")[["x [nm]", "y [nm]"]].max().max() < 2400
    for step, source, out in (
        ("action=duplicates", "found.csv", "one.csv"),
        ("action=offset stagestep=5.0", "one.csv", "two.csv"),
    ):
        run("postprocess", source, "--options", step, "--out", out, "--protocol", capsys=capsys)
    run("convert", "two.csv", "--out", "three.json", "--protocol", capsys=capsys)
    protocol = thunderstorm.Protocol.read("three-protocol.txt")
    assert (protocol.image, protocol.roi) == ("movie.tif", (4, 5, 24, 20))
    assert protocol.camera == Camera.parse(CAMERA)
    assert protocol.analysis == ts.AnalysisSettings.parse("sigma=1.3")
    assert protocol.steps == (ts.RemoveDuplicates(), ts.StageOffset(step_nm=5.0))
    # What was read back does the same again.
    again = thunderstorm.localize(
        "movie.tif", camera=protocol.camera, options=protocol.analysis, roi=protocol.roi
    )
    assert list(again["x [nm]"]) == pytest.approx(list(pd.read_csv("found.csv")["x [nm]"]))


def test_correlations_are_written_and_a_channel_is_compared_with_itself(
    plugin, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    _, truth = thunderstorm.generate(
        "psf=[Gaussian] width=32 height=32 frames=40 density=2.0", camera=CAMERA, seed=3
    )
    truth.to_csv("truth.csv", index=False)
    words = ("--camera", CAMERA, "--options", "action=drift steps=4 magnification=1.0")
    run("drift", "truth.csv", *words, "--out", "drift.csv", "--second-out", "images.tif", capsys=capsys)
    curve = thunderstorm.drift(pd.read_csv("truth.csv"), f"{words[-1]} showcorrelations=true", camera=CAMERA)
    assert (tifffile.imread("images.tif") == curve.attrs["correlations"].to_numpy()).all()
    run(
        *("colocalize", "truth.csv", "--second", "./truth.csv", "--options", "addnndist=true"),
        *("--out", "a.csv", "--second-out", "b.csv"),
        capsys=capsys,
    )
    assert pd.read_csv("a.csv")["nn_dist [nm]"].min() > 0  # a molecule is no neighbour of itself


def test_a_frame_that_cannot_be_analysed_is_named(plugin, tmp_path, capsys):
    stack = thunderstorm.generate(
        "psf=[Gaussian] width=32 height=32 frames=5 density=1.0",
        camera=Camera.parse(CAMERA),
        seed=1,
    )[0].to_numpy()
    stack[3] = 100
    tifffile.imwrite(tmp_path / "movie.tif", stack)
    line = ["localize", tmp_path / "movie.tif", "--camera", CAMERA, "--out", tmp_path / "out.csv"]
    options = ["--options", "threshold=std(I)/max(I)"]
    assert main(["thunderstorm", *map(str, line), *options]) == 0
    said = capsys.readouterr().out
    assert "cannot analyse frame 4 (" in said and "1 of 5 frames failed" in said
    assert set(pd.read_csv(tmp_path / "out.csv")["frame"]) == {1, 2, 3, 5}


def test_an_analysis_that_stops_leaves_the_frames_done_beside_the_output(plugin, tmp_path):
    stack = thunderstorm.generate(
        "psf=[Gaussian] width=32 height=32 frames=5 density=1.0", camera=Camera.parse(CAMERA), seed=1
    )[0]
    tifffile.imwrite(tmp_path / "movie.tif", stack.to_numpy())

    def fail(stage, done, total):
        if done == 3:
            raise FijiBridgeError("The disk is gone.")

    request = commands.Request(
        input=tmp_path / "movie.tif",
        options="threshold=std(I)/max(I)",
        camera=Camera.parse(CAMERA),
        out=tmp_path / "out.csv",
        progress=fail,
    )
    with pytest.raises(FijiBridgeError, match=r"The disk is gone\. The 3 frames done are in"):
        commands.run(commands.find("localize"), request)
    assert not (tmp_path / "out.csv").exists()
    assert set(pd.read_csv(tmp_path / "out-stopped.csv")["frame"]) == {1, 2, 3}


def test_the_batch_macro_runs_in_a_plain_imagej(plugin, tmp_path):
    imagej, java = session.imagej_cached(), session.find_java()
    for name, y in (("molecules", 500.0), ("truth", 540.0)):
        table = pd.DataFrame({"frame": [1, 1], "x [nm]": [1000.0, 2000.0], "y [nm]": [1000.0, y]})
        table.to_csv(tmp_path / f"{name}.csv", index=False)

    def batch(task):
        return subprocess.run(
            [
                *(java.home / "bin" / "java", "-Djava.awt.headless=true", "-cp", imagej, "ij.ImageJ"),
                *("-batch", ROOT / "macros" / "Batch_ThunderSTORM.ijm", f"{task} python=[{sys.executable}]"),
            ],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            timeout=120,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )

    done = batch("evaluate input=molecules.csv second=truth.csv options=[toleranceradius=50.0]")
    assert done.returncode == 0 and re.search(r"# of TP +2\b", done.stdout), done.stdout + done.stderr
    wrong = batch("evaluate input=molecules.csv second=gone.csv")
    assert wrong.returncode == 1 and "gone.csv" in wrong.stdout
