"""Keeping the experts of a mixture-of-experts policy balanced, exactly: the loss is that of the whole step, however it is cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from accord.batch import TokenBatch
from accord.losses import router_balance
from accord.model.forward import Role, states_of
from accord.model.roles import Roles
from accord.model.routing import Routers, Tally, routers_of
from accord.training.parallel import Ranks


class RouterBalance:
    """Adds the load-balancing loss to the policy's.

    The loss is a product of two means over the step: how often an expert is chosen, and how likely it is. Computed for each
    micro-batch by itself it would be another number for each way of cutting. So where a step is cut, one more pass without
    gradients counts the choices of the whole step first; with these the rest is a sum over tokens.

    Args:
        roles: with the policy, if it is one that learns; other roles are left alone.
        ranks: which the counts are summed over.
    """

    def __init__(self, roles: Roles, ranks: Ranks) -> None:
        self.ranks, self.device = ranks, roles.device
        policy = roles.roles.get("policy")
        self.routers: Routers | None = None
        if policy is not None and policy.trains:
            self.routers = routers_of(roles.model, policy.trunk, roles.config.router_aux_coef)

    def step(self, role: Role, micros: Sequence[TokenBatch], heads_only: bool) -> StepBalance:
        """The balance of one optimiser step on these micro-batches; `role` must be active."""
        if self.routers is None or role.name != "policy" or heads_only:
            return StepBalance(None)
        if len(micros) == 1 and self.ranks.size == 1:
            return StepBalance(self.routers, role.shares)  # its one forward pass counts all there is
        sums: Tensor | None = None
        for micro in micros:
            micro = micro.to(self.device)
            with torch.no_grad(), self.routers.watched(uses_of(micro, role.shares)) as tally:
                states_of(role, micro)
            assert tally.choices_E is not None
            counts = torch.cat([tally.choices_E, tally.choices_E.new_tensor([float(tally.routed)])]).double()
            sums = counts if sums is None else sums + counts
        assert sums is not None
        sums = self.ranks.sum(sums).float()
        return StepBalance(self.routers, role.shares, sums[:-1], sums[-1])


def uses_of(micro: TokenBatch, shares: bool) -> Tensor | None:
    """How often each computed token of a micro-batch counts: a prompt before eight answers is eight prompts."""
    return micro.layout.uses_U if shares else None


class StepBalance:
    """The load-balancing loss of one step, micro-batch by micro-batch; nothing at all without routers."""

    def __init__(
        self,
        routers: Routers | None,
        shares: bool = False,
        choices_E: Tensor | None = None,
        routed: Tensor | None = None,
    ) -> None:
        self.routers, self.shares, self.choices_E, self.routed = routers, shares, choices_E, routed
        self._tally: Tally | None = None

    @contextmanager
    def watching(self, micro: TokenBatch) -> Iterator[None]:
        """Around the forward pass of a micro-batch."""
        if self.routers is None:
            yield
            return
        with self.routers.watched(uses_of(micro, self.shares)) as tally:
            yield
        self._tally = tally

    def added(self, loss: Tensor, metrics: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and metrics of the micro-batch whose forward pass was watched last, with its part of the balance."""
        if self.routers is None or self._tally is None:
            return loss, metrics
        tally, self._tally = self._tally, None
        assert tally.probabilities_E is not None and tally.choices_E is not None
        choices_E = tally.choices_E if self.choices_E is None else self.choices_E
        routed = choices_E.new_tensor(float(tally.routed)) if self.routed is None else self.routed
        more, its_metrics = router_balance(
            probabilities_E=tally.probabilities_E, choices_E=choices_E, routed=routed, coef=self.routers.coef
        )
        return loss + more, metrics | its_metrics
