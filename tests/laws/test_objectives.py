"""The objective is Pyro's own: for every program, at any point of its latents."""

import math
import warnings

import pytest
import torch
from idioms import IDIOMS
from methods import DEEP
from programs import PROBLEMS
from pyro.infer import TraceEnum_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro_oracle import NESTING, delta_elbo, log_joint

from probsl.contract import Run
from probsl.data.data_options import DataOptions
from probsl.methods.guides.initialization import initialized
from probsl.program.problem import Problem
from probsl.program.sites import Role
from probsl.program.target_density import TargetDensity

ALL = (*PROBLEMS, *IDIOMS)
# Share of the sum of all terms' sizes.
ROUNDING = 1e-9


def over(cases):
    """Range over programs."""
    return pytest.mark.parametrize("case", cases, ids=str)


def built(case):
    return Problem.build(case.program, case.data, DataOptions(**case.options))


def points(problem, count=3):
    """Return random values of the latents, and of the program's own parameters."""
    layout = problem.coordinates()
    generator = torch.Generator().manual_seed(11)
    for _ in range(count):
        x = torch.randn(layout.size, generator=generator, dtype=torch.float64)
        values = layout.constrain(0.7 * x)
        statements = {p.name: p for p in problem.own_parameters if p.statement}
        for parameter in problem.own_parameters:  # those of modules are where they are
            if parameter.name not in statements:
                values[parameter.name] = parameter.start
        parameters = {n: p.constrain(values[n]) for n, p in statements.items()}
        yield values, parameters


def objective(problem, values, dropped=()):
    with problem.isolated(), torch.no_grad():
        return float(
            problem.log_density(
                values, values, prior_weights=dict.fromkeys(dropped, 0.0)
            )
        )


@over(ALL)
def test_the_objective_is_that_of_pyro(case):
    problem = built(case)
    discrete = problem.sites_with_role(Role.ENUMERATED)
    latents = tuple(s.name for s in problem.latents)
    for values, parameters in points(problem):
        mine = {n: values[n] for n in latents}
        for dropped in ((), latents):
            found = objective(problem, values, dropped)
            size = abs(found)
            if not discrete:
                expected, size = log_joint(
                    case.program, case.data, mine, dropped, parameters
                )
                assert found == pytest.approx(expected, rel=0, abs=ROUNDING * size)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    expected = delta_elbo(
                        case.program, case.data, mine, discrete, dropped, parameters
                    )
                except NotImplementedError:  # a support that Pyro has no bijection for
                    assert not discrete
                    continue
            assert found == pytest.approx(expected, rel=0, abs=ROUNDING * max(size, 1))


@over([c for c in ALL if "rows" in c.has])
def test_the_rows_add_up_to_the_log_likelihood(case):
    problem = built(case)
    for values, _ in points(problem):
        with problem.isolated(), torch.no_grad():
            if "shared" in case.has:
                with pytest.raises(ValueError, match="share a discrete latent"):
                    problem.log_likelihood_rows(values, values)
                continue
            rows = problem.log_likelihood_rows(values, values)
            whole = float(problem.log_likelihood(values, values))
        assert rows.shape == (problem.size,)
        if "factor" in case.has or "outside" in case.has:
            continue
        assert float(rows.sum()) == pytest.approx(whole, rel=1e-9)
        assert math.isfinite(whole)


@over(ALL)
def test_the_bound_of_a_guide_is_that_of_pyro(case):
    problem = built(case)
    with problem.isolated():
        bound, *_ = initialized(TargetDensity(problem, {}), AutoNormal, None, Run())
    guide = bound.guide.functional.function
    for seed in range(3 if DEEP else 1):  # the same draws for both
        kept = problem.program.untouched()
        with problem.isolated(seed), torch.no_grad():
            found = float(bound.estimate(bound.start, problem.batch())) * problem.size
        with problem.isolated(seed), kept, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = TraceEnum_ELBO(max_plate_nesting=NESTING).loss(
                case.program, guide, **case.data
            )
        assert found == pytest.approx(expected, rel=1e-9)
