"""Memory in files: ELF cores (processes, and guests by QEMU's dump-guest-memory), raw images."""

from __future__ import annotations

import errno
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from pagemerge.errors import FormatError, NotPermittedError
from pagemerge.units import PAGE_SIZE

__all__ = ["DumpRegion", "read_dump_regions"]

_PT_LOAD: Final = 1
_PT_NOTE: Final = 4
_NT_FILE: Final = 0x46494C45
_ET_CORE: Final = 4
_PN_XNUM: Final = 0xFFFF
_SEGMENT_LAYOUTS: Final = {True: "IIQQQQ", False: "IIIIIII"}  # by ELF64; the fields that are used
_ADDRESSES: Final = (1 << 64) - PAGE_SIZE

_VIRSH = "make an ELF dump: virsh dump --memory-only, or QEMU's dump-guest-memory without -z/-l/-s"
_RESTORE = f"restore it paused (virsh restore --paused), then {_VIRSH}"
# Formats whose bytes are not the memory's, and what to do about it.
_OTHERS: Final[tuple[tuple[bytes, str, str], ...]] = (
    (b"LibvirtQemudSave", "libvirt's save format (a migration stream)", _RESTORE),
    (b"LibvirtQemudPart", "a libvirt save that was not finished", "save it again, or " + _VIRSH),
    (b"QEVM", "QEMU's migration stream", _VIRSH),
    (b"KDUMP   ", "kdump's compressed format", _VIRSH),
    (b"makedumpfile", "makedumpfile's flattened format", _VIRSH),
    (b"EMiL", "LiME's format", "have it write format=padded"),
    (b"PAGEDU", "a crash dump of Windows", "give a dump of memory by the hypervisor"),
    (b"QFI\xfb", "a qcow2 disk image", "give a dump of memory"),
    (b"\x1f\x8b", "compressed (gzip)", "decompress it first"),
    (b"\x28\xb5\x2f\xfd", "compressed (zstd)", "decompress it first"),
    (b"\xfd7zXZ", "compressed (xz)", "decompress it first"),
    (b"\x04\x22\x4d\x18", "compressed (lz4)", "decompress it first"),
)

_TEXT: Final = b"\t\n\f\r\x1b" + bytes(range(0x20, 0x7F))
_TARGETS: Final = "a target is a process's number or a dump of memory"
_KINDS: Final = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a character device"),
)


@dataclass(frozen=True, slots=True)
class DumpRegion:
    """A stretch of memory in a file; `start`, `end`, `offset` in bytes, whole pages."""

    start: int
    end: int
    offset: int
    perms: str
    name: str


def read_dump_regions(path: Path) -> list[DumpRegion]:
    """Find the memory in a file.

    Raises:
        FormatError: it is no dump of memory, or a cut-short one.
        NotPermittedError: it may not be read.
    """
    try:
        _check_kind(path)
        with path.open("rb") as file:
            return _read_regions(file, path)
    except PermissionError as error:
        raise NotPermittedError(f"{path}: reading it is not permitted", where=str(path)) from error
    except OSError as error:
        if error.errno == errno.EMFILE:
            raise  # says nothing of this file
        what = "no such file" if isinstance(error, FileNotFoundError) else error.strerror
        raise FormatError(f"{path}: {what}", hint=_TARGETS) from error


def _check_kind(path: Path) -> None:
    """Refuse what holds no memory, before opening it could wait for a writer (FIFO)."""
    mode = path.stat().st_mode
    what = next((what for is_kind, what in _KINDS if is_kind(mode)), None)
    if what is not None:
        raise FormatError(f"{path}: {what}, no dump of memory", hint=_TARGETS)


def _read_regions(file: BinaryIO, path: Path) -> list[DumpRegion]:
    size = file.seek(0, 2)
    file.seek(0)
    head = file.read(64)
    if head[:4] == b"\x7fELF":
        return _read_elf(file, path, head, size)
    for magic, what, hint in _OTHERS:
        if head.startswith(magic):
            raise FormatError(f"{path}: is {what}, not an image of memory", hint=hint)
    if size == 0:
        raise FormatError(f"{path}: is empty")
    if size % PAGE_SIZE:
        raise FormatError(
            f"{path}: {size} bytes are no whole number of pages of {PAGE_SIZE} bytes, and it is "
            "no ELF core: no image of memory, or a cut-short one",
        )
    if _is_text(file, size):
        raise FormatError(f"{path}: is text, not an image of memory", hint=_TARGETS)
    return [DumpRegion(0, size, 0, "rw-p", "[image]")]


def _is_text(file: BinaryIO, size: int) -> bool:
    """Whether a file without a magic is text at its beginning, in its middle and at its end."""
    for offset in (0, size // 2, size - PAGE_SIZE):
        file.seek(offset)
        if file.read(PAGE_SIZE).translate(None, _TEXT):
            return False
    return True


def _read_elf(file: BinaryIO, path: Path, head: bytes, size: int) -> list[DumpRegion]:
    if len(head) < 52 or head[4] not in (1, 2) or head[5] not in (1, 2):
        raise FormatError(f"{path}: its ELF header is cut short or broken")
    order = "<" if head[5] == 1 else ">"
    wide = head[4] == 2
    if struct.unpack_from(f"{order}H", head, 16)[0] != _ET_CORE:
        raise FormatError(f"{path}: an ELF file, but no core", hint="give a core or a raw image")
    if wide and len(head) < 64:
        raise FormatError(f"{path}: its ELF header is cut short")
    layout = f"{order}QQQIHHHHHH" if wide else f"{order}IIIIHHHHHH"
    _, phoff, shoff, _, _, phentsize, phnum, shentsize, _, _ = struct.unpack_from(layout, head, 24)
    if phnum == _PN_XNUM:  # more segments than the field holds: section 0 has their number
        file.seek(min(shoff, size))
        section = file.read(shentsize)
        at = 44 if wide else 28
        if len(section) < at + 4:
            raise FormatError(f"{path}: cut short: its section header is missing")
        phnum = struct.unpack_from(f"{order}I", section, at)[0]
    if phentsize < struct.calcsize(_SEGMENT_LAYOUTS[wide]):
        raise FormatError(f"{path}: its ELF header is broken: segments of {phentsize} bytes")
    file.seek(min(phoff, size))
    table = file.read(phentsize * phnum)
    if not phnum or len(table) < phentsize * phnum:
        raise FormatError(f"{path}: cut short: its program headers are missing")
    segments = [_segment(table, i * phentsize, order, wide) for i in range(phnum)]
    end = max(
        (offset + length for kind, _, offset, _, length in segments if kind == _PT_LOAD), default=0
    )
    if end == 0:
        raise FormatError(f"{path}: a core without any memory in it")
    if end > size:
        raise FormatError(
            f"{path}: cut short: {end - size} of {end} bytes are missing",
            hint="look for a limit (ulimit -c, coredump.conf: ProcessSizeMax) or a full disk",
        )
    names = _mapped_files(file, segments, order, wide, size)
    regions = _regions_of_segments(segments, names)
    if regions and regions[-1].end > _ADDRESSES:
        raise FormatError(f"{path}: its ELF header is broken: memory at {regions[-1].start:#x}")
    return regions


_Segment = tuple[int, int, int, int, int]  # type, flags, offset, address, bytes in the file


def _segment(table: bytes, at: int, order: str, wide: bool) -> _Segment:
    if wide:
        kind, flags, offset, virtual, physical, length = struct.unpack_from(
            f"{order}{_SEGMENT_LAYOUTS[wide]}", table, at
        )
    else:
        kind, offset, virtual, physical, length, _, flags = struct.unpack_from(
            f"{order}{_SEGMENT_LAYOUTS[wide]}", table, at
        )
    return kind, flags, offset, virtual or physical, length


def _regions_of_segments(segments: list[_Segment], names: dict[int, str]) -> list[DumpRegion]:
    found: list[DumpRegion] = []
    for _, flags, offset, address, length in sorted(
        (s for s in segments if s[0] == _PT_LOAD), key=lambda s: s[3]
    ):
        pages = length // PAGE_SIZE
        if not pages:
            continue
        start = address // PAGE_SIZE * PAGE_SIZE
        if (
            found and start < found[-1].end
        ):  # guests: NUMA nodes or modes may give one address twice
            start = found[-1].end
        perms = "".join(
            letter if flags & bit else "-" for letter, bit in (("r", 4), ("w", 2), ("x", 1))
        )
        name = names.get(address, "")
        found.append(DumpRegion(start, start + pages * PAGE_SIZE, offset, f"{perms}p", name))
    return found


def _mapped_files(
    file: BinaryIO, segments: list[_Segment], order: str, wide: bool, size: int
) -> dict[int, str]:
    """Names of file mappings by their start, from the NT_FILE note; broken ones name nothing."""
    word = "Q" if wide else "I"
    names: dict[int, str] = {}
    for kind, _, offset, _, length in segments:
        if kind != _PT_NOTE:
            continue
        file.seek(min(offset, size))
        notes = file.read(min(length, 64 << 20))
        at = 0
        while at + 12 <= len(notes):
            name_size, body_size, note = struct.unpack_from(f"{order}III", notes, at)
            body = at + 12 + (name_size + 3) // 4 * 4
            at = body + (body_size + 3) // 4 * 4
            if note != _NT_FILE or at > len(notes) + 3:
                continue
            try:
                count, _ = struct.unpack_from(f"{order}{word}{word}", notes, body)
                width = struct.calcsize(word)
                starts = [
                    struct.unpack_from(f"{order}{word}", notes, body + (2 + 3 * i) * width)[0]
                    for i in range(count)
                ]
            except struct.error:
                continue
            texts = notes[body + (2 + 3 * count) * width : body + body_size].split(b"\0")
            names |= {s: t.decode("utf-8", "replace") for s, t in zip(starts, texts, strict=False)}
    return names
