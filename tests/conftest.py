import os
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.imagej import session
from fiji_bridge.thunderstorm import jar as jars

if "PYTEST_XDIST_WORKER" in os.environ:  # each on a core of its own
    os.environ.setdefault("OMP_NUM_THREADS", "1")

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real recordings and reference results beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip("../shared/data is not beside this checkout")
    return SHARED


@pytest.fixture(scope="session")
def references(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the plugin's own commands gave on a display; see data/thunderstorm/make_references.py."""
    folder = tmp_path_factory.mktemp("references")
    with zipfile.ZipFile(Path(__file__).parent / "data" / "thunderstorm" / "references.zip") as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture
def display() -> Iterator[str]:
    """A display that nobody sees."""
    if shutil.which("Xvfb") is None:
        pytest.skip("no Xvfb on this machine")
    screen = subprocess.Popen(
        ["Xvfb", "-displayfd", "1", "-screen", "0", "1280x900x24"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert screen.stdout is not None
    yield f":{screen.stdout.readline().strip()}"
    screen.terminate()
    screen.wait()


def require_java() -> None:
    """Skip what needs a Java that this machine does not have."""
    java = session.find_java()
    if java is None or not java.recent_enough:
        pytest.skip(f"no Java {session.MINIMUM_JAVA} or newer on this machine")


@pytest.fixture(scope="module")
def imagej() -> session.ImageJ:
    """The ImageJ of the test process, where this machine can have one."""
    require_java()
    try:
        return session.start()
    except FijiBridgeError as error:
        if session.imagej_cached() is None and "Maven Central" in str(error):
            pytest.skip(str(error))
        raise


@pytest.fixture(scope="module")
def plugin() -> jars.Plugin:
    """The user's own ThunderSTORM; without one there is nothing to compare with."""
    require_java()
    try:
        return jars.load()
    except FijiBridgeError as error:
        if jars.find_jar() is None or (session.imagej_cached() is None and "Maven Central" in str(error)):
            pytest.skip(str(error))
        raise
