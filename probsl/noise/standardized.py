"""Fixed quasi-random draws with the exact moments of their distribution."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from probsl.noise.record import NoiseRecord


# The most draws that represent a distribution, and their elements.
_MOST_DRAWS, _MOST_ELEMENTS = 4096, 4_000_000


def representative_count(elements: int) -> int:
    """Return how many draws represent a distribution of as many numbers.

    Whitening costs the square of their number for each draw, so that above 1,414
    numbers there are so few draws that none is done.

    Examples
    --------
    >>> from probsl.noise.standardized import representative_count
    >>> [representative_count(size) for size in (1, 1_000, 1_500, 1_000_000)]
    [4096, 4000, 1500, 64]
    """
    size = max(elements, 1)
    count = max(64, min(_MOST_DRAWS, _MOST_ELEMENTS // size))
    return count if count >= 2 * size else min(count, max(size, 64))


def standardized(recorded: NoiseRecord, count: int, seed: int) -> Tensor:
    """Return quasi-random draws with the exact moments of the noise.

    Scrambled Sobol points (Owen 1998; Joe and Kuo 2008 for the directions), or
    independent points above 21,201 dimensions, are mapped through the normal quantile
    function for normal columns and kept for uniform ones. Draws are antithetic pairs
    z, -z (u, 1 - u for uniforms), so that odd moments vanish; an unpaired one is at the
    center. Normal columns are then whitened: if `count` exceeds their number, their
    second moment (divisor `count`) is the identity, so that the mean of a quadratic
    form over the draws is exact; otherwise only each column has variance one.

    Pairs have rank `count // 2`. If that is too small for whitening, but `count`
    itself is not, the draws are centered instead of paired.

    Parameters
    ----------
    recorded
        The result of `record`.
    count
        Number of draws; powers of two are the most uniform.
    seed
        Seed of the scrambling; torch's global generator is not used.

    Returns
    -------
    Tensor
        Shape [count, dimension], computed in float64, in the record's dtype and on
        its device.

    Raises
    ------
    ValueError
        If the record has an obstacle, or `count` is less than one.

    Examples
    --------
    >>> import torch
    >>> from probsl.noise.record import record
    >>> from probsl.noise.standardized import standardized
    >>> noise = record(torch.randn, 3)
    >>> draws = standardized(noise, 16, seed=0)
    >>> torch.allclose(draws.T @ draws / 16, torch.eye(3), atol=1e-6)
    True
    """
    recorded._require_replayable()
    if count < 1:
        raise ValueError(f"At least one draw is needed, not {count}.")
    columns, edges = recorded._uniform
    normal = torch.ones(recorded.dimension, dtype=torch.bool, device="cpu")
    normal[columns] = False
    dimension = int(normal.sum())
    paired = count // 2 >= dimension or count <= dimension
    rows = count // 2 if paired else count
    points = _equidistributed(rows, recorded.dimension, seed)
    z = torch.special.ndtri(points[:, normal])
    z = _whitened(z if paired else z - z.mean(0), count / 2 if paired else count)
    draws = torch.empty(count, recorded.dimension, dtype=torch.float64, device="cpu")
    draws[:, normal] = _paired(z, 0.0, count) if paired else z
    uniform = points[:, columns]
    draws[:, columns] = _paired(uniform, 0.5, count) if paired else uniform
    draws = draws.to(recorded.dtype)
    draws[:, columns] = torch.clamp(draws[:, columns], edges, 1 - edges)
    return draws.to(recorded.device)


def _equidistributed(count: int, dimension: int, seed: int) -> Tensor:
    """Return points in the open unit cube, shape [count, dimension]."""
    if not count or not dimension:
        return torch.empty(count, dimension, dtype=torch.float64, device="cpu")
    engine = torch.quasirandom.SobolEngine
    if dimension <= engine.MAXDIM:
        sobol = engine(dimension, scramble=True, seed=seed)  # type: ignore[no-untyped-call]
        points = sobol.draw(count, dtype=torch.float64)
    else:
        points = torch.rand(
            count,
            dimension,
            generator=torch.Generator("cpu").manual_seed(seed),
            dtype=torch.float64,
            device="cpu",
        )
    # Sobol numbers are multiples of 2**-30; zero is one of them.
    edge = 2.0 ** -(engine.MAXBIT + 1)
    return points.clamp(edge, 1 - edge)


def _paired(half: Tensor, center: float, count: int) -> Tensor:
    """Return `half`, its reflection about `center`, and the center for odd `count`."""
    middle = half.new_full((count % 2, half.shape[1]), center)
    return torch.cat([half, 2 * center - half, middle])


def _whitened(z: Tensor, total: float) -> Tensor:
    """Find the nearest matrix of shape [rows, columns] with `z.T @ z = total * I`.

    That is the polar factor (Higham 1986). With fewer rows than columns there is none,
    and only the diagonal is made equal to `total`.
    """
    whitened: Tensor
    if z.shape[0] < z.shape[1]:
        norms = torch.linalg.vector_norm(z, dim=0)
        whitened = z / norms.clamp_min(torch.finfo(z.dtype).tiny)
    else:
        left, _, right = torch.linalg.svd(z, full_matrices=False)
        whitened = left @ right
    return math.sqrt(total) * whitened
