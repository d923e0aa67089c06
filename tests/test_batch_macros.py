"""A folder of stacks through headless ImageJ: a line a stack, an exit code, and no stack stops the rest.

The lines that macros/README.md shows are the ones that are run here.
"""

import os
import re
import shlex
import subprocess
import sys
import threading
import time
import venv
from pathlib import Path

import numpy as np
import pytest
import tifffile

import fiji_bridge
from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.imagej import session
from fiji_bridge.imagej.batch import Batch, Worker, plan
from fiji_bridge.imagej.commands import COMPARE, DENOISE, LOCALIZE, TRAIN
from fiji_bridge.thunderstorm.jar import FIJI_VARIABLE

MACROS = Path(__file__).resolve().parents[1] / "macros"
CAMERA = "offset=100.0 photons2adu=1.0 isemgain=false pixelsize=100.0"


@pytest.fixture(scope="module")
def imagej_jar() -> Path:
    """ImageJ 1.x by itself, where this machine has it or can fetch it."""
    java = session.find_java()
    if java is None or not java.recent_enough:
        pytest.skip(f"no Java {session.MINIMUM_JAVA} or newer on this machine")
    if session.imagej_cached() is None:
        fetch = "from fiji_bridge.imagej import session; session.start()"
        subprocess.run([sys.executable, "-c", fetch], check=False)
    jar = session.imagej_cached()
    if jar is None:
        pytest.skip("ImageJ is not here and could not be fetched from Maven Central")
    return jar


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows a flat background and not much more."""
    path = tmp_path_factory.mktemp("model") / "movie.safetensors"
    small = {"steps": 20, "batch": 2, "crop": 32, "features": (8, 8), "device": "cpu"}
    fiji_bridge.train(flat(), camera=fiji_bridge.Camera.parse(CAMERA), **small).save(path)
    return path


@pytest.fixture
def desk(tmp_path: Path, imagej_jar: Path) -> Path:
    """The folder that the examples are run in, with a `python3` that has fiji_bridge."""
    work = tmp_path / "desk"
    for folder in ("stacks", "bin", "temporary"):
        (work / folder).mkdir(parents=True)
    (work / "ij.jar").symlink_to(imagej_jar)
    (work / "macros").symlink_to(MACROS)
    python = work / "bin" / "python3"
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    return work


def movie(seed: int) -> np.ndarray:
    """Six frames of three molecules each on a background, in A/D counts."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:48, :48]
    light = np.full((6, 48, 48), 30.0)
    for frame in light:
        for down, right in random.uniform(8, 40, (3, 2)):
            squares = (y - down) ** 2 + (x - right) ** 2
            frame += 800 / (2 * np.pi * 1.6**2) * np.exp(-squares / (2 * 1.6**2))
    return (100 + random.poisson(light)).astype(np.uint16)


def flat() -> np.ndarray:
    """Six frames of nothing but background, in A/D counts."""
    return np.random.default_rng(0).poisson(50, (6, 48, 48)).astype(np.uint16) + 100


def write(path: Path, seed: int) -> Path:
    tifffile.imwrite(path, movie(seed), imagej=True, metadata={"axes": "TYX"})
    return path


def bad_stacks(folder: Path) -> None:
    """Put in what a folder of recordings has besides recordings."""
    whole = write(folder / "damaged.tif", 1).read_bytes()
    (folder / "damaged.tif").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.tif").touch()
    (folder / "notes.txt").write_text("Tuesday")
    (folder / ".hidden.tif").touch()
    tifffile.imwrite(folder / "small.tif", np.ones((4, 1, 1), np.uint16), photometric="minisblack")


def example(macro: str) -> list[str]:
    """Give the line of the README that runs a macro in plain ImageJ."""
    lines = (MACROS / "README.md").read_text(encoding="utf-8").splitlines()
    (line,) = (line for line in lines if line.startswith("java") and f"{macro}.ijm" in line)
    return shlex.split(line)


def start(desk: Path, words: list[str]) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "PATH": f"{desk / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "TMPDIR": str(desk / "temporary"),
    }
    return subprocess.Popen(words, cwd=desk, env=environment, stdout=subprocess.PIPE, text=True)


def run(desk: Path, words: list[str]) -> tuple[int, list[str]]:
    """Give exit code and lines."""
    process = start(desk, words)
    out, _ = process.communicate(timeout=100)
    return process.returncode, out.splitlines()


def without_warning(line):
    """Leave out that the model was trained on another stack."""
    return re.sub(r" The model does not fit .* train on this stack\.", "", line)


def without_seconds(line: str) -> str:
    return re.sub(r"  \d+\.\d s  ", "  ", line)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_one_bad_stack_does_not_stop_the_rest_and_the_batch_goes_on_where_it_was(
    desk: Path, model: Path
) -> None:
    stacks, done = desk / "stacks", desk / "denoised"
    bad_stacks(stacks)
    for number in (10, 2):
        write(stacks / f"movie{number}.tif", number)
    fiji_bridge.write_stack(fiji_bridge.open_stack(movie(3)), stacks / "third.zarr")
    (desk / "movie.safetensors").write_bytes(model.read_bytes())

    process = start(desk, example("Batch_Denoise"))
    assert process.stdout is not None
    lines = [process.stdout.readline().rstrip()]
    there = names(done)
    rest, _ = process.communicate(timeout=100)
    assert not any(name.endswith(".tif") for name in there), "the first line came only when stacks were done"
    lines = [without_seconds(without_warning(line)) for line in [*lines, *rest.splitlines()]]
    assert process.returncode == 1
    assert lines[0] == "Left out, being no images: notes.txt"
    assert lines[1].startswith("1/6 FAIL damaged.tif  stacks/damaged.tif is truncated")
    assert lines[2].startswith("2/6 FAIL empty.tif  stacks/empty.tif is an empty file")
    assert lines[3] == "3/6 ok   movie2.tif  Denoised movie2.tif. Written to denoised/movie2.tif."
    assert lines[4] == "4/6 ok   movie10.tif  Denoised movie10.tif. Written to denoised/movie10.tif."
    assert lines[5].startswith("5/6 FAIL small.tif  stacks/small.tif is too small")
    assert lines[6] == "6/6 ok   third.zarr  Denoised third.zarr. Written to denoised/third.tif."
    assert lines[7:] == [
        "3 of 6 stacks done (0 of them before), 3 failed. Log: denoised/batch_denoise.tsv",
    ]
    assert names(done) == ["batch_denoise.tsv", "movie10.tif", "movie2.tif", "third.tif"]
    here = fiji_bridge.denoise(movie(10), fiji_bridge.load_model(model), device="cpu").to_numpy()
    np.testing.assert_allclose(tifffile.imread(done / "movie10.tif"), here, rtol=1e-4)
    assert names(desk / "temporary") == []

    for name in ("damaged.tif", "empty.tif", "small.tif"):
        (stacks / name).unlink()
    write(stacks / "movie2.tif", 2)
    later = time.time() + 5
    os.utime(stacks / "movie2.tif", (later, later))
    code, lines = run(desk, example("Batch_Denoise"))
    assert code == 0
    assert [without_seconds(without_warning(line)) for line in lines[1:]] == [
        "1/3 ok   movie2.tif  Denoised movie2.tif. Written to denoised/movie2.tif.",
        "2/3 skip movie10.tif  Done before: denoised/movie10.tif",
        "3/3 skip third.zarr  Done before: denoised/third.tif",
        "3 of 3 stacks done (2 of them before), 0 failed. Log: denoised/batch_denoise.tsv",
    ]
    changed = plan(DENOISE, f"input={stacks} output={done} model={desk / 'movie.safetensors'} estimator=map")
    assert statuses(changed) == ["ok", "ok", "ok"], "other options give other results"


def test_no_two_stacks_have_one_output(tmp_path: Path) -> None:
    stacks = tmp_path / "stacks"
    stacks.mkdir()
    for name in ("a.tif", "a.png", "a.png.tif", "a.tif.tif", "b.tif"):
        write(stacks / name, 1)
    assert plan(DENOISE, f"input={stacks} output={tmp_path}/shipped model=confocal").jobs
    told = plan(DENOISE, f"input={stacks} output={tmp_path}/out model={tmp_path}")
    assert len({job.product for job in told.jobs}) == 5


def test_a_stack_of_the_same_name_from_another_folder_is_not_taken_for_done(tmp_path: Path) -> None:
    for folder in ("monday", "tuesday"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "movie.tif", 1)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "movie.tif").touch()
    told = [plan(DENOISE, f"input={tmp_path / day} output={tmp_path}/out") for day in ("monday", "tuesday")]
    assert statuses(told[0]) == ["ok"]
    assert statuses(told[0]) == ["skip"]
    assert statuses(told[1]) == ["ok"]


def statuses(batch: Batch) -> list[str]:
    """Give what becomes of each stack when the work itself is left out."""
    batch.left_out.clear()
    return [line.split()[1] for line in batch.run(lambda command, job: "Left out.")][:-1]


def test_localizations_are_those_of_python_with_options_in_brackets_in_brackets(desk: Path) -> None:
    stacks = desk / "my stacks [1]"
    stacks.mkdir()
    path = write(stacks / "movie.tif", 4)
    words = example("Batch_Localize")
    code, lines = run(desk, words)
    found = fiji_bridge.read_localizations(desk / "my molecules" / "movie.csv")
    options = words[-1].split(" options=[")[1].removesuffix("]")
    here = fiji_bridge.localize(path, camera=CAMERA, options=options, engine="torch", device="cpu")
    assert code == 0, lines
    assert len(found) == len(here) > 9
    np.testing.assert_allclose(found["x [nm]"], here["x [nm]"], atol=0.01)
    assert f"1/1 ok   movie.tif  {len(found)} localizations in movie.tif" in without_seconds(lines[0])
    picture = fiji_bridge.open_stack(desk / "my molecules" / "movie_rendered.tif")
    assert picture.attrs["pixel_size_nm"] == 20
    # As in the plugin's images, a molecule counts as often as two shifts along two axes hold it.
    assert picture.to_numpy().sum() == pytest.approx(16 * len(found), abs=16)


def test_a_model_is_kept_for_each_stack(desk: Path) -> None:
    tifffile.imwrite(desk / "stacks" / "flat.tif", flat(), imagej=True, metadata={"axes": "TYX"})
    words = [word.replace("minutes=10", "minutes=10 steps=25") for word in example("Batch_Train")]
    code, lines = run(desk, words)
    assert code == 0, lines
    assert names(desk / "models") == ["batch_train.tsv", "flat.safetensors"]
    assert fiji_bridge.load_model(desk / "models" / "flat.safetensors").report["steps"] == 25


def test_each_stack_is_compared_with_its_own_model_and_truth(desk: Path, model: Path) -> None:
    stacks = desk / "stacks"
    tifffile.imwrite(stacks / "movie1.tif", movie(5)[:2, :40, :40], imagej=True, metadata={"axes": "TYX"})
    truth = fiji_bridge.localize(stacks / "movie1.tif", camera=CAMERA, engine="torch", device="cpu")
    for folder in ("molecules", "models"):
        (desk / folder).mkdir()
    fiji_bridge.write_localizations(truth, desk / "molecules" / "movie1.csv")
    for number in (1, 2):
        (desk / "models" / f"movie{number}.safetensors").write_bytes(model.read_bytes())
    write(stacks / "movie2.tif", 6)

    code, lines = run(desk, example("Batch_Compare"))
    assert code == 1
    assert lines[0].startswith("1/2 ok   movie1.tif")
    assert "Report: reports/movie1/report.html" in lines[0]
    assert (desk / "reports" / "movie1" / "report.html").is_file()
    assert without_seconds(lines[1]).startswith("2/2 FAIL movie2.tif  Cannot read molecules/movie2.csv")
    assert names(desk / "reports") == ["batch_compare.tsv", "movie1"]


def test_fiji_gives_the_same_lines_and_exit_codes(desk: Path, model: Path) -> None:
    fiji = os.environ.get(FIJI_VARIABLE)
    if not fiji or not any(Path(fiji, "jars").glob("imagej-legacy-*.jar")):
        pytest.skip(f"{FIJI_VARIABLE} names no folder of a Fiji or ImageJ2")
    write(desk / "stacks" / "movie1.tif", 1)
    (desk / "stacks" / "movie2.tif").touch()
    (desk / "movie.safetensors").write_bytes(model.read_bytes())
    launch = ["java", "--add-opens=java.base/java.lang=ALL-UNNAMED", "-cp", f"{fiji}/jars/*"]
    words = [*launch, "net.imagej.Main", "--headless", "-macro", *example("Batch_Denoise")[-2:]]
    code, lines = run(desk, words)
    assert code == 1
    assert lines[0].startswith("1/2 ok   movie1.tif")
    assert lines[1].startswith("2/2 FAIL movie2.tif")
    (desk / "stacks" / "movie2.tif").unlink()
    code, lines = run(desk, words)
    assert code == 0
    assert lines[0].startswith("1/1 skip movie1.tif")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("output={out}", r"Give input=\["),
        ("input={stacks}", r"Give output=\["),
        ("input={stacks} output={out} modl=x", "no option 'modl'; did you mean model"),
        ("input={stacks} output={out} estimator=median", "takes mean or map or prior"),
        ("input={stacks} output={out} model=nowhere.safetensors", "There is no nowhere"),
        ("input={stacks} output={out} camera=[offset=dark]", "offset must be a number"),
        ("input={stacks} output={out} camera=[offset=1", "camera= is not closed"),
        ("input={stacks} output={stacks}", "the folder of the stacks themselves"),
        ("input={stacks}/a.tif output={stacks}", "the folder of the stacks themselves"),
        ("input={stacks} output={stacks}/a.tif", "a file stands there"),
        ("input={out} output={out}", "There is no .*out"),
        ("input={empty} output={out}", "has no stacks in it"),
    ],
)
def test_wrong_options_are_one_sentence_before_any_work(tmp_path: Path, options: str, sentence: str) -> None:
    folders = {name: tmp_path / name for name in ("stacks", "empty", "out")}
    folders["stacks"].mkdir()
    folders["empty"].mkdir()
    write(folders["stacks"] / "a.tif", 1)
    with pytest.raises(FijiBridgeError, match=sentence):
        plan(DENOISE, options.format(**folders))
    assert names(tmp_path) == ["empty", "stacks"]


def test_the_exit_code_tells_of_wrong_options_and_of_a_python_that_is_missing_or_not_ours(desk: Path) -> None:
    words = example("Batch_Denoise")
    venv.create(desk / "other", symlinks=True)
    told = {
        "": "Give input=",
        "input=stacks output=denoised": "The folder stacks has no stacks in it",
        "python=[no such python]": "no such python has no fiji-bridge; name the Python that has it",
        f"python={desk}/other/bin/python": "other/bin/python has no fiji-bridge; name the Python that has it",
    }
    for options, sentence in told.items():
        code, lines = run(desk, [*words[:-1], options])
        assert (code, len(lines)) == (1, 1), lines
        assert sentence in lines[0]
    assert not (desk / "denoised").exists()


def test_stacks_of_one_name_keep_apart_and_a_split_recording_is_one(tmp_path: Path) -> None:
    stacks = tmp_path / "stacks"
    stacks.mkdir()
    for name in ("a.tif", "a.zarr", "b.tif", "c_1.ome.tif", "c_2.ome.tif"):
        fiji_bridge.write_stack(fiji_bridge.open_stack(movie(1)), stacks / name)
    out = tmp_path / "out"
    told = plan(COMPARE, f"input={stacks} output={out}")
    assert [job.name for job in told.jobs] == ["a.tif", "a.zarr", "b", "c_1.ome", "c_2.ome"]
    assert told.jobs[2].product == out / "b" / "report.html"

    blocks = "".join(
        f'<TiffData FirstT="{number}" IFD="0" PlaneCount="1">'
        f'<UUID FileName="c_{number + 1}.ome.tif">urn:uuid:{number}</UUID></TiffData>'
        for number in range(2)
    )
    sizes = 'Type="uint16" SizeX="48" SizeY="48" SizeZ="1" SizeC="1" SizeT="2"'
    pixels = f'<Pixels ID="Pixels:0" DimensionOrder="XYZCT" {sizes}>{blocks}</Pixels>'
    schema = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
    for number, frame in enumerate(movie(1)[:2]):
        text = f'<OME xmlns="{schema}" UUID="urn:uuid:{number}"><Image ID="Image:0">{pixels}</Image></OME>'
        tifffile.imwrite(stacks / f"c_{number + 1}.ome.tif", frame, description=text, metadata=None)
    told = plan(LOCALIZE, f"input={stacks} output={out}")
    assert [job.stack.name for job in told.jobs] == ["a.tif", "a.zarr", "b.tif", "c_1.ome.tif"]
    assert told.left_out == []


def test_one_truth_for_many_stacks_is_refused(tmp_path: Path) -> None:
    for number in (1, 2):
        write(tmp_path / f"{number}.tif", number)
    (tmp_path / "truth.csv").touch()
    with pytest.raises(FijiBridgeError, match="truth of one stack"):
        plan(COMPARE, f"input={tmp_path} output={tmp_path}/out truth={tmp_path}/truth.csv")


def test_one_fit_stack_for_many_stacks_is_refused(tmp_path: Path) -> None:
    (tmp_path / "stacks").mkdir()
    for number in (1, 2):
        write(tmp_path / "stacks" / f"{number}.tif", number)
    raw = write(tmp_path / "raw.tif", 1)
    line = f"output={tmp_path}/out fit_stack={raw}"
    with pytest.raises(FijiBridgeError, match=r"fit_stack=.*raw\.tif belongs to one stack"):
        plan(LOCALIZE, f"input={tmp_path}/stacks {line}")
    assert len(plan(LOCALIZE, f"input={tmp_path}/stacks/1.tif {line}").jobs) == 1


def test_a_stack_is_done_again_when_what_it_was_localized_with_has_changed(tmp_path: Path) -> None:
    (tmp_path / "stacks").mkdir()
    write(tmp_path / "stacks" / "a.tif", 1)
    line = f"input={tmp_path}/stacks output={tmp_path}/out background={tmp_path}/light.npy"
    with pytest.raises(FijiBridgeError, match=r"There is no .*light\.npy"):
        plan(LOCALIZE, line)
    np.save(tmp_path / "light.npy", np.ones((48, 48)))
    made = tmp_path / "out" / "a.csv"
    made.parent.mkdir()
    made.touch()
    assert [statuses(plan(LOCALIZE, line)) for _ in range(2)] == [["ok"], ["skip"]]
    later = made.stat().st_mtime + 5
    os.utime(tmp_path / "light.npy", (later, later))
    assert statuses(plan(LOCALIZE, line)) == ["ok"]


def test_a_stack_that_kills_python_does_not_stop_the_rest(tmp_path: Path) -> None:
    stacks = tmp_path / "stacks"
    stacks.mkdir()
    write(stacks / "long.tif", 1)
    (stacks / "empty.tif").touch()
    long, empty = plan(TRAIN, f"input={stacks} output={tmp_path}/out camera=[{CAMERA}]").jobs[::-1]
    worker = Worker(lambda: True)

    def kill() -> None:
        while worker.pid is None:
            time.sleep(0.05)
        time.sleep(1)
        os.kill(worker.pid, 9)

    threading.Thread(target=kill).start()
    with pytest.raises(FijiBridgeError, match=r"Python ended .*exit code -9"):
        worker(TRAIN, long)
    with pytest.raises(FijiBridgeError, match="empty file"):
        worker(TRAIN, empty)
    worker.close()


def test_work_that_nobody_waits_for_is_given_up_and_leaves_nothing(tmp_path: Path) -> None:
    stack, out = write(tmp_path / "movie.tif", 1), tmp_path / "out"
    (job,) = plan(TRAIN, f"input={stack} output={out} camera=[{CAMERA}] minutes=5").jobs
    worker = Worker(lambda: False)
    with pytest.raises(SystemExit):
        worker(TRAIN, job)
    began = time.monotonic()
    worker.close()
    assert time.monotonic() - began < 30
    assert worker.pid is None
    assert names(out) == []


def test_macros_are_plain_ascii() -> None:
    for macro in MACROS.glob("Batch*.ijm"):
        assert macro.read_bytes().isascii(), macro
