"""What comes and goes: caches, activations, gradients, tiles of logits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from accord.config import Recipe
from accord.forecast.blocks import Blocks
from accord.forecast.devices import Device
from accord.forecast.learning import largest_matrix
from accord.forecast.modes import Pass
from accord.forecast.residents import Learner, Residents, Term
from accord.forecast.tape import FLOAT, Peak, Tape, Value, replay, totals
from accord.forecast.workload import DROPOUT, ENTROPIES, Micro, Workload

TILE_ELEMENTS, BLOCK_ELEMENTS = 1 << 23, 1 << 18
"""As in `accord.ops.logprobs`, which imports torch; a test compares them."""
THREADS = 4
"""Of a processor, for the size of a block: a MiB for each."""
OWN_BACKWARD = 512
"""Most keys for which `ops.attention` has a backward pass of its own, on CPU in 16 bits."""
CACHE_SHARE = 4
"""As in `accord.rollout.budget`: an engine that chooses its rows takes one part in so many of the device for its cache."""
FOLDING_PAYS, FOLDED_SHARE = 64, 8
"""As in `accord.rollout.native`: from so many steps on, and up to one part in so many of the device, an adapter is folded in."""
HEIGHTS = (4, 8, 12)
"""Layers of a tall model that are counted one by one."""
HEAP_SHARE = 0.5
"""Of the temporary tensors of a forward pass on CPU: glibc leaves their holes unused (docs/forecast.md)."""


@dataclass(frozen=True)
class Passes:
    """The passes of a recipe over its models.

    Args:
        recipe: of any kind.
        held: its models.
        work: sizes.
        device: to run on.
    """

    recipe: Recipe
    held: Residents
    work: Workload
    device: Device

    @property
    def _lean(self) -> bool:
        """Whether tensors go back to the system at once; `placement.allocator`, where recipes have that key."""
        return not self.device.cpu or getattr(self.recipe.placement, "allocator", "fast") == "lean"

    # --- phases ------------------------------------------------------------------------------------------------------

    def rollout(self) -> list[Term]:
        """The cache, and the larger of a pass over new prompts and a step of all rows."""
        work, policy = self.work, self._policy()
        shape, item = policy.shape, policy.item
        width = sum(layer.kv_width for layer in shape.layers)
        states = sum(layer.state for layer in shape.layers) * FLOAT
        virtual = (policy.adapter.virtual + policy.adapter.prefix) if policy.adapter is not None else 0
        row = (work.columns + virtual) * width * item + states
        rows = self._rows(row)
        cache = rows * row
        prompts = max(min(self.recipe.train.micro_batch_tokens // max(work.prompt, 1), rows), 1)
        prefill = replay(self._tape(policy, Micro(prompts * work.prompt, 0), trains=False)).forward
        logits = self._sampling(shape.vocabulary, item, rows)
        step = replay(self._tape(policy, Micro(rows, 0), trains=False)).forward + logits
        first = prefill + (logits if prompts == rows else int(logits * prompts / rows))
        pass_bytes, tiles = (step - logits, logits) if step > first else (prefill, first - prefill)
        return [
            Term("policy", "folded adapter", self._folded(policy)),
            Term("policy", "KV cache", cache),
            Term("policy", "activations", pass_bytes),
            Term("policy", "logits", tiles),
        ]

    def _folded(self, policy: Learner) -> int:
        """A copy of the layers that LoRA changes, where it is folded in while sampling: `rollout.merge_adapter`."""
        wanted = getattr(self.recipe.rollout, "merge_adapter", False)  # type: ignore[attr-defined]
        if not wanted or policy.adapter is None or policy.quantized:
            return 0
        if not policy.adapter.low or any(low.dora for low in policy.adapter.low.values()):
            return 0
        layers = policy.shape.layers
        own = (layers[n].matrices[role] for n, role in policy.adapter.low if role in layers[n].matrices)
        copy = sum(matrix.inputs * matrix.outputs for matrix in own) * policy.item
        steps = self.recipe.rollout.max_new_tokens  # type: ignore[attr-defined]
        pays = steps >= FOLDING_PAYS and copy <= self.device.bytes // FOLDED_SHARE
        return copy if wanted is True or pays else 0

    def _rows(self, row: int) -> int:
        """Rows of the cache; where the engine chooses them, as many as a share of what the weights leave."""
        if isinstance(self.recipe.rollout.max_sequences, int):  # type: ignore[attr-defined]
            return self.work.rows
        weights = sum(load.bytes for load in self.held.loads[:1])
        return max(1, min(self.work.rows, (self.device.bytes - weights) // CACHE_SHARE // max(row, 1)))

    def _sampling(self, vocabulary: int, item: int, rows: int) -> int:
        """Logits of all rows, and what drawing from them makes of them."""
        rollout = self.recipe.rollout  # type: ignore[attr-defined]
        copies = 3 + (1 if rollout.temperature != 1.0 else 0) + (5 if rollout.top_p < 1.0 else 0)
        copies += 2 if rollout.top_k else 0
        return int(rows * vocabulary * (copies * FLOAT + (item if item != FLOAT else FLOAT)))

    def score(self) -> list[Term]:
        """The largest pass without gradients, of the roles that score."""
        kinds = [*self.held.frozen]
        if self.work.rows and self.recipe.algorithm.type != "rejection":
            kinds += self.held.learners
        best: list[Term] = []
        for learner in kinds:
            tape = self._tape(learner, self.work.scored, trains=False)
            tile = self._tile(learner, self.work.scored, trains=False)[0]
            pass_bytes = replay(tape).forward
            terms = [
                Term(learner.role, "activations", max(pass_bytes - tile, 0)),
                Term(learner.role, "logits tiles", min(tile, pass_bytes)),
            ]
            if sum(t.bytes for t in terms) > sum(t.bytes for t in best):
                best = terms
        return best

    def update(self, ranks: int) -> Iterator[list[Term]]:
        """Each role's passes in turn, with the gradients of those before, and then the optimiser's step."""
        before: list[Term] = []
        for learner in self.held.learners:
            several = self.work.micro_batches > 1
            peak, grads, made = self._trained(learner, several)
            yield [*before, *self._terms(learner, made, peak, grads, several)]
            if learner is self._policy() and self.work.text is not None:  # beside the gradients that are there by then
                text = replace(self, work=self.work.text)
                peak, _, made = text._trained(learner, several=True)
                yield text._terms(learner, made, peak, grads, several=True)
            before.append(Term(learner.role, "gradients", grads + learner.head * FLOAT))
        step = [Term("all", "workspace", self._step())]
        if ranks > 1:
            step.append(
                Term("all", "sum over ranks", int(sum(x.parameters + x.head for x in self.held.learners) * FLOAT))
            )
        yield [*before, *step]

    def _trained(self, learner: Learner, several: bool) -> tuple[Peak, int, int]:
        """Forward and backward pass of a role: its peaks, bytes of its gradients, and of all tensors that were made.

        Of a tall model of equal layers three heights are counted and the rest follows, if the three lie on a line.
        """
        layers = learner.shape.layers
        tall = len(layers) > HEIGHTS[-1] + 2 and not learner.frozen_layers and all(x == layers[0] for x in layers)
        if not tall:
            return self._at_height(learner, several, len(layers))
        first, second, third = (self._numbers(learner, several, height) for height in HEIGHTS)
        step = HEIGHTS[1] - HEIGHTS[0]
        slopes = [(c - b) / step for b, c in zip(second, third, strict=True)]
        straight = all(c - b == b - a for a, b, c in zip(first, second, third, strict=True))
        # Where gradients outweigh activations, the backward pass peaks at its end in a tall model, not at its beginning.
        if not straight or slopes[2] < slopes[3] - 1:
            return self._at_height(learner, several, len(layers))
        more = len(layers) - HEIGHTS[-1]
        forward, saved, backward, weights, grads, made = (
            int(c + slope * more) for c, slope in zip(third, slopes, strict=True)
        )
        return Peak(forward, saved, backward, weights), grads, made

    def _numbers(self, learner: Learner, several: bool, height: int) -> tuple[int, ...]:
        peak, grads, made = self._at_height(learner, several, height)
        return peak.forward, peak.saved, peak.backward, peak.weight_grads, grads, made

    def _at_height(self, learner: Learner, several: bool, height: int) -> tuple[Peak, int, int]:
        """With the tensors that no backward pass needs, in place of all that were made: these leave holes in the heap, whether
        layers are computed again or not."""
        tape = self._tape(learner, self.work.update, trains=True, height=height)
        grads, made = totals(tape)
        checkpointing = bool(getattr(self.recipe.train, "activation_checkpointing", False))
        peak = replay(tape, grads if several else 0, checkpointing)
        kept = replay(tape, grads if several else 0).saved if checkpointing else peak.saved
        return peak, grads, made - kept

    def _terms(self, learner: Learner, made: int, peak: Peak, grads: int, several: bool) -> list[Term]:
        most = max(peak.forward, peak.backward)
        tile = self._tile(learner, self.work.update, trains=True)[1]
        present = grads if several else min(grads, max(most - peak.saved - tile, 0))
        tile = min(tile, max(most - peak.saved - present, 0))
        rest = most - peak.saved - present - tile
        return [
            Term(learner.role, "gradients", present),
            Term(learner.role, "activations", peak.saved + rest),
            Term(learner.role, "logits tiles", tile),
            Term(learner.role, "fragmentation", 0 if self._lean else int(HEAP_SHARE * max(made, 0))),
        ]

    def _step(self) -> int:
        """AdamW works on one weight at a time on CPU, on all at once on an accelerator (its `foreach` form)."""
        if self.device.cpu:
            full = [x for x in self.held.learners if x.adapter is None]
            return max((2 * largest_matrix(x.shape) * x.item for x in full), default=0)
        return sum(x.parameters * (x.item if x.adapter is None else FLOAT) for x in self.held.learners)

    # --- one pass ----------------------------------------------------------------------------------------------------

    def _policy(self) -> Learner:
        return self.held.learners[0]

    def _tape(self, learner: Learner, micro: Micro, trains: bool, height: int | None = None) -> Tape:
        """Forward pass of a role over a micro-batch. Without gradients a layer leaves nothing to the next but its output, so one
        of each kind is enough; with, the first `height` are taken."""
        adapter, shape = learner.adapter, learner.shape
        if not trains:
            kinds = {id(layer): number for number, layer in reversed(list(enumerate(shape.layers)))}
            height = 1 if len(kinds) == 1 else len(shape.layers)
        shape = shape if height in (None, len(shape.layers)) else replace(shape, layers=shape.layers[:height])
        virtual = adapter.virtual if adapter is not None else 0
        longest = max(self.work.longest, 1)
        tokens = max(micro.tokens, 1)
        padded = tokens + virtual * -(-tokens // longest)
        tape = Tape(padded, trains, compact_masks=not self.device.cpu)
        learning = trains and adapter is None and learner in self.held.learners
        drops = trains and self.recipe.algorithm.type in DROPOUT
        config = self.recipe.adapter
        how = Pass(
            item=learner.item,
            trains_base=learning,
            frozen_layers=learner.frozen_layers,
            low=adapter.low if adapter is not None else {},
            vectors=adapter.vectors if adapter is not None else {},
            dropout=float(getattr(config, "dropout", 0.0)) if drops and config is not None else 0.0,
            base_dropout=drops,
            longest=min(longest, tokens),
            inputs_learn=trains and adapter is not None and bool(adapter.virtual or adapter.prefix),
            quantized=learner.quantized,
            thin=self._thin(learner, drops),
            own_backward=self.device.cpu and learner.item == 2 and longest + virtual <= OWN_BACKWARD,
            joined=micro.joined,
        )
        blocks = Blocks(shape, tape, how)
        hidden = blocks.trunk()
        self._head(learner, tape, hidden, micro, learning)
        return tape

    def _thin(self, learner: Learner, drops: bool) -> bool:
        """Whether LoRA computes in the base's type: `adapter.dtype`; GPT-2's transposed layers keep peft's, if not quantised."""
        config = self.recipe.adapter
        wanted = getattr(config, "method", "") == "lora" and getattr(config, "dtype", "float32") == "auto"
        acts = drops and float(getattr(config, "dropout", 0.0)) > 0
        return wanted and not acts and (learner.quantized > 0 or learner.shape.family != "gpt2")

    def _head(self, learner: Learner, tape: Tape, hidden: Value, micro: Micro, learning: bool) -> None:
        """Log-probabilities of the targets in tiles, or a head's numbers."""
        shape, targets = learner.shape, micro.targets
        if not targets:
            tape.hold(hidden)
            return
        if learner.head:
            wide = tape.value(shape.embedding, FLOAT, tape.trains, targets)
            score = tape.value(1, FLOAT, tape.trains, targets)
            picked = tape.value(shape.embedding, hidden.item, hidden.grad, targets)
            tape.add([hidden], picked)
            tape.add([picked], wide)
            tape.add([wide], score, [wide], weight_grads=learner.head * FLOAT)
        if not learner.logprobs:
            return
        picked = tape.value(shape.embedding, hidden.item, hidden.grad, targets)
        tape.add([hidden], picked)
        forward, backward = self._tile(learner, micro, tape.trains)
        weight = shape.vocabulary * shape.embedding if learning and self._output_learns(learner) else 0
        # The weight's gradient adds up in float32, one product at a time beside it.
        adding = weight * FLOAT * 2 if weight else 0
        adding += weight * learner.item if learner.item != FLOAT else 0
        at_once = tape.trains and self._at_once(learner)
        slopes = tape.value(shape.embedding if at_once else 0, hidden.item, False, targets)
        out = tape.value(1, FLOAT, tape.trains, targets)
        tape.add([], slopes)
        tape.add(
            [picked, hidden, slopes],
            out,
            [picked, slopes],
            weight_grads=weight * learner.item,
            scratch=forward,
            backward_scratch=backward + max(adding - weight * learner.item, 0),
        )

    def _tile(self, learner: Learner, micro: Micro, trains: bool) -> tuple[int, int]:
        """Bytes of the tiles of logits, forward and backward; as `accord.ops.logprobs` and `accord.ops.divergence` make them."""
        if not learner.logprobs:
            return 0, 0
        vocabulary, kind = learner.shape.vocabulary, self.recipe.algorithm.type
        targets = max(micro.targets, 1)
        rows = min(max(1, TILE_ELEMENTS // vocabulary), targets)
        if kind == "distill":
            whole = rows * vocabulary
            half = whole * learner.item if learner.item != FLOAT else 0
            return 6 * whole * FLOAT + half, 7 * whole * FLOAT + half
        at_once = BLOCK_ELEMENTS * THREADS if self.device.cpu else TILE_ELEMENTS
        block = max(1, min(at_once // vocabulary, rows)) * vocabulary * FLOAT
        tile = rows * vocabulary * learner.item
        forward = tile + (4 if kind in ENTROPIES else 2) * block
        if trains and self._at_once(learner):
            return forward, targets * learner.shape.embedding * FLOAT if learner.item != FLOAT else 0
        return forward, tile + (7 if kind in ENTROPIES else 5) * block

    def _output_learns(self, learner: Learner) -> bool:
        return learner.adapter is None and not (learner.shape.tied and learner.frozen_layers)

    def _at_once(self, learner: Learner) -> bool:
        """Whether the forward pass computes what backward needs of the tiles."""
        algorithm = self.recipe.algorithm
        return (
            algorithm.type != "distill"
            and not self._output_learns(learner)
            and float(getattr(algorithm, "entropy_coef", 0.0)) == 0
        )
