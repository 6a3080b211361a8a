"""One small file an algorithm: it turns examples or scored rollouts into token batches and names its loss."""

from accord.algorithms.base import Algorithm, Denominators, Metrics, RoleUpdate
from accord.algorithms.ppo import PPO
from accord.algorithms.reward import RewardModelling
from accord.algorithms.sft import SFT

ALGORITHMS: dict[str, type] = {"sft": SFT, "reward": RewardModelling, "ppo": PPO}
"""Training command -> algorithm. `config.RECIPES`, the CLI and the docs have the same keys."""

__all__ = ["ALGORITHMS", "PPO", "SFT", "Algorithm", "Denominators", "Metrics", "RewardModelling", "RoleUpdate"]
