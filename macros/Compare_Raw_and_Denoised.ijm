// Did denoising help? Trains on a stack, denoises it, localizes raw and denoised frames, leaves a report.
//
// With an argument (headless, or runMacro): "input=STACK output=FOLDER camera=[...] truth=CSV python=PYTHON"
// Without one: a dialog.

argument = getArgument();
if (argument == "") {
    Dialog.create("Compare raw and denoised");
    Dialog.addFile("Stack", "");
    Dialog.addDirectory("Folder for the report", "");
    Dialog.addString("Camera setup (empty: estimate)", "", 60);
    Dialog.addFile("Ground truth (may stay empty)", "");
    Dialog.addString("Python with fiji-bridge", "python3", 40);
    Dialog.show();
    input = Dialog.getString();
    output = Dialog.getString();
    camera = Dialog.getString();
    truth = Dialog.getString();
    python = Dialog.getString();
} else {
    input = option(argument, "input", "");
    output = option(argument, "output", "");
    camera = option(argument, "camera", "");
    truth = option(argument, "truth", "");
    python = option(argument, "python", "python3");
}
if (input == "" || output == "")
    exit("Compare raw and denoised needs input=STACK and output=FOLDER.");

// exec takes no array and gives standard output only, so an option with an empty value is as if left out, and
// --json puts a complaint there too.
answer = exec(python, "-m", "fiji_bridge.cli", "compare", input, "--json", "--out=" + output,
    "--camera=" + camera, "--ground-truth=" + truth);
if (indexOf(answer, "\"error\":") >= 0 || indexOf(answer, "{") < 0)
    exit("Compare raw and denoised: " + answer);
print(answer);

// The value of key=value or key=[value with spaces] in an option string; `missing` if it is not there.
// (List and Dialog do not help: headless macros get one plain string.)
function option(options, key, missing) {
    start = indexOf(" " + options, " " + key + "=");
    if (start < 0) return missing;
    rest = substring(options, start + lengthOf(key) + 1);
    if (startsWith(rest, "[")) return substring(rest, 1, indexOf(rest, "]"));
    end = indexOf(rest + " ", " ");
    return substring(rest, 0, end);
}
