# SPDX-License-Identifier: BSD-2-Clause
"""Builds FreeBSD from a source tree, by FreeBSD's own means: make on FreeBSD, tools/build/make.py elsewhere.

Objects live in the store by source path, options and compiler, so that a second build does only what changed. The source
is only read, but for bmake's own tests, which write beside themselves when it is bootstrapped.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from harness.errors import BuildError
from harness.images import build_log, conffiles, kernconf, linkhint, preflight, src_conf, store, treescan
from harness.images.hosttools import Compiler
from harness.images.inputs import combine
from harness.images.kernconf import KernConf
from harness.images.progress import Progress
from harness.images.srctree import SourceTree
from harness.images.treescan import Scan

log = logging.getLogger("fxh.images.build")

ARCH = "amd64"
# Raise when the same source and options come out as something else.
RECIPE = 1
# Tests of bmake that fail under dash, or where SIGINT is ignored (under nohup or in the background of a script).
_BROKEN_TESTS = "cmd-interrupt deptgt-interrupt opt-debug-x-trace"
# Objects of a kernel and a small world take 400 MB, of a full world several GB.
_NEEDED = {"small": 2 << 30, "zfs": 4 << 30, "full": 12 << 30}

# sys/conf/files    sys/amd64/conf/GENERIC
_CONFIGURES = re.compile(rb"sys/(?:[^/\0]+/)?conf/")


# makeoptions	DEBUG=-g     nomakeoption	WITH_CTF
_MAKEOPTION = re.compile(r"^\s*(?:no)?makeoptions?\s.*", re.MULTILINE)


@dataclass(frozen=True)
class Workshop:
    """Where one source tree is built with one set of options."""

    tree: SourceTree
    compiler: Compiler
    src_conf: str
    preset: str
    jobs: int
    scanned: Scan
    """The tree as it was when the build began."""

    @property
    def key(self) -> str:
        return combine([str(self.tree.path), self.src_conf, self.compiler.version, RECIPE])

    @property
    def directory(self) -> Path:
        return store.directory("objects") / self.key

    @property
    def objects(self) -> Path:
        """Where make puts this tree's: the prefix, the absolute path of the source, the machine."""
        return self.directory / "obj" / str(self.tree.path).lstrip("/") / f"{ARCH}.{ARCH}"

    @contextmanager
    def open(self) -> Iterator[Workshop]:
        """Have it to oneself: two builds in one object directory spoil each other."""
        free = shutil.disk_usage(store.directory("objects")).free
        if free < _NEEDED[self.preset]:
            raise BuildError(
                f"{free >> 20} MiB free in the store, building the {self.preset} world takes {_NEEDED[self.preset] >> 20}",
                hint="free some space (`fxh image gc`), or point FXH_STORE at a larger disk",
            )
        with FileLock(self.directory.with_name(f".{self.key}.lock")):
            (self.directory / "obj").mkdir(parents=True, exist_ok=True)
            (self.directory / "log").mkdir(exist_ok=True)
            (self.directory / "src.conf").write_text(self.src_conf)
            (self.directory / ".used").touch()
            end_leftovers(str(self.directory / "obj"))
            self._forget_older()
            begun = time.time()
            self._times.write_text(f"{begun} {math.inf}")
            try:
                yield self
            finally:
                self._times.write_text(f"{begun} {time.time()}")

    @property
    def _times(self) -> Path:
        """When it was opened last, and when closed: inf while it is open, and for one that was killed."""
        return self.directory / "times"

    def _forget_older(self) -> None:
        """Drop all objects when make would not see that a source has changed since they were made."""
        if not self._times.exists():
            return
        begun, ended = map(float, self._times.read_text().split())
        if name := treescan.restore_or_create(self.scanned, begun, ended):
            log.warning("%s was put back with an older time, which make does not see: everything is built anew", name)
            (self.directory / "toolchain.done").unlink(missing_ok=True)
            shutil.rmtree(self.directory / "obj")
            (self.directory / "obj").mkdir()

    # -- what is built ------------------------------------------------------------------------------------------------

    def preflight(self, rest: str) -> None:
        """Check that the tree has every source of the world; again only when ``rest``, the hash of all but sys/, has changed.

        Raises BuildError that names what is missing.
        """
        done = self.directory / "preflight.done"
        if done.is_file() and done.read_text() == rest:
            return
        preflight.check_world(self.tree, self.compiler, self.directory / "src.conf")
        done.write_text(rest)

    def toolchain(self, rest: str) -> None:
        """Build the tools of the build; again only when ``rest``, the hash of all but sys/, has changed."""
        done = self.directory / "toolchain.done"
        if done.is_file() and done.read_text() == rest:
            return
        done.unlink(missing_ok=True)
        self.make("toolchain", "kernel-toolchain")
        done.write_text(rest)

    def kernel(self, conf: KernConf) -> Path:
        """Build one kernel; returns the file, without debugging information. The toolchain has to be there."""
        words = [f"KERNCONF={conf.name}"]
        if conf.files:
            directory = self.directory / "conf" / conf.hash[:16]
            directory.mkdir(parents=True, exist_ok=True)
            for name, text in conf.files:
                if not (directory / name).is_file() or (directory / name).read_text() != text:
                    (directory / name).write_text(text)
            words.append(f"KERNCONFDIR={directory}")
        # Paths in assertions and debugging information would make the kernel's bytes depend on where the source lies.
        words.append(f"CONF_CFLAGS=-ffile-prefix-map={self.tree.path}=/usr/src -ffile-prefix-map={self.objects}=/usr/obj")
        flags, used = combine([_makeoptions(conf), words[-1]]), self.objects / "sys" / f".{conf.name}.flags"
        if not used.is_file() or used.read_text() != flags:
            # make compares times, not flags: objects that were compiled with others would stay.
            shutil.rmtree(self.objects / "sys" / conf.name, ignore_errors=True)
            (self.objects / "sys" / f".{conf.name}.configured").unlink(missing_ok=True)
        self._seed(conf, flags)
        used.parent.mkdir(parents=True, exist_ok=True)
        used.write_text(flags)
        configured, state = self.objects / "sys" / f".{conf.name}.configured", self._configuration(conf)
        if configured.is_file() and configured.read_text() == state:
            # config(8) would write the same again (Makefile.inc1, KERNFAST).
            words.append("-DKERNFAST")
        configured.unlink(missing_ok=True)
        try:
            self.make(f"kernel-{conf.name}", "buildkernel", *words)
        except BuildError as exc:
            told = self._why_unlinked(conf)
            if not told:
                raise
            raise BuildError(f"{exc.message}\n  " + "\n  ".join(told), hint=f"keep those; {exc.hint}") from exc
        kernel = self.objects / "sys" / conf.name / "kernel"
        if not kernel.is_file():
            raise BuildError(f"the build of {conf.name} succeeded but there is no {kernel}", hint="is it a kernel configuration?")
        configured.write_text(state)
        return kernel

    def _configuration(self, conf: KernConf) -> str:
        """Everything that config(8) reads, as a hash: ``conf``, and the records of the tree's sys/conf and sys/*/conf."""
        read = [record for record in self.scanned.records if _CONFIGURES.match(record)]
        return combine([conf.hash, hashlib.sha256(b"".join(sorted(read))).hexdigest()])

    def _seed(self, conf: KernConf, flags: str) -> None:
        """Give a configuration without objects those of a sibling, so that make compiles only what differs.

        make compares times: an object is made anew when a header of options that it includes has changed, and config(8)
        leaves an unchanged header alone (usr.sbin/config/main.c, moveifchanged). Options that change the compiler's flags
        instead (sys/conf/kern.pre.mk: sanitizers, COVERAGE, GCOV) are in none of our own configurations, so only
        configurations that include XENCOMMON share objects, and only with the same ``flags``.
        """
        target = self.objects / "sys" / conf.name
        if target.exists() or "XENCOMMON" not in dict(conf.files):
            return
        siblings = [self.objects / "sys" / name for name in kernconf.shipped() if name != conf.name]
        same = [path for path in siblings if _text(path.with_name(f".{path.name}.flags")) == flags]
        linked = [path for path in same if (path / "kernel").is_file() and (path / "version").is_file()]
        if not linked:
            return
        nearest = max(linked, key=lambda path: (path / "kernel").stat().st_mtime)
        scratch = target.with_name(f".{conf.name}.seed")
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.copytree(nearest, scratch, symlinks=True)
        for name in ("kernel", "kernel.full", "kernel.debug"):
            (scratch / name).unlink(missing_ok=True)
        scratch.rename(target)
        log.info("kernel-%s: starts from the objects of %s", conf.name, nearest.name)

    def _why_unlinked(self, conf: KernConf) -> list[str]:
        """The devices and options whose absence broke the last link of ``conf``."""
        log = (self.directory / "log" / f"kernel-{conf.name}.log").read_text(errors="replace")
        return linkhint.explain(log, self.tree, conffiles.names(self.tree, conf.name, dict(conf.files)))

    def world(self, destination: Path) -> None:
        """Build the world and install it, without root, into the empty directory ``destination`` with its METALOG."""
        self.make("world", "buildworld")
        for target in ("installworld", "distribution"):
            self.make(target, target, f"DESTDIR={destination}", "-DNO_ROOT", "-DDB_FROM_SRC", jobs=1)

    @property
    def makefs(self) -> Path:
        """The tree's own makefs, built for this host."""
        legacy = self.objects / "tmp/legacy/usr/sbin/makefs"
        return legacy if legacy.exists() else self.objects / "tmp/usr/sbin/makefs"

    # -- how ----------------------------------------------------------------------------------------------------------

    def make(self, what: str, target: str, *words: str, jobs: int = 0) -> None:
        """Run one target (several at once would run side by side). Raises BuildError with the lines that tell why."""
        path = self.directory / "log" / f"{what}.log"
        progress = Progress(what)
        argv = [*self._tool(), f"-j{jobs or self.jobs}", target, *words]
        with path.open("w", errors="replace") as file:
            file.write(f"# {' '.join(argv)}\n")
            process = subprocess.Popen(
                argv, cwd=self.tree.path, env=self._environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True, preexec_fn=_plain,
            )  # fmt: skip
            try:
                for line in process.stdout or ():
                    file.write(line)
                    progress.line(line)
                    progress.tell()
                status = process.wait()
            finally:
                if process.poll() is None:
                    end_session(process.pid)
                    process.wait()
                if process.stdout:
                    process.stdout.close()
                progress.end()
        if status:
            text = path.read_text(errors="replace")
            told = build_log.causes(text) or text.splitlines()[-10:]
            raise BuildError(f"{what} failed:\n  " + "\n  ".join(told), hint=f"the whole log is {path}")

    def _tool(self) -> list[str]:
        common = [
            f"TARGET={ARCH}", f"TARGET_ARCH={ARCH}", "__MAKE_CONF=/dev/null", "SRC_ENV_CONF=/dev/null",
            f"SRCCONF={self.directory / 'src.conf'}",
            *([] if src_conf.makefs_knob(self.tree) else ["LOCAL_XTOOL_DIRS=usr.sbin/makefs"]),
        ]  # fmt: skip
        if self.compiler.bindir is None:
            return ["make", *common, "-DNO_CLEAN", "-DWITHOUT_CLEAN"]
        return [
            sys.executable,
            str(self.tree.path / "tools/build/make.py"),
            "--no-clean",
            f"--cross-bindir={self.compiler.bindir}",
            *common,
        ]

    def _environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if key in ("PATH", "HOME", "TMPDIR", "USER", "LOGNAME")}
        prefix = str(self.directory / "obj")
        return {**kept, "LC_ALL": "C", "MAKEOBJDIRPREFIX": prefix, "BROKEN_TESTS": _BROKEN_TESTS, "PYTHONDONTWRITEBYTECODE": "1"}


def _plain() -> None:
    """In the child: a build is nobody's hurry, and bmake's tests want the interrupt signal as it comes."""
    os.nice(10)
    # A session of its own is a scheduling group of its own where autogroups are on (sched(7)): nice counts only within it.
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text("10")
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def end_session(leader: int) -> None:
    """Kill all of a session: bmake gives each of its jobs a process group of its own, and those outlive a killed group."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        left = [pid for pid, session in _sessions() if session == leader and pid != os.getpid()]
        if not left:
            return
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def _sessions() -> list[tuple[int, int]]:
    """(pid, session) of all living processes."""
    if not Path("/proc/self/stat").exists():
        done = subprocess.run(["ps", "-axo", "pid=,sid="], capture_output=True, text=True, check=False).stdout
        return [(int(a), int(b)) for a, b in (line.split() for line in done.splitlines())]
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            words = path.read_text(errors="replace").rpartition(")")[2].split()
            if words[0] != "Z":
                found.append((int(path.parent.name), int(words[3])))
    return found


def end_leftovers(prefix: str) -> None:
    """Kill what an earlier build in this object directory left behind when its harness was killed.

    make's own process still has our variable, its jobs may not: so all of its session goes.
    """
    mark = f"MAKEOBJDIRPREFIX={prefix}".encode()
    marked = set()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if mark in path.read_bytes().split(b"\0"):
                marked.add(int(path.parent.name))
    for leader in {session for pid, session in _sessions() if pid in marked} - {os.getsid(0)}:
        log.warning("ending session %d, left over from an earlier build", leader)
        end_session(leader)


def _makeoptions(conf: KernConf) -> list[str]:
    """The lines of a configuration that change how every file is compiled."""
    return [line for _, text in conf.files for line in _MAKEOPTION.findall(text)]


def _text(path: Path) -> str:
    return path.read_text() if path.is_file() else ""
