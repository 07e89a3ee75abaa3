"""Connections when descriptors run out."""

from __future__ import annotations

import os
import resource
import select
import socket
from pathlib import Path

import pytest

from pagemerge.engine.accepting import Door


def test_without_descriptors_a_connection_is_turned_away_and_does_not_wait(tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.setblocking(False)
    listener.bind(str(tmp_path / "s"))
    listener.listen()
    door = Door(listener)
    assert door.accept() is None
    peers = [socket.socket(socket.AF_UNIX) for _ in range(2)]
    for peer in peers:
        peer.settimeout(10)
        peer.connect(str(tmp_path / "s"))
    free = os.dup(0)
    os.close(free)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            os.dup(0)
        assert door.accept() is None
        assert peers[0].recv(1) == b""
        assert door.accept() is None
        assert peers[1].recv(1) == b""
        assert not select.select([listener], [], [], 0)[0]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    peer = socket.socket(socket.AF_UNIX)
    peer.connect(str(tmp_path / "s"))
    accepted = door.accept()
    assert accepted is not None
    for one in (accepted, peer, *peers):
        one.close()
    door.close()
