"""ThunderSTORM's own commands, windows and all, in a process and on a display of their own.

Everything that the plugin computes runs headless elsewhere in this package. A window is needed only by the
plugin's commands themselves: they open a table (a `JFrame`), dialogs and plots. Whoever wants those, to
check this package against the plugin or to run a macro that uses the commands as they are, runs it here. On
Java 13 and later that needs one more class, which the plugin's help looks for and Java no longer has.
"""

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.thunderstorm.jar import hidden, require_jar

if TYPE_CHECKING:
    from fiji_bridge.imagej.session import ImageJ

REMOVED_CLASS = "com/sun/net/ssl/internal/ssl/Provider"
"""What the plugin's help buttons make when their table opens; gone since Java 13."""

PREFERENCES = "-Duser.home={}"
"""Keeps the plugin from what a user once chose in its dialogs."""


def run_macro(
    code: str,
    *,
    jar: str | os.PathLike[str] | None = None,
    timeout_s: float | None = None,
    threads: int | None = None,
) -> str:
    """Run a macro with the plugin's commands as in an ImageJ with windows.

    Parameters
    ----------
    code
        Text of the macro, such as ``open("a.tif"); run("Run analysis", "…"); run("Export results", "…");``.
    jar
        ThunderSTORM's jar; found by `find_jar` when left out.
    timeout_s
        Longest time that it may take [s], the start of ImageJ included; 600 when left out.
    threads
        ImageJ's number of threads; its own choice when left out.

    Returns
    -------
    str
        What the macro returns.

    Raises
    ------
    FijiBridgeError
        If there is no display and no Xvfb, the macro fails, asks in a dialog or quits ImageJ, or the time is
        over; what it wrote until then stays.
    """
    plugin, timeout_s = require_jar(jar), TIME_LIMIT_S if timeout_s is None else timeout_s
    with any_display() as display, tempfile.TemporaryDirectory(prefix="thunderstorm-") as folder:
        put_plugins(Path(folder), plugin)
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "fiji_bridge.thunderstorm.display", folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(display, folder),
            start_new_session=True,
        )
        try:
            said, complained = child.communicate(json.dumps([code, threads]), timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise FijiBridgeError(
                f"ThunderSTORM's macro did not end within {timeout_s:g} s and was stopped; give it more time "
                "by timeout_s= or --time-limit."
            ) from None
        finally:
            _end(child)
    answers = [line.removeprefix(ANSWER) for line in said.splitlines() if line.startswith(ANSWER)]
    if not answers:
        last = (complained.strip().splitlines() or ["it gave no reason"])[-1]
        if "JVMNotRunning" in last:
            last = "the macro ended Java"
        raise FijiBridgeError(f"ImageJ ended while it ran ThunderSTORM's macro: {last}.")
    kind, text = json.loads(answers[0])
    if kind == "error":
        raise FijiBridgeError(f"ThunderSTORM's macro failed: {text}")
    return str(text)


TIME_LIMIT_S = 600.0
ANSWER = "fiji_bridge answers "
WAITS = ("ij.gui.WaitForUserDialog", "ij.gui.NonBlockingGenericDialog")
"""Dialogs that wait although they are not modal."""


def put_plugins(folder: Path, plugin: Path) -> None:
    """Make a folder of plugins for `start`: the plugin, and the class that it misses."""
    plugins = folder / "plugins"
    plugins.mkdir()
    shutil.copy(plugin, plugins / "Thunder_STORM.jar")
    with zipfile.ZipFile(plugins / "removed_from_java.jar", "w") as archive:
        archive.writestr(f"{REMOVED_CLASS}.class", _provider_class())


def environment(display: str, folder: str) -> dict[str, str]:
    """Give the environment of a process that calls `start`."""
    tools = f"{os.environ.get('JAVA_TOOL_OPTIONS', '')} {PREFERENCES.format(folder)}".strip()
    return os.environ | {"DISPLAY": display, "JAVA_TOOL_OPTIONS": tools}


def start(folder: str) -> "ImageJ":
    """Start ImageJ with its window and the plugins of `put_plugins`."""
    from fiji_bridge.imagej import session

    return session.start(mode="gui", plugins=folder)


def _end(child: "subprocess.Popen[str]") -> None:
    if child.poll() is None:
        with_it = os.killpg if hasattr(os, "killpg") else os.kill
        with_it(child.pid, signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
        child.wait()


@contextmanager
def any_display() -> Iterator[str]:
    """Give the display that there is, or one that nobody sees."""
    if os.environ.get("DISPLAY") or os.name == "nt" or sys.platform == "darwin":
        yield os.environ.get("DISPLAY", "")
        return
    if shutil.which("Xvfb") is None:
        raise FijiBridgeError(
            "ThunderSTORM's commands need a display, and DISPLAY is not set; set it, or install Xvfb."
        )
    server = subprocess.Popen(
        # Without its last client it ends, also when this process was killed.
        ["Xvfb", "-displayfd", "1", "-screen", "0", "1280x1024x24", "-nolisten", "tcp", "-terminate"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert server.stdout is not None
        number = server.stdout.readline().strip()
        if not number:
            raise FijiBridgeError("Xvfb could not be started for ThunderSTORM's commands; set DISPLAY.")
        yield f":{number}"
    finally:
        server.terminate()
        server.wait()


def _provider_class() -> bytes:
    """Make the class that is missing from Java: a `java.security.Provider` that provides nothing."""

    def text(value: str) -> bytes:
        return struct.pack(">BH", 1, len(value)) + value.encode()

    pool = [
        struct.pack(">BH", 7, 2),  # 1 this class
        text(REMOVED_CLASS),
        struct.pack(">BH", 7, 4),  # 3 its parent
        text("java/security/Provider"),
        struct.pack(">BHH", 10, 3, 6),  # 5 the parent's constructor
        struct.pack(">BHH", 12, 7, 8),
        text("<init>"),
        text("(Ljava/lang/String;DLjava/lang/String;)V"),
        text("()V"),
        text("Code"),
        struct.pack(">BH", 8, 12),  # 11 a text
        text("none"),
    ]
    code = bytes.fromhex("2a 12 0b 0f 12 0b b7 00 05 b1")  # super("none", 1.0, "none")
    body = struct.pack(">HHI", 5, 1, len(code)) + code + struct.pack(">HH", 0, 0)
    method = struct.pack(">HHHHHI", 1, 7, 9, 1, 10, len(body)) + body
    head = struct.pack(">IHHH", 0xCAFEBABE, 0, 50, len(pool) + 1) + b"".join(pool)
    return head + struct.pack(">HHHHHH", 0x21, 1, 3, 0, 0, 1) + method + struct.pack(">H", 0)


def _answer(kind: str, text: str) -> None:
    print(f"{ANSWER}{json.dumps([kind, text])}", flush=True)


def _end_with(parent: int) -> None:
    """End this process when its parent is gone, and the time limit with it."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _watch_dialogs() -> None:
    """End with the text of a dialog that waits for an answer, which nobody can give."""
    from jpype import JClass

    Window, Dialog = JClass("java.awt.Window"), JClass("java.awt.Dialog")
    while True:
        time.sleep(0.3)
        for window in Window.getWindows():
            waits = str(window.getClass().getName()) in WAITS or (
                isinstance(window, Dialog) and window.isModal()
            )
            if waits and window.isShowing():
                words = " ".join(filter(None, _words(window)))
                _answer("error", f"it waits in the dialog {str(window.getTitle())!r}, which says: {words}")
                os._exit(1)


def _words(component: Any) -> Iterator[str]:
    from jpype import JClass

    if component.getClass().getName() == "ij.gui.MultiLineLabel":
        yield from map(str, hidden(component, "lines"))
    for method in ("getText", "getLabel", "getMessage"):
        text = getattr(component, method)() if hasattr(component, method) else None
        if isinstance(text, JClass("java.lang.String")):  # GenericDialog's getMessage gives a component
            yield " ".join(str(text).split())
            break
    if hasattr(component, "getComponents"):
        for child in component.getComponents():
            yield from _words(child)


def _main(folder: str) -> None:
    """Run the macro that stands on the standard input; print what it answers."""
    from jpype import JClass

    code, threads = json.loads(sys.stdin.read())
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    try:
        image = start(folder)
        threading.Thread(target=_watch_dialogs, daemon=True).start()
        if threads:
            JClass("ij.Prefs").setThreads(threads)
        answer = image.run_macro(code)
        window = JClass("ij.IJ").getInstance()
        if window is None or window.quitting():
            raise FijiBridgeError('it quits ImageJ, perhaps before its work is done; leave run("Quit") out.')
        _answer("result", str(answer or ""))
    except FijiBridgeError as error:
        _answer("error", str(error))
    os._exit(0)


if __name__ == "__main__":
    _main(sys.argv[1])
