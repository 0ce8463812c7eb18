"""Thirteen posteriors of posteriordb as Pyro programs.

A site is named like the parameter, and its elements count from 0. Flat priors are
`ImproperUniform`, with density 1.
"""

import re

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints


def flat(name, support=constraints.real, size=None):
    shape = () if size is None else (size,)
    return pyro.sample(name, dist.ImproperUniform(support, (), shape))


def flat_regression(x, y):
    """Give coefficients and noise no prior at all."""
    beta = flat("beta", constraints.real_vector, x.shape[1])
    sigma = flat("sigma", constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ beta, sigma), obs=y)


def earnings(earn, height, male):
    x = torch.stack([torch.ones(len(height)), height, male], 1)
    flat_regression(x, earn.log())


def mesquite(weight, diam1, diam2, canopy_height, total_height, density, group):
    logs = [
        diam1 * diam2 * canopy_height,
        diam1 * diam2,
        diam1 / diam2,
        total_height,
        density,
    ]
    columns = [torch.ones(len(weight)), *(column.log() for column in logs), group]
    flat_regression(torch.stack(columns, 1), weight.log())


def nes(partyid7, real_ideo, race_adj, age_discrete, educ1, gender, income):
    ages = [(age_discrete == age).to(real_ideo.dtype) for age in (2, 3, 4)]
    columns = [torch.ones(len(gender)), real_ideo, race_adj, *ages]
    x = torch.stack([*columns, educ1, gender, income], 1)
    flat_regression(x, partyid7)


def kidiq(kid_score, mom_hs, mom_iq):
    x = torch.stack([torch.ones(len(mom_iq)), mom_hs, mom_iq, mom_hs * mom_iq], 1)
    beta = flat("beta", constraints.real_vector, 4)
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ beta, sigma), obs=kid_score)


def blr(X, y):
    beta = pyro.sample("beta", dist.Normal(0.0, 10.0).expand([5]).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfNormal(10.0))
    with pyro.plate("data", len(X)):
        pyro.sample("y", dist.Normal(X @ beta, sigma), obs=y)


def wells(switched, dist_):
    beta = flat("beta", constraints.real_vector, 2)
    with pyro.plate("data", len(dist_)):
        logits = beta[0] + beta[1] * dist_
        pyro.sample("y", dist.Bernoulli(logits=logits), obs=switched)


def glm_poisson(year, C):
    alpha = pyro.sample("alpha", dist.Uniform(-20.0, 20.0))
    betas = [pyro.sample(f"beta{k}", dist.Uniform(-10.0, 10.0)) for k in (1, 2, 3)]
    eta = alpha + sum(beta * year**k for k, beta in enumerate(betas, 1))
    with pyro.plate("data", len(year)):
        pyro.sample("y", dist.Poisson(eta.exp()), obs=C)


def ark(y, K):
    alpha = pyro.sample("alpha", dist.Normal(0.0, 10.0))
    beta = pyro.sample("beta", dist.Normal(0.0, 10.0).expand([K]).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    past = torch.stack([y[K - k : len(y) - k] for k in range(1, K + 1)], 1)
    with pyro.plate("steps", len(y) - K):
        pyro.sample("y", dist.Normal(alpha + past @ beta, sigma), obs=y[K:])


def dugongs(x, Y):
    alpha = pyro.sample("alpha", dist.Normal(0.0, 1000.0))
    beta = pyro.sample("beta", dist.Normal(0.0, 1000.0))
    base = pyro.sample("lambda", dist.Uniform(0.5, 1.0))
    tau = pyro.sample("tau", dist.Gamma(0.0001, 0.0001))
    sigma = pyro.deterministic("sigma", tau**-0.5)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(alpha - beta * base**x, sigma), obs=Y)


def eight_schools_centered(sigma, y):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def eight_schools_noncentered(sigma, y):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        theta_trans = pyro.sample("theta_trans", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * theta_trans, sigma), obs=y)


def garch11(y, sigma1):
    mu = flat("mu")
    alpha0 = flat("alpha0", constraints.positive)
    # A flat density on alpha1 > 0, beta1 > 0, alpha1 + beta1 < 1.
    shares = flat("shares", constraints.simplex, 3)
    alpha1 = pyro.deterministic("alpha1", shares[0])
    beta1 = pyro.deterministic("beta1", shares[1])
    variance = torch.as_tensor(sigma1**2).to(y)
    variances = [variance]
    for shock in ((y - mu) ** 2)[:-1]:
        variance = alpha0 + alpha1 * shock + beta1 * variance
        variances.append(variance)
    with pyro.plate("steps", len(y)):
        pyro.sample("y", dist.Normal(mu, torch.stack(variances).sqrt()), obs=y)


def gauss_mix(y):
    mu = flat("mu", constraints.ordered_vector, 2)
    # Not renormalized to the ordered half of the plane.
    pyro.factor("mu_prior", dist.Normal(0.0, 2.0).log_prob(mu).sum())
    sigma = pyro.sample("sigma", dist.HalfNormal(2.0).expand([2]).to_event(1))
    theta = pyro.sample("theta", dist.Beta(5.0, 5.0))
    shares = dist.Categorical(torch.stack([theta, 1 - theta]))
    with pyro.plate("data", len(y)):
        components = dist.Normal(mu, sigma)
        pyro.sample("y", dist.MixtureSameFamily(shares, components), obs=y)


# In the file's words, a dataset called dist would hide the distributions.
RENAMED = {"dist": "dist_"}

PROGRAMS = {
    "GLM_Poisson_Data-GLM_Poisson_model": glm_poisson,
    "arK-arK": ark,
    "dugongs_data-dugongs_model": dugongs,
    "earnings-logearn_height_male": earnings,
    "eight_schools-eight_schools_centered": eight_schools_centered,
    "eight_schools-eight_schools_noncentered": eight_schools_noncentered,
    "garch-garch11": garch11,
    "kidiq-kidscore_interaction": kidiq,
    "low_dim_gauss_mix-low_dim_gauss_mix": gauss_mix,
    "mesquite-logmesquite_logvas": mesquite,
    "nes1980-nes": nes,
    "sblrc-blr": blr,
    "wells_data-wells_dist": wells,
}


def arguments(data):
    """Return a posterior's data as arguments of its program."""
    return {
        RENAMED.get(name, name): torch.tensor(value, dtype=torch.float64)
        if isinstance(value, list)
        else value
        for name, value in data.items()
    }


def site_values(problem, params):
    """Return the latent sites' values for parameters named as in the reference."""
    params = dict(params)
    if "alpha1" in params:
        pair = [params["alpha1"], params["beta1"]]
        params.update({"shares[1]": pair[0], "shares[2]": pair[1]})
        params["shares[3]"] = 1 - sum(pair)
    values = {}
    for site in problem.latents:
        if site.shape:
            elements = [params[f"{site.name}[{i + 1}]"] for i in range(site.shape[0])]
        else:
            elements = params[site.name]
        values[site.name] = torch.tensor(elements, dtype=torch.float64)
    return values


def table(fit):
    """Return a fit's summary with its parameters named as in the reference."""
    return fit.summary().rename(
        lambda name: re.sub(r"\[(\d+)\]", lambda i: f"[{int(i[1]) + 1}]", name)
    )
