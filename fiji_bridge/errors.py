"""The one error that users see, and what is asked of all seeds."""

from numbers import Integral


class FijiBridgeError(Exception):
    """A mistake that the user can mend.

    Its text is one sentence that says what was wrong, where (the file or option by name), and what to do.
    The command line prints it without a traceback and exits with status 1.
    """


def require_seed(seed: object) -> None:
    """Refuse what random numbers cannot start from: anything but whole numbers of 63 bits."""
    if not (isinstance(seed, Integral) and 0 <= int(seed) < 2**63):
        raise FijiBridgeError(f"The seed must be 0 or a positive whole number, not {seed!r}.")
