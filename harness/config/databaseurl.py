# SPDX-License-Identifier: BSD-2-Clause
"""The URL of a database: checked without a connection, and shown without its user, password and options."""

from __future__ import annotations

from urllib.parse import SplitResult, parse_qsl, urlsplit

SCHEME = "postgresql+psycopg"
HINT = f"use {SCHEME}://USER@HOST/DATABASE, with the password in ~/.pgpass or PGPASSWORD"


def shown(url: str) -> str:
    """``postgresql://host:5432/fxh``: the parts that cannot hold a secret. An invalid URL is not shown at all."""
    parts = _split(url)
    if parts is None:
        return "(not a URL)"
    host = parts.hostname or dict(parse_qsl(parts.query)).get("host", "")
    port = f":{parts.port}" if parts.port else ""
    return f"postgresql://{host}{port}{parts.path}"


def check(url: str) -> str:
    """The hint if it is not a URL of PostgreSQL that names a database, else ""."""
    return "" if _split(url) and url.isprintable() else HINT


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        # The property raises ValueError for a port that is not a number.
        valid = parts.scheme == SCHEME and parts.port != 0 and parts.path.strip("/") != "" and "@" not in parts.path
    except ValueError:
        return None
    return parts if valid and not parts.fragment else None
