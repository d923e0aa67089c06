"""Python behind ImageJ's commands: macros run them as they run any command, and get images and tables."""

import os
import re
import subprocess
import sys
import threading
import time
from functools import partial

import numpy as np
import pytest
import tifffile
import torch

import fiji_bridge
from fiji_bridge.camera import Camera
from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.imagej.commands import COMMANDS, DENOISE, find

CAMERA = "offset=100.0 photons2adu=2.0 isemgain=false pixelsize=110.0"
SMALL = {"steps": 60, "features": (8, 12), "crop": 32, "device": "cpu"}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def counts():
    """Eight frames of blinking molecules as a camera of CAMERA records them [A/D counts]."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:64, :64]
    light = np.full((8, 64, 64), 3.0)
    for frame in light:
        for cy, cx in rng.uniform(4, 60, (8, 2)):
            frame += 40 * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * 1.3**2))
    return (100 + rng.poisson(light) / 2.0).round().astype(np.uint16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, counts):
    """A folder, with a space in its name, that has the movie and a model."""
    folder = tmp_path_factory.mktemp("two words")
    tifffile.imwrite(
        folder / "movie.tif",
        counts,
        imagej=True,
        resolution=(1 / 0.11, 1 / 0.11),
        metadata={"axes": "TYX", "unit": "um", "finterval": 0.02, "min": 90.0, "max": 120.0},
    )
    model = fiji_bridge.train(counts, camera=Camera.parse(CAMERA), **SMALL)
    model.save(folder / "model.safetensors")
    return folder


def opened(folder, name="movie.tif"):
    return f'open("{folder}/{name}");\n'


def denoise(folder, name="Blind-spot denoise", more=""):
    return f'run("{name}", "model=[{folder}/model.safetensors] {more}");\n'


SAYS = """
getDimensions(width, height, channels, slices, frames);
getVoxelSize(vx, vy, depth, unit);
getMinAndMax(min, max);
return getTitle() + "|" + width + "x" + height + "|" + channels + "|" + slices + "|" + frames + "|"
    + bitDepth() + "|" + vx + "|" + unit + "|" + Stack.getFrameInterval() + "|" + min + "-" + max;
"""


@pytest.mark.parametrize("name", [DENOISE.name, DENOISE.menu])
def test_a_macro_denoises_the_current_image_and_goes_on_with_the_result(imagej, folder, counts, name):
    imagej.close()
    before = imagej.run_macro(opened(folder) + SAYS)
    assert before == "movie.tif|64x64|1|1|8|16|0.11|µm|0.02|90-120"
    after = imagej.run_macro(opened(folder) + denoise(folder, name) + SAYS)
    assert after == before.replace("|16|", "|32|").replace("movie", "denoised movie")
    imagej.close()
    pixels = imagej.run_macro(
        opened(folder) + denoise(folder, name) + 'setSlice(3); return "" + getPixel(20, 30) + " " + nImages;'
    )
    value, images = map(float, pixels.split())
    expected = fiji_bridge.denoise(counts, fiji_bridge.load_model(folder / "model.safetensors"))
    assert value == pytest.approx(float(expected[2, 30, 20]), rel=1e-4)
    assert images == 2


def test_the_input_may_be_a_path_and_the_output_too(imagej, folder):
    imagej.close()
    out = folder / "denoised.tif"
    given = denoise(folder, more=f"input=[{folder}/movie.tif] output=[{out}] estimator=map")
    said = imagej.run_macro(given + SAYS).split("|")
    assert said[:6] == ["denoised movie.tif", "64x64", "1", "1", "8", "32"]
    assert float(said[6]) == pytest.approx(0.11) and said[7] == "µm"
    low, high = map(float, said[9].split("-"))
    with tifffile.TiffFile(out) as written:
        frames = written.asarray()
    assert frames.min() <= low < high <= frames.max()
    assert frames.shape == (8, 64, 64)


def test_slices_stay_slices_and_channels_keep_their_colours_and_contrast(imagej, folder):
    said = imagej.run_macro(opened(folder) + "Stack.setDimensions(1, 8, 1);\n" + denoise(folder) + SAYS)
    assert said.split("|")[2:5] == ["1", "8", "1"]
    channels = """
    run("Stack to Hyperstack...", "order=xyczt(default) channels=2 slices=1 frames=4 display=Composite");
    Stack.setChannel(1); run("Red"); setMinAndMax(95, 130);
    Stack.setChannel(2); run("Cyan"); setMinAndMax(80, 140);
    """
    both = """
    told = getTitle();
    for (c = 1; c <= 2; c++) {
        Stack.setChannel(c); getLut(r, g, b); getMinAndMax(min, max);
        told += "|" + r[255] + " " + g[255] + " " + b[255] + " " + min + "-" + max;
    }
    getDimensions(w, h, c, z, t);
    return told + "|" + c + " " + z + " " + t;
    """
    told = imagej.run_macro(opened(folder) + channels + denoise(folder) + both)
    assert told == "denoised movie.tif|255 0 0 95-130|0 255 255 80-140|2 1 4"


def test_training_writes_a_model_that_denoising_takes(imagej, folder, monkeypatch):
    monkeypatch.setattr(fiji_bridge, "train", partial(fiji_bridge.train, **SMALL))
    out = folder / "trained here.safetensors"
    imagej.run_macro(opened(folder) + f'run("Train...", "output=[{out}] steps=60 camera=[{CAMERA}]");')
    assert fiji_bridge.load_model(out).report["steps"] == 60
    said = imagej.run_macro(opened(folder) + f'run("Denoise...", "model=[{out}]"); return getTitle();')
    assert said == "denoised movie.tif"


def test_localizing_gives_a_table_to_the_macro_and_an_image(imagej, folder):
    table = fiji_bridge.localize(folder / "movie.tif", camera=Camera.parse(CAMERA), engine="torch")
    said = imagej.run_macro(
        opened(folder)
        + f'run("Localize molecules", "camera=[{CAMERA}] localizer=torch render=55");\n'
        + 'return "" + nResults + "|" + getResult("x [nm]", 3) + "|" + Table.get("frame", 3) + "|"'
        + ' + Table.headings + "|" + getTitle() + "|" + getWidth();'
    )
    rows, x, frame, headings, title, width = said.split("|")
    assert int(rows) == len(table) > 20
    assert float(x) == pytest.approx(table["x [nm]"].iloc[3], abs=1e-3)
    assert float(frame) == table["frame"].iloc[3]
    assert headings.strip().split("\t") == list(table.columns)
    assert title == "rendered movie.tif"
    assert 100 < int(width) <= 129  # 64 pixels of 110 nm, drawn at 55 nm


def test_commands_of_thunderstorm_work_on_images_and_files(plugin, imagej, folder, tmp_path):
    from jpype import JClass

    def run(options):
        return imagej.run_macro(f'run("ThunderSTORM headless...", "{options}"); return "" + nResults;')

    table = tmp_path / "molecules.csv"
    imagej.run_macro(opened(folder))
    camera = f"camera=[{CAMERA}]"
    rows = int(run(f"verb=localize {camera} options=[threshold=1.2*std(Wave.F1)] output=[{table}]"))
    assert rows == len(table.read_text().splitlines()) - 1 > 3
    inside = int(run(f"verb=localize {camera} options=[threshold=1.2*std(Wave.F1)] roi=0,0,32,64"))
    assert 0 < inside < rows
    merged = int(run(f"verb=postprocess input=[{table}] options=[action=merge dist=200.0]"))
    assert 0 < merged <= rows
    run(f"verb=render input=[{table}] {camera} options=[renderer=[Scatter plot] magnification=2.0]")
    drawn = JClass("ij.WindowManager").getCurrentImage()
    assert str(drawn.getTitle()) == "render molecules.csv" and drawn.getBitDepth() == 32
    run(f"verb=generate {camera} options=[psf=[Gaussian] width=20 height=16 frames=3]")
    made = JClass("ij.WindowManager").getCurrentImage()
    assert list(made.getDimensions())[:2] == [20, 16] and made.getStackSize() == 3
    assert int(run(f"verb=evaluate input=[{table}] second=[{table}]")) == 1
    for options, sentence in (
        (f"verb=calibrate {camera} options=[estimator=[Elliptic Gaussian w/ angle]]", "Give output=.*yaml"),
        ("verb=postprocess options=[action=merge]", "`postprocess` needs a TABLE"),
        ("verb=macro", "The option verb takes localize or"),
    ):
        with pytest.raises(FijiBridgeError, match=sentence):
            run(options)
    imagej.close()
    with pytest.raises(FijiBridgeError, match="needs an image"):
        run(f"verb=localize {camera}")


def test_extensions_take_and_give_image_ids(imagej, folder, monkeypatch):
    monkeypatch.setattr(fiji_bridge, "train", partial(fiji_bridge.train, **SMALL))
    said = imagej.run_macro(
        'run("Fiji Bridge Macro Extensions");\n'
        + opened(folder)
        + f"""
        raw = getImageID();
        newImage("another one in front", "8-bit", 50, 50, 1);
        Ext.train(raw, "output=[{folder}/again.safetensors] steps=60 camera=[{CAMERA}]", model);
        Ext.denoise(raw, "model=[" + model + "]", denoised);
        selectImage(denoised);
        title = getTitle();
        Ext.denoise(0, "input=[{folder}/movie.tif] model=[" + model + "]", second);
        Ext.localize(raw, "camera=[{CAMERA}] localizer=torch render=0", table);
        return "" + raw + "|" + denoised + "|" + title + "|" + second + "|" + model + "|" + Table.size(table);
        """
    )
    raw, denoised, title, second, model, rows = said.split("|")
    assert title == "denoised movie.tif"
    assert len({raw, denoised, second}) == 3 and max(map(int, (raw, denoised, second))) < 0
    assert model == f"{folder}/again.safetensors"
    assert int(rows) > 20


def test_comparing_gives_the_verdict_the_denoised_stack_and_the_report(imagej, folder):
    given = f"output=[{folder}/report] model=[{folder}/model.safetensors] localizer=torch camera=[{CAMERA}]"
    said = imagej.run_macro(
        'run("Fiji Bridge Macro Extensions");\n'
        + opened(folder)
        + f'Ext.compare(getImageID(), "{given}", verdict);\n'
        + 'return verdict + "|" + getTitle() + "|" + Table.getString("way", 0) + Table.size;'
    )
    verdict, title, ways = said.split("|")
    assert verdict.startswith("Cannot tell whether denoising helps")  # so few molecules in so few frames
    assert verdict.endswith(f"Report: {folder}/report/report.html")
    assert (title, ways) == ("denoised movie.tif", "raw3")
    assert (folder / "report" / "report.html").is_file()


@pytest.mark.parametrize(
    ("macro", "sentence"),
    [
        ('run("Denoise...", "model=[nowhere.safetensors]");', "nowhere.safetensors is not there"),
        ('run("Blind-spot denoise", "modle=here");', "did you mean model?"),
        ('run("Blind-spot train");', "Give output=[path of the model file to write]"),
        ('run("Localize...", "pixel_size=wide");', "pixel_size takes a number"),
        ('run("Fiji Bridge Macro Extensions"); Ext.denoise(-9999, "", out);', "No image has the ID -9999"),
        ('run("Fiji Bridge Macro Extensions"); Ext.denoise(getImageID(), "modle=here", out);', "model?"),
        ('run("Fiji Bridge Macro Extensions"); Ext.train(0, "output=m.safetensors", out);', "needs an image"),
        ('run("Fiji Bridge Macro Extensions"); Ext.denoise(0);', "too few arguments"),
    ],
)
def test_an_error_is_one_sentence_and_the_macro_ends_there(imagej, folder, tmp_path, capfd, macro, sentence):
    after = tmp_path / "after.txt"
    with pytest.raises(FijiBridgeError, match=re.escape(sentence)):
        imagej.run_macro(opened(folder) + macro + f'\nFile.saveString("went on", "{after}");')
    assert not after.exists()
    assert "Traceback" not in "".join(capfd.readouterr())
    assert imagej.run_macro(opened(folder) + denoise(folder) + "return getTitle();") == "denoised movie.tif"


def test_no_image_at_all_is_said(imagej):
    imagej.close()
    with pytest.raises(FijiBridgeError, match="needs an image: open one, or give input="):
        imagej.run_macro('run("Denoise...", "");')


def test_python_calls_get_the_same_sentence_and_the_image_is_free_again(imagej, folder):
    image = imagej.open(folder / "movie.tif")
    with pytest.raises(FijiBridgeError, match="is not there"):
        imagej.run("Denoise...", image, model=folder / "no such.safetensors")
    assert not image.isLocked()
    imagej.run("Denoise...", image, model=folder / "model.safetensors")
    assert not image.isLocked()


def test_a_fault_of_ours_is_one_sentence_too(imagej, folder, monkeypatch, capfd):
    def denoise_wrongly(*_, **__):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(fiji_bridge, "denoise", denoise_wrongly)
    with pytest.raises(FijiBridgeError, match="Blind-spot denoise failed: division by zero") as raised:
        imagej.run_macro(opened(folder) + denoise(folder))
    assert "Traceback" not in str(raised.value)
    assert "ZeroDivisionError" in capfd.readouterr().err  # for us


def test_esc_stops_the_work_and_the_macro(imagej, folder, tmp_path):
    from jpype import JClass

    IJ, escape = JClass("ij.IJ"), JClass("java.awt.event.KeyEvent").VK_ESCAPE
    started = threading.Event()
    image = imagej.open(folder / "movie.tif")
    image.show()
    original, out = fiji_bridge.train, tmp_path / "never.safetensors"

    def train(*args, progress, **more):
        def told(stage, done, total):
            started.set()
            progress(stage, done, total)

        return original(*args, progress=told, **more)

    def press():
        started.wait(60)
        assert image.isLocked()
        IJ.setKeyDown(escape)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fiji_bridge, "train", train)
        finger = threading.Thread(target=press)
        finger.start()
        began = time.monotonic()
        with pytest.raises(FijiBridgeError, match="topped"):
            imagej.run_macro(
                f"selectImage({image.getID()});"
                f'run("Train...", "output=[{out}] minutes=5 camera=[{CAMERA}]");'
                f'File.saveString("went on", "{tmp_path}/after.txt");'
            )
        finger.join()
    assert time.monotonic() - began < 150  # of five minutes; how soon depends on what else the machine does
    assert list(tmp_path.iterdir()) == []
    assert not image.isLocked()
    assert imagej.run_macro(opened(folder) + denoise(folder) + "return getTitle();") == "denoised movie.tif"


def test_every_command_has_two_names():
    for command in COMMANDS:
        assert find(command.name) is find(command.menu) is command


IN_JAVAS_THREADS = """
import os, signal, sys, threading, time
from fiji_bridge.imagej import session
import fiji_bridge
from jpype import JClass
import torch
torch.set_num_threads(1)
ij = session.start()
folder = sys.argv[1]
IJ, WindowManager = JClass("ij.IJ"), JClass("ij.WindowManager")
began = []
whole = fiji_bridge.train
def train(*args, progress, **more):
    def told(*state):
        began.append(state)
        progress(*state)
    return whole(*args, progress=told, **more)
fiji_bridge.train = train
# A macro as ImageJ's windows run it, in a thread of Java's own.
JClass("ij.macro.MacroRunner")(
    f'setBatchMode(true); open("{folder}/movie.tif");'
    f'run("Train...", "output=[{folder}/late.safetensors] minutes=2 camera=[CAMERA]");'
)
while not began:
    time.sleep(0.01)
# Meanwhile another command does not have to wait for the end of the training.
start = time.monotonic()
other = IJ.createImage("other", "8-bit ramp", 32, 32, 1)
IJ.run(other, "Invert", "")
print("other took", time.monotonic() - start)
IJ.setKeyDown(JClass("java.awt.event.KeyEvent").VK_ESCAPE)
start = time.monotonic()
while any("Macro$" in str(t.getName()) for t in JClass("java.lang.Thread").getAllStackTraces().keySet()):
    time.sleep(0.05)
print("ended after", time.monotonic() - start)
# Ctrl-C during a command that Python itself waits for.
del began[:]
def press():
    while not began:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=press).start()
start = time.monotonic()
try:
    ij.run_macro(
        f'open("{folder}/movie.tif"); run("Train...", "output=[{folder}/late.safetensors] camera=[CAMERA]");'
    )
except KeyboardInterrupt:
    print("interrupted after", time.monotonic() - start)
"""


def run(script, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_commands_let_others_run_and_stop_at_esc_and_ctrl_c(imagej, folder):
    done = run(IN_JAVAS_THREADS.replace("CAMERA", CAMERA), folder)
    assert done.returncode == 0, done.stderr
    assert float(re.search(r"other took (\S+)", done.stdout)[1]) < 1.5
    assert float(re.search(r"ended after (\S+)", done.stdout)[1]) < 10
    assert float(re.search(r"interrupted after (\S+)", done.stdout)[1]) < 10
    assert not (folder / "late.safetensors").exists()


IN_FRONT_OF_WINDOWS = """
import sys, time
from fiji_bridge.imagej import session
from jpype import JClass
import torch
torch.set_num_threads(1)
folder = sys.argv[1]
ij = session.start(mode="gui")
IJ, WindowManager, Dialog = JClass("ij.IJ"), JClass("ij.WindowManager"), JClass("ij.gui.GenericDialog")
Recorder, Click = JClass("ij.plugin.frame.Recorder"), JClass("java.awt.event.ActionEvent")

def until(found, seconds=30):
    end = time.monotonic() + seconds
    while not (it := found()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return it

def press(dialog, button):
    button = next(b for b in dialog.getButtons() if b is not None and str(b.getLabel()).strip() == button)
    dialog.actionPerformed(Click(button, 1001, "pressed"))
    until(lambda: not dialog.isShowing())

def shown():
    dialog = Dialog.getInstance()
    return dialog if dialog is not None and dialog.isShowing() else None

def item(*path):
    bar = JClass("ij.Menus").getMenuBar()
    menus = [bar.getMenu(i) for i in range(bar.getMenuCount())]
    for label in path:
        found = next(menu for menu in menus if str(menu.getLabel()) == label)
        if hasattr(found, "getItemCount"):
            menus = [found.getItem(i) for i in range(found.getItemCount())]
    return found

def choose(*path):
    chosen = item(*path)
    JClass("java.awt.EventQueue").invokeLater(
        lambda: [x.actionPerformed(Click(chosen, 1001, chosen.getActionCommand()))
                 for x in chosen.getActionListeners()])
    return until(shown)

IJ.open(f"{folder}/movie.tif")
IJ.run("Record...")
IJ.selectWindow("movie.tif")
dialog = choose("Plugins", "Fiji Bridge", "Denoise...")
fields = dialog.getStringFields()
assert [str(f.getText()) for f in fields] == ["", "", "", ""]
fields.get(1).setText(f"{folder}/model.safetensors")
press(dialog, "OK")
until(lambda: WindowManager.getImage("denoised movie.tif"))
print("recorded", Recorder.getInstance().getText())

IJ.selectWindow("movie.tif")
dialog = choose("Plugins", "Fiji Bridge", "Denoise...")
print("remembered", dialog.getStringFields().get(1).getText())
dialog.getStringFields().get(1).setText("nowhere.safetensors")
press(dialog, "OK")
Frame = JClass("java.awt.Window")
def message():
    return next((w for w in Frame.getWindows()
                 if w.isShowing() and w.getClass().getSimpleName() == "MessageDialog"), None)
words = until(message)
print("said", IJ.getErrorMessage())
words.dispose()
dialog = choose("Plugins", "Fiji Bridge", "Localize...")
press(dialog, "Cancel")
print("locked", WindowManager.getImage("movie.tif").isLocked())
"""


def test_with_windows_the_menu_asks_remembers_and_records_what_a_macro_takes(imagej, folder, display):
    done = run(IN_FRONT_OF_WINDOWS, folder, DISPLAY=display)
    assert done.returncode == 0, done.stdout + done.stderr
    line = re.search(r"recorded (.*)", done.stdout)[1]
    options = DENOISE.options({"model": f"{folder}/model.safetensors"})
    assert line == f'run("Denoise...", "{options}");'
    assert f"remembered {folder}/model.safetensors" in done.stdout
    assert "said nowhere.safetensors is not there" in done.stdout
    assert "locked False" in done.stdout
    said = imagej.run_macro(opened(folder) + line + "return getTitle();")
    assert said == "denoised movie.tif"


AS_MODULES = """
import sys, time
from fiji_bridge.imagej import in_process, session
import torch
torch.set_num_threads(1)
folder, where = sys.argv[1], sys.argv[2]
if where:
    ij = session.start(where)
    modules = ij.gateway.module()
else:
    session.IMAGEJ += "+org.scijava:scijava-common:2.98.0"
    ij = session.start()
from jpype import JClass
if not where:
    from fiji_bridge.imagej.scijava_modules import add_modules
    modules = JClass("org.scijava.Context")(False).service("org.scijava.module.ModuleService")
    add_modules(in_process.Bridge(ij), modules)
File, Map = JClass("java.io.File"), JClass("java.util.HashMap")

def run(name, **inputs):
    given = Map()
    for key, value in inputs.items():
        given.put(key, value)
    return modules.run(modules.getModuleById(f"fiji-bridge:{name}"), True, given).get()

for info in modules.getModules():
    if str(info.getIdentifier()).startswith("fiji-bridge:"):
        inputs = [f"{i.getName()}:{i.getType().getSimpleName()}" for i in info.inputs()]
        print(info.getIdentifier(), info.getMenuPath(), *inputs)
movie, model = File(f"{folder}/movie.tif"), File(f"{folder}/model.safetensors")
done = run("denoise", input=movie, model=model, estimator="map")
print("by path", done.isCanceled(), done.getOutput("result"), done.getOutput("text"))
image = JClass("ij.IJ").openImage(str(movie))
done = run("denoise", image=image, model=model)
print("by image", done.isCanceled(), round(done.getOutput("result").getCalibration().pixelWidth, 9))
done = run("localize", image=image, localizer="torch", render=0.0, camera="CAMERA")
print("table", done.getOutput("table").size() > 20, done.getOutput("result"))
done = run("denoise", image=image, model=File("nowhere.safetensors"))
print("reason", done.isCanceled(), done.getCancelReason())
module = modules.createModule(modules.getModuleById("fiji-bridge:train"))
given = Map()
given.put("image", image)
given.put("output", File(f"{folder}/as module.safetensors"))
given.put("camera", "CAMERA")
future = modules.run(module, True, given)
while not image.isLocked():
    time.sleep(0.05)
module.cancel("enough")
print("cancelled", future.get().getCancelReason(), image.isLocked())
"""


@pytest.mark.parametrize("where", ["SciJava alone", "Fiji"])
def test_in_imagej2_the_commands_are_modules(imagej, folder, where):
    fiji = os.environ.get("FIJI_BRIDGE_FIJI", "") if where == "Fiji" else ""
    if where == "Fiji" and not fiji:
        pytest.skip("FIJI_BRIDGE_FIJI does not name the folder of a Fiji or ImageJ2")
    done = run(AS_MODULES.replace("CAMERA", CAMERA), folder, fiji)
    assert done.returncode == 0, done.stdout + done.stderr
    for command in COMMANDS:
        inputs = re.search(
            rf"fiji-bridge:{command.cli} \[Plugins, Fiji Bridge, {command.menu}\] (.*)", done.stdout
        )
        types = dict(item.split(":") for item in inputs[1].split())
        assert types.pop("image") == "ImagePlus"
        assert list(types) == [parameter.key for parameter in command.parameters]
        numbers = {key for key, kind in types.items() if kind == "Double"}
        assert numbers == {p.key for p in command.parameters if p.kind == "number"}
        assert (types["input"], types["output"]) == ("File", "File")
    assert re.search(r'by path False img\["denoised movie.tif".*32-bit.*\] Denoised movie.tif', done.stdout)
    assert "by image False 0.11" in done.stdout
    assert "table True None" in done.stdout
    assert "reason True nowhere.safetensors is not there; name a model file" in done.stdout
    assert "cancelled enough False" in done.stdout
    assert "Traceback" not in done.stderr
