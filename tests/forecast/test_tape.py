"""The bookkeeping of the tape, by hand."""

from __future__ import annotations

from accord.forecast.tape import Peak, Tape, replay


def chain(trains: bool = True, layers: int = 3) -> Tape:
    """Layers of x -> silu(x) -> times 2, on 10 tokens of 8 float32: 320 bytes a tensor; silu saves its input."""
    tape = Tape(10, trains)
    x = tape.value(8, 4, True)
    tape.add([], x)
    for _ in range(layers):
        tape.marks.append((len(tape.ops), x))
        x = tape.unary(tape.activation(x, "silu"))
    tape.end = len(tape.ops)
    return tape


def test_a_pass_without_gradients_holds_two_tensors_at_a_time():
    assert replay(chain(trains=False)) == Peak(forward=640, saved=0, backward=0, weight_grads=0)


def test_what_is_saved_stays_until_its_backward():
    # Saved: the inputs of three silus. Forward, beside them: the last silu's output and its double.
    # Backward: the three, and two gradients at a time.
    assert replay(chain()) == Peak(forward=5 * 320, saved=3 * 320, backward=5 * 320, weight_grads=0)


def test_a_frozen_linear_layer_saves_nothing_and_a_trained_one_its_input():
    for trains, kept in ((False, 0), (True, 320)):
        tape = Tape(10, True)
        x = tape.value(8, 4, False)
        tape.add([], x)
        y = tape.value(8, 4, trains)
        tape.add([x], y, [x], weight_grads=256 if trains else 0)
        assert replay(tape).saved == kept
        assert replay(tape).weight_grads == (256 if trains else 0)


def test_a_product_saves_each_factor_for_the_other():
    tape = Tape(10, True)
    a, b, c = tape.value(8, 4, True), tape.value(8, 4, True), tape.value(1, 4, False)
    for value in (a, b, c):
        tape.add([], value)
    tape.product(tape.product(a, b), c)  # a and b for each other; c for a b, whose own value nobody needs
    assert replay(tape).saved == 2 * 320 + 40


def test_an_addition_hands_its_gradient_on_without_a_copy():
    tape = Tape(10, True)
    a, b = tape.value(8, 4, True), tape.value(8, 4, True)
    for value in (a, b):
        tape.add([], value)
    tape.unary(tape.sum(a, b))
    assert replay(tape).saved == 0
    assert replay(tape).backward == 320  # one gradient is that of the sum, of a and of b


def test_gradients_of_an_earlier_micro_batch_are_there_all_the_time():
    tape = Tape(10, True)
    x = tape.value(8, 4, False)
    tape.add([], x)
    for _ in range(3):
        y = tape.value(8, 4, True)
        tape.add([x], y, [x], weight_grads=256)
        x = y
    first, second = replay(tape), replay(tape, grads_before=3 * 256)
    assert second.forward == first.forward + 3 * 256
    # Backward is fullest at the second operation: of three saved tensors one is gone, gradients of two tensors flow, and two
    # gradients of weights have come, of which in the second micro-batch one at a time, beside the three that were there.
    assert first.backward == 2 * 320 + 2 * 320 + 2 * 256
    assert second.backward == 2 * 320 + 2 * 320 + 3 * 256 + 256
    assert first.weight_grads == second.weight_grads == 3 * 256


def test_checkpointing_keeps_the_inputs_of_layers_and_one_layer():
    plain, spare = replay(chain(layers=16)), replay(chain(layers=16), checkpointing=True)
    assert plain.saved == 16 * 320
    assert spare.saved <= 17 * 320
    tape = Tape(10, True)  # layers that keep eight tensors each
    x = tape.value(8, 4, True)
    tape.add([], x)
    for _ in range(16):
        tape.marks.append((len(tape.ops), x))
        for _ in range(8):
            x = tape.activation(x, "silu")
    tape.end = len(tape.ops)
    plain, spare = replay(tape), replay(tape, checkpointing=True)
    assert plain.saved == 16 * 8 * 320
    assert spare.saved == 17 * 320
    assert spare.backward < plain.backward / 4
    assert spare.backward >= (16 + 8) * 320


def test_dropout_keeps_a_mask_of_a_number_on_cpu_and_of_a_byte_elsewhere():
    kept = []
    for compact in (False, True):
        tape = Tape(10, True, compact_masks=compact)
        x = tape.value(8, 4, True)
        tape.add([], x)
        tape.dropout(x, 0.1)
        kept.append(replay(tape).saved)
    assert kept == [320, 80]
    still = Tape(10, False)
    assert still.dropout(x, 0.1) is x
