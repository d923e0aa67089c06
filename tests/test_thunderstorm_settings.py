"""Settings against the running plugin's own modules, and the option strings that people have."""

import dataclasses
import zipfile

import pytest

from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.imagej.session import macro_options
from fiji_bridge.thunderstorm import jar as jars
from fiji_bridge.thunderstorm import settings as ts

GROUPS = {
    ts.ImageFilter: "filters.ui.IFilterUI",
    ts.Detector: "detectors.ui.IDetectorUI",
    ts.Estimator: "estimators.ui.IEstimatorUI",
    ts.Renderer: "rendering.ui.IRendererUI",
    ts.PSF: "estimators.PSF.ui.IPsfUI",
    ts.Defocus: "calibration.DefocusFunction",
}
COMMANDS = {
    ts.Generator: "DataGeneratorPlugIn",
    ts.Evaluation: "PerformanceEvaluationPlugIn$PerformanceEvaluationDialog",
    ts.Import: "ImportExportPlugIn$ImportDialog",
    ts.Export: "ImportExportPlugIn$ExportDialog",
    ts.Calibration: "UI/CalibrationDialog",
    ts.Colocalization: "CBCPlugIn$CBCDialog",
    ts.Visualization: "RenderingPlugIn",
}
"""Commands whose options are made beside a window, and the class that names them."""

ALL = [module for group in (*GROUPS, ts.PostProcessing, ts.FileFormat) for module in group.modules()]
OTHERS = {float: 0.7, int: 7, bool: True, tuple: (20.0, 30.0)}


def options_of(module):
    return {
        item.name: item.metadata["option"] for item in dataclasses.fields(module) if "option" in item.metadata
    }


def changed(module):
    """Settings that differ from the defaults in every option."""
    values = {}
    for name, option in options_of(module).items():
        if option.rule.words.startswith("one of"):
            values[name] = option.rule.words.removeprefix("one of ").split(", ")[-1]
        elif option.rule is ts.FROM_STEP_TO:
            values[name] = (-30.0, 1.5, 40.0)
        elif option.kind is ts.KINDS[bool]:
            values[name] = not option.default
        else:
            values[name] = OTHERS.get(type(option.default), "a value")
    return module(**values)


def java_fields(thing):
    """Give what a Java object holds, inherited fields included."""
    held, kind = {}, thing.getClass()
    while kind is not None and not str(kind.getName()).startswith("java"):
        for field in kind.getDeclaredFields():
            if not field.getModifiers() & 8:  # static
                field.setAccessible(True)
                held.setdefault(str(field.getName()), field.get(thing))
        kind = kind.getSuperclass()
    return held


def trackers(module):
    for name, value in java_fields(module).items():
        if hasattr(value, "readMacroOptions") and hasattr(value, "loadPrefs"):
            yield value
        elif name == "crowdedField":
            yield from trackers(value)


def plugin_options(module):
    """Give the options that a module of the running plugin has, with their defaults."""
    options = {}
    for tracker in trackers(module):
        for key, parameter in dict(java_fields(tracker)["trackedParameters"]).items():
            options[str(key.toString()).lower()] = java_fields(parameter)["defaultValue"]
    return options


def as_python(value, option):
    return option.kind.read(str(value).lower() if option.kind is ts.KINDS[bool] else str(value))


@pytest.mark.parametrize("group", [*GROUPS, ts.PostProcessing])
def test_modules_options_and_defaults_are_those_of_the_running_plugin(plugin, group):
    if group is ts.PostProcessing:
        modules = plugin["ModuleLoader"].getPostProcessingModules()
        named = {str(module.getMacroName()): module for module in modules}
    else:
        modules = plugin["ModuleLoader"].getUIModules(plugin[GROUPS[group]].class_)
        named = {str(module.getName()): module for module in modules}
    ours = {}
    for module in group.modules():
        first = next(iter(module.fixed))
        ours.setdefault(module.fixed[first], []).append(module)
    assert list(named) == list(ours) or group is ts.PostProcessing
    assert set(named) == set(ours)
    for name, module in named.items():
        theirs = {} if group is ts.Defocus or ours[name] == [ts.NoRenderer] else plugin_options(module)
        found = {}
        for settings in ours[name]:
            found |= {option.key: option for option in options_of(settings).values()}
            found |= dict.fromkeys(list(settings.fixed)[1:])
        assert set(found) == set(theirs)
        for key, option in found.items():
            if option is not None:
                assert as_python(theirs[key], option) == option.default, (name, key)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_options_are_named_in_the_plugins_classes(plugin, command):
    entry = f"{jars.PACKAGE.replace('.', '/')}/{COMMANDS[command]}.class"
    with zipfile.ZipFile(jars.require_jar()) as archive:
        code = archive.read(entry).lower()
        if "ImportExport" in entry:  # what both dialogs share stands in the outer class as well
            code += archive.read(entry.split("$")[0] + ".class").lower()
    for option in options_of(command).values():
        length = len(option.key).to_bytes(2, "big")  # a constant of a class file: its length and its letters
        assert length + option.key.encode() in code, option.key


def test_the_generator_starts_from_our_defaults(plugin):
    wanted = ts.Generator()
    generator = plugin["DataGeneratorPlugIn"]()
    read = generator.getClass().getDeclaredMethod("getInput")
    read.setAccessible(True)
    with macro_options(wanted.psf.options()):
        read.invoke(generator)
    held = java_fields(generator)
    assert (held["width"], held["height"], held["frames"]) == (256, 256, 1000)
    assert (held["density"], held["add_poisson_var"]) == (wanted.density_per_um2, wanted.background_photons)
    intensity = held["intensity_range"]
    assert (intensity.getClass().getField("from").get(intensity), intensity.to) == wanted.intensity_photons
    assert not held["singleFixedMolecule"]


def test_file_formats_are_those_of_the_plugin(plugin):
    modules = plugin["ModuleLoader"].getModules(plugin["ImportExport.IImportExport"].class_)
    theirs = [(str(module.getName()), str(module.getSuffix())) for module in modules]
    assert theirs == [(ours.fixed["fileformat"], ours.suffix) for ours in ts.FileFormat.modules()]


@pytest.mark.parametrize("group", [ts.ImageFilter, ts.Detector, ts.Estimator, ts.Renderer, ts.PSF])
def test_the_plugin_reads_back_what_we_write(plugin, group, tmp_path):
    """Every option, none at its default, as the plugin's own parser has it afterwards."""
    calibration = tmp_path / "lens.yaml"
    calibration.write_text(
        f"!!{jars.PACKAGE}.calibration.DaostormCalibration\nangle: 0.1\na1: 1.0\na2: 1.0\nb1: 0.0\nb2: 0.0\n"
        "c1: 1.0\nc2: 1.0\nd1: 0.0\nd2: 0.0\n"
    )
    named = {str(m.getName()): m for m in plugin["ModuleLoader"].getUIModules(plugin[GROUPS[group]].class_)}
    for module in group.modules():
        settings = changed(module)
        if hasattr(settings, "calibration_path"):
            settings = dataclasses.replace(settings, calibration_path=str(calibration))
        theirs = named[next(iter(module.fixed.values()))]
        with macro_options(settings.options()):
            try:
                theirs.readMacroOptions(settings.options())
            except Exception as error:  # the calibration is none: its options are read before that
                assert "yaml" in str(error) or "alibration" in str(error), error
        read = {}
        for tracker in trackers(theirs):
            for key, parameter in dict(java_fields(tracker)["trackedParameters"]).items():
                read[str(key.toString()).lower()] = java_fields(parameter)["value"]
        for name, option in options_of(module).items():
            assert as_python(read[option.key], option) == getattr(settings, name), (module, name)


@pytest.mark.parametrize("module", [*ALL, ts.AnalysisSettings, *COMMANDS])
def test_settings_and_strings_are_the_same_thing(module):
    for settings in (module(), changed(module)):
        assert module.parse(settings.options()) == settings
        group = module.__mro__[-3] if module.fixed else module
        assert group.parse(str(settings)) == settings


def test_what_is_not_read_is_not_written():
    assert "nmax" not in ts.IntegratedGaussian().options()
    with pytest.raises(FijiBridgeError, match=r"nmax= only together with mfaenabled="):
        ts.IntegratedGaussian(most_molecules=3)


def test_numbers_are_written_as_java_writes_them():
    written = ts.IntegratedGaussian(multi_emitter=True, p_value=1e-6, sigma_px=1).options()
    assert "pvalue=1.0E-6" in written
    assert "sigma=1.0 " in written
    assert "stagestep=2.5E7" in ts.StageOffset(step_nm=2.5e7).options()


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("filter=“No filter”", ts.AnalysisSettings(filter=ts.NoFilter())),
        ("FitRadius=4", ts.AnalysisSettings(estimator=ts.IntegratedGaussian(fit_radius_px=4))),
        (
            "estimator=[psf: gaussian] mfaenabled",
            ts.AnalysisSettings(estimator=ts.Gaussian(multi_emitter=True)),
        ),
        (
            "colorize=true pickedlut=[Red Hot]",
            ts.AnalysisSettings(renderer=ts.AveragedShiftedHistograms(colorize_z=True)),
        ),
        ("order=3 size=9", ts.AnalysisSettings()),
    ],
)
def test_what_people_paste_is_read_as_meant(text, meant):
    assert ts.AnalysisSettings.parse(text) == meant


def test_names_of_a_later_version_are_read_as_their_earlier_ones():
    step = ts.PostProcessing.parse("action=filter formula=[uncertainty_xy < 10 & uncertainty_xyz > 0]")
    assert step == ts.FilterResults("uncertainty < 10 & uncertainty_xyz > 0")
    export = ts.Export.parse(
        "filepath=a.csv floatprecision=5 fileformat=XML uncertainty_xy=true x=true id=false"
    )
    assert export == ts.Export("a.csv", ts.XML(), columns=("uncertainty", "x"), left_out=("id",))


@pytest.mark.parametrize(
    ("kind", "text", "sentence"),
    [
        (ts.AnalysisSettings, "filtr=[No filter]", "no option filtr= here; write filter="),
        (ts.AnalysisSettings, "filter=[Gausian filter]", "it has Wavelet filter"),
        (ts.AnalysisSettings, "fitradius=0", "must be a positive whole number, not 0"),
        (ts.AnalysisSettings, "fitradius=3.5", "must be a positive whole number, not '3.5'"),
        (ts.AnalysisSettings, "mfaenabled=yes", "must be a flag, true or false, not 'yes'"),
        (ts.AnalysisSettings, "connectivity=6-neighbourhood", "one of 8-neighbourhood, 4-neighbourhood"),
        (ts.AnalysisSettings, "estimator=[Phasor-based localisation 2D]", "came with a later version"),
        (ts.AnalysisSettings, "threed=true zrange=5:1:2", "from:step:to with at least one step"),
        (ts.AnalysisSettings, "filter=[Gaussian filter] sigma=1 Sigma=2", "stands for two modules"),
        (ts.PostProcessing, "formula=[x > 3]", "Choose action= one of filter, density"),
        (ts.PostProcessing, "action=drift steps=1", "a whole number of at least 2, not 1"),
        (ts.PostProcessing, "action=drift ccsmoothingbandwidth=0.5", "later version of ThunderSTORM"),
        (ts.PostProcessing, "action=drift method=[Fiducial markers] onTimeRatio=2", "from 0 to 1, not 2.0"),
        (ts.Export, "x=1", "x= must be a flag"),
    ],
)
def test_what_has_no_meaning_gets_one_sentence(kind, text, sentence):
    with pytest.raises(FijiBridgeError, match=sentence.replace("(", r"\(")) as error:
        kind.parse(text)
    assert "\n" not in str(error.value)


def test_one_option_cannot_serve_two_modules():
    with pytest.raises(FijiBridgeError, match=r"sigma= stands for two modules, as 1\.0 and as 1\.6"):
        ts.AnalysisSettings(filter=ts.GaussianFilter(1.0))
    assert ts.AnalysisSettings(filter=ts.GaussianFilter(1.6)).options().count("sigma=") == 1
