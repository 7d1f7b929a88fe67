"""The tests that wait for a GPU are listed in the guide, each of them and no other."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
GUIDE = TESTS.parent / "docs" / "gpus.md"
REASON = "torch sees no CUDA device"


def waits(decorator, named):
    """Whether a decorator, or the name of one, skips a test where there is no GPU."""
    if isinstance(decorator, ast.Name):
        return decorator.id in named
    return isinstance(decorator, ast.Call) and any(
        isinstance(each.value, ast.Constant) and each.value.value == REASON for each in decorator.keywords
    )


def waiting_tests():
    for file in sorted(TESTS.rglob("test_*.py")):
        if file.is_relative_to(TESTS / "perf"):
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        assigned = [node for node in tree.body if isinstance(node, ast.Assign) and waits(node.value, ())]
        named = {target.id for node in assigned for target in node.targets if isinstance(target, ast.Name)}
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and any(waits(each, named) for each in node.decorator_list):
                yield f"{file.relative_to(TESTS)}::{node.name}"


def test_the_guide_lists_the_tests_that_wait_for_a_gpu():
    section = GUIDE.read_text(encoding="utf-8").partition("## Tests that wait for a GPU")[2].partition("\n## ")[0]
    listed = re.findall(r"^- `(\S+)`: ", section, re.MULTILINE)
    assert sorted(listed) == sorted(waiting_tests())


def test_no_test_waits_for_a_gpu_with_another_reason():
    """Else it would be missing from the list."""
    for file in sorted(TESTS.rglob("test_*.py")):
        for match in re.finditer(r"skipif\(not torch\.cuda\.is_available\(\), reason=\"([^\"]*)\"", file.read_text()):
            assert match[1] == REASON, file
