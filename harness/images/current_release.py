# SPDX-License-Identifier: BSD-2-Clause
"""The FreeBSD that ``make run`` boots in addition to the control guest: the newest release of a mirror, fetched once."""

from __future__ import annotations

import os
import posixpath
import tomllib
from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

from harness import paths, versions
from harness.errors import HarnessError, InfrastructureError, UsageError
from harness.images import fetch, image, recipe, recipes
from harness.images.image import Image

NAME = "release"
# Seconds to wait for the mirror; after that the run continues without it.
_PATIENCE = 5.0
_CONTROL_ONLY = "only the control guest runs; give an image with --image, or set FXH_RELEASE"
_NAME_ONE = "name one in images/freebsd/release.toml, or set FXH_RELEASE"


def mirror() -> str:
    """The location of the release's sets, a URL or a local directory.

    It is ``FXH_RELEASE`` if set, else the release of images/freebsd/release.toml in ``FXH_MIRROR`` or in that file's mirror.
    Raises InfrastructureError or UsageError if the newest release is wanted and the mirror lists none.
    """
    given = os.environ.get("FXH_RELEASE")
    if given:
        return given
    data = tomllib.loads((paths.project() / "images/freebsd/release.toml").read_text())
    where = (os.environ.get("FXH_MIRROR") or str(data["mirror"])).rstrip("/")
    return f"{where}/{data['release'] if data['release'] != 'newest' else newest(_list(where), where)}"


def _list(where: str) -> tuple[str, ...]:
    """The names of the directory ``where``."""
    if fetch.is_url(where):
        return children(*fetch.page(where, patience=_PATIENCE))
    try:
        return tuple(path.name for path in Path(where).expanduser().iterdir())
    except OSError as exc:
        raise UsageError(
            f"mirror {where}: {exc.strerror}", hint="FXH_MIRROR is a URL or a directory with one directory per release"
        ) from exc


class _Links(HTMLParser):
    """Collects the targets of an HTML page's links."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if tag == "a" and name == "href" and value]


def children(listing: str, url: str) -> tuple[str, ...]:
    """The entries of the directory ``url``, from the page of its server (Apache, nginx, http.server).

    Ignores query strings, and links to the directory itself, above it, below its entries or elsewhere. Compares only the path of a
    link, because a proxy may show another host name than ``url``.
    """
    links = _Links()
    links.feed(listing)
    top = _url_path(url)
    found: dict[str, None] = {}
    for target in links.found:
        try:
            parent, name = posixpath.split(_url_path(urljoin(url, target)))
        except ValueError:  # for example http://[
            continue
        if name and parent == top:
            found[name] = None
    return tuple(found)


def _url_path(url: str) -> str:
    """The path of a URL, without a trailing slash."""
    return "/" + posixpath.normpath(unquote(urlsplit(url).path) or "/").strip("/")


def newest(names: Iterable[str], where: str = "the mirror") -> str:
    """The newest release of ``names``, such as ``14.3-RELEASE``. Raises UsageError that names the release candidates if none."""
    known = sorted(filter(None, map(versions.release, names)))
    released = [item for item in known if item.released and "-" in item.name]
    if released:
        return released[-1].name
    candidates = [item.name for item in known if item.candidate]
    if candidates:
        raise UsageError(f"{where} lists no release, only release candidates: {', '.join(candidates)}", hint=_NAME_ONE)
    raise UsageError(f"{where} lists no release", hint=_NAME_ONE)


def release() -> tuple[Image | None, str]:
    """The image of the newest release, or None and the reason in one line.

    Without a network, it is the image of an earlier run. Raises the errors of a failed build.
    """
    try:
        where = mirror()
    except (InfrastructureError, UsageError) as exc:
        stored = _stored()
        return (stored, "") if stored else (None, f"no FreeBSD release ({exc.message}): {_CONTROL_ONLY}")
    name = f"{NAME}-{where.rstrip('/').rpartition('/')[2]}"
    found = _find(name)
    if found is not None and _is_from(found, where):
        return found, ""
    if fetch.is_url(where):
        why = fetch.reachable(where)
        if why:
            return (found, "") if found else (None, f"no FreeBSD sets from {where} ({why}): {_CONTROL_ONLY}")
    return recipes.build(recipe.resolve(name, {"dist": where}, {})), ""


def by_age(names: Iterable[str]) -> list[str]:
    """Names of images such as ``release-9.9``, the oldest release first; names without a version precede all others."""

    def age(name: str) -> tuple[Any, ...]:
        known = versions.release(name.removeprefix(f"{NAME}-"))
        return (known is not None, known, name) if known else (False, name)

    return sorted(names, key=age)


def _stored() -> Image | None:
    """The newest release with an undamaged image in the store."""
    found = map(_find, reversed(by_age(name for name in image.names() if name.startswith(f"{NAME}-"))))
    return next(filter(None, found), None)


def _find(name: str) -> Image | None:
    try:
        return image.find(name) if name in image.names() else None
    except HarnessError:  # damaged, or evicted
        return None


def _is_from(found: Image, where: str) -> bool:
    """Whether the image was built from the sets at ``where``: two mirrors may use the same name for different sets."""
    return any(item.what == "set base" and item.origin.startswith(f"{where} (") for item in found.inputs)
