"""What all recipes share that sample, score and learn: roles, rewards, engine, collector."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from accord.algorithms import Algorithm
from accord.config import DataConfig, PolicyGradient, RolloutRecipe
from accord.data import Encoded, EncodedPrompt, Encoder, Loaded, encode_examples, encode_prompts
from accord.errors import ConfigError
from accord.model.critic import saved_critic
from accord.model.export import save_policy_and_critic
from accord.model.loading import locate
from accord.model.roles import Roles
from accord.model.scorer import Scorer
from accord.ops.statistics import SumOverRanks
from accord.recipes.build import check_context, check_tokenizer, load_split, model_facts, model_folder, read_rows, start
from accord.recipes.going_on import ignored_options
from accord.recipes.reward_models import check_scorer
from accord.recipes.rewards import add_rewards, check_columns, mixed, open_light
from accord.rewards import MixedReward
from accord.rollout.collect import Collector
from accord.rollout.lookup import Speculation
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
    check_critic(recipe)
    light = open_light(recipe.reward)  # before any weights
    roles, encoder, ranks = start(recipe)
    _check_ranks(recipe, ranks)
    scorer = add_roles(recipe, roles)
    rewards = mixed(recipe.reward, light, scorer, roles.device)

    def encode(loaded: Loaded, config: DataConfig) -> Encoded[EncodedPrompt]:
        return encode_prompts(loaded, encoder, recipe.prompt_limit, config.too_long, config.on_bad_row)

    split = load_split(recipe, encode)
    check_columns(recipe.reward, light, (prompt.columns for prompt in split.train))
    rollout = recipe.rollout
    longest = max(len(prompt.ids) for prompt in split.train) + rollout.max_new_tokens
    check_context(roles, longest, "data.max_prompt_tokens or rollout.max_new_tokens")
    engine = make_engine(recipe, roles)
    sampling = make_sampling(recipe, encoder.stop_ids)
    collector = Collector(
        engine, rewards if recipe.reward else None, roles.tokenizer, sampling, rollout.samples, recipe.seed, greedy
    )
    stream = Stream(split.train, recipe.train.batch_size // rollout.samples, recipe.seed)
    algorithm = make_algorithm(ranks.sum)
    steps = recipe.algorithm.epochs * recipe.algorithm.minibatches
    ptx, text = make_ptx(recipe, roles, encoder, ranks)
    total = recipe.train.iterations * steps
    learner = Learner(roles, algorithm, recipe.train, total, ranks, ptx=ptx, rates=own_rates(recipe))
    return Parts(
        kind=kind,
        recipe=recipe,
        algorithm=algorithm,
        learner=learner,
        scorer=scorer,
        source=Rollouts(stream, collector, ranks, rollout.dynamic_sampling, _compared(recipe)),
        iterations=recipe.train.iterations,
        steps_per_iteration=steps,
        save=partial(save_policy_and_critic, roles),
        engine=engine,
        facts=model_facts(recipe, roles, learner.weights) | split.facts | text | _facts(recipe, rewards),
        next_steps=[("try it", f'accord generate {model_folder(recipe)} --prompt "..."')],
        notes=ignored_options(recipe, roles),
        longest=longest - rollout.max_new_tokens,
    )


def _compared(recipe: RolloutRecipe) -> tuple[str, ...] | None:
    """The reward sources that responses are compared by, if not by their sum; those of weight 0 are only watched."""
    if not recipe.algorithm.compares_each_source:
        return None
    return tuple(term.label for term in recipe.reward if term.weight != 0)


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


def check_critic(recipe: RolloutRecipe) -> None:
    """Find the critic that the recipe goes on with, saved beside the policy or a model of its own, before any weights are loaded.

    Raises:
        ModelError: it is not there, or is no reward model where it is to start from one.
    """
    critic = getattr(recipe, "critic", None)
    if critic is not None and critic.start == "saved":
        saved_critic(recipe.model.path, critic.source)
    if critic is not None and critic.path is not None:
        location = locate(critic.path)
        if critic.start == "reward":
            check_scorer(critic.path, location, "critic.path")


def own_rates(recipe: RolloutRecipe) -> dict[str, float]:
    """Peak learning rates of roles that have one of their own."""
    rate = getattr(getattr(recipe, "critic", None), "learning_rate", None)
    return {} if rate is None else {"critic": rate}


def add_roles(recipe: RolloutRecipe, roles: Roles) -> Scorer:
    """Policy, reference, rewards and critic, in the order in which one may start from another; returns their scorer."""
    critic = getattr(recipe, "critic", None)
    for path in (recipe.reference.path, getattr(critic, "path", None)):
        if path is not None:
            check_tokenizer(path, roles)
    roles.add_policy(critic)
    roles.add_reference(recipe.reference)
    add_rewards(recipe.reward, roles)
    if critic is not None:
        roles.add_critic(critic)
    return Scorer(roles, recipe.train.micro_batch_tokens, recipe.rollout.temperature)


def make_engine(recipe: RolloutRecipe, roles: Roles) -> NativeEngine:
    """What samples from the policy, as the recipe's rollout section wants it."""
    rollout = recipe.rollout
    drafts = rollout.speculative
    return NativeEngine(
        roles,
        None if rollout.max_sequences == "auto" else rollout.max_sequences,
        recipe.train.micro_batch_tokens,
        merge=None if rollout.merge_adapter == "auto" else rollout.merge_adapter,
        speculation=None if drafts is None else Speculation(drafts.ngram, drafts.tokens),
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
