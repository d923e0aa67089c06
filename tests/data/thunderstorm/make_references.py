"""Run the plugin's own commands on a display and keep what they give, as references for the tests.

    python tests/data/thunderstorm/make_references.py

writes references.zip beside this file. The stacks are the plugin generator's, so each run makes other ones;
with names of LATER behind, only those are done again, on the stacks that are there.
"""

import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from fiji_bridge.thunderstorm import display
from fiji_bridge.thunderstorm.display import run_macro
from fiji_bridge.thunderstorm.jar import require_jar

HERE = Path(__file__).parent
CAMERA = "offset=100.0 isemgain=false photons2adu=2.0 pixelsize=100.0"
ANALYSIS = (
    "filter=[Wavelet filter (B-Spline)] scale=2.0 order=3 detector=[Local maximum]"
    " connectivity=8-neighbourhood threshold=std(Wave.F1)"
)
FLAT = (
    f"{ANALYSIS} estimator=[PSF: Integrated Gaussian] sigma=1.3 fitradius=3 method=[Weighted Least squares]"
)
FOUND = {
    "box": "filter=[Averaging (Box) filter] size=3 estimator=[No estimator] threshold=60",
    "median": "filter=[Median filter] size=5 pattern=box estimator=[No estimator] threshold=40",
    "unfiltered": "filter=[No filter] estimator=[No estimator] threshold=90",
    "suppression": "detector=[Non-maximum suppression] radius=2 estimator=[Radial symmetry] fitradius=3",
    "whole_image": "estimator=[PSF: Gaussian] sigma=1.3 fitradius=3 method=[Least squares]"
    " full_image_fitting=true mfaenabled=false threshold=3*std(Wave.F1)",
    "several": "estimator=[PSF: Integrated Gaussian] sigma=1.3 fitradius=3 method=[Maximum likelihood]"
    " mfaenabled=true nmax=3 pvalue=1.0E-3 keep_same_intensity=true fixed_intensity=true"
    " expected_intensity=300:1500 threshold=3*std(Wave.F1)",
}
"""Analyses of settings that thunderstorm_reference does not have; only of the first frames."""

FOUND_FRAMES = 4
FILTERS = 8
STEPS = {
    "filter": "action=filter formula=[intensity > 700 & uncertainty < 12 | frame < 3]",
    "duplicates": "action=duplicates distformula=[uncertainty * 8]",
    "density": "action=density radius=150.0 dimensions=2D neighbors=4",
    "merge": "action=merge dist=60.0 offframes=2 framespermolecule=4 zcoordweight=0.1",
    "offset": "action=offset framesperstagepos=5 stagepositions=3 stagestep=50.0 firstposoffset=-20.0",
    "drift_correlation": "action=drift method=[Cross correlation] steps=5 magnification=5.0"
    " showcorrelations=false save=true path={folder}/drift_correlation.json",
    "drift_fiducials": "action=drift method=[Fiducial markers] distancethr=120.0 ontimeratio=0.2"
    " smoothingbandwidth=0.25 save=true path={folder}/drift_fiducials.json",
}
REGIONS = {
    "rectangle": "makeRectangle(5, 8, 20, 17);",
    "polygon": "makePolygon(3, 2, 27, 5, 30, 20, 16, 13, 12, 30, 6, 24);",
    "oval": "makeOval(6, 4, 21, 25);",
}
"""Selections that the analysis is restricted to."""

WATERSHED = "detector=[Centroid of connected components] watershed=true estimator=[No estimator]"
CORRELATE = (
    "action=drift method=[Cross correlation] steps=5 magnification=2.0 showcorrelations=true save=false"
)
REGION = "imleft=2.0 imtop=3.0 imwidth=20.0 imheight=18.0"
IMAGES = {
    "ash": "renderer=[Averaged shifted histograms] magnification=3.0 colorizez=false threed=false shifts=2",
    "ash_3d": "renderer=[Averaged shifted histograms] magnification=2.0 colorizez=false threed=true"
    " zrange=-100:100:300 shifts=3 zshifts=2",
    "scatter": "renderer=[Scatter plot] magnification=4.5 colorizez=false threed=false",
    "gauss": "renderer=[Normalized Gaussian] magnification=2.0 colorizez=false threed=false dx=20.0"
    " dxforce=false dzforce=false",
    "gauss_3d": "renderer=[Normalized Gaussian] magnification=1.0 colorizez=false threed=true"
    " zrange=-100:200:300 dx=30.0 dxforce=true dz=80.0 dzforce=false",
    "histogram": "renderer=Histograms magnification=5.0 colorizez=false threed=false avg=0",
}
FORMATS = {
    "csv": "CSV (comma separated)",
    "xls": "XLS (tab separated)",
    "xml": "XML",
    "json": "JSON",
    "yaml": "YAML",
    "gpb": "Google Protocol Buffer",
    "tsf": "Tagged spot file",
}
ALL_2D = ["id", "frame", "x", "y", "sigma", "intensity", "offset", "bkgstd", "chi2", "uncertainty"]
LENS = """!!cz.cuni.lf1.lge.ThunderSTORM.calibration.PolynomialCalibration
a1: 2.0E-6
a2: 2.2E-6
angle: 0.3
b1: 1.1
b2: 1.2
c1: 180.0
c2: -160.0
d1: 0.0
d2: 0.0
w01: 0.0
w02: 0.0
"""
ASTIGMATIC = "psf=[Eliptical Gaussian (3D astigmatism)] calibration={folder}/lens.yaml"
CALIBRATE = (
    f"{ANALYSIS} estimator=[Elliptic Gaussian w/ angle] sigma=1.6 fitradius=7 method=[Weighted Least squares]"
    " full_image_fitting=false defocusing={defocus} stage=20.0 zrange=400.0 saveto={folder}/{name}.yaml"
)
Z_STEPS = 41
FITS_3D = {
    "wlsq": "method=[Weighted Least squares] full_image_fitting=false mfaenabled=false",
    "lsq": "method=[Least squares] full_image_fitting=false mfaenabled=false",
    "mle": "method=[Maximum likelihood] full_image_fitting=false mfaenabled=false",
    "mfa": "method=[Weighted Least squares] full_image_fitting=false mfaenabled=true nmax=2 pvalue=1.0E-6"
    " keep_same_intensity=false fixed_intensity=true expected_intensity=300:3000",
}


def line(command: str, options: str) -> str:
    """Write a macro line."""
    return f'run("{command}", "{options}");\n'


def export(path: Path, columns: Sequence[str] = (), file_format: str = FORMATS["csv"]) -> str:
    """Write the line that exports the table, with all columns when none are named."""
    chosen = " ".join(f"{column}={'true' if column in columns else 'false'}" for column in ALL_2D if columns)
    return line("Export results", f"filepath={path} fileformat=[{file_format}] saveprotocol=false {chosen}")


def flat(folder: Path) -> str:
    """Molecules that stay where they are, and drift: everything that is done with a table."""
    points = np.zeros((32, 32), np.uint8)
    points[tuple(np.random.default_rng(3).integers(4, 28, (2, 14)))] = 255
    tifffile.imwrite(folder / "points.tif", points)
    macro = line("Camera setup", CAMERA) + line(
        "Generator of simulated data",
        "psf=[Integrated Gaussian] fwhm_range=250:300 width=32 height=32 frames=24 intensityrange=500:1200"
        f" density=45.0 driftdist=150.0 driftangle=30.0 addpoisssonvar=20.0 maskpath={folder}/points.tif"
        " maskpathbg= singlefixed=false",
    )
    macro += f'saveAs("Tiff", "{folder}/flat.tif");\n'
    macro += line("Export ground-truth", f"filepath={folder}/flat_truth.csv fileformat=[{FORMATS['csv']}]")
    macro += line("Run analysis", f"{FLAT} full_image_fitting=false mfaenabled=false renderer=[No Renderer]")
    macro += export(folder / "flat.csv", ALL_2D)
    for name in ("ash", "scatter", "gauss", "histogram"):
        macro += line("Visualization", f"{REGION} {IMAGES[name]}")
        macro += f'saveAs("Tiff", "{folder}/{name}.tif"); close();\n'
    macro += line("Performance evaluation", "toleranceradius=50.0 evaluationspace=xy")
    macro += f'saveAs("Results", "{folder}/flat_evaluation.csv");\n'
    macro += line("Show results table", "action=reset")
    for name, step in STEPS.items():
        macro += line("Show results table", step.format(folder=folder))
        macro += export(folder / f"flat_{name}.csv")
        macro += line("Show results table", "action=reset")
    macro += line(
        "CBC",
        "radiusstep=60 dimensions=2D stepcount=6 channel1=[Results table] channel2=[Ground-truth table]"
        " addcbc=true addnndist=true addnncount=true",
    )
    return macro + export(folder / "flat_cbc.csv")


def complete(options: str) -> str:
    """Add the filter, the detector and the threshold, which the plugin's macros need, where they lack."""
    for key, default in (
        ("filter", "[Wavelet filter (B-Spline)] scale=2.0 order=3"),
        ("detector", "[Local maximum] connectivity=8-neighbourhood"),
        ("threshold", "std(Wave.F1)"),
    ):
        options += "" if f"{key}=" in options else f" {key}={default}"
    return options


def found(folder: Path) -> str:
    """Analyses by other settings."""
    stack = tifffile.imread(folder / "flat.tif")[:FOUND_FRAMES]
    tifffile.imwrite(folder / "first.tif", stack, imagej=True)
    macro = line("Camera setup", CAMERA) + f'open("{folder}/first.tif");\n'
    for name, options in FOUND.items():
        macro += line("Run analysis", f"{complete(options)} renderer=[No Renderer]")
        macro += export(folder / f"found_{name}.csv")
    return macro


def preview_filters(where: str, folder: Path) -> None:
    """Click `Preview` in the plugin's dialog for each filter: it shows the filtered image of a frame."""
    from jpype import JClass

    image, IJ, windows = display.start(where), JClass("ij.IJ"), JClass("java.awt.Window")
    image.run_macro(line("Camera setup", CAMERA) + f'open("{folder}/flat.tif");')
    IJ.doCommand("Run analysis")

    def parts(component: Any) -> Iterator[Any]:
        yield component
        for part in component.getComponents() if hasattr(component, "getComponents") else ():
            yield from parts(part)

    def dialog() -> Any:
        shown = [w for w in windows.getWindows() if w.isShowing()]
        return next((w for w in shown if str(w.getClass().getName()).endswith("OptionsDialog")), None)

    def wait(what: Callable[[], Any]) -> Any:
        for _ in range(600):
            if what():
                return what()
            time.sleep(0.1)
        raise TimeoutError

    options = list(parts(wait(dialog)))
    kinds = [str(part.getClass().getName()) for part in options]
    choice = options[kinds.index("javax.swing.JComboBox")]
    preview = next(part for part in options if hasattr(part, "getText") and part.getText() == "Preview")
    Manager = JClass("ij.WindowManager")
    for number in range(FILTERS):
        choice.setSelectedIndex(number)
        preview.doClick()
        shown = wait(lambda: Manager.getImage("Filtered frame 1"))
        pixels = np.array(shown.getProcessor().getPixels(), np.float32).reshape(shown.getHeight(), -1)
        tifffile.imwrite(folder / f"filtered{number}.tif", pixels)
        for done in (shown, wait(lambda: Manager.getImage("Detections in frame 1"))):
            done.changes = False
            done.close()
    os._exit(0)


def run_previews(folder: Path) -> None:
    """Run `preview_filters` in a process and on a display of its own."""
    with display.any_display() as name, tempfile.TemporaryDirectory() as where:
        display.put_plugins(Path(where), require_jar())
        subprocess.run(
            [sys.executable, __file__, where, folder], check=True, env=display.environment(name, where)
        )


def formats(folder: Path) -> str:
    """A short table in each format, and read back from it."""
    macro = line("Camera setup", CAMERA)
    macro += line(
        "Import results",
        f"filepath={folder}/short.csv fileformat=[{FORMATS['csv']}] startingframe=1 append=false"
        " livepreview=false rawimagestack=",
    )
    # The protocol buffer has no chi2; the plugin reads XML only with an id, and JSON and YAML only without.
    columns = [column for column in ALL_2D if column != "chi2"]
    for suffix, name in FORMATS.items():
        macro += export(folder / f"format.{suffix}", columns if suffix == "xml" else columns[1:], name)
    for suffix, name in FORMATS.items():
        macro += line(
            "Import results",
            f"filepath={folder}/format.{suffix} fileformat=[{name}] startingframe=3 append=false"
            " livepreview=false rawimagestack=",
        )
        macro += export(folder / f"format_{suffix}_back.csv")
    return macro


def beads(folder: Path) -> str:
    """One bead moved through the focus of an astigmatic lens."""
    (folder / "lens.yaml").write_text(LENS)
    macro = line("Camera setup", CAMERA)
    for i in range(Z_STEPS):
        z = 20 * i - 400
        macro += line(
            "Generator of simulated data",
            ASTIGMATIC.format(folder=folder) + f" z_range={z}:{z} width=24 height=24 frames=1"
            " intensityrange=20000:20000 density=0.1 driftdist=0.0 driftangle=0.0 addpoisssonvar=20.0"
            " maskpath= maskpathbg= singlefixed=true",
        )
        macro += f'saveAs("Tiff", "{folder}/bead{i:02d}.tif"); close();\n'
    return macro


def spatial(folder: Path) -> str:
    """Calibrations of the lens, and molecules found with one of them."""
    macro = line("Camera setup", CAMERA) + f'open("{folder}/beads.tif");\n'
    # A calibration by macro fails with "Index -1" unless an analysis has chosen a filter before.
    macro += line("Run analysis", f"{ANALYSIS} estimator=[No estimator] renderer=[No Renderer]")
    macro += 'run("Close All");\n'
    for name, defocus in {"lens_polynomial": "ThunderSTORM", "lens_huang": "[Huang '08]"}.items():
        macro += f'open("{folder}/beads.tif");\n'
        macro += line(
            "Cylindrical lens calibration", CALIBRATE.format(folder=folder, name=name, defocus=defocus)
        )
        macro += 'run("Close All");\n'
    macro += line(
        "Generator of simulated data",
        ASTIGMATIC.format(folder=folder) + " z_range=-250:250 width=36 height=36 frames=8"
        " intensityrange=1500:2500 density=1.0 driftdist=0.0 driftangle=0.0 addpoisssonvar=20.0"
        " maskpath= maskpathbg= singlefixed=false",
    )
    macro += f'saveAs("Tiff", "{folder}/spatial.tif");\n'
    macro += line("Export ground-truth", f"filepath={folder}/spatial_truth.csv fileformat=[{FORMATS['csv']}]")
    for name, fit in FITS_3D.items():
        macro += line(
            "Run analysis",
            f"{ANALYSIS} estimator=[PSF: Elliptical Gaussian (3D astigmatism)] sigma=1.6 fitradius=5 {fit}"
            f" calibrationpath={folder}/lens_polynomial.yaml renderer=[No Renderer]",
        )
        macro += export(folder / f"spatial_{name}.csv")
        if name == "wlsq":
            for image in ("ash_3d", "gauss_3d"):
                macro += line("Visualization", f"{REGION} {IMAGES[image]}")
                macro += f'saveAs("Tiff", "{folder}/{image}.tif"); close();\n'
            macro += line("Performance evaluation", "toleranceradius=100.0 evaluationspace=xyz")
            macro += f'saveAs("Results", "{folder}/spatial_evaluation.csv");\n'
            macro += line("Show results table", "action=reset")
            macro += line("Show results table", "action=density radius=900.0 dimensions=3D neighbors=3")
            macro += export(folder / "spatial_density.csv")
    return macro


def regions(folder: Path) -> str:
    """Analyses inside selections, the selections themselves, and a calibration inside one."""
    macro = line("Camera setup", CAMERA)
    for name, select in REGIONS.items():
        for analysis, options in {"roi": FLAT, "watershed": WATERSHED}.items():
            macro += f'open("{folder}/flat.tif"); {select}\n'
            macro += line("Run analysis", f"{complete(options)} renderer=[No Renderer]")
            macro += export(folder / f"{analysis}_{name}.csv")
            macro += f'saveAs("Selection", "{folder}/{name}.roi"); close();\n'
    macro += f'open("{folder}/beads.tif"); makeRectangle(3, 4, 19, 18);\n'
    calibration = CALIBRATE.format(folder=folder, name="lens_region", defocus="ThunderSTORM")
    return macro + line("Cylindrical lens calibration", calibration)


def correlations(folder: Path) -> str:
    """The images of the correlations that drift is found from."""
    macro = line("Camera setup", CAMERA)
    macro += line(
        "Import results", f"filepath={folder}/flat.csv fileformat=[{FORMATS['csv']}] startingframe=1"
    )
    macro += line("Show results table", CORRELATE)
    macro += """titles = getList("image.titles");
    for (i = 0; i < titles.length; i++) { selectImage(titles[i]); if (nSlices == 4) saveAs("Tiff", """
    return macro + f'"{folder}/correlations.tif"); }}\n'


PROTOCOLS = {
    "plain": f"{FLAT} full_image_fitting=false mfaenabled=false",
    "dog": "filter=[Difference-of-Gaussians filter] sigma1=1.1 sigma2=1.7 detector=[Non-maximum suppression]"
    " radius=2 threshold=2*std(F) estimator=[Radial symmetry] fitradius=4",
    "boxes": "filter=[Difference of averaging filters] size1=3 size2=7"
    " detector=[Centroid of connected components] watershed=true threshold=40 estimator=[No estimator]",
    "lowered": "filter=[Lowered Gaussian filter] sigma=1.4 estimator=[Centroid of local neighborhood]"
    " fitradius=4",
    "spatial": "filter=[Gaussian filter] sigma=1.5 estimator=[PSF: Elliptical Gaussian (3D astigmatism)]"
    " fitradius=5 method=[Least squares] calibrationpath={folder}/lens_polynomial.yaml",
    **FOUND,
}
"""Analyses whose protocol the plugin writes."""


def protocols(folder: Path) -> str:
    """The protocol of each analysis, and of one in a selection with steps after it."""
    macro = line("Camera setup", CAMERA)
    for name, options in PROTOCOLS.items():
        macro += f'open("{folder}/first.tif");\n'
        macro += line("Run analysis", f"{complete(options.format(folder=folder))} renderer=[No Renderer]")
        macro += line("Export results", f"filepath={folder}/{name}.csv fileformat=[{FORMATS['csv']}]")
        macro += "close();\n"
    macro += line("Camera setup", CAMERA.replace("isemgain=false", "isemgain=true gainem=12.0"))
    macro += f'open("{folder}/flat.tif"); {REGIONS["rectangle"]}\n'
    macro += line("Run analysis", f"{complete(FLAT)} renderer=[No Renderer]")
    for step in protocol_steps(folder):
        macro += line("Show results table", step)
    return macro + line("Export results", f"filepath={folder}/steps.csv fileformat=[{FORMATS['csv']}]")


def protocol_steps(folder: Path | str) -> list[str]:
    """Give what is done before the protocol of several steps is written; its drift is not that of STEPS."""
    names = ("drift_correlation", "offset", "merge", "duplicates", "density", "filter")
    return [
        STEPS[name].format(folder=folder).replace("drift_correlation.json", "steps.json") for name in names
    ]


LATER = {"regions": regions, "correlations": correlations, "protocols": protocols}
"""What only looks at the stacks and tables of the others."""


def again(names: Sequence[str]) -> None:
    """Do some of LATER again and put what they give into the archive."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with zipfile.ZipFile(HERE / "references.zip") as archive:
            archive.extractall(folder)
        later(folder, names)
        pack(folder)


def later(folder: Path, names: Sequence[str]) -> None:
    """Do some of LATER; of the protocols' tables nothing is kept."""
    for name in names:
        before = set(folder.iterdir())
        run_macro(LATER[name](folder))
        for path in set(folder.iterdir()) - before:
            if name == "protocols" and not path.name.endswith("-protocol.txt"):
                path.unlink()


def pack(folder: Path) -> None:
    """Write the archive."""
    with zipfile.ZipFile(HERE / "references.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, path.name)


def main() -> None:
    """Run all and pack what is worth keeping."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        run_macro(flat(folder))
        head, *rows = (folder / "flat.csv").read_text().splitlines()
        (folder / "short.csv").write_text("\n".join([head, *rows[:12]]) + "\n")
        run_macro(formats(folder))
        run_macro(found(folder))
        run_previews(folder)
        run_macro(beads(folder))
        stack = np.stack([tifffile.imread(folder / f"bead{i:02d}.tif") for i in range(Z_STEPS)])
        tifffile.imwrite(folder / "beads.tif", stack, imagej=True)
        run_macro(spatial(folder))
        for path in folder.glob("bead[0-9]*"):
            path.unlink()
        later(folder, list(LATER))
        pack(folder)


if __name__ == "__main__":
    if set(sys.argv[1:]) & set(LATER):
        again(sys.argv[1:])
    else:
        preview_filters(sys.argv[1], Path(sys.argv[2])) if len(sys.argv) > 1 else main()
