"""Options, predictions and comparisons that make no sense are refused in a sentence."""

from functools import partial

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from refusals import (
    GROUP,
    INF,
    NAN,
    N,
    Refusals,
    X,
    Y,
    fit,
    fit_y,
    fitted,
    fitted_labels,
    joint,
    layer,
    linear,
    location,
    mean,
    means,
    network,
    with_entry,
)
from torch import nn

import probsl

REFUSED = Refusals()
case = REFUSED.case


# --- Methods and their options


@case(TypeError, "method must be a value", "the class MLE", "MLE()")
def method_as_a_class():
    fit(method=probsl.MLE)


@case(TypeError, "method must be a value", "probsl.SVI(guide)", "the class AutoNormal")
def guide_for_a_method():
    fit(method=AutoNormal)


for _method in ("MLE", 3):

    @case(TypeError, "method must be a value", "probsl.MLE()", repr(_method))
    def method_of_another_type(method=_method):
        fit(method=method)


@case(TypeError, "method must be a value", "pyro.infer")
def svi_of_pyro():
    optimizer = pyro.optim.Adam({"lr": 0.1})
    loss = pyro.infer.Trace_ELBO()
    fit(method=pyro.infer.SVI(mean, AutoNormal(mean), optimizer, loss))


BAD_OPTIONS = [
    ({"max_steps": 0}, ValueError, ["max_steps", "at least 1", "got 0"]),
    ({"max_steps": -1}, ValueError, ["max_steps", "at least 1", "got -1"]),
    ({"max_steps": NAN}, TypeError, ["max_steps", "whole number", "got nan"]),
    ({"max_steps": 2.5}, TypeError, ["max_steps", "whole number", "got 2.5"]),
    ({"tolerance": 0}, ValueError, ["tolerance", "positive", "got 0"]),
    ({"tolerance": -1.0}, ValueError, ["tolerance", "positive", "got -1"]),
    ({"tolerance": NAN}, ValueError, ["tolerance", "positive", "got nan"]),
    ({"tolerance": INF}, ValueError, ["tolerance", "finite", "got inf"]),
    ({"tolerance": "tight"}, TypeError, ["tolerance", "a number", "'tight'"]),
    ({"optimizer": "adam"}, TypeError, ["optimizer", "torch.optim.Adam", "'adam'"]),
    ({"optimizer": pyro.optim.Adam}, TypeError, ["optimizer", "torch.optim.Adam"]),
    ({"optimizer": nn.Linear}, TypeError, ["optimizer", "torch.optim.Adam"]),
    ({"start": [1.0]}, TypeError, ["start", '{"w": 0.5}', "[1.0]"]),
    ({"start": {"v": 1.0}}, ValueError, ["start", "'v'", "those are w, sigma"]),
    ({"start": {"Sigma": 1.0}}, ValueError, ["start", "did you mean 'sigma'?"]),
    ({"start": {"y": Y}}, ValueError, ["start", "'y'", "not a latent site"]),
    ({"start": {"sigma": -1.0}}, ValueError, ["'sigma'", "outside", "-1.0"]),
    ({"start": {"sigma": 0.0}}, ValueError, ["'sigma'", "edge", "start inside"]),
    ({"start": {"w": [NAN, 0.0]}}, ValueError, ["'w'", "not finite", "nan"]),
    ({"start": {"w": [0.0]}}, ValueError, ["'w'", "(1,)", "(2,)"]),
    ({"start": {"w": "zero"}}, TypeError, ["'w'", "a number", "'zero'"]),
    ({"start": {"w": None}}, TypeError, ["'w'", "a number", "None"]),
]
BAD_PRIOR_WEIGHTS = [
    (-1.0, ValueError, ["not negative", "got -1"]),
    (NAN, ValueError, ["finite", "got nan"]),
    (INF, ValueError, ["finite", "got inf"]),
    ("strong", TypeError, ["a number", "'strong'"]),
    (None, TypeError, ["a number", "None"]),
    (torch.ones(2), TypeError, ["a number"]),
    ({"w": -1.0}, ValueError, ["'w'", "not negative"]),
    ({"w": NAN}, ValueError, ["'w'", "finite"]),
    ({"v": 1.0}, ValueError, ["'v'", "those are w, sigma"]),
    ({"y": 1.0}, ValueError, ["'y'", "not a latent site"]),
]

for _method in (probsl.MLE, probsl.MAP, probsl.SVI):
    for _options, _error, _words in BAD_OPTIONS:

        @case(_error, *_words)
        def bad_option(method=_method, options=_options):
            fit(method=method(**options))


for _method in (probsl.MAP, probsl.SVI):
    for _weight, _error, _words in BAD_PRIOR_WEIGHTS:

        @case(_error, "prior_weight", *_words)
        def bad_prior_weight(method=_method, weight=_weight):
            fit(method=method(prior_weight=weight))


@case(TypeError, "optimizer", "made a value of type list")
def optimizer_that_makes_none():
    fit(method=probsl.MAP(optimizer=lambda parameters: parameters))


for _method in (probsl.MLE, probsl.MAP, probsl.SVI):
    for _optimizer in (probsl.LBFGS, probsl.TrustRegionNewton):

        @case(TypeError, "optimizer=probsl.", "()", "the class", _optimizer.__name__)
        def optimizer_as_a_class(method=_method, optimizer=_optimizer):
            fit(method=method(optimizer=optimizer))


@case(TypeError, "optimizer=LBFGS()", "MLE and MAP", "SVI", "torch.optim")
def deterministic_optimizer_of_a_distribution():
    fit(method=probsl.SVI(optimizer=probsl.LBFGS()))


@case(ValueError, "clip_norm=", "first-order steps", "LBFGS()", "leave out one")
def clipped_gradients_without_steps():
    fit(method=probsl.MAP(optimizer=probsl.LBFGS(), clip_norm=1.0))


@case(ValueError, "LBFGS()", "rows in batches", "leave out batch_size=")
def deterministic_optimizer_in_batches():
    fit(method=probsl.MAP(optimizer=probsl.LBFGS()), batch_size=2)


@case(ValueError, "TrustRegionNewton()", "random numbers", "leave out optimizer=")
def deterministic_optimizer_of_a_noisy_program():
    def program(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        kept = torch.bernoulli(torch.full_like(x, 0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(w * kept, 1.0), obs=x)

    method = probsl.MAP(optimizer=probsl.TrustRegionNewton())
    probsl.fit(program, {"x": Y}, method)


@case(ValueError, "starts", "at least 1")
def no_start():
    fit(method=probsl.MAP(starts=0))


for _device, _error, _words in [
    ("gpu", ValueError, ["'cpu' or 'cuda'", "got 'gpu'"]),
    ("meta", ValueError, ["'cpu' or 'cuda'", "got 'meta'"]),
    (0, TypeError, ["'cpu', 'cuda'", "torch.device", "got 0"]),
    ("cuda:999", ValueError, ["device='cuda:999' is not available here", "leave"]),
]:

    @case(_error, "device", *_words)
    def bad_device(device=_device):
        fit(device=device)


@case(ValueError, "space", "'unconstrained'", "'log'")
def unknown_space():
    fit(method=probsl.MAP(space="log"))


@case(ValueError, "integrate", "'z'", "those are w, sigma")
def unknown_site_to_integrate():
    fit(method=probsl.MLE(integrate=("z",)))


@case(TypeError, "integrate", "('w',)")
def one_text_to_integrate():
    fit(method=probsl.MLE(integrate="w"))


# --- Options of the run


BAD_WEIGHTS = [
    (with_entry(torch.ones(N), -1.0), ValueError, ["1 negative value,", "row 3"]),
    (with_entry(torch.ones(N), NAN), ValueError, ["1 NaN", "row 3"]),
    (torch.ones(N - 1), ValueError, ["(20,)", "(19,)"]),
    (torch.ones(N, 1), ValueError, ["(20,)", "(20, 1)"]),
    (torch.zeros(N), ValueError, ["all zero", "keep some"]),
    (1.0, ValueError, ["(20,)", "float"]),
    ("balanced", ValueError, ["(20,)", "str"]),
    (["a"] * N, TypeError, ["text", "'a' in row 0"]),
]

for _weights, _error, _words in BAD_WEIGHTS:

    @case(_error, "weights", *_words)
    def bad_weights(weights=_weights):
        fit(weights=weights)


@case(ValueError, "weights", "plate", "pyro.plate")
def weights_without_rows():
    fit_y(joint, weights=torch.ones(N))


BAD_BATCH_SIZES = [
    (0, ValueError, ["at least 1"]),
    (-1, ValueError, ["at least 1"]),
    (1.5, TypeError, ["whole number", "1.5"]),
    ("all", TypeError, ["whole number", "'all'"]),
]

for _size, _error, _words in BAD_BATCH_SIZES:

    @case(_error, "batch_size", *_words)
    def bad_batch_size(size=_size):
        fit(batch_size=size)


@case(ValueError, "batch_size", "site 'y'", "outside a plate", "pyro.plate")
def batches_without_rows():
    fit_y(joint, batch_size=5)


@case(ValueError, "plate 'data'", "20", "len(x)")
def batches_of_a_fixed_plate():
    fit_y(mean, batch_size=5)


@case(ValueError, "site 'z'", "one latent per row", "all rows at once")
def batches_with_local_latents():
    def program(y=None):
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    fit_y(program, batch_size=5)


@case(ValueError, "batch of 5 rows", "plate('data', len(x))")
def batches_of_what_is_no_argument():
    def program(y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(w * X[:, 0], 1.0), obs=y)

    fit_y(program, batch_size=5)


@case(ValueError, "site 'y'", "mean over them", "pass them as constants")
def batches_that_are_centered_by_themselves():
    fit(lambda x, y=None: linear(x - x.mean(0), y), batch_size=5)


@case(ValueError, "site 'y'", "scale by their number", "leave scaling to fit")
def batches_that_are_scaled_by_hand():
    def program(x, y=None):
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)), pyro.poutine.scale(scale=N / len(x)):
            pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)

    fit(program, batch_size=5)


@case(ValueError, "site 'w'", "outside the data plate", "of all rows before the fit")
def batches_with_a_prior_of_the_rows():
    def program(x, y=None):
        w = pyro.sample("w", dist.Normal(torch.zeros(2), x.std(0)).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)

    fit(program, batch_size=5)


@case(ValueError, "site 'penalty'", "outside the data plate", "put it in")
def batches_with_a_factor_of_all_rows():
    def program(x, y=None):
        linear(x, y)
        pyro.factor("penalty", -x.square().sum())

    fit(program, batch_size=5)


@case(ValueError, "site 'mu'", "(3,)", "(2,)", "by a constant")
def batches_that_say_how_many_groups_there_are():
    fit(means, data={"group": GROUP.sort().values, "y": Y}, batch_size=10)


@case(ValueError, "'z'", "shared by the rows", "all rows at once")
def batches_that_share_a_discrete_latent():
    def program(y=None):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        z = pyro.sample("z", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu + z, 1.0), obs=y)

    fit_y(program, batch_size=5)


@case(ValueError, "plate 'data'", "5 of 20", "leave subsample out")
def batches_of_a_plate_with_indices():
    def program(x, y=None):
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", N, subsample=torch.arange(5)) as index:
            y = None if y is None else y[index]
            pyro.sample("y", dist.Normal(x[index] @ w, 1.0), obs=y)

    fit(program, batch_size=5)


@case(ValueError, "plate 'data' of the guide", "5 of 20", "subsample_size out")
def guide_with_a_subsample_of_its_own():
    def guide(x, y=None):
        scale = pyro.param("scale", torch.ones(2), dist.constraints.positive)
        pyro.sample("w", dist.Normal(location(2), scale).to_event(1))
        pyro.sample("sigma", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", N, subsample_size=5):
            noise = dist.Normal(0.0, 1.0)
            pyro.sample("noise", noise, infer={"is_auxiliary": True})

    fit(method=probsl.SVI(guide), batch_size=5)


@case(ValueError, "guide", "site 'w'", "other rows", "not depend on the data")
def guide_that_depends_on_the_rows():
    def guide(x, y=None):
        pyro.sample("w", dist.Normal(location(2) + x.mean(0), 1.0).to_event(1))
        pyro.sample("sigma", dist.LogNormal(0.0, 1.0))

    fit(method=probsl.SVI(guide), batch_size=5)


BIG = 100_001
BIG_X, BIG_Y = torch.ones(BIG, 2), torch.ones(BIG)


@case(ValueError, "batch of rows", "plate('data', len(x))")
def batches_of_many_rows_in_a_fixed_plate():
    def program(x, y=None):
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", BIG):
            pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)

    fit(program, data={"x": BIG_X, "y": BIG_Y}, batch_size=5)


@case(ValueError, "'y' has 100000 entries", "100001", "rows=('x', 'y')")
def batches_of_many_rows_of_unequal_lengths():
    fit(data={"x": BIG_X, "y": BIG_Y[1:]}, batch_size=5)


@case(ValueError, "plate 'data' has size 50000", "1009 rows", "len(x)")
def batches_of_the_wrong_rows():
    def program(table, y=None):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu + table.mean(), 1.0), obs=y)

    fit(program, data={"table": BIG_X, "y": BIG_Y[:50_000]}, batch_size=5)


@case(ZeroDivisionError, "division", "after sample site 'y'")
def program_that_fails_on_many_rows():
    def program(x, y=None):
        linear(x / 1, y)
        return 1 / 0

    fit(program, data={"x": BIG_X, "y": BIG_Y}, batch_size=5)


for _seed in (1.5, None, "one"):

    @case(TypeError, "seed", "whole number", repr(_seed))
    def bad_seed(seed=_seed):
        fit(seed=seed)


@case(ValueError, "seed", "at least 0")
def negative_seed():
    fit(seed=-1)


for _callbacks in (print, [3], 3):

    @case(TypeError, "callbacks", "callbacks=[report]")
    def bad_callbacks(callbacks=_callbacks):
        fit(callbacks=callbacks)


# --- Predictions and scores


@case(ValueError, "data lacks 'x'")
def prediction_without_an_input():
    fitted().predict({})


@case(ValueError, "'xs'", "did you mean 'x'?")
def prediction_with_a_misspelt_input():
    fitted().predict({"xs": X})


@case(ValueError, "data lacks 'y'", "y=None")
def prediction_by_a_program_that_needs_y():
    def program(x, y):
        linear(x, y)

    fit(program).predict({"x": X})


@case(TypeError, "data must map", "got Tensor")
def prediction_for_a_bare_array():
    fitted().predict(X)


@case(ValueError, "site 'w'", "(2,)", "(3,)", "'x' has shape (5, 3)", "same columns")
def prediction_for_other_columns():
    fitted().predict({"x": torch.zeros(5, 3)})


@case(RuntimeError, "multiplied", "'x' has shape (5, 3)", "(20, 2) in the fit")
def prediction_by_a_network_for_other_columns():
    fit_of_network = fit(network(layer(2, 1)), probsl.MAP(max_steps=3))
    fit_of_network.predict({"x": torch.zeros(5, 3)})


@case(ValueError, "'x'", "lacks the column 'age'", "the same columns")
def prediction_without_a_column():
    x = pd.DataFrame(X.numpy(), columns=["age", "sex"])
    fit(data={"x": x, "y": Y}).predict({"x": x[["sex"]]})


@case(ValueError, "'x'", "1 NaN", "row 1, column 0")
def prediction_for_nan():
    fitted().predict({"x": torch.tensor([[0.0, 0.0], [NAN, 0.0]])})


@case(ValueError, "'x'", "no rows")
def prediction_for_no_rows():
    fitted().predict({"x": X[:0]})


@case(ValueError, "site 'mu'", "(2,)", "(4,)", "groups")
def prediction_for_other_groups():
    fit(means, data={"group": GROUP % 2, "y": Y}).predict({"group": torch.arange(4)})


@case(ValueError, "site 'mu'", "(3,)", "(4,)", "groups")
def score_of_other_groups():
    fit_of_three = fit(means, data={"group": GROUP, "y": Y})
    probsl.log_score(fit_of_three, {"group": torch.arange(4), "y": Y[:4]})


for _labels in (pd.Series(["a", "c"]), ["a", "c"], np.array(["a", "c"])):

    @case(ValueError, "'group'", "'c'", "did not see", "'a', 'b'")
    def prediction_for_an_unknown_category(labels=_labels):
        fitted_labels().predict({"group": labels})


for _draws, _error in ((0, ValueError), (-1, ValueError), (1e3, TypeError)):

    @case(_error, "draws must be", f"got {_draws}")
    def bad_number_of_draws(draws=_draws):
        fitted().predict({"x": X}, draws=draws)

    @case(_error, "draws must be", f"got {_draws}")
    def bad_number_of_draws_to_score(draws=_draws):
        probsl.log_score(fitted(), {"x": X, "y": Y}, draws=draws)

    @case(_error, "n must be", f"got {_draws}")
    def bad_number_to_draw(draws=_draws):
        fitted().draw(draws)


for _prob in (0, 1, 1.5, 95, NAN):

    @case(ValueError, "prob", "between 0 and 1", f"got {_prob}")
    def bad_probability(prob=_prob):
        fitted().summary(prob=prob)


@case(ValueError, "by must be", "'element' or 'site'", "'column'")
def unknown_lines_of_a_summary():
    fitted().summary(by="column")


@case(ValueError, "observed nothing", "'y' is not in data")
def score_without_outcomes():
    probsl.log_score(fitted(), {"x": X})


@case(TypeError, "probsl.fit returns", "linear")
def score_of_no_fit():
    probsl.log_score(linear, {"x": X, "y": Y})


@case(ValueError, "fits is empty")
def comparison_of_nothing():
    probsl.compare({})


@case(TypeError, "fits['MAP']", "int", "Fit")
def comparison_of_numbers():
    probsl.compare({"MAP": 1})


@case(TypeError, "fits must map names to fits", "got list")
def comparison_of_a_list():
    probsl.compare([fitted()])


# --- The tests


@pytest.mark.parametrize("refusal", REFUSED, ids=str)
def test_bad_options_are_told(refusal):
    refusal.check()


@pytest.mark.parametrize("refusal", REFUSED, ids=str)
def test_after_the_error_nothing_is_left(refusal):
    refusal.check_nothing_is_left()


# --- What is no error


def test_optimizers_may_be_made_by_a_function():
    def make(parameters):
        return torch.optim.SGD(parameters, lr=0.01)

    sgd = partial(torch.optim.SGD, lr=0.01)
    one = fit(method=probsl.MAP(optimizer=sgd, max_steps=5))
    two = fit(method=probsl.MAP(optimizer=make, max_steps=5))
    assert torch.equal(one.losses, two.losses)
