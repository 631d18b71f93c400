# SPDX-License-Identifier: BSD-2-Clause
"""The interface of a guest operating system. The rest of the harness and the suites are the same for every OS."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from harness.console.stages import Stage
from harness.console.tables import ConsoleTables
from harness.errors import CannotRun
from harness.guests.os.values import (
    Balloon,
    BalloonLimits,
    BootVolume,
    Interface,
    KernelIdentity,
    Run,
    ShutdownExpectation,
    SmallBlocks,
)
from harness.osversion import UNKNOWN, OSVersion


@dataclass(frozen=True)
class GuestOS(ABC):
    """One guest operating system. ``run`` is :meth:`harness.guests.guest.Guest.sh`.

    ``version`` is "" if unknown. ``types`` are the guest types that the kernel can run as.
    """

    version: str = ""
    types: tuple[str, ...] = ()

    name: ClassVar[str]
    """As in ``needs(os=...)``."""
    title: ClassVar[str]
    console: ClassVar[ConsoleTables]
    """Boot stages, prompts and crash machinery."""
    panic_kind: ClassVar[str]
    """The kind of the death that :meth:`panic_command` causes."""
    panic_function: ClassVar[str]
    """A static function of the kernel that :meth:`panic_command` calls, so it is in the panic's backtrace."""
    halted: ClassVar[bytes]
    """A regex for the line that the kernel prints when it has halted."""
    user: ClassVar[str] = "root"
    password: ClassVar[str] = ""
    elf_osabi: ClassVar[int] = 0
    """The ABI of its programs in their ELF header, e_ident[EI_OSABI]; 0 is System V, which Linux uses."""
    sources: ClassVar[Mapping[str, str]] = {}
    """Files of the OS's source by subject: see :meth:`source`."""
    balloon_limits: ClassVar[BalloonLimits] = BalloonLimits()
    reboot_command: ClassVar[str] = "reboot"
    """A command that unmounts the file systems and reboots."""
    xenstore_device: ClassVar[str]
    """The device with which programs of the guest talk to xenstored."""
    tmpfs_command: ClassVar[str]
    """A command that mounts a tmpfs for most of the memory at /mnt."""
    large_packets_command: ClassVar[str] = ":"
    """A command that removes the limits on datagrams and on fragments of a packet."""
    udp_by_tftp: ClassVar[bool] = False
    """Whether only a TFTP client can send datagrams of chosen sizes (:mod:`harness.guests.datagrams`); else ``nc -u`` does."""
    independent_offloads: ClassVar[bool] = True
    """Whether each offload can be switched on without the others."""
    obeys_no_csum: ClassVar[bool] = True
    """Whether netfront obeys a backend's feature-no-csum-offload."""
    dead_backends: ClassVar[Mapping[str, str]] = {"xvdk": "6"}
    """Disks for a boot with dead backends: the backend's state (public/io/xenbus.h) by vdev."""
    suspension_breaks_poll: ClassVar[bool] = False
    """Whether a program that waits in poll(2) or select(2), such as nc, gets EINTR from a suspension and ends."""
    short_clocks: ClassVar[frozenset[str]] = frozenset()
    """The names in :meth:`clock_commands` of clocks that wrap within 0.1 s. A CPU that stands still for longer loses time with them."""
    kept_per_restore: ClassVar[int] = 0
    """Allocations in :meth:`holdings` that the kernel never frees after a save and restore, as a known issue says."""
    longest_pause: ClassVar[int] = 4
    """Seconds that a random walk pauses the guest at most."""
    uncached_command: ClassVar[str] = ":"
    """A command after which the next read of a disk reaches the disk."""
    vdev_names: ClassVar[tuple[str, ...]] = ("xvdb", "xvdp", "xvdq", "xvdaa")
    """Vdevs of all kinds that the OS names differently, for one boot."""

    @property
    def os_version(self) -> OSVersion:
        """The version as ``needs(<name>=...)`` and known issues compare it; UNKNOWN for an OS whose versions are not compared."""
        return UNKNOWN

    def fatal_events(self, guest_type: str) -> frozenset[str]:
        """Events of a random walk (:data:`harness.oracles.walk.EVENTS`) that kill this version as ``guest_type``, as known issues say."""
        return frozenset()

    @property
    def stages(self) -> Sequence[Stage]:
        """The stages of a boot, in their order."""
        return self.console.stages

    def source(self, subject: str) -> str:
        """The reference to the OS's source for a finding: ``balloon``, ``blkfront``, ``netfront``, ``timer`` and so on."""
        return self.sources.get(subject, f"{self.title}'s source for {subject}")

    # -- boot ---------------------------------------------------------------------------------------------------------

    @abstractmethod
    def command_line(self, variables: Mapping[str, str]) -> str:
        """The ``extra`` that gives the kernel these variables."""

    def appended(self, words: str) -> str:
        """``words`` of :meth:`command_line` as they follow the bootloader's own words and a blank."""
        return words

    @property
    def separator(self) -> str:
        """The character between two variables on the command line."""
        return " "

    @abstractmethod
    def default_variables(self, root: str, emulated: bool) -> Mapping[str, str]:
        """The kernel variables of a test boot: root device, early panic handling and, on an ``emulated`` CPU, less work."""

    @property
    def pv_console(self) -> Mapping[str, str]:
        """Kernel variables with which an HVM guest's kernel uses the PV console instead of the serial port; empty if there are none."""
        return {}

    def kernel_bits(self, kernel: Path) -> int:
        """32 or 64 for the kernel file; 0 if that does not matter."""
        return 0

    @abstractmethod
    def alternate(self, kernel: bytes, ramdisk: bytes | None, running: str) -> tuple[bytes, str]:
        """Another good file in place of :attr:`BootVolume.file`, and its :meth:`build_mark`.

        ``running`` is the mark of the running kernel. Raises UsageError if there is no such file.
        """

    @abstractmethod
    def build_mark(self, run: Run) -> str:
        """The mark by which the running kernel differs from its :meth:`alternate`."""

    @abstractmethod
    def boot_volume(self, run: Run, disk: str) -> BootVolume:
        """The boot volume on ``disk``; it is mounted if it is not yet."""

    # -- kernel ---------------------------------------------------------------------------------------------------------

    @abstractmethod
    def identity(self, run: Run) -> KernelIdentity:
        """The identity that the running kernel reports."""

    @abstractmethod
    def identity_of(self, kernel: bytes) -> KernelIdentity:
        """The identity that a kernel file states; a field is empty if the file does not state it.

        Raises UsageError if it is not a kernel of this OS.
        """

    @abstractmethod
    def variables(self, run: Run) -> Mapping[str, str]:
        """The kernel's environment (kenv), or its command line by variables."""

    # -- disks --------------------------------------------------------------------------------------------------------

    @abstractmethod
    def disk_name(self, vdev: str) -> str:
        """The guest's name of the disk ``vdev``."""

    @abstractmethod
    def root_device(self, run: Run) -> str:
        """The root file system as the mount table names it: ``/dev/xbd0p2``, ``zroot/ROOT/default``, ``rootfs``; "" if the guest does not tell."""

    def dump_variables(self, disk: str) -> Mapping[str, str]:
        """The kernel variables that make ``disk`` the dump device; none if the OS writes no dumps."""
        return {}

    @abstractmethod
    def disks(self, run: Run) -> tuple[str, ...]:
        """The names of all disks that the kernel has, sorted: ``xbd0``, ``ada0``; for Linux all block devices."""

    @abstractmethod
    def disk_bytes(self, run: Run, name: str) -> int:
        """The size of the disk in bytes."""

    @abstractmethod
    def attach_log(self, run: Run) -> str:
        """The kernel's messages about its disks since it booted."""

    @abstractmethod
    def sha256_command(self, path: str) -> str:
        """A command that prints the sha256 of a file as its first word."""

    @property
    @abstractmethod
    def small_blocks(self) -> SmallBlocks:
        """The file system of the cases with large kernels for pygrub."""

    # -- memory and CPUs ----------------------------------------------------------------------------------------------

    @abstractmethod
    def memory_mib(self, run: Run) -> int:
        """MiB that the kernel manages, free or not."""

    @abstractmethod
    def balloon(self, run: Run) -> Balloon:
        """The numbers of the balloon driver and of the kernel's memory, in bytes."""

    @abstractmethod
    def hog(self, mib: int) -> str:
        """A command that takes ``mib`` MiB of memory and holds them for some time."""

    @abstractmethod
    def cpus(self, run: Run) -> int:
        """The number of running CPUs."""

    @abstractmethod
    def on_cpu(self, number: int, command: str) -> str:
        """The shell command that runs ``command`` on that CPU alone."""

    @abstractmethod
    def holdings(self, run: Run) -> Mapping[str, int]:
        """The kernel's resources for its paravirtual devices: the numbers of devices, interrupts and allocations, by name."""

    @abstractmethod
    def clock_commands(self, run: Run) -> Mapping[str, str]:
        """The commands that select each usable clock and each timer that wakes processes, by a name for reports."""

    # -- network ------------------------------------------------------------------------------------------------------

    @abstractmethod
    def interfaces(self, run: Run) -> tuple[Interface, ...]:
        """All network interfaces, the loopback included."""

    @abstractmethod
    def address(self, run: Run, interface: str, cidr: str) -> None:
        """Give the interface this address, of IPv4 or IPv6, and bring it up, without duplicate address detection."""

    @abstractmethod
    def add_address(self, run: Run, interface: str, cidr: str) -> None:
        """Give an interface that is up a further address of IPv4 or IPv6, without duplicate address detection."""

    @abstractmethod
    def network(self, interface: str) -> str:
        """The command that shows the network's state: addresses, counters, routes, neighbours."""

    @abstractmethod
    def has_ipv6(self, run: Run) -> bool:
        """Whether the kernel has IPv6."""

    def vlan_command(self, interface: str, tag: int) -> str:
        """Creates the interface ``vlan<tag>`` for the frames of ``interface`` with this tag. Raises CannotRun without VLANs."""
        raise CannotRun(f"needs VLANs in the kernel of {self.title}", hint="fxh run netfront -k vlan --image IMAGE")

    @abstractmethod
    def set_mtu(self, run: Run, interface: str, mtu: int) -> None:
        """Set the MTU in bytes."""

    @abstractmethod
    def forwarding_command(self, ipv6: bool) -> str:
        """A command that makes the guest a router."""

    @abstractmethod
    def offloads(self, run: Run, interface: str) -> Mapping[str, bool]:
        """The offloads among ``tx``, ``rx``, ``tso``, ``lro`` and ``sg`` that the OS can switch, and whether each is on."""

    @abstractmethod
    def offload_command(self, interface: str, name: str, on: bool) -> str:
        """A command that switches an offload, by its name in :meth:`offloads`."""

    @abstractmethod
    def checksum_errors(self, run: Run) -> int:
        """TCP segments that the kernel discarded for a bad checksum since it booted."""

    @abstractmethod
    def received(self, run: Run, interface: str) -> tuple[int, int]:
        """Frames that the interface received, and packets that IP got from all interfaces: fewer where segments were joined."""

    @abstractmethod
    def ping_command(self, address: str, seconds: int, size: int | None = None, *, whole: bool = False) -> str:
        """One echo to ``address`` with ``size`` bytes of data, which waits ``seconds`` for its answer.

        With ``whole`` no host may fragment it (DF). Raises CannotRun if the OS's ping cannot do that.
        """

    @abstractmethod
    def nc_command(self, seconds: float) -> str:
        """One TCP connection to an address and a port, which follow; it ends with its input, or after ``seconds``."""

    @abstractmethod
    def listen_words(self, address: str, port: int) -> str:
        """The words after ``nc -l``."""

    @abstractmethod
    def netfront_queues(self, vcpus: int, variables: Mapping[str, str]) -> int:
        """The most queues that netfront connects."""

    # -- counters -------------------------------------------------------------------------------------------------------

    def network_counters(self, interface: str) -> str:
        """Prints counters of the protocols and the interface, and ``interface_up 1`` or ``0``. "": the OS has no such command."""
        return ""

    def parse_counters(self, text: str, interface: str) -> Mapping[str, int]:
        """The counters in that output, named as in :mod:`harness.oracles.counters`."""
        return {}

    disk_counters: ClassVar[str] = ""
    """Prints :meth:`requests_in_flight`, then the kernel's log. "": the OS has no such command."""

    def requests_in_flight(self, text: str) -> Mapping[str, int]:
        """The requests that each disk has not answered, by disk, in the output of :attr:`disk_counters`."""
        return {}

    # -- end ----------------------------------------------------------------------------------------------------------

    @abstractmethod
    def panic_command(self) -> str:
        """A command that causes a panic."""

    @abstractmethod
    def flood_command(self, lines: int, width: int) -> str:
        """A command that prints ``lines`` numbered lines of ``width`` characters on the console."""

    def flood_lines(self, guest_type: str, *, serial: bool) -> int:
        """How many lines of 10 kB the guest prints on an emulated machine in reasonable time."""
        return 1000

    @abstractmethod
    def fate(self, control: str, guest_type: str) -> ShutdownExpectation:
        """How the guest ends after dom0 writes ``control`` to control/shutdown."""

    @abstractmethod
    def fate_of_panic(self, guest_type: str) -> ShutdownExpectation:
        """How the guest ends after a panic."""
