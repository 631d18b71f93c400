# SPDX-License-Identifier: BSD-2-Clause
"""Files from a mirror or a directory: fetched once, resumed where a fetch broke off, and checked against their sha256."""

from __future__ import annotations

import http.client
import logging
import shutil
import time
import urllib.error
import urllib.request
from pathlib import Path

from harness import store
from harness.digest import file_sha256
from harness.errors import BuildError, InfrastructureError, UsageError

log = logging.getLogger("fxh.images.fetch")

_SILENCE = 30.0
_ATTEMPTS = 4
_BLOCK = 1 << 18
# A listing or a MANIFEST has some kilobytes; a server that sends more without end is none of ours.
_SMALL = 4 << 20


def is_url(where: str) -> bool:
    return where.startswith(("http://", "https://", "ftp://"))


def text(where: str, name: str, patience: float = _SILENCE) -> str:
    """A small file of a mirror or a directory, at most 4 MiB; bytes that are no UTF-8 are replaced.

    Raises UsageError when it is not there, InfrastructureError without network.
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
    """A small file of a mirror as :func:`text` reads it, and the URL that it came from after redirects."""
    url = f"{where.rstrip('/')}/{name}"
    try:
        with urllib.request.urlopen(url, timeout=patience) as answer:
            return answer.read(_SMALL).decode(errors="replace"), str(answer.geturl())
    except urllib.error.HTTPError as exc:
        raise UsageError(f"{url}: {exc.code} {exc.reason}", hint="give the directory of a release that holds MANIFEST") from exc
    except (OSError, http.client.HTTPException, ValueError) as exc:  # ValueError: a redirect to what is no URL
        raise InfrastructureError(f"{url}: {exc}", hint="is the network there? --dist takes a local directory, too") from exc


def reachable(where: str, seconds: float = 5.0) -> str:
    """Why MANIFEST cannot be read there within ``seconds``, or "" when it can."""
    try:
        with urllib.request.urlopen(f"{where.rstrip('/')}/MANIFEST", timeout=seconds):
            return ""
    except (OSError, http.client.HTTPException, ValueError) as exc:
        return str(exc)


def checked(where: str, name: str, sha256: str) -> Path:
    """The file ``name`` with that hash, kept in the store's ``downloads``; only what is missing of it is fetched.

    Raises BuildError for other content than promised, InfrastructureError when the mirror breaks off again and again.
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
                raise UsageError(f"{where} has no {name}, which its MANIFEST names")
            shutil.copyfile(source, part)
        got = file_sha256(part)
        if got != sha256:
            size = part.stat().st_size
            part.unlink()
            raise BuildError(
                f"{name} of {where} is not what its MANIFEST promises (sha256 {got[:16]}..., promised {sha256[:16]}..., {size} bytes)",
                hint="truncated or tampered with: try again, or another mirror",
            )
        return part

    def damage(file: Path) -> str:
        return "" if file_sha256(file) == sha256 else "wrong sha256"

    return store.get_or_create("downloads", key, create, step=f"fetching {name}", damage=damage)


def _fetch(url: str, part: Path) -> None:
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            _rest(url, part)
            return
        except urllib.error.HTTPError as exc:
            if exc.code == 416:  # nothing is missing; the hash will tell
                return
            raise InfrastructureError(f"{url}: {exc.code} {exc.reason}", hint="is it the right mirror?") from exc
        except (OSError, http.client.HTTPException) as exc:
            have = part.stat().st_size if part.exists() else 0
            if attempt == _ATTEMPTS:
                raise InfrastructureError(
                    f"{url}: {exc} (after {have >> 20} MiB)", hint="run again: it goes on from there"
                ) from exc
            log.info("%s broke off after %d MiB (%s): going on", url, have >> 20, exc)
            time.sleep(attempt)


def _rest(url: str, part: Path) -> None:
    """Fetch what ``part`` lacks; a server that knows no ranges sends all again."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=_SILENCE) as answer:
        whole = answer.status != 206
        length = answer.headers.get("Content-Length")
        expected = int(length) + (0 if whole else have) if length else None
        with part.open("wb" if whole else "ab") as file:
            told = time.monotonic()
            while block := answer.read(_BLOCK):
                file.write(block)
                if time.monotonic() - told > 10:
                    told = time.monotonic()
                    log.info("%s: %d of %s MiB", url, file.tell() >> 20, "?" if expected is None else expected >> 20)
    if expected is not None and part.stat().st_size < expected:
        raise http.client.IncompleteRead(b"", expected - part.stat().st_size)
