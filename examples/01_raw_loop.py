"""Supervised fine-tuning with a loop of one's own: a batch without padding, log-probabilities, a loss, an optimiser.

    python examples/01_raw_loop.py [FOLDER]

Everything that `accord sft` does in an update, and nothing else. FOLDER (default: runs/example/raw_loop) receives the tiny
model that it starts from and the trained one, which plain transformers loads.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import torch
from transformers import AutoTokenizer

from accord.batch import TokenBatch
from accord.data import Encoder, TokenSequence
from accord.data.reviews import write_corpus, write_examples
from accord.losses import sft
from accord.model.forward import Role, forward
from accord.model.loading import load_weights, trunk_of
from accord.model.tiny import write_tiny_model

STEPS, BATCH, MICRO_BATCH_TOKENS = 40, 16, 512


def main(folder: Path) -> None:
    """Make a model, teach it film reviews, save it."""
    torch.manual_seed(0)
    print("making an untrained Llama and the tokenizer of 400 film reviews")
    start = write_tiny_model(folder / "start", write_corpus(400, seed=0), hidden=64, heads=4)

    # `load_weights` registers an attention that keeps packed sequences apart; a role says which parts are used how.
    model = load_weights(str(start), torch.float32, torch.device("cpu"))
    policy = Role("policy", trunk=trunk_of(model), output=model.get_output_embeddings())
    encoder = Encoder(AutoTokenizer.from_pretrained(start))
    rows = [encoder.encode_example(e.prompt, e.completion) for e in write_examples(400, seed=0)]

    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(STEPS):
        batch = pack(random.Random(step).sample(rows, BATCH))
        # The denominator counts the whole step, so that the cut into micro-batches does not change the gradient.
        tokens = torch.tensor(float(batch.targets))
        total = 0.0
        for micro in batch.split(MICRO_BATCH_TOKENS):
            logprobs_T = forward(policy, micro).logprobs_T
            loss, metrics = sft(logprobs_T=logprobs_T, mask_T=micro.target_mask_T, tokens=tokens)
            loss.backward()
            total += float(metrics["sft/loss"])  # additive: the sum over micro-batches is the mean of the step
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 0 or step == STEPS - 1:
            print(f"step {step + 1:>3}   loss {total:.3f} nats a token   {batch.tokens} tokens, {batch.targets} learnt")

    model.save_pretrained(folder / "model")
    encoder.tokenizer.save_pretrained(folder / "model")
    print(f"saved: {folder / 'model'}")


def pack(rows: list[TokenSequence]) -> TokenBatch:
    """Rows end to end."""
    return TokenBatch.from_sequences([row.input_ids for row in rows], [row.target_mask for row in rows])


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/example/raw_loop"))
