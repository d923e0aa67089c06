// What the Batch_ macros share: runs "COMMAND OPTIONS" and ends ImageJ with an exit code. See README.md.

task = getArgument();
python = call("ij.Macro.getValue", task, "python", "python3");
state = task;
do {
    // exec gives what was printed only when the program has ended: each call waits for the next lines.
    answer = exec(python, "-P", "-m", "fiji_bridge.imagej.batch", getInfo("file.encoding"), state);
    lines = split(answer, "\n");
    state = "";
    if (lines.length > 0)
        state = lines[lines.length - 1];
    for (i = 0; i < lines.length - 1; i++)
        print(lines[i]);
} while (startsWith(state, "more "));
if (!startsWith(state, "end ")) {
    print(python + " has no fiji-bridge; name the Python that has it with python=[path]. " + state);
    state = "end 1";
}
if (state != "end 0") {
    // exit() has no exit code. An ImageJ with a window, or in a Python session, is not ours to end.
    window = "" + call("ij.IJ.getInstance");
    if (window == "null" && indexOf(getInfo("java.class.path"), "jpype") < 0)
        call("java.lang.System.exit", "1");
    exit("The batch did not succeed.");
}
