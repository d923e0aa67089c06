"""Start ImageJ 1.x inside this process, without a display and without Fiji.

Two jars from Maven Central are all it takes; they are fetched once, without `mvn`, and no network is used
after.
"""

import atexit
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import platformdirs

from fiji_bridge.errors import FijiBridgeError

IMAGEJ = "net.imagej:ij:1.54p"
PATCHER = "net.imagej:ij1-patcher:1.2.6"
"""Makes ImageJ 1.x run headless: dialogs take their values from the macro options."""

MINIMUM_JAVA = 11
INSTALL_JAVA = f"install Java {MINIMUM_JAVA} or newer (OpenJDK will do) or set JAVA_HOME to one"

_lock = threading.RLock()
_session: "Session | None" = None


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


@dataclass(frozen=True)
class Session:
    """The ImageJ of this process."""

    imagej: str
    java: str
    heap: str | None
    plugins: Path
    pid: int


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


def start(*, heap: str | None = None, plugins: str | os.PathLike[str] | None = None) -> Session:
    """Start ImageJ in this process, or give the one that runs already.

    A process has one Java virtual machine for its whole life, and it must not be forked after this. The
    process ends by itself and with its own exit status, although ImageJ leaves threads behind.

    Parameters
    ----------
    heap
        The most memory that Java may take, such as ``"4g"``; Java's own choice when left out.
    plugins
        Folder whose `plugins` ImageJ loads, such as a Fiji folder; an empty one of ours when left out.

    Returns
    -------
    Session
        What runs: versions and settings.

    Raises
    ------
    FijiBridgeError
        If there is no Java, or it is too old, or ImageJ cannot be fetched; if ImageJ runs with other
        settings, or in the process that this one was forked from.
    """
    global _session
    if heap is not None and not re.fullmatch(r"[1-9]\d*[kmgKMG]", heap):
        raise FijiBridgeError(f"heap must be a size such as 500m or 4g, not {heap!r}.")
    with _lock:
        if _session is None:
            # Told nothing, ImageJ would load whatever lies in the current folder's plugins.
            own = platformdirs.user_data_path("fiji_bridge") / "imagej"
            _session = _start(heap, Path(plugins or own).absolute())
        _check_settings(_session, heap, plugins)
        return _session


def _check_settings(session: Session, heap: str | None, plugins: str | os.PathLike[str] | None) -> None:
    if session.pid != os.getpid():
        raise FijiBridgeError(
            "ImageJ was started before this process was forked and cannot be used here; start worker "
            "processes with the 'spawn' method, or fork before using ImageJ."
        )
    running = (session.heap, session.plugins)
    if (heap or session.heap, Path(plugins).absolute() if plugins else session.plugins) != running:
        raise FijiBridgeError(
            f"ImageJ already runs in this process with heap={session.heap} and plugins={session.plugins}; "
            "use a new process for other settings, as a Java virtual machine cannot be restarted."
        )


def _start(heap: str | None, plugins: Path) -> Session:
    import jpype

    if jpype.isJVMStarted():
        raise FijiBridgeError(
            "Something else already started Java in this process; call fiji_bridge before it, or in a "
            "process of its own."
        )
    java = find_java()
    if java is not None and not java.recent_enough:
        raise FijiBridgeError(
            f"The Java at {java.home} is version {java.version}, which is too old: {INSTALL_JAVA}."
        )
    import scyjava
    import scyjava.config

    if java is not None:
        os.environ["JAVA_HOME"] = str(java.home)
    # fetch="auto" takes the Java that is there and downloads one only where there is none.
    scyjava.config.set_java_constraints(version=str(MINIMUM_JAVA), fetch="auto")
    # Maven Central has all we need; what was imported earlier may have added jars that are elsewhere.
    scyjava.config.get_repositories().clear()
    scyjava.config.endpoints[:] = [IMAGEJ, PATCHER]
    options = [
        "-Djava.awt.headless=true",
        f"-Dplugins.dir={plugins}",
        "--add-opens=java.base/java.lang=ALL-UNNAMED",  # the patcher defines classes
        *([f"-Xmx{heap}"] if heap else []),
        *(["--enable-native-access=ALL-UNNAMED"] if java is not None and java.major >= 22 else []),
    ]
    scyjava.config.add_options(options)
    scyjava.config.add_kwargs(interrupt=False)  # otherwise Ctrl-C ends the process without Python knowing
    try:
        scyjava.start_jvm()
    except Exception as error:
        raise _not_started(java, error) from error
    _take_signals_back()
    # Waiting for Java's threads would hang the exit: ImageJ's pools never end.
    jpype.config.destroy_jvm = False
    atexit.register(_let_go)
    return _init(heap, plugins)


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


def _not_started(java: Java | None, error: Exception) -> FijiBridgeError:
    reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    if java is None:
        return FijiBridgeError(f"No Java was found and none could be downloaded ({reason}); {INSTALL_JAVA}.")
    if imagej_cached() is None:
        return FijiBridgeError(
            f"ImageJ ({IMAGEJ}) could not be fetched from Maven Central ({reason}); connect this "
            "machine to the network once."
        )
    return FijiBridgeError(f"Java {java.version} at {java.home} could not be started ({reason}).")


def _init(heap: str | None, plugins: Path) -> Session:
    from jpype import JClass

    # Before any class of ImageJ is touched.
    JClass("net.imagej.patcher.LegacyInjector").preinit()
    IJ = JClass("ij.IJ")
    IJ.runPlugIn("ij.IJ.init", "")
    java = str(JClass("java.lang.System").getProperty("java.version"))
    return Session(str(IJ.getVersion()), java, heap, plugins, os.getpid())


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
    from jpype import JArray, JClass

    IJ, URL = JClass("ij.IJ"), JClass("java.net.URL")
    loader = JClass("java.net.URLClassLoader")(JArray(URL)([URL(jar.as_uri())]), IJ.getClassLoader())
    # The patcher's field: ImageJ's own methods only set it while an ImageJ2 stands behind.
    field = IJ.class_.getDeclaredField("_classLoader")
    field.setAccessible(True)
    field.set(None, loader)
    return loader
