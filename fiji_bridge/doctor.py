"""What of the things this package can use is on this machine, and what to do about the rest."""

import importlib.metadata
import importlib.util
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.imagej.session import IMAGEJ, INSTALL_JAVA, find_java, imagej_cached
from fiji_bridge.thunderstorm.jar import FIJI_VARIABLE, HOW_TO_GIVE, find_jar, require_jar, user_folder

MINIMUM_PYTHON = (3, 11)

EXTRAS = {
    "nd2": ("nd2", "formats", "Nikon ND2 files"),
    "czifile": ("czifile", "formats", "Zeiss CZI files"),
    "pyimagej": ("imagej", "fiji", "a Fiji or ImageJ2 inside Python"),
    "bm3d": ("bm3d", "baselines", "BM3D to compare with"),
    "careamics": ("careamics", "baselines", "N2V, N2N and CARE to compare with"),
}
"""Optional packages: the module of each, the extra that installs it, and what it is for."""


@dataclass(frozen=True)
class Check:
    """One thing looked for.

    Parameters
    ----------
    name
        What was looked for.
    ok
        Whether it was found and will do.
    found
        What was found, or that nothing was.
    advice
        What to do if it is wanted; empty when there is nothing to do.
    """

    name: str
    ok: bool
    found: str
    advice: str = ""

    def __str__(self) -> str:
        line = f"{'ok' if self.ok else 'no'}  {self.name:<12}  {self.found}"
        return f"{line} – {self.advice}" if self.advice else line

    def as_dict(self) -> dict[str, Any]:
        """Give the fields for JSON."""
        return asdict(self)


def diagnose(
    thunderstorm_jar: str | os.PathLike[str] | None = None, fiji: str | os.PathLike[str] | None = None
) -> list[Check]:
    """Look at Python, Java, ImageJ, ThunderSTORM, torch, the GPU, Fiji and the optional packages.

    Starts no Java virtual machine in this process and uses no network. Only Python and torch are a must.

    Parameters
    ----------
    thunderstorm_jar
        ThunderSTORM's jar, where `find_jar` would not find it.
    fiji
        A Fiji folder; `FIJI_BRIDGE_FIJI` when left out.

    Returns
    -------
    list of Check
        One each, in the order above.
    """
    return [
        _python(),
        _java(),
        _imagej(),
        _thunderstorm(thunderstorm_jar, fiji),
        *_torch(),
        _fiji(fiji),
        *_extras(),
    ]


def _python() -> Check:
    enough = sys.version_info[:2] >= MINIMUM_PYTHON
    advice = "" if enough else f"use Python {'.'.join(map(str, MINIMUM_PYTHON))} or newer"
    return Check("Python", enough, f"{platform.python_version()} at {sys.executable}", advice)


def _java() -> Check:
    java = find_java()
    if java is None:
        return Check("Java", False, "none", f"to use ThunderSTORM, {INSTALL_JAVA}")
    found = f"{java.version} at {java.home}"
    if not java.recent_enough:
        return Check("Java", False, f"{found} is too old", f"to use ThunderSTORM, {INSTALL_JAVA}")
    return Check("Java", True, found)


def _imagej() -> Check:
    version = IMAGEJ.split(":")[-1]
    if jar := imagej_cached():
        return Check("ImageJ", True, f"{version} at {jar}")
    advice = "it is fetched from Maven Central when first used; be connected then"
    return Check("ImageJ", False, f"{version} not fetched yet", advice)


def _thunderstorm(jar: str | os.PathLike[str] | None, fiji: str | os.PathLike[str] | None) -> Check:
    try:
        if find_jar(jar, fiji) is None:
            advice = f"the built-in localizer is used; for the plugin, {HOW_TO_GIVE}".replace(
                "there", f"in {user_folder()}"
            )
            return Check("ThunderSTORM", False, "no jar", advice)
        return Check("ThunderSTORM", True, str(require_jar(jar, fiji)))
    except FijiBridgeError as error:
        return Check("ThunderSTORM", False, "not usable", str(error).rstrip("."))


def _torch() -> Iterator[Check]:
    try:
        import torch
    except (ImportError, OSError) as error:
        reason = str(error).splitlines()[0]
        yield Check("torch", False, reason, "reinstall it with `pip install --force-reinstall torch`")
        return
    yield Check("torch", True, f"{torch.__version__}, {torch.get_num_threads()} threads")
    if torch.cuda.is_available():
        yield Check("GPU", True, ", ".join(map(torch.cuda.get_device_name, range(torch.cuda.device_count()))))
    else:
        yield Check("GPU", False, "none that torch can use", "the processor is used; training takes longer")


def _fiji(fiji: str | os.PathLike[str] | None) -> Check:
    folder = fiji or os.environ.get(FIJI_VARIABLE)
    advice = f"only needed to work inside Fiji; name its folder with --fiji or {FIJI_VARIABLE}"
    if not folder:
        return Check("Fiji", False, "no folder given", advice)
    if not (Path(folder) / "plugins").is_dir():
        return Check("Fiji", False, f"{folder} is not a Fiji folder (it has no plugins folder)", advice)
    return Check("Fiji", True, str(folder))


def _extras() -> Iterator[Check]:
    for package, (module, extra, use) in EXTRAS.items():
        if importlib.util.find_spec(module):
            yield Check(package, True, f"{importlib.metadata.version(package)}, {use}")
        else:
            yield Check(
                package,
                False,
                f"not installed, {use}",
                f"if you want it: pip install 'fiji-bridge[{extra}]'",
            )
