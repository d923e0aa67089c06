"""The menu in somebody's own ImageJ: installed, chosen, filled in, recorded, replayed, taken out again."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fiji_bridge
from fiji_bridge.camera import Camera
from fiji_bridge.cli import main
from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.imagej import install as menu
from fiji_bridge.imagej import session
from fiji_bridge.imagej.commands import COMMANDS, COMPARE, DENOISE, LOCALIZE, TRAIN, Command
from fiji_bridge.thunderstorm import find_jar

DRIVER = Path(__file__).with_name("fiji_menu_driver.py")
SHOTS = [os.environ["FIJI_BRIDGE_SHOTS"]] if "FIJI_BRIDGE_SHOTS" in os.environ else []
"""A folder to keep pictures of the screen in, for people to look at."""
CAMERA = "offset=100.0 photons2adu=2.0 isemgain=false pixelsize=110.0"


@pytest.fixture
def fiji(tmp_path):
    """The folder of a plain ImageJ."""
    folder = tmp_path / "My ImageJ"
    (folder / "plugins").mkdir(parents=True)
    (folder / "macros").mkdir()
    jar = session.imagej_cached()
    if jar is None:
        call = [sys.executable, "-c", "from fiji_bridge.imagej import session; session.start()"]
        done = subprocess.run(call, capture_output=True, text=True, timeout=300)
        jar = session.imagej_cached()
        if jar is None:
            pytest.skip(f"no ImageJ here, and none could be fetched: {done.stderr[-200:]}")
    shutil.copy(jar, folder / "ij.jar")
    return folder


def test_installing_says_what_it_wrote_and_uninstalling_takes_just_that_out(fiji, capsys):
    (fiji / "plugins" / "Other_.jar").write_bytes(b"somebody's")
    before = sorted(fiji.rglob("*"))
    assert main(["install", "--fiji", str(fiji)]) == 0
    assert str(fiji / "plugins" / "Fiji_Bridge.jar") in capsys.readouterr().out
    assert main(["install", "--fiji", str(fiji)]) == 0, "a second time renews it"
    batch = (fiji / "macros" / "Fiji_Bridge" / "Batch.ijm").read_text(encoding="utf-8")
    assert f'"{sys.executable}"' in batch
    assert main(["install", "--fiji", str(fiji), "--uninstall"]) == 0
    assert sorted(fiji.rglob("*")) == before
    capsys.readouterr()
    assert main(["install", "--fiji", str(fiji), "--uninstall"]) == 0
    assert "was not in" in capsys.readouterr().out


def test_the_menu_has_every_command_by_its_name(fiji):
    jar, *_ = menu.install(fiji)
    with zipfile.ZipFile(jar) as file:
        lines = file.read("plugins.config").decode("ascii").splitlines()
        for command, line in zip(COMMANDS, lines, strict=True):
            match = re.fullmatch(r'Plugins>Fiji Bridge, "(.*)", ij\.plugin\.Macro_Runner\("JAR:(.*)"\)', line)
            assert match is not None
            assert match[1] == command.menu
            macro = file.read(match[2]).decode("utf-8")
            assert macro.isascii() or not sys.executable.isascii()
            for parameter in command.parameters:
                assert f'("{parameter.label}"' in macro


def test_a_folder_that_is_no_imagej_and_a_file_in_the_way_are_one_sentence_each(tmp_path, fiji, capsys):
    assert main(["install", "--fiji", str(tmp_path)]) == 1
    assert "is not the folder of a Fiji or an ImageJ" in capsys.readouterr().err
    assert main(["install", "--fiji", str(tmp_path / "none")]) == 1
    assert "There is no folder" in capsys.readouterr().err
    (fiji / "plugins" / "Fiji_Bridge.jar").write_bytes(b"somebody's")
    with pytest.raises(FijiBridgeError, match=r"is there and not from fiji-bridge"):
        menu.install(fiji)
    assert (fiji / "plugins" / "Fiji_Bridge.jar").read_bytes() == b"somebody's"


def test_install_without_a_folder_says_how_to_name_one(monkeypatch, capsys):
    monkeypatch.delenv("FIJI_BRIDGE_FIJI", raising=False)
    assert main(["install"]) == 1
    assert "--fiji" in capsys.readouterr().err


def test_what_works_on_files_leaves_the_current_image_alone(fiji, tmp_path, display):
    """The installed menu, without its window; a color image would be refused if it were handed over."""
    if find_jar() is None:
        pytest.skip("no ThunderSTORM here")
    java = session.find_java()
    if java is None:
        pytest.skip("no Java on this machine")
    menu.install(fiji)
    table = "frame,x [nm],y [nm]\n1,1000,1000\n2,1005,1000\n2,9000,1000\n"
    (tmp_path / "a.csv").write_text(table)
    macro = tmp_path / "macro.ijm"
    macro.write_text(
        'newImage("front", "RGB", 9, 9, 1);\n'
        'run("ThunderSTORM headless...", "verb=convert input=a.csv output=b.csv");\n'
        'run("ThunderSTORM headless...", "verb=localize output=c.csv");\n',
        encoding="ascii",
    )
    done = subprocess.run(
        [
            *(java.home / "bin" / "java", f"-Dplugins.dir={fiji}", "-cp", fiji / "ij.jar"),
            *("ij.ImageJ", "-batch", macro),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=200,
        env={**os.environ, "DISPLAY": display, "XDG_CACHE_HOME": str(tmp_path / "cache")},
    )
    for pulse in (tmp_path / "cache").rglob("pulse"):
        os.kill(int(pulse.read_text().split()[0]), 15)
    assert (tmp_path / "b.csv").is_file(), done.stdout + done.stderr
    assert "3 molecules written to b.csv" in done.stdout
    assert "This is a color image" in done.stdout


@pytest.mark.parametrize("text", ["plain", r"C:\Program Files\py", 'a "quoted" one', "two\nlines"])
def test_texts_stand_in_macros_as_they_are(text):
    read = menu.literal(text)[1:-1]
    assert re.sub(r'\\(["\\])', r"\1", read.replace("\\n", "\n") if "\n" in text else read) == text


@pytest.fixture
def movie(tmp_path):
    """A folder with blinking molecules and a model of them."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:64, :64]
    light = np.full((8, 64, 64), 3.0)
    for frame in light:
        for cy, cx in rng.uniform(4, 60, (8, 2)):
            frame += 40 * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * 1.3**2))
    frames = (100 + rng.poisson(light) / 2.0).round().astype(np.uint16)
    stack = fiji_bridge.open_stack(frames, pixel_size_nm=110)
    fiji_bridge.write_stack(stack, tmp_path / "movie.tif")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    camera = Camera.parse(CAMERA)
    model = fiji_bridge.train(stack, camera=camera, steps=60, features=(8, 12), crop=32, device="cpu")
    torch.set_num_threads(threads)
    model.save(tmp_path / "model.safetensors")
    return tmp_path


def test_with_windows_each_command_is_chosen_filled_in_recorded_and_replayed(fiji, movie, display):
    java = session.find_java()
    if java is None:
        pytest.skip("no Java on this machine")
    menu.install(fiji)
    own = {"DISPLAY": display, "HOME": str(movie), "XDG_CACHE_HOME": str(movie / "cache")}
    done = subprocess.run(
        [sys.executable, str(DRIVER), str(movie), str(fiji), *SHOTS],
        env={**os.environ, **own, "OMP_NUM_THREADS": "1", "JAVA_HOME": str(java.home)},
        capture_output=True,
        text=True,
        timeout=500,
    )
    for pulse in (movie / "cache").rglob("pulse"):
        os.kill(int(pulse.read_text().split()[0]), 15)
    said = done.stdout
    assert done.returncode == 0, said + done.stderr
    entered: list[tuple[Command, dict[str, Any]]] = [
        (TRAIN, {"output": f"{movie}/my model.safetensors", "steps": 100, "camera": CAMERA}),
        (DENOISE, {"model": f"{movie}/model.safetensors", "estimator": "map"}),
        (
            LOCALIZE,
            {"camera": CAMERA, "localizer": "torch", "options": "sigma=1.3", "false_alarm_rate": "1e-4"},
        ),
        (COMPARE, {"output": f"{movie}/movie.tif/no folder"}),
    ]
    for command, values in entered:
        assert f'{command.cli} run("{command.menu}", "{command.options(values)}");\n' in said, said
    assert "range 101.0 123.0 32" in said
    assert "calibration 0.11 µm 0.03" in said
    assert "axes True" in said
    assert f"original movie.tif {movie}/ False" in said
    assert "table True" in said
    assert "rendered True" in said
    assert "is a file; name a folder for the report" in said
    assert "replayed denoised movie.tif" in said
    assert "did you mean model?" in said
    assert "windows ['localizations movie.tif']" in said
    assert "reached False" in said
    assert "stopped True" in said
    assert "signed True" in said
    assert "origin 3.0 0.11" in said
    assert "input ['denoised movie.tif']" in said
    assert not (movie / "never.safetensors").exists()
