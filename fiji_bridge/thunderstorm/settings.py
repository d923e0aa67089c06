"""ThunderSTORM 1.3's settings as typed values, and as the option strings of its macros, both ways.

Every module and command of the plugin is one frozen dataclass below, and that is the whole table: each field
names the plugin's option, its default and what the plugin accepts. `Settings.parse` and `Settings.options`
read and write any of them::

    AnalysisSettings.parse("filter=[Gaussian filter] sigma=1.6 detector=[Local maximum] …").filter.sigma_px
    AnalysisSettings(estimator=IntegratedGaussian(method="Maximum likelihood")).options()

The plugin itself takes the default, in silence, for an option that is misspelt, in capitals, or a flag
without ``=``. Here capitals and flags are read as they are meant, and what has no meaning is refused.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.files import check_target
from fiji_bridge.macro_options import format_options, parse_options

LATER_NAMES = {"colorize": "colorizez"}
"""Options that later versions of the plugin name otherwise."""

LATER_WITHOUT_EFFECT = ("pickedlut", "floatprecision", "detectmeasurementprotocol", "numericalderivatives")
"""Options of later versions that choose colours, digits and the like, but no result."""

LATER_OPTIONS = ("ccsmoothingbandwidth", "readoutnoise", "distthrpx")
"""Options of later versions that change results and that 1.3 does not have."""

LATER_MODULES = re.compile(r"phasor|biplane|PSF: Elliptical Gaussian$|No detector", re.IGNORECASE)
"""Modules that came after 1.3."""

LATER_COLUMN = re.compile(r"\buncertainty_xy\b")
"""What later versions call the column ``uncertainty``."""


class Rule(NamedTuple):
    """What a value must satisfy, and that in words around its kind."""

    holds: Callable[[Any], bool]
    words: str


ANY = Rule(lambda value: True, "a {}")
POSITIVE = Rule(lambda value: value > 0, "a positive {}")
NOT_NEGATIVE = Rule(lambda value: value >= 0, "zero or a positive {}")
FRACTION = Rule(lambda value: 0 <= value <= 1, "a {} from 0 to 1")
FROM_TO = Rule(lambda value: len(value) == 2 and value[0] <= value[1], "a range from:to")
FROM_0_TO = Rule(lambda value: len(value) == 2 and 0 <= value[0] <= value[1], "a range from:to, from 0 on")
FROM_STEP_TO = Rule(
    lambda value: len(value) == 3 and value[1] > 0 and value[2] - value[0] >= value[1],
    "a range from:step:to with at least one step",
)


def _at_least(least: int) -> Rule:
    return Rule(lambda value: value >= least, f"a {{}} of at least {least}")


def _from_to(least: int, most: int) -> Rule:
    return Rule(lambda value: least <= value <= most, f"a {{}} from {least} to {most}")


def _one_of(*values: str) -> Rule:
    return Rule(lambda value: value in values, f"one of {', '.join(values)}")


class Kind(NamedTuple):
    """How values of a Python type are read from and written to an option."""

    noun: str
    read: Callable[[str], Any]
    write: Callable[[Any], str]


def _read_flag(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()]


def _read_integer(text: str) -> int:
    if not re.fullmatch(r"[+-]?\d+", text):
        raise ValueError(text)
    return int(text)


def _read_number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value) or "_" in text:
        raise ValueError(text)
    return value


def _write_number(value: float) -> str:
    """Write as Java does, and so the plugin's recorder: 1.0E-6."""
    if value == 0 or 1e-3 <= abs(value) < 1e7:
        text = format(Decimal(repr(value)), "f")
        return text if "." in text else f"{text}.0"
    digits, exponent = f"{Decimal(repr(value)).normalize():E}".split("E")
    return f"{digits if '.' in digits else f'{digits}.0'}E{int(exponent)}"


def _read_range(text: str) -> tuple[float, ...]:
    values = tuple(map(_read_number, text.split(":")))
    return values * 2 if len(values) == 1 else values


def _write_range(values: tuple[float, ...]) -> str:
    return ":".join(str(int(value)) if value == int(value) else repr(value) for value in values)


KINDS = {
    bool: Kind("flag, true or false", _read_flag, lambda value: "true" if value else "false"),
    int: Kind("whole number", _read_integer, str),
    float: Kind("finite number", _read_number, _write_number),
    tuple: Kind("range", _read_range, _write_range),
    str: Kind("text", str, str),
}


class Option(NamedTuple):
    """One option of the plugin: its key, what it must be, and the fields that make the plugin read it."""

    key: str
    rule: Rule
    needs: tuple[str, ...]
    kind: Kind
    default: Any

    def read(self, text: str) -> Any:
        """Give the value that `text` stands for."""
        try:
            value = self.kind.read(text)
        except (ValueError, KeyError):
            raise self.error(text) from None
        if self.rule is FROM_STEP_TO and len(value) == 2:
            return value[0], 1.0, value[1]  # as the plugin does
        return value

    def error(self, value: Any) -> FijiBridgeError:
        """Say what the value has to be."""
        words = self.rule.words.format(self.kind.noun)
        return FijiBridgeError(f"ThunderSTORM's option {self.key}= must be {words}, not {value!r}.")


def _option(key: str, default: Any, rule: Rule = ANY, needs: tuple[str, ...] = ()) -> Any:
    option = Option(key, rule, needs, KINDS[type(default)], default)
    return field(default=default, metadata={"option": option})


@dataclass(frozen=True)
class Settings:
    """Settings of a module or command of the plugin.

    Raises
    ------
    FijiBridgeError
        If a value is not what the plugin takes, or is one that the plugin would not look at with the others.
    """

    fixed: ClassVar[Mapping[str, str]] = {}
    """Options that choose the module, with the plugin's names."""

    chosen_by_default: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name, option in _options_of(type(self)):
            object.__setattr__(self, name, self._checked(name, option))
        self.as_options()

    def _checked(self, name: str, option: Option) -> Any:
        value = getattr(self, name)
        wanted = type(option.default)
        if wanted is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if wanted is tuple and isinstance(value, (tuple, list)) and all(map(_is_number, value)):
            value = tuple(map(float, value))
        right = type(value) is wanted and (wanted is not float or math.isfinite(value))
        if not right or not option.rule.holds(value):
            raise option.error(value)
        missing = [self._key(need) for need in option.needs if not getattr(self, need)]
        if missing and value != option.default:
            raise FijiBridgeError(
                f"ThunderSTORM reads {option.key}= only together with {' and '.join(missing)}=; "
                f"set {'that' if len(missing) == 1 else 'those'} or leave {name} out."
            )
        return value

    def _key(self, name: str) -> str:
        return dict(_options_of(type(self)))[name].key

    def as_options(self) -> dict[str, str]:
        """Give the options by key, those that the plugin reads and no others.

        Raises
        ------
        FijiBridgeError
            If two modules need one key with different values, which the plugin cannot do.
        """
        options = dict(self.fixed)
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if "group" in item.metadata:
                _merge(options, value.as_options())
                continue
            option = item.metadata.get("option")
            if option and all(getattr(self, need) for need in option.needs):
                options[option.key] = option.kind.write(value)
        return options

    def options(self) -> str:
        """Give the option string for the plugin's macro command."""
        return format_options(self.as_options())

    def __str__(self) -> str:
        return self.options()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a macro option string of this or a later version of the plugin.

        Parameters
        ----------
        text
            As ImageJ's recorder writes it. Options of modules that are not chosen are passed over, as by the
            plugin; options left out take its defaults.

        Raises
        ------
        FijiBridgeError
            If a module or option is unknown or of a later version, or a value is not what it must be.
        """
        given = as_meant(parse_options(text))
        cls._require_known(given)
        return cls._read(given)

    @classmethod
    def _read(cls, given: Mapping[str, str]) -> Self:
        chosen, values = cls._choose(given), {}
        for item in dataclasses.fields(chosen):
            if "group" in item.metadata:
                values[item.name] = item.metadata["group"]._read(given)
        for name, option in _options_of(chosen):
            needed = all(values.get(need, dict(_options_of(chosen))[need].default) for need in option.needs)
            if option.key in given and needed:
                values[name] = option.read(given[option.key])
        return chosen(**values)

    @classmethod
    def _choose(cls, given: Mapping[str, str]) -> type[Self]:
        """Find the class for the names that are given; the first stands for names left out."""
        candidates, place = list(cls.modules()), 0
        while place < len(candidates[0].fixed):
            key, first = list(candidates[0].fixed.items())[place]
            if key not in given and not (cls.chosen_by_default or place):
                raise FijiBridgeError(f"Choose {key}= one of {_names(candidates, key)}.")
            wanted = given.get(key, first).strip()
            named = [c for c in candidates if c.fixed.get(key, "").casefold() == wanted.casefold()]
            if not named:
                later = "; it came with a later version" if LATER_MODULES.search(wanted) else ""
                raise FijiBridgeError(
                    f"ThunderSTORM 1.3 has no {key}=[{wanted}]{later}; it has {_names(candidates, key)}."
                )
            candidates, place = named, place + 1
        return candidates[0]

    @classmethod
    def modules(cls) -> Iterator[type[Self]]:
        """Give the classes among which one is chosen, in the plugin's order; itself if it is one."""
        below = cls.__subclasses__()
        if not below:
            yield cls
        for child in below:
            yield from child.modules()

    @classmethod
    def keys(cls) -> set[str]:
        """Give all option keys that some module of this group or command reads."""
        keys: set[str] = set()
        for module in cls.modules():
            keys |= set(module.fixed) | {option.key for _, option in _options_of(module)}
            for item in dataclasses.fields(module):
                if "group" in item.metadata:
                    keys |= item.metadata["group"].keys()
        return keys

    @classmethod
    def _require_known(cls, given: Mapping[str, str]) -> None:
        known = cls.keys()
        for key in given:
            if key in LATER_OPTIONS:
                raise FijiBridgeError(
                    f"The option {key}= came with a later version of ThunderSTORM; 1.3 has no such choice, "
                    "so leave it out."
                )
            if key not in known:
                similar = difflib.get_close_matches(key, known, 1, 0.6)
                hint = f"write {similar[0]}=" if similar else f"it has {', '.join(sorted(known))}"
                raise FijiBridgeError(f"ThunderSTORM 1.3 has no option {key}= here; {hint}.")


def as_meant(options: Mapping[str, str]) -> dict[str, str]:
    """Put options in the words of version 1.3: keys in small letters, later names by the names they had.

    Raises
    ------
    FijiBridgeError
        If an option is given twice in different spellings with different values.
    """
    meant: dict[str, str] = {}
    for key, value in options.items():
        key = LATER_NAMES.get(key.lower(), key.lower())
        if key in LATER_WITHOUT_EFFECT:
            continue
        if "formula" in key:
            value = LATER_COLUMN.sub("uncertainty", value)
        _merge(meant, {key: value})
    return meant


def _merge(options: dict[str, str], more: Mapping[str, str]) -> None:
    for key, value in more.items():
        if options.setdefault(key, value) != value:
            raise FijiBridgeError(
                f"The option {key}= stands for two modules, as {options[key]} and as {value}, but "
                "ThunderSTORM reads one value for both; give both the same."
            )


def _options_of(settings: type[Settings]) -> Iterator[tuple[str, Option]]:
    for item in dataclasses.fields(settings):
        if "option" in item.metadata:
            yield item.name, item.metadata["option"]


def _names(candidates: list[type[Any]], key: str) -> str:
    return ", ".join(dict.fromkeys(c.fixed[key] for c in candidates if key in c.fixed))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


class ImageFilter(Settings):
    """Filter before detection."""


@dataclass(frozen=True)
class WaveletFilter(ImageFilter):
    """Difference of two levels of a wavelet transform with B-splines (Izeddin et al. 2012).

    The plugin takes any order, but twice as long for each: seconds for 19, days for 40.
    """

    fixed: ClassVar = {"filter": "Wavelet filter (B-Spline)"}
    scale: float = _option("scale", 2.0, POSITIVE)
    order: int = _option("order", 3, _from_to(1, 20))


@dataclass(frozen=True)
class BoxFilter(ImageFilter):
    """Mean over a square."""

    fixed: ClassVar = {"filter": "Averaging (Box) filter"}
    size_px: int = _option("size", 3, POSITIVE)


@dataclass(frozen=True)
class DifferenceOfBoxFilters(ImageFilter):
    """Mean over a small square less that over a large one."""

    fixed: ClassVar = {"filter": "Difference of averaging filters"}
    first_size_px: int = _option("size1", 3, POSITIVE)
    second_size_px: int = _option("size2", 5, POSITIVE)


@dataclass(frozen=True)
class GaussianFilter(ImageFilter):
    """Convolution with a Gaussian."""

    fixed: ClassVar = {"filter": "Gaussian filter"}
    sigma_px: float = _option("sigma", 1.6, POSITIVE)


@dataclass(frozen=True)
class LoweredGaussianFilter(ImageFilter):
    """Convolution with a Gaussian less its mean."""

    fixed: ClassVar = {"filter": "Lowered Gaussian filter"}
    sigma_px: float = _option("sigma", 1.6, POSITIVE)


@dataclass(frozen=True)
class DifferenceOfGaussiansFilter(ImageFilter):
    """Convolution with a narrow Gaussian less that with a wide one."""

    fixed: ClassVar = {"filter": "Difference-of-Gaussians filter"}
    first_sigma_px: float = _option("sigma1", 1.0, POSITIVE)
    second_sigma_px: float = _option("sigma2", 1.6, POSITIVE)


@dataclass(frozen=True)
class MedianFilter(ImageFilter):
    """Median over a square or a cross."""

    fixed: ClassVar = {"filter": "Median filter"}
    size_px: int = _option("size", 3, POSITIVE)
    pattern: str = _option("pattern", "box", _one_of("box", "cross"))


@dataclass(frozen=True)
class NoFilter(ImageFilter):
    """The image as it is."""

    fixed: ClassVar = {"filter": "No filter"}


class Detector(Settings):
    """Detection of candidates in the filtered image."""


@dataclass(frozen=True)
class LocalMaximum(Detector):
    """Pixels above the threshold and above their neighbours."""

    fixed: ClassVar = {"detector": "Local maximum"}
    connectivity: str = _option(
        "connectivity", "8-neighbourhood", _one_of("8-neighbourhood", "4-neighbourhood")
    )
    threshold: str = _option("threshold", "std(Wave.F1)")


@dataclass(frozen=True)
class ConnectedComponents(Detector):
    """Centroids of the regions above the threshold, cut by a watershed if wanted."""

    fixed: ClassVar = {"detector": "Centroid of connected components"}
    threshold: str = _option("threshold", "std(Wave.F1)")
    watershed: bool = _option("watershed", False)


@dataclass(frozen=True)
class NonMaximumSuppression(Detector):
    """Pixels above the threshold that are the largest within a radius."""

    fixed: ClassVar = {"detector": "Non-maximum suppression"}
    radius_px: int = _option("radius", 1, POSITIVE)
    threshold: str = _option("threshold", "std(Wave.F1)")


class Estimator(Settings):
    """Sub-pixel localization of the candidates."""


@dataclass(frozen=True)
class GaussianFit(Estimator):
    """Options that the three fits of a Gaussian share; those after `multi_emitter` are for that."""

    fit_radius_px: int = _option("fitradius", 3, POSITIVE)
    method: str = _option(
        "method",
        "Weighted Least squares",
        _one_of("Weighted Least squares", "Least squares", "Maximum likelihood"),
    )
    sigma_px: float = _option("sigma", 1.6, POSITIVE)
    full_image_fitting: bool = _option("full_image_fitting", False)
    multi_emitter: bool = _option("mfaenabled", False)
    most_molecules: int = _option("nmax", 5, NOT_NEGATIVE, ("multi_emitter",))
    p_value: float = _option("pvalue", 1e-6, NOT_NEGATIVE, ("multi_emitter",))
    same_intensity: bool = _option("keep_same_intensity", True, ANY, ("multi_emitter",))
    limit_intensity: bool = _option("fixed_intensity", False, ANY, ("multi_emitter",))
    intensity_photons: tuple[float, float] = _option(
        "expected_intensity", (500.0, 2500.0), FROM_0_TO, ("multi_emitter", "limit_intensity")
    )


@dataclass(frozen=True)
class IntegratedGaussian(GaussianFit):
    """Fit of a Gaussian integrated over each pixel."""

    fixed: ClassVar = {"estimator": "PSF: Integrated Gaussian"}


@dataclass(frozen=True)
class Gaussian(GaussianFit):
    """Fit of a Gaussian sampled at the pixels' centres."""

    fixed: ClassVar = {"estimator": "PSF: Gaussian"}


@dataclass(frozen=True)
class EllipticalGaussian(GaussianFit):
    """Fit of an elliptical Gaussian: z from astigmatism, by the calibration of a cylindrical lens."""

    fixed: ClassVar = {"estimator": "PSF: Elliptical Gaussian (3D astigmatism)"}
    calibration_path: str = _option("calibrationpath", "")


@dataclass(frozen=True)
class RadialSymmetry(Estimator):
    """Point of highest radial symmetry (Parthasarathy 2012)."""

    fixed: ClassVar = {"estimator": "Radial symmetry"}
    fit_radius_px: int = _option("fitradius", 5, POSITIVE)


@dataclass(frozen=True)
class Centroid(Estimator):
    """Centre of mass around the candidate."""

    fixed: ClassVar = {"estimator": "Centroid of local neighborhood"}
    fit_radius_px: int = _option("fitradius", 3, POSITIVE)


@dataclass(frozen=True)
class NoEstimator(Estimator):
    """The candidates as they are."""

    fixed: ClassVar = {"estimator": "No estimator"}


class Renderer(Settings):
    """Super-resolution image of a table."""


@dataclass(frozen=True)
class Rendering(Renderer):
    """Options that all renderers share; the depth is divided into slices when `three_d` is set."""

    magnification: float = _option("magnification", 5.0, POSITIVE)
    repaint_frames: int = _option("repaint", 50, NOT_NEGATIVE)
    three_d: bool = _option("threed", False)
    colorize_z: bool = _option("colorizez", False)
    z_range_nm: tuple[float, float, float] = _option(
        "zrange", (-500.0, 100.0, 500.0), FROM_STEP_TO, ("three_d",)
    )


@dataclass(frozen=True)
class AveragedShiftedHistograms(Rendering):
    """Mean of histograms whose bins are shifted against each other."""

    fixed: ClassVar = {"renderer": "Averaged shifted histograms"}
    shifts: int = _option("shifts", 2, POSITIVE)
    z_shifts: int = _option("zshifts", 2, POSITIVE, ("three_d",))


@dataclass(frozen=True)
class ScatterPlot(Rendering):
    """One bright pixel a molecule."""

    fixed: ClassVar = {"renderer": "Scatter plot"}


@dataclass(frozen=True)
class NormalizedGaussian(Rendering):
    """A Gaussian a molecule, as wide as its uncertainty or as `uncertainty_nm` where that is forced."""

    fixed: ClassVar = {"renderer": "Normalized Gaussian"}
    uncertainty_nm: float = _option("dx", 20.0, POSITIVE)
    z_uncertainty_nm: float = _option("dz", 100.0, POSITIVE, ("three_d",))
    force_uncertainty: bool = _option("dxforce", False)
    force_z_uncertainty: bool = _option("dzforce", False)


@dataclass(frozen=True)
class Histograms(Rendering):
    """Counts, or the mean of `averages` histograms of molecules jittered by their uncertainty."""

    fixed: ClassVar = {"renderer": "Histograms"}
    averages: int = _option("avg", 0, NOT_NEGATIVE)
    uncertainty_nm: float = _option("dx", 20.0, POSITIVE, ("averages",))
    z_uncertainty_nm: float = _option("dz", 100.0, POSITIVE, ("three_d", "averages"))
    force_uncertainty: bool = _option("dxforce", False, ANY, ("averages",))
    force_z_uncertainty: bool = _option("dzforce", False, ANY, ("averages",))


@dataclass(frozen=True)
class NoRenderer(Renderer):
    """No image; the plugin reads none of the options that it has here."""

    fixed: ClassVar = {"renderer": "No Renderer"}


@dataclass(frozen=True)
class AnalysisSettings(Settings):
    """`Run analysis`."""

    filter: ImageFilter = field(default_factory=WaveletFilter, metadata={"group": ImageFilter})
    detector: Detector = field(default_factory=LocalMaximum, metadata={"group": Detector})
    estimator: Estimator = field(default_factory=IntegratedGaussian, metadata={"group": Estimator})
    renderer: Renderer = field(default_factory=AveragedShiftedHistograms, metadata={"group": Renderer})


@dataclass(frozen=True)
class Visualization(Settings):
    """`Visualization` of a table: a renderer and the region of the raw image that it shows."""

    left_px: float = _option("imleft", 0.0)
    top_px: float = _option("imtop", 0.0)
    width_px: float = _option("imwidth", 0.0, NOT_NEGATIVE)
    height_px: float = _option("imheight", 0.0, NOT_NEGATIVE)
    renderer: Renderer = field(default_factory=AveragedShiftedHistograms, metadata={"group": Renderer})


class PostProcessing(Settings):
    """A step of `Show results table`."""

    chosen_by_default: ClassVar = False
    of_places: ClassVar = True
    """Whether it compares positions, which must then be finite."""


@dataclass(frozen=True)
class FilterResults(PostProcessing):
    """Keep the rows for which a formula holds, such as ``intensity > 500 & uncertainty < 10``."""

    fixed: ClassVar = {"action": "filter"}
    of_places: ClassVar = False
    formula: str = _option("formula", "")


@dataclass(frozen=True)
class LocalDensity(PostProcessing):
    """Keep the molecules with enough neighbours within a radius."""

    fixed: ClassVar = {"action": "density"}
    radius_nm: float = _option("radius", 50.0, POSITIVE)
    dimensions: str = _option("dimensions", "2D", _one_of("2D", "3D"))
    least_neighbours: int = _option("neighbors", 5, POSITIVE)


@dataclass(frozen=True)
class RemoveDuplicates(PostProcessing):
    """Of molecules of one frame within a distance, keep the least uncertain."""

    fixed: ClassVar = {"action": "duplicates"}
    distance_formula: str = _option("distformula", "uncertainty")


@dataclass(frozen=True)
class Merge(PostProcessing):
    """Join the molecules that shine on in following frames."""

    fixed: ClassVar = {"action": "merge"}
    distance_nm: float = _option("dist", 20.0, NOT_NEGATIVE)
    off_frames: int = _option("offframes", 1, NOT_NEGATIVE)
    most_frames: int = _option("framespermolecule", 0, NOT_NEGATIVE)
    z_weight: float = _option("zcoordweight", 0.1, NOT_NEGATIVE)


@dataclass(frozen=True)
class CrossCorrelationDrift(PostProcessing):
    """Drift from the cross correlation of images of successive stretches of the movie."""

    fixed: ClassVar = {"action": "drift", "method": "Cross correlation"}
    bins: int = _option("steps", 5, _at_least(2))
    magnification: float = _option("magnification", 5.0, POSITIVE)
    show_correlations: bool = _option("showcorrelations", False)
    save: bool = _option("save", False)
    path: str = _option("path", "", ANY, ("save",))


@dataclass(frozen=True)
class FiducialDrift(PostProcessing):
    """Drift from markers that shine through the movie."""

    fixed: ClassVar = {"action": "drift", "method": "Fiducial markers"}
    distance_nm: float = _option("distancethr", 40.0, POSITIVE)
    on_time_ratio: float = _option("ontimeratio", 0.1, FRACTION)
    smoothing: float = _option("smoothingbandwidth", 0.25, FRACTION)
    save: bool = _option("save", False)
    path: str = _option("path", "", ANY, ("save",))


@dataclass(frozen=True)
class SavedDrift(PostProcessing):
    """Drift that one of the other methods saved to a JSON file."""

    fixed: ClassVar = {"action": "drift", "method": "Load from file"}
    path: str = _option("path", "")


@dataclass(frozen=True)
class StageOffset(PostProcessing):
    """Add the position of a stage that moves between frames to z."""

    fixed: ClassVar = {"action": "offset"}
    of_places: ClassVar = False
    frames_per_position: int = _option("framesperstagepos", 1, POSITIVE)
    positions: int = _option("stagepositions", 1, POSITIVE)
    step_nm: float = _option("stagestep", 0.0)
    first_nm: float = _option("firstposoffset", 0.0)


class PSF(Settings):
    """Image of one molecule of the generator."""


@dataclass(frozen=True)
class IntegratedGaussianPSF(PSF):
    """Gaussian integrated over each pixel."""

    fixed: ClassVar = {"psf": "Integrated Gaussian"}
    fwhm_nm: tuple[float, float] = _option("fwhm_range", (200.0, 350.0), FROM_0_TO)


@dataclass(frozen=True)
class GaussianPSF(PSF):
    """Gaussian sampled at the pixels' centres."""

    fixed: ClassVar = {"psf": "Gaussian"}
    fwhm_nm: tuple[float, float] = _option("fwhm_range", (200.0, 350.0), FROM_0_TO)


@dataclass(frozen=True)
class EllipticalGaussianPSF(PSF):
    """Astigmatic Gaussian of a calibration; the name is misspelt as in the plugin."""

    fixed: ClassVar = {"psf": "Eliptical Gaussian (3D astigmatism)"}
    calibration_path: str = _option("calibration", "")
    z_range_nm: tuple[float, float] = _option("z_range", (-300.0, 300.0), FROM_TO)


@dataclass(frozen=True)
class Generator(Settings):
    """`Generator of simulated data`; the three s of ``addpoisssonvar`` are the plugin's."""

    width_px: int = _option("width", 256, POSITIVE)
    height_px: int = _option("height", 256, POSITIVE)
    frames: int = _option("frames", 1000, POSITIVE)
    density_per_um2: float = _option("density", 0.1, NOT_NEGATIVE)
    background_photons: float = _option("addpoisssonvar", 30.0, NOT_NEGATIVE)
    intensity_photons: tuple[float, float] = _option("intensityrange", (700.0, 900.0), FROM_0_TO)
    drift_nm: float = _option("driftdist", 0.0)
    drift_angle_deg: float = _option("driftangle", 0.0)
    mask_path: str = _option("maskpath", "")
    background_mask_path: str = _option("maskpathbg", "")
    single_molecule: bool = _option("singlefixed", False)
    psf: PSF = field(default_factory=IntegratedGaussianPSF, metadata={"group": PSF})


@dataclass(frozen=True)
class Evaluation(Settings):
    """`Performance evaluation` against the table of ground truth."""

    radius_nm: float = _option("toleranceradius", 50.0, POSITIVE)
    space: str = _option("evaluationspace", "xy", _one_of("xy", "xyz"))


class Defocus(Settings):
    """How the width of an astigmatic image depends on z."""


@dataclass(frozen=True)
class PolynomialDefocus(Defocus):
    """The plugin's own curve, quadratic in z."""

    fixed: ClassVar = {"defocusing": "ThunderSTORM"}


@dataclass(frozen=True)
class HuangDefocus(Defocus):
    """The curve of Huang et al., Science 319, 810 (2008)."""

    fixed: ClassVar = {"defocusing": "Huang '08"}


class CalibrationEstimator(Settings):
    """Fit of the beads of a calibration."""


@dataclass(frozen=True)
class RotatedEllipticalGaussian(CalibrationEstimator):
    """Elliptical Gaussian with a free angle, the one fit that a calibration has."""

    fixed: ClassVar = {"estimator": "Elliptic Gaussian w/ angle"}
    fit_radius_px: int = _option("fitradius", 3, POSITIVE)
    method: str = _option(
        "method",
        "Weighted Least squares",
        _one_of("Weighted Least squares", "Least squares", "Maximum likelihood"),
    )
    sigma_px: float = _option("sigma", 1.6, POSITIVE)
    full_image_fitting: bool = _option("full_image_fitting", False)


@dataclass(frozen=True)
class Calibration(Settings):
    """`Cylindrical lens calibration`."""

    stage_step_nm: float = _option("stage", 10.0, POSITIVE)
    z_range_nm: float = _option("zrange", 400.0, POSITIVE)
    path: str = _option("saveto", "")
    filter: ImageFilter = field(default_factory=WaveletFilter, metadata={"group": ImageFilter})
    detector: Detector = field(default_factory=LocalMaximum, metadata={"group": Detector})
    estimator: CalibrationEstimator = field(
        default_factory=RotatedEllipticalGaussian, metadata={"group": CalibrationEstimator}
    )
    defocus: Defocus = field(default_factory=PolynomialDefocus, metadata={"group": Defocus})


RESULTS_TABLE, GROUND_TRUTH_TABLE = "Results table", "Ground-truth table"
"""What the plugin calls its two tables."""


@dataclass(frozen=True)
class Colocalization(Settings):
    """`CBC`, coordinate-based colocalization (Malkusch et al. 2012)."""

    radius_step_nm: int = _option("radiusstep", 50, POSITIVE)
    dimensions: str = _option("dimensions", "2D", _one_of("2D", "3D"))
    steps: int = _option("stepcount", 10, _from_to(2, 10_000))
    first: str = _option("channel1", RESULTS_TABLE, _one_of(RESULTS_TABLE, GROUND_TRUTH_TABLE))
    second: str = _option("channel2", GROUND_TRUTH_TABLE, _one_of(RESULTS_TABLE, GROUND_TRUTH_TABLE))
    add_cbc: bool = _option("addcbc", True)
    add_distance: bool = _option("addnndist", False)
    add_counts: bool = _option("addnncount", False)


class FileFormat(Settings):
    """Format of a table's file."""

    suffix: ClassVar[str]


@dataclass(frozen=True)
class CSV(FileFormat):
    """Text, separated by commas."""

    fixed: ClassVar = {"fileformat": "CSV (comma separated)"}
    suffix: ClassVar = "csv"


@dataclass(frozen=True)
class XLS(FileFormat):
    """Text, separated by tabs."""

    fixed: ClassVar = {"fileformat": "XLS (tab separated)"}
    suffix: ClassVar = "xls"


@dataclass(frozen=True)
class XML(FileFormat):
    """XML."""

    fixed: ClassVar = {"fileformat": "XML"}
    suffix: ClassVar = "xml"


@dataclass(frozen=True)
class JSON(FileFormat):
    """JSON."""

    fixed: ClassVar = {"fileformat": "JSON"}
    suffix: ClassVar = "json"


@dataclass(frozen=True)
class YAML(FileFormat):
    """YAML."""

    fixed: ClassVar = {"fileformat": "YAML"}
    suffix: ClassVar = "yaml"


@dataclass(frozen=True)
class ProtocolBuffer(FileFormat):
    """Google's protocol buffer."""

    fixed: ClassVar = {"fileformat": "Google Protocol Buffer"}
    suffix: ClassVar = "gpb"


@dataclass(frozen=True)
class TaggedSpotFile(FileFormat):
    """Tagged spot file (TSF), as of Micro-Manager."""

    fixed: ClassVar = {"fileformat": "Tagged spot file"}
    suffix: ClassVar = "tsf"


@dataclass(frozen=True)
class Import(Settings):
    """`Import results`, and `Import ground-truth` when `live_preview` and `raw_stack` are left alone."""

    path: str = _option("filepath", "")
    format: FileFormat = field(default_factory=CSV, metadata={"group": FileFormat})
    first_frame: int = _option("startingframe", 1, POSITIVE)
    append: bool = _option("append", False)
    live_preview: bool = _option("livepreview", True)
    raw_stack: str = _option("rawimagestack", "")


@dataclass(frozen=True)
class Export(Settings):
    """`Export results` and `Export ground-truth`.

    A column that is neither in `columns` nor in `left_out` is written unless it is the first one; with none
    to write, all are.
    """

    path: str = _option("filepath", "")
    format: FileFormat = field(default_factory=CSV, metadata={"group": FileFormat})
    save_protocol: bool = _option("saveprotocol", True)
    columns: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    def as_options(self) -> dict[str, str]:
        """Give the options by key, the columns among them."""
        chosen = dict.fromkeys(self.columns, "true") | dict.fromkeys(self.left_out, "false")
        return super().as_options() | chosen

    def chosen(self, columns: Sequence[str]) -> list[str]:
        """Give those of a table's columns that are written."""
        written = [
            c
            for place, c in enumerate(columns)
            if c in self.columns or (place > 0 and c not in self.left_out)
        ]
        return written or list(columns)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a macro option string, in which every key that is no option names a column."""
        given = as_meant(parse_options(text))
        named = given.keys() - cls.keys()
        marks = {
            LATER_COLUMN.sub("uncertainty", key): Option(key, ANY, (), KINDS[bool], False).read(text)
            for key, text in given.items()
            if key in named
        }
        columns = tuple(key for key, chosen in marks.items() if chosen)
        left_out = tuple(key for key, chosen in marks.items() if not chosen)
        return dataclasses.replace(cls._read(given), columns=columns, left_out=left_out)


def check_saved(step: PostProcessing, *files: Path | None) -> None:
    """Keep a drift that is saved as well from taking the place of one of these files.

    Raises
    ------
    FijiBridgeError
        If it would, or has no name.
    """
    if not isinstance(step, (CrossCorrelationDrift, FiducialDrift)) or not step.save:
        return
    if not step.path:
        raise FijiBridgeError("save=true needs path=, the file to save the drift to.")
    if Path(step.path).resolve() in {path.resolve() for path in files if path}:
        raise FijiBridgeError(f"save=true writes the drift to path={step.path}; name another file.")
    check_target(step.path)
