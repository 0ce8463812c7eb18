"""What Pyro itself computes for a program, at a point that it is given."""

from contextlib import contextmanager

import pyro
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from pyro.infer.autoguide import AutoDelta, init_to_feasible, init_to_value
from pyro.infer.autoguide.utils import deep_setattr
from pyro.poutine.messenger import Messenger

# As many axes as the plates of any program take.
NESTING = 3


class WithoutPriors(Messenger):
    """Leaves the log densities of some latent sites out, as maximum likelihood does."""

    def __init__(self, names):
        super().__init__()
        self.names = names

    def _pyro_sample(self, msg):
        if msg["name"] in self.names and not msg["is_observed"]:
            msg["mask"] = False


@contextmanager
def own_state(parameters=None):
    """Run a block with a parameter store of its own and in float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with pyro.get_param_store().scope() as store, torch.random.fork_rng(devices=[]):
            for name, value in (parameters or {}).items():
                pyro.get_param_store()[name] = value.detach().clone()
            yield store
    finally:
        torch.set_default_dtype(before)


@contextmanager
def fitted_parameters(fit):
    """Put a fit's own parameters where Pyro finds them, and take them back after.

    Yields those of `pyro.param` statements, for `own_state`.
    """
    problem = fit.problem
    own = {n: v.detach().clone() for n, v in fit.posterior.own.items()}
    modules = [p for p in problem.own_parameters if not p.statement]
    tensors = [problem.program._container.get_parameter(p.path) for p in modules]
    kept = [tensor.detach().clone() for tensor in tensors]
    try:
        for tensor, parameter in zip(tensors, modules, strict=True):
            tensor.data = own[parameter.name]
        yield {
            p.name: p.constrain(own[p.name])
            for p in problem.own_parameters
            if p.statement
        }
    finally:
        for tensor, before in zip(tensors, kept, strict=True):
            tensor.data = before


def without_priors(program, names):
    def masked(*args, **kwargs):
        with WithoutPriors(names):
            return program(*args, **kwargs)

    return masked if names else program


def log_joint(program, data, values, dropped=(), parameters=None):
    """Return Pyro's sum over one trace, and the sum of the sizes of its terms."""
    with own_state(parameters), torch.no_grad():
        pyro.set_rng_seed(0)
        conditioned = without_priors(Substituted(program, values), dropped)
        trace = poutine.trace(conditioned).get_trace(**data)
        trace.compute_log_prob()
        total = float(trace.log_prob_sum())
        sites = [s for s in trace.nodes.values() if s["type"] == "sample"]
        size = sum(float(s["unscaled_log_prob"].abs().sum()) for s in sites)
    return total, size


class Substituted:
    """A program whose latents have given values, and stay latent."""

    def __init__(self, program, values):
        self.program, self.values = program, values

    def __call__(self, *args, **kwargs):
        with _Substitution(self.values):
            return self.program(*args, **kwargs)


class _Substitution(Messenger):
    def __init__(self, values):
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg):
        if msg["name"] in self.values and not msg["is_observed"]:
            msg["value"], msg["done"] = self.values[msg["name"]], True


def delta_guide(program, data, values, discrete):
    """Return AutoDelta at the given values."""
    guide = AutoDelta(
        poutine.block(program, hide=list(discrete)),
        init_loc_fn=init_to_value(values=values, fallback=init_to_feasible),
    )
    guide(**data)
    for name, value in values.items():  # a reparameterized site begins elsewhere
        deep_setattr(guide, name, value)
    return guide


def delta_elbo(program, data, values, discrete, dropped=(), parameters=None):
    """Return minus the loss of TraceEnum_ELBO under AutoDelta at the given values."""
    with own_state(parameters), torch.no_grad():
        pyro.set_rng_seed(0)
        guide = delta_guide(program, data, values, discrete)
        loss = TraceEnum_ELBO(max_plate_nesting=NESTING).loss(
            without_priors(program, dropped), guide, **data
        )
    return -loss
