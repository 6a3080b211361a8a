"""What scores rollouts: Python functions, reward models, and weighted sums of both."""

from accord.rewards.ensemble import EnsembleReward
from accord.rewards.function import FunctionReward
from accord.rewards.mix import MixedReward
from accord.rewards.model import ModelReward
from accord.rewards.process import ProcessReward
from accord.rewards.protocol import RewardSource

__all__ = ["EnsembleReward", "FunctionReward", "MixedReward", "ModelReward", "ProcessReward", "RewardSource"]
