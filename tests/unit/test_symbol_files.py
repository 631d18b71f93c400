# SPDX-License-Identifier: BSD-2-Clause
"""``--symbols``: files of another build are refused before anything boots."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.errors import UsageError
from harness.guests.os.freebsd import FreeBSD
from harness.guests.os.linux import Linux
from harness.guests.source import GuestSource
from harness.plugin import symbol_files
from harness.plugin.guest_sources import GuestSources
from harness.plugin.options import Options
from harness.xen import elfnotes

pytestmark = pytest.mark.skipif(not shutil.which("cc"), reason="needs cc (Debian: gcc)")


def kernel(directory: Path, name: str, symbol: str, number: int) -> Path:
    """A file with a kernel's symbol and a build-id of its own."""
    path = directory / name
    (directory / "k.c").write_text(f"int {symbol} = {number};\nint main(void) {{ return 0; }}\n")
    subprocess.run(["cc", "-g", "-Wl,--build-id=sha1", "-o", path, "k.c"], cwd=directory, check=True)
    return path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("built")
    for name, symbol, number in (
        ("freebsd", "osreldate", 1), ("other-freebsd", "osreldate", 2), ("linux", "start_kernel", 3), ("other-linux", "start_kernel", 4),
        ("xen", "__start_xen", 5), ("other-xen", "__start_xen", 6),
    ):  # fmt: skip
        kernel(directory, name, symbol, number)
    return directory


@pytest.fixture
def sources(built: Path, monkeypatch: pytest.MonkeyPatch) -> GuestSources:
    """A run with FreeBSD and the control guest, in a lab with Xen 4.20."""
    options = Options(guests=("freebsd", "control"), xens=("4.20",))
    monkeypatch.setattr(GuestSources, "_find_tested", lambda *_: GuestSource("freebsd-15.1", FreeBSD(), built / "freebsd"))
    monkeypatch.setattr(GuestSources, "_find_control", lambda *_: GuestSource("control", Linux(), built / "linux"))
    monkeypatch.setattr(symbol_files.factory, "image", lambda _: SimpleNamespace(directory=built))
    return GuestSources(options)


def check(
    built: Path, sources: GuestSources, *names: str, host: str = "", guests: tuple[str, ...] = ("freebsd", "control")
) -> None:
    options = Options(guests=guests, xens=("4.20",), symbols=tuple(built / name for name in names), host=host)
    own = GuestSources(options)
    symbol_files.check(options, own)


def test_the_symbols_of_each_kernel_of_the_run_are_accepted(built: Path, sources: GuestSources) -> None:
    check(built, sources, "freebsd", "linux", "xen")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("other-freebsd", "another build of FreeBSD: build-id {own}, but the kernel of freebsd-15.1 has {freebsd}"),
        ("other-linux", "another build of Linux: build-id {own}, but the kernel of control has {linux}"),
        ("other-xen", "another build of Xen: build-id {own}, but the lab's Xen 4.20 has {xen}"),
    ],
)
def test_symbols_of_another_build_are_refused(built: Path, sources: GuestSources, name: str, words: str) -> None:
    ids = {path: elfnotes.build_id(built / path) for path in ("freebsd", "linux", "xen")}
    with pytest.raises(UsageError, match=words.format(own=elfnotes.build_id(built / name), **ids)):
        check(built, sources, name)


def test_symbols_of_a_kernel_that_nothing_boots_are_refused(built: Path, sources: GuestSources) -> None:
    with pytest.raises(UsageError, match="symbols of Linux, which no guest of this run boots"):
        check(built, sources, "linux", guests=("freebsd",))


def test_the_xen_of_a_real_host_is_compared_when_it_is_connected(built: Path, sources: GuestSources) -> None:
    check(built, sources, "other-xen", host="dom0.example")
    host = SimpleNamespace(facts=SimpleNamespace(build_id=elfnotes.build_id(built / "xen"), xen="4.20.5", name="dom0.example"))
    options = Options(host="dom0.example", symbols=(built / "xen",))
    symbol_files.check_host(options, host, only=True)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"but Xen 4\.20\.5 on dom0\.example has"):
        symbol_files.check_host(replace(options, symbols=(built / "other-xen",)), host, only=True)  # type: ignore[arg-type]


def test_a_pool_may_run_several_hypervisors(built: Path, caplog: pytest.LogCaptureFixture) -> None:
    host = SimpleNamespace(facts=SimpleNamespace(build_id=elfnotes.build_id(built / "xen"), xen="4.20.5", name="one of many"))
    for _ in range(2):
        symbol_files.check_host(Options(host="tag:xen", symbols=(built / "other-xen",)), host, only=False)  # type: ignore[arg-type]
    assert caplog.text.count("symbols of another build of Xen") == 1


def test_a_guest_gets_the_given_files(built: Path, sources: GuestSources) -> None:
    source = replace(
        GuestSource("freebsd-15.1", FreeBSD(), built / "freebsd"), symbols=(built / "other-freebsd", built / "freebsd")
    )
    assert source.kernel_symbols is not None
    assert source.kernel_symbols.debug == built / "freebsd"
