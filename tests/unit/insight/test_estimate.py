from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from pagemerge.errors import CommandError
from pagemerge.insight import EstimateOptions, advise, estimate, find_targets, render_snippet
from pagemerge.insight.model import ksm_counts, ksmd_cost
from pagemerge.insight.report_html import render_report
from tests.support.images import PAGE, write_core, write_image


@pytest.mark.parametrize(
    ("pages", "limit", "shared", "sharing"),
    [
        (9, 10, 1, 8),
        (10, 10, 1, 9),
        (11, 10, 1, 9),
        (12, 10, 2, 10),
        (31, 10, 3, 27),
        (600, 256, 3, 597),
    ],
)
def test_the_limit_on_sharing_counts_as_ksmd_does(
    pages: int, limit: int, shared: int, sharing: int
) -> None:
    assert ksm_counts(pages, limit) == (shared, sharing)


def test_a_pass_is_batches_and_sleeps() -> None:
    cost = ksmd_cost(1000, 0, 0, pages_to_scan=100, sleep_millisecs=20)
    assert cost.settle_seconds == pytest.approx(0.4 + cost.cpu_seconds)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("limit", [2, 3, 256])
def test_totals_are_those_of_counting_by_hand(tmp_path: Path, seed: int, limit: int) -> None:
    rng = random.Random(seed)
    images = [[int(rng.paretovariate(0.6)) % 400 for _ in range(500)] for _ in range(3)]
    paths = [write_image(tmp_path / f"{i}", image) for i, image in enumerate(images)]
    result = estimate(
        find_targets(files=paths), EstimateOptions(max_page_sharing=limit, use_zero_pages=1)
    )
    count = Counter(number for image in images for number in image)
    zero = count.pop(0, 0)
    counted = [ksm_counts(n, limit) if n > 1 else (0, 0) for n in count.values()]
    assert result.ksm_zero_pages == zero
    assert result.pages_shared == sum(shared for shared, _ in counted)
    assert result.pages_sharing == sum(sharing for _, sharing in counted)
    assert result.pages_unshared == sum(count.values()) - result.pages_shared - result.pages_sharing
    assert result.distinct_contents == len(count)
    own = [Counter(image) for image in images]
    assert result.within_pages == sum(n - 1 for c in own for n in c.values())
    spread = [sum(number in c for c in own) for number in (*count, 0)]
    assert result.between_pages == sum(max(0, n - 1) for n in spread)
    plain = result.without_zero_pages
    zero_counted = ksm_counts(zero, limit) if zero > 1 else (0, 0)
    assert plain.pages_sharing == result.pages_sharing + zero_counted[1]
    assert plain.general_profit == plain.pages_sharing * PAGE - 1500 * 64
    (matrix,) = (m for m in result.matrices if m.by == "process")
    a, b = (matrix.labels.index(str(path)) for path in paths[:2])
    common = sum(min(own[0][k], own[1][k]) for k in count)
    assert matrix.pages[a][b] == matrix.pages[b][a] == common
    assert matrix.pages[a][a] == sum(n - 1 for k, n in own[0].items() if k)


def test_threads_and_one_thread_agree(tmp_path: Path) -> None:
    rng = random.Random(3)
    path = write_image(tmp_path / "image", [rng.randrange(6000) for _ in range(20_000)])
    one, many = (
        estimate(find_targets(files=[path]), EstimateOptions(threads=threads)) for threads in (1, 4)
    )
    assert one.pages_sharing == many.pages_sharing
    assert one.engine is not None
    assert many.engine is not None
    assert one.engine.run_lengths == many.engine.run_lengths
    assert one.present_pages == 20_000


def test_runs_follow_the_order_of_the_pages(tmp_path: Path) -> None:
    first = write_image(tmp_path / "a", range(1, 101))
    # 40 in the same order, one strange, 9 more, then ten in reverse
    second = write_image(tmp_path / "b", [*range(1, 41), 9999, *range(42, 51), *range(60, 50, -1)])
    result = estimate(find_targets(files=[first, second]))
    b = next(region for region in result.regions if region.end == 60 * PAGE)
    assert b.runs == 12  # 40, 9, and ten by one
    assert b.vmas == 13  # and the page between
    joined = estimate(find_targets(files=[first, second]), EstimateOptions(gap_pages=1))
    b = next(region for region in joined.regions if region.end == 60 * PAGE)
    assert b.runs == 11


def test_holes_of_a_sparse_file_hold_nothing(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(64 << 20)
        file.seek(32 << 20)
        file.write(os.urandom(PAGE) * 2)
    result = estimate(find_targets(files=[path]))
    assert result.pages_sharing == 1
    assert result.present_pages < 100


def test_the_memory_held_is_at_most_16_bytes_a_page(tmp_path: Path) -> None:
    path = write_image(tmp_path / "image", range(1, 40_001))
    result = estimate(find_targets(files=[path]))
    assert result.held_pages == 40_000
    assert result.held_bytes <= 16 * result.held_pages


def test_a_sample_is_of_contents_not_of_pages(tmp_path: Path) -> None:
    path = write_image(tmp_path / "image", [i // 4 for i in range(4, 16_004)])
    result = estimate(find_targets(files=[path]), EstimateOptions(sample=8))
    assert result.pages_sharing == 3 * result.pages_shared  # each content whole or not at all
    assert result.held_pages < 16_000 / 4


def spread_contents(seed: int, heavy: int) -> list[int]:
    """Numbers of pages of contents 1 to 5000, a few times each, and `heavy` pages of others."""
    rng = random.Random(seed)
    numbers: list[int] = []
    for content in range(1, 5001):
        numbers += [content] * rng.choice((1, 1, 2, 2, 3, 5, 8))
    for content, share in ((9001, 0.8), (9002, 0.15), (9003, 0.05)):
        numbers += [content] * int(heavy * share)
    rng.shuffle(numbers)
    return numbers


@pytest.mark.parametrize("heavy", [0, 8000])
@pytest.mark.parametrize("sample", [4, 16])
def test_the_confidence_interval_covers_the_truth(tmp_path: Path, sample: int, heavy: int) -> None:
    """Also where a third of all pages has one content, which a sample would keep or miss."""
    names = (
        "pages_sharing", "pages_shared", "pages_unshared", "frames_saved", "within_pages",
        "distinct_contents",
    )  # fmt: skip
    inside = Counter[str]()
    rounds, of_truth = 0, []
    for seed in range(4):
        image = write_image(tmp_path / "image", spread_contents(seed, heavy))
        targets = find_targets(files=[image])
        truth = estimate(targets)
        for salt in range(seed * 30, seed * 30 + 30):
            result = estimate(targets, EstimateOptions(sample=sample, salt=salt * 7919, threads=1))
            rounds += 1
            of_truth.append(result.pages_sharing / truth.pages_sharing)
            for name in names:
                interval = result.intervals[name]
                inside[name] += interval.low <= getattr(truth, name) <= interval.high
    for name in names:
        assert inside[name] >= 0.89 * rounds, inside  # 95 %, less three deviations of this test
    assert np.mean(of_truth) == pytest.approx(1, rel=0.02)  # unbiased


@pytest.mark.parametrize("sample", [4, 16])
@pytest.mark.parametrize("twins", [1, 5])
def test_the_interval_covers_also_what_a_sample_hardly_meets(
    tmp_path: Path, sample: int, twins: int
) -> None:
    """A few contents with a twin among thousands without: most samples meet none of them."""
    numbers = [*range(1, 3001), *range(1, twins + 1), *([5000] * 2000)]
    random.Random(1).shuffle(numbers)
    targets = find_targets(files=[write_image(tmp_path / "image", numbers)])
    truth, rounds = estimate(targets), 60
    inside = Counter[str]()
    for salt in range(rounds):
        options = EstimateOptions(sample=sample, salt=salt * 7919, threads=1)
        for name, interval in estimate(targets, options).intervals.items():
            inside[name] += interval.low <= getattr(truth, name) <= interval.high
    assert set(inside) >= {"pages_shared", "pages_sharing", "frames_saved", "within_pages"}
    assert min(inside.values()) >= 0.86 * rounds, inside  # 95 %, less three deviations


def test_a_content_of_a_third_of_all_pages_is_counted_not_sampled(tmp_path: Path) -> None:
    numbers = spread_contents(7, 8000)
    paths = [write_image(tmp_path / f"{i}", numbers[i::2]) for i in range(2)]
    targets = find_targets(files=paths)
    truth = estimate(targets, EstimateOptions(max_page_sharing=10))
    for salt in range(5):
        options = EstimateOptions(sample=16, salt=salt, max_page_sharing=10)
        result = estimate(targets, options)
        first = result.top[0]
        assert (first.pages, first.frames, first.processes) == (6400, 6400, 2)
        assert first.hash == truth.top[0].hash
        assert result.held_pages < len(numbers) / 8  # of it, too, few places are kept
        assert result.intervals["pages_sharing"].high < 1.4 * result.intervals["pages_sharing"].low


def test_what_a_sample_cannot_tell_is_said(tmp_path: Path) -> None:
    image = write_image(tmp_path / "image", [1, 1, 2])
    result = estimate(find_targets([str(image)]), EstimateOptions(sample=2))
    assert any("runs" in note for note in result.notes)
    assert [(region.runs, region.vmas) for region in result.regions] == [(0, 0)]


def test_json_has_the_kernels_names_at_its_top(tmp_path: Path) -> None:
    result = estimate(find_targets(files=[write_image(tmp_path / "image", [1, 1, 2])]))
    data = json.loads(json.dumps(result.to_dict()))
    assert (data["pages_shared"], data["pages_sharing"], data["pages_unshared"]) == (1, 1, 1)
    assert {"ksm_zero_pages", "pages_volatile", "general_profit"} <= data.keys()
    assert data["processes"][0]["present_pages"] == 3
    assert data["regions"][0]["merging_pages"] == 2


def test_columns_are_arrays_by_name(tmp_path: Path) -> None:
    result = estimate(find_targets(files=[write_image(tmp_path / "image", [1, 1, 2])]))
    columns = result.columns("regions")
    assert columns["present_pages"].tolist() == [3]
    assert columns["present_pages"].dtype == np.int64
    assert columns["start"].dtype == np.uint64
    assert (columns["merging_pages"] - columns["present_pages"]).tolist() == [-1]
    assert columns["saved_pages"].dtype == np.float64
    with pytest.raises(ValueError, match="no table"):
        result.columns("nothing")


def test_the_report_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    paths = [write_image(tmp_path / name, range(1, 50)) for name in ("a<b>.raw", "c&d.raw")]
    page = render_report(estimate(find_targets(files=paths)))
    assert "a&lt;b&gt;.raw" in page
    assert "a<b>" not in page
    assert "<script" not in page
    assert "http://" not in page
    assert "https://" not in page
    assert page.count("<svg") >= 4


def test_the_report_names_each_file_at_its_regions(tmp_path: Path) -> None:
    paths = [write_image(tmp_path / name, range(1, 50)) for name in ("one.raw", "two.raw")]
    result = estimate(find_targets(files=paths))
    assert {region.command for region in result.regions} == {"one.raw", "two.raw"}
    page = render_report(result)
    for path in paths:
        assert f">{path.name} [image]<" in page  # on a tile
        assert page.count(f'<td class="l w">{path.name}</td>') == 2  # as target, and at its region


def test_the_report_shows_also_what_many_small_regions_save(tmp_path: Path) -> None:
    paths = [write_image(tmp_path / f"{i}", [0, 10, 20 + i // 2]) for i in range(300)]
    page = render_report(estimate(find_targets(files=paths)))
    assert ">180 further mappings<" in page


def test_the_report_leaves_out_mappings_that_share_nothing(tmp_path: Path) -> None:
    cores = [
        write_core(
            tmp_path / f"core{i}",
            [(0x10000, [1, 2]), (0x90000, [10 + i])],
            names={0x10000: "/lib/both.so", 0x90000: "/lib/alone.so"},
        )
        for i in range(2)
    ]
    page = render_report(estimate(find_targets(files=cores)))
    _, _, shared = page.partition("Which mappings have pages in common")
    shared, _, _ = shared.partition("</section>")
    assert "/lib/both.so" in shared
    assert "/lib/alone.so" not in shared


def test_advice_drops_what_saves_little_and_keeps_twins_together(tmp_path: Path) -> None:
    big = [write_image(tmp_path / f"big{i}", range(1, 101)) for i in range(2)]
    small = [write_image(tmp_path / f"small{i}", range(201, 204)) for i in range(2)]
    alone = write_image(tmp_path / "alone", range(301, 401))
    targets = find_targets(files=[*big, *small, alone])
    advice = advise(targets, 0.9)
    assert {item.region.end // PAGE for item in advice.regions} == {100}
    assert len(advice.regions) == 2
    assert advice.saved_pages == 100
    assert advice.all_pages == 103
    assert len(advise(targets, 1.0).regions) == 4
    with pytest.raises(CommandError):
        advise(targets, 0.0)


@pytest.mark.parametrize("language", ["c", "python", "rust"])
def test_advice_is_written_as_calls(tmp_path: Path, language: str) -> None:
    paths = [write_image(tmp_path / f"{i}", range(1, 11)) for i in range(2)]
    code = render_snippet(advise(find_targets(files=paths)), language)
    assert "40960" in code or "prctl" in code


def test_a_file_given_twice_counts_once(tmp_path: Path) -> None:
    path = write_image(tmp_path / "image", [1, 2])
    targets = find_targets([str(path), str(path)])
    assert len(targets.items) == 1
    assert "more than once" in targets.notes[0]


@pytest.fixture
def few_descriptors() -> Iterator[Callable[[int], None]]:
    """Sets the limit on open files, the hard one of this process left as it is."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield lambda limit: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_more_targets_than_open_files_are_usual_are_taken(
    tmp_path: Path, few_descriptors: Callable[[int], None]
) -> None:
    paths = [write_image(tmp_path / f"{i}", [1, 10 + i]) for i in range(200)]
    few_descriptors(150)
    assert estimate(find_targets(files=paths)).pages_sharing == 199
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 150


def test_more_targets_than_there_may_be_open_files_are_refused_by_name(tmp_path: Path) -> None:
    paths = [write_image(tmp_path / f"{i}", [1]) for i in range(200)]
    program = (
        "import resource, sys\n"
        "from pagemerge.commands import main\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (150, 150))\n"
        "sys.exit(main(['estimate', *sys.argv[1:]]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *paths], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "too many targets: each needs two open files, and there may be 150" in done.stderr


def test_nothing_to_look_at_is_said() -> None:
    with pytest.raises(CommandError, match="nothing to look at"):
        find_targets([])
    with pytest.raises(CommandError, match="no process 4194305"):
        find_targets(["4194305"])


@pytest.mark.parametrize("table", ["regions", "processes", "top"])
@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow"])
def test_data_frames_and_arrow_take_columns_as_they_are(
    tmp_path: Path, library: str, table: str
) -> None:
    module = pytest.importorskip(library)
    paths = [write_image(tmp_path / f"{i} ü.raw", [1, 1, 2, 0]) for i in range(2)]
    columns = estimate(find_targets(files=paths)).columns(table)
    frame = (module.table if library == "pyarrow" else module.DataFrame)(columns)
    assert frame.shape == (len(next(iter(columns.values()))), len(columns))
    for name, values in columns.items():
        found = frame[name].to_pylist() if library == "pyarrow" else frame[name].to_list()
        assert found == values.tolist(), name


def test_columns_of_nothing_keep_their_types(tmp_path: Path) -> None:
    empty = estimate(find_targets(files=[write_image(tmp_path / "image", [1, 2, 3])])).columns(
        "top"
    )
    assert all(len(values) == 0 for values in empty.values())
    assert empty["hash"].dtype == np.uint64
    assert empty["pages"].dtype == np.int64
