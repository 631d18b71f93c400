# SPDX-License-Identifier: BSD-2-Clause
"""Gets files from a mirror or a directory: once, resumed after an interruption, and checked by their sha256."""

from __future__ import annotations

import http.client
import logging
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness import store
from harness.digest import file_sha256
from harness.errors import BuildError, InfrastructureError, UsageError

log = logging.getLogger("fxh.images.fetch")

_SILENCE = 30.0
# A mirror that sends less than this many bytes in so many seconds is as good as silent (curl's --speed-limit and --speed-time).
_SLOWEST, _WINDOW = 60 << 10, 60.0
_ATTEMPTS = 4
_BLOCK = 1 << 18
# A listing or a MANIFEST has some kilobytes. The limit protects from a server that sends without end.
_SMALL = 4 << 20


def is_url(where: str) -> bool:
    return where.startswith(("http://", "https://", "ftp://"))


def text(where: str, name: str, patience: float = _SILENCE) -> str:
    """A small file of a mirror or a directory, at most 4 MiB; replaces bytes that are not UTF-8.

    Raises UsageError if it is missing, InfrastructureError without network.
    """
    if not is_url(where):
        path = Path(where).expanduser() / name
        if not path.is_file():
            raise UsageError(
                f"{where} has no {name}", hint="give a directory, or a mirror's URL, with MANIFEST, base.txz and kernel.txz"
            )
        return path.read_text(errors="replace")
    return page(where, name, patience)[0]


def page(where: str, name: str = "", patience: float = _SILENCE) -> tuple[str, str]:
    """A small file of a mirror as :func:`text` reads it, and its URL after redirects."""
    url = f"{where.rstrip('/')}/{name}"
    try:
        with urllib.request.urlopen(url, timeout=patience) as answer:
            found = b""
            for block in _blocks(answer):
                found += block
                if len(found) >= _SMALL:
                    break
            return found[:_SMALL].decode(errors="replace"), str(answer.geturl())
    except urllib.error.HTTPError as exc:
        raise UsageError(f"{url}: {exc.code} {exc.reason}", hint="give the directory of a release that has a MANIFEST") from exc
    except (OSError, http.client.HTTPException, ValueError) as exc:  # ValueError: a redirect to an invalid URL
        raise InfrastructureError(f"{url}: {exc}", hint="check the network; --dist also takes a local directory") from exc


def reachable(where: str, seconds: float = 5.0) -> str:
    """The reason why MANIFEST cannot be read within ``seconds``, or ""."""
    try:
        with urllib.request.urlopen(f"{where.rstrip('/')}/MANIFEST", timeout=seconds):
            return ""
    except (OSError, http.client.HTTPException, ValueError) as exc:
        return str(exc)


def checked(where: str, name: str, sha256: str) -> Path:
    """The file ``name`` with that hash from the store's ``downloads``; fetches its missing part.

    Raises BuildError for other content, InfrastructureError if the mirror fails several times.
    """
    key = f"{sha256[:16]}-{name}"

    def create(work: Path) -> Path:
        # Outside the work directory: the next attempt resumes it.
        part = work.with_name(f".{key}.part")
        if is_url(where):
            _fetch(f"{where.rstrip('/')}/{name}", part)
        else:
            source = Path(where).expanduser() / name
            if not source.is_file():
                raise UsageError(
                    f"{where} has no {name}, which its MANIFEST names", hint=f"copy {name} of the same release into the directory"
                )
            shutil.copyfile(source, part)
        got = file_sha256(part)
        if got != sha256:
            size = part.stat().st_size
            part.unlink()
            raise BuildError(
                f"{name} of {where} differs from its MANIFEST (sha256 {got[:16]}..., expected {sha256[:16]}..., {size} bytes)",
                hint="the file is truncated or modified: try again, or use another mirror",
            )
        return part

    def damage(file: Path) -> str:
        return "" if file_sha256(file) == sha256 else "wrong sha256"

    return store.get_or_create("downloads", key, create, step=f"fetching {name}", damage=damage)


def _fetch(url: str, part: Path) -> None:
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            _fetch_missing(url, part)
            return
        except urllib.error.HTTPError as exc:
            if exc.code == 416:  # the file is complete; the caller checks its hash
                return
            raise InfrastructureError(f"{url}: {exc.code} {exc.reason}", hint="check the URL of the mirror") from exc
        except ValueError as exc:  # a redirect to an invalid URL, or an invalid length
            raise InfrastructureError(f"{url}: invalid answer: {exc}", hint="use another mirror") from exc
        except (OSError, http.client.HTTPException) as exc:
            have = part.stat().st_size if part.exists() else 0
            if attempt == _ATTEMPTS:
                raise InfrastructureError(
                    f"{url}: {exc} (after {have >> 20} MiB)", hint="run the command again: it resumes the fetch"
                ) from exc
            log.info("%s: interrupted after %d MiB (%s); resuming", url, have >> 20, exc)
            time.sleep(attempt)


def _fetch_missing(url: str, part: Path) -> None:
    """Append the missing bytes to ``part``; a server without ranges sends all again."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=_SILENCE) as answer:
        whole = answer.status != 206
        length = answer.headers.get("Content-Length")
        expected = int(length) + (0 if whole else have) if length else None
        with part.open("wb" if whole else "ab") as file:
            logged = time.monotonic()
            for block in _blocks(answer):
                file.write(block)
                if time.monotonic() - logged > 10:
                    logged = time.monotonic()
                    log.info("%s: %d of %s MiB", url, file.tell() >> 20, "?" if expected is None else expected >> 20)
    if expected is not None and part.stat().st_size < expected:
        raise http.client.IncompleteRead(b"", expected - part.stat().st_size)


def _blocks(answer: Any) -> Iterator[bytes]:
    """The content of an answer as it arrives. Raises TimeoutError for a server that is silent or too slow."""
    begun, got = time.monotonic(), 0
    while block := answer.read1(_BLOCK):
        yield block
        got += len(block)
        if (seconds := time.monotonic() - begun) > _WINDOW:
            if got < _SLOWEST:
                raise TimeoutError(f"the server sent {got} bytes in {seconds:.0f} s")
            begun, got = time.monotonic(), 0
