"""The side of `speed.py` that is vLLM on a CPU, in an environment of its own. python -m contest_speed.with_vllm JOB.json"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from contest_speed.serve import Facts, serve


def prepare(job: Facts) -> Callable[[], Facts]:
    """All requests at once, sampled from the whole distribution."""
    from vllm import LLM, SamplingParams  # type: ignore[import-not-found]

    size = job["size"]
    lines = (Path(job["work"]) / "requests.jsonl").read_text().splitlines()
    prompts = [json.loads(line)["prompt"] for line in lines]
    engine: Any = LLM(model=job["model"], dtype=job["dtype"], enable_prefix_caching=False)
    sampling = SamplingParams(temperature=1.0, top_p=1.0, top_k=0, max_tokens=size["longest_response"])

    def unit() -> Facts:
        done = engine.generate(prompts, sampling, use_tqdm=False)
        return {"tokens": sum(len(one.outputs[0].token_ids) for one in done)}

    return unit


if __name__ == "__main__":
    serve(prepare)
