"""The plugin's formulas, such as ``1.5*std(I-Wave.F1)`` or ``intensity > 500 & uncertainty < 10``, read.

Signs bind more strongly than ``^``, then come ``* / %``, ``+ -``, comparisons ``= != < >``, ``&`` and ``|``;
all take their operands from the left.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from fiji_bridge.errors import FijiBridgeError

LONGEST = 500
"""Words and signs of a formula, at most."""

FUNCTIONS = ("mean", "median", "std", "var", "max", "min", "sum", "abs")


@dataclass(frozen=True)
class Number:
    """A number."""

    value: float


@dataclass(frozen=True)
class Variable:
    """A variable, with the name in front of its dot if there is one."""

    owner: str
    name: str


@dataclass(frozen=True)
class Call:
    """A function of one argument."""

    function: str
    argument: "Node"


@dataclass(frozen=True)
class Operation:
    """Two operands and the sign between them; of a negative number the left one is 0."""

    sign: str
    left: "Node"
    right: "Node"


Node = Number | Variable | Call | Operation


class _Token(NamedTuple):
    kind: str
    text: str


_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<name>[A-Za-z_#]\w*)|(?P<sign>!=|\S))"
)


def parse_formula(text: str, noun: str = "formula") -> Node:
    """Read a formula.

    Parameters
    ----------
    text
        The formula.
    noun
        What to call it in errors.

    Raises
    ------
    FijiBridgeError
        If it cannot be read, or calls a function that is none of `FUNCTIONS`.
    """
    try:
        parser = _Parser(text, noun)
        if len(parser.tokens) > LONGEST:
            raise RecursionError
        return parser.parse()
    except RecursionError:
        raise FijiBridgeError(f"The {noun} {text[:20]!r}… is too long or too deep; shorten it.") from None


class _Parser:
    """Recursive descent, one method a precedence level."""

    def __init__(self, text: str, noun: str) -> None:
        self.text, self.noun = text, noun
        self.tokens = [
            _Token(m.lastgroup or "", m.group(m.lastgroup or 0)) for m in _TOKEN.finditer(text.strip())
        ]
        self.at = 0

    def parse(self) -> Node:
        node = self._either()
        if self.at < len(self.tokens):
            raise self._error()
        return node

    def _either(self) -> Node:
        return self._left_to_right(("|",), self._both)

    def _both(self) -> Node:
        return self._left_to_right(("&",), self._comparison)

    def _comparison(self) -> Node:
        return self._left_to_right(("=", "!=", "<", ">"), self._sum)

    def _sum(self) -> Node:
        return self._left_to_right(("+", "-"), self._product)

    def _product(self) -> Node:
        return self._left_to_right(("*", "/", "%"), self._power)

    def _power(self) -> Node:
        return self._left_to_right(("^",), self._signed)

    def _left_to_right(self, signs: tuple[str, ...], operand: Callable[[], Node]) -> Node:
        left = operand()
        while sign := self._accept(*signs):
            left = Operation(sign, left, operand())
        return left

    def _signed(self) -> Node:
        sign = self._accept("+", "-")
        return Operation(sign, Number(0.0), self._atom()) if sign else self._atom()

    def _atom(self) -> Node:
        kind, text = self._peek()
        if kind == "number":
            self.at += 1
            return Number(float(text))
        if kind == "name":
            self.at += 1
            return self._call(text) if self._accept("(") else self._variable(text)
        if self._accept("("):
            inner = self._either()
            self._expect(")")
            return inner
        raise self._error()

    def _call(self, name: str) -> Node:
        argument = self._either()
        self._expect(")")
        if name not in FUNCTIONS:
            raise FijiBridgeError(
                f"The {self.noun} {self.text!r} calls {name}(); known are {', '.join(FUNCTIONS)}."
            )
        return Call(name, argument)

    def _variable(self, name: str) -> Node:
        if not self._accept("."):
            return Variable("", name)
        kind, text = self._peek()
        if kind != "name":
            raise self._error()
        self.at += 1
        return Variable(name, text)

    def _peek(self) -> _Token:
        return self.tokens[self.at] if self.at < len(self.tokens) else _Token("end", "")

    def _accept(self, *signs: str) -> str:
        kind, text = self._peek()
        if kind != "sign" or text not in signs:
            return ""
        self.at += 1
        return text

    def _expect(self, sign: str) -> None:
        if not self._accept(sign):
            raise self._error(f"expected {sign!r}")

    def _error(self, expected: str = "expected a number, a variable or a function") -> FijiBridgeError:
        kind, text = self._peek()
        where = "at its end" if kind == "end" else f"at {text!r}"
        return FijiBridgeError(f"Cannot read the {self.noun} {self.text!r} {where}: {expected}.")
