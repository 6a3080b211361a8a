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


def replay(tape: Tape, grads_before: int = 0, checkpointing: bool = False) -> Peak:
    """The most bytes that are alive at once.

    Args:
        tape: a whole forward pass.
        grads_before: bytes of these weights' gradients that an earlier micro-batch left; they are alive throughout, and new
            ones are added to them.
        checkpointing: of each marked layer only the input is kept, and the layer is computed again in backward.
    """
    if not tape.trains:
        return Peak(_forward(tape.ops)[0], 0, 0, 0)
    left = sum(op.weight_grads for op in tape.ops)
    if checkpointing and tape.marks:
        return _checkpointed(tape, grads_before, left)
    forward, saved = _forward(tape.ops)
    return Peak(grads_before + forward, saved, _backward(tape.ops, saved, grads_before), left)


def _forward(ops: Sequence[Op]) -> tuple[int, int]:
    """Most bytes alive, and those saved in the end."""
    last: dict[int, int] = {}
    kept: dict[int, Value] = {}
    for number, op in enumerate(ops):
        for value in _of(op):
            last[id(value)] = number
        kept |= {id(value): value for value in op.saves}
    born: set[int] = set()
    alive = most = 0
    for number, op in enumerate(ops):
        values = {id(value): value for value in _of(op)}
        alive += sum(value.size for key, value in values.items() if key not in born)
        born |= values.keys()
        most = max(most, alive + op.scratch)
        alive -= sum(value.size for key, value in values.items() if last[key] == number and key not in kept)
    return most, sum(value.size for value in kept.values())


def _of(op: Op) -> tuple[Value, ...]:
    return op.inputs if op.output is None else (*op.inputs, op.output)


def _backward(ops: Sequence[Op], saved: int, grads_before: int) -> int:
    """Most bytes alive while gradients flow back over `ops`; the gradient of the last output comes from elsewhere."""
    savers: dict[int, int] = {}
    for op in ops:
        for value in op.saves:
            savers[id(value)] = savers.get(id(value), 0) + 1
    grads: dict[int, list[int]] = {}  # value -> [bytes, holders]: one memory may be the gradient of several values
    alive, weights = saved, grads_before
    most = alive + weights
    for op in reversed(ops):
        own = grads.pop(id(op.output), None) if op.output is not None else None
        if own is not None or op is ops[-1]:
            passing = 0
            for value in (value for value in op.inputs if value.grad):
                held = grads.get(id(value))
                if held is None and op.passes and own is not None:
                    own[1] += 1
                    grads[id(value)] = own
                elif held is None:
                    grads[id(value)] = [value.size, 1]
                    alive += value.size
                elif held[1] > 1:  # what others hold, too, is not added to in place
                    held[1] -= 1
                    grads[id(value)] = [value.size, 1]
                    alive += value.size
                elif not op.passes:
                    passing += value.size
            most = max(most, alive + passing + weights + op.weight_grads + op.backward_scratch)
            weights += 0 if grads_before else op.weight_grads
        if own is not None:
            own[1] -= 1
            alive -= own[0] if own[1] == 0 else 0
        for value in op.saves:
            savers[id(value)] -= 1
            alive -= value.size if savers[id(value)] == 0 else 0
    return most


def _checkpointed(tape: Tape, grads_before: int, left: int) -> Peak:
    """Layer inputs are kept, each layer is computed again; what follows the last layer is an ordinary pass."""
    bounds = [*(start for start, _ in tape.marks), tape.end]
    parts = [tape.ops[start:end] for start, end in pairwise(bounds)]
    head, tail = tape.ops[: bounds[0]], tape.ops[bounds[-1] :]
    held = sum(value.size for _, value in tape.marks)
    tail_forward, tail_saved = _forward(tail)
    forward = grads_before + held + max(tail_forward, _forward(head)[0], *(_forward(part)[0] for part in parts))
    weights = grads_before
    saved, most = held + tail_saved, held + _backward(tail, tail_saved, grads_before)
    weights += 0 if grads_before else sum(op.weight_grads for op in tail)
    for (_, value), part in reversed(list(zip(tape.marks, parts, strict=True))):
        again, kept = _forward(part)
        most = max(most, held + weights + value.size + max(again, _backward(part, kept, 0)))
        weights += 0 if grads_before else sum(op.weight_grads for op in part)
        held -= value.size
    return Peak(forward, saved, most, left)
