# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import iomem_of, span

from harness.contract.iomem import Iomem, IomemEntry, IomemError, parse_iomem
from harness.platform.memory_range import MemoryRange

# The tree of the discussion, of a 7.2 kernel with the decoders committed.
THREAD = """\
180000000-1bfffffff : dax2.0
  180000000-1bfffffff : System RAM (kmem)
1c0000000-1ffffffff : dax3.0
  1c0000000-1ffffffff : System RAM (kmem)
5c0001128-5c00011b7 : port1
5d0000000-64fffffff : CXL Window 0
  5d0000000-64fffffff : region0
    5d0000000-64fffffff : dax0.0
      5d0000000-64fffffff : System RAM (kmem)
"""


def names(entries: tuple[IomemEntry, ...]) -> list[str]:
    return [entry.name for entry in entries]


def test_entries_nest_by_indentation() -> None:
    tree = parse_iomem(THREAD)
    assert names(tree.roots) == ["dax2.0", "dax3.0", "port1", "CXL Window 0"]
    assert names(tuple(tree.roots[3].walk())) == [
        *("CXL Window 0", "region0", "dax0.0", "System RAM (kmem)"),
    ]
    assert tree.roots[2].range == span("5c0001128-5c00011b7")


def test_the_chain_of_an_address_is_outermost_first() -> None:
    tree = parse_iomem(THREAD)
    assert names(tree.chain(0x5D0000000)) == [
        *("CXL Window 0", "region0", "dax0.0", "System RAM (kmem)"),
    ]
    assert names(tree.chain(0x1BFFFFFFF)) == ["dax2.0", "System RAM (kmem)"]
    assert names(tree.chain(0x200000000)) == []


def test_entries_are_found_by_the_whole_name() -> None:
    tree = parse_iomem(THREAD)
    assert names(tree.named(r"dax\d+\.\d+")) == ["dax2.0", "dax3.0", "dax0.0"]
    assert tree.named("dax2") == ()
    assert len(tree.named(r"System RAM \(kmem\)")) == 3


def test_a_part_of_the_tree_is_what_shares_an_address() -> None:
    part = parse_iomem(THREAD).within(span("1bfffffff-5c0001128"))
    assert part.lines() == tuple(THREAD.splitlines()[:5])
    inside = iomem_of("""
        100-1ff : a
          100-13f : b
          180-1bf : c
    """).within(span("180-190"))
    assert inside.lines() == ("00000100-000001ff : a", "  00000180-000001bf : c")


def test_names_need_not_be_unique() -> None:
    tree = iomem_of("""
        100-1ff : Reserved
          100-1ff : Reserved
            100-17f : Reserved
        200-2ff : Reserved
    """)
    assert len(tree.named("Reserved")) == 4
    assert [len(root.children) for root in tree.roots] == [1, 0]
    assert [one.range for one in tree.chain(0x180)] == [span("100-1ff"), span("100-1ff")]


def test_a_name_may_hold_colons_and_dashes() -> None:
    tree = parse_iomem("b0000000-bfffffff : PCI ECAM 0000 [bus 00-ff] : x-y \n")
    assert tree.roots[0].name == "PCI ECAM 0000 [bus 00-ff] : x-y "


# Seven levels as a kernel prints them whose indentation stops growing at level 5 (before 6.19).
DEEP = [
    (0, "0-fff", "a"),
    (1, "0-ff0", "b"),
    (2, "0-fe0", "c"),
    (3, "0-fd0", "d"),
    (4, "0-fc0", "e"),
    (5, "0-7ff", "f"),
    (6, "0-3ff", "g"),
    (7, "0-1ff", "h"),
    (7, "200-3ff", "i"),
    (6, "400-7ff", "j"),
    (5, "800-fc0", "k"),
    (1, "ff8-fff", "l"),
]


@pytest.mark.parametrize("deepest", [5, 8])
def test_beyond_the_depth_where_indentation_stops_entries_nest_by_containment(
    deepest: int,
) -> None:
    text = "".join(f"{'  ' * min(level, deepest)}{at} : {name}\n" for level, at, name in DEEP)
    tree = parse_iomem(text)
    assert [len(line) - len(line.lstrip()) for line in tree.lines()] == [
        2 * level for level, _, _ in DEEP
    ]
    assert names(tree.chain(0x200)) == [*"abcdefgi"]
    assert names(tree.chain(0x800)) == [*"abcdek"]


def test_a_child_like_its_parent_is_a_child_beyond_the_depth_limit_too() -> None:
    # Siblings never overlap in the kernel, so what has the same range can only be below.
    deep = [*DEEP[:6], (6, "0-7ff", "f")]
    text = "".join(f"{'  ' * min(level, 5)}{at} : {name}\n" for level, at, name in deep)
    assert len(parse_iomem(text).chain(0)) == 7


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "empty"),
        ("\n\n", "empty"),
        (THREAD[:-1], "cut off in its last line"),
        (THREAD[:-30], "cut off"),
        ("00000000-00000000 : System RAM\n  00000000-00000000 : Kernel\n", "CAP_SYS_ADMIN"),
        ("cat: can't open '/proc/iomem'\n", "line 1 is not a resource"),
        ("100-1ff : a\n\n200-2ff : b\n", "line 2 is not a resource"),
        ("100-1FF : a\n", "line 1 is not a resource"),
        ("200-1ff : a\n", "line 1 ends before it starts"),
        ("200-2ff : a\n100-1ff : b\n", "line 2 is out of order"),
        ("100-2ff : a\n  200-2ff : b\n  100-1ff : c\n", "line 3 is out of order"),
        ("100-1ff : a\n  200-2ff : b\n", "line 2 is not inside the line above it"),
        ("100-1ff : a\n    100-1ff : b\n", "line 2 is not inside the line above it"),
        ("100-1ff : a\n   100-1ff : b\n", "line 2 is not inside the line above it"),
        ("100-1ff : a\n100-1ff : a\n", "line 2 overlaps its neighbour"),
        ("100-1ff : a\n  100-1ff : b\n  100-1ff : c\n", "line 3 overlaps its neighbour"),
        ("100-1ff : a\n1ff-2ff : b\n", "line 2 overlaps its neighbour"),
        ("0-ff : x\n" + "".join(f"{'  ' * min(n, 5)}0-ff : x\n" for n in range(1, 120)), "deep"),
        ("  100-1ff : a\n", "line 1 is indented below nothing"),
        ("100-1ff : a\n  100-17f : b\n200-2ff : c\n  100-1ff : d\n", "line 4 is not inside"),
    ],
)
def test_text_that_is_no_whole_iomem_is_refused(text: str, why: str) -> None:
    with pytest.raises(IomemError, match=why):
        parse_iomem(text)


def random_tree(seed: int) -> Iomem:
    """A tree of at most 40 entries and 9 levels, whose siblings lie apart and ascend."""
    choose = random.Random(seed)
    left = choose.randint(1, 40)

    def level(inside: MemoryRange, depth: int) -> tuple[IomemEntry, ...]:
        nonlocal left
        found: list[IomemEntry] = []
        at = inside.start
        while left and at <= inside.end and choose.random() < 0.8:
            left -= 1
            start = at + choose.randrange(1 + (inside.end - at) // 4)
            end = inside.end if choose.random() < 0.3 else choose.randint(start, inside.end)
            one = MemoryRange(start, end)
            # Where one entry has its parent's range, only the names tell them apart beyond the
            # depth limit: see the test about a child like its parent.
            name = f"{choose.choice(['Reserved', 'dax0.0', 'a : b', ''])} {depth} {left}"
            children = level(one, depth + 1) if depth < 9 else ()
            found.append(IomemEntry(one, name, children))
            at = end + 1
        return tuple(found)

    while not (roots := level(MemoryRange(0, 1 << 40), 1)):
        left = 5
    return Iomem(roots)


whole_trees = st.integers(0, 1 << 32).map(random_tree)


def printed(tree: Iomem, deepest: int) -> Iterator[str]:
    for line in tree.lines():
        indent = len(line) - len(line.lstrip())
        yield f"{'  ' * min(indent // 2, deepest)}{line.lstrip()}\n"


@settings(max_examples=200)
@given(whole_trees, st.sampled_from([5, 8, 100]))
def test_a_printed_tree_reads_back_whatever_the_kernels_depth_limit(
    tree: Iomem, deepest: int
) -> None:
    assert parse_iomem("".join(printed(tree, deepest))) == tree


@given(whole_trees, st.data())
def test_a_printed_tree_that_is_cut_off_is_never_read_as_whole(
    tree: Iomem, data: st.DataObject
) -> None:
    text = "".join(printed(tree, 8))
    cut = text[: data.draw(st.integers(0, len(text) - 1))]
    with contextlib.suppress(IomemError):
        # Only a cut between two lines can be taken for a whole file.
        parse_iomem(cut)
        assert text[len(cut) - 1] == "\n"


@given(st.text(alphabet=" 01f-:ax\n", max_size=60))
def test_any_text_is_read_or_refused_and_nothing_else(text: str) -> None:
    with contextlib.suppress(IomemError):
        parse_iomem(text)
