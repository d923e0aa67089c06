"""Detection thresholds as formulas of a frame and its filtered versions, such as ``1.5*std(I-Wave.F1)``."""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.torch_localizer import kernels

Evaluate = Callable[[dict[str, Tensor]], Tensor]


@dataclass(frozen=True)
class _Term:
    """Part of a formula: an image (n, y, x) float32, or one number a frame (n or 1, 1, 1) float64."""

    is_image: bool
    evaluate: Evaluate


def _median(images: Tensor) -> Tensor:
    ordered = images.flatten(1).sort(1).values.double()
    middle = ordered.shape[1] // 2
    return (ordered[:, middle] + ordered[:, ~middle]) / 2


def _moments(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sample variance of each image."""
    if images.device.type == "cpu":
        mean, variance = np.empty((2, len(images)))
        kernels.moments(images.contiguous().numpy(), mean, variance)
        return torch.from_numpy(mean), torch.from_numpy(variance)
    pixels = images.flatten(1).double()
    return pixels.mean(1), pixels.var(1)


_STATISTICS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda images: _moments(images)[0],
    "median": _median,
    "std": lambda images: _moments(images)[1].sqrt(),
    "var": lambda images: _moments(images)[1],
    "max": lambda images: images.amax((1, 2)).double(),
    "min": lambda images: images.amin((1, 2)).double(),
    "sum": lambda images: images.sum((1, 2), dtype=torch.float64),
}
_OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "+": torch.add,
    "-": torch.sub,
    "*": torch.mul,
    "/": torch.div,
    "%": torch.fmod,
    "^": torch.pow,
}
_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<name>[A-Za-z_]\w*)|(?P<sign>\S))"
)


class Threshold:
    """A formula with the plugin's grammar, functions and meaning.

    ``mean median std var max min sum`` make one number a frame of an image (of a number, itself; ``std`` and
    ``var`` are the sample's), ``abs`` keeps its kind; ``+ - * / % ^`` and brackets combine them. Signs bind
    more strongly than ``^``, and ``^`` takes its operands from the left.

    Parameters
    ----------
    formula
        For example ``2*std(Wave.F1)``.
    filter_name
        The filter's name in front of the dot, which may be left out.
    variables
        What the filter gives: ``I``, ``F`` and so on.

    Raises
    ------
    FijiBridgeError
        If the formula cannot be read, or does not come down to one number a frame.
    """

    def __init__(self, formula: str, filter_name: str, variables: Collection[str]) -> None:
        self.formula = formula
        term = _Parser(formula, filter_name, variables).parse()
        if term.is_image:
            raise FijiBridgeError(
                f"The threshold {formula!r} is an image; bring it down to one number, as std({formula}) does."
            )
        self._evaluate = term.evaluate

    def __call__(self, variables: dict[str, Tensor]) -> Tensor:
        """Evaluate for each frame: (n,) float32 for variables of shape (n, y, x).

        Raises
        ------
        FijiBridgeError
            If a frame's threshold is not a finite number; the sentence counts frames of `variables` from 0.
        """
        frames = variables["I"].shape[0]
        values = self._evaluate(variables).reshape(-1).expand(frames).to(torch.float32)
        if not bool(values.isfinite().all()):
            raise FijiBridgeError(
                f"The threshold {self.formula!r} is not a finite number; look for a division by 0."
            )
        return values


class _Parser:
    """Recursive descent, one method a precedence level."""

    def __init__(self, formula: str, filter_name: str, variables: Collection[str]) -> None:
        self.formula, self.filter_name, self.variables = formula, filter_name, variables
        self.tokens = [
            (m.lastgroup or "", m.group(m.lastgroup or 0)) for m in _TOKEN.finditer(formula.strip())
        ]
        self.at = 0

    def parse(self) -> _Term:
        term = self._sum()
        if self.at < len(self.tokens):
            raise self._error()
        return term

    def _sum(self) -> _Term:
        return self._left_to_right("+-", self._product)

    def _product(self) -> _Term:
        return self._left_to_right("*/%", self._power)

    def _power(self) -> _Term:
        return self._left_to_right("^", self._signed)

    def _left_to_right(self, signs: str, operand: Callable[[], _Term]) -> _Term:
        left = operand()
        while sign := self._accept(signs):
            left = _combine(_OPERATIONS[sign], left, operand())
        return left

    def _signed(self) -> _Term:
        sign = self._accept("+-")
        atom = self._atom()
        return _Term(atom.is_image, lambda v: -atom.evaluate(v)) if sign == "-" else atom

    def _atom(self) -> _Term:
        kind, text = self._peek()
        if kind == "number":
            self.at += 1
            return _Term(False, lambda v: v["I"].new_full((1, 1, 1), float(text), dtype=torch.float64))
        if kind == "name":
            self.at += 1
            return self._function(text) if self._accept("(") else self._variable(text)
        if self._accept("("):
            inner = self._sum()
            self._expect(")")
            return inner
        raise self._error()

    def _function(self, name: str) -> _Term:
        argument = self._sum()
        self._expect(")")
        if name == "abs":
            return _Term(argument.is_image, lambda v: argument.evaluate(v).abs())
        if name not in _STATISTICS:
            known = ", ".join([*_STATISTICS, "abs"])
            raise FijiBridgeError(f"The threshold {self.formula!r} calls {name}(); known are {known}.")
        if not argument.is_image:
            return argument
        statistic = _STATISTICS[name]
        return _Term(False, lambda v: statistic(argument.evaluate(v))[:, None, None])

    def _variable(self, name: str) -> _Term:
        owner = ""
        if self._accept("."):
            owner, name = name, self._name()
        if owner not in ("", self.filter_name):
            raise FijiBridgeError(
                f"The threshold {self.formula!r} uses {owner}.{name}, but the filter of this analysis is "
                f"{self.filter_name}; the torch engine has no other, --engine thunderstorm does."
            )
        if name not in self.variables:
            known = ", ".join(sorted(self.variables))
            raise FijiBridgeError(f"The threshold {self.formula!r} uses {name}, which is none of {known}.")
        return _Term(True, lambda v: v[name])

    def _name(self) -> str:
        kind, text = self._peek()
        if kind != "name":
            raise self._error()
        self.at += 1
        return text

    def _peek(self) -> tuple[str, str]:
        return self.tokens[self.at] if self.at < len(self.tokens) else ("end", "")

    def _accept(self, signs: str) -> str:
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
        return FijiBridgeError(f"Cannot read the threshold {self.formula!r} {where}: {expected}.")


def _combine(operation: Callable[[Tensor, Tensor], Tensor], left: _Term, right: _Term) -> _Term:
    is_image = left.is_image or right.is_image
    # Image arithmetic is single precision in the plugin, arithmetic of numbers double.
    dtype = torch.float32 if is_image else torch.float64
    return _Term(is_image, lambda v: operation(left.evaluate(v).to(dtype), right.evaluate(v).to(dtype)))
