"""The list of cases is complete: each has a test."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.support.conformance.cases import CASES


def cases_with_tests() -> set[str]:
    """The names in the `@case(...)` of all tests here."""
    found = set()
    for path in Path(__file__).parent.glob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "case":
                found |= {ast.literal_eval(argument) for argument in node.args}
    return found


def test_every_case_has_a_test() -> None:
    assert cases_with_tests() == set(CASES)
