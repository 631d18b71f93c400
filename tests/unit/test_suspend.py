# SPDX-License-Identifier: BSD-2-Clause
"""The command that ends `xl save` after its guest died, in a real shell, on hosts with and without pkill."""

from __future__ import annotations

import shutil
import signal
import subprocess
from pathlib import Path

import pytest

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
