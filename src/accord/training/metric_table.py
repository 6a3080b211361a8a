"""The one table of metrics: what each means, what is healthy, what to do outside of that. `training.metrics` reads it."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Metric:
    """One logged number."""

    name: str
    meaning: str
    healthy: str
    """What a run that goes well shows, in words."""
    outside: str
    """What to do when it does not."""
    unit: str = ""
    low: float | None = None
    """Below this a person should look. Bounds are given only where they hold for models of any size."""
    high: float | None = None
    """Above this a person should look."""

    def is_outside(self, value: float) -> bool:
        """Whether a value breaks a bound; one that is not finite always does."""
        below = self.low is not None and value < self.low
        above = self.high is not None and value > self.high
        return not math.isfinite(value) or below or above


PATTERNS = (
    "env/reward/<source>",
    "env/reward_spread/<source>",
    "env/reward_none/<source>",
    "env/reward_count/<source>/<event>",
)
"""Stand for one metric per reward source (and per member of an ensemble); see `training.metrics.describe`."""

M = Metric
GROUPS: dict[str, tuple[Metric, ...]] = {
    "Progress, time and memory (every recipe)": (
        M("iteration", "Iterations finished, counted from 1.",
          "Rises by one each row.", "Report a defect."),
        M("step", "Optimiser steps so far, skipped ones included.",
          "Rises by the same number in each iteration.", "Report a defect."),
        M("tokens/trained", "Target tokens that this iteration's updates learnt from.",
          "Steady; moves with the length of responses.",
          "Few: responses are short or rows are truncated; read samples.", unit="tokens"),
        M("tokens/total", "All tokens that went through updates in this iteration, prompts and repeated epochs "
          "included.", "A small multiple of `tokens/trained`.",
          "Far more than trained: prompts are long for what is learnt from them.", unit="tokens"),
        M("tokens/computed", "Those of them that the policy (or whatever else learns) computed: what sequences of a micro-batch "
          "begin with alike, such as the prompt of several answers, is computed once for all of them.",
          "The smaller beside `tokens/total`, the more is saved; equal where nothing is shared.",
          "Close to `tokens/total` with several answers a prompt: raise `train.micro_batch_tokens`, so that they fit together.",
          unit="tokens"),
        M("tokens/per_second", "Tokens through updates per second of `time/update`: those of `tokens/total`, so that a prompt "
          "counts with each of its answers.",
          "Steady after the first rows.", "Falls: lengths grow, or the machine is shared. Low from the start: raise "
          "`train.micro_batch_tokens`.", unit="tokens/s"),
        M("time/iteration", "Wall-clock time of the iteration.",
          "Steady.", "Look which `time/*` part grew.", unit="s"),
        M("time/start", "Time from the command to the first iteration: imports, loading, reading and encoding rows. In the first "
          "row alone.", "Seconds, for a small model.", "Encoding of rows takes long: fewer rows, or shorter ones.", unit="s"),
        M("time/rollout", "Time to sample responses.",
          "Often the largest part.", "Lower `rollout.max_new_tokens` or raise `rollout.max_sequences`.", unit="s"),
        M("time/reward", "Time the reward sources took.",
          "Small beside the rollout.", "Make a slow reward function async, or score in batches.", unit="s"),
        M("time/score", "Time for reference log-probabilities and values.",
          "Less than the update.", "Raise `train.micro_batch_tokens`.", unit="s"),
        M("time/update", "Time of forward, backward and optimiser steps.",
          "Steady.", "Raise `train.micro_batch_tokens`, or use fewer `algorithm.epochs`.", unit="s"),
        M("time/data", "Time waiting for rows and packing.",
          "Close to 0.", "Shorten rows or move the file to a local disk.", unit="s"),
        M("memory/load_gib", "Highest memory in use while models were loaded; like all of these, of the accelerator, or of "
          "the process on a CPU.", "The size of the models and a layer.", "Above that: another base than `model.path` was "
          "loaded for a reference, reward or critic; see docs/memory.md.", unit="GiB"),
        M("memory/rollout_gib", "Highest memory in use so far while responses were sampled and scored by rewards.",
          "Flat after the first iterations.", "Lower `rollout.max_sequences`.", unit="GiB"),
        M("memory/score_gib", "Highest memory in use so far while reference and critic scored.",
          "Flat after the first iterations.", "Lower `train.micro_batch_tokens`.", unit="GiB"),
        M("memory/update_gib", "Highest memory in use so far during optimiser steps.",
          "Flat after the first iterations.", "Lower `train.micro_batch_tokens`, or set `train.activation_checkpointing`.",
          unit="GiB"),
        M("memory/peak_gib", "Highest memory in use so far, in any phase.", "Flat after the first iterations.",
          "Grows: lengths grow, or there is a leak. Near the limit: lower `train.micro_batch_tokens`.", unit="GiB"),
        M("memory/forecast_gib", "What `accord forecast` says that the run takes at most; the same in each row.",
          "Close to `memory/peak_gib` at the end.",
          "Far above: rows are shorter than the longest. Below: see docs/forecast.md, and report it.", unit="GiB"),
    ),
    "Optimiser (every recipe)": (
        M("optim/learning_rate", "Learning rate of the iteration's last step.",
          "Warms up, then follows the schedule.",
          "Not as planned: check `train.warmup`, `train.schedule` and the number of steps."),
        M("optim/learning_rate_critic", "The same of the critic, if `critic.learning_rate` is given.",
          "Moves with `optim/learning_rate`.", "As for `optim/learning_rate`."),
        M("optim/learning_rate_head", "The same of value and score heads, if `train.head_learning_rate` is given.",
          "Moves with `optim/learning_rate`.", "As for `optim/learning_rate`."),
        M("optim/learning_rate_lora_b", "The same of LoRA's B, if `train.lora_plus_ratio` is given.",
          "Moves with `optim/learning_rate`.", "As for `optim/learning_rate`."),
        M("optim/grad_norm", "Norm of the gradient before clipping, mean over the steps.",
          "Same order of magnitude throughout; seldom far above `train.max_grad_norm`.",
          "Spikes: lower the learning rate, look for odd rows. 0: nothing is learnt; check target tokens and adapter."),
        M("optim/grad_norm_critic", "The same of the critic's own weights, which are clipped by themselves.",
          "Large at first, falling as the critic learns.", "Stays large: scale, normalise or clip the scores."),
        M("adapter/rank_mean", "AdaLoRA: ranks in use, mean over the adapted matrices (of the policy, or the only adapter that "
          "learns).", "`adapter.init_r` through the warm-up, then falls to `adapter.target_r`.",
          "Stays at the start: the run ends before the warm-up does; lower `adapter.warmup`."),
        M("adapter/orthogonality", "AdaLoRA: distance of the factors from orthogonal ones (Frobenius norm, mean over matrices; "
          "added up over the adapters that learn). `adapter.orthogonality` times this is part of the loss.",
          "Falls.", "Rises: the learning rate is too high."),
        M("optim/steps_taken", "Optimiser steps taken in the iteration; see `ppo/steps_skipped`.",
          "All of them.", "Fewer: the ratio guard skips steps; lower the learning rate."),
    ),
    "Mixture of experts (a policy with routers)": (
        M("moe/aux_loss", "Load-balancing loss over the step's tokens, before `model.router_aux_coef`: the number of "
          "experts a token goes to when all get equally much, up to the number of experts when the same ones get all. Added up "
          "over the roles that learn, and over the text beside the rewards (`ptx`).",
          "Stays near where it began, close to the experts per token.",
          "Rises: experts fall idle; raise `model.router_aux_coef`, or lower the learning rate."),
    ),
    "Held-out rows (recipes without rollouts)": (
        M("eval/loss", "The training loss on held-out rows.",
          "Falls, and stays close to the training loss.",
          "Rises while the training loss falls: overfitting. Stop earlier, or use fewer epochs or more data."),
        M("eval/perplexity", "exp of the held-out loss: between how many tokens the model wavers.",
          "Falls.", "See `eval/loss`."),
        M("eval/accuracy", "Share of held-out pairs in which the chosen answer scores higher; for a classifier: of texts or "
          "words that get their right class.",
          "0.65 to 0.8 on human preferences; people agree among themselves about as often.",
          "Near 0.5: nothing learnt. Above 0.95: pairs may differ by something trivial such as length.", low=0.55),
        M("eval/margin", "Mean of chosen minus rejected score on held-out pairs.",
          "Positive and slowly growing.",
          "Grows while `eval/accuracy` stays: overconfident; stop earlier.", unit="reward", low=0.0),
        M("eval/chosen_mean", "Mean score of chosen answers of held-out pairs.",
          "Near `reward/chosen_mean`.", "See `eval/margin`.", unit="reward"),
        M("eval/rejected_mean", "Mean score of rejected answers of held-out pairs.",
          "Near `reward/rejected_mean`.", "See `eval/margin`.", unit="reward"),
    ),
    "Supervised fine-tuning (sft)": (
        M("sft/loss", "Negative log-likelihood per target token.",
          "Falls quickly, then slowly.",
          "Flat: raise the learning rate. Jumps: lower it. Below about 0.1: the rows are being "
          "memorised.", unit="nats/token"),
        M("sft/perplexity", "exp of the loss: between how many tokens the model wavers.",
          "Falls.", "See `sft/loss`."),
    ),
    "Reward model (reward)": (
        M("reward/loss", "-log sigmoid(chosen - rejected - margin), without the centring term; of steps: cross-entropy.",
          "Starts near 0.693 (a coin toss) and falls.",
          "Stays at 0.693: raise the learning rate, check that pairs differ."),
        M("reward/accuracy", "Share of the pairs of the batch in which the chosen answer scores higher; of steps "
          "(`level: step`): whose score and label agree.",
          "Rises from 0.5 to 0.65 to 0.85.",
          "Near 1: memorised, or the pairs differ by something trivial. Compare `eval/`.", low=0.4),
        M("reward/margin", "Mean of chosen minus rejected score.",
          "Positive and growing slowly.",
          "Negative: chosen and rejected may be swapped. Explodes: lower the learning rate.", unit="reward"),
        M("reward/chosen_mean", "Mean score of chosen answers.",
          "Near 0, above the rejected.", "Drifts far from 0: raise `algorithm.centre_coef`.", unit="reward"),
        M("reward/rejected_mean", "Mean score of rejected answers.",
          "Near 0, below the chosen.", "Drifts far from 0: raise `algorithm.centre_coef`.", unit="reward"),
    ),
    "Classifier (classify)": (
        M("classify/loss", "Cross-entropy of the right class, for each text or each labelled word.",
          "Starts near log(number of classes), and falls.",
          "Stays: raise the learning rate. Far below `eval/loss`: memorised; stop earlier.", unit="nats"),
        M("classify/accuracy", "Share of texts, or of labelled words, whose right class has the greatest logit.",
          "Rises above the share of the most frequent class.",
          "Stays at that share: nothing is learnt; raise the learning rate, or weigh whether the text tells the class."),
    ),
    "Thumbs up and down (kto, bco)": (
        M("kto/loss", "KTO's loss: weight times 1 - value.", "Starts at half the mean weight, 0.5, and falls.",
          "Stays: raise the learning rate, or lower `algorithm.beta`."),
        M("kto/accuracy", "Share of rows whose reward lies on the right side of beta z; a tie counts half.",
          "Rises from 0.5 to 0.6 to 0.9.", "Near 1 while held-out rows stay: memorised; stop earlier."),
        M("bco/loss", "BCO's loss: weighted cross-entropy of the labels.", "Starts at 0.693 times the mean weight and falls.",
          "Stays: raise the learning rate, or lower `algorithm.beta`."),
        M("bco/accuracy", "Share of rows whose reward lies on the right side of the shift; a tie counts half.",
          "Rises from 0.5 to 0.6 to 0.9.", "Near 1 while held-out rows stay: memorised; stop earlier."),
        M("bco/shift", "The reward shift delta: half-way between the mean rewards of both labels so far.",
          "Moves slowly.", "Runs away from `rewards/chosen` and `rewards/rejected`: set `algorithm.shift_decay` to 0.9."),
        M("eval/shift", "The reward shift that held-out rows were judged by.", "That of `bco/shift`.", "See there."),
    ),
    "Score and reward (rollout recipes)": (
        M("env/reward_mean", "Mean score as it came from the reward sources, before any scaling.",
          "Rises, fast at first.",
          "Flat: raise the learning rate or lower the KL coefficient. Soars: read the samples; the reward may be "
          "gamed.", unit="reward"),
        M("env/reward_std", "Standard deviation of those scores over the batch.",
          "Above 0, shrinking slowly.",
          "Near 0: all responses score alike, so there is nothing to learn; raise the temperature or mend the "
          "reward.", unit="reward"),
        M("env/reward/<source>", "Mean score of one reward source, before its weight, over the responses to which it applies.",
          "Sources rise together.",
          "One falls while another rises: they conflict; change their weights.", unit="reward"),
        M("env/reward_spread/<source>",
          "Standard deviation between the members of an ensemble of reward models, mean over the responses.",
          "Steady.", "Grows: the policy goes where the reward models disagree; use `combine: min` or `uwo`, or stop "
          "earlier.", unit="reward"),
        M("env/reward_none/<source>",
          "Share of the responses to which one reward source does not apply; logged when there is one.",
          "As many as the data lets expect.", "More: a column is missing in rows, or a judge's replies have no mark."),
        M("env/reward_count/<source>/<event>",
          "How many responses of the iteration (ReMax: greedy ones, too) met with an event that one reward source counts: code "
          "that failed, crashed, or ran out of time, replies without a mark, requests repeated, texts cut.",
          "Falls, or stays at 0.", "Many timeouts or repeated requests: raise the source's limits, or look at its server.",
          unit="responses"),
        M("ppo/mean_scores", "Mean score as the algorithm sees it: after penalty, scale, normalisation and clipping.",
          "Follows `env/reward_mean`.",
          "Flat while `env/reward_mean` moves: scores hit `algorithm.reward_clip`.", unit="reward"),
        M("ppo/mean_non_score_reward", "Mean over responses of the summed KL penalty, the part of the reward that is "
          "not score.", "0 at the start, then slightly negative; smaller in size than the score's gain.",
          "Larger than the score's gain: lower `algorithm.kl.coef`.", unit="reward"),
    ),
    "Distance from the reference (rollout recipes, kto)": (
        M("objective/kl", "Divergence of the policy from the reference, per response (k1 estimator: mean of summed log "
          "ratios). In kto: z, the same mean over answers to other prompts, at least 0.",
          "Exactly 0 in the first row, then growing to the target (6 by default).",
          "Clearly negative: sampling and training disagree (`sampling/*`) or the temperature differs. Runs away: "
          "raise `algorithm.kl.coef`, lower the learning rate.", unit="nats/response", low=-1.0, high=60.0),
        M("objective/kl_coef", "Weight of the KL penalty, moved by the controller when there is a target.",
          "Settles once the KL is at its target.",
          "Falls or rises without end: the target is out of reach; change it."),
        M("objective/entropy", "Mean entropy of the policy per token: how undecided it is.",
          "Falls slowly; stays well above 0.",
          "Collapses: lower the learning rate, raise `algorithm.entropy_coef` or the KL coefficient. Grows: the policy "
          "is falling apart; lower the learning rate.", unit="nats/token", low=0.02),
        M("ppo/loss/kl", "The KL term of the loss (with `algorithm.kl.use: loss`).",
          "0 at first, then small.", "Dominates `ppo/loss/total`: lower `algorithm.kl.coef`."),
    ),
    "Policy update (rollout recipes)": (
        M("ppo/loss/policy", "Clipped surrogate loss of the policy.",
          "Small and around 0; its size says little.", "Large or growing: lower the learning rate."),
        M("ppo/loss/total", "All loss terms with their weights.",
          "Falls with the value loss.", "Look at its terms."),
        M("ppo/policy/clipfrac", "Share of response tokens whose probability ratio was clipped. What is clipped is a response's "
          "ratio with GRPO's `ratio: sequence`, and with rloo, which counts responses.",
          "0.01 to 0.2.", "0 throughout: steps are too small. Above 0.3: too large; lower the learning rate or "
          "`algorithm.epochs`.", high=0.3),
        M("ppo/policy/approxkl", "KL from the old policy to the new one: mean over tokens of ratio - 1 - log ratio (k3), "
          "each of one token whatever is clipped.",
          "0.0001 to 0.05.",
          "Above 0.1: lower the learning rate or use fewer `algorithm.epochs`.", unit="nats/token", high=0.1),
        M("ppo/policy/ratio_mean", "Mean of new over old probability of the sampled tokens, or of what else is clipped.",
          "Within 0.01 of 1.",
          "Far from 1: steps are too large, or old log-probabilities do not match.", low=0.9, high=1.1),
        M("ppo/policy/ratio_max", "Largest such ratio.",
          "Below about 5; single tokens go higher.",
          "Hundreds: lower the learning rate; check `sampling/logprob_difference_max`."),
        M("ppo/advantages/mean", "Mean advantage before whitening.",
          "Around 0 once the critic is good.",
          "Far from 0 for long: the critic lags; see `ppo/val/var_explained`.", unit="reward"),
        M("ppo/advantages/std", "Standard deviation of the advantages before whitening.",
          "Above 0.", "Near 0: nothing to learn from; see `env/reward_std`.", unit="reward"),
        M("grpo/equal_groups", "Share of the responses whose whole group has one score, so that they teach nothing.",
          "Below 0.5.", "Near 1: prompts are too easy or too hard, or the score is too coarse. Raise `rollout.samples`."),
        M("ppo/steps_skipped", "Updates left out because the mean ratio passed `algorithm.ratio_guard`, or because nothing was "
          "kept (rejection), different (online DPO) or ended (GRPO's `mask_truncated`).",
          "0.", "Above 0: steps are far too large; lower the learning rate.", unit="steps", high=0.0),
        M("ptx/loss", "Negative log-likelihood per token of the text learnt beside the rewards (`ptx`), before its weight.",
          "Stays where fine-tuning left it.", "Rises: the policy forgets; raise `ptx.coef`.", unit="nats/token"),
        M("ppo/steps_left_out", "Updates left out because one before them passed `algorithm.kl_stop`.",
          "Absent, or now and then.", "Most of them each time: lower the learning rate or `algorithm.epochs`.", unit="steps"),
    ),
    "Rollout recipes' own (remax, distill, online_dpo, rejection)": (
        M("remax/greedy_mean", "Mean score of the greedy responses, shaped as the others: ReMax's baseline.",
          "Rises with the score, and stays near it.", "Far above the score: sampling at this temperature is much worse than "
          "greedy.", unit="reward"),
        M("distill/divergence", "Divergence of the student from the teacher, mean over the tokens learnt.",
          "Falls quickly, then slowly.", "Flat: raise the learning rate, or look whether the teacher knows the task.",
          unit="nats/token"),
        M("distill/on_policy", "1 where the iteration learnt from the student's own responses, 0 where from the data's.",
          "On average `algorithm.on_policy`.", "Report a defect."),
        M("online_dpo/ties", "Share of the groups whose responses all have one score, so that there is nothing to prefer.",
          "Below 0.5.", "Near 1: the score is too coarse, or prompts are too easy or too hard."),
        M("rejection/kept", "Share of the responses that were learnt (`accord rejection`).",
          "1 / `rollout.samples` for `keep: best`.", "Near 0 with a threshold: it is too high, and little is learnt."),
        M("rejection/score_kept", "Mean score of the responses that were kept.",
          "Above `env/reward_mean`, which follows it.", "Equal to it: the score does not tell responses apart.", unit="reward"),
    ),
    "Value function (ppo)": (
        M("ppo/loss/value", "Clipped squared error of the value function, before its weight.",
          "Falls, then flat.",
          "Grows: normalise or clip the scores (`algorithm.reward_normalize`, `algorithm.reward_clip`)."),
        M("ppo/val/clipfrac", "Share of values held back by `algorithm.value_clip`.",
          "Below 0.3 after the start.",
          "Stays high: scores are large beside the clip; scale them or widen `algorithm.value_clip`."),
        M("ppo/val/var_explained", "Share of the variance of returns that the values predict.",
          "Rises from 0 towards 0.5 to 0.9.",
          "Stays at or below 0: raise `algorithm.value_warmup`, or start the critic from the reward "
          "model.", low=-1.0),
        M("ppo/val/mean", "Mean predicted value.",
          "Follows `ppo/returns/mean`.", "Lags behind: see `ppo/val/var_explained`.", unit="reward"),
        M("ppo/returns/mean", "Mean return: what the critic should have predicted.",
          "Rises with the score.", "Falls while the score rises: the KL penalty outweighs it.", unit="reward"),
    ),
    "Sampling (rollout recipes)": (
        M("sampling/logprob_difference_max", "Largest gap of one token between log-probabilities of trainer and "
          "sampler.", "Below 0.001 in float32; up to about 0.5 in bfloat16.",
          "Larger: the two run different weights, kernels or sampling settings (top-k, top-p, "
          "temperature).", unit="nats", high=1.0),
        M("sampling/logprob_difference_mean", "Mean absolute gap of the same.",
          "Below 0.00001 in float32, 0.02 in bfloat16.",
          "Larger: ratios are wrong from the first minibatch; mend it before trusting the "
          "run.", unit="nats", high=0.05),
        M("sampling/length_mean", "Mean response length.",
          "Moves slowly.",
          "Creeps up: the reward favours length. Falls to a few tokens: it favours silence.", unit="tokens"),
        M("sampling/length_max", "Longest response of the batch.",
          "At most `rollout.max_new_tokens`.", "Always at the limit: see `sampling/finished_fraction`.", unit="tokens"),
        M("sampling/finished_fraction", "Share of responses that ended by themselves rather than at the limit.",
          "Above 0.8.", "Low: raise `rollout.max_new_tokens`, or set `algorithm.missing_eos_penalty`."),
        M("sampling/tokens_per_second", "Response tokens sampled per second.",
          "Steady.", "Low: raise `rollout.max_sequences`.", unit="tokens/s"),
        M("sampling/accepted_fraction", "Share of the drafted tokens that were right (`rollout.speculative`).",
          "Above 0.3.", "Low: responses do not repeat their prompts; drafts cost more than they save. Set "
          "`rollout.speculative: null`."),
        M("sampling/rounds", "Rounds of sampling that the iteration took (`rollout.dynamic_sampling`).",
          "1 to 3.", "Always the most allowed: prompts are too easy or too hard.", unit="rounds"),
        M("sampling/groups_dropped", "Groups left out because all their responses had one score.",
          "Below the number of prompts of an iteration.", "Far above: most of the sampling is thrown away; choose other "
          "prompts, or raise `rollout.samples`.", unit="groups"),
        M("sampling/importance_mean", "Mean importance weight of the sampled tokens before any bound (`algorithm.correction`).",
          "Within 0.01 of 1.", "Far from 1: sampler and trainer are different policies; see "
          "`sampling/logprob_difference_mean`.", low=0.5, high=2.0),
        M("sampling/importance_max", "Largest such weight before any bound.",
          "Below `algorithm.correction_cap` for nearly all batches.", "Huge throughout: the sampler runs other weights."),
        M("sampling/importance_held", "Share of the tokens whose weight was truncated or masked.",
          "Below 0.05.", "High: much is thrown away; mend the mismatch or lower the lag."),
        M("sampling/lag", "Versions by which the policy that sampled the batch was behind the one that learns from it, in the "
          "mean; a version is an iteration, or a `step` of a session.", "0: every batch is sampled with the newest weights.",
          "Above 0: a session steps on rollouts that it generated before earlier steps. Generate anew before each step, or set "
          "`algorithm.correction`.", unit="versions"),
    ),
    "Answers preferred and not (dpo, orpo, simpo, cpo, kto, bco, online_dpo)": (
        M("rewards/chosen", "Mean reward of chosen or liked answers as the loss sees it: with a reference (dpo, kto, bco) beta "
          "times the log-ratio to it; else beta times the log-probability (a token, where the loss is per token).",
          "With a reference: near 0 or slowly rising.", "Falls far: chosen answers lose likelihood too. Lower the learning "
          "rate, raise `algorithm.beta`, or set `algorithm.sft_coef`.", unit="reward"),
        M("rewards/rejected", "The same of rejected or disliked answers.",
          "Falls below `rewards/chosen`.", "Plunges: more is unlearnt than learnt; lower the learning rate.", unit="reward"),
        M("rewards/accuracies", "Share of pairs whose chosen answer has the greater reward; a tie counts half.",
          "Rises from 0.5 to between 0.65 and 0.9.",
          "Near 0.5: nothing learnt. Near 1 early: memorising, or pairs that differ by something trivial such as length."),
        M("rewards/margins", "Mean of chosen minus rejected reward.", "Positive and slowly growing.",
          "Grows while the held-out accuracy stays: overconfident; stop earlier.", unit="reward"),
        M("logps/chosen", "Mean log-probability of whole chosen answers.",
          "Flat or slowly falling.", "Falls far: see `rewards/chosen`.", unit="nats"),
        M("logps/rejected", "Mean log-probability of whole rejected answers.", "Falls.",
          "Falls together with `logps/chosen`: length or style may be what is learnt.", unit="nats"),
        *(M(f"eval/{name}", f"`{name}` on held-out rows.", f"Near `{name}`.", "Falls behind: overfitting; stop earlier.",
            unit=unit)
          for name, unit in (("rewards/chosen", "reward"), ("rewards/rejected", "reward"), ("rewards/accuracies", ""),
                             ("rewards/margins", "reward"), ("logps/chosen", "nats"), ("logps/rejected", "nats"))),
    ),
    "Preferences (dpo, orpo, simpo, cpo)": (
        *(M(f"{kind}/loss", "Mean preference loss of the pairs, without the likelihood term.",
            "Falls slowly; dpo's `sigmoid` from log 2 = 0.693.",
            "Flat: raise the learning rate. Near 0 early: too high, or the pairs differ by something trivial.")
          for kind in ("dpo", "simpo", "cpo")),
        M("orpo/loss", "Likelihood term plus the weighted odds-ratio term.", "Falls.", "Flat: raise the learning rate."),
        *(M(f"{kind}/nll", "Negative log-likelihood of the chosen answers per token, mean over the pairs; logged if it has a "
            "weight.", "Flat or falling.", "Rises: raise `algorithm.sft_coef` (orpo: lower `algorithm.beta`), or lower the "
            "learning rate.", unit="nats/token") for kind in ("dpo", "orpo", "simpo", "cpo")),
        M("orpo/log_odds", "Mean log of the odds of chosen over rejected answers.",
          "Rises.", "Stays near 0: raise `algorithm.beta` or the learning rate.", unit="nats"),
        M("eval/nll", "The `nll` above on held-out pairs.", "Flat or falling.", "Rises: see `logps/chosen`.", unit="nats/token"),
        M("eval/log_odds", "`orpo/log_odds` on held-out pairs.", "Rises.", "Falls behind: overfitting.", unit="nats"),
    ),
}  # fmt: skip
"""The table, by topic."""
