# SPDX-License-Identifier: BSD-2-Clause
"""Two labs with one disk and one network, as for a migration between them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.guests.host_pair import HostPair, _command
from harness.guests.source import DiskImage
from harness.lab import factory
from harness.lab.factory import LabSpec
from harness.lab.host import LabHost


@pytest.fixture
def other() -> Iterator[LabHost]:
    lab = factory.make(LabSpec())
    try:
        lab.up()
        yield LabHost(lab)
    finally:
        lab.remove()


def test_both_hosts_have_one_disk_and_one_network(host: LabHost, other: LabHost, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"of the image".ljust(1 << 20, b"\0"))
    with HostPair(host, other) as pair:
        disk = pair.disk(DiskImage(image, "xvdb"))
        host.transport.run(["sh", "-c", f"printf 'of the first' | dd of={disk.target} conv=fsync 2>/dev/null"])
        assert other.transport.run(["head", "-c", "12", disk.target]).text == "of the first"

        for side, address in ((host, "198.18.1.1"), (other, "198.18.1.2")):
            side.transport.run(["ip", "addr", "add", f"{address}/24", "dev", pair.bridge])
        host.transport.run(["ping", "-c", "3", "-W", "5", "198.18.1.2"])

        for side in (host, other):
            with _command(side.transport, "cat") as stream:
                stream.write(bytes(1 << 16) + b"end")
                came = b""
                while not came.endswith(b"end"):
                    came += stream.read(1 << 16, 30)
            assert len(came) == (1 << 16) + 3

        clocks = [int(side.transport.run(["date", "+%s"]).text) for side in (host, other)]
        assert abs(clocks[0] - clocks[1]) <= 3

    assert image.read_bytes().startswith(b"of the image")
    for side in (host, other):
        assert side.transport.run(["ip", "link", "show", pair.bridge], check=False).status
