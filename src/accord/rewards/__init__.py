"""What scores rollouts: functions, models, classifiers, rules, verifiers, servers, judges, and weighted sums of them."""

from accord.rewards.classifier import ClassifierReward
from accord.rewards.code import CodeReward
from accord.rewards.ensemble import EnsembleReward
from accord.rewards.function import FunctionReward
from accord.rewards.http import UrlReward
from accord.rewards.judge import JudgeReward
from accord.rewards.lexicon import LexiconReward
from accord.rewards.mix import MixedReward
from accord.rewards.model import ModelReward
from accord.rewards.process import ProcessReward
from accord.rewards.protocol import CountingSource, RewardSource
from accord.rewards.rules import FormatReward, LengthReward, RegexReward, RepetitionReward
from accord.rewards.verifier import MathReward

__all__ = [
    "ClassifierReward",
    "CodeReward",
    "CountingSource",
    "EnsembleReward",
    "FormatReward",
    "FunctionReward",
    "JudgeReward",
    "LengthReward",
    "LexiconReward",
    "MathReward",
    "MixedReward",
    "ModelReward",
    "ProcessReward",
    "RegexReward",
    "RepetitionReward",
    "RewardSource",
    "UrlReward",
]
