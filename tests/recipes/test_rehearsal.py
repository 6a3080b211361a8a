"""The rehearsal of a run says what the run would say, and refuses what it would refuse; without weights."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from accord.cli import main
from accord.config import RECIPES
from accord.recipes import BUILDERS
from accord.recipes.rehearsal import rehearse
from recipes.tiny_runs import completions, recipe, recipe_dict, steps, words, write_rows

PROCESS = {"algorithm": {"level": "step"}}
WORDS = {"algorithm": {"level": "token"}}
ROWS = ("data", "held out", "ptx")


@pytest.fixture
def dry(base: Path, tmp_path: Path, monkeypatch, capsys) -> Callable[..., str]:
    """The errors of a rehearsal on the command line, which must refuse the recipe."""

    def never(*_, **__):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("accord.model.loading.load_weights", never)
    monkeypatch.setattr("accord.model.roles.load_weights", never)

    def rehearsed(kind: str, *words: str, model: Path | None = None) -> str:
        file = tmp_path / f"{kind}.yaml"
        file.write_text(yaml.safe_dump(recipe_dict(kind, model or base, tmp_path)))
        assert main([kind, str(file), "--dry-run"]) == 0, capsys.readouterr().err  # but for the words all is well
        assert main([kind, str(file), "--dry-run", *words]) != 0
        return capsys.readouterr().err

    return rehearsed


@pytest.mark.parametrize("kind", sorted(RECIPES))
def test_it_tells_of_the_rows_what_the_run_tells(kind, base, tmp_path: Path):
    over = {"data": {"eval_fraction": 0.25}} if kind in ("sft", "dpo", "reward", "kto", "classify", "csft") else {}
    made = recipe(kind, base, tmp_path, over)
    facts = BUILDERS[kind](made).facts
    assert rehearse(made) == {name: facts[name] for name in ROWS if name in facts}


@pytest.mark.parametrize(("kind", "over", "rows"), [("reward", PROCESS, steps), ("classify", WORDS, words)])
def test_so_it_does_of_other_rows(kind, over, rows, base, tmp_path: Path):
    path = write_rows(tmp_path / "rows.jsonl", rows())
    made = recipe(kind, base, tmp_path, over | {"data": {"path": path}})
    assert rehearse(made)["data"] == BUILDERS[kind](made).facts["data"]


def test_text_beside_the_rewards(base, tmp_path: Path):
    path = write_rows(tmp_path / "text.jsonl", completions())
    made = recipe("ppo", base, tmp_path, {"ptx": {"data": {"path": path}}})
    assert f"{path}: 12 of 12 rows" in rehearse(made)["ptx"]
    assert rehearse(made)["ptx"] in BUILDERS["ppo"](made).facts["ptx"]


@pytest.mark.parametrize(
    ("kind", "words", "message"),
    [
        ("sft", ["--data.max_tokens", "4"], "rows of"),
        ("dpo", ["--data.max_tokens", "4"], "rows of"),
        ("csft", ["--data.max_tokens", "4"], "rows of"),
        ("ppo", ["--data.max_prompt_tokens", "2"], "rows of"),
        ("sft", ["--model.chat_template", "nope.jinja"], "neither chatml nor transcript"),
        ("distill", ["--algorithm.on_policy", "0.5"], "completion"),
        ("ppo", ["--data.max_tokens", "1000", "--rollout.max_new_tokens", "126"], "reads at most 128 tokens"),
        ("sft", ["--adapter.targets", "[nobody]"], "adapter.targets"),
        ("sft", ["--placement.type", "torchrun"], "needs a process started by torchrun"),
        ("sft", ["--placement.device", "cuda:7"], "placement.device: 'cuda:7' cannot be used here"),
    ],
)
def test_what_the_run_would_refuse(kind, words, message, dry, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert message in dry(kind, *words)


def test_rows_of_conversations_need_a_template(dry, tmp_path: Path):
    turns = [{"role": "user", "content": "a film"}, {"role": "assistant", "content": "good"}]
    path = write_rows(tmp_path / "chats.jsonl", [{"messages": turns}])
    assert "chat template" in dry("sft", "--data.path", path)


def test_virtual_tokens_take_positions_too(dry):
    words = [
        "--data.max_tokens",
        "1000",
        "--rollout.max_new_tokens",
        "100",
        "--adapter",
        "{method: prompt, tokens: 60}",
    ]
    assert "the adapter's 60 virtual ones included" in dry("ppo", *words)


def test_a_tokenizer_without_an_end(dry, base, tmp_path: Path):
    mute = Path(shutil.copytree(base, tmp_path / "mute"))
    config = json.loads((mute / "tokenizer_config.json").read_text())
    (mute / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "eos_token"}))
    assert "has no EOS token" in dry("sft", "--model.path", str(mute))


def test_a_reward_or_critic_that_gives_no_score(reward_adapter, dry, base):
    assert f"{base} is not a reward model, but a language model" in dry("ppo", "--reward", str(base))
    critic = f"{{source: model, path: {base}, start: reward}}"
    assert f"critic.path: {base} is not a reward model" in dry(
        "ppo", "--reward", str(reward_adapter), "--critic", critic
    )


@pytest.mark.parametrize(
    ("model", "adapter"),
    [
        ("llama", {"dora": True}),
        ("llama", {"method": "adalora"}),
        ("llama", {"method": "ia3"}),
        ("llama", {"targets": ["q_proj"]}),
        ("t5", {}),
        ("mixtral", {}),
    ],
)
def test_adapters_on_shapes_alone(model, adapter, model_folder, tmp_path: Path):
    rehearse(recipe("sft", model_folder(model), tmp_path, {"adapter": adapter}))


def test_another_vocabulary(dry, base, tmp_path: Path, model_folder):
    other = Path(shutil.copytree(base, tmp_path / "other"))
    file = other / "tokenizer.json"
    told = json.loads(file.read_text())
    told["added_tokens"].append({**told["added_tokens"][0], "id": 9999, "content": "<|new|>"})
    file.write_text(json.dumps(told))
    words = ["--reference", f"{{source: model, path: {other}}}"]
    assert "has another tokenizer than the policy" in dry("ppo", *words)


def test_a_tracker_that_is_not_installed(dry, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert "wandb, which is not installed" in dry("sft", "--train.sinks", "[wandb]")


def test_an_output_that_cannot_be_made(dry, tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    assert "cannot be written" in dry("sft", "--output", f"{tmp_path}/file/run")
    assert "is a file" in dry("sft", "--output", f"{tmp_path}/file")
    assert "/proc/run cannot be written" in dry("sft", "--output", "/proc/run")
