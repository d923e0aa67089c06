"""The exact likelihood of a reading: against simulation, brute-force integrals and the simpler engines."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import integrate, special, stats

from fiji_bridge.camera import Camera
from fiji_bridge.denoising import denoise, train
from fiji_bridge.denoising.model import readout_of
from fiji_bridge.denoising.noise_models import ENGINES, PoissonGaussian, Readout
from fiji_bridge.denoising.noise_models.poisson_gaussian import posterior
from fiji_bridge.stack import open_stack

CAMERAS = {
    "counts": Readout(step=1.0, lowest=0.0),
    "half a photon's noise": Readout(1.0, 0.25, step=0.1),
    "read noise of two": Readout(1.0, 4.0, step=0.5),
    "read noise of ten": Readout(1.0, 100.0, step=1.0),
    "EM gain": Readout(2.0, 0.04, step=0.05),
    "8 bits, cut off at 0": Readout(1.0, 1.0, step=0.5, lowest=0.0, highest=127.5),
    "8 bits, saturated": Readout(1.0, 0.36, step=0.2, lowest=0.0, highest=51.0),
    "8 bits, four photons each": Readout(1.0, 1.0, step=4.0, lowest=0.0, highest=400.0),
    "EM gain, saturated": Readout(2.0, 0.04, step=0.1, highest=8.0),
    "EM gain, cut off at 0": Readout(2.0, 0.5, step=0.05, lowest=0.0),
}
"""EM gain: 60 electrons of read noise behind a gain of 300."""


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def recorded(light, readout, rng):
    """Simulate readings [photons]."""
    values = rng.poisson(light).astype(float)
    if readout.excess > 1:
        values = rng.standard_gamma(values)
    values += rng.normal(0, readout.read_variance**0.5, values.shape)
    if readout.step:
        values = np.round(values / readout.step) * readout.step
    return np.clip(values, readout.lowest, readout.highest)


def seen(z, mean, shape, readout, **options):
    """Give the posterior of readings that share a prior."""
    z = torch.as_tensor(np.asarray(z, float)).reshape(1, 1, 1, -1)
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    return posterior(mean * one, shape * one, z, readout, **options)


def posterior_mean(z, mean, shape, readout):
    electrons = seen(z, mean, shape, readout).electrons.numpy().ravel()
    return (shape + electrons) / (shape / mean + 1)


@pytest.mark.parametrize(("mean", "shape"), [(0.02, 1.0), (0.5, 0.3), (0.5, 100.0), (6.0, 2.0), (40.0, 10.0)])
@pytest.mark.parametrize("name", CAMERAS)
def test_the_likelihood_is_how_often_a_simulated_camera_reads_each_value(name, mean, shape):
    readout, rng = CAMERAS[name], np.random.default_rng(1)
    readings = recorded(rng.gamma(shape, mean / shape, 200_000), readout, rng)
    levels, counts = np.unique(np.round(readings / readout.step).astype(int), return_counts=True)
    grid = np.arange(levels[0], levels[-1] + 1)
    found = np.zeros(len(grid))
    found[levels - levels[0]] = counts
    expected = 200_000 * seen(grid * readout.step, mean, shape, readout).log_evidence.exp().numpy().ravel()
    assert expected.sum() == pytest.approx(200_000, rel=2e-3)
    often = expected > 20
    chi_square = ((found - expected)[often] ** 2 / expected[often]).sum()
    assert stats.chi2.sf(chi_square, often.sum()) > 1e-3


def brute_force(z, mean, shape, readout):
    """Posterior mean and mode of λ, integrated over λ and, with EM gain, over the amplified signal."""
    n = np.arange(250)[:, None]
    sigma, half = readout.read_variance**0.5, readout.step / 2
    if readout.excess > 1:
        x = np.linspace(max(0, z - 8 * sigma), max(0, z) + 8 * sigma, 2001)
        amplified = stats.norm.pdf(z, x, sigma) * stats.gamma.pdf(x, n[1:])
        given_n = np.append(stats.norm.pdf(z, 0, sigma), integrate.trapezoid(amplified, x))
    elif z >= readout.highest:
        given_n = stats.norm.sf(z - half, n[:, 0], sigma)
    elif z <= readout.lowest:
        given_n = stats.norm.cdf(z + half, n[:, 0], sigma)
    else:
        given_n = stats.norm.cdf(z + half, n[:, 0], sigma) - stats.norm.cdf(z - half, n[:, 0], sigma)
    root = np.linspace(1e-4, 12, 3000)
    light = root**2
    density = stats.gamma.pdf(light, shape, scale=mean / shape) * (given_n @ stats.poisson.pmf(n, light))
    return (light * root * density).sum() / (root * density).sum(), light[density.argmax()]


@pytest.mark.parametrize(
    ("name", "z"),
    [
        ("half a photon's noise", 0.4),
        ("half a photon's noise", 12.2),
        ("read noise of two", -3.0),
        ("read noise of two", 5.5),
        ("read noise of ten", -8.0),
        ("read noise of ten", 9.0),
        ("read noise of ten", 60.0),
        ("EM gain", -0.3),
        ("EM gain", 0.2),
        ("EM gain", 4.0),
        ("EM gain", 25.0),
        ("8 bits, cut off at 0", 0.0),
        ("8 bits, saturated", 51.0),
        ("8 bits, four photons each", 8.0),
    ],
)
@pytest.mark.parametrize(("mean", "shape"), [(1.0, 1.0), (2.0, 20.0), (30.0, 2.0), (45.0, 100.0)])
def test_posterior_mean_and_mode_are_those_of_brute_force_integration(name, z, mean, shape):
    right_mean, right_mode = brute_force(z, mean, shape, CAMERAS[name])
    assert posterior_mean([z], mean, shape, CAMERAS[name])[0] == pytest.approx(
        right_mean, rel=0.01, abs=0.005
    )
    mode = float(seen([z], mean, shape, CAMERAS[name], mode=True).mode)
    assert mode == pytest.approx(right_mode, rel=0.02, abs=0.02)


@pytest.mark.parametrize("step", [0.3, 10.0])
def test_whatever_prior_and_noise_the_sum_is_that_over_all_electrons(step):
    rng, pixels = np.random.default_rng(2), 400
    spread = lambda low, high: np.exp(rng.uniform(np.log(low), np.log(high), pixels))  # noqa: E731
    mean, shape, noise = spread(0.01, 800), spread(0.03, 1e5), spread(0.1, 20)
    light = np.where(rng.random(pixels) < 0.5, mean, spread(0.01, 800))  # half of them not what was expected
    z = np.round((rng.poisson(rng.gamma(shape, light / shape)) + rng.normal(0, noise)) / step) * step
    z = np.clip(z, None, 3000)
    found = posterior(
        *(torch.from_numpy(values)[None, None, None] for values in (mean, shape, z)),
        Readout(1.0, torch.from_numpy(noise**2)[None, None, None], step=step),
    )
    n = np.arange(6000)[:, None]
    log = stats.nbinom.logpmf(n, shape, shape / (shape + mean))
    upper, lower = (special.log_ndtr(-(np.abs(z - n) + side) / noise) for side in (-step / 2, step / 2))
    log += upper + np.log(-np.expm1(lower - upper))
    expected = special.logsumexp(log, axis=0)
    electrons = (n * np.exp(log - expected)).sum(axis=0)
    width = np.sqrt(((n - electrons) ** 2 * np.exp(log - expected)).sum(axis=0))
    np.testing.assert_allclose(found.log_evidence.numpy().ravel(), expected, rtol=1e-4, atol=1e-2)
    assert (np.abs(found.electrons.numpy().ravel() - electrons) < 0.02 * width + 1e-3).all()


@pytest.mark.parametrize("step", [0.0, 1.0])
@pytest.mark.parametrize("z", [-20.0, 0.0, 60.0, 1000.0])
@pytest.mark.parametrize(("mean", "shape"), [(10.0, 1.0), (10.0, 100.0), (0.1, 0.3), (500.0, 50.0)])
def test_a_hot_or_dead_pixel_far_from_its_prior_has_the_exact_posterior(z, mean, shape, step):
    n, sigma = np.arange(4000.0), 1.5
    log = stats.nbinom.logpmf(n, shape, shape / (shape + mean))
    if step:
        away, half = -np.abs(z - n) / sigma, step / 2 / sigma
        above, below = stats.norm.logcdf(away + half), stats.norm.logcdf(away - half)
        log += above + np.log(-np.expm1(below - above))
    else:
        log += stats.norm.logpdf(z, n, sigma)
    evidence = special.logsumexp(log)
    found = seen([z], mean, shape, Readout(1.0, sigma**2, step=step))
    assert float(found.log_evidence) == pytest.approx(evidence, rel=1e-3, abs=0.01)
    assert float(found.electrons) == pytest.approx((n * np.exp(log - evidence)).sum(), rel=0.005, abs=0.01)


@pytest.mark.parametrize("z", [0.5, 50.0, 400.0])
@pytest.mark.parametrize(("mean", "shape"), [(10.0, 1.0), (10.0, 100.0), (500.0, 50.0)])
def test_so_it_has_behind_em_gain(z, mean, shape):
    n, sigma = np.arange(1, 1500)[:, None], 0.2
    x = np.linspace(max(0.0, z - 8 * sigma), z + 8 * sigma, 2001)
    amplified = stats.norm.logpdf(z, x, sigma) + stats.gamma.logpdf(np.maximum(x, 1e-12), n)
    given_n = special.logsumexp(amplified, axis=1) + np.log(x[1] - x[0])
    log = np.append(stats.norm.logpdf(z, 0, sigma), given_n)
    log += stats.nbinom.logpmf(np.arange(1500), shape, shape / (shape + mean))
    evidence = special.logsumexp(log)
    expected = (np.arange(1500) * np.exp(log - evidence)).sum()
    found = seen([z], mean, shape, Readout(2.0, sigma**2))
    assert float(found.log_evidence) == pytest.approx(evidence, abs=0.05)
    assert float(found.electrons) == pytest.approx(expected, rel=0.01, abs=0.01)


def fitted(z, readout):
    """Give mean and shape of the best prior that readings share."""
    values, counts = (torch.as_tensor(part) for part in np.unique(z, return_counts=True))
    logs = torch.tensor([math.log(max(z.mean(), 0.1)), 1.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logs], max_iter=25, line_search_fn="strong_wolfe", tolerance_grad=1e-7)

    def closure():
        optimizer.zero_grad()
        log = seen(values, *logs.exp(), readout).log_evidence.flatten()
        loss = -(log * counts).sum() / counts.sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return logs.exp().tolist()


@pytest.mark.parametrize(
    ("readout", "light"),
    [
        (Readout(), 0.02),
        (Readout(1.0, 4.0, step=0.05), 0.5),
        (Readout(2.0, 0.04, step=0.02), 0.3),
        (Readout(2.0, 0.04, step=0.02), 4.0),
        (Readout(1.0, 1.0, step=0.5, lowest=0.0), 0.5),
        (Readout(1.0, 0.36, step=0.2, highest=20.0), 20.0),
        (Readout(1.0, 100.0, step=1.0), 3.0),
    ],
)
def test_flat_light_is_found_without_bias_and_with_a_narrow_prior(readout, light):
    z = recorded(np.full(100_000, light), readout, np.random.default_rng(2))
    mean, shape = fitted(z, readout)
    # Clipping at the mean loses half of the readings, so allow four of the errors of half as many.
    error = math.sqrt((readout.excess * light + readout.read_variance) / 50_000)
    assert mean == pytest.approx(light, abs=4 * error)
    assert mean**2 / shape < 0.1 * (readout.excess * light + readout.read_variance)


def test_the_gradient_is_that_of_the_likelihood():
    for readout in CAMERAS.values():
        for z in (0.0, 3.0, 20.0):
            for logs in ([0.5, 0.2], [2.0, 3.0]):
                logs = torch.tensor(logs, dtype=torch.float64, requires_grad=True)
                seen([z], *logs.exp(), readout).log_evidence.sum().backward()
                for i in range(2):
                    either = []
                    for change in (-0.05, 0.05):
                        moved = logs.detach().clone()
                        moved[i] += change
                        either.append(float(seen([z], *moved.exp(), readout).log_evidence))
                    assert float(logs.grad[i]) == pytest.approx(
                        (either[1] - either[0]) / 0.1, rel=0.02, abs=0.01
                    )


def test_saturated_pixels_are_put_above_the_saturation():
    readout = CAMERAS["8 bits, saturated"]
    rng = np.random.default_rng(3)
    light = rng.gamma(4.0, 12.0, 100_000)
    z = recorded(light, readout, rng)
    full = z == readout.highest
    estimates = posterior_mean(z, 48.0, 4.0, readout)
    assert estimates[full].mean() > readout.highest + 10
    assert estimates[full].mean() == pytest.approx(light[full].mean(), rel=0.02)
    mean, shape = fitted(z, readout)
    assert mean == pytest.approx(48.0, rel=0.02)
    assert shape == pytest.approx(4.0, rel=0.05)


def test_each_pixel_has_its_own_read_noise():
    variance = torch.tensor([0.25, 4.0, 100.0]).reshape(1, 1, 1, 3)
    together = seen([2.0, 2.0, 2.0], 3.0, 2.0, Readout(1.0, variance, step=0.5))
    for i, own in enumerate((0.25, 4.0, 100.0)):
        alone = seen([2.0], 3.0, 2.0, Readout(1.0, own, step=0.5))
        for name in ("log_evidence", "electrons"):
            assert float(getattr(together, name).flatten()[i]) == pytest.approx(
                float(getattr(alone, name)), rel=1e-3
            )


@pytest.mark.parametrize(
    ("mean", "shape", "variance", "edge"), [(3, 10, 0.5, 0), (5, 3, 2, 0), (2, 20, 1, -1)]
)
def test_what_is_cut_off_behind_em_gain_is_what_a_simulation_cuts_off(mean, shape, variance, edge):
    rng = np.random.default_rng(6)
    light = rng.gamma(shape, mean / shape, 1_000_000)
    signal = recorded(light, Readout(2.0, variance), rng)
    below = signal <= edge
    found = seen([edge], mean, shape, Readout(2.0, variance, lowest=edge))
    assert float(found.log_evidence.exp()) == pytest.approx(below.mean(), rel=0.02)
    assert float(found.unclipped) == pytest.approx(signal[below].mean(), rel=0.02)
    right = light[below].mean()
    assert (shape + float(found.electrons)) / (shape / mean + 1) == pytest.approx(right, rel=0.01)


@pytest.mark.parametrize(("mean", "shape"), [(114.0, 0.24), (100.0, 3.0), (20.0, 1.5)])
def test_the_maximum_is_found_for_saturated_pixels_under_any_prior(mean, shape):
    light, n = np.geomspace(0.5, 1000, 3000), np.arange(2000)[:, None]
    beyond = stats.norm.sf(50, n[:, 0], 1) @ stats.poisson.pmf(n, light)
    density = np.log(beyond + 1e-300) + (shape - 1) * np.log(light) - shape / mean * light
    peaks = light[1:-1][(density[1:-1] > density[:-2]) & (density[1:-1] > density[2:])]
    mode = float(seen([50.0], mean, shape, Readout(1.0, 1.0, highest=50.0), mode=True).mode)
    assert mode == pytest.approx(peaks[-1], rel=0.01)


def test_a_quiet_pixel_is_read_alike_beside_noisy_ones():
    variance = torch.tensor([0.0025, 0.0196, 9.0]).reshape(1, 1, 1, 3)
    together = seen([7.45, 7.45, -3.0], 5.0, 4.0, Readout(1.0, variance), mode=True)
    for i, z in enumerate((7.45, 7.45, -3.0)):
        alone = seen([z], 5.0, 4.0, Readout(1.0, float(variance.flatten()[i])), mode=True)
        for name in ("log_evidence", "electrons", "unclipped", "mode"):
            value = float(getattr(together, name).flatten()[i])
            assert value == pytest.approx(float(getattr(alone, name)), rel=1e-5)


@pytest.mark.parametrize("name", CAMERAS)
def test_balancing_keeps_the_mean_of_what_was_not_clipped(name):
    readout, rng = CAMERAS[name], np.random.default_rng(4)
    light = rng.gamma(3.0, 2.0, 20_000)
    z = torch.as_tensor(recorded(light, readout, rng)).reshape(1, 1, 1, -1)
    noise = PoissonGaussian.fit(z.numpy(), readout.excess, readout.read_variance)
    outputs = torch.as_tensor(rng.normal(0, 0.3, (1, 2, 1, 20_000)))
    denoised = noise.balanced(outputs, z, readout).estimate(outputs, z, readout)
    assert float(denoised.mean()) == pytest.approx(6.0, rel=0.05)


def test_a_model_is_made_again_from_its_constants():
    noise = PoissonGaussian.fit(np.random.default_rng(5).poisson(3.0, 1000) * 1.0, 2.0, 0.04)
    assert ENGINES[noise.engine](**json.loads(json.dumps(noise.constants()))) == noise


def test_the_range_of_readings_is_found_in_the_stack():
    rng = np.random.default_rng(7)
    camera = Camera(offset=0.0, photons_per_adu=0.2, read_noise=0.5)
    raw = np.clip(5 * rng.poisson(45.0, (4, 48, 48)) + rng.integers(0, 5, (4, 48, 48)), 0, 255).astype(
        np.uint8
    )
    readout = readout_of(camera, [open_stack(raw)], torch.device("cpu"))
    assert (readout.step, readout.lowest, readout.highest) == pytest.approx((0.2, 0.0, 51.0))
    readout = readout_of(camera, [open_stack(rng.normal(0, 1, (4, 48, 48)))], torch.device("cpu"))
    assert (readout.step, readout.lowest, readout.highest) == (0.0, -math.inf, math.inf)


def spots(frames, brightness, background, seed=0):
    """Blinking molecules on a flat background [photons]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:48, :48]
    light = np.full((frames, 48, 48), background)
    for frame in light:
        for cy, cx in rng.uniform(0, 48, (6, 2)):
            frame += brightness * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * 1.5**2))
    return light


@pytest.mark.parametrize(
    ("camera", "dtype", "brightness", "background", "steps", "better"),
    [
        (Camera(offset=100.0, photons_per_adu=0.5, read_noise=1.6), np.uint16, 10.0, 1.0, 150, 0.95),
        (Camera(offset=0.0, photons_per_adu=0.2, read_noise=0.5), np.uint8, 80.0, 10.0, 250, 1.3),
    ],
    ids=["sCMOS", "saturated"],
)
def test_training_is_as_good_as_gamma_poisson_s_and_better_where_pixels_saturate(
    camera, dtype, brightness, background, steps, better
):
    rng = np.random.default_rng(6)
    light = spots(10, brightness, background)
    signal = camera.to_adu(rng.poisson(light) + rng.normal(0, camera.read_noise, light.shape))
    raw = np.clip(np.round(signal), 0, np.iinfo(dtype).max).astype(dtype)
    errors = {}
    for engine in ("gamma-poisson", "poisson-gaussian"):
        model = train(
            raw,
            camera=camera,
            engine=engine,
            steps=steps,
            features=(8, 12),
            crop=32,
            device="cpu",
            blind_radius=0,
        )
        photons = camera.to_photons(denoise(raw, model, device="cpu").to_numpy())
        errors[engine] = np.mean((photons - light) ** 2)
    assert errors["poisson-gaussian"] < 0.5 * np.mean((camera.to_photons(raw) - light) ** 2)
    assert errors["gamma-poisson"] > better * errors["poisson-gaussian"]


def test_a_reading_that_was_cut_off_is_that_however_little_noise_there_is():
    readout, mean, shape = Readout(1.0, 0.001, step=0.05, lowest=0.3), 1.0, 2.0
    found = seen([0.3, 1.0], mean, shape, readout)
    none = (shape / (shape + mean)) ** shape
    np.testing.assert_allclose(found.log_evidence.exp().numpy().ravel()[0], none, rtol=1e-3)
    np.testing.assert_allclose(
        posterior_mean([0.3], mean, shape, readout), shape / (shape / mean + 1), rtol=1e-3
    )
    assert float(found.electrons.ravel()[1]) == 1


def test_what_saturated_pixels_had_is_not_made_up_where_the_model_is_in_doubt():
    sure = PoissonGaussian(12.0, 3.0)
    outputs, photons = torch.zeros(1, 2, 1, 2), torch.tensor([[[[50.0, 49.0]]]])
    readout = Readout(1.0, 1.0, step=0.2, highest=50.0)
    for mode in ("mean", "map"):
        known, doubted = (
            replace(sure, doubt=doubt).estimate(outputs, photons, readout, mode).ravel() for doubt in (0, 1.4)
        )
        expected = sure.estimate(outputs, photons, readout, "prior").ravel()
        assert doubted[0] <= max(50, expected[0]) and doubted[1] > 45
        assert known[0] >= known[1]
    wide = replace(sure, doubt=1.4).prior(outputs, readout)
    seen_there = posterior(*(part.expand(1, 1, 1, 2) for part in wide), photons, readout)
    assert seen_there.electrons.ravel()[0] > 70  # what the prior's tail alone would say
