# SPDX-License-Identifier: BSD-2-Clause
"""The command that ends `xl save` after its guest died, in a real shell, with and without pkill; and how xl migrate fails."""

from __future__ import annotations

import shutil
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from harness.errors import CannotRun, CommandFailed, HarnessError, InfrastructureError
from harness.guests import suspend


@pytest.mark.parametrize("has_pkill", [True, False])
def test_only_the_xl_save_of_the_guest_is_ended(tmp_path: Path, has_pkill: bool) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sh", "pidof", "tr", "grep", *(["pkill"] if has_pkill else [])):
        found = shutil.which(name)
        if found is None:
            pytest.skip(f"no {name} on this machine; apt-get install procps sysvinit-utils")
        (tools / name).symlink_to(found)
    xl = tmp_path / "xl"
    shutil.copy(Path("/bin/sh").resolve(), xl)
    # A shell with the name and the arguments of xl, which waits for a line or a signal.
    saving, other = (
        subprocess.Popen([xl, "-c", "read -r line", f"{tmp_path}/xl save {domid} /var/lib/x.save"], stdin=subprocess.PIPE)
        for domid in (2, 3)
    )
    try:
        pattern = f"{tmp_path}/[x]l save 2 /var/lib/x.save"
        subprocess.run(["sh", "-c", suspend._END_XL, "sh", pattern], env={"PATH": str(tools)}, check=False)
        assert saving.wait(10) == -signal.SIGTERM
        assert other.poll() is None
    finally:
        for process in (saving, other):
            process.kill()
            process.communicate()


def guest(migrate: Mock) -> Any:
    """A guest of domain 3 whose migration is ``migrate``."""
    return Mock(
        domid=3, scale=1.0, host=Mock(toolstack=Mock(migrate=migrate)), console=SimpleNamespace(death=None), hang=TimeoutError,
        config=SimpleNamespace(guest_type="pv"), name="g",
    )  # fmt: skip


def test_a_migrated_guest_has_its_new_domain() -> None:
    moved = guest(Mock())
    moved.state.return_value.domid = 7
    suspend.migrated(moved)
    assert moved.domid == 7
    moved.reattach.assert_called_once_with()


def test_a_guest_that_moved_is_looked_for_on_its_new_host() -> None:
    moved, target = guest(Mock()), Mock()
    source = moved.host
    suspend.migrated(moved, "cat > /run/x", target)
    source.toolstack.migrate.assert_called_once_with(3, "cat > /run/x")
    assert moved.host is target


def test_a_migration_after_which_the_guest_is_nowhere() -> None:
    lost = guest(Mock())
    lost.state.return_value = None
    with pytest.raises(TimeoutError, match="xl migrate ended without an error"):
        suspend.migrated(lost)


@pytest.mark.parametrize(
    ("stderr", "error", "says"),
    [
        ("xc: error: Failed to enable logdirty: 95,22,0 (22 = Invalid argument)", CannotRun, "dirty pages of a PV guest"),
        ("migration target: Domain creation failed", TimeoutError, "xl migrate: migration target: Domain creation failed"),
    ],
)
def test_a_migration_that_fails(stderr: str, error: type[Exception], says: str) -> None:
    failing = guest(Mock(side_effect=CommandFailed("xl migrate", 1, "", stderr)))
    with pytest.raises(error, match=says):
        suspend.migrated(failing)
    failing.reattach.assert_not_called()


def test_a_failed_save_leaves_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    failing = guest(Mock())
    failing.name, failing.host.make_directory.return_value = "g", "/run/x"
    monkeypatch.setattr(suspend, "_save", Mock(side_effect=HarnessError("no space")))
    with pytest.raises(HarnessError, match="no space"):
        suspend.through_a_file(failing)
    failing.host.transport.run.assert_called_once_with(["rm", "-f", "/run/x/g.save"])
    failing.host.toolstack.restore.assert_not_called()


@pytest.mark.parametrize(
    ("stderr", "error"),
    [
        ("libxl: error: libxl_stream_write.c:350: Domain 3:save: No space left on device", InfrastructureError),
        ("xc: error: Failed to allocate memory (12 = Cannot allocate memory): Internal error", InfrastructureError),
        (
            "libxl: error: libxl_dom_suspend.c:389:suspend_common_wait_guest_timeout: Domain 3:guest did not suspend, timed out",
            TimeoutError,
        ),
    ],
)
def test_a_save_that_fails_for_lack_of_the_host_is_no_failure_of_the_guest(stderr: str, error: type[Exception]) -> None:
    failing = guest(Mock())
    failing.host.toolstack.save = Mock(side_effect=CommandFailed("xl save", 1, "", stderr))
    with pytest.raises(error, match="xl save"):
        suspend._save(failing, "/run/x")


def test_a_lost_host_is_no_failed_migration() -> None:
    with pytest.raises(HarnessError, match="gone"):
        suspend.migrated(guest(Mock(side_effect=HarnessError("gone"))))
