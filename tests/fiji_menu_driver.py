"""Drives the menu of a plain ImageJ with windows, as a person would; run by test_fiji_menu.py.

    python fiji_menu_driver.py FOLDER FIJI [SHOTS]

FOLDER has movie.tif and model.safetensors, FIJI the menu. With SHOTS, a folder, the screen is kept there at
every step (by ImageMagick). What is seen goes to standard output.
"""

import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jpype
from jpype import JClass

CAMERA = "offset=100.0 photons2adu=2.0 isemgain=false pixelsize=110.0"


def until(found: Callable[[], Any], seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while not (it := found()):
        assert time.monotonic() < end, f"waited in vain; log: {IJ.getLog()}; message: {words(message())}"
        time.sleep(0.05)
    return it


def shot(name: str) -> None:
    if len(sys.argv) > 3:
        time.sleep(0.7)
        subprocess.run(["import", "-window", "root", Path(sys.argv[3]) / f"{name}.png"], check=True)


def message() -> Any:
    windows = JClass("java.awt.Window").getWindows()
    return next(
        (w for w in windows if w.isShowing() and w.getClass().getSimpleName() == "MessageDialog"), None
    )


def words(container: Any) -> str:
    """The texts in a window."""
    if container is None:
        return ""
    texts = [str(container.getText())] if hasattr(container, "getText") else []
    if container.getClass().getSimpleName() == "MultiLineLabel":
        field = container.getClass().getDeclaredField("lines")
        field.setAccessible(True)
        texts += [str(line) for line in field.get(container)]
    if hasattr(container, "getComponents"):
        texts += [words(part) for part in container.getComponents()]
    return " ".join(texts)


def choose(name: str) -> Any:
    """Pick a command of Plugins > Fiji Bridge and give its dialog."""
    bar = JClass("ij.Menus").getMenuBar()
    items = [bar.getMenu(i) for i in range(bar.getMenuCount())]
    for label in ("Plugins", "Fiji Bridge", name):
        item = next(item for item in items if str(item.getLabel()) == label)
        if hasattr(item, "getItemCount"):
            items = [item.getItem(i) for i in range(item.getItemCount())]
    event = JClass("java.awt.event.ActionEvent")(item, 1001, item.getActionCommand())

    def pick() -> None:
        for listener in item.getActionListeners():
            listener.actionPerformed(event)

    JClass("java.awt.EventQueue").invokeLater(pick)

    def shown() -> Any:
        dialog = JClass("ij.gui.GenericDialog").getInstance()
        return dialog if dialog is not None and dialog.isShowing() else None

    return until(shown)


def press(dialog: Any, label: str) -> None:
    button = next(b for b in dialog.getButtons() if b is not None and str(b.getLabel()).strip() == label)
    dialog.actionPerformed(JClass("java.awt.event.ActionEvent")(button, 1001, "pressed"))
    until(lambda: not dialog.isShowing())


def ask(
    name: str, *, texts: dict[int, str], choice: str | None = None, last_number: str | None = None
) -> None:
    """Fill in the dialog of a command for movie.tif."""
    IJ.selectWindow("movie.tif")
    dialog = choose(name)
    for place, text in texts.items():
        dialog.getStringFields().get(place).setText(text)
    if choice:
        dialog.getChoices().get(0).select(choice)
    if last_number:
        dialog.getNumericFields().lastElement().setText(last_number)
    shot(f"{name.split('.')[0]} dialog")
    press(dialog, "OK")


def recorded() -> list[str]:
    return str(JClass("ij.plugin.frame.Recorder").getInstance().getText()).splitlines()


def recorded_line(name: str) -> str:
    return str(until(lambda: next((line for line in recorded() if line.startswith(f'run("{name}')), None)))


def in_background(macro: str) -> threading.Thread:
    def run() -> None:
        jpype.java.lang.Thread.attachAsDaemon()
        IJ.runMacro(macro)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def titles() -> list[str]:
    return [str(title) for title in JClass("ij.WindowManager").getImageTitles()]


def drive(folder: str) -> None:
    WindowManager = JClass("ij.WindowManager")
    IJ.open(f"{folder}/movie.tif")
    movie = WindowManager.getImage("movie.tif")
    movie.setDisplayRange(101, 123)
    movie.getCalibration().frameInterval = 0.03
    IJ.run("Record...")

    model = f"{folder}/my model.safetensors"
    ask("Train...", texts={1: model, 2: CAMERA}, last_number="100")
    time.sleep(3)
    shot("training")
    until(lambda: "Model written" in str(IJ.getLog()), 180)
    print("train", recorded_line("Train..."))

    ask("Denoise...", texts={1: f"{folder}/model.safetensors"}, choice="map")
    until(lambda: "Denoised movie.tif" in str(IJ.getLog()))
    made = WindowManager.getImage("denoised movie.tif")
    print("denoise", recorded_line("Denoise..."))
    shot("denoised")
    print("range", made.getDisplayRangeMin(), made.getDisplayRangeMax(), made.getBitDepth())
    calibration = made.getCalibration()
    print("calibration", round(calibration.pixelWidth, 6), calibration.getUnit(), calibration.frameInterval)
    print("axes", list(made.getDimensions()) == list(movie.getDimensions()))
    print("original", movie.getTitle(), movie.getOriginalFileInfo().directory, movie.changes)
    made.changes = False
    made.close()

    ask("Localize...", texts={1: CAMERA, 2: "sigma=1.3", 4: "1e-4"}, choice="torch")
    until(lambda: "localizations in movie.tif" in str(IJ.getLog()))
    print("table", "localizations movie.tif" in [str(t) for t in WindowManager.getNonImageTitles()])
    print("localize", recorded_line("Localize..."))
    shot("localized")
    print("rendered", "rendered movie.tif" in titles())

    dialog = choose("Compare raw and denoised...")
    shot("compare dialog")
    dialog.getStringFields().get(1).setText(f"{folder}/movie.tif/no folder")
    press(dialog, "OK")
    print("refused", words(until(message)).replace("\n", " "))
    message().dispose()
    print("compare", recorded_line("Compare raw and denoised..."))

    # Played again a line does what its dialog did, and what it leaves out is not what was entered last.
    IJ.selectWindow("movie.tif")
    IJ.runMacro(recorded_line("Denoise..."))
    print("replayed", WindowManager.getCurrentImage().getTitle())
    IJ.selectWindow("movie.tif")

    thread = in_background('run("Denoise...", "modl=x"); IJ.log("not reached");')
    print("said", words(until(message)))
    shot("error")
    message().dispose()
    thread.join(20)
    windows = [str(title) for title in WindowManager.getNonImageTitles()]
    print("windows", [title for title in windows if title not in ("Recorder", "Log")])
    print("reached", "not reached" in str(IJ.getLog()))

    # Esc ends the macro, and with it the work.
    thread = in_background(f'run("Train...", "output=[{folder}/never.safetensors] minutes=5");')
    time.sleep(5)
    JClass("ij.macro.Interpreter").abort()
    began = time.monotonic()
    thread.join(20)
    print("stopped", not thread.is_alive() and time.monotonic() - began < 5)

    # Values that ImageJ shows less 32768, an origin, and no image at all.
    IJ.runMacro("close('*');")
    signed = WindowManager.getImage("movie.tif") or IJ.openImage(f"{folder}/movie.tif")
    for plane in range(1, signed.getStackSize() + 1):
        signed.getStack().getProcessor(plane).add(32768)
    signed.getCalibration().setSigned16BitCalibration()
    signed.getCalibration().xOrigin = 3
    signed.show()
    IJ.runMacro(f'run("Denoise...", "model=[{folder}/model.safetensors]");')
    made = WindowManager.getImage("denoised movie.tif")
    print("signed", round(made.getStatistics().mean - signed.getStatistics().mean) == 0)
    print("origin", made.getCalibration().xOrigin, round(made.getCalibration().pixelWidth, 6))
    IJ.runMacro("close('*');")
    IJ.runMacro(f'run("Denoise...", "input=[{folder}/movie.tif] model=[{folder}/model.safetensors]");')
    print("input", titles())


if __name__ == "__main__":
    where, fiji = sys.argv[1:3]
    jpype.startJVM(f"-Dplugins.dir={fiji}", classpath=[f"{fiji}/ij.jar"])
    IJ = JClass("ij.IJ")
    JClass("ij.ImageJ")()
    code = 0
    try:
        drive(where)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    os._exit(code)  # windows would keep the process
