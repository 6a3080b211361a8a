"""Pushing: what is checked before, what is uploaded, what a failure says. The hub itself is the one thing not real here."""

from __future__ import annotations

import json
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, ModelCard, RepoUrl

from accord.config import LoraConfig
from accord.errors import ConfigError, ModelError, RunError
from accord.model.export import save_policy
from accord.model.publish import check_folder, check_push, push


class Hub:
    """What reached the hub."""

    def __init__(self) -> None:
        self.made: dict[str, Any] = {}
        self.files: set[str] = set()

    def create_repo(self, api: HfApi, repo_id: str, **options: Any) -> RepoUrl:
        self.made = {"repo": repo_id, **options}
        return RepoUrl(f"https://huggingface.co/me/{repo_id.split('/')[-1]}")

    def upload_folder(
        self, api: HfApi, *, repo_id: str, folder_path: Path, ignore_patterns: list[str], **_: Any
    ) -> None:
        assert repo_id == self.made["repo"] or repo_id.startswith("me/")
        names = [str(file.relative_to(folder_path)) for file in Path(folder_path).rglob("*") if file.is_file()]
        self.files = {name for name in names if not any(fnmatch(name, pattern) for pattern in ignore_patterns)}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub()
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_tests")
    monkeypatch.setattr(HfApi, "create_repo", lambda api, *a, **k: hub.create_repo(api, *a, **k))
    monkeypatch.setattr(HfApi, "upload_folder", lambda api, **k: hub.upload_folder(api, **k))
    return hub


@pytest.fixture
def own_folder(model_folder, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_folder("llama"), tmp_path / "model"))


def test_a_whole_model_with_its_card_arrives_and_nothing_else(hub: Hub, own_folder: Path) -> None:
    for name in (".cache", "pytorch_model.bin", "optimizer.pt"):
        (own_folder / name).write_text("not this")
    assert push(own_folder, "me/mine", private=True) == "https://huggingface.co/me/mine"
    assert hub.made == {"repo": "me/mine", "private": True, "repo_type": "model", "exist_ok": True}
    assert hub.files >= {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "README.md"}
    assert not hub.files & {".cache", "pytorch_model.bin", "optimizer.pt"}
    assert ModelCard.load(own_folder / "README.md").data.library_name == "transformers"


def test_a_card_that_is_there_stays(hub: Hub, own_folder: Path) -> None:
    (own_folder / "README.md").write_text("my own words")
    push(own_folder, "me/mine")
    assert (own_folder / "README.md").read_text() == "my own words"


def test_an_adapter_on_a_local_base_is_told(model_folder, make_roles, tmp_path: Path) -> None:
    roles = make_roles(model_folder("llama"), LoraConfig(r=2))
    roles.add_policy()
    save_policy(roles, tmp_path / "model")
    assert "`accord export --merge FOLDER`" in check_folder(tmp_path / "model")[0]
    file = tmp_path / "model" / "adapter_config.json"
    (tmp_path / "model" / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"its weights \(adapter_model\*.safetensors\) are missing"):
        check_folder(tmp_path / "model")
    assert file.is_file()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda whole: whole[: len(whole) // 2], ""),
        (lambda whole: whole[:-1], ""),
        (lambda whole: b"", ""),
        (lambda whole: POINTER, "fetch that with `git lfs pull`"),
    ],
    ids=["half", "one byte less", "empty", "pointer"],
)
def test_files_that_are_cut_are_not_whole(name, broken, message, own_folder: Path) -> None:
    check_folder(own_folder)
    (own_folder / name).write_bytes(broken((own_folder / name).read_bytes().rstrip()))
    with pytest.raises(ModelError, match=rf"is not a whole model: {name}.*{message}"):
        check_folder(own_folder)


def test_an_adapter_s_files_that_are_cut(model_folder, make_roles, tmp_path: Path) -> None:
    roles = make_roles(model_folder("llama"), LoraConfig(r=2))
    roles.add_policy()
    save_policy(roles, tmp_path / "model")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        file = tmp_path / "model" / name
        whole = file.read_bytes()
        file.write_bytes(whole[:-20])
        with pytest.raises(ModelError, match=f"is not a whole model: {name}"):
            check_folder(tmp_path / "model")
        file.write_bytes(whole)
    check_folder(tmp_path / "model")


def test_a_shard_without_what_the_index_promises(own_folder: Path) -> None:
    index = own_folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors"}}))
    with pytest.raises(ModelError, match=r"model\.safetensors lacks a, which"):
        check_folder(own_folder)


def test_what_is_not_whole_is_not_pushed(hub: Hub, own_folder: Path) -> None:
    index = own_folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"b": "model-00002.safetensors"}}))
    with pytest.raises(
        ModelError, match=r"model-00002.safetensors is missing, which model.safetensors.index.json names"
    ):
        push(own_folder, "me/mine")
    index.unlink()
    (own_folder / "tokenizer_config.json").unlink()
    with pytest.raises(ModelError, match="its tokenizer"):
        push(own_folder, "me/mine")
    assert hub.made == {} and hub.files == set()


def test_a_bad_name_or_no_login_is_known_before(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="'a/b/c' cannot be the name of a repository"):
        check_push("a/b/c")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("accord.model.publish.get_token", lambda: None)
    with pytest.raises(ConfigError, match="push: me/mine needs a login on the hub: run `hf auth login`"):
        check_push("me/mine")


def test_offline_nothing_is_lost_and_the_way_on_is_told(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not faked: the tests run with HF_HUB_OFFLINE=1, and huggingface_hub itself refuses."""
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_tests")
    before = sorted(path.name for path in own_folder.iterdir())
    with pytest.raises(
        RunError, match=r"could not be pushed to me/mine: .*offline.*accord export .* --push me/mine --private"
    ):
        push(own_folder, "me/mine", private=True)
    assert sorted(path.name for path in own_folder.iterdir()) == sorted([*before, "README.md"])
