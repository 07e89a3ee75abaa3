from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from pagemerge.errors import FormatError
from pagemerge.insight import estimate, find_targets
from pagemerge.insight.dumps import read_dump_regions
from tests.support.images import PAGE, write_core, write_image


def test_an_image_is_one_region(tmp_path: Path) -> None:
    (region,) = read_dump_regions(write_image(tmp_path / "ram", range(7)))
    assert (region.start, region.end, region.offset) == (0, 7 * PAGE, 0)


def test_an_image_of_odd_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ram"
    path.write_bytes(bytes(PAGE + 5))
    with pytest.raises(FormatError, match="4101 bytes are no whole number of pages"):
        read_dump_regions(path)


def test_an_empty_file_a_folder_and_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(FormatError, match="is empty"):
        read_dump_regions(tmp_path / "empty")
    with pytest.raises(FormatError, match="a folder"):
        read_dump_regions(tmp_path)
    with pytest.raises(FormatError, match="no such file"):
        read_dump_regions(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("magic", "what"),
    [
        (b"LibvirtQemudSave", "libvirt's save format"),
        (b"LibvirtQemudPart", "not finished"),
        (b"EMiL", "LiME"),
        (b"KDUMP   ", "kdump's compressed format"),
        (b"QFI\xfb", "qcow2"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
    ],
)
def test_other_formats_are_named_with_a_way_out(tmp_path: Path, magic: bytes, what: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(magic.ljust(PAGE, b"x"))
    with pytest.raises(FormatError, match=what) as caught:
        read_dump_regions(path)
    assert caught.value.hint


def test_text_of_a_whole_number_of_pages_is_no_image(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"some words\n" * PAGE)
    with pytest.raises(FormatError, match="is text"):
        read_dump_regions(path)
    path.write_bytes(b"some words\n" * PAGE + bytes(PAGE))  # memory may begin with text
    assert len(read_dump_regions(path)) == 1


def test_zeros_of_a_dump_are_said_to_be_none_to_save(tmp_path: Path) -> None:
    with_zeros, without = (
        estimate(find_targets([str(write_image(tmp_path / name, numbers))]))
        for name, numbers in (("with", [1, 0, 0]), ("without", [1, 2, 3]))
    )
    assert any("8.00 KiB of it are zero" in note for note in with_zeros.notes)
    assert without.notes == ()


def test_a_core_has_its_segments_by_address_with_their_names(tmp_path: Path) -> None:
    path = write_core(
        tmp_path / "core", [(0x20000, [1, 2]), (0x10000, [3])], names={0x20000: "/lib/x.so"}
    )
    first, second = read_dump_regions(path)
    assert (first.start, first.end, first.name) == (0x10000, 0x11000, "")
    assert (second.start, second.end, second.name) == (0x20000, 0x22000, "/lib/x.so")
    assert second.perms == "rw-p"


def test_a_core_cut_short_says_how_much_is_missing(tmp_path: Path) -> None:
    path = write_core(tmp_path / "core", [(0x10000, range(9))])
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(FormatError, match="cut short: 5000 of"):
        read_dump_regions(path)


@pytest.mark.parametrize("length", [4, 20, 63, 64, 100])
def test_a_core_cut_within_its_headers_is_refused(tmp_path: Path, length: int) -> None:
    path = write_core(tmp_path / "core", [(0x10000, range(9))])
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(FormatError, match="cut short"):
        read_dump_regions(path)


def test_a_program_is_no_core(tmp_path: Path) -> None:
    path = write_core(tmp_path / "program", [(0x10000, range(2))], kind=2)
    with pytest.raises(FormatError, match="an ELF file, but no core"):
        read_dump_regions(path)


def test_segments_without_addresses_of_their_own_do_not_overlap(tmp_path: Path) -> None:
    path = write_core(tmp_path / "guest", [(0, [1, 2, 3]), (0x1000, [4, 5])])
    regions = read_dump_regions(path)
    assert [(r.start // PAGE, r.end // PAGE) for r in regions] == [(0, 3), (3, 5)]


def test_a_core_is_estimated_like_an_image(tmp_path: Path) -> None:
    contents = [1, 2, 2, 0, 0, 3]
    core = write_core(tmp_path / "core", [(0x10000, contents[:3]), (0x90000, contents[3:])])
    image = write_image(tmp_path / "image", contents)
    of_core, of_image = (estimate(find_targets([str(path)])) for path in (core, image))
    assert of_core.pages_sharing == of_image.pages_sharing == 2  # a twin, and zero
    assert of_core.present_pages == of_image.present_pages == 6


def test_what_holds_no_memory_is_named_and_not_waited_for(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(FormatError, match="a FIFO"):
        read_dump_regions(fifo)
    for path, what in (("/dev/zero", "a character device"), ("/proc/self/maps", "Invalid")):
        with pytest.raises(FormatError, match=what):
            read_dump_regions(Path(path))


@pytest.mark.parametrize("seed", range(3))
def test_a_core_with_any_bytes_broken_is_read_or_refused(tmp_path: Path, seed: int) -> None:
    core = write_core(
        tmp_path / "core", [(0x20000, [1, 2]), (0x10000, [3])], names={0x20000: "/lib/x.so"}
    )
    whole, rng = core.read_bytes(), random.Random(seed)
    refused = 0
    for _ in range(300):
        broken = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            at, width = rng.randrange(4, 400), rng.choice((1, 2, 4, 8))
            fill = rng.choice((b"\xff" * width, bytes(width), rng.randbytes(width)))
            broken[at : at + width] = fill
        core.write_bytes(broken[: rng.choice((len(whole), rng.randrange(len(whole))))])
        try:
            estimate(find_targets([str(core)]))
        except FormatError:
            refused += 1
    assert 0 < refused < 300
