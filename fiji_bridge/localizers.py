"""Which localizer runs: ThunderSTORM's plugin or ours on torch, behind one function."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from fiji_bridge.camera import Camera, estimate_camera
from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.files import check_kept, replacing
from fiji_bridge.localizations import CAMERA_SETUP, POSITION_COLUMNS, STACK_SHAPE, save_csv
from fiji_bridge.progress import Progress
from fiji_bridge.stack import files_of, open_stack, positions

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

ENGINES = {"thunderstorm": "fiji_bridge.thunderstorm", "torch": "fiji_bridge.torch_localizer"}
"""Where each engine's `localize` is; a third one is one more line."""

TORCH_SETTINGS = ("uncertainty", "background", "variance", "known_sigma", "false_alarm_rate")
"""What the torch engine has beyond the plugin."""


class Localizer(Protocol):
    """What an engine is: frames in, a table of molecules out."""

    def __call__(
        self,
        stack: xr.DataArray,
        *,
        camera: Camera,
        options: str = "",
        fit_stack: xr.DataArray | None = None,
        strength: bool = False,
        progress: Progress | None = None,
        **engine_settings: Any,
    ) -> pd.DataFrame:
        """Localize frames (t, y, x) in ADU; see `localize`."""


def localize(
    stack: Any,
    *,
    camera: Camera | str | None = None,
    options: str = "",
    engine: str | None = None,
    fit_stack: Any = None,
    strength: bool = False,
    out: str | os.PathLike[str] | None = None,
    pixel_size_nm: float | None = None,
    thunderstorm_jar: str | os.PathLike[str] | None = None,
    device: str | None = None,
    progress: Progress | None = None,
    **torch_settings: Any,
) -> pd.DataFrame:
    """Find and fit the molecules of a stack.

    Parameters
    ----------
    stack
        Path, array or DataArray of frames [ADU], as `open_stack` takes it; channels and planes apart.
    camera
        A camera, ThunderSTORM's `Camera setup` string, or None to estimate it from the stack.
    options
        ThunderSTORM's `Run analysis` option string; keys left out take the plugin's defaults.
    engine
        ``"thunderstorm"`` (the plugin), ``"torch"`` (its analysis without Java), or None: the plugin
        when its jar and a Java are there.
    fit_stack
        The same frames in another version [ADU], fitted in place of `stack`, where candidates are detected.
    strength
        Add the column ``strength``, the detection value in units of its frame's threshold: what a threshold
        k times as high would find are the rows with ``strength >= k``.
    out
        CSV file to write the table to, for ThunderSTORM to open.
    pixel_size_nm
        Size of a pixel in the sample [nm], in place of the camera's or the file's.
    thunderstorm_jar
        The plugin's jar; searched for by default.
    device
        Where torch computes; CUDA when present by default.
    progress
        Called with the stage, what is done and the total.
    **torch_settings
        What only the torch engine has, and so choose it: ``uncertainty``, ``background``, ``variance``,
        ``known_sigma`` and ``false_alarm_rate``; see `torch_localizer.localize`. The two maps may be paths
        of images, or of .npy files.

    Returns
    -------
    pandas.DataFrame
        ThunderSTORM's columns in nm and photons, and ``channel`` and ``slice`` where the stack has several.
        ``attrs`` has the ``engine`` used, the ``camera``'s source and ``camera_setup``, the ``stack_shape``,
        and ``warnings`` of its estimation and of the engine.

    Raises
    ------
    FijiBridgeError
        If a stack, option or camera is not usable, the pixel size is unknown, or `out` cannot be written.
    """
    import pandas as pd

    unknown = [setting for setting in torch_settings if setting not in TORCH_SETTINGS]
    if unknown:
        raise FijiBridgeError(
            f"There is no setting {unknown[0]}; the torch engine's are {', '.join(TORCH_SETTINGS)}."
        )
    if torch_settings and (engine or "torch") != "torch":
        raise FijiBridgeError(f"Only the torch engine has {', '.join(torch_settings)}; use --engine torch.")
    name = "torch" if torch_settings else _choose_engine(engine, thunderstorm_jar)
    opened = open_stack(stack)
    fitted = None if fit_stack is None else open_stack(fit_stack)
    if fitted is not None and fitted.sizes != opened.sizes:
        raise FijiBridgeError(
            f"{fitted.attrs['source']} has the shape {dict(fitted.sizes)} and {opened.attrs['source']} "
            f"{dict(opened.sizes)}; detect and fit on versions of the same frames."
        )
    if out is not None:
        read: list[Any] = [file for each in (opened, fitted) if each is not None for file in files_of(each)]
        read += filter(_is_path, map(torch_settings.get, ("background", "variance")))
        setup = Camera.of(camera)
        check_kept([*read, *(setup.map_files.values() if setup else ())], {f"out={out}": out})
    for pixels in torch_settings.keys() & {"background", "variance"}:
        torch_settings[pixels] = _pixel_map(pixels, torch_settings[pixels])
    warnings: list[str] = []
    settings: dict[str, Any] = (
        {"jar": thunderstorm_jar} if name == "thunderstorm" else {"device": device, **torch_settings}
    )
    run: Localizer = import_module(ENGINES[name]).localize
    with replacing(out) if out is not None else nullcontext() as partial:
        tables = []
        fit_positions = positions(fitted) if fitted is not None else None
        for where, frames in positions(opened):
            known, doubts = _camera(camera, frames, pixel_size_nm, progress)
            fit_frames = next(fit_positions)[1] if fit_positions else None
            known.check(frames)
            if fit_frames is not None:
                known.check(fit_frames)
            warnings += [doubt for doubt in doubts if doubt not in warnings]
            table = run(
                frames,
                camera=known,
                options=options,
                fit_stack=fit_frames,
                strength=strength,
                progress=progress,
                **settings,
            )
            warnings += table.attrs.get("warnings", ())
            tables.append(table.assign(**_position(where)))
        table = tables[0] if len(tables) == 1 else pd.concat(tables, ignore_index=True)
        if len(tables) > 1:
            table["id"] = range(1, len(table) + 1)
        if partial is not None:
            save_csv(table, partial)
    table.attrs = {"engine": name, "camera": known.source, "warnings": tuple(warnings)}
    # What drawing and exporting the table needs. Maps have no place in a text, nor use there.
    plain = known.replace(offset_map=None, gain_map=None, variance_map=None)
    table.attrs |= {CAMERA_SETUP: plain.options(), STACK_SHAPE: tuple(opened.sizes[dim] for dim in "tyx")}
    return table


def _pixel_map(name: str, given: Any) -> Any:
    """Read a map of the pixels if it is a path."""
    if not _is_path(given):
        return given
    path = Path(given)
    if path.suffix.lower() != ".npy":
        values = open_stack(path).to_numpy()
        return values[0] if len(values) == 1 else values
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FijiBridgeError(f"Cannot read {name} {path}: {reason}.") from error


def _is_path(given: Any) -> bool:
    return isinstance(given, (str, os.PathLike))


def _choose_engine(engine: str | None, jar: str | os.PathLike[str] | None) -> str:
    if engine is not None:
        if engine not in ENGINES:
            raise FijiBridgeError(f"There is no engine {engine!r}; --engine takes {' or '.join(ENGINES)}.")
        return engine
    if jar is not None:
        return "thunderstorm"
    from fiji_bridge.imagej.session import find_java
    from fiji_bridge.thunderstorm import find_jar

    java = find_java() if find_jar() else None
    return "thunderstorm" if java is not None and java.recent_enough else "torch"


def _camera(
    camera: Camera | str | None, stack: xr.DataArray, pixel_size_nm: float | None, progress: Progress | None
) -> tuple[Camera, tuple[str, ...]]:
    """Give the camera of a (t, y, x) stack, with a pixel size, and what its estimation warns of."""
    known = Camera.of(camera)
    if pixel_size_nm is not None and not pixel_size_nm > 0:
        raise FijiBridgeError(f"pixel_size_nm is {pixel_size_nm}; give a positive number of nanometres.")
    pixel = pixel_size_nm or (known.pixel_size_nm if known else None) or stack.attrs["pixel_size_nm"]
    if pixel is None:
        raise FijiBridgeError(
            f"{stack.attrs['source']} does not say how large its pixels are; "
            "give their size in nm with --pixel-size, or as pixelsize= in --camera."
        )
    if known is not None:
        return known.replace(pixel_size_nm=pixel), ()
    estimate = estimate_camera(stack, pixel_size_nm=pixel, progress=progress)
    return estimate.camera.replace(pixel_size_nm=pixel), tuple(estimate.warnings)


def _position(where: Mapping[str, int]) -> dict[str, int]:
    return {POSITION_COLUMNS[dim]: number + 1 for dim, number in where.items()}
