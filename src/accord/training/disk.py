"""What a run writes that cannot be written: said as what it is, with word of how to go on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accord.errors import AccordError, RunError

RUST = "(os error"
"""How safetensors and tokenizers end the text of a failed write, which they raise as exceptions of their own."""


@contextmanager
def writing(what: str, path: Path) -> Iterator[None]:
    """Around whatever writes a part of a run.

    Args:
        what: is written, for the message.
        path: where.

    Raises:
        RunError: it cannot be: the disk is full, a quota is reached, the folder is gone.
    """
    try:
        yield
    except AccordError:
        raise
    except Exception as error:
        if not isinstance(error, OSError) and RUST not in str(error):
            raise
        raise RunError(
            f"{what} could not be written to {path}: {error}. What was written before is whole: if the disk is full, make room, "
            "then go on from there (--resume)"
        ) from error
