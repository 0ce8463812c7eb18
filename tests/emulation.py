"""A device that is none: tensors in memory that refuse to mix with others.

It shows what a GPU would refuse, a tensor that was left on the CPU or made there by
chance, and nothing about CUDA itself: neither its kernels, nor its generators, nor its
graphs.
"""

from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    return_and_correct_aliasing,
)

from probsl.data import placement
from probsl.isolation import torch_state
from probsl.noise import modes

# Torch knows this device everywhere, and no kernel of it is ever reached.
DEVICE = torch.device("meta")
aten = torch.ops.aten
# These take tensors of two devices, as on a GPU: copies, and indices on the CPU.
_ACROSS = {aten.copy_.default, aten._to_copy.default}
_INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
# A zero that is not there has no place in a tensor that only looks like one.
_REPLACED = {aten._efficientzerotensor.default: aten.zeros.default}


class Remote(torch.Tensor):
    """A tensor that says it is on the device, and holds one that is not."""

    is_meta = False  # it has numbers

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


# The generators of the device by which a call draws.
_drawing = []


class RemoteGenerator(torch.Generator):
    """A generator of the device, which counts on the CPU."""


class Emulation(TorchDispatchMode):
    """Answers calls that make tensors on the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _call(func, args, kwargs or {})


class Numbers(TorchFunctionMode):
    """Answers what torch would do out of sight of the other mode."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return _ANSWERS.get(func, _as_it_is)(func, args, kwargs or {})


def _as_it_is(func, args, options):
    generator = options.get("generator")
    if not isinstance(generator, RemoteGenerator):
        return func(*args, **options)
    # The dispatcher would see a generator like any other.
    _drawing.append(generator)
    try:
        return func(*args, **options)
    finally:
        _drawing.pop()


def _made(func, args, options):
    """Copy numbers to the device, of which torch would make an empty tensor."""
    device = torch.device(options.get("device") or torch.get_default_device())
    if device != DEVICE:
        return func(*args, **options)
    if isinstance(args[0], torch.Tensor):
        return args[0].to(device, options.get("dtype"))
    return func(*args, **{**options, "device": "cpu"}).to(device)


def _made_like(func, args, options):
    if args[0].device != DEVICE:
        return func(*args, **options)
    options = {"dtype": args[0].dtype, **options, "device": "cpu"}
    return torch.tensor(args[1], **options).to(DEVICE)


def _set_data(func, args, options):
    """Give a tensor other numbers, which else would only look like having them."""
    if isinstance(args[0], Remote):
        args[0].held = args[1].held
        return None
    return func(*args, **options)


def _at(func, args, options):
    """Make the index of a list on the CPU, and no empty one on the device."""
    if isinstance(args[1], list):
        args = (args[0], torch.tensor(args[1], device="cpu"), *args[2:])
    return func(*args, **options)


def _listed(func, args, options):
    return func(args[0].cpu(), **options)


_ANSWERS = {
    torch.tensor: _made,
    torch.as_tensor: _made,
    torch.Tensor.new_tensor: _made_like,
    torch.Tensor.data.__set__: _set_data,
    torch.Tensor.__getitem__: _at,
    torch.Tensor.__setitem__: _at,
    torch.Tensor.tolist: _listed,
}


def _call(func, args, kwargs):
    remote, local = [], []

    def held(value):
        if isinstance(value, Remote):
            remote.append(value)
            return value.held
        assert value.device != DEVICE, f"{func} got a tensor that no mode has seen"
        if value.dim():
            local.append(tuple(value.shape))
        return value

    given = _each(held, args)
    options = {name: _each(held, value) for name, value in kwargs.items()}
    indices = func in _INDEXED and isinstance(args[0], Remote)
    if remote and local and func not in _ACROSS and not indices:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but {func} got {local} on "
            "the CPU"
        )
    there = bool(remote)
    if options.get("device") is not None:
        there = torch.device(options["device"]) == DEVICE
        options["device"] = torch.device("cpu")
    if func is aten.copy_.default:
        there = isinstance(args[0], Remote)
    if there and options.get("generator") is not None and not _drawing:
        raise RuntimeError(f"{func} draws on the device by a generator of the CPU")
    result = _REPLACED.get(func, func)(*given, **options)
    if remote and torch.Tag.inplace_view in func.tags:
        # What the tensor says of its shape has to change too.
        return return_and_correct_aliasing(func, args, kwargs, args[0])
    if not there:
        return result
    known = {id(value.held): value for value in remote}
    return _each(
        lambda value: known[id(value)] if id(value) in known else Remote(value), result
    )


def _each(function, value):
    """Apply a function to a tensor, or to each in a list; torch's own is slow."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, list | tuple):
        return type(value)([_each(function, each) for each in value])
    return value


def _generator_on(device):
    return RemoteGenerator("cpu") if device == DEVICE else torch.Generator(device)


def _without_emulation(modes):
    return lambda: [m for m in modes() if not isinstance(m, Emulation | Numbers)]


@contextmanager
def emulated(monkeypatch):
    """Let a fit compute on the device for a block, if it is asked to."""
    monkeypatch.setattr(placement, "_available", torch.device)
    monkeypatch.setattr(modes, "generator_on", _generator_on)
    # Modes of the caller's do not reach into a fit, but these stand for a device.
    for stack in ("function_modes", "dispatch_modes"):
        others = _without_emulation(getattr(torch_state, stack))
        monkeypatch.setattr(torch_state, stack, others)
    # Else torch.tensor copies to the device where no mode sees it.
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        with Emulation(), Numbers():
            yield
    finally:
        torch._C._set_only_lift_cpu_tensors(before)
