"""Show where a process's memory is merged, region by region: by the kernel also where it is not.

The most merged regions come first; '--by address' keeps the order of /proc/PID/maps. 'own' is what
of a region is the process's own (anonymous): all that ksmd can look at. 'mergeable' says whether
it does: 'not marked' by madvise or prctl; or why it never would.

With --cgroup or --unit the regions of all processes there are summed by what is mapped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from pagemerge.commands.options import add_json_option, add_ksm_option, open_ksm, parse_pid
from pagemerge.commands.watching import add_top_option, add_watch_option, rows_of, show
from pagemerge.errors import (
    CommandError,
    EngineError,
    NotPermittedError,
    ProcessGoneError,
)
from pagemerge.ksm import Ksm, Region, group_regions

NAME = "regions"
HELP = "show what is merged in each region of a process"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("pid", type=parse_pid, nargs="?", metavar="PID", help="a process")
    parser.add_argument(
        "--cgroup",
        action="append",
        default=[],
        metavar="PATH",
        help="all processes of a cgroup instead, summed by what is mapped",
    )
    parser.add_argument(
        "--unit", action="append", default=[], help="all processes of a systemd unit, likewise"
    )
    parser.add_argument(
        "--by", choices=("saving", "address"), default="saving", help="the order of the rows"
    )
    add_top_option(parser)
    add_watch_option(parser)
    add_ksm_option(parser)
    add_json_option(parser)


def run(args: argparse.Namespace) -> None:
    """List them.

    Raises:
        CommandError: not one process, and no cgroup or unit either.
    """
    groups = [*args.cgroup, *args.unit]
    if bool(groups) == (args.pid is not None):
        raise CommandError(
            "one process, or cgroups and units", hint="pagemerge regions PID | --cgroup PATH"
        )
    with open_ksm(args) as ksm:
        draw = _print_groups if groups else _print_regions
        show(args, lambda lines: draw(args, ksm, lines))


def _print_regions(args: argparse.Namespace, ksm: Ksm, lines: int) -> None:
    regions = ksm.regions(args.pid)
    regions.sort(key=lambda region: region.start)
    if args.by == "saving":
        regions.sort(key=_order)
    if args.json:
        from pagemerge.views.data import print_json_rows, region_data

        shown = regions[: args.top or None]
        print_json_rows(region_data(ksm.implementation, region) for region in shown)
    else:
        from pagemerge.views.processes import print_regions

        print_regions(ksm.implementation, args.pid, regions, rows_of(args, lines))


def _print_groups(args: argparse.Namespace, ksm: Ksm, lines: int) -> None:
    from pagemerge.insight.targets import find_targets

    found = find_targets(cgroups=args.cgroup, units=args.unit)
    processes: list[Sequence[Region]] = []
    left_out = 0
    for target in found.items:
        try:
            processes.append(ksm.regions(target.pid))
        except ProcessGoneError:
            continue
        except (EngineError, NotPermittedError):
            left_out += 1
    groups = group_regions(processes)
    if args.json:
        from pagemerge.views.data import group_data, print_json_rows

        shown = groups[: args.top or None]
        print_json_rows(group_data(ksm.implementation, group) for group in shown)
    else:
        from pagemerge.views.processes import print_groups

        what = f"{', '.join([*args.cgroup, *args.unit])}: {len(processes)} processes"
        print_groups(ksm.implementation, what, groups, rows_of(args, lines))
    if left_out:
        why = "have no agent" if ksm.implementation == "engine" else "may not be looked at"
        sys.stderr.write(
            f"note: left out of the sums: {left_out} of {len(found.items)} processes {why}\n"
        )


def _order(region: Region) -> tuple[int, int, int]:
    """Put the most merged first, then what could be merged if it were asked for."""
    merged = (region.merged_bytes or 0) + (region.zero_bytes or 0)
    able = 0 if region.mergeable else 1 if not region.obstacle else 2
    return -merged, able, -(region.anonymous_bytes or 0)
