"""Python behind ImageJ's commands, inside the process that started ImageJ.

In a session of `fiji_bridge.imagej.start`, headless or with windows, every macro, script or menu can run the
commands of `fiji_bridge.imagej.commands` by either of their names, on the current image or on a path::

    run("Blind-spot denoise", "model=[/data/my model.safetensors]");
    run("Denoise...", "input=/data/movie.tif model=/data/movie.safetensors output=[]");

Where there are windows, the commands are under Plugins ▸ Fiji Bridge as well; chosen there, or run without
options, a command asks for them. Without windows it takes its defaults.
Images appear with the calibration, axes, look-up tables and display range of the image they were made from,
and the newest is the current one. Tables appear in windows; without windows ImageJ knows only one table,
``Results``, and the newest takes its place. What was done goes to the Log, progress to the status bar. Esc
stops a command. An error is one message of ImageJ's, in which a macro ends.

Macros that want what a command made, instead of looking for it, use the extensions::

    run("Fiji Bridge Macro Extensions");
    Ext.denoise(imageID, options, denoisedID);    // number of the denoised image
    Ext.train(imageID, options, modelPath);       // path of the model
    Ext.localize(imageID, options, tableTitle);   // title of the table, for the functions Table.…
    Ext.compare(imageID, options, verdict);       // what came out, and where the report is

The first argument is a number that ``getImageID()`` gave, or 0 when the options have ``input=``. The options
are those of the command. The last is a variable that is set; a macro need not have set it before.
"""

import math
import threading
import time
import traceback
import webbrowser
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.imagej.commands import (
    COMMANDS,
    COMPARE,
    DENOISE,
    LOCALIZE,
    TRAIN,
    Command,
    Result,
    Value,
    find,
)
from fiji_bridge.imagej.pages import help_html
from fiji_bridge.progress import Progress

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from fiji_bridge.imagej.session import ImageJ

EXTENSIONS = "Fiji Bridge Macro Extensions"
CANCELED = "Macro canceled"
"""ImageJ's word for leaving a macro without another message."""
LOOK = 0.05
"""Seconds between looks at the Esc key, and between movements of the progress bar."""
SATURATED = 0.35
"""Percent of the pixels that are shown black or white in an image with new contents, as ImageJ has it."""


def register(ij: "ImageJ") -> None:
    """Make ImageJ answer to the commands and, where it is an ImageJ2, offer them as its modules.

    Parameters
    ----------
    ij
        The session, newly started.
    """
    from jpype import JClass

    bridge = Bridge(ij)
    JClass("ij.Executer").addCommandListener(_listener(bridge))
    if JClass("ij.IJ").getInstance() is not None:
        _add_menu()
    if ij.gateway is not None:
        from fiji_bridge.imagej.scijava_modules import add_modules

        add_modules(bridge, ij.gateway.module())


@dataclass(frozen=True)
class Shown:
    """What a command left in ImageJ: images, tables by their titles there, and what it said."""

    images: list[Any]
    tables: dict[str, Any]
    text: str


class StoppedError(FijiBridgeError):
    """The user stopped the work."""


def nap() -> None:
    """Let a little time go by."""
    time.sleep(LOOK)


class Bridge:
    """Runs commands for ImageJ: fetches the image, waits for the work, shows what came out."""

    def __init__(self, ij: "ImageJ") -> None:
        """Stand between `ij` and the commands."""
        from jpype import JClass

        self.ij = ij
        self.IJ = JClass("ij.IJ")
        self.windows = JClass("ij.WindowManager")
        # The work has threads of its own: Java's have little stack, and Esc may kill those of macros.
        self._workers = ThreadPoolExecutor(thread_name_prefix="fiji-bridge")

    def run(
        self,
        command: Command,
        options: str | Mapping[str, Any],
        image: Any = None,
        pause: Callable[[], object] = nap,
    ) -> Shown:
        """Run a command on an image (ImagePlus), or on what its options name, and show its results.

        Meanwhile `pause` is called again and again to let a little time go by; it may raise to stop the work.

        Raises
        ------
        StoppedError
            If the user pressed Esc.
        FijiBridgeError
            As the command does, or if another command works on the image.
        """
        values = command.values(options)
        image = image if command.takes_image(values) else None
        with self._locked(image):
            array = None if image is None else self.ij.to_python(image)
            title = "" if image is None else str(image.getTitle())

            def work(progress: Progress) -> Result:
                result = command.run(values, array, title, progress)
                self.IJ.log(result.text)
                return result

            result = self._work(command.name, work, pause)
        return self._show(result, array)

    @contextmanager
    def _locked(self, image: Any) -> Iterator[None]:
        if image is None:
            yield
            return
        if not image.lockSilently():
            raise FijiBridgeError(f"Another command is working on {image.getTitle()}; wait for its end.")
        try:
            yield
        finally:
            image.unlock()

    def _work(self, name: str, work: Callable[[Progress], Result], pause: Callable[[], object]) -> Result:
        """Do the work in another thread; here, move the progress bar and look at the Esc key."""
        stop = threading.Event()
        state = ("Starting", 0, 0)

        def progress(stage: str, done: int, total: int) -> None:
            nonlocal state
            state = (stage, done, total)
            if stop.is_set():
                raise CancelledError

        self.IJ.resetEscape()
        future = self._workers.submit(work, progress)
        try:
            while not future.done():
                pause()
                self._show_progress(*state)
                if self.IJ.escapePressed():
                    stop.set()
            return future.result()
        except CancelledError:
            raise StoppedError(f"{name}: stopped.") from None
        finally:
            stop.set()
            wait([future])
            self.IJ.showStatus("")
            self.IJ.showProgress(1.0)

    def _show_progress(self, stage: str, done: int, total: int) -> None:
        part = min(done / total, 0.99) if total else 0.0  # at 1 the bar would vanish
        self.IJ.showStatus(f"{stage}: {part:.0%}")
        self.IJ.showProgress(part)

    def _show(self, result: Result, source: "xr.DataArray | None") -> Shown:
        shown = Shown([], {}, result.text)
        for title, array in result.images.items():
            shown.images.append(self._show_image(title, array, source))
        for title, table in result.tables.items():
            results = results_table(table)
            shown.tables[_show_table(results, title)] = results
        if result.page is not None and self.IJ.getInstance() is not None:
            webbrowser.open(result.page.absolute().as_uri())
        return shown

    def _show_image(self, title: str, array: "xr.DataArray", source: "xr.DataArray | None") -> Any:
        """Show an image, like its source (calibration, display range, …) where it has the same extent."""
        from jpype import JClass

        if source is not None and _extent(array) == _extent(source):
            known = {name: value for name, value in array.attrs.items() if value is not None}
            image = self.ij.to_imagej(array.assign_attrs({**source.attrs, **known}), title)
        else:
            image = self.ij.to_imagej(array, title)
            JClass("ij.plugin.ContrastEnhancer")().stretchHistogram(image, SATURATED)
        image.show()
        return image

    def say(self, error: BaseException, name: str) -> None:
        """Turn an error into one message of ImageJ's and leave the macro, if one is running.

        Raises
        ------
        java.lang.RuntimeException
            ImageJ's own way out of a macro.
        KeyboardInterrupt
            If that was the error.
        """
        from jpype import JClass

        Interpreter = JClass("ij.macro.Interpreter")
        macro = Interpreter.getInstance() if _in_macro() else None
        if not isinstance(error, Exception):
            _private(Interpreter, "instance").set(None, None)  # ImageJ would wait for the macro's end
            raise error
        if CANCELED in str(error):  # out of a dialog: ImageJ has said what there is to say
            raise error
        sentence = str(error)
        if not isinstance(error, FijiBridgeError):
            traceback.print_exception(error)
            sentence = f"{name} failed: {sentence or type(error).__name__}"
        ending = macro is not None and macro.done()
        if isinstance(error, StoppedError) and (ending or self.IJ.getInstance() is not None):
            self.IJ.showStatus(sentence)
            if macro is not None and not ending:
                raise JClass("java.lang.RuntimeException")(CANCELED)
        elif macro is not None and not ending:
            macro.abort(sentence)
        else:
            self.IJ.error(sentence)


def _extent(array: "xr.DataArray") -> dict[str, int]:
    return {str(dim): size for dim, size in array.sizes.items() if size > 1}


def _in_macro() -> bool:
    from jpype import JClass

    # ImageJ's own way to tell.
    return str(JClass("java.lang.Thread").currentThread().getName()).startswith("Run$_")


def _show_table(results: Any, title: str) -> str:
    """Show a table and give the title under which macros find it."""
    from jpype import JClass

    if JClass("java.awt.GraphicsEnvironment").isHeadless():
        JClass("ij.plugin.filter.Analyzer").setResultsTable(results)
        return "Results"
    results.show(title)
    return title


def results_table(table: "pd.DataFrame") -> Any:
    """Copy a table into a new ImageJ ResultsTable: numbers as numbers, the rest as text."""
    from jpype import JArray, JClass, JDouble
    from pandas.api.types import is_numeric_dtype

    results = JClass("ij.measure.ResultsTable")()
    for name in table.columns:
        column = table[name]
        if is_numeric_dtype(column):
            results.setValues(str(name), JArray(JDouble)(column.to_numpy(dtype=float)))
        else:
            for row, text in enumerate(column):
                results.setValue(str(name), row, str(text))
    return results


def _listener(bridge: Bridge) -> Any:
    """Make what ImageJ asks before it looks a command up."""
    from jpype import JClass, JImplements, JOverride

    Macro = JClass("ij.Macro")
    lock = _private(JClass("ij.Executer"), "listeners").get(None)

    def let_others_in() -> None:
        # ImageJ holds this lock while it asks; kept for minutes, no other command could start.
        with suppress(JClass("java.lang.InterruptedException")):
            lock.wait(int(1000 * LOOK))

    @JImplements("ij.CommandListener")
    class Listener:
        @JOverride
        def commandExecuting(self, name: Any) -> Any:  # noqa: N802
            if str(name) == EXTENSIONS:
                JClass("ij.macro.Functions").registerExtensions(_extensions(bridge))
                return None
            command = find(str(name))
            if command is None:
                return name
            options = Macro.getOptions()
            Macro.setOptions(None)  # or, after an error, this thread's next command would find them
            try:
                values = _asked(command) if options is None else command.values(str(options))
                if values is not None:
                    bridge.run(command, values, bridge.windows.getCurrentImage(), let_others_in)
            except BaseException as error:
                bridge.say(error, command.name)
            return None

    return Listener()


def _private(owner: Any, name: str) -> Any:
    """Give a static field that ImageJ keeps to itself."""
    field = owner.class_.getDeclaredField(name)
    field.setAccessible(True)
    return field


def _extensions(bridge: Bridge) -> Any:
    """Make the functions ``Ext.…`` of macros."""
    from jpype import JArray, JClass, JImplements, JOverride

    Descriptor, Interface = JClass("ij.macro.ExtensionDescriptor"), JClass("ij.macro.MacroExtension")
    number, text, output = Interface.ARG_NUMBER, Interface.ARG_STRING, Interface.ARG_OUTPUT
    boxed = JClass("java.lang.Double")
    functions: dict[str, tuple[Command, int, Callable[[Shown, str], Any]]] = {
        "denoise": (DENOISE, number, lambda shown, _: boxed(shown.images[0].getID())),
        "train": (TRAIN, text, lambda _, options: TRAIN.values(options)["output"]),
        "localize": (LOCALIZE, text, lambda shown, _: next(iter(shown.tables))),
        "compare": (COMPARE, text, lambda shown, _: shown.text),
    }

    @JImplements(Interface)
    class Extensions:
        @JOverride
        def getExtensionFunctions(self) -> Any:  # noqa: N802
            return JArray(Descriptor)(
                [
                    Descriptor.newDescriptor(name, self, number, text, kind | output)
                    for name, (_, kind, _) in functions.items()
                ]
            )

        @JOverride
        def handleExtension(self, name: Any, arguments: Any) -> None:  # noqa: N802
            command, _, give = functions[str(name)]
            try:
                image, options = _image(bridge, float(arguments[0])), str(arguments[1])
                arguments[2][0] = give(bridge.run(command, options, image), options)
            except BaseException as error:
                bridge.say(error, f"Ext.{name}")

    return Extensions()


def _image(bridge: Bridge, number: float) -> Any:
    """Give the image of that ID, None for 0."""
    image = bridge.windows.getImage(int(number)) if number and math.isfinite(number) else None
    if number and image is None:
        raise FijiBridgeError(
            f"No image has the ID {number:g}; give what getImageID() gave, or 0 and input=[path of a stack]."
        )
    return image


def _asked(command: Command) -> dict[str, Value] | None:
    """Ask for a command's values where there are windows, None when the user cancels; else the defaults."""
    from jpype import JClass

    if JClass("ij.IJ").getInstance() is None:
        return command.values({})
    values = ask(command)
    if values is not None and JClass("ij.IJ").recording() and not _in_macro():
        Recorder = JClass("ij.plugin.frame.Recorder")
        prefix = "IJ." if Recorder.scriptMode() else ""
        options = Recorder.fixString(command.options(values))
        Recorder.recordString(f'{prefix}run("{command.menu}", "{options}");\n')
    return values


def ask(command: Command) -> dict[str, Value] | None:
    """Show a command's dialog, filled with what was last entered; None when it was cancelled.

    Raises
    ------
    FijiBridgeError
        If a number is none.
    """
    from jpype import JArray, JClass, JString

    Prefs = JClass("ij.Prefs")
    dialog = JClass("ij.gui.GenericDialog")(command.menu.removesuffix("..."))
    last = {p: str(Prefs.get(_remembered(command, p.key), str(p.default))) for p in command.parameters}
    for parameter, text in last.items():
        if parameter.kind == "number":
            number = float(text)
            dialog.addNumericField(parameter.label, number, 0 if number.is_integer() else 3)
        elif parameter.kind == "choice":
            dialog.addChoice(parameter.label, JArray(JString)(parameter.choices), text)
        elif parameter.kind == "folder":
            dialog.addDirectoryField(parameter.label, text, 30)
        elif parameter.kind == "text":
            dialog.addStringField(parameter.label, text, 30)
        else:
            dialog.addFileField(parameter.label, text, 30)
    dialog.addHelp(help_html(command))
    dialog.showDialog()
    if dialog.wasCanceled():
        return None
    texts = {}
    for parameter in command.parameters:
        if parameter.kind == "number":
            texts[parameter.key] = str(dialog.getNextNumber())
        elif parameter.kind == "choice":
            texts[parameter.key] = str(dialog.getNextChoice())
        else:
            texts[parameter.key] = str(dialog.getNextString()).strip()
    values = command.values(texts)
    for key, text in texts.items():
        Prefs.set(_remembered(command, key), text)
    return values


def _remembered(command: Command, key: str) -> str:
    return f"fiji_bridge.{command.cli}.{key}"


def _add_menu() -> None:
    """Put the commands under Plugins ▸ Fiji Bridge."""
    from jpype import JClass

    IJ, bar = JClass("ij.IJ"), JClass("ij.Menus").getMenuBar()
    plugins = next(
        menu for i in range(bar.getMenuCount()) if (menu := bar.getMenu(i)).getLabel() == "Plugins"
    )
    menu = JClass("java.awt.Menu")("Fiji Bridge")
    for command in COMMANDS:
        item = JClass("java.awt.MenuItem")(command.menu)
        item.addActionListener(IJ.getInstance())
        menu.add(item)
    plugins.add(menu)
