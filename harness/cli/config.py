# SPDX-License-Identifier: BSD-2-Clause
"""fxh config: show the configuration and the source of each value."""

from __future__ import annotations

import json
from dataclasses import asdict, is_dataclass, replace
from typing import Annotated, Any

import typer

_group = typer.Typer(no_args_is_help=True, help="Show the configuration.")


def register(app: typer.Typer) -> None:
    app.add_typer(_group, name="config")


@_group.command()
def show(
    prefix: Annotated[str, typer.Argument(help="Show only keys with this prefix (run, hosts.NAME).")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show every value with its source: the default, a file, or the environment."""
    from harness.config import load

    loaded = load()
    rows = [replace(row, value=_plain(row.value)) for row in loaded.values if row.key.startswith(prefix)]
    if as_json:
        print(json.dumps([{"key": row.key, "value": row.value, "source": row.source} for row in rows], indent=1))
        return
    for row in rows:
        print(f"{row.key:<28} = {json.dumps(row.value):<28} # {row.source}")
    print("# files: " + ", ".join(f"{path}{'' if path.exists() else ' (does not exist)'}" for path in loaded.files))


def _plain(value: Any) -> Any:
    """A value as JSON: a table of commands without those that are not set."""
    if is_dataclass(value) and not isinstance(value, type):
        return {key: words for key, words in asdict(value).items() if words}
    return value
