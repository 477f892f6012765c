# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest

from harness.core.errors import UsageError
from harness.core.paths import PROJECT
from harness.matrix.matrix_file import is_matrix, load_matrix, parse_shard, this_capacity
from harness.matrix.plan import Combination, Facts, Matrix, plan_matrix, read_matrix, shard
from harness.scenario.scenario import KernelNeeds, Policy

NO_FACTS = Facts({}, {}, {})


def facts(
    *,
    configs: tuple[str, ...] = (),
    config: Mapping[str, str] | None = None,
    fragments: Mapping[str, Mapping[str, str]] | None = None,
    policies: Mapping[str, Policy | None] | None = None,
) -> Facts:
    needs = msgspec.convert({"configs": list(configs), "config": dict(config or {})}, KernelNeeds)
    return Facts({"one": needs, "two": KernelNeeds()}, fragments or {}, policies or {})


def reasons(matrix: Matrix, known: Facts, *scenarios: str) -> list[str]:
    return [one.reason for one in plan_matrix(matrix, scenarios or ("one",), known).dropped]


def test_every_combination_of_the_axes_is_there_once() -> None:
    matrix = Matrix(
        kernels=("build:/a", "build:/b"),
        configs=("base", "debug", "debug,builtin"),
        series=("none", "patches/x"),
        policies=("per_range", "all_or_nothing"),
        qemus=("default", "/q"),
    )
    plan = plan_matrix(matrix, ("one", "two"), facts())
    assert len(plan.chosen) == 2 * 3 * 2 * 2 * 2 * 2
    assert len({one.name for one in plan.chosen}) == len(plan.chosen)
    assert plan.dropped == ()
    assert [one.name for one in plan.chosen] == sorted(one.name for one in plan.chosen)


def test_a_combination_survives_json() -> None:
    matrix = Matrix(kernels=("build:/a",), configs=("debug",), series=("p",), repeat=3, timeout=9)
    (one,) = plan_matrix(matrix, ("one",), facts()).chosen
    assert msgspec.json.decode(msgspec.json.encode(one), type=Combination) == one
    assert (one.repeat, one.timeout, one.series) == (3, 9, "p")


@pytest.mark.parametrize(
    ("axes", "known", "reason"),
    [
        (
            {"kernels": ("debian:7.2",), "series": ("patches/x",)},
            facts(),
            "the series patches/x needs a kernel that is built, and debian:7.2 is prebuilt: "
            "use build:",
        ),
        (
            {"kernels": ("image:/x",), "configs": ("debug",)},
            facts(),
            "the configuration debug needs a kernel that is built, and image:/x is prebuilt: "
            "use build:",
        ),
        (
            {"kernels": ("build:/a",), "configs": ("mine",)},
            facts(configs=("no_cxl",), fragments={"mine": {"CXL": "y"}, "no_cxl": {"CXL": "n"}}),
            "the scenario needs no_cxl, which has CXL=n, and mine has CXL=y",
        ),
        (
            {"kernels": ("build:/a",), "configs": ("mine",)},
            facts(config={"CXL": "enabled"}, fragments={"mine": {"CXL": "n"}}),
            "the scenario needs CXL=enabled, and mine has CXL=n",
        ),
        (
            {"kernels": ("build:/a",), "configs": ("mine",)},
            facts(config={"CXL": "m"}, fragments={"mine": {"CXL": "y"}}),
            "the scenario needs CXL=m, and mine has CXL=y",
        ),
        (
            {"kernels": ("build:/a",), "series": ("s",), "policies": ("per_range",)},
            facts(policies={"s": "all_or_nothing"}),
            "the series s implements all_or_nothing",
        ),
        (
            {"kernels": ("debian:7.10",), "policies": ("all_or_nothing",)},
            facts(),
            "Linux 7.10 implements per_range",
        ),
        (
            {"kernels": ("debian:7.2",), "build": False},
            facts(configs=("no_cxl",)),
            "the scenario needs a kernel built with no_cxl",
        ),
        (
            {
                "kernels": ("build:/a",),
                "exclude": (
                    msgspec.convert({"scenario": "o*", "reason": "takes too long"}, type=object),
                ),
            },
            facts(),
            "takes too long",
        ),
    ],
)
def test_entries_that_cannot_run_are_left_out_with_the_reason(
    axes: dict[str, object], known: Facts, reason: str
) -> None:
    matrix = msgspec.convert(axes, Matrix)
    plan = plan_matrix(matrix, ("one",), known)
    assert ([one.reason for one in plan.dropped], plan.chosen) == ([reason], ())


@pytest.mark.parametrize(
    ("axes", "known"),
    [
        ({"kernels": ("debian:6.12",), "policies": ("all_or_nothing",)}, facts()),
        ({"kernels": ("debian:7.2",)}, facts(configs=("no_cxl",))),
        (
            {"kernels": ("build:/a",), "configs": ("mine",)},
            facts(config={"CXL": "enabled"}, fragments={"mine": {"CXL": "y"}}),
        ),
        (
            {"kernels": ("build:/a",), "configs": ("mine",)},
            facts(configs=("mine",), fragments={"mine": {"CXL": "y"}}),
        ),
        ({"kernels": ("build:/a",), "series": ("s",)}, facts(policies={"s": None})),
    ],
)
def test_valid_entries_stay(axes: dict[str, object], known: Facts) -> None:
    assert reasons(msgspec.convert(axes, Matrix), known) == []


def test_duplicate_entries_run_once() -> None:
    # The scenario has a kernel built anyway, from the same source.
    matrix = Matrix(kernels=("debian:7.2", "build:debian:7.2"))
    plan = plan_matrix(matrix, ("one", "two"), facts(configs=("no_cxl",)))
    assert [one.reason for one in plan.dropped] == ["the same as one on debian:7.2 per_range"]
    assert len(plan.chosen) == 3


def test_auto_is_the_policy_of_the_series() -> None:
    matrix = Matrix(kernels=("build:/a",), series=("none", "s"))
    plan = plan_matrix(matrix, ("one",), facts(policies={"s": "all_or_nothing"}))
    assert {one.series: one.policy for one in plan.chosen} == {
        None: "per_range",
        "s": "all_or_nothing",
    }


@pytest.mark.parametrize("count", [1, 2, 3, 7, 200])
def test_every_combination_is_in_exactly_one_shard(count: int) -> None:
    plan = load_matrix(PROJECT / "ci" / "matrix.yaml")
    parts = [shard(plan.chosen, number, count) for number in range(1, count + 1)]
    assert Counter(one.name for part in parts for one in part) == Counter(
        one.name for one in plan.chosen
    )
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/0", "a/b", "-1/2", "1/2/3", ""])
def test_an_invalid_shard_is_rejected(text: str) -> None:
    with pytest.raises(UsageError, match="is not a shard") as caught:
        parse_shard(text)
    assert "I/N" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kernels: [debian:7.2]\nkonfigs: [base]\n", ("m.yaml:2: konfigs", "mean configs")),
        ("scenarios: [exact_cover]\n", ("m.yaml:1", "'kernels' is missing")),
        ("kernels: []\n", ("m.yaml:1: kernels", "the axis is empty")),
        ("kernels: [a]\nqemus: []\n", ("m.yaml:2: qemus", "remove qemus")),
        ("kernels: debian:7.2\n", ("m.yaml:1: kernels", "array", "docs/matrix.md")),
        ("kernels:\n- debian:7.2\n- debian:7.2\n", ("m.yaml:3: kernels[1]", "duplicate")),
        ("kernels: [debian:7.2, ' ']\n", ("m.yaml:1: kernels[1]", "empty name")),
        ("kernels: [debian]\n", ("m.yaml:1: kernels[0]", "does not name a kernel")),
        (
            "kernels: [debian:7.2]\nscenarios: [exact]\n",
            ("m.yaml:2: scenarios[0]", "no scenario is called 'exact'", "did you mean"),
        ),
        (
            "kernels: [debian:7.2]\nscenarios: [no_such*]\n",
            ("m.yaml:2: scenarios[0]", "no scenario matches"),
        ),
        (
            "kernels: [build:x]\nconfigs: [base, debgu]\n",
            ("m.yaml:2: configs[1]", "there is no fragment 'debgu'", "did you mean debug?"),
        ),
        (
            "kernels: [build:x]\nseries:\n- none\n- /no/such\n",
            ("m.yaml:4: series[1]", "/no/such"),
        ),
        (
            "kernels: [debian:7.2]\nqemus: [/no/such/qemu]\n",
            ("m.yaml:2: qemus[0]", "there is no program /no/such/qemu"),
        ),
        ("kernels: [debian:7.2]\npolicies: [v4]\n", ("m.yaml:2: policies[0]", "'v4'")),
        (
            "kernels: [debian:7.2]\nexclude:\n- {kernel: x}\n",
            ("m.yaml:3: exclude[0]", "'reason' is missing"),
        ),
        (
            "kernels: [debian:7.2]\nconfigs: [debug]\n",
            ("all entries are left out", "needs a kernel that is built"),
        ),
        ("kernels: [debian:7.2]\nrepeat: 0\n", ("m.yaml:2: repeat",)),
        ("kernels:\n- debian:7.2\n- branch\n", ("m.yaml:3: kernels[1]", "ci/nightly --matrix")),
    ],
)
def test_a_wrong_file_is_refused_at_file_line_and_field(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("m.yaml").write_text(text)
    with pytest.raises(UsageError) as caught:
        load_matrix(Path("m.yaml"))
    for word in words:
        assert word in str(caught.value)


def test_exclude_of_a_nightly_may_name_the_branch(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(
        "kernels: [branch, debian:7.2]\nscenarios: [exact_cover, no_region]\n"
        "exclude:\n- {kernel: branch, scenario: no_region, reason: not yet on the branch}\n"
    )
    spec = "build:/nights[1]/trees/x@0123"
    plan = load_matrix(path, spec)
    assert [(one.scenario, one.kernel) for one in plan.chosen] == [
        ("exact_cover", spec),
        ("exact_cover", "debian:7.2"),
        ("no_region", "debian:7.2"),
    ]
    assert [one.reason for one in plan.dropped] == ["not yet on the branch"]


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the matrix: No such file"):
        load_matrix(tmp_path / "absent.yaml")
    (tmp_path / "m.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not UTF-8"):
        load_matrix(tmp_path / "m.yaml")


def test_only_a_file_with_axes_is_a_matrix(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    for text, expected in (("kernels: []", True), ("a:\n  kernels: []", False), ("", False)):
        path.write_text(text)
        assert is_matrix(path) is expected
    assert is_matrix(PROJECT / "ci" / "matrix.yaml")
    assert not is_matrix(PROJECT / "tests" / "scenarios" / "exact_cover.yaml")


def test_the_usual_matrix_has_every_scenario_on_every_kernel_that_serves_it() -> None:
    plan = load_matrix(PROJECT / "ci" / "matrix.yaml")
    from harness.scenario.scenario_files import scenario_names

    assert {one.scenario for one in plan.chosen} == set(scenario_names())


@pytest.mark.parametrize(("free", "guests"), [(512, 1), (2048, 2), (10**6, None)])
def test_guests_are_as_many_as_cores_and_memory_allow(
    tmp_path: Path, free: int, guests: int | None
) -> None:
    (tmp_path / "meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable: {free * 1024} kB\n")
    capacity = this_capacity(tmp_path / "meminfo")
    assert capacity.memory == free
    assert capacity.guests == min(capacity.cores, guests or capacity.cores)


def test_a_matrix_needs_no_facts_for_axes_that_it_does_not_use() -> None:
    document = read_matrix("kernels: [debian:7.2]\n", "m.yaml")
    assert plan_matrix(document.value, (), NO_FACTS).chosen == ()
