"""What all recipes share that sample, score and learn: roles, rewards, engine, collector."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from accord.algorithms import Algorithm
from accord.config import DataConfig, RolloutRecipe
from accord.data import Encoded, EncodedPrompt, Loaded, encode_prompts
from accord.errors import ConfigError, ModelError
from accord.model.export import save_policy
from accord.model.loading import load_tokenizer, locate
from accord.model.roles import Roles
from accord.model.scorer import Scorer
from accord.ops.statistics import SumOverRanks
from accord.recipes.build import check_context, load_split, model_facts, start
from accord.recipes.rewards import check_columns, mixed, open_light
from accord.rewards import MixedReward
from accord.rollout.collect import Collector
from accord.rollout.native import NativeEngine
from accord.rollout.protocol import Sampling
from accord.training.learner import Learner
from accord.training.loop import Parts
from accord.training.parallel import Ranks
from accord.training.sources import Rollouts
from accord.training.stream import Stream
from accord.types import Prompt


def build_rollouts(recipe: RolloutRecipe, make_algorithm: Callable[[SumOverRanks], Algorithm]) -> Parts:
    """Everything that the loop needs.

    Args:
        recipe: of any algorithm on rollouts.
        make_algorithm: given the sum over ranks, the algorithm.

    Raises:
        ConfigError: no reward is named.
    """
    kind = recipe.algorithm.type
    if not recipe.reward:
        raise ConfigError(f"{kind} needs a `reward`: --reward rewards.py:FUNCTION, or --reward PATH of a reward model")
    light = open_light(recipe.reward)  # before any weights
    roles, encoder, ranks = start(recipe)
    _check_ranks(recipe, ranks)
    scorer = add_roles(recipe, roles)
    rewards = mixed(recipe.reward, light, scorer, roles.device)

    def encode(loaded: Loaded, config: DataConfig) -> Encoded[EncodedPrompt]:
        return encode_prompts(loaded, encoder, recipe.prompt_limit, config.too_long, config.on_bad_row)

    split = load_split(recipe, Prompt, encode)
    check_columns(recipe.reward, (prompt.columns for prompt in split.train))
    rollout = recipe.rollout
    longest = max(len(prompt.ids) for prompt in split.train) + rollout.max_new_tokens
    check_context(roles, longest, "data.max_prompt_tokens or rollout.max_new_tokens")
    engine = NativeEngine(roles, rollout.max_sequences, recipe.train.micro_batch_tokens)
    sampling = make_sampling(recipe, encoder.stop_ids)
    collector = Collector(engine, rewards, roles.tokenizer, sampling, rollout.samples, recipe.seed)
    stream = Stream(split.train, recipe.train.batch_size // rollout.samples, recipe.seed)
    algorithm = make_algorithm(ranks.sum)
    steps = recipe.algorithm.epochs * recipe.algorithm.minibatches
    learner = Learner(roles, algorithm, recipe.train, recipe.train.iterations * steps, ranks)
    return Parts(
        kind=kind,
        recipe=recipe,
        algorithm=algorithm,
        learner=learner,
        scorer=scorer,
        source=Rollouts(stream, collector, ranks),
        iterations=recipe.train.iterations,
        steps_per_iteration=steps,
        save=partial(save_policy, roles),
        engine=engine,
        facts=model_facts(recipe, roles, learner.weights) | split.facts | _facts(recipe, rewards),
        next_steps=[("try it", f'accord generate {recipe.output}/model --prompt "..."')],
    )


def _check_ranks(recipe: RolloutRecipe, ranks: Ranks) -> None:
    """Every rank must have prompts for every minibatch, or it would wait for a step that the others never take."""
    prompts = recipe.train.batch_size // recipe.rollout.samples
    share = recipe.train.batch_size // ranks.size
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
            _check_tokenizer(path, roles)
    roles.add_policy(critic)
    roles.add_reference(recipe.reference)
    for term in recipe.reward:
        if term.model is not None:
            _check_tokenizer(term.model, roles)
            roles.add_reward(term.model, f"reward/{term.label}")
    if critic is not None:
        roles.add_critic(critic)
    return Scorer(roles, recipe.train.micro_batch_tokens, recipe.rollout.temperature)


def _check_tokenizer(path: str, roles: Roles) -> None:
    """Reference, critic and reward read the policy's token ids, so they must mean the same by them."""
    location = locate(path)
    config = roles.config.model_copy(update={"path": path})
    if load_tokenizer(config, location).get_vocab() != roles.tokenizer.get_vocab():
        raise ModelError(
            f"{path} has another tokenizer than the policy {roles.config.path}; it would read other words. Take one that was "
            "trained on the policy's base; a reward model can also read text with its own tokenizer, as `classifier` or "
            "behind `accord serve-reward`"
        )


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
    kl = recipe.algorithm.kl
    control = "fixed" if kl.target is None else f"adaptive to {kl.target:g} nats"
    facts = {
        "reward": weighted,
        "KL": f"{kl.estimator} in the {kl.use}, coefficient {kl.coef:g} ({control}), to {recipe.reference.source}",
    }
    critic = getattr(recipe, "critic", None)
    return (
        facts if critic is None else facts | {"critic": f"{critic.source}, started from {critic.path or critic.start}"}
    )
