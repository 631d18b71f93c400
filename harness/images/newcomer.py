"""What `make run` boots beside the control guest: the current release, fetched once, where there is a network."""

from __future__ import annotations

import os
import tomllib

from harness import paths
from harness.errors import HarnessError
from harness.images import fetch, image, make, recipe
from harness.images.image import Image

NAME = "release"


def mirror() -> str:
    """The directory of the release's sets: ``FXH_RELEASE`` (an URL or a directory), else images/freebsd/release.toml."""
    given = os.environ.get("FXH_RELEASE")
    if given:
        return given
    data = tomllib.loads((paths.project() / "images/freebsd/release.toml").read_text())
    return f"{data['mirror']}/{data['release']}"


def release() -> tuple[Image | None, str]:
    """The image of the current release, and in one line why there is none. A failed build is raised, no network is not."""
    where = mirror()
    name = f"{NAME}-{where.rstrip('/').rpartition('/')[2]}"
    if name in image.names():
        try:
            return image.find(name), ""
        except HarnessError:
            pass
    if fetch.is_url(where):
        why = fetch.reachable(where)
        if why:
            return (
                None,
                f"no FreeBSD sets from {where} ({why}): only the control guest runs; bring your own by --image, or set FXH_RELEASE",
            )
    return make.make(recipe.make(name, {"dist": where}, {})), ""
