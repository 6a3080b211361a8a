"""Reference log-probabilities: what the library gives, computed once, found again by content alone, shared by the ranks."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from accord.config import LoraConfig, ModelConfig, ReferenceConfig
from accord.data import TokenSequence
from accord.model.roles import Roles
from accord.model.scorer import Scorer
from accord.recipes.reference import Known, cache_folder, reference_logprobs, reference_role
from accord.training.parallel import Ranks
from recipes.tiny_runs import run

LORA = LoraConfig(r=4, alpha=8)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ACCORD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "reference"


def sequences(count: int = 7, seed: int = 0) -> list[TokenSequence]:
    generator = torch.Generator().manual_seed(seed)
    ids = [tuple(torch.randint(3, 250, (4 + 2 * n,), generator=generator).tolist()) for n in range(count)]
    return [TokenSequence(s, (False, False) + (True,) * (len(s) - 2)) for s in ids]


def ask(
    model: Path,
    adapter: LoraConfig | None = LORA,
    config: ReferenceConfig | None = None,
    items: list[TokenSequence] | None = None,
    micro: int = 20,
    change=None,
) -> Known:
    roles = Roles(ModelConfig(path=str(model)), adapter, torch.device("cpu"))
    roles.add_policy()
    if change is not None:
        change(roles)
    with reference_role(roles, config or ReferenceConfig()):
        known = reference_logprobs(Scorer(roles, micro), sequences() if items is None else items, Ranks())
    assert "reference" not in roles.roles, "nothing holds the reference any more"
    return known


def by_library(model: torch.nn.Module) -> list[float]:
    result = []
    for sequence in sequences():
        with torch.no_grad():
            logprobs = model.eval()(torch.tensor([sequence.input_ids])).logits[0].log_softmax(-1)
        result.append(sum(float(logprobs[t - 1, sequence.input_ids[t]]) for t in range(2, len(sequence))))
    return result


@pytest.mark.parametrize("adapter", [LORA, None], ids=["lora", "full"])
def test_of_the_base_they_are_the_librarys(adapter, base):
    expected = by_library(AutoModelForCausalLM.from_pretrained(base))
    assert ask(base, adapter).logprobs_N.tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("adapter", [LORA, None], ids=["lora", "full"])
@pytest.mark.parametrize("source", ["start", "model"])
def test_of_an_adapter_they_are_the_librarys_with_it(source, adapter, base, sft_adapter):
    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(sft_adapter))
    config = ReferenceConfig() if source == "start" else ReferenceConfig(source="model", path=str(sft_adapter))
    known = ask(sft_adapter if source == "start" else base, adapter, config)
    assert known.logprobs_N.tolist() == pytest.approx(by_library(model), rel=1e-5)
    bare = by_library(AutoModelForCausalLM.from_pretrained(base))
    assert known.logprobs_N.tolist() != pytest.approx(bare, rel=1e-3)


def test_the_second_time_nothing_is_computed(base, folder, monkeypatch):
    first = ask(base)
    (file,) = folder.iterdir()
    assert "computed in" in first.origin and str(file) in first.origin
    monkeypatch.setattr(Scorer, "sequence_logprobs", None)
    again = ask(base)
    assert torch.equal(first.logprobs_N, again.logprobs_N) and "cached in" in again.origin


def test_full_fine_tuning_finds_what_an_adapters_run_computed(base, monkeypatch):
    """Same weights, same numbers: the names under which peft wraps them do not count."""
    first = ask(base, LORA)
    monkeypatch.setattr(Scorer, "sequence_logprobs", None)
    assert torch.equal(ask(base, None).logprobs_N, first.logprobs_N)
    model = ReferenceConfig(source="model", path=str(base))
    assert torch.equal(ask(base, LORA, model).logprobs_N, first.logprobs_N)


def nudge(roles: Roles) -> None:
    with torch.no_grad():
        list(roles.model.parameters())[0].view(-1)[5] += 1e-6  # noqa: RUF015


def rotate(roles: Roles) -> None:
    roles.model.config.rms_norm_eps *= 2


CHANGES = {
    "a weight": {"change": nudge},
    "the configuration": {"change": rotate},
    "a token": {"items": [replace(s, input_ids=(*s.input_ids[:-1], 7)) for s in sequences()]},
    "a mask": {"items": [replace(s, target_mask=(False, *s.target_mask[1:-1], False)) for s in sequences()]},
    "the order": {"items": sequences()[::-1]},
    "fewer": {"items": sequences()[:-1]},
    "the micro-batches": {"micro": 30},
}


@pytest.mark.parametrize("what", CHANGES)
def test_whatever_they_depend_on_is_in_the_name(what, base, folder):
    ask(base)
    known = ask(base, **CHANGES[what])
    assert "computed in" in known.origin and len(list(folder.iterdir())) == 2


def test_an_adapter_is_in_the_name(base, sft_adapter, folder):
    ask(base)
    ask(sft_adapter)
    assert len(list(folder.iterdir())) == 2
    moved = ask(sft_adapter, change=lambda roles: list(roles.adapters.parameters("start").values())[0].data.add_(1e-6))  # noqa: RUF015
    assert "computed in" in moved.origin and len(list(folder.iterdir())) == 3
    # What the policy's own adapter holds by now does not matter.
    same = ask(sft_adapter, change=lambda roles: list(roles.adapters.parameters("policy").values())[0].data.add_(1.0))  # noqa: RUF015
    assert "cached in" in same.origin


@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
def test_the_type_that_an_adapter_is_computed_in_is_in_the_name(own, base, sft_adapter, folder):
    """Over a bfloat16 base the two differ in value, so neither may stand for the other."""
    found = []
    for dtype in ("auto", "float32", "auto"):
        roles = Roles(
            ModelConfig(path=str(base if own else sft_adapter), dtype="bfloat16"),
            LORA.model_copy(update={"dtype": dtype}),
            CPU,
        )
        roles.add_policy()
        config = ReferenceConfig(source="model", path=str(sft_adapter)) if own else ReferenceConfig()
        with reference_role(roles, config):
            found.append(reference_logprobs(Scorer(roles, 20), sequences(), Ranks()))
    assert len(list(folder.iterdir())) == 2 and "cached in" in found[2].origin
    assert not torch.equal(found[0].logprobs_N, found[1].logprobs_N)
    assert torch.equal(found[0].logprobs_N, found[2].logprobs_N)


def test_the_scale_of_an_adapter_on_a_model_of_its_own_is_in_the_name(base, sft_adapter, folder, tmp_path):
    louder = Path(shutil.copytree(sft_adapter, tmp_path / "louder"))
    told = json.loads((louder / "adapter_config.json").read_text())
    (louder / "adapter_config.json").write_text(json.dumps(told | {"lora_alpha": 64}))
    for path in (sft_adapter, louder):
        roles = Roles(ModelConfig(path=str(base), dtype="bfloat16"), LORA, CPU)
        roles.add_policy()
        with reference_role(roles, ReferenceConfig(source="model", path=str(path))):
            assert "computed in" in reference_logprobs(Scorer(roles, 20), sequences(), Ranks()).origin
    assert len(list(folder.iterdir())) == 2


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-3])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(bytes(content))


def shorten(file: Path) -> None:
    save_file({"logprobs_N": load_file(file)["logprobs_N"][:-1]}, file, metadata={"content": "x"})


def other_name(file: Path) -> None:
    save_file({"something": torch.zeros(7)}, file)


@pytest.mark.parametrize("damage", [cut, empty, flip, shorten, other_name])
def test_a_damaged_file_is_made_again_and_said(damage, base, folder):
    first = ask(base)
    (file,) = folder.iterdir()
    damage(file)
    again = ask(base)
    assert torch.equal(again.logprobs_N, first.logprobs_N)
    assert "computed in" in again.origin and f"({file} was damaged: " in again.origin
    assert "cached in" in ask(base).origin


def test_a_folder_that_cannot_be_written_costs_nothing_but_time(base, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("ACCORD_CACHE", str(tmp_path / "file"))
    assert "not kept: " in ask(base).origin
    assert (tmp_path / "file").read_text() == "in the way"


def test_nothing_half_written_is_left(base, folder, monkeypatch):
    import accord.recipes.reference as module

    def full(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(module, "save_file", full)
    assert "not kept: no space left on device" in ask(base).origin
    assert list(folder.iterdir()) == []


def test_ranks_share_the_micro_batches_and_get_the_bits_of_one(base, folder, monkeypatch):
    seen_batches: list[tuple[int, ...]] = []
    score = Scorer.sequence_logprobs

    def watch(self, name, batch):
        seen_batches.append(tuple(batch.input_ids_T.tolist()))
        return score(self, name, batch)

    monkeypatch.setattr(Scorer, "sequence_logprobs", watch)
    alone = ask(base, micro=30)
    of_one = sorted(seen_batches)
    for file in folder.iterdir():
        file.unlink()
    roles = Roles(ModelConfig(path=str(base)), LORA, torch.device("cpu"))
    roles.add_policy()
    parts: dict[int, list[object]] = {0: [], 1: []}
    seen: list[object] = []
    for first_pass in (True, False):
        seen_batches.clear()
        for rank in (0, 1):
            said = iter(range(2))

            def gather(self, item, rank=rank, said=said, first_pass=first_pass):
                number = next(said)
                if number == 0:
                    return [None, None]  # neither has a file
                parts[rank] = item
                return [item, ([], [])] if first_pass else [parts[0], parts[1]]

            monkeypatch.setattr(Ranks, "gather", gather)
            with reference_role(roles, ReferenceConfig()):
                known = reference_logprobs(Scorer(roles, 30), sequences(), Ranks(rank, 2))
            seen.append(known.logprobs_N)
    assert sorted(seen_batches) == of_one and len(of_one) > 2, "a micro-batch of other sequences would round otherwise"
    assert parts[0][0] and parts[1][0] and sorted(parts[0][0] + parts[1][0]) == list(range(7))
    assert torch.equal(seen[2], alone.logprobs_N) and torch.equal(seen[3], alone.logprobs_N)


def test_where_the_folder_is(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "cache" / "reference"
    monkeypatch.delenv("ACCORD_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "accord" / "reference"


@pytest.mark.parametrize("method", ["prompt", "prefix"])
def test_virtual_tokens_of_a_reference_of_its_own_decide_too(method, base, tmp_path: Path):
    """They lie beside the trunk: two references on one base, and the bare base, must not find each other's numbers."""
    folders = []
    for seed in range(2):
        over = {"adapter": {"method": method, "tokens": 3}, "train": {"learning_rate": 0.5}, "seed": seed}
        folders.append(run("sft", base, tmp_path / str(seed), over).model)
    configs = [None, *(ReferenceConfig(source="model", path=str(folder)) for folder in folders)]
    known = [ask(base, LORA, config) for config in configs]
    assert all("computed" in one.origin for one in known)
    values = [one.logprobs_N.tolist() for one in known]
    assert values[0] != values[1] != values[2] != values[0]
    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(folders[1]))
    if method == "prefix":  # peft gives logits of the own tokens alone
        assert values[2] == pytest.approx(by_library(model), rel=1e-4)
