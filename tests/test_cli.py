"""The command line: what scripts rely on, and what happens to bad input."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from stack_files import ome_set

from fiji_bridge.cli import main
from fiji_bridge.denoising import load_model
from fiji_bridge.stack import open_stack, write_stack

CAMERA = "offset=100.0 photons2adu=1.0 isemgain=false pixelsize=100.0"


def run(*arguments):
    """Run the command line in this process: starting Python and torch anew each time would take minutes."""
    said, complained = io.StringIO(), io.StringIO()
    given = [str(argument) for argument in arguments]
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complained):
        code = main(given)
    return subprocess.CompletedProcess(given, code, said.getvalue(), complained.getvalue())


def last_json(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def movie(tmp_path_factory):
    """A short simulated movie, its truth and the camera it was made with."""
    folder = tmp_path_factory.mktemp("movie")
    stack, truth = folder / "stack.tif", folder / "truth.csv"
    made = last_json(
        run(
            *("simulate", "--out", stack, "--ground-truth", truth, "--frames", 12, "--seed", 3, "--json"),
            *("--options", "width=64 height=64 density=0.3", "--camera", CAMERA),
        )
    )
    assert made["frames"] == 12
    return folder, stack, truth


def test_simulated_molecules_are_found_and_scored(movie):
    folder, stack, truth = movie
    table = folder / "found.csv"
    found = last_json(
        run("localize", stack, "--out", table, "--camera", CAMERA, "--engine", "torch", "--json")
    )
    assert found["localizations"] > 0
    score = last_json(run("evaluate", table, "--ground-truth", truth, "--json"))
    names = {"tp", "fp", "fn", "jaccard", "precision", "recall", "f1", "mean_distance_nm", "rmse_nm"}
    assert names <= score.keys()
    assert score["tp"] + score["fp"] == found["localizations"]
    assert score["precision"] > 0.8


def test_the_same_seed_makes_the_same_movie(movie, tmp_path):
    _, stack, _ = movie
    again = tmp_path / "again.tif"
    last_json(
        run(
            *(
                "simulate",
                "--out",
                again,
                "--ground-truth",
                tmp_path / "t.csv",
                "--frames",
                12,
                "--seed",
                3,
                "--json",
            ),
            *("--options", "width=64 height=64 density=0.3", "--camera", CAMERA),
        )
    )
    assert np.array_equal(tifffile.imread(stack), tifffile.imread(again))


def test_train_then_denoise_keeps_shape_units_and_mean(movie):
    folder, stack, _ = movie
    model, out = folder / "model.safetensors", folder / "denoised.tif"
    last_json(run("train", stack, "--out", model, "--camera", CAMERA, "--steps", 60, "--json"))
    last_json(run("denoise", stack, "--model", model, "--out", out, "--json"))
    raw, denoised = tifffile.imread(stack), tifffile.imread(out)
    assert denoised.shape == raw.shape
    assert denoised.dtype == np.float32
    assert denoised.mean() == pytest.approx(raw.mean(), rel=0.02)
    assert denoised.std() < raw.std()


def test_batch_goes_on_after_a_bad_stack(movie, tmp_path):
    _, stack, _ = movie
    bad = tmp_path / "bad.tif"
    bad.write_bytes(b"not an image")
    out = tmp_path / "tables"
    done = run(
        *("localize", bad, stack, "--batch", "--out", out, "--camera", CAMERA, "--engine", "torch", "--json")
    )
    assert done.returncode == 1
    results = json.loads(done.stdout.strip().splitlines()[-1])["stacks"]
    assert "bad.tif" in results[0]["error"]
    assert results[1]["localizations"] > 0
    assert [path.name for path in out.iterdir()] == ["stack.csv"]


def write(path, array, **options):
    tifffile.imwrite(path, array, **({"photometric": "minisblack"} | options))
    return path


def truncated(folder):
    path = write(folder / "truncated.tif", np.full((4, 64, 64), 7, np.uint16))
    path.write_bytes(path.read_bytes()[:-9000])
    return path


def emptied(path):
    path.touch()
    return path


BAD_STACKS = {
    "missing": lambda folder: folder / "missing.tif",
    "truncated": truncated,
    "empty file": lambda folder: emptied(folder / "empty.tif"),
    "rgb": lambda folder: write(folder / "rgb.tif", np.zeros((32, 32, 3), np.uint8), photometric="rgb"),
    "one pixel": lambda folder: write(folder / "one.tif", np.ones((1, 1), np.uint16)),
    "not a number": lambda folder: write(folder / "nan.tif", np.full((3, 32, 32), np.nan, np.float32)),
    "infinite": lambda folder: write(folder / "inf.tif", np.full((3, 32, 32), np.inf, np.float32)),
    "empty folder": lambda folder: (folder / "empty").mkdir() or folder / "empty",
}


@pytest.mark.parametrize("command", ["calibrate", "train", "localize"])
@pytest.mark.parametrize("kind", BAD_STACKS)
def test_bad_stack_gets_one_sentence_that_names_the_file(command, kind, tmp_path):
    stack = BAD_STACKS[kind](tmp_path)
    out = tmp_path / ("out.safetensors" if command == "train" else "out.csv")
    more = [] if command == "calibrate" else ["--out", out, "--camera", CAMERA]
    assert_one_sentence(run(command, stack, *more), names=stack.name)
    assert not out.exists()


def assert_one_sentence(done, names, code=1):
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert names in done.stderr


@pytest.mark.parametrize(
    ("camera", "names"),
    [
        ("offset=100 photons2adu=-1 pixelsize=100", "photons2adu"),
        ("offset=100 photons2adu=1 pixelsize=-5", "pixelsize"),
        ("offset=60000 photons2adu=1 pixelsize=100", "offset"),
        ("offset=100 photons2adu=1 pixelsize=100 ofset=3", "ofset"),
    ],
)
def test_bad_camera_is_named(movie, tmp_path, camera, names):
    _, stack, _ = movie
    done = run("localize", stack, "--out", tmp_path / "t.csv", "--engine", "torch", "--camera", camera)
    assert_one_sentence(done, names)
    assert list(tmp_path.iterdir()) == []


def test_a_pixel_size_that_nobody_gave_is_asked_for(movie, tmp_path):
    _, stack, _ = movie
    plain = write(tmp_path / "plain.tif", tifffile.imread(stack))
    out = tmp_path / "t.csv"
    done = run("localize", plain, "--out", out, "--engine", "torch", "--camera", "offset=100 photons2adu=1")
    assert_one_sentence(done, "pixelsize=")
    assert not out.exists()


def test_truth_without_its_columns_is_named(movie, tmp_path):
    _, _, truth = movie
    table = tmp_path / "columns.csv"
    table.write_text('"id","frame","x [nm]"\n1,1,5\n')
    assert_one_sentence(run("evaluate", truth, "--ground-truth", table), "y [nm]")


def test_output_in_the_place_of_the_input_is_refused(movie):
    _, stack, _ = movie
    before = stack.read_bytes()
    done = run("localize", stack, "--out", stack, "--camera", CAMERA)
    assert_one_sentence(done, "is the input itself")
    assert stack.read_bytes() == before


def test_outputs_do_not_replace_other_files_of_a_recording_maps_or_models(tmp_path):
    frames = np.random.default_rng(0).poisson(30, (4, 32, 32)).astype(np.uint16) + 100
    first, second = ome_set(tmp_path, frames, per_file=2)
    dark = write(tmp_path / "dark.tif", np.full((32, 32), 100, np.float32))
    model = tmp_path / "model.safetensors"
    load_model("confocal").save(model)
    camera = f"offsetmap={dark} photons2adu=1"
    for command, out in (
        (("denoise", first, "--model", model, "--camera", "offset=100 photons2adu=1"), second),
        (("denoise", first, "--model", model, "--camera", camera), dark),
        (("train", first, "--model", model, "--steps", 5), model),
    ):
        before = out.read_bytes()
        assert_one_sentence(run(*command, "--out", out), "is the input itself or a part of it")
        assert out.read_bytes() == before


def test_two_outputs_in_one_file_are_refused(tmp_path):
    out = tmp_path / "both.tif"
    assert_one_sentence(run("simulate", "--out", out, "--ground-truth", out), "--ground-truth")
    assert not out.exists()


def test_wrong_options_are_told_to_scripts_too():
    done = run("evaluate", "a.csv", "--ground-truth", "b.csv", "--radius", "-5", "--json")
    assert done.returncode == 2
    assert "--radius" in json.loads(done.stdout.splitlines()[-1])["error"]


def test_a_value_that_begins_with_a_minus_is_shown_how_to_be_given(capsys):
    words = ["thunderstorm", "localize", "a.tif", "--out", "a.csv"]
    assert main([*words, "--roi", "-1,5,5,5"]) == 2
    said = capsys.readouterr().err
    assert "argument --roi: expected one argument" in said and "equals sign, as in --roi=-1,0,9,9" in said
    assert main([*words, "--roi=-1,5,5,5"]) == 1
    assert "equals" not in capsys.readouterr().err


def test_folder_as_output_is_refused(movie, tmp_path):
    _, stack, _ = movie
    assert_one_sentence(run("train", stack, "--out", tmp_path, "--camera", CAMERA), str(tmp_path))


def test_a_file_that_is_no_model_is_named(movie, tmp_path):
    _, stack, _ = movie
    model = tmp_path / "model.safetensors"
    model.write_bytes(b"nothing of the kind")
    done = run("denoise", stack, "--model", model, "--out", tmp_path / "d.tif")
    assert_one_sentence(done, "model.safetensors")


@pytest.mark.parametrize(
    "wrong", [("localize",), ("nonsense",), ("train", "x.tif", "--out", "m", "--max-minutes", "0")]
)
def test_wrong_options_exit_with_two(wrong):
    assert_one_sentence(run(*wrong), "fiji-bridge", code=2)


def test_the_exit_code_reaches_the_shell():
    command = [sys.executable, "-m", "fiji_bridge.cli", "calibrate", "missing.tif"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert_one_sentence(done, "missing.tif")


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C cannot be sent to one process on Windows")
def test_ctrl_c_stops_cleanly(movie, tmp_path):
    _, stack, _ = movie
    command = ["train", stack, "--out", tmp_path / "m.safetensors", "--camera", CAMERA, "--max-minutes", "5"]
    process = subprocess.Popen(
        [sys.executable, "-m", "fiji_bridge.cli", *map(str, command)], stderr=subprocess.PIPE, text=True
    )
    said = ""
    while "Training" not in said and process.poll() is None:
        said += process.stderr.read(1)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error.strip().splitlines()[-1] == "fiji-bridge: stopped."
    assert list(tmp_path.iterdir()) == []


def test_doctor_says_a_line_each():
    checks = last_json(run("doctor", "--json"))["checks"]
    names = " ".join(check["name"] for check in checks)
    for part in ("Java", "ThunderSTORM", "torch", "GPU", "Fiji"):
        assert part in names


def test_shipped_folders_are_in_the_checkout():
    root = Path(__file__).resolve().parents[1]
    assert any((root / "macros").iterdir())
    assert any((root / "models").iterdir())


def test_what_is_read_is_kept_wherever_it_lies(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frames = np.random.default_rng(0).poisson(30, (3, 32, 32)).astype(np.uint16) + 100
    camera = ("--camera", "offset=100 photons2adu=1 pixelsize=100")
    names = ("report/denoised.tif", "report/raw.csv", "orig/a.tif", "links", "confocal", "all/a/denoised.tif")
    places = [Path(name) for name in names]
    for folder in {place.parent if place.suffix else place for place in places}:
        folder.mkdir(parents=True, exist_ok=True)
    movie, truth, original, links, named, other = places
    for path in (movie, original, other):
        write(path, frames)
    (links / "a.tif").symlink_to(original.absolute())
    write_stack(open_stack(frames), Path("plate.zarr"))
    truth.write_text('"frame","x [nm]","y [nm]"\n1,500,500\n')
    mask = write(Path("mask.tif"), np.ones((32, 32), np.uint8))
    model = ("--model", "confocal", *camera)
    inner = next(path for path in Path("plate.zarr").iterdir() if path.is_dir())
    compare = ("compare", original, *model, "--engine", "torch", "--out", "report")
    for command, kept in (
        (("compare", movie, *model, "--engine", "torch", "--out", "report"), movie),
        ((*compare, "--ground-truth", truth), truth),
        (("compare", original, other, *model, "--engine", "torch", "--batch", "--out", "all"), other),
        (("denoise", links, *model, "--out", original), original),
        (("denoise", inner, *model, "--out", "plate.zarr"), inner),
        (("simulate", "--options", f"maskpath=[{mask}]", "--out", mask, "--ground-truth", "t.csv"), mask),
    ):
        before = kept.read_bytes() if kept.is_file() else sorted(kept.rglob("*"))
        assert_one_sentence(run(*command), "is the input itself or a part of it")
        assert before == (kept.read_bytes() if kept.is_file() else sorted(kept.rglob("*")))
    for out in (named / "s.tif", Path("orig/sub.tif")):  # neither a model's name nor a folder is a recording
        for _ in range(2):
            assert run("denoise", original, *model, "--fast", "--out", out).returncode == 0
