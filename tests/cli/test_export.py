"""`accord export`."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import HfApi, RepoUrl
from transformers import AutoModelForCausalLM

from accord.cli import main


@pytest.fixture
def uploads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool, set[str]]]:
    """What reached the hub: repository, whether private, files."""
    seen: list[tuple[str, bool, set[str]]] = []

    def upload(api: HfApi, *, repo_id: str, folder_path: Path, **_: object) -> None:
        repo, private, _files = seen.pop()
        seen.append((repo, private, {path.name for path in Path(folder_path).iterdir()}))

    def create(api: HfApi, repo_id: str, *, private: bool, **_: object) -> RepoUrl:
        seen.append((repo_id, private, set()))
        return RepoUrl(f"https://huggingface.co/{repo_id}")

    monkeypatch.setenv("HF_TOKEN", "hf_of_the_tests")
    monkeypatch.setattr(HfApi, "create_repo", create)
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    return seen


def test_it_checks_and_tells(finished: Path, capsys) -> None:
    assert main(["export", str(finished / "model")]) == 0
    out = capsys.readouterr().out
    assert "note: the adapter's base is a folder of this machine" in out
    assert f"whole: {finished}/model, with a card in {finished}/model/README.md" in out


def test_merged_and_pushed(finished: Path, uploads, tmp_path: Path, capsys) -> None:
    words = ["export", str(finished / "model"), "--merge", str(tmp_path / "whole"), "--dtype", "bfloat16"]
    assert main([*words, "--push", "me/mine", "--private"]) == 0
    out = capsys.readouterr().out
    assert "pushed: https://huggingface.co/me/mine" in out and "note:" not in out
    repo, private, files = uploads[0]
    assert (repo, private) == ("me/mine", True) and {"model.safetensors", "README.md", "tokenizer.json"} <= files
    assert str(AutoModelForCausalLM.from_pretrained(tmp_path / "whole").dtype) == "torch.bfloat16"


def test_options_that_say_nothing_are_refused(finished: Path, tmp_path: Path, capsys) -> None:
    model = str(finished / "model")
    for words, message in (
        (["--private"], "--private says how to push"),
        (["--dtype", "float16"], "--dtype is the type that --merge stores"),
        (["--push", "a/b/c"], "cannot be the name of a repository"),
    ):
        assert main(["export", model, *words]) == 2
        assert message in capsys.readouterr().err
    assert main(["export", model, "--merge", str(tmp_path)]) == 1
    assert "is there already" in capsys.readouterr().err
    assert main(["export", str(tmp_path)]) == 1
    assert "holds no model" in capsys.readouterr().err


def test_a_hub_that_cannot_be_reached_is_an_error_with_the_way_on(finished: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_tests")
    assert main(["export", str(finished / "model"), "--push", "me/mine"]) == 1
    assert f"push it later with: accord export {finished}/model --push me/mine" in capsys.readouterr().err
