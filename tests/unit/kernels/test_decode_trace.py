# SPDX-License-Identifier: GPL-2.0-or-later
"""Real programs, with a small program of its own instead of a kernel."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from harness.contract.result import Finding, RunResult
from harness.core.kernel import Kernel
from harness.kernels.build import decode_trace as decode
from harness.kernels.build.decode_trace import NotDecodableError, decode_trace, has_code
from harness.kernels.build.sandbox import Sandbox, find_sandbox
from harness.runs.attempt import with_decoded_traces
from harness.runs.evidence import Evidence
from harness.scenario.kernel_request import KernelRequest

SCRIPT = """\
[ "$2" = auto ] && [ -f "$1" ] && [ -d "$3" ] || exit 7
[ -z "$FAIL" ] || exit 1
while read -r line; do echo "$line" | sed 's,+0x[^ ]*, (hmem.c:12),'; done
"""
TRACE = ("Call Trace:", "dax_hmem_probe+0x12/0x40 [dax_hmem]")


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    """A kernel with debug information and a script of its own."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    entry = tmp_path / "entry"
    for name in ("scripts", "modules"):
        (entry / name).mkdir(parents=True)
    (entry / "scripts" / "decode_stacktrace.sh").write_text(SCRIPT)
    compile_to(entry / "vmlinux", "-g")
    return Kernel(
        spec="build:x",
        release="7.2",
        image=entry / "vmlinuz",
        modules=entry / "modules",
        config=None,
        identity="x",
        symbols=entry / "vmlinux",
        scripts=entry / "scripts",
    )


def compile_to(path: Path, *options: str) -> None:
    words = ["gcc", *options, "-x", "c", "-", "-o", str(path)]
    subprocess.run(words, input=b"int main(void) { return 0; }", check=True)


@pytest.mark.parametrize("confined", [True, False])
def test_a_trace_is_decoded_by_the_kernels_own_script(kernel: Kernel, confined: bool) -> None:
    sandbox = find_sandbox() if confined else Sandbox(None)
    assert decode_trace(kernel, TRACE, sandbox) == (
        "Call Trace:",
        "dax_hmem_probe (hmem.c:12) [dax_hmem]",
    )


@pytest.mark.parametrize(
    ("have", "text"),
    [
        ({"symbols": None}, "no vmlinux"),
        ({"scripts": None}, "the kernel has no decode_stacktrace.sh"),
    ],
)
def test_a_missing_part_of_a_kernel_is_reported(
    kernel: Kernel, have: dict[str, None], text: str
) -> None:
    with pytest.raises(NotDecodableError, match=text):
        decode_trace(replace(kernel, **have), TRACE)  # type: ignore[arg-type]


def test_a_kernel_without_debug_information_is_reported(kernel: Kernel) -> None:
    assert kernel.symbols is not None
    compile_to(kernel.symbols, "-s")
    with pytest.raises(NotDecodableError, match="without debug information") as caught:
        decode_trace(kernel, TRACE)
    assert "--config debug_info" in caught.value.hint
    kernel.symbols.write_text("no ELF")
    with pytest.raises(NotDecodableError):
        decode_trace(kernel, TRACE)


def test_a_missing_program_is_reported(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "_PROGRAMS", ("bash", "addr2lime"))
    with pytest.raises(NotDecodableError, match="addr2lime is not installed"):
        decode_trace(kernel, TRACE)


def test_a_failing_script_is_reported(kernel: Kernel) -> None:
    assert kernel.scripts is not None
    (kernel.scripts / "decode_stacktrace.sh").write_text("echo no luck >&2; exit 3")
    with pytest.raises(NotDecodableError, match="no luck"):
        decode_trace(kernel, TRACE)


def test_only_addresses_of_code_are_decoded() -> None:
    assert has_code(TRACE)
    assert not has_code(["kmem dax2.0: mapping0: 0x110000000-0x18fffffff could not reserve region"])


def result_with(*findings: Finding) -> RunResult:
    return RunResult("s", KernelRequest("build:x"), "per_range", findings=findings)


def test_a_finding_gets_its_decoded_trace_and_so_does_the_evidence(
    kernel: Kernel, tmp_path: Path
) -> None:
    oops = Finding("6", "an oops", dmesg=("[ 1.0] oops\n dax_hmem_probe+0x1/0x2",))
    other = Finding("6", "a warning", dmesg=("[ 1.0] kmem dax0.0: failed",))
    result = with_decoded_traces(result_with(other, oops), kernel, Evidence(tmp_path))
    assert result.findings[0] == other
    assert result.findings[1].dmesg == oops.dmesg, "the kernel's lines are kept"
    assert result.findings[1].decoded == ("[ 1.0] oops", "dax_hmem_probe (hmem.c:12)")
    assert result.notes == ()
    text = (tmp_path / "decoded.txt").read_text()
    assert text == "an oops\n[ 1.0] oops\ndax_hmem_probe (hmem.c:12)\n"


def test_a_trace_that_cannot_be_decoded_is_a_note(kernel: Kernel, tmp_path: Path) -> None:
    oops = Finding("6", "an oops", dmesg=("dax_hmem_probe+0x1/0x2",))
    prebuilt = replace(kernel, symbols=None)
    result = with_decoded_traces(result_with(oops, oops), prebuilt, Evidence(tmp_path))
    assert result.findings == (oops, oops)
    (note,) = result.notes
    assert note.startswith("traces of build:x are not decoded: the kernel has no vmlinux")
    assert (tmp_path / "decoded.txt").read_text() == f"{note}\n"


def test_a_result_without_a_trace_gets_nothing(kernel: Kernel, tmp_path: Path) -> None:
    assert with_decoded_traces(result_with(), kernel, Evidence(tmp_path)) == result_with()
    assert list(tmp_path.glob("*.txt")) == []
