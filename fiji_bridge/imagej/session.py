"""Start ImageJ inside this process: the embedded ImageJ 1.x, a Fiji folder, or an ImageJ2 by its version.

The embedded one is two jars from Maven Central, fetched once, without `mvn`; no network is used after. The
others come through pyimagej. Either way there is one `ImageJ` object, and one in a process.
"""

import atexit
import faulthandler
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs
from filelock import FileLock

from fiji_bridge.errors import FijiBridgeError

if TYPE_CHECKING:
    import xarray as xr

IMAGEJ = "net.imagej:ij:1.54p"
PATCHER = "net.imagej:ij1-patcher:2.0.0"
"""Makes ImageJ 1.x run headless: dialogs take their values from the macro options."""

MODES = ("headless", "gui", "interactive")

MINIMUM_JAVA = 11
INSTALL_JAVA = f"install Java {MINIMUM_JAVA} or newer (OpenJDK will do) or set JAVA_HOME to one"
INSTALL_PYIMAGEJ = 'pip install "fiji-bridge[fiji]"'

_lock = threading.RLock()
_session: "ImageJ | None" = None


@dataclass(frozen=True)
class Java:
    """A Java installation: its folder and its version as it names itself."""

    home: Path
    version: str

    @property
    def major(self) -> int:
        """The number people mean by "Java 17"; releases before 9 called themselves 1.8 and so on."""
        parts = [int(part) for part in re.findall(r"\d+", self.version)[:2]]
        return parts[1] if parts[0] == 1 else parts[0]

    @property
    def recent_enough(self) -> bool:
        """Whether ImageJ can be started with it."""
        return self.major >= MINIMUM_JAVA


@dataclass(frozen=True, eq=False)
class ImageJ:
    """The ImageJ of this process.

    Attributes
    ----------
    version
        As ImageJ names itself, such as "1.54p".
    java
        Java's version.
    where
        What `start` was given: None for the embedded ImageJ 1.x, a folder, or a Maven endpoint.
    mode
        "headless", "gui" or "interactive".
    heap
        The most memory that Java may take, such as "4g"; None when that was left to Java.
    plugins
        The folder whose `plugins` ImageJ loaded.
    pid
        The process it runs in.
    gateway
        pyimagej's `ij`; None when embedded.
    """

    version: str
    java: str
    where: str | None
    mode: str
    heap: str | None
    plugins: Path
    pid: int
    gateway: Any = None

    def _check_process(self) -> None:
        if self.pid != os.getpid():
            raise FijiBridgeError(
                "ImageJ was started before this process was forked and cannot be used here; start worker "
                "processes with the 'spawn' method, or fork before using ImageJ."
            )

    def run_macro(self, code: str, **args: Any) -> Any:
        """Run a macro.

        Parameters
        ----------
        code
            Text of an ImageJ macro.
        **args
            Reach the macro as the option string that its ``getArgument()`` gives, written as for `run`.
            Where the macro has script parameters (lines that begin with ``#@``), they are its inputs.

        Returns
        -------
        str or None or dict
            What the macro returns with ``return``, None when it does not; the outputs by name of a macro
            with script parameters.

        Raises
        ------
        FijiBridgeError
            With ImageJ's message and the line, if the macro cannot be understood, stops with an error or
            with ``exit("…")``, or a plugin in it throws; if a script parameter has no value, or another
            type than text, numbers and boolean.
        """
        from fiji_bridge.imagej import calls

        self._check_process()
        return calls.run_macro(code, args)

    def run(self, command: str, image: Any = None, **options: Any) -> Any:
        """Run a command of ImageJ's menus.

        Parameters
        ----------
        command
            Its name as the recorder writes it, such as "Gaussian Blur...".
        image
            The ImagePlus to work on; the current image when left out.
        **options
            By the keys that the recorder writes: text and paths (quoted as ImageJ needs it), numbers, and
            True for a ticked box; False and None are left out.

        Returns
        -------
        ij.ImagePlus or None
            The image that the command opened, the last one when it opened several.

        Raises
        ------
        FijiBridgeError
            If there is no such command, ImageJ complains, a plugin throws, or an option has a value that
            ImageJ's option strings cannot hold.
        """
        from fiji_bridge.imagej import calls

        self._check_process()
        return calls.run(command, image, options)

    def open(self, path: str | os.PathLike[str]) -> Any:
        """Open an image as ImageJ does.

        Returns
        -------
        ij.ImagePlus
            Not shown; its `show()` makes it the current image.

        Raises
        ------
        FijiBridgeError
            If there is no such file, or ImageJ cannot open it.
        """
        from fiji_bridge.imagej import calls

        self._check_process()
        return calls.open_image(path)

    def to_python(self, image: Any) -> "xr.DataArray":
        """Give an image of ImageJ's as a labelled array; see `fiji_bridge.imagej.convert.to_python`."""
        from fiji_bridge.imagej import convert

        self._check_process()
        return convert.to_python(image)

    def to_imagej(self, array: Any, title: str | None = None) -> Any:
        """Give an array as an image of ImageJ's; see `fiji_bridge.imagej.convert.to_imagej`."""
        from fiji_bridge.imagej import convert

        self._check_process()
        return convert.to_imagej(array, title)

    def close(self) -> None:
        """Close all images without asking to save them; Java goes on, as it cannot be started twice."""
        from fiji_bridge.imagej import calls

        self._check_process()
        calls.close_images()


@lru_cache
def find_java() -> Java | None:
    """Find a Java without starting it in this process.

    Returns
    -------
    Java or None
        The first of `JAVA_HOME`, the search path and the usual places that is recent enough; else the first
        that is too old; None when there is none.
    """
    too_old = None
    for home in _java_homes():
        java = _java_at(home)
        if java is not None and java.recent_enough:
            return java
        too_old = too_old or java
    return too_old


def _java_homes() -> Iterator[Path]:
    if home := os.environ.get("JAVA_HOME"):
        yield Path(home)
    if executable := shutil.which("java"):
        yield Path(executable).resolve().parent.parent
    try:
        from jpype import getDefaultJVMPath

        library = Path(getDefaultJVMPath())
    except Exception:
        return
    yield from list(library.parents)[:4]


def _java_at(home: Path) -> Java | None:
    executable = home / "bin" / ("java.exe" if os.name == "nt" else "java")
    if not executable.is_file():
        return None
    try:
        said = subprocess.run(
            [executable, "-version"], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    version = re.search(r'version "(\d[^"]*)"', said.stderr + said.stdout)
    return Java(home, version.group(1)) if version else None


def imagej_cached() -> Path | None:
    """Find the ImageJ jar that an earlier `start` fetched; None when the next one has to fetch it."""
    group, name, version = IMAGEJ.split(":")
    jar = (
        Path.home()
        / ".m2"
        / "repository"
        / Path(*group.split("."))
        / name
        / version
        / f"{name}-{version}.jar"
    )
    return jar if jar.is_file() else None


def start(
    where: str | os.PathLike[str] | None = None,
    mode: str = "headless",
    heap: str | None = None,
    plugins: str | os.PathLike[str] | None = None,
) -> ImageJ:
    """Start ImageJ in this process, or give the one that runs already.

    A process has one Java virtual machine for its whole life, and it must not be forked after this. The
    process ends by itself and with its own exit status, although ImageJ leaves threads behind.

    Parameters
    ----------
    where
        The folder of a Fiji or an ImageJ; a version of ImageJ2 such as ``"2.17.0"``; a Maven endpoint such as
        ``"net.imagej:imagej:2.17.0"`` or ``"sc.fiji:fiji"``. All but an ImageJ 1.x folder need pyimagej. The
        embedded ImageJ 1.x, fetched from Maven Central, when left out.
    mode
        "headless"; "interactive": with a display but no main window until one is asked for; "gui": with
        ImageJ's main window, and unlike pyimagej's `gui` this does not wait until it is closed.
    heap
        The most memory that Java may take, such as ``"4g"``; Java's own choice when left out.
    plugins
        Folder whose `plugins` ImageJ loads; that of `where` when left out, else an empty one of ours.

    Returns
    -------
    ImageJ
        What runs. When ImageJ runs already, an argument left at its default asks for nothing.

    Raises
    ------
    FijiBridgeError
        If there is no Java, or it is too old; if `where` is no Fiji or ImageJ, or cannot be fetched; if
        pyimagej or a display is missing; if ImageJ runs with other settings, or in the process that this one
        was forked from.
    """
    global _session
    if mode not in MODES:
        raise FijiBridgeError(f"mode must be {', '.join(MODES[:-1])} or {MODES[-1]}, not {mode!r}.")
    if heap is not None and not re.fullmatch(r"[1-9]\d*[kmgKMG]", heap):
        raise FijiBridgeError(f"heap must be a size such as 500m or 4g, not {heap!r}.")
    wanted = _Wanted.read(where, mode, heap, plugins)
    with _lock:
        if _session is None:
            _session = _start(wanted)
        _check_settings(_session, wanted)
        return _session


@dataclass(frozen=True)
class _Wanted:
    """Where to start ImageJ from, and how."""

    where: str | None
    """A folder or an endpoint."""
    jar: Path | None
    """ImageJ's own, where `where` is the folder of an ImageJ 1.x."""
    mode: str
    heap: str | None
    plugins: Path | None

    @classmethod
    def read(
        cls, where: str | os.PathLike[str] | None, mode: str, heap: str | None, plugins: Any
    ) -> "_Wanted":
        folder = Path(plugins).expanduser().absolute() if plugins else None
        if folder is not None and not folder.is_dir():
            raise FijiBridgeError(
                f"There is no folder {folder}; plugins= takes the one whose `plugins` to load."
            )
        if where is None:
            return cls(None, None, mode, heap, folder)
        said = os.fspath(where)
        if not _is_folder(said):
            return cls(_endpoint(said), None, mode, heap, folder)
        place = Path(said).expanduser().absolute()
        jar = check_folder(place)
        if jar is None and folder not in (None, place):
            raise FijiBridgeError(
                f"{place} brings plugins of its own, so plugins={folder} cannot be given; put them in there."
            )
        return cls(str(place), jar, mode, heap, folder or place)


def _is_folder(where: str) -> bool:
    return Path(where).exists() or where.startswith(("~", ".")) or "/" in where or "\\" in where


def _endpoint(where: str) -> str:
    if re.fullmatch(r"\d+\.\d+(\.\d+)?(-\w+)*", where):
        return f"net.imagej:imagej:{where}"
    if re.fullmatch(r"[\w.-]+(:[\w.-]+){1,4}(\+[\w.-]+(:[\w.-]+){1,4})*", where):
        return where
    raise FijiBridgeError(
        f"where={where!r} is neither a folder, nor a version such as 2.17.0, nor a Maven endpoint such as "
        "net.imagej:imagej:2.17.0."
    )


def check_folder(folder: Path) -> Path | None:
    """Give the jar of an ImageJ 1.x folder, None for an ImageJ2 or Fiji; complain about any other."""
    try:
        if not folder.is_dir():
            raise FijiBridgeError(f"There is no folder {folder}; give that of a Fiji or an ImageJ.")
        names = sorted(path.name for path in folder.iterdir())
        jars = sorted((folder / "jars").iterdir()) if (folder / "jars").is_dir() else []
    except OSError as error:
        raise FijiBridgeError(
            f"The folder {folder} cannot be read ({error.strerror}); give that of a Fiji or an ImageJ."
        ) from error
    core = [jar for jar in jars if re.fullmatch(r"ij-\d.*\.jar", jar.name)]
    if "plugins" in names and core and any(jar.name.startswith("imagej-legacy") for jar in jars):
        return None
    if "plugins" in names and ("ij.jar" in names or core):
        return folder / "ij.jar" if "ij.jar" in names else core[-1]
    inside = next((name for name in ("Fiji.app", "Fiji", "ImageJ.app", "ImageJ") if name in names), None)
    hint = f"give {folder / inside}" if inside else "give the folder that has plugins and jars in it"
    raise FijiBridgeError(f"{folder} is not the folder of a Fiji or an ImageJ; {hint}.")


def _check_settings(session: ImageJ, wanted: _Wanted) -> None:
    session._check_process()
    asked = {"where": wanted.where, "heap": wanted.heap, "plugins": wanted.plugins}
    if wanted.mode != MODES[0]:
        asked["mode"] = wanted.mode
    running = {name: getattr(session, name) for name in ("where", "mode", "heap", "plugins")}
    if any(value not in (None, running[name]) for name, value in asked.items()):
        settings = ", ".join(f"{name}={value}" for name, value in running.items())
        raise FijiBridgeError(
            f"ImageJ already runs in this process with {settings}; use a new process for other settings, as "
            "a Java virtual machine cannot be restarted."
        )


def _start(wanted: _Wanted) -> ImageJ:
    import jpype

    embedded = wanted.where is None or wanted.jar is not None
    if jpype.isJVMStarted():
        raise FijiBridgeError(
            "Something else already started Java in this process; call fiji_bridge before it, or in a "
            "process of its own."
        )
    if not embedded and importlib.util.find_spec("imagej") is None:
        raise FijiBridgeError(f"To start {wanted.where}, pyimagej is needed: {INSTALL_PYIMAGEJ}.")
    if wanted.mode != "headless":
        _check_display(wanted.mode)
    java = find_java()
    if java is not None and not java.recent_enough:
        raise FijiBridgeError(
            f"The Java at {java.home} is version {java.version}, which is too old: {INSTALL_JAVA}."
        )
    import scyjava.config

    # Java makes segmentation faults on purpose and handles them. Python's fault handler (pytest has it on)
    # would put back the handler from before Java when it is disabled later, and the next one end the process.
    faulthandler.disable()
    before = list(scyjava.config.get_options())
    try:
        _configure(wanted, java)
        session = _start_embedded(wanted, java) if embedded else _start_pyimagej(wanted, java)
    except FijiBridgeError:
        scyjava.config.get_options()[:] = before  # another attempt has options of its own
        raise
    from fiji_bridge.imagej import calls, in_process

    if wanted.mode == "headless":
        calls.batch_mode()
    in_process.register(session)
    return session


def _check_display(mode: str) -> None:
    if sys.platform == "darwin":
        raise FijiBridgeError(
            f"mode={mode} does not work in a plain Python on macOS, whose windows need the main thread; use "
            "mode=headless."
        )
    if os.name != "nt" and not os.environ.get("DISPLAY"):
        raise FijiBridgeError(
            f"mode={mode} needs a display, and DISPLAY is not set; use mode=headless, or start Python under "
            "xvfb-run."
        )


def _configure(wanted: _Wanted, java: Java | None) -> None:
    """Tell scyjava which Java to start, and how."""
    import scyjava.config

    if java is not None:
        os.environ["JAVA_HOME"] = str(java.home)
    if os.environ.get("LC_ALL") in ("C", "POSIX"):  # in which Java finds no file with letters beyond ASCII
        os.environ["LC_ALL"] = "C.UTF-8"
    # fetch="auto" takes the Java that is there and downloads one only where there is none.
    scyjava.config.set_java_constraints(version=str(MINIMUM_JAVA), fetch="auto")
    options = [
        "-XX:+IgnoreUnrecognizedVMOptions",  # those for memory are not in every Java
        f"-Djava.awt.headless={str(wanted.mode == 'headless').lower()}",
        "-Dfile.encoding=UTF-8",
        "--add-opens=java.base/java.lang=ALL-UNNAMED",  # the patcher defines classes
        *([f"-Xmx{wanted.heap}"] if wanted.heap else []),
        *_memory_options(wanted.heap),
        *(["--enable-native-access=ALL-UNNAMED"] if java is not None and java.major >= 22 else []),
    ]
    if java is not None and wanted.heap:
        _check_heap(java, options, wanted.heap)
    scyjava.config.add_options(options)
    scyjava.config.add_kwargs(interrupt=False)  # otherwise Ctrl-C ends the process without Python knowing


def _check_heap(java: Java, options: list[str], heap: str) -> None:
    """Try the heap in a process of its own: a Java that cannot have it would end this one."""
    executable = java.home / "bin" / ("java.exe" if os.name == "nt" else "java")
    tried = subprocess.run([executable, *options, "-version"], capture_output=True, text=True)
    if tried.returncode != 0:
        lines = [line.strip(" #") for line in (tried.stdout + tried.stderr).splitlines()]
        said = next(filter(None, lines), "it gives no reason")
        raise FijiBridgeError(f"Java cannot start with heap={heap} ({said}); give another size.")


def _memory_options(heap: str | None) -> list[str]:
    """Make Java's memory fit for images: few large arrays that stay.

    Java's default (G1) takes up to twice the memory for an array of half a megabyte, and time to look after
    it: 1 GB of frames took 5 to 10 times a plain copy with it, and 1.1 to 1.4 times with these.
    """
    import scyjava.config

    given = " ".join([*scyjava.config.get_options(), os.environ.get("JAVA_TOOL_OPTIONS", "")])
    if "GC" in given:
        return []  # the user's own choice
    return [
        "-XX:+UseSerialGC",
        "-XX:PretenureSizeThreshold=65536",  # images are not copied by the collector
        f"-Xms{heap}" if heap else "-XX:InitialRAMPercentage=25",  # only reserved: taken as it is used
        *(["-XX:+UseTransparentHugePages"] if sys.platform == "linux" else []),
    ]


def _plugins(wanted: _Wanted) -> Path:
    """Tell ImageJ where its plugins are; else it would load whatever lies in the current folder's."""
    import scyjava.config

    plugins = wanted.plugins or (platformdirs.user_data_path("fiji_bridge") / "imagej").absolute()
    scyjava.config.add_option(f"-Dplugins.dir={plugins}")
    return plugins


def _start_embedded(wanted: _Wanted, java: Java | None) -> ImageJ:
    import scyjava
    import scyjava.config

    plugins = _plugins(wanted)
    # Maven Central has all we need; what was imported earlier may have added jars that are elsewhere.
    scyjava.config.get_repositories().clear()
    scyjava.config.endpoints[:] = [PATCHER] if wanted.jar else [IMAGEJ, PATCHER]
    _forget_pyimagej()
    if wanted.jar:
        scyjava.config.add_classpath(str(wanted.jar))
    with _fetching():
        try:
            scyjava.start_jvm()
        except Exception as error:
            raise _not_started(java, error) from error
        _settle()
        from jpype import JClass

        # Before any class of ImageJ is touched. It opens the jars anew, and so while no other process that
        # starts puts them in place again.
        JClass("net.imagej.patcher.LegacyInjector").preinit()
    if wanted.mode == "headless":
        JClass("ij.IJ").runPlugIn("ij.IJ.init", "")
    else:
        Window = JClass("ij.ImageJ")
        window = Window() if wanted.mode == "gui" else Window(Window.NO_SHOW)
        window.exitWhenQuitting(False)  # closing it must not end Python
    _load_classes(_jars(plugins / "plugins"))  # the patched ImageJ lists plugins, but has not their classes
    return _running(wanted, plugins, None)


def _forget_pyimagej() -> None:
    """Take out what importing pyimagej asked to run when Java starts; it needs ImageJ2's jars."""
    import scyjava._jvm

    callbacks = scyjava._jvm._startup_callbacks
    callbacks[:] = [
        each for each in callbacks if each.__module__.partition(".")[0] not in ("imglyb", "imagej")
    ]


def _start_pyimagej(wanted: _Wanted, java: Java | None) -> ImageJ:
    import imagej
    import jpype
    import scyjava.config

    assert wanted.where is not None
    plugins = _plugins(wanted)
    # Importing imglyb added an endpoint that is not on Maven Central, and folders have all they need.
    scyjava.config.endpoints.clear()
    mode = "headless" if wanted.mode == "headless" else "interactive"
    try:
        with _fetching():
            gateway = imagej.init(wanted.where, mode=mode)
        if not gateway or not gateway.legacy:
            raise RuntimeError("there is no ImageJ 1.x in it: imagej-legacy is missing")
    except Exception as error:
        if jpype.isJVMStarted():
            _settle()
        raise _not_started(java, error, wanted.where) from error
    _settle()
    if wanted.mode == "gui":
        gateway.ui().showUI()
    return _running(wanted, plugins, gateway)


def _fetching() -> FileLock:
    """Let one process at a time fetch jars: another would start with half of them."""
    folder = platformdirs.user_cache_path("fiji_bridge")
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / "fetching.lock")


def _settle() -> None:
    """Make the process that Java now runs in behave as a Python process does."""
    import jpype

    _take_signals_back()
    # Waiting for Java's threads would hang the exit: ImageJ's pools never end.
    jpype.config.destroy_jvm = False
    atexit.register(_let_go)


def _running(wanted: _Wanted, plugins: Path, gateway: Any) -> ImageJ:
    from jpype import JClass

    java = str(JClass("java.lang.System").getProperty("java.version"))
    version = str(JClass("ij.IJ").getVersion())
    return ImageJ(version, java, wanted.where, wanted.mode, wanted.heap, plugins, os.getpid(), gateway)


def _take_signals_back() -> None:
    # Java took over Ctrl-C and its like; Python's way of handling them has to be installed anew.
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and (handler := signal.getsignal(number)) is not None:
                signal.signal(number, handler)


def _let_go() -> None:
    # This thread of JPype's calls into Python; doing so while Python goes down would abort the process.
    from jpype import JClass

    JClass("org.jpype.ref.JPypeReferenceQueue").getInstance().stop()


def _not_started(java: Java | None, error: Exception, where: str | None = None) -> FijiBridgeError:
    reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    if java is None:
        return FijiBridgeError(f"No Java was found and none could be downloaded ({reason}); {INSTALL_JAVA}.")
    if where is not None and isinstance(error, OSError) and not Path(where).is_dir():
        return FijiBridgeError(
            f"{where} could not be fetched ({reason}); connect this machine to the network, or name the "
            "folder of a Fiji."
        )
    if where is not None:
        return FijiBridgeError(f"{where} could not be started with Java {java.version} ({reason}).")
    if imagej_cached() is None:
        return FijiBridgeError(
            f"ImageJ ({IMAGEJ}) could not be fetched from Maven Central ({reason}); connect this "
            "machine to the network once."
        )
    return FijiBridgeError(f"Java {java.version} at {java.home} could not be started ({reason}).")


@contextmanager
def macro_options(options: str) -> Iterator[None]:
    """Make `ij.Macro.getOptions()` answer `options` on this thread, as inside ``run("…", "options")``."""
    from jpype import JClass

    Macro, thread = JClass("ij.Macro"), JClass("java.lang.Thread").currentThread()
    name, before = thread.getName(), None
    thread.setName("Run$_fiji_bridge")  # ImageJ gives options only to threads whose name begins like this
    try:
        before = Macro.getOptions()
        Macro.setOptions(options)
        yield
    finally:
        Macro.setOptions(before)
        thread.setName(name)


def load_plugin(jar: Path) -> Any:
    """Load a plugin's jar beside those that ImageJ has, and give the class loader for its classes."""
    return _load_classes([jar])


def _jars(folder: Path) -> list[Path]:
    """Give what ImageJ takes classes from: the folder itself and the jars in it and below."""
    return [folder, *sorted(folder.rglob("*.jar"))] if folder.is_dir() else []


def _load_classes(places: list[Path]) -> Any:
    from jpype import JArray, JClass

    IJ, URL = JClass("ij.IJ"), JClass("java.net.URL")
    urls = [URL(place.as_uri() + ("/" if place.is_dir() else "")) for place in places]
    loader = JClass("java.net.URLClassLoader")(JArray(URL)(urls), IJ.getClassLoader())
    # The patcher's field: ImageJ's own methods only set it while an ImageJ2 stands behind.
    field = IJ.class_.getDeclaredField("_classLoader")
    field.setAccessible(True)
    field.set(None, loader)
    return loader
