// What every command of the menu does after its dialog; `fiji-bridge install` puts a head before this that sets
//   python   the Python that has fiji-bridge
//   request  lines of key=value: the command's name, then its options
//   input    the stack on disk, or "" for the current image
//   window   what stands for ImageJ's window, "null" without one
//   options  what a macro gave, "null" when the command was chosen from the menu
// Python works in a process of its own, which stays for the next command. Images go to and fro as files in a folder
// in memory where the system has one. This macro keeps a file changing while it waits; when that stops, because Esc
// ended the macro or ImageJ was closed, Python gives up the work and takes the folder away.

original = 0;
bytes = 0;
if (input == "") { // && would look at the image that is not there
    if (nImages == 0)
        stop("Open an image first, or give the path of a stack as input.");
    if (bitDepth() == 24)
        stop("This is a color image, and photons have no colors: use Image > Type > 32-bit, or split its channels.");
    bytes = getValue("image.size");
}
answer = exec(python, "-P", "-m", "fiji_bridge.imagej.worker", "begin", "" + bytes, getInfo("file.encoding"));
if (startsWith(answer, "error="))
    stop(substring(answer, 6));
if (!startsWith(answer, "folder="))
    stop(python + " cannot do it; run `fiji-bridge install` again. " + answer);
folder = substring(answer, 7, indexOf(answer, "\n")) + "/";
pulse = substring(answer, indexOf(answer, "pulse=") + 6, lengthOf(answer) - 1);

if (input == "") {
    original = getImageID();
    getVoxelSize(pixelWidth, pixelHeight, pixelDepth, unit);
    getDimensions(width, height, channels, slices, frames);
    request = request + "channels=" + channels + "\n" + "slices=" + slices + "\n" + "frames=" + frames + "\n";
    if (isSigned()) request = request + "signed=1\n";
    request = request + "title=" + getTitle() + "\n" + "pixel_width=" + pixelWidth + "\n" + "unit=" + unit + "\n";
    handOver(original);
}
File.saveString(request + "end=\n", folder + "request");

beat = 0; still = 0; last = "";
while (!File.exists(folder + "result")) {
    File.saveString("" + beat++, folder + "alive");
    wait(200);
    said = textOf(folder + "status");
    if (said == "")
        showStatus("Waiting for Python...");
    else {
        bar = indexOf(said, "|");
        showProgress(parseFloat(substring(said, 0, bar)));
        showStatus(substring(said, bar + 1));
    }
    seen = textOf(pulse);
    still++;
    if (seen != last) still = 0;
    last = seen;
    if (still == 50) {
        still = 0; // loading torch from a slow disk stops the pulse as well
        if (!startsWith(exec(python, "-P", "-m", "fiji_bridge.imagej.worker", "lives"), "True"))
            stop("The Python that did the work has ended, perhaps for want of memory; see " + pulse + ".log");
    }
}
showProgress(1);

lines = split(File.openAsString(folder + "result"), "\n");
error = "";
text = "";
for (i = 0; i < lines.length; i++) {
    File.saveString("" + beat++, folder + "alive");
    at = indexOf(lines[i], "=");
    what = substring(lines[i], 0, at);
    value = substring(lines[i], at + 1);
    parts = split(value, "\t");
    if (what == "error")
        error = error + value + "\n";
    if (what == "text")
        text = value;
    if (what == "image") {
        open(folder + parts[0]);
        rename(parts[2]);
        kept = false;
        if (original != 0 && parts[1] == "alike")
            kept = isOpen(original); // it may have been closed meanwhile
        if (kept)
            likeOriginal(original, getImageID());
        else
            run("Enhance Contrast", "saturated=0.35");
    }
    if (what == "table" && window != "null") {
        Table.open(folder + parts[0]);
        Table.rename(parts[0], parts[1]);
    }
    if (what == "page" && window != "null")
        ignored = call("ij.plugin.BrowserLauncher.openURL", value);
}
File.saveString("", folder + "read");
if (error != "")
    stop(error);
showStatus(text);
print(text);

// Writes the image into the folder, some frames at a time, and leaves it as it was: saving an image itself would make
// the copy its file.
function handOver(image) {
    wasBatch = is("Batch Mode");
    setBatchMode(true);
    selectImage(image);
    selected = selectionType() >= 0;
    if (selected) run("Select None");
    getDimensions(width, height, channels, slices, frames);
    planes = channels * slices;
    axis = "frames";
    count = frames;
    if (frames == 1 && channels == 1) {
        planes = 1;
        axis = "slices";
        count = slices;
    }
    atOnce = maxOf(1, floor(2.5e8 / (width * height * planes * bitDepth() / 8)));
    for (first = 1; first <= count; first += atOnce) {
        end = minOf(count, first + atOnce - 1);
        selectImage(image);
        if (nSlices == 1)
            run("Duplicate...", "title=part");
        else if (channels * slices == 1 || channels * frames == 1)
            run("Duplicate...", "title=part duplicate range=" + first + "-" + end);
        else
            run("Duplicate...", "title=part duplicate channels=1-" + channels + " slices=1-" + slices + " frames=" + first + "-" + end);
        if (nSlices > 1) Stack.setDimensions(1, 1, nSlices); // a part may have fewer axes than the whole
        run("Grays"); // a palette is no part of the data, and an inverted one would invert them
        saveAs("Tiff", folder + "image-" + IJ.pad(first, 8) + ".tif");
        close();
        File.saveString("" + first, folder + "alive");
        showProgress(end / count);
    }
    selectImage(image);
    if (selected) run("Restore Selection");
    if (!wasBatch) setBatchMode(false);
}

// Gives an image the axes, calibration, colors and display range of the one that it was made from.
function likeOriginal(original, made) {
    selectImage(original);
    getDimensions(width, height, channels, slices, frames);
    getVoxelSize(pixelWidth, pixelHeight, pixelDepth, unit);
    Stack.getUnits(x, y, z, time, value);
    interval = Stack.getFrameInterval();
    rate = Stack.getFrameRate();
    composite = is("composite");
    mode = "";
    if (composite) Stack.getDisplayMode(mode);
    left = 0; top = 0;
    toScaled(left, top);
    grey = isSigned();
    if (calibrate(0) == 0 && calibrate(1) == 1) grey = true; // else its range is of what a table makes of it
    if (channels > 1) Stack.getPosition(channelAt, sliceAt, frameAt);
    selectImage(made);
    if (nSlices > 1) Stack.setDimensions(channels, slices, frames);
    if (left != 0 || top != 0) // first, as it rounds all else
        run("Properties...", "origin=" + (-left / pixelWidth) + "," + (-top / pixelHeight));
    setVoxelSize(pixelWidth, pixelHeight, pixelDepth, unit);
    Stack.setXUnit(x);
    Stack.setYUnit(y);
    Stack.setZUnit(z);
    Stack.setTUnit(time);
    Stack.setFrameInterval(interval);
    Stack.setFrameRate(rate);
    if (composite) {
        run("Make Composite", "display=" + toUpperCase(substring(mode, 0, 1)) + substring(mode, 1));
        made = getImageID();
    }
    for (channel = 1; channel <= channels; channel++) {
        selectImage(original);
        if (channels > 1) Stack.setChannel(channel);
        getLut(reds, greens, blues);
        getMinAndMax(least, most);
        selectImage(made);
        if (channels > 1) Stack.setChannel(channel);
        setLut(reds, greens, blues);
        if (grey) setMinAndMax(least, most);
        else run("Enhance Contrast", "saturated=0.35");
    }
    if (channels > 1) {
        selectImage(original);
        Stack.setPosition(channelAt, sliceAt, frameAt);
        selectImage(made);
        Stack.setChannel(channelAt);
    }
}

// Whether ImageJ shows the current image's 16-bit values less 32768.
function isSigned() {
    if (bitDepth() != 16) return false;
    if (calibrate(0) == -32768 && calibrate(65535) == 32767) return true;
    return false;
}

// Says what is wrong. A macro that ran the command must not go on as if it had been done.
function stop(message) {
    if (window == "null") {
        print(message);
        if (indexOf(getInfo("java.class.path"), "jpype") < 0)
            ignored = call("java.lang.System.exit", "1");
        ignored = call("ij.Macro.abort");
    } else {
        showMessage("Fiji Bridge", message);
        if (options != "null") {
            ignored = call("ij.Macro.abort"); // which also shows where it was called from
            close("Exception");
        }
    }
    exit();
}

function textOf(path) {
    if (!File.exists(path)) return "";
    return File.openAsString(path);
}
