"""Curves and histograms as inline SVG that takes its text and colours from the page."""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from fiji_bridge.comparison.verdict import WAYS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# matplotlib draws with these stand-ins; the page's style sheet says what they look like, so that one drawing
# serves light and dark. Raw, denoised and hybrid differ in dash and marker too, not in colour alone.
INK, FAINT = "#010203", "#040506"
STAND_INS = {"raw": "#010204", "denoised": "#010205", "hybrid": "#010206", "truth": "#010207"}
DASHES = {"raw": "-", "denoised": (0, (5, 1.6)), "hybrid": (0, (1.4, 1.2))}
MARKERS = {"raw": "o", "denoised": "s", "hybrid": "^"}

FEWEST = 10
"""Detections that a precision or recall needs to be drawn."""

MEASURES = {
    "uncertainty [nm]": "uncertainty [nm]",
    "intensity [photon]": "intensity [photons]",
    "sigma [nm]": "sigma [nm]",
}


@contextmanager
def figure(
    columns: int = 1, *, height: float = 2.9, width: float | None = None
) -> Iterator[tuple["Figure", Any]]:
    """Give a styled figure with `columns` panels side by side."""
    import matplotlib
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "axes.edgecolor": INK, "axes.labelcolor": INK, "text.color": INK, "xtick.color": INK,
        "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.7,
        "axes.titlesize": 10,
        "axes.labelsize": 9, "xtick.labelsize": 8, "ytick.labelsize": 8, "legend.fontsize": 8.5,
        "legend.frameon": False, "axes.grid": True, "grid.color": FAINT, "grid.linewidth": 0.6,
        "axes.axisbelow": True, "lines.linewidth": 1.9, "lines.markersize": 3.6, "font.family": "sans-serif",
        "svg.fonttype": "none", "svg.hashsalt": "fiji-bridge", "figure.facecolor": "none",
        "axes.facecolor": "none",
    }  # fmt: skip
    with matplotlib.rc_context(style):
        drawing = Figure(figsize=(width or 3.6 * columns, height), layout="constrained")
        panels = drawing.subplots(1, columns, squeeze=False)[0]
        yield drawing, panels if columns > 1 else panels[0]


def svg(drawing: "Figure", label: str, name: str) -> str:
    """Turn a figure into SVG for the inside of a page: no outside addresses, ids of its own, page colours."""
    buffer = io.StringIO()
    drawing.savefig(buffer, format="svg", transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", text)
    text = re.sub(
        r'<svg [^>]*?(viewBox="[^"]*")[^>]*>',
        rf'<svg class="chart" role="img" aria-label="{label}" \1>',
        text,
        count=1,
    )
    text = re.sub(r"font: (\S+) [^;\"]*", r"font-size: \1", text)
    for stand_in, variable in {INK: "ink", FAINT: "faint", **{c: w for w, c in STAND_INS.items()}}.items():
        text = text.replace(stand_in, f"var(--{variable})")
    return text


def thresholds(ways: Mapping[str, Any]) -> str:
    """Draw the number of detections against the threshold, for every way."""
    with figure(width=7.2, height=3.1) as (drawing, axes):
        for way, found in ways.items():
            _curve(axes, way, found["sweep"]["factor"], found["sweep"]["detections"])
        _threshold_axis(axes)
        axes.set_yscale("log")
        axes.set_ylabel("detections")
        return svg(drawing, "Detections against threshold", "detections")


def scores(ways: Mapping[str, Any]) -> str:
    """Draw Jaccard, precision and recall against the threshold, and precision against recall."""
    with figure(4, width=11.2, height=2.9) as (drawing, panels):
        for way, found in ways.items():
            sweep = found["sweep"]
            # A ratio of a handful of detections says nothing and draws the eye.
            sound = [k for k, count in enumerate(sweep["detections"]) if count >= FEWEST]
            curves = {
                name: [sweep[name][k] for k in sound] for name in ("factor", "jaccard", "precision", "recall")
            }
            for axes, measure in zip(panels, ("jaccard", "precision", "recall"), strict=False):
                _curve(axes, way, curves["factor"], curves[measure])
            _curve(panels[3], way, curves["recall"], curves["precision"])
            at = sweep["factor"].index(found["best_factor"])
            panels[0].plot(
                sweep["factor"][at], sweep["jaccard"][at], MARKERS[way], ms=8, color=STAND_INS[way]
            )
        for axes, title in zip(panels, ("Jaccard index", "Precision", "Recall"), strict=False):
            axes.set_title(title)
            axes.set_ylim(0, 1.02)
            _threshold_axis(axes)
        panels[3].set(
            title="Precision and recall", xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.02)
        )
        return svg(drawing, "Jaccard index, precision and recall against threshold", "scores")


def histograms(tables: Mapping[str, "pd.DataFrame"]) -> str:
    """Draw how uncertainty, intensity and sigma are distributed, for every way; "" when no table has them."""
    columns = [
        name
        for name in MEASURES
        if any(name in table and table[name].notna().any() for table in tables.values())
    ]
    if not columns:
        return ""
    with figure(len(columns), width=10.4 if len(columns) == 3 else None, height=2.9) as (drawing, panels):
        for axes, column in zip(np.atleast_1d(panels), columns, strict=True):
            values = {way: _finite(table[column]) for way, table in tables.items() if column in table}
            together = np.concatenate(list(values.values()))
            low, high = np.percentile(together, [0.5, 98])
            edges = np.linspace(low, high if high > low else low + 1, 61)
            for way, found in values.items():
                heights, _ = np.histogram(found, edges)
                axes.stairs(heights, edges, color=STAND_INS[way], ls=DASHES[way], lw=1.7, label=WAYS[way])
                if found.size:
                    axes.axvline(np.median(found), ymax=0.05, color=STAND_INS[way], lw=3)
            axes.set(xlabel=MEASURES[column], ylabel="molecules", xlim=(edges[0], edges[-1]))
        return svg(drawing, "Histograms of uncertainty, intensity and sigma", "histograms")


def training(report: Mapping[str, Any]) -> str:
    """Draw the negative log-likelihood of held-out pixels against the training step; "" without a curve."""
    curve = report.get("curve")
    if not curve:
        return ""
    steps = [look["step"] for look in curve]
    held_out = [look["held_out_nll"] for look in curve]
    with figure(width=5.2, height=2.6) as (drawing, axes):
        axes.plot(
            steps, [look["training_nll"] for look in curve], color=INK, alpha=0.35, lw=1.2, label="training"
        )
        axes.plot(steps, held_out, color=STAND_INS["denoised"], label="held out")
        trivial = report["trivial_nll"]
        axes.axhline(trivial, color=INK, lw=0.9, ls=(0, (2, 2)), label="mean of the neighbours")
        low, high = min(*held_out, trivial), max(trivial, np.percentile(held_out, 80))
        axes.set_ylim(low - 0.15 * (high - low), high + 0.25 * (high - low))
        axes.set(xlabel="training step", ylabel="negative log-likelihood\n[nats per pixel]")
        axes.legend(loc="upper center", ncols=3, bbox_to_anchor=(0.5, 1.2))
        return svg(drawing, "Training curve", "training")


def _curve(axes: "Axes", way: str, x: Sequence[float], y: Sequence[float]) -> None:
    y = [np.nan if value is None else value for value in y]
    axes.plot(x, y, color=STAND_INS[way], ls=DASHES[way], marker=MARKERS[way], markevery=2, label=WAYS[way])


def _threshold_axis(axes: "Axes") -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(LogLocator(base=4))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("threshold (multiples of your own)")
    axes.axvline(1, color=INK, lw=0.8, ls=(0, (2, 2)))


def _finite(values: Any) -> Any:
    array = np.asarray(values, dtype=float)
    return array[np.isfinite(array)]
