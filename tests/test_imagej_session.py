"""ImageJ in our process: it starts, it does or says why not in one sentence, and it lets the process end."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.imagej import session
from fiji_bridge.thunderstorm.display import REMOVED_CLASS, _provider_class

SMOOTHES = """
import sys
from fiji_bridge.imagej import session
session.start(*sys.argv[1:])
from jpype import JClass
IJ = JClass("ij.IJ")
image = IJ.createImage("ramp", "32-bit ramp", 64, 64, 3)
before = image.getStatistics().stdDev
IJ.run(image, "Gaussian Blur...", "sigma=9 stack")
assert image.getStatistics().stdDev < before
threads = JClass("java.lang.Thread").getAllStackTraces().keySet()
assert any("pool" in str(t.getName()) and not t.isDaemon() for t in threads)
import time
print(time.time(), flush=True)
"""
"""Runs a filter that leaves threads behind which would keep Java from ending."""

NO_NETWORK = {"HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}


@pytest.fixture(scope="module")
def fiji():
    """The folder of an ImageJ2 or Fiji."""
    folder = os.environ.get("FIJI_BRIDGE_FIJI")
    if not folder:
        pytest.skip("FIJI_BRIDGE_FIJI names no folder of a Fiji or ImageJ2")
    if importlib.util.find_spec("imagej") is None:
        pytest.skip("pyimagej is not installed")
    return folder


def run(script, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
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


def test_so_does_one_with_pyimagej(fiji):
    done = run(SMOOTHES + "sys.exit(3)", fiji)
    ended = time.time()
    assert done.returncode == 3, done.stderr
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


FINDS_NULL = """
import faulthandler
faulthandler.enable()
from fiji_bridge.imagej import start
start()
faulthandler.disable()
from jpype import JClass, JException, JObject
String = JClass("java.lang.String")
text, nothing = String("a"), JObject(None, String)
for _ in range(3):
    for _ in range(20000):
        text.compareTo(text)
    try:
        text.compareTo(nothing)
    except JException:
        print("null")
"""
"""Has Java compile a method, which then finds null by a segmentation fault."""


def test_java_lives_on_when_pythons_fault_handler_is_disabled_after_it_started(imagej):
    done = run(FINDS_NULL)
    assert done.stdout.split() == ["null"] * 3, done.stderr


def test_imagej_has_no_display_and_its_macros_run(imagej):
    from jpype import JClass

    assert imagej.version.startswith("1.54p")
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
    with pytest.raises(FijiBridgeError, match="mode must be headless, gui or interactive"):
        session.start(mode="silent")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_process_is_told_that_it_cannot_use_imagej(imagej):
    script = "import os\nfrom fiji_bridge.imagej import session\nij = session.start()\npid = os.fork()\n"
    script += "if pid: raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    script += "for use in (session.start, ij.close, lambda: ij.run_macro('return 1;')):\n"
    script += " try: use()\n except Exception as error: print(error, flush=True)\nos._exit(7)"
    done = run(script)
    assert done.returncode == 7, done.stderr
    assert done.stdout.count("before this process was forked") == 3


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


@pytest.mark.parametrize("heap", ["1k", "999999g"])
def test_a_heap_that_java_cannot_have_is_one_sentence(imagej, heap):
    done = run(f"from fiji_bridge.imagej import session\nsession.start(heap={heap!r})")
    assert f"Java cannot start with heap={heap}" in done.stderr.strip().splitlines()[-1]


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
    java = session.find_java()
    done = run(
        "from fiji_bridge.imagej import session\nprint(session.start().version)",
        PATH=str(Path(java.home) / "bin"),
        **NO_NETWORK,
    )
    assert done.stdout.strip().startswith("1.54p"), done.stderr


def test_a_place_that_is_no_imagej_is_named_with_what_to_give(tmp_path):
    def refused(where):
        with pytest.raises(FijiBridgeError) as caught:
            session.start(where)
        return str(caught.value)

    assert "There is no folder" in refused(tmp_path / "missing")
    assert "is not the folder of a Fiji or an ImageJ" in refused(tmp_path)
    (tmp_path / "Fiji.app").mkdir()
    assert f"give {tmp_path / 'Fiji.app'}" in refused(tmp_path)
    assert "neither a folder, nor a version such as 2.17.0, nor a Maven endpoint" in refused("latest")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="no folder is unreadable to this user")
def test_a_folder_that_cannot_be_read_is_said_so(tmp_path):
    tmp_path.chmod(0)
    try:
        with pytest.raises(FijiBridgeError, match="cannot be read"):
            session.start(tmp_path)
    finally:
        tmp_path.chmod(0o700)


def test_an_endpoint_without_network_says_to_connect():
    if importlib.util.find_spec("imagej") is None:
        pytest.skip("pyimagej is not installed")
    done = run("from fiji_bridge.imagej import start\nstart('9.9.9')", **NO_NETWORK)
    last = done.stderr.strip().splitlines()[-1]
    assert "net.imagej:imagej:9.9.9 could not be fetched" in last and "connect this machine" in last


def test_without_pyimagej_one_sentence_says_what_to_install():
    script = "import importlib.util\nfound = importlib.util.find_spec\n"
    script += "importlib.util.find_spec = lambda name: None if name == 'imagej' else found(name)\n"
    done = run(script + "from fiji_bridge.imagej import start\nstart('2.17.0')")
    assert 'pyimagej is needed: pip install "fiji-bridge[fiji]"' in done.stderr.strip().splitlines()[-1]


def test_windows_without_a_display_are_refused():
    done = run("from fiji_bridge.imagej import start\nstart(mode='gui')", DISPLAY="")
    if sys.platform == "linux":
        assert "mode=gui needs a display" in done.stderr.strip().splitlines()[-1]


def test_the_folder_of_a_plain_imagej_brings_its_jar_and_its_plugins(imagej, tmp_path):
    shutil.copy(session.imagej_cached(), tmp_path / "ij.jar")
    (tmp_path / "plugins").mkdir()
    with zipfile.ZipFile(tmp_path / "plugins" / "Our_Lab.jar", "w") as jar:
        jar.writestr("plugins.config", 'Plugins>Our Lab, "Copy it", ij.plugin.Duplicator\n')
        jar.writestr(f"{REMOVED_CLASS}.class", _provider_class())
    script = "import sys\nimport numpy as np\nfrom fiji_bridge.imagej import start\nij = start(sys.argv[1])\n"
    script += "from jpype import JClass\nprint(JClass('ij.IJ').class_.getResource('/IJ_Props.txt'))\n"
    script += (
        f"print(JClass('ij.IJ').getClassLoader().loadClass('{REMOVED_CLASS.replace('/', '.')}').getName())\n"
    )
    script += "print(ij.run('Copy it', ij.to_imagej(np.zeros((2, 3), 'uint8')), title='copied').getTitle())"
    done = run(script, str(tmp_path))
    jar, loaded, title = done.stdout.split()
    assert f"{tmp_path.name}/ij.jar!" in jar and title == "copied", done.stderr
    assert loaded == REMOVED_CLASS.replace("/", ".")


def test_arguments_reach_a_macro_and_its_own_words_come_back(imagej):
    assert imagej.run_macro("return getArgument();", name="two words", ticked=True, off=False, sigma=1.5) == (
        "ticked name=[two words] sigma=1.5"
    )
    assert imagej.run_macro("x = 1;") is None
    assert imagej.run_macro('print("seen"); exit;') is None


@pytest.mark.parametrize(
    ("line", "given"),
    [
        ('#@ String (label="Name (of the dye)", value="a647") a', "a647"),
        ('#@ Integer (label="n", value=5, min=1) a', "5"),
        ("#@ Integer a (value=3.0)", "3"),
        ("#@ Double (value=1e-3) a", "0.001"),
    ],
)
def test_script_parameters_are_written_in_scijava_s_ways(imagej, line, given):
    assert imagej.run_macro(line + '\n#@output String b\nb = "" + a;') == {"b": given}


def test_a_default_that_is_no_number_is_named(imagej):
    with pytest.raises(FijiBridgeError, match="a is a integer"):
        imagej.run_macro("#@ Integer a (value=abc)\nreturn a;")


def test_particles_are_analyzed_without_a_window(imagej):
    macro = 'newImage("q", "8-bit black", 30, 30, 1); setThreshold(0, 255);'
    macro += 'run("Analyze Particles...", "size=0-Infinity display"); return "" + nResults;'
    assert imagej.run_macro(macro) == "1"
    imagej.close()


def test_an_image_closed_by_a_macro_that_fails_stays_closed(imagej):
    imagej.close()
    for title in "ab":
        imagej.to_imagej(np.zeros((4, 5), "uint8"), title).show()
    with pytest.raises(FijiBridgeError, match="oops"):
        imagej.run_macro('selectImage("b"); close(); exit("oops");')
    assert imagej.run_macro('return "" + nImages + getTitle();') == "1a"
    imagej.close()


def test_imagej_starts_after_pyimagej_was_imported(imagej):
    if importlib.util.find_spec("imagej") is None:
        pytest.skip("pyimagej is not installed")
    done = run("import imagej\nfrom fiji_bridge.imagej import session\nprint(session.start().version)")
    assert done.returncode == 0, done.stderr


def test_script_parameters_come_in_and_go_out_by_name(imagej):
    code = """#@ String greeting (value="hello")
#@ File path
#@ int times
#@ boolean loud
#@output String said
#@output int doubled
#@output boolean was_loud
#@output double never
function twice(x) { return 2 * x; }
said = greeting + " " + path;
doubled = twice(times);
was_loud = loud;
"""
    assert imagej.run_macro(code, path=r"C:\a \"b\"\\", times=np.int64(4), loud=True) == {
        "said": r"hello C:\a \"b\"\\",
        "doubled": 8,
        "was_loud": True,
        "never": None,
    }
    with pytest.raises(FijiBridgeError, match="has no input 'tines'; did you mean times"):
        imagej.run_macro(code, tines=3)
    with pytest.raises(FijiBridgeError, match="input path has no value"):
        imagej.run_macro(code, times=3, loud=False)
    with pytest.raises(FijiBridgeError, match="times is a int, which 'four' is not"):
        imagej.run_macro(code, path="x", times="four", loud=False)
    with pytest.raises(FijiBridgeError, match="has the type Dataset; macros hold"):
        imagej.run_macro("#@ Dataset image\n")
    with pytest.raises(FijiBridgeError, match="failed in line 2: Undefined identifier"):
        imagej.run_macro("#@ int n\nfail(n);", n=3)


FAILURES = [
    ("x = 1;\ny = foo(3);", "line 2: Undefined identifier .*foo"),
    ('x = 1;\na = "b" + ;', "line 2: Number or numeric function expected"),
    ("getWidth();", "line 1: There are no images open"),
    ('\n\nrun("Gausian Blur...");', "line 3: Unrecognized command"),
    ('run("Analyze Particles...", "");', "line 1: There are no images open"),
    ('open("/no/such/file.tif");\nreturn "after";', "line 1: File not found: /no/such/file.tif"),
    ('exit("wrong dye");', "line 1: wrong dye"),
    ('call("java.lang.Integer.parseInt", "x");', "line 1: NumberFormatException: .*x"),
    ('newImage("a", "8-bit", 9, 9, 1);\nrun("Threshold...");\nreturn "after";', "line 2: it needs a window"),
    ('runMacro("/no/such/macro.ijm");\nreturn "after";', "line 1: Macro or script not found"),
]
"""Macros that fail, each in another of the ways in which ImageJ reports it, and what is said."""


@pytest.mark.parametrize(("code", "says"), FAILURES)
def test_a_macro_that_fails_says_what_and_where(imagej, code, says, capfd):
    imagej.close()
    with pytest.raises(FijiBridgeError, match=f"The macro failed in {says}"):
        imagej.run_macro(code)
    assert capfd.readouterr() == ("", "")  # said once
    assert imagej.run_macro('newImage("next", "8-bit", 9, 9, 1); return getTitle();') == "next"


def test_images_outlive_a_macro_that_fails_and_not_a_close(imagej):
    imagej.close()
    imagej.to_imagej(np.zeros((4, 5), "uint8"), "kept").show()
    with pytest.raises(FijiBridgeError):
        imagej.run_macro("foo(3);")
    assert imagej.run_macro("return getTitle();") == "kept"
    imagej.close()
    assert imagej.run_macro('return "" + nImages;') == "0"


@pytest.mark.skipif(os.name == "nt", reason="sends a POSIX signal")
@pytest.mark.parametrize("code", ["for (;;) wait(5);", "wait(30000);"])
def test_ctrl_c_stops_a_macro(imagej, code):
    import threading

    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    before, began = signal.signal(signal.SIGINT, signal.default_int_handler), time.time()
    try:
        with pytest.raises(KeyboardInterrupt):
            imagej.run_macro(code)
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.time() - began < 10
    assert imagej.run_macro('return "fine";') == "fine"


def test_a_command_works_on_the_image_given_and_gives_the_one_it_opens(imagej):
    rng = np.random.default_rng(1)
    image = imagej.to_imagej(rng.normal(100, 10, (3, 64, 64)).astype("float32"))
    assert imagej.run("Gaussian Blur...", image, sigma=3, stack=True) is None
    assert imagej.to_python(image).std() < 3
    made = imagej.run("Z Project...", image, projection="Max Intensity")
    np.testing.assert_array_equal(imagej.to_python(made), imagej.to_python(image).max("t"))


def test_threads_get_their_own_images(imagej):
    def copied(number):
        own = imagej.to_imagej(np.full((4, 4), number, np.uint8), f"own {number}")
        return str(imagej.run("Duplicate...", own, title=f"copy {number}").getTitle())

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(copied, range(36))) == [f"copy {number}" for number in range(36)]
    imagej.close()


def test_a_command_asks_for_an_image_of_imagejs(imagej):
    with pytest.raises(FijiBridgeError, match="to_imagej"):
        imagej.run("Invert", np.zeros((4, 4)))


def test_options_of_zero_are_values_and_false_is_none(imagej):
    given = {
        "first": 0,
        "second": 0.0,
        "third": np.int64(0),
        "ticked": np.True_,
        "no": False,
        "nor": np.False_,
        "none": None,
    }
    assert imagej.run_macro("return getArgument();", **given) == "ticked first=0 second=0.0 third=0"


def test_a_command_that_does_not_exist_or_complains_says_so(imagej):
    with pytest.raises(FijiBridgeError, match=r"no command 'Gausian Blur...'; did you mean 'Gaussian"):
        imagej.run("Gausian Blur...", sigma=2)
    with pytest.raises(FijiBridgeError, match=r"no command 'Blind-spot denoisse'; .*'Blind-spot denoise'"):
        imagej.run("Blind-spot denoisse")
    with pytest.raises(FijiBridgeError, match=r"'Make Montage...' failed: Stack required"):
        imagej.run("Make Montage...", imagej.to_imagej(np.zeros((4, 4), "uint8")))


HARD_VALUES = [
    "plain", "two words", "", " led and trailed ", "[bracketed]", "a]b", "a[b", "one ]two", "[[two] words]",
    "it's", "'quoted'", '"quoted"', 'say "x" y', "C:\\dir\\", "C:\\my dir\\", "\\\\server\\x", "sigma=2",
    "a sigma=2 b", "tab\there", "line\nbreak", "μm é 顕微鏡",
]  # fmt: skip


@pytest.mark.parametrize("value", HARD_VALUES)
def test_imagejs_own_reader_finds_each_value_in_the_options_as_it_was_given(imagej, value):
    from jpype import JClass

    from fiji_bridge.imagej.calls import options_string

    Macro = JClass("ij.Macro")
    given = {"path": value, "sigma": 7.25, "my_sigma": 3, "no": False, "flag": True, "file": Path("a b")}
    for options in (given, dict(reversed(given.items()))):
        # Through a macro's string and a command's thread, to where plugins read it.
        with session.macro_options(options_string(options)):
            told = str(Macro.getOptions())
        expected = {"path": value, "sigma": "7.25", "my_sigma": "3", "file": "a b"}
        assert {key: str(Macro.getValue(told, key, "missing")) for key in expected} == expected
        with session.macro_options(options_string(options)):
            dialog = JClass("ij.gui.GenericDialog")("")
            dialog.addCheckbox("flag", False)
            dialog.addCheckbox("no", False)
            assert (dialog.getNextBoolean(), dialog.getNextBoolean()) == (True, False)
    title = value or "untitled"
    image = imagej.to_imagej(np.zeros((4, 4), "uint8"))
    assert str(imagej.run("Duplicate...", image, title=title).getTitle()) == title


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"path": "it's ]here"}, "brackets that do not match, and an apostrophe"),
        ({"a": "b=1", "b": "a=1"}, "take a part of one option for another"),
        ({"two words": 1}, "cannot name an option"),
        ({"sizes": [1, 2]}, "takes text, a number, a path or True"),
    ],
)
def test_options_that_imagej_could_not_read_back_are_refused(options, says):
    from fiji_bridge.imagej.calls import options_string

    with pytest.raises(FijiBridgeError, match=says):
        options_string(options)


def test_an_image_is_opened_or_the_file_is_named(imagej, tmp_path):
    import tifffile

    pixels = np.arange(60, dtype="uint16").reshape(3, 4, 5)
    tifffile.imwrite(tmp_path / "a b.tif", pixels, imagej=True, metadata={"axes": "TYX"})
    np.testing.assert_array_equal(imagej.to_python(imagej.open(tmp_path / "a b.tif")), pixels)
    (tmp_path / "text.tif").write_text("no image")
    with pytest.raises(FijiBridgeError, match=r"ImageJ cannot open .*text.tif: Unsupported format"):
        imagej.open(tmp_path / "text.tif")
    with pytest.raises(FijiBridgeError, match="There is no file"):
        imagej.open(tmp_path / "missing.tif")


ALL_OF_IT = f"""
import sys
from fiji_bridge.imagej import start
from fiji_bridge.errors import FijiBridgeError
import numpy as np, re
where, mode = sys.argv[1] or None, sys.argv[2]
ij = start(where, mode=mode)
assert start() is ij
for code, says in {FAILURES!r}:
    if mode != "headless" and "Threshold" in code:
        continue
    ij.close()
    try:
        said = "returned " + repr(ij.run_macro(code))
    except FijiBridgeError as error:
        said = str(error)
    assert re.search(says, said), (code, said)
image = ij.to_imagej(np.random.default_rng(1).normal(100, 10, (64, 64)).astype("float32"))
ij.run("Gaussian Blur...", image, sigma=3)
assert ij.to_python(image).std() < 3
assert ij.run_macro("#@ int n\\n#@output int m\\nm = n + 1;", n=2) == {{"m": 3}}
print(ij.version, ij.gateway is not None)
""".replace("\\\\n", "\\n")
"""Calls in a session of their own: a folder of ImageJ (or none) and the mode are the arguments."""


def test_calls_are_the_same_with_pyimagej(fiji):
    done = run(ALL_OF_IT, fiji, "headless")
    assert done.stdout.split()[-1] == "True", done.stderr


@pytest.fixture
def display():
    """A display of our own."""
    if shutil.which("Xvfb") is None:
        pytest.skip("Xvfb is not installed")
    out, number = os.pipe()
    command = ["Xvfb", "-displayfd", str(number)]
    server = subprocess.Popen(command, pass_fds=[number], stderr=subprocess.DEVNULL)
    os.close(number)
    with os.fdopen(out) as told:
        yield f":{told.readline().strip()}"
    server.terminate()
    server.wait()


@pytest.mark.parametrize("mode", ["gui", "interactive"])
def test_no_dialog_of_an_error_waits_for_anybody(imagej, display, mode):
    done = run(ALL_OF_IT, "", mode, DISPLAY=display)
    assert done.stdout.split()[-1] == "False", done.stderr


SLOW_TO_WAIT = """
import time
from jpype import JClass, JProxy
late = {"modalityPushed": lambda event: time.sleep(0.3), "modalityPopped": lambda event: None}
JClass("java.awt.Toolkit").getDefaultToolkit().addModalityListener(JProxy("sun.awt.ModalityListener", late))
"""
"""Java calls such a listener after a dialog has opened and before its thread can be told of its closing."""


def test_a_dialog_may_open_before_its_thread_waits(imagej, display):
    script = ALL_OF_IT.replace("for code", SLOW_TO_WAIT + "for code")
    seen = "--add-exports=java.desktop/sun.awt=ALL-UNNAMED"
    done = run(script, "", "interactive", DISPLAY=display, JAVA_TOOL_OPTIONS=seen)
    assert done.stdout.split()[-1] == "False", done.stderr


@pytest.mark.parametrize("mode", ["gui", "interactive"])
def test_nor_with_pyimagej(fiji, display, mode):
    done = run(ALL_OF_IT, fiji, mode, DISPLAY=display)
    assert done.stdout.split()[-1] == "True", done.stderr
