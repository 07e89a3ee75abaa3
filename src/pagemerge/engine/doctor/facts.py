"""What the engine's checks look at: the daemon's answers, and /proc of the processes."""

from __future__ import annotations

from dataclasses import dataclass, field

from pagemerge.ksm.doctor import Facts, Machine, ProcessFacts

__all__ = ["ClientFacts", "DaemonFacts", "EngineFacts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonFacts(Machine):
    """The daemon, as `status` tells of it at two looks.

    Attributes:
        trouble: why it did not answer; None: it did.
        hint: what that error said could be done.
        domains: of its clients.
        registered: processes that its ksmd goes over.
        max_map_count: vm.max_map_count; None where it is not shown.
    """

    trouble: str | None = None
    hint: str | None = None
    domains: tuple[str, ...] = ()
    registered: int = 0
    max_map_count: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientFacts(ProcessFacts):
    """A process, and what the daemon knows of it.

    Attributes:
        row: where the daemon's numbers of it stand.
        is_client: whether its agent has ever come to the daemon.
        has_asked: whether ksmd goes over it, or will in its next pass.
        is_foreign: whether it is another user's.
        obstacle: why the agent can't come into its program.
        elsewhere: another daemon's folder, which its environment names.
        domain: what it shares pages within.
        refused: why its agent merges nothing at the moment, by name; "": it does.
        is_connected: whether its agent's connection stands.
        is_silent: whether its agent owes an answer for too long.
        left_for_vmas: pages that are not merged for want of mappings.
        vmas: its mappings.
        unshared: pages without a twin; volatile: that changed, or are new.
        regions: that the daemon goes over; tracked: those where the kernel tells what was written.
    """

    row: str = ""
    is_client: bool = False
    has_asked: bool = False
    is_foreign: bool = False
    obstacle: str | None = None
    elsewhere: str | None = None
    domain: str = ""
    refused: str = ""
    is_connected: bool = False
    is_silent: bool = False
    left_for_vmas: int = 0
    vmas: int = 0
    unshared: int = 0
    volatile: int = 0
    regions: int = 0
    tracked: int = 0

    @property
    def stat_file(self) -> str:
        """Where the numbers of `ksm` stand."""
        return self.row


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts(Facts):
    """All that the engine's checks look at; see `Facts`."""

    machine: DaemonFacts
    processes: tuple[ClientFacts, ...] = field(default=())
