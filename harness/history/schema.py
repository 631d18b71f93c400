# SPDX-License-Identifier: BSD-2-Clause
"""The tables of the history, and the migrations from older schemas."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, Connection, Float, ForeignKey, Index, Integer, MetaData, Table, Text, UniqueConstraint, text

from harness.errors import UsageError

METADATA = MetaData()

# The id gives the order in which runs were recorded. Clocks may jump, so ``started`` does not.
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

# Most cases of most runs have equal inputs, so each set is stored once.
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


# The next tables are created at the first write. An older harness ignores them and can use the file, so VERSION stays 1.

# Seconds of each setup step of a run.
SETUP = Table(
    "setup",
    MetaData(),
    Column("run_id", Integer, nullable=False),
    Column("what", Text, nullable=False),
    Column("seconds", Float, nullable=False),
    UniqueConstraint("run_id", "what"),
)

# The known issue of a result. Results of an older harness have no row here; their reason says it (harness.results.schema1).
KNOWN_ISSUES = Table(
    "known_issues",
    MetaData(),
    Column("run_id", Integer, nullable=False),
    Column("case", Text, nullable=False),
    Column("cell", Text, nullable=False),
    Column("bug", Text, nullable=False),
    Column("why", Text, nullable=False),
    Column("gone", Boolean, nullable=False),
    UniqueConstraint("run_id", "case", "cell"),
)

# The complaints that were seen in a cell (harness.console.complaints). A row with an empty identity says that the run looked for them.
COMPLAINTS = Table(
    "complaints",
    MetaData(),
    Column("run_id", Integer, nullable=False),
    Column("cell", Text, nullable=False),
    Column("identity", Text, nullable=False),
    UniqueConstraint("run_id", "cell", "identity"),
)


# A digest of each run's results, so that a reader of many runs sees which ones changed.
DIGESTS = Table(
    "digests",
    MetaData(),
    Column("run_id", Integer, nullable=False, unique=True),
    Column("digest", Text, nullable=False),
)


def _create(connection: Connection) -> None:
    METADATA.create_all(connection)


# MIGRATIONS[n] takes a file from version n to n + 1. Never edit a released migration; add another.
MIGRATIONS = (_create,)
VERSION = len(MIGRATIONS)


def migrate(connection: Connection, migrations: tuple[object, ...] = MIGRATIONS) -> None:
    """Migrate the file to the latest version, in one transaction. Raises UsageError for a file of a newer harness."""
    found = int(connection.execute(text("PRAGMA user_version")).scalar_one())
    if found > len(migrations):
        raise UsageError(
            f"the history has schema {found}; this harness reads up to {len(migrations)}",
            hint="use the newer harness that wrote it, or choose another directory with --reports",
        )
    if found == len(migrations):
        return
    # Another process may have migrated the file meanwhile, so check again under the write lock.
    connection.execute(text("BEGIN IMMEDIATE"))
    found = int(connection.execute(text("PRAGMA user_version")).scalar_one())
    for step in migrations[found:]:
        step(connection)  # type: ignore[operator]
    connection.execute(text(f"PRAGMA user_version = {len(migrations)}"))
    connection.commit()
