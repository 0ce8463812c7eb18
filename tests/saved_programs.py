"""A program whose fits are saved, and what files are made of."""

import hashlib
import random
from functools import cache

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormal

import probsl

DTYPE = torch.float64
X = torch.linspace(-1.0, 1.0, 16, dtype=DTYPE).reshape(8, 2)
Y = torch.tensor([0.3, -0.2, 0.9, 0.1, -1.2, 0.4, 2.0, -0.5], dtype=DTYPE)
DATA = {"x": X, "y": Y}


def program(x, y=None):
    """Have latents of several supports, an own parameter, and a deterministic site."""
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    scale = pyro.sample("scale", dist.Uniform(0.0, 3.0))
    pyro.sample("share", dist.Dirichlet(2 * torch.ones(3)))
    shift = pyro.param("shift", torch.tensor(1.0), constraint=dist.constraints.positive)
    pyro.deterministic("double", 2 * w)
    with pyro.plate("groups", 3):
        effect = pyro.sample("effect", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        mean = x @ w + shift + effect.sum()
        pyro.sample("y", dist.Normal(mean, scale), obs=y)


METHODS = {
    "MAP": probsl.MAP(),
    "MAP w=0.5": probsl.MAP(prior_weight=0.5),
    "SVI": probsl.SVI(),
    "SVI AutoNormal": probsl.SVI(AutoNormal),
}


def fit(method, **options):
    """Fit it."""
    return probsl.fit(program, DATA, method, compile=False, **options)


@cache
def fitted(name):
    """Return the fit of a method, which is made once."""
    return fit(METHODS[name])


def digest(loaded):
    """Return a hash of what a fit draws and predicts."""
    held = [loaded.point(), loaded.draw(5), loaded.predict({"x": X[:3]}, draws=5)]
    found = hashlib.sha256()
    for values in held:
        for name, value in values.items():
            found.update(name.encode() + value.contiguous().numpy().tobytes())
    found.update(loaded.expected({"x": X[:3]}, draws=5).to_numpy().tobytes())
    return found.hexdigest()


def mutated(content, rng: random.Random) -> bytes:
    """Change the bytes of a file at random, most of them where its header is."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        start = rng.randrange(rng.choice([8, 4000, len(changed)])) % len(changed)
        length = rng.choice([1, 1, 2, 8, 200])
        part = slice(start, start + length)
        match rng.randrange(6):
            case 0:
                changed[start] ^= 1 << rng.randrange(8)
            case 1:
                changed[part] = rng.randbytes(length)
            case 2:
                changed[part] = bytes(length)
            case 3:
                changed[start:start] = changed[part]
            case 4:
                del changed[part]
            case 5:
                del changed[start + 1 :]
        changed = changed or bytearray(1)
    return bytes(changed)


# What a file may state in any place.
STRANGE = (
    *(None, -1, 0, 2**62, 10**30, 1e308, float("nan"), True),
    *("", "x", "../../etc/passwd", "cuda:7", "torch.complex64"),
    *([], {}, [[]], {"$tensor": "w"}, (1,)),
    *(torch.zeros(3), torch.zeros(2, 2, dtype=DTYPE), torch.tensor(True)),
)


def places(value, path=()):
    """Yield the path to every part of plain values."""
    yield path
    if isinstance(value, dict | list | tuple):
        keys = value if isinstance(value, dict) else range(len(value))
        for key in keys:
            yield from places(value[key], (*path, key))


def replaced(value, path, new):
    """Return plain values with another part, or without it if `new` is `replaced`."""
    if not path:
        return new
    first, *rest = path
    kind = type(value)
    held = dict(value) if kind is dict else list(value)
    if not rest and new is replaced:
        del held[first]
    else:
        held[first] = replaced(held[first], rest, new)
    return kind(held)
