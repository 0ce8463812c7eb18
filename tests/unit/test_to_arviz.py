"""Fits in ArviZ's form: their groups, against closed forms and `Fit` itself."""

import math
import warnings
from contextlib import nullcontext
from functools import cache
from importlib.metadata import version

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from idioms import IDIOMS
from methods import PAIRS, fitted
from programs import PARALLEL, problem
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch.distributions import constraints

import probsl
from probsl.export.arrays import fit_arrays
from probsl.program.sites import Role

DTYPE = torch.float64
MODERN = int(version("arviz").split(".")[0]) >= 1
Y = torch.tensor([1.2, -0.3, 0.8, 2.1, 0.4], dtype=DTYPE)


def normal_mean(y=None):
    mu = pyro.sample("mu", dist.Normal(torch.zeros((), dtype=DTYPE), 2.0))
    with pyro.plate("rows", 5):
        pyro.sample("y", dist.Normal(mu, 1.5), obs=y)


def log_normal(value, mean, sd):
    return -0.5 * ((value - mean) / sd) ** 2 - math.log(sd * math.sqrt(2 * math.pi))


def converted(fit, **options):
    """Return the groups of a fit; ArviZ itself may warn of nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return probsl.to_arviz(fit, **{"draws": 100, **options})


@cache
def groups_of(pair):
    """Return the groups of the fit of a pair; they are made once."""
    return converted(fitted(pair), draws=20)


def names_of(data):
    """Return the names of the groups, which are paths to a tree of ArviZ 1.x."""
    return set(data.children) if MODERN else set(data.groups())


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_every_fit_has_its_groups(pair):
    fit, data = fitted(pair), groups_of(pair)
    count = 1 if pair.is_point else 20
    latents = [s.name for s in fit.problem.latents]
    observed = set(fit.problem.sites_with_role(Role.OBSERVED))

    assert set(data.posterior) >= {*latents, *fit.point()}
    assert {s: (1, count, *fit.problem.site(s).shape) for s in latents} == {
        s: data.posterior[s].shape for s in latents
    }
    assert set(data.posterior_predictive) == set(data.observed_data) == observed
    assert set(data.constant_data) == set(pair.case.inputs) - {"groups"}
    for group in ("log_likelihood", "log_prior", "sample_stats"):
        assert dict(data[group].sizes).items() >= {"chain": 1, "draw": count}.items()
    for group in ("prior", "posterior_predictive"):
        assert data[group].sizes["draw"] == 20
    if "discrete" not in pair.case.has:
        assert set(data.log_prior) == set(latents) == set(data.prior)
    stats = {"lp"} if pair.is_point else {"lp", "log_p", "log_q"}
    assert set(data.sample_stats) == stats
    assert {str(v.dtype) for v in data.posterior.values()} == {"float64"}
    assert {str(v.dtype) for v in data.log_likelihood.values()} == {"float64"}


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_densities_add_up(pair):
    """Sites and rows are parts of the log likelihood and of the joint density."""
    fit, data = fitted(pair), groups_of(pair)
    likelihood = sum(
        v.values.reshape(v.shape[1], -1).sum(1) for v in data.log_likelihood.values()
    )
    prior = sum(
        v.values.reshape(v.shape[1], -1).sum(1) for v in data.log_prior.values()
    )
    if "factor" not in pair.case.has:
        np.testing.assert_allclose(data.sample_stats["lp"][0], likelihood + prior)
        if pair.is_point:
            assert likelihood == pytest.approx(fit.log_likelihood())


def test_the_posterior_is_what_the_fit_draws():
    fit = probsl.fit(normal_mean, {"y": Y}, probsl.SVI())
    data = converted(fit, draws=50, seed=7)
    expected = fit.draw(50, seed=7)["mu"].numpy()
    np.testing.assert_array_equal(data.posterior["mu"].values[0], expected)


def test_a_point_has_many_predictions_but_one_draw():
    fit = probsl.fit(normal_mean, {"y": Y}, probsl.MLE())
    data = converted(fit, draws=4000)
    assert data.posterior["mu"].values.tolist() == [[pytest.approx(float(Y.mean()))]]
    predicted, prior = data.posterior_predictive["y"], data.prior["mu"]
    assert predicted.dims == ("chain", "draw", "rows")
    # Means and standard deviations of 20,000 and 4,000 draws to five standard errors.
    error = 5 / math.sqrt(predicted.size)
    assert float(predicted.mean()) == pytest.approx(float(Y.mean()), abs=1.5 * error)
    assert float(predicted.std()) == pytest.approx(1.5, abs=1.5 * error)
    assert float(prior.std()) == pytest.approx(2.0, abs=2.0 * 5 / math.sqrt(8000))


@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 2.0, 0.0, 0.5, 3.0])])
@pytest.mark.parametrize("prior_weight", [1.0, 0.3])
def test_densities_of_a_normal_mean_are_the_closed_forms(weights, prior_weight):
    method = probsl.SVI(AutoMultivariateNormal, prior_weight=prior_weight)
    fit = probsl.fit(normal_mean, {"y": Y}, method, weights=weights)
    data = converted(fit)
    mu, y = data.posterior["mu"].values[0], Y.numpy()
    likelihood = log_normal(y, mu[:, None], 1.5)
    prior = log_normal(mu, 0.0, 2.0)
    w = np.ones(5) if weights is None else weights.numpy()
    precision = w.sum() / 1.5**2 + prior_weight / 2.0**2
    mean, sd = (w @ y) / 1.5**2 / precision, precision**-0.5

    # No weight enters the parts, nor the joint density; all enter what was fitted.
    np.testing.assert_allclose(data.log_likelihood["y"].values[0], likelihood)
    np.testing.assert_allclose(data.log_prior["mu"].values[0], prior)
    stats = {name: value.values[0] for name, value in data.sample_stats.items()}
    np.testing.assert_allclose(stats["lp"], likelihood.sum(1) + prior)
    np.testing.assert_allclose(stats["log_p"], likelihood @ w + prior_weight * prior)
    np.testing.assert_allclose(stats["log_q"], log_normal(mu, mean, sd), rtol=1e-5)


def test_importance_weights_of_an_exact_posterior_are_equal():
    """Also where the support is bounded: both densities are in constrained space."""

    def program(y=None):
        scale = pyro.sample("scale", dist.LogNormal(torch.zeros((), dtype=DTYPE), 1.0))
        pyro.sample("y", dist.Normal(scale.log(), 1.0), obs=y)

    fit = probsl.fit(program, {"y": Y[0]}, probsl.SVI(AutoNormal))
    stats = converted(fit).sample_stats
    ratio = (stats["log_p"] - stats["log_q"]).values
    np.testing.assert_allclose(ratio, ratio.mean(), atol=1e-4)


def test_local_latents_are_those_of_the_fitted_rows():
    def program(x, y=None):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x, 1.0))
            pyro.sample("y", dist.Normal(z, 0.01), obs=y)

    y = torch.linspace(-3, 3, 7, dtype=DTYPE)
    fit = probsl.fit(program, {"x": torch.zeros(7, dtype=DTYPE), "y": y}, probsl.SVI())
    data = converted(fit)
    predicted = data.posterior_predictive["y"].mean(("chain", "draw")).values
    np.testing.assert_allclose(predicted, y.numpy(), atol=0.02)
    assert data.posterior["z"].dims == ("chain", "draw", "data")
    # From the program, they would lie around x.
    assert float(abs(data.prior["z"].mean(("chain", "draw"))).max()) < 0.5


def test_an_observed_argument_without_default_is_no_constant():
    def program(x, y):
        w = pyro.sample("w", dist.Normal(torch.zeros((), dtype=DTYPE), 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(w * x, 1.0), obs=y)

    data = converted(probsl.fit(program, {"x": Y, "y": Y}, probsl.MAP()))
    assert set(data.constant_data) == {"x"}
    np.testing.assert_array_equal(data.observed_data["y"].values, Y.numpy())
    assert data.posterior_predictive["y"].shape == (1, 100, 5)


def test_event_axes_follow_the_plates():
    fit = probsl.fit(**_arguments("LKJ covariance"), method=probsl.SVI())
    data = converted(fit, dims={"y": ["channel"]}, coords={"channel": ["a", "b"]})
    assert data.posterior["correlation"].dims[2:] == (
        "correlation_dim_0",
        "correlation_dim_1",
    )
    assert data.posterior_predictive["y"].dims == ("chain", "draw", "data", "channel")
    assert data.observed_data["y"].dims == ("data", "channel")
    assert data.log_likelihood["y"].dims == ("chain", "draw", "data")
    assert list(data.observed_data["channel"].values) == ["a", "b"]


def test_nested_plates_name_both_axes():
    def program(y=None):
        mu = pyro.sample("mu", dist.Normal(torch.zeros((), dtype=DTYPE), 1.0))
        with pyro.plate("weeks", 3, dim=-2), pyro.plate("days", 7, dim=-1):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    data = converted(probsl.fit(program, {"y": torch.ones(3, 7)}, probsl.MAP()))
    for group in (data.log_likelihood, data.posterior_predictive):
        assert group["y"].dims == ("chain", "draw", "weeks", "days")
        assert group["y"].shape[2:] == (3, 7)


def test_plates_have_the_labels_of_the_categories():
    frame = pd.DataFrame(
        {
            "school": pd.Categorical(["A", "B", "B", "C", "A"], ["A", "B", "C"]),
            "y": Y.numpy(),
        }
    )

    def program(school, y=None):
        with pyro.plate("schools", 3):
            theta = pyro.sample("theta", dist.Normal(torch.zeros((), dtype=DTYPE), 1.0))
        with pyro.plate("columns", 3):
            pyro.sample("other", dist.Normal(torch.zeros((), dtype=DTYPE), 1.0))
        with pyro.plate("data", len(school)):
            pyro.sample("y", dist.Normal(theta[school], 1.0), obs=y)

    fit = probsl.fit(program, frame, probsl.MAP())
    data = converted(fit)
    assert list(data.posterior["schools"].values) == ["A", "B", "C"]
    assert float(data.posterior["theta"].sel(schools="B").squeeze()) == float(
        fit.point()["theta"][1]
    )
    # As many, but not of this name.
    assert list(data.posterior["columns"].values) == [0, 1, 2]
    assert data.constant_data["school"].dims == ("data",)
    given = converted(fit, coords={"schools": ["x", "y", "z"]})
    assert list(given.posterior["schools"].values) == ["x", "y", "z"]


def test_categories_of_any_kind_become_labels():
    cut = pd.cut(pd.Series([0.5, 1.5, 2.5, 1.2, 0.1]), [0, 1, 2, 3])

    def program(age, y=None):
        with pyro.plate("age", 3):
            theta = pyro.sample("theta", dist.Normal(torch.zeros((), dtype=DTYPE), 1.0))
        with pyro.plate("data", len(age)):
            pyro.sample("y", dist.Normal(theta[age], 1.0), obs=y)

    data = converted(probsl.fit(program, {"age": cut, "y": Y}, probsl.MAP()))
    assert list(data.posterior["age"].values) == ["(0, 1]", "(1, 2]", "(2, 3]"]


def test_a_prior_that_cannot_be_drawn_is_left_out():
    def program(y=None):
        flat = dist.ImproperUniform(constraints.real, (), ())
        location = pyro.sample("location", flat)
        child = pyro.sample("child", dist.Normal(location, 1.0))
        free = pyro.sample("free", dist.Normal(torch.zeros((), dtype=DTYPE), 1.0))
        with pyro.plate("data", 5):
            pyro.sample("y", dist.Normal(child + free, 1.0), obs=y)

    data = converted(probsl.fit(program, {"y": Y}, probsl.MAP()))
    assert set(data.prior) == {"free"}
    assert data.prior.attrs["left_out"].startswith("location, child: ")
    assert data.attrs["prior_left_out"] == data.prior.attrs["left_out"]
    assert set(data.log_prior) == {"location", "child", "free"}


def test_a_program_that_fails_far_from_the_data_has_no_prior():
    def program(y=None):
        mu = pyro.sample("mu", dist.Normal(torch.zeros((), dtype=DTYPE), 100.0))
        if mu > 50:
            raise RuntimeError("mu is out of range")
        with pyro.plate("data", 5):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    # First-order steps, for a branch on a latent has no Hessian. Each of the 100 draws
    # fails with probability 0.31.
    method = probsl.MAP(optimizer=torch.optim.Adam, max_steps=3)
    data = converted(probsl.fit(program, {"y": Y}, method))
    assert "prior" not in names_of(data)
    assert "mu is out of range" in data.attrs["prior_left_out"]


def test_discrete_latents_are_summed_out_under_the_name_of_the_observed_site():
    def program(y=None):
        share = pyro.sample("share", dist.Beta(torch.full((), 2.0, dtype=DTYPE), 2.0))
        which_w = pyro.sample("which_w", dist.Bernoulli(0.25), infer=PARALLEL)
        w = pyro.sample("w", dist.Normal(0.0, 1.0 + which_w))
        with pyro.plate("data", 5):
            which = pyro.sample("which", dist.Bernoulli(share), infer=PARALLEL)
            pyro.deterministic("mean", w + which)
            pyro.deterministic("double", 2 * w + y)
            pyro.sample("y", dist.Normal(w + which, 0.5), obs=y)

    fit = probsl.fit(program, {"y": Y}, probsl.MAP())
    data, y = converted(fit), Y.numpy()
    share, w = (float(data.posterior[n].squeeze()) for n in ("share", "w"))
    rows = np.logaddexp(
        math.log(1 - share) + log_normal(y, w, 0.5),
        math.log(share) + log_normal(y, w + 1, 0.5),
    )
    prior = np.logaddexp(
        math.log(0.75) + log_normal(w, 0, 1), math.log(0.25) + log_normal(w, 0, 2)
    )
    np.testing.assert_allclose(data.log_likelihood["y"].values[0, 0], rows)
    np.testing.assert_allclose(data.log_prior["w"].values[0, 0], prior)
    # A deterministic that varies with one has no value in a posterior without it.
    assert set(data.posterior) == {"share", "w", "double"}


def test_observed_sites_that_share_discrete_latents_have_one_value_per_row():
    fit = probsl.fit(
        **_arguments("hidden Markov model"), method=probsl.MAP(max_steps=5)
    )
    data = converted(fit, draws=5)
    (name,) = data.log_likelihood
    assert name.startswith("y_0+")
    assert data.log_likelihood[name].dims == ("chain", "draw", "sequences")


def test_a_factor_of_the_rows_is_part_of_the_likelihood():
    def program(y=None):
        mu = pyro.sample("mu", dist.Normal(torch.zeros((), dtype=DTYPE), 1.0))
        pyro.factor("outside", -(mu**2))
        with pyro.plate("data", 5):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
            pyro.factor("inside", -((mu - y) ** 2))

    fit = probsl.fit(program, {"y": Y}, probsl.MAP())
    data = converted(fit)
    assert set(data.log_likelihood) == {"y", "inside"}
    mu = float(fit.point()["mu"])
    np.testing.assert_allclose(
        data.log_likelihood["inside"].values[0, 0], -((mu - Y.numpy()) ** 2)
    )


def test_scales_of_the_program_stay_and_those_of_batches_do_not_enter():
    case = problem("linear")
    whole = probsl.fit(case.program, case.data, probsl.MAP())
    batches = probsl.fit(
        case.program, case.data, probsl.MAP(max_steps=5, start=whole), batch_size=4
    )
    data = converted(batches)
    mean = torch.as_tensor(data.posterior["w"].values[0, 0])
    expected = log_normal(
        case.data["y"].numpy(),
        (case.data["x"] @ mean).numpy(),
        float(data.posterior["sigma"].squeeze()),
    )
    np.testing.assert_allclose(data.log_likelihood["y"].values[0, 0], expected)


def test_attributes_say_how_the_fit_was_made():
    fit = probsl.fit(normal_mean, {"y": Y}, probsl.MAP(space="unconstrained"), seed=4)
    data = converted(fit, seed=9)
    assert data.attrs["method"] == repr(fit.method)
    assert data.attrs["status"] == "CONVERGED"
    assert data.attrs["message"] == fit.message
    assert data.attrs["seed"] == 4
    assert data.attrs["draws_seed"] == 9
    assert data.attrs["space"] == "unconstrained"
    assert data.attrs["torch_version"] == torch.__version__
    assert data.posterior.attrs == data.attrs
    svi = converted(probsl.fit(normal_mean, {"y": Y}, probsl.SVI()))
    assert "space" not in svi.attrs
    assert "AutoMultivariateNormal" in svi.attrs["note"]


def test_the_same_seed_gives_the_same_groups_and_leaves_no_trace():
    fit = probsl.fit(normal_mean, {"y": Y}, probsl.SVI())
    state = torch.get_rng_state()
    first, second, other = (fit_arrays(fit, draws=20, seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    for group, variables in first.arrays.items():
        for name, (_, array) in variables.items():
            np.testing.assert_array_equal(array, second.arrays[group][name][1])
    for group in ("posterior", "prior", "posterior_predictive"):
        name = "y" if group == "posterior_predictive" else "mu"
        assert not np.array_equal(
            first.arrays[group][name][1], other.arrays[group][name][1]
        )


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"draws": 0}, ValueError, "draws must be at least 1, got 0"),
        ({"draws": 2.5}, TypeError, "draws must be a whole number"),
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        ({"seed": "a"}, TypeError, "seed must be a whole number, got 'a'"),
        ({"dims": {"v": ["a"]}}, ValueError, "dims names 'v'"),
        ({"coords": {"v": ["a"]}}, ValueError, "coords names 'v'"),
    ],
)
def test_wrong_options_get_a_sentence(options, error, sentence):
    fit = probsl.fit(normal_mean, {"y": Y}, probsl.MLE())
    with pytest.raises(error, match=sentence):
        probsl.to_arviz(fit, **options)


def test_what_is_no_fit_gets_a_sentence():
    with pytest.raises(TypeError, match="to_arviz takes what probsl"):
        probsl.to_arviz({"mu": 1.0})


@pytest.fixture(scope="module")
def regression():
    """Three fits of one program, and what they are to ArviZ."""
    arguments = _arguments("linear")
    methods = {
        "MLE": probsl.MLE(),
        "MAP": probsl.MAP(),
        "SVI": probsl.SVI(AutoMultivariateNormal),
    }
    fits = {n: probsl.fit(**arguments, method=m) for n, m in methods.items()}
    return {n: probsl.to_arviz(f, draws=2000) for n, f in fits.items()}


@pytest.mark.filterwarnings(
    # ArviZ 1.x puts one draw and many side by side.
    "ignore:In a future version of xarray the default value for join:FutureWarning"
)
def test_arviz_summarizes_and_draws_it(regression):
    import arviz
    import matplotlib.pyplot as plt

    table = arviz.summary(regression["SVI"], kind="stats", round_to="none")
    assert list(table.index) == ["w[0]", "w[1]", "sigma"]
    if MODERN:
        arviz.plot_forest(regression)
        arviz.plot_ppc_dist(regression["MLE"], num_samples=20)
        arviz.plot_ppc_dist(regression["SVI"], num_samples=20)
    else:
        models, names = list(regression.values()), list(regression)
        arviz.plot_forest(models, model_names=names, combined=True)
        arviz.plot_ppc(regression["MLE"], num_pp_samples=20)
        arviz.plot_ppc(regression["SVI"], num_pp_samples=20)
    plt.close("all")


def test_leave_one_out_of_a_normal_mean_is_the_closed_form():
    import arviz

    def program(y=None):
        mu = pyro.sample("mu", dist.Normal(torch.zeros((), dtype=DTYPE), 5.0))
        with pyro.plate("data", 25):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    y = torch.from_numpy(np.random.default_rng(3).standard_normal(25))
    fit = probsl.fit(program, {"y": y}, probsl.SVI(AutoMultivariateNormal))
    found = arviz.loo(converted(fit, draws=4000), pointwise=True)
    precision = 24 + 1 / 5.0**2
    mean = (y.sum() - y).numpy() / precision
    exact = log_normal(y.numpy(), mean, math.sqrt(1 + 1 / precision))
    # The largest of 25 errors: each is about 0.3 / sqrt(4000), 0.005, or less.
    rows = found.elpd_i if MODERN else found.loo_i
    np.testing.assert_allclose(rows.values, exact, atol=0.03)
    assert float(found.pareto_k.max()) < 0.5


@pytest.mark.filterwarnings(
    # ArviZ 0.23 sorts its table in a way that pandas 4 will not have.
    "ignore:The inplace keyword in DataFrame.sort_values is deprecated"
)
def test_arviz_compares_fits():
    import arviz

    def program(x, y=None):
        w = pyro.sample("w", dist.Normal(torch.zeros((), dtype=DTYPE), 2.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(w * x, 1.0), obs=y)

    random = np.random.default_rng(5)
    x = random.standard_normal(40)
    y = 1.5 * x + random.standard_normal(40)
    inputs = {"with x": x, "with noise": random.standard_normal(40)}
    models = {
        name: converted(
            probsl.fit(program, {"x": each, "y": y}, probsl.SVI()), draws=1000
        )
        for name, each in inputs.items()
    }
    assert list(arviz.compare(models).index) == ["with x", "with noise"]


@pytest.mark.parametrize("name", ["own parameters", "poisson", "mixture"])
def test_a_file_holds_a_fit(name, tmp_path):
    import arviz

    path = tmp_path / "fit.nc"
    fit = probsl.fit(**_arguments(name), method=probsl.MAP(max_steps=20))
    data = converted(fit, draws=10)
    data.to_netcdf(str(path), engine="h5netcdf")
    read = arviz.from_netcdf(str(path), engine="h5netcdf")
    assert names_of(read) == names_of(data)
    for group in names_of(data):
        xr.testing.assert_identical(data[group], read[group].load())
    assert read.attrs == data.attrs


def _arguments(name):
    case = problem(name)
    return {"program": case.program, "data": case.data}


@pytest.mark.parametrize("shape", [(1,), (1, 1), (4, 1)], ids=str)
def test_an_axis_of_length_one_is_that_of_the_observed_values(shape):
    """ArviZ matches log likelihoods and observed values axis by axis (loo_pit)."""

    def program(y=None):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 4, dim=-2) if shape[0] == 4 else nullcontext():
            pyro.sample("y", dist.Normal(mu, 1.0).expand(shape), obs=y)

    fit = probsl.fit(program, {"y": torch.ones(shape)}, probsl.SVI())
    data = converted(fit, draws=5, dims={"y": ["a", "b"][: shape.count(1)]})
    density, values = data.log_likelihood["y"], data.observed_data["y"]
    assert density.dims[2:] == values.dims
    assert density.shape == (1, 5, *shape)
    expected = log_normal(1.0, data.posterior["mu"].values.reshape(1, 5, 1), 1.0)
    found = density.values.reshape(1, 5, -1)
    np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), 1e-5)


@pytest.mark.skipif(MODERN, reason="ArviZ 1.x has other functions, and no warnings")
@pytest.mark.parametrize(
    ("method", "options"),
    [
        (probsl.SVI(), {"kind": "stats"}),
        (probsl.MAP(), {"stat_funcs": {"estimate": np.mean}, "extend": False}),
    ],
    ids=["SVI", "MAP"],
)
def test_arviz_summarizes_without_a_warning(method, options, caplog):
    case = problem("linear")
    data = probsl.to_arviz(probsl.fit(case.program, case.data, method))
    import arviz

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = arviz.summary(data, **options)
    assert len(table)
    assert not caplog.records


def test_a_distribution_that_asserts_what_it_needs_to_draw_is_left_out():
    (case,) = (c for c in IDIOMS if c.name == "hidden Gaussian states")
    fit = probsl.fit(case.program, case.data, probsl.MAP(max_steps=2))
    data = probsl.to_arviz(fit, draws=3)
    assert "no sampler" in data.attrs["posterior_predictive_left_out"]
