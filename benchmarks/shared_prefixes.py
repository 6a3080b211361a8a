"""CPU seconds of forward and backward with prefixes in common computed once, and with each sequence whole.

    python benchmarks/shared_prefixes.py MODEL DATA groups|pairs [TURNS]

MODEL: folder of SmolLM2-135M-Instruct, or of another causal model; DATA: folder with `hh_rlhf_harmless/train.jsonl.gz`.
`groups`: 8 prompts of 150 tokens, 8 answers of 32 to 96 tokens each, as in GRPO. `pairs`: 16 pairs of at most 512 tokens, as in
DPO. LoRA r = 16, micro-batches of 4,096 computed tokens, the loss is the sum over the answers' log-probabilities. Both ways take
turns; prints one JSON object a measurement, and last the ratio of medians. Set OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import gzip
import json
import random
import statistics
import sys
import time
from pathlib import Path

import torch

from accord.batch import TokenBatch
from accord.config import LoraConfig, ModelConfig
from accord.model.forward import forward
from accord.model.roles import Roles

PROMPTS, PROMPT, SAMPLES, ANSWER = 8, 150, 8, (32, 96)
PAIRS, LONGEST = 16, 512
MICRO = 4096


def groups(texts: list[tuple[list[int], list[int]]]) -> list[tuple[list[int], int]]:
    """Sequences and where their answers begin: real words throughout, cut to size."""
    draw = random.Random(0)
    words = [token for chosen, _ in texts for token in chosen]
    made = []
    for _ in range(PROMPTS):
        start = draw.randrange(len(words) - PROMPT)
        prompt = words[start : start + PROMPT]
        for _ in range(SAMPLES):
            length, start = draw.randint(*ANSWER), draw.randrange(len(words) - ANSWER[1])
            made.append((prompt + words[start : start + length], PROMPT))
    return made


def pairs(texts: list[tuple[list[int], list[int]]]) -> list[tuple[list[int], int]]:
    """Chosen and rejected answers with their prompts."""
    made = []
    fitting = [pair for pair in texts if max(map(len, pair)) <= LONGEST]
    for chosen, rejected in random.Random(0).sample(fitting, PAIRS):
        same = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), 1)
        made += [(chosen, max(same, 1)), (rejected, max(same, 1))]
    return made


def measure(roles: Roles, batch: TokenBatch, shares: bool) -> float:
    """CPU seconds of one forward and backward pass over a batch: of one thread, they hardly depend on what else runs."""
    started = time.process_time()
    with roles.use("policy", train=True) as role:
        for micro in batch.split(MICRO, shares):
            logprobs_T = forward(role, micro).logprobs_T
            assert logprobs_T is not None
            logprobs_T.sum().backward()
    return time.process_time() - started


def main(model: str, data: Path, work: str, turns: int) -> None:
    """Both ways in turns."""
    both = {}
    for shares in (False, True):
        torch.manual_seed(0)
        both[shares] = Roles(ModelConfig(path=model, share_prefixes=shares), LoraConfig(r=16), torch.device("cpu"))
        both[shares].add_policy()
    with gzip.open(data / "hh_rlhf_harmless" / "train.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line, _ in zip(file, range(200), strict=False)]
    tokenizer = both[True].tokenizer
    texts = [tuple(tokenizer(row[side])["input_ids"] for side in ("chosen", "rejected")) for row in rows]
    made = {"groups": groups, "pairs": pairs}[work](texts)
    batch = TokenBatch.from_sequences(
        [ids for ids, _ in made],
        [[t >= start for t in range(len(ids))] for ids, start in made],
        pair_N=torch.arange(len(made)) // 2 if work == "pairs" else None,
    )
    for shares, roles in both.items():
        measure(roles, batch.select([0, 1]), shares)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(turns):
        for shares in (False, True) if turn % 2 == 0 else (True, False):
            seconds[shares].append(measure(both[shares], batch, shares))
            micros = batch.split(MICRO, shares)
            row = {
                "work": work,
                "shares": shares,
                "seconds": round(seconds[shares][-1], 2),
                "tokens": batch.tokens,
                "computed": sum(micro.computed(shares) for micro in micros),
                "micro_batches": len(micros),
                "threads": torch.get_num_threads(),
            }
            print(json.dumps(row), flush=True)
    whole, shared = (statistics.median(seconds[shares]) for shares in (False, True))
    print(f"{work}: {whole:.2f} s whole, {shared:.2f} s shared, {whole / shared:.2f} times as fast")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]) if len(sys.argv) > 4 else 3)
