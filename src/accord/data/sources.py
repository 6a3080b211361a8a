"""Rows of a file, a folder or a hub dataset, each with the place it came from.

A line that cannot be read is a `Rejection`, never an exception: the caller decides whether the run goes on without it.
"""

from __future__ import annotations

import difflib
import gzip
import json
import re
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, TypeAlias

from accord.errors import ConfigError, DataError


@dataclass(frozen=True, slots=True)
class Row:
    """One row as it was found."""

    origin: str
    """Where it stands: `pairs.jsonl:17` (line) or `pairs.parquet row 17`, counted from 1."""
    values: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Rejection:
    """One row that cannot be used, and why."""

    origin: str
    reason: str

    def __str__(self) -> str:
        return f"{self.origin}: {self.reason}"


class RowError(DataError):
    """One row breaks a rule. Where many rows are read it becomes a `Rejection`."""


Found: TypeAlias = Row | Rejection


def read_rows(path: str, split: str = "train", limit: int | None = None) -> tuple[list[Row], list[Rejection]]:
    """Read at most `limit` rows, broken ones included, in their order.

    Known: .jsonl, .json (an array of objects, or lines), .txt (documents between blank lines), each also with .gz;
    .parquet; a folder saved by `datasets.save_to_disk`, or one that holds a file named after the split; otherwise the
    name of a hub dataset.

    Raises:
        DataError: nothing is there, the kind is unknown, the file as a whole is broken, or the hub cannot be reached.
    """
    found = list(islice(_find(path, split), limit))
    rows = [item for item in found if isinstance(item, Row)]
    return rows, [item for item in found if isinstance(item, Rejection)]


def stream_rows(path: str, split: str = "train") -> Iterator[Row | Rejection]:
    """The rows that `read_rows` gives, one at a time; of the kinds that it knows, .json alone is held as a whole.

    Raises:
        DataError: as `read_rows`, some of them while the rows are taken.
    """
    return _find(path, split)


def refuse_split(path: str, split: str) -> None:
    """Refuse a split of one file, which has none: all its rows would be read.

    Raises:
        ConfigError: says so.
    """
    if split != "train" and Path(path).expanduser().is_file():
        raise ConfigError(
            f"data.split: {split} is of a dataset folder or of the hub, and {path} is one file, of which all rows would be read; "
            "leave it out, and give the file of that split"
        )


GO_ON = ", or go on without them: data.on_bad_row: skip"
"""Another way than mending bad rows, for who has a recipe to write it into."""


def stop_on(
    rejections: Sequence[Rejection], path: str, rows: int, cure: str = "Mend them", shown: int = 10, go_on: str = GO_ON
) -> None:
    """Refuse to run with bad rows; `cure` says what to do about them, and `go_on` how to leave them out.

    Raises:
        DataError: there are any; the first few are listed with origin and reason.
    """
    if not rejections:
        return
    lines = [f"  - {rejection}" for rejection in rejections[:shown]]
    if len(rejections) > shown:
        lines.append(f"  - and {len(rejections) - shown} more")
    raise DataError(
        f"{len(rejections)} of {rows} rows of {path} cannot be used:\n" + "\n".join(lines) + f"\n{cure}{go_on}"
    )


def count_reasons(rejections: Iterable[Rejection]) -> dict[str, int]:
    """Rejections by reason, most frequent first; reasons that differ only in a number or a quoted value are one."""
    counts = Counter(re.sub(r"\d+", "N", re.sub(r"'[^']*'", "'…'", item.reason)) for item in rejections)
    return dict(counts.most_common())


def _find(path: str, split: str) -> Iterator[Found]:
    file = Path(path).expanduser()
    if file.is_file():
        return _from_file(file)
    if file.is_dir():
        return _from_folder(file, split)
    if _looks_local(path):
        raise DataError(f"{path} does not exist{_nearest(file)}")
    return _from_hub(path, split)


def _looks_local(path: str) -> bool:
    has_suffix = _kind(Path(path)) in _READERS or path.lower().endswith((".gz", ".csv"))
    return has_suffix or path.startswith((".", "/", "~")) or path.count("/") > 1 or "\\" in path


def _nearest(file: Path) -> str:
    folder = file.parent
    if not folder.is_dir():
        return f": there is no folder {folder} either"
    names = sorted(entry.name for entry in folder.iterdir())
    near = difflib.get_close_matches(file.name, names, n=1, cutoff=0.4)
    return f": did you mean {folder / near[0]}?" if near else f": nothing in {folder} has a name like it"


def _kind(file: Path) -> str:
    """`.jsonl` for both `a.jsonl` and `a.jsonl.gz`."""
    return Path(file.name.lower().removesuffix(".gz")).suffix


def _from_file(file: Path) -> Iterator[Found]:
    reader = _READERS.get(_kind(file))
    if reader is None:
        raise DataError(f"{file} is of no known kind: use {', '.join(_READERS)} (text kinds also with .gz)")
    return reader(file)


def _open(file: Path) -> IO[bytes]:
    return gzip.open(file, "rb") if file.suffix.lower() == ".gz" else file.open("rb")  # type: ignore[return-value]


def _lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines as bytes, so that one line that is not UTF-8 does not spoil the others."""
    number = 0
    try:
        with _open(file) as stream:
            for number, line in enumerate(stream, 1):
                yield number, line
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file} cannot be read beyond line {number}: {error}") from error


def _from_jsonl(file: Path) -> Iterator[Found]:
    for number, line in _lines(file):
        if line.strip():
            yield _parse_line(f"{file.name}:{number}", line)


def _parse_line(origin: str, line: bytes) -> Found:
    try:
        return _row(origin, json.loads(line.decode("utf-8-sig")))
    except UnicodeDecodeError as error:
        return Rejection(origin, f"is not UTF-8 text ({error.reason} at byte {error.start})")
    except json.JSONDecodeError as error:
        return Rejection(origin, f"is not valid JSON: {error.msg.removesuffix(' at')} at column {error.colno}")
    except (ValueError, RecursionError) as error:
        return Rejection(origin, f"is not usable JSON: {_unusable(error)}")


def _unusable(error: Exception) -> str:
    """What is wrong with JSON that is valid."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return f"it holds a whole number of more than {sys.get_int_max_str_digits()} digits"


def _row(origin: str, value: Any) -> Found:
    if isinstance(value, dict):
        return Row(origin, value)
    return Rejection(origin, f"holds a JSON {_JSON_NAMES[type(value)]}; a row is an object with named columns")


_JSON_NAMES = {list: "array", str: "string", int: "number", float: "number", bool: "boolean", type(None): "null"}


def _from_json(file: Path) -> Iterator[Found]:
    content = b"".join(line for _, line in _lines(file))
    try:
        value = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text: {error}") from error
    except json.JSONDecodeError as error:
        # Many a .json on the hub is really JSON lines.
        if content.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{") and error.msg == "Extra data":
            yield from _from_jsonl(file)
            return
        raise DataError(f"{file} is not valid JSON: {error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is not usable JSON: {_unusable(error)}") from error
    if not isinstance(value, list):
        raise DataError(f"{file} holds a JSON {_JSON_NAMES.get(type(value), 'object')}; an array of objects is needed")
    for number, item in enumerate(value, 1):
        yield _row(f"{file.name} row {number}", item)


def _from_text(file: Path) -> Iterator[Found]:
    """Documents are separated by blank lines; a document's origin is its first line."""
    document: list[str] = []
    start = 0
    for number, line in _lines(file):
        try:
            text = line.decode("utf-8-sig")
            text = (
                text.removesuffix("\r\n") + "\n" if text.endswith("\r\n") else text
            )  # or each line's end would be learnt
        except UnicodeDecodeError as error:
            yield Rejection(f"{file.name}:{number}", f"is not UTF-8 text ({error.reason} at byte {error.start})")
            continue
        if text.strip():
            start = start if document else number
            document.append(text)
        elif document:
            yield Row(f"{file.name}:{start}", {"text": "".join(document).rstrip("\r\n")})
            document = []
    if document:
        yield Row(f"{file.name}:{start}", {"text": "".join(document).rstrip("\r\n")})


def _from_parquet(file: Path) -> Iterator[Found]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        number = 0
        for batch in pq.ParquetFile(file).iter_batches(batch_size=1024):
            for values in batch.to_pylist():
                number += 1
                yield Row(f"{file.name} row {number}", values)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file} cannot be read as parquet beyond row {number}: {error}") from error


_READERS: Mapping[str, Callable[[Path], Iterator[Found]]] = {
    ".jsonl": _from_jsonl,
    ".json": _from_json,
    ".parquet": _from_parquet,
    ".txt": _from_text,
}


def _from_folder(folder: Path, split: str) -> Iterator[Found]:
    if (folder / "dataset_dict.json").is_file() or (folder / "dataset_info.json").is_file():
        from datasets import DatasetDict, load_from_disk

        dataset = load_from_disk(str(folder))
        if isinstance(dataset, DatasetDict):
            if split not in dataset:
                raise DataError(f"{folder} has no split {split!r}; it has {', '.join(dataset)}: set data.split")
            return _numbered(f"{folder.name}[{split}]", dataset[split])
        return _numbered(folder.name, dataset)
    files = [entry for entry in sorted(folder.iterdir()) if _kind(entry) in _READERS]
    for entry in files:
        if entry.name.split(".")[0] == split:
            return _from_file(entry)
    names = ", ".join(entry.name for entry in files) or "no file of a known kind"
    raise DataError(
        f"{folder} is neither a dataset saved by `datasets` nor has it a file for the split {split!r}; "
        f"it holds {names}: give the path of one file"
    )


def _from_hub(name: str, split: str) -> Iterator[Found]:
    from datasets import load_dataset

    try:
        dataset = load_dataset(name, split=split)
    except Exception as error:  # the hub client has no common base for its many errors
        raise DataError(
            f"no file or folder {name} here, and a hub dataset of that name could not be loaded (split {split!r}): "
            f"{type(error).__name__}: {error}"
        ) from error
    return _numbered(f"{name}[{split}]", dataset)


def _numbered(name: str, dataset: Iterable[Mapping[str, Any]]) -> Iterator[Found]:
    for number, values in enumerate(dataset, 1):
        yield Row(f"{name} row {number}", dict(values))
