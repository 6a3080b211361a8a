"""One small file an algorithm: it turns examples or scored rollouts into token batches and names its loss."""

from accord.algorithms.base import Algorithm, Denominators, Metrics, RoleUpdate
from accord.algorithms.bco import BCO
from accord.algorithms.classify import Classify
from accord.algorithms.cpo import CPO
from accord.algorithms.csft import CSFT
from accord.algorithms.distill import Distill
from accord.algorithms.dpo import DPO
from accord.algorithms.grpo import GRPO
from accord.algorithms.kto import KTO
from accord.algorithms.online_dpo import OnlineDPO
from accord.algorithms.orpo import ORPO
from accord.algorithms.ppo import PPO
from accord.algorithms.process import ProcessRewardModelling
from accord.algorithms.reinforce import Reinforce
from accord.algorithms.rejection import Rejection
from accord.algorithms.remax import ReMax
from accord.algorithms.reward import RewardModelling
from accord.algorithms.rloo import RLOO
from accord.algorithms.sft import SFT
from accord.algorithms.simpo import SimPO

ALGORITHMS: dict[str, type] = {
    "sft": SFT,
    "reward": RewardModelling,
    "classify": Classify,
    "ppo": PPO,
    "rloo": RLOO,
    "grpo": GRPO,
    "reinforce": Reinforce,
    "dpo": DPO,
    "orpo": ORPO,
    "simpo": SimPO,
    "cpo": CPO,
    "kto": KTO,
    "bco": BCO,
    "online_dpo": OnlineDPO,
    "csft": CSFT,
    "distill": Distill,
    "rejection": Rejection,
    "remax": ReMax,
}
"""Training command -> algorithm. `config.RECIPES`, the CLI and the docs have the same keys."""

__all__ = [
    "ALGORITHMS",
    "BCO",
    "CPO",
    "CSFT",
    "DPO",
    "GRPO",
    "KTO",
    "ORPO",
    "PPO",
    "RLOO",
    "SFT",
    "Algorithm",
    "Classify",
    "Denominators",
    "Distill",
    "Metrics",
    "OnlineDPO",
    "ProcessRewardModelling",
    "ReMax",
    "Reinforce",
    "Rejection",
    "RewardModelling",
    "RoleUpdate",
    "SimPO",
]
