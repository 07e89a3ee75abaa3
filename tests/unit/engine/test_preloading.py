"""What keeps the agent out of a program is found before it runs."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from pagemerge.engine.preloading import why_not_preloaded
from tests.support.environment import require

ENV = {"PATH": os.environ["PATH"]}


def test_ordinary_programs_and_scripts_have_it(tmp_path: Path) -> None:
    assert why_not_preloaded("sh", ENV) is None
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    assert why_not_preloaded(str(script), ENV) is None


@pytest.mark.parametrize(("bit", "name"), [(0o4000, "set-user-ID"), (0o2000, "set-group-ID")])
def test_a_program_that_becomes_somebody_else_has_not(tmp_path: Path, bit: int, name: str) -> None:
    require(os.geteuid() == 0, "root, to give a file away")
    program = tmp_path / "program"
    shutil.copy("/bin/true", program)
    os.chown(program, 65534, 65534)
    program.chmod(0o755 | bit)
    assert why_not_preloaded(str(program), ENV) == f"{program} is {name}"
    script = tmp_path / "script"
    script.write_text(f"#!{program}\n")
    script.chmod(0o755)
    assert why_not_preloaded("script", {"PATH": str(tmp_path)}) == f"{program} is {name}"


def test_a_static_program_has_not(tmp_path: Path) -> None:
    source = tmp_path / "program.c"
    source.write_text("int main(void) { return 0; }\n")
    program = tmp_path / "program"
    built = subprocess.run(["cc", "-static", "-o", program, source], check=False)
    require(built.returncode == 0, "a static C library")
    assert why_not_preloaded(str(program), ENV) == f"{program} is statically linked"


def test_a_program_for_another_processor_has_not(tmp_path: Path) -> None:
    program = tmp_path / "program"
    head = bytearray(Path("/bin/true").resolve().read_bytes()[:64])
    head[18:20] = (8).to_bytes(2, "little")  # EM_MIPS
    program.write_bytes(head)
    program.chmod(0o755)
    found = why_not_preloaded(str(program), ENV)
    assert found == f"{program} is for another kind of processor than the agent"


def test_what_is_not_there_or_no_program_is_left_to_the_kernel(tmp_path: Path) -> None:
    assert why_not_preloaded("no-such-program", ENV) is None
    file = tmp_path / "file"
    file.write_bytes(b"\x7fELF")
    file.chmod(0o755)
    assert why_not_preloaded(str(file), ENV) is None
