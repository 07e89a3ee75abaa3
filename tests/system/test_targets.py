"""Targets by cgroup and unit, in real cgroups."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pagemerge.insight import find_targets
from tests.support.victims import holder


@pytest.fixture
def folder() -> Iterator[Path]:
    """A cgroup of version 2 named as systemd names a unit's."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    roots = [Path(words[1]) for words in mounts if words[2] == "cgroup2"]
    if not roots or not roots[0].is_relative_to("/sys/fs/cgroup"):
        pytest.skip("no cgroups of version 2 below /sys/fs/cgroup")
    path = roots[0] / f"pagemerge-test-{os.getpid()}.slice/pm{os.getpid()}.service"
    try:
        path.mkdir(parents=True)
    except OSError as error:
        pytest.skip(f"cgroups can't be made: {error}")
    yield path
    path.rmdir()
    path.parent.rmdir()


def test_a_cgroup_means_its_processes_and_those_below(folder: Path) -> None:
    with holder({}) as inside, holder({}) as outside:
        try:
            (folder / "cgroup.procs").write_text(str(inside.pid))
        except OSError as error:
            pytest.skip(f"processes can't be moved: {error}")
        inside.ask("same x 10")
        unit, above = folder.name, folder.parent.name
        for targets in (
            find_targets(cgroups=[f"/{above}"]),
            find_targets(cgroups=[str(folder)]),
            find_targets(units=[unit]),
            find_targets(units=[unit.removesuffix(".service")]),
        ):
            assert [target.pid for target in targets.items] == [inside.pid]
        argv = [sys.executable, "-m", "pagemerge", "estimate", "--json", "--unit", unit]
        done = subprocess.run(argv, capture_output=True, check=True)
        assert outside.pid != inside.pid
    (process,) = json.loads(done.stdout)["processes"]
    assert process["pid"] == inside.pid
