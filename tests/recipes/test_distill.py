"""Distillation on the answers of the data: they are what `accord sft` learns."""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from accord.errors import ConfigError
from accord.recipes import BUILDERS
from accord.training.console import Console
from recipes.tiny_runs import completions, recipe, run, write_rows

TURNS = [
    ("user", "the film was"),
    ("assistant", "good and fine"),
    ("user", "and the end"),
    ("assistant", "odd"),
]
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}<|start|>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


@pytest.fixture
def talker(base: Path, tmp_path: Path) -> Path:
    """The end of a turn is not EOS, and stands in the generation config alone."""
    folder = Path(shutil.copytree(base, tmp_path / "talker"))
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": [1, 2]}))
    (tmp_path / "template.jinja").write_text(TEMPLATE)
    return folder


def test_an_offloaded_teacher_stays_until_the_student_has_learnt_from_it(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that have left the accelerator are stood in for by NaN: this machine has one kind of memory."""

    @contextmanager
    def leaving(modules, _device):
        weights = [weight for module in modules for weight in module.parameters()]
        values = [weight.detach().clone() for weight in weights]
        yield
        for weight in weights:
            weight.data.fill_(torch.nan)
        came_back.extend(zip(weights, values, strict=True))

    @contextmanager
    def visiting(modules, device):
        while came_back:
            weight, value = came_back.pop()
            weight.data.copy_(value)
        with leaving(modules, device):
            yield

    came_back: list[tuple[torch.Tensor, torch.Tensor]] = []
    rows = []
    for offload in (False, True):
        if offload:
            monkeypatch.setattr("accord.model.roles.visiting", visiting)
        reference = {"source": "model", "path": str(base), "offload": offload}
        over = {"reference": reference, "train": {"iterations": 2, "micro_batch_tokens": 64}}
        rows.append([row["distill/divergence"] for row in run("distill", base, tmp_path / str(offload), over).metrics])
    assert came_back, "the teacher was moved"
    assert rows[0] == rows[1]


def test_the_turns_of_others_are_not_learnt_and_a_turn_ends_where_sft_ends_it(talker: Path, tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": role, "content": text} for role, text in TURNS[: 2 + 2 * (n % 2)]]} for n in range(4)
    ]
    over = {
        "data": {"path": write_rows(tmp_path / "rows.jsonl", rows)},
        "model": {"chat_template": str(tmp_path / "template.jinja")},
        "train": {"batch_size": 4},
    }
    console = Console("distill", 1, quiet=True)
    learnt = BUILDERS["sft"](recipe("sft", talker, tmp_path / "sft", over))
    items, _ = learnt.source.collect(0, console)
    wanted, _ = learnt.algorithm.prepare(items, learnt.scorer)
    given = BUILDERS["distill"](
        recipe("distill", talker, tmp_path / "distill", over | {"algorithm": {"on_policy": 0.0}})
    )
    rollouts, _ = given.source.collect(0, console)
    batch, metrics = given.algorithm.prepare(rollouts, given.scorer)

    def content(one) -> list[tuple[list[int], list[bool]]]:
        parts = zip(
            one.input_ids_T.split(one.lengths_N.tolist()), one.target_mask_T.split(one.lengths_N.tolist()), strict=True
        )
        return sorted((ids.tolist(), mask.tolist()) for ids, mask in parts)

    assert content(batch) == content(wanted)
    gaps = [mask[mask.index(True) :].count(False) for _, mask in content(batch)]
    assert min(gaps) == 0 and max(gaps) > 5, "the second user's turn lies between the two of the assistant"
    assert metrics["sampling/finished_fraction"] == 1.0


def test_rows_that_the_model_cannot_read_are_refused_before_anything_runs(base: Path, tmp_path: Path) -> None:
    rows = [*completions(), {"prompt": "the film", "completion": " was good" * 100}]
    over = {
        "data": {"path": write_rows(tmp_path / "rows.jsonl", rows), "max_tokens": 400},
        "algorithm": {"on_policy": 0.5},
    }
    with pytest.raises(ConfigError, match=r"reads at most 128 tokens .* lower data.max_tokens"):
        run("distill", base, tmp_path / "run", over)
