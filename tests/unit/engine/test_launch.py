"""The environment that brings the agent into a program."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pagemerge.engine.launch import agent_environment
from pagemerge.engine.paths import agent_library
from pagemerge.errors import CommandError

RUNTIME = Path("/tmp/nowhere")


def test_the_agent_comes_before_what_is_preloaded_already() -> None:
    library = str(agent_library())
    base = {"LD_PRELOAD": f"/a.so:/b.so {library}", "HOME": "/h"}
    environment = agent_environment(RUNTIME, base=base)
    assert environment["LD_PRELOAD"] == f"{library} /a.so /b.so"
    assert environment["HOME"] == "/h"
    assert environment["PAGEMERGE_AGENT_SOCKET"] == "/tmp/nowhere/agent.sock"
    assert base["LD_PRELOAD"] == f"/a.so:/b.so {library}"


def test_all_and_the_domain_are_said_only_when_asked_for() -> None:
    plain = agent_environment(RUNTIME, base={"PAGEMERGE_ALL": "1", "PAGEMERGE_CONNECT": "1"})
    assert not plain.keys() & {"PAGEMERGE_ALL", "PAGEMERGE_CONNECT", "PAGEMERGE_DOMAIN"}
    assert agent_environment(RUNTIME, connect=True, base={})["PAGEMERGE_CONNECT"] == "1"
    asked = agent_environment(RUNTIME, everything=True, domain="blue", base={})
    assert (asked["PAGEMERGE_ALL"], asked["PAGEMERGE_DOMAIN"]) == ("1", "blue")


def test_a_domain_that_would_be_cut_is_refused() -> None:
    agent_environment(RUNTIME, domain="x" * 63, base={})
    with pytest.raises(CommandError, match="63 bytes"):
        agent_environment(RUNTIME, domain="é" * 32, base={})


def test_a_preloaded_program_answers_prctl_for_the_engine() -> None:
    """PR_GET_MEMORY_MERGE is the engine's there, also on kernels that know it not."""
    code = "import ctypes; print(ctypes.CDLL(None).prctl(68, 0, 0, 0, 0))"
    for everything in (False, True):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=agent_environment(RUNTIME, everything=everything, base=os.environ),
            capture_output=True,
            text=True,
            check=True,
        )
        assert (done.stdout, done.stderr) == (f"{int(everything)}\n", "")
