// Trains a model on each stack of a folder and keeps it, for Batch_Denoise and Batch_Compare: "input=FOLDER output=FOLDER ...", see README.md.
runMacro(File.getParent(getInfo("macro.filepath")) + "/Batch.ijm", "train " + getArgument());
