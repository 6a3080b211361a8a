"""What scores rollouts: Python functions, reward models, and weighted sums of both."""

from accord.rewards.function import FunctionReward
from accord.rewards.mix import MixedReward
from accord.rewards.model import ModelReward
from accord.rewards.protocol import RewardSource

__all__ = ["FunctionReward", "MixedReward", "ModelReward", "RewardSource"]
