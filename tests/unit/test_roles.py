"""The role of every site, and what each method does with it.

The table is the documentation; the tests below read it and compare it with what `fit`
does. Its words:

- dropped: the site is estimated, its prior is no part of the objective
- weighted: its log prior is multiplied by ``prior_weight``
- kept: its distribution is part of the objective whatever ``prior_weight``
- integrated: the likelihood is integrated over it
- free: a parameter without a prior
- summed: summed out, exactly
- likelihood: part of the objective of every method
- reported: no part of the objective

MLE, MAP and the free parameters of SVI are points; SVI gives every other latent a
distribution.
"""

import itertools
from functools import partial

import pyro
import pytest
import torch
from programs import PROBLEMS, problem
from pyro import poutine
from pyro.infer.autoguide import AutoDelta, AutoNormal
from torch.distributions import biject_to

import probsl
from probsl.program.problem import Problem
from probsl.program.sites import Role

TABLE = """
program              site            role            MLE()       integrate=()  MAP         SVI

centered groups      mu              parameter       dropped     dropped       weighted     weighted
                     tau             parameter       dropped     dropped       weighted     weighted
                     theta           random effect   integrated  dropped       kept        kept
                     y               observed        likelihood  likelihood    likelihood  likelihood

noncentered groups   mu              parameter       dropped     dropped       weighted     weighted
                     tau             parameter       dropped     dropped       weighted     weighted
                     z               parameter       dropped     dropped       weighted     weighted
                     theta           deterministic   reported    reported      reported    reported
                     y               observed        likelihood  likelihood    likelihood  likelihood

factor model         first           parameter       dropped     dropped       weighted     weighted
                     others          parameter       dropped     dropped       weighted     weighted
                     sigma           parameter       dropped     dropped       weighted     weighted
                     f               random effect   integrated  dropped       kept        kept
                     y               observed        likelihood  likelihood    likelihood  likelihood

horseshoe            tau             parameter       dropped     dropped       weighted     weighted
                     lam             parameter       dropped     dropped       weighted     weighted
                     w               random effect   integrated  dropped       kept        kept
                     y               observed        likelihood  likelihood    likelihood  likelihood

mixture              share           parameter       dropped     dropped       weighted     weighted
                     low             parameter       dropped     dropped       weighted     weighted
                     gap             parameter       dropped     dropped       weighted     weighted
                     which           enumerated      summed      summed        summed      summed
                     y               observed        likelihood  likelihood    likelihood  likelihood

mixed model          beta            parameter       dropped     dropped       weighted     weighted
                     tau             parameter       dropped     dropped       weighted     weighted
                     sigma           parameter       dropped     dropped       weighted     weighted
                     u               random effect   integrated  dropped       kept        kept
                     y               observed        likelihood  likelihood    likelihood  likelihood

hidden Markov model  stay            parameter       dropped     dropped       weighted     weighted
                     low             parameter       dropped     dropped       weighted     weighted
                     gap             parameter       dropped     dropped       weighted     weighted
                     state_0         enumerated      summed      summed        summed      summed
                     y_0             observed        likelihood  likelihood    likelihood  likelihood
                     state_1         enumerated      summed      summed        summed      summed
                     y_1             observed        likelihood  likelihood    likelihood  likelihood
                     state_2         enumerated      summed      summed        summed      summed
                     y_2             observed        likelihood  likelihood    likelihood  likelihood

LKJ covariance       mu              parameter       dropped     dropped       weighted     weighted
                     scale           parameter       dropped     dropped       weighted     weighted
                     correlation     parameter       dropped     dropped       weighted     weighted
                     factor          deterministic   reported    reported      reported    reported
                     y               observed        likelihood  likelihood    likelihood  likelihood

own parameters       slope           parameter       dropped     dropped       weighted     weighted
                     penalty         factor          likelihood  likelihood    likelihood  likelihood
                     double          deterministic   reported    reported      reported    reported
                     y               observed        likelihood  likelihood    likelihood  likelihood
                     TREND.intercept own parameter   free        free          free        free
                     TREND.scale     own parameter   free        free          free        free
                     NET.weight      own parameter   free        free          free        free
                     NET.bias        own parameter   free        free          free        free
                     shift           own parameter   free        free          free        free
"""  # noqa: E501

METHODS = {
    "integrate=()": lambda w, start: probsl.MLE(integrate=(), start=start),
    "MAP": lambda w, start: probsl.MAP(prior_weight=w, start=start),
    "SVI": lambda w, start: probsl.SVI(AutoDelta, prior_weight=w, start=start),
}
# What the objective multiplies a log density by, beside prior_weight itself.
FACTORS = {"dropped": 0.0, "kept": 1.0, "likelihood": 1.0}


def read(table):
    """Return program -> site -> column -> word."""
    header, *lines = [line for line in table.splitlines() if line]
    names = header.split()
    starts = [header.index(name) for name in names]
    result, program = {}, ""
    for line in lines:
        cells = [line[a:b].strip() for a, b in itertools.pairwise([*starts, len(line)])]
        program = cells[0] or program
        row = dict(zip(names[2:], cells[2:], strict=True))
        result.setdefault(program, {})[cells[1]] = row
    return result


ROLES = read(TABLE)
every_program = pytest.mark.parametrize("name", ROLES)
every_program_and_method = pytest.mark.parametrize(
    ("name", "method"), list(itertools.product(ROLES, METHODS))
)


def named(name, column, *words):
    return [site for site, row in ROLES[name].items() if row[column] in words]


def start_of(name):
    """Return a value of every latent, somewhere in its support."""
    case = problem(name)
    generator = torch.Generator().manual_seed(11)
    values = {}
    for site in Problem.build(case.program, case.data).latents:
        transform = biject_to(site.support)
        noise = torch.randn(
            transform.inverse_shape(site.shape), generator=generator, dtype=torch.double
        )
        values[site.name] = transform(0.3 * noise)
    return values


def own_parameters_by_hand(x, y):
    """The program with parameters of its own, at the values they start from."""
    slope = pyro.sample("slope", pyro.distributions.Normal(x.new_zeros(()), 1.0))
    pyro.factor("penalty", torch.tensor(-(0.3**2), dtype=x.dtype))
    with pyro.plate("data", len(x)):
        mean = slope * x + 0.3 * x**2
        pyro.sample("y", pyro.distributions.Normal(mean, 1.0), obs=y)


def log_density(name, values, multipliers):
    """Add up log densities as Pyro has them, discrete latents tried one by one."""
    case = problem(name)
    program = own_parameters_by_hand if "own" in case.has else case.program
    discrete = named(name, "role", "enumerated")
    rows = []
    for states in itertools.product((0, 1), repeat=len(discrete)):
        given = dict(zip(discrete, map(torch.tensor, states), strict=True))
        conditioned = poutine.condition(program, {**values, **given})
        trace = poutine.trace(conditioned).get_trace(**case.data)
        trace.compute_log_prob()
        rows.append(
            sum(
                trace.nodes[site]["log_prob"]
                for site in [*discrete, *named(name, "role", "observed")]
            )
        )
    total = torch.stack(torch.broadcast_tensors(*rows)).logsumexp(0).sum()
    for site in [*values, *named(name, "role", "factor")]:
        if multipliers[site]:
            total = total + multipliers[site] * trace.nodes[site]["log_prob_sum"]
    return float(total)


@every_program
def test_every_site_has_the_role_in_the_table(name):
    case = problem(name)
    built = Problem.build(case.program, case.data)
    found = {site.name: site.role.value for site in built.sites}
    found |= {p.name: Role.OWN_PARAMETER.value for p in built.own_parameters}
    assert found == {site: row["role"] for site, row in ROLES[name].items()}


@pytest.fixture
def float64_by_default():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.mark.usefixtures("float64_by_default")
@every_program_and_method
def test_the_objective_is_made_of_what_the_table_says(name, method):
    # A program with no prior to weigh differently would make this test idle.
    assert named(name, method, "dropped", "weighted")
    case, start, weight = problem(name), start_of(name), 0.3
    factors = FACTORS | {"weighted": weight}
    fit = probsl.fit(
        case.program,
        case.data,
        METHODS[method](weight, start),
        callbacks=[lambda *_: True],
    )
    multipliers = {
        site: factors.get(row[method], 0.0) for site, row in ROLES[name].items()
    }
    expected = -log_density(name, start, multipliers)
    # Rounding of float64 alone; a prior more or less would change the first digit.
    assert float(fit.losses[0]) == pytest.approx(expected, rel=1e-9)


@every_program
def test_mle_integrates_what_the_table_says(name):
    case = problem(name)
    integrated = named(name, "MLE()", "integrated")
    if integrated:
        fit = probsl.fit(case.program, case.data, probsl.MLE(max_steps=9))
        assert list(fit.posterior.target.integrated) == integrated
        assert not set(integrated) & {n.split("[")[0] for n in fit.summary().index}
        assert set(integrated) <= fit.point().keys()
    else:
        methods = [probsl.MLE(max_steps=9), probsl.MLE(integrate=(), max_steps=9)]
        plain, none = (probsl.fit(case.program, case.data, m) for m in methods)
        assert torch.equal(plain.losses, none.losses)


def test_integrate_adds_sites_to_the_random_effects():
    case = problem("mixed model")
    method = probsl.MLE(integrate=("beta",), max_steps=3)
    fit = probsl.fit(case.program, case.data, method)
    assert fit.posterior.target.integrated == ("u", "beta")


@every_program
@pytest.mark.parametrize("method", METHODS)
def test_svi_gives_distributions_and_the_others_points(name, method):
    case, start = problem(name), start_of(name)
    made = METHODS[method](1.0, start)
    if method == "SVI":
        made = probsl.SVI(AutoNormal, start=start)
    fit = probsl.fit(case.program, case.data, made, callbacks=[lambda *_: True])
    draws = fit.draw(3)
    latents = named(name, method, "dropped", "weighted", "kept")
    free, reported = named(name, method, "free"), named(name, method, "reported")
    assert list(draws) == [*latents, *free, *reported]
    varied = {site for site, values in draws.items() if not (values == values[0]).all()}
    # Of the deterministics only those vary that depend on a distribution.
    assert varied - set(reported) == (set(latents) if method == "SVI" else set())
    assert list(fit.point()) == list(draws)


@every_program
def test_prior_weight_reaches_the_sites_whose_prior_mle_drops(name):
    case, start = problem(name), start_of(name)
    weighted = named(name, "MAP", "weighted")
    kept = named(name, "MAP", "kept")
    first = partial(probsl.fit, case.program, case.data, callbacks=[lambda *_: True])
    everywhere = first(probsl.MAP(prior_weight=0.3, start=start)).losses[0]
    by_name = dict.fromkeys(weighted, 0.3)
    assert everywhere == first(probsl.MAP(prior_weight=by_name, start=start)).losses[0]
    for site in kept:
        named_too = first(probsl.MAP(prior_weight={**by_name, site: 0.3}, start=start))
        assert everywhere != named_too.losses[0]


def test_the_table_has_the_nine_programs():
    assert len(ROLES) == 9
    assert set(ROLES) <= {case.name for case in PROBLEMS}
