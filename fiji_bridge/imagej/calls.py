"""Run macros and commands in ImageJ, and turn whatever goes wrong there into one sentence.

ImageJ was made for people in front of it: it reports errors in dialogs, or on the console where there is no
display, and goes on. Here each call listens to all the ways in which ImageJ complains, and raises.
"""

import difflib
import math
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.imagej.commands import COMMANDS
from fiji_bridge.imagej.script_parameters import literal, parameters, with_values

CANCELED = "Macro canceled"
"""What ImageJ throws to leave a macro; the reason was told before."""

ESC = 27
MEMORY_FULL = "Java's memory is full; start ImageJ with a larger heap, or close images."
DIALOG_WAITS = "java.awt.WaitDispatchSupport.enter"
"""Where a thread is that shows a modal dialog."""
NO_DISPLAY = "it needs a window, and there is no display."

_calls = threading.RLock()


def run_macro(code: str, args: Mapping[str, Any]) -> Any:
    """Run a macro; see `ImageJ.run_macro`."""
    declared = parameters(code)
    with _calls:  # until its variables are read
        if not declared:
            return _interpret(code, options_string(args))[0]
        _, interpreter = _interpret(with_values(code, declared, args), "")
        return {each.name: each.result(_variable(interpreter, each.name)) for each in declared if each.output}


def run(command: str, image: Any, options: Mapping[str, Any]) -> Any:
    """Run a command; see `ImageJ.run`."""
    from jpype import JClass

    if image is not None and not isinstance(image, JClass("ij.ImagePlus")):
        raise FijiBridgeError(
            f"{command!r} works on an ImagePlus, not {type(image).__name__}; make one with to_imagej."
        )
    line = f"run({literal(command)}, {literal(options_string(options))});"
    with _calls:  # until its images are known, which another thread's would be taken for
        before = _image_ids()
        try:
            _interpret(line, "", image)
        except _MacroError as error:
            if error.said.startswith("Unrecognized command"):
                raise FijiBridgeError(f"ImageJ has no command {command!r}{_near(command)}") from None
            raise FijiBridgeError(f"ImageJ's {command!r} failed: {error.said}") from error
        new = [number for number in _image_ids() if number not in before]
        return JClass("ij.WindowManager").getImage(new[-1]) if new else None


def open_image(path: str | os.PathLike[str]) -> Any:
    """Open an image; see `ImageJ.open`."""
    from jpype import JClass

    place = Path(path).expanduser().absolute()
    if not place.exists():
        raise FijiBridgeError(f"There is no file {place}.")
    image = None
    try:
        with _attention() as ear:
            image = JClass("ij.IJ").openImage(str(place))
            if image is None:
                ear.note("it is of no kind that ImageJ knows.")
    except _MacroError as error:
        raise FijiBridgeError(f"ImageJ cannot open {place}: {error.said}") from error
    return image


def close_images() -> None:
    """Close all images without asking."""
    from jpype import JClass

    Windows = JClass("ij.WindowManager")
    for number in _image_ids():
        image = Windows.getImage(number)
        if image is not None:
            image.changes = False  # otherwise it asks to save them
            image.close()
    Windows.setTempCurrentImage(None)


def options_string(options: Mapping[str, Any]) -> str:
    """Write values by key so that ImageJ's own reader (`ij.Macro.getValue`) gives each back unchanged.

    Parameters
    ----------
    options
        Text, paths and numbers; True is a word of its own, False and None are left out.

    Raises
    ------
    FijiBridgeError
        If a key is not a word, a value is of another type, or ImageJ could not read it back: it has brackets
        that do not match beside spaces and quotes, or ``key=`` of another option inside.
    """
    given = {key: value.item() if isinstance(value, np.generic) else value for key, value in options.items()}
    words = {
        key.lower(): _word(key, value)
        for key, value in given.items()
        if value is not None and value is not False  # 0 is a value
    }
    return " ".join(words[key] for key in _readable_order(words))


def _word(key: str, value: Any) -> str:
    if not re.fullmatch(r"[^\s=\[\]'\"]+", key):
        raise FijiBridgeError(f"{key!r} cannot name an option in ImageJ; use a word without = and brackets.")
    if value is True:
        return key.lower()
    return f"{key.lower()}={_quoted(key, _text(key, value))}"


def _text(key: str, value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, "NaN")
    if isinstance(value, str | os.PathLike):
        return os.fspath(value)
    if isinstance(value, int | float):
        return str(value)
    raise FijiBridgeError(f"The option {key} takes text, a number, a path or True, not {value!r}.")


def _quoted(key: str, value: str) -> str:
    if value and not re.search(r"\s", value) and value[0] not in "['":
        return value
    depths = [0]
    for letter in value:
        depths.append(depths[-1] + (letter == "[") - (letter == "]"))
    if depths[-1] == 0 and min(depths) == 0:
        return f"[{value}]"
    if "'" not in value:
        return f"'{value}'"
    raise FijiBridgeError(
        f"ImageJ's options cannot hold the value {value!r} of {key}: it has brackets that do not match, and "
        "an apostrophe; change one of them."
    )


def _readable_order(words: Mapping[str, str]) -> list[str]:
    """Order options so that ImageJ, which takes the first ``key=`` that it sees, sees the right one.

    A value, or the end of a longer key, may look like another option; that one has to come earlier. Words
    come first, since ImageJ looks for them up to the first bracket that is not closed.
    """
    ordered, left = [], sorted(words, key=lambda key: "=" in words[key])
    while left:
        free = (key for key in left if not any(_hides(words[key], other) for other in left if other != key))
        key = next(free, None)
        if key is None:
            raise FijiBridgeError(
                f"ImageJ would take a part of one option for another in {' '.join(words.values())!r}; "
                f"rename what has {left[0]}= in it."
            )
        ordered.append(key)
        left.remove(key)
    return ordered


def _hides(word: str, key: str) -> bool:
    """Whether ImageJ, looking for the value of `key`, would find one in this word."""
    return re.search(rf"(?<![^\W\d_]){re.escape(key)}=", word) is not None


def _near(command: str) -> str:
    from jpype import JClass

    known = {str(name) for name in JClass("ij.Menus").getCommands().keySet()}
    known.update(name for own in COMMANDS for name in (own.name, own.menu))
    lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(command.lower(), lower, 3, 0.6)
    return "; did you mean " + " or ".join(repr(lower[name]) for name in near) + "?" if near else "."


def _image_ids() -> list[int]:
    from jpype import JClass

    return [int(number) for number in JClass("ij.WindowManager").getIDList() or ()]


class _MacroError(FijiBridgeError):
    """What ImageJ said, and where in the macro."""

    def __init__(self, said: str, line: int, statement: str) -> None:
        shown = f"{said} ({statement})" if statement else said
        super().__init__(f"The macro failed in line {line}: {shown}" if line else f"ImageJ failed: {shown}")
        self.said = said


def _interpret(code: str, arg: str, image: Any = None) -> tuple[str | None, Any]:
    """Run a macro on `image`, the current one when None; give what it returns, and its interpreter."""
    from jpype import JClass

    returned, interpreter = None, JClass("ij.macro.Interpreter")()
    with _attention(image) as ear:
        ear.interpreter = interpreter
        returned = interpreter.run(code, arg)
    return None if returned is None else str(returned), interpreter


def _variable(interpreter: Any, name: str) -> str | float | None:
    """Give what a macro left in a variable: text, a number, or None when it is not set."""
    text = interpreter.getStringVariable(name)
    if text is not None:
        return str(text)
    number = float(interpreter.getVariable(name))
    return None if math.isnan(number) and name not in _variable_names(interpreter) else number


def _variable_names(interpreter: Any) -> list[str]:
    return [str(name) for name in interpreter.getVariableNames()]


class _Left(Exception):  # noqa: N818
    """Thrown through Java to leave a macro at once; the reason was noted before."""


class _Ear:
    """Hears what ImageJ complains of on one thread, and keeps the first of it."""

    def __init__(self) -> None:
        from jpype import JClass

        self.said: str | None = None
        self.interrupted = False
        self.line = 0
        self.statement = ""
        self.interpreter: Any = None
        self._thread, self._java_thread = threading.get_ident(), JClass("java.lang.Thread").currentThread()
        self._Throwable, self._Interpreter = JClass("java.lang.Throwable"), JClass("ij.macro.Interpreter")

    def note(self, said: str, line: int | None = None, statement: str = "") -> None:
        """Keep what ImageJ said and where its macro was."""
        if self.said is None and said.strip():
            self.said = " ".join(said.split())
            self.line = self._line() if line is None else line
            self.statement = statement

    def _line(self) -> int:
        running = self._Interpreter.getInstance() or self.interpreter
        return int(running.getLineNumber()) if running is not None else 0

    def handle(self, error: Any) -> None:
        """Take an exception, as ImageJ's `ExceptionHandler`."""
        if threading.get_ident() != self._thread:
            error.printStackTrace()
            return
        self.note(_reason(str(error.stacktrace())))
        raise _Left

    def takes(self, text: str) -> bool:
        """Tell whether what is being printed on this thread is a complaint, and note it."""
        if threading.get_ident() != self._thread:
            return False
        frames = _methods(self._Throwable().getStackTrace())
        callers = [frame for frame in frames if frame.startswith("ij.")][:2]
        if callers == ["ij.IJ.log", "ij.Executer.run"]:  # a plugin threw
            self.note(_reason(text))
            raise _Left
        if callers == ["ij.IJ.log", "ij.IJ.outOfMemory"]:
            self.note(MEMORY_FULL)
            return True
        if callers == ["ij.IJ.showMessage", "ij.macro.Functions.exit"]:
            self.note(text)
            return True
        if callers[:1] == ["ij.macro.Interpreter.showError"]:
            self.note(*_macro_error(text))
            return True
        return callers[:1] == ["ij.IJ.showMessage"] and "ij.IJ.error" in frames  # ImageJ keeps it as well

    def waits_in(self, method: str) -> bool:
        """Whether the thread listened to is in a method."""
        return method in _methods(self._java_thread.getStackTrace())


def _methods(stack_trace: Any) -> list[str]:
    return [f"{at.getClassName()}.{at.getMethodName()}" for at in stack_trace]


class _Printed:
    """What Java prints goes through here: a `WritableByteChannel`."""

    def __init__(self, stream: Any, ear: _Ear) -> None:
        from jpype import JClass

        self._stream, self._ear = stream, ear
        self._utf8 = JClass("java.nio.charset.StandardCharsets").UTF_8

    def write(self, buffer: Any) -> int:
        """Pass on what is no complaint."""
        size = int(buffer.remaining())
        text = str(self._utf8.decode(buffer))
        if not self._ear.takes(text):
            self._stream.print_(text)
        return size

    def isOpen(self) -> bool:  # noqa: N802
        """Say yes."""
        return True

    def close(self) -> None:
        """Stay open."""


@contextmanager
def _attention(image: Any = None) -> Iterator[_Ear]:
    """Let ImageJ work on this thread, with `image` as the current one, and raise what it complains of."""
    from jpype import JClass, JException

    ear = _Ear()
    with ExitStack() as stack:
        stack.enter_context(_calls)
        stack.enter_context(_stopped_by_ctrl_c(ear))
        stack.enter_context(_as_macro_thread(image))
        stack.enter_context(_kept_images(ear))
        stack.enter_context(_ears_open(ear))
        JClass("ij.IJ").getErrorMessage()  # forget an older one
        thrown = None
        try:
            yield ear
        except _Left:
            pass
        except JException as error:
            thrown = error
        except KeyboardInterrupt:
            _forget_interrupt()
            raise
        except RuntimeError:  # JPype's, where an interrupt does not come through Java
            if not ear.interrupted:
                raise
        interpreter = ear.interpreter
        if interpreter is not None and interpreter.wasError():
            ear.note(str(interpreter.getErrorMessage()), int(interpreter.getLineNumber()))
        if thrown is not None:
            _note_exception(ear, thrown)
    if ear.interrupted and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        raise KeyboardInterrupt
    if ear.said is not None:
        raise _MacroError(ear.said, ear.line, ear.statement)


def _note_exception(ear: _Ear, error: Any) -> None:
    from jpype import JClass

    if str(error.getMessage()) != CANCELED:
        ear.note(_reason(str(error.stacktrace())))
    elif "ij.macro.Functions.exit(" not in str(error.stacktrace()):
        ear.note(str(JClass("ij.IJ").getErrorMessage() or "it was cancelled."))


def _reason(trace: str) -> str:
    """Say in a line what a Java stack trace is about."""
    lines = trace.strip().splitlines() or ["an unnamed error"]
    causes = [line.removeprefix("Caused by: ") for line in lines if line.startswith("Caused by: ")]
    cause = re.sub(r"^(?:[\w$]+\.)+", "", [lines[0], *causes][-1])
    named = {"HeadlessException": NO_DISPLAY, "OutOfMemoryError": MEMORY_FULL}
    return named.get(cause.partition(":")[0], cause)


def _macro_error(text: str) -> tuple[str, int, str]:
    """Take apart what the dialog of a failed macro says: the message, the line's number, and the line."""
    found = re.match(r"[^:]*: ([\s\S]*) in line (\d+)\n([\s\S]*)", text)
    if found is None:
        return text, 0, ""
    said, line, rest = found.groups()
    statements = rest.strip().splitlines()
    return said, int(line), statements[-1].strip() if statements else ""


@contextmanager
def _as_macro_thread(image: Any) -> Iterator[None]:
    """Make this thread one on which ImageJ's errors end the macro, with `image` as the current one."""
    from jpype import JClass

    Macro, Interpreter = JClass("ij.Macro"), JClass("ij.macro.Interpreter")
    Windows = JClass("ij.WindowManager")
    thread = JClass("java.lang.Thread").currentThread()
    name, options = thread.getName(), Macro.getOptions()
    current, running = Windows.getTempCurrentImage(), Interpreter.getInstance()
    thread.setName("Run$_fiji_bridge_Macro$")  # both its beginning and its end matter to ImageJ
    if image is not None:
        Windows.setTempCurrentImage(image)
    try:
        yield
    finally:
        if image is not None:
            Windows.setTempCurrentImage(current)
        # What ImageJ leaves behind when a macro fails would be taken for a part of the next.
        for owner, name_of, value in (
            (Interpreter, "instance", running),
            (JClass("ij.IJ"), "macroInterpreter", running),
            (Macro, "abort", False),
        ):
            _field(owner, name_of).set(None, value)
        Macro.setOptions(options)
        thread.setName(name)


def _field(owner: Any, name: str) -> Any:
    """Give a field that Java keeps to itself."""
    field = owner.class_.getDeclaredField(name)
    field.setAccessible(True)
    return field


@contextmanager
def _kept_images(ear: _Ear) -> Iterator[None]:
    """Keep the images without windows, all of which ImageJ forgets when a macro fails."""
    from jpype import JClass

    Interpreter = JClass("ij.macro.Interpreter")
    before = [Interpreter.getBatchModeImage(number) for number in Interpreter.getBatchModeImageIDs()]
    table = _field(Interpreter, "imageTable").get(None)
    try:
        yield
    finally:
        if ear.said is not None and before:
            batch_mode()
            for image in before:
                # ImageJ drops its table, which still has the images that were not closed.
                if table.contains(image) and Interpreter.getBatchModeImage(image.getID()) is None:
                    Interpreter.addBatchModeImage(image)


def batch_mode() -> None:
    """Without a main window, let images be shown without windows of their own."""
    from jpype import JClass

    JClass("ij.macro.Interpreter")().run("", "")


@contextmanager
def _ears_open(ear: _Ear) -> Iterator[None]:
    from jpype import JClass, JProxy

    IJ, System = JClass("ij.IJ"), JClass("java.lang.System")
    before, out, err = _field(IJ, "exceptionHandler").get(None), System.out, System.err
    IJ.setExceptionHandler(JProxy("ij.IJ$ExceptionHandler", inst=ear))
    System.setOut(_stream(out, ear))
    System.setErr(_stream(err, ear))
    try:
        with _no_dialogs(ear):
            yield
    finally:
        System.setErr(err)
        System.setOut(out)
        IJ.setExceptionHandler(before)


def _stream(original: Any, ear: _Ear) -> Any:
    from jpype import JClass, JProxy

    channel = JProxy("java.nio.channels.WritableByteChannel", inst=_Printed(original, ear))
    stream = JClass("java.nio.channels.Channels").newOutputStream(channel)
    return JClass("java.io.PrintStream")(stream, True, "UTF-8")


@contextmanager
def _no_dialogs(ear: _Ear) -> Iterator[None]:
    """Close the dialogs in which ImageJ reports errors, which would wait for somebody."""
    from jpype import JClass, JProxy

    if JClass("java.awt.GraphicsEnvironment").isHeadless():
        yield
        return
    Toolkit, Event = JClass("java.awt.Toolkit").getDefaultToolkit(), JClass("java.awt.event.WindowEvent")

    def opened(event: Any) -> None:
        if event.getID() == Event.WINDOW_OPENED:
            _close_complaint(event.getWindow(), ear)

    listener = JProxy("java.awt.event.AWTEventListener", {"eventDispatched": opened})
    Toolkit.addAWTEventListener(listener, JClass("java.awt.AWTEvent").WINDOW_EVENT_MASK)
    try:
        yield
    finally:
        Toolkit.removeAWTEventListener(listener)


def _close_complaint(window: Any, ear: _Ear) -> None:
    """Close a window if it tells of an error, and note what it says."""
    kind = str(window.getClass().getName())
    title = str(window.getTitle()) if hasattr(window, "getTitle") else ""
    if kind == "ij.text.TextWindow" and title == "Exception":
        text = str(window.getTextPanel().getText())
        trace = re.search(r"^[\w.$]+(?:Exception|Error)\b[\s\S]*", text, re.MULTILINE)
        ear.note(_reason(trace.group() if trace else text))
    elif kind == "ij.gui.GenericDialog" and ear.waits_in("ij.macro.Interpreter.showError"):
        ear.note(*_macro_error(f"{title}: {_label(window.getMessage())}"))
    elif kind == "ij.gui.MessageDialog" and ear.waits_in("ij.macro.Functions.exit"):
        ear.note(_label(_field(type(window), "label").get(window)))
    elif not (kind == "ij.gui.MessageDialog" and ear.waits_in("ij.IJ.error")):
        return
    _dispose_once_awaited(window, ear)


def _dispose_once_awaited(window: Any, ear: _Ear) -> None:
    """Dispose of a window, a modal dialog not before its thread waits for that.

    Java's `Dialog.show` says that the dialog has opened before it has what `dispose` ends; disposed of in
    between, it would wait for ever.
    """
    from jpype import JClass, JProxy

    if window.isShowing() and ear.waits_in("java.awt.Dialog.show") and not ear.waits_in(DIALOG_WAITS):
        again = JProxy("java.lang.Runnable", {"run": lambda: _dispose_once_awaited(window, ear)})
        JClass("java.awt.EventQueue").invokeLater(again)
    else:
        window.dispose()


def _label(component: Any) -> str:
    """Give the text of a label of one line or several."""
    if hasattr(component, "getText"):
        return str(component.getText())
    return "\n".join(str(line) for line in _field(type(component), "lines").get(component))


@contextmanager
def _stopped_by_ctrl_c(ear: _Ear) -> Iterator[None]:
    """Stop the macro when Ctrl-C is pressed; Python would only hear of it when the macro has ended."""
    from jpype import JClass

    if threading.current_thread() is not threading.main_thread() or not callable(
        signal.getsignal(signal.SIGINT)
    ):
        yield
        return
    thread = JClass("java.lang.Thread").currentThread()
    ours, signals = socket.socketpair()
    signals.setblocking(False)
    before = signal.set_wakeup_fd(signals.fileno(), warn_on_full_buffer=False)

    def watch() -> None:
        while number := ours.recv(1):
            if before != -1:
                os.write(before, number)
            if number[0] == signal.SIGINT:
                ear.interrupted = True
                ear.note("it was stopped by Ctrl-C.")
                JClass("ij.IJ").setKeyDown(ESC)  # commands look at it
                if "WAITING" in str(thread.getState()):
                    thread.interrupt()
                if ear.interpreter is not None:
                    JClass("ij.macro.Interpreter").abort(ear.interpreter)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        signals.close()
        watcher.join()
        ours.close()
        _forget_interrupt()
        JClass("ij.IJ").setKeyUp(ESC)


def _forget_interrupt() -> None:
    """Clear Java's interrupt, which JPype would throw at the next best call."""
    from jpype import JClass, JException

    with suppress(JException):
        JClass("java.lang.Thread").interrupted()
