"""Configurations: typed, checked, frozen, and equal to conf/."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from modexp.cli.compose import all_keys, compose, configuration, shipped
from modexp.config.identity import digest, first_difference, scientific
from modexp.config.root import GROUPS, Config, from_tree, load, save, to_tree
from modexp.config.routing import MoDConfig
from modexp.errors import UserError
from modexp.flops.transformer import dense_twin
from modexp.kinds import KINDS
from modexp.runs import identity


def test_shipped_defaults_are_the_dataclasses_defaults() -> None:
    """YAML and dataclasses say the same, so a run from Python is a run from the command line."""
    for model in ("baseline", "mod"):
        shipped_config = configuration([f"model={model}"])
        ours = Config(model=GROUPS["model"][model]())
        mine, theirs = scientific(ours), scientific(shipped_config)
        assert first_difference(mine, theirs) is None


@pytest.mark.parametrize("group", [g for g in GROUPS if isinstance(GROUPS[g], dict)])
def test_every_kind_has_a_file_with_all_its_keys(group: str) -> None:
    """No setting hides: conf/ shows each one, and each one in conf/ is known."""
    kinds = {}
    for file in (shipped("conf") / group).glob("*.yaml"):
        if group == "data" and file.stem not in GROUPS["data"]:
            continue
        choice = f"{group}={file.stem}"
        node = compose([choice, *(["data.path=x"] if file.stem == "hf" else [])])[group]
        kinds[node.kind] = set(node)
    for kind, schema in GROUPS[group].items():
        fields = {f.name for f in dataclasses.fields(schema)}
        assert kinds[kind] == fields


@pytest.mark.parametrize("preset", ["c4", "fineweb_edu", "tinystories", "wikitext"])
def test_hub_presets_are_complete(preset: str) -> None:
    data = configuration([f"data={preset}"]).data
    assert data.kind == "hf"
    assert data.num_tokens
    assert data.vocab_size == 50257


def test_configuration_survives_the_disk(tmp_path: Path) -> None:
    config = configuration(["model=mod", "optim.lr=3e-4", "seed=7", "budget.flops=6e18"])
    save(config, tmp_path / "config.yaml")
    assert load(tmp_path / "config.yaml") == config
    assert from_tree(to_tree(config)) == config


def test_configuration_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        configuration([]).seed = 3  # type: ignore[misc]


SCIENCE = ["seed=1", "model.mlp=swiglu", "optim.lr=1e-3", "schedule.warmup=0.1", "budget.flops=2e12",
           "data.sequence_length=128", "trainer.precision=bf16", "trainer.eval_sequences=64"]  # fmt: skip
CADENCE = ["trainer.device=cpu", "trainer.threads=2", "trainer.micro_batch=1", "trainer.compile=true",
           "trainer.log_every=1", "trainer.checkpoint_minutes=1", "tracker=none", "launcher.slots=3",
           "runs_dir=elsewhere", "study=other", "name=x", "data.cache_dir=/tmp/x"]  # fmt: skip


@pytest.mark.parametrize("override", SCIENCE)
def test_what_changes_numbers_changes_the_identity(override: str) -> None:
    assert identity(configuration([override])) != identity(configuration([]))


@pytest.mark.parametrize("override", CADENCE)
def test_what_changes_no_number_keeps_the_identity(override: str) -> None:
    assert identity(configuration([override])) == identity(configuration([]))


def test_digest_does_not_depend_on_order() -> None:
    assert digest({"a": 1, "b": 2.0}) == digest({"b": 2.0, "a": 1})
    assert first_difference({"a": 1, "b": 2}, {"a": 1, "b": 3}) == ("b", 2, 3)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.foo=3", "model.foo is not a setting"),
        ("+model.foo=3", "model.foo is not a setting"),
        ("+foo=3", "foo is not a setting"),
        ("model.n_layer=3", "did you mean model.n_layers"),
        ("optim.learning_rate=3", "optim.learning_rate is not a setting"),
        ("model.n_layers=two", "model.n_layers"),
        ("model.n_layers=1e1", "model.n_layers"),
        ("model.n_layers=0", "not a positive whole number"),
        ("optim.lr=fast", "optim.lr=fast is not a choice"),
        ("optim.lr=-1", "not positive"),
        ("optim.batch_size=0", "not positive"),
        ("optim.batch_size=big", "not a choice"),
        ("schedule.warmup=1.5", "schedule.warmup=1.5"),
        ("data.validation_share=0", "data.validation_share"),
        ("data.vocab_size=100", "below the 256 values of a byte"),
        ("budget.flops=-1", "budget.flops=-1"),
        ("budget.flops=many", "budget.flops"),
        ("budget.convention=mine", "budget.convention=mine is not a choice"),
        ("trainer.precision=fp8", "trainer.precision=fp8 is not a choice"),
        ("trainer.device=tpu", "trainer.device=tpu is not a choice"),
        ("trainer.micro_batch=0", "not positive"),
        ("seed=-1", "seed=-1"),
        ("name=a/b", "not a plain folder name"),
        ("model=moe5", "choose one of: baseline, mod"),
        ("data=openwebtext", "choose one of"),
        ("data=files", "names no file"),
        ("data=hf", "data.path"),
        ("model", "key=value"),
        ("model.gate=relu", "model.gate"),
        ("tracker.mode=sometimes", "tracker.mode=sometimes is not a choice"),
        ("launcher.slots=0", "launcher.slots=0"),
        ("budget=tiny", "choose one of: default"),
    ],
)
def test_bad_overrides_are_sentences(override: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        configuration([override])
    assert words in str(caught.value)
    assert len(caught.value.sentence.splitlines()) == 1


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"capacity": 0.0}, "model.capacity=0.0"),
        ({"capacity": 2.0}, "model.capacity=2.0"),
        ({"every": 0}, "model.every=0"),
        ({"n_layers": 2, "every": 3}, "leaves no routed block"),
        ({"gate": "softmax"}, "choose one of: raw, sigmoid, tanh, none"),
        ({"d_model": 250, "n_heads": 4}, "try model.d_model=248 or model.d_model=256"),
        ({"d_model": 12, "n_heads": 4}, "odd width"),
    ],
)
def test_impossible_models_are_sentences(values: dict[str, object], words: str) -> None:
    with pytest.raises(UserError) as caught:
        MoDConfig(**values)  # type: ignore[arg-type]
    assert words in str(caught.value)


STAGED, MOE = KINDS["mode_staged"].config, KINDS["moe"].config


@pytest.mark.parametrize(
    ("kind", "values", "keys"),
    [
        (MoDConfig, {"causal": "none", "predictor_hidden": 8}, ("predictor_hidden=8", "causal=none")),
        (MoDConfig, {"causal": "auxiliary", "predictor_hidden": 8}, ("predictor_hidden=8", "causal=auxiliary")),
        (MoDConfig, {"auxiliary_weight": 0.1}, ("auxiliary_weight=0.1", "causal=predictor")),
        (MoDConfig, {"layers": [1], "every": 1}, ("every=1", "layers=[1]")),
        (MoDConfig, {"layers": [1], "offset": 0}, ("offset=0", "layers=[1]")),
        (MOE, {"balance_weight": 0.1}, ("balance_weight=0.1", "expert_routing=expert_choice")),
        (MOE, {"z_weight": 0.1}, ("z_weight=0.1", "expert_routing=expert_choice")),
        (MOE, {"expert_routing": "token_choice", "predictor_hidden": 8}, ("predictor_hidden=8", "token_choice")),
        (STAGED, {"z_weight": 0.1}, ("z_weight=0.1", "expert_routing=expert_choice")),
        (STAGED, {"auxiliary_weight": 0.1}, ("auxiliary_weight=0.1", "causal=predictor")),
        (
            STAGED,
            {"causal": "none", "expert_routing": "token_choice", "predictor_hidden": 8},
            ("predictor_hidden=8", "token_choice"),
        ),
    ],
)
def test_settings_that_nothing_reads_are_refused(
    kind: type[MoDConfig], values: dict[str, object], keys: tuple[str, str]
) -> None:
    with pytest.raises(UserError) as caught:
        kind(**values)  # type: ignore[arg-type]
    assert f"model.{keys[0]} is read by nothing under model." in caught.value.sentence
    assert caught.value.sentence.endswith(keys[1])
    assert "leave it at" in caught.value.next_step


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (MoDConfig, {"predictor_hidden": 8}),
        (MoDConfig, {"causal": "auxiliary", "auxiliary_weight": 0.1}),
        (MoDConfig, {"causal": "none"}),
        (MOE, {"expert_routing": "token_choice", "balance_weight": 0.1, "z_weight": 0.1}),
        (MOE, {"predictor_hidden": 8}),
        (STAGED, {"causal": "none", "predictor_hidden": 8}),
        (STAGED, {"expert_routing": "token_choice", "predictor_hidden": 8}),
    ],
)
def test_settings_that_something_reads_are_taken(kind: type[MoDConfig], values: dict[str, object]) -> None:
    model = kind(**values, n_layers=4, d_model=32, n_heads=2)  # type: ignore[arg-type]
    places = [0.5] * len(model.routing_places())
    assert model.realised(places).kind == model.kind
    assert dense_twin(model).shape == model.shape


def test_suggested_widths_are_possible() -> None:
    for width in (248, 256):
        assert MoDConfig(d_model=width, n_heads=4).d_model == width


def test_all_keys_are_offered_as_suggestions() -> None:
    assert {"model.capacity", "data.paths", "tracker.project", "seed"} <= set(all_keys())
    assert not any(key.endswith("has_routing") for key in all_keys())
