"""Localizing the three ways, each at many thresholds from one run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fiji_bridge.comparison.sweep import FACTORS, Array, Sweep
from fiji_bridge.macro_options import DEFAULT_OPTIONS, format_options, parse_options
from fiji_bridge.progress import Progress

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from fiji_bridge.camera import Camera

WITHOUT_STRENGTH = ("Centroid of connected components",)
"""Detectors whose molecules at a high threshold are not among those at a low one."""

COARSE_FACTORS = 2.0 ** (np.arange(-2, 4) / 2)
"""The sweep of such detectors, for which each threshold is a run of its own."""

PILOT_FRAMES = 3
PILOTS = tuple(float(factor) for factor in FACTORS[[14, 8, 0]])

CROWD, SPACING = 2.0, 14
"""A sweep starts where a pilot finds no more than `CROWD` times the molecules of the user's own threshold, or
one in each square of `SPACING` pixels. Below, nearly all are noise, and fitting them would take most time."""


@dataclass
class Localizer:
    """Runs one set of options, at thresholds of its choice.

    Attributes
    ----------
    camera, options, engine, jar, device
        As for `fiji_bridge.localize`; `engine` is the one that was used once there was a run.
    progress
        Told the stage, with `label` of each run before it.
    """

    camera: "Camera"
    options: Mapping[str, str]
    engine: str | None
    jar: Any
    device: str | None
    progress: Progress

    @property
    def threshold(self) -> str:
        """The user's threshold expression."""
        return self.options.get("threshold") or parse_options(DEFAULT_OPTIONS)["threshold"]

    @property
    def has_strength(self) -> bool:
        """Whether one run at a low threshold serves every higher one."""
        return self.options.get("detector") not in WITHOUT_STRENGTH

    def run(
        self, stack: "xr.DataArray", factor: float, label: str, *, fit_stack: "xr.DataArray | None" = None
    ) -> "pd.DataFrame":
        """Localize with the threshold times `factor`; ``strength`` is in multiples of the user's own."""
        from fiji_bridge.localizers import localize

        threshold = self.threshold if factor == 1 else f"{factor!r}*({self.threshold})"
        table = localize(
            stack,
            camera=self.camera,
            options=format_options({**self.options, "threshold": threshold}),
            engine=self.engine,
            thunderstorm_jar=self.jar,
            device=self.device,
            fit_stack=fit_stack,
            strength=self.has_strength,
            progress=lambda stage, done, total: self.progress(f"{stage} ({label})", done, total),
        )
        self.engine = table.attrs["engine"]
        if self.has_strength:
            table["strength"] *= factor
        return table

    def sweep(
        self,
        stack: "xr.DataArray",
        label: str,
        *,
        fit_stack: "xr.DataArray | None" = None,
        factors: Array | None = None,
    ) -> Sweep:
        """Localize at every factor.

        Parameters
        ----------
        stack
            Where molecules are detected, (t, y, x).
        label
            What to call it in the progress.
        fit_stack
            Where they are fitted, if elsewhere.
        factors
            Factors of the threshold; None chooses them by a pilot on a few frames.
        """
        frames = stack.sizes["t"]
        if not self.has_strength:
            runs = {float(k): self.run(stack, float(k), label, fit_stack=fit_stack) for k in COARSE_FACTORS}
            return Sweep(runs, COARSE_FACTORS, frames)
        if factors is None:
            factors = self._worthwhile(stack, label)
        lowest = float(factors[0])
        return Sweep({lowest: self.run(stack, lowest, label, fit_stack=fit_stack)}, factors, frames)

    def _worthwhile(self, stack: "xr.DataArray", label: str) -> Array:
        """Find the factors below 1 that do not drown in noise, by pilots on a few frames, lower and lower."""
        chosen = np.unique(np.linspace(0, stack.sizes["t"] - 1, PILOT_FRAMES + 2)[1:-1].round().astype(int))
        few = stack.isel(t=chosen)
        room = stack.sizes["y"] * stack.sizes["x"] / SPACING**2 * len(chosen)
        factors, crowded = FACTORS, np.zeros(len(FACTORS), dtype=bool)
        for lowest in PILOTS:
            factors = FACTORS[lowest <= FACTORS]
            found = Sweep(
                {lowest: self.run(few, lowest, f"{label}, pilot")}, factors, len(chosen)
            ).detections()
            crowded = (factors < 1) & (found > max(CROWD * found[factors == 1][0], room))
            if crowded.any():
                break
        return factors[~crowded]
