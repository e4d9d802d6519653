"""modexp flops: the ledger that is printed is the ledger that is planned, stored, and counted by PyTorch."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modexp.cli.compose import configuration
from modexp.flops.ledger import CONVENTIONS
from modexp.flops.transformer import dense_twin
from modexp.kinds import KINDS, ledger
from modexp.plan.run import plan_run, resolve_shape
from modexp.runs import RunDir, create

Cli = Callable[..., int]
Captured = pytest.CaptureFixture[str]

SHAPE = ["model.n_layers=4", "model.d_model=32", "model.n_heads=2", "data.sequence_length=64"]
MOD = ["model=mod", "model.capacity=0.25", *SHAPE]


def answer(cli: Cli, capsys: Captured, *words: str) -> Any:
    assert cli("flops", *words, "--json") == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A planned run, counted under ``causal``."""
    config = resolve_shape(configuration([*MOD, "budget=1e9", "budget.convention=causal", f"runs_dir={tmp_path}"]))
    directory = RunDir(tmp_path / "study" / "one")
    create(directory, config, plan_run(config), {"content_hash": "0"})
    return directory


def edit_ledger(run: RunDir, change: Callable[[list[dict[str, Any]]], None]) -> None:
    promise = json.loads(run.plan_path.read_text())
    change(promise["ledger"])
    run.plan_path.write_text(json.dumps(promise))


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_terms_sum_to_the_total_and_the_total_is_the_plans(modexp_cli: Cli, capsys: Captured, convention: str) -> None:
    words = [*MOD, "budget=1e12", f"budget.convention={convention}"]
    found = answer(modexp_cli, capsys, *words)
    plan = plan_run(resolve_shape(configuration(words)))
    total = found["conventions"][convention]
    assert found["convention"] == convention
    assert total["training_per_sequence"] == plan.training_flops_per_sequence
    assert total["forward_per_token"] == plan.flops_per_token
    assert total["relative_flops"] == plan.relative_flops
    assert sum(term["training_per_sequence"] for term in found["terms"]) == plan.training_flops_per_sequence
    assert sum(term["forward_per_sequence"] for term in found["terms"]) == plan.flops_per_token * 64
    assert sum(term["share"] for term in found["terms"]) == pytest.approx(1)


def test_parameters_four_ways_beside_the_dense_twins(modexp_cli: Cli, capsys: Captured) -> None:
    found = answer(modexp_cli, capsys, *MOD)
    config = configuration(MOD)
    books, twin = ledger(config.model, config.data), ledger(dense_twin(config.model), config.data)
    for stored, of in ((found["parameters"], books), (found["dense_twin"], twin)):
        assert stored["total"] == of.params_total
        assert stored["non_embedding"] == of.params_non_embedding
        assert stored["active"] == of.params_active
        assert stored["flops_per_token"] == of.forward() / 64
    assert found["dense_twin"]["training_per_sequence"] == twin.training()


def test_tokens_of_every_term_are_those_that_take_part(modexp_cli: Cli, capsys: Captured) -> None:
    found = answer(modexp_cli, capsys, *MOD)
    tokens = {(term["block"], term["term"]): term["tokens"] for term in found["terms"]}
    assert tokens["dense", "mlp.in"] == tokens["routed", "router"] == 64
    assert tokens["routed", "mlp.in"] == tokens["routed", "attention.scores"] == 16


def test_the_table_shows_what_is_counted_and_tells_what_is_not(modexp_cli: Cli, capsys: Captured) -> None:
    assert modexp_cli("flops", *MOD) == 0
    shown = capsys.readouterr()
    # two dense blocks of a forward 2 T d 3d over T, that is 6 d^2 FLOPs a token, and three times that in training
    row = next(line for line in shown.out.splitlines() if re.match(r" *dense +attention.qkv ", line))
    per_token = 2 * 6 * 32 * 32
    assert row.split()[2:6] == ["2", "64", f"{per_token:.3e}", f"{3 * per_token:.3e}"]
    assert row.split()[6:8] == [f"{per_token * 64:.3e}", f"{3 * per_token * 64:.3e}"]
    # a quarter of the tokens: linear work by 1/4 of the twin's, the attention square by 1/16, and no router there
    ratios = {tuple(line.split()[:2]): line.split()[-1] for line in shown.out.splitlines() if " routed " in f" {line}"}
    assert ratios["routed", "mlp.in"] == "0.25"
    assert ratios["routed", "attention.scores"] == "0.0625"
    assert ratios["routed", "router"] == "-"
    assert row.split()[-1] == "1"
    mod, twin, ratio = (
        next(line for line in shown.out.splitlines() if line.strip().startswith(name)).removeprefix(f" {name}").split()
        for name in ("mod ", "dense twin", "ratio")
    )
    assert float(ratio[2]) == pytest.approx(float(mod[2]) / float(twin[2]), rel=1e-3)
    # four blocks of 12 d^2 weights and two norms, one more norm, embedding and head
    assert twin[3] == f"{4 * (12 * 32 * 32 + 2 * 32) + 32 + 2 * 256 * 32:,}"
    assert "embedding.lookup" not in shown.out
    assert "counted as nothing under matmul: attention.softmax, elementwise, embedding.lookup" in shown.err
    assert modexp_cli("flops", *MOD, "--convention", "chinchilla") == 0
    shown = capsys.readouterr()
    assert "embedding.lookup" in shown.out
    assert "counted as nothing under chinchilla: elementwise" in shown.err


def test_recomputation_is_told_and_in_no_budget(modexp_cli: Cli, capsys: Captured) -> None:
    """FlashAttention's backward has five matmuls where the ledger has four: the scores once more."""
    found = answer(modexp_cli, capsys, *MOD)
    assert found["flash_backward_recomputes"] == 2 * (2 * 64 * 64 * 32) + 2 * (2 * 16 * 16 * 32)
    assert modexp_cli("flops", *MOD) == 0
    assert f"scores once more: {found['flash_backward_recomputes']:.3e} FLOPs" in capsys.readouterr().err


def test_all_conventions_stand_side_by_side(modexp_cli: Cli, capsys: Captured) -> None:
    assert modexp_cli("flops", *MOD, "--convention", "all") == 0
    shown = capsys.readouterr().out
    lines = {line.split()[0]: line for line in shown.splitlines() if line.strip()}
    found = answer(modexp_cli, capsys, *MOD)["conventions"]
    assert list(found) == list(CONVENTIONS)
    for name, convention in CONVENTIONS.items():
        training, matmul = found[name]["training_per_sequence"], found["matmul"]["training_per_sequence"]
        assert found[name]["relative_to_matmul"] == training / matmul
        assert f"{training:.3e}" in lines[name]
        assert convention.description in lines[name]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_verified_on_the_spot(modexp_cli: Cli, capsys: Captured, kind: str) -> None:
    found = answer(modexp_cli, capsys, f"model={kind}", *SHAPE, "--verify")["verified"]
    assert set(found) == {"forward", "backward", "parameters"}
    assert all(both["ledger"] == both["pytorch"] > 0 for both in found.values())


def test_a_run_is_read_as_it_was_stored(modexp_cli: Cli, capsys: Captured, run: RunDir) -> None:
    from_words = answer(modexp_cli, capsys, *MOD, "budget.convention=causal")
    assert answer(modexp_cli, capsys, str(run.path)) == from_words
    edit_ledger(run, lambda terms: terms.pop())
    assert len(answer(modexp_cli, capsys, str(run.path))["terms"]) == len(from_words["terms"]) - 1


def test_a_ledger_one_flop_off_is_found(modexp_cli: Cli, capsys: Captured, run: RunDir) -> None:
    assert modexp_cli("flops", str(run.path), "--verify") == 0
    assert "to the last FLOP" in capsys.readouterr().err

    def one_more(terms: list[dict[str, Any]]) -> None:
        head = next(term for term in terms if term["name"] == "head")
        head["forward"] += 1
        head["params"] -= 3

    edit_ledger(run, one_more)
    assert modexp_cli("flops", str(run.path), "--verify") == 1
    assert "differ: forward by +1, backward by +2, parameters by -3\n" in capsys.readouterr().err


def test_size_auto_is_what_the_budget_makes_it(modexp_cli: Cli, capsys: Captured) -> None:
    small, large = (answer(modexp_cli, capsys, "model=mod", "--budget", b)["model"] for b in ("1e12", "1e16"))
    shape = resolve_shape(configuration(["model=mod", "budget=1e16"])).model.shape
    assert (large["n_layers"], large["d_model"], large["n_heads"]) == shape
    assert small["d_model"] < large["d_model"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--convention", "pal"], "--convention pal is not a way to count"),
        (["budget.convention=pal"], "budget.convention=pal is not a choice"),
        (["size=huge"], "size=huge is not a number of parameters"),
        (["--budget", "1e12,2e12"], "--budget 1e12,2e12 is not one number of FLOPs"),
        (["model.d_model=8"], "the shape is half given"),
        (["nowhere"], "nowhere holds no plan.json"),
        (["one", "two"], "two is one name too many after one"),
        (["model=mod", "model.auxiliary_weight=1"], "is read by nothing under model.causal=predictor"),
        (["--wrong"], "--wrong"),
    ],
)
def test_wrong_words_are_sentences(modexp_cli: Cli, capsys: Captured, words: list[str], sentence: str) -> None:
    assert modexp_cli("flops", *words) == 2
    shown = capsys.readouterr()
    assert sentence in shown.err
    assert len(shown.err.rstrip().splitlines()) == 2
    assert not shown.out


def test_a_run_keeps_its_settings_and_its_ledger(modexp_cli: Cli, capsys: Captured, run: RunDir) -> None:
    assert modexp_cli("flops", str(run.path), "model.every=1") == 2
    assert f"model.every=1 cannot change {run.path}" in capsys.readouterr().err
    edit_ledger(run, lambda terms: terms[0].update(colour="red"))
    assert modexp_cli("flops", str(run.path)) == 2
    assert "plan.json: the stored ledger cannot be read" in capsys.readouterr().err
    promise = json.loads(run.plan_path.read_text())
    del promise["ledger"]
    run.plan_path.write_text(json.dumps(promise))
    assert modexp_cli("flops", str(run.path)) == 2
    assert "it lacks plan, ledger" in capsys.readouterr().err


def test_it_answers_at_once(tmp_path: Path) -> None:
    """In processor time, which other work on the machine does not lengthen; without torch."""
    program = (
        "import sys, time\nfrom modexp.cli import run\ncode = run(['flops', 'model=mod', 'size=220m', '--json'])\n"
        "assert 'torch' not in sys.modules\nprint(time.process_time(), file=sys.stderr)\nsys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert json.loads(done.stdout)["parameters"]["total"] > 2e8
    assert float(done.stderr.split()[-1]) < 1  # .35 where it was written
