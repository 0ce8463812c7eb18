"""Fits on the device that is emulated, beside those on the CPU."""

import torch
from emulation import DEVICE
from methods import ADAM, DEEP
from programs import problem

import probsl

# Emulation takes its time.
FEW = 12 if DEEP else 6
NOISY = {"optimizer": ADAM, "max_steps": FEW}


def fit_on(device, name, method, data=None, **options):
    """Fit a program of a name."""
    case = problem(name)
    data = case.data if data is None else data()
    options = {"compile": False, **options}
    return probsl.fit(case.program, data, method, device=device, **options)


def on_both(name, method, data=None, **options):
    """Fit a program on the device and on the CPU."""
    return [fit_on(each, name, method, data, **options) for each in (DEVICE, "cpu")]


def same(found, expected):
    """Compare what is on the device with what is on the CPU."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name].cpu(), value), name


def same_fit(fit, plain, draws=3):
    """Compare a fit on the device with that on the CPU.

    Both are to be made under emulation: under any dispatch mode torch takes a few
    operations apart, and rounds otherwise.
    """
    point, drawn = fit.point(), fit.draw(draws)
    found = [*point.values(), *drawn.values(), *fit.posterior.own.values()]
    assert {value.device for value in found} == {DEVICE}
    assert fit.status is plain.status
    assert fit.note == plain.note
    assert torch.equal(fit.losses, plain.losses)
    same(point, plain.point())
    same(drawn, plain.draw(draws))
