"""What every fit hands back: points, draws, a status, a table."""

import re

import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from methods import ADAM, PAIRS, Pair, fitted
from programs import problem
from pyro.infer.autoguide import AutoNormal

import probsl
from probsl import Status
from probsl.program.coordinates import element_labels
from probsl.program.problem import Problem

every_pair = pytest.mark.parametrize("pair", PAIRS, ids=str)
FULL_FITS = [p for p in PAIRS if not p.method.endswith("Adam")]


def shapes(fit):
    """Return the shape of every parameter, with its own parameters."""
    latents = {s.name: s.shape for s in fit.problem.latents}
    return latents | {p.name: p.shape for p in fit.problem.own_parameters}


@pytest.mark.parametrize("pair", [p for p in FULL_FITS if p.is_point], ids=str)
def test_a_point_knows_the_objective_that_is_least_there(pair):
    fit = fitted(pair)
    objective = fit.method.objective(fit.problem)
    assert objective.target.prior_weights == fit.posterior.target.prior_weights
    x = objective.layout.flatten({**fit.posterior.values, **fit.posterior.own})
    with fit.problem.isolated(), torch.no_grad():
        value = float(objective(x)) * objective.size
    assert value == pytest.approx(float(fit.losses[-1]), rel=1e-6, abs=1e-6)


@every_pair
def test_the_point_lies_in_the_support(pair):
    fit = fitted(pair)
    point = fit.point()
    for name, shape in shapes(fit).items():
        assert point[name].shape == shape
        assert point[name].isfinite().all()
    for site in fit.problem.latents:
        assert site.support.check(point[site.name]).all()


@every_pair
def test_draws_lie_in_the_support(pair):
    fit = fitted(pair)
    draws = fit.draw(5)
    assert draws.keys() == fit.point().keys()
    for name, shape in shapes(fit).items():
        assert draws[name].shape == (5, *shape)
        assert draws[name].dtype == torch.float64
    for site in fit.problem.latents:
        assert site.support.check(draws[site.name]).all()


@every_pair
def test_a_point_repeats_itself_and_a_distribution_does_not(pair):
    fit = fitted(pair)
    point, draws = fit.point(), fit.draw(5)
    for site in fit.problem.latents:
        values = draws[site.name]
        if pair.is_point:
            assert torch.equal(values, point[site.name].expand(5, *site.shape))
        else:
            assert not (values == values[0]).all()
    for parameter in fit.problem.own_parameters:
        expected = point[parameter.name].expand(5, *parameter.shape)
        assert torch.equal(draws[parameter.name], expected)


@every_pair
def test_the_status_is_told(pair):
    fit = fitted(pair)
    assert isinstance(fit.status, Status)
    assert fit.message.startswith(fit.status.name)
    assert fit.message.endswith(fit.status.value)
    for site in fit.status_sites:
        assert site in fit.message
        assert site.split("[")[0] in shapes(fit)
    if pair.method.endswith("Adam"):
        assert fit.status is Status.MAX_STEPS
    if fit.status in (Status.UNIDENTIFIED, Status.UNBOUNDED, Status.BOUNDARY):
        assert fit.status_sites


@pytest.mark.parametrize("pair", FULL_FITS, ids=str)
def test_max_steps_is_said_only_where_the_steps_ran_out(pair):
    assert fitted(pair).status is not Status.MAX_STEPS


@every_pair
def test_losses_steps_and_seconds_are_told(pair):
    fit = fitted(pair)
    assert fit.losses.isfinite().all()
    assert len(fit.losses) in (fit.steps, fit.steps + 1)
    # Losses of noisy steps scatter about where the search is at rest.
    noise = 4 * float(fit.losses.std()) if pair.method.endswith("Adam") else 0.0
    assert fit.losses[-1] <= fit.losses[0] + noise
    assert fit.seconds > 0
    assert fit.seed == 0
    assert fit.note or pair.is_point


@every_pair
def test_a_fit_prints_its_status_and_a_table_that_fits_a_terminal(pair):
    fit = fitted(pair)
    printed = str(fit)
    assert fit.status.name in printed.splitlines()[0]
    assert f"{fit.problem.size:,} row" in printed
    _, table = printed.split("\n\n")
    assert "nan" not in table
    assert max(map(len, printed.splitlines())) <= 88
    columns = table.splitlines()[0].split()
    summary = fit.summary()
    assert columns == [c for c in summary if summary[c].notna().any()]
    assert [line.split()[0] for line in table.splitlines()[1:]] == [
        label.split()[0] for label in summary.index
    ]


@every_pair
def test_a_fit_prints_itself(pair):
    fit = fitted(pair)
    printed = repr(fit)
    assert "\n" not in printed
    assert fit.status.name in printed
    assert type(fit.method).__name__ in printed
    page = fit._repr_html_()
    assert page.count("<table") == 1
    for label in fit.summary().index:
        assert f"<th>{label}</th>" in page


@every_pair
def test_the_summary_has_a_line_for_every_element(pair):
    fit = fitted(pair)
    table = fit.summary()
    tested = ["z", "p"] if pair.is_point else []
    assert list(table.columns) == ["estimate", "sd", "lower", "upper", *tested]
    own = {p.name for p in fit.problem.own_parameters}
    expected = [
        f"{label} (own)" if name in own else label
        for name, value in fit.point().items()
        for label in element_labels(name, value.shape)
    ]
    assert list(table.index) == expected
    flat = torch.cat([value.reshape(-1) for value in fit.point().values()])
    assert table["estimate"].tolist() == flat.tolist()
    latents = [s.name for s in fit.problem.latents]
    spread = ["sd", "lower", "upper"]
    for label, row in table.iterrows():
        name = label.split("[")[0]
        if pair.is_point:
            assert row[spread].isna().all() or row["lower"] <= row["upper"]
        elif name in {p.name for p in fit.problem.own_parameters}:
            assert row[spread].isna().all()
        elif name in latents and not _is_constant(fit, label):
            assert row["sd"] > 0
            assert row["lower"] < row["upper"]


def _is_constant(fit, label):
    """The corner and the upper triangle of a correlation's factor never vary."""
    return label in ("correlation[0,0]", "correlation[0,1]")


def test_intervals_widen_with_the_probability():
    fit = fitted(Pair("SVI AutoNormal", problem("linear")))
    narrow, wide = fit.summary(prob=0.5), fit.summary(prob=0.99)
    assert (wide["lower"] < narrow["lower"]).all()
    assert (narrow["lower"] < narrow["upper"]).all()
    assert (narrow["upper"] < wide["upper"]).all()
    # The normal quantiles, to the fineness of 4,096 evenly spread draws.
    w = fit.summary(prob=0.95).loc["w[0]"]
    assert w["upper"] - w["lower"] == pytest.approx(2 * 1.96 * w["sd"], rel=0.02)
    for prob in (0.0, 1.0, 95):
        with pytest.raises(ValueError, match="prob must lie between 0 and 1"):
            fit.summary(prob=prob)


def many_columns(x, y=None):
    sigma = pyro.sample("sigma", dist.Exponential(1.0))
    with pyro.plate("columns", x.shape[1]):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, sigma), obs=y)


@pytest.mark.parametrize(
    "method",
    [probsl.MAP(max_steps=2), probsl.SVI(AutoNormal, max_steps=2)],
    ids=["MAP", "SVI"],
)
def test_beyond_a_thousand_elements_a_summary_has_a_line_for_every_site(method):
    data = {"x": torch.randn(3, 1000), "y": torch.randn(3)}
    fit = probsl.fit(many_columns, data, method)
    table = fit.summary()
    assert list(table.index) == ["sigma []", "w [1000]"]
    elements = fit.summary(by="element")
    assert list(elements.index[:2]) == ["sigma", "w[0]"]
    assert len(elements) == 1001
    mean = elements.iloc[1:].mean()
    pd.testing.assert_series_equal(table.loc["w [1000]"], mean, check_names=False)
    with pytest.raises(ValueError, match="by must be"):
        fit.summary(by="row")


@pytest.mark.parametrize("name", ["linear", "own parameters"])
def test_a_summary_by_site_can_be_asked_for(name):
    fit = fitted(Pair("SVI AutoNormal", problem(name)))
    table = fit.summary(by="site")
    assert len(table) == len(fit.point())
    for line, value in zip(table.index, fit.point().values(), strict=True):
        assert line.removesuffix(" (own)").endswith(f" {list(value.shape)}")
        assert table.loc[line, "estimate"] == pytest.approx(float(value.mean()))


# Deterministics that have an entry per row belong to predictions.
@pytest.mark.parametrize("method", ["MAP", "SVI AutoNormal"])
def test_deterministics_follow_the_draws(method):
    fit = fitted(Pair(method, problem("noncentered groups")))
    for values in (fit.point(), fit.draw(4)):
        mu, tau, z = (values[name] for name in ("mu", "tau", "z"))
        expected = mu[..., None] + tau[..., None] * z
        torch.testing.assert_close(values["theta"], expected)
    assert "rate" not in fitted(Pair(method, problem("poisson"))).point()


def as_float32(data):
    return {
        n: v.float() if torch.is_tensor(v) and v.is_floating_point() else v
        for n, v in data.items()
    }


METHODS_OF_TYPES = {
    "MAP": probsl.MAP(),
    "MAP Adam": probsl.MAP(optimizer=ADAM, max_steps=5),
    "SVI": probsl.SVI(AutoNormal),
    "SVI Adam": probsl.SVI(AutoNormal, optimizer=ADAM, max_steps=5),
}
every_kind = pytest.mark.parametrize(
    "method", METHODS_OF_TYPES.values(), ids=list(METHODS_OF_TYPES)
)


def check_types(fit, data, dtype):
    assert fit.problem.dtype == dtype
    for values in (fit.point(), fit.draw(2), fit.predict(data, draws=2)):
        assert {v.dtype for v in values.values()} == {dtype}
    assert probsl.log_score(fit, data, draws=2).dtype == dtype


@every_kind
@pytest.mark.parametrize("name", ["linear", "noncentered groups", "LKJ covariance"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_floating_data_keep_their_precision(method, name, dtype):
    case = problem(name)
    data = as_float32(case.data) if dtype == torch.float32 else case.data
    fit = probsl.fit(case.program, data, method)
    check_types(fit, data, dtype)


@every_kind
@pytest.mark.parametrize("name", ["linear", "own parameters"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_overrides_the_types_of_data_and_parameters(method, name, dtype):
    case = problem(name)
    other = case.data if dtype == torch.float32 else as_float32(case.data)
    fit = probsl.fit(case.program, other, method, dtype=dtype)
    check_types(fit, other, dtype)


def test_without_dtype_own_parameters_decide_then_the_widest_of_the_data():
    linear, own = problem("linear"), problem("own parameters")
    mixed = {"x": linear.data["x"].float(), "y": linear.data["y"]}
    assert Problem.build(linear.program, mixed).dtype == torch.float64
    assert Problem.build(own.program, as_float32(own.data)).dtype == torch.float64

    def poisson(y=None):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Poisson(rate), obs=y)

    counts = {"y": torch.ones(4, dtype=torch.int64)}
    assert Problem.build(poisson, counts).dtype == torch.float32


def test_both_precisions_find_the_same_optimum():
    case = problem("logistic")
    single = probsl.fit(case.program, case.data, probsl.MAP(), dtype=torch.float32)
    double = fitted(Pair("MAP", case))
    # The decrement that float32 resolves leaves about this much of an estimate.
    torch.testing.assert_close(
        single.point()["w"].double(), double.point()["w"], rtol=2e-3, atol=2e-3
    )


def test_only_the_latents_and_own_parameters_are_laid_out():
    case = problem("own parameters")
    built = Problem.build(case.program, case.data)
    labels = built.coordinates().labels()
    assert re.sub(r"\[.*?\]", "", " ".join(labels)).split() == [
        "slope",
        "TREND.intercept",
        "TREND.scale",
        "NET.weight",
        "NET.bias",
        "shift",
    ]
