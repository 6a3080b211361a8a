"""The sides of `speed.py` that are no RLHF library: bare matrix products, and `transformers.generate`.

Run as a process of its own: python -m contest_speed.limits JOB.json
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from base_type import DTYPE
from contest_speed.serve import Facts, serve
from output_layer import read_contiguously
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

Unit = Callable[[], Facts]
HEAD_ROWS = 256
"""Rows of logits at once: more were not faster, and a whole batch of them does not fit."""


def _products(job: Facts) -> tuple[Any, list[Tensor], Tensor]:
    """Tokenizer, weights of the layers, weight of the output layer."""
    model: Any = AutoModelForCausalLM.from_pretrained(job["model"], dtype=DTYPE)
    layers = [part.weight.detach() for part in model.base_model.modules() if isinstance(part, nn.Linear)]
    return AutoTokenizer.from_pretrained(job["model"]), layers, model.get_output_embeddings().weight.detach()


def _inputs(count: int, weights: list[Tensor]) -> dict[int, Tensor]:
    """Random rows of each width that a layer reads or, for gradients, gives."""
    widths = {width for weight in weights for width in weight.shape}
    return {width: torch.randn(count, width).to(weights[0].dtype) for width in widths}


@torch.no_grad()
def _forward(inputs: dict[int, Tensor], weights: list[Tensor]) -> None:
    for weight in weights:
        functional.linear(inputs[weight.shape[1]], weight)


def training(job: Facts) -> Unit:
    """The frozen layers' products of one SFT step: forward, and the gradient of their inputs; nothing else at all."""
    tokenizer, layers, head = _products(job)
    lines = (Path(job["work"]) / job["file"]).read_text().splitlines()
    count = sum(len(tokenizer(json.loads(line)["text"]).input_ids) + 1 for line in lines)
    states, inputs = torch.randn(HEAD_ROWS, head.shape[1]).to(head.dtype), _inputs(count, layers)

    @torch.no_grad()
    def unit() -> Facts:
        _forward(inputs, layers)
        for weight in layers:
            inputs[weight.shape[0]] @ weight
        for start in range(0, count, HEAD_ROWS):
            rows = states[: min(HEAD_ROWS, count - start)]
            functional.linear(rows, head) @ head
        return {"tokens": count}

    return unit


def decoding(job: Facts) -> Unit:
    """The products of prefill and of each decoding step, all sequences in one batch."""
    tokenizer, layers, head = _products(job)
    size = job["size"]
    lines = (Path(job["work"]) / "requests.jsonl").read_text().splitlines()
    prompts = sum(len(tokenizer(json.loads(line)["prompt"]).input_ids) for line in lines)
    steps, batch = size["new_tokens"], len(lines)
    states, inputs = torch.randn(batch, head.shape[1]).to(head.dtype), _inputs(prompts, layers)
    new = {width: rows[:batch] for width, rows in inputs.items()}

    @torch.no_grad()
    def unit() -> Facts:
        _forward(inputs, layers)
        functional.linear(states, head)
        for _ in range(steps - 1):
            _forward(new, layers)
            functional.linear(states, head)
        return {"tokens": steps * batch}

    return unit


def generate(job: Facts) -> Unit:
    """`transformers.generate`, all requests in one batch, padded on the left; tokens after EOS do not count.

    It is spared what torch on CPU does with slices; see `output_layer.py`."""
    tokenizer = AutoTokenizer.from_pretrained(job["model"], padding_side="left")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model: Any = AutoModelForCausalLM.from_pretrained(job["model"], dtype=DTYPE).eval()
    read_contiguously(model)
    size = job["size"]
    lines = (Path(job["work"]) / "requests.jsonl").read_text().splitlines()
    prompts = [json.loads(line)["prompt"] for line in lines]
    turn = 0

    @torch.no_grad()
    def unit() -> Facts:
        nonlocal turn
        turn += 1
        torch.manual_seed(turn)
        batch = tokenizer(prompts, return_tensors="pt", padding=True)
        drawn = model.generate(
            **batch,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=size["longest_response"],
            pad_token_id=tokenizer.pad_token_id,
        )[:, batch.input_ids.shape[1] :]
        ended = drawn == tokenizer.eos_token_id
        return {"tokens": int((ended.int().cumsum(1) - ended.int() == 0).sum())}

    return unit


KINDS: dict[str, Callable[[Facts], Unit]] = {"training": training, "decoding": decoding, "generate": generate}


def prepare(job: Facts) -> Unit:
    """The unit of a job."""
    return KINDS[job["what"]](job)


if __name__ == "__main__":
    serve(prepare)
