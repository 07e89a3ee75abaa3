"""Show a process's memory, region by region: what is merged where.

The most merged regions come first; '--by address' keeps the order of /proc/PID/maps.
"""

from __future__ import annotations

import argparse

from pagemerge.commands.options import add_json_option, add_ksm_option, open_ksm

NAME = "regions"
HELP = "show what is merged in each region of a process"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("pid", type=int, metavar="PID")
    parser.add_argument(
        "--by", choices=("saving", "address"), default="saving", help="the order of the rows"
    )
    add_ksm_option(parser)
    add_json_option(parser)


def run(args: argparse.Namespace) -> None:
    """List them."""
    with open_ksm(args) as ksm:
        regions = ksm.regions(args.pid)
    regions.sort(key=lambda region: region.start)
    if args.by == "saving":
        regions.sort(key=lambda region: -(region.merged_bytes or 0) - (region.zero_bytes or 0))
    if args.json:
        from pagemerge.views.data import print_json, region_data

        print_json([region_data(region) for region in regions])
    else:
        from pagemerge.views.processes import print_regions

        print_regions(regions)
