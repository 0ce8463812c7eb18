"""The program in the README runs, and prints what the README says."""

import doctest
import re
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"


def test_the_python_blocks_run_as_printed():
    # Only what is inside the fences: doctest would read a closing fence as output.
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.M | re.S)
    source = "\n".join(blocks)
    test = doctest.DocTestParser().get_doctest(source, {}, "README.md", str(README), 0)
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE

    printed: list[str] = []
    runner = doctest.DocTestRunner(optionflags=options, verbose=False)
    failed, attempted = runner.run(test, out=printed.append)

    assert attempted > 0
    assert failed == 0, "".join(printed)


def test_the_first_block_is_the_two_commands():
    first = re.search(r"^```\w*\n(.*?)^```", README.read_text(), re.M | re.S)
    assert first is not None
    assert first[1].split("\n") == ["make demo", "make test", ""]
