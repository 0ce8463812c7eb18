"""Plates of every kind: their sizes, their rows, and the subsamples they draw."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from numpy.testing import assert_allclose
from pyro.infer.autoguide import AutoNormal
from pyro_oracle import log_joint
from torch.utils.data import DataLoader

import probsl
from probsl.program.problem import Problem

pytestmark = pytest.mark.usefixtures("float64_default")

SIZE = 30
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(SIZE, generator=GENERATOR, dtype=torch.float64)
Y = 1.5 * X + torch.randn(SIZE, generator=GENERATOR, dtype=torch.float64)
XY = {"x": X, "y": Y}
POINT = {"w": torch.tensor(0.7, dtype=torch.float64)}
ROUNDING = 1e-12
# The posterior of a slope with a standard normal prior and errors of scale 1.
SLOPE = float((X @ Y) / (X @ X + 1))


def density(problem, batch=None):
    with problem.isolated(), torch.no_grad():
        return float(problem.log_density(POINT, {}, batch))


def pyros(program, data):
    return log_joint(program, data, POINT)[0]


def rows(values=POINT, data=XY):
    return dist.Normal(values["w"] * data["x"], 1.0).log_prob(data["y"])


# --- Plates without a size


def unsized(y=None, count=SIZE):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data"):
        pyro.sample("y", dist.Normal(w.expand(count), 1.0), obs=y)


@pytest.mark.parametrize("method", [probsl.MLE(), probsl.MAP(), probsl.SVI()])
def test_a_plate_without_a_size_has_that_of_its_axis(method):
    fit = probsl.fit(unsized, {"y": Y}, method)
    rows_and_prior = SIZE + (not isinstance(method, probsl.MLE))
    assert fit.status is probsl.Status.CONVERGED
    assert_allclose(fit.point()["w"], Y.sum() / rows_and_prior, atol=1e-6)
    assert fit.problem.size == SIZE
    doubled = probsl.fit(unsized, {"y": Y}, method, weights=[2.0] * SIZE)
    rows_and_prior += SIZE
    assert_allclose(doubled.point()["w"], 2 * Y.sum() / rows_and_prior, atol=1e-6)


def test_one_distribution_stands_for_all_of_a_plate_without_a_size():
    def program(y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data"):
            pyro.sample("y", dist.Normal(w, 1.0), obs=y)

    problem = Problem.build(program, {"y": Y})
    assert_allclose(density(problem), pyros(program, {"y": Y}), rtol=ROUNDING)
    fit = probsl.fit(program, {"y": Y}, probsl.MAP())
    assert_allclose(
        probsl.log_score(fit, {"y": Y[:4]}),
        dist.Normal(fit.point()["w"], 1.0).log_prob(Y[:4]),
        rtol=ROUNDING,
    )


def broadcast(y=None, count=SIZE):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data"):
        shift = pyro.sample("shift", dist.Normal(0.0, 2.0))
        pyro.sample("pull", dist.Normal(w, 1.0), obs=torch.tensor(0.3))
        mean = (w + shift).expand(count if y is None else len(y))
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


@pytest.mark.parametrize("batch_size", [1, 10])
def test_what_has_one_entry_for_a_plate_is_in_no_row(batch_size):
    values = {**POINT, "shift": torch.tensor(0.4)}
    weights = torch.arange(SIZE) / 10
    problem = Problem.build(broadcast, {"y": Y})
    apart = (
        dist.Normal(0.0, 1.0).log_prob(values["w"])
        + dist.Normal(0.0, 2.0).log_prob(values["shift"])
        + dist.Normal(values["w"], 1.0).log_prob(torch.tensor(0.3))
    )
    each = dist.Normal(values["w"] + values["shift"], 1.0).log_prob(Y)
    with problem.isolated():
        assert_allclose(problem.log_density(values, {}), apart + each.sum())
        assert_allclose(problem.log_likelihood_rows(values, {}), each)
        weighted = problem.reweighted(weights)
        assert_allclose(weighted.log_density(values, {}), apart + weights @ each)
        parts = torch.arange(SIZE).split(batch_size)
        drawn = [problem.log_density(values, {}, problem.rows_at(i)) for i in parts]
        assert_allclose(torch.stack(drawn).mean(), apart + each.sum())
    assert problem.sites_with_role(probsl.program.sites.Role.PARAMETER) == (
        "w",
        "shift",
    )


def test_exported_densities_of_a_plate_without_a_size_are_named():
    fit = probsl.fit(broadcast, {"y": Y}, probsl.MAP())
    data = probsl.to_arviz(fit)
    assert data.log_likelihood["y"].dims == ("chain", "draw", "data")
    assert data.log_likelihood["pull"].shape == (1, 1)


# --- Plates that draw a subsample by themselves


def external(x, y=None, size=SIZE):
    """Batches are made outside: the plate says how many rows they stand for."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", size, subsample_size=len(x)):
        pyro.sample("y", dist.Normal(w * x, 1.0), obs=y)


def by_itself(x, y=None):
    """Batches are made by the plate."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), subsample_size=10) as index:
        y = None if y is None else y[index]
        pyro.sample("y", dist.Normal(w * x[index], 1.0), obs=y)


def of_closure():
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", SIZE, subsample_size=10) as index:
        pyro.sample(
            "y",
            dist.Normal(w * X.index_select(0, index), 1.0),
            obs=Y.index_select(0, index),
        )


def subsampled_by_statement(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), subsample_size=10):
        here = pyro.subsample(x, event_dim=0)
        y = None if y is None else pyro.subsample(y, event_dim=0)
        pyro.sample("y", dist.Normal(w * here, 1.0), obs=y)


SUBSAMPLED = {
    "external": (external, XY),
    "by itself": (by_itself, XY),
    "of a closure": (of_closure, {}),
    "by statement": (subsampled_by_statement, XY),
}
over_subsampled = pytest.mark.parametrize(
    ("program", "data"), SUBSAMPLED.values(), ids=SUBSAMPLED.keys()
)


@over_subsampled
def test_batches_of_a_subsample_are_all_rows_in_expectation(program, data):
    problem = Problem.build(program, data)
    prior = dist.Normal(0.0, 1.0).log_prob(POINT["w"])
    assert problem.size == SIZE
    assert_allclose(density(problem), prior + rows().sum(), rtol=ROUNDING)
    drawn = []
    for index in torch.randperm(SIZE).split(10):
        drawn.append(density(problem, problem.rows_at(index)))
        expected = prior + 3 * rows()[index].sum()
        assert_allclose(drawn[-1], expected, rtol=ROUNDING)
    assert_allclose(sum(drawn) / 3, prior + rows().sum(), rtol=ROUNDING)
    weights = torch.arange(SIZE) / 7
    weighted = problem.reweighted(weights)
    assert_allclose(density(weighted), prior + weights @ rows(), rtol=ROUNDING)


@over_subsampled
def test_a_fit_of_a_subsample_takes_batches_and_scores_all_rows(program, data):
    size = 10 if program is external else None
    quick = program in (external, by_itself)
    method = probsl.MAP(tolerance=0.1) if quick else probsl.MAP(max_steps=10)
    fit = probsl.fit(program, data, method, batch_size=size)
    assert fit.steps >= 10  # not the search over all rows
    asked = "batches of 10 rows, as plate 'data' draws"
    assert (asked in fit.note) == (program is not external)
    if quick:
        assert_allclose(fit.point()["w"], SLOPE, atol=0.01)
    here = {"w": fit.point()["w"]}
    assert_allclose(probsl.log_score(fit, data), rows(here), rtol=ROUNDING)
    assert_allclose(fit.log_likelihood(), rows(here).sum(), rtol=ROUNDING)
    whole = probsl.fit(program, data, probsl.MAP(), batch_size=SIZE)
    assert_allclose(whole.point()["w"], SLOPE, atol=1e-6)
    assert whole.steps < 10
    drawn = fit.predict({k: v for k, v in data.items() if k != "y"}, draws=2)
    assert drawn["y"].shape == (2, SIZE)


def test_a_subsample_can_be_asked_for_fewer_rows_than_it_would_draw():
    fit = probsl.fit(by_itself, XY, probsl.MAP(), batch_size=SIZE)
    fewer = {name: value[:4] for name, value in XY.items()}
    assert_allclose(probsl.log_score(fit, fewer), rows(fit.point(), fewer))
    assert fit.predict({"x": X[:4]}, draws=3)["y"].shape == (3, 4)


def test_batches_made_outside_stand_for_as_many_rows_as_the_plate_has():
    few = {name: value[:12] for name, value in XY.items()}
    problem = Problem.build(external, few)
    assert_allclose(density(problem), pyros(external, few), rtol=ROUNDING)
    prior = dist.Normal(0.0, 1.0).log_prob(POINT["w"])
    one = density(problem, problem.rows_at(torch.arange(4)))
    assert_allclose(one, prior + SIZE / 4 * rows()[:4].sum(), rtol=ROUNDING)
    with problem.isolated():
        assert_allclose(problem.log_likelihood_rows(POINT, {}), rows()[:12])
    fit = probsl.fit(external, few, probsl.MAP())
    x, y = few.values()
    assert_allclose(fit.point()["w"], (x @ y) / (x @ x + 12 / SIZE), atol=1e-6)


def test_leaving_out_a_row_leaves_out_all_that_it_stands_for():
    few = {name: value[:12] for name, value in XY.items()}
    stands = probsl.fit(external, few, probsl.SVI())
    problem = Problem.build(external, few)
    assert problem.row_scale == SIZE / 12
    found = probsl.compare({"fit": stands}).left_out["fit"]
    x, y = few.values()
    # The posterior of the slope without a row, and its predictive density of that row.
    precision = 1 + SIZE / 12 * ((x @ x) - x**2)
    mean = SIZE / 12 * ((x @ y) - x * y) / precision
    exact = dist.Normal(mean * x, (1 + x**2 / precision).sqrt()).log_prob(y)
    # A thousand weighted draws. In 100 seeds the median error was at most 0.014 nats,
    # and in 60 the largest, of rows far from the others, 0.14. The seed is fixed.
    even = found.k_rows < 0.5
    assert even.sum() >= 8
    errors = np.abs(found.elpd_rows - exact.numpy())[even]
    assert np.median(errors) < 0.02
    assert errors.max() < 0.2


def test_a_loader_brings_batches_to_a_plate_that_names_their_number():
    loader = DataLoader([{"x": x, "y": y} for x, y in zip(X, Y, strict=True)], 10)
    fit = probsl.fit(external, loader, probsl.MAP(tolerance=0.1))
    assert_allclose(fit.point()["w"], SLOPE, atol=0.01)
    assert fit.problem.size == SIZE
    assert_allclose(
        fit.log_likelihood(), rows({"w": fit.point()["w"]}).sum(), rtol=1e-9
    )


@pytest.mark.parametrize("program", [external, by_itself])
def test_variational_fits_of_a_subsample_take_its_rows(program):
    fit = probsl.fit(program, XY, probsl.SVI(AutoNormal), batch_size=SIZE)
    table = fit.summary().loc["w"]
    assert_allclose(table["estimate"], SLOPE, atol=1e-4)
    assert_allclose(table["sd"], float(X @ X + 1) ** -0.5, rtol=1e-3)


def test_a_guide_of_the_same_plate_takes_the_same_rows():
    def guide(x, y=None):
        loc = pyro.param("loc", torch.tensor(0.0))
        scale = pyro.param("scale", torch.tensor(1.0), dist.constraints.positive)
        pyro.sample("w", dist.Normal(loc, scale))
        with pyro.plate("data", len(x), subsample_size=10) as index:
            assert len(index) in (10, len(x))

    fit = probsl.fit(by_itself, XY, probsl.SVI(guide, max_steps=5))
    assert fit.losses.isfinite().all()


def test_of_two_plates_that_draw_subsamples_the_outer_one_has_the_rows():
    y = torch.stack([Y, X, Y + X], 1)

    def program(y):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        rows = pyro.plate("rows", SIZE, subsample_size=10, dim=-2)
        columns = pyro.plate("columns", 3, subsample_size=2, dim=-1)
        with rows as row, columns as column:
            pyro.sample("y", dist.Normal(w, 1.0), obs=y[row][:, column])

    problem = Problem.build(program, {"y": y})
    each = dist.Normal(POINT["w"], 1.0).log_prob(y).sum(1)
    with problem.isolated():
        assert_allclose(problem.log_likelihood_rows(POINT, {}), each)
    index = torch.arange(10)
    prior = dist.Normal(0.0, 1.0).log_prob(POINT["w"])
    drawn = density(problem, problem.rows_at(index))
    assert_allclose(drawn, prior + 3 * each[index].sum())


def test_local_latents_of_a_subsample_are_fitted_with_all_rows():
    def program(x, y=None):
        with pyro.plate("data", len(x), subsample_size=10) as index:
            z = pyro.sample("z", dist.Normal(x[index], 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=None if y is None else y[index])

    with pytest.raises(ValueError, match=r"all rows at once \(batch_size=30\)"):
        probsl.fit(program, XY, probsl.MAP())
    fit = probsl.fit(program, XY, probsl.MAP(), batch_size=SIZE)
    assert_allclose(fit.point()["z"], (X + Y) / 2, atol=1e-6)


def test_nothing_of_pyro_is_changed_by_a_subsample():
    from pyro.poutine.subsample_messenger import SubsampleMessenger

    before = SubsampleMessenger._subsample
    probsl.fit(by_itself, XY, probsl.MAP(), batch_size=SIZE)
    assert SubsampleMessenger._subsample is before
    with pyro.plate("data", SIZE, subsample_size=10) as index:
        assert len(index) == 10


# --- Plates of one length


def as_many_groups(sd, group, y=None):
    with pyro.plate("groups", len(sd)):
        theta = pyro.sample("theta", dist.Normal(0.0, sd))
    with pyro.plate("data", len(group)):
        pyro.sample("y", dist.Normal(theta[group], 1.0), obs=y)


def test_a_plate_of_latents_may_be_as_long_as_that_of_the_data():
    sd, group = torch.full((SIZE,), 2.0), torch.arange(SIZE)
    data = {"sd": sd, "group": group, "y": Y}
    fit = probsl.fit(as_many_groups, data, probsl.MAP())
    assert fit.problem.rows == ("group", "y")
    assert_allclose(fit.point()["theta"], Y * 4 / 5, atol=1e-6)
    few = {"group": torch.tensor([3, 4]), "y": Y[3:5]}
    expected = dist.Normal(fit.point()["theta"][3:5], 1.0).log_prob(Y[3:5])
    assert_allclose(probsl.log_score(fit, few), expected)
    assert fit.predict({"group": few["group"]}, draws=3)["y"].shape == (3, 2)
    method = probsl.MAP(max_steps=10)
    batches = probsl.fit(as_many_groups, data, method, batch_size=10)
    assert batches.losses.isfinite().all()
    svi = probsl.fit(as_many_groups, data, probsl.SVI(AutoNormal))
    assert_allclose(svi.point()["theta"], Y * 4 / 5, atol=1e-3)


def test_what_is_computed_of_as_many_groups_is_a_value_of_the_point():
    def program(group, y=None):
        with pyro.plate("groups", SIZE):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            inside = pyro.deterministic("inside", 3 * z)
        outside = pyro.deterministic("outside", 2 * z)
        with pyro.plate("data", len(group)):
            pyro.deterministic("row", inside[group])
            pyro.sample("y", dist.Normal(outside[group], 1.0), obs=y)

    fit = probsl.fit(program, {"group": torch.arange(SIZE), "y": Y}, probsl.MAP())
    assert list(fit.point()) == ["z", "inside", "outside"]


def test_arguments_that_may_be_rows_are_asked_for_where_batches_need_them():
    def program(spread, y=None):
        with pyro.plate("groups", SIZE):
            theta = pyro.sample("theta", dist.Normal(0.0, spread.mean()))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(theta.sum(), 1.0), obs=y)

    data = {"spread": torch.ones(SIZE), "y": Y}
    fit = probsl.fit(program, data, probsl.MAP(), weights=[2.0] * SIZE)
    assert_allclose(fit.point()["theta"], 2 * Y.sum() / (1 + 2 * SIZE**2), atol=1e-6)
    with pytest.raises(ValueError, match=r"plate 'groups'.*rows=\('spread', 'y'\)"):
        probsl.fit(program, data, probsl.MAP(), batch_size=10)
    method = probsl.MAP(max_steps=2)
    batches = probsl.fit(program, data, method, batch_size=10, rows=("y",))
    assert batches.losses.isfinite().all()


# --- Observations outside of plates, and in several


@pytest.mark.parametrize("event", [True, False])
def test_an_observation_outside_a_plate_is_one_of_all_values(event):
    def program(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        normal = dist.Normal(w * x, 1.0)
        pyro.sample("y", normal.to_event(1) if event else normal, obs=y)

    fit = probsl.fit(program, XY, probsl.MAP())
    assert_allclose(fit.point()["w"], SLOPE, atol=1e-6)
    assert_allclose(fit.log_likelihood(), rows({"w": fit.point()["w"]}).sum())
    assert fit.predict({"x": X}, draws=2)["y"].shape == (2, SIZE)
    said = "site 'y' is observed outside a plate.*with pyro.plate"
    with pytest.raises(ValueError, match=f"^weights= needs rows.*{said}"):
        probsl.fit(program, XY, probsl.MAP(), weights=[1.0] * SIZE)
    with pytest.raises(ValueError, match=f"^batch_size= needs rows.*{said}"):
        probsl.fit(program, XY, probsl.MAP(), batch_size=5)
    with pytest.raises(ValueError, match=f"^there are no rows.*{said}"):
        probsl.log_score(fit, XY)


def test_one_distribution_outside_a_plate_is_that_of_all_values():
    def program(y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(w, 1.0), obs=y)

    fit = probsl.fit(program, {"y": Y}, probsl.MAP())
    assert_allclose(fit.point()["w"], Y.sum() / (SIZE + 1), atol=1e-6)


def test_different_plates_have_no_rows_in_common():
    def program(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("first", len(x)):
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)
        with pyro.plate("second", len(x)):
            pyro.sample("y", dist.Normal(2 * w, 1.0), obs=y)

    fit = probsl.fit(program, XY, probsl.MAP())
    expected = (X.sum() + 2 * Y.sum()) / (1 + 5 * SIZE)
    assert_allclose(fit.point()["w"], expected, atol=1e-6)
    said = "'x' and 'y' are in different plates, 'first' and 'second'.*one plate"
    with pytest.raises(ValueError, match=said):
        probsl.fit(program, XY, probsl.MAP(), weights=[1.0] * SIZE)


def test_the_rows_of_sites_in_several_plates_are_of_the_one_they_share():
    def program(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        data = pyro.plate("data", len(x), dim=-1)
        with pyro.plate("twice", 2, dim=-2), data:
            pyro.sample("x", dist.Normal(w, 1.0), obs=torch.stack([x, -x]))
        with data:
            pyro.sample("y", dist.Normal(w * x, 1.0), obs=y)

    problem = Problem.build(program, XY)
    normal = dist.Normal(POINT["w"], 1.0)
    expected = rows() + normal.log_prob(X) + normal.log_prob(-X)
    with problem.isolated():
        assert_allclose(problem.log_likelihood_rows(POINT, {}), expected)


# --- Factors


def test_a_likelihood_by_factor_alone_has_rows():
    time = torch.tensor([13.467, 13.760, 12.011, 7.798, 7.928])
    failed = torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0])

    def program(time, failed):
        scale = pyro.sample("scale", dist.LogNormal(2.0, 2.0))
        shape = pyro.sample("shape", dist.LogNormal(0.0, 1.0))
        with pyro.plate("units", len(time)):
            hazard = shape.log() - scale.log() + (shape - 1) * (time / scale).log()
            pyro.factor("likelihood", failed * hazard - (time / scale) ** shape)

    data = {"time": time, "failed": failed}
    fit = probsl.fit(program, data, probsl.MAP())
    scale, shape = fit.point()["scale"], fit.point()["shape"]
    weibull = torch.distributions.Weibull(scale, shape)
    expected = torch.where(
        failed == 1, weibull.log_prob(time), -((time / scale) ** shape)
    )
    assert_allclose(probsl.log_score(fit, data), expected, rtol=1e-10)
    weighted = probsl.fit(program, data, probsl.MAP(), weights=[2.0] * 5)
    twice = {name: value.repeat(2) for name, value in data.items()}
    doubled = probsl.fit(program, twice, probsl.MAP())
    for name in ("scale", "shape"):
        assert_allclose(weighted.point()[name], doubled.point()[name], atol=1e-5)
    posterior = probsl.fit(program, data, probsl.SVI())
    comparison = probsl.compare({"MAP": fit, "SVI": posterior})
    assert comparison.left_out["SVI"].elpd_rows.shape == (5,)
    assert_allclose(comparison.scores.loc["MAP", "log score"], expected.sum())


def with_factors(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    pyro.factor("outside", -w.abs())
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(w, 1.0), obs=x)
        pyro.sample("y", dist.Normal(w * x, 1.0), obs=y)
        pyro.factor("inside", -0.1 * (w - x) ** 2)


def test_observations_and_factors_of_a_plate_are_one_density_per_row():
    problem = Problem.build(with_factors, XY)
    w = POINT["w"]
    each = dist.Normal(w, 1.0).log_prob(X) + rows() - 0.1 * (w - X) ** 2
    apart = dist.Normal(0.0, 1.0).log_prob(w) - w.abs()
    with problem.isolated():
        assert_allclose(problem.log_likelihood_rows(POINT, {}), each)
    assert_allclose(density(problem), apart + each.sum())
    assert_allclose(density(problem), pyros(with_factors, XY))
    assert_allclose(density(problem.reweighted(X**2)), apart + X**2 @ each)
    index = torch.arange(6)
    drawn = density(problem, problem.rows_at(index))
    assert_allclose(drawn, apart + 5 * each[index].sum())


def test_data_of_a_factor_tell_fits_apart():
    def program(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.factor("likelihood", -((w - x) ** 2))

    one, other = (probsl.fit(program, {"x": x}, probsl.MAP()) for x in (X, Y))
    assert "different data" in probsl.compare({"one": one, "other": other}).caution
    assert "different data" not in probsl.compare({"one": one, "same": one}).caution


def test_a_factor_outside_a_plate_has_no_rows():
    def program(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        pyro.factor("likelihood", -((w - x) ** 2).sum())

    fit = probsl.fit(program, {"x": X}, probsl.MAP())
    assert_allclose(fit.point()["w"], 2 * X.sum() / (1 + 2 * SIZE), atol=1e-6)
    with pytest.raises(ValueError, match="'likelihood' is a factor outside a plate"):
        probsl.fit(program, {"x": X}, probsl.MAP(), weights=[1.0] * SIZE)
