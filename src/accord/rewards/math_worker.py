"""The process in which math-verify runs: JSON lines in, JSON lines out. Started by `verifier.py`, never imported.

It is a process of its own because sympy can take for ever: a signal ends what is Python, and a kill what is not. Both count CPU
time, so that a busy machine makes no answer wrong.
"""

from __future__ import annotations

import json
import logging
import math
import re
import resource
import signal
import sys
import time
from typing import Any

MARK = "####"
"""Before the answer of a GSM8K solution."""
WORDS = re.compile(
    r"[^\w\\]*(\d+[.):]\s+)?"  # the number of a heading
    r"(?!F)([^\W\d_]+,?\s+(?!F)[^\W\d_]{2,}|[^\W\d_]{3,}(?=[\s:.,!?*]|$))".replace("F", r"(sin|cos|tan|log|exp)\b")
)
"""Begins with a word, as headings and sentences do, and formulas do not."""
MEMORY = 4 * 2**30
"""Bytes of address space; a power tower would take all there is."""
GRACE_SECONDS = 2
"""CPU seconds from the signal, which Python sees between two of its instructions, to the kill."""


class _Late(BaseException):
    """Not an `Exception`, which the libraries below catch and go on."""


def _bare(answer: str) -> str:
    """An answer without any mark, in the form that math-verify finds: numbers without commas between thousands, in a box."""
    text = answer.strip().strip("$").rstrip(".").strip()
    if re.fullmatch(r"[-+]?\d{1,3}(,\d{3})+(\.\d+)?\s*%?", text):
        text = text.replace(",", "")
    return "\\boxed{" + text + "}"


def _marked(text: str) -> list[str]:
    """What stands on the line after the last `####`, in the ways to read it, the likeliest first.

    None where a `\\boxed` follows, or where the mark is Markdown's of a heading: words with more text below.
    """
    _, mark, tail = text.rpartition(MARK)
    lines = tail.strip().splitlines()
    if not mark or not lines or "\\boxed" in tail:
        return []
    line = lines[0].strip().strip("*")
    if WORDS.match(line) is None:
        return [_bare(line)]
    return [line, _bare(line)] if len(lines) == 1 else []


def _parse(*texts: str) -> list[Any]:
    """What the first text holds in which anything is found."""
    from math_verify import parse

    return next((found for text in texts if (found := parse(text, parsing_timeout=None))), [])


def _judge(gold: str, response: str) -> str:
    from math_verify import verify

    own_mark = "\\boxed" in gold or "$" in gold.strip().strip("$")
    known = _parse(*(_marked(gold) or [gold if own_mark else _bare(gold)]))
    if not known:
        return "no_gold"
    # Words in a box would be read as a product of letters, so they come after all that the response says.
    first, *rest = _marked(response) or [response]
    found = _parse(first, response, *rest)
    return "equal" if found and verify(known, found, timeout_seconds=None) else "different"


def _stop(*_: Any) -> None:
    raise _Late


def _give(seconds: float) -> None:
    """Let this process take so many CPU seconds from now on."""
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    last = math.ceil(time.process_time() + seconds) + GRACE_SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (last if hard == resource.RLIM_INFINITY else min(last, hard), hard))
    signal.setitimer(signal.ITIMER_PROF, seconds)


def main() -> None:
    """Answer requests until the input ends."""
    import math_verify  # now, so that the first answer is as fast as the others

    assert math_verify is not None
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGPROF, _stop)
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            _give(request["timeout"])
            verdict = _judge(request["gold"], request["response"])
        except _Late:
            verdict = "timeout"
        except (MemoryError, RecursionError, OverflowError):
            verdict = "different"  # no answer that a person could have meant
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(verdict), flush=True)


if __name__ == "__main__":
    main()
