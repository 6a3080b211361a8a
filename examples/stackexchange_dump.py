"""A made-up Stack Exchange dump, so that examples/stackexchange.md runs without a download.

    python examples/stackexchange_dump.py FOLDER [QUESTIONS]

FOLDER receives Posts.xml with the columns, the HTML and the order of a real one: posts by id, each answer somewhere behind
its question. Questions ask how to do a thing with a tool; answers that show the command get votes, answers that send the
asker away lose them. Everything is drawn from a seed.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path

VERBS = ("sort", "copy", "rename", "count", "merge", "split", "print", "remove", "find", "sum")
THINGS = ("files", "lines", "columns", "lists", "words", "tables", "images", "branches", "dates", "folders")
TOOLS = ("bash", "python", "git", "awk", "sed", "excel", "vim", "sql")
GOOD = ("This works for me", "The shortest way I know", "I use this every day", "That is built in")
BAD = ("Just search the web.", "Why would anyone want that?", "Read the manual.", "This was asked before.")
FILLER = "I have tried it on a small case, and it does what it says; the order is kept and nothing is lost on the way."


def posts(seed: int = 0, paragraphs: int = 0) -> Iterator[str]:
    """Rows of Posts.xml without end; `paragraphs` of filler make them as long as real ones."""
    generator = random.Random(seed)
    filler = f"<p>{FILLER}</p>\n" * paragraphs
    asked: list[tuple[int, str, str, str, int | None]] = []
    accepted: set[int] = set()
    number = 0
    while True:
        number += 1
        if not asked or generator.random() < 0.28:
            verb, thing, tool = generator.choice(VERBS), generator.choice(THINGS), generator.choice(TOOLS)
            # The dump says which answer was accepted before it comes; here the next post is, every other time.
            follows = number + 1 if generator.random() < 0.5 else None
            asked.append((number, verb, thing, tool, follows))
            body = f"<p>How do I <strong>{verb}</strong> {thing} in <code>{tool}</code>?</p>\n{filler}"
            closed = ' ClosedDate="2020-01-02T00:00:00.000"' if generator.random() < 0.03 else ""
            mark = f' AcceptedAnswerId="{follows}"' if follows else ""
            title = escape(f"{verb} {thing} in {tool}", quote=True)
            yield _row(number, f'PostTypeId="1"{mark} Score="{generator.randrange(9)}" Title="{title}"{closed}', body)
            continue
        follows_here = asked[-1][4] == number and number not in accepted
        parent, verb, thing, tool, _ = asked[-1] if follows_here else asked[int(len(asked) * generator.random() ** 0.5)]
        good = follows_here or generator.random() < 0.5
        votes = generator.randrange(2, 40) if good else generator.randrange(-4, 2)
        code = f'<pre class="lang-{tool} prettyprint-override"><code>{tool} --{verb} {thing}\n</code></pre>'
        text = f"<p>{generator.choice(GOOD)}:</p>\n{code}"
        body = f"{text if good else f'<p>{generator.choice(BAD)}</p>'}\n{filler}"
        yield _row(number, f'PostTypeId="2" ParentId="{parent}" Score="{votes}"', body)


def _row(number: int, columns: str, body: str) -> str:
    text = escape(body, quote=True).replace("\n", "&#xA;")
    return f'  <row Id="{number}" {columns} CreationDate="2020-01-01T00:00:00.000" Body="{text}" />\n'


def write_dump(path: Path, count: int | None = None, size: int | None = None, paragraphs: int = 0) -> None:
    """Write so many posts, or posts of so many bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with path.open("w", encoding="utf-8") as file:
        file.write('<?xml version="1.0" encoding="utf-8"?>\n<posts>\n')
        for number, row in enumerate(posts(paragraphs=paragraphs)):
            if (count is not None and number >= count) or (size is not None and written >= size):
                break
            written += file.write(row)
        file.write("</posts>\n")


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/stackexchange")
    write_dump(folder / "Posts.xml", count=int(sys.argv[2]) if len(sys.argv) > 2 else 2000)
    print(f"written: {folder / 'Posts.xml'}")
