"""Put the menu into somebody's Fiji or ImageJ 1.x, and take it out again.

The menu is one jar without a line of Java: ImageJ's own `Macro_Runner` runs the macros in it. The macros for
folders of stacks come along and know the Python that installed them.
"""

import os
import sys
import zipfile
from pathlib import Path

from fiji_bridge import __version__
from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.files import replacing
from fiji_bridge.imagej.commands import COMMANDS, Command, Parameter
from fiji_bridge.imagej.pages import help_html

JAR = Path("plugins") / "Fiji_Bridge.jar"
BATCH = Path("macros") / "Fiji_Bridge"
INSIDE = "fiji_bridge"
COLUMNS = 32


def install(fiji: str | os.PathLike[str], python: str | os.PathLike[str] = sys.executable) -> list[Path]:
    """Put Plugins ▸ Fiji Bridge into a Fiji or ImageJ; an older menu of ours is replaced.

    Parameters
    ----------
    fiji
        The folder that has `plugins` in it.
    python
        The Python that the menu shall call: one that has this package.

    Returns
    -------
    list of Path
        What was written.

    Raises
    ------
    FijiBridgeError
        If it is not the folder of a Fiji or an ImageJ, cannot be written, or has another's file in the way.
    """
    folder = _folder(fiji)
    _check_ours(folder)
    macros = macro_sources()
    written = []
    for source in sorted(macros.glob("Batch*.ijm")):
        text = source.read_text(encoding="ascii").replace('"python3"', literal(str(python)))
        with replacing(folder / BATCH / source.name) as partial:
            partial.write_text(text, encoding="utf-8")
        written.append(folder / BATCH / source.name)
    # The jar last: with it the menu is there.
    with replacing(folder / JAR) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as jar:
        jar.writestr("plugins.config", plugins_config())
        jar.writestr(f"{INSIDE}/version", __version__)
        for command in COMMANDS:
            head = dialog_macro(command, str(python))
            jar.writestr(_inside(command), head + (macros / "Menu.ijm").read_text(encoding="ascii"))
    return [folder / JAR, *written]


def uninstall(fiji: str | os.PathLike[str]) -> list[Path]:
    """Take out what `install` put there, and say what that was.

    Raises
    ------
    FijiBridgeError
        If it is not the folder of a Fiji or an ImageJ, or cannot be written.
    """
    folder = _folder(fiji)
    _check_ours(folder)
    ours = [folder / JAR, *(folder / BATCH / source.name for source in macro_sources().glob("Batch*.ijm"))]
    there = [path for path in ours if path.exists()]
    try:
        for path in there:
            path.unlink()
        if (folder / BATCH).is_dir() and not any((folder / BATCH).iterdir()):
            (folder / BATCH).rmdir()
    except OSError as error:
        raise FijiBridgeError(
            f"Cannot remove {error.filename}: {error.strerror}; close Fiji first."
        ) from error
    return there


def macro_sources() -> Path:
    """Give the folder of the macros: in the package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    return next(path for path in (package / "macros", package.parent / "macros") if path.is_dir())


def plugins_config() -> str:
    """Say where in the menu each command is, in ImageJ's words."""
    return "".join(
        f'Plugins>Fiji Bridge, "{command.menu}", ij.plugin.Macro_Runner("JAR:{_inside(command)}")\n'
        for command in COMMANDS
    )


def dialog_macro(command: Command, python: str) -> str:
    """Write the first part of a command's macro: its options or its dialog, made a request."""
    title, first = command.menu.removesuffix("..."), command.parameters[0]
    shown = "".join(f"    {_field(command, p)}\n" for p in command.parameters)
    read = "".join(
        f"    value = {_entered(p)};\n"
        f'    call("ij.Prefs.set", {literal(_remembered(command, p))}, value + " ");\n'
        f'    request = request + ":{p.key}=" + value + "\\n";\n'
        + ("    input = value;\n" if p.key == "input" else "")
        + ("    first = value;\n" if p == command.parameters[0] else "")
        for p in command.parameters
    )
    return f"""// {command.menu} Written by fiji-bridge {__version__}.
python = {literal(python)};
request = "command={command.menu}\\n" + "encoding=" + getInfo("file.encoding") + "\\n";
input = "";
var options = "" + call("ij.Macro.getOptions");
var window = "" + call("ij.IJ.getInstance");
if (options != "null" || window == "null") {{
    // Replayed: the options as they were recorded; those left out are not what was entered last.
    if (options == "null") options = "";
    request = request + "options=" + options + "\\n";
    input = call("ij.Macro.getValue", options, "input", "");
    first = call("ij.Macro.getValue", options, {literal(first.key)}, {literal(str(first.default))});
}} else {{
    Dialog.create({literal(title)});
{shown}    Dialog.addHelp({literal(help_html(command))});
    Dialog.show();
{read}}}
{_handed_over(command)}
function lastOf(key, first) {{
    value = call("ij.Prefs.get", key, first + " ");
    return substring(value, 0, lengthOf(value) - 1);
}}

"""


def _handed_over(command: Command) -> str:
    """Write what keeps the current image where it is when the first parameter says that it is not used."""
    if command.image_for is None:
        return ""
    users = " ".join(("", *command.image_for, ""))
    return f'if (indexOf({literal(users)}, " " + first + " ") < 0) input = "none";\n'


def literal(text: str) -> str:
    """Write a text as the macro language does."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _field(command: Command, parameter: Parameter) -> str:
    first = f"{parameter.default:g}" if isinstance(parameter.default, float) else parameter.default
    label = literal(parameter.label)
    last = f"lastOf({literal(_remembered(command, parameter))}, {literal(first)})"
    if parameter.kind == "number":
        return f"Dialog.addNumber({label}, parseFloat({last}));"
    if parameter.kind == "choice":
        return f"Dialog.addChoice({label}, newArray({', '.join(map(literal, parameter.choices))}), {last});"
    kind = {"folder": "Directory", "text": "String"}.get(parameter.kind, "File")
    return f"Dialog.add{kind}({label}, {last}, {COLUMNS});"


def _entered(parameter: Parameter) -> str:
    kind = {"number": "Number", "choice": "Choice"}.get(parameter.kind, "String")
    return f'"" + Dialog.get{kind}()'


def _remembered(command: Command, parameter: Parameter) -> str:
    return f"fiji_bridge.menu.{command.cli}.{parameter.key}"


def _inside(command: Command) -> str:
    return f"{INSIDE}/{command.cli}.ijm"


def _folder(fiji: str | os.PathLike[str]) -> Path:
    """Check that this is a Fiji or an ImageJ.

    Raises
    ------
    FijiBridgeError
        If it is not.
    """
    from fiji_bridge.imagej.session import check_folder

    folder = Path(fiji).absolute()
    check_folder(folder)
    return folder


def _check_ours(folder: Path) -> None:
    jar = folder / JAR
    if not jar.exists():
        return
    try:
        with zipfile.ZipFile(jar) as file:
            ours = f"{INSIDE}/version" in file.namelist()
    except (OSError, zipfile.BadZipFile):
        ours = False
    if not ours:
        raise FijiBridgeError(f"{jar} is there and not from fiji-bridge; move it away.")
