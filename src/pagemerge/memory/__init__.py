"""A process's memory, as /proc tells it: mappings, sizes, sharing, times, and the machine's.

`parse_*` are pure; `read_*` take the folder to read (`proc`), which may be a recorded machine's.
"""

from pagemerge.memory.files import PROC, iter_pids, read_process_file, read_process_text, reading
from pagemerge.memory.machine import (
    parse_meminfo,
    parse_vmstat,
    read_max_map_count,
    read_meminfo,
    read_uptime_seconds,
    read_vmstat,
    splitting_frees_zero_pages,
)
from pagemerge.memory.maps import Vma, parse_maps, parse_maps_line, read_maps
from pagemerge.memory.processes import (
    ProcessStat,
    Statm,
    parse_stat,
    parse_statm,
    read_comm,
    read_cpu_seconds,
    read_live_threads,
    read_stat,
    read_statm,
    read_thread_states,
    read_tree,
)
from pagemerge.memory.smaps import (
    Smap,
    SmapRow,
    parse_smaps,
    parse_smaps_rollup,
    parse_smaps_rows,
    read_smaps,
    read_smaps_rollup,
    read_smaps_rows,
)

__all__ = [
    "PROC",
    "ProcessStat",
    "Smap",
    "SmapRow",
    "Statm",
    "Vma",
    "iter_pids",
    "parse_maps",
    "parse_maps_line",
    "parse_meminfo",
    "parse_smaps",
    "parse_smaps_rollup",
    "parse_smaps_rows",
    "parse_stat",
    "parse_statm",
    "parse_vmstat",
    "read_comm",
    "read_cpu_seconds",
    "read_live_threads",
    "read_maps",
    "read_max_map_count",
    "read_meminfo",
    "read_process_file",
    "read_process_text",
    "read_smaps",
    "read_smaps_rollup",
    "read_smaps_rows",
    "read_stat",
    "read_statm",
    "read_thread_states",
    "read_tree",
    "read_uptime_seconds",
    "read_vmstat",
    "reading",
    "splitting_frees_zero_pages",
]
