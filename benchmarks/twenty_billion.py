"""20 billion parameters in 24 GB: one whole PPO iteration of a GPT-NeoX-20B-shaped model on a CPU, in int8 and in NF4.

    python benchmarks/twenty_billion.py                        # slices, int8, nf4, and the largest model that fits in NF4
    python benchmarks/twenty_billion.py --only nf4             # one part
    python benchmarks/twenty_billion.py --hidden 512 --layers 2 --results /tmp/small     # a trial of a minute

The weights are random. By default each tensor is made from its name and a seed when the loader asks for it, so that no disk
is needed; `--checkpoint FOLDER` writes an ordinary sharded checkpoint first (41 GB in bfloat16) and reads that. Either goes
through Accord's own loader. Policy, reference, critic and reward model are one base with three LoRA adapters; the iteration
is rollout, reward, log-probabilities of policy and reference, values, and one update of policy and critic with activation
checkpointing. Each part runs in a process of its own, whose peak memory is the kernel's (`VmHWM`, set back at each phase).

A part that has been recorded with the same settings is not run again (`--again` runs it); phases are recorded as they end,
so a part that is stopped leaves what it measured. Writes results/twenty_billion.json and results/twenty_billion.md.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

from base_type import NAME

HERE = Path(__file__).parent
LIMITS = {"int8": 24e9, "nf4": 14e9}
"""Bytes that the whole process may take, at the full size."""
BITS = {"int8": 8, "nf4": 4 + 8 / 64 + 32 / (64 * 256)}
"""A weight with its share of the scales."""
RUNTIME = 0.6e9
"""Python, torch and the libraries, tiles, activations and the cache of short sequences; bytes."""
PROMPTS = ("a film about the sea", "the cast was", "it was slow and odd", "the end of the film was")
FORECAST = {
    "load_base": "load", "load_adapters": "load", "rollout": "rollout", "reward": "score", "policy_logprobs": "score",
    "reference": "score", "critic": "score", "update": "update",
}  # fmt: skip
"""Phase here -> phase of `accord forecast`."""
PARTS = ("slice_int8", "slice_nf4", "int8", "nf4", "largest_nf4")


def main() -> None:
    """Run the parts that are asked for, each in a process of its own, and write the results."""
    args = read_arguments()
    if args.part is not None:
        run_part(args)
        return
    for part in args.only or PARTS:
        settings = settings_of(args, part)
        record = read(args.results).get(part, {})
        if record.get("settings") == settings and record.get("done") and not args.again:
            print(f"{part}: recorded already (--again runs it once more)", flush=True)
            continue
        print(f"{part}: {settings}", flush=True)
        # As the `accord` command sets it: threads that spin while they wait make a busy machine 10 to 40 times slower.
        calm = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "10000", **os.environ}
        done = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--part", part], check=False, env=calm)
        if done.returncode:
            print(f"{part}: stopped with status {done.returncode}; what it measured is kept", flush=True)
    write_table(args.results)


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=PARTS)
    parser.add_argument("--layers", type=int, default=44)
    parser.add_argument("--hidden", type=int, default=6144)
    parser.add_argument("--heads", type=int, default=64)
    parser.add_argument("--vocabulary", type=int, default=50432)
    parser.add_argument("--slice-layers", type=int, default=2)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=4)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--headroom", type=float, default=0.7, help="GB of free memory that the largest model leaves")
    parser.add_argument(
        "--checkpoint", type=Path, help="write the weights here first, as sharded safetensors, and read them"
    )
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    return parser.parse_args()


# --- sizes -----------------------------------------------------------------------------------------------------------


def settings_of(args: argparse.Namespace, part: str) -> dict[str, Any]:
    """What a part's record depends on."""
    layers = args.slice_layers if part.startswith("slice") else args.layers
    keys = ("hidden", "heads", "vocabulary", "rank", "new_tokens", "threads", "seed")
    settings = {key: getattr(args, key) for key in keys} | {
        "layers": "largest" if part.startswith("largest") else layers
    }
    return settings | {"weights": "checkpoint" if args.checkpoint else "generated"}


def expected_bytes(args: argparse.Namespace, layers: int, kind: str) -> float:
    """What a run will take: codes, embeddings and output layer in bfloat16, three adapters, gradients and Adam's state of two."""
    codes = 12 * args.hidden**2 * layers * BITS[kind] / 8
    ends = 2 * args.vocabulary * args.hidden * 2
    adapter = 16 * args.rank * args.hidden * layers * 4  # in + out of the four matrices: 16 times the width
    return codes + ends + (3 + 2 + 4) * adapter + RUNTIME


def free_bytes() -> float:
    """What the machine has to give."""
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024.0 for line in lines if line.startswith("MemAvailable"))


def largest(args: argparse.Namespace, kind: str) -> int:
    """Layers of the largest model of this width that fits into what is free now."""
    budget, one = free_bytes() - args.headroom * 1e9, expected_bytes(args, 1, kind)
    return int((budget - one) / (expected_bytes(args, 2, kind) - one)) + 1


# --- records ---------------------------------------------------------------------------------------------------------


def read(folder: Path) -> dict[str, Any]:
    """All records."""
    file = folder / "twenty_billion.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


class Record:
    """Of one part, written whenever something is added."""

    def __init__(self, folder: Path, part: str, settings: dict[str, Any]) -> None:
        import torch

        from accord.model.device import PeakMemory

        self.folder, self.part = folder, part
        self.content: dict[str, Any] = {"settings": settings, "phases": {}, "done": False}
        self.memory = PeakMemory(torch.device("cpu"))
        self.started = time.perf_counter()

    def phase(self, name: str) -> None:
        """The phase that ends now."""
        from accord.model.device import return_freed_memory

        now = time.perf_counter()
        peak, seconds = self.memory.lap(name) * 2**30 / 1e9, now - self.started
        self.content["phases"][name] = {"peak_gb": round(peak, 3), "seconds": round(seconds, 2)}
        print(f"  {name:<22} {peak:6.2f} GB {seconds:8.1f} s", flush=True)
        self.add()
        return_freed_memory()
        self.started = time.perf_counter()

    def add(self, **facts: Any) -> None:
        """Further facts."""
        self.content |= facts
        records = read(self.folder) | {self.part: self.content}
        self.folder.mkdir(parents=True, exist_ok=True)
        aside = self.folder / ".twenty_billion.partial"
        aside.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
        aside.replace(self.folder / "twenty_billion.json")


def write_table(folder: Path) -> None:
    """The records as a page."""
    records = read(folder)
    lines = ["# 20 billion parameters in 24 GB", "", "Written by `python benchmarks/twenty_billion.py`.", ""]
    lines += [
        "| part | layers | parameters | phase | peak, GB | forecast, GB | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for part, record in records.items():
        if part.startswith("slice"):
            continue
        for name, phase in record["phases"].items():
            size = f"{record.get('parameters', 0) / 1e9:.2f}B"
            told = record.get("forecast_gb", {}).get(FORECAST.get(name, ""))
            beside = "" if told is None else f"{told:.2f}"
            lines.append(
                f"| {part} | {record.get('layers')} | {size} | {name} | {phase['peak_gb']:.2f} | {beside} | "
                f"{phase['seconds']:.1f} |"
            )
        told = max(record.get("forecast_gb", {}).values(), default=float("nan"))
        lines.append(
            f"| {part} | | | **whole** | **{record.get('peak_gb', float('nan')):.2f}** | **{told:.2f}** | "
            f"{record.get('seconds')} (expected {record.get('expected_seconds')}) |"
        )
    lines += ["", "| check | value | bound | holds |", "|---|---|---|---|"]
    for part, record in records.items():
        for name, check in record.get("checks", {}).items():
            lines.append(
                f"| {part}: {name} | {check['value']:.6g} | {check['bound']} | {'yes' if check['holds'] else 'NO'} |"
            )
    (folder / "twenty_billion.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def check(value: float, bound: str, holds: bool) -> dict[str, Any]:
    """One entry of `checks`."""
    return {"value": float(value), "bound": bound, "holds": bool(holds)}


# --- the model -------------------------------------------------------------------------------------------------------


def write_base(args: argparse.Namespace, layers: int, folder: Path) -> Path:
    """Config and tokenizer of the model; no weights."""
    import torch
    from transformers import GPTNeoXConfig

    from accord.model.tiny import train_tokenizer

    tokenizer = train_tokenizer(PROMPTS, 300)
    config = GPTNeoXConfig(
        hidden_size=args.hidden, intermediate_size=4 * args.hidden, num_hidden_layers=layers,
        num_attention_heads=args.heads, vocab_size=args.vocabulary, max_position_embeddings=2048,
        tie_word_embeddings=False, dtype=torch.bfloat16, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    config.architectures = ["GPTNeoXForCausalLM"]
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class Generated:
    """A tensor that is made when it is asked for, from its name and a seed."""

    def __init__(self, name: str, shape: Any, seed: int) -> None:
        self.name, self.shape, self.seed = name, tuple(shape), seed

    def __getitem__(self, index: Any) -> Any:
        import torch

        generator = torch.Generator().manual_seed(zlib.crc32(self.name.encode()) + self.seed)
        tensor = torch.empty(self.shape, dtype=torch.bfloat16).normal_(0.0, 0.02, generator=generator)
        return tensor.add_(1.0) if "norm" in self.name and self.name.endswith("weight") else tensor


def generated(folder: Path, seed: int) -> dict[str, Generated]:
    """All tensors of the model whose config is in a folder."""
    from accord.model.loading import make_skeleton, read_config

    skeleton = make_skeleton(str(folder), read_config(str(folder)))
    return {name: Generated(name, tensor.shape, seed) for name, tensor in skeleton.state_dict().items()}


def write_checkpoint(folder: Path, tensors: dict[str, Generated]) -> None:
    """An ordinary sharded checkpoint, one file for each layer, each written from one layer in memory; what is there stays."""
    from safetensors.torch import save_file

    groups: dict[str, list[str]] = {}
    for name in tensors:
        layer = name.split("layers.")[1].split(".")[0].zfill(3) if "layers." in name else "ends"
        groups.setdefault(f"model-{layer}.safetensors", []).append(name)
    for file, names in groups.items():
        if not (folder / file).is_file():
            save_file({name: tensors[name][...] for name in names}, folder / f".{file}", metadata={"format": "pt"})
            (folder / f".{file}").replace(folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, names in groups.items() for name in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def write_reward_adapter(folder: Path, base: Path, rank: int, seed: int) -> Path:
    """A reward model on the base: random factors and a random score head, as `accord reward` would save them."""
    import peft
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(base)
    settings = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    with torch.device("meta"):
        model = peft.get_peft_model(AutoModelForCausalLM.from_config(config), settings, low_cpu_mem_usage=True)
    names = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(tensor.shape, generator=generator) * 0.01 for name, tensor in names.items()}
    tensors["base_model.model.score.weight"] = torch.randn(1, config.hidden_size, generator=generator) * 0.01
    saved = model.peft_config["default"]
    saved.task_type, saved.modules_to_save, saved.base_model_name_or_path = "SEQ_CLS", ["score"], str(base.resolve())
    saved.inference_mode = True
    folder.mkdir(parents=True, exist_ok=True)
    saved.save_pretrained(str(folder))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


# --- one part --------------------------------------------------------------------------------------------------------


def run_part(args: argparse.Namespace) -> None:
    """A part in this process."""
    import tempfile

    import torch

    logging.getLogger("transformers").setLevel(logging.ERROR)
    torch.set_num_threads(args.threads)
    kind = args.part.split("_")[-1]
    record = Record(args.results, args.part, settings_of(args, args.part))
    layers = record.content["settings"]["layers"]
    layers = largest(args, kind) if layers == "largest" else layers
    with tempfile.TemporaryDirectory() as scratch:
        shape = f"{layers}-{args.hidden}-{args.heads}-{args.vocabulary}-{args.seed}"
        folder = args.checkpoint / shape if args.checkpoint else Path(scratch) / "base"
        base = write_base(args, layers, folder)
        tensors: Any = generated(base, args.seed)
        if args.checkpoint:
            write_checkpoint(base, tensors)
            tensors = None
        record.add(layers=layers, quantize=kind, machine=machine())
        record.phase("prepare")
        if args.part.startswith("slice"):
            check_slice(args, record, base, tensors, kind)
        else:
            iterate(args, record, base, tensors, kind, Path(scratch))
    record.add(done=True)


def machine() -> dict[str, Any]:
    """Where it ran."""
    from accord.training.run import environment

    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    return {**environment(), "memory_gb": round(int(lines[0].split()[1]) * 1024 / 1e9, 2)}


def recipe_of(args: argparse.Namespace, base: Path, kind: str, reward: Path | None) -> Any:
    """The recipe of the iteration."""
    from accord.config import PPORecipe, build

    return build(
        PPORecipe,
        {
            # What is not quantised is bfloat16 on every machine; the slice beside it may be of a type that is faster here.
            "model": {"path": str(base), "quantize": kind, "dtype": NAME if kind == "none" else "bfloat16"},
            "adapter": {"r": args.rank, "alpha": 2 * args.rank},
            "data": {"path": "(prompts)", "max_tokens": 256},
            "reward": [] if reward is None else [{"model": str(reward)}],
            "rollout": {"max_new_tokens": args.new_tokens},
            # A value head that starts at 0 gives the critic's adapter no gradient in the first step.
            "critic": {"start": "zero" if reward is None else "reward"},
            "algorithm": {"type": "ppo", "epochs": 1, "minibatches": 1},
            "train": {
                "batch_size": len(PROMPTS), "learning_rate": 1e-4, "warmup": 0, "schedule": "constant",
                "activation_checkpointing": True,
            },
            "output": "(none)",
            "seed": args.seed,
        },
    )  # fmt: skip


def forecast_seconds(args: argparse.Namespace, layers: int, kind: str, tokens: int) -> float:
    """Seconds of the part, from one small matrix: making and quantising it, and its products at the shapes of the run."""
    import torch

    from accord.model.quantized import LAYERS

    side = min(args.hidden, 2048)
    layer = LAYERS[kind](side, side, bias=False)
    share = 12 * args.hidden**2 * layers / side**2

    def seconds(work: Any) -> float:
        work()
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    load = seconds(lambda: layer.set_weight(Generated("x", (side, side), 0)[...]))
    x = torch.randn(tokens, side, dtype=torch.bfloat16, requires_grad=True)
    forward = seconds(lambda: layer(x))
    both = seconds(lambda: layer(x).sum().backward())
    forwards = 1 + args.new_tokens + 4 + 2  # rollout; policy, reference, critic, reward; recomputation is in `both`
    return share * (load + forwards * forward + 2 * both)


def forecast_gb(recipe: Any, base: Path) -> dict[str, float]:
    """What `accord forecast` says of each phase, in GB."""
    from transformers import AutoTokenizer

    from accord.forecast.devices import parse_device
    from accord.forecast.memory import forecast

    tokenizer = AutoTokenizer.from_pretrained(base)
    told = forecast(recipe, parse_device("cpu"), max(len(tokenizer(text)["input_ids"]) for text in PROMPTS))
    return {phase: round(told.total(phase) / 1e9, 3) for phase in told.phases}


def iterate(args: argparse.Namespace, record: Record, base: Path, tensors: Any, kind: str, scratch: Path) -> None:
    """One PPO iteration, phase by phase."""
    import torch

    from accord.data import EncodedPrompt, Encoder, stop_ids
    from accord.model.roles import Roles
    from accord.model.scorer import Scorer
    from accord.recipes.ppo import make_algorithm
    from accord.recipes.rewards import mixed
    from accord.recipes.rollouts import add_roles, make_sampling
    from accord.rollout.collect import Collector
    from accord.rollout.native import NativeEngine
    from accord.training.learner import Learner
    from accord.training.loop import learn, seed_everything

    started, cpu = time.perf_counter(), torch.device("cpu")
    recipe = recipe_of(args, base, kind, write_reward_adapter(scratch / "reward", base, args.rank, args.seed))
    layers = record.content["layers"]
    needed, free = expected_bytes(args, layers, kind), free_bytes()
    if needed > free:
        raise SystemExit(
            f"{args.part} needs about {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free; end other work first"
        )
    seconds = forecast_seconds(args, layers, kind, tokens=64)
    record.add(
        expected_gb=round(needed / 1e9, 2), expected_seconds=round(seconds), forecast_gb=forecast_gb(recipe, base)
    )
    print(f"  about {needed / 1e9:.1f} GB and {seconds / 60:.0f} minutes are expected", flush=True)
    record.phase("reward_adapter")

    seed_everything(args.seed)
    roles = Roles(recipe.model, recipe.adapter, cpu, tensors=tensors)
    record.add(parameters=roles.model.num_parameters(), codes_gb=round(roles.model.get_memory_footprint() / 1e9, 3))
    record.phase("load_base")
    add_roles(recipe, roles)

    class PhasedScorer(Scorer):
        """Notes the phase of each role."""

        def score(self, batch: Any, wanted: Any) -> dict[str, Any]:
            streams: dict[str, Any] = {}
            for name in ("old_logprobs_T", "ref_logprobs_T", "values_T"):
                if name in set(wanted):
                    streams |= super().score(batch, [name])
                    record.phase({"old": "policy_logprobs", "ref": "reference"}.get(name[:3], "critic"))
            return streams

    scorer = PhasedScorer(roles, recipe.train.micro_batch_tokens, recipe.rollout.temperature)
    rewards = mixed(recipe.reward, {}, scorer, cpu)
    learner = Learner(roles, make_algorithm(recipe), recipe.train, 1)
    record.phase("load_adapters")

    encoder = Encoder(roles.tokenizer, stop_ids(roles.tokenizer, roles.model.generation_config))
    prompts = [EncodedPrompt(encoder.encode_prompt(text), text) for text in PROMPTS]
    engine = NativeEngine(roles, len(prompts))
    sampling = make_sampling(recipe, encoder.stop_ids)
    rollouts = Collector(engine, None, roles.tokenizer, sampling, 1, args.seed).collect(prompts, 0).rollouts
    record.phase("rollout")
    rollouts = rewards.score(rollouts)
    record.phase("reward")
    before = {name: w.detach().clone() for name, w in learner.weights.items() if "lora_B" in name}
    _, metrics = learn(rollouts, learner.algorithm, learner, scorer, args.seed, 0)
    record.phase("update")

    finite = all(torch.isfinite(torch.tensor(value)) for value in metrics.values())
    moved = {
        role: max(
            float((w.detach() - before[name]).abs().max())
            for name, w in learner.weights.items()
            if name.startswith(f"{role}.") and "lora_B" in name
        )
        for role in ("policy", "critic")
    }
    peak = record.memory.highest * 2**30
    limit = LIMITS[kind] if args.part in LIMITS else record.content["machine"]["memory_gb"] * 1e9
    drift = metrics["sampling/logprob_difference_max"]
    record.add(
        metrics=metrics,
        tokens={"prompt": sum(len(p.ids) for p in prompts), "response": sum(len(r.response_ids) for r in rollouts)},
        peak_gb=round(peak / 1e9, 3),
        seconds=round(time.perf_counter() - started),
        checks={
            "all metrics are finite": check(metrics["ppo/loss/total"], "finite", finite),
            "KL to the reference at the start, nats": check(
                metrics["objective/kl"], "< 1e-6", abs(metrics["objective/kl"]) < 1e-6
            ),
            "sampler and learner agree, nats": check(drift, "< 0.1", drift < 0.1),
            **{f"{role} moved: greatest change of LoRA B": check(far, "> 0", far > 0) for role, far in moved.items()},
            "peak of the process, GB": check(peak / 1e9, f"< {limit / 1e9:.2f}", peak < limit),
        },
    )


# --- gradients at full width -----------------------------------------------------------------------------------------


def check_slice(args: argparse.Namespace, record: Record, base: Path, tensors: Any, kind: str) -> None:
    """LoRA gradients of a few layers at full width, after a rollout: against the same layers unquantised, and against ordinary
    layers that hold the dequantised weights."""
    import torch
    from torch import nn

    from accord.model.quantized import LAYERS

    quantised = slice_roles(args, base, tensors, kind)
    before = gradients(quantised)
    record.phase("quantised")
    plain = slice_roles(args, base, tensors, "none")
    whole = gradients(plain)
    record.phase("unquantised")
    ordinary = dict(plain.model.named_modules())
    with torch.no_grad():
        for name, layer in quantised.model.named_modules():
            if isinstance(layer, tuple(LAYERS.values())):
                target: Any = ordinary[name]
                for rows, tile in layer.tiles(torch.float32):  # type: ignore[operator]
                    scale = layer.scale
                    target.weight[rows] = tile if scale is None else tile * scale[rows, None]  # type: ignore[index]
    assert any(isinstance(module, nn.Linear) for module in ordinary.values())
    exact = gradients(plain)
    record.phase("dequantised")
    same, near = compare(before, exact), compare(before, whole)
    bounds = {"int8": (0.03, 0.05), "nf4": (0.03, 0.35)}[kind]
    record.add(
        checks={
            "LoRA gradient, relative distance to that of the dequantised weights": check(
                same[0], f"< {bounds[0]}", same[0] < bounds[0]
            ),
            "LoRA gradient, relative distance to that of the unquantised weights": check(
                near[0], f"< {bounds[1]}", near[0] < bounds[1]
            ),
            "LoRA gradient, least cosine of a matrix to the unquantised": check(
                near[1], f"> {1 - bounds[1]}", near[1] > 1 - bounds[1]
            ),
        }
    )


def slice_roles(args: argparse.Namespace, base: Path, tensors: Any, kind: str) -> Any:
    """A policy whose adapter has left its start, the same for every precision."""
    import torch

    from accord.model.roles import Roles
    from accord.training.loop import seed_everything

    recipe = recipe_of(args, base, kind, None)
    seed_everything(args.seed)
    roles = Roles(recipe.model, recipe.adapter, torch.device("cpu"), tensors=tensors)
    roles.add_policy()
    for name, weight in roles.trainable("policy").items():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        weight.data.copy_(torch.randn(weight.shape, generator=generator) * 0.02)
    return roles


def gradients(roles: Any) -> dict[str, Any]:
    """Of the sum of all log-probabilities of a fixed batch, after a rollout of two tokens."""
    import torch

    from accord.batch import TokenBatch
    from accord.model.checkpointing import ActivationCheckpointing
    from accord.model.forward import forward
    from accord.rollout.native import NativeEngine
    from accord.rollout.protocol import Request, Sampling

    NativeEngine(roles, 2).generate([Request((5, 6, 7), 0), Request((8,), 1)], Sampling(max_new_tokens=2))
    generator = torch.Generator().manual_seed(1)
    ids = [torch.randint(3, 200, (length,), generator=generator).tolist() for length in (24, 9, 31)]
    batch = TokenBatch.from_sequences(ids, [[t > 0 for t in range(len(row))] for row in ids])
    weights = roles.trainable("policy")
    for weight in weights.values():
        weight.grad = None
    with roles.use("policy", train=True) as role, ActivationCheckpointing(role.trunk).on():
        forward(role, batch).logprobs_T.sum().backward()
    return {name: weight.grad.clone() for name, weight in weights.items()}


def compare(ours: dict[str, Any], theirs: dict[str, Any]) -> tuple[float, float]:
    """Distance of all gradients as a share of their length, and the least cosine of one matrix."""
    import torch

    a, b = (torch.cat([part[name].flatten() for name in ours]) for part in (ours, theirs))
    cosines = [
        float(torch.nn.functional.cosine_similarity(ours[name].flatten(), theirs[name].flatten(), dim=0))
        for name in ours
    ]
    return float((a - b).norm() / b.norm()), min(cosines)


if __name__ == "__main__":
    main()
