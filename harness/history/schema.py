# SPDX-License-Identifier: BSD-2-Clause
"""The tables of the history and the steps from each older form to the present one."""

from __future__ import annotations

from sqlalchemy import Column, Connection, Float, ForeignKey, Index, Integer, MetaData, Table, Text, UniqueConstraint, text

from harness.errors import UsageError

METADATA = MetaData()

# A row's id is the order in which runs were recorded: clocks jump, this does not.
RUNS = Table(
    "runs",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("run", Text, nullable=False, unique=True),
    Column("started", Text, nullable=False),
    Column("ended", Text, nullable=False),
    Column("command", Text, nullable=False),
    Column("branch", Text, nullable=False),
    Column("exit_code", Integer),
    Column("inputs", Text, nullable=False),
    Column("options", Text, nullable=False),
    sqlite_autoincrement=True,
)

# What was tested together is the same for most cases of most runs: kept once.
INPUTS = Table(
    "inputs",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("data", Text, nullable=False, unique=True),
)

RESULTS = Table(
    "results",
    METADATA,
    Column("run_id", Integer, ForeignKey("runs.id", ondelete="CASCADE"), nullable=False),
    Column("suite", Text, nullable=False),
    Column("case", Text, nullable=False),
    Column("cell", Text, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("identity", Text, nullable=False),
    Column("phase", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("seconds", Float, nullable=False),
    Column("inputs_id", Integer, ForeignKey("inputs.id"), nullable=False),
    Column("metrics", Text, nullable=False),
    Column("directory", Text, nullable=False),
    UniqueConstraint("run_id", "case", "cell"),
    Index("results_by_case", "case", "cell", "run_id"),
)


# How long the run's setup took, by what was set up. A table beside the others, made when first written to: a harness that does not
# know it reads and writes the file as before, so the version stays.
SETUP = Table(
    "setup",
    MetaData(),
    Column("run_id", Integer, nullable=False),
    Column("what", Text, nullable=False),
    Column("seconds", Float, nullable=False),
    UniqueConstraint("run_id", "what"),
)


def _create(connection: Connection) -> None:
    METADATA.create_all(connection)


# MIGRATIONS[n] takes a file from version n to n + 1. Never edit one that was released: add another.
MIGRATIONS = (_create,)
VERSION = len(MIGRATIONS)


def migrate(connection: Connection, migrations: tuple[object, ...] = MIGRATIONS) -> None:
    """Bring the file up to date, in one transaction. Raises UsageError for one that a newer harness wrote."""
    found = int(connection.execute(text("PRAGMA user_version")).scalar_one())
    if found > len(migrations):
        raise UsageError(
            f"the history has schema {found}, this harness knows up to {len(migrations)}",
            hint="use the newer harness that wrote it, or another directory (--reports)",
        )
    if found == len(migrations):
        return
    # Another process may be migrating: take the write lock, then look again.
    connection.execute(text("BEGIN IMMEDIATE"))
    found = int(connection.execute(text("PRAGMA user_version")).scalar_one())
    for step in migrations[found:]:
        step(connection)  # type: ignore[operator]
    connection.execute(text(f"PRAGMA user_version = {len(migrations)}"))
    connection.commit()
