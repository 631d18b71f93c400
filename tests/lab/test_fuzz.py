# SPDX-License-Identifier: BSD-2-Clause
"""pygrub's fuzz finds files that pygrub writes outside its directory."""

from __future__ import annotations

from pathlib import Path

from harness.lab.host import LabHost
from harness.xen import pygrub

# Makes each run of pygrub write next to its directory.
_STRAYING = 'sed -i \'/^import os/a open("../stray", "w").close()\' /usr/lib/xen-*/bin/pygrub'


def test_a_file_that_is_written_elsewhere_is_named(host: LabHost, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 16))

    def strays() -> tuple[str, ...]:
        report = pygrub.fuzz(host.transport, "/run/fuzz", image, "menu", 1, 2, (0, 400))
        assert (report.runs, report.counts) == (2, {"1": 2})
        return report.strays

    assert strays() == ()
    host.transport.run(["sh", "-c", _STRAYING])
    assert strays() == ("/run/fuzz/stray",)
