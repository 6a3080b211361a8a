"""Checkpoints: complete or absent, and found out when damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from accord.errors import RunError
from accord.training.state import checkpoints, find_fault, read_newest, write_checkpoint

TENSORS = {"weight/a": torch.arange(6.0).view(2, 3), "optimizer/step/a": torch.tensor(3.0)}
STATE = {"steps": 3, "algorithm": {"coef": 0.1 + 0.2}}


def write(folder: Path, iteration: int, keep: int = 9) -> Path:
    return write_checkpoint(folder, iteration, TENSORS, STATE | {"steps": iteration}, keep)


def test_round_trip_is_exact(tmp_path: Path):
    path = write(tmp_path, 7)
    assert path.name == "step-000007"
    found, damaged = read_newest(tmp_path)
    assert (found.path, found.iteration, damaged) == (path, 7, [])
    assert found.state == {"iteration": 7, "steps": 7, "algorithm": {"coef": 0.1 + 0.2}}
    assert found.tensors.keys() == TENSORS.keys()
    assert all(torch.equal(found.tensors[key], value) for key, value in TENSORS.items())


def test_a_tensor_that_is_a_view_is_written_whole(tmp_path: Path):
    write_checkpoint(tmp_path, 1, {"t": TENSORS["weight/a"].T}, {}, 1)
    assert torch.equal(read_newest(tmp_path)[0].tensors["t"], TENSORS["weight/a"].T)


def test_a_folder_that_a_person_renamed_is_no_checkpoint(tmp_path: Path):
    older, newer = write(tmp_path, 3), write(tmp_path, 4)
    newer.rename(tmp_path / "step-000004.bad")
    assert read_newest(tmp_path)[0].path == older
    write(tmp_path, 5, keep=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000004.bad", "step-000005"]


def test_no_checkpoint_at_all(tmp_path: Path):
    assert read_newest(tmp_path / "none") == (None, [])


def test_keeps_the_newest(tmp_path: Path):
    for iteration in range(1, 6):
        write(tmp_path, iteration, keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000004", "step-000005"]


@pytest.mark.parametrize("stage", ["save", "manifest", "flush", "rename"])
def test_a_kill_while_writing_leaves_the_older_one(stage, tmp_path: Path, monkeypatch):
    """Whatever moment the process dies at, what is there by name is whole; and the next try is not in its own way."""
    write(tmp_path, 1)

    def die(*_, **__):
        raise KeyboardInterrupt

    target = {
        "save": ("accord.training.state.save_file", die),
        "manifest": ("accord.training.state._hash", die),
        "flush": ("accord.training.state._flush", die),
        "rename": ("pathlib.Path.rename", die),
    }[stage]
    with monkeypatch.context() as patch:
        patch.setattr(*target)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path, 2, keep=1)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000001"]
    assert read_newest(tmp_path)[0].iteration == 1
    write(tmp_path, 2)
    assert read_newest(tmp_path)[0].iteration == 2
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_everything_is_on_disk_before_the_name_is(tmp_path: Path, monkeypatch):
    """The order that makes a power cut harmless: each file, their folder, the rename, the folder above."""
    calls: list[str] = []
    import accord.training.state as state

    flush, rename = state._flush, Path.rename
    monkeypatch.setattr(state, "_flush", lambda path: (calls.append(path.name), flush(path)))
    monkeypatch.setattr(Path, "rename", lambda self, to: (calls.append("rename"), rename(self, to))[1])
    write(tmp_path, 1)
    files = {"tensors.safetensors", "state.json", "manifest.json"}
    assert set(calls[:3]) == files and calls[3:] == [".step-000001.partial", "rename", tmp_path.name]


def _missing(path: Path) -> str:
    (path / "tensors.safetensors").unlink()
    return "tensors.safetensors is missing"


def _cut(path: Path) -> str:
    file = path / "tensors.safetensors"
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-5])
    return f"tensors.safetensors has {size - 5} bytes instead of {size}"


def _flipped(path: Path) -> str:
    file = path / "tensors.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    return "tensors.safetensors has other content than was written"


def _changed_state(path: Path) -> str:
    file = path / "state.json"
    file.write_text(file.read_text().replace("2", "3"))
    return "state.json has other content than was written"


def _no_manifest(path: Path) -> str:
    (path / "manifest.json").unlink()
    return "its manifest cannot be read: FileNotFoundError"


def _torn_manifest(path: Path) -> str:
    (path / "manifest.json").write_text(json.dumps({"files": {}})[:-3])
    return "its manifest cannot be read: JSONDecodeError"


DAMAGES = [_missing, _cut, _flipped, _changed_state, _no_manifest, _torn_manifest]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_and_the_one_before_is_read(damage, tmp_path: Path):
    write(tmp_path, 1)
    newest = write(tmp_path, 2)
    assert find_fault(newest) is None
    fault = damage(newest)
    assert find_fault(newest) == fault
    found, damaged = read_newest(tmp_path)
    assert found.iteration == 1
    assert damaged == [f"step-000002 is damaged ({fault})"]


def test_all_damaged(tmp_path: Path):
    for iteration in (1, 2):
        _cut(write(tmp_path, iteration))
    with pytest.raises(RunError, match=r"no checkpoint in .* is whole: step-000002 .*; step-000001 .*another `output`"):
        read_newest(tmp_path)


def test_a_damaged_later_one_does_not_push_out_what_is_whole(tmp_path: Path):
    """After falling back, new checkpoints count as the newest even while a damaged later one still lies there."""
    write(tmp_path, 2)
    _cut(write(tmp_path, 9))
    write(tmp_path, 3, keep=1)
    assert read_newest(tmp_path)[0].iteration == 3
