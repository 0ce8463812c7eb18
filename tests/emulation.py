"""A device that is none: tensors in memory that refuse to mix with others.

It shows what a GPU would refuse, a tensor that was left on the CPU or made there by
chance, and nothing about CUDA itself: neither its kernels, nor its generators, nor its
graphs.
"""

from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from probsl import data

# Torch knows this device everywhere, and no kernel of it is ever reached.
DEVICE = torch.device("meta")
aten = torch.ops.aten
# These take tensors of two devices, as on a GPU: copies, and indices on the CPU.
_ACROSS = {aten.copy_.default, aten._to_copy.default}
_INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}


class Remote(torch.Tensor):
    """A tensor that says it is on the device, and holds one that is not."""

    @staticmethod
    def __new__(cls, held):
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        made.held = held
        return made

    def __repr__(self):
        return f"Remote({self.held})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _call(func, args, kwargs or {})


class Emulation(TorchDispatchMode):
    """Answers calls that make tensors on the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _call(func, args, kwargs or {})


class Numbers(TorchFunctionMode):
    """Copies numbers to the device, where torch itself would make an empty tensor."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor):
            device = torch.device(kwargs.get("device") or torch.get_default_device())
            if device == DEVICE and isinstance(args[0], torch.Tensor):
                return args[0].to(device, kwargs.get("dtype"))
            if device == DEVICE:
                return func(*args, **{**kwargs, "device": "cpu"}).to(device)
        if func is torch.Tensor.new_tensor and args[0].device == DEVICE:
            options = {"dtype": args[0].dtype, **kwargs, "device": "cpu"}
            return torch.tensor(args[1], **options).to(DEVICE)
        if func is torch.Tensor.tolist and args[0].device == DEVICE:
            return args[0].cpu().tolist()
        return func(*args, **kwargs)


def _call(func, args, kwargs):
    given = [v for v in tree_flatten((args, kwargs))[0] if isinstance(v, torch.Tensor)]
    remote = [v for v in given if isinstance(v, Remote)]
    local = [v for v in given if not isinstance(v, Remote) and v.dim()]
    indices = func in _INDEXED and isinstance(args[0], Remote)
    if remote and local and func not in _ACROSS and not indices:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but {func} got "
            f"{[tuple(v.shape) for v in local]} on the CPU"
        )
    there = bool(remote)
    if kwargs.get("device") is not None:
        there = torch.device(kwargs["device"]) == DEVICE
        kwargs = {**kwargs, "device": torch.device("cpu")}
    if func is aten.copy_.default:
        there = isinstance(args[0], Remote)
    known = {id(v.held): v for v in remote}
    args, kwargs = tree_map(
        lambda v: v.held if isinstance(v, Remote) else v, (args, kwargs)
    )
    result = func(*args, **kwargs)

    def wrapped(value):
        if not isinstance(value, torch.Tensor) or not there:
            return value
        seen = known.get(id(value))
        return Remote(value) if seen is None else seen

    return tree_map(wrapped, result)


@contextmanager
def emulated(monkeypatch):
    """Let a fit compute on the device for a block, if it is asked to."""
    monkeypatch.setattr(data, "_available", torch.device)
    # Else torch.tensor copies to the device where no mode sees it.
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        with Emulation(), Numbers():
            yield
    finally:
        torch._C._set_only_lift_cpu_tensors(before)
