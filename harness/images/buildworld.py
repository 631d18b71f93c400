# SPDX-License-Identifier: BSD-2-Clause
"""Builds FreeBSD from a source tree: with make on FreeBSD, with its tools/build/make.py on other systems.

The store keeps objects by source path, options and compiler, so a second build compiles only changes. The build does not write
into the tree, except that bmake's tests leave files in their directory when bmake is bootstrapped.
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

from harness import store
from harness.errors import BuildError
from harness.images import build_log, conffiles, kernconf, linkhint, preflight, src_conf, treescan
from harness.images.buildsession import MARK, end_leftovers, end_session
from harness.images.hosttools import Compiler
from harness.images.inputs import combine
from harness.images.kernconf import KernConf
from harness.images.kernelmake import Recorder
from harness.images.progress import Progress
from harness.images.srctree import SourceTree
from harness.images.treescan import Scan

log = logging.getLogger("fxh.images.build")

ARCH = "amd64"
# Raise when the same source and options give another result.
RECIPE = 1
# The same for kernels alone. 2: paths in debugging information are replaced, and kernel.debug is kept.
KERNEL_RECIPE = 2
# Tests of bmake that fail under dash, or if SIGINT is ignored (under nohup or in the background of a script).
_BROKEN_TESTS = "cmd-interrupt deptgt-interrupt opt-debug-x-trace"
# Bytes. Objects of a kernel and a small world take 400 MB, of a full world several GB.
_NEEDED = {"small": 2 << 30, "zfs": 4 << 30, "full": 12 << 30}

# Seconds. A file that an interrupted make was still writing is at most this much older than the newest one.
_UNFINISHED = 30

# sys/conf/files    sys/amd64/conf/GENERIC
_CONFIGURES = re.compile(rb"sys/(?:[^/\0]+/)?conf/")


# makeoptions	DEBUG=-g     nomakeoption	WITH_CTF
_MAKEOPTION = re.compile(r"^\s*(?:no)?makeoptions?\s.*", re.MULTILINE)


@dataclass(frozen=True)
class BuildDirectory:
    """The object directory of one source tree with one set of options."""

    tree: SourceTree
    compiler: Compiler
    src_conf: str
    preset: str
    jobs: int
    scanned: Scan
    """The tree at the start of the build."""

    @property
    def key(self) -> str:
        return combine([str(self.tree.path), self.src_conf, self.compiler.version, RECIPE])

    @property
    def directory(self) -> Path:
        return store.directory("objects") / self.key

    @property
    def objects(self) -> Path:
        """make's object directory of this tree: the prefix, the absolute path of the source, the machine."""
        return self.directory / "obj" / str(self.tree.path).lstrip("/") / f"{ARCH}.{ARCH}"

    @contextmanager
    def open(self) -> Iterator[BuildDirectory]:
        """Lock the object directory: two builds at once would corrupt it. Raises BuildError if the store's disk is too full."""
        free = shutil.disk_usage(store.directory("objects")).free
        if free < _NEEDED[self.preset]:
            raise BuildError(
                f"the {self.preset} world needs {_NEEDED[self.preset] >> 20} MiB, but the store has only {free >> 20} MiB free",
                hint="free some space (`fxh store gc`), or point FXH_STORE at a larger disk",
            )
        with store.lock(self.directory):
            (self.directory / "obj").mkdir(parents=True, exist_ok=True)
            (self.directory / "log").mkdir(exist_ok=True)
            (self.directory / "src.conf").write_text(self.src_conf)
            (self.directory / "make.conf").write_text(src_conf.MAKE_CONF)
            store.mark_used(self.directory)
            end_leftovers(str(self.directory / "obj"))
            self._drop_backdated()
            self._drop_unfinished()
            started, ended = time.time(), math.inf
            self._note_times(started, ended)
            try:
                yield self
                ended = time.time()
            except BuildError:
                # make itself ended, so it left no half-written target.
                ended = time.time()
                raise
            finally:
                self._note_times(started, ended)

    @property
    def _times(self) -> tuple[float, float] | None:
        """The times of the last opening and closing, or None; the latter is inf while it is open or if it was interrupted."""
        try:
            started, ended = map(float, (self.directory / "times").read_text().split())
        except FileNotFoundError:
            return None
        except ValueError:  # cut off by a full disk
            return 0.0, math.inf
        return started, ended

    def _note_times(self, started: float, ended: float) -> None:
        part = self.directory / "times.part"
        part.write_text(f"{started} {ended}")
        part.replace(self.directory / "times")

    def _drop_backdated(self) -> None:
        """Drop all objects if a source has changed since their build and make does not notice the change."""
        times = self._times
        if times is None:
            return
        if name := treescan.backdated(self.scanned, *times):
            log.warning("%s was restored with an older time, which make does not notice: building everything again", name)
            (self.directory / "toolchain.done").unlink(missing_ok=True)
            shutil.rmtree(self.directory / "obj")
            (self.directory / "obj").mkdir()

    def _drop_unfinished(self) -> None:
        """After an interrupted build, drop the files that it may have left half-written.

        make compares times only: it treats a truncated library as complete. A file that was being written when the build ended
        is among the newest of the directory.
        """
        times = self._times
        if times is None or times[1] != math.inf:
            return
        written = {
            path: path.lstat().st_mtime for path in (self.directory / "obj").rglob("*") if path.is_file() and not path.is_symlink()
        }
        # Sources from an archive may have times in the future, and installed headers keep the times of their sources.
        newest = max((when for when in written.values() if when <= time.time()), default=0.0)
        dropped = [path for path, when in written.items() if when > newest - _UNFINISHED]
        for path in dropped:
            path.unlink()
        if dropped:
            log.warning("the last build was interrupted: building its last %d files again", len(dropped))
            (self.directory / "toolchain.done").unlink(missing_ok=True)

    # -- targets ------------------------------------------------------------------------------------------------------

    def missing_sources(self, state: str) -> set[str]:
        """The sources of the world that the tree lacks. Does not look while ``state``, a hash of the tree, is unchanged."""
        done = self.directory / "preflight.done"
        if done.is_file() and done.read_text() == state:
            return set()
        missing = preflight.missing_of_world(self.tree, self.compiler, self.directory / "src.conf")
        if not missing:
            done.write_text(state)
        return missing

    def has_toolchain(self, rest: str) -> bool:
        """Whether the tools of the build are those of ``rest``, the hash of all but sys/."""
        done = self.directory / "toolchain.done"
        return done.is_file() and done.read_text() == rest

    def toolchain(self, rest: str) -> None:
        """Build the tools of the build. Does nothing while ``rest``, the hash of all but sys/, is unchanged."""
        if self.has_toolchain(rest):
            return
        done = self.directory / "toolchain.done"
        done.unlink(missing_ok=True)
        shutil.rmtree(self.directory / "make", ignore_errors=True)  # calls of the makes of other tools
        self.make("toolchain", "kernel-toolchain")
        done.write_text(rest)

    def kernel(self, conf: KernConf) -> Path:
        """Build one kernel; returns the file, without debugging information. Requires the toolchain."""
        words = [f"KERNCONF={conf.name}"]
        if conf.files:
            directory = self.directory / "conf" / conf.hash[:16]
            directory.mkdir(parents=True, exist_ok=True)
            for name, text in conf.files:
                if not (directory / name).is_file() or (directory / name).read_text() != text:
                    (directory / name).write_text(text)
            words.append(f"KERNCONFDIR={directory}")
        # Without this, assertions and debugging information contain paths, so the kernel's bytes depend on the source's location.
        paths_replaced = f"CONF_CFLAGS=-ffile-prefix-map={self.tree.path}=/usr/src -ffile-prefix-map={self.objects}=/usr/obj"
        words.append(paths_replaced)
        flags, used = combine([_makeoptions(conf), paths_replaced]), self.objects / "sys" / f".{conf.name}.flags"
        if not used.is_file() or used.read_text() != flags:
            # make compares times, not flags, so it would keep objects that were compiled with other flags.
            shutil.rmtree(self.objects / "sys" / conf.name, ignore_errors=True)
            (self.objects / "sys" / f".{conf.name}.configured").unlink(missing_ok=True)
        self._seed(conf, flags)
        used.parent.mkdir(parents=True, exist_ok=True)
        used.write_text(flags)
        configured, state = self.objects / "sys" / f".{conf.name}.configured", self._configuration(conf)
        fast = configured.is_file() and configured.read_text() == state
        configured.unlink(missing_ok=True)
        if not fast or not self._make_again(conf):
            # With KERNFAST, config(8) does not run. It would generate the same files (Makefile.inc1).
            self._make_kernel(conf, [*words, *(["-DKERNFAST"] if fast else [])])
        kernel = self.objects / "sys" / conf.name / "kernel"
        if not kernel.is_file():
            raise BuildError(
                f"the build of {conf.name} succeeded but there is no {kernel}", hint="check that it is a kernel configuration"
            )
        configured.write_text(state)
        return kernel

    def _make_kernel(self, conf: KernConf, words: list[str]) -> None:
        """Build a kernel from scratch or from its objects. Raises BuildError, with the options that the configuration lacks."""
        if recorder := self._recorder(conf):
            words = [*words, f"MAKE={recorder.script()}"]
        try:
            self.make(f"kernel-{conf.name}", "buildkernel", *words)
        except BuildError as exc:
            reasons = self._missing_options(conf)
            if not reasons:
                raise
            raise BuildError(f"{exc.message}\n  " + "\n  ".join(reasons), hint=f"keep those; {exc.hint}") from exc

    def _make_again(self, conf: KernConf) -> bool:
        """Run only the make in the kernel's object directory, as the last build did. False if it fails or is unknown."""
        recorder = self._recorder(conf)
        if recorder is None or (call := recorder.call(self.jobs)) is None:
            return False
        if call.directory.resolve() != (self.objects / "sys" / conf.name).resolve():
            return False  # the store was copied: the call would build the kernel of the other one
        try:
            self._run(f"kernel-{conf.name}", [str(recorder.make), *call.arguments], call.directory, call.environment)
        except (BuildError, OSError):
            # The whole build explains an error in the source, too.
            recorder.forget()
            return False
        return True

    def _recorder(self, conf: KernConf) -> Recorder | None:
        """None on FreeBSD, where the top Makefile may build and use another make."""
        make = self.directory / "obj/bmake-install/bin/bmake"  # tools/build/make.py
        return Recorder(self.directory / "make" / conf.name, make) if self.compiler.bindir is not None and make.is_file() else None

    def _configuration(self, conf: KernConf) -> str:
        """A hash of all that config(8) reads: ``conf``, and the records of the tree's sys/conf and sys/*/conf."""
        read = [record for record in self.scanned.records if _CONFIGURES.match(record)]
        return combine([conf.hash, hashlib.sha256(b"".join(sorted(read))).hexdigest()])

    def _seed(self, conf: KernConf, flags: str) -> None:
        """Copy the objects of another configuration to one without objects, so that make compiles only the differences.

        make compares times. It compiles an object again if an included option header has changed. config(8) does not touch an
        unchanged header (usr.sbin/config/main.c, moveifchanged). None of our configurations has options that change compiler flags
        instead (sys/conf/kern.pre.mk: sanitizers, COVERAGE, GCOV). So only configurations that include XENCOMMON share objects, and
        only with the same ``flags``.
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

    def _missing_options(self, conf: KernConf) -> list[str]:
        """The devices and options whose absence broke the last link of ``conf``."""
        log = (self.directory / "log" / f"kernel-{conf.name}.log").read_text(errors="replace")
        return linkhint.explain(log, self.tree, conffiles.names(self.tree, conf.name, dict(conf.files)))

    def world(self, destination: Path) -> None:
        """Build the world and install it without root into the empty directory ``destination``, with a METALOG."""
        self.make("world", "buildworld")
        (self.directory / "kernel_sources_of_world").write_text("\0".join(self._find_kernel_sources()))
        for target in ("installworld", "distribution"):
            self.make(target, target, f"DESTDIR={destination}", "-DNO_ROOT", "-DDB_FROM_SRC", jobs=1)

    def kernel_sources_of_world(self) -> list[str]:
        """The files of :func:`treescan.only_in_kernels` that the last world was compiled from after all; empty before a build."""
        return [name for name in _text(self.directory / "kernel_sources_of_world").split("\0") if name]

    def _find_kernel_sources(self) -> list[str]:
        """Read the dependencies that the compiler wrote for each object (bsd.dep.mk: .depend.NAME.o), except those of kernels."""
        prefix = f"{self.tree.path}/"
        found: set[str] = set()
        for directory, names, files in os.walk(self.objects):
            if Path(directory) == self.objects:
                names[:] = [name for name in names if name != "sys"]
            for file in files:
                if file.startswith(".depend"):
                    words = os.fsdecode(Path(directory, file).read_bytes()).split()
                    found.update(os.path.normpath(word) for word in words if word.startswith(prefix) and "/sys/" in word)
        return sorted(name for path in found if treescan.only_in_kernels(name := path.removeprefix(prefix)))

    @property
    def makefs(self) -> Path:
        """The tree's makefs, built for this host."""
        legacy = self.objects / "tmp/legacy/usr/sbin/makefs"
        return legacy if legacy.exists() else self.objects / "tmp/usr/sbin/makefs"

    # -- make ---------------------------------------------------------------------------------------------------------

    def make(self, what: str, target: str, *words: str, jobs: int = 0) -> None:
        """Run one target (make would run several at the same time).

        Raises BuildError with the lines of the log that explain the failure.
        """
        argv = [*self._tool(), f"-j{jobs or self.jobs}", target, *words]
        self._run(what, argv, self.tree.path, self._environment())

    def _run(self, what: str, argv: list[str], directory: Path, environment: dict[str, str]) -> None:
        """Run a program in its own session, with a log. Raises BuildError with the lines of the log that explain the failure."""
        path = self.directory / "log" / f"{what}.log"
        progress = Progress(what)
        with path.open("w", errors="replace") as file:
            file.write(f"# {' '.join(argv)}\n")
            process = subprocess.Popen(
                argv, cwd=directory, env={**environment, MARK: str(self.directory / "obj")}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True, preexec_fn=_set_up_child,
            )  # fmt: skip
            try:
                for line in process.stdout or ():
                    file.write(line)
                    progress.line(line)
                    progress.report()
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
            reasons = build_log.causes(text) or text.splitlines()[-10:]
            raise BuildError(f"{what} failed:\n  " + "\n  ".join(reasons), hint=f"the whole log is {path}")

    def _tool(self) -> list[str]:
        common = [
            f"TARGET={ARCH}", f"TARGET_ARCH={ARCH}", "SRC_ENV_CONF=/dev/null",
            f"__MAKE_CONF={self.directory / 'make.conf'}",
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


def _set_up_child() -> None:
    """In the child process: lower the priority, and reset SIGINT, which bmake's tests need."""
    os.nice(10)
    # With autogroups, nice counts only within a session (sched(7)), so the session's group needs a lower priority.
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text("10")
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _makeoptions(conf: KernConf) -> list[str]:
    """The lines of a configuration that change how every file is compiled."""
    return [line for _, text in conf.files for line in _MAKEOPTION.findall(text)]


def _text(path: Path) -> str:
    return path.read_text() if path.is_file() else ""
