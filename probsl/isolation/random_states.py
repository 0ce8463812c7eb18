"""The states of the generators from which an objective may draw, as one value."""

from __future__ import annotations

import torch
from torch import Tensor

from probsl.isolation.calls import _OPEN, Snapshot, _cuda_index, own_generator

# Marks the generators of the innermost block, which nothing else uses.
_OWN = "own "


def random_states(device: torch.device) -> dict[str, Tensor]:
    """Return the states of torch's generators and of those of the innermost block.

    Parameters
    ----------
    device
        Device of the objective; the CPU is always included.
    """
    found = {"cpu": torch.get_rng_state()}
    for index in _cuda_index(device):
        found[f"cuda:{index}"] = torch.cuda.get_rng_state(index)
    for block in _innermost():
        for place, generator in block.generators.items():
            found[f"{_OWN}{place}"] = generator.get_state()
    return found


def restore_random_states(states: dict[str, Tensor]) -> None:
    """Return all of them to earlier states."""
    for block in _innermost():
        block.generators.clear()  # those made later begin at the seed of the block
    for name, state in states.items():
        device = torch.device(name.removeprefix(_OWN))
        if name.startswith(_OWN):
            own_generator(device).set_state(state)
        elif device.type == "cuda":
            torch.cuda.set_rng_state(state, device)
        else:
            torch.set_rng_state(state)


def _innermost() -> list[Snapshot]:
    """Return a list of the innermost block with generators of its own, if any."""
    return [block for block in _OPEN if block.seed is not None][-1:]
