"""What autograd keeps, without autograd: the operations of a forward pass by the size of their tensors.

An operation names its inputs, its output and what it saves for backward. `replay` walks the list forward, and backward if
something learns, and counts the bytes that are alive: a tensor dies after its last use, a saved one when the backward of the
operation that saved it has run, a gradient when it has been handed on. The numbers equal those that PyTorch's own hooks and
profiler count, which is what the tests compare.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

ACTIVATIONS = {
    "silu": "input",
    "swish": "input",
    "gelu": "input",
    "gelu_pytorch_tanh": "input",
    "bloom": "input",
    "relu": "output",
    "tanh": "output",
    "gelu_new": "python",
    "gelu_fast": "python",
}
"""What an activation saves: its input, its output, or, where it is written as plain arithmetic, its parts."""
FLOAT = 4
"""Bytes of a float32."""


@dataclass(eq=False, slots=True)
class Value:
    """A tensor of a forward pass; views of it are the same value."""

    width: float
    """Numbers a token."""
    item: int
    """Bytes a number."""
    size: int
    """Bytes in all."""
    grad: bool
    """Whether a gradient flows to it."""


@dataclass(eq=False, slots=True)
class Op:
    """One operation."""

    inputs: tuple[Value, ...]
    output: Value | None
    saves: tuple[Value, ...] = ()
    weight_grads: int = 0
    """Bytes of the gradients of weights that its backward leaves behind."""
    scratch: int = 0
    """Bytes that exist only while it runs forward."""
    backward_scratch: int = 0
    """The same, backward."""
    passes: bool = False
    """Its inputs' gradients are its output's, the same memory (an addition, a view)."""


@dataclass(frozen=True, slots=True)
class Peak:
    """Bytes that a pass takes beyond weights."""

    forward: int
    """At most, in the forward pass."""
    saved: int
    """Kept for backward when the forward pass ends."""
    backward: int
    """At most, in the backward pass; gradients of weights included."""
    weight_grads: int
    """Left when all is done."""


@dataclass(slots=True)
class Tape:
    """Records operations on a number of tokens."""

    tokens: int
    trains: bool
    """Whether anything is saved at all."""
    compact_masks: bool = False
    """Dropout keeps one byte a number (accelerators), not a number of the input's type (CPU)."""
    ops: list[Op] = field(default_factory=list)
    marks: list[tuple[int, Value]] = field(default_factory=list)
    """Where layers begin: the number of the next operation, and the layer's input; for activation checkpointing."""
    end: int = 0
    """Where the last layer ends."""

    def value(self, width: float, item: int, grad: bool, tokens: int | None = None) -> Value:
        """A tensor of `width` numbers a token."""
        count = self.tokens if tokens is None else tokens
        return Value(width, item, int(count * width * item), grad and self.trains)

    def add(
        self,
        inputs: Sequence[Value],
        output: Value | None,
        saves: Sequence[Value] = (),
        *,
        weight_grads: int = 0,
        scratch: int = 0,
        backward_scratch: int = 0,
        passes: bool = False,
    ) -> None:
        """Record an operation; what is saved counts only if it takes part in backward."""
        active = self.trains and (bool(weight_grads) or (output is not None and output.grad))
        self.ops.append(
            Op(
                tuple(inputs),
                output,
                tuple(saves) if active else (),
                weight_grads if self.trains else 0,
                scratch,
                backward_scratch,
                passes,
            )
        )

    def hold(self, *values: Value) -> None:
        """Python names these tensors up to here."""
        self.add(values, None)

    # --- arithmetic --------------------------------------------------------------------------------------------------

    def like(self, x: Value, grad: bool | None = None, item: int | None = None) -> Value:
        """A tensor of the same width."""
        tokens = x.size // max(int(x.width * x.item), 1) if x.width >= 1 else self.tokens
        return self.value(x.width, item or x.item, x.grad if grad is None else grad, tokens)

    def cast(self, x: Value, item: int) -> Value:
        """To another type; the same tensor if it is of that type."""
        if x.item == item:
            return x
        y = self.like(x, item=item)
        self.add([x], y)
        return y

    def unary(self, x: Value, saves: str = "none") -> Value:
        """An element-wise function that saves its `input`, its `output`, or nothing."""
        y = self.like(x)
        self.add([x], y, {"input": [x], "output": [y], "none": []}[saves])
        return y

    def sum(self, *terms: Value) -> Value:
        """An addition: saves nothing, and hands the gradient on."""
        total = terms[0]
        for term in terms[1:]:
            wide = max(total, term, key=lambda v: v.item)
            y = self.like(wide, grad=total.grad or term.grad)
            # On CPU the narrower term is widened before it is added.
            self.add([total, term], y, scratch=y.size if total.item != term.item else 0, passes=total.item == term.item)
            total = y
        return total

    def product(self, a: Value, b: Value) -> Value:
        """Of two tensors: each is saved if the other has a gradient."""
        y = self.like(a if a.width >= b.width else b, grad=a.grad or b.grad)
        self.add([a, b], y, [*([b] if a.grad else []), *([a] if b.grad else [])])
        return y

    def scaled(self, x: Value, weight_trains: bool = False, weight_grads: int = 0) -> Value:
        """Times a vector of weights: `x` is saved if they learn."""
        y = self.like(x, grad=x.grad or weight_trains)
        self.add([x], y, [x] if weight_trains else [], weight_grads=weight_grads)
        return y

    def activation(self, x: Value, name: str) -> Value:
        """A non-linearity, by transformers' name."""
        kind = ACTIVATIONS.get(name, "input")
        if kind != "python":
            return self.unary(x, kind)
        half = self.unary(x)
        cube = self.unary(x, "input")  # pow
        inner = self.sum(x, self.unary(cube))
        bent = self.unary(self.unary(inner), "output")  # tanh
        y = self.product(half, self.unary(bent))
        self.hold(x)
        return y

    def dropout(self, x: Value, rate: float) -> Value:
        """Zeroes some numbers; its mask is saved."""
        if not rate or not self.trains:
            return x
        mask = self.like(x, grad=False, item=1 if self.compact_masks else x.item)
        self.add([], mask)
        y = self.like(x)
        self.add([x, mask], y, [mask])
        return y


class Counter:
    """An allocator without waste: what is alive, and the most there was."""

    def __init__(self) -> None:
        self.alive = self.most = 0
        self._sizes: list[int] = []

    def take(self, size: int) -> int:
        """Memory of so many bytes; returns its number."""
        self._sizes.append(size)
        self.alive += size
        self.most = max(self.most, self.alive)
        return len(self._sizes) - 1

    def give(self, number: int) -> None:
        """Free it."""
        self.alive -= self._sizes[number]

    def restart(self) -> int:
        """The most since the last call."""
        most, self.most = self.most, self.alive
        return most


class Memory(Protocol):
    """Whatever counts."""

    def take(self, size: int) -> int: ...
    def give(self, number: int) -> None: ...
    def restart(self) -> int: ...


def replay(tape: Tape, grads_before: int = 0, checkpointing: bool = False) -> Peak:
    """The most bytes that are alive at once.

    Args:
        tape: a whole forward pass.
        grads_before: bytes of these weights' gradients that an earlier micro-batch left; they are alive throughout, and new
            ones are added to them.
        checkpointing: of each marked layer only the input is kept, and the layer is computed again in backward.
    """
    memory = Counter()
    if grads_before:
        memory.take(grads_before)
    player = Player(tape, memory, keeps_grads=not grads_before, checkpointing=checkpointing)
    player.forward()
    forward, saved = memory.restart(), memory.alive - grads_before
    player.backward()
    return Peak(forward, saved if tape.trains else 0, memory.restart(), player.weight_grads)


def totals(tape: Tape) -> tuple[int, int]:
    """Bytes of the weights' gradients, and of all tensors that a forward pass makes."""
    grads = sum(op.weight_grads for op in tape.ops)
    return grads, sum(op.output.size for op in tape.ops if op.output is not None)


class Player:
    """Takes and gives back memory as a forward pass and its backward pass do.

    Args:
        tape: a whole forward pass.
        memory: where from.
        keeps_grads: the gradients of weights stay; else they are added to those of an earlier micro-batch, and go.
        checkpointing: see `replay`.
    """

    def __init__(self, tape: Tape, memory: Memory, keeps_grads: bool = True, checkpointing: bool = False) -> None:
        self.tape, self.memory, self.keeps_grads = tape, memory, keeps_grads
        self.bounds = [*(start for start, _ in tape.marks), tape.end] if checkpointing and tape.trains else []
        self.weight_grads = 0
        self.kept: list[int] = []
        self._at: dict[int, int] = {}
        """Where each value lies."""

    def forward(self) -> None:
        """All operations; what backward needs stays."""
        ops, bounds = self.tape.ops, self.bounds
        if not bounds:
            self._run(ops)
            return
        self._run(ops[: bounds[0]], stay=[self.tape.marks[0][1]])
        for number, (start, end) in enumerate(pairwise(bounds)):
            following = [value for _, value in self.tape.marks[number + 1 : number + 2]]
            self._run(ops[start:end], stay=[self.tape.marks[number][1], *(following or [self._last(end)])], saves=False)
        self._run(ops[bounds[-1] :], stay=[self._last(bounds[-1])])

    def _last(self, end: int) -> Value:
        """What the last layer gave."""
        outputs = [op.output for op in self.tape.ops[:end] if op.output is not None]
        return outputs[-1]

    def _run(self, ops: Sequence[Op], stay: Sequence[Value] = (), saves: bool = True) -> None:
        last: dict[int, int] = {}
        kept = {id(value) for value in stay}
        for number, op in enumerate(ops):
            for value in _of(op):
                last[id(value)] = number
            kept.update(id(value) for value in op.saves if saves)
        for number, op in enumerate(ops):
            values = {id(value): value for value in _of(op)}
            for key, value in values.items():
                if key not in self._at and value.size:
                    self._at[key] = self.memory.take(value.size)
            if op.scratch:
                self.memory.give(self.memory.take(op.scratch))
            for key in values:
                if last[key] == number and key not in kept:
                    self._drop(key)

    def _drop(self, key: int) -> None:
        if key in self._at:
            self.memory.give(self._at.pop(key))

    def backward(self) -> None:
        """Gradients flow back; the last output's comes from elsewhere."""
        if not self.tape.trains:
            for key in list(self._at):
                self._drop(key)
            return
        ops, bounds = self.tape.ops, self.bounds
        grads: dict[int, list[int]] = {}  # value -> [memory, holders]: one memory may be the gradient of several values
        if not bounds:
            self._back(ops, grads)
        else:
            self._back(ops[bounds[-1] :], grads)
            for number, (start, end) in reversed(list(enumerate(pairwise(bounds)))):
                self._run(ops[start:end], stay=[self.tape.marks[number][1]])
                self._back(ops[start:end], grads)
                self._drop(id(self.tape.marks[number][1]))
            self._back(ops[: bounds[0]], grads)
        for held in {id(entry): entry for entry in grads.values()}.values():
            self.memory.give(held[0])
        for key in list(self._at):
            self._drop(key)

    def _back(self, ops: Sequence[Op], grads: dict[int, list[int]]) -> None:
        savers: dict[int, int] = {}
        for op in ops:
            for value in op.saves:
                savers[id(value)] = savers.get(id(value), 0) + 1
        final = self.tape.ops[-1]
        for op in reversed(ops):
            own = grads.pop(id(op.output), None) if op.output is not None else None
            if own is not None or op is final:
                self._spread(op, own, grads)
            if own is not None:
                own[1] -= 1
                if own[1] == 0:
                    self.memory.give(own[0])
            for value in op.saves:
                savers[id(value)] -= 1
                if savers[id(value)] == 0:
                    self._drop(id(value))

    def _spread(self, op: Op, own: list[int] | None, grads: dict[int, list[int]]) -> None:
        """The gradients of an operation's inputs and weights."""
        passing = []
        if op.backward_scratch:
            passing.append(self.memory.take(op.backward_scratch))
        for value in (value for value in op.inputs if value.grad and value.size):
            held = grads.get(id(value))
            if held is None and op.passes and own is not None:
                own[1] += 1
                grads[id(value)] = own
            elif held is None or held[1] > 1:  # what others hold, too, is not added to in place
                if held is not None:
                    held[1] -= 1
                grads[id(value)] = [self.memory.take(value.size), 1]
            elif not op.passes:
                passing.append(self.memory.take(value.size))
        if op.weight_grads:
            self.weight_grads += op.weight_grads
            number = self.memory.take(op.weight_grads)
            (self.kept if self.keeps_grads else passing).append(number)
        for number in passing:
            self.memory.give(number)


def _of(op: Op) -> tuple[Value, ...]:
    return op.inputs if op.output is None else (*op.inputs, op.output)
