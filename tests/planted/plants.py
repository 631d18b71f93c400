# SPDX-License-Identifier: BSD-2-Clause
"""Planted regressions: a pytest plugin (``-p plants --plant NAME``) that makes one thing below the suites go wrong.

A plant changes a domain configuration, dom0, an image or a command in the guest, and never a suite. ``TABLE`` lists the plants, each
with the case that must fail and the words of its failure. ``python tests/planted/score.py`` runs them all.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from harness.deadline import Deadline
from harness.guests import replace_kernel, suspend
from harness.guests.guest import Guest
from harness.guests.link import Link
from harness.guests.memory import Memory
from harness.hosts import scratch
from harness.plugin import guest_factory
from harness.xen import pygrub, vdev
from harness.xen.config import DomainConfig
from harness.xen.xl import Xl


@dataclass(frozen=True)
class Plant:
    """A planted regression.

    ``case`` (``suite/function``) must fail with a text that matches the regex ``words``. ``make`` plants the regression. ``type`` and
    ``guest`` are the guest type and the guest of the run. With a ``fatal`` plant no guest boots, and every suite fails.
    """

    case: str
    words: str
    make: Callable[[], None]
    type: str = "pv"
    guest: str = "control"
    fatal: bool = False
    options: tuple[str, ...] = ()
    """Further options of pytest."""

    @property
    def suite(self) -> str:
        return self.case.partition("/")[0]


def wrap(owner: Any, name: str, around: Callable[..., Any]) -> None:
    """Replace a method by ``around(original, *arguments)``."""
    original = getattr(owner, name)

    def changed(*args: Any, **kwargs: Any) -> Any:
        return around(original, *args, **kwargs)

    setattr(owner, name, changed)


def configured(change: Callable[[DomainConfig], DomainConfig]) -> Callable[[], None]:
    """Change the configuration of every domain before it is created."""

    def make() -> None:
        wrap(Xl, "create", lambda original, self, config, *rest, **more: original(self, change(config), *rest, **more))

    return make


def extra_arguments(**variables: str) -> Callable[[], None]:
    """Append arguments to every guest's command line."""
    words = " ".join(f"{name}={value}" for name, value in variables.items())
    return configured(lambda config: replace(config, extra=f"{config.extra} {words}"))


def variables(**changes: str) -> Callable[[], None]:
    """Set variables of FreeBSD's kernel environment. Two underscores stand for a dot in a name."""

    def change(config: DomainConfig) -> DomainConfig:
        found = dict(word.partition("=")[::2] for word in config.extra.split(","))
        found |= {name.replace("__", "."): value for name, value in changes.items()}
        return replace(config, extra=",".join(f"{name}={value}" for name, value in found.items()))

    return configured(change)


def without(name: str) -> Callable[[DomainConfig], DomainConfig]:
    """Remove a kernel variable."""
    return lambda config: replace(config, extra=",".join(w for w in config.extra.split(",") if not w.startswith(f"{name}=")))


def moved_root(config: DomainConfig) -> DomainConfig:
    first = replace(config.disks[0], vdev="xvde")
    return replace(config, disks=(first, *config.disks[1:]))


def renamed_disk(config: DomainConfig) -> DomainConfig:
    return replace(config, disks=tuple(replace(d, vdev="xvdj") if d.vdev == "xvdb" else d for d in config.disks))


def swapped_disks(config: DomainConfig) -> DomainConfig:
    targets = {d.vdev: d.target for d in config.disks}
    other = {"xvdp": "xvdq", "xvdq": "xvdp"}
    return replace(config, disks=tuple(replace(d, target=targets[other.get(d.vdev, d.vdev)]) for d in config.disks))


def missing_disk(config: DomainConfig) -> DomainConfig:
    return replace(config, disks=tuple(d for d in config.disks if d.vdev != "xvdz"))


def corrupted_disk() -> None:
    def around(original: Any, self: Xl, config: DomainConfig, *rest: Any, **more: Any) -> Any:
        for disk in config.disks:
            if disk.vdev == "xvdb":
                self._transport.run(["dd", "if=/dev/urandom", f"of={disk.target}", "bs=512", "count=1", "seek=9"])
        return original(self, config, *rest, **more)

    wrap(Xl, "create", around)


def changed_image(change: Callable[[bytes], bytes]) -> Callable[[], None]:
    """Change every image before pygrub reads it."""

    def make() -> None:
        def around(original: Any, transport: Any, directory: str, disk: str | bytes, *rest: Any, **more: Any) -> Any:
            return original(transport, directory, disk if isinstance(disk, str) else change(disk), *rest, **more)

        wrap(pygrub, "run", around)

    return make


def patched(offset: int, data: bytes) -> Callable[[bytes], bytes]:
    return lambda image: image[:offset] + data + image[offset + len(data) :]


def replaced_command(pattern: str, instead: str) -> Callable[[], None]:
    """Replace each command in the guest that matches (``\\g<0>`` is the command itself). ``Guest.sh`` calls ``Guest.run``."""

    def make() -> None:
        wrap(
            Guest,
            "run",
            lambda original, self, command, *rest, **more: original(self, re.sub(pattern, instead, command), *rest, **more),
        )

    return make


def stale_kernel() -> None:
    """Let a process in dom0 hold the boot disk open, and so its page cache, which the guest's writes bypass."""

    def around(original: Any, guest: Guest) -> Any:
        script = 'exec 9< "$1"; cat <&9 > /dev/null; sleep 900 > /dev/null 2>&1 < /dev/null &'
        guest.host.transport.run(["sh", "-c", script, "sh", guest.config.disks[0].target], Deadline(120))
        return original(guest)

    wrap(replace_kernel, "volume", around)


def vif_command(*argv: str) -> Callable[[], None]:
    """Run a command in dom0 after the link is up. ``VIF`` stands for the vif."""

    def make() -> None:
        def around(original: Any, self: Link, *rest: Any) -> Any:
            found = original(self, *rest)
            self.dom0(*(self.vif if word == "VIF" else word for word in argv))
            return found

        wrap(Link, "wait_up", around)

    return make


def corrupted_frames(share: str) -> Callable[[], None]:
    """Flip a bit in this share of the frames that dom0 sends over the vif."""
    return vif_command("tc", "qdisc", "replace", "dev", "VIF", "root", "netem", "corrupt", share)


START_RELAY = """
ip link set "$1" nomaster
setsid python3 -c "$3" "$1" > /dev/null 2>&1 < /dev/null &
while [ ! -e /sys/class/net/fxhrelay ]; do sleep 0.1; done
ip link set fxhrelay address fe:ff:ff:ff:ff:fe master "$2" up  # a higher address than the bridge's own, which stays the same
"""


def unfinished_checksums() -> None:
    """Pass the guest's segments to dom0 without their checksums, as a netfront would that forgets to say that they have none."""

    def around(original: Any, self: Link, *rest: Any) -> Any:
        found = original(self, *rest)
        relay = Path(__file__).with_name("relay.py").read_text()
        self.dom0("sh", "-c", START_RELAY, "sh", self.vif, self.host.bridge, relay)
        return found

    wrap(Link, "wait_up", around)


def failing_disks() -> None:
    """Let dom0's reads of each scratch disk fail: its file is cut, but its loop device keeps the size."""

    def around(original: Any, host: Any, *rest: Any, **more: Any) -> Any:
        made = original(host, *rest, **more)
        for disk in made:
            host.transport.run(["truncate", "-s", "0", disk.file])
        return made

    wrap(scratch, "create", around)


def mem_set(change: Callable[[int], int]) -> Callable[[], None]:
    def make() -> None:
        wrap(Xl, "mem_set", lambda original, self, domain, mib: original(self, domain, change(mib)))

    return make


def forgotten_offloads() -> None:
    """Switch TSO on again when a guest is restored."""

    def around(original: Any, guest: Guest) -> Any:
        journey = original(guest)
        guest.sh("ethtool -K eth0 tso on")
        return journey

    wrap(suspend, "through_a_file", around)


def ignored_target() -> None:
    wrap(Xl, "mem_set", lambda original, self, domain, mib: None)


def writable() -> None:
    wrap(Xl, "block_attach", lambda original, self, domain, disk: original(self, domain, replace(disk, readonly=False)))


def swallowed_bytes() -> None:
    """Lose 40 bytes of every tenth console block of more than 2000 bytes."""
    from harness.console.reader import ConsoleReader

    counter = itertools.count(1)

    def around(original: Any, self: ConsoleReader, chunk: bytes) -> Any:
        return original(self, chunk[:-40] if len(chunk) > 2000 and next(counter) % 10 == 0 else chunk)

    wrap(ConsoleReader, "_take", around)


def swallowed_end() -> None:
    """The last that a console prints is lost, and then it is silent."""
    from harness.console.reader import ConsoleReader

    def around(original: Any, self: ConsoleReader, chunk: bytes) -> Any:
        return original(self, chunk.replace(b"flood-over", b""))

    wrap(ConsoleReader, "_take", around)


def deaf_to_detach() -> None:
    """Keep a guest from reacting to xl block-detach."""

    def around(original: Any, self: Xl, domain: str | int, vdev: str, **more: Any) -> None:
        self.pause(domain)
        try:
            original(self, domain, vdev, **more)
        finally:
            self.unpause(domain)

    wrap(Xl, "block_detach", around)


def unstated_feature() -> None:
    """Remove what a guest stated at its boot."""

    def around(original: Any, self: Guest, *rest: Any) -> Any:
        session = original(self, *rest)
        self.host.xenstore.write(f"/local/domain/{self.domid}/control/feature-suspend", "")
        return session

    wrap(Guest, "login", around)


def changed_on_resume() -> None:
    """Switch TSO off whenever a guest continues in its domain."""

    def around(original: Any, guest: Guest) -> Any:
        seconds = original(guest)
        guest.sh("ethtool -K eth0 tso off")
        return seconds

    wrap(suspend, "continued", around)


def kept_backend() -> None:
    """Leave an empty directory of the backend in xenstore when a disk is detached."""

    def around(original: Any, self: Xl, domain: str | int, name: str, **more: Any) -> None:
        original(self, domain, name, **more)
        self._transport.run(["xenstore-write", f"/local/domain/0/backend/vbd/{domain}/{vdev.number(name)}", ""])

    wrap(Xl, "block_detach", around)


def lost_bytes() -> None:
    """Change a byte of each file in the guest's /tmp when the guest is restored with less memory than it had at boot."""

    def around(original: Any, guest: Guest) -> Any:
        journey = original(guest)
        if guest.state().memory < guest.config.memory - 8:  # type: ignore[union-attr]
            guest.sh('for f in /tmp/fxh-*; do printf X | dd of="$f" bs=1 seek=5000 conv=notrunc 2>/dev/null; done')
        return journey

    wrap(suspend, "through_a_file", around)


def lost_pages() -> None:
    """Let the guest keep 64 pages each time it grows: four pipes with 64 KiB, which no counter of /proc/meminfo has."""
    targets = [0]

    def around(original: Any, self: Memory, value: str) -> None:
        original(self, value)
        if int(value) > targets[-1]:
            self.guest.sh("for i in 1 2 3 4; do ( dd if=/dev/zero bs=64k count=1 | sleep 900 ) > /dev/null 2>&1 & done")
        targets.append(int(value))

    wrap(Memory, "write", around)


def deaf_to_control() -> None:
    """Keep a guest from reacting to control/shutdown."""
    from harness.guests.guest import Guest

    wrap(Guest, "control", lambda original, self, value: None)


def before_panic(command: str) -> Callable[[], None]:
    """Run a command in the guest before it panics on purpose."""

    def make() -> None:
        def around(original: Any, self: Guest, seconds: float) -> Any:
            self.sh(command)
            return original(self, seconds)

        wrap(Guest, "panic", around)

    return make


def freebsd(case: str, words: str, make: Callable[[], None], *, fatal: bool = False) -> Plant:
    return Plant(case, words, make, "pvh", "freebsd", fatal)


def walk(seed: int) -> tuple[str, ...]:
    """The options of a random walk. The seeds below come to their plant after six steps of the control guest."""
    return ("--fxh-walk", "10m", "--fxh-walk-seed", str(seed))


NAMES = "root_mount/test_every_vdev_in_one_boot"
TABLE = {
    "wrong-vdev": Plant(NAMES, "vdev xvdb .* should be xvdb: it is xvdj", configured(renamed_disk)),
    "swapped-disks": Plant(NAMES, "should be xvdp: it is xvdq, and xvdp holds vdev xvdq", configured(swapped_disks)),
    "missing-disk": Plant(NAMES, "should be xvdz: no disk of the guest has its content", configured(missing_disk)),
    "corrupted-disk": Plant(NAMES, "should be xvdb: no disk of the guest has its content, and xvdb holds unknown data", corrupted_disk),
    "failing-disk": Plant(
        "root_mount/test_hot_plug", "should be xvdc: .*cause: .*dom0 could not read or write \\S+ the device behind xvdc", failing_disks
    ),
    "write-through": Plant("root_mount/test_read_only", "a write to xvdc, which the toolstack attached read-only", writable),
    "corrupted-menu": Plant("pygrub/test_follows_block_trees", "observed: .*(status 1|Error|Unable)", changed_image(lambda image: image.replace(b"kernel /boot/kernel/kernel", b"kernel /boot/kernel/kernwl"))),
    "ufs-block-size": Plant("pygrub/test_sparse_kernel", "Unable to find partition", changed_image(patched(8192 + 48, b"\0\0\x10\0"))),
    "ufs-magic": Plant("pygrub/test_sparse_kernel", "Unable to find partition", changed_image(patched(8192 + 1372, b"\x19\x01\x54\x19"))),
    "kernel-truncated": Plant(
        "reboot/test_replaced_kernel_runs[rename]", "has neither kernel complete|does not boot",
        replaced_command(r"(cp \S+initrd\.new \S+) &&", r"\g<1> && F=/mnt/boot/initrd.next; head -c 900000 $F > $F.x; mv $F.x $F;"),
    ),
    "stale-kernel": Plant("reboot/test_replaced_kernel_runs[in-place]", "the bootloader read stale blocks", stale_kernel),
    "old-kernel": Plant("reboot/test_replaced_kernel_runs[in-place]", "the old kernel", replaced_command(r"cp \S+initrd\.new \S+$", "true")),
    "no-restart": Plant("reboot/test_plain_reboot", "did not come back", configured(lambda c: replace(c, on_reboot="destroy", on_crash="destroy"))),
    "corrupted-packets": Plant(
        "netfront/test_content_both_ways", "cause: .*the guest discarded \\d+ packets for a wrong checksum",
        corrupted_frames("100%"),
    ),
    "unfinished-checksums": Plant(
        "netfront/test_content_both_ways[ipv4]",
        "after 0 bytes.*cause: .*dom0 discarded \\d+ packets for a wrong checksum: the guest sends packets without a full checksum",
        unfinished_checksums,
    ),
    "dropped-frames": Plant(
        "netfront/test_small_writes", "cause: .*dom0's queue of \\S+ dropped \\d+ frames for the guest",
        vif_command("tc", "qdisc", "replace", "dev", "VIF", "root", "netem", "loss", "100%"),
    ),
    "corrupted-datagrams": Plant(
        # IPv4 only, because with IPv6 the link may not come up at all.
        "netfront/test_datagrams[ipv4]", "after \\d+ bytes",
        corrupted_frames("100%"),
    ),
    "segmentation-off": Plant("netfront/test_segmentation_is_used", "the guest shows TSO as off", replaced_command(r"^ip -4 addr flush.*", r"\g<0>; ethtool -K eth0 tso off")),
    "joining-off": Plant("netfront/test_segments_are_joined", "segments are not joined", replaced_command(r"^ip -4 addr flush.*", r"\g<0>; ethtool -K eth0 gro off")),
    "no-network": Plant("netfront/test_echo_sizes", "does not reach dom0.*cause: .*the guest's interface \\S+ is down", replaced_command(r"ip link set eth0 up", "ip link set eth0 down")),
    "no-ipv6": Plant("netfront/test_datagrams[ipv6]", "does not reach dom0 over \\S+ by ipv6", replaced_command(r"0 > \S+accept_dad", "1 > /proc/sys/net/ipv6/conf/eth0/disable_ipv6")),
    "corrupting-bridge": Plant(
        "netfront/test_between_guests", "threw \\d+ segments away|did not get|were sent|does not reach",
        corrupted_frames("5%"),
    ),
    "offloads-forgotten": Plant("netfront/test_saved_in_the_middle", "the offloads changed from .*'tso': False.* to .*'tso': True", forgotten_offloads),
    "target-ignored": Plant("balloon/test_shrinks_and_grows_back", "the balloon is at .* MiB instead of", ignored_target),
    "target-overshot": Plant("balloon/test_shrinks_and_grows_back", "the balloon is at .* MiB instead of", mem_set(lambda mib: mib - 16)),
    "balloon-loses-pages": Plant("balloon/test_keeps_no_page_that_it_gets", "are neither free, nor in a use that the kernel counts", lost_pages),
    "feature-not-stated": Plant("lifecycle/test_capabilities_after_boot", "control/(feature-suspend) is", unstated_feature),
    "setting-lost-on-resume": Plant("lifecycle/test_checkpointed[1]", "the offloads changed from .*'tso': True.* to .*'tso': False", changed_on_resume),
    "backend-left": Plant("lifecycle/test_random_walk", r"the shortest failing sequence.*attach \w+; detach \w+\n", kept_backend, options=walk(15)),
    "bytes-lost-on-restore": Plant(
        "lifecycle/test_random_walk", r"the file \S+ has the digest.*the shortest failing sequence.*: balloon \d+; save and restore\n",
        lost_bytes, options=walk(180),
    ),
    "vcpu-missing": Plant("lifecycle/test_vcpus_come_and_go", "after the boot the guest has 1 CPUs", extra_arguments(maxcpus="1")),
    "address-not-announced": Plant("netfront/test_saved_guest_announces_itself", "no announcement of 2001:\\S+ by", replaced_command(r"^ip addr add (2001:\S+:4)/64", r"true")),
    "slow-timer": Plant("boot/test_every_timer_keeps_time", "`sleep 3` takes", replaced_command(r"^sleep 3$", "sleep 6")),
    "misplaced-block": Plant("root_mount/test_blocks_are_where_they_belong[512]", "block 8 holds", replaced_command(r"seek=8 ", "seek=9 ")),
    "pages-not-zeroed": Plant(
        "balloon/test_pages_are_given_back_empty", "the secret is in \\d+ of the",
        extra_arguments(init_on_alloc="0", xen_scrub_pages="0"), "pvh",
    ),
    "memory-lost": Plant("boot/test_all_memory[301]", "the kernel manages \\d+ MiB", extra_arguments(mem="200M")),
    "panic-in-init": Plant("boot/test_boots_to_login", "linux-panic", extra_arguments(**{"fxh.panic": "init"}), fatal=True),
    "hang-in-init": Plant("boot/test_boots_to_login", "hang: no progress after stage init", extra_arguments(**{"fxh.hang": "init"}), fatal=True),
    "panic-at-login": Plant("boot/test_boots_to_login", "linux-panic", extra_arguments(**{"fxh.panic": "login"}), fatal=True),
    "no-kernel": Plant(
        "boot/test_boots_to_login", "refused: .*Invalid kernel", configured(lambda c: replace(c, kernel="/bin/sh", ramdisk="")), fatal=True
    ),
    "silent-console": Plant("boot/test_boots_to_login", "hang: ", extra_arguments(rdinit="/bin/cat"), fatal=True),
    "console-loses-bytes": Plant("boot/test_flood_loses_nothing", "lines of \\d+ are missing", swallowed_bytes),
    "deaf-to-detach": Plant("root_mount/test_hot_plug", "Unable to remove vbd", deaf_to_detach),
    "deaf-to-control": Plant("boot/test_comes_back_after_a_reboot", "hang: .* domain \\d+ is still there", deaf_to_control),
    "console-loses-its-end": Plant("boot/test_flood_loses_nothing", "the end mark .* did not arrive", swallowed_end),
    "freebsd-wrong-root": freebsd(
        "boot/test_boots_to_login", "mountroot: no root file system: ufs:/dev/xbd9 failed with error 19",
        variables(vfs__root__mountfrom="ufs:/dev/xbd9"), fatal=True,
    ),
    "freebsd-moved-root": freebsd(
        "boot/test_boots_to_login", "mountroot: no root file system: ufs:/dev/xbd0 failed with error 19", configured(moved_root),
        fatal=True,
    ),
    "freebsd-no-init": freebsd("boot/test_boots_to_login", "panic: no init", variables(init_path="/nowhere"), fatal=True),
    "freebsd-single-user": freebsd("boot/test_boots_to_login", "came up in single user mode", variables(boot_single="1"), fatal=True),
    "freebsd-little-memory": freebsd(
        "boot/test_boots_to_login", "panic|hang|trap|eof", variables(hw__physmem="20M"), fatal=True
    ),
    "freebsd-muted": freebsd("boot/test_boots_to_login", "the console shows the stages .*expected:  the console shows the stages", variables(boot_mute="1"), fatal=True),
    "freebsd-lost-variable": freebsd("boot/test_kernel_environment_arrives", "fxh.plain", configured(without("fxh.plain"))),
    "freebsd-stays-in-debugger": freebsd(
        "boot/test_panic_is_seen_and_classified", "Xen got the shutdown reason|to be shut down", variables(debug__debugger_on_panic="1"),
    ),
    "freebsd-swapped-disks": freebsd(NAMES, "should be xbd15: it is xbd16", configured(swapped_disks)),
    "freebsd-checksums-left": freebsd(
        "netfront/test_checksums_by_the_guest", "have a wrong TCP checksum", replaced_command(r"^ifconfig \S+ -txcsum.*", "true"),
    ),
    "freebsd-short-datagrams": freebsd(
        "netfront/test_datagrams", "to dom0: .* after \\d+ bytes", replaced_command("udp.maxdgram=65535", "udp.maxdgram=4000"),
    ),
    "freebsd-old-kernel": freebsd(
        "reboot/test_replaced_kernel_runs[in-place]", "the old kernel", replaced_command(r"cp \S+kernel\.new \S+$", "true"),
    ),
    "freebsd-unasked-panic": freebsd(
        "boot/test_kernel_in_the_guest_is_the_manifests", "panic: kdb_sysctl_panic",
        replaced_command(r"^sha256 -q .*", "sysctl debug.kdb.panic=1"),
    ),
    "freebsd-no-dump": freebsd("boot/test_dump_reaches_the_disk[512]", "there is no dump", replaced_command(r"^dumpon .*", "true")),
    "freebsd-dump-on-two-disks": freebsd(
        "boot/test_dump_reaches_the_disk[512]", "the content of the other disk changed",
        before_panic("dd if=/dev/random of=/dev/xbd3 bs=512 count=1 seek=100 2>/dev/null"),
    ),
    "freebsd-dump-outside-its-swap": freebsd(
        "boot/test_dump_to_a_swap_partition", "the disk changed outside of xbd2p2",
        before_panic("dd if=/dev/random of=/dev/xbd2p1 bs=512 count=1 seek=9 2>/dev/null"),
    ),
    "freebsd-savecore-keeps-the-header": freebsd(
        "boot/test_savecore_saves_the_dump[512]", "the trailer after savecore begins with .*FreeBSD",
        replaced_command(r"savecore /mnt", "savecore -k /mnt"),
    ),
    "freebsd-old-menu": freebsd("reboot/test_replaced_menu", "the kernel's arguments", replaced_command(r"^sed .*menu\.lst.*", "true")),
}  # fmt: skip


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--plant", default="", choices=["", *TABLE], help="plant this regression")


def pytest_configure(config: pytest.Config) -> None:
    name = config.getoption("plant")
    if name:
        TABLE[name].make()
        # Keep the warm checkpoints of planted runs apart from those of clean runs.
        guest_factory._code_digest = functools.partial(_with, guest_factory._code_digest, name)


def _with(original: Callable[[Any], str], name: str, prepare: Any) -> str:
    return f"{original(prepare)} {name}"
