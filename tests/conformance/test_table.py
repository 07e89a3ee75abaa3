"""The list of cases is complete: each has a test, and a place in the documentation's table."""

from __future__ import annotations

import ast
import json
from pathlib import Path

from tests.support.conformance.cases import CASES

RESULTS = Path(__file__).parents[2] / "docs/reference/conformance.json"


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


def test_every_case_is_in_the_table_for_both_implementations() -> None:
    recorded = json.loads(RESULTS.read_text())
    assert recorded["cases"] == CASES
    assert {run["implementation"] for run in recorded["runs"]} == {"engine", "kernel"}
    for run in recorded["runs"]:
        assert set(run["results"]) == set(CASES), f"{run['implementation']} on {run['kernel']}"


def test_the_table_has_no_case_that_fails() -> None:
    failed = [
        (run["implementation"], run["kernel"], name)
        for run in json.loads(RESULTS.read_text())["runs"]
        for name, result in run["results"].items()
        if result["outcome"] == "failed"
    ]
    assert failed == []
