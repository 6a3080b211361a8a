"""`accord dpo`: every loss, divergence and reference from the recipe, with an adapter and with all weights."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import accord
from accord.cli import main
from accord.config import DPOConfig, dump
from accord.errors import ConfigError, ModelError
from accord.model.roles import Roles
from accord.recipes import BUILDERS
from accord.recipes.dpo import check_margins
from accord.training.learner import Learner
from accord.training.metrics import describe
from recipes.tiny_runs import pairs, recipe, run, saved_weights, write_rows

LOSSES = get_args(DPOConfig.model_fields["loss"].annotation)
FULL = pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])


def over(full: bool, **sections) -> dict:
    return sections | ({"adapter": None} if full else {})


@FULL
@pytest.mark.parametrize("loss", LOSSES)
def test_each_loss_starts_where_policy_and_reference_agree(loss, full, base, tmp_path: Path):
    """Rewards are 0 to the last digits of the forward pass, so the first loss is the one that is known in closed form."""
    expected = {
        "hinge": 1.0, "ipo": 25.0, "exo": -math.log(2) - (math.log(0.999) + math.log(0.001)) / 2, "nca": 2 * math.log(2),
        "sppo": 50.0, "apo_zero": 1.0, "apo_down": 1.0, "discopop": (math.log(2) + 1) / 2,
    }  # fmt: skip
    done = run("dpo", base, tmp_path, over(full, algorithm={"loss": loss}, data={"eval_fraction": 0.25}))
    first, last = done.metrics
    assert first["dpo/loss"] == pytest.approx(expected.get(loss, math.log(2)), rel=1e-4)
    assert first["rewards/margins"] == pytest.approx(0.0, abs=1e-5)
    assert last["rewards/margins"] != 0.0 and last["eval/rewards/margins"] != 0.0
    assert {name for row in done.metrics for name in row if describe(name) is None} == set()
    assert not [name for name in last if "perplexity" in name]
    assert all(math.isfinite(value) for row in done.metrics for value in row.values())


@pytest.mark.parametrize("start", ["base", "adapter", "adapter_full", "model", "none"])
def test_each_reference(start, base, sft_adapter, tmp_path: Path):
    sections = {
        "adapter_full": {"adapter": None},
        "model": {"reference": {"source": "model", "path": str(sft_adapter)}},
        "none": {"reference": None},
    }.get(start, {})
    done = run("dpo", sft_adapter if start.startswith("adapter") else base, tmp_path, sections)
    first = done.metrics[0]
    away = abs(first["rewards/chosen"]) > 1e-3
    assert away == (start in ("model", "none"))
    if start == "none":
        assert first["rewards/chosen"] == pytest.approx(0.1 * first["logps/chosen"], rel=1e-5)


@FULL
def test_no_reference_is_in_memory_while_it_learns(full, base, tmp_path: Path, monkeypatch):
    seen: list[tuple[set[str], int]] = []
    update = Learner.update

    def watch(self, batch):
        models = {id(weight) for role in self.roles.roles.values() for weight in role.trunk.parameters()}
        seen.append((set(self.roles.roles), len(models - {id(weight) for weight in self.roles.model.parameters()})))
        return update(self, batch)

    monkeypatch.setattr(Learner, "update", watch)
    copies: list[str] = []
    monkeypatch.setattr(Roles, "_own_model", lambda *_, **__: copies.append("model"))
    monkeypatch.setattr("accord.model.roles.copy", SimpleNamespace(deepcopy=lambda _: copies.append("copy")))
    run("dpo", base, tmp_path, over(full))
    assert seen == [({"policy"}, 0)] * 2 and copies == []


@FULL
@pytest.mark.parametrize("kind", ["dpo", "orpo", "simpo", "cpo"])
def test_what_was_learnt_loads_in_plain_libraries(kind, full, base, tmp_path: Path):
    """The saved policy gives the log-probabilities that held-out evaluation reported at the end."""
    held_out = write_rows(tmp_path / "held_out.jsonl", pairs(3))
    done = run(kind, base, tmp_path, over(full, data={"eval_path": held_out}))
    tokenizer = AutoTokenizer.from_pretrained(done.model)
    model = AutoModelForCausalLM.from_pretrained(done.model if full else base)
    model = model if full else peft.PeftModel.from_pretrained(model, str(done.model))

    def logprob(row: dict, which: str) -> float:
        prompt, whole = tokenizer(row["prompt"]).input_ids, tokenizer(row["prompt"] + row[which]).input_ids
        ids = torch.tensor([[*whole, tokenizer.eos_token_id]])
        with torch.no_grad():
            logprobs = model.eval()(ids).logits[0].log_softmax(-1)
        return sum(float(logprobs[t - 1, ids[0, t]]) for t in range(len(prompt), ids.shape[1]))

    for which in ("chosen", "rejected"):
        mean = sum(logprob(row, which) for row in pairs(3)) / 3
        assert done.metrics[-1][f"eval/logps/{which}"] == pytest.approx(mean, rel=1e-4)


def test_the_header_says_where_the_reference_is_from(base, tmp_path: Path, monkeypatch, capsys):
    import accord

    monkeypatch.setenv("ACCORD_CACHE", str(tmp_path / "cache"))
    accord.train(recipe("dpo", base, tmp_path / "a"))
    first = capsys.readouterr().out
    accord.train(recipe("dpo", base, tmp_path / "b"))
    again = capsys.readouterr().out
    assert "reference  the policy as it starts; 24 log-probabilities computed in" in first
    assert "reference  the policy as it starts; 24 log-probabilities cached in" in again
    accord.train(recipe("dpo", base, tmp_path / "c", {"reference": None}))
    assert "reference  none" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["dpo", "orpo", "simpo", "cpo"])
def test_the_command_line(kind, base, tmp_path: Path):
    file = tmp_path / "recipe.yaml"
    file.write_text(dump(recipe(kind, base, tmp_path)))
    assert main([kind, str(file), "--quiet", "--train.steps", "1"]) == 0
    assert (tmp_path / "run" / "model" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "run" / "report.html").is_file()


def test_margins_are_used_when_asked_for_and_must_be_there(base, tmp_path: Path, monkeypatch, capsys):
    rows = [row | {"margin": 3.0} for row in pairs()]
    data = {"path": write_rows(tmp_path / "margins.jsonl", rows)}
    plain = run("dpo", base, tmp_path / "plain", {"data": data})
    asked = run("dpo", base, tmp_path / "asked", {"data": data, "algorithm": {"margin_coef": 1.0}})
    assert plain.metrics[0]["dpo/loss"] == pytest.approx(math.log(2), rel=1e-5)
    assert asked.metrics[0]["dpo/loss"] == pytest.approx(math.log(1 + math.exp(3)), rel=1e-5)
    monkeypatch.setattr("accord.model.roles.load_weights", lambda *_, **__: pytest.fail("weights were read"))
    none = recipe("dpo", base, tmp_path / "none", {"algorithm": {"margin_coef": 1.0}})
    message = "margin_coef weighs the column `margin` of the data, and no row has one"
    with pytest.raises(ConfigError, match=message):
        accord.train(none, quiet=True)
    assert not (tmp_path / "none" / "run").exists()
    (tmp_path / "none.yaml").write_text(dump(none))
    assert main(["dpo", str(tmp_path / "none.yaml"), "--dry-run"]) == 2
    assert message in capsys.readouterr().err
    one = [row | ({"margin": 3.0} if i == 5 else {}) for i, row in enumerate(pairs())]
    data = {"path": write_rows(tmp_path / "one.jsonl", one)}
    check_margins(recipe("dpo", base, tmp_path / "one", {"data": data, "algorithm": {"margin_coef": 1.0}}))


def test_dropout_of_the_adapter_acts_in_updates_and_not_in_the_reference(base, tmp_path: Path):
    still = run("dpo", base, tmp_path / "still", {"train": {"steps": 2}})
    noisy = run("dpo", base, tmp_path / "noisy", {"adapter": {"dropout": 0.5}, "train": {"steps": 2}})
    assert noisy.metrics[0]["rewards/margins"] == pytest.approx(0.0, abs=1e-5)  # a fresh adapter adds nothing yet
    assert noisy.metrics[1]["rewards/margins"] != pytest.approx(still.metrics[1]["rewards/margins"], rel=1e-3)


def test_a_reference_with_another_tokenizer_is_refused(base, sft_adapter, tmp_path: Path):
    other = tmp_path / "other"
    shutil.copytree(base, other)
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.add_tokens(["<odd>"])
    tokenizer.save_pretrained(other)
    with pytest.raises(ModelError, match="has another tokenizer than the policy"):
        run("dpo", base, tmp_path, {"reference": {"source": "model", "path": str(other)}})


def test_shared_layers_neither_learn_nor_count_as_learning(base, tmp_path: Path):
    """The header, the learner and the result agree; no second copy is held."""
    shared = {"adapter": None, "reference": {"source": "shared_layers", "k": 1}}
    parts = BUILDERS["dpo"](recipe("dpo", base, tmp_path / "parts", shared))
    whole = BUILDERS["dpo"](recipe("dpo", base, tmp_path / "whole", {"adapter": None}))
    assert set(parts.learner.weights) == {
        name for name in whole.learner.weights if not any(part in name for part in ("embed_tokens", "layers.0."))
    }
    learnt = sum(weight.numel() for weight in parts.learner.weights.values())
    assert parts.facts["learns"].startswith(f"{learnt / 1e6:.2f}M parameters") and "0.00M" not in parts.facts["learns"]
    assert all(weight.requires_grad for weight in parts.learner.weights.values())
    assert set(parts.learner.roles.roles) == {"policy"}
    done = run("dpo", base, tmp_path / "run", shared | {"train": {"steps": 2, "learning_rate": 1e-2}})
    assert done.metrics[0]["rewards/margins"] == 0.0
    before, after = saved_weights(base), saved_weights(done.model)
    for name, weight in after.items():
        held = any(part in name for part in ("embed_tokens", "layers.0."))
        assert torch.equal(weight, before[name]) == held, name


def test_shared_layers_beside_an_adapter_are_refused(base, tmp_path: Path):
    with pytest.raises(ConfigError, match="shared_layers is for full fine-tuning"):
        recipe("dpo", base, tmp_path, {"reference": {"source": "shared_layers", "k": 1}})
