"""One self-contained page that shows what a comparison found."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fiji_bridge.comparison.verdict import ADVICE, WAYS
from fiji_bridge.files import replacing
from fiji_bridge.report import charts, images

if TYPE_CHECKING:
    import pandas as pd

    from fiji_bridge.comparison import Comparison

__all__ = ["draw", "write_report"]

WHOLE, ZOOM = 384, 40
"""Sides in pixels of the largest part of a frame that is shown and of the part that is enlarged."""

RENDERED, MAGNIFICATION = 48, 8
"""Side in pixels of the largest part that is rendered, and how many times finer its pixels are."""

SCORES = ("jaccard", "precision", "recall", "f1")
DISTANCES = ("mean_distance_nm", "rmse_nm")
MEDIAN_NAMES = {
    "uncertainty [nm]": "uncertainty [nm]",
    "intensity [photon]": "intensity [photons]",
    "sigma [nm]": "sigma [nm]",
}


def write_report(comparison: "Comparison", path: Path) -> None:
    """Write the page of a comparison."""
    page = draw(comparison)
    with replacing(path) as partial:
        partial.write_text(page, encoding="utf-8")


def draw(comparison: "Comparison") -> str:
    """Give the page of a comparison as HTML that needs nothing from outside itself."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    figures = comparison.figures
    environment = Environment(
        loader=PackageLoader("fiji_bridge", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    ways = figures["ways"]
    judged = "best_factor" in ways["raw"]
    return environment.get_template("page.html.j2").render(
        f=figures,
        title=Path(figures["stack"]["source"]).name or "stack",
        advice=ADVICE[figures["recommended"]].capitalize(),
        frame=_frame(comparison),
        charts={
            "thresholds": charts.thresholds(ways),
            "scores": charts.scores(ways) if judged else "",
            "histograms": charts.histograms(comparison.tables),
            "training": charts.training(figures["model"]["report"]),
        },
        tables=_score_tables(ways) if judged else [],
        equal=figures["twin"].get("equal"),
        medians=_medians(ways),
        rendered=_rendered(comparison),
        training=_training(figures),
    )


def _score_tables(ways: dict[str, Any]) -> list[dict[str, Any]]:
    """Lay out the scores at the best and at the user's own threshold."""
    tables = []
    for which, caption in (("best", "At the best threshold of each way"), ("own", "At your own threshold")):
        top = max(found[which]["jaccard"] for found in ways.values())
        rows = [
            {
                "way": way,
                "label": found["label"],
                "factor": found["best_factor"] if which == "best" else 1.0,
                "scores": [found[which][name] for name in SCORES],
                "distances": [found[which][name] for name in DISTANCES],
                "top": found[which]["jaccard"] == top,
            }
            for way, found in ways.items()
        ]
        tables.append({"caption": caption, "rows": rows})
    return tables


def _medians(ways: dict[str, Any]) -> dict[str, Any]:
    columns = [name for name in MEDIAN_NAMES if any(name in found["medians"] for found in ways.values())]
    rows = {way: [found["medians"].get(name) for name in columns] for way, found in ways.items()}
    return {"names": [MEDIAN_NAMES[name] for name in columns], "rows": rows}


def _frame(comparison: "Comparison") -> dict[str, Any]:
    """Draw the frame with most molecules before and after, whole and enlarged where they crowd."""
    pixel_size = comparison.figures["camera"]["pixel_size_nm"]
    tables = {way: comparison.tables[way] for way in ("raw", "denoised")}
    counts = sum(
        np.bincount(table["frame"].astype(int), minlength=comparison.stack.sizes["t"] + 1)
        for table in tables.values()
    )
    number = max(1, int(np.argmax(counts)))
    raw, denoised = (
        stack.isel(t=number - 1).to_numpy().astype(float) for stack in (comparison.stack, comparison.denoised)
    )
    marks = {way: _points(table, number, pixel_size) for way, table in tables.items()}
    truth = {} if comparison.truth is None else {"truth": _points(comparison.truth, number, pixel_size)}
    zoom = images.crowded(np.concatenate(list(marks.values())), raw.shape, ZOOM)
    whole = zoom.around(WHOLE, raw.shape)
    limits = images.contrast(whole.of(raw))

    def shown(image: npt.NDArray[Any], window: images.Window, label: str, **extra: Any) -> str:
        pixels = images.grey(window.of(image), limits)
        return images.picture(pixels, window, label, nm_per_pixel=pixel_size, **extra)

    return {
        "number": number,
        "part": ""
        if whole.of(raw).shape == raw.shape
        else f"A part of {whole.width} × {whole.height} pixels is shown.",
        "truth": bool(truth),
        "raw": shown(raw, whole, f"Raw frame {number}", outline=zoom),
        "denoised": shown(denoised, whole, f"Denoised frame {number}", outline=zoom),
        "raw_zoom": shown(raw, zoom, "Part of the raw frame, enlarged", marks={**truth, "raw": marks["raw"]}),
        "denoised_zoom": shown(
            denoised,
            zoom,
            "Part of the denoised frame, enlarged",
            marks={**truth, "denoised": marks["denoised"]},
        ),
    }


def _points(table: "pd.DataFrame", frame: int, pixel_size: float) -> npt.NDArray[np.float64]:
    """Give the molecules of a frame in pixels, (n, 2): x, y from the corner of the first pixel."""
    return table.loc[table["frame"] == frame, ["x [nm]", "y [nm]"]].to_numpy(dtype=float) / pixel_size


def _training(figures: dict[str, Any]) -> dict[str, str]:
    """Say how the denoiser was trained."""
    report, model = figures["model"]["report"], figures["model"]
    says = {
        "engine": model["engine"],
        "estimator": {"mean": "posterior mean", "map": "posterior maximum", "prior": "prior mean"}.get(
            figures["estimator"], figures["estimator"]
        ),
        "trained": "on this stack"
        if figures["trained_here"]
        else f"before, on {Path(str(model.get('source'))).name}",
    }
    if "steps" in report:
        says["steps"] = (
            f"{report['steps']:,} in {report['minutes']:.1f} minutes on {report['device']}; "
            f"{report['stopped']}"
        )
    if "held_out_nll" in report:
        says["held-out pixels"] = (
            f"negative log-likelihood {report['held_out_nll']:.4f} nats; "
            f"{report['trivial_nll']:.4f} for the mean of the neighbours"
        )
        says["collapse check"] = f"passed; a pixel's own value has the weight {report['weight']:.2f}" + (
            f" (after {len(report['collapsed'])} attempt given up)" if report["collapsed"] else ""
        )
        says["brightness kept"] = f"{100 * report['held_out_mean_ratio']:.1f}% on held-out pixels"
    return says


def _rendered(comparison: "Comparison") -> dict[str, Any]:
    """Render the molecules of every way, all with one width, where they crowd."""
    from fiji_bridge.rendering import Region, draw
    from fiji_bridge.thunderstorm.settings import NormalizedGaussian

    pixel_size = comparison.figures["camera"]["pixel_size_nm"]
    raw = comparison.tables["raw"]
    shape = (comparison.stack.sizes["y"], comparison.stack.sizes["x"])
    points = raw[["x [nm]", "y [nm]"]].to_numpy(dtype=float) / pixel_size
    window = images.crowded(points[np.isfinite(points).all(axis=1)], shape, RENDERED)
    region = Region(window.left, window.top, window.width, window.height)
    fine = pixel_size / MAGNIFICATION
    uncertainty = raw["uncertainty [nm]"].median() if "uncertainty [nm]" in raw else np.nan
    width = max(float(np.nan_to_num(uncertainty)), 0.7 * fine)
    renderer = NormalizedGaussian(
        magnification=float(MAGNIFICATION), uncertainty_nm=width, force_uncertainty=True
    )
    drawn = {way: draw(renderer, region, table, pixel_size)[0] for way, table in comparison.tables.items()}
    bright = drawn["raw"][drawn["raw"] > drawn["raw"].max() * 0.02]
    peak = float(np.percentile(bright, 98)) if bright.size else 1.0
    return {
        "sigma_nm": width,
        "part": window.of(np.empty(shape)).shape != shape,
        "images": {
            way: images.picture(
                images.hot(image, peak), window, f"Rendered molecules, {WAYS[way]}", nm_per_pixel=pixel_size
            )
            for way, image in drawn.items()
        },
    }
