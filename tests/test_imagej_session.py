"""ImageJ in our process: it starts, it refuses with one sentence, and it lets the process end."""

import os
import signal
import subprocess
import sys
import time

import pytest

from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.imagej import session

SMOOTHES = """
from fiji_bridge.imagej import session
session.start()
from jpype import JClass
IJ = JClass("ij.IJ")
image = IJ.createImage("ramp", "32-bit ramp", 64, 64, 3)
before = image.getStatistics().stdDev
IJ.run(image, "Gaussian Blur...", "sigma=9 stack")
assert image.getStatistics().stdDev < before
threads = JClass("java.lang.Thread").getAllStackTraces().keySet()
assert any("pool" in str(t.getName()) and not t.isDaemon() for t in threads)
import sys, time
print(time.time(), flush=True)
"""
"""Runs a filter that leaves threads behind which would keep Java from ending."""

NO_NETWORK = {"HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}


@pytest.fixture(scope="module")
def imagej():
    """The ImageJ of the test process, where this machine can have one."""
    java = session.find_java()
    if java is None or not java.recent_enough:
        pytest.skip(f"no Java {session.MINIMUM_JAVA} or newer on this machine")
    try:
        return session.start()
    except FijiBridgeError as error:
        if session.imagej_cached() is None and "Maven Central" in str(error):
            pytest.skip(str(error))
        raise


def run(script, **environment):
    return subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("last_line", "status"), [("", 0), ("sys.exit(3)", 3), ("raise ValueError('no such dye')", 1)]
)
def test_process_ends_promptly_with_its_own_status_though_imagej_leaves_threads(imagej, last_line, status):
    done = run(SMOOTHES + last_line)
    ended = time.time()
    assert done.returncode == status, done.stderr
    assert ended - float(done.stdout.split()[-1]) < 5


@pytest.mark.skipif(os.name == "nt", reason="sends a POSIX signal")
def test_ctrl_c_is_pythons_keyboard_interrupt(imagej):
    # A test run in the background has Ctrl-C ignored, which a new process inherits.
    script = "import signal, time\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    script += "from fiji_bridge.imagej import session\nsession.start()\ntry:\n print('ready', flush=True)\n"
    script += " time.sleep(60)\nexcept KeyboardInterrupt: raise SystemExit(130)"
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline().strip() == "ready"
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == 130
    process.stdout.close()


def test_imagej_has_no_display_and_its_macros_run(imagej):
    from jpype import JClass

    assert imagej.imagej.startswith("1.54p")
    assert JClass("java.awt.GraphicsEnvironment").isHeadless()
    assert str(JClass("ij.IJ").runMacro("return d2s(2+3, 0);")) == "5"


def test_options_are_given_to_the_macro_only_inside(imagej):
    from jpype import JClass

    Macro, thread = JClass("ij.Macro"), JClass("java.lang.Thread").currentThread()
    name = str(thread.getName())
    with session.macro_options("threshold=[2 * std(Wave.F1)] sigma=1.6"):
        assert str(Macro.getValue(Macro.getOptions(), "threshold", "")) == "2 * std(Wave.F1)"
    assert Macro.getOptions() is None
    assert str(thread.getName()) == name


def test_a_second_start_gives_the_same_imagej_and_refuses_other_settings(imagej):
    assert session.start() is imagej
    with pytest.raises(FijiBridgeError, match="new process for other settings"):
        session.start(heap="123m")
    with pytest.raises(FijiBridgeError, match="heap must be a size such as 500m"):
        session.start(heap="much")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_process_is_told_that_it_cannot_use_imagej(imagej):
    script = "import os\nfrom fiji_bridge.imagej import session\nsession.start()\npid = os.fork()\n"
    script += "if pid: raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    script += "try: session.start()\nexcept Exception as error: print(error, flush=True)\nos._exit(7)"
    done = run(script)
    assert done.returncode == 7, done.stderr
    assert "before this process was forked" in done.stdout


@pytest.mark.parametrize(
    ("version", "major"), [("1.8.0_292", 8), ("11.0.2", 11), ("17-ea", 17), ("21", 21), ("25.0.1", 25)]
)
def test_java_versions_are_read_as_people_say_them(tmp_path, version, major):
    assert session.Java(tmp_path, version).major == major


@pytest.mark.skipif(os.name == "nt", reason="makes a shell script")
def test_a_java_that_is_too_old_is_passed_over_and_named_when_it_is_the_only_one(tmp_path, monkeypatch):
    homes = []
    for version in ("1.8.0_292", "17.0.2"):
        executable = tmp_path / version / "bin" / "java"
        executable.parent.mkdir(parents=True)
        executable.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\"' >&2\n")
        executable.chmod(0o755)
        homes.append(tmp_path / version)
    monkeypatch.setattr(session, "_java_homes", lambda: iter(homes))
    session.find_java.cache_clear()
    assert session.find_java() == session.Java(homes[1], "17.0.2")
    homes.pop()
    session.find_java.cache_clear()
    script = "import pathlib\nfrom fiji_bridge.imagej import session\n"
    script += f"session._java_homes = lambda: iter([pathlib.Path({str(homes[0])!r})])\nsession.start()"
    done = run(script)
    session.find_java.cache_clear()
    assert "version 1.8.0_292, which is too old: install Java 11 or newer" in done.stderr


def test_without_java_and_network_one_sentence_says_what_to_install(tmp_path):
    script = "from fiji_bridge.imagej import session\nsession._java_homes = lambda: iter(())\nsession.start()"
    done = run(script, PATH=str(tmp_path), JAVA_HOME="", HOME=str(tmp_path), **NO_NETWORK)
    last = done.stderr.strip().splitlines()[-1]
    assert "No Java was found and none could be downloaded" in last
    assert "install Java 11 or newer" in last


def test_without_network_one_sentence_says_that_imagej_must_be_fetched_once(imagej, tmp_path):
    done = run("from fiji_bridge.imagej import session\nsession.start()", HOME=str(tmp_path), **NO_NETWORK)
    assert "could not be fetched from Maven Central" in done.stderr.strip().splitlines()[-1]


def test_once_fetched_imagej_needs_no_network_and_no_maven(imagej, tmp_path):
    from pathlib import Path

    java = session.find_java()
    done = run(
        "from fiji_bridge.imagej import session\nprint(session.start().imagej)",
        PATH=str(Path(java.home) / "bin"),
        **NO_NETWORK,
    )
    assert done.stdout.strip().startswith("1.54p"), done.stderr
