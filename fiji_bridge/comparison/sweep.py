"""What one way of localizing finds as the detection threshold moves."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pandas as pd

Array = npt.NDArray[np.float64]

FACTORS: Array = 2.0 ** (np.arange(-20, 25) / 6)
"""Factors of the user's threshold, a sixth of an octave apart, from a tenth to sixteen; 1 is among them."""


@dataclass(frozen=True)
class Sweep:
    """The molecules that one way of localizing finds at each factor of the threshold.

    Attributes
    ----------
    runs
        Table of each run by the factor it was made at. Tables with a column ``strength`` (multiples of the
        user's threshold) also hold what is found at every higher factor.
    factors
        Where the sweep is read, increasing; 1 is the user's own threshold.
    frames
        Number of frames of the stack.
    """

    runs: Mapping[float, "pd.DataFrame"]
    factors: Array
    frames: int

    def at(self, factor: float) -> "pd.DataFrame":
        """Give the table of molecules found with the threshold times `factor`."""
        table = self.runs[max(made for made in self.runs if made <= factor)]
        if "strength" in table:
            table = table[table["strength"] >= factor].drop(columns="strength")
        table = table.reset_index(drop=True)
        if "id" in table:
            table["id"] = np.arange(1, len(table) + 1)
        return table

    def detections(self) -> npt.NDArray[np.int64]:
        """Count the molecules at each factor."""
        return np.array([len(self.at(factor)) for factor in self.factors])
