"""modexp plot: the paper's figures of real runs, each by one command."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import modexp
from modexp.analysis.records import records
from modexp.plots import style
from modexp.train.loop import train
from tests.test_figures import floats, read
from tests.test_train import MOD, planned

Cli = Callable[..., int]
Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def trained(documents: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of one dense and three routed runs of some hundred steps."""
    runs = tmp_path_factory.mktemp("runs") / "micro"
    tiny = ["data=files", f"data.paths=[{documents}/*.py]", "data.sequence_length=64", "data.validation_share=0.1"]
    tiny += ["tracker=none", "trainer.eval_sequences=8", "trainer.num_evals=2", "trainer.threads=1", "budget=2e9"]
    arms = {
        "baseline": ["model=baseline"],
        "mod": ["model=mod", "model.capacity=0.25"],
        "auxiliary": ["model=mod", "model.causal=auxiliary"],
        "none": ["model=mod", "model.causal=none"],
    }
    for arm, overrides in arms.items():
        run = planned(runs / arm, [*tiny, *MOD[1:], *overrides])
        train(run.path)
    return runs


@pytest.fixture
def micro(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "runs" / "micro")


def test_records_know_the_model(micro: Path) -> None:
    rows = {r["run"]: r for r in records(micro)}
    known = {name: [r[k] for k in ("kind", "capacity", "every", "causal")] for name, r in rows.items()}
    assert known["baseline"] == ["baseline", None, None, None]
    assert known["mod"] == ["mod", 0.25, 2, "predictor"]
    assert known["none"] == ["mod", 0.125, 2, "none"]


TEXT = "def main(words):\n    return 0\n"


@pytest.mark.parametrize(
    ("words", "written"),
    [
        (["frontier"], ["frontier.csv"]),
        (["mode"], ["mode.csv"]),
        (["capacity"], ["capacity.csv"]),
        (["sampling"], ["sampling.csv"]),
        (["predictor", "--run", "mod"], ["predictor.csv"]),
        (["curves", "--run", "mod", "--run", "baseline"], ["curves.csv", "curves_steps.csv"]),
        (["routing", "--run", "auxiliary", "--text", TEXT], ["routing.csv", "routing_tokens.csv"]),
        (["routing", "--text", TEXT], ["routing.csv", "routing_tokens.csv"]),
    ],
    ids=" ".join,
)
def test_every_figure_is_one_command(
    words: list[str], written: list[str], micro: Path, modexp_cli: Cli, capsys: Captured
) -> None:
    assert modexp_cli("plot", *words, "--out", "out") == 0
    printed = capsys.readouterr().out.split()
    assert sorted(printed) == sorted(
        ["out/" + name for name in written] + [f"out/{words[0]}.{s}" for s in ("png", "svg")]
    )
    assert all(Path(path).stat().st_size > 0 for path in printed)


def test_routing_of_a_trained_run_is_what_the_model_does(micro: Path, modexp_cli: Cli, capsys: Captured) -> None:
    assert modexp_cli("plot", "routing", "--run", "mod", "--text", TEXT) == 0
    assert "decided by the predictors" in capsys.readouterr().err
    model = modexp.load(micro / "mod").model
    with torch.no_grad():
        output = model(torch.tensor([list(TEXT.encode())]), causal=True)
    rows = read(micro / "routing.csv")
    for i, layer in enumerate((1, 3)):
        mine = [r for r in rows if int(r["block"]) == layer]
        assert "".join(r["token"] for r in mine) == TEXT
        assert [int(r["taken"]) for r in mine] == output.routings[i].taken[0].int().tolist()
        np.testing.assert_allclose(floats(mine, "router_weight"), output.routings[i].weights[0], rtol=1e-6)  # type: ignore[arg-type]
    entropy = torch.distributions.Categorical(logits=output.logits[0]).entropy()
    np.testing.assert_allclose(floats(read(micro / "routing_tokens.csv"), "entropy"), entropy, rtol=1e-4)  # type: ignore[arg-type]


def test_a_run_is_named_by_its_directory_too(micro: Path, modexp_cli: Cli, capsys: Captured) -> None:
    assert modexp_cli("plot", "curves", "--run", "runs/micro/mod", "--run", "runs/micro/none/") == 0
    assert {row["run"] for row in read(micro / "curves.csv")} == {"mod", "none"}
    assert modexp_cli("plot", "curves", "--run", "runs/macro/mod") == 2
    assert "there is no study runs/macro" in capsys.readouterr().err


def test_the_baseline_looks_like_it_whichever_run_comes_first(
    micro: Path, modexp_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Any] = []
    monkeypatch.setattr(style, "save", lambda figure, stem: figures.append(figure) or [])
    for names in (("mod", "baseline"), ("mod", "none")):
        assert modexp_cli("plot", "curves", *(f"--run={name}" for name in names)) == 0
        faces = [
            line.get_markerfacecolor() for line in figures.pop().axes[0].lines if line.get_marker() in ("o", "s", "^")
        ]
        assert [face == "white" for face in faces] == [name == "baseline" for name in names]


def test_metrics_give_the_accuracy_that_the_model_has(micro: Path, modexp_cli: Cli) -> None:
    """From precision, recall and capacity, against the decisions of the trained model on the same held-out text."""
    from modexp.train.loop import corpus_of

    assert modexp_cli("plot", "predictor") == 0
    run = modexp.load(micro / "mod")
    held_out = corpus_of(run.config, modexp.runs.RunDir(micro / "mod").plan())  # type: ignore[attr-defined]
    sequences = torch.from_numpy(np.ascontiguousarray(held_out.validation(8)))
    with torch.no_grad():
        routings = run.model(sequences[:, :-1]).routings
    right = torch.stack([(r.predicted > 0) == r.taken for r in routings]).float().mean().item()  # type: ignore[operator]
    last = [r for r in read(micro / "predictor.csv") if r["run"] == "mod"][-1]
    assert last["always_skip"] == "0.75"
    assert float(last["accuracy"]) == pytest.approx(right, abs=1e-6)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["routing"], "none is given"),
        (["routing", "--text", "x", "--run", "baseline"], "baseline is dense"),
        (["routing", "--text", "x", "--run", "mod", "--run", "none"], "give --run once"),
        (["routing", "--text", "x" * 65, "--run", "mod"], "the text has 65 tokens, and mod reads 64"),
        (["predictor", "--run", "none"], "no run of micro has a predictor"),
        (["curves", "--run", "modd"], "did you mean mod"),
        (["frontier", "--x", "steps"], "--x says nothing to the figure frontier"),
        (["sampling", "--axis", "tokens"], "--axis says nothing to the figure sampling"),
        (["isoflop", "--text", "x"], "it is for routing"),
        (["picture"], "invalid choice"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else None,
)
def test_wrong_requests_are_sentences(
    words: list[str], text: str, micro: Path, modexp_cli: Cli, capsys: Captured
) -> None:
    assert modexp_cli("plot", *words) == 2
    err = capsys.readouterr().err
    assert text in err
    assert "Traceback" not in err


def test_help_lists_the_figures(modexp_cli: Cli, capsys: Captured) -> None:
    with pytest.raises(SystemExit):
        modexp_cli("plot", "--help")
    out = capsys.readouterr().out
    for name in ("isoflop", "frontier", "curves", "capacity", "routing", "sampling", "predictor", "mode"):
        assert f"\n  {name} " in out
