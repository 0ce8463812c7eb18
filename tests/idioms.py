"""Idioms of Pyro's documentation and examples, each as a small program with data.

They are written again, as their users write them: plates without a size, padded
sequences, handlers in and around the program, enumerated latents, networks,
reparameterizations, arguments that are no arrays. What the laws ask of `programs.py`
they do not keep to: some take required arguments, return values, or observe nothing
that has rows.
"""

import functools

import pyro
import pyro.distributions as dist
import torch
from programs import COUNTS, DTYPE, GROUP, NOISE, Case, _normal, _uniform
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.infer.reparam import LocScaleReparam, TransformReparam
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import nn
from torch.distributions import constraints

ROWS = 6
X = _normal(20, ROWS)
Y = 0.5 + 0.8 * X + 0.3 * _normal(21, ROWS)
XY = {"x": X, "y": Y}
CASES: list[Case] = []


def idiom(name, has="", options=None, /, **data):
    """Add a program to the cases."""

    def add(program):
        CASES.append(Case(name, program, data, frozenset(has.split()), options or {}))
        return program

    return add


def number(value):
    return torch.tensor(value, dtype=DTYPE)


def normal(location=0.0, scale=1.0):
    return dist.Normal(number(location), scale)


# Plates.


@idiom("plate without a size", "rows", y=Y)
def _(y):
    m = pyro.sample("m", normal())
    with pyro.plate("data"):
        pyro.sample("y", dist.Normal(m.expand(len(y)), 1.0), obs=y)


@idiom("plate without a size around a matrix", "rows", y=_normal(22, ROWS, 3))
def _(y):
    m = pyro.sample("m", normal().expand([3]).to_event(1))
    with pyro.plate("data"):
        pyro.sample("y", dist.Normal(m.expand(y.shape), 1.0).to_event(1), obs=y)


@idiom("plates without a size inside each other", "rows", y=_normal(23, ROWS, 3))
def _(y):
    m = pyro.sample("m", normal())
    with pyro.plate("rows", dim=-2), pyro.plate("columns", dim=-1):
        pyro.sample("y", dist.Normal(m.expand(y.shape), 1.0), obs=y)


@idiom("sequential plate around a vectorized one", "", y=_normal(24, 3, 4))
def _(y):
    mu = pyro.sample("mu", normal())
    for g in pyro.plate("groups", 3):
        theta = pyro.sample(f"theta_{g}", dist.Normal(mu, 1.0))
        with pyro.plate(f"data_{g}", 4):
            pyro.sample(f"y_{g}", dist.Normal(theta, 0.5), obs=y[g])


@idiom("vectorized plate around a sequential one", "rows", y=_normal(25, ROWS, 3))
def _(y):
    mu = pyro.sample("mu", normal().expand([3]).to_event(1))
    with pyro.plate("data", len(y)):
        for j in pyro.plate("columns", 3):
            pyro.sample(f"y_{j}", dist.Normal(mu[j], 1.0), obs=y[:, j])


@idiom("two plates of one length", "rows", {"rows": ("y",)}, y=_normal(26, 4, 4))
def _(y):
    columns = pyro.plate("columns", 4, dim=-1)
    with columns:
        m = pyro.sample("m", normal())
    with pyro.plate("rows", 4, dim=-2), columns:
        pyro.sample("y", dist.Normal(m, 1.0), obs=y)


@idiom("two observed plates of one length", "", x=X, y=Y)
def _(x, y):
    m = pyro.sample("m", normal())
    with pyro.plate("first", len(x)):
        pyro.sample("x", dist.Normal(m, 1.0), obs=x)
    with pyro.plate("second", len(y)):
        pyro.sample("y", dist.Normal(2 * m, 1.0), obs=y)


@idiom(
    "a latent plate as long as the data",
    "rows",
    {"rows": ("y", "group")},
    y=_normal(27, 4),
    group=GROUP[:4],
)
def _(y, group):
    with pyro.plate("groups", 4):
        m = pyro.sample("m", normal())
    with pyro.plate("data", 4):
        pyro.sample("y", dist.Normal(m[group], 1.0), obs=y)


@idiom("plate of batches made outside", "rows", **XY)
def _(x, y=None):
    w = pyro.sample("w", normal())
    with pyro.plate("data", ROWS, subsample_size=len(x)):
        pyro.sample("y", dist.Normal(w * x, 1.0), obs=y)


@idiom("plate that is given its subsample", "rows", **XY)
def _(x, y):
    w = pyro.sample("w", normal())
    everything = torch.arange(len(x))
    with pyro.plate("data", len(x), subsample=everything) as index:
        pyro.sample("y", dist.Normal(w * x[index], 1.0), obs=y[index])


@idiom("plate stack", "rows", y=_normal(28, 4, 3))
def _(y):
    m = pyro.sample("m", normal())
    with pyro.plate_stack("grid", y.shape):
        pyro.sample("y", dist.Normal(m, 1.0), obs=y)


@idiom("crossed plates by index", "rows", row=GROUP, column=GROUP.flip(0), y=NOISE)
def _(row, column, y):
    scale = pyro.sample("scale", dist.LogNormal(number(0.0), 0.5))
    with pyro.plate("people", 3):
        ability = pyro.sample("ability", dist.Normal(0.0, scale))
    with pyro.plate("items", 3):
        difficulty = pyro.sample("difficulty", normal(0.0, 2.0))
    with pyro.plate("answers", len(y)):
        mean = ability[row] - difficulty[column]
        pyro.sample("y", dist.Bernoulli(logits=mean), obs=(y > 0).to(DTYPE))


# Discrete latents.

LENGTHS = torch.tensor([3, 1, 2, 3])
STEPS = (_uniform(29, 4, 3) < 0.5).to(DTYPE)


def transition():
    stay = pyro.sample("stay", dist.Beta(number([3.0, 2.0]), 2.0).to_event(1))
    return torch.stack(
        [torch.stack([stay[0], 1 - stay[0]]), torch.stack([1 - stay[1], stay[1]])]
    )


@idiom("padding on the right", "rows discrete", y=_normal(30, 4, 3), lengths=LENGTHS)
@config_enumerate
def _(y, lengths):
    p = transition()
    with pyro.plate("sequences", len(y)):
        z = 0
        for t in pyro.markov(range(y.shape[1])):
            with poutine.mask(mask=t < lengths):
                z = pyro.sample(f"z_{t}", dist.Categorical(p[z]))
                pyro.sample(f"y_{t}", dist.Normal(2.0 * z, 1.0), obs=y[:, t])


@idiom("padding on the left", "rows discrete", y=_normal(31, 4, 3), lengths=LENGTHS)
@config_enumerate
def _(y, lengths):
    p = transition()
    with pyro.plate("sequences", len(y)):
        z = 0
        for t in pyro.markov(range(y.shape[1])):
            with poutine.mask(mask=t >= y.shape[1] - lengths):
                z = pyro.sample(f"z_{t}", dist.Categorical(p[z]))
                pyro.sample(f"y_{t}", dist.Normal(2.0 * z, 1.0), obs=y[:, t])


@idiom("sequences one by one", "discrete", y=_normal(32, 4, 3), lengths=LENGTHS)
@config_enumerate
def _(y, lengths):
    p = transition()
    for i in pyro.plate("sequences", len(y)):
        z = 0
        for t in pyro.markov(range(int(lengths[i]))):
            z = pyro.sample(f"z_{i}_{t}", dist.Categorical(p[z]))
            pyro.sample(f"y_{i}_{t}", dist.Normal(2.0 * z, 1.0), obs=y[i, t])


@idiom("two steps of memory", "rows discrete", y=_normal(33, 5, 4))
@config_enumerate
def _(y):
    p = pyro.sample("p", dist.Dirichlet(number([[[2.0, 3.0]] * 2] * 2)).to_event(2))
    with pyro.plate("sequences", len(y)):
        before, z = torch.tensor(0), torch.tensor(0)
        for t in pyro.markov(range(y.shape[1]), history=2):
            before, z = z, pyro.sample(f"z_{t}", dist.Categorical(p[before, z]))
            pyro.sample(f"y_{t}", dist.Normal(2.0 * z, 1.0), obs=y[:, t])


@idiom(
    "tones of padded sequences",
    "rows discrete",
    y=(_uniform(34, 4, 3, 2) < 0.5).to(DTYPE),
    lengths=LENGTHS,
)
@config_enumerate
def _(y, lengths):
    with poutine.mask(mask=True):
        p_x = pyro.sample(
            "p_x", dist.Dirichlet(number([[9.0, 1.0], [1.0, 9.0]])).to_event(1)
        )
        p_y = pyro.sample("p_y", dist.Beta(0.5, 0.5).expand([2, 2]).to_event(2))
    tones = pyro.plate("tones", 2, dim=-1)
    with pyro.plate("sequences", len(y), dim=-2):
        x = torch.tensor(0)
        for t in pyro.markov(range(3)):
            with poutine.mask(mask=(t < lengths).unsqueeze(-1)):
                x = pyro.sample(f"x_{t}", dist.Categorical(p_x[x]))
                with tones as tone:
                    pyro.sample(f"y_{t}", dist.Bernoulli(p_y[x, tone]), obs=y[:, t])


@idiom("capture and recapture", "rows discrete", y=STEPS)
@config_enumerate
def _(y):
    phi = pyro.sample("phi", dist.Uniform(number(0.0), 1.0))
    rho = pyro.sample("rho", dist.Uniform(number(0.0), 1.0))
    with pyro.plate("animals", len(y), dim=-1):
        z = torch.ones(len(y), dtype=DTYPE)
        first = torch.zeros(len(y), dtype=torch.bool)
        for t in pyro.markov(range(y.shape[1])):
            with poutine.mask(mask=first):
                alive = first.to(DTYPE) * phi * z + (1 - first.to(DTYPE))
                z = pyro.sample(f"z_{t}", dist.Bernoulli(alive))
                pyro.sample(f"y_{t}", dist.Bernoulli(rho * z), obs=y[:, t])
            first = first | y[:, t].bool()


@idiom("one discrete latent of all rows", "rows discrete shared", y=Y)
@config_enumerate
def _(y):
    location = pyro.sample("location", normal(0.0, 2.0).expand([2]).to_event(1))
    which = pyro.sample("which", dist.Categorical(number([0.3, 0.7])))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(location[which], 1.0), obs=y)


@idiom("discrete latents, nested", "rows discrete shared", y=Y)
@config_enumerate
def _(y):
    location = pyro.sample("location", normal(0.0, 2.0).expand([2, 2]).to_event(2))
    p = pyro.sample("p", dist.Dirichlet(number([2.0, 3.0])))
    common = pyro.sample("common", dist.Bernoulli(number(0.4)))
    with pyro.plate("data", len(y)):
        a = pyro.sample("a", dist.Categorical(p))
        b = pyro.sample("b", dist.Bernoulli(0.2 + 0.5 * a.to(DTYPE)))
        mean = location[a.long(), b.long()] + common
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


@idiom("groups with a discrete latent", "rows discrete", y=_normal(35, ROWS, 3))
@config_enumerate
def _(y):
    location = pyro.sample("location", normal(0.0, 2.0).expand([2]).to_event(1))
    with pyro.plate("groups", 3, dim=-1):
        which = pyro.sample("which", dist.Categorical(number([0.5, 0.5])))
        with pyro.plate("data", len(y), dim=-2):
            pyro.sample("y", dist.Normal(location[which], 1.0), obs=y)


@idiom(
    "topics of words",
    "rows local discrete",
    {"dtype": DTYPE},
    words=torch.tensor([[0, 1, 2, 1], [2, 2, 1, 0], [0, 0, 1, 0]]),
)
@config_enumerate
def _(words):
    with pyro.plate("topics", 2):
        topic_words = pyro.sample(
            "topic_words", dist.Dirichlet(torch.ones(3, dtype=DTYPE))
        )
    with pyro.plate("documents", 3, dim=-1):
        share = pyro.sample("share", dist.Dirichlet(torch.ones(2, dtype=DTYPE)))
        with pyro.plate("words", 4, dim=-2):
            topic = pyro.sample("topic", dist.Categorical(share))
            pyro.sample("word", dist.Categorical(topic_words[topic]), obs=words.T)


# Handlers inside and around the program.


@idiom("scale inside", "rows", **XY)
def _(x, y=None):
    w = pyro.sample("w", normal())
    with pyro.plate("data", len(x)), poutine.scale(scale=0.3):
        pyro.sample("y", dist.Normal(w * x, 1.0), obs=y)


@idiom("scale by row", "rows", **XY)
def _(x, y=None):
    w = pyro.sample("w", normal())
    weight = torch.arange(1, len(x) + 1, dtype=DTYPE) / 3
    with pyro.plate("data", len(x)), poutine.scale(scale=weight):
        pyro.sample("y", dist.Normal(w * x, 1.0), obs=y)


def regression(x, y=None):
    w = pyro.sample("w", normal())
    s = pyro.sample("s", dist.LogNormal(number(0.0), 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(w * x, s), obs=y)


def unconditioned(x):
    w = pyro.sample("w", normal())
    s = pyro.sample("s", dist.LogNormal(number(0.0), 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(w * x, s))


idiom("scale around", "rows", **XY)(poutine.scale(regression, scale=0.25))
idiom("mask around", "rows", **XY)(poutine.mask(regression, mask=True))
idiom("condition around", "rows", x=X)(poutine.condition(unconditioned, data={"y": Y}))
idiom("condition on a latent", "rows outside", **XY)(
    poutine.condition(regression, data={"s": number(0.5)})
)
idiom("intervention", "rows", **XY)(poutine.do(regression, data={"s": number(0.5)}))
idiom("a site hidden around", "rows", **XY)(
    poutine.block(poutine.condition(regression, data={"s": number(0.5)}), hide=["s"])
)


@idiom("mask inside", "rows", **XY)
def _(x, y=None):
    w = pyro.sample("w", normal())
    with pyro.plate("data", len(x)), poutine.mask(mask=x > 0):
        pyro.sample("y", dist.Normal(w * x, 1.0), obs=y)


@idiom("masked distributions", "rows", **XY)
def _(x, y=None):
    w = pyro.sample(
        "w", normal().expand([2]).mask(number([1.0, 0.0]).bool()).to_event(1)
    )
    with pyro.plate("data", len(x)):
        mean = w.sum(-1, keepdim=True) * x
        pyro.sample("y", dist.Normal(mean, 1.0).mask(x > 0), obs=y)


@idiom("some rows observed", "rows local", **XY)
def _(x, y):
    w = pyro.sample("w", normal())
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(w * x, 1.0), obs=y, obs_mask=x > 0)


def groups(group, y):
    mu = pyro.sample("mu", normal())
    tau = pyro.sample("tau", dist.LogNormal(number(0.0), 0.5))
    with pyro.plate("groups", 3):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
    with pyro.plate("data", len(group)):
        pyro.sample("y", dist.Normal(theta[group], 0.5), obs=y)


GROUPED = {"group": GROUP, "y": NOISE}
idiom("decentered around", "rows groups", **GROUPED)(
    poutine.reparam(groups, config={"theta": LocScaleReparam(0.0)})
)
idiom("partly centered around", "rows groups own", **GROUPED)(
    poutine.reparam(groups, config={"theta": LocScaleReparam()})
)


@idiom("transform reparameterized inside", "rows", y=Y)
def _(y):
    with poutine.reparam(config={"s": TransformReparam()}):
        base = normal()
        affine = dist.transforms.AffineTransform(number(0.1), 0.5)
        s = pyro.sample(
            "s",
            dist.TransformedDistribution(
                base, [affine, dist.transforms.ExpTransform()]
            ),
        )
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(0.0, s), obs=y)


# Observations.


@idiom("several observed sites and a factor", "rows", **XY)
def _(x, y):
    m = pyro.sample("m", normal())
    with pyro.plate("data", len(y)):
        pyro.sample("x", dist.Normal(m, 1.0), obs=x)
        pyro.sample("y", dist.StudentT(number(4.0), m, 1.0), obs=y)
        pyro.factor("pull", -0.1 * (m - x) ** 2)


@idiom("a factor alone", "rows", y=COUNTS)
def _(y):
    rate = pyro.sample("rate", dist.Gamma(number(2.0), 1.0))
    with pyro.plate("data", len(y)):
        pyro.factor("likelihood", y * rate.log() - rate)


@idiom("a factor outside", "rows outside", **XY)
def _(x, y):
    w = pyro.sample("w", normal())
    pyro.factor("penalty", -0.3 * w.abs())
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(w * x, 1.0), obs=y)


@idiom("observed outside the plate, too", "rows outside", **XY)
def _(x, y):
    w = pyro.sample("w", normal())
    pyro.sample("total", dist.Normal(w, 1.0), obs=y.sum())
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(w * x, 1.0), obs=y)


@idiom("relaxed pixels", "rows", y=_uniform(36, ROWS, 2))
def _(y):
    p = pyro.sample("p", dist.Beta(number([2.0, 2.0]), 2.0).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Bernoulli(p, validate_args=False).to_event(1), obs=y)


TOTALS = torch.tensor([[2.0, 1.0], [4.0, 3.0], [0.0, 2.0]], dtype=DTYPE)


@idiom("totals that differ", "rows", y=TOTALS)
def _(y):
    p = pyro.sample("p", dist.Dirichlet(number([2.0, 2.0])))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Multinomial(3, p, validate_args=False), obs=y)


class Loss(dist.TorchDistribution):
    """A likelihood that knows its density and nothing else."""

    arg_constraints = {}

    def __init__(self, location):
        self.location = location
        super().__init__(location.shape)

    def expand(self, batch_shape, _instance=None):
        return Loss(self.location.expand(batch_shape))

    def log_prob(self, value):
        return -torch.log(torch.cosh(value - self.location))


@idiom("a distribution without support", "rows", **XY)
def _(x, y):
    w = pyro.sample("w", normal())
    with pyro.plate("data", len(x)):
        pyro.sample("y", Loss(w * x), obs=y)


@idiom("hidden Gaussian states", "", y=_normal(37, 5, 2))
def _(y):
    noise = pyro.sample("noise", dist.LogNormal(number(0.0), 0.5))
    identity = torch.eye(2, dtype=DTYPE)
    start = dist.MultivariateNormal(torch.zeros(2, dtype=DTYPE), identity)
    step = dist.MultivariateNormal(torch.zeros(2, dtype=DTYPE), noise * identity)
    pyro.sample(
        "y", dist.GaussianHMM(start, 0.9 * identity, step, identity, step), obs=y
    )


@idiom("residuals", "rows", **XY)
def _(x, y):
    b = pyro.sample("b", normal())
    with pyro.plate("data", len(x)):
        pyro.sample("r", normal(), obs=y - b * x)


@idiom("rest of a walk", "", y=Y)
def _(y):
    level = pyro.sample("level", normal())
    drift = pyro.sample("drift", normal(0.0, 0.3))
    trend = level + drift * torch.arange(len(y), dtype=DTYPE)
    pyro.sample(
        "residual", dist.Normal(torch.zeros_like(y), 1.0).to_event(1), obs=y - trend
    )


@idiom("too many zeros", "rows", y=COUNTS)
def _(y):
    gate = pyro.sample("gate", dist.Beta(number(2.0), 5.0))
    rate = pyro.sample("rate", dist.Gamma(number(2.0), 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.ZeroInflatedPoisson(rate, gate=gate), obs=y)


@idiom("a mixture in closed form", "rows", y=Y)
def _(y):
    p = pyro.sample("p", dist.Dirichlet(number([2.0, 2.0])))
    location = pyro.sample("location", normal().expand([2]).to_event(1))
    with pyro.plate("data", len(y)):
        parts = dist.Normal(location, 1.0)
        pyro.sample("y", dist.MixtureSameFamily(dist.Categorical(p), parts), obs=y)


@idiom("ordered answers", "rows", x=X, y=torch.tensor([0, 1, 2, 1, 0, 2]))
def _(x, y):
    w = pyro.sample("w", normal())
    ordered = [dist.transforms.OrderedTransform()]
    base = dist.Normal(torch.zeros(2, dtype=DTYPE), 2.0).to_event(1)
    cuts = pyro.sample("cuts", dist.TransformedDistribution(base, ordered))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.OrderedLogistic(w * x, cuts), obs=y)


@idiom("a flat prior", "rows", y=Y)
def _(y):
    improper = dist.ImproperUniform(constraints.positive, torch.Size(), torch.Size())
    s = pyro.sample("s", improper)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(number(0.0), s), obs=y)


@idiom("a prior that ends in an affine transform", "rows", y=Y)
def _(y):
    stretched = [dist.transforms.AffineTransform(number(-2.0), 5.0)]
    b = pyro.sample(
        "b", dist.TransformedDistribution(dist.Beta(number(2.0), 2.0), stretched)
    )
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(b, 1.0), obs=y)


@idiom("a random walk of latents", "", y=Y)
def _(y):
    drift = pyro.sample("drift", normal())
    z = number(0.0)
    for t in pyro.markov(range(len(y))):
        z = pyro.sample(f"z_{t}", dist.Normal(z + drift, 1.0))
        pyro.sample(f"y_{t}", dist.Normal(z, 0.5), obs=y[t])


# Parameters, modules and arguments.


def linear_layer(weight, bias):
    layer = nn.Linear(1, 1, dtype=DTYPE)
    with torch.no_grad():
        layer.weight.fill_(weight)
        layer.bias.fill_(bias)
    return layer


LAYER = linear_layer(0.4, -0.1)


@idiom("a module that the program registers", "rows own", **XY)
def _(x, y):
    pyro.module("layer", LAYER)
    s = pyro.sample("s", dist.LogNormal(number(0.0), 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(LAYER(x[:, None]).squeeze(-1), s), obs=y)


class Lazy:
    """A program that makes its network when it is first called."""

    def __init__(self):
        self.layer = None

    def __call__(self, x, y):
        if self.layer is None:
            self.layer = linear_layer(0.7, 0.2)
        pyro.module("layer", self.layer)
        s = pyro.sample("s", dist.LogNormal(number(0.0), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(self.layer(x[:, None])[:, 0], s), obs=y)


idiom("a module made in the first run", "rows own", **XY)(Lazy())


@idiom("parameters by statement", "rows own", **XY)
def _(x, y):
    slope = pyro.param("slope", number(0.3))
    scale = pyro.param("scale", number(0.8), constraint=constraints.positive)
    m = pyro.sample("m", normal())
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(m + slope * x, scale), obs=y)


def with_parameters(x, y):
    slope = pyro.param("slope", number(0.3))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)


idiom("lifted parameters", "rows", **XY)(
    poutine.lift(with_parameters, prior={"slope": normal()})
)


class Layers(PyroModule):
    """A network whose weights are samples, as Pyro's tutorial writes it."""

    def __init__(self):
        super().__init__()
        self.hidden = PyroModule[nn.Linear](1, 2, dtype=DTYPE)
        self.out = PyroModule[nn.Linear](2, 1, dtype=DTYPE)
        zero = torch.zeros((), dtype=DTYPE)
        self.hidden.weight = PyroSample(
            dist.Normal(zero, 1.0).expand([2, 1]).to_event(2)
        )
        self.hidden.bias = PyroSample(dist.Normal(zero, 1.0).expand([2]).to_event(1))
        self.out.weight = PyroSample(dist.Normal(zero, 1.0).expand([1, 2]).to_event(2))
        self.out.bias = PyroSample(dist.Normal(zero, 1.0).expand([1]).to_event(1))

    def forward(self, x, y=None):
        s = pyro.sample("s", dist.Uniform(number(0.0), 10.0))
        mean = self.out(torch.tanh(self.hidden(x[:, None]))).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(mean, s), obs=y)
        return mean


idiom("a network of samples", "rows", **XY)(Layers())


class Nested(PyroModule):
    """Modules in a list, one of them with a prior that depends on another sample."""

    def __init__(self):
        super().__init__()
        self.spread = PyroSample(dist.LogNormal(number(0.0), 0.5))
        self.parts = PyroModule[nn.ModuleList]([self.part() for _ in range(2)])
        self.scale = PyroParam(number(0.6), constraint=constraints.positive)

    def part(self):
        part = PyroModule("part")
        part.slope = PyroSample(lambda _: dist.Normal(number(0.0), self.spread))
        return part

    def forward(self, x, y):
        mean = sum(part.slope * x**i for i, part in enumerate(self.parts))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(mean, self.scale), obs=y)


idiom("modules in a list", "rows own", **XY)(Nested())


@idiom(
    "nested arguments",
    "",
    config={"scale": 2.0, "prior": {"spread": [1.0, 0.5]}, "name": "all"},
    parts=[Y[:2], Y[2:]],
)
def _(config, parts):
    m = pyro.sample("m", dist.Normal(number(0.0), config["prior"]["spread"][0]))
    for i, part in enumerate(parts):
        with pyro.plate(f"part_{i}", len(part)):
            pyro.sample(f"y_{i}", dist.Normal(m, config["scale"]), obs=part)
    return {"m": m, "name": config["name"]}


PRIOR = normal().expand([2]).to_event(1)


@idiom("a prior made outside", "rows", x=torch.stack([X, X**2], 1), y=Y)
def _(x, y=None):
    w = pyro.sample("w", PRIOR)
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)


def of_degree(degree, x, y):
    w = pyro.sample("w", normal().expand([degree + 1]).to_event(1))
    powers = torch.stack([x**i for i in range(degree + 1)], -1)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(powers @ w, 1.0), obs=y)


idiom("a partial", "rows", **XY)(functools.partial(of_degree, 2))

IDIOMS: tuple[Case, ...] = tuple(CASES)
