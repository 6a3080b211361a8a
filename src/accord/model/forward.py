"""From a role and a packed batch to log-probabilities, entropies, values and scores."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from accord.batch import TokenBatch
from accord.model.heads import ClassHead, ScalarHead
from accord.model.prompts import VirtualTokens
from accord.model.reading import KeyStore, States, output_scale, read, read_pairs, way_of
from accord.ops.divergence import generalised_jsd
from accord.ops.logprobs import token_logprobs


@dataclass(frozen=True)
class Role:
    """Base weights, at most one adapter, at most one head, used for one purpose."""

    name: str
    trunk: nn.Module
    """Token ids -> hidden states."""
    output: nn.Linear | None = None
    """Hidden states -> logits; for roles that give log-probabilities."""
    adapter: str | None = None
    """Adapter on the shared base; `None` with `shared` means adapters off."""
    shared: bool = True
    """Whether the trunk is the shared base, whose adapters have to be switched."""
    prompt: VirtualTokens | None = None
    """Virtual tokens of the adapter, if it is of that kind."""
    value_head: ScalarHead | None = None
    """Hidden states -> values of states; for the critic."""
    score_head: ScalarHead | None = None
    """Hidden state -> score; for the reward."""
    class_head: ClassHead | None = None
    """Hidden states at the targets -> logits of classes; for a classifier."""
    stepwise: bool = False
    """Whether scores are read at the targets, which are the ends of steps, and not at the end of each sequence."""
    trains: bool = False
    """Whether weights of this role are learnt."""
    shares: bool = False
    """Whether what sequences of a batch begin with alike is computed once."""
    offload: bool = False
    """Whether its weights, which are its own, wait in main memory while it is not used."""

    def learnt(self) -> dict[str, nn.Parameter]:
        """The weights of trunk, output layer and heads that learn, each once; none that another role holds too and are frozen."""
        weights = {f"trunk.{key}": parameter for key, parameter in self.trunk.named_parameters()}
        seen = {id(parameter) for parameter in weights.values()}
        if self.output is not None:
            named = self.output.named_parameters()
            weights |= {f"output.{key}": parameter for key, parameter in named if id(parameter) not in seen}
        return {key: parameter for key, parameter in weights.items() if parameter.requires_grad} | self.heads()

    def heads(self) -> dict[str, nn.Parameter]:
        """The weights of its heads."""
        found = {"value_head": self.value_head, "score_head": self.score_head, "class_head": self.class_head}
        return {
            f"{kind}.{key}": parameter
            for kind, head in found.items()
            if head is not None
            for key, parameter in head.named_parameters()
        }

    @property
    def parts(self) -> list[nn.Module]:
        """All that it runs through."""
        heads = (self.value_head, self.score_head, self.class_head)
        found = (self.trunk, self.output, self.prompt.encoder if self.prompt is not None else None, *heads)
        return [part for part in found if part is not None]


def why_whole(trunk: nn.Module, prompt: VirtualTokens | None) -> str | None:
    """Why a role has to compute each sequence whole, or `None` where prefixes in common can be computed once."""
    if way_of(trunk) != "packed":
        return "only a packed model can attend to a prefix that it computed for another sequence"
    if prompt is not None:
        return "virtual tokens of the adapter come before each sequence"
    return None


@dataclass(frozen=True)
class Teacher:
    """What a role's distributions are compared with."""

    hidden_KH: Tensor
    """Hidden states before the targets of the batch."""
    output: nn.Linear
    beta: float
    """Of the generalised Jensen-Shannon divergence; see `ops.divergence`."""


@dataclass(frozen=True)
class Outputs:
    """What a role says about a batch; streams are 0 off the targets."""

    logprobs_T: Tensor | None = None
    """float32 [T], nats"""
    entropies_T: Tensor | None = None
    """float32 [T], nats; 0 unless asked for"""
    values_T: Tensor | None = None
    """float32 [T]: value of the state in which the token at t was chosen, so read at t - 1"""
    scores_N: Tensor | None = None
    """float32 [N]: read at the last token of each sequence"""
    scores_T: Tensor | None = None
    """float32 [T]: of a stepwise role, read at the targets themselves: the last tokens of steps"""
    divergences_T: Tensor | None = None
    """float32 [T], nats: divergence from the teacher's distribution of each token, where there is a teacher"""
    class_logits_KC: Tensor | None = None
    """float32 [K, C]: of a classifier, read at the targets themselves"""


def forward(
    role: Role,
    batch: TokenBatch,
    *,
    temperature: float = 1.0,
    entropy: bool = False,
    detach_trunk: bool = False,
    teacher: Teacher | None = None,
) -> Outputs:
    """Run a role on a packed batch. The role's adapter must be active (`Roles.use`).

    Args:
        role: what it gives depends on its heads.
        batch: packed sequences.
        temperature: log-probabilities are those of logits / temperature.
        entropy: give entropies too.
        detach_trunk: gradients stop at the hidden states, so that only heads learn.
        teacher: give the divergence from it instead of log-probabilities and entropies.
    """
    states = states_of(role, batch)
    if detach_trunk:
        states = replace(states, computed_UH=states.computed_UH.detach())
    targets_K = batch.target_mask_T.nonzero().flatten()
    logprobs_T = entropies_T = values_T = scores_N = scores_T = divergences_T = None
    if role.output is not None or role.value_head is not None:
        hidden_KH = states.at(targets_K - 1)  # the state in which a token is chosen lies one token earlier
        if role.output is not None and teacher is not None:
            divergences_K = generalised_jsd(
                hidden_KH,
                role.output.weight,
                role.output.bias,
                teacher.hidden_KH,
                teacher.output.weight,
                teacher.output.bias,
                beta=teacher.beta,
                temperature=temperature,
            )
            divergences_T = _spread(divergences_K, targets_K, batch)
        elif role.output is not None:
            logprobs_K, entropies_K = token_logprobs(
                hidden_KH,
                role.output.weight,
                role.output.bias,
                batch.input_ids_T[targets_K],
                temperature=temperature,
                with_entropy=entropy,
            )
            logprobs_T, entropies_T = _spread(logprobs_K, targets_K, batch), _spread(entropies_K, targets_K, batch)
        if role.value_head is not None:
            values_T = _spread(role.value_head(hidden_KH), targets_K, batch)
    if role.score_head is not None and role.stepwise:
        scores_T = _spread(role.score_head(states.at(targets_K)), targets_K, batch)
    elif role.score_head is not None:
        scores_N = role.score_head(states.at(batch.cu_seqlens[1:].long() - 1))
    class_logits_KC = None if role.class_head is None else role.class_head(states.at(targets_K))
    return Outputs(logprobs_T, entropies_T, values_T, scores_N, scores_T, divergences_T, class_logits_KC)


def teach(role: Role, batch: TokenBatch, beta: float) -> Teacher:
    """What a role says before each target of a batch, for another to be compared with. No gradient. The role's adapter must be
    active (`Roles.use`)."""
    assert role.output is not None
    with torch.no_grad():
        return Teacher(states_of(role, batch).at(batch.target_mask_T.nonzero().flatten() - 1), role.output, beta)


def hidden_states(role: Role, batch: TokenBatch) -> Tensor:
    """Last hidden states [T, H] of a batch, see `states_of`."""
    return states_of(role, batch).all()


def states_of(role: Role, batch: TokenBatch) -> States:
    """Last hidden states of a batch, in the trunk's type, as the role's output layer reads them; its adapter must be active."""
    states = _read(role, batch)
    return replace(states, computed_UH=for_output(role, states.computed_UH))


def trunk_states(role: Role, batch: TokenBatch, store: KeyStore | None = None) -> Tensor:
    """What the role's trunk gives, [T, H].

    Args:
        role: its adapter must be active.
        batch: packed sequences.
        store: takes the keys and values, those of virtual tokens included; only for trunks that read packed batches.
    """
    return _read(role, batch, store).all()


def _read(role: Role, batch: TokenBatch, store: KeyStore | None = None) -> States:
    if role.prompt is None:
        return read(role.trunk, batch, store, role.shares)
    if way_of(role.trunk) == "encoder-decoder":
        return States(read_pairs(role.trunk, batch, role.prompt))
    states: Tensor = role.trunk(**role.prompt.arguments(role.trunk, batch, store)).last_hidden_state[0]
    return States(states, role.prompt.places(batch).own_T)


def for_output(role: Role, hidden: Tensor) -> Tensor:
    """Hidden states [..., H] as the role's output layer reads them: scaled, in families that scale. Roles without an output
    layer read them as they are, as transformers' classifiers do."""
    scale = output_scale(role.trunk) if role.output is not None else 1.0
    return hidden if scale == 1.0 else hidden * scale


def _spread(values_K: Tensor, targets_K: Tensor, batch: TokenBatch) -> Tensor:
    """Put values of target tokens where they belong: [K] -> [T], 0 elsewhere."""
    return torch.zeros(batch.tokens, dtype=values_K.dtype, device=values_K.device).index_copy(0, targets_K, values_K)
