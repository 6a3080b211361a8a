from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from accord.config import (
    METHODS,
    RECIPES,
    DPORecipe,
    PPORecipe,
    SFTRecipe,
    build,
    dump,
    load,
    merge,
    parse_overrides,
)
from accord.config.base import sections_in
from accord.errors import ConfigError


def fault(recipe, *layers) -> str:
    with pytest.raises(ConfigError) as caught:
        build(recipe, *layers)
    return str(caught.value)


# --- unknown keys ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modle": {}}, "unknown key `modle`: did you mean `model`?"),
        ({"train": {"itertions": 3}}, "unknown key `train.itertions`: did you mean `iterations`?"),
        ({"algorithm": {"kl": {"targt": 3}}}, "unknown key `algorithm.kl.targt`: did you mean `target`?"),
        ({"adapter": {"alhpa": 4}}, "unknown key `adapter.alhpa`: did you mean `alpha`?"),  # in a union with null
        (
            {"reward": [{"model": "m"}, {"model": "m", "wieght": 2}]},
            "unknown key `reward.1.wieght`: did you mean `weight`?",
        ),
        (
            {"rollout": {"xyz": 1}},
            "unknown key `rollout.xyz`: known keys here: dynamic_sampling, engine, max_new_tokens,",
        ),
        ({"train": {"steps": 3}}, "unknown key `train.steps`"),  # a rollout recipe counts iterations
    ],
)
def test_unknown_key_is_answered_with_the_nearest_known_one(least, change, message):
    assert message in fault(PPORecipe, least, change)


def test_a_key_of_another_recipe_is_unknown(least):
    assert "unknown key `rollout`" in fault(SFTRecipe, least, {"rollout": {"samples": 2}})


def test_all_faults_come_at_once(least):
    message = fault(PPORecipe, least, {"seed": -1, "modle": 1, "rollout": {"temperature": 0}, "model": {"path": 3}})
    assert message.startswith("the recipe cannot run:\n  - ") and message.count("\n  - ") == 4
    for part in ("seed: ", "(given: -1)", "`modle`", "rollout.temperature: ", "model.path: ", "(given: 3)"):
        assert part in message


def test_missing_sections_are_named():
    message = fault(SFTRecipe, {})
    for name in ("model", "data", "output"):
        assert f"  - {name}: Field required; it has no default" in message


def test_sections_in_looks_through_unions_and_lists():
    names = {key: [s.__name__ for s in sections_in(f.annotation)] for key, f in PPORecipe.model_fields.items()}
    assert (
        names["adapter"] == [section.__name__ for section in METHODS.values()]
        and names["reward"] == ["RewardTerm"]
        and names["output"] == []
    )


# --- layers ----------------------------------------------------------------------------------------------------------


def test_merge_goes_into_mappings_and_replaces_all_else():
    base = {"a": {"x": 1, "y": {"z": 2}}, "b": [1, 2], "c": 5}
    over = {"a": {"y": {"w": 3}}, "b": [9], "c": {"d": 1}, "e": None}
    assert merge(base, over) == {"a": {"x": 1, "y": {"z": 2, "w": 3}}, "b": [9], "c": {"d": 1}, "e": None}
    assert base == {"a": {"x": 1, "y": {"z": 2}}, "b": [1, 2], "c": 5}, "the layers stay as they were"


def test_defaults_then_file_then_command_line(least, tmp_path):
    file = tmp_path / "ppo.yaml"
    file.write_text(yaml.safe_dump(least | {"algorithm": {"kl": {"coef": 0.5, "horizon": 7}}, "seed": 3}))
    recipe = build(PPORecipe, load(file), parse_overrides(["--algorithm.kl.coef", "0.7", "--model.path=other"]))
    kl = recipe.algorithm.kl
    assert (kl.target, kl.horizon, kl.coef) == (6.0, 7, 0.7)  # default, file, command line
    assert (recipe.seed, recipe.model.path, recipe.data.path) == (3, "other", "rows.jsonl")


def test_null_on_the_command_line_beats_a_section_of_the_file(least):
    file = least | {"adapter": {"r": 4}}
    assert build(SFTRecipe, file, parse_overrides(["--adapter", "null"])).adapter is None
    assert build(SFTRecipe, least | {"adapter": None}, parse_overrides(["--adapter.r", "4"])).adapter.r == 4


def test_an_element_of_a_list_can_be_changed(least):
    file = least | {"reward": [{"model": "a"}, {"function": "f.py:g", "weight": 0.5}]}
    recipe = build(PPORecipe, file, parse_overrides(["--reward.0.weight", "2", "--reward.1.name", "short"]))
    assert [(t.model, t.function, t.weight, t.name) for t in recipe.reward] == [
        ("a", None, 2.0, None),
        (None, "f.py:g", 0.5, "short"),
    ]
    assert file["reward"] == [{"model": "a"}, {"function": "f.py:g", "weight": 0.5}]


def test_an_element_that_is_not_there_cannot_be_changed(least):
    message = fault(PPORecipe, least | {"reward": [{"model": "a"}]}, parse_overrides(["--reward.2.model", "b"]))
    assert message == "--reward.2: the recipe has 1 entries under `reward`, numbered from 0"


def test_a_list_can_be_begun_and_continued(least):
    begun = build(PPORecipe, least, parse_overrides(["--reward.0.model", "a", "--reward.0.weight", "2"]))
    assert [(term.model, term.weight) for term in begun.reward] == [("a", 2.0)]
    more = build(PPORecipe, least | {"reward": [{"model": "a"}]}, parse_overrides(["--reward.1.function", "f.py:g"]))
    assert [(term.model, term.function) for term in more.reward] == [("a", None), (None, "f.py:g")]


def test_the_keys_of_a_single_reward_are_those_of_entry_0(least):
    file = least | {"reward": {"function": "f.py:g"}}
    (term,) = build(PPORecipe, file, parse_overrides(["--reward.0.weight", "2"])).reward
    assert (term.function, term.weight) == ("f.py:g", 2)
    (term,) = build(PPORecipe, file, parse_overrides(["--reward.weight", "2"])).reward
    assert (term.function, term.weight) == ("f.py:g", 2)
    message = fault(PPORecipe, least | {"reward": "f.py:g"}, parse_overrides(["--reward.0.weight", "2"]))
    assert "entry 0 of `reward` is 'f.py:g', which has no keys to change" in message


@pytest.mark.parametrize("before", [{"function": "f.py:g", "weight": 2}, [{"function": "f.py:g"}, "a/m"], "a/m"])
def test_a_whole_reward_takes_the_place_of_the_files(before, least):
    (term,) = build(PPORecipe, least | {"reward": before}, parse_overrides(["--reward", "{length: 5}"])).reward
    assert (term.kind, term.weight) == ("length", 1)


def test_rewards_add_up(least):
    words = ["--reward", "a/m", "--reward", "[f.py:g, {model: b/n, weight: 2}]", "--reward", "{length: 5}"]
    recipe = build(PPORecipe, least | {"reward": ["c/m"]}, parse_overrides(words))
    assert [(term.label, term.weight) for term in recipe.reward] == [("m", 1), ("g", 1), ("n", 2), ("length", 1)]


def test_an_element_that_is_text_has_no_keys_to_change(least):
    message = fault(PPORecipe, least | {"reward": ["f.py:g"]}, parse_overrides(["--reward.0.weight", "2"]))
    assert message.startswith(
        "--reward.0: entry 0 of `reward` is 'f.py:g', which has no keys to change; write it in full"
    )


def test_a_section_given_whole_and_by_key_is_a_contradiction():
    with pytest.raises(ConfigError, match=r"`reward` was given as 'f\.py:g' already"):
        parse_overrides(["--reward", "f.py:g", "--reward.weight", "2"])


# --- the command line ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("50", 50),
        ("-3", -3),
        ("1e-5", 1e-5),
        ("1E5", 1e5),
        ("-2.5e-3", -2.5e-3),
        ("0.5", 0.5),
        ("true", True),
        ("null", None),
        ("[a, b]", ["a", "b"]),
        ("[]", []),
        ("{r: 4, alpha: 8}", {"r": 4, "alpha": 8}),
        ("./sft/model", "./sft/model"),
        ("rewards.py:brevity", "rewards.py:brevity"),
        (r"C:\models\base", r"C:\models\base"),
        ("a: b: c", "a: b: c"),  # not YAML: stays text
        ("[unclosed", "[unclosed"),
    ],
)
@pytest.mark.parametrize("style", ["space", "equals"])
def test_types_of_values(text, value, style):
    words = ["--a.b", text] if style == "space" else [f"--a.b={text}"]
    got = parse_overrides(words)["a"]["b"]
    assert got == value and type(got) is type(value)


def test_words_become_a_tree():
    words = ["--train.steps", "5", "--output=runs/a=b", "--train.batch-size", "8", "--adapter", "null"]
    assert parse_overrides(words) == {
        "train": {"steps": 5, "batch_size": 8},
        "output": "runs/a=b",
        "adapter": None,
    }


def test_the_last_of_two_wins():
    assert parse_overrides(["--seed", "1", "--seed", "2"]) == {"seed": 2}
    assert parse_overrides(["--adapter", "null", "--adapter.r", "4"]) == {"adapter": {"r": 4}}
    assert parse_overrides(["--adapter.r", "4", "--adapter", "null"]) == {"adapter": None}


def test_nothing():
    assert parse_overrides([]) == {}


@pytest.mark.parametrize("words", [["--seed"], ["--seed", "--output", "x"], ["--a", "1", "--seed"]])
def test_an_option_without_a_value_is_named(words):
    with pytest.raises(ConfigError, match="option --seed has no value: write `--seed VALUE`"):
        parse_overrides(words)


@pytest.mark.parametrize("word", ["train.steps", "-seed", "x=1"])
def test_a_word_that_is_no_option_is_named(word):
    with pytest.raises(ConfigError, match=rf"unexpected argument '{word}': options look like"):
        parse_overrides(["--a", "1", word, "2"])


def test_overrides_reach_the_recipe_with_their_types(least):
    words = ["--train.learning_rate", "1e-5", "--algorithm.reward_scale", "-2", "--rollout.stop", '["\\n", "###"]']
    recipe = build(PPORecipe, least, parse_overrides([*words, "--algorithm.kl.target", "null"]))
    assert recipe.train.learning_rate == 1e-5
    assert recipe.algorithm.reward_scale == -2.0 and recipe.algorithm.kl.target is None
    assert recipe.rollout.stop == ("\n", "###")


# --- files -----------------------------------------------------------------------------------------------------------


def test_load_says_what_is_wrong_with_a_file(tmp_path):
    with pytest.raises(ConfigError, match=r"no recipe at .*none\.yaml: give the path of a YAML file"):
        load(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="no recipe at"):
        load(tmp_path)
    for name, content, message in [
        ("broken.yaml", b"model: [", r"broken\.yaml is not valid YAML"),
        ("binary.yaml", b"\xff\xfe\x00a", r"binary\.yaml is not valid YAML"),
        ("list.yaml", b"- model", r"list\.yaml holds a list; a recipe is a mapping"),
        ("python.yaml", b"!!python/object/apply:os.getcwd []", r"python\.yaml is not valid YAML"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match=message):
            load(tmp_path / name)


def test_an_empty_file_is_an_empty_recipe(tmp_path):
    (tmp_path / "empty.yaml").write_text("# nothing yet\n")
    assert load(tmp_path / "empty.yaml") == {}


def test_an_exponent_without_a_point_is_a_number_in_a_file_too(least, tmp_path):
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(least) + "train: {learning_rate: 1e-5}\n")
    assert build(SFTRecipe, load(tmp_path / "a.yaml")).train.learning_rate == 1e-5


NEEDED = {"distill": {"teacher": "t"}}
"""What a recipe must be given besides."""
RICH = {
    "sft": {
        "train": {"steps": 5},
        "adapter": {"targets": ["q_proj", "v_proj"]},
        "data": {"columns": {"frage": "prompt"}},
    },
    "reward": {"adapter": None, "algorithm": {"centre_coef": 0}, "output": "läufe/ü"},
    "ppo": {
        "reward": ["rewards.py:brevity", {"model": "m", "weight": -0.5}],
        "rollout": {"stop": ["\n\n", ": "], "top_p": 0.9},
        "algorithm": {"kl": {"use": "loss"}, "value_clip": None},
        "critic": {"source": "model", "path": "c"},
    },
}


@pytest.mark.parametrize("change", [{}, RICH], ids=["defaults", "rich"])
@pytest.mark.parametrize("name", RECIPES)
def test_dump_load_build_is_the_identity(least, tmp_path, name, change):
    recipe = build(RECIPES[name], least, NEEDED.get(name, {}), change.get(name, {}))
    file = tmp_path / "config.yaml"
    file.write_text(dump(recipe), encoding="utf-8")
    again = build(RECIPES[name], load(file))
    assert again == recipe and dump(again) == dump(recipe)
    assert set(load(file)) == set(RECIPES[name].model_fields), "defaults are written down too"


def test_config_and_errors_import_no_torch():
    heavy = ("torch", "transformers", "peft", "datasets", "numpy")
    code = f"import accord.config, sys; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("text", "line", "key", "first"),
    [
        ("train:\n  steps: 5\n\ntrain:\n  batch_size: 2\n", 4, "train", 1),
        ("train:\n  steps: 5\n  batch_size: 2\n  steps: 6\n", 4, "steps", 2),
        ("train: {steps: 5, steps: 5}\n", 1, "steps", 1),
        ("reward:\n- model: a\n  'model': b\n", 3, "model", 2),
    ],
)
def test_a_key_that_is_given_twice_is_refused(text, line, key, first, tmp_path: Path):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(
        ConfigError, match=rf"x.yaml, line {line}: the key `{key}` is given twice, first in line {first}"
    ):
        load(tmp_path / "x.yaml")


def test_so_it_is_on_the_command_line():
    with pytest.raises(ConfigError, match="the key `r` is given twice"):
        parse_overrides(["--adapter", "{r: 4, r: 8}"])


def test_what_a_key_merges_may_be_given_anew(tmp_path: Path):
    """YAML's `<<` is there to be overridden, also by way of two."""
    text = "a: {b: &b {<<: &c {r: 1, s: 2}, r: 3}}\nd: {<<: *b, s: 4}\n"
    (tmp_path / "x.yaml").write_text(text)
    assert load(tmp_path / "x.yaml") == {"a": {"b": {"r": 3, "s": 2}}, "d": {"r": 3, "s": 4}}


IDLE = {
    "algorithm.f_alpha: 0.3": (DPORecipe, {"f_alpha": 0.3}, {"f_divergence": "alpha"}),
    "algorithm.discopop_tau: 0.1": (DPORecipe, {"discopop_tau": 0.1}, {"loss": "discopop"}),
    "algorithm.kl.horizon: 7": (PPORecipe, {"kl": {"horizon": 7, "target": None}}, {"kl": {"target": 1.0}}),
    "algorithm.correction_cap: 3": (PPORecipe, {"correction_cap": 3.0}, {"correction": "truncate"}),
    "algorithm.correction_level: sequence": (PPORecipe, {"correction_level": "sequence"}, {"correction": "mask"}),
}
"""Options that do nothing where they stand, and what would give them something to do."""


@pytest.mark.parametrize("told", IDLE)
def test_options_that_do_nothing_are_refused(told, least):
    recipe, idle, used = IDLE[told]
    where, _, key = told.partition(":")[0].rpartition(".")
    message = fault(recipe, least, {"algorithm": idle})
    assert where in message and f"{key}: {told.partition(': ')[2]}" in message and "does nothing" in message
    made = build(recipe, least, {"algorithm": idle}, {"algorithm": used})
    assert build(recipe, yaml.safe_load(dump(made))) == made
    assert build(recipe, yaml.safe_load(dump(build(recipe, least))))  # the default may stand


def test_a_constant_rate_has_no_end(least):
    assert "min_learning_rate: 0.0 does nothing" in fault(
        SFTRecipe, least, {"train": {"schedule": "constant", "min_learning_rate": 0.0}}
    )
    assert build(SFTRecipe, least, {"train": {"schedule": "constant", "min_learning_rate": 0.1}})
    assert build(SFTRecipe, least, {"train": {"schedule": "linear", "min_learning_rate": 0.0}})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rollout.stop", "User:"], 'rollout.stop: this is a list: write ["User:"]'),
        (["--train.sinks", "wandb"], 'train.sinks: this is a list: write ["wandb"]'),
    ],
)
def test_one_thing_in_the_place_of_a_list_is_told_how_to_be_one(words, message, least):
    assert message in fault(PPORecipe, least, parse_overrides(words))
    values = [words[0], message.partition("write ")[2]]
    assert build(PPORecipe, least, parse_overrides(values))  # it can be followed


def test_words_that_yaml_takes_for_truth_values(least):
    said = fault(RECIPES["csft"], least, parse_overrides(["--algorithm.labels", "[no, yes]"]))
    assert "YAML reads yes, no, on and off as truth values" in said
    labels = parse_overrides(["--algorithm.labels", "['no', 'yes']"])
    assert build(RECIPES["csft"], least, labels).algorithm.labels == ("no", "yes")


def test_a_folder_may_be_called_like_a_date(least, tmp_path: Path):
    assert build(SFTRecipe, least, parse_overrides(["--output", "2024-01-01"])).output == "2024-01-01"
    (tmp_path / "x.yaml").write_text("output: 2024-01-01\n")
    recipe = build(SFTRecipe, least, load(tmp_path / "x.yaml"))
    assert recipe.output == "2024-01-01" and yaml.safe_load(dump(recipe))["output"] == "2024-01-01"


def test_two_columns_cannot_become_one(least):
    said = fault(SFTRecipe, least, {"data": {"columns": {"a": "prompt", "b": "prompt", "c": "completion"}}})
    assert "a, b are all to become `prompt`" in said
