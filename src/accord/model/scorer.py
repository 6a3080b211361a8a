"""Frozen passes over rollouts: log-probabilities of policy and reference, values, scores."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from accord.batch import TokenBatch
from accord.model.forward import Outputs, Role, forward, states_of
from accord.model.roles import Roles
from accord.ops.logprobs import full_kl
from accord.ops.masking import sum_per_sequence


class Scorer:
    """Runs roles on batches without gradients, in micro-batches.

    Args:
        roles: the models.
        micro_batch_tokens: tokens that a model computes at once.
        temperature: of the policy; the reference is compared at the same one.
    """

    def __init__(self, roles: Roles, micro_batch_tokens: int, temperature: float = 1.0) -> None:
        self.roles = roles
        self.micro_batch_tokens = micro_batch_tokens
        self.temperature = temperature

    def score(self, batch: TokenBatch, wanted: Iterable[str]) -> dict[str, Tensor]:
        """Streams of a batch.

        Args:
            batch: packed sequences, on the CPU; micro-batches go to the roles' device.
            wanted: of `old_logprobs_T`, `values_T`, `ref_logprobs_T`, `full_kl_T`.

        Returns:
            The wanted streams, float32 [T], on the CPU, 0 off the targets.
        """
        wanted = set(wanted)
        cut = self._cut(batch)
        streams: dict[str, Tensor] = {}
        policy = self.roles.roles["policy"]
        values_on_trunk = policy.value_head is not None and "values_T" in wanted
        if "old_logprobs_T" in wanted or values_on_trunk:
            outputs = self._run("policy", cut)
            if outputs.logprobs_T is not None:
                streams["old_logprobs_T"] = outputs.logprobs_T
            if outputs.values_T is not None:
                streams["values_T"] = outputs.values_T
        if "ref_logprobs_T" in wanted:
            logprobs_T = self._run("reference", cut).logprobs_T
            assert logprobs_T is not None
            streams["ref_logprobs_T"] = logprobs_T
        if "values_T" in wanted and not values_on_trunk:
            values_T = self._run("critic", cut).values_T
            assert values_T is not None
            streams["values_T"] = values_T
        if "full_kl_T" in wanted:
            streams["full_kl_T"] = self._full_kl(cut)
        return {name: stream for name, stream in streams.items() if name in wanted}

    def sequence_scores(self, name: str, batch: TokenBatch) -> Tensor:
        """What a reward role says of each sequence: float32 [N]."""
        scores_N = self._run(name, self._cut(batch)).scores_N
        assert scores_N is not None
        return scores_N

    def sequence_logprobs(self, name: str, batch: TokenBatch) -> Tensor:
        """Log-probability (nats) of all target tokens of each sequence together, under a role: float32 [N]."""
        logprobs_T = self._run(name, self._cut(batch)).logprobs_T
        assert logprobs_T is not None
        return sum_per_sequence(logprobs_T, batch)

    def step_scores(self, name: str, batch: TokenBatch) -> Tensor:
        """What a stepwise reward role says at the targets: float32 [T], 0 elsewhere."""
        scores_T = self._run(name, self._cut(batch)).scores_T
        assert scores_T is not None
        return scores_T

    def _cut(self, batch: TokenBatch) -> _Cut:
        return _Cut(batch, self.micro_batch_tokens, self.roles.device)

    def _run(self, name: str, cut: _Cut) -> Outputs:
        """One role over the whole batch, micro-batch by micro-batch, put back in the batch's order."""
        parts: dict[str, Tensor] = {}
        batch = cut.batch
        with torch.no_grad(), self.roles.use(name) as role:
            for members, part in cut.micros(role.shares):
                outputs = forward(role, part, temperature=self.temperature)
                for stream, values in vars(outputs).items():
                    if values is None:
                        continue
                    where = batch.token_index(members) if stream.endswith("_T") else torch.tensor(members)
                    size = batch.tokens if stream.endswith("_T") else batch.sequences
                    parts.setdefault(stream, torch.zeros(size))[where] = values.cpu().float()
        return Outputs(**parts)

    def _full_kl(self, cut: _Cut) -> Tensor:
        kl_T = torch.zeros(cut.batch.tokens)
        for members, part in cut.micros(all(self.roles.roles[name].shares for name in ("policy", "reference"))):
            before_K = part.target_mask_T.nonzero().flatten() - 1
            policy, hidden_KH = self._hidden("policy", part, before_K)
            with torch.no_grad(), self.roles.use("reference") as reference:  # its output layer must be there, too
                assert policy.output is not None and reference.output is not None
                kl_K = full_kl(
                    hidden_KH,
                    policy.output.weight,
                    policy.output.bias,
                    states_of(reference, part).at(before_K),
                    reference.output.weight,
                    reference.output.bias,
                    temperature=self.temperature,
                )
            kl_T[cut.batch.token_index(members)[(before_K + 1).cpu()]] = kl_K.cpu()
        return kl_T

    def _hidden(self, name: str, batch: TokenBatch, positions_K: Tensor) -> tuple[Role, Tensor]:
        with torch.no_grad(), self.roles.use(name) as role:
            return role, states_of(role, batch).at(positions_K)


class _Cut:
    """A batch in micro-batches on a device: cut and laid out once for all roles that count its tokens alike."""

    def __init__(self, batch: TokenBatch, max_tokens: int, device: torch.device) -> None:
        self.batch, self.max_tokens, self.device = batch, max_tokens, device
        self._made: dict[bool, list[tuple[list[int], TokenBatch]]] = {}

    def micros(self, shares: bool) -> Iterator[tuple[list[int], TokenBatch]]:
        """Which sequences of the batch each micro-batch holds, and the micro-batch."""
        if shares not in self._made:
            bins = self.batch.bins(self.max_tokens, shares)
            self._made[shares] = [(members, self.batch.select(members).to(self.device)) for members in bins]
        yield from self._made[shares]
