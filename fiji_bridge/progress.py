"""How long work tells its caller how far it is."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called as ``progress(stage, done, total)``; whatever it raises cancels the work."""


def silent(stage: str, done: int, total: int) -> None:
    """Ignore progress: what a function uses when its caller gave none."""
