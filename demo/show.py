"""How the demo looks: live on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from demo.measure import Machine, Memory

__all__ = ["MergeProgress", "Show"]

MIB = 2**20
PAGE = 4096


class MergeProgress(Protocol):
    """Shows how far merging is."""

    def update(self, sharing: int, answered: int) -> None:
        """Show pages_sharing, and the requests that were answered so far."""


class _Live:
    def __init__(self, progress: Progress, goal: int) -> None:
        self._progress = progress
        self._goal = goal
        self._task = progress.add_task("merging", total=goal, saved="", answered=0)

    def update(self, sharing: int, answered: int) -> None:
        self._progress.update(
            self._task,
            completed=min(sharing, self._goal),
            saved=f"{sharing * PAGE / MIB:,.0f} MiB",
            answered=answered,
        )


class _Plain:
    """A line at each tenth of the way."""

    def __init__(self, show: Show, goal: int) -> None:
        self._show = show
        self._goal = goal
        self._tenths = 0

    def update(self, sharing: int, answered: int) -> None:
        tenths = min(10, 10 * sharing // self._goal)
        if tenths > self._tenths:
            self._tenths = tenths
            self._show.say(
                f"  {tenths * 10:3} %  {sharing * PAGE / MIB:6,.0f} MiB shared, "
                f"{answered} requests answered meanwhile"
            )


class Show:
    """Prints, and keeps count of what was not as claimed."""

    def __init__(self) -> None:
        """Look at what stdout is."""
        self._console = Console(highlight=False)
        if not self._console.is_terminal:
            self._console = Console(highlight=False, width=100)
        self._failed = 0

    def say(self, text: str) -> None:
        """Print a line."""
        self._console.print(text)

    @contextlib.contextmanager
    def progress(self, goal: int) -> Iterator[MergeProgress]:
        """Show the way to so many pages_sharing."""
        if not self._console.is_terminal:
            yield _Plain(self, goal)
            return
        columns = (
            TextColumn("  [progress.description]{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %  {task.fields[saved]} shared"),
            TextColumn("[dim]{task.fields[answered]} requests answered meanwhile"),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self._console) as progress:
            yield _Live(progress, goal)

    def saving(
        self,
        names: Sequence[str],
        before: Sequence[Memory],
        after: Sequence[Memory],
        daemon: Memory,
    ) -> None:
        """Tabulate memory before and after merging."""
        table = Table(title="memory by the kernel's count (smaps_rollup), MiB")
        table.add_column("process")
        for heading in ("Rss before", "Rss after", "Pss before", "Pss after", "saved"):
            table.add_column(heading, justify="right")
        for name, then, now in zip(names, before, after, strict=True):
            numbers = (then.rss, now.rss, then.pss, now.pss, then.pss - now.pss)
            table.add_row(name, *(_mib(number) for number in numbers))
        table.add_row("the daemon", "-", _mib(daemon.rss), "-", _mib(daemon.pss), _mib(-daemon.pss))
        table.add_section()
        pss_before, pss_after = sum(m.pss for m in before), sum(m.pss for m in after) + daemon.pss
        table.add_row(
            "all", "", "", _mib(pss_before), _mib(pss_after), _mib(pss_before - pss_after)
        )
        self._console.print(table)

    def machine(self, before: Machine, after: Machine) -> None:
        """Print MemAvailable of the whole machine."""
        self.say(
            f"MemAvailable of the machine: {_mib(before.available)} MiB before, "
            f"{_mib(after.available)} MiB after: "
            f"{(after.available - before.available) / MIB:+,.1f} MiB"
        )
        others = after.others - before.others
        if abs(others) > 8 * MIB:
            self.say(
                f"  (other processes on it {'took' if others > 0 else 'gave back'} "
                f"{_mib(abs(others))} MiB meanwhile)"
            )

    def cost(self, facts: Mapping[str, object], answered: int) -> None:
        """Print what it cost."""
        cpu = facts.get("cpu_seconds")
        if isinstance(cpu, float):
            self.say(f"CPU spent by the daemon: {cpu:.2f} s; requests answered: {answered}")

    def writing(
        self, names: Sequence[str], before: Sequence[Memory], after: Sequence[Memory], size: int
    ) -> None:
        """Tabulate memory before and after one worker wrote."""
        table = Table(title=f"after {names[0]} wrote to {_mib(size)} MiB of pages, MiB")
        table.add_column("process")
        for heading in ("Pss before", "Pss after", "grown", "own before", "own after", "grown"):
            table.add_column(heading, justify="right")
        for name, then, now in zip(names, before, after, strict=True):
            numbers = (then.pss, now.pss, now.pss - then.pss, then.own, now.own, now.own - then.own)
            table.add_row(name, *(_mib(number) for number in numbers))
        self._console.print(table)

    def check(self, passed: bool, claim: str) -> None:
        """Say whether a claim holds."""
        self._failed += not passed
        self.say(f"[green]✓[/] {claim}" if passed else f"[red]✗ NOT SO:[/] {claim}")

    def verdict(self) -> int:
        """The exit status."""
        if self._failed:
            self.say(f"[red]{self._failed} claims did not hold.[/]")
        return 1 if self._failed else 0


def _mib(size: int) -> str:
    return f"{size / MIB:,.1f}"
