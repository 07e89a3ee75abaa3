"""Advice as code: the calls to write into a C, Python or Rust program."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Final

from pagemerge.errors import CommandError
from pagemerge.insight.advise import Advice, AdvisedRegion
from pagemerge.units import PAGE_SIZE, pages_to_bytes, render_bytes, render_name

__all__ = ["LANGUAGES", "RegionKind", "group_regions", "render_snippet"]

LANGUAGES: Final = ("c", "python", "rust")
_NEAR: Final = 0.1  # sizes so near to each other are taken for the same kind of buffer


@dataclass(slots=True)
class RegionKind:
    """Regions alike in several processes: of the same program and name, about the same size.

    Attributes:
        is_buffer: whether the program has an address for it.
    """

    command: str
    name: str
    perms: str
    size_bytes: int
    regions: int
    saved_pages: float

    @property
    def is_buffer(self) -> bool:
        """Whether it is an anonymous mapping, which a program made itself."""
        return not self.name or self.name.startswith("[anon")


def group_regions(advice: Advice) -> list[RegionKind]:
    """Gather what is one buffer in the program's source, the most useful first."""
    groups: dict[tuple[str, str, str], list[AdvisedRegion]] = defaultdict(list)
    for advised in advice.regions:
        region = advised.region
        # dumps are, for all that one can tell, of one program: their names say nothing of it
        program = region.command if region.pid else ""
        groups[program, region.name, region.perms].append(advised)
    kinds = []
    for (_, name, perms), members in groups.items():
        command = members[0].region.command
        members.sort(key=lambda advised: advised.region.start - advised.region.end)
        kind: RegionKind | None = None
        for advised in members:
            region = advised.region
            size = region.end - region.start
            if kind is None or size < kind.size_bytes * (1 - _NEAR):
                kind = RegionKind(command, name, perms, size, 0, 0.0)
                kinds.append(kind)
            kind.regions += 1
            kind.saved_pages += region.saved_pages + region.zero_pages
    return sorted(kinds, key=lambda kind: -kind.saved_pages)


def render_snippet(advice: Advice, language: str) -> str:
    """Write the calls.

    Raises:
        CommandError: there is no such language.
    """
    if language not in LANGUAGES:
        raise CommandError(f"no language {language!r}", hint=f"one of {', '.join(LANGUAGES)}")
    kinds = group_regions(advice)
    if not kinds:
        return ""
    mark = {"c": "//", "rust": "//", "python": "#"}[language]
    lines = [_HEADS[language]]
    whole = [kind for kind in kinds if not kind.is_buffer]
    for kind in kinds:
        if kind.is_buffer:
            lines += [
                f"{mark} {render_name(kind.command)}: {_about(kind)}; buffer: where it begins",
                _CALLS[language].format(size=kind.size_bytes),
            ]
    if whole:
        lines.append(
            f"{mark} No buffer of the program's own, so for all of the process (Linux 6.4):"
        )
        lines += [
            f"{mark}   {render_name(f'{kind.command}: {kind.name}')} {kind.perms}, {_about(kind)}"
            for kind in whole
        ]
        lines.append(_WHOLE[language])
    return "\n".join(lines) + "\n"


def _about(kind: RegionKind) -> str:
    saved = render_bytes(pages_to_bytes(round(kind.saved_pages)))
    pages = kind.size_bytes // PAGE_SIZE
    return f"{kind.regions} x {render_bytes(kind.size_bytes)} ({pages} pages), saves {saved}"


_HEADS: Final = {
    "c": "#include <stdint.h>\n#include <stdio.h>\n#include <sys/mman.h>\n#include <sys/prctl.h>\n",
    "python": "import ctypes, os\n\nlibc = ctypes.CDLL(None, use_errno=True)\n",
    "rust": '// Cargo.toml: libc = "0.2"\n',
}
# What malloc and NumPy give begins some bytes after the page's beginning that madvise asks for.
_CALLS: Final = {
    "c": (
        "if (madvise((void *)((uintptr_t)buffer & -4096), {size}, MADV_MERGEABLE))\n"
        '\tperror("madvise");\n'
    ),
    "python": (
        "# a NumPy array, a bytearray, or an mmap.mmap with flags=mmap.MAP_PRIVATE | "
        "mmap.MAP_ANONYMOUS:\n"
        "# by default that would be shared memory, which is not merged\n"
        "start = ctypes.addressof(ctypes.c_char.from_buffer(buffer)) & -4096\n"
        "if libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t({size}), 12):  # MADV_MERGEABLE\n"
        "    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))\n"
    ),
    "rust": (
        "let start = (buffer as usize & !4095) as *mut _;\n"
        "if unsafe {{ libc::madvise(start, {size}, libc::MADV_MERGEABLE) }} != 0 {{\n"
        '    eprintln!("madvise: {{}}", std::io::Error::last_os_error());\n}}\n'
    ),
}
_WHOLE: Final = {
    "c": 'if (prctl(67 /* PR_SET_MEMORY_MERGE */, 1, 0, 0, 0))\n\tperror("prctl");',
    "python": (
        "if libc.prctl(67, 1, 0, 0, 0):  # PR_SET_MEMORY_MERGE\n"
        "    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))"
    ),
    "rust": (
        "if unsafe { libc::prctl(67 /* PR_SET_MEMORY_MERGE */, 1, 0, 0, 0) } != 0 {\n"
        '    eprintln!("prctl: {}", std::io::Error::last_os_error());\n}'
    ),
}
