"""What `make run` boots beside the control guest: the current release, fetched once, where there is a network."""

from __future__ import annotations

import os
import re
import tomllib

from harness import paths
from harness.errors import HarnessError, InfrastructureError, UsageError
from harness.images import fetch, image, make, recipe
from harness.images.image import Image

NAME = "release"
# Seconds that a newcomer waits to learn that there is no network.
_PATIENCE = 5.0
_ALONE = "only the control guest runs; bring your own by --image, or set FXH_RELEASE"


def mirror() -> str:
    """The directory of the release's sets: ``FXH_RELEASE`` (an URL or a directory), else images/freebsd/release.toml.

    Raises InfrastructureError or UsageError where the newest release is wanted and the mirror does not list its releases.
    """
    given = os.environ.get("FXH_RELEASE")
    if given:
        return given
    data = tomllib.loads((paths.project() / "images/freebsd/release.toml").read_text())
    name = data["release"] if data["release"] != "newest" else newest(fetch.text(data["mirror"], "", _PATIENCE))
    return f"{data['mirror']}/{name}"


# <a href="14.3-RELEASE/" title="14.3-RELEASE">14.3-RELEASE/</a>
_RELEASE = re.compile(r'href="(?:[^"]*/)?((\d+)\.(\d+)-RELEASE)/"')


def newest(listing: str) -> str:
    """The newest release in a mirror's list of them, such as ``14.3-RELEASE``. Raises UsageError when it lists none."""
    found = [(int(major), int(minor), name) for name, major, minor in _RELEASE.findall(listing)]
    if not found:
        raise UsageError("the mirror lists no release", mend="name one in images/freebsd/release.toml, or set FXH_RELEASE")
    return str(max(found)[2])


def release() -> tuple[Image | None, str]:
    """The image of the current release, and in one line why there is none. A failed build is raised, no network is not."""
    try:
        where = mirror()
    except (InfrastructureError, UsageError) as exc:
        made = sorted(known for known in image.names() if known.startswith(f"{NAME}-"))
        if made:
            return image.find(made[-1]), ""
        return None, f"no FreeBSD release ({exc.message}): {_ALONE}"
    name = f"{NAME}-{where.rstrip('/').rpartition('/')[2]}"
    if name in image.names():
        try:
            return image.find(name), ""
        except HarnessError:
            pass
    if fetch.is_url(where):
        why = fetch.reachable(where)
        if why:
            return None, f"no FreeBSD sets from {where} ({why}): {_ALONE}"
    return make.make(recipe.make(name, {"dist": where}, {})), ""
