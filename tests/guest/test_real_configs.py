# SPDX-License-Identifier: GPL-2.0-or-later
"""Fragments of kernel_configs on real sources: configured and checked, nothing compiled."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from harness.core.errors import NotConfigurableError, UnbuildableError
from harness.kernels.build import build as under_test
from harness.kernels.build.build import BuildJob, build
from harness.kernels.build.config import (
    FRAGMENTS,
    KernelConfig,
    fragment_names,
    parse_config,
    plan_config,
)
from harness.kernels.build.from_source import CCACHE
from harness.kernels.build.make import run_make
from harness.kernels.build.sandbox import find_sandbox
from harness.kernels.build.toolchain import find_toolchain
from harness.kernels.debian.source import debian_source
from harness.kernels.resolve import resolve_kernel
from harness.kernels.spec import parse_kernel_spec
from harness.runs.prepare import Host
from harness.scenario.kernel_request import Toolchain

pytestmark = pytest.mark.guest

VERSION = "7.2"
OTHERS = ("6.12", "6.17", "6.18", "7.3")
# The purpose of a fragment, as a check of check_config().
TURNED_ON = {
    "debug": ("PROVE_LOCKING", "KASAN", "DEBUG_KMEMLEAK", "SOFTLOCKUP_DETECTOR", "WQ_WATCHDOG"),
    "debug_info": ("DEBUG_INFO",),
    "builtin": ("CXL_REGION", "DEV_DAX_CXL"),
    "no_cxl": ("DEV_DAX_HMEM",),
}
FORBIDDEN = {"hmem_builtin_cxl_module": "DEV_DAX_HMEM: requested y"}

Configure = Callable[..., KernelConfig]


class ConfiguredError(UnbuildableError):
    """Stop a build before it compiles; its configuration has been checked."""


@pytest.fixture(scope="module")
def configure(harness_host: Host, tmp_path_factory: pytest.TempPathFactory) -> Configure:
    """Return a function that configures a source, in one folder per version and toolchain."""
    store, progress = harness_host.store, harness_host.progress
    folder = tmp_path_factory.mktemp("configs")

    def only_configure(argv: Sequence[str], *arguments: Any, **options: Any) -> int:
        if "bzImage" in argv:
            raise ConfiguredError("configured", hint="")
        return run_make(argv, *arguments, **options)

    def use(names: Sequence[str], kind: Toolchain = "gcc", version: str = VERSION) -> KernelConfig:
        spec = parse_kernel_spec(f"build:debian:{version}")
        source, state = debian_source(spec, store, progress)
        with source.claimed(store, progress), pytest.MonkeyPatch.context() as patched:
            patched.setattr(under_test, "run_make", only_configure)
            commit = source.base_commit(state)
            source.check_out(commit, progress)
            job = BuildJob(
                source=source,
                commit=commit,
                plan=plan_config(names),
                toolchain=find_toolchain(kind),
                sandbox=find_sandbox(),
                output=folder / f"{version}-{kind}",
                ccache=store.folder(CCACHE),
                what=f"{version} with {','.join(names)}",
            )
            job.objects.mkdir(parents=True, exist_ok=True)
            with pytest.raises(ConfiguredError):
                build(job, progress)
            return parse_config((job.objects / ".config").read_text())

    return use


@pytest.mark.parametrize("name", sorted({*fragment_names()} - {"distro", *FORBIDDEN}))
def test_a_fragment(configure: Configure, name: str) -> None:
    have = configure([name])
    assert [option for option in TURNED_ON.get(name, ()) if not have.enabled(option)] == []


@pytest.mark.parametrize("version", OTHERS)
def test_the_base_on_another_version(configure: Configure, version: str) -> None:
    have = configure([], version=version)
    assert have.enabled("DEV_DAX_CXL") and have.enabled("SYSCTL")
    # Without CXL_MCE, cxl_pci of 6.16 and later warns of each device.
    assert have.enabled("CXL_MCE") or version < "6.16"


@pytest.mark.parametrize("name", FORBIDDEN)
def test_a_combination_that_the_source_forbids(configure: Configure, name: str) -> None:
    with pytest.raises(NotConfigurableError) as caught:
        configure([name])
    assert FORBIDDEN[name] in caught.value.message
    assert "depends on" in caught.value.message
    assert caught.value.fragments == {f"{name}.config"}


def test_a_whole_config_of_a_distribution(configure: Configure, harness_host: Host) -> None:
    kernel = resolve_kernel(f"debian:{VERSION}", harness_host.store, harness_host.progress)
    have = configure([f"distro:{kernel.config}", "no_cxl_region"])
    assert have.enabled("EXT4_FS"), "an option that no fragment names is kept"
    assert not have.enabled("CXL_REGION")


@pytest.mark.parametrize("name", ["base", "debug"])
def test_clang(configure: Configure, name: str) -> None:
    if shutil.which("clang") is None:
        pytest.skip("clang is not installed")
    have = configure([name], "clang")
    assert have.enabled("CC_IS_CLANG")


def test_an_option_that_the_source_has_renamed_is_noticed(
    configure: Configure, tmp_path: Path
) -> None:
    text = (FRAGMENTS / "debug.config").read_text()
    assert "CONFIG_DEBUG_KMEMLEAK=y\n" in text
    changed = tmp_path / "changed.config"
    changed.write_text(text.replace("CONFIG_DEBUG_KMEMLEAK", "CONFIG_DEBUG_KMEMLEEK"))
    with pytest.raises(NotConfigurableError, match=r"DEBUG_KMEMLEEK: .* no such option"):
        configure([str(changed)])
