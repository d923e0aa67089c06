"""ImageJ macro option strings: ``key=value key=[value with spaces] flag``.

The same strings drive the plugin, both localizers, the simulator and the camera, so that what a user
recorded in ImageJ can be pasted anywhere here.
"""

import re
from collections.abc import Mapping

from fiji_bridge.errors import FijiBridgeError

DEFAULT_OPTIONS = (
    "filter=[Wavelet filter (B-Spline)] scale=2.0 order=3"
    " detector=[Local maximum] connectivity=8-neighbourhood threshold=std(Wave.F1)"
    " estimator=[PSF: Integrated Gaussian] sigma=1.6 fitradius=3 method=[Weighted Least squares]"
    " full_image_fitting=false mfaenabled=false"
)
"""ThunderSTORM 1.3's `Run analysis` as it stands after installation."""

_KEY = re.compile(r"[^\W\d][\w.%-]*")
_CLOSING_QUOTE = {'"': '"', "'": "'", "“": "”", "”": "”", "„": "“”", "‘": "’", "’": "’", "«": "»"}
_QUOTES = tuple(_CLOSING_QUOTE)


def parse_options(text: str) -> dict[str, str]:
    r"""Read an option string as ImageJ does.

    Brackets nest and everything inside them is kept as it is, backslashes included. Quotes around a value or
    around the whole string, straight or curly, are dropped: they come from documents and shells.

    Parameters
    ----------
    text
        For example ``"filter=[Wavelet filter (B-Spline)] scale=2.0 order=3"``.

    Returns
    -------
    dict
        Values by key, in the order given; a bare flag has the value ``"true"``.

    Raises
    ------
    FijiBridgeError
        If a bracket or quote is not closed, a word is neither key nor value, or a key has two values (ImageJ
        would silently take the first).
    """
    text = _without_quotes(text.strip())
    options: dict[str, str] = {}
    at = 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        key, at = _read_key(text, at)
        value = "true"
        if at < len(text) and text[at] == "=":
            value, at = _read_value(text, at + 1, key)
        if options.setdefault(key, value) != value:
            raise FijiBridgeError(
                f"The option {key} is given twice, as {options[key]!r} and as {value!r}; leave one out."
            )
    return options


def format_options(options: Mapping[str, str]) -> str:
    """Write values by key as an option string that `parse_options` and ImageJ read back unchanged.

    Raises
    ------
    FijiBridgeError
        If a key is not a word, or a value that needs brackets has brackets of its own that do not match.
    """
    return " ".join(f"{key}={_quoted(key, value)}" for key, value in options.items())


def _read_key(text: str, at: int) -> tuple[str, int]:
    match = _KEY.match(text, at)
    end = match.end() if match else at
    if not match or (end < len(text) and text[end] != "=" and not text[end].isspace()):
        word = text[at:].split(maxsplit=1)[0]
        raise FijiBridgeError(
            f"Cannot read {word!r} in the options {text!r}; write key=value or key=[a value]."
        )
    return match.group(), end


def _read_value(text: str, at: int, key: str) -> tuple[str, int]:
    first = text[at : at + 1]
    if first == "[":
        end = _closing_bracket(text, at)
        if end is None:
            raise FijiBridgeError(f"The bracket after {key}= is not closed in the options {text!r}; add a ].")
        value, end = text[at + 1 : end], end + 1
    elif first in _QUOTES:
        closings = [i for c in _CLOSING_QUOTE[first] if (i := text.find(c, at + 1)) >= 0]
        if not closings:
            raise FijiBridgeError(
                f"The quote after {key}= is not closed in the options {text!r}; use {key}=[…]."
            )
        end = min(closings)
        value, end = text[at + 1 : end], end + 1
    else:
        rest = text[at:]
        value = "" if not rest or rest[0].isspace() else rest.split(maxsplit=1)[0]
        end = at + len(value)
    if end < len(text) and not text[end].isspace():
        raise FijiBridgeError(
            f"Unexpected {text[end]!r} after the value of {key} in the options {text!r}; remove it."
        )
    return value, end


def _closing_bracket(text: str, start: int) -> int | None:
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "[") - (text[i] == "]")
        if depth == 0:
            return i
    return None


def _without_quotes(text: str) -> str:
    if len(text) >= 2 and text[-1] in _CLOSING_QUOTE.get(text[0], ""):
        return text[1:-1].strip()
    return text


def _quoted(key: str, value: str) -> str:
    if not _KEY.fullmatch(key):
        raise FijiBridgeError(f"{key!r} cannot name an option; use letters, digits and underscores.")
    if not (value.startswith(("[", *_QUOTES)) or any(c.isspace() for c in value)):
        return value
    bracketed = f"[{value}]"
    if _closing_bracket(bracketed, 0) != len(bracketed) - 1:
        raise FijiBridgeError(f"The value {value!r} of {key} has brackets that do not match; pair them.")
    return bracketed
