"""How fast the native engine samples, beside the limit of the machine and beside transformers.

    python benchmarks/rollouts.py MODEL steps ROWS [THREADS]       one decoding step at context 128: the model's own matrix
                                                                    products alone, transformers, the engine without an adapter,
                                                                    with LoRA r=16 beside its base, and folded in
    python benchmarks/rollouts.py MODEL whole PROMPTS [THREADS]     whole responses, which end at a newline, so of long-tailed
                                                                    lengths: the engine and `generate`, with 16 rows and with all
    python benchmarks/rollouts.py MODEL copy ROWS [THREADS]         a text that is copied: with and without n-gram look-up

MODEL: folder of a causal model, such as SmolLM2-135M; it runs in the type of `base_type.py`. PROMPTS: JSON lines with `prompt`,
or with MT-bench's `turns`. What is compared runs in turns in one process; medians over the turns go to results/rollouts.json
beside this file, from which results/rollouts.md is made. With --cpu times are CPU time of the process instead of the clock's:
for one thread, where other programs are running.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from base_type import DTYPE, NAME
from output_layer import read_contiguously
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from accord.config import LoraConfig, ModelConfig, ReferenceConfig
from accord.model.roles import Roles
from accord.rollout.lookup import Speculation
from accord.rollout.native import NativeEngine
from accord.rollout.protocol import Completion, Request, Sampling

HERE = Path(__file__).parent
CONTEXT, STEPS, TURNS, SAMPLES, LONGEST = 128, 12, 3, 8, 96
Timed = dict[str, list[float]]


def main(model: str, what: str, argument: str, threads: int, cpu: bool) -> None:
    """One measurement, added to the results."""
    torch.set_num_threads(threads)
    clock = time.process_time if cpu else time.perf_counter
    roles = Roles(ModelConfig(path=model, dtype=NAME), LoraConfig(r=16), torch.device("cpu"))
    roles.add_policy()
    roles.add_reference(ReferenceConfig())
    plain = read_contiguously(AutoModelForCausalLM.from_pretrained(model, dtype=DTYPE).eval())
    if what == "steps":
        found = steps(roles, plain, int(argument), clock)
    elif what == "whole":
        found = whole(roles, plain, read_prompts(Path(argument), roles.tokenizer), clock)
    else:
        found = copying(roles, int(argument), clock)
    key = f"{what} {argument if what != 'whole' else ''}".strip() + f", {threads} thread" + "s" * (threads > 1)
    key += " (CPU time)" * cpu
    for name, value in found.items():
        print(f"{key}: {name}: {value:.3g}")
    file = HERE / "results" / "rollouts.json"
    results = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    results[key] = {name: float(f"{value:.4g}") for name, value in found.items()}
    file.write_text(json.dumps(dict(sorted(results.items())), indent=1) + "\n", encoding="utf-8")
    (HERE / "results" / "rollouts.md").write_text(table(results), encoding="utf-8")


def steps(roles: Roles, plain: PreTrainedModel, rows: int, clock: Callable[[], float]) -> dict[str, float]:
    """Tokens a second of one decoding step, by what computes it."""
    generator = torch.Generator().manual_seed(0)
    length = CONTEXT - STEPS // 2
    prompts = torch.randint(5, 40_000, (max(1, rows // SAMPLES), length), generator=generator)
    requests = [Request(tuple(prompts[n % len(prompts)].tolist()), n) for n in range(rows)]
    engines = {
        "accord": NativeEngine(roles, rows, 2**14, role="reference"),
        "accord, LoRA": NativeEngine(roles, rows, 2**14, merge=False),
        "accord, LoRA folded in": NativeEngine(roles, rows, 2**14, merge=True),
    }
    seconds: Timed = {name: [] for name in ("matrix products", "transformers", *engines)}
    for _ in range(TURNS):
        seconds["matrix products"].append(products(plain, rows, clock))
        seconds["transformers"].append(step_of_transformers(plain, prompts, rows, clock))
        for name, engine in engines.items():
            seconds[name].append(step_of_engine(engine, requests, clock))
    return {name: rows / statistics.median(times) for name, times in seconds.items()}


def products(model: PreTrainedModel, rows: int, clock: Callable[[], float]) -> float:
    """Seconds of the model's own matrix products alone, for one new token in each row."""
    weights = [p for p in model.parameters() if p.ndim == 2]  # tied: the embedding stands for the output layer
    inputs = {weight.shape[1]: torch.randn(rows, weight.shape[1], dtype=DTYPE) for weight in weights}
    times = []
    with torch.inference_mode():
        for _ in range(6):
            started = clock()
            for weight in weights:
                functional.linear(inputs[weight.shape[1]], weight)
            times.append(clock() - started)
    return statistics.median(times[1:])


def step_of_transformers(model: PreTrainedModel, prompts: Tensor, rows: int, clock: Callable[[], float]) -> float:
    """Seconds of one decoding step of transformers, as `generate` does it but for its bookkeeping: forward and drawing."""
    cache = DynamicCache(config=model.config)
    times = []
    with torch.inference_mode():
        model(prompts, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache.batch_repeat_interleave(rows // len(prompts))
        tokens = torch.full((rows, 1), 7)
        for _ in range(STEPS):
            started = clock()
            logits = model(tokens, past_key_values=cache, use_cache=True).logits[:, -1].float()
            tokens = torch.multinomial(logits.softmax(-1), 1)
            times.append(clock() - started)
    return statistics.median(times[1:])


def step_of_engine(engine: NativeEngine, requests: list[Request], clock: Callable[[], float]) -> float:
    """Seconds of one decoding step of the engine, drawing and bookkeeping included."""
    marks: list[float] = []
    engine.generate(requests, Sampling(STEPS + 1), lambda done, tokens: marks.append(clock()))
    return statistics.median(after - before for before, after in pairwise(marks[1:]))


def whole(
    roles: Roles, plain: PreTrainedModel, prompts: list[tuple[int, ...]], clock: Callable[[], float]
) -> dict[str, float]:
    """Tokens a second of whole responses, prompts included, `SAMPLES` to each of 8 prompts: in 16 rows, and in as
    many as each can take, which the engine chooses itself."""
    rows, tokenizer = 16, roles.tokenizer
    prompts = sorted(prompts, key=len)[:8]
    stops = frozenset(token for token in range(len(tokenizer)) if "\n" in str(tokenizer.decode([token])))
    sampling = Sampling(LONGEST, stop_ids=stops)
    found: Timed = {}
    lengths: list[int] = []
    for turn in range(2):
        requests = [Request(prompt, 1000 * turn + n) for prompt in prompts for n in range(SAMPLES)]
        runs: dict[str, Callable[[], list[int]]] = {
            "accord, 16 rows": lambda requests=requests: of_engine(
                NativeEngine(roles, rows, role="reference"), requests, sampling
            ),
            "generate, batches of 16": lambda requests=requests: of_transformers(
                plain, tokenizer, requests, rows, stops
            ),
            "accord, rows by itself": lambda requests=requests: of_engine(
                NativeEngine(roles, None, role="reference"), requests, sampling
            ),
            "accord, rows by itself, LoRA folded in": lambda requests=requests: of_engine(
                NativeEngine(roles, None, merge=True), requests, sampling
            ),
            "generate, all at once": lambda requests=requests: of_transformers(
                plain, tokenizer, requests, len(requests), stops
            ),
        }
        for name, run in runs.items():
            started = clock()
            lengths = run()
            found.setdefault(name, []).append(sum(lengths) / (clock() - started))
    shape = {"mean length": statistics.mean(lengths), "longest": float(max(lengths))}
    return {name: statistics.median(rates) for name, rates in found.items()} | shape


def of_engine(engine: NativeEngine, requests: list[Request], sampling: Sampling) -> list[int]:
    """Lengths of the engine's responses."""
    return [len(completion.token_ids) for completion in engine.generate(requests, sampling)]


def of_transformers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: list[Request],
    rows: int,
    stops: frozenset[int],
) -> list[int]:
    """Lengths of `generate`'s responses in padded batches of so many rows, prompts of similar length together."""
    lengths = []
    for first in range(0, len(requests), rows):
        prompts = [list(request.prompt_ids) for request in requests[first : first + rows]]
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        generate: Any = model.generate
        out = generate(
            ids,
            attention_mask=mask,
            do_sample=True,
            top_k=0,
            max_new_tokens=LONGEST,
            eos_token_id=sorted(stops),
            pad_token_id=0,
        )[:, longest:]
        for row in out.tolist():
            ends = [place for place, token in enumerate(row) if token in stops]
            lengths.append(ends[0] + 1 if ends else len(row))
    return lengths


def copying(roles: Roles, rows: int, clock: Callable[[], float]) -> dict[str, float]:
    """Tokens a second, and the share of drafts that were right, where a text has to be copied."""
    line = "The {} ship left the harbour at {} in the morning with {} barrels of salt and a crew of {}, bound for the north.\n"
    requests = []
    for n in range(rows):
        text = "".join(line.format(word, n + 3, 5 * n + k, 7 + k) for k, word in enumerate(("red", "old", "last")))
        requests.append(Request(tuple(roles.tokenizer.encode(f"{text}\nAgain:\n{text}\nAgain:\n")), n))
    sampling = Sampling(96, temperature=0.0)
    rates: Timed = {}
    share = 0.0
    for _ in range(3):
        for name, speculation in (("one by one", None), ("look-up, n-gram 3, 4 tokens", Speculation(3, 4))):
            engine = NativeEngine(roles, rows, role="reference", speculation=speculation)
            started = clock()
            done: list[Completion] = engine.generate(requests, sampling)
            rates.setdefault(name, []).append(sum(len(one.token_ids) for one in done) / (clock() - started))
            drafted, right = engine.take_drafts() or (0, 0)
            share = right / max(drafted, 1)
    return {name: statistics.median(found) for name, found in rates.items()} | {
        "share of drafts that were right": share
    }


def read_prompts(file: Path, tokenizer: PreTrainedTokenizerBase) -> list[tuple[int, ...]]:
    """Token ids of the prompts in a file, with the beginning of an answer, whose paragraph a base model ends sooner or later."""
    found = []
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        found.append(tuple(tokenizer.encode((row["prompt"] if "prompt" in row else row["turns"][0]) + "\nAnswer: It")))
    return found


def table(results: dict[str, dict[str, float]]) -> str:
    """The results as Markdown; shares are of the matrix products at the same number of rows."""
    lines = [
        "Made by `benchmarks/rollouts.py`. Tokens a second; in brackets the share of the matrix products alone.",
        "",
    ]
    for key, found in results.items():
        lines += [f"**{key}**", "", "| what | tokens/s |", "|---|---|"]
        limit = found.get("matrix products")
        for name, value in found.items():
            lines.append(
                f"| {name} | {round(value) if value > 2 else value:,}"
                + (f" ({value / limit:.0%}) |" if limit else " |")
            )
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if word != "--cpu"]
    if len(words) not in (3, 4) or words[1] not in ("steps", "whole", "copy"):
        sys.exit(__doc__)
    main(words[0], words[1], words[2], int(words[3]) if len(words) > 3 else 1, "--cpu" in sys.argv)
