"""What `advise --code` prints is compiled and run: it marks memory, and warns of nothing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import indent

import pytest

from pagemerge.insight import Advice, advise, find_targets, render_snippet
from tests.support.environment import require
from tests.support.victims import holder

pytestmark = pytest.mark.usefixtures("kernel_ksm_lock")  # they register with it

PAGES = 256
SIZE = 1 << 20  # bytes; of the buffer that is marked, and more than PAGES
MARKED = ["ksm_merge_any: yes", "ksm_mergeable: yes"]

C_MAIN = """
int main(void)
{{
\tchar *buffer = malloc({size}); /* 16 bytes after its mapping's beginning */

\tif (!buffer)
\t\treturn 1;
{body}
\tFILE *stat = fopen("/proc/self/ksm_stat", "r");
\tchar line[100];

\twhile (stat && fgets(line, sizeof(line), stat))
\t\tfputs(line, stdout);
\treturn 0;
}}
"""
PYTHON = """
import mmap
{make}
{code}
with open("/proc/self/ksm_stat") as stat:
    print(stat.read())
"""
# What the crate libc declares: the compiler's own folder has no crates.
RUST_MAIN = """
#![deny(warnings)]
#[allow(dead_code)]
mod libc {{
    pub const MADV_MERGEABLE: i32 = 12;
    extern "C" {{
        pub fn madvise(addr: *mut std::ffi::c_void, len: usize, advice: i32) -> i32;
        pub fn prctl(option: i32, ...) -> i32;
    }}
}}

fn main() {{
    let mut data = vec![1u64; {size} / 8];
    let buffer = data.as_mut_ptr();
{code}
    print!("{{}}", std::fs::read_to_string("/proc/self/ksm_stat").unwrap());
}}
"""


@pytest.fixture(scope="module")
def advice() -> Advice:
    """Advice on two programs: buffers of their own, and memory that is the interpreter's."""
    require(os.geteuid() == 0, "root, to read other processes' memory")
    with holder({}) as one, holder({}) as two:
        for child in (one, two):
            child.ask(f"fill seed {PAGES}")
        found = advise(find_targets(pids=[one.pid, two.pid]), 1.0)
    names = {advised.region.name for advised in found.regions}
    assert "" in names
    assert any(names)
    return found


def size_of(code: str) -> int:
    """As large as the largest buffer that the code marks."""
    return max(SIZE, *(int(number) for number in re.findall(r"\b(\d{5,})\b", code)))


def lines_of(*command: str | Path) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def assert_marked(lines: list[str]) -> None:
    if Path("/proc/self/ksm_stat").exists() and any("ksm_mergeable" in line for line in lines):
        assert [line for line in lines if line in MARKED] == MARKED


def test_the_c_code_compiles_without_a_warning_and_marks_memory(
    advice: Advice, tmp_path: Path
) -> None:
    code = render_snippet(advice, "c")
    assert "madvise((void *)" in code
    assert "prctl(67" in code
    heads = [line for line in code.splitlines() if line.startswith("#include")]
    body = indent("\n".join(line for line in code.splitlines() if line not in heads), "\t")
    source = tmp_path / "snippet.c"
    heads.append("#include <stdlib.h>")
    source.write_text("\n".join(heads) + C_MAIN.format(size=size_of(code), body=body))
    compiler = shutil.which("gcc")
    require(compiler, "gcc")
    program = tmp_path / "snippet"
    flags = ["-std=gnu11", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    assert lines_of(str(compiler), *flags, "-o", program, source) == []
    assert_marked(lines_of(program))


@pytest.mark.parametrize(
    "make",
    [
        "buffer = mmap.mmap(-1, {size}, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)",
        "import numpy; buffer = numpy.zeros({size} // 8).reshape(2, -1)",
    ],
)
def test_the_python_code_runs_and_marks_memory(advice: Advice, tmp_path: Path, make: str) -> None:
    code = render_snippet(advice, "python")
    assert "libc.madvise(" in code
    assert "libc.prctl(67" in code
    source = tmp_path / "snippet.py"
    source.write_text(PYTHON.format(make=make.format(size=size_of(code)), code=code))
    assert_marked(lines_of(sys.executable, "-W", "error", "-X", "dev", source))


def test_the_rust_code_compiles_without_a_warning_and_marks_memory(
    advice: Advice, tmp_path: Path
) -> None:
    code = render_snippet(advice, "rust")
    assert "libc::madvise(start" in code
    assert "libc::prctl(67" in code
    compiler = shutil.which("rustc")
    if compiler is None or subprocess.run([compiler, "-V"], capture_output=True).returncode:
        # too large to be installed for this; its brackets and statements at least
        assert_balanced(code)
        return
    source = tmp_path / "snippet.rs"
    source.write_text(RUST_MAIN.format(size=size_of(code), code=code))
    program = tmp_path / "snippet"
    assert lines_of(compiler, "--edition", "2021", "-o", program, source) == []
    assert_marked(lines_of(program))


def assert_balanced(code: str) -> None:
    """Every bracket is closed by its like, comments and texts apart."""
    bare = re.sub(r'//.*|/\*.*?\*/|"(?:\\.|[^"\\])*"', "", code)
    opened: list[str] = []
    for char in bare:
        if char in "([{":
            opened.append({"(": ")", "[": "]", "{": "}"}[char])
        elif char in ")]}":
            assert opened, code
            assert opened.pop() == char, code
    assert not opened, code


@pytest.mark.parametrize("code", ["f(x))", "f(x", "if (x] {}"])
def test_the_check_of_brackets_finds_what_is_wrong(code: str) -> None:
    with pytest.raises(AssertionError):
        assert_balanced(code)
