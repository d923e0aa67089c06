// Runs a command of ThunderSTORM's headless: "VERB input=FILE out=FILE options=[...] camera=[...] ...", see ThunderSTORM.md.
task = getArgument();
python = call("ij.Macro.getValue", task, "python", "python3");
verb = substring(task, 0, indexOf(task + " ", " "));
answer = exec(python, "-P", "-m", "fiji_bridge.thunderstorm.commands", task);
print(answer);
if (!endsWith(String.trim(answer), "end 0")) {
    // exit() has no exit code. An ImageJ with a window, or in a Python session, is not ours to end.
    window = "" + call("ij.IJ.getInstance");
    if (window == "null" && indexOf(getInfo("java.class.path"), "jpype") < 0)
        call("java.lang.System.exit", "1");
    exit("ThunderSTORM's " + verb + " did not succeed.");
}
