"""The classic session: one's own loop around `generate` and `step`."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias, overload

import yaml

from accord.algorithms import Metrics
from accord.config import PPORecipe, build, dump, load
from accord.data import EncodedPrompt
from accord.errors import AccordWarning, ConfigError, DataError, RewardError, RunError, TrainingError
from accord.model.card import write_card
from accord.model.device import choose_device
from accord.model.export import save_policy_and_critic
from accord.recipes.build import check_context, check_start, check_training, open_model
from accord.recipes.family import check_family
from accord.recipes.outside import Tokens, outside_rollouts
from accord.recipes.ppo import make_algorithm
from accord.recipes.rollouts import add_roles, check_critic, make_engine, make_ptx, make_sampling, own_rates
from accord.rewards.protocol import checked_rewards, describe, with_scores
from accord.rollout.collect import Collector
from accord.training.disk import writing
from accord.training.learner import Learner
from accord.training.loop import learn
from accord.training.optim import MakeOptimizer
from accord.training.run import changed_keys
from accord.training.schedule import MakeScheduler
from accord.training.seeds import generators_kept, seed_everything
from accord.training.sources import lag_metric
from accord.training.state import checkpoints, read_newest, write_checkpoint
from accord.types import Rollout, Text

UNREAD = {"data": {"path": "(session)"}, "output": "(session)"}
"""Sections that a recipe must have and a session does not read."""
Scores: TypeAlias = Sequence[float | Sequence[float]]
"""A finite number for each response, or one for each of its tokens."""


def _refuse_unread(recipe: PPORecipe) -> None:
    """Keys that a run reads and a session does not: taking them without a word would promise what does not happen."""
    unread = {
        "push": (recipe.push, "`accord export FOLDER --push` what `save` wrote"),
        "train.sinks": (recipe.train.sinks, "log what `step` returns"),
    }
    for key, (given, instead) in unread.items():
        if given:
            raise ConfigError(f"a session does not read {key} (given: {given}): {instead}")
    if recipe.reward and recipe.critic.start != "reward":
        names = ", ".join(term.label for term in recipe.reward)
        warnings.warn(
            f"a session does not ask `reward` ({names}): scores are what `step` is given", AccordWarning, stacklevel=3
        )
    for line in recipe.warnings():
        warnings.warn(line, AccordWarning, stacklevel=3)


class PPO:
    """Proximal policy optimisation with one's own loop:

        session = accord.PPO({"model": {"path": "runs/sft/model"}})
        rollouts = session.generate(["Review of ..."])
        stats = session.step(rollouts, scores=[1.0])
        session.step(["Review of ..."], ["A film to remember."], [1.0])   # a response that came from elsewhere
        session.save("runs/mine/model")

    The roles, the engine and the algorithm are those of `accord ppo`; where prompts and scores come from is the caller's.

    Args:
        config: a `PPORecipe`, the same as nested dicts, or the path of a YAML file. `data`, `output` and `reward` are not
            needed; `train.iterations` is the number of `step`s that the learning rate's schedule spans.
        optimizer: makes an optimiser of groups of weights, instead of `train.optimizer`: a class such as `torch.optim.RAdam`,
            or a function. Each group has `params`, its peak rate as `lr`, and `weight_decay`.
        scheduler: makes a torch scheduler of that optimiser, instead of `train.schedule`. It is stepped after each optimiser
            step, and must follow from their number alone.

    Raises:
        ConfigError, ModelError: see there.
    """

    def __init__(
        self,
        config: PPORecipe | Mapping[str, Any] | str | Path,
        *,
        optimizer: MakeOptimizer | None = None,
        scheduler: MakeScheduler | None = None,
    ) -> None:
        if isinstance(config, (str, Path)):
            config = load(config)
        self.recipe = config if isinstance(config, PPORecipe) else build(PPORecipe, UNREAD, config)
        recipe = self.recipe
        if recipe.placement.type != "local":
            raise ConfigError(
                "a session runs in one process (placement.type: local); `accord ppo` and accord.train run under torchrun"
            )
        _refuse_unread(recipe)
        check_training(recipe.train)
        check_family(recipe)
        check_critic(recipe)
        check_start(recipe)
        device = choose_device(recipe.placement)
        self.roles, self.encoder = open_model(recipe.model, recipe.adapter, device, recipe.seed)
        self.scorer = add_roles(recipe, self.roles)
        self.engine = make_engine(recipe, self.roles)
        self.algorithm = make_algorithm(recipe)
        steps = recipe.train.iterations * recipe.algorithm.epochs * recipe.algorithm.minibatches
        self.learner = Learner(
            self.roles,
            self.algorithm,
            recipe.train,
            steps,
            ptx=make_ptx(recipe, self.roles, self.encoder)[0],
            rates=own_rates(recipe),
            optimizer=optimizer,
            scheduler=scheduler,
        )
        sampling = make_sampling(recipe, self.encoder.stop_ids)
        seed, samples = recipe.seed, recipe.rollout.samples
        self._collector = Collector(self.engine, None, self.roles.tokenizer, sampling, samples, seed)
        self._calls = 0
        self._states: set[Path] = set()
        self.iteration = 0
        """Steps taken with `step`."""

    def generate(self, prompts: Sequence[Text], columns: Sequence[Mapping[str, Any]] | None = None) -> list[Rollout]:
        """`rollout.samples` responses to each prompt, in the order of the prompts.

        Args:
            prompts: plain texts, or conversations (tuples of `Message`).
            columns: anything to carry along with each prompt, in `Rollout.columns`.

        Raises:
            DataError: no prompts, or one that is longer than the recipe allows.
        """
        if isinstance(prompts, str):
            raise DataError(f"generate takes a list of prompts, and got one text: generate([{prompts[:40]!r}])")
        if not prompts:
            raise DataError("generate needs at least one prompt, and got none")
        if columns is not None and len(columns) != len(prompts):
            raise DataError(f"{len(columns)} columns were given for {len(prompts)} prompts; one mapping each is needed")
        encoded = []
        for index, text in enumerate(prompts):
            ids = self.encoder.encode_prompt(text)
            if not ids or len(ids) > self.recipe.prompt_limit:
                raise DataError(
                    f"prompt {index} has {len(ids)} tokens; between 1 and {self.recipe.prompt_limit} fit "
                    "(data.max_prompt_tokens, or data.max_tokens - rollout.max_new_tokens)"
                )
            encoded.append(EncodedPrompt(ids, self.encoder.prompt_text(text), columns[index] if columns else {}))
        longest = max(len(prompt.ids) for prompt in encoded) + self.recipe.rollout.max_new_tokens
        check_context(self.roles, longest, "rollout.max_new_tokens, or shorten the prompts")
        self._calls += 1
        return self._collector.collect(encoded, self._calls - 1).rollouts

    @overload
    def step(self, rollouts: Sequence[Rollout], /, scores: Scores) -> Metrics:
        """Learn from what `generate` gave."""

    @overload
    def step(
        self, queries: Sequence[Text | Tokens], responses: Sequence[str | Tokens], scores: Scores, *, end: bool = True
    ) -> Metrics:
        """Learn from responses that came from elsewhere."""

    def step(  # type: ignore[misc]  # mypy sees `scores` in the second place; by name it is found in both
        self, queries: Any, responses: Any = None, scores: Any = None, *, end: bool = True
    ) -> Metrics:
        """Learn from scored responses: one iteration of PPO, `epochs * minibatches` optimiser steps.

        `step(rollouts, scores)` takes what `generate` gave. `step(queries, responses, scores)` takes responses of anybody; they
        count as sampled by the policy as it is now: the ratio starts at 1, and the KL to the reference is measured at them.

        Args:
            queries: rollouts, any number that makes `minibatches` minibatches; or texts, conversations, or token ids.
            responses: texts or token ids, one for each query; not given with rollouts.
            scores: one finite number for each, or a sequence of them, one for each token of the response.
            end: a response that is a text gets the token that ends it. Token ids are taken as they are.

        Returns:
            The metrics of learning that `accord ppo` logs: `ppo/*`, `objective/*`, `env/*`, `optim/*`, `sampling/*` of the batch.

        Raises:
            RewardError: too few scores, or one that is no finite number, or not as many as the response has tokens.
            DataError: fewer rollouts than minibatches, or responses that cannot be learnt from.
        """
        if scores is None:
            responses, scores = None, responses
        if scores is None:
            raise RewardError("step needs scores: step(rollouts, scores) or step(queries, responses, scores)")
        if isinstance(scores, (str, Mapping)) or not (isinstance(scores, Iterable) or hasattr(scores, "tolist")):
            raise RewardError(f"scores is a {type(scores).__name__}; step needs a list with a score for each response")
        scores = scores if hasattr(scores, "tolist") else list(scores)
        rollouts = queries if responses is None else self._outside(queries, responses, scores, end)
        if not all(isinstance(rollout, Rollout) for rollout in rollouts):
            raise DataError(
                "step(rollouts, scores) takes rollouts of `generate`; for texts: step(queries, responses, scores)"
            )
        if len(rollouts) < self.recipe.algorithm.minibatches:
            raise DataError(
                f"{len(rollouts)} rollouts cannot be cut into {self.recipe.algorithm.minibatches} minibatches "
                "(algorithm.minibatches)"
            )
        values = checked_rewards("scores", scores, rollouts)
        for index, value in enumerate(values):
            if value is None:
                raise RewardError(
                    f"scores gave None for {describe(index, rollouts[index])}; step needs a number for each"
                )
        scored = [with_scores(r, {"score": value}, {"score": 1.0}) for r, value in zip(rollouts, values, strict=True)]
        metrics = self._learn(scored)
        metrics |= lag_metric(scored, self.iteration)
        self.iteration += 1
        self.engine.load(None, self.iteration)
        return metrics

    def _learn(self, scored: list[Rollout]) -> Metrics:
        """One iteration. The caller's random generators stay as they are; after an error before the first optimiser step, so does
        the algorithm."""
        before, steps = self.algorithm.state_dict(), self.learner.steps
        with generators_kept():
            seed_everything(self.recipe.seed, self.iteration)
            try:
                return learn(scored, self.algorithm, self.learner, self.scorer, self.recipe.seed, self.iteration)[1]
            except TrainingError:
                if self.learner.steps == steps:
                    self.algorithm.load_state_dict(before)
                raise

    def _outside(self, queries: Any, responses: Any, scores: Any, end: bool) -> list[Rollout]:
        counts = [len(given) for given in (queries, responses, scores)]
        if len(set(counts)) > 1:
            raise DataError("{} queries, {} responses and {} scores were given; step needs one of each".format(*counts))
        if isinstance(queries, str) or isinstance(responses, str):
            raise DataError("step takes a list of queries and a list of responses, and got one text")
        rollouts = outside_rollouts(queries, responses, self.encoder, self.scorer, end=end)
        return [replace(rollout, version=self.iteration) for rollout in rollouts]

    def save(self, folder: str | Path) -> Path:
        """Write the policy as a PEFT adapter or a Hugging Face model, with its tokenizer, and the critic beside it: as
        `value_head.safetensors`, or as a reward model in `critic/`. Returns the folder.

        Go on from there with `accord.PPO({"model": {"path": folder}, "critic": {"start": "saved"}})`; the reference is then the
        policy that was saved. For a continuation as if there had been no break see `save_state`.
        """
        with writing("the model", Path(folder)):
            save_policy_and_critic(self.roles, Path(folder))
            write_card(Path(folder), tags=("ppo",), trained_from=self.recipe.model.source)
        return Path(folder)

    def save_state(self, folder: str | Path) -> Path:
        """Write a checkpoint into a folder: all that learns, the optimiser, the KL's weight, and how often `generate` and `step`
        were called; `train.keep` of them are kept. Returns the path of this one.

        Raises:
            RunError: states of another session, which would be removed, lie there; or it cannot be written.
        """
        others = [path.name for path in checkpoints(Path(folder)) if path.resolve() not in self._states]
        if others:
            raise RunError(
                f"{folder} holds states that this session neither wrote nor loaded ({', '.join(others)}), and only the newest "
                f"{self.recipe.train.keep} up to its own would stay: go on from there with load_state, or choose another folder"
            )
        state = {
            "steps": self.learner.steps,
            "learner": self.learner.state_dict(),
            "algorithm": self.algorithm.state_dict(),
            "calls": self._calls,
            "recipe": yaml.safe_load(dump(self.recipe)),
        }
        written = write_checkpoint(Path(folder), self.iteration, self.learner.tensors(), state, self.recipe.train.keep)
        self._states.add(written.resolve())
        return written

    def load_state(self, folder: str | Path) -> None:
        """Be where the session was that wrote the newest checkpoint in a folder: what follows is the same, bit for bit on a CPU.

        Raises:
            RunError: there is no checkpoint, none is whole, or the optimiser is another.
            ConfigError: that session had another recipe.
        """
        checkpoint, damaged = read_newest(Path(folder))
        if checkpoint is None:
            raise RunError(f"no state in {folder}: save_state writes one")
        for line in damaged:
            warnings.warn(f"{line}; falling back to the one before", AccordWarning, stacklevel=2)
        changed = changed_keys(checkpoint.state["recipe"], self.recipe)
        if changed:
            raise ConfigError(
                f"{checkpoint.path} is the state of a session with another recipe:\n  - " + "\n  - ".join(changed)
            )
        self.learner.load_tensors(checkpoint.tensors, checkpoint.state["steps"], checkpoint.state["learner"])
        self.algorithm.load_state_dict(checkpoint.state["algorithm"])
        self._calls, self.iteration = int(checkpoint.state["calls"]), checkpoint.iteration
        self.engine.load(None, self.iteration)
        self._states.update(path.resolve() for path in checkpoints(Path(folder)))
