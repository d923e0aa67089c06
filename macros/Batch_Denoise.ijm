// Denoises every stack of a folder: "input=FOLDER output=FOLDER ...", see README.md.
runMacro(File.getParent(getInfo("macro.filepath")) + "/Batch.ijm", "denoise " + getArgument());
