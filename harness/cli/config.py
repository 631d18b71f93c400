# SPDX-License-Identifier: BSD-2-Clause
"""fxh config: what is configured, and where each value comes from."""

from __future__ import annotations

import json
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="What is configured.")


@app.command()
def show(
    prefix: Annotated[str, typer.Argument(help="Only keys that begin so (run, hosts.NAME).")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Every value with its source: default, a file, the environment."""
    from harness.config import load

    loaded = load()
    rows = [value for value in loaded.values if value.key.startswith(prefix)]
    if as_json:
        print(json.dumps([{"key": row.key, "value": row.value, "source": row.source} for row in rows], indent=1))
        return
    for row in rows:
        value = list(row.value) if isinstance(row.value, tuple) else row.value
        print(f"{row.key:<28} = {json.dumps(value):<28} # {row.source}")
    print("# looked at: " + ", ".join(f"{path}{'' if path.exists() else ' (not there)'}" for path in loaded.files))
