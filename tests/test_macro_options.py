"""Option strings recorded in ImageJ are read and written unchanged."""

import json
from pathlib import Path

import pytest

from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.macro_options import DEFAULT_OPTIONS, format_options, parse_options


def test_default_analysis_reads_as_recorded() -> None:
    options = parse_options(DEFAULT_OPTIONS)
    assert options["filter"] == "Wavelet filter (B-Spline)"
    assert options["threshold"] == "std(Wave.F1)"
    assert options["method"] == "Weighted Least squares"
    assert options["mfaenabled"] == "false"
    assert format_options(options) == DEFAULT_OPTIONS


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("  \n ", {}),
        ("watershed", {"watershed": "true"}),
        ("path=[C:\\my data\\a.tif] x=1", {"path": "C:\\my data\\a.tif", "x": "1"}),
        ("path=C:\\a[1].tif", {"path": "C:\\a[1].tif"}),
        ("name=[a [b] c] n=2", {"name": "a [b] c", "n": "2"}),
        ("maskpath= maskpathbg= n=1", {"maskpath": "", "maskpathbg": "", "n": "1"}),
        ("maskpath=", {"maskpath": ""}),
        ("formula=[intensity > 500 & uncertainty < 10]", {"formula": "intensity > 500 & uncertainty < 10"}),
        ("a=1\tb=2\nc=3", {"a": "1", "b": "2", "c": "3"}),
        ("“offset=414.0 pixelsize=160.0”", {"offset": "414.0", "pixelsize": "160.0"}),
        ("method=“Least squares” a='b c' d=„e f“", {"method": "Least squares", "a": "b c", "d": "e f"}),
        ("offset=-3.5e-2", {"offset": "-3.5e-2"}),
        ("threshold=2*std(Wave.F1)", {"threshold": "2*std(Wave.F1)"}),
        ("sigma=1.6 threshold=1 sigma=1.6", {"sigma": "1.6", "threshold": "1"}),
    ],
)
def test_read(text: str, expected: dict[str, str]) -> None:
    assert parse_options(text) == expected


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("filter=[Wavelet filter", "filter"),
        ("filter=[a [b] scale=2", "filter"),
        ("name=[a]] n=1", "name"),
        ("name=[a]n=1", "name"),
        ("] a=1", "]"),
        ("threshold=2 * std(Wave.F1)", "*"),
        ("scale = 2", "="),
        ("=3", "=3"),
        ("name='a b", "name"),
        ("sigma=1.6 sigma=2.0", "sigma"),
    ],
)
def test_broken_strings_are_refused_naming_the_place(text: str, named: str) -> None:
    with pytest.raises(FijiBridgeError) as error:
        parse_options(text)
    assert named in str(error.value)


@pytest.mark.parametrize(
    "value",
    ["", "a", "a b", "[a]", "a [b] c", "C:\\x y\\", "“quoted”", "'", "a]", "x=[y z] w", "line\nbreak", "a=b"],
)
def test_any_writable_value_survives_a_round_trip(value: str) -> None:
    assert parse_options(format_options({"key": value, "next": "1"})) == {"key": value, "next": "1"}


@pytest.mark.parametrize(
    ("key", "value"), [("key", "a ]b"), ("key", "[a"), ("key", "a] [b"), ("a b", "1"), ("", "1")]
)
def test_what_cannot_be_written_is_refused(key: str, value: str) -> None:
    with pytest.raises(FijiBridgeError):
        format_options({key: value})


@pytest.mark.parametrize("folder", ["default", "em_gain"])
def test_every_reference_string_reads_and_writes_back(shared_data: Path, folder: str) -> None:
    reference = json.loads((shared_data / "thunderstorm_reference" / folder / "reference.json").read_text())
    strings = [
        reference["camera"],
        reference["generate"],
        *(run["options"] for run in reference["runs"].values()),
    ]
    for text in strings:
        options = parse_options(text)
        assert parse_options(format_options(options)) == options
        assert all(f"{key}=" in text for key in options)
