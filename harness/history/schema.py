# SPDX-License-Identifier: BSD-2-Clause
"""The tables of the history, and the migrations from older schemas."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
)  # fmt: skip

METADATA = MetaData()
# Tables that SQLite creates at the first write: an older harness ignores them and can use the file, so VERSION stays 1.
# PostgreSQL creates all tables at once.
LATER = MetaData()

# In PostgreSQL the number of a run is a time in milliseconds (harness.history.postgres).
_NUMBER = BigInteger().with_variant(Integer, "sqlite")

# The id gives the order in which runs were recorded. Clocks may jump, so ``started`` does not.
RUNS = Table(
    "runs",
    METADATA,
    Column("id", _NUMBER, primary_key=True),
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

# For PostgreSQL, which sets the kind of the index: that makes SQLAlchemy import the dialect, which takes longer than a query of SQLite.
BY_DATA = Index("inputs_by_data", "data").ddl_if(dialect="postgresql")

# Most cases of most runs have equal inputs, so each set is stored once.
INPUTS = Table(
    "inputs",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("data", Text, nullable=False),
    # A row of a B-tree of PostgreSQL has at most 2.7 KB, and a set of inputs may be longer.
    UniqueConstraint("data").ddl_if(dialect="sqlite"),
    BY_DATA,
)

RESULTS = Table(
    "results",
    METADATA,
    Column("run_id", _NUMBER, ForeignKey("runs.id", ondelete="CASCADE"), nullable=False),
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


# Seconds of each setup step of a run.
SETUP = Table(
    "setup",
    LATER,
    Column("run_id", _NUMBER, nullable=False),
    Column("what", Text, nullable=False),
    Column("seconds", Float, nullable=False),
    UniqueConstraint("run_id", "what"),
)

# The known issue of a result. Results of an older harness have no row here; their reason says it (harness.results.schema1).
KNOWN_ISSUES = Table(
    "known_issues",
    LATER,
    Column("run_id", _NUMBER, nullable=False),
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
    LATER,
    Column("run_id", _NUMBER, nullable=False),
    Column("cell", Text, nullable=False),
    Column("identity", Text, nullable=False),
    UniqueConstraint("run_id", "cell", "identity"),
)


# A digest of each run's results, so that a reader of many runs sees which ones changed.
DIGESTS = Table(
    "digests",
    LATER,
    Column("run_id", _NUMBER, nullable=False, unique=True),
    Column("digest", Text, nullable=False),
)

# The shards that a merged run consists of, by the names of their runs. A run is a part of one merged run only.
PARTS = Table(
    "parts",
    LATER,
    Column("run_id", _NUMBER, nullable=False),
    Column("part", Text, nullable=False, unique=True),
)

OF_RUNS = (RESULTS, *LATER.sorted_tables)
"""The tables with rows of runs, which ``run_id`` names."""


def _create(connection: Connection) -> None:
    METADATA.create_all(connection)
    if connection.dialect.name != "sqlite":
        LATER.create_all(connection)


Migration = Callable[[Connection], None]
# MIGRATIONS[n] takes a database from version n to n + 1. Never edit a released migration; add another.
MIGRATIONS: tuple[Migration, ...] = (_create,)
VERSION = len(MIGRATIONS)
