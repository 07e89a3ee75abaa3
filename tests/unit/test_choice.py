"""Which implementation is meant where nobody names one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pagemerge.choice import choose, explain_run, open_ksm
from pagemerge.engine.client import EngineKsm
from pagemerge.errors import CommandError
from tests.support.control_server import serving, short_folder
from tests.support.environment import require

VARIABLES = ("PAGEMERGE_KSM", "PAGEMERGE_RUNTIME_DIR", "PAGEMERGE_AGENT_SOCKET")


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A place for the usual runtime folder, in which no daemon runs, and no variable of ours."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with short_folder() as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
        yield folder


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "run"
    path.write_text("0\n")
    return path


@pytest.mark.usefixtures("home")
def test_the_kernels_is_meant_while_it_is_at_work(run_file: Path) -> None:
    run_file.write_text("1\n")
    assert choose(sys_run=run_file) == "kernel"
    assert choose(sys_run=run_file, starts_engine=True) == "kernel"


@pytest.mark.usefixtures("home")
def test_the_kernels_is_meant_where_it_may_be_switched_on(run_file: Path) -> None:
    assert choose(sys_run=run_file) == "kernel"
    assert choose(sys_run=run_file, starts_engine=True) == "engine"


@pytest.mark.usefixtures("home")
def test_run_says_what_it_has_chosen_where_there_was_another(
    run_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = choose(sys_run=run_file, starts_engine=True)
    assert "the engine was used" in (explain_run(None, chosen, sys_run=run_file) or "")
    run_file.write_text("1\n")
    chosen = choose(sys_run=run_file, starts_engine=True)
    assert "(run=1)" in (explain_run(None, chosen, sys_run=run_file) or "")
    assert explain_run("kernel", chosen, sys_run=run_file) is None
    assert explain_run(None, "engine", sys_run=run_file.with_name("none")) is None
    monkeypatch.setenv("PAGEMERGE_KSM", "engine")
    assert explain_run(None, "engine", sys_run=run_file) is None


def test_a_running_daemon_is_meant_while_the_kernels_is_off(home: Path, run_file: Path) -> None:
    (home / "pagemerge").mkdir(mode=0o700)
    with serving(home / "pagemerge"):
        assert choose(sys_run=run_file) == "engine"
        run_file.write_text("1\n")
        assert choose(sys_run=run_file) == "kernel"


@pytest.mark.usefixtures("home")
def test_who_may_not_switch_it_on_gets_the_engine_but_may_look(run_file: Path) -> None:
    require(os.geteuid() == 0, "root, to be another user for a moment")
    run_file.chmod(0o644)
    for folder in run_file.parents[:-2]:
        folder.chmod(0o755)
    os.seteuid(65534)
    try:
        os.environ["XDG_RUNTIME_DIR"] = ""
        assert choose(sys_run=run_file) == "engine"
        assert choose(sys_run=run_file, looks=True) == "kernel"
    finally:
        os.seteuid(0)


@pytest.mark.usefixtures("home")
def test_without_the_kernels_it_is_the_engine(tmp_path: Path) -> None:
    assert choose(sys_run=tmp_path / "none") == "engine"
    assert choose(sys_run=tmp_path / "none", looks=True) == "engine"


@pytest.mark.usefixtures("home")
def test_a_name_comes_before_a_variable_and_a_variable_before_the_machine(
    run_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_file.write_text("1\n")
    monkeypatch.setenv("PAGEMERGE_RUNTIME_DIR", "/nowhere")
    assert choose(sys_run=run_file) == "engine"
    monkeypatch.setenv("PAGEMERGE_KSM", "kernel")
    assert choose(sys_run=run_file) == "kernel"
    assert choose("engine", sys_run=run_file) == "engine"


@pytest.mark.usefixtures("home")
def test_an_unknown_name_is_refused_by_where_it_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CommandError, match="no implementation 'windows'"):
        choose("windows")
    monkeypatch.setenv("PAGEMERGE_KSM", "both")
    with pytest.raises(CommandError, match="PAGEMERGE_KSM: there is no implementation 'both'"):
        choose()


@pytest.mark.usefixtures("home")
def test_a_runtime_folder_is_the_engines(tmp_path: Path) -> None:
    ksm = open_ksm("engine", runtime_dir=tmp_path)
    assert isinstance(ksm, EngineKsm)
    assert ksm.runtime == tmp_path
