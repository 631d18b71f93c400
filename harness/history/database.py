# SPDX-License-Identifier: BSD-2-Clause
"""The interface of a database for the history: a file of SQLite or a server with PostgreSQL."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from sqlalchemy import Connection, Engine, Select, Table
from sqlalchemy.exc import DBAPIError

from harness.errors import HarnessError
from harness.results.model import RunResult


class Database(ABC):
    """A database with the tables of harness.history.schema. Its connections end every wait."""

    name: str
    """For messages: without a password."""
    shared: bool
    """Whether other machines write to it, too."""
    failures: tuple[type[Exception], ...]
    """The errors of SQLAlchemy and of the driver, which :meth:`explain` takes."""
    engine: Engine

    @abstractmethod
    def prepare(self) -> None:
        """Create the tables, or migrate them. Raises UsageError for those of another harness, and the driver's errors."""

    @abstractmethod
    def reading(self) -> AbstractContextManager[Connection]:
        """A connection whose queries all see the same state. Raises the driver's errors."""

    @abstractmethod
    def writing(self) -> AbstractContextManager[Connection]:
        """A transaction without another writer at the same time, committed at the end. Raises the driver's errors."""

    @abstractmethod
    def has(self, connection: Connection, table: Table) -> bool:
        """Whether the database has the table."""

    @abstractmethod
    def number(self, connection: Connection, place: int | None) -> int | None:
        """The number of a run that is added at ``place``, by default after all others. None: the database chooses it."""

    @abstractmethod
    def rows(self, connection: Connection, query: Select[Any]) -> Sequence[Any]:
        """All rows as the driver's tuples. For 100 000 rows they take half the time of SQLAlchemy's rows."""

    @abstractmethod
    def explain(self, exc: Exception, record: Callable[[RunResult], object]) -> HarnessError:
        """The error of this harness for one of the driver. ``record`` adds a run that was saved from damage."""


def message_of(exc: Exception) -> str:
    """The driver's message, from an exception of SQLAlchemy or of the driver."""
    return str(exc.orig if isinstance(exc, DBAPIError) else exc)
