"""The Python behind the menu: it takes jobs from macros, stays for the next, and leaves none hanging."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
from waiting import alive, until

from fiji_bridge.imagej import worker

FRAMES = np.random.default_rng(0).poisson(30, (6, 40, 40)).astype(np.uint16)
CAMERA = "offset=0 photons2adu=1 isemgain=false pixelsize=100"


class Macro:
    """What macros/Menu.ijm does, without an ImageJ."""

    def __init__(self, begun: str) -> None:
        said = dict(line.split("=", 1) for line in begun.splitlines())
        self.folder, self.pulse = Path(said["folder"]), Path(said["pulse"])

    def asks(self, command: str, options: str = "", *, image: bool = True) -> "Macro":
        if image:
            for number, part in ((1, FRAMES[:4]), (5, FRAMES[4:])):
                path = self.folder / f"image-{number:08}.tif"
                tifffile.imwrite(path, part, imagej=True, metadata={"axes": "ZYX"})
        lines = [f"command={command}", "encoding=UTF-8", f"options={options}", "title=my µ movie"]
        lines += ["pixel_width=0.1", "unit=micron", "end="]
        (self.folder / "request").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return self

    def gives_sign(self) -> None:
        (self.folder / "alive").write_text(str(time.monotonic()))

    def result(self, seconds: float = 60) -> dict[str, str]:
        until(lambda: self.gives_sign() or (self.folder / "result").exists(), seconds)
        text = (self.folder / "result").read_text(encoding="utf-8")
        said: dict[str, str] = {}
        for line in text.splitlines():
            key, _, value = line.partition("=")
            said[key] = f"{said[key]} {value}" if key in said else value
        return said

    @property
    def worker(self) -> int:
        until(lambda: self.pulse.exists() and self.pulse.read_text(), 20)
        return int(self.pulse.read_text().split()[0])


@pytest.fixture
def begin(tmp_path, monkeypatch):
    """Begins a job as macros do; afterwards no worker is left."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    workers = set()

    def begun(size: int = FRAMES.nbytes) -> Macro:
        call = [sys.executable, "-m", "fiji_bridge.imagej.worker", "begin", str(size), "UTF-8"]
        done = subprocess.run(call, capture_output=True, text=True, timeout=30, cwd=tmp_path)
        macro = Macro(done.stdout)
        workers.add(macro.worker)
        return macro

    yield begun
    for pid in workers:
        stop(pid)
    worker.Place.of_this_python().clear()


def stop(pid: int) -> None:
    try:
        os.kill(pid, 15)
        until(lambda: not alive(pid), 20)
    except ProcessLookupError:
        pass


def test_one_python_does_job_after_job_and_says_what_came_out(begin, tmp_path):
    first = begin()
    model = tmp_path / "my model.safetensors"
    said = first.asks("Train...", f"output=[{model.name}] steps=25 camera=[{CAMERA}]").result()
    assert "Trained on my µ movie" in said.get("text", said.get("error", "")), said
    assert model.is_file(), "a path is taken from where ImageJ was started"
    second = begin()
    said = second.asks("Denoise...", f"model=[{model}]").result()
    assert second.worker == first.worker
    name, alike, title = said["image"].split("\t")
    assert (alike, title) == ("alike", "denoised my µ movie")
    with tifffile.TiffFile(second.folder / name) as file:
        assert file.asarray().shape == FRAMES.shape
    third = begin()
    said = third.asks("Localize...", f"localizer=torch camera=[{CAMERA}] render=0").result()
    assert said["table"].endswith("\tlocalizations my µ movie")
    for macro in (first, second, third):
        (macro.folder / "read").touch()
        until(lambda macro=macro: not macro.folder.exists(), 10)


@pytest.mark.parametrize(
    ("command", "options", "sentence"),
    [
        ("Denoise...", "modl=x", "did you mean model?"),
        ("Denoise...", "model=[no such.safetensors]", "no such.safetensors is not there"),
        ("Sharpen...", "", "which this version has not"),
    ],
)
def test_a_mistake_comes_back_as_a_sentence(begin, command, options, sentence):
    assert sentence in begin().asks(command, options).result()["error"]


def test_channels_and_slices_come_back_from_parts_that_are_plain_planes(tmp_path):
    frames, slices, channels = 3, 2, 2
    planes = np.arange(frames * slices * channels, dtype=np.uint16)[:, None, None] * np.ones(
        (1, 8, 8), np.uint16
    )
    for first, last in ((0, 8), (8, 12)):  # two frames, and one
        path = tmp_path / f"image-{first:08}.tif"
        tifffile.imwrite(path, planes[first:last], imagej=True, metadata={"axes": "TYX"})
    request = {"frames": str(frames), "slices": str(slices), "channels": str(channels), "title": "hyper"}
    image = worker.Job(tmp_path)._image(request)
    assert image is not None
    assert dict(image.sizes) == {"t": frames, "c": channels, "z": slices, "y": 8, "x": 8}
    assert [int(image[t, c, z, 0, 0]) for t, c, z in ((0, 1, 0), (0, 0, 1), (1, 0, 0), (2, 1, 1))] == [
        1,
        2,
        4,
        11,
    ]


def test_a_result_waits_for_an_imagej_that_is_long_at_opening_it(tmp_path):
    for name in ("cwd", "request", "alive", "result"):
        (tmp_path / name).write_text("end=\n")
    age = time.time() - 3 * worker.SILENT_S
    for name in ("cwd", "request", "alive"):
        os.utime(tmp_path / name, (age, age))
    assert not worker.Job(tmp_path).forgotten
    (tmp_path / "result").unlink()
    assert worker.Job(tmp_path).forgotten


def test_an_encoding_that_only_java_knows_does_not_end_the_worker(tmp_path):
    (tmp_path / "request").write_text("encoding=x-SJIS_0213\ncommand=Denoise...\nend=\n")
    assert worker.Job(tmp_path).waits


def test_a_job_whose_macro_is_gone_is_given_up(begin):
    macro = begin()
    macro.asks("Train...", f"output=never.safetensors minutes=10 camera=[{CAMERA}]")
    until(lambda: macro.gives_sign() or (macro.folder / "status").exists(), 60)
    until(lambda: not macro.folder.exists(), worker.SILENT_S + 20)
    assert "no such" in begin().asks("Denoise...", "model=[no such]").result()["error"]


def test_after_a_python_that_died_the_next_job_gets_another(begin):
    macro = begin()
    os.kill(macro.worker, 9)
    before = macro.worker
    after = begin()
    assert "no such" in after.asks("Denoise...", "model=[no such]").result()["error"]
    assert after.worker != before


def test_an_idle_python_ends_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    place = worker.Place.of_this_python()
    code = "from fiji_bridge.imagej import worker; worker.serve(idle=1.5)"
    subprocess.run([sys.executable, "-c", code], timeout=30, check=True)
    assert not place.pulse.exists()
    assert not any(root.exists() for root in place.roots)


def test_an_image_with_no_room_for_it_is_refused_in_a_sentence(begin, tmp_path):
    call = [sys.executable, "-m", "fiji_bridge.imagej.worker", "begin", "1e18", "UTF-8"]
    said = subprocess.run(call, capture_output=True, text=True, timeout=30, check=True)
    assert said.stdout.startswith("error=There is no room for this image")
    assert not said.stderr
