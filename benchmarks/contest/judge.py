"""Judge a trained adapter on held-out prompts with plain transformers and peft: the same code for every library."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import torch
from base_type import DTYPE
from contest.tasks import Task, load_task
from output_layer import read_contiguously
from transformers import AutoModelForCausalLM, AutoTokenizer


def load(model: str) -> tuple[Any, Any]:
    """Base model and tokenizer."""
    base = AutoModelForCausalLM.from_pretrained(model, dtype=DTYPE)
    return read_contiguously(base), AutoTokenizer.from_pretrained(model)


@torch.no_grad()
def judge(
    policy: Any, tokenizer: Any, adapter: Path | None, task: Task, best_of: int = 1, kl: bool = True
) -> dict[str, Any]:
    """Mean score at temperature 1 and KL to the base in nats a response (k1 on the same samples).

    Args:
        policy: the base with the adapter, or the base alone.
        tokenizer: its own.
        adapter: where the adapter came from; `None` judges the base.
        task: prompts and reward.
        best_of: of so many responses each, the best counts (its KL is not measured).
        kl: whether to measure it.
    """
    torch.manual_seed(12345)
    asked = _asked(adapter)
    prompts = [prompt for prompt in task.held_out for _ in range(task.samples * best_of)]
    scores: list[float] = []
    divergences: list[float] = []
    texts: list[str] = []
    for start in range(0, len(prompts), 80):
        part = prompts[start : start + 80]
        ids = tokenizer([asked(prompt) for prompt in part], return_tensors="pt", add_special_tokens=False).input_ids
        drawn, lengths = draw(policy, ids, task.max_new_tokens, tokenizer.eos_token_id)
        responses = [
            tokenizer.decode(row[: int(n)], skip_special_tokens=True) for row, n in zip(drawn, lengths, strict=True)
        ]
        texts += responses
        scores += task.reward(prompts=part, responses=responses)
        if kl and best_of == 1:
            divergences += _divergence(policy, ids, drawn, lengths, adapter is not None)
    if best_of > 1:
        scores = [max(scores[n : n + best_of]) for n in range(0, len(scores), best_of)]
    values = torch.tensor(scores)
    return {
        "score": float(values.mean()),
        "score_standard_error": float(values.std() / len(values) ** 0.5),
        "kl": sum(divergences) / len(divergences) if divergences else None,
        "responses": len(scores),
        "examples": texts[:4],
    }


def _asked(adapter: Path | None) -> Callable[[str], str]:
    """How a model is asked: one of conditional fine-tuning for its best label, any other with the prompt as it is."""
    labels = None if adapter is None else adapter / "conditioning.json"
    if labels is None or not labels.is_file():
        return lambda prompt: prompt
    saved = json.loads(labels.read_text())
    before, after = saved["template"].replace("{label}", saved["labels"][-1]).split("{prompt}")
    return lambda prompt: before + prompt + after


def draw(policy: Any, ids: torch.Tensor, longest: int, eos: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Responses [B, longest] from the whole distribution at temperature 1, and their lengths with EOS."""
    mask = torch.ones_like(ids)
    output = policy.generate(
        input_ids=ids,
        attention_mask=mask,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=longest,
        pad_token_id=eos,
    )
    drawn = output[:, ids.shape[1] :]
    ended = (drawn == eos).int()
    first = torch.where(ended.any(1), ended.argmax(1) + 1, drawn.shape[1])
    return drawn, first


def _divergence(
    policy: Any, ids: torch.Tensor, drawn: torch.Tensor, lengths: torch.Tensor, adapted: bool
) -> list[float]:
    """log policy - log base of each response."""
    if not adapted:
        return [0.0] * len(ids)
    both = torch.cat([ids, drawn], 1)
    kept = torch.arange(drawn.shape[1])[None] < lengths[:, None]

    def logprobs() -> torch.Tensor:
        kept_states = drawn.shape[1] + 1
        output = policy(input_ids=both, attention_mask=torch.ones_like(both), logits_to_keep=kept_states)
        logits = output.logits[:, :-1].float()
        return (logits.log_softmax(-1).gather(-1, drawn[..., None])[..., 0] * kept).sum(1)

    ours = logprobs()
    with policy.disable_adapter():
        reference = logprobs()
    return (ours - reference).tolist()


def main() -> None:
    """python -m contest.judge MODEL DATA TASK ADAPTER|- BEST_OF train|held_out=OUTPUT.json ..."""
    torch.set_num_threads(1)
    model, data, name, adapter, best_of, *wanted = sys.argv[1:]
    base, tokenizer = load(model)
    policy = base if adapter == "-" else peft.PeftModel.from_pretrained(base, adapter)
    policy.eval()
    held_out = load_task(name, tokenizer, Path(data))
    # As many prompts as are held out, and half the responses: this only chooses the rate.
    train = replace(held_out, held_out=held_out.train[: len(held_out.held_out)], samples=held_out.samples // 2)
    for one in wanted:
        prompts, _, output = one.partition("=")
        task = {"train": train, "held_out": held_out}[prompts]
        folder = None if adapter == "-" else Path(adapter)
        found = judge(policy, tokenizer, folder, task, int(best_of), kl=prompts == "held_out")
        Path(output).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
