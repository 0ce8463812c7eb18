"""Names of axes against programs written so that the right ones are known."""

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch

import probsl

ROWS = 60
RNG = np.random.default_rng(0)
COLUMNS = ["gpa", "tuce", "psi"]
FRAME = pd.DataFrame(RNG.normal(size=(ROWS, 3)), columns=COLUMNS)
COMPANY = pd.Series(RNG.choice(["IBM", "GE", "DEC"], ROWS), dtype="category")
SPECIES = pd.Series(RNG.choice(["a", "b", "c", "d"], ROWS), dtype="category")
Y = FRAME.to_numpy() @ [1.0, -1.0, 0.5] + RNG.normal(size=ROWS)
MAP = probsl.MAP(max_steps=3)


def names(program, data, **options):
    """Return variable -> labels, for the variables with labels."""
    fit = probsl.fit(program, data, MAP, **options)
    shapes = {name: value.shape for name, value in fit.point().items()}
    labels = {n: fit.problem.names.labels(n, shape) for n, shape in shapes.items()}
    plain = {n: len(shape) for n, shape in shapes.items()}
    return {
        name: [label.removeprefix(name) for label in each]
        for name, each in labels.items()
        if plain[name] and each[0] != f"{name}[{','.join(['0'] * plain[name])}]"
    }


def normal(*shape):
    return dist.Normal(0.0, 1.0).expand(shape).to_event(len(shape))


def outcome(mean, y):
    with pyro.plate("data", len(mean)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def linear(x, y=None):
    outcome(x @ pyro.sample("w", normal(3)) + pyro.sample("b", normal(1)), y)


def standardized(x, y=None):
    x = (x - x.mean(0)) / x.std(0)
    outcome(x @ pyro.sample("w", normal(3)), y)


def other_priors(x, y=None):
    scales = torch.tensor([1.0, 10.0, 2.0])
    outcome(x @ pyro.sample("w", dist.Normal(0.0, scales).to_event(1)), y)


def horseshoe(x, y=None):
    local = pyro.sample("local", dist.HalfCauchy(1.0).expand([3]).to_event(1))
    z = pyro.sample("z", normal(3))
    outcome(x @ pyro.deterministic("w", z * local), y)


def in_a_plate(x, y=None):
    with pyro.plate("features", 3):
        local = pyro.sample("local", dist.HalfCauchy(1.0))
        w = pyro.sample("w", dist.Normal(0.0, local))
    outcome(x @ w, y)


def one_column(x, y=None):
    outcome(x @ pyro.sample("w", normal(1)), y)


def network(x, species=None):
    """Its hidden layer is as wide as there are columns."""
    hidden = torch.tanh(
        x @ pyro.sample("w1", normal(3, 3)) + pyro.sample("b1", normal(3))
    )
    logits = hidden @ pyro.sample("w2", normal(3, 4)) + pyro.sample("b2", normal(4))
    with pyro.plate("data", len(x)):
        pyro.sample("species", dist.Categorical(logits=logits), obs=species)


def groups(x, company, y=None):
    """The frame has as many columns as there are companies."""
    w, tau = pyro.sample("w", normal(3)), pyro.sample("tau", dist.HalfNormal(1.0))
    with pyro.plate("firms", 3):
        a = pyro.sample("a", dist.Normal(0.0, tau))
    outcome(x @ w + a[company], y)


def group_slopes(x, company, y=None):
    w = pyro.sample("w", normal(3, 3))
    outcome((x * w[company]).sum(-1), y)


def group_covariates(company, size, y=None):
    """A number of each company is an argument too."""
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("firms", 3):
        a = pyro.sample("a", dist.Normal(slope * size, 1.0))
    outcome(a[company], y)


def covariance(x):
    scale = pyro.sample("scale", dist.HalfNormal(1.0).expand([3]).to_event(1))
    mean = pyro.sample("mean", normal(3))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, scale).to_event(1), obs=x)


def own_parameters(x, y=None):
    w = pyro.param("w", torch.zeros(3))
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    outcome(x @ w + b, y)


def mixture(x, y=None):
    """A discrete latent is summed out."""
    w = pyro.sample("w", normal(3))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(x @ w + 5.0 * z, 1.0), obs=y)


def not_of_columns(x, y=None):
    """Three numbers that do not belong to the three columns."""
    outcome(
        torch.stack([x.sum(1) ** i for i in range(3)], -1)
        @ pyro.sample("w", normal(3)),
        y,
    )


def in_order(x, company, y=None):
    """Steps from level to level: another order is another program."""
    steps = pyro.sample("steps", normal(3))
    outcome(steps.cumsum(0)[company] + x.sum(1), y)


W = [f"[{c}]" for c in COLUMNS]
FIRMS = ["[DEC]", "[GE]", "[IBM]"]
XY, XCY = {"x": FRAME, "y": Y}, {"x": FRAME, "company": COMPANY, "y": Y}
KNOWN = {
    linear: (XY, {"w": W}),
    standardized: (XY, {"w": W}),
    other_priors: (XY, {"w": W}),
    horseshoe: (XY, {"local": W, "z": W, "w": W}),
    in_a_plate: (XY, {"local": W, "w": W}),
    one_column: ({"x": FRAME[["psi"]], "y": Y}, {"w": ["[psi]"]}),
    network: (
        {"x": FRAME, "species": SPECIES},
        {
            "w1": [f"[{c},{i}]" for c in COLUMNS for i in range(3)],
            "w2": [f"[{i},{s}]" for i in range(3) for s in "abcd"],
            "b2": [f"[{s}]" for s in "abcd"],
        },
    ),
    groups: (XCY, {"w": W, "a": FIRMS}),
    group_slopes: (
        XCY,
        {"w": [f"{f[:-1]},{c}]" for f in FIRMS for c in COLUMNS]},
    ),
    group_covariates: (
        {"company": COMPANY, "size": np.array([1.0, 2.0, 5.0]), "y": Y},
        {"a": FIRMS},
    ),
    covariance: ({"x": FRAME}, {"scale": W, "mean": W}),
    own_parameters: (XY, {"w": W}),
    mixture: (XY, {"w": W}),
    not_of_columns: (XY, {}),
    in_order: (XCY, {}),
}


@pytest.mark.parametrize("program", KNOWN, ids=lambda p: p.__name__)
def test_names_are_found_where_a_permutation_shows_them(program):
    data, expected = KNOWN[program]
    assert names(program, data) == expected


def test_without_labels_in_the_data_there_are_no_names():
    fit = probsl.fit(linear, {"x": FRAME.to_numpy(), "y": Y}, MAP)
    assert not fit.problem.names.coords
    assert "labeled" not in fit.note


def test_rows_are_named_by_a_category_that_differs_in_each():
    school = pd.Series(["Choate", "Deerfield", "Andover"], dtype="category")

    def schools(school, y=None):
        with pyro.plate("schools", len(school)):
            theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(theta, 1.0), obs=y)

    fit = probsl.fit(schools, {"school": school, "y": [1.0, 2.0, 3.0]}, MAP)
    labels = ["theta[Choate]", "theta[Deerfield]", "theta[Andover]"]
    assert fit.summary().index.tolist() == labels


def test_the_user_has_the_last_word():
    dims, coords = {"w": ["feature"]}, {"feature": ["A", "B", "C"]}
    fit = probsl.fit(linear, XY, MAP, dims=dims, coords=coords)
    assert fit.summary().index.tolist() == ["w[A]", "w[B]", "w[C]", "b[0]"]
    only_dims = probsl.fit(linear, XY, MAP, dims=dims)
    assert only_dims.summary().index.tolist() == [*(f"w{c}" for c in W), "b[0]"]
    assert probsl.to_arviz(only_dims).posterior["w"].dims[-1] == "feature"


@pytest.mark.parametrize("again", [None, {"feature": ["D", "E", "F"]}])
def test_a_problem_that_is_fitted_again_keeps_its_names(again):
    dims, coords = {"w": ["feature"]}, {"feature": ["A", "B", "C"]}
    fit = probsl.fit(linear, XY, MAP, dims=dims, coords=coords)
    dims = None if again is None else dims
    second = probsl.fit(fit.problem, None, MAP, dims=dims, coords=again)
    expected = ["w[A]", "w[B]", "w[C]"] if again is None else ["w[D]", "w[E]", "w[F]"]
    assert second.summary().index.tolist()[:3] == expected


def test_a_status_names_elements_by_their_labels():
    twice = FRAME.assign(psi=FRAME["gpa"])
    fit = probsl.fit(linear, {"x": twice, "y": Y}, probsl.MLE())
    assert fit.status is probsl.Status.UNIDENTIFIED
    assert set(fit.status_sites) == {"w[gpa]", "w[psi]"}


def test_arviz_has_the_labels():
    data = probsl.to_arviz(probsl.fit(groups, XCY, probsl.MAP()))
    assert data.posterior["w"].coords["x_column"].to_numpy().tolist() == COLUMNS
    assert data.posterior["a"].coords["firms"].to_numpy().tolist() == [
        "DEC",
        "GE",
        "IBM",
    ]
    assert data.constant_data["x"].dims == ("data", "x_column")


def test_comparisons_line_up_by_name():
    turned = {"x": FRAME[["psi", "gpa", "tuce"]], "y": Y}
    fits = {
        "first": probsl.fit(linear, XY, probsl.MAP()),
        "turned": probsl.fit(linear, turned, probsl.MAP()),
        "fewer": probsl.fit(fewer, {"x": FRAME[["gpa", "psi"]], "y": Y}, probsl.MAP()),
    }
    comparison = probsl.compare(fits)
    estimates = comparison.estimates.xs("estimate", axis=1, level=1)
    assert estimates["turned"].to_numpy() == pytest.approx(estimates["first"], abs=1e-6)
    assert estimates.loc["w[tuce]"].isna().tolist() == [False, False, True]
    assert "lined up" not in str(comparison)
    plain = probsl.fit(linear, {"x": FRAME.to_numpy(), "y": Y}, probsl.MAP())
    said = " ".join(str(probsl.compare(fits | {"plain": plain})).split())
    assert "plain has 3 elements of site 'w' that first does not have" in said


def fewer(x, y=None):
    outcome(x @ pyro.sample("w", normal(2)) + pyro.sample("b", normal(1)), y)


def test_many_elements_are_lined_up_by_name_too():
    many = pd.DataFrame(
        RNG.normal(size=(20, 1100)), columns=[f"c{i}" for i in range(1100)]
    )

    def wide(x, y=None):
        outcome(x @ pyro.sample("w", normal(1100)), y)

    first = probsl.fit(wide, {"x": many, "y": Y[:20]}, probsl.MAP())
    turned = probsl.fit(
        wide, {"x": many[many.columns[::-1]], "y": Y[:20]}, probsl.MAP()
    )
    moved = probsl.compare({"first": first, "turned": turned}).shrinkage
    assert float(moved["turned", "moved"].iloc[0]) == pytest.approx(0.0, abs=1e-6)


def test_a_plot_finds_a_column_by_its_name_or_number():
    fit = probsl.fit(linear, XY, MAP)
    for x in ("tuce", "x[tuce]", "x[1]"):
        assert probsl.plot_predictive(fit, XY, x=x).get_xlabel().startswith("tuce\n")
    for element in ("w[tuce]", "w[1]"):
        ax = probsl.plot_forest(fit, sites=[element])
        assert [t.get_text() for t in ax.get_yticklabels()] == ["w[tuce]"]
    labels = [t.get_text() for t in probsl.plot_forest(fit).get_yticklabels()]
    assert labels == ["w[gpa]", "w[tuce]", "w[psi]", "b[0]"]


REFUSED = {
    "of no variable": ({"v": ["f"]}, None, "dims names 'v'"),
    "too few": ({"w": []}, None, "has length 0"),
    "a text": ({"w": "f"}, None, "must be a list of names"),
    "no mapping": (["w"], None, "dims must map"),
    "labels of no axis": (None, {"f": ["a"]}, "coords names 'f'"),
    "too few labels": ({"w": ["f"]}, {"f": ["a"]}, "has length 1"),
    "one label twice": ({"w": ["f"]}, {"f": ["a", "b", "a"]}, "'a' twice"),
    "two lengths": ({"w": ["f"], "b": ["f"]}, None, "dimension 'f' has"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_names_that_do_not_suit_are_refused(case):
    dims, coords, sentence = REFUSED[case]
    with pytest.raises((TypeError, ValueError), match=sentence):
        probsl.fit(linear, XY, MAP, dims=dims, coords=coords)
