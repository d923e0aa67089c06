"""ImageJ inside this process, and this package inside ImageJ."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fiji_bridge.imagej.session import ImageJ, start

__all__ = ["ImageJ", "start"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from fiji_bridge.imagej import session

        return getattr(session, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
