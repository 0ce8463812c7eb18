"""Where steps cannot be made fast they are made slowly, and a sentence says why."""

import importlib.util
import sys
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from methods import ADAM
from pyro.infer.autoguide import AutoNormal

import probsl
from probsl.engine.compile import compiled
from probsl.engine.steps.step import Step, Walk

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(30, 2, generator=GENERATOR)
DATA = {
    "x": X,
    "group": torch.arange(30) % 3,
    "y": X[:, 0] + torch.randn(30, generator=GENERATOR),
}
METHODS = {
    "MAP": probsl.MAP(optimizer=ADAM, max_steps=4),
    "SVI": probsl.SVI(AutoNormal, optimizer=ADAM, max_steps=4),
}


def program_with(factor):
    def program(x, group, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        mean = w * x[:, 0] * factor(w, group)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    return program


def by_item(w, group):
    return 1.0 + w.detach().item()


def by_float(w, group):
    return 1.0 + float(w.detach())


def by_int(w, group):
    count = int(w.detach() + 2.5)
    return torch.ones(count).sum()


def by_if(w, group):
    return 1.0 if w > 0.2 else 2.0


def by_range(w, group):
    total = 0.0
    for i in range((w.detach() * 0).long() + 2):
        total += i
    return total


def by_index(w, group):
    return [1.0, 2.0, 3.0][(w.detach() * 0).long() + 1]


def by_larger(w, group):
    return max(w, w * 2)


def by_text(w, group):
    return float(f"{w.detach():.1f}")


def by_comparison(w, group):
    return 1.0 if torch.allclose(w, w * w) else 2.0


def by_numpy(w, group):
    return float(w.detach().numpy() + 1.0)


def by_pyro(w, group):
    counts = dist.Binomial((w.detach() * 0).round() + 2, 0.5)
    return counts.enumerate_support().sum()


def by_loop(w, group):
    total = 0.0
    for i in pyro.plate("loop", 3):
        total += i
    return total


# Since Python 3.12 a field of a formatted string has a place of its own.
FORMATTED = "{w.detach():.1f}"
if sys.version_info < (3, 12):
    FORMATTED = f'f"{FORMATTED}"'
# What it is read by, and the code that does so.
READS = {
    by_item: (".item()", "w.detach().item()"),
    by_float: ("float()", "float(w.detach())"),
    by_int: ("int()", "int(w.detach() + 2.5)"),
    by_if: ("`if`, `while` or bool()", "w > 0.2"),
    by_range: ("range() or an index", "range((w.detach() * 0).long() + 2)"),
    by_index: ("range() or an index", "[1.0, 2.0, 3.0][(w.detach() * 0).long() + 1]"),
    by_larger: ("`if`, `while` or bool()", "max(w, w * 2)"),
    by_text: ("a formatted string", FORMATTED),
    by_comparison: ("torch.allclose", "torch.allclose(w, w * w)"),
    by_numpy: (".numpy()", "return float(w.detach().numpy() + 1.0)"),
    by_pyro: ("int() in torch.distributions.binomial", "counts.enumerate_support()"),
    by_loop: (
        ".item() in pyro.poutine.indep_messenger",
        'for i in pyro.plate("loop", 3):',
    ),
}
PARAGRAPHS = ("tracing tensor", "data-dependent", "make_fx", "vmap", "\n")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("factor", READS)
def test_a_value_that_is_read_is_named_with_its_place(factor, method):
    program = program_with(factor)
    expected = probsl.fit(program, DATA, METHODS[method], compile=False)
    with pytest.warns(UserWarning, match="not compiled") as warned:
        fit = probsl.fit(program, DATA, METHODS[method], compile=True)
    assert fit.compiled_from is None
    assert torch.equal(fit.losses, expected.losses)
    by, code = READS[factor]
    first = factor.__code__.co_firstlineno
    sentence = (
        "the steps are not compiled, because the program reads the value of a tensor "
        f"by {by}: `{code}`, {__file__}:"
    )
    assert sentence in fit.note
    line, _, function = fit.note.partition(f"{__file__}:")[2].partition(" in ")
    assert first < int(line) < first + 5
    assert function == factor.__name__
    texts = [fit.note, *(str(one.message) for one in warned)]
    assert not any(part in text for part in PARAGRAPHS for text in texts)


def broken(x):
    raise NotImplementedError("a paragraph of torch")


def test_what_has_no_graph_is_named_with_its_place():
    made = Step(broken)
    with pytest.warns(UserWarning, match="not compiled"):
        assert not made.trace([[torch.ones(3)]] * 2)
    code = 'raise NotImplementedError("a paragraph of torch")'
    assert made.reason.startswith(
        "the steps are not compiled, because the program cannot be recorded as a graph "
        f"(NotImplementedError: `{code}`, {__file__}:"
    )


# Everything of torch that is not public and that compiled steps stand on.
PRIVATE_MODULES = [
    "torch.fx.experimental.proxy_tensor",
    "torch.fx.experimental.symbolic_shapes",
    "torch._guards",
    "torch._inductor.compile_fx",
    "torch._inductor.decomposition",
    "torch._subclasses.fake_tensor",
    "probsl.engine.compile.capture",
    "probsl.engine.compile.compiled",
]
PRIVATE_NAMES = [
    ("torch.fx.experimental.proxy_tensor", "make_fx"),
    ("torch.fx.experimental.symbolic_shapes", "ShapeEnv"),
    ("torch._guards", "TracingContext"),
    ("torch._guards", "tracing"),
    ("torch._inductor.compile_fx", "compile_fx_inner"),
    ("torch._inductor.decomposition", "select_decomp_table"),
    ("torch._subclasses.fake_tensor", "FakeTensorMode"),
    ("torch.func", "functionalize"),
]


def imported(module):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of torch about itself
        return importlib.import_module(module)


def halfway(state, given):
    moved = (state + given * state.cos()) / 2
    return moved, moved.square().sum()


def walk():
    given = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
    return Walk(Step(halfway), torch.ones(4), [given])


@pytest.fixture(autouse=True)
def nothing_at_hand(monkeypatch):
    """Forget what was compiled before."""
    monkeypatch.setattr(compiled, "_COMPILED", {})


def goes_slowly(words):
    """Check that steps are made, that they are right, and what is said."""
    made, eager = walk(), walk()
    with pytest.warns(UserWarning, match="the steps are not compiled, because") as seen:
        assert not made.compile()
    assert not made.compile()
    assert len(seen) == 1
    assert words in made.step.reason
    assert "\n" not in made.step.reason
    assert not made.is_compiled()
    made.run(10)
    eager.run(10)
    torch.testing.assert_close(made.state, eager.state)
    torch.testing.assert_close(made.losses, eager.losses)


@pytest.mark.parametrize("name", PRIVATE_MODULES)
def test_a_module_that_is_missing_makes_steps_slower(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    goes_slowly(f"torch {torch.__version__} failed at it (ModuleNotFoundError")


@pytest.mark.parametrize(("module", "name"), PRIVATE_NAMES)
def test_a_name_that_is_missing_makes_steps_slower(module, name, monkeypatch):
    monkeypatch.delattr(imported(module), name)
    goes_slowly(f"torch {torch.__version__} failed at it (")


@pytest.mark.parametrize(("module", "name"), PRIVATE_NAMES)
def test_a_name_that_works_in_another_way_makes_steps_slower(module, name, monkeypatch):
    def changed(*_, **__):
        raise TypeError("got an unexpected keyword\nand a paragraph about it")

    monkeypatch.setattr(imported(module), name, changed)
    goes_slowly("")


def test_code_that_computes_something_else_is_not_trusted(monkeypatch):
    def wrong(graph, inputs, fixed):
        return lambda given: [r * (1 + 1e-3) for r in graph(*given)]

    monkeypatch.setattr(compiled, "_compile", wrong)
    goes_slowly("compiled they give other results")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_code_that_is_finite_elsewhere_is_not_trusted(value, monkeypatch):
    """Where the density is zero the loss is not finite, in compiled code as well."""

    def wrong(graph, inputs, fixed):
        return lambda given: [
            r.nan_to_num(value, value, value) if r.dim() == 0 else r
            for r in graph(*given)
        ]

    def half(state, given):
        return state / 2, torch.where(given[0] > 0, state.sum(), -torch.inf)

    monkeypatch.setattr(compiled, "_compile", wrong)
    made = Walk(Step(half), torch.ones(4), [torch.randn(10, 4)])
    if value == 0.0:
        with pytest.warns(UserWarning, match="other results"):
            assert not made.compile()
    else:
        assert made.compile()


def test_inductors_output_in_another_form_is_called_as_it_is(monkeypatch):
    """What is heard of a compiled function is inductor's own affair."""
    plain = walk()
    assert plain.compile()
    monkeypatch.setattr("probsl.engine.compile.recorded_calls._LOOPS", "renamed")
    made = walk()
    assert made.compile()
    assert made._replay is None
    assert made.step.reason == (
        "each compiled step is called by torch, because it does more than call loops "
        "and operations"
    )
    for one in (made, plain):
        one.run(10)
    assert torch.equal(made.losses, plain.losses)


def test_without_what_makes_calls_again_steps_are_compiled(monkeypatch):
    monkeypatch.setitem(sys.modules, "probsl.engine.compile.replay", None)
    made = walk()
    assert made.compile()
    assert "each compiled step is called by torch, because torch" in made.step.reason


def test_compiled_code_that_fails_later_makes_steps_slower():
    made, eager = walk(), walk()
    assert made.compile()
    made._stop_replaying()

    def fails(_):
        raise AssertionError("expected size 4==4, stride 1==2 at dim=0")

    made.run(5)
    made.step.code = fails
    with pytest.warns(UserWarning, match="from some step on they are not compiled"):
        made.run(10)
    eager.run(10)
    torch.testing.assert_close(made.losses, eager.losses)


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (torch, "_sample_dirichlet"),
        (torch, "_standard_gamma"),
        (torch.distributions.dirichlet, "_Dirichlet"),
    ],
)
def test_samplers_that_torch_calls_something_else_by_now(owner, name, monkeypatch):
    monkeypatch.delattr(owner, name)
    spec = importlib.util.find_spec("probsl.noise.vmapped")
    again = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "vmapped_again", again)
    spec.loader.exec_module(again)
    with again.independent_draws():
        draw = torch.func.vmap(
            lambda mean: torch.normal(mean, 1.0), randomness="different"
        )
        draws = draw(torch.zeros(3))
    assert len(draws.unique()) == 3
