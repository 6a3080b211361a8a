"""What all recipes share that sample, score and learn: roles, rewards, engine, collector."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from accord.algorithms import Algorithm
from accord.config import DataConfig, PolicyGradient, RewardTerm, RolloutRecipe
from accord.data import Encoded, EncodedPrompt, Encoder, Loaded, encode_examples, encode_prompts
from accord.errors import ConfigError, ModelError
from accord.model.export import save_policy
from accord.model.loading import load_tokenizer, locate
from accord.model.roles import Roles
from accord.model.scorer import Scorer
from accord.ops.statistics import SumOverRanks
from accord.recipes.build import check_context, load_split, model_facts, read_rows, start
from accord.rewards import FunctionReward, MixedReward, ModelReward, RewardSource
from accord.rewards.function import load_function
from accord.rollout.collect import Collector
from accord.rollout.native import NativeEngine
from accord.rollout.protocol import Sampling
from accord.training.learner import Learner
from accord.training.loop import Parts
from accord.training.parallel import Ranks
from accord.training.ptx import PTX
from accord.training.sources import Rollouts
from accord.training.stream import Stream
from accord.types import Example


def build_rollouts(
    recipe: RolloutRecipe, make_algorithm: Callable[[SumOverRanks], Algorithm], *, greedy: bool = False
) -> Parts:
    """Everything that the loop needs.

    Args:
        recipe: of any algorithm on rollouts.
        make_algorithm: given the sum over ranks, the algorithm.
        greedy: whether the algorithm compares with the greedy response to each prompt.

    Raises:
        ConfigError: no reward is named.
    """
    kind = recipe.algorithm.type
    if not recipe.reward and recipe.needs_reward:
        raise ConfigError(f"{kind} needs a `reward`: --reward rewards.py:FUNCTION, or --reward PATH of a reward model")
    functions = {
        term.label: load_function(term.function) for term in recipe.reward if term.function
    }  # before any weights
    roles, encoder, ranks = start(recipe)
    _check_ranks(recipe, ranks)
    scorer = add_roles(recipe, roles)
    rewards = MixedReward([(make_reward(term, functions, scorer), term.weight) for term in recipe.reward])

    def encode(loaded: Loaded, config: DataConfig) -> Encoded[EncodedPrompt]:
        return encode_prompts(loaded, encoder, recipe.prompt_limit, config.too_long, config.on_bad_row)

    split = load_split(recipe, encode)
    rollout = recipe.rollout
    longest = max(len(prompt.ids) for prompt in split.train) + rollout.max_new_tokens
    check_context(roles, longest, "data.max_prompt_tokens or rollout.max_new_tokens")
    engine = NativeEngine(roles, rollout.max_sequences, recipe.train.micro_batch_tokens)
    sampling = make_sampling(recipe, encoder.stop_ids)
    collector = Collector(
        engine, rewards if recipe.reward else None, roles.tokenizer, sampling, rollout.samples, recipe.seed, greedy
    )
    stream = Stream(split.train, recipe.train.batch_size // rollout.samples, recipe.seed)
    algorithm = make_algorithm(ranks.sum)
    steps = recipe.algorithm.epochs * recipe.algorithm.minibatches
    ptx, text = make_ptx(recipe, roles, encoder, ranks)
    learner = Learner(roles, algorithm, recipe.train, recipe.train.iterations * steps, ranks, ptx=ptx)
    return Parts(
        kind=kind,
        recipe=recipe,
        algorithm=algorithm,
        learner=learner,
        scorer=scorer,
        source=Rollouts(stream, collector, ranks, rollout.dynamic_sampling),
        iterations=recipe.train.iterations,
        steps_per_iteration=steps,
        save=partial(save_policy, roles),
        engine=engine,
        facts=model_facts(recipe, roles, learner.weights) | split.facts | text | _facts(recipe, rewards),
        next_steps=[("try it", f'accord generate {recipe.output}/model --prompt "..."')],
    )


def make_ptx(
    recipe: RolloutRecipe, roles: Roles, encoder: Encoder, ranks: Ranks | None = None
) -> tuple[PTX | None, dict[str, str]]:
    """The recipe's language-modelling loss, if it has one, and a line about its rows.

    Raises:
        DataError: see `read_records` and `encode_examples`.
        ConfigError: a row is longer than the model reads, or the ranks cannot share a batch.
    """
    ranks, ptx = ranks or Ranks(), recipe.ptx
    if ptx is None:
        return None, {}
    if ptx.batch_size % ranks.size:
        raise ConfigError(f"ptx.batch_size ({ptx.batch_size}) must be a multiple of the number of ranks ({ranks.size})")
    rows, facts = read_rows(ptx.data, Example, lambda loaded, config: encode_examples(loaded, encoder, config))
    check_context(roles, max(len(row) for row in rows), "ptx.data.max_tokens")
    return PTX(Stream(rows, ptx.batch_size, recipe.seed, ranks=ranks.size), ptx.coef, ranks), {
        "ptx": f"{ptx.coef:g} x the loss of {ptx.batch_size} rows a step, {facts['data']}"
    }


def _check_ranks(recipe: RolloutRecipe, ranks: Ranks) -> None:
    """Every rank must have prompts for every minibatch, or it would wait for a step that the others never take."""
    prompts = recipe.train.batch_size // recipe.rollout.samples
    share = (prompts if recipe.algorithm.one_of_a_group else recipe.train.batch_size) // ranks.size
    if prompts % ranks.size or share < recipe.algorithm.minibatches:
        raise ConfigError(
            f"{prompts} prompts an iteration (train.batch_size / rollout.samples) over {ranks.size} ranks: each rank needs "
            f"the same number, and at least {recipe.algorithm.minibatches} responses (algorithm.minibatches)"
        )


def add_roles(recipe: RolloutRecipe, roles: Roles) -> Scorer:
    """Policy, reference, rewards and critic, in the order in which one may start from another; returns their scorer."""
    critic = getattr(recipe, "critic", None)
    for path in (recipe.reference.path, getattr(critic, "path", None)):
        if path is not None:
            check_tokenizer(path, roles)
    roles.add_policy(critic)
    roles.add_reference(recipe.reference)
    for term in recipe.reward:
        if term.model is not None:
            check_tokenizer(term.model, roles)
            roles.add_reward(term.model, f"reward/{term.label}")
    if critic is not None:
        roles.add_critic(critic)
    return Scorer(roles, recipe.train.micro_batch_tokens, recipe.rollout.temperature)


def check_tokenizer(path: str, roles: Roles) -> None:
    """Reference, critic and reward read the policy's token ids, so they must mean the same by them.

    Raises:
        ModelError: they do not.
    """
    location = locate(path)
    config = roles.config.model_copy(update={"path": path})
    if load_tokenizer(config, location).get_vocab() != roles.tokenizer.get_vocab():
        raise ModelError(
            f"{path} has another tokenizer than the policy {roles.config.path}; it would read other words. Take one that was "
            "trained on the policy's base; a reward model can also be wrapped in a reward function that takes text"
        )


def make_reward(term: RewardTerm, functions: Mapping[str, Callable[..., Any]], scorer: Scorer) -> RewardSource:
    """The source that a term of the recipe names; its role, if it is a model, is there already."""
    if term.model is not None:
        return ModelReward(scorer, f"reward/{term.label}", term.label)
    return FunctionReward(functions[term.label], term.label)


def make_sampling(recipe: RolloutRecipe, stop_ids: frozenset[int]) -> Sampling:
    """The recipe's rollout section as the engine's sampling."""
    rollout = recipe.rollout
    return Sampling(
        max_new_tokens=rollout.max_new_tokens,
        temperature=rollout.temperature,
        top_k=rollout.top_k,
        top_p=rollout.top_p,
        stop_ids=stop_ids,
        stop_texts=rollout.stop,
    )


def _facts(recipe: RolloutRecipe, rewards: MixedReward) -> dict[str, str]:
    weighted = ", ".join(
        f"{term.weight:g} x {label}" for term, label in zip(recipe.reward, rewards.labels, strict=True)
    )
    facts = {"reward": weighted} if weighted else {}
    if isinstance(recipe.algorithm, PolicyGradient):
        kl = recipe.algorithm.kl
        control = "fixed" if kl.target is None else f"adaptive to {kl.target:g} nats"
        facts["KL"] = (
            f"{kl.estimator} in the {kl.use}, coefficient {kl.coef:g} ({control}), to {recipe.reference.source}"
        )
    critic = getattr(recipe, "critic", None)
    return (
        facts if critic is None else facts | {"critic": f"{critic.source}, started from {critic.path or critic.start}"}
    )
