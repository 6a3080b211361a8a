"""From a path to a model and its tokenizer."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from accord.config import ModelConfig
from accord.errors import ModelError
from accord.model.attention import choose_attention
from accord.model.hub import fetch_adapter
from accord.model.reading import Reading, choose_reading, refuse_head, refuse_transform, way_of
from accord.model.tensors import LazyTensor, load_streaming, open_tensors
from accord.ops.products import fast_type

ADAPTER_CONFIG = "adapter_config.json"
GGUF = ".gguf"


@dataclass(frozen=True)
class Location:
    """What a model path points to."""

    base: str
    """Folder or hub name of the weights, or the path of a GGUF file, which may lie in a hub repository too."""
    adapter: Path | None = None
    """Folder of a PEFT adapter on that base, if the path named one; of one from the hub, the folder in the hub's cache."""


def locate(path: str) -> Location:
    """Find out whether a path, or a name on the hub, is a model or an adapter. An adapter is fetched from there.

    Raises:
        ModelError: a path that is none of them; names the nearest folder that exists. Or see `fetch_adapter`.
    """
    folder = Path(path).expanduser()
    if path.endswith(GGUF):
        return _locate_gguf(path, folder)
    if (folder / ADAPTER_CONFIG).is_file():
        return _on_its_base(folder)
    if (folder / "config.json").is_file():
        return Location(str(folder))
    if folder.is_dir():
        inside = sorted(folder.glob("*"))
        hint = next((str(sub) for sub in inside if (sub / "config.json").is_file() or sub.suffix == GGUF), None)
        also = f"; did you mean {hint}?" if hint else ""
        raise ModelError(f"{folder} holds no model: there is no config.json or {ADAPTER_CONFIG} in it{also}")
    if folder.is_absolute() or path.startswith((".", "~")) or path.count("/") != 1 or folder.parent.is_dir():
        raise ModelError(f"no model at {path}{_nearest(folder)}")
    fetched = fetch_adapter(path)
    return Location(path) if fetched is None else _on_its_base(fetched)


def _on_its_base(adapter: Path) -> Location:
    base = read_adapter_config(adapter).get("base_model_name_or_path")
    if not base or not isinstance(base, str):
        raise ModelError(f"{adapter / ADAPTER_CONFIG} does not name its base model (base_model_name_or_path)")
    beside = adapter / base
    here = Path(base).expanduser()
    if here.exists() or beside.exists():
        return Location(base if Path(base).exists() else str(here if here.exists() else beside), adapter)
    if not base.endswith(GGUF) and (here.is_absolute() or base.startswith((".", "~")) or base.count("/") > 1):
        raise ModelError(
            f"the base of the adapter {adapter} is gone: there is no {base}, which {ADAPTER_CONFIG} names as "
            f"base_model_name_or_path{_nearest(here)}. Put it back, or write there where it is now"
        )
    return Location(base, adapter)


def read_adapter_config(adapter: Path) -> dict[str, Any]:
    """What peft wrote about a saved adapter.

    Raises:
        ModelError: the file is damaged, or does not say of which kind the adapter is.
    """
    file = adapter / ADAPTER_CONFIG
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read ({error}): save or fetch the adapter again") from error
    if not isinstance(config, dict) or not isinstance(config.get("peft_type"), str):
        raise ModelError(
            f"{file} does not say which kind of adapter this is (peft_type): save or fetch the adapter again"
        )
    return config


def _locate_gguf(path: str, file: Path) -> Location:
    if not file.is_file():
        on_hub = not file.is_absolute() and not path.startswith((".", "~")) and path.count("/") == 2
        if not on_hub or file.parent.parent.is_dir():
            raise ModelError(f"no GGUF file at {path}{_nearest(file)}")
    if find_spec("gguf") is None:
        raise ModelError(f"{path} is a GGUF file, and reading it needs the package gguf: pip install 'accord[gguf]'")
    return Location(str(file) if file.is_file() else path)


def source_of(base: str) -> tuple[str, dict[str, str]]:
    """What transformers' `from_pretrained` takes for a base: a folder or hub name, and the GGUF file in it if it is one."""
    if not base.endswith(GGUF):
        return base, {}
    folder, _, name = base.rpartition("/")
    return folder or ".", {"gguf_file": name}


def _nearest(folder: Path) -> str:
    parent = next(p for p in (folder.parent, *folder.parent.parents) if p.is_dir())
    wanted = folder.relative_to(parent).parts[0] if parent != Path() else folder.parts[0]
    names = [p.name for p in parent.iterdir() if p.is_dir() or p.suffix == GGUF]
    near = difflib.get_close_matches(wanted, names, n=1)
    return f"; did you mean {parent / near[0]}?" if near else f": {parent.resolve()} has no {wanted!r}"


def load_tokenizer(config: ModelConfig, location: Location) -> PreTrainedTokenizerBase:
    """The tokenizer saved with the adapter if there is one, else the base's; always with a pad token.

    Raises:
        ModelError: none can be loaded, or it has no EOS token (nothing could ever end).
    """
    own = location.adapter is not None and (location.adapter / "tokenizer_config.json").is_file()
    source, file = (str(location.adapter), {}) if own else source_of(location.base)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=config.trust_remote_code, **file)
    except Exception as error:  # of a damaged file the tokenizers library raises a bare Exception
        raise ModelError(f"no tokenizer could be loaded from {source}: {first_line(error)}") from error
    if tokenizer.eos_token_id is None:
        raise ModelError(f"the tokenizer of {source} has no EOS token, so no response could end; set eos_token in it")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def weight_type(
    config: ModelConfig, location: Location, trained: bool, device: torch.device | None = None
) -> torch.dtype:
    """The type to load weights in: as asked; for `auto`, float32 if they are trained, else the checkpoint's own, or one that is
    fast on `device` (`None`: they are only read)."""
    if config.dtype != "auto":
        return getattr(torch, config.dtype)
    if trained:
        return torch.float32
    own = read_config(location.base, config.trust_remote_code).dtype or torch.float32
    return own if device is None else fast_type(own, device)


def read_config(base: str, trust_remote_code: bool = False) -> Any:
    """The transformers config of a model.

    Raises:
        ModelError: it cannot be read.
    """
    source, file = source_of(base)
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code, **file)
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read the model {base}: {first_line(error)}") from error


def is_scorer(location: Location, trust_remote_code: bool = False) -> bool:
    """Whether a location is a reward model: a sequence classifier, or an adapter that is one."""
    if location.adapter is not None:
        return bool(read_adapter_config(location.adapter).get("task_type") == "SEQ_CLS")
    architectures = read_config(location.base, trust_remote_code).architectures or []
    return any("SequenceClassification" in name for name in architectures)


def load_weights(
    base: str,
    dtype: torch.dtype,
    device: torch.device,
    *,
    scorer: bool = False,
    headless: bool = False,
    trust_remote_code: bool = False,
    quantize: str = "none",
    tensors: Mapping[str, LazyTensor] | None = None,
) -> PreTrainedModel:
    """Load a language model, or a sequence classifier with one label, for the way it reads (see `accord.model.reading`).

    Args:
        base: folder or hub name.
        dtype: type of the weights in memory; of a quantised model, of what is not quantised, and the one it computes in.
        device: where they go.
        scorer: load as `AutoModelForSequenceClassification`.
        headless: the scorer's head is not in the checkpoint, since an adapter brings it.
        trust_remote_code: see `ModelConfig`.
        quantize: `none`, `int8` or `nf4`: tensors are read, quantised and placed one at a time.
        tensors: the weights by name, in place of those in the folder; each is asked for once.

    Raises:
        ModelError: it cannot be loaded, lacks weights, its family cannot do what is asked, or a scorer has more than one label.
    """
    config = read_config(base, trust_remote_code)
    if headless:
        config.num_labels = 1
    if scorer and config.num_labels != 1:
        raise ModelError(f"{base} has {config.num_labels} labels; a reward model has one (num_labels = 1)")
    skeleton = make_skeleton(base, config, scorer, trust_remote_code)
    reading = choose_reading(base, skeleton)
    if quantize != "none":
        check_quantizable(base, skeleton)
    source, file = source_of(base)
    own: dict[str, Any] = {"dtype": dtype, "attn_implementation": _attention(reading, device, dtype)}
    try:
        with quiet_progress():
            loaded: Any
            if quantize == "none" and tensors is None:
                loaded = _automatic(config, scorer).from_pretrained(
                    source,
                    use_safetensors=True,
                    trust_remote_code=trust_remote_code,
                    output_loading_info=True,
                    **own,
                    **({"num_labels": 1} if headless else {}),
                    **file,
                    **({"quantization_config": GgufConfig(dequantize=True)} if file else {}),
                )
            else:
                loaded = load_streaming(base, skeleton, config, device, tensors or open_tensors(base), quantize, own)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"the model {base} cannot be loaded: {first_line(error)}") from error
    model, report = loaded
    missing = set(report["missing_keys"]) - ({"score.weight"} if headless else set())
    if missing:
        raise ModelError(
            f"{base} does not hold all weights of a {type(model).__name__}: {len(missing)} are missing, such as "
            f"{min(missing)}, and random ones would take their place"
        )
    _keep_gradients(model)
    model.to(device)  # type: ignore[arg-type]
    return model


def _keep_gradients(model: PreTrainedModel) -> None:
    """Let 4-bit layers that a checkpoint brings along keep their weights as they are: see `accord.model.quantized.NF4Linear`."""
    module: Any
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


@contextmanager
def quiet_progress() -> Iterator[None]:
    """Without transformers' progress bars, which would break the run's own display."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def read_family(base: str, config: Any, scorer: bool = False, trust_remote_code: bool = False) -> Reading:
    """How a model will be read, and whether its family can do what is asked; before any weight is loaded.

    Raises:
        ModelError: it cannot, with the reason.
    """
    return choose_reading(base, make_skeleton(base, config, scorer, trust_remote_code))


def make_skeleton(base: str, config: Any, scorer: bool = False, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model without weights, if its family can do what is asked.

    Raises:
        ModelError: it cannot, with the reason.
    """
    refuse_transform(base, config.get_text_config())
    if scorer:
        refuse_scorer(base, config)
    try:
        with torch.device("meta"):
            skeleton: PreTrainedModel = _automatic(config, scorer).from_config(
                config, trust_remote_code=trust_remote_code
            )
    except ValueError as error:
        raise ModelError(f"{base} is no model of a kind that is needed here: {first_line(error)}") from error
    if not scorer:
        refuse_head(base, skeleton)
    return skeleton


def check_quantizable(base: str, skeleton: PreTrainedModel) -> None:
    """Refuse to quantise what would not be what was asked for; `skeleton` may hold no weights.

    Raises:
        ModelError: with the reason and another way.
    """
    reason = None
    if getattr(skeleton.config, "quantization_config", None) is not None:
        reason = "its checkpoint is quantised already"
    elif skeleton._is_stateful:
        reason = "its state-space layers read their weights past the layer, so they would read codes"
    elif any(parameter.ndim > 2 and ".experts." in f".{name}" for name, parameter in skeleton.named_parameters()):
        reason = "its experts are no linear layers in transformers 5, so most of it would stay as it is"
    if reason is not None:
        raise ModelError(f"model.quantize: {base} cannot be quantised: {reason}; use model.quantize: none")


def refuse_scorer(base: str, config: Any) -> None:
    """Refuse families that transformers has no sequence classifier for with a `score` layer at the last token.

    Raises:
        ModelError: with the reason and another way.
    """
    instead = "train the reward model on another base, or use a reward function"
    if config.is_encoder_decoder:
        raise ModelError(
            f"{base} is an encoder-decoder model ({config.model_type}), whose classifier in transformers reads no score at "
            f"the last token, so a reward model could not be saved for it; {instead}"
        )
    remote = getattr(config, "auto_map", None) or {}
    known = type(config) in AutoModelForSequenceClassification._model_mapping
    if not known and AutoModelForSequenceClassification.__name__ not in remote:
        raise ModelError(
            f"{base}: transformers has no sequence classifier for {config.model_type}, so a reward model could not be saved "
            f"for it; {instead}"
        )


def _automatic(config: Any, scorer: bool) -> Any:
    if scorer:
        return AutoModelForSequenceClassification
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def _attention(reading: Reading, device: torch.device, dtype: torch.dtype) -> str | None:
    """transformers' name of the attention; `None` leaves the choice to it."""
    if reading.way == "packed":
        return choose_attention(device, dtype)
    return "eager" if reading.eager else None


def trunk_of(model: PreTrainedModel) -> nn.Module:
    """The part of a model that turns token ids into hidden states.

    That is the text model of one that reads images too, and for an encoder-decoder model the whole, which holds both stacks.
    """
    if way_of(model) == "encoder-decoder":
        return model
    trunk: Any = model.base_model
    if trunk is model:
        raise ModelError(f"{type(model).__name__} has no separate trunk below its head, so it cannot carry roles")
    if model.config.get_text_config() is not model.config:
        return trunk.get_decoder()
    return trunk


def head_size(model: PreTrainedModel) -> int:
    """Width of the hidden states that heads read, which OPT's smallest model narrows before its output layer."""
    config: Any = model.config.get_text_config()
    return int(getattr(config, "word_embed_proj_dim", None) or config.hidden_size)


def first_line(error: Exception) -> str:
    """What an error says, for the end of a message of ours; its kind, if it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def distinct_padding(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Give a classifier's tokenizer a pad token that is not EOS, if it has any other special token; returns its id.

    transformers' classifiers read the score at the last token that is not the pad token. Where EOS is padding, that is the
    token before EOS, and the score would differ from the one that was trained, at EOS.
    """
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id != tokenizer.eos_token_id:
        return tokenizer.pad_token_id
    others = [token for token in tokenizer.all_special_tokens if token != tokenizer.eos_token]
    if not others:
        tokenizer.pad_token = None
        return None
    tokenizer.pad_token = others[0]
    return tokenizer.pad_token_id
