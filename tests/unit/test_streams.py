"""Streams of random numbers: one for each seed and name, the same everywhere."""

import ast
import itertools
import subprocess
import sys
from pathlib import Path
from typing import get_args

import torch

import probsl
from probsl.noise.streams import Stream, stream, stream_seed

NAMES = get_args(Stream)
SEEDS = (0, 1, 2, 3, 2**32, 2**64 + 1)


def numbers(seed, name):
    return torch.randn(8, generator=stream(seed, name), dtype=torch.float64)


def test_the_same_seed_and_name_give_the_same_stream():
    for seed, name in itertools.product(SEEDS, NAMES):
        assert torch.equal(numbers(seed, name), numbers(seed, name))


def test_other_seeds_or_names_give_other_streams():
    found = [
        tuple(numbers(seed, name).tolist())
        for seed, name in itertools.product(SEEDS, NAMES)
    ]
    everything = list(itertools.chain(*found))
    assert len(set(everything)) == len(everything)


def test_streams_are_uncorrelated():
    """Of 2,850 correlations of 1,000 numbers none exceeds 5.4 standard errors.

    Once in 4,000 sets of seeds one would by chance.
    """
    pairs = list(itertools.product(range(7), NAMES))[:76]
    drawn = torch.stack([torch.randn(1000, generator=stream(*pair)) for pair in pairs])
    correlations = torch.corrcoef(drawn) - torch.eye(len(pairs))
    assert correlations.abs().max() < 0.17


def test_a_stream_is_the_same_in_every_process_and_on_every_platform():
    assert stream_seed(0, "rows") == 6_475_264_788_320_334_612
    code = "from probsl.noise.streams import *; print(stream_seed(7, 'noise'))"
    # Python salts the hashes of this process otherwise.
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONHASHSEED": "1", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(ran.stdout) == stream_seed(7, "noise")


def is_seed(node):
    """Whether an expression is a variable or an attribute `seed`."""
    return "seed" in (getattr(node, "id", ""), getattr(node, "attr", ""))


def test_no_stream_is_made_by_arithmetic_of_a_seed():
    """Streams of `seed + 1` are those of the next seed."""
    root = Path(probsl.__file__).parent
    found = [
        f"{path.relative_to(root)}:{node.lineno}"
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.BinOp) and (is_seed(node.left) or is_seed(node.right))
    ]
    assert not found
