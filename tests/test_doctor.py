"""The doctor: one line for each thing, what was found, and what to do when it was not."""

import subprocess
import sys

import pytest

from fiji_bridge import doctor
from fiji_bridge.imagej.session import Java


def by_name(**arguments):
    return {check.name: check for check in doctor.diagnose(**arguments)}


def test_each_thing_has_one_line_and_advice_unless_it_is_there():
    checks = doctor.diagnose()
    names = [check.name for check in checks]
    things = ["Python", "Java", "ImageJ", "ThunderSTORM", "torch", "GPU", "Fiji"]
    assert names == [*things, "nd2", "czifile", "pyimagej", "bm3d", "careamics"]
    for check in checks:
        assert "\n" not in str(check) and check.name in str(check) and check.found in str(check)
        assert check.ok or check.advice
    assert checks[0].ok


def test_it_starts_no_java_in_this_process_and_asks_no_network():
    script = (
        "import socket\nsocket.socket.connect = None\nfrom fiji_bridge.doctor import diagnose\ndiagnose()\n"
    )
    script += "import jpype\nassert not jpype.isJVMStarted()"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@pytest.mark.parametrize(
    ("java", "found"), [(None, "none"), (Java("jdk8", "1.8.0_292"), "1.8.0_292 at jdk8 is too old")]
)
def test_a_missing_or_old_java_is_named_with_what_to_install(monkeypatch, java, found):
    monkeypatch.setattr(doctor, "find_java", lambda: java)
    check = by_name()["Java"]
    assert not check.ok and check.found == found
    assert "install Java 11 or newer" in check.advice


def test_a_jar_that_is_not_thunderstorm_is_not_taken_for_it(tmp_path):
    jar = tmp_path / "Thunder_STORM.jar"
    jar.write_text("not a jar")
    check = by_name(thunderstorm_jar=jar)["ThunderSTORM"]
    assert not check.ok and f"{jar} is not a jar file" in check.advice


def test_a_machine_without_a_jar_is_told_where_to_put_one(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "find_jar", lambda jar, fiji: None)
    check = by_name()["ThunderSTORM"]
    assert not check.ok and "built-in localizer" in check.advice and str(doctor.user_folder()) in check.advice


def test_an_extra_that_is_missing_is_named_with_what_installs_it(monkeypatch):
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda module: None)
    checks = by_name()
    assert not checks["pyimagej"].ok and "fiji-bridge[fiji]" in checks["pyimagej"].advice
    assert not checks["nd2"].ok and "fiji-bridge[formats]" in checks["nd2"].advice


def test_a_fiji_folder_is_known_by_its_plugins(tmp_path):
    assert not by_name(fiji=tmp_path)["Fiji"].ok
    (tmp_path / "plugins").mkdir()
    assert by_name(fiji=tmp_path)["Fiji"].ok
