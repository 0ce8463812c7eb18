"""The role of every site, and what each method does with it.

The table is the documentation; the tests below read it and compare it with what `fit`
does. Its words:

- dropped: the site is estimated, its prior is no part of the objective
- weighed: its log prior is multiplied by ``prior_weight``
- kept: its distribution is part of the objective whatever ``prior_weight``
- integrated: the likelihood is to be integrated over it, which `fit` refuses with the
  names of the sites, and of the argument that asks for something else
- free: a parameter without a prior
- summed: summed out, exactly
- likelihood: part of the objective of every method
- reported: no part of the objective

MLE, MAP and the free parameters of SVI are points; SVI gives every other latent a
distribution.
"""

import itertools
import re
from functools import partial

import pyro
import pytest
import torch
from programs import PROBLEMS, problem
from pyro import poutine
from pyro.infer.autoguide import AutoDelta, AutoNormal
from torch.distributions import biject_to

import probsl
from probsl.problem import Problem
from probsl.sites import Role

TABLE = """
program              site            role            MLE()       integrate=()  MAP         SVI

centered groups      mu              parameter       dropped     dropped       weighed     weighed
                     tau             parameter       dropped     dropped       weighed     weighed
                     theta           random effect   integrated  dropped       kept        kept
                     y               observed        likelihood  likelihood    likelihood  likelihood

noncentered groups   mu              parameter       dropped     dropped       weighed     weighed
                     tau             parameter       dropped     dropped       weighed     weighed
                     z               parameter       dropped     dropped       weighed     weighed
                     theta           deterministic   reported    reported      reported    reported
                     y               observed        likelihood  likelihood    likelihood  likelihood

factor model         first           parameter       dropped     dropped       weighed     weighed
                     others          parameter       dropped     dropped       weighed     weighed
                     sigma           parameter       dropped     dropped       weighed     weighed
                     f               random effect   integrated  dropped       kept        kept
                     y               observed        likelihood  likelihood    likelihood  likelihood

horseshoe            tau             parameter       dropped     dropped       weighed     weighed
                     lam             parameter       dropped     dropped       weighed     weighed
                     w               random effect   integrated  dropped       kept        kept
                     y               observed        likelihood  likelihood    likelihood  likelihood

mixture              share           parameter       dropped     dropped       weighed     weighed
                     low             parameter       dropped     dropped       weighed     weighed
                     gap             parameter       dropped     dropped       weighed     weighed
                     which           enumerated      summed      summed        summed      summed
                     y               observed        likelihood  likelihood    likelihood  likelihood

mixed model          beta            parameter       dropped     dropped       weighed     weighed
                     tau             parameter       dropped     dropped       weighed     weighed
                     sigma           parameter       dropped     dropped       weighed     weighed
                     u               random effect   integrated  dropped       kept        kept
                     y               observed        likelihood  likelihood    likelihood  likelihood

hidden Markov model  stay            parameter       dropped     dropped       weighed     weighed
                     low             parameter       dropped     dropped       weighed     weighed
                     gap             parameter       dropped     dropped       weighed     weighed
                     state_0         enumerated      summed      summed        summed      summed
                     y_0             observed        likelihood  likelihood    likelihood  likelihood
                     state_1         enumerated      summed      summed        summed      summed
                     y_1             observed        likelihood  likelihood    likelihood  likelihood
                     state_2         enumerated      summed      summed        summed      summed
                     y_2             observed        likelihood  likelihood    likelihood  likelihood

LKJ covariance       mu              parameter       dropped     dropped       weighed     weighed
                     scale           parameter       dropped     dropped       weighed     weighed
                     correlation     parameter       dropped     dropped       weighed     weighed
                     factor          deterministic   reported    reported      reported    reported
                     y               observed        likelihood  likelihood    likelihood  likelihood

own parameters       slope           parameter       dropped     dropped       weighed     weighed
                     penalty         factor          likelihood  likelihood    likelihood  likelihood
                     double          deterministic   reported    reported      reported    reported
                     y               observed        likelihood  likelihood    likelihood  likelihood
                     TREND.intercept own parameter   free        free          free        free
                     TREND.scale     own parameter   free        free          free        free
                     NET.weight      own parameter   free        free          free        free
                     NET.bias        own parameter   free        free          free        free
                     shift           own parameter   free        free          free        free
"""  # noqa: E501
