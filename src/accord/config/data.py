"""Where the feedback comes from."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from accord.config.base import Section


class DataConfig(Section):
    """Rows of feedback, of any known format; the format is detected and every row validated."""

    path: str
    """A .jsonl, .json or .txt file (also .gz), a .parquet file, a folder saved by `datasets`, or the name of a dataset on
    the hub."""
    split: str = "train"
    """Split of a dataset folder or hub dataset."""
    format: Literal[
        "auto",
        "text",
        "messages",
        "completion",
        "preference",
        "labelled",
        "stepwise",
        "prompt",
        "labelled_text",
        "labelled_tokens",
    ] = "auto"
    """What the rows are. `auto` looks at their columns and says what it found."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Renames: `{question: prompt}` reads column `question` as `prompt`."""
    limit: int | None = Field(None, ge=1)
    """Use at most this many rows, from the start of the file."""
    max_tokens: int = Field(1024, ge=2)
    """Longest prompt and completion together, in tokens."""
    max_prompt_tokens: int | None = Field(None, ge=1)
    """Longest prompt, in tokens; for rollouts at most `max_tokens - rollout.max_new_tokens`, which it is if not given."""
    too_long: Literal["reject", "truncate"] = "reject"
    """What to do with a longer row. `reject`: it is a bad row, see `on_bad_row`. `truncate`: a prompt loses its beginning,
    a completion its end (and with it the stop token)."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """`stop`: the first bad rows are listed with file, line and reason, and nothing runs. `skip`: they are left out, and
    counted by reason in the log."""
    train_on: Literal["completion", "all"] = "completion"
    """Which tokens `sft` and `csft` learn: those of completions (assistant turns), or all; others learn from completions."""
    eval_path: str | None = None
    """Held-out rows, of the same kinds as `path`."""
    eval_fraction: float = Field(0.0, ge=0, lt=1)
    """Share of the rows to hold out (chosen by the seed) when there is no `eval_path`."""

    @model_validator(mode="after")
    def _columns_differ(self) -> Self:
        new = list(self.columns.values())
        twice = next((name for name in new if new.count(name) > 1), None)
        if twice is not None:
            old = ", ".join(key for key, value in self.columns.items() if value == twice)
            raise ValueError(f"columns: {old} are all to become `{twice}`, and only one can; give it one of them")
        return self
