// Finds out for every stack of a folder whether denoising helps to localize its molecules: "input=FOLDER output=FOLDER ...", see README.md.
runMacro(File.getParent(getInfo("macro.filepath")) + "/Batch.ijm", "compare " + getArgument());
