# SPDX-License-Identifier: BSD-2-Clause
"""The revision of the harness: version, commit, and a hash of all files that can change a result."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

from harness import __version__, paths

_DIRECTORIES = ("harness", "suites", "images")


def of(project: Path) -> str:
    """``0.1.0 commit 0123456789ab``, or ``0.1.0 commit 0123456789ab changed sha256:...`` if files differ from the commit."""
    commit = _git(project, "rev-parse", "--short=12", "HEAD")
    if commit and not _git(project, "status", "--porcelain", "--", *_DIRECTORIES):
        return f"{__version__} commit {commit}"
    state = f"commit {commit} changed" if commit else "no commit"
    return f"{__version__} {state} sha256:{_content(project)}"


def commit_of(value: str) -> str:
    """The commit in a value of :func:`of`; "" if files differed from it."""
    words = value.split()
    return words[2] if len(words) == 3 and words[1] == "commit" else ""


def short(value: str) -> str:
    """A value of :func:`of` for a table: ``0123456789ab``, ``0123456789ab+changes``, or ``unknown`` without a commit."""
    words = value.split()
    if words[1:2] != ["commit"] or len(words) < 3:
        return "unknown"
    return words[2] if commit_of(value) else f"{words[2]}+changes"


def _git(project: Path, *words: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(project), *words], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    # An installed copy may lie within another repository, such as the user's home. Only a repository at ``project`` counts.
    return done.stdout.strip() if done.returncode == 0 and (project / ".git").exists() else ""


def _content(project: Path) -> str:
    """The hash of all files of ``harness``, ``suites`` and ``images``. An installed copy has the same hash as its checkout."""
    package = project / "harness" if (project / "harness").is_dir() else paths.PACKAGE
    digest = hashlib.sha256()
    for name in _DIRECTORIES:
        top = package if name == "harness" else project / name
        for path in sorted(top.rglob("*")):
            relative = path.relative_to(top)
            # Skip Python's caches, and the copies of suites and images in an installed package.
            if path.is_file() and "__pycache__" not in relative.parts and (name, relative.parts[0]) != ("harness", "_data"):
                digest.update(f"{name}/{relative}\n".encode() + path.read_bytes())
    return digest.hexdigest()
