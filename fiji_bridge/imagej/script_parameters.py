"""Script parameters of macros (``#@ String name``), as ImageJ2 has them; here any ImageJ 1.x takes them too.

A macro holds numbers and text only, so these are the types that parameters can have.
"""

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fiji_bridge.errors import FijiBridgeError

WHOLE = ("byte", "short", "int", "integer", "long", "biginteger")
NUMBERS = (*WHOLE, "float", "double", "number", "bigdecimal")
TEXT = ("string", "char", "character", "file", "path")
TYPES = (*NUMBERS, "boolean", *TEXT)

_LINE = re.compile(r"^[ \t]*#@.*$", re.MULTILINE)
_PARAMETER = re.compile(
    r"\s*#@\s*(?:(?P<way>input|output|both)\b)?\s*"
    r"(?:(?P<type>[\w.]+)(?:\s*\((?P<before>(?:\"[^\"]*\"|[^\")])*)\)\s*|\s+))?"
    r"(?P<name>\w+)\s*(?:\((?P<after>.*)\))?\s*;?\s*",
    re.IGNORECASE,
)
_DEFAULT = re.compile(r"""\bvalue\s*=\s*("(?P<quoted>[^"]*)"|(?P<bare>[^,]+))""")


@dataclass(frozen=True)
class Parameter:
    """One line of a macro's head: what comes in, or goes out, by name."""

    name: str
    type: str
    """In lower case, without a package; empty when the line names none."""
    input: bool
    output: bool
    default: str | None

    def literal(self, value: Any) -> str:
        """Write a value in the macro language.

        Raises
        ------
        FijiBridgeError
            If it is not of the parameter's type.
        """
        if hasattr(value, "item"):
            value = value.item()  # NumPy's numbers
        if self.type == "boolean" and isinstance(value, bool):
            return str(int(value))
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and (self.type in NUMBERS and (self.type not in WHOLE or float(value).is_integer())):
            return {"inf": "(1/0)", "-inf": "(-1/0)", "nan": "NaN"}.get(str(value), str(value))
        if self.type in TEXT and isinstance(value, str | os.PathLike):
            return literal(os.fspath(value))
        raise FijiBridgeError(f"The macro's input {self.name} is a {self.type}, which {value!r} is not.")

    def value(self, text: str) -> Any:
        """Read a default."""
        if self.type == "boolean":
            return text.strip().lower() == "true"
        if self.type not in NUMBERS:
            return text
        try:
            number = float(text)
        except ValueError:
            raise FijiBridgeError(
                f"The macro's input {self.name} is a {self.type}, which {text!r} is not."
            ) from None
        return int(number) if self.type in WHOLE and number.is_integer() else number

    def result(self, found: Any) -> Any:
        """Give what the macro left in the variable, a number or text, as what was declared."""
        if self.type == "boolean" and isinstance(found, float):
            return bool(found)
        return int(found) if self.type in WHOLE and isinstance(found, float) else found


def literal(text: str) -> str:
    """Write text as a string of the macro language."""
    for letter, escaped in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\r", "\\r")):
        text = text.replace(letter, escaped)
    return f'"{text}"'


def parameters(code: str) -> list[Parameter]:
    """Give the script parameters of a macro; none when it has no ``#@`` lines.

    Raises
    ------
    FijiBridgeError
        If a line cannot be read, or an input has a type that macros cannot hold.
    """
    return [found for line in _LINE.findall(code) if (found := _parameter(line)) is not None]


def _parameter(line: str) -> Parameter | None:
    if re.match(r"\s*#@\s*script\b", line):
        return None  # about the script, not a parameter
    match = _PARAMETER.fullmatch(line)
    if match is None:
        raise FijiBridgeError(f"{line.strip()!r} is not a script parameter; write #@ Type name.")
    way, kind = (match["way"] or "input").lower(), (match["type"] or "").rpartition(".")[2].lower()
    if kind not in TYPES and (kind or way != "output"):
        raise FijiBridgeError(
            f"The script parameter {line.strip()!r} has the type {match['type']}; macros hold String, File, "
            "boolean and numbers."
        )
    default = _DEFAULT.search(match["before"] or match["after"] or "")
    told = None if default is None else default["quoted"] or (default["bare"] or "").strip()
    return Parameter(match["name"], kind, way != "output", way != "input", told)


def with_values(code: str, declared: list[Parameter], values: Mapping[str, Any]) -> str:
    """Put the values in the place of the parameters' lines, so that all lines keep their numbers.

    Raises
    ------
    FijiBridgeError
        If there is no such input, one without default is missing, or a value is of another type.
    """
    inputs = {parameter.name: parameter for parameter in declared if parameter.input}
    for name in values:
        if name not in inputs:
            near = difflib.get_close_matches(name, inputs, 1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(inputs) or 'none'}."
            raise FijiBridgeError(f"The macro has no input {name!r}; {hint}")

    def assignment(match: re.Match[str]) -> str:
        parameter = _parameter(match.group())
        if parameter is None or not parameter.input:
            return ""
        if parameter.name in values:
            value = values[parameter.name]
        elif parameter.default is not None:
            value = parameter.value(parameter.default)
        else:
            raise FijiBridgeError(f"The macro's input {parameter.name} has no value; give it by that name.")
        return f"var {parameter.name} = {parameter.literal(value)};"  # for its functions, too

    return _LINE.sub(assignment, code)
