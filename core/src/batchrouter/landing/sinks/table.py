"""What all tables share but a Parquet directory: stage the rows, compare columns, commit once.

Such a table finds a run's rows by value, so each row has its job beside its `_run_key`: the column
`_job`. A commit also marks the purchase that it came of. A purchase that the table knows is not
committed again, so a landing that died after its commit does not put old rows over newer ones.
"""

import contextlib
import hashlib
import random
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

import pyarrow as pa

from batchrouter.errors import SinkError
from batchrouter.killpoints import reached
from batchrouter.landing.report import LandingIdentity
from batchrouter.landing.sinks import Commit, Writing
from batchrouter.landing.sinks.columns import UnstorableError, differences, stored_batch
from batchrouter.landing.sinks.placed import Adoption, Folder, Intake, PlacedFile
from batchrouter.landing.sinks.staged import StagedRows, staged
from batchrouter.manifest.arrow import DataType, Field
from batchrouter.manifest.rendering import plain

JOB = "_job"
RUN_KEY = "_run_key"
_STATUS = "_status"
_HASH = "_request_hash"
_MOST_TOLD = 300
_COMMITS = 8

_Told = TypeVar("_Told")


@dataclass(frozen=True, slots=True)
class Landing:
    """One commit to make.

    Attributes:
        schema: The columns of its rows.
        writing: The mode and the key.
        identity: Whose rows they are.
        marker: Names the purchase; the same for a landing that is tried again.
        new_columns: Columns that the table must get first.
    """

    schema: pa.Schema
    writing: Writing
    identity: LandingIdentity
    marker: str
    new_columns: tuple[Field, ...] = ()

    def is_done(self, *, is_marked: bool) -> bool:
        """Tell whether nothing is left to do in a table that knows this purchase, or does not.

        `replace_run` heals what was done to its rows; the other modes would undo what came later.
        """
        mode = self.writing.mode
        return is_marked and (
            mode == "append" or (mode != "replace_run" and not self.identity.again)
        )

    @property
    def told(self) -> dict[str, str]:
        """What a table's history says of the commit."""
        return {
            "batchrouter.job": self.identity.job_name,
            "batchrouter.run_key": self.identity.run_key,
            "batchrouter.models": self.identity.models,
            "batchrouter.purchase": self.marker,
        }

    @property
    def comment(self) -> str:
        """The table's description."""
        return (
            f"Rows of batchrouter job {self.identity.job_name}; last run {self.identity.run_key}"
            f" ({self.identity.models})"
        )

    @property
    def column_comments(self) -> dict[str, str]:
        """Say of each column which job and which model it is from."""
        who = self.identity
        of_job = f"of batchrouter job {who.job_name}"
        return {
            name: f"written by batchrouter, {of_job}"
            if name.startswith("_")
            else f"{of_job} ({who.models})"
            for name in self.schema.names
        }


class Format(Protocol):
    """How one kind of table is read and committed to."""

    location: str
    """Where the table is, without credentials."""

    errors: tuple[type[Exception], ...]
    """What its library raises."""

    def stored(self, kind: DataType) -> DataType:
        """Give the type that the table keeps a type as.

        Raises:
            UnstorableError: None.
        """
        ...

    def columns(self) -> pa.Schema | None:
        """Give the table's columns, in types that `stored` gives; None when there is no table."""
        ...

    def check_place(self) -> None:
        """Raise `SinkError` when it is known already that the table cannot be written."""
        ...

    def commit(self, landing: Landing, rows: StagedRows) -> None:
        """Make the commit, unless `Landing.is_done`."""
        ...

    def succeeded(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield columns of the rows whose `_status` is `succeeded`."""
        ...

    def masked(self, text: str) -> str:
        """Take what is secret out of an error's text."""
        ...


@runtime_checkable
class FileFormat(Format, Protocol):
    """A table that is a list of files, and takes files that others have written."""

    def folder(self, landing: Landing) -> Folder | None:
        """Say where it keeps them, and make a new table, empty; None where it takes none.

        A table may ask more of a file than that it has the right columns: partitions, for one.
        """
        ...

    def adopt(self, landing: Landing, files: Sequence[PlacedFile]) -> Adoption:
        """Make the commit of files, unless `Landing.is_done`."""
        ...


class TableSink:
    """A table of some format; see `Sink` and `TakesFiles`."""

    def __init__(self, table: Format, writing: Writing) -> None:
        self._table = table
        self._writing = writing
        self.location = table.location

    def __repr__(self) -> str:
        return f"TableSink({self.location!r})"

    def current_schema(self, identity: LandingIdentity) -> pa.Schema | None:
        """Give the table's columns; see `Sink.current_schema`."""
        del identity
        with self._refusing("cannot be read"):
            return self._table.columns()

    def check(self, schema: pa.Schema, identity: LandingIdentity) -> None:
        """See that the table has these columns, or may get them; order does not matter.

        Raises:
            SinkError: It has others, and the message names them; or it cannot be read or written.
        """
        del identity
        with self._refusing("cannot be written"):
            self._table.check_place()
            self._new_columns(self._stored(schema))

    def _stored(self, schema: pa.Schema) -> pa.Schema:
        fields: list[Field] = []
        for field in schema:
            try:
                fields.append(pa.field(field.name, self._table.stored(field.type)))
            except UnstorableError as error:
                raise SinkError(
                    f"the table {self.location} has no type for the column {field.name!r}: {error}."
                    " Nothing was written: cast it in the source, or leave it out of `keep`"
                ) from None
        return pa.schema([*fields, pa.field(JOB, pa.string())])

    def _new_columns(self, rows: pa.Schema) -> tuple[Field, ...]:
        table = self._table.columns()
        if table is None:
            return ()
        told = differences(table, rows, evolve=self._writing.evolve)
        if told:
            advice = (
                "make the job's columns those of the table, or set `evolve: true`, which lets a"
                " table get columns"
                if not self._writing.evolve
                else "`evolve` adds columns, and changes the type of none"
            )
            raise SinkError(
                f"the table {self.location} has other columns: {'; '.join(told)}. Nothing was"
                f" written: name another sink, or {advice}"
            )
        return tuple(each for each in rows if each.name not in table.names)

    def succeeded(
        self, identity: LandingIdentity, key_columns: Sequence[str]
    ) -> Iterator[pa.RecordBatch]:
        """Yield the key's columns and `_request_hash` of what succeeded; see `Sink.succeeded`."""
        del identity
        asked = [*key_columns, _HASH]
        with self._refusing("cannot be read"):
            table = self._table.columns()
            if table is None:
                return
            for name in (*asked, _STATUS):
                if name not in table.names:
                    raise SinkError(
                        f"the table {self.location} has no column {name!r}, so it cannot tell what"
                        " it holds. Nothing was bought: name a table that batchrouter writes"
                    )
            for batch in self._table.succeeded(asked):
                # Libraries give views and dictionaries, which not every kernel takes.
                arrays = [plain(batch.column(name)) for name in asked]
                yield pa.RecordBatch.from_arrays(arrays, names=asked)

    def write(
        self, batches: Iterator[pa.RecordBatch], schema: pa.Schema, identity: LandingIdentity
    ) -> Commit:
        """Stage the rows and commit them; see `Sink.write`.

        Raises:
            SinkError: No room, no permission, or other columns. The table is as it was.
        """
        own = self._stored(schema)
        told = (
            stored_batch(batch, own, {JOB: identity.job_name}, self.location) for batch in batches
        )
        with staged(told, own) as rows, self._refusing("cannot be written"):
            landing = self._landing(own, identity)
            reached("landing.before_commit")
            self._table.commit(landing, rows)
            reached("landing.after_commit")
            return Commit(self.location, rows.rows, rows.bytes)

    def intake(self, schema: pa.Schema, identity: LandingIdentity) -> Intake | None:
        """Say where other processes may put files of the rows; see `TakesFiles.intake`.

        Raises:
            SinkError: The table has other columns, or cannot be read or made.
        """
        # A merge looks at every row's key, wherever the rows are.
        if not isinstance(self._table, FileFormat) or self._writing.mode == "merge":
            return None
        own = self._stored(schema)
        with self._refusing("cannot be written"):
            folder = self._table.folder(self._landing(own, identity))
        if folder is None:
            return None
        return Intake(folder, own, {JOB: identity.job_name}, self.location)

    def commit_files(
        self,
        files: Sequence[PlacedFile],
        intake: Intake,
        schema: pa.Schema,
        identity: LandingIdentity,
    ) -> Commit:
        """Commit files that were placed; see `TakesFiles.commit_files`.

        Raises:
            SinkError: The table refuses; it is as it was.
        """
        assert isinstance(self._table, FileFormat)
        empty = [each for each in files if not each.rows]
        filled = [each for each in files if each.rows]
        with self._refusing("cannot be written"):
            landing = self._landing(intake.schema, identity)
            reached("landing.before_commit")
            adoption = self._table.adopt(landing, filled)
        if adoption == "refused":
            commit = self.write(intake.read(filled), schema, identity)
        else:
            reached("landing.after_commit")
            rows, size_bytes = sum(each.rows for each in files), sum(each.bytes for each in files)
            commit = Commit(self.location, rows, size_bytes)
        intake.remove(empty if adoption == "adopted" else files)
        return commit

    def _landing(self, own: pa.Schema, identity: LandingIdentity) -> Landing:
        return Landing(own, self._writing, identity, _marker(identity), self._new_columns(own))

    @contextlib.contextmanager
    def _refusing(self, what: str) -> Generator[None, None, None]:
        """Turn what the library raises into an error of ours, without what it opens with."""
        try:
            yield
        except self._table.errors as error:
            text = self._table.masked(" ".join(str(error).split()) or type(error).__name__)
            raise SinkError(
                f"the table {self.location} {what}: {text[:_MOST_TOLD].rstrip('. ')}. The table is"
                " as it was"
            ) from None


def commit_when_first(
    commit: Callable[[], _Told], lost: tuple[type[Exception], ...], *, wait_s: float
) -> _Told:
    """Commit, and again on the newer table where another writer was first; eight times at most.

    Args:
        commit: Reads the table as it is, and commits to it or does nothing.
        lost: What it raises when another writer was first.
        wait_s: The longest pause after the first try, in seconds; each next one is longer.

    Returns:
        What `commit` returns.
    """
    for attempt in range(1, _COMMITS):
        with contextlib.suppress(*lost):
            return commit()
        time.sleep(wait_s * attempt * random.random())  # noqa: S311 - writers shall part
    return commit()


def _marker(identity: LandingIdentity) -> str:
    text = f"{identity.job_name}\n{identity.run_slug}\n{identity.purchase}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def sql_text(text: str) -> str:
    """Write a text as a literal of SQL.

    Example:
        >>> sql_text("it's")
        "'it''s'"
    """
    return "'" + text.replace("'", "''") + "'"


def sql_name(name: str) -> str:
    """Write a name as an identifier of SQL.

    Example:
        >>> print(sql_name('a "b" c'))
        "a ""b"" c"
    """
    return '"' + name.replace('"', '""') + '"'


def same_keys(key_columns: Sequence[str], one: str, other: str) -> str:
    """Compare the keys of two tables of a query.

    Example:
        >>> same_keys(["id"], "t", "s")
        't."id" = s."id"'
    """
    return " and ".join(
        f"{one}.{sql_name(name)} = {other}.{sql_name(name)}" for name in key_columns
    )


def own_rows(identity: LandingIdentity) -> str:
    """Find a job's and run's rows in SQL."""
    job, run = sql_text(identity.job_name), sql_text(identity.run_key)
    return f"{sql_name(JOB)} = {job} and {sql_name(RUN_KEY)} = {run}"
