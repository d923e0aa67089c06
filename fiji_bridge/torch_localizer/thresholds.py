"""Detection thresholds as formulas of a frame and its filtered versions, such as ``1.5*std(I-Wave.F1)``."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.formulas import Call, Node, Number, Operation, Variable, parse_formula
from fiji_bridge.torch_localizer import kernels
from fiji_bridge.torch_localizer.filters import Filter

Variables = dict[tuple[str, str], Tensor]
"""Images by filter and name."""


@dataclass(frozen=True)
class _Term:
    """Part of a formula: an image (n, y, x) float32, or one number a frame (n or 1, 1, 1) float64."""

    is_image: bool
    evaluate: Callable[[Variables], Tensor]


def _moments(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sample variance of each image."""
    if images.device.type == "cpu":
        mean, variance = np.empty((2, len(images)))
        kernels.moments(images.contiguous().numpy(), mean, variance)
        return torch.from_numpy(mean), torch.from_numpy(variance)
    pixels = images.flatten(1).double()
    return pixels.mean(1), pixels.var(1)


def _median(images: Tensor) -> Tensor:
    ordered = images.flatten(1).sort(1).values.double()
    middle = ordered.shape[1] // 2
    return (ordered[:, middle] + ordered[:, ~middle]) / 2


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
    "=": torch.eq,
    "!=": torch.ne,
    "<": torch.lt,
    ">": torch.gt,
    "&": torch.logical_and,
    "|": torch.logical_or,
}


class Threshold:
    """A formula with the plugin's grammar, functions and meaning.

    ``mean median std var max min sum`` make one number a frame of an image (of a number, itself; ``std`` and
    ``var`` are the sample's), ``abs`` keeps its kind; comparisons give 1 and 0.

    Parameters
    ----------
    formula
        For example ``2*std(Wave.F1)``.
    chosen
        The filter of the analysis, whose name in front of the dot may be left out.
    others
        Filters whose variables the formula can use besides.

    Raises
    ------
    FijiBridgeError
        If the formula cannot be read, or does not come down to one number a frame.
    """

    def __init__(self, formula: str, chosen: Filter, others: Mapping[str, Filter] | None = None) -> None:
        self.formula, self.chosen = formula, chosen
        self._filters = {**(others or {}), chosen.name: chosen}
        self._used = {chosen.name}
        term = self._term(parse_formula(formula, "threshold"))
        if term.is_image:
            raise FijiBridgeError(
                f"The threshold {formula!r} is an image; bring it down to one number, as std({formula}) does."
            )
        self._evaluate = term.evaluate

    def __call__(self, filtered: Mapping[str, Tensor]) -> Tensor:
        """Evaluate for each frame.

        Parameters
        ----------
        filtered
            What the filter of the analysis gave, images (n, y, x).

        Returns
        -------
        Tensor
            (n,) float32.

        Raises
        ------
        FijiBridgeError
            If a frame's threshold is not a finite number.
        """
        frames = filtered["I"]
        variables = {(self.chosen.name, name): image for name, image in filtered.items()}
        for owner in sorted(self._used - {self.chosen.name}):
            variables |= {(owner, name): image for name, image in self._filters[owner](frames).items()}
        values = self._evaluate(variables).reshape(-1).expand(len(frames)).to(torch.float32)
        if not bool(values.isfinite().all()):
            raise FijiBridgeError(
                f"The threshold {self.formula!r} is not a finite number; look for a division by 0."
            )
        return values

    def _term(self, node: Node) -> _Term:
        match node:
            case Number(value):
                return _Term(
                    False,
                    lambda v: torch.full(
                        (1, 1, 1), value, dtype=torch.float64, device=next(iter(v.values())).device
                    ),
                )
            case Variable(owner, name):
                key = self._known(owner or self.chosen.name, name)
                return _Term(True, lambda v: v[key])
            case Call("abs", argument):
                inner = self._term(argument)
                return _Term(inner.is_image, lambda v: inner.evaluate(v).abs())
            case Call(function, argument):
                inner, statistic = self._term(argument), _STATISTICS[function]
                if not inner.is_image:
                    return inner
                return _Term(False, lambda v: statistic(inner.evaluate(v))[:, None, None])
            case Operation(sign, left, right):
                return _combine(_OPERATIONS[sign], self._term(left), self._term(right))

    def _known(self, owner: str, name: str) -> tuple[str, str]:
        if owner not in self._filters:
            raise FijiBridgeError(
                f"The threshold {self.formula!r} uses {owner}.{name}, but there is no filter {owner}; "
                f"known are {', '.join(sorted(self._filters))}."
            )
        variables = self._filters[owner].variables
        if name not in variables:
            raise FijiBridgeError(
                f"The threshold {self.formula!r} uses {name}, none of {', '.join(sorted(variables))}."
            )
        self._used.add(owner)
        return owner, name


def _combine(operation: Callable[[Tensor, Tensor], Tensor], left: _Term, right: _Term) -> _Term:
    is_image = left.is_image or right.is_image
    # Image arithmetic is single precision in the plugin, arithmetic of numbers double.
    dtype = torch.float32 if is_image else torch.float64
    return _Term(
        is_image, lambda v: operation(left.evaluate(v).to(dtype), right.evaluate(v).to(dtype)).to(dtype)
    )
