"""Posts.xml of a Stack Exchange archive: read in one pass, and joined to questions with their answers on disk.

A dump lists posts by id, so an answer may come gigabytes after its question. Posts therefore go into a temporary SQLite
file, and memory holds one chunk of the dump, a bounded page cache, and one question at a time, whatever the size.

The parser is expat, fed in chunks, without a tree. A dump declares no entities: one that does is refused, so nothing can
be expanded, and external entities are never fetched.
"""

from __future__ import annotations

import bz2
import gzip
import re
import sqlite3
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from xml.parsers import expat

from accord.data.sources import Rejection, count_reasons
from accord.errors import DataError

CHUNK = 1 << 18
"""Bytes given to the parser at once."""
LONGEST_ROW = 1 << 26
"""Bytes; the parser holds a row until it ends, and a post has at most some 30,000 characters."""
CACHE_KIB = 32_768
"""Page cache of the store."""
BATCH = 1_000
"""Posts of one insertion."""

QUESTION, ANSWER = "1", "2"
_POST_TYPES = {
    "3": "a wiki page",
    "4": "the excerpt of a tag's wiki",
    "5": "a tag's wiki",
    "6": "a nomination of a moderator",
    "7": "a wiki page",
    "8": "the wiki of a privilege",
}
_WHOLE_NUMBER = re.compile(r"-?[0-9]{1,18}", re.ASCII)  # fits SQLite's 64 bits


@dataclass(slots=True)
class Posts:
    """Counts of the rows of a dump: `rows` = questions + answers + those left out."""

    rows: int = 0
    questions: int = 0
    answers: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    """By reason; rows that break a rule, and posts that are neither questions nor answers."""
    bad: list[Rejection] = field(default_factory=list)
    """The first few rows that break a rule."""

    def leave_out(self, reason: str, count: int = 1) -> None:
        """Count rows that are not used."""
        self.left_out[reason] = self.left_out.get(reason, 0) + count

    def reject(self, rejection: Rejection, shown: int = 20) -> None:
        """Count a row that breaks a rule, by its reason without what is particular to the row."""
        self.leave_out(next(iter(count_reasons([rejection]))))
        if len(self.bad) < shown:
            self.bad.append(rejection)


@dataclass(frozen=True, slots=True)
class StoredQuestion:
    """A question without its text: what decides whether the text is needed."""

    id: int
    accepted: int | None
    """Id of the accepted answer."""
    fault: str | None
    """Why it cannot be used: it is closed or deleted."""
    votes: tuple[tuple[int, int], ...]
    """(id, votes) of each answer, by id."""


def open_dump(path: Path) -> tuple[IO[bytes], Callable[[], int]]:
    """The dump's XML as a stream, and a function that tells how many bytes of the file have been read.

    Raises:
        DataError: the file is not there, or of another kind.
    """
    name = path.name.lower()
    if name.endswith((".7z", ".zip", ".zst", ".xz", ".tar")):
        raise DataError(
            f"{path} is an archive that is not read directly: unpack it (`7z x {path.name} Posts.xml`) and give Posts.xml, "
            "which may stay packed as .xml.gz or .xml.bz2"
        )
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if name.endswith(".gz"):
        return gzip.GzipFile(fileobj=file), file.tell  # type: ignore[return-value]
    if name.endswith(".bz2"):
        return bz2.BZ2File(file), file.tell  # type: ignore[return-value]
    return file, file.tell


class PostStore:
    """Questions and answers in a temporary SQLite file, which is gone when the process ends, however it ends.

    It stands where SQLite keeps temporary files: `SQLITE_TMPDIR`, `TMPDIR`, else /var/tmp; about as large as the dump.
    """

    def __init__(self) -> None:
        # An empty name is SQLite's own word for a temporary file that outgrows the page cache onto the disk.
        self.database = sqlite3.connect("", isolation_level=None)
        for setting in (
            "journal_mode = OFF",
            "synchronous = OFF",
            f"cache_size = -{CACHE_KIB}",
            "temp_store = FILE",
            "mmap_size = 0",
        ):
            self.database.execute(f"PRAGMA {setting}")
        self.database.execute(
            "CREATE TABLE questions (id INTEGER PRIMARY KEY, accepted INTEGER, fault TEXT, title TEXT, body TEXT)"
        )
        self.database.execute(
            "CREATE TABLE answers (id INTEGER PRIMARY KEY, question INTEGER, votes INTEGER, body TEXT)"
        )

    def close(self) -> None:
        """Give the disk back."""
        self.database.close()

    def fill(self, path: Path, progress: Callable[[int], None] | None = None) -> Posts:
        """Read a dump.

        Args:
            path: Posts.xml, also with .gz or .bz2.
            progress: told how many bytes of the file have been read.

        Raises:
            DataError: not a dump of posts, broken or cut off (says where), or the disk is full.
        """
        reader = _Reader()
        with _disk_errors():
            for _ in reader.chunks(path, progress):
                self._insert(reader)
            self.database.execute("CREATE INDEX of_question ON answers (question, votes)")
        return reader.posts

    def _insert(self, reader: _Reader) -> None:
        posts = reader.posts
        posts.questions += self._add("questions VALUES (?, ?, ?, ?, ?)", reader.questions, posts)
        posts.answers += self._add("answers VALUES (?, ?, ?, ?)", reader.answers, posts)

    def _add(self, into: str, rows: list[Any], posts: Posts) -> int:
        """Insert the rows and forget them; returns how many were new."""
        if not rows:
            return 0
        added = self.database.executemany(f"INSERT OR IGNORE INTO {into}", rows).rowcount
        if added < len(rows):
            posts.leave_out("its id was there before", len(rows) - added)
        rows.clear()
        return added

    def questions(self) -> Iterator[StoredQuestion]:
        """Every question by id, with the votes of its answers."""
        votes = self.database.cursor()
        with _disk_errors():
            for id, accepted, fault in self.database.execute("SELECT id, accepted, fault FROM questions ORDER BY id"):
                found = votes.execute("SELECT id, votes FROM answers WHERE question = ? ORDER BY id", (id,))
                yield StoredQuestion(id, accepted, fault, tuple(found))

    def text(self, question: int) -> tuple[str, str, list[str]]:
        """(title, body, bodies of its answers by id) of a question."""
        with _disk_errors():
            title, body = self.database.execute(
                "SELECT title, body FROM questions WHERE id = ?", (question,)
            ).fetchone()
            answers = self.database.execute("SELECT body FROM answers WHERE question = ? ORDER BY id", (question,))
            return title, body, [text for (text,) in answers]

    def orphans(self) -> int:
        """Answers whose question is not in the dump."""
        with _disk_errors():
            query = "SELECT count(*) FROM answers WHERE question NOT IN (SELECT id FROM questions)"
            return int(self.database.execute(query).fetchone()[0])


@contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        raise DataError(
            f"the temporary store of the posts failed: {error}. It needs about as much disk as the unpacked dump; set "
            "TMPDIR to a folder that has it"
        ) from error


class _Reader:
    """Collects the posts of the chunks read so far; `questions` and `answers` are emptied by who stores them."""

    def __init__(self) -> None:
        self.posts = Posts()
        self.questions: list[tuple[int, int | None, str | None, str, str]] = []
        self.answers: list[tuple[int, int, int, str]] = []
        self._depth = 0
        self._last = 0
        self._parser = expat.ParserCreate()
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.EntityDeclHandler = self._refuse_entities

    def chunks(self, path: Path, progress: Callable[[int], None] | None) -> Iterator[None]:
        """Parse the file; pauses whenever enough posts wait to be stored, and at the end."""
        stream, position = open_dump(path)
        fed = 0
        try:
            with stream:
                while chunk := stream.read(CHUNK):
                    fed += len(chunk)
                    self._parser.Parse(chunk, False)
                    if fed - self._last > LONGEST_ROW:
                        raise DataError(
                            f"{path}: {self._place()} has more than {LONGEST_ROW >> 20} MiB; no post has that"
                        )
                    if progress is not None:
                        progress(position())
                    if len(self.questions) + len(self.answers) >= BATCH:
                        yield
        except expat.ExpatError as error:
            raise DataError(
                f"{path} is not well-formed XML at byte {self._parser.ErrorByteIndex:,} (line {error.lineno}, after row "
                f"{self.posts.rows:,}): {expat.errors.messages[error.code]}. Is it Posts.xml, unpacked whole?"
            ) from error
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path} cannot be read beyond row {self.posts.rows:,} (byte {fed:,}): {error}") from error
        try:
            self._parser.Parse(b"", True)
        except expat.ExpatError as error:
            raise DataError(
                f"{path} is cut off after row {self.posts.rows:,} (byte {fed:,}): {expat.errors.messages[error.code]}. "
                "Fetch or unpack it again"
            ) from error
        yield

    def _refuse_entities(self, name: str, *_: object) -> None:
        raise DataError(
            f"the dump declares the XML entity {name!r}; a Stack Exchange dump has none, so this is not one"
        )

    def _start(self, name: str, values: Mapping[str, str]) -> None:
        self._depth += 1
        self._last = self._parser.CurrentByteIndex
        if self._depth == 1:
            if name != "posts":
                raise DataError(f"the dump holds <{name}>; Posts.xml is needed, which holds <posts>")
            return
        self.posts.rows += 1
        fault = self._take(values) if name == "row" and self._depth == 2 else f"is a <{name}> where a <row> belongs"
        if fault is not None:
            self.posts.reject(Rejection(self._place(), fault))

    def _end(self, name: str) -> None:
        self._depth -= 1

    def _place(self) -> str:
        return f"row {self.posts.rows:,} (byte {self._last:,})"

    def _take(self, values: Mapping[str, str]) -> str | None:
        """Keep a post; returns what is wrong with it if it breaks a rule."""
        kind = values.get("PostTypeId")
        if kind not in (QUESTION, ANSWER):
            if kind is None:
                return "has no PostTypeId"
            self.posts.leave_out(f"it is {_POST_TYPES.get(kind, 'a post of an unknown type')}")
            return None
        needed = ("Id",) if kind == QUESTION else ("Id", "ParentId", "Score")
        for name in (*needed, "AcceptedAnswerId"):
            if name not in values:
                if name in needed:
                    return f"has no {name}"
            elif not _WHOLE_NUMBER.fullmatch(values[name]):
                return f"has {name} {values[name][:40]!r}; it must be a whole number"
        if kind == ANSWER:
            if "DeletionDate" in values:
                self.posts.leave_out("it is a deleted answer")
                return None
            row = (int(values["Id"]), int(values["ParentId"]), int(values["Score"]), values.get("Body", ""))
            self.answers.append(row)
            return None
        accepted = values.get("AcceptedAnswerId")
        fault = "deleted" if "DeletionDate" in values else "closed" if "ClosedDate" in values else None
        self.questions.append(
            (
                int(values["Id"]),
                int(accepted) if accepted else None,
                fault,
                values.get("Title", ""),
                values.get("Body", ""),
            )
        )
        return None
