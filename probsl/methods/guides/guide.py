"""A guide as a function of its own parameters."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from pyro.distributions import MultivariateNormal
from pyro.infer.autoguide import AutoLowRankMultivariateNormal
from torch import Tensor

from probsl.program.scoring import Scoring

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from probsl.program.problem import Problem
    from probsl.program.scoring import Batch
    from probsl.program.stateless_callable import OwnParameter, StatelessCallable


class Guide:
    """A guide whose parameters are explicit.

    Attributes
    ----------
    functional
        The guide as a function of its own parameters and the program's arguments.
    name
        Its name in messages.
    chosen
        Whether it was chosen by default and not by the user.
    shared
        Own parameter of the guide -> the parameter of the program that it is, too.
    """

    def __init__(
        self,
        problem: Problem,
        functional: StatelessCallable,
        name: str,
        *,
        chosen: bool,
    ) -> None:
        self.functional = functional
        self.name = name
        self.chosen = chosen
        self._problem = problem
        self.shared: dict[str, str] = {}

    def share(self, own: Sequence[OwnParameter]) -> None:
        """Find the parameters that are shared with the program.

        Raises
        ------
        ValueError
            If the shapes of a shared one differ.
        """
        places = {key: p for p in own for key in p.keys}
        transforms = {}
        for mine in self.functional.own_parameters:
            theirs = next((places[k] for k in mine.keys if k in places), None)
            if theirs is None:
                continue
            if theirs.start.shape != mine.start.shape:
                raise ValueError(
                    f"parameter '{mine.name}' has the shape {tuple(mine.shape)} in the "
                    f"guide and {tuple(theirs.shape)} in the program, where one name "
                    "is one parameter; give both one shape, or each its own name"
                )
            self.shared[mine.name] = theirs.name
            transforms[mine.name] = theirs.transform
        self.functional.adopt(transforms)

    @property
    def redundant(self) -> bool:
        """Whether different parameters give the same distribution (rotations)."""
        return isinstance(self.functional.function, AutoLowRankMultivariateNormal)

    def score(self, own: Mapping[str, Tensor], batch: Batch) -> Scoring:
        """Run the guide and return the values and log densities of its sites."""
        scoring = _GuideScoring({})
        with scoring:
            self._problem.call(self.functional, own, batch.arguments)
        return scoring


class _GuideScoring(Scoring):
    """Draws multivariate normals explicitly, and scores them by their components.

    The density of ``loc + L z`` is known from z and the diagonal of L. From the value
    alone it requires solving a triangular system, the most expensive step.
    """

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__(values)
        self._white: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        super()._pyro_sample(msg)
        fn = msg["fn"]
        if type(fn) is not MultivariateNormal or msg["done"] or msg["is_observed"]:
            return
        shape = fn.batch_shape + fn.event_shape
        white = torch.randn(shape, dtype=fn.loc.dtype, device=fn.loc.device)
        tril = fn._unbroadcasted_scale_tril
        # A compiler fuses a matrix-vector product with the surrounding operations.
        plain = tril.dim() == 2 and white.dim() == 1
        spread = tril.mv(white) if plain else (tril @ white[..., None]).squeeze(-1)
        msg["value"] = fn.loc + spread
        msg["done"] = True
        self._white[msg["name"]] = white

    def density(self, msg: Any) -> Tensor:
        """Return the log density of a site's value, without scale and mask."""
        white = self._white.get(msg["name"])
        if white is None:
            return super().density(msg)
        diagonal = msg["fn"]._unbroadcasted_scale_tril.diagonal(dim1=-2, dim2=-1)
        constant = white.shape[-1] * math.log(2 * math.pi)
        squares: Tensor = white.square().sum(-1)
        half_log_determinant: Tensor = diagonal.log().sum(-1)
        return -(squares + constant) / 2 - half_log_determinant
