"""The Gamma-Poisson model against closed forms, and without bias below zero."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from fiji_bridge.denoising.noise_models import ENGINES, GammaPoisson, Readout
from fiji_bridge.denoising.noise_models.gamma_poisson import negative_binomial_nll

SILENT = Readout()


def as_images(values):
    return torch.as_tensor(np.asarray(values, np.float64)).reshape(1, 1, 1, -1)


def fitted_prior(photons, readout):
    """Best mean and shape for pixels that share one prior."""
    y = (photons + readout.read_variance / readout.excess) / readout.excess
    logs = torch.tensor([np.log(y.mean()), 1.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logs], max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-12)

    def closure():
        optimizer.zero_grad()
        mean, shape = logs.exp()
        loss = negative_binomial_nll(torch.as_tensor(y), mean, shape).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    mean, shape = logs.exp().tolist()
    return mean, shape, y


@pytest.mark.parametrize("mean", [0.02, 1.0, 40.0])
@pytest.mark.parametrize("shape", [0.05, 1.0, 30.0, 1e5])
def test_on_counts_the_likelihood_is_the_negative_binomial(mean, shape):
    counts = np.arange(0, 60)
    ours = negative_binomial_nll(
        torch.as_tensor(counts, dtype=torch.float64),
        torch.tensor(mean).double(),
        torch.tensor(shape).double(),
    )
    np.testing.assert_allclose(
        ours, -stats.nbinom.logpmf(counts, shape, shape / (shape + mean)), rtol=1e-6, atol=1e-9
    )


@pytest.mark.parametrize("z", [0, 3, 11])
def test_estimators_are_those_of_the_posterior(z):
    noise = GammaPoisson(center=4.0, spread=2.0)
    outputs = torch.tensor([0.3, -0.8]).reshape(1, 2, 1, 1)
    mean, shape = (float(value) for value in noise.prior(outputs, SILENT))

    def posterior(light):
        return stats.poisson.pmf(z, light) * stats.gamma.pdf(light, shape, scale=mean / shape)

    evidence = integrate.quad(posterior, 0, 200, limit=200)[0]
    expected = integrate.quad(lambda light: light * posterior(light), 0, 200, limit=200)[0] / evidence
    assert float(noise.estimate(outputs, as_images([z]), SILENT, "mean")) == pytest.approx(expected, rel=1e-5)
    assert float(noise.nll(outputs, as_images([z]), SILENT)) == pytest.approx(-np.log(evidence), rel=1e-6)
    light = np.linspace(1e-6, 30, 300_001)
    mode = light[np.argmax(posterior(light))]
    assert float(noise.estimate(outputs, as_images([z]), SILENT, "map")) == pytest.approx(mode, abs=2e-4)
    assert float(noise.estimate(outputs, as_images([z]), SILENT, "prior")) == pytest.approx(mean, rel=1e-6)


def test_the_posterior_mean_has_less_error_than_the_prior_mean_or_the_observation():
    rng = np.random.default_rng(1)
    noise = GammaPoisson(center=4.0, spread=2.0)
    outputs = torch.tensor([0.2, 0.1]).reshape(1, 2, 1, 1)
    mean, shape = (float(value) for value in noise.prior(outputs, SILENT))
    light = rng.gamma(shape, mean / shape, 100_000)
    photons = as_images(rng.poisson(light))
    error = {
        name: float((noise.estimate(outputs, photons, SILENT, name) - as_images(light)).square().mean())
        for name in ("mean", "map", "prior")
    }
    assert error["mean"] < 0.9 * min(error["prior"], float((photons - as_images(light)).square().mean()))
    assert error["mean"] < error["map"]


@pytest.mark.parametrize(("excess", "read_noise"), [(1.0, 0.0), (1.0, 2.0), (2.0, 0.3), (1.0, 0.5)])
@pytest.mark.parametrize("light", [0.5, 20.0])
def test_read_noise_and_em_gain_leave_no_bias_and_flat_light_gets_a_narrow_prior(excess, read_noise, light):
    rng = np.random.default_rng(2)
    photons = rng.poisson(light, 200_000).astype(float)
    if excess == 2:  # an EM register of high gain: an exponential for each electron
        photons = rng.gamma(np.maximum(photons, 1e-12), 1.0)
    photons += rng.normal(0, read_noise, photons.size)
    readout = Readout(excess, read_noise**2)
    mean, shape, y = fitted_prior(photons, readout)
    assert y.var() == pytest.approx(y.mean(), rel=0.02)
    assert mean == pytest.approx(y.mean(), rel=1e-5)
    assert mean / (mean + shape) < 0.12  # the weight of the observation: 0 but for the noise's third moment


def test_ever_wider_priors_are_not_rewarded_by_values_below_zero():
    rng = np.random.default_rng(3)
    y = torch.as_tensor(rng.normal(0.25, 0.5, 50_000))  # no light, read noise of half a photon
    shapes = torch.tensor([1e-4, 1e-3, 1e-2, 0.1, 1.0, 100.0], dtype=torch.float64)
    nll = [float(negative_binomial_nll(y, y.mean(), shape).mean()) for shape in shapes]
    assert nll == sorted(nll, reverse=True)


def test_a_noisier_pixel_counts_for_less():
    noise = GammaPoisson(center=4.0, spread=2.0, floor=1.0)
    outputs = torch.tensor([0.0, 0.0]).reshape(1, 2, 1, 1).expand(1, 2, 1, 2)
    readout = Readout(1.0, torch.tensor([[1.0, 100.0]]))
    prior = noise.estimate(outputs, as_images([9.0, 9.0]), readout, "prior").flatten()
    mean = noise.estimate(outputs, as_images([9.0, 9.0]), readout, "mean").flatten()
    assert prior[0] == pytest.approx(float(prior[1]))  # the same light is expected
    assert abs(mean[1] - prior[1]) < 0.2 * abs(mean[0] - prior[0])


def test_balancing_keeps_the_mean():
    rng = np.random.default_rng(4)
    noise = GammaPoisson(center=4.0, spread=2.0, floor=0.25)
    outputs = torch.as_tensor(rng.normal(0, 1, (1, 2, 40, 40)))
    photons = torch.as_tensor(rng.normal(3, 2, (1, 1, 40, 40)))
    readout = Readout(1.0, 0.25)
    balanced = noise.balanced(outputs, photons, readout)
    assert abs(noise.estimate(outputs, photons, readout).mean() - photons.mean()) > 0.1
    assert balanced.estimate(outputs, photons, readout).mean() == pytest.approx(
        float(photons.mean()), rel=1e-5
    )


@pytest.mark.parametrize("engine", ["poisson-gaussian", "gamma-poisson", "gaussian"])
@pytest.mark.parametrize("error", [0.0, 0.3])
def test_as_much_is_doubted_as_the_network_is_wrong(engine, error):
    rng, readout = np.random.default_rng(6), Readout(read_variance=1.0)
    noise = ENGINES[engine].fit(rng.poisson(200.0, 1000).astype(float), 1.0, 1.0)
    narrow = -4.0 if engine == "gaussian" else 2.0
    outputs = torch.tensor([0.0, narrow]).reshape(1, 2, 1, 1).expand(1, 2, 1, 30_000)
    mean, width = (float(value.flatten()[0]) for value in noise.prior(outputs, readout)[:2])
    variance = width if engine == "gaussian" else mean**2 / width
    assert variance < 5
    light = rng.gamma(mean**2 / variance, variance / mean, 30_000)
    if error:
        light *= rng.gamma(error**-2, error**2, 30_000)
    photons = rng.poisson(light) + rng.normal(0, 1, 30_000)
    adapted = noise.adapted(outputs, as_images(photons), readout)
    assert adapted.doubt == pytest.approx(error, rel=0.1, abs=0.02)
    assert replace(adapted, doubt=0.0, narrowing=()) == noise
    change = replace(adapted, narrowing=()).weight(outputs, readout) - adapted.weight(outputs, readout)
    assert change.abs().max() < 0.02


@pytest.mark.parametrize("engine", ["poisson-gaussian", "gamma-poisson", "gaussian"])
def test_priors_too_wide_are_narrowed_as_far_as_readings_show(engine):
    rng, readout, size = np.random.default_rng(8), Readout(read_variance=1.0), 2**17
    noise = ENGINES[engine].fit(rng.poisson(50.0, 1000).astype(float), 1.0, 1.0)
    level = torch.linspace(-2, 2, size).reshape(1, 1, 1, size)
    outputs = torch.cat([level, torch.full_like(level, 0.5)], dim=1)
    mean, width = (value.flatten().numpy() for value in noise.prior(outputs, readout)[:2])
    variance = np.broadcast_to(width if engine == "gaussian" else mean**2 / width, mean.shape)
    expected = noise.estimate(outputs, torch.zeros(1, 1, 1, size), readout, "prior").flatten().numpy()
    true = np.where(expected < np.median(expected), 0.25, 1.0) * variance  # of the light's distribution
    light = rng.gamma(expected.clip(1e-3) ** 2 / true, true / expected.clip(1e-3))
    photons = as_images(rng.poisson(light) + rng.normal(0, 1, size))
    narrowed = noise.narrowed(outputs, photons, readout)
    (dark, *_), (_, bright) = (shares := [share for _, share in narrowed.narrowing]), (shares[0], shares[-1])
    assert 0.2 < dark < 0.6  # not all that it is too wide, as the noise may not be what it is taken for
    assert bright == pytest.approx(1.0, abs=0.1)

    def error(model):
        found = model.estimate(outputs, photons, readout, "mean").flatten().numpy()
        return np.mean((found - light)[: size // 2] ** 2)

    assert error(narrowed) < error(noise)


def test_engines_are_registered_by_name():
    assert ENGINES[GammaPoisson.engine] is GammaPoisson


@pytest.mark.parametrize("engine", ["poisson-gaussian", "gamma-poisson", "gaussian", "poi2void"])
def test_the_prior_says_the_same_light_whatever_camera_records_it(engine):
    photons = np.random.default_rng(0).poisson(20, 4096).astype(np.float32)
    noise = ENGINES[engine].fit(photons, 1.0, 0.0)
    outputs = torch.randn(2, noise.outputs, 3, 4, generator=torch.Generator().manual_seed(0))
    seen = torch.full((2, 1, 3, 4), 20.0)
    map_ = torch.tensor([0.0, 400.0, 1.0, 4.0]).expand(2, 1, 3, 4)
    light = noise.estimate(outputs, seen, Readout(), "prior")
    for readout in (Readout(2.0, 0.01), Readout(1.0, 4.0), Readout(1.0, map_)):
        assert noise.estimate(outputs, seen, readout, "prior").numpy() == pytest.approx(
            light.numpy(), rel=1e-4, abs=1e-4
        )


def test_gradients_of_the_negative_binomial_are_those_of_its_value() -> None:
    rng = np.random.default_rng(4)
    y, mean, shape = (
        torch.as_tensor(values.reshape(4, 5))
        for values in (rng.normal(3, 4, 20), rng.uniform(0.1, 9, 20), np.exp(rng.normal(1, 2, 20)))
    )
    assert (y < 0).any() and (y > 0).any()
    mean, shape = mean[:, :1].requires_grad_(), shape[:1].requires_grad_()  # broadcast against y
    assert torch.autograd.gradcheck(lambda *prior: negative_binomial_nll(y, *prior), (mean, shape))
