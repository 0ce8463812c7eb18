"""Standard errors of every point fit: brute force, duplicates, parts, refusals."""

from dataclasses import replace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from methods import PAIRS, Pair, fitted
from numpy.testing import assert_allclose
from programs import problem

import probsl
from probsl import Status
from probsl.curvature import density_parts
from probsl.curvature.inverse import NoCovarianceError
from probsl.curvature.point_covariance import KINDS
from probsl.curvature.row_scores import row_scores

POINTS = [p for p in PAIRS if p.is_point]
every_point = pytest.mark.parametrize("pair", POINTS, ids=str)
OPTIMA = (Status.CONVERGED, Status.UNIDENTIFIED, Status.UNBOUNDED, Status.BOUNDARY)


def flat_point(fit):
    layout = fit.posterior.objective.layout
    with fit.problem.isolated():
        return layout.flatten({**fit.posterior.values, **fit.posterior.own})


def differences(function, x, step):
    """Return the derivatives [m, d] of a vector by central differences."""
    columns = []
    for unit in torch.eye(len(x), dtype=x.dtype):
        ahead, behind = function(x + step * unit), function(x - step * unit)
        columns.append((ahead - behind) / (2 * step))
    return torch.stack(columns, 1)


@every_point
def test_errors_are_those_of_differences(pair):
    """The inverse of differences of gradients, through differences of the sites."""
    fit = fitted(pair)
    if fit.status is not Status.CONVERGED or "lasso" in pair.case.name:
        pytest.skip("some of its elements have none")
    target, layout = fit.posterior.target, fit.posterior.objective.layout
    x = flat_point(fit)

    def gradient(point):
        point = point.detach().requires_grad_()
        return torch.autograd.grad(target.at(point, layout), point)[0]

    def sites(point):
        values = layout.constrain(point)
        own = {p.name: p.constrain(values[p.name]) for p in fit.problem.own_parameters}
        return torch.cat([v.reshape(-1) for v in {**values, **own}.values()])

    with fit.problem.isolated():
        information = -differences(gradient, x, 1e-4)
        jacobian = differences(sites, x, 1e-4)
    if float(torch.linalg.cond(information)) > 1e8:
        pytest.skip("no step of differences suits all its scales")
    expected = jacobian @ torch.linalg.inv(information) @ jacobian.T
    found = probsl.covariance(fit).to_numpy()
    scale = np.sqrt(np.diag(expected))
    # Differences of fourth derivatives are of 1e-8 of the matrix, times its condition.
    assert_allclose(
        found / np.outer(scale + 1e-9, scale + 1e-9),
        expected.numpy() / np.outer(scale + 1e-9, scale + 1e-9),
        atol=1e-4,
    )


@every_point
def test_every_kind_is_a_covariance_or_a_reason(pair):
    fit, reasons = fitted(pair), []
    for kind in KINDS:
        rows = fit.problem.size
        options = {"clusters": np.arange(rows) // 2} if kind == "cluster" else {}
        try:
            table = probsl.covariance(fit, kind, **options)
        except ValueError as error:
            reasons.append(str(error))
            if kind == "observed":
                # What is left if diverging coordinates are held need be no optimum.
                assert fit.status is Status.UNBOUNDED or fit.status not in OPTIMA
            continue
        assert list(table.index) == list(table.columns)
        assert list(table.index) == list(fit.summary().index[: len(table)])
        has = table.notna().to_numpy()
        known = np.diag(has)
        assert (has == np.outer(known, known)).all()
        matrix = table.to_numpy()[np.ix_(known, known)]
        assert_allclose(matrix, matrix.T, rtol=1e-7, atol=1e-12)
        if len(matrix):
            assert np.linalg.eigvalsh(matrix).min() > -1e-9 * np.abs(matrix).max()
        errors = probsl.standard_errors(fit, kind, **options)
        assert_allclose(errors.to_numpy() ** 2, np.diag(table), rtol=1e-9)
    assert all(len(reason) > 40 for reason in reasons)


@every_point
def test_elements_that_a_status_is_about_have_no_errors(pair):
    fit = fitted(pair)
    table, printed = fit.summary(), str(fit)
    assert "standard errors" in printed.replace("\n", " ")
    if fit.status not in OPTIMA:
        assert table["sd"].isna().all()
        assert fit.status.name in fit.posterior.errors().sentence
        with pytest.raises(NoCovarianceError, match=fit.status.name):
            fit.summary(kind="observed")
        return
    for site in fit.status_sites:
        about = [i for i in table.index if i == site or i.split("[")[0] == site]
        assert about
        assert table.loc[about, "sd"].isna().all()
        assert table.loc[about, "p"].isna().all()
    if fit.status is Status.CONVERGED and fit.posterior.objective.l1 is None:
        assert table["sd"].notna().all()


def with_rows(data, problem, index):
    """Return data with some rows, given by their indices."""
    return {n: v[index] if n in problem.rows else v for n, v in data.items()}


@pytest.mark.parametrize("kind", ["observed", "expected", "opg"])
@pytest.mark.parametrize("name", ["linear", "logistic", "poisson", "robust"])
def test_weights_are_frequencies(name, kind):
    case = problem(name)
    counts = torch.arange(len(case.data[case.observed])) % 3 + 1
    weighted = probsl.fit(
        case.program, case.data, probsl.MLE(), weights=counts.double()
    )
    index = torch.arange(len(counts)).repeat_interleave(counts)
    repeated = probsl.fit(
        case.program, with_rows(case.data, weighted.problem, index), probsl.MLE()
    )
    one, other = (probsl.standard_errors(f, kind) for f in (weighted, repeated))
    # The Student's information is simulated; its error is in the note.
    tolerance = 0.03 if (name, kind) == ("robust", "expected") else 1e-6
    assert_allclose(one, other, rtol=tolerance)
    criteria = [probsl.information_criteria(f) for f in (weighted, repeated)]
    assert_allclose(criteria[0], criteria[1], rtol=1e-9)


def test_sandwich_weights_are_not_frequencies():
    """A common factor of precision weights changes no robust error."""
    case = problem("logistic")
    weights = torch.linspace(0.5, 2.0, 12).double()
    one, other = (
        probsl.fit(case.program, case.data, probsl.MLE(), weights=factor * weights)
        for factor in (1.0, 3.0)
    )
    assert_allclose(*(probsl.standard_errors(f, "sandwich") for f in (one, other)))
    assert_allclose(probsl.standard_errors(one), 3**0.5 * probsl.standard_errors(other))


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "cluster"])
def test_parts_of_the_rows_add_up(monkeypatch, kind):
    def wide(x, y=None):
        w = pyro.sample("w", dist.Normal(x.new_zeros(4), 1.0).to_event(1))
        sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w, sigma), obs=y)

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2500, 4, generator=generator, dtype=torch.float64)
    y = x.sum(1) + torch.randn(2500, generator=generator, dtype=torch.float64)
    expected, found = [], []
    for results, elements in ((expected, 1 << 30), (found, 1)):
        monkeypatch.setattr(density_parts, "_PART_ELEMENTS", elements)
        fit = probsl.fit(wide, {"x": x, "y": y}, probsl.MAP())
        assert len(list(density_parts.row_batches(fit.problem))) == (
            3 if elements == 1 else 1
        )
        results.append(probsl.covariance(fit, kind).to_numpy())
    assert_allclose(found, expected, rtol=1e-8, atol=1e-14)


def test_scores_of_rows_add_up_to_the_gradient():
    for name in ("linear", "logistic", "mixture", "simplex"):
        fit = fitted(Pair("MLE", problem(name)))
        if not fit.problem.has_rows:
            continue
        layout, x = fit.posterior.objective.layout, flat_point(fit) + 0.1
        scores = torch.cat([s for s, _ in row_scores(fit.problem, layout, x)])
        with fit.problem.isolated():
            point = x.requires_grad_()
            values = layout.constrain(point)
            rows = fit.problem.log_likelihood_rows(values, values)
            one = torch.autograd.grad(rows.sum(), point)[0]
        assert scores.shape == (fit.problem.size, layout.size)
        torch.testing.assert_close(scores.sum(0), one)


def test_single_precision_has_the_errors_of_double():
    case = problem("linear")
    single, double = (
        probsl.fit(case.program, case.data, probsl.MLE(), dtype=dtype)
        for dtype in (torch.float32, torch.float64)
    )
    assert single.problem.dtype == torch.float32
    assert_allclose(
        probsl.standard_errors(single), probsl.standard_errors(double), rtol=1e-3
    )


def test_the_delta_method_agrees_with_another_parameterization():
    case = problem("linear")

    def by_log(x, y=None):
        w = pyro.sample("w", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        log_sigma = pyro.sample("log_sigma", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w, log_sigma.exp()), obs=y)

    fit = fitted(Pair("MLE", case))
    other = probsl.fit(by_log, case.data, probsl.MLE())
    found = probsl.delta(fit, lambda sites: sites["sigma"].log())
    expected = other.summary().loc["log_sigma"]
    assert list(found.columns) == ["estimate", "sd", "lower", "upper"]
    line = found.loc["value"]
    assert_allclose(line, expected[found.columns].astype(float), rtol=1e-6)


def test_delta_names_what_it_returns_and_takes_distributions():
    case = problem("linear")

    def shares(sites):
        return {"ratio": sites["w"][0] / sites["w"][1], "all": sites["w"]}

    point = probsl.delta(fitted(Pair("MLE", case)), shares)
    assert list(point.index) == ["ratio", "all[0]", "all[1]"]
    spread = probsl.delta(fitted(Pair("SVI AutoNormal", case)), shares)
    assert list(spread.index) == list(point.index)
    table = fitted(Pair("SVI AutoNormal", case)).summary()
    assert_allclose(spread.loc["all[0]"], table.loc["w[0]"], rtol=1e-6)


def test_a_kinked_likelihood_has_expected_errors_only():
    def median(y=None):
        m = pyro.sample("m", dist.Normal(0.0, 10.0))
        with pyro.plate("data", 101):
            pyro.sample("y", dist.Laplace(m, 2.0), obs=y)

    y = torch.from_numpy(np.random.default_rng(0).laplace(1.0, 2.0, 101))
    fit = probsl.fit(median, {"y": y}, probsl.MLE())
    assert fit.summary()["sd"].isna().all()
    with pytest.raises(NoCovarianceError, match="site 'y' has a kink"):
        probsl.covariance(fit)
    # The information of a Laplace location is n / scale^2, whatever the data: each
    # score is 1 / scale or its negative.
    expected = 2.0 / 101**0.5
    assert_allclose(probsl.standard_errors(fit, "expected")["m"], expected)


def test_dropout_has_no_errors():
    net = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(2, 1))

    def program(x, y=None):
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(net(x)[:, 0], 1.0), obs=y)

    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    fit = probsl.fit(program, {"x": x, "y": x[:, 0]}, probsl.MLE(max_steps=30))
    assert fit.status is Status.MAX_STEPS
    found = replace(fit.posterior, status=Status.CONVERGED)
    with pytest.raises(NoCovarianceError, match="random numbers, as in dropout"):
        found.covariance()


def test_what_cannot_be_is_refused_in_a_sentence():
    fit = fitted(Pair("MLE", problem("linear")))
    spread = fitted(Pair("SVI AutoNormal", problem("linear")))
    with pytest.raises(ValueError, match="kind must be one of"):
        probsl.covariance(fit, "obserbed")
    with pytest.raises(ValueError, match="HC0 is kind='sandwich'"):
        probsl.covariance(fit, "HC0")
    with pytest.raises(ValueError, match="fit is by SVI, which has no standard"):
        probsl.covariance(spread)
    with pytest.raises(ValueError, match="of the standard errors of points"):
        spread.summary(kind="observed")
    with pytest.raises(TypeError, match=r"fit must be what probsl\.fit returns"):
        probsl.standard_errors("fit")
    with pytest.raises(ValueError, match="needs clusters="):
        probsl.covariance(fit, "cluster")
    with pytest.raises(ValueError, match="one entry per row"):
        probsl.covariance(fit, "cluster", clusters=[1, 2])
    with pytest.raises(ValueError, match="one cluster only"):
        probsl.covariance(fit, "cluster", clusters=["a"] * 12)
    labels = ["a", "b", "a", None] * 3
    with pytest.raises(ValueError, match="no value in row 3"):
        probsl.covariance(fit, "cluster", clusters=labels)
    with pytest.raises(ValueError, match="of kind='cluster'"):
        probsl.covariance(fit, clusters=["a", "b"] * 6)
    with pytest.raises(ValueError, match="exist for linear regressions"):
        probsl.covariance(fitted(Pair("MLE", problem("logistic"))), "HC3")
    with pytest.raises(TypeError, match="must return a tensor"):
        probsl.delta(fit, lambda sites: sites["sigma"].tolist())
    with pytest.raises(KeyError, match="asks for site 'v', and the fit has w, sigma"):
        probsl.delta(fit, lambda sites: sites["v"])
    with pytest.raises(RuntimeError, match="numpy") as raised:
        probsl.delta(fit, lambda sites: sites["w"].numpy())
    assert "must compute with torch" in raised.value.__notes__[0]
    with pytest.raises(ValueError, match="with priors"):
        probsl.information_criteria(fitted(Pair("MAP", problem("linear"))))
    with pytest.raises(TypeError, match="'fit' must be"):
        probsl.information_criteria(3)


def test_a_loaded_fit_has_the_errors_that_it_was_saved_with(tmp_path):
    case = problem("linear")
    fit = fitted(Pair("MLE", case))
    fit.save(tmp_path / "linear.fit")
    without = probsl.load(tmp_path / "linear.fit", case.program)
    assert without.summary().equals(fit.summary())
    assert probsl.covariance(without).equals(probsl.covariance(fit))
    with pytest.raises(NoCovarianceError, match="loaded without its data"):
        probsl.covariance(without, "sandwich")
    loaded = probsl.load(tmp_path / "linear.fit", case.program, case.data)
    assert loaded.summary().equals(fit.summary())
    for kind in ("sandwich", "expected"):
        assert probsl.covariance(loaded, kind).equals(probsl.covariance(fit, kind))
