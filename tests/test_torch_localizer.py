"""The localizer on torch finds what ThunderSTORM's plugin finds, with its conventions and numbers."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.interpolate import BSpline
from scipy.ndimage import convolve1d
from scipy.optimize import least_squares
from scipy.spatial import cKDTree

from fiji_bridge import torch_localizer
from fiji_bridge.camera import Camera
from fiji_bridge.errors import FijiBridgeError
from fiji_bridge.evaluation import evaluate
from fiji_bridge.lens_calibration import read_calibration
from fiji_bridge.localizations import COLUMNS, read_localizations
from fiji_bridge.localizers import localize as localize_by
from fiji_bridge.stack import frame_blocks, open_stack
from fiji_bridge.torch_localizer import localize
from fiji_bridge.torch_localizer.detectors import LocalMaxima, NonMaximumSuppression
from fiji_bridge.torch_localizer.estimators import GaussianFit, MultiEmitterFit, Spots
from fiji_bridge.torch_localizer.filters import (
    DifferenceOfGaussians,
    MedianFilter,
    NoFilter,
    WaveletFilter,
    _convolve_together,
    bspline,
    convolve,
)
from fiji_bridge.torch_localizer.fitting import (
    Astigmatic,
    Fitter,
    Gaussian,
    IntegratedGaussian,
    LeastSquares,
    MaximumLikelihood,
    Method,
    Psf,
    SpotNoise,
    WeightedLeastSquares,
    cramer_rao_bounds,
    minimize_one_by_one,
    minimize_together,
)
from fiji_bridge.torch_localizer.likelihood_ratio import LikelihoodRatio, false_alarm_threshold
from fiji_bridge.torch_localizer.threads import in_threads
from fiji_bridge.torch_localizer.thresholds import Threshold

CAMERA = Camera(offset=100.0, photons_per_adu=2.0, pixel_size_nm=100.0)
PSFS = [IntegratedGaussian(), Gaussian()]
METHODS = [WeightedLeastSquares(), LeastSquares(), MaximumLikelihood()]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def render(psf: Psf, molecules: list[list[float]], radius: int = 3) -> torch.Tensor:
    grid = torch.arange(-radius, radius + 1, dtype=torch.float64)
    return psf(psf.free(torch.tensor(molecules, dtype=torch.float64)), grid)[0]


def movie(frames: int = 6, size: int = 48, seed: int = 0) -> np.ndarray:
    """A few bright molecules on a noisy background, in ADU of `CAMERA`, 16 bit."""
    rng = np.random.default_rng(seed)
    photons = np.full((frames, size, size), 20.0)
    for frame in photons:
        for x, y in rng.uniform(6, size - 7, (5, 2)):
            i, j = round(y), round(x)
            spot = render(IntegratedGaussian(), [[x - j, y - i, 1.3, rng.uniform(800, 1500), 0.0]])
            frame[i - 3 : i + 4, j - 3 : j + 4] += spot.numpy().reshape(7, 7)
    return np.round(rng.poisson(photons) / 2 + 100).astype(np.uint16)


# The plugin's own results


def pairs(ours: pd.DataFrame, theirs: pd.DataFrame, radius_nm: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    space = [t[["x [nm]", "y [nm]"]].assign(f=t["frame"] * 1e6).to_numpy() for t in (ours, theirs)]
    distance, nearest = cKDTree(space[1]).query(space[0], distance_upper_bound=radius_nm)
    here = np.flatnonzero(np.isfinite(distance))
    _, first = np.unique(nearest[here], return_index=True)
    return here[first], nearest[here][first]


def reference(folder: Path, run: str) -> tuple[Any, Camera, str, pd.DataFrame]:
    settings = json.loads((folder / "reference.json").read_text())
    return (
        open_stack(folder / "stack.tif"),
        Camera.parse(settings["camera"]),
        settings["runs"][run]["options"],
        read_localizations(folder / f"{run}.csv"),
    )


@pytest.mark.parametrize(
    ("stack", "run", "tolerance"),
    [
        ("default", "default", 1e-5),
        ("default", "threshold_2std", 1e-5),
        ("default", "threshold_residual", 1e-5),
        ("default", "connectivity4", 1e-5),
        ("default", "nms", 1e-5),
        ("default", "wavelet_s4o2", 2e-2),
        ("default", "fitradius5", 1e-5),
        ("default", "lsq", 1e-5),
        ("default", "gaussian_wlsq", 1e-9),
        ("default", "mle", 2e-3),
        ("default", "gaussian_mle", 2e-3),
        ("em_gain", "default", 1e-5),
        ("em_gain", "lsq", 1e-5),
        ("em_gain", "nms", 1e-5),
        ("em_gain", "mle", 2e-2),
        ("default", "connected_components", 1e-5),
        ("default", "connected_components_watershed", 1e-5),
        ("default", "lowered_gauss", 1e-5),
        ("default", "dog", 1e-5),
        ("default", "radial_symmetry", 0.0),
        ("default", "centroid", 0.0),
        ("default", "no_estimator", 0.0),
        ("em_gain", "radial_symmetry", 0.0),
    ],
)
def test_the_plugins_molecules_are_found(shared_data: Path, stack: str, run: str, tolerance: float) -> None:
    frames, camera, options, theirs = reference(shared_data / "thunderstorm_reference" / stack, run)
    ours = localize(frames, camera=camera, options=options)
    assert list(ours.columns) == list(theirs.columns)
    i, j = pairs(ours, theirs)
    assert len(i) >= 0.99 * len(theirs)
    assert len(ours) - len(i) <= 0.01 * len(theirs)
    for column in COLUMNS[4:]:
        if column in theirs:
            difference = np.abs(ours.loc[i, column].to_numpy() / theirs.loc[j, column].to_numpy() - 1)
            assert np.percentile(difference, 99) < tolerance, column


def test_molecules_come_in_the_plugins_order(shared_data: Path) -> None:
    folder = shared_data / "thunderstorm_reference" / "em_gain"
    frames, camera, options, theirs = reference(folder, "default")
    ours = localize(frames, camera=camera, options=options)
    i, j = pairs(ours, theirs)
    assert (np.diff(j[np.argsort(i)]) > 0).all()
    assert list(ours["id"]) == list(range(1, len(ours) + 1))


# Filter


def test_default_kernel_is_that_of_izeddin_et_al() -> None:
    assert WaveletFilter().kernel == pytest.approx(np.array([1, 4, 6, 4, 1]) / 16)


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_bsplines_are_the_cardinal_ones(order: int) -> None:
    theirs = BSpline.basis_element(np.arange(order + 1), extrapolate=False)
    points = np.linspace(0.01, order - 0.01, 17)
    assert [bspline(order, t) for t in points] == pytest.approx(theirs(points))


@pytest.mark.parametrize("wavelet", [WaveletFilter(), WaveletFilter(4, 4.0), WaveletFilter(1, 1.0)])
def test_wavelet_planes_add_up_and_pass_no_constant(wavelet: WaveletFilter) -> None:
    frames = torch.rand(2, 40, 44, generator=torch.manual_seed(1)) * 100
    planes = wavelet(frames)
    assert set(planes) == set(wavelet.variables)
    torch.testing.assert_close(planes["F1"] + planes["F"], planes["F2"], rtol=0, atol=1e-4)
    flat = wavelet(torch.full((1, 80, 80), 7.0))
    assert flat["F"][0, 20:-20, 20:-20].abs().max() < 1e-5


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("replicate", [True, False])
@pytest.mark.parametrize("taps", [1, 4, 5, 11])
def test_a_gpus_convolution_is_the_cpus(taps: int, replicate: bool, step: int) -> None:
    frames = torch.rand(3, 30, 26, generator=torch.manual_seed(2)) * 500
    weights = np.linspace(0.1, 0.4, taps).astype(np.float32)
    ours = convolve(frames, weights, step=step, replicate=replicate)
    assert torch.equal(ours, _convolve_together(frames, weights, step, replicate))
    kernel = np.zeros((taps - 1) * step + 1)
    kernel[::step] = weights
    for axis in (1, 2):
        mode = "nearest" if replicate else "constant"
        origin = (len(kernel) // 2 - taps // 2 * step) * -1
        frames = torch.from_numpy(convolve1d(frames.double(), kernel, axis, mode=mode, origin=origin))
    np.testing.assert_allclose(ours, frames, rtol=1e-5)


@pytest.mark.parametrize(
    ("lowest", "highest", "part"),
    [
        (0, 300, 1 / 3),  # no whole numbers
        (0, 0, 1),
        (0, 4000, 1),
        (0, 2**15 - 1, 1),
        (2**15 - 1, 2**15 - 1, 1),
        (2**15, 2**15, 1),  # with which the sums would not fit 31 bits
        (0, 2**16 - 1, 1),
        (1 - 2**15, 2**15 - 1, 1),
    ],
)
def test_the_wavelet_filter_is_two_convolutions(lowest: int, highest: int, part: float) -> None:
    counts = np.random.default_rng(5).integers(lowest, highest, (2, 44, 39), endpoint=True)
    frames = torch.from_numpy(counts * part).float()
    kernel = np.array(WaveletFilter().kernel, np.float32)
    padded = torch.nn.functional.pad(frames[:, None], [4] * 4, mode="replicate")[:, 0]
    first = convolve(padded, kernel, replicate=False)
    second = convolve(first, kernel, step=2, replicate=False)[:, 4:-4, 4:-4]
    first = first[:, 4:-4, 4:-4]
    planes = WaveletFilter()(frames)
    assert torch.equal(planes["F"], first - second)
    assert torch.equal(planes["F1"], frames - first)
    assert torch.equal(planes["F2"], frames - second)


@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("size", [3, 4])
def test_medians_are_those_of_the_pixels_inside_the_frame(size: int, cross: bool) -> None:
    frame = np.random.default_rng(0).integers(0, 50, (9, 8)).astype(np.float32)
    ours = MedianFilter(size, cross)(torch.from_numpy(frame[None]))["F"][0].numpy()
    for y in range(9):
        for x in range(8):
            reach = range(-(size // 2), size - size // 2)
            inside = [
                frame[y + j, x + i]
                for j in reach
                for i in reach
                if 0 <= y + j < 9 and 0 <= x + i < 8 and (not cross or i * j == 0)
            ]
            assert ours[y, x] == np.median(inside)


def test_each_frame_is_filtered_apart() -> None:
    frames = torch.rand(3, 20, 20, generator=torch.manual_seed(1))
    assert torch.equal(WaveletFilter()(frames)["F"][1:2], WaveletFilter()(frames[1:2])["F"])


# Thresholds


def variables() -> dict[str, torch.Tensor]:
    frames = torch.rand(3, 9, 11, generator=torch.manual_seed(3)) * 50
    return WaveletFilter()(frames)


def threshold(formula: str) -> Threshold:
    others = (DifferenceOfGaussians(), MedianFilter(), NoFilter())
    return Threshold(formula, WaveletFilter(), {other.name: other for other in others})


@pytest.mark.parametrize(
    ("formula", "expected"),
    [
        ("std(Wave.F1)", lambda v: v["F1"].std(ddof=1)),
        ("2*std(Wave.F1)", lambda v: 2 * v["F1"].std(ddof=1)),
        ("1.5*std(I-Wave.F1)", lambda v: 1.5 * (v["I"] - v["F1"]).std(ddof=1)),
        ("std(F)", lambda v: v["F"].std(ddof=1)),
        ("var(I) / mean( I )", lambda v: v["I"].var(ddof=1) / v["I"].mean()),
        ("median(I)+max(F)-min(F)", lambda v: np.median(v["I"]) + v["F"].max() - v["F"].min()),
        ("mean(abs(F))", lambda v: np.abs(v["F"]).mean()),
        ("sum(I)/99", lambda v: v["I"].sum() / 99),
        ("mean(I^2)", lambda v: (v["I"] ** 2).mean()),
        ("mean(2*I+1)", lambda v: 2 * v["I"].mean() + 1),
        ("10 - 2 - 3*2^2/4 % 2", lambda v: 7.0),
        ("2^3^2", lambda v: 64.0),
        ("-2^2", lambda v: 4.0),
        ("(1+2)*(3-.5e1)", lambda v: -6.0),
        ("abs(-3)+std(5)", lambda v: 8.0),
        ("12", lambda v: 12.0),
        ("sum(I > 25 & F1 < 0)", lambda v: ((v["I"] > 25) & (v["F1"] < 0)).sum()),
        ("sum(I = max(I) | F != F)", lambda v: 1.0),
        ("2*(3 > 2) + (1 = 2)", lambda v: 2.0),
        ("mean(empty.F)", lambda v: v["I"].mean()),
        ("std(DoG.F)", lambda v: v["DoG"].std(ddof=1)),
    ],
)
def test_formulas_mean_what_they_do_in_the_plugin(formula: str, expected: Any) -> None:
    planes = variables()
    values = threshold(formula)(planes)
    assert values.shape == (3,)
    for n, value in enumerate(values):
        one = {name: plane[n].double().numpy() for name, plane in planes.items()}
        one["DoG"] = DifferenceOfGaussians()(planes["I"])["F"][n].double().numpy()
        assert value.item() == pytest.approx(expected(one), rel=1e-5)


@pytest.mark.parametrize(
    ("formula", "named"),
    [
        ("", "at its end"),
        ("2*", "at its end"),
        ("std(Wave.F1", "')'"),
        ("std(Wave.F1))", "')'"),
        ("std()", "')'"),
        ("2 3", "'3'"),
        ("Wave.F1", "image"),
        ("2*I", "image"),
        ("std(Wave.F9)", "F9"),
        ("std(Gauss.F)", "Gauss"),
        ("sqrt(I)", "sqrt"),
        ("__import__('os')", "__import__"),
        ("I > 2", "image"),
        ("std(I.__class__)", "__class__"),
    ],
)
def test_a_wrong_formula_is_refused_in_one_sentence(formula: str, named: str) -> None:
    with pytest.raises(FijiBridgeError) as error:
        threshold(formula)
    assert named in str(error.value)


def test_a_threshold_that_is_no_number_is_refused() -> None:
    with pytest.raises(FijiBridgeError, match="division by 0"):
        threshold("1/(std(I)-std(I))")(variables())


# Detectors


def brute_force(image: np.ndarray, limit: float, diagonal: bool) -> set[tuple[int, int]]:
    found = set()
    height, width = image.shape
    for y in range(height):
        for x in range(width):
            around = [
                image[y + dy, x + dx]
                for dy in (-1, 0, 1)
                for dx in (-1, 0, 1)
                if (diagonal or dx * dy == 0) and 0 <= y + dy < height and 0 <= x + dx < width
            ]
            if image[y, x] >= max(around) and image[y, x] >= limit:
                found.add((x, y))
    return found


@pytest.mark.parametrize("diagonal", [True, False])
def test_local_maxima_are_those_of_a_plain_search(diagonal: bool) -> None:
    images = torch.randint(0, 5, (4, 12, 9), generator=torch.manual_seed(0)).float()
    found = LocalMaxima(diagonal)(images, torch.tensor([0.0, 2.0, 4.0, 9.0]))
    for n, limit in enumerate([0, 2, 4, 9]):
        ours = [(x, y) for frame, x, y in found.tolist() if frame == n]
        assert set(ours) == brute_force(images[n].numpy(), limit, diagonal)
        assert ours == sorted(ours)


def test_a_plateau_gives_a_candidate_at_each_of_its_pixels() -> None:
    image = torch.zeros(1, 7, 7)
    image[0, 3, 3:5] = 1
    assert LocalMaxima()(image, torch.tensor([0.5])).tolist() == [[0, 3, 3], [0, 4, 3]]


def test_non_maximum_suppression_keeps_one_in_its_square_and_leaves_the_border() -> None:
    image = torch.zeros(1, 12, 12)
    image[0, 5, 5], image[0, 6, 7], image[0, 1, 9], image[0, 9, 9] = 3, 2, 5, -1
    assert NonMaximumSuppression(2)(image, torch.tensor([0.5])).tolist() == [[0, 5, 5]]
    assert len(NonMaximumSuppression(1)(image, torch.tensor([0.5]))) == 3
    assert NonMaximumSuppression(2)(image - 9, torch.tensor([-20.0])).tolist() == []


# Fits


@pytest.mark.parametrize("psf", PSFS, ids=lambda psf: type(psf).__name__)
def test_derivatives_are_those_of_the_model(psf: Psf) -> None:
    grid = torch.arange(-3, 4, dtype=torch.float64)
    free = torch.tensor([[0.3, -0.7, 1.4, 20.0, 3.0]], dtype=torch.float64)
    numeric = torch.autograd.functional.jacobian(lambda p: psf(p, grid)[0], free)
    torch.testing.assert_close(psf(free, grid)[1][0], torch.as_tensor(numeric)[0, :, 0].T)


def test_integrated_gaussian_conserves_photons() -> None:
    total = render(IntegratedGaussian(), [[0.2, -0.4, 1.1, 900.0, 0.0]], radius=12).sum()
    assert total.item() == pytest.approx(900)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
@pytest.mark.parametrize("psf", PSFS, ids=lambda psf: type(psf).__name__)
def test_a_molecule_without_noise_is_recovered_exactly(psf: Psf, method: Method) -> None:
    true = [[0.3, -0.2, 1.1, 800.0, 15.0], [-0.5, 0.5, 1.7, 3000.0, 40.0], [0.0, 0.1, 0.8, 300.0, 5.0]]
    fits = Fitter(psf, method, 1.6, 3)(render(psf, true))
    torch.testing.assert_close(fits.parameters, torch.tensor(true).double(), rtol=1e-4, atol=1e-4)
    assert fits.residual_spread.max() < 0.01


def noisy_spots(count: int, photons: float = 900.0, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    places = rng.uniform(-0.5, 0.5, (count, 2))
    model = render(IntegratedGaussian(), [[x, y, 1.3, photons, 20.0] for x, y in places])
    return torch.from_numpy(rng.poisson(model).astype(float))


def test_the_minimum_is_that_of_scipy() -> None:
    spots, psf = noisy_spots(20), IntegratedGaussian()
    grid = torch.arange(-3, 4, dtype=torch.float64)
    ours = Fitter(psf, LeastSquares(), 1.3, 3)(spots)
    for spot, parameters, chi2 in zip(spots, ours.parameters, ours.chi2, strict=True):
        result = least_squares(
            lambda p, spot=spot: (psf(torch.tensor(p)[None], grid)[0][0] - spot).numpy(),
            psf.free(parameters[None])[0].numpy() * 1.05 + 0.02,
            xtol=1e-12,
        )
        assert chi2.item() == pytest.approx(2 * result.cost, rel=1e-9)
        theirs = psf.physical(torch.tensor(result.x)[None])[0]
        torch.testing.assert_close(parameters, theirs, rtol=1e-4, atol=1e-4)


def test_likelihood_reaches_the_cramer_rao_bound_and_squares_do_not() -> None:
    count, photons, background, sigma = 3000, 600.0, 20.0, 1.3
    psf, grid = IntegratedGaussian(), torch.arange(-4, 5, dtype=torch.float64)
    model, derivatives = psf(psf.free(torch.tensor([[0.0, 0.0, sigma, photons, background]]).double()), grid)
    information = torch.einsum("ip,jp,p->ij", derivatives[0], derivatives[0], 1 / model[0])
    bound = torch.linalg.inv(information)[0, 0].sqrt().item()
    rng = np.random.default_rng(5)
    spots = torch.from_numpy(rng.poisson(model.expand(count, -1)).astype(float))
    errors = {
        type(method): Fitter(psf, method, 1.3, 4)(spots).parameters[:, 0].std().item()
        for method in (MaximumLikelihood(), LeastSquares())
    }
    assert errors[MaximumLikelihood] == pytest.approx(bound, rel=0.05)
    assert errors[LeastSquares] > 1.05 * bound


def test_no_spot_depends_on_the_others_fitted_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    spots, fitter = (
        noisy_spots(300, photons=150.0),
        Fitter(IntegratedGaussian(), WeightedLeastSquares(), 1.6, 3),
    )
    together = fitter(spots).parameters
    assert torch.equal(together, fitter(spots).parameters)
    monkeypatch.setitem(torch_localizer.fitting.SPOTS_AT_ONCE, "cpu", 37)
    torch.testing.assert_close(together, fitter(spots).parameters, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
@pytest.mark.parametrize("psf", PSFS, ids=lambda psf: type(psf).__name__)
@pytest.mark.parametrize("background", [0.0, 6.0])
def test_one_by_one_and_together_spots_have_the_same_fits(
    psf: Psf, method: Method, background: float
) -> None:
    spots = noisy_spots(200)
    base = torch.full_like(spots, background) if background else None
    start = psf.free(psf.start(*spots.aminmax(dim=1), 1.6))
    weights = method.weights(spots)
    ours, models, misfits = minimize_one_by_one(psf, method, start, spots, weights, base)
    theirs, their_models, their_misfits = minimize_together(psf, method, start, spots, weights, base)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(models, their_models, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(misfits, their_misfits, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("count", "expected"), [(10_000, 4), (9, 2), (1, 1), (0, 0)])
def test_threads_get_slices_of_one_length_and_end_together(count: int, expected: int) -> None:
    torch.set_num_threads(2)
    slices: list[slice] = []
    in_threads(slices.append, count, 4096)
    lengths = [some.stop - some.start for some in slices]
    assert len(lengths) == expected
    assert max(lengths, default=0) - min(lengths, default=0) <= 1
    covered = sorted(n for some in slices for n in range(some.start, some.stop))
    assert covered == list(range(count))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
@pytest.mark.parametrize("psf", PSFS, ids=lambda psf: type(psf).__name__)
def test_a_negative_root_of_the_intensity_is_as_good_as_the_positive(psf: Psf, method: Method) -> None:
    spots = noisy_spots(60)
    start = psf.free(psf.start(*spots.aminmax(dim=1), 1.6))
    start[:, 3] *= 0.7
    mirrored = start.clone()
    mirrored[:, 3] *= -1
    weights = method.weights(spots)
    first, second = (minimize_one_by_one(psf, method, s, spots, weights)[2] for s in (start, mirrored))
    torch.testing.assert_close(first, second, rtol=1e-8, atol=1e-8)


def test_fits_of_nothing_but_zeros_are_no_numbers() -> None:
    fits = Fitter(IntegratedGaussian(), WeightedLeastSquares(), 1.6, 3)(torch.zeros(2, 49).double())
    assert fits.parameters.isnan().all()


# The whole analysis


def test_positions_are_those_of_the_molecules_with_pixel_centres_at_a_half() -> None:
    frames = np.full((2, 30, 40), 110.0, np.float32)
    spot = render(IntegratedGaussian(), [[0.25, -0.35, 1.3, 500.0, 0.0]])
    frames[1, 10:17, 20:27] += spot.numpy().reshape(7, 7)
    table = localize(frames, camera=CAMERA, options="threshold=10")
    assert list(table.columns) == list(COLUMNS)
    row = table[table["intensity [photon]"] > 100].iloc[0]
    assert row["frame"] == 2
    assert row["x [nm]"] == pytest.approx((23 + 0.25 + 0.5) * 100, abs=0.1)
    assert row["y [nm]"] == pytest.approx((13 - 0.35 + 0.5) * 100, abs=0.1)
    assert row["sigma [nm]"] == pytest.approx(130, rel=1e-3)
    assert row["intensity [photon]"] == pytest.approx(1000, rel=1e-3)
    assert row["offset [photon]"] == pytest.approx(20, rel=1e-3)


def test_uncertainty_is_thompsons_with_excess_noise_on_the_photon_term() -> None:
    for camera in (CAMERA, CAMERA.replace(em_gain=100.0, photons_per_adu=200.0)):
        t = localize(movie(), camera=camera)
        s2, n, b = t["sigma [nm]"] ** 2, t["intensity [photon]"], t["bkgstd [photon]"]
        excess = 2 if camera.em_gain else 1
        variance = (excess * s2 + 100**2 / 12) / n + 8 * np.pi * s2**2 * b**2 / (100 * n) ** 2
        np.testing.assert_allclose(t["uncertainty [nm]"], np.sqrt(variance))


@pytest.mark.parametrize("detector", ["[Local maximum]", "[Non-maximum suppression] radius=2"])
def test_strength_sweeps_thresholds_from_one_run(detector: str) -> None:
    def run(factor: float, **more: Any) -> pd.DataFrame:
        options = f"detector={detector} threshold={factor}*(std(Wave.F1))"
        return localize(movie(), camera=CAMERA, options=options, **more)

    swept = run(0.5, strength=True)
    assert swept["strength"].min() >= 1
    for k in (1.0, 2.0, 3.7, 8.0):
        kept = swept[swept["strength"] >= k].drop(columns=["strength", "id"]).reset_index(drop=True)
        pd.testing.assert_frame_equal(kept, run(0.5 * k).drop(columns="id"))
    assert len(run(0.5)) > len(run(4.0)) > 0


def test_molecules_are_detected_in_one_version_and_fitted_in_the_other() -> None:
    raw = movie()
    smooth = raw.astype(np.float32)
    smooth[3:] = 100
    table = localize(smooth, camera=CAMERA, fit_stack=raw, options="threshold=8")
    own = localize(raw, camera=CAMERA, options="threshold=8")
    assert table["frame"].max() == 3
    pd.testing.assert_frame_equal(table, own[own["frame"] <= 3])


def test_blocks_and_batches_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = movie(frames=7)
    whole = localize(frames, camera=CAMERA, fit_stack=frames.astype(np.float32))
    monkeypatch.setitem(torch_localizer.PIXELS_AT_ONCE, "cpu", 3 * 48 * 48)
    monkeypatch.setattr(torch_localizer, "SPOTS_AT_ONCE", 5)
    calls: list[tuple[str, int, int]] = []
    pieces = localize(frames, camera=CAMERA, progress=lambda *call: calls.append(call))
    pd.testing.assert_frame_equal(whole, pieces, rtol=1e-9)
    assert [done for _, done, _ in calls] == [0, 3, 6, 7]
    assert {total for _, _, total in calls} == {7}


def test_a_block_is_read_while_the_one_before_is_worked_on(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, detect, blocks = [threading.Event() for _ in range(3)], torch_localizer._detect, frame_blocks

    def read(stack: Any, frames: int) -> Iterator[tuple[int, np.ndarray]]:
        for start, block in blocks(stack, frames):
            begun[start // 2].set()
            yield start, block

    def work(analysis: Any, camera: Camera, device: torch.device, start: int, *rest: Any) -> Any:
        assert start == 4 or begun[start // 2 + 1].wait(30)
        return detect(analysis, camera, device, start, *rest)

    whole = localize(movie(), camera=CAMERA)
    monkeypatch.setitem(torch_localizer.PIXELS_AT_ONCE, "cpu", 2 * 48**2)
    monkeypatch.setattr(torch_localizer, "frame_blocks", read)
    monkeypatch.setattr(torch_localizer, "_detect", work)
    pd.testing.assert_frame_equal(localize(movie(), camera=CAMERA), whole)


def test_progress_may_cancel() -> None:
    def cancel(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        localize(movie(), camera=CAMERA, progress=cancel)


def test_frames_below_the_offset_are_lifted_to_zero() -> None:
    frames = movie()
    low = localize(frames, camera=CAMERA.replace(offset=200.0))
    lifted = localize(frames - frames.min((1, 2), keepdims=True), camera=CAMERA.replace(offset=0.0))
    pd.testing.assert_frame_equal(low, lifted)


def test_empty_frames_give_an_empty_table_with_all_columns() -> None:
    for value in (100, 130):
        table = localize(np.full((2, 16, 16), value, np.uint16), camera=CAMERA, strength=True)
        assert len(table) == 0
        assert list(table.columns) == [*COLUMNS, "strength"]


@pytest.mark.parametrize("same", ["false", "true"])
def test_frames_without_candidates_have_no_several_molecules_either(same: str) -> None:
    options = f"threshold=1e9 mfaenabled=true keep_same_intensity={same}"
    plain = localize(movie(), camera=CAMERA, options="threshold=1e9")
    table = localize(movie(), camera=CAMERA, options=options, uncertainty="crlb")
    assert len(table) == 0 and set(plain) < set(table)


def test_maps_of_equal_values_are_the_scalar_camera() -> None:
    maps = CAMERA.replace(offset_map=np.full((48, 48), 100.0), gain_map=np.full((48, 48), 0.5))
    scalar, mapped = (localize(movie(), camera=camera) for camera in (CAMERA, maps))
    pd.testing.assert_frame_equal(scalar, mapped, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ("filter=[Gauss]", "filter"),
        ("detector=[Laplacian]", "detector"),
        ("estimator=[Phasor-based]", "estimator"),
        ("estimator=[PSF: Elliptical Gaussian (3D astigmatism)]", "calibrationpath"),
        ("method=[Nelder-Mead]", "Least squares"),
        ("mfaenabled=perhaps", "mfaenabled"),
        ("mfaenabled=true nmax=-1", "nmax"),
        ("connectivity=6-neighbourhood", "connectivity"),
        ("treshold=2", "threshold"),
        ("threshold=std(Gausz.F)", "Gausz"),
        ("scale=-2", "scale"),
        ("order=2.5", "order"),
        ("order=zero", "order"),
        ("fitradius=0", "fitradius"),
        ("sigma=nan", "sigma"),
        ("fitradius=40", "fitradius"),
    ],
)
def test_what_cannot_be_run_is_refused_naming_the_option(options: str, named: str) -> None:
    with pytest.raises(FijiBridgeError) as error:
        localize(movie(1), camera=CAMERA, options=options)
    assert named in str(error.value)


def test_recorded_renderer_options_do_no_harm() -> None:
    recorded = (
        "renderer=[Averaged shifted histograms] magnification=5.0 colorizez=false threed=false shifts=2"
    )
    assert len(localize(movie(1), camera=CAMERA, options=recorded)) > 0


def test_stacks_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(FijiBridgeError, match="shape"):
        localize(movie(2), camera=CAMERA, fit_stack=movie(3))
    with pytest.raises(FijiBridgeError, match="pixelsize"):
        localize(movie(2), camera=CAMERA.replace(pixel_size_nm=None))
    with pytest.raises(FijiBridgeError, match="NaN"):
        localize(np.full((2, 16, 16), np.nan, np.float32), camera=CAMERA)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_what_the_cpu_gives() -> None:
    tables = [localize(movie(), camera=CAMERA, device=device) for device in ("cpu", "cuda")]
    pd.testing.assert_frame_equal(*tables, rtol=1e-6)


# Choosing an engine


def test_localize_takes_strings_and_writes_what_it_returns(tmp_path: Path) -> None:
    out = tmp_path / "table.csv"
    setup = "offset=100 photons2adu=2.0 isemgain=false pixelsize=100"
    table = localize_by(movie(), camera=setup, engine="torch", out=out, device="cpu")
    pd.testing.assert_frame_equal(table, localize(movie(), camera=CAMERA))
    pd.testing.assert_frame_equal(read_localizations(out), table)
    assert table.attrs["engine"] == "torch"
    assert table.attrs["camera"] == "given by the user"


def test_the_camera_is_estimated_when_none_is_given() -> None:
    table = localize_by(movie(frames=12), engine="torch", pixel_size_nm=100.0)
    given = localize_by(movie(frames=12), camera=CAMERA, engine="torch")
    assert "estimated" in table.attrs["camera"]
    i, _ = pairs(table, given, radius_nm=5.0)
    assert len(i) > 0.9 * len(given)


def test_an_unknown_pixel_size_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(FijiBridgeError, match="--pixel-size, or as pixelsize= in --camera"):
        localize_by(movie(), engine="torch", out=tmp_path / "table.csv")
    with pytest.raises(FijiBridgeError, match="--pixel-size, or as pixelsize= in --camera"):
        localize_by(movie(), camera="offset=100 photons2adu=2", engine="torch", out=tmp_path / "table.csv")
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_engine_offset_or_stack_leaves_no_file(tmp_path: Path) -> None:
    out = tmp_path / "table.csv"
    with pytest.raises(FijiBridgeError, match="thunderstorm or torch"):
        localize_by(movie(), camera=CAMERA, engine="deep", out=out)
    with pytest.raises(FijiBridgeError, match="offset"):
        localize_by(movie(), camera=CAMERA.replace(offset=60000.0), engine="torch", out=out)
    with pytest.raises(FijiBridgeError, match="same frames"):
        localize_by(movie(3), camera=CAMERA, engine="torch", fit_stack=movie(2), out=out)
    assert list(tmp_path.iterdir()) == []


def test_channels_are_localized_apart() -> None:
    import xarray as xr

    both = np.stack([movie(seed=0), movie(seed=1)], axis=1)
    table = localize_by(xr.DataArray(both, dims=("t", "c", "y", "x")), camera=CAMERA, engine="torch")
    for channel in (1, 2):
        one = table[table["channel"] == channel].drop(columns=["channel", "id"]).reset_index(drop=True)
        alone = localize(movie(seed=channel - 1), camera=CAMERA).drop(columns="id")
        pd.testing.assert_frame_equal(one, alone)
    assert list(table["id"]) == list(range(1, len(table) + 1))


def test_choosing_an_engine_loads_neither_torch_nor_a_jvm() -> None:
    code = "import sys, fiji_bridge.localizers; print({'torch', 'jpype', 'scyjava'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


# Uncertainty, and what is known of the pixels


def spots_of(photons: float, count: int = 3000, radius: int = 4, background: float = 5.0) -> Any:
    """Give Poisson spots of sigma 1.3 px with their true positions."""
    rng = np.random.default_rng(3)
    places = rng.uniform(-0.5, 0.5, (count, 2))
    model = render(IntegratedGaussian(), [[x, y, 1.3, photons, background] for x, y in places], radius)
    return torch.from_numpy(rng.poisson(model).astype(float)), places, model


@pytest.mark.parametrize(("photons", "known"), [(150.0, True), (300.0, False), (2000.0, False)])
def test_the_likelihoods_errors_are_those_that_it_reports(photons: float, known: bool) -> None:
    pixels, places, _ = spots_of(photons)
    fit = GaussianFit(Fitter(IntegratedGaussian(), MaximumLikelihood(), 1.3, 4, fixed=known))
    found = fit(Spots(pixels, torch.zeros(len(pixels), 2).double(), 1.0, SpotNoise()), bounds=True)
    assert len(found.spot) == len(pixels)
    for axis, name in enumerate("xy"):
        errors = found.columns[name].numpy() - places[:, axis]
        assert 0.95 < (errors / found.columns[f"uncertainty_{name}"].numpy()).std() < 1.05


def test_bounds_are_those_of_the_information_matrix() -> None:
    psf, grid = IntegratedGaussian(), torch.arange(-4, 5, dtype=torch.float64)
    free = psf.free(torch.tensor([[0.2, -0.3, 1.3, 500.0, 5.0], [0.0, 0.4, 1.1, 900.0, 20.0]]).double())
    variance = torch.full((2, 81), 3.0, dtype=torch.float64)
    model, derivatives = psf(free, grid)
    for noise, seen in ((SpotNoise(), model), (SpotNoise(variance=variance), model + variance)):
        information = torch.einsum("nip,njp,np->nij", derivatives, derivatives, 1 / seen)
        expected = torch.linalg.inv(information).diagonal(dim1=1, dim2=2).sqrt()
        bounds = cramer_rao_bounds(psf, free, 1.0, noise, side=9)
        torch.testing.assert_close(bounds["uncertainty_x"][:, 0], expected[:, 0])
        torch.testing.assert_close(bounds["uncertainty_y"][:, 0], expected[:, 1])


def test_read_noise_that_is_known_makes_fits_better() -> None:
    pixels, places, _ = spots_of(400.0, background=2.0)
    rng = np.random.default_rng(9)
    variance = torch.from_numpy(np.where(rng.random(pixels.shape) < 0.1, 150.0, 2.0))
    noisy = (pixels + torch.from_numpy(rng.normal(0, 1, pixels.shape)) * variance.sqrt()).clamp(min=0)
    errors = {}
    for name, noise in (("ignored", SpotNoise()), ("known", SpotNoise(variance=variance))):
        fits = Fitter(IntegratedGaussian(), MaximumLikelihood(), 1.3, 4)(noisy, None, noise)
        errors[name] = np.abs(fits.parameters[:, :2].numpy() - places).mean()
    assert errors["known"] < 0.85 * errors["ignored"]


def test_squares_are_weighted_by_read_noise_that_is_known() -> None:
    pixels, places, _ = spots_of(1000.0, background=0.5)
    noisy = pixels + torch.from_numpy(np.random.default_rng(9).normal(0, 2**0.5, pixels.shape))
    known = SpotNoise(variance=torch.full_like(noisy, 2.0))
    errors = {}
    for name, method in (("weighted", WeightedLeastSquares()), ("alike", LeastSquares())):
        fits = Fitter(IntegratedGaussian(), method, 1.3, 4)(noisy, None, known)
        errors[name] = np.abs(fits.parameters[:, :2].numpy() - places).mean()
    assert errors["weighted"] < 0.95 * errors["alike"]


def test_behind_em_gain_known_variance_is_that_of_half_as_much() -> None:
    gained = Camera(offset=100.0, photons_per_adu=600.0, em_gain=300.0, pixel_size_nm=100.0)
    settings = {"options": "method=[Maximum likelihood]", "uncertainty": "crlb"}
    variance = np.full((48, 48), 3.0)
    plain = localize(movie(), camera=CAMERA, variance=variance, **settings)
    doubled = localize(movie(), camera=gained, variance=2 * variance, **settings)
    widened = [name for name in plain if name.startswith("uncertainty")]
    pd.testing.assert_frame_equal(plain.drop(columns=widened), doubled.drop(columns=widened))
    np.testing.assert_allclose(doubled[widened], plain[widened] * 2**0.5)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_a_slope_that_is_known_does_not_draw_positions(method: Method) -> None:
    _, places, model = spots_of(600.0, count=50)
    slope = torch.arange(9, dtype=torch.float64).repeat(9, 1).flatten() * 8
    noise = SpotNoise(background=slope.expand(50, -1))
    fits = Fitter(IntegratedGaussian(), method, 1.5, 4)(model + slope, None, noise)
    np.testing.assert_allclose(fits.parameters[:, :2], places, atol=1e-3)
    drawn = Fitter(IntegratedGaussian(), method, 1.5, 4)(model + slope).parameters[:, 0]
    assert (drawn.numpy() - places[:, 0]).mean() > 0.05


def test_maps_reach_the_fits() -> None:
    plain = localize(movie(), camera=CAMERA, options="method=[Maximum likelihood]")
    zeros, frames = np.zeros((48, 48)), movie()
    same = localize(
        frames, camera=CAMERA, options="method=[Maximum likelihood]", background=zeros, variance=zeros
    )
    pd.testing.assert_frame_equal(plain, same)
    lifted = np.add(frames, 50, dtype=np.uint16)
    table = localize(
        lifted, camera=CAMERA, options="method=[Maximum likelihood]", background=np.full((48, 48), 100.0)
    )
    i, j = pairs(table, plain, radius_nm=20.0)
    assert len(i) > 0.9 * len(plain)
    np.testing.assert_allclose(table["offset [photon]"][i], plain["offset [photon]"].to_numpy()[j], atol=8)
    with pytest.raises(FijiBridgeError, match="shape"):
        localize(frames, camera=CAMERA, background=np.zeros((3, 3)))


def test_uncertainties_have_their_columns() -> None:
    tables = {
        name: localize(movie(), camera=CAMERA, options="method=[Maximum likelihood]", uncertainty=name)
        for name in ("thompson", "mortensen", "crlb")
    }
    assert {"uncertainty_x [nm]", "uncertainty_y [nm]"} < set(tables["crlb"])
    bright = tables["crlb"]["intensity [photon]"] > 700
    ratio = tables["mortensen"]["uncertainty [nm]"] / tables["crlb"]["uncertainty [nm]"]
    assert ratio[bright].median() == pytest.approx(1, abs=0.25)
    with pytest.raises(FijiBridgeError, match="mortensen"):
        localize(movie(1), camera=CAMERA, uncertainty="best")
    with pytest.raises(FijiBridgeError, match="sigma"):
        localize(movie(1), camera=CAMERA, options="estimator=[Radial symmetry]", known_sigma=True)


# Multi-emitter fits


def test_two_molecules_are_told_apart_and_one_is_not_two() -> None:
    one = render(IntegratedGaussian(), [[0.3, 0.1, 1.3, 900.0, 20.0]], 4)
    two = render(IntegratedGaussian(), [[-1.4, 0.0, 1.3, 900.0, 20.0]], 4) + (
        render(IntegratedGaussian(), [[1.4, 0.6, 1.3, 900.0, 0.0]], 4)
    )
    rng = np.random.default_rng(2)
    pixels = torch.from_numpy(rng.poisson(torch.cat([one, two]).repeat(50, 1)).astype(float))
    for method in (MaximumLikelihood(), LeastSquares()):
        for same in (False, True):
            fit = MultiEmitterFit(
                Fitter(IntegratedGaussian(), method, 1.3, 4), most=3, same_intensity=same, photons=(300, 2500)
            )
            found = fit(Spots(pixels, torch.zeros(100, 2).double(), 1.0, SpotNoise()), bounds=True)
            counts = np.bincount(found.spot, minlength=100)
            assert (counts[::2] == 1).mean() > 0.95
            assert (counts[1::2] == 2).mean() > 0.95
            x = found.columns["x"].numpy()[counts[found.spot] == 2]
            assert np.abs(np.abs(x) - 1.4).mean() < 0.15
            assert (found.columns["intensity"] >= 300 - 1e-6).all()
            assert (found.columns["uncertainty_x"] > 0).all()


def test_more_molecules_are_found_in_crowds(shared_data: Path) -> None:
    folder = shared_data / "thunderstorm_reference" / "default"
    frames, camera, options, theirs = reference(folder, "mfa")
    ours = localize(frames, camera=camera, options=options)
    truth = read_localizations(folder / "ground_truth.csv")
    mine, plugins = (evaluate(table, truth, radius_nm=50.0) for table in (ours, theirs))
    assert mine.jaccard >= plugins.jaccard
    assert mine.rmse_nm <= plugins.rmse_nm
    i, j = pairs(ours, theirs)
    assert len(i) > 0.97 * len(theirs)
    for column in ("sigma [nm]", "intensity [photon]", "offset [photon]"):
        difference = np.abs(ours.loc[i, column].to_numpy() / theirs.loc[j, column].to_numpy() - 1)
        assert np.percentile(difference, 98) < 5e-3, column


def test_limits_of_the_intensity_hold_in_the_fits_and_only_in_the_table_of_the_plugin(
    references: Path,
) -> None:
    """Its molecules are those of fits without limits; where these are kept, the truth is met more often."""
    options = (
        "estimator=[PSF: Elliptical Gaussian (3D astigmatism)] sigma=1.6 fitradius=5 mfaenabled=true nmax=2"
        f" keep_same_intensity=false calibrationpath=[{references}/lens_polynomial.yaml]"
    )
    limits = "fixed_intensity=true expected_intensity=300:3000"
    stack, theirs = open_stack(references / "spatial.tif"), pd.read_csv(references / "spatial_mfa.csv")
    limited, free = (localize(stack, camera=CAMERA, options=f"{options} {more}") for more in (limits, ""))
    areas = 2 * np.pi * theirs["sigma1 [nm]"] * theirs["sigma2 [nm]"] / CAMERA.pixel_size_nm**2
    assert np.isclose(theirs["intensity [photon]"] / areas, 300).mean() > 0.8

    i, j = pairs(free, theirs, 0.5)
    assert len(i) > 0.95 * len(theirs)
    for column in ("sigma1 [nm]", "sigma2 [nm]", "offset [photon]", "bkgstd [photon]", "chi2"):
        difference = np.abs(free.loc[i, column].to_numpy() / theirs.loc[j, column].to_numpy() - 1)
        assert np.percentile(difference, 95) < 5e-3, column

    beyond = ~free["intensity [photon]"].between(300, 3000)
    beyond = beyond.groupby([free["frame"], free["chi2"]]).transform("any").to_numpy()[i]
    met = np.isin(j, pairs(limited, theirs, 0.5)[1])
    assert met[~beyond].mean() > 0.95
    assert met[beyond].mean() < 0.5
    assert limited["intensity [photon]"].between(300 - 1e-6, 3000 + 1e-6).all()
    truth = pd.read_csv(references / "spatial_truth.csv")
    ours, plugins = (evaluate(table, truth, radius_nm=100.0).jaccard for table in (limited, theirs))
    assert ours > plugins


def test_whole_frames_are_fitted_from_their_best_candidate() -> None:
    frames = np.full((1, 25, 25), 110.0, np.float32)
    spot = render(IntegratedGaussian(), [[0.25, -0.35, 1.3, 500.0, 0.0]])
    frames[0, 10:17, 15:22] += spot.numpy().reshape(7, 7)
    table = localize(frames, camera=CAMERA, options="full_image_fitting=true")
    assert len(table) == 1
    assert table["x [nm]"][0] == pytest.approx(18.75 * 100, abs=1)
    assert table["y [nm]"][0] == pytest.approx(13.15 * 100, abs=1)
    even = torch.from_numpy(frames[:, :24, :24] - np.float32(100)).double().flatten(1)
    psf, method = IntegratedGaussian(), LeastSquares()
    start, weights = psf.free(torch.tensor([[6.0, 1.0, 1.3, 400.0, 10.0]]).double()), torch.ones_like(even)
    found = (
        minimize(psf, method, start, even, weights)[0]
        for minimize in (minimize_one_by_one, minimize_together)
    )
    for free in found:
        np.testing.assert_allclose(psf.physical(free)[0, :2], [6.25, 0.65], atol=5e-3)
    with pytest.raises(FijiBridgeError, match="square"):
        localize(frames[:, :20], camera=CAMERA, options="full_image_fitting=true")


# Detection by likelihood ratio


@pytest.mark.parametrize("background", [2.0, 30.0])
@pytest.mark.parametrize("read_noise", [0.0, 2.0])
def test_false_alarms_are_as_rare_as_they_should_be(background: float, read_noise: float) -> None:
    rng = np.random.default_rng(4)
    frames = rng.poisson(background, (3, 100, 100)) + rng.normal(0, read_noise, (3, 100, 100))
    variance = torch.full((100, 100), read_noise**2, dtype=torch.float64)
    ratio = LikelihoodRatio(1.3, photons=2.0, variance=variance if read_noise else None)
    values = ratio(torch.from_numpy(frames / 2).float())["F"][:, 5:-5, 5:-5]
    for rate in (0.05, 0.01):
        share = (values > false_alarm_threshold(rate)).double().mean().item()
        assert share == pytest.approx(rate, rel=0.35)


def test_a_likelihood_ratio_finds_dim_molecules_without_a_threshold_to_tune() -> None:
    rng = np.random.default_rng(0)
    photons = np.full((8, 64, 64), 5.0)
    true = []
    for number, frame in enumerate(photons):
        for y, x in [(y, x) for y in range(10, 60, 12) for x in range(10, 60, 12)]:
            spot = render(IntegratedGaussian(), [[0.2, -0.3, 1.3, 130.0, 0.0]], 5)
            frame[y - 5 : y + 6, x - 5 : x + 6] += spot.numpy().reshape(11, 11)
            true.append((number + 1, (x + 0.7) * 100, (y + 0.2) * 100))
    movie_of_dim = rng.poisson(photons) / 2 + 100
    table = localize(
        movie_of_dim.astype(np.float32),
        camera=CAMERA,
        options="sigma=1.3 method=[Maximum likelihood]",
        false_alarm_rate=1e-4,
        known_sigma=True,
        strength=True,
    )
    truth = pd.DataFrame(true, columns=["frame", "x [nm]", "y [nm]"])
    result = evaluate(table, truth, radius_nm=150.0)
    assert result.recall > 0.9
    assert result.precision > 0.95
    assert (table["strength"] >= 1).all()
    for wrong in (0.0, 0.7):
        with pytest.raises(FijiBridgeError, match="false alarms"):
            localize(movie(1), camera=CAMERA, false_alarm_rate=wrong)


# Astigmatism


def calibration(folder: Path, kind: str) -> Path:
    numbers = {
        "PolynomialCalibration": "a1: 2.0e-06 a2: 2.5e-06 b1: 1.2 b2: 1.3 c1: 200.0 c2: -220.0 "
        "d1: 1.0e-10 d2: 0.0 w01: 1.0 w02: 1.0",
        "DaostormCalibration": "a1: 0.1 a2: -0.1 b1: 0.05 b2: 0.02 c1: 200.0 c2: -220.0 "
        "d1: 400.0 d2: 420.0 w01: 2.4 w02: 2.6",
    }[kind]
    lines = "\n".join(numbers.replace(": ", ":").split()).replace(":", ": ")
    path = folder / f"{kind}.yaml"
    tag = f"!!cz.cuni.lf1.lge.ThunderSTORM.calibration.{kind}"
    path.write_text(f"{tag}\nangle: 0.3\n{lines}\nname: {kind}\n")
    return path


@pytest.mark.parametrize("kind", ["PolynomialCalibration", "DaostormCalibration"])
def test_z_comes_from_the_widths(tmp_path: Path, kind: str) -> None:
    psf = Astigmatic(read_calibration(str(calibration(tmp_path, kind))))
    grid = torch.arange(-5, 6, dtype=torch.float64)
    true = torch.tensor([[0.3, -0.2, z, 900.0, 8.0] for z in (-250.0, -60.0, 0.0, 130.0, 280.0)]).double()
    free = psf.free(true)
    model, derivatives = psf(free, grid)
    numeric = torch.autograd.functional.jacobian(lambda p: psf(p, grid)[0].sum(0), free)
    torch.testing.assert_close(derivatives.transpose(1, 2), numeric.permute(1, 0, 2))
    for method in METHODS:
        fits = Fitter(psf, method, 1.6, 5)(model)
        torch.testing.assert_close(fits.parameters, true, rtol=1e-3, atol=1e-3)
        noisy = torch.from_numpy(np.random.default_rng(0).poisson(model).astype(float))
        start, weights = psf.free(psf.start(*noisy.aminmax(dim=1), 1.6)), method.weights(noisy)
        alone, _, _ = minimize_one_by_one(psf, method, start, noisy, weights)
        together, _, _ = minimize_together(psf, method, start, noisy, weights)
        torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", [LeastSquares(), MaximumLikelihood()], ids=lambda m: type(m).__name__)
def test_limits_are_of_the_intensity_in_space_too(tmp_path: Path, method: Method) -> None:
    psf = Astigmatic(read_calibration(str(calibration(tmp_path, "PolynomialCalibration"))))
    grid = torch.arange(-5, 6, dtype=torch.float64)
    true = torch.tensor([[0.3, -0.2, z, 900.0, 8.0] for z in (-200.0, 30.0, 180.0)]).double()
    light = psf(psf.free(true), grid)[0]
    torch.testing.assert_close((light - 8).sum(1), true[:, 3], rtol=0.02, atol=0)
    pixels = torch.from_numpy(np.random.default_rng(3).poisson(light).astype(float))
    spots = Spots(pixels, torch.zeros(3, 2).double(), 1.0, SpotNoise())
    alone = GaussianFit(Fitter(psf, method, 1.6, 5))(spots, bounds=True).columns
    assert (np.abs(alone["intensity"].numpy() - 900) < 4 * alone["uncertainty_intensity"].numpy()).all()
    for photons, limited in (((300.0, 2500.0), False), ((1200.0, 2500.0), True)):
        fit = MultiEmitterFit(Fitter(psf, method, 1.6, 5), most=2, photons=photons)
        found = fit(spots).columns
        if limited:
            torch.testing.assert_close(found["intensity"], torch.full((3,), 1200.0).double())
            continue
        for name in ("x", "y", "z", "intensity"):
            torch.testing.assert_close(found[name], alone[name], rtol=1e-5, atol=1e-5)


def test_a_calibration_is_read_in_braces_as_version_1_3_writes_it(tmp_path: Path) -> None:
    lines = calibration(tmp_path, "PolynomialCalibration")
    head, *entries = lines.read_text().splitlines()
    braces = tmp_path / "braces.yaml"
    braces.write_text(f"{head} {{{', '.join(entries[:6])},\n  {', '.join(entries[6:])}}}\n")
    np.testing.assert_array_equal(read_calibration(str(braces)), read_calibration(str(lines)))


def test_wrong_calibrations_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "calibration.yaml"
    path.write_text("angle: 0.3\n")
    for name, said in ((str(path), "not a calibration"), (str(tmp_path / "none.yaml"), "Cannot read")):
        with pytest.raises(FijiBridgeError, match=said):
            read_calibration(name)
