"""A torch that has renamed what it does not publish costs one service each."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode

import probsl
from probsl.isolation import torch_state

PRIVATE = [
    ("torch.overrides", "_get_current_function_mode_stack"),
    ("torch.overrides", "_push_mode"),
    ("torch.utils._python_dispatch", "_get_current_dispatch_mode_stack"),
    ("torch.utils._python_dispatch", "_is_in_torch_dispatch_mode"),
    (
        "torch.utils._python_dispatch",
        "set_is_in_mode_without_ignore_compile_internals",
    ),
    ("torch.utils._device", "CURRENT_DEVICE"),
    ("torch._C", "_functorch"),
]


def loaded():
    """Return the module as a torch of another version would have it."""
    file = Path(probsl.__file__).parent / "isolation" / "torch_state.py"
    spec = importlib.util.spec_from_file_location("torch_state_again", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("where", "name"), PRIVATE)
def test_a_name_that_is_gone_costs_no_more_than_its_service(where, name, monkeypatch):
    owner = importlib.import_module(where)
    monkeypatch.delattr(owner, name)
    module = loaded()
    module.set_function_modes(module.function_modes())
    module.set_dispatch_modes(module.dispatch_modes())
    module.leave_vectorized(module.vectorized_depth())
    module.set_default_device(module.default_device())
    assert (owner, name) not in module.NOTES


def test_modes_are_taken_away_and_put_back():
    class Mode(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            raise AssertionError

    with Mode() as mode:
        assert torch_state.function_modes() == [mode]
        torch_state.set_function_modes([])
        assert torch.zeros(1).tolist() == [0.0]
        torch_state.set_function_modes([mode])
        with pytest.raises(AssertionError):
            torch.zeros(1)
