# SPDX-License-Identifier: BSD-2-Clause
"""A guest OS that does not exist, on a host that replays its console: a pytest plugin for test_guest_os.py."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import quiet_host

from harness.console.machinery import Machinery, Row
from harness.console.markers import marker
from harness.console.stages import stage
from harness.console.tables import ConsoleTables
from harness.guests import registry
from harness.guests.os.base import GuestOS
from harness.guests.os.definition import GuestDefinition, SourceRequest
from harness.guests.os.values import Balloon, BootVolume, Interface, KernelIdentity, Run, ShutdownExpectation, SmallBlocks
from harness.guests.source import GuestSource
from harness.hosts.inventory import Inventory
from harness.osversion import OSVersion
from harness.plugin.worker_hosts import WorkerHosts
from harness.transport import Completed
from harness.transport.replay import ReplayStream

BOOT = b"ToyOS kernel 2.1\r\nstarting programs\r\n\r\ntoy login: "
# The frames are in the form of FreeBSD's debugger, the functions are the toy's own.
PANIC = (
    b"\r\nTOY HALTED: out of toys\r\ncpuid = 0\r\nKDB: stack backtrace:\r\n"
    b"toy_report() at toy_report+0x10/frame 0xfffffe0000000010\r\n"
    b"toy_driver_poll() at toy_driver_poll+0x20/frame 0xfffffe0000000020\r\nUptime: 4s\r\n"
)


@dataclass(frozen=True)
class ToyOS(GuestOS):
    version: str = "2.1"
    types: tuple[str, ...] = ("pvh",)

    name = "toy"
    title = "ToyOS"
    console = ConsoleTables(
        (
            # ToyOS kernel 2.1
            stage("kernel", b"ToyOS kernel", rb"^\r*ToyOS kernel [\d.]+", 60),
            # toy login:
            stage("login", b"login: ", rb"^\r*toy login: ", 0),
        ),
        machinery=Machinery([Row("reports", r"toy_report\w*", "toy_report")]),
        # TOY HALTED: out of toys
        markers=(marker("panic", b"TOY HALTED", rb"^\r*TOY HALTED: [^\r\n]+"),),
    )
    panic_kind = "panic"
    panic_function = "burn"
    halted = rb"^\r*toy over"
    tmpfs_command = "mount memory /mnt"
    xenstore_device = "/dev/xenstore"

    @property
    def os_version(self) -> OSVersion:
        return OSVersion(self.version)

    def command_line(self, variables: Mapping[str, str]) -> str:
        return ";".join(f"{name}={value}" for name, value in variables.items())

    def default_variables(self, root: str, emulated: bool) -> Mapping[str, str]:
        return {"root": root}

    def alternate(self, kernel: bytes, ramdisk: bytes | None, running: str) -> tuple[bytes, str]:
        return kernel, "B"

    def build_mark(self, run: Run) -> str:
        return run("mark")

    def boot_volume(self, run: Run, disk: str) -> BootVolume:
        return BootVolume("/menu", "/kernel", "kernel", "/kernel", "s|one|two|")

    def identity(self, run: Run) -> KernelIdentity:
        return KernelIdentity(run("version"), "TOY", "")

    def identity_of(self, kernel: bytes) -> KernelIdentity:
        return KernelIdentity("2.1", "TOY", "")

    def variables(self, run: Run) -> Mapping[str, str]:
        return {}

    def disk_name(self, vdev: str) -> str:
        return f"toydisk-{vdev}"

    def root_device(self, run: Run) -> str:
        return ""

    def disks(self, run: Run) -> tuple[str, ...]:
        return ()

    def disk_bytes(self, run: Run, name: str) -> int:
        return 0

    def attach_log(self, run: Run) -> str:
        return ""

    def sha256_command(self, path: str) -> str:
        return f"sha256 {path}"

    @property
    def small_blocks(self) -> SmallBlocks:
        return SmallBlocks("make {0}", 1, 2)

    def memory_mib(self, run: Run) -> int:
        return 64

    def balloon(self, run: Run) -> Balloon:
        return Balloon(0, 0, 0, 0, 0)

    def holdings(self, run: Run) -> Mapping[str, int]:
        return {}

    def clock_commands(self, run: Run) -> Mapping[str, str]:
        return {}

    def hog(self, mib: int) -> str:
        return f"hog {mib}"

    def cpus(self, run: Run) -> int:
        return 1

    def on_cpu(self, number: int, command: str) -> str:
        return command

    def interfaces(self, run: Run) -> tuple[Interface, ...]:
        return ()

    def address(self, run: Run, interface: str, cidr: str) -> None: ...

    def add_address(self, run: Run, interface: str, cidr: str) -> None: ...

    def network(self, interface: str) -> str:
        return "network"

    def has_ipv6(self, run: Run) -> bool:
        return False

    def set_mtu(self, run: Run, interface: str, mtu: int) -> None: ...

    def forwarding_command(self, ipv6: bool) -> str:
        return "forward"

    def offloads(self, run: Run, interface: str) -> Mapping[str, bool]:
        return {}

    def offload_command(self, interface: str, name: str, on: bool) -> str:
        return "offload"

    def checksum_errors(self, run: Run) -> int:
        return 0

    def received(self, run: Run, interface: str) -> tuple[int, int]:
        return 0, 0

    def ping_command(self, address: str, seconds: int, size: int | None = None, *, whole: bool = False) -> str:
        return f"ping {address}"

    def nc_command(self, seconds: float) -> str:
        return "nc"

    def listen_words(self, address: str, port: int) -> str:
        return str(port)

    def netfront_queues(self, vcpus: int, variables: Mapping[str, str]) -> int:
        return 1

    def panic_command(self) -> str:
        return "halt-and-catch-fire"

    def flood_command(self, lines: int, width: int) -> str:
        return f"flood {lines} {width}"

    def fate(self, control: str, guest_type: str) -> ShutdownExpectation:
        return ShutdownExpectation("poweroff")

    def fate_of_panic(self, guest_type: str) -> ShutdownExpectation:
        return ShutdownExpectation("crash")


class ToyConsole(ReplayStream):
    """The recorded boot, then a shell that knows two commands."""

    def __init__(self) -> None:
        super().__init__(BOOT, end="silence")
        self._command, self._said = "", {"version": "2.1", ":": ""}

    def leave(self) -> None:
        self.close()

    def write(self, data: bytes) -> None:
        for line in data.decode().replace("\x15", "").split("\r"):
            answer = self._answer(line.strip())
            with self._lock:
                self._chunks.extend([answer] if answer else [])

    def _answer(self, line: str) -> bytes:
        if line == ToyOS.user:
            return b"toy# "
        if line.startswith("exec env"):
            return b"\r\nfxh# "
        if line.endswith("quiet"):
            return b"fxh-quiet\r\nfxh# "
        # echo fxh'-'1a2b
        if match := re.fullmatch(r"echo fxh'-'([0-9a-f]+)", line):
            return f"fxh-{match[1]}\r\nfxh# ".encode()
        # o=$( ( version
        if match := re.fullmatch(r"o=\$\( \( (.*)", line):
            self._command = match[1]
        # fxh_emit 1a2b3c4d 400
        elif (match := re.fullmatch(r"fxh_emit ([0-9a-f]+) \d+", line)) and self._command in self._said:
            said, nonce = self._said[self._command], match[1]
            return f"fxh-begin-{nonce} 0 \r\n{said}\r\nfxh-again-{nonce}\r\n{said}\r\nfxh-end-{nonce}\r\nfxh# ".encode()
        return PANIC if line == ToyOS().panic_command() else b""


class ToyHost(quiet_host.Host):
    """Its only guest is the toy."""

    def __init__(self) -> None:
        super().__init__(emulated=False, capabilities=frozenset({"pvh"}))
        self.toolstack = SimpleNamespace(
            create=lambda config, deadline: 7,
            console=lambda domid, kind, new: ToyConsole(),
            unpause=lambda domid: None,
            destroy=lambda domid: None,
            find=lambda name: None,
        )
        # Its dom0 knows no command.
        self.transport = SimpleNamespace(run=lambda argv, deadline=None, check=True: Completed(tuple(argv), 127, b"", b""))
        self.xenstore = SimpleNamespace(watch=lambda *paths, seconds: nullcontext(lambda longest: None))

    @property
    def facts(self) -> Any:
        return SimpleNamespace(
            emulated=False, name="toy-host", xen="4.20", dom0="none", backend="replay", note="", quirks=(), builds=()
        )

    def domain_name(self, label: str) -> str:
        return f"fxh-{label}"

    def forget(self, name: str) -> None: ...

    def shared_disk(self, file: Path) -> str: ...

    def drop_disk(self, target: str) -> None: ...

    def check(self) -> None: ...

    def inventory(self) -> Inventory:
        return Inventory(frozenset(), ())

    def hypervisor_log(self) -> str:
        return ""

    xenstore_log = "/tmp/xenstore.log"

    def close(self) -> None: ...


def _find(request: SourceRequest) -> GuestSource:
    kernel = Path.cwd() / "toy-kernel"
    kernel.write_bytes(b"a toy")
    return GuestSource("toy", ToyOS(), kernel, memory=64)


# This makes it a guest: the line in the registry.
registry.GUESTS["toy"] = GuestDefinition("toy", ToyOS, "a toy guest", types=("pvh",), find=_find, option="--guest toy")


def pytest_configure() -> None:
    host = ToyHost()
    WorkerHosts._acquire = lambda self, cell: host  # type: ignore[assignment,method-assign,return-value]
