"""Where a fit begins: at `start=`, else at zero, else wherever the program can run."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.optimize
import scipy.stats
import torch
from pyro.infer.autoguide import AutoNormal

import probsl
from probsl import Status
from probsl.data.data_options import DataOptions
from probsl.engine.compile.capture import capture
from probsl.program.problem import Problem

X = np.linspace(1.0, 5.0, 60)
BUMP = 2.0 * np.exp(-0.5 * ((X - 3.0) / 0.5) ** 2)
BUMP = BUMP + 0.01 * np.random.default_rng(0).normal(size=60)


def bump(x, y=None):
    """A curve that is 0 / 0 where every latent is zero."""
    b = pyro.sample("b", dist.Normal(0.0, 100.0).expand([3]).to_event(1))
    s = pyro.sample("s", dist.HalfNormal(1.0))
    with pyro.plate("data", len(x)):
        curve = b[0] / b[2] * torch.exp(-0.5 * ((x - b[1]) / b[2]) ** 2)
        pyro.sample("y", dist.Normal(curve, s), obs=y)


def least_squares():
    def residuals(b):
        return b[0] / b[2] * np.exp(-0.5 * ((X - b[1]) / b[2]) ** 2) - BUMP

    return scipy.optimize.least_squares(
        residuals, [1.5, 2.5, 1.0], xtol=1e-15, ftol=1e-15
    ).x


@pytest.mark.parametrize("method", [probsl.MLE, probsl.MAP, probsl.SVI])
def test_the_first_run_is_at_the_start(method):
    start = {"b": torch.tensor([1.5, 2.5, 1.0]), "s": 0.1}
    fit = probsl.fit(bump, {"x": X, "y": BUMP}, method(start=start))
    np.testing.assert_allclose(fit.point()["b"], least_squares(), atol=2e-3)


def test_a_fit_goes_on_from_a_fit_that_cannot_begin_at_zero():
    start = {"b": torch.tensor([1.5, 2.5, 1.0]), "s": 0.1}
    first = probsl.fit(bump, {"x": X, "y": BUMP}, probsl.MLE(start=start))
    second = probsl.fit(bump, {"x": X, "y": BUMP}, probsl.MLE(start=first))
    assert second.status is Status.CONVERGED
    np.testing.assert_allclose(second.point()["b"], first.point()["b"], atol=1e-6)
    assert probsl.log_score(first, {"x": X, "y": BUMP}).isfinite().all()


def test_without_a_start_other_places_are_tried():
    fit = probsl.fit(bump, {"x": X, "y": BUMP}, probsl.MLE(starts=20))
    np.testing.assert_allclose(
        np.abs(fit.point()["b"].numpy()), least_squares(), atol=1e-4
    )


def test_what_was_tried_is_named_and_not_torch_quoted():
    def program(y=None):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 5):
            pyro.sample("y", dist.Normal((-1 - a**2).sqrt(), 1.0), obs=y)

    with pytest.raises(ValueError, match="the loc of a Normal is NaN") as caught:
        probsl.fit(program, {"y": np.ones(5)}, probsl.MAP())
    said = str(caught.value)
    assert "Expected parameter" not in said
    assert "100 points drawn uniformly from [-2, 2]" in said
    assert "draws from the prior" in said
    assert "give start=" in said


def test_a_start_at_which_the_program_fails_is_named():
    with pytest.raises(ValueError, match=r"at start=, the loc of a Normal is NaN"):
        probsl.fit(
            bump,
            {"x": X, "y": BUMP},
            probsl.MLE(start={"b": torch.zeros(3), "s": 1.0}),
        )


def test_a_start_of_a_parameter_is_where_the_first_run_is():
    def program(y=None):
        a = pyro.param("a", torch.tensor(-1.0, dtype=torch.float64))
        with pyro.plate("data", 5):
            pyro.sample("y", dist.Normal(a.sqrt(), 1.0), obs=y)

    fit = probsl.fit(program, {"y": np.full(5, 3.0)}, probsl.MLE(start={"a": 4.0}))
    assert fit.status is Status.CONVERGED
    assert float(fit.point()["a"]) == pytest.approx(9.0, abs=1e-5)


SHIFTED = 0.25 + np.random.default_rng(3).lognormal(-0.6, 0.4, 200)


def shifted_lognormal(y=None):
    shift = pyro.sample("shift", dist.Uniform(0.0, 1.0))
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    s = pyro.sample("s", dist.HalfNormal(1.0))
    moved = dist.transforms.AffineTransform(shift, 1.0)
    with pyro.plate("data", 200):
        fn = dist.TransformedDistribution(dist.LogNormal(m, s), [moved])
        pyro.sample("y", fn, obs=y)


def mode_of_shifted():
    def loss(x):
        shift, m, s = 1 / (1 + np.exp(-x[0])), x[1], np.exp(x[2])
        if shift >= SHIFTED.min():
            return np.inf
        value = scipy.stats.lognorm.logpdf(SHIFTED, s, shift, np.exp(m)).sum()
        prior = scipy.stats.norm.logpdf(m) + scipy.stats.halfnorm.logpdf(s)
        return -(value + prior)

    options = {"xatol": 1e-10, "fatol": 1e-12, "maxiter": 10_000}
    x = scipy.optimize.minimize(
        loss, [-2.0, -0.5, -1.0], method="Nelder-Mead", options=options
    ).x
    return {"shift": 1 / (1 + np.exp(-x[0])), "m": x[1], "s": np.exp(x[2])}


def test_a_shift_beyond_the_smallest_value_is_no_fault_of_the_data():
    # At the image of zero the shift is 0.5, and the smallest value 0.41.
    fit = probsl.fit(shifted_lognormal, {"y": SHIFTED}, probsl.MAP())
    assert fit.status is Status.CONVERGED
    for name, value in mode_of_shifted().items():
        assert float(fit.point()[name]) == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize("method", [probsl.MLE(), probsl.MAP(), probsl.SVI(AutoNormal)])
@pytest.mark.parametrize(
    ("likelihood", "values", "said"),
    [
        (dist.Beta, {7: 0.0, 31: 1.0}, "0.0 in row 7, 1.0 in row 3"),
        (dist.Gamma, {3: 0.0}, "0.0 in row 3"),
    ],
    ids=["beta", "gamma"],
)
def test_values_of_infinite_density_are_named_by_row(likelihood, values, said, method):
    y = np.random.default_rng(0).beta(2.0, 3.0, 50)
    for row, value in values.items():
        y[row] = value

    def program(y=None):
        a = pyro.sample("a", dist.HalfNormal(5.0))
        b = pyro.sample("b", dist.HalfNormal(5.0))
        with pyro.plate("data", 50):
            pyro.sample("y", likelihood(a, b), obs=y)

    with pytest.raises(ValueError, match=r"site 'y' .* zero or infinite") as caught:
        probsl.fit(program, {"y": y}, method)
    text = str(caught.value)
    assert said in text
    assert "rate" not in text
    assert "rescale" not in text


def test_a_value_that_no_latent_can_explain_is_named_by_row():
    y = np.array([3.0, 10.0, 2.0, 7.0])  # torch's Uniform excludes its upper end

    def program(y=None):
        a = pyro.sample("a", dist.HalfNormal(5.0))
        with pyro.plate("data", 4):
            pyro.factor("more", -a)
            pyro.sample("y", dist.Uniform(0.0, 10.0), obs=y)

    with pytest.raises(ValueError, match=r"10\.0 in row 1; .* instead of Uniform"):
        probsl.fit(program, {"y": y}, probsl.MAP())


def test_rows_that_only_overflow_are_not_blamed():
    x = np.array([1e5, 1.0, 2.0, 1e5])
    y = np.array([1.0, 2.0, 3.0, 1.0])

    def program(x, y=None):
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 4):
            pyro.sample("y", dist.Poisson((b * x).exp()), obs=y)

    fit = probsl.fit(program, {"x": x, "y": y}, probsl.MLE())
    assert fit.status is Status.CONVERGED
    rate = np.exp(float(fit.point()["b"]) * x)
    assert (x * (y - rate)).sum() == pytest.approx(0.0, abs=1.0)


# --- Densities outside of supports that move


PARETO = np.random.default_rng(0).uniform(0, 7.3, 30) + 0.1


def pareto(y=None):
    a = pyro.sample("a", dist.Gamma(2.0, 1.0))
    m = pyro.sample("m", dist.HalfNormal(5.0))
    with pyro.plate("data", len(PARETO) if y is None else len(y)):
        pyro.sample("y", dist.Pareto(m * 0.01, a), obs=y)


def shifted_exponential(y=None):
    a = pyro.sample("a", dist.Gamma(2.0, 1.0))
    m = pyro.sample("m", dist.HalfNormal(5.0))
    with pyro.plate("data", len(PARETO) if y is None else len(y)):
        moved = dist.transforms.AffineTransform(0.01 * m, 1.0)
        fn = dist.TransformedDistribution(dist.Exponential(a), [moved])
        pyro.sample("y", fn, obs=y)


@pytest.mark.parametrize(
    ("program", "density"),
    [
        (pareto, lambda y, m, a: scipy.stats.pareto.logpdf(y, a, scale=0.01 * m)),
        (
            shifted_exponential,
            lambda y, m, a: scipy.stats.expon.logpdf(y, 0.01 * m, 1 / a),
        ),
    ],
    ids=["pareto", "shifted-exponential"],
)
def test_the_density_outside_a_moving_support_is_zero(program, density):
    problem = Problem.build(program, {"y": PARETO})
    assert problem.moving == ("y",)
    assert problem.site("y").moved_by == ("m",)
    for m, a in [(5.0, 0.5), (11.0, 2.0), (40.0, 1.0)]:
        values = {n: torch.tensor(v).double() for n, v in (("m", m), ("a", a))}
        with problem.isolated():
            rows = problem.log_likelihood_rows(values, {})
        expected = density(PARETO, m, a)
        assert (np.isinf(expected) == rows.isinf().numpy()).all()
        np.testing.assert_allclose(rows, expected, rtol=1e-10)
    assert np.isinf(expected).any()


@pytest.mark.parametrize("program", [pareto, shifted_exponential])
def test_a_captured_graph_sees_the_edge(program):
    problem = Problem.build(program, {"y": PARETO})
    layout = problem.coordinates()

    def objective(x):
        values = layout.constrain(x)
        return (problem.log_density(values, values),)

    # Inside, where the graph is recorded; then outside, where all is lost.
    inside = [torch.tensor([0.1, m]).double() for m in (1.0, 2.0)]
    with problem.isolated():
        graph = capture(objective, [[x] for x in inside])
        for x in (*inside, torch.tensor([0.1, 3.0]).double()):
            torch.testing.assert_close(graph(x)[0], objective(x)[0])
    assert graph(x)[0] == -math.inf


def test_held_out_rows_outside_a_moving_support_have_no_density():
    start = {"m": 5.0, "a": 0.5}
    fit = probsl.fit(pareto, {"y": PARETO}, probsl.MAP(start=start, max_steps=3))
    scores = probsl.log_score(fit, {"y": np.array([0.001, 3.0])})
    assert scores[0] == -math.inf
    assert scores[1].isfinite()


def test_masked_and_weightless_values_may_lie_outside():
    y = np.concatenate([PARETO, [0.0, 0.0]])
    mask = torch.tensor(y > 0)

    def masked(y=None):
        a = pyro.sample("a", dist.Gamma(2.0, 1.0))
        m = pyro.sample("m", dist.HalfNormal(5.0))
        with pyro.plate("data", 32):
            pyro.sample("y", dist.Pareto(m * 0.01, a).mask(mask), obs=y)

    values = {n: torch.tensor(v).double() for n, v in (("m", 5.0), ("a", 0.5))}
    whole = Problem.build(pareto, {"y": PARETO})
    weights = torch.as_tensor(y > 0).double()
    problems = [
        whole,
        Problem.build(masked, {"y": y}),
        Problem.build(
            pareto, {"y": np.where(y > 0, y, 5e-3)}, DataOptions(weights=weights)
        ),
    ]
    found = [p.log_likelihood(values, {}) for p in problems]
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[0], found[2])


def test_values_outside_a_fixed_support_are_still_the_fault_of_the_data():
    def program(y=None):
        a = pyro.sample("a", dist.Gamma(2.0, 1.0))
        with pyro.plate("data", 3):
            pyro.sample("y", dist.Exponential(a), obs=y)

    with pytest.raises(ValueError, match=r"1 value outside .* Exponential.*change"):
        probsl.fit(program, {"y": np.array([1.0, -2.0, 3.0])}, probsl.MAP())
