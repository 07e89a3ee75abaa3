"""The runtime folder is the user's alone, or nothing is done in it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from pagemerge.engine.paths import runtime_dir
from pagemerge.errors import EngineError
from tests.support.environment import require


@pytest.fixture
def named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "r"
    monkeypatch.setenv("PAGEMERGE_RUNTIME_DIR", str(path))
    return path


def refusal() -> EngineError:
    with pytest.raises(EngineError) as caught:
        runtime_dir(create=True)
    return caught.value


def test_it_is_made_private(named: Path) -> None:
    before = os.umask(0)
    try:
        assert runtime_dir(create=True) == named
    finally:
        os.umask(before)
    assert stat.S_IMODE(named.stat().st_mode) == 0o700
    assert runtime_dir(create=True) == named


def test_one_that_is_not_there_is_not_made_unasked(named: Path) -> None:
    assert runtime_dir() == named
    assert not named.exists()


def test_one_that_others_may_enter_is_refused(named: Path) -> None:
    named.mkdir()
    named.chmod(0o750)
    error = refusal()
    assert "mode 0750" in str(error)
    assert error.hint == f"chmod 700 {named}"


def test_root_may_visit_any_users_but_does_not_live_there(named: Path) -> None:
    require(os.geteuid() == 0, "root, to give a folder away")
    named.mkdir(mode=0o700)
    os.chown(named, 65534, 65534)
    assert runtime_dir(visiting=True) == named
    assert "belongs to user 65534" in str(refusal())
    with pytest.raises(EngineError, match="belongs to user 65534"):
        runtime_dir()


def test_a_symbolic_link_is_refused(named: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    named.symlink_to(tmp_path / "real")
    assert "symbolic link" in str(refusal())
    named.unlink()
    named.symlink_to(tmp_path / "nowhere")
    assert "symbolic link" in str(refusal())


def test_a_file_is_refused(named: Path) -> None:
    named.touch(mode=0o600)
    assert "not a folder" in str(refusal())


def test_one_that_anybody_can_replace_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = tmp_path / "open"
    parent.mkdir()
    parent.chmod(0o777)
    monkeypatch.setenv("PAGEMERGE_RUNTIME_DIR", str(parent / "r"))
    assert "anybody can replace" in str(refusal())
    parent.chmod(0o1777)
    assert runtime_dir(create=True) == parent / "r"


def test_one_of_another_user_is_refused(named: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("giving a folder away takes root")
    named.mkdir(mode=0o700)
    os.chown(named, 12345, 12345)
    assert "belongs to user 12345" in str(refusal())


def test_a_path_too_long_for_a_socket_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAGEMERGE_RUNTIME_DIR", str(tmp_path / ("x" * 120)))
    assert "too long" in str(refusal())


def test_a_missing_parent_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAGEMERGE_RUNTIME_DIR", str(tmp_path / "a" / "b"))
    assert "No such file" in str(refusal())


def test_the_sessions_folder_is_used_when_it_is_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PAGEMERGE_RUNTIME_DIR", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert runtime_dir() == tmp_path / "pagemerge"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "missing"))
    assert runtime_dir() == Path(f"/tmp/pagemerge-{os.geteuid()}")
