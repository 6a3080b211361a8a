"""The native engine against `transformers.generate` and against the learner's own log-probabilities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from accord.batch import TokenBatch
from accord.config import LoraConfig, ModelConfig, PromptConfig, ReferenceConfig
from accord.errors import GenerationError, ModelError
from accord.model.roles import Roles
from accord.model.scorer import Scorer
from accord.rollout.lookup import Speculation
from accord.rollout.native import NativeEngine
from accord.rollout.protocol import Completion, Request, Sampling

NEW = 14
GREEDY = Sampling(NEW, temperature=0)


def roles_of(folder: Path, adapter: LoraConfig | None = None) -> Roles:
    roles = Roles(ModelConfig(path=str(folder)), adapter, torch.device("cpu"))
    roles.add_policy()
    return roles


@pytest.fixture
def requests_() -> list[Request]:
    """Eleven prompts of ragged lengths."""
    generator = torch.Generator().manual_seed(4)
    lengths = (5, 1, 12, 3, 8, 2, 17, 1, 6, 9, 4)
    return [
        Request(tuple(torch.randint(3, 250, (length,), generator=generator).tolist()), seed=100 + n)
        for n, length in enumerate(lengths)
    ]


def generated_by_transformers(folder: Path, requests: Sequence[Request]) -> list[list[int]]:
    """Greedy continuations, one prompt at a time, without any stop token."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    model.generation_config.eos_token_id = None
    results = []
    for request in requests:
        prompt = torch.tensor([request.prompt_ids])
        mask = torch.ones_like(prompt)
        tokens = model.generate(prompt, attention_mask=mask, do_sample=False, max_new_tokens=NEW, min_new_tokens=NEW)
        results.append(tokens[0, prompt.shape[1] :].tolist())
    return results


def cut(tokens: list[int], stop_ids: frozenset[int]) -> tuple[tuple[int, ...], str]:
    for n, token in enumerate(tokens):
        if token in stop_ids:
            return tuple(tokens[: n + 1]), "stop"
    return tuple(tokens), "length"


@pytest.mark.parametrize("rows", [1, 3, 64])
def test_greedy_equals_transformers_token_for_token(family, model_folder, requests_, rows: int) -> None:
    wanted = generated_by_transformers(model_folder(family), requests_)
    engine = NativeEngine(roles_of(model_folder(family)), max_sequences=rows, prefill_tokens=20)
    stop_ids = frozenset({wanted[0][4], wanted[3][0], wanted[6][9], wanted[8][2]})
    for stops in (frozenset(), stop_ids):
        done = engine.generate(requests_, replace(GREEDY, stop_ids=stops))
        assert [(c.token_ids, c.finish_reason) for c in done] == [cut(tokens, stops) for tokens in wanted]
        assert all(len(c.logprobs) == len(c.token_ids) for c in done)
    assert {c.finish_reason for c in done} == {"stop", "length"}, "the case has responses of both kinds"


@pytest.mark.parametrize("virtual", [0, 3])
def test_a_prompt_is_computed_once_for_all_its_samples(model_folder, requests_, counted, virtual: int) -> None:
    """Also for those that have to wait for a row."""
    adapter = PromptConfig(tokens=virtual) if virtual else LoraConfig(r=4)
    roles = roles_of(model_folder("llama_grouped"), adapter)
    sampling = Sampling(NEW, temperature=1.3, stop_ids=frozenset(range(40, 60)))
    prompts = [requests_[n] for n in (2, 6, 8)]
    samples = [replace(one, seed=100 * n + k) for n, one in enumerate(prompts) for k in range(5)]
    wanted = [NativeEngine(roles, 1).generate([one], sampling)[0] for one in samples]
    read = counted(roles)
    assert same(NativeEngine(roles, 4).generate(samples, sampling), wanted)
    computed = [token for ids in read if len(ids) > 4 for token in ids]  # a step has one token for each of four rows
    assert computed == [token for one in prompts for token in one.prompt_ids]


def test_what_prompts_begin_with_alike_is_computed_once(engine_roles: Roles, requests_, counted) -> None:
    common = tuple(range(100, 140))
    prompts = [replace(one, prompt_ids=common + one.prompt_ids) for one in requests_]
    wanted = [NativeEngine(engine_roles, 1).generate([one], GREEDY)[0] for one in prompts]
    read = counted(engine_roles)
    assert same(NativeEngine(engine_roles, 64).generate(prompts, GREEDY), wanted)
    assert len(read[0]) == 40 + sum(len(one.prompt_ids) for one in requests_)


@pytest.fixture
def counted() -> Callable[[Roles], list[list[int]]]:
    """Notes the tokens of each forward pass of a policy."""

    def note(roles: Roles) -> list[list[int]]:
        read: list[list[int]] = []
        embeddings = roles.model.get_input_embeddings()
        embeddings.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].flatten().tolist()))
        return read

    return note


def test_an_adapter_s_policy_is_what_samples(model_folder, requests_, shake, tmp_path: Path) -> None:
    from accord.model.export import save_policy
    from accord.model.merging import merge

    roles = roles_of(model_folder("llama"), LoraConfig(r=4))
    roles.add_reference(ReferenceConfig())
    shake(roles.trainable("policy").values())
    save_policy(roles, tmp_path / "adapter")
    merge(tmp_path / "adapter", tmp_path / "merged", torch.float32)
    bare = [c.token_ids for c in NativeEngine(roles, 4, role="reference").generate(requests_, GREEDY)]
    policy = [c.token_ids for c in NativeEngine(roles, 4).generate(requests_, GREEDY)]
    assert policy == [tuple(tokens) for tokens in generated_by_transformers(tmp_path / "merged", requests_)]
    assert bare == [tuple(tokens) for tokens in generated_by_transformers(model_folder("llama"), requests_)]
    assert policy != bare


@pytest.fixture(params=["llama_grouped", "mistral", "gpt2"])
def engine_roles(request, model_folder) -> Roles:
    return roles_of(model_folder(request.param))


def same(one: Sequence[Completion], other: Sequence[Completion]) -> bool:
    torch.testing.assert_close(
        torch.tensor([p for c in one for p in c.logprobs]),
        torch.tensor([p for c in other for p in c.logprobs]),
        atol=2e-5,
        rtol=1e-5,
    )
    return [(c.token_ids, c.finish_reason) for c in one] == [(c.token_ids, c.finish_reason) for c in other]


def test_a_seed_gives_one_response_whatever_else_is_in_the_batch(engine_roles: Roles, requests_) -> None:
    sampling = Sampling(NEW, temperature=1.3, stop_ids=frozenset(range(40, 60)))
    wanted = NativeEngine(engine_roles, 64).generate(requests_, sampling)
    assert len({c.token_ids for c in wanted}) == len(wanted)
    for rows, prefill in ((1, 4096), (2, 10), (5, 1), (16, 30)):
        assert same(NativeEngine(engine_roles, rows, prefill).generate(requests_, sampling), wanted)
    engine = NativeEngine(engine_roles, 4)
    assert same(engine.generate(requests_[::-1], sampling)[::-1], wanted)
    assert same(engine.generate([requests_[6]], sampling), [wanted[6]])
    other = engine.generate([replace(requests_[6], seed=1)], sampling)
    assert other[0].token_ids != wanted[6].token_ids, "another seed, another response"


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampler_logprobs_are_the_learner_s(family, model_folder, requests_, temperature: float) -> None:
    roles = roles_of(model_folder(family))
    sampling = Sampling(NEW, temperature=temperature, stop_ids=frozenset(range(40, 60)))
    done = NativeEngine(roles, 4).generate(requests_, sampling)
    prompts = [request.prompt_ids for request in requests_]
    batch = TokenBatch.from_sequences(
        [p + c.token_ids for p, c in zip(prompts, done, strict=True)],
        [[False] * len(p) + [True] * len(c.token_ids) for p, c in zip(prompts, done, strict=True)],
    )
    learner = Scorer(roles, 64, temperature).score(batch, ["old_logprobs_T"])["old_logprobs_T"]
    sampler = torch.tensor([p for c in done for p in c.logprobs])
    torch.testing.assert_close(sampler, learner[batch.target_mask_T], atol=1e-4, rtol=0)
    assert sampler.std() > 0.3


def test_truncated_sampling_gives_the_truncated_distribution_s_logprobs(model_folder, requests_) -> None:
    roles = roles_of(model_folder("llama"))
    model = AutoModelForCausalLM.from_pretrained(model_folder("llama"), attn_implementation="eager").eval()
    sampling = Sampling(6, temperature=1.4, top_k=12, top_p=0.8)
    for request, done in zip(requests_, NativeEngine(roles, 4).generate(requests_, sampling), strict=True):
        ids = torch.tensor([request.prompt_ids + done.token_ids])
        with torch.no_grad():
            logits = model(ids).logits[0, len(request.prompt_ids) - 1 : -1] / 1.4
        for row, token, logprob in zip(logits, done.token_ids, done.logprobs, strict=True):
            top = row.topk(12)
            p = top.values.softmax(-1)
            kept = int(((p.cumsum(-1) - p) < 0.8).sum())
            assert token in top.indices[:kept]
            wanted = row[token] - top.values[:kept].logsumexp(-1)
            assert abs(float(wanted) - logprob) < 1e-4
    likeliest = NativeEngine(roles, 4).generate(requests_, Sampling(6, top_k=1))
    assert [c.token_ids for c in likeliest] == [
        c.token_ids for c in NativeEngine(roles, 4).generate(requests_, Sampling(6, temperature=0))
    ]
    assert all(logprob == 0 for c in likeliest for logprob in c.logprobs)


def test_a_stop_text_ends_a_response_and_is_part_of_it(model_folder, tokenizer, requests_) -> None:
    roles = roles_of(model_folder("llama"))
    engine = NativeEngine(roles, 4)
    sampling = Sampling(40, temperature=1.5)
    free = engine.generate(requests_, sampling)
    text = tokenizer.decode(free[2].token_ids[5:8])
    stopped = engine.generate(requests_, replace(sampling, stop_texts=("never said at all", text)))
    for before, after in zip(free, stopped, strict=True):
        length = len(after.token_ids)
        assert before.token_ids[:length] == after.token_ids
        said = text in tokenizer.decode(after.token_ids)
        assert after.finish_reason == ("stop" if said else "length") and (said or length == 40)
        assert text not in tokenizer.decode(after.token_ids[:-1])
    assert stopped[2].finish_reason == "stop" and len(stopped[2].token_ids) <= 8


def test_a_stop_text_of_many_bytes_is_seen(model_folder, tokenizer, monkeypatch) -> None:
    """Ten characters of three bytes each are thirty tokens of a byte-level tokenizer."""
    text = "日本語日本語日本語日"
    spoken = tokenizer.encode("ab" + text + "cd", add_special_tokens=False)
    end = len(tokenizer.encode("ab" + text, add_special_tokens=False))
    assert end >= 30
    said = iter(spoken)
    monkeypatch.setattr(
        "accord.rollout.drawing.sample_tokens", lambda *_: (torch.tensor([next(said)]), torch.tensor([-1.0]))
    )
    done = NativeEngine(roles_of(model_folder("llama")), 1).generate(
        [Request((5,), 0)], Sampling(len(spoken), stop_texts=(text,))
    )
    assert done[0].token_ids == tuple(spoken[:end]) and done[0].finish_reason == "stop"


def test_a_response_has_at_most_max_new_tokens(model_folder, requests_) -> None:
    engine = NativeEngine(roles_of(model_folder("llama")), 4)
    for limit in (1, 3):
        done = engine.generate(requests_, Sampling(limit))
        assert {(len(c.token_ids), c.finish_reason) for c in done} == {(limit, "length")}


def test_a_stop_token_at_the_limit_is_a_stop(model_folder, requests_) -> None:
    engine = NativeEngine(roles_of(model_folder("llama")), 4)
    first = engine.generate(requests_[:1], Sampling(3, temperature=0))[0].token_ids
    assert len(set(first)) == 3
    done = engine.generate(requests_[:1], Sampling(3, temperature=0, stop_ids=frozenset({first[-1]})))
    assert (done[0].token_ids, done[0].finish_reason) == (first, "stop")


def test_progress_adds_up(model_folder, requests_) -> None:
    told: list[tuple[int, int]] = []
    sampling = Sampling(NEW, stop_ids=frozenset(range(40, 60)))
    engine = NativeEngine(roles_of(model_folder("llama")), 3)
    done = engine.generate(requests_, sampling, lambda finished, tokens: told.append((finished, tokens)))
    assert sum(finished for finished, _ in told) == len(requests_)
    assert sum(tokens for _, tokens in told) == sum(len(c.token_ids) for c in done)
    assert all(0 <= finished <= tokens for finished, tokens in told)


@pytest.mark.parametrize("prefill", [10, 4096])
def test_no_padding_token_is_ever_computed(model_folder, requests_, prefill: int) -> None:
    """Tokens through the trunk = prompt tokens + sampled tokens, less the last of each response."""
    roles = roles_of(model_folder("llama"))
    computed = []
    roles.model.base_model.register_forward_pre_hook(
        lambda _, __, kwargs: computed.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    done = NativeEngine(roles, 5, prefill).generate(requests_, Sampling(NEW, stop_ids=frozenset(range(40, 60))))
    assert max(computed) <= max(prefill, 17), "one prompt may be longer, several together may not"
    prompts = sum(len(request.prompt_ids) for request in requests_)
    assert sum(computed) == prompts + sum(len(c.token_ids) - 1 for c in done)


def test_an_empty_prompt_is_an_error_and_no_requests_are_none(model_folder, requests_) -> None:
    engine = NativeEngine(roles_of(model_folder("llama")), 4)
    with pytest.raises(GenerationError, match="request 1 has an empty prompt"):
        engine.generate([requests_[0], Request((), 1)], GREEDY)
    assert engine.generate([], GREEDY) == []


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(4), Sampling(4, top_k=3), Sampling(4, top_p=0.5)])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_an_error(model_folder, requests_, sampling: Sampling, bad: float) -> None:
    roles = roles_of(model_folder("llama"))
    with torch.no_grad():
        roles.model.base_model.norm.weight.fill_(bad)
    with pytest.raises(GenerationError, match=r"NaN for token 1 of the response to request \d+; its weights are not"):
        NativeEngine(roles, 4).generate(requests_, sampling)


def test_the_version_of_the_weights_is_noted(model_folder) -> None:
    engine = NativeEngine(roles_of(model_folder("llama")), 4)
    assert engine.version == 0
    engine.load(None, 7)
    assert engine.version == 7


def test_each_token_is_told_as_it_is_sampled(model_folder, requests_) -> None:
    engine = NativeEngine(roles_of(model_folder("llama")), 3)
    sampling = Sampling(NEW, temperature=1.3, stop_ids=frozenset(range(40, 60)))
    told: dict[int, list[int]] = {}
    done = engine.generate(
        requests_, sampling, on_token=lambda request, token: told.setdefault(request, []).append(token)
    )
    assert [tuple(told[n]) for n in range(len(requests_))] == [c.token_ids for c in done]
    assert same(engine.generate(requests_, sampling), done)


def test_an_exception_of_the_hook_ends_the_sampling_and_leaves_the_engine_fit(model_folder, requests_) -> None:
    engine = NativeEngine(roles_of(model_folder("llama")), 3)
    seen = []

    def stop(request: int, token: int) -> None:
        seen.append(token)
        if len(seen) == 5:
            raise KeyboardInterrupt

    wanted = engine.generate(requests_, GREEDY)
    with pytest.raises(KeyboardInterrupt):
        engine.generate(requests_, GREEDY, on_token=stop)
    assert len(seen) == 5 and same(engine.generate(requests_, GREEDY), wanted)


@pytest.mark.parametrize("rows", [2, 5, 64])
def test_samples_of_one_prompt_compute_it_once_and_are_what_they_are_alone(
    engine_roles: Roles, requests_, rows: int
) -> None:
    computed = []
    engine_roles.roles["policy"].trunk.register_forward_pre_hook(
        lambda _, __, kwargs: computed.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    sampling = Sampling(NEW, temperature=1.3, stop_ids=frozenset(range(40, 60)))
    many = [replace(request, seed=10 * n + s) for n, request in enumerate(requests_[4:7]) for s in range(4)]
    alone = [NativeEngine(engine_roles, 1).generate([request], sampling)[0] for request in many]
    computed.clear()
    assert same(NativeEngine(engine_roles, rows).generate(many, sampling), alone)
    assert len({completion.token_ids for completion in alone}) == len(many)
    if rows == 64:
        assert computed[0] == sum(len(request.prompt_ids) for request in requests_[4:7])


SPECULATION = Speculation(ngram=1, tokens=4)


@pytest.fixture
def repeating() -> list[Request]:
    """Prompts that say the same again and again."""
    return [Request(tuple([5, 9, 30, 11, 5, 9, 30, 11, 5, 9][: 2 + n]), seed=n) for n in range(8)]


@pytest.mark.parametrize("rows", [1, 3, 8])
@pytest.mark.parametrize(
    "sampling",
    [GREEDY, Sampling(NEW, temperature=0.2), Sampling(40, temperature=1.3, top_k=4, stop_ids=frozenset(range(40, 60)))],
)
def test_speculative_decoding_gives_the_same_tokens(family, model_folder, repeating, sampling, rows: int) -> None:
    roles = roles_of(model_folder(family))
    told: dict[int, list[int]] = {}
    counts: list[tuple[int, int]] = []
    plain = NativeEngine(roles, rows).generate(repeating, sampling)
    engine = NativeEngine(roles, rows, speculation=SPECULATION)
    done = engine.generate(
        repeating,
        sampling,
        lambda finished, tokens: counts.append((finished, tokens)),
        lambda request, token: told.setdefault(request, []).append(token),
    )
    assert same(done, plain)
    assert [tuple(told[n]) for n in range(len(repeating))] == [c.token_ids for c in done]
    assert sum(n for n, _ in counts) == len(repeating) and sum(n for _, n in counts) == sum(
        len(c.token_ids) for c in done
    )
    drafted, accepted = engine.take_drafts()
    assert drafted > accepted >= 0 and drafted > 0, "drafts were made, and not all were right"
    assert engine.take_drafts() == (0, 0)
    assert NativeEngine(roles, rows).take_drafts() is None


@pytest.fixture
def circling(model_folder) -> Roles:
    """Without its layers' outputs the next token follows from the last one alone, so greedy decoding soon goes in a circle."""
    roles = roles_of(model_folder("llama"))
    for name, weight in roles.model.named_parameters():
        if "o_proj" in name or "down_proj" in name:
            weight.data.zero_()
    return roles


def test_right_drafts_save_steps(circling: Roles, repeating) -> None:
    passes = []
    circling.roles["policy"].trunk.register_forward_pre_hook(lambda *_: passes.append(1))
    plain = NativeEngine(circling, 8).generate(repeating, Sampling(90, temperature=0))
    assert len(passes) == 90
    passes.clear()
    engine = NativeEngine(circling, 8, speculation=Speculation(3, 6))
    assert same(engine.generate(repeating, Sampling(90, temperature=0)), plain)
    drafted, accepted = engine.take_drafts()
    assert accepted == drafted, "what went round once goes round again"
    assert 90 / 7 < len(passes) < 60


def test_a_response_ends_within_a_draft(circling: Roles) -> None:
    """The prompt goes round once, so the first draft is right throughout; but one of its tokens ends the response."""
    (once,) = NativeEngine(circling, 1).generate([Request((5,), 0)], Sampling(60, temperature=0))
    circle = (5, *once.token_ids)
    last = once.token_ids[-4:]
    assert len(set(last)) == 4 and circle.count(last[1]) > 1, "the model goes in a circle of four or more"
    engine = NativeEngine(circling, 1, speculation=Speculation(3, 6))
    free = engine.generate([Request(circle, 0)], Sampling(8, temperature=0))[0].token_ids
    told: list[int] = []
    stop_ids = frozenset({free[2]})
    (done,) = engine.generate(
        [Request(circle, 0)],
        Sampling(8, temperature=0, stop_ids=stop_ids),
        on_token=lambda _, token: told.append(token),
    )
    ends = free.index(free[2]) + 1
    assert (done.token_ids, done.finish_reason) == (free[:ends], "stop") and tuple(told) == free[:ends]


def test_speculation_behind_virtual_tokens(model_folder, repeating, shake) -> None:
    roles = Roles(ModelConfig(path=str(model_folder("llama"))), PromptConfig(tokens=3), torch.device("cpu"))
    roles.add_policy()
    shake(roles.trainable("policy").values(), 0.2)
    engine = NativeEngine(roles, 3, speculation=SPECULATION)
    assert same(engine.generate(repeating, GREEDY), NativeEngine(roles, 3).generate(repeating, GREEDY))


def test_a_folded_adapter_samples_what_the_adapter_beside_its_base_samples(model_folder, requests_, shake) -> None:
    roles = roles_of(model_folder("llama"), LoraConfig(r=4))
    shake(roles.trainable("policy").values())
    wanted = NativeEngine(roles, 4, merge=False).generate(requests_, GREEDY)
    done = NativeEngine(roles, 4, merge=True).generate(requests_, GREEDY)
    assert [c.token_ids for c in done] == [c.token_ids for c in wanted]
    assert [c.logprobs for c in done] != [c.logprobs for c in wanted]


def test_folding_by_itself_where_it_pays(model_folder, requests_, shake, monkeypatch) -> None:
    roles = roles_of(model_folder("llama"), LoraConfig(r=4))
    shake(roles.trainable("policy").values())
    folded = []
    make = Roles.folded
    monkeypatch.setattr(Roles, "folded", lambda *arguments: (folded.append(arguments[2]), make(*arguments))[1])
    engine = NativeEngine(roles, 64, merge=None)
    engine.load(None, 7)
    engine.generate(requests_, Sampling(63))
    assert folded == [], "too few steps"
    engine.generate(requests_, Sampling(64))
    assert folded == [7], "rounded anew for each version"
    monkeypatch.setattr("accord.rollout.native.memory_bytes", lambda device: 2**16)
    engine.generate(requests_, Sampling(64))
    assert folded == [7], "no room for the copy"
    bare = roles_of(model_folder("llama"))
    assert len(NativeEngine(bare, 64, merge=None).generate(requests_, Sampling(64))) == len(requests_)
    with pytest.raises(ModelError, match="merge_adapter: true needs a plain LoRA adapter"):
        NativeEngine(bare, 64, merge=True)
