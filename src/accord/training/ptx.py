"""A language-modelling loss beside the policy's: the "ptx" of InstructGPT's PPO-ptx."""

from __future__ import annotations

from torch import Tensor

from accord.algorithms import Denominators
from accord.algorithms.sft import example_batch
from accord.batch import TokenBatch
from accord.data import TokenSequence
from accord.losses import sft
from accord.model.forward import Outputs
from accord.training.parallel import Ranks
from accord.training.stream import Stream


class PTX:
    """Adds coef * (negative log-likelihood of a batch of text) to each step of the policy (Ouyang et al. 2022, arXiv:2203.02155,
    equation 2), so that it keeps what pre-training or fine-tuning taught it.

    Each term is divided by its own number of target tokens over all ranks, so `coef` is the weight of one mean beside the other,
    whatever the two batch sizes are.

    Args:
        stream: encoded rows; which of them belong to a step is a function of the seed and the step's number alone.
        coef: weight beside the policy loss.
        ranks: processes that share each batch.
    """

    role = "policy"
    temperature = 1.0
    """Text is learnt as it is, whatever the temperature that responses are sampled at."""

    def __init__(self, stream: Stream[TokenSequence], coef: float, ranks: Ranks) -> None:
        self.stream, self.coef, self.ranks = stream, coef, ranks

    def batch(self, step: int) -> TokenBatch:
        """This rank's rows of one optimiser step of the run, from 0."""
        return example_batch(self.ranks.share(self.stream.batch(step)))

    def loss(self, outputs: Outputs, batch: TokenBatch, denominators: Denominators) -> tuple[Tensor, dict[str, Tensor]]:
        """coef * `losses.sft`, and the loss before its weight."""
        assert outputs.logprobs_T is not None
        loss, metrics = sft(logprobs_T=outputs.logprobs_T, mask_T=batch.target_mask_T, tokens=denominators.tokens)
        return self.coef * loss, {"ptx/loss": metrics["sft/loss"]}
