"""Find the user's own ThunderSTORM jar and load its classes."""

import os
import re
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import platformdirs

from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.imagej import session

JAR_VARIABLE = "FIJI_BRIDGE_THUNDERSTORM_JAR"
FIJI_VARIABLE = "FIJI_BRIDGE_FIJI"
PACKAGE = "cz.cuni.lf1.lge.ThunderSTORM"

_NAME = re.compile(r"thunder[_-]?storm.*\.jar", re.IGNORECASE)
_ENTRY = f"{PACKAGE.replace('.', '/')}/AnalysisPlugIn.class"

lock = threading.RLock()
"""Held while the plugin works: its camera, its thresholds and its table are one a process."""

_loaded: tuple[Path, Any] | None = None


def find_jar(
    explicit: str | os.PathLike[str] | None = None, fiji: str | os.PathLike[str] | None = None
) -> Path | None:
    """Find the user's ThunderSTORM jar.

    Parameters
    ----------
    explicit
        The jar; when given, nothing else is looked at.
    fiji
        A Fiji or ImageJ folder; `FIJI_BRIDGE_FIJI` when left out.

    Returns
    -------
    pathlib.Path or None
        `explicit`, else what `FIJI_BRIDGE_THUNDERSTORM_JAR` names, else the jar in the Fiji folder's
        `plugins`, else the one in the user data directory; None when there is none.

    Raises
    ------
    FijiBridgeError
        If a file or folder that was named, here or by a variable, does not exist.
    """
    named = [("--thunderstorm-jar", explicit), (JAR_VARIABLE, os.environ.get(JAR_VARIABLE))]
    for option, given in named:
        if given:
            if not Path(given).is_file():
                raise FijiBridgeError(
                    f"{option} names {given}, which is not a file; give ThunderSTORM's jar."
                )
            return Path(given).absolute()
    return next((jar for folder in _folders(fiji) for jar in _jars(folder)), None)


def require_jar(
    explicit: str | os.PathLike[str] | None = None, fiji: str | os.PathLike[str] | None = None
) -> Path:
    """Find the jar as `find_jar` does and make sure that it is ThunderSTORM's.

    Raises
    ------
    FijiBridgeError
        If there is none, or what was found is not ThunderSTORM; it says where was looked and how to give one.
    """
    jar = find_jar(explicit, fiji)
    if jar is None:
        places = " and ".join(str(folder) for folder in _folders(fiji))
        raise FijiBridgeError(f"No ThunderSTORM jar was found in {places}; {HOW_TO_GIVE}.")
    try:
        with zipfile.ZipFile(jar) as archive:
            classes = archive.namelist()
    except (OSError, zipfile.BadZipFile):
        raise FijiBridgeError(f"{jar} is not a jar file; {HOW_TO_GIVE}.") from None
    if _ENTRY not in classes:
        raise FijiBridgeError(
            f"{jar} is not ThunderSTORM: it lacks the class {PACKAGE}.AnalysisPlugIn; {HOW_TO_GIVE}."
        )
    return jar


def user_folder() -> Path:
    """Give the folder where users may put their jar, on this machine."""
    return platformdirs.user_data_path("fiji_bridge")


HOW_TO_GIVE = f"put Thunder_STORM.jar there, or name it with --thunderstorm-jar or {JAR_VARIABLE}"


def _folders(fiji: str | os.PathLike[str] | None) -> Iterator[Path]:
    for option, given in (("--fiji", fiji), (FIJI_VARIABLE, os.environ.get(FIJI_VARIABLE))):
        if given:
            if not Path(given).is_dir():
                raise FijiBridgeError(f"{option} names {given}, which is not a folder; give the Fiji folder.")
            yield Path(given).absolute() / "plugins"
            break
    yield user_folder()


def _jars(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.[jJ][aA][rR]") if _NAME.fullmatch(path.name))


class Plugin(dict[str, Any]):
    """The plugin's classes by their name below its package: ``plugin["thresholding.Thresholder"]``."""

    def __init__(self, loader: Any) -> None:
        super().__init__()
        self._loader = loader

    def __missing__(self, name: str) -> Any:
        from jpype import JClass

        self[name] = JClass(f"{PACKAGE}.{name}", loader=self._loader)
        return self[name]


def load(jar: str | os.PathLike[str] | None = None) -> Plugin:
    """Start ImageJ if it is not running and load the plugin into it.

    Raises
    ------
    FijiBridgeError
        If no jar is found, ImageJ cannot be started, or another jar was loaded before.
    """
    global _loaded
    path = require_jar(jar).resolve()
    with lock:
        session.start()
        if _loaded is None:
            _loaded = path, session.load_plugin(path)
        if _loaded[0] != path:
            raise FijiBridgeError(
                f"ThunderSTORM was already loaded from {_loaded[0]}; use a new process for {path}."
            )
        return Plugin(_loaded[1])


@contextmanager
def java_errors(what: str) -> Iterator[None]:
    """Turn what Java throws into one sentence that begins with `what`."""
    from jpype import JException

    try:
        yield
    except JException as error:
        raise FijiBridgeError(f"{what}: {reason(error)}") from error


def reason(error: Any) -> str:
    """Say in Java's words what went wrong, without its class names."""
    wrappers = ("java.lang.reflect.InvocationTargetException", "java.lang.RuntimeException")
    while error.getCause() is not None and error.getClass().getName() in wrappers:
        error = error.getCause()
    said = str(error.getMessage() or error.getClass().getSimpleName()).strip().splitlines()[0]
    return said if said.endswith((".", "!")) else f"{said}."
