"""The commands as modules of ImageJ2 and Fiji: in the menu and the search bar, with the dialog made for them.

Scripts run them by name, with inputs by the keys of the option strings, and find the results in the outputs
``result`` (the image), ``table`` and ``text``::

    denoise = ij.module().getModuleById("fiji-bridge:denoise")
    done = ij.module().run(denoise, True, {"image": movie, "model": "/data/movie.safetensors"}).get()
    done.getOutput("result")

A module that cannot do its work is cancelled, and the reason, one sentence, is its ``getCancelReason()``.
"""

import threading
import traceback
from collections.abc import Callable
from keyword import iskeyword
from typing import Any

from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.imagej.commands import COMMANDS, Command, Parameter
from fiji_bridge.imagej.in_process import LOOK, Bridge, StoppedError

IMAGE = "image"
"""The input that holds an ImagePlus; the current image is taken when neither it nor `input` is given."""
OUTPUTS = {"result": "ij.ImagePlus", "table": "ij.measure.ResultsTable", "text": "java.lang.String"}
"""Their Java types; what a command does not make stays null."""


def add_modules(bridge: Bridge, modules: Any) -> None:
    """Add every command to ImageJ2's ModuleService."""
    info_class = _implementing(_Info, "org.scijava.module.MutableModuleInfo")
    module_class = _implementing(_Module, "org.scijava.module.MutableModule", "org.scijava.Cancelable")
    for command in COMMANDS:
        modules.addModule(info_class(bridge, command, module_class))


def _implementing(cls: type, *interfaces: str) -> Any:
    """Make of `cls` one that implements Java's interfaces; what it does not say itself, its `base` does."""
    from jpype import JClass, JImplements, JOverride

    def forward(name: str) -> Callable[..., Any]:
        known = f"{name}_" if iskeyword(name) else name  # as JPype calls it
        return lambda self, *arguments: getattr(self.base, known)(*arguments)

    names = {str(m.getName()) for interface in interfaces for m in JClass(interface).class_.getMethods()}
    members = {name: JOverride(vars(cls).get(name) or forward(name)) for name in names}
    return JImplements(*interfaces)(type(cls.__name__, (cls,), members))


class _Info:
    """What ImageJ2 knows of a command."""

    def __init__(self, bridge: Bridge, command: Command, module_class: Any) -> None:
        from jpype import JClass

        self._bridge, self._command, self._module_class = bridge, command, module_class
        self.base = JClass("org.scijava.module.DefaultMutableModuleInfo")()
        self.base.setName(command.name)
        self.base.setLabel(command.menu)
        self.base.setDescription(command.does)
        self.base.setMenuPath(JClass("org.scijava.MenuPath")(f"Plugins > Fiji Bridge > {command.menu}"))
        Item = JClass("org.scijava.module.DefaultMutableModuleItem")
        image = Item(self, IMAGE, JClass("ij.ImagePlus"))
        image.setRequired(False)
        self.base.addInput(image)
        for parameter in command.parameters:
            self.base.addInput(_item(Item, self, command, parameter))
        for name, kind in OUTPUTS.items():
            self.base.addOutput(Item(self, name, JClass(kind)))

    def getIdentifier(self) -> str:  # noqa: N802
        return f"fiji-bridge:{self._command.cli}"

    def getDelegateClassName(self) -> str:  # noqa: N802
        return f"fiji_bridge.{self._command.cli}"

    def getLocation(self) -> str:  # noqa: N802
        return "fiji_bridge"

    def getVersion(self) -> str:  # noqa: N802
        from fiji_bridge import __version__

        return __version__

    def canRunHeadless(self) -> bool:  # noqa: N802
        return True

    def createModule(self) -> Any:  # noqa: N802
        return self._module_class(self._bridge, self._command, self)


class _Module:
    """A command that is run once."""

    def __init__(self, bridge: Bridge, command: Command, info: Any) -> None:
        from jpype import JClass

        self._bridge, self._command = bridge, command
        self._cancelled = threading.Event()
        self._reason: str | None = None
        self.base = JClass("org.scijava.module.DefaultMutableModule")(info)

    def run(self) -> None:
        given = {str(entry.getKey()): entry.getValue() for entry in self.base.getInputs().entrySet()}
        image = given.pop(IMAGE) or self._bridge.windows.getCurrentImage()
        values = {key: str(value) for key, value in given.items() if value is not None}
        try:
            shown = self._bridge.run(self._command, values, image, self._pause)
        except StoppedError:
            self.cancel()  # whoever stopped it needs no message
        except FijiBridgeError as error:
            self.cancel(str(error))
        except Exception as error:
            traceback.print_exception(error)
            self.cancel(f"{self._command.name} failed: {error}")
        else:
            self._give("result", next(iter(shown.images), None))
            self._give("table", next(iter(shown.tables.values()), None))
            self._give("text", shown.text)

    def _pause(self) -> None:
        if self._cancelled.wait(LOOK):
            raise StoppedError("Stopped.")

    def _give(self, name: str, value: Any) -> None:
        self.base.setOutput(name, value)
        self.base.resolveOutput(name)  # it is on the screen already

    def cancel(self, reason: Any = None) -> None:
        self._reason = self._reason or (None if reason is None else str(reason))
        self._cancelled.set()

    def isCanceled(self) -> bool:  # noqa: N802
        return self._cancelled.is_set()

    def getCancelReason(self) -> str | None:  # noqa: N802
        return self._reason


def _item(Item: Any, info: Any, command: Command, parameter: Parameter) -> Any:
    """Describe a parameter: the type, and with it the widget of the dialog, follows its kind."""
    from jpype import JClass

    styles = {"open": "open", "save": "save", "folder": "directory"}
    types = {"number": "java.lang.Double"} | dict.fromkeys(styles, "java.io.File")
    item = Item(info, parameter.key, JClass(types.get(parameter.kind, "java.lang.String")))
    item.setLabel(parameter.label.replace("_", " "))
    item.setDescription(parameter.help)
    item.setRequired(False)
    item.setPersistKey(f"fiji_bridge.{command.cli}.{parameter.key}")
    # Scripts must not depend on what was entered last.
    item.setPersisted(not JClass("java.awt.GraphicsEnvironment").isHeadless())
    if parameter.kind in styles:
        item.setWidgetStyle(styles[parameter.kind])
    else:
        item.setDefaultValue(parameter.default)
    if parameter.kind == "number":
        item.setMinimumValue(0.0)
    if parameter.choices:
        item.setChoices(JClass("java.util.Arrays").asList(*parameter.choices))
    return item
