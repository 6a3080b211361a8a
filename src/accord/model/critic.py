"""Where a critic lies that was saved beside its policy.

FOLDER/                        the policy, which transformers or peft load and know of nothing else
FOLDER/value_head.safetensors  the head of a critic on the policy's trunk
FOLDER/critic/                 a critic with weights of its own, written as a reward model: an adapter or a classifier
"""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from accord.errors import ModelError

VALUE_HEAD = "value_head.safetensors"
CRITIC = "critic"
WEIGHT = "weight"


def saved_critic(policy: str, source: str | None) -> Path:
    """The file or folder of the critic that was saved beside a policy. Needs no weights.

    Args:
        policy: `model.path` of the recipe.
        source: `critic.source` of the recipe.

    Raises:
        ModelError: there is none of that kind.
    """
    folder = Path(policy).expanduser()
    wanted, other = (VALUE_HEAD, CRITIC) if source == "policy_trunk" else (CRITIC, VALUE_HEAD)
    if (folder / wanted).exists():
        return folder / wanted
    hint = "save it with accord.PPO.save or `accord ppo`, or leave critic.start out"
    if (folder / other).exists():
        kind = "adapter" if wanted == VALUE_HEAD else "policy_trunk"
        hint = f"there is {folder / other}, the critic of critic.source: {kind}"
    raise ModelError(f"critic.start: saved looks for {folder / wanted}, and it is not there; {hint}")


def read_value_head(file: Path) -> Tensor:
    """The weight of a saved value head, float32 [1, H].

    Raises:
        ModelError: the file is damaged.
    """
    try:
        return load_file(file)[WEIGHT]
    except (OSError, KeyError, SafetensorError) as error:
        raise ModelError(
            f"{file} cannot be read ({error}): save the critic again, or leave critic.start out"
        ) from error
