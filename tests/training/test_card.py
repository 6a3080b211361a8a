"""The card that a run writes, and the push at its end."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import HfApi, ModelCard, RepoUrl

import accord
from accord.cli import main
from accord.config import RECIPES, build
from accord.errors import AccordWarning, ConfigError
from recipes.tiny_runs import recipe_dict, run


@pytest.mark.parametrize("kind", ["sft", "reward", "ppo"])
def test_a_run_s_card_says_where_the_model_comes_from(kind: str, base: Path, tmp_path: Path) -> None:
    done = run(kind, base, tmp_path)
    card = ModelCard.load(done.model / "README.md")
    assert card.data.tags == ["accord", kind] and card.data.library_name == "peft"
    assert card.data.pipeline_tag == ("text-classification" if kind == "reward" else "text-generation")
    text = card.text
    assert f"Trained by `accord {kind}`" in text and "learning rate 0.003" in text
    assert re.search(rf"- data: .*{kind}.jsonl: \d+ of \d+ rows", text)
    assert {"sft": "| `sft/loss` |", "reward": "| `reward/accuracy` |", "ppo": "| `env/reward_mean` |"}[kind] in text
    assert "time/" not in text and "memory/" not in text
    found = re.search(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert found
    assert f"`accord {kind} config.yaml --output NEW` runs it again" in text
    assert main([kind, str(done.path / "config.yaml"), "--output", f"{tmp_path}/again", "--quiet"]) == 0
    recipe = build(RECIPES[kind], yaml.safe_load(found.group(1)))
    assert recipe.train.learning_rate == 3e-3 and recipe.model.path == "/".join(base.parts[-2:])
    assert str(tmp_path) not in text and str(base) not in text, "no path of this machine"
    assert f"{kind}.jsonl" in recipe.data.path


def test_paths_are_given_as_they_were_given(base: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine").symlink_to(base)
    done = run("sft", "mine", tmp_path / "x", {"output": "out"})
    assert "path: mine\n" in (done.model / "README.md").read_text()


def test_the_end_of_a_run_pushes_its_model(base: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    made, files = [], []

    def create(api, repo_id, *, private, **_):
        made.append((repo_id, private))
        return RepoUrl(f"https://huggingface.co/{repo_id}")

    monkeypatch.setenv("HF_TOKEN", "hf_of_the_tests")
    monkeypatch.setattr(HfApi, "create_repo", create)
    monkeypatch.setattr(
        HfApi, "upload_folder", lambda api, folder_path, **_: files.extend(p.name for p in Path(folder_path).iterdir())
    )
    accord.train(recipe_dict("sft", base, tmp_path, {"push": "me/mine"}))
    assert made == [("me/mine", True)]
    assert {"adapter_model.safetensors", "adapter_config.json", "README.md", "tokenizer.json"} <= set(files)
    assert "pushed: https://huggingface.co/me/mine" in capsys.readouterr().out


def test_a_push_that_fails_loses_nothing(base: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_tests")
    with pytest.warns(
        AccordWarning, match=r"could not be pushed to me/mine.*accord export .*/model --push me/mine --private"
    ):
        done = run("sft", base, tmp_path, {"push": "me/mine"})
    assert len(done.metrics) == 2 and (done.model / "adapter_model.safetensors").is_file() and done.report.is_file()


def test_no_login_is_told_before_anything_is_learnt(base: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("accord.model.publish.get_token", lambda: None)
    with pytest.raises(ConfigError, match="push: me/mine needs a login"):
        run("sft", base, tmp_path, {"push": "me/mine"})
    assert not (tmp_path / "run").exists(), "the folder is left as it was found"
