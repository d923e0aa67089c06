"""Find the user's own ThunderSTORM jar and load its classes."""

import os
import re
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs

from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.imagej import session

if TYPE_CHECKING:
    from fiji_bridge.camera import Camera
    from fiji_bridge.thunderstorm.settings import Settings

JAR_VARIABLE = "FIJI_BRIDGE_THUNDERSTORM_JAR"
FIJI_VARIABLE = "FIJI_BRIDGE_FIJI"
PACKAGE = "cz.cuni.lf1.lge.ThunderSTORM"
VERSION = "1.3"
"""The version whose classes are called here."""

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

    def __init__(self, loader: Any, jar: Path) -> None:
        super().__init__()
        self._loader, self._jar = loader, jar

    def __missing__(self, name: str) -> Any:
        from jpype import JClass, JException

        try:
            self[name] = JClass(f"{PACKAGE}.{name}", loader=self._loader)
        except (JException, TypeError) as error:
            raise FijiBridgeError(self._lacks(name)) from error
        return self[name]

    def java_class(self, name: str) -> Any:
        """Give Java's own description of a class; for an anonymous one, JPype would give its parent."""
        from jpype import JClass, JException

        try:
            return JClass("java.lang.Class").forName(f"{PACKAGE}.{name}", True, self._loader)
        except JException as error:
            raise FijiBridgeError(self._lacks(name)) from error

    def _lacks(self, name: str) -> str:
        version = _version(self._jar)
        if version == VERSION:
            return f"{self._jar} is damaged: its class {name} cannot be loaded; {HOW_TO_GIVE}."
        return (
            f"{self._jar} is ThunderSTORM {version or 'of an unknown version'} and lacks the class {name} of "
            f"{VERSION}; give the jar of version {VERSION}."
        )


def _version(jar: Path) -> str | None:
    """Read the version that a jar names in its list of commands."""
    try:
        with zipfile.ZipFile(jar) as archive:
            listed = archive.read("plugins.config").decode(errors="replace")
    except (OSError, KeyError, zipfile.BadZipFile):
        return None
    named = re.search(r"^#\s*Version:\s*(\S+)", listed, re.MULTILINE)
    return named[1] if named else None


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
            _fill_unit_tables(Plugin(_loaded[1], path))
        if _loaded[0] != path:
            raise FijiBridgeError(
                f"ThunderSTORM was already loaded from {_loaded[0]}; use a new process for {path}."
            )
        return Plugin(_loaded[1], path)


def _fill_unit_tables(plugin: Plugin) -> None:
    """Have the plugin fill its tables of units now, in one thread.

    It does so at first use and without a lock. Of threads that come at once, one may see no unit for x, and
    when they spoil each other's table there is none for the rest of the process.
    """
    units = plugin["estimators.PSF.MoleculeDescriptor$Units"]
    units.getDefaultUnit("x")
    units.getCompatibleUnits(units.fromString("nm"))


def set_camera(plugin: Plugin, camera: "Camera | str") -> None:
    """Do what `Camera setup` does: the plugin has one camera, which all that it does looks at."""
    from fiji_bridge.camera import Camera

    known = Camera.of(camera)
    with (
        session.macro_options(plain(known).options()),
        java_errors("ThunderSTORM does not take this camera"),
    ):
        plugin["CameraSetupPlugIn"]().run("")


def plain(camera: "Camera") -> "Camera":
    """Give the camera without what the plugin does not know: maps and read noise."""
    return camera.replace(offset_map=None, gain_map=None, variance_map=None, map_files={}, read_noise=0.0)


def whole_number(wanted: int, name: str) -> int:
    """Refuse what is no number of threads or processes."""
    if not isinstance(wanted, Integral) or wanted < 1:
        raise FijiBridgeError(f"{name} is {wanted!r}; give a whole number of at least 1.")
    return int(wanted)


def worker_threads(wanted: int | None) -> int:
    """Give the number of threads wanted, or that of processors."""
    return whole_number((os.cpu_count() or 1) if wanted is None else wanted, "threads")


def require_pixel_size(camera: "Camera | str | None") -> "Camera":
    """Give the camera; refuse one without a pixel size, for which the plugin would take its 80 nm."""
    from fiji_bridge.camera import Camera

    known = Camera.of(camera)
    if known is None or known.pixel_size_nm is None:
        raise FijiBridgeError('The pixel size is unknown; give it with --camera "… pixelsize=…" (nm).')
    return known


def module(plugin: Plugin, interface: str, settings: "Settings") -> Any:
    """Give a fresh module of the plugin with its options read, as its own macros make it.

    Parameters
    ----------
    plugin
        The plugin.
    interface
        Class of the modules among which the settings choose, such as ``"filters.ui.IFilterUI"``.
    settings
        Settings of one module.
    """
    key, name = next(iter(settings.fixed.items()))
    chosen = next(
        m for m in plugin["ModuleLoader"].getUIModules(plugin[interface].class_) if m.getName() == name
    )
    with session.macro_options(settings.options()), java_errors(f"ThunderSTORM's {name} ({key}=)"):
        chosen.readMacroOptions(settings.options())
    return chosen


def hidden(thing: Any, name: str) -> Any:
    """Give a field of a Java object that is not public."""
    return _field(thing, name).get(thing)


def set_hidden(thing: Any, name: str, value: Any) -> None:
    """Set a field of a Java object that is not public."""
    _field(thing, name).set(thing, _boxed(value))


def _field(thing: Any, name: str) -> Any:
    kind = thing.getClass()
    while name not in [str(field.getName()) for field in kind.getDeclaredFields()]:
        kind = kind.getSuperclass()
    field = kind.getDeclaredField(name)
    field.setAccessible(True)
    return field


def call_hidden(thing: Any, name: str, *arguments: Any) -> Any:
    """Call a method of a Java object that is not public; no two of its class share this name."""
    method = next(m for m in thing.getClass().getDeclaredMethods() if m.getName() == name)
    method.setAccessible(True)
    return method.invoke(thing, *map(_boxed, arguments))


def _boxed(value: Any) -> Any:
    """Make a Python int the `Integer` that the plugin's methods take; JPype would make it a `Long`."""
    from jpype import JClass

    return JClass("java.lang.Integer")(value) if type(value) is int else value


def without_constructor(plugin: Plugin, name: str) -> Any:
    """Make an object as deserialization does: its constructor, which would open a window, is not called."""
    from jpype import JClass

    Factory, Object = JClass("sun.reflect.ReflectionFactory"), JClass("java.lang.Object")
    blank = Factory.getReflectionFactory().newConstructorForSerialization(
        plugin.java_class(name), Object.class_.getConstructor()
    )
    return blank.newInstance()


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
