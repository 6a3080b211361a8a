"""Forward passes of each family as a tape: what `transformers`, `peft` and our own attention do to a packed batch."""

from __future__ import annotations

from accord.forecast.modes import Low, Pass
from accord.forecast.shapes import Architecture, Layer, Matrix, Norm
from accord.forecast.tape import FLOAT, Tape, Value

TILE = 2**22
"""As in `accord.model.quantized`, which imports bitsandbytes; a test compares them."""
EXPERTS = ("router", "experts_in", "experts_out")
"""Roles under which adapters on experts are found."""


class Blocks:
    """Writes a model's forward pass on a tape.

    Args:
        shape: of the model.
        tape: takes the operations.
        how: the pass.
    """

    def __init__(self, shape: Architecture, tape: Tape, how: Pass) -> None:
        self.shape, self.tape, self.how = shape, tape, how

    def trunk(self) -> Value:
        """Embeddings, all layers, last norm; gives the hidden states."""
        tape, how, shape = self.tape, self.how, self.shape
        learns = how.trains_base and not how.frozen_layers
        width = shape.vocabulary * shape.embedding * how.item
        if shape.reads == "encoder-decoder":
            tape.tokens = max(tape.tokens // 2, 1)  # a token goes through one of the two stacks
        h = first = tape.value(shape.hidden, how.item, learns or how.inputs_learn)
        # Where embedding and output layer are one, both hand their gradient to one weight.
        own = (0 if shape.tied else width) + shape.other * how.item
        tape.add([], h, weight_grads=own if learns else 0, backward_scratch=width if learns and shape.tied else 0)
        if shape.family.startswith("gemma3"):
            h = tape.unary(h)
        turns = [tape.value(max(layer.head_dim for layer in shape.layers), how.item, False) for _ in range(2)]
        for turn in turns:  # cosine and sine of the positions
            tape.add([], turn)
        rotates = any(layer.rotary for layer in shape.layers)
        for number, layer in enumerate(shape.layers):
            tape.marks.append((len(tape.ops), h))
            before, h = h, self.layer(number, layer, h)
            tape.hold(before)
        tape.end = len(tape.ops)
        if rotates:
            tape.add([*turns, h], None)
            tape.ops[-1].saves = tuple(turns) if tape.trains else ()
        h = self.norm(h, shape.final_norm, how.trains_base)
        tape.hold(first)
        return h

    def layer(self, number: int, layer: Layer, h: Value) -> Value:
        """One block."""
        tape, trains = self.tape, self._trains(number)
        rate = layer.dropout if self.how.base_dropout else 0.0
        if layer.attention == "mamba":
            x = self.norm(h, layer.norm, trains)
            h = tape.sum(h, self.mamba(number, layer, x))
            return tape.sum(h, self.forward(number, layer, self.norm(h, layer.norm, trains))) if _feeds(layer) else h
        x = self.norm(h, layer.norm, trains, layer.norms if trains else 0)
        a = tape.dropout(self.attention(number, layer, x), rate)
        tape.hold(x)
        if layer.parallel != "no":
            y = x if layer.parallel == "one norm" else self.norm(h, layer.norm, trains)
            return tape.sum(tape.dropout(self.forward(number, layer, y), rate), a, h)
        a = self.norm(a, layer.norm, trains) if layer.sandwich else a
        h = tape.sum(h, a)
        if "cross_q" in layer.matrices:
            x = self.norm(h, layer.norm, trains)
            h = tape.sum(h, self.attention(number, layer, x, "cross_"))
        x = self.norm(h, layer.norm, trains)
        f = tape.dropout(self.forward(number, layer, x), rate)
        tape.hold(x)
        return tape.sum(h, self.norm(f, layer.norm, trains) if layer.sandwich else f)

    def _trains(self, number: int) -> bool:
        return self.how.trains_base and number >= self.how.frozen_layers

    # --- parts -------------------------------------------------------------------------------------------------------

    def norm(self, x: Value, kind: Norm, trains: bool, weights: int = 0) -> Value:
        """As each family writes it: PyTorch's layer norm is one operation, an RMS norm is arithmetic.

        `weights` of it and its neighbours learn.
        """
        tape, own = self.tape, weights * self.how.item
        if kind == "layer":
            y = tape.like(x, grad=x.grad or trains)
            moments = tape.value(2, FLOAT, False, x.size // int(x.width * x.item))
            tape.add([], moments)
            tape.add([x, moments], y, [x, moments], weight_grads=own)
            return y
        wide = tape.cast(x, FLOAT)
        if kind == "cohere":
            centred = tape.unary(wide)
            squares = tape.unary(tape.unary(wide), "input")
            root = tape.value(1, FLOAT, x.grad)
            tape.add([squares], root, [root])
            scaled = tape.product(centred, root)
            return tape.cast(tape.scaled(scaled, trains, own), x.item)
        squares = tape.unary(wide, "input")
        root = tape.value(1, FLOAT, x.grad)
        tape.add([squares], root, [root])
        y = tape.product(x if kind == "t5" else wide, root)
        if kind == "gemma":
            return tape.cast(tape.scaled(y, trains, own), x.item)
        return tape.scaled(tape.cast(y, x.item), trains, own)

    def linear(self, number: int, role: str, matrix: Matrix, x: Value) -> Value:
        """A linear layer with what an adapter adds to it."""
        tape, how = self.tape, self.how
        trains = self._trains(number)
        low, scales_input = how.low.get((number, role)), how.vectors.get((number, role))
        tokens = x.size // int(x.width * x.item)
        if scales_input:
            x = self._scaled(x)
        if low is not None and how.thin and not low.dora:
            return self._thin(matrix, low, x, tokens)
        y = tape.value(matrix.outputs, how.item, x.grad or trains, tokens)
        forward, backward = self._dequantized(matrix, tokens)
        tape.add(
            [x],
            y,
            [x] if trains else [],
            weight_grads=matrix.parameters * how.item if trains else 0,
            scratch=forward,
            backward_scratch=backward,
        )
        if scales_input is False:
            y = self._scaled(y)
        return y if low is None else self._low_rank(matrix, low, x, y)

    def _thin(self, matrix: Matrix, low: Low, x: Value, tokens: int) -> Value:
        """y + scale * B A x as one operation: the input, A x, and A and B as they were rounded are kept."""
        tape, item = self.tape, self.how.item
        inner = tape.value(low.rank, item, False, tokens)
        rounded = low.rank * (matrix.outputs + (matrix.inputs if item != FLOAT else 0)) * item
        both = Value(1, item, rounded, False)
        y = tape.value(matrix.outputs, item, True, tokens)
        tape.add([], both)
        tape.add([], inner)
        forward, backward = self._dequantized(matrix, tokens)
        tape.add(
            [x, inner, both],
            y,
            [x, inner, both],
            weight_grads=low.parameters * FLOAT,
            scratch=forward,
            backward_scratch=backward,
        )
        return y

    def _dequantized(self, matrix: Matrix, tokens: int) -> tuple[int, int]:
        """Forward and backward: a quantised weight is unpacked tile by tile (`accord.model.quantized`); the gradient of what
        it reads adds up in float32, one tile's product at a time beside it."""
        if not self.how.quantized:
            return 0, 0
        item, rows = self.how.item, max(1, TILE // matrix.inputs // 64) * 64
        rows = min(rows, matrix.outputs)
        scales = matrix.inputs * matrix.outputs // 64 * FLOAT if self.how.quantized == 4 else 0
        wide = tokens * rows * (item + FLOAT) if self.how.quantized == 8 else tokens * rows * item
        tile = rows * matrix.inputs * item + scales
        return tile + wide, tile + tokens * matrix.inputs * (FLOAT + item)

    def _scaled(self, x: Value) -> Value:
        """IA3: times a learnt vector."""
        wide = self.tape.cast(x, self.how.adapter_item)
        return self.tape.cast(self.tape.scaled(wide, weight_trains=self.tape.trains), x.item)

    def _low_rank(self, matrix: Matrix, low: Low, x: Value, y: Value) -> Value:
        """y + scale * B A x; A and B are float32, and so is what they read (peft's `_cast_input_dtype`)."""
        tape, item = self.tape, self.how.adapter_item
        tokens = x.size // int(x.width * x.item)
        wide = tape.dropout(tape.cast(x, item), self.how.dropout)
        a = tape.value(low.rank, item, True, tokens)
        tape.add([wide], a, [wide], weight_grads=low.rank * matrix.inputs * item)
        b = tape.value(matrix.outputs, item, True, tokens)
        tape.add([a], b, [a], weight_grads=(low.parameters - low.rank * matrix.inputs) * item)
        if not low.dora:
            return tape.cast(tape.sum(y, tape.unary(b)), y.item)
        # (m - 1) W x + m scale B A x, where m is a learnt number a row over the norm of W + B A: both factors of m are kept.
        whole = (3 * matrix.inputs * matrix.outputs + matrix.inputs**2) * item
        tape.add([], None, scratch=whole)
        left, right = tape.like(b), tape.scaled(b, weight_trains=True)
        tape.add([y], left, [y], scratch=left.size if y.item != item else 0)
        return tape.cast(tape.sum(y, tape.sum(left, tape.unary(right))), y.item)

    def attention(self, number: int, layer: Layer, x: Value, prefix: str = "") -> Value:
        """Projections, rotation, attention, output projection."""
        tape, m = self.tape, layer.matrices
        inner = layer.heads * layer.head_dim
        if "qkv" in m:
            fused = self.linear(number, "qkv", m["qkv"], x)
            q, k, v, whole = self._views(fused, inner)
        else:
            q, k, v = (self.linear(number, prefix + role, m[prefix + role], x) for role in "qkv")
            whole = None
        if self.shape.family == "opt":
            q = tape.unary(q)
        if layer.qk_norm:
            trains = self._trains(number)
            q, k = (self._head_norm(part, layer, trains) for part in (q, k))
        if layer.rotary:
            q, k = (self._rotated(part, layer, fused=whole is not None) for part in (q, k))
        mixed = self._eager(layer, q, k, v, whole) if self._is_eager(layer) else self._segments(layer, q, k, v, whole)
        return self.linear(number, prefix + "o", m[prefix + "o"], mixed)

    def _is_eager(self, layer: Layer) -> bool:
        drops = self.how.base_dropout and layer.attention_dropout > 0 and self.tape.trains
        return layer.attention == "eager" or drops

    def _views(self, fused: Value, inner: int) -> tuple[Value, Value, Value, Value]:
        """q, k and v as parts of one tensor: no memory of their own."""
        parts = []
        for _ in range(3):
            part = Value(inner, fused.item, 0, fused.grad)
            self.tape.add([fused], part, passes=False)
            parts.append(part)
        return parts[0], parts[1], parts[2], fused

    def _head_norm(self, x: Value, layer: Layer, trains: bool) -> Value:
        """An RMS norm over each head's features."""
        tape = self.tape
        wide = tape.cast(x, FLOAT)
        squares = tape.unary(wide, "input")
        root = tape.value(x.width / layer.head_dim, FLOAT, x.grad)
        tape.add([squares], root, [root])
        y = tape.product(wide, root)
        if layer.norm == "gemma":
            return tape.cast(tape.scaled(y, trains), x.item)
        return tape.scaled(tape.cast(y, x.item), trains)

    def _rotated(self, x: Value, layer: Layer, fused: bool) -> Value:
        """x cos + rotate_half(x) sin; cos and sin are shared by all layers."""
        tape = self.tape
        width = x.width * layer.rotary
        first = tape.value(width, x.item, x.grad)
        tape.add([x], first)
        half = tape.value(width, x.item, x.grad)
        tape.add([x], half)
        turned = tape.sum(first, tape.unary(half))
        if layer.rotary == 1.0:
            return turned
        whole = tape.value(x.width, x.item, x.grad)
        tape.add([turned, x], whole)
        return whole

    def _segments(self, layer: Layer, q: Value, k: Value, v: Value, whole: Value | None) -> Value:
        """Scaled-dot-product attention, one sequence at a time; flash kernels keep q, k, v, the result and a sum a head, ours the
        first three."""
        tape = self.tape
        width = layer.heads * layer.head_dim
        out = tape.value(width, q.item, q.grad or k.grad or v.grad)
        sums = tape.value(layer.heads, FLOAT, False)
        others = [whole] if whole is not None else []
        others += self._joined(layer, k, v) if self.how.joined else []
        own = [part for part in (q, k, v) if part.size] + others
        tape.add([], sums)
        masks = self._masks(layer, q.item)
        tape.add(
            [q, k, v, *others, sums],
            out,
            own if self.how.own_backward else [*own, out, sums, *masks],
        )
        joined = tape.like(out)
        tape.add([out], joined)
        flat = tape.like(out)
        tape.add([joined], flat)
        return flat

    def _joined(self, layer: Layer, *parts: Value) -> list[Value]:
        """Keys and values of a prefix and of what comes behind it, copied end to end for each sequence."""
        copies = []
        for part in parts:
            copy = self.tape.value(layer.kv_heads * layer.head_dim, part.item, part.grad, self.how.joined)
            self.tape.add([part], copy)
            copies.append(copy)
        return copies

    def _masks(self, layer: Layer, item: int) -> list[Value]:
        """A window shorter than a sequence is a mask of queries by keys."""
        longest = self.how.longest
        if layer.window is None or longest <= layer.window or not self.tape.trains:
            return []
        sequences = max(self.tape.tokens // longest, 1)
        mask = Value(longest, item, sequences * longest * longest * item, False)
        self.tape.add([], mask)
        return [mask]

    def _eager(self, layer: Layer, q: Value, k: Value, v: Value, whole: Value | None) -> Value:
        """Attention written out: the weights of each query by key are kept, in float32 and in the base's type."""
        tape, longest = self.tape, max(self.how.longest, 1)
        scores = tape.value(layer.heads * longest, q.item, q.grad or k.grad)
        source = [whole] if whole is not None else [q, k]
        tape.add([q, k, *source], scores, source)
        masked = tape.unary(scores)
        soft = tape.unary(tape.cast(masked, FLOAT), "output")
        weights = tape.dropout(tape.cast(soft, q.item), layer.attention_dropout if self.how.base_dropout else 0.0)
        out = tape.value(layer.heads * layer.head_dim, q.item, weights.grad or v.grad)
        tape.add([weights, v, *source], out, [weights, *(source if whole is not None else [v])])
        tape.hold(scores, masked, weights)
        flat = tape.like(out)
        tape.add([out], flat)
        return flat

    def forward(self, number: int, layer: Layer, x: Value) -> Value:
        """The feed-forward layer, or the experts."""
        tape, m = self.tape, layer.matrices
        if layer.experts is not None:
            return self._experts(number, layer, x)
        if "gate" in m:
            bent = tape.activation(self.linear(number, "gate", m["gate"], x), layer.activation)
            inner = tape.product(bent, self.linear(number, "up", m["up"], x))
        else:
            inner = tape.activation(self.linear(number, "up", m["up"], x), layer.activation)
        rate = layer.dropout if self.how.base_dropout and layer.norm == "t5" else 0.0
        return self.linear(number, "down", m["down"], tape.dropout(inner, rate))

    def _experts(self, number: int, layer: Layer, x: Value) -> Value:
        """Each token goes through `chosen` experts: gather, gate and up in one product, down, weigh, add up.

        An adapter on experts is added to their weights before they are used (peft's `target_parameters`), so a pass makes, and
        autograd keeps, a whole set of them.
        """
        tape, experts, trains = self.tape, layer.experts, self._trains(number)
        assert experts is not None
        low = [self.how.low[number, role] for role in EXPERTS if (number, role) in self.how.low]
        learns = trains or bool(low)
        routed = tape.value(4 * experts.count, FLOAT, x.grad or learns)
        tape.add([x], routed, [routed])
        n = tape.tokens * experts.chosen
        own = experts.parameters * self.how.item if trains else 0
        adapters = sum(part.parameters for part in low) * self.how.adapter_item
        merged = Value(1, x.item, 3 * experts.count * experts.inputs * experts.width * x.item if low else 0, learns)
        tape.add([], merged, weight_grads=adapters, scratch=merged.size, backward_scratch=merged.size)
        gathered = tape.value(experts.inputs, x.item, x.grad, n)
        tape.add([x], gathered)
        both = tape.value(2 * experts.width, x.item, x.grad or learns, n)
        tape.add([gathered, merged], both, [gathered, merged] if learns else [], weight_grads=own)
        bent = tape.value(experts.width, x.item, both.grad, n)
        tape.add([both], bent, [both])
        inner = tape.value(experts.width, x.item, both.grad, n)
        tape.add([bent, both], inner, [bent, both])
        down = tape.value(experts.inputs, x.item, both.grad, n)
        tape.add([inner, merged], down, [inner, merged] if learns else [])
        weighed = tape.like(down)
        tape.add([down, routed], weighed, [down] if both.grad else [])
        out = tape.like(x, grad=weighed.grad)
        tape.add([weighed], out)
        return out

    def mamba(self, number: int, layer: Layer, x: Value) -> Value:
        """A Mamba mixer; the scan without fused kernels keeps states of every token (an estimate)."""
        tape, m = self.tape, layer.matrices
        inner = m["dt"].outputs
        both = self.linear(number, "in", m["in"], x)
        conv = tape.value(inner, x.item, both.grad)
        tape.add([both], conv, [both])
        bent = tape.activation(conv, "silu")
        small = self.linear(number, "x", m["x"], bent)
        steps = tape.value(inner, FLOAT, small.grad)
        tape.add([small], steps, [steps])
        states = tape.value(3 * layer.state, FLOAT, steps.grad)
        tape.add([steps, bent], states, [states])
        out = tape.value(inner, FLOAT, states.grad)
        tape.add([states], out, [out])
        gated = tape.product(tape.cast(out, x.item), tape.unary(both) if both.width == inner else tape.like(bent))
        return self.linear(number, "out", m["out"], gated)


def _feeds(layer: Layer) -> bool:
    return layer.experts is not None or "down" in layer.matrices
