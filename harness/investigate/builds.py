# SPDX-License-Identifier: BSD-2-Clause
"""The builds of a bisection: existing files, images of the store, or commits that a command builds."""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
from pathlib import Path
from typing import Protocol

from harness.digest import file_sha256
from harness.errors import InfrastructureError, UsageError

log = logging.getLogger("fxh.bisect")


class Builds(Protocol):
    """The candidates, oldest first."""

    @property
    def names(self) -> tuple[str, ...]: ...

    def option(self, which: int) -> str | None:
        """The value for the option of ``fxh run`` that selects this build, or None if the build is broken."""
        ...


class FileBuilds:
    """Existing kernels or images. Their names contain a hash of the content, so a replaced file is a different build."""

    def __init__(self, paths: list[Path]) -> None:
        self._paths = [path.absolute() for path in paths]
        self.names = tuple(f"{path.name} ({_content(path)[:8] or 'missing'})" for path in self._paths)

    def option(self, which: int) -> str | None:
        return str(self._paths[which]) if self._paths[which].exists() else None


def _content(path: Path) -> str:
    """The SHA-256 of a file, or a hash of all files of a directory; "" if ``path`` has none."""
    files = sorted(item for item in path.iterdir() if item.is_file()) if path.is_dir() else [path] if path.is_file() else []
    digests = [file_sha256(file) for file in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest() if digests else ""


class NamedBuilds:
    """Builds that the option takes by name, for example images of the store."""

    def __init__(self, names: list[str]) -> None:
        self.names = tuple(names)

    def option(self, which: int) -> str | None:
        return self.names[which]


class CommitBuilds:
    """Commits of the git checkout ``source`` from ``good`` to ``bad``, along first parents. The shell command ``command`` builds one.

    It runs in a separate work tree below ``work``, at the commit $FXH_COMMIT. It must leave the value of the option at $FXH_OUT.
    Raises UsageError if ``good`` is not an ancestor of ``bad``.
    """

    def __init__(self, source: Path, good: str, bad: str, command: str, work: Path) -> None:
        self._source, self._command, self._work = source, command, work
        first = self._git("rev-parse", "--verify", f"{good}^{{commit}}")
        rest = self._git("rev-list", "--first-parent", "--reverse", f"{good}..{bad}").split()
        if not rest:
            raise UsageError(f"no commits between {good} and {bad}", hint="--good must be an ancestor of --bad")
        self._commits = (first, *rest)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(commit[:12] for commit in self._commits)

    def option(self, which: int) -> str | None:
        commit = self._commits[which]
        out = self._work / commit[:12] / "out"
        if out.exists():
            return str(out)
        out.parent.mkdir(parents=True, exist_ok=True)
        tree = self._work / "tree"
        if not tree.exists():
            self._git("worktree", "add", "--detach", str(tree), commit)
        partial = out.with_name("part")
        self._git("-C", str(tree), "checkout", "--quiet", "--force", "--detach", commit)
        environment = os.environ | {"FXH_COMMIT": commit, "FXH_OUT": str(partial)}
        with (out.parent / "build.log").open("wb") as file:
            done = subprocess.run(
                ["sh", "-c", self._command],
                cwd=tree,
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )
        if done.returncode or not partial.exists():
            log.warning("the build of %s failed with status %d: see %s", commit[:12], done.returncode, out.parent / "build.log")
            return None
        partial.rename(out)
        return str(out)

    def close(self) -> None:
        """Remove the work tree. Finished builds stay for the next bisection."""
        if (self._work / "tree").exists():
            self._git("worktree", "remove", "--force", str(self._work / "tree"))

    def _git(self, *words: str) -> str:
        done = subprocess.run(["git", "-C", str(self._source), *words], capture_output=True, text=True)
        if done.returncode:
            raise (UsageError if words[0].startswith("rev") else InfrastructureError)(
                f"git {words[0]} in {self._source}: {done.stderr.strip()}", hint="give a git checkout and commits in it"
            )
        return done.stdout.strip()
