"""Log-probabilities of fixed sequences under the reference: computed once, kept on disk by what they depend on."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from accord.batch import TokenBatch
from accord.config import ReferenceConfig
from accord.data import TokenSequence
from accord.model.forward import Role
from accord.model.roles import Roles
from accord.model.scorer import Scorer
from accord.packing import micro_batches
from accord.training.console import Console
from accord.training.parallel import Ranks

FORMAT = "accord reference log-probabilities, 4"
"""Changes when the computation or the file does, so that older files are not found any more."""
STREAM = "logprobs_N"


@dataclass(frozen=True)
class Known:
    """What the reference said."""

    logprobs_N: Tensor
    """float32 [N], on the CPU"""
    origin: str
    """Whether it was computed or read, for the header."""


@contextmanager
def reference_role(roles: Roles, config: ReferenceConfig) -> Iterator[None]:
    """The role `reference`, for as long as it is needed and before the first step.

    Before the first step the policy is its own reference, so that full fine-tuning needs no second copy of the weights, whether
    its lower layers learn or not. What was loaded for the reference is let go at the end.
    """
    if config.source != "model" and roles.adapter_config is None:
        roles.roles["reference"] = replace(roles.roles["policy"], name="reference", trains=False)
    else:
        roles.add_reference(config)
    try:
        yield
    finally:
        del roles.roles["reference"]


def reference_logprobs(
    scorer: Scorer, sequences: Sequence[TokenSequence], ranks: Ranks, console: Console | None = None
) -> Known:
    """Log-probability (nats) of all target tokens of each sequence, under the role `reference`.

    The ranks share the work. The result is kept in `cache_folder()` under the hash of everything that it depends on, the order
    of the sequences and the micro-batches included: a row alone would do for the numbers, but not for their last bits, since a
    matrix product rounds by its shape. So a resumed run gets the very same numbers, whether the file is still there or not.

    Args:
        scorer: of the roles, with the role `reference`.
        sequences: what to score.
        ranks: processes that learn together; all must call this.
        console: shows how far it is.
    """
    started = time.perf_counter()
    path = cache_folder() / f"{_key(scorer, sequences)}.safetensors" if ranks.first else None
    found, fault = _read(path, len(sequences)) if path is not None else (None, None)
    # What the first rank found counts: another machine's folder may hold something else.
    shared: list[float] | None = ranks.gather(None if found is None else found.tolist())[0]
    if shared is not None:
        return Known(
            torch.tensor(shared, dtype=torch.float32), f"{len(sequences):,} log-probabilities cached in {path}"
        )
    logprobs_N = _compute(scorer, sequences, ranks, console)
    origin = f"{len(sequences):,} log-probabilities computed in {time.perf_counter() - started:.1f} s"
    if path is not None:
        origin += _write(path, logprobs_N)
    if fault is not None:
        origin += f" ({path} was damaged: {fault})"
    return Known(logprobs_N, origin)


def _compute(scorer: Scorer, sequences: Sequence[TokenSequence], ranks: Ranks, console: Console | None) -> Tensor:
    """Each rank runs its share of the micro-batches, which are the same whatever the number of ranks."""
    codes = [numpy.array(sequence.input_ids) for sequence in sequences]
    shares = scorer.roles.roles["reference"].shares
    own = ranks.share(micro_batches(codes, scorer.micro_batch_tokens, shares=shares))
    if console is not None:
        console.phase("reference", len(own))
    rows: list[int] = []
    values: list[float] = []
    for members in own:
        part = [sequences[i] for i in members]
        batch = TokenBatch.from_sequences([s.input_ids for s in part], [s.target_mask for s in part])
        rows += members
        values += scorer.sequence_logprobs("reference", batch).tolist()
        if console is not None:
            console.advance(1, batch.tokens)
    logprobs_N = torch.zeros(len(sequences))
    for other_rows, other_values in ranks.gather((rows, values)):
        logprobs_N[other_rows] = torch.tensor(other_values)
    return logprobs_N


# --- on disk -------------------------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """`$ACCORD_CACHE/reference`, or `~/.cache/accord/reference`. It may be deleted at any time."""
    root = os.environ.get("ACCORD_CACHE")
    return (Path(root) if root else Path("~/.cache/accord")).expanduser() / "reference"


def _read(path: Path, count: int) -> tuple[Tensor | None, str | None]:
    """The file's log-probabilities, or what is wrong with it; neither if there is no file."""
    try:
        if not path.is_file():
            return None, None
        with safe_open(path, "pt") as file:
            logprobs_N, wanted = file.get_tensor(STREAM), (file.metadata() or {}).get("content")
    except (OSError, SafetensorError) as error:
        return None, f"it cannot be read, {type(error).__name__}"
    if logprobs_N.shape != (count,) or logprobs_N.dtype != torch.float32 or wanted != _digest_of(logprobs_N):
        return None, "its content is not what was written"
    return logprobs_N, None


def _write(path: Path, logprobs_N: Tensor) -> str:
    """Keep the log-probabilities, written aside and renamed; says where. A folder that cannot be written costs a later run time,
    and this one nothing."""
    aside = path.with_name(f".{path.stem}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({STREAM: logprobs_N}, aside, metadata={"content": _digest_of(logprobs_N), "format": FORMAT})
        aside.replace(path)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            aside.unlink()
        return f", not kept: {error}"
    return f", kept in {path}"


# --- what the numbers depend on ------------------------------------------------------------------------------------------


def _key(scorer: Scorer, sequences: Sequence[TokenSequence]) -> str:
    digest = hashlib.blake2b(digest_size=20)
    shares = scorer.roles.roles["reference"].shares
    facts = [FORMAT, scorer.roles.device.type, scorer.micro_batch_tokens, scorer.temperature, len(sequences), shares]
    digest.update(json.dumps(facts).encode())
    _add_role(digest, scorer.roles, scorer.roles.roles["reference"])
    for sequence in sequences:
        digest.update(len(sequence).to_bytes(8, "little"))
        digest.update(torch.tensor(sequence.input_ids).numpy().tobytes())
        digest.update(bytes(sequence.target_mask))
    return digest.hexdigest()


def _add_role(digest: Any, roles: Roles, role: Role) -> None:
    """Weights, adapter and configuration of a role, under names that do not depend on what else is on the base."""
    adapters = roles.adapters
    names = adapters.names if role.shared else ()
    of_adapters = {id(weight) for name in names for weight in adapters.parameters(name).values()}
    state = role.trunk.state_dict(keep_vars=True)
    if role.output is not None:
        state |= {f"output.{key}": weight for key, weight in role.output.state_dict(keep_vars=True).items()}
    for key in sorted(key for key, weight in state.items() if id(weight) not in of_adapters):
        _add_tensor(digest, key.replace(".base_layer", ""), state[key])
    config = getattr(role.trunk, "config", None)
    if config is not None:
        told = {
            k: v for k, v in config.to_dict().items() if k not in ("_name_or_path", "transformers_version", "dtype")
        }
        _add_json(digest, told | {"attention": getattr(config, "_attn_implementation", None)})
    if role.prompt is not None:  # virtual tokens lie beside the trunk, on the shared base or on the role's own
        for key, tensor in sorted(role.prompt.encoder.state_dict(keep_vars=True).items()):
            _add_tensor(digest, f"prompt.{key}", tensor)
        _add_adapter_config(digest, role.prompt.config)
    elif role.shared and role.adapter is not None:
        for key, weight in sorted(adapters.parameters(role.adapter).items()):
            _add_tensor(digest, key.replace(f".{role.adapter}.", "."), weight)
        _add_adapter_config(digest, adapters.config(role.adapter))
        _add_json(
            digest, ["thin", adapters.thin]
        )  # `adapter.dtype`: the type that the adapter's products are computed in
    elif not role.shared:  # an adapter that stays on a model of its own
        layers = [(name, module) for name, module in role.trunk.named_modules() if isinstance(module, BaseTunerLayer)]
        if layers:
            scales = [[name, getattr(layer, "scaling", None)] for name, layer in layers]
            _add_json(digest, ["thin", adapters.thin, scales])


def _add_adapter_config(digest: Any, config: Any) -> None:
    told = config.to_dict().items()
    _add_json(digest, {k: v for k, v in told if k not in ("base_model_name_or_path", "inference_mode", "task_type")})


def _add_tensor(digest: Any, name: str, tensor: Any) -> None:
    if not isinstance(tensor, Tensor):
        _add_json(digest, [name, tensor])
        return
    _add_json(digest, [name, str(tensor.dtype), list(tensor.shape)])
    digest.update(_bytes_of(tensor))


def _add_json(digest: Any, content: Any) -> None:
    def plain(value: Any) -> Any:
        return sorted(map(str, value)) if isinstance(value, (set, frozenset)) else str(value)

    digest.update(json.dumps(content, sort_keys=True, default=plain).encode())


def _bytes_of(tensor: Tensor) -> Any:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _digest_of(tensor: Tensor) -> str:
    return hashlib.blake2b(_bytes_of(tensor), digest_size=20).hexdigest()
