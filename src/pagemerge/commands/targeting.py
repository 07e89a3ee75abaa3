"""Arguments of `estimate` and `advise`: whose memory, and how to look at it."""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from pagemerge.commands.options import parse_pid, parse_time
from pagemerge.errors import CommandError, PagemergeError
from pagemerge.ksm import KnobValue, known_knob

if TYPE_CHECKING:
    from pagemerge.insight import EstimateOptions, Targets

__all__ = ["ProgressLine", "add_look_options", "add_target_options", "look_options", "targets_of"]


def add_target_options(parser: argparse.ArgumentParser) -> None:
    """Declare TARGET and the options that name processes; `targets_of` reads them."""
    group = parser.add_argument_group("targets")
    group.add_argument(
        "targets",
        nargs="*",
        metavar="TARGET",
        help="a process's number, or a file: an ELF core, a QEMU/libvirt dump, a raw image",
    )
    group.add_argument(
        "--tree",
        type=parse_pid,
        action="append",
        default=[],
        metavar="PID",
        help="with descendants",
    )
    group.add_argument(
        "--name", action="append", default=[], metavar="PATTERN", help="by command, like 'redis*'"
    )
    group.add_argument(
        "--cgroup", action="append", default=[], metavar="PATH", help="all processes of a cgroup"
    )
    group.add_argument(
        "--unit", action="append", default=[], help="all processes of a systemd unit"
    )
    group.add_argument("--all", action="store_true", help="all processes")


def add_look_options(parser: argparse.ArgumentParser) -> None:
    """Declare how to look; `look_options` reads them."""
    group = parser.add_argument_group("looking")
    group.add_argument(
        "--mergeable", action="store_true", help="only regions that are marked mergeable already"
    )
    group.add_argument(
        "--settle",
        metavar="TIME",
        help="look a second time after so long (10s); what changed meanwhile is volatile",
    )
    group.add_argument(
        "--sample", default="1", metavar="1/N", help="keep one content in N, for big machines"
    )
    group.add_argument("--threads", type=int, default=0, help="that read (default: one a core)")
    knobs = parser.add_argument_group("knobs to assume (default: the kernel's own)")
    knobs.add_argument(
        "--max-page-sharing", type=int, metavar="N", help=known_knob("max_page_sharing").meaning
    )
    knobs.add_argument(
        "--use-zero-pages", type=int, choices=(0, 1), help=known_knob("use_zero_pages").meaning
    )
    knobs.add_argument(
        "--pages-to-scan", type=int, metavar="N", help=known_knob("pages_to_scan").meaning
    )
    knobs.add_argument(
        "--sleep-millisecs", type=int, metavar="MS", help=known_knob("sleep_millisecs").meaning
    )


def targets_of(args: argparse.Namespace) -> Targets:
    """Find what the arguments mean.

    Raises:
        CommandError: they mean nothing.
    """
    from pagemerge.insight import find_targets

    return find_targets(
        args.targets,
        trees=args.tree,
        names=args.name,
        cgroups=args.cgroup,
        units=args.unit,
        everything=args.all,
    )


def look_options(
    args: argparse.Namespace, knobs: Mapping[str, KnobValue | None] | None = None
) -> EstimateOptions:
    """Read how to look; knobs that are not given are these, by default the kernel's.

    Raises:
        CommandError: an argument makes no sense.
    """
    from pagemerge.insight import EstimateOptions

    usual = _kernel_knobs() if knobs is None else _numbers(knobs)
    values = {
        name: given if (given := getattr(args, name)) is not None else usual.get(name, default)
        for name, default in (
            ("max_page_sharing", 256),
            ("use_zero_pages", 0),
            ("pages_to_scan", 100),
            ("sleep_millisecs", 20),
        )
    }
    return EstimateOptions(
        mergeable=args.mergeable,
        sample=_parse_sample(args.sample),
        settle_seconds=None if args.settle is None else parse_time("--settle", args.settle),
        threads=args.threads,
        **values,
    )


def _parse_sample(text: str) -> int:
    """Read 1/N, or N."""
    head, slash, tail = text.partition("/")
    number = tail if slash else head
    if not number.isdigit() or not 1 <= int(number) <= 1 << 20 or (slash and head.strip() != "1"):
        raise CommandError(f"--sample {text}: no share", hint="write it like 1/16")
    return int(number)


def _kernel_knobs() -> dict[str, int]:
    """Read the kernel's knobs; none where it has no KSM."""
    # by name: builds without the kernel's implementation estimate, too
    with (
        suppress(ImportError, PagemergeError),
        importlib.import_module("pagemerge.kernel").KernelKsm() as ksm,
    ):
        return _numbers(ksm.knobs.read())
    return {}


def _numbers(knobs: Mapping[str, KnobValue | None]) -> dict[str, int]:
    return {name: value for name, value in knobs.items() if isinstance(value, int)}


class ProgressLine:
    """A bar on stderr where that is a terminal, once a read has taken half a second."""

    def __init__(self) -> None:
        """Begin to count time."""
        self._begin = time.monotonic()
        self._shown = ""

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show how far it is."""
        if not sys.stderr.isatty() or time.monotonic() - self._begin < 0.5 or not total:
            return
        width = 30
        filled = min(width, width * done // total)
        share = min(100, 100 * done // total)
        bar = "#" * filled + "." * (width - filled)
        line = f"\r{what:<12} [{bar}] {share:3} %"
        if line == self._shown:
            return
        sys.stderr.write(line)
        sys.stderr.flush()
        self._shown = line

    def clear(self) -> None:
        """Wipe the line."""
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._shown = ""
