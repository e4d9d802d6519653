"""A researcher's own arm, from a package outside of modexp: docs/attention_routing, installed beside it."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from modexp import kinds
from modexp.analysis.records import records
from modexp.cli.offers import Asked, group_files, settings
from modexp.config.data import DataConfig
from modexp.models.build import assemble, build
from modexp.models.loss import training_loss
from tests.test_sampling import decoded

EXAMPLE = Path(__file__).resolve().parents[1] / "docs" / "attention_routing"
SHAPE = {"n_layers": 4, "d_model": 32, "n_heads": 2}


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What pip makes of the example: the module, its YAML, and the entry point."""
    site = tmp_path / "site"
    shutil.copytree(EXAMPLE, site)
    metadata = site / "attention_routing-0.1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: attention-routing\nVersion: 0.1.0\n")
    (metadata / "entry_points.txt").write_text("[modexp.kinds]\nattention_routing = attention_routing:KIND\n")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", f"{site}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    importlib.invalidate_caches()
    yield
    kinds.KINDS.pop("attention_routing", None)
    sys.modules.pop("attention_routing", None)


@pytest.mark.usefixtures("installed")
def test_its_ledger_is_exact() -> None:
    config = kinds.kind("attention_routing").config(**SHAPE, capacity=0.25)
    data = DataConfig(sequence_length=64)
    with torch.device("meta"):
        model = assemble(config, data)
        tokens = torch.zeros(2, 64, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        training_loss(model(tokens, tokens))[0].backward()
    books = kinds.ledger(config, data)
    assert counter.get_total_flops() == 2 * books.training()
    assert books.params_total == sum(p.numel() for p in model.parameters())


@pytest.mark.usefixtures("installed")
def test_completion_offers_it() -> None:
    assert "attention_routing" in group_files("model")
    asked = Asked("model.cap", ["train", "model=attention_routing"], Namespace(), "modexp train", "")
    assert settings(asked)["model.capacity="] == "default 0.125"


@pytest.mark.usefixtures("installed")
def test_it_is_causal() -> None:
    config = kinds.kind("attention_routing").config(**SHAPE, capacity=0.25)
    model = build(config, DataConfig(sequence_length=64), 0)
    tokens = torch.randint(256, (2, 64))
    before = model(tokens, causal=True).logits
    tokens[:, 40] = (tokens[:, 40] + 1) % 256
    torch.testing.assert_close(model(tokens, causal=True).logits[:, :40], before[:, :40], rtol=0, atol=1e-6)


@pytest.mark.usefixtures("installed")
def test_its_cached_decoding_is_its_forward() -> None:
    model = build(kinds.kind("attention_routing").config(**SHAPE, capacity=0.25), DataConfig(sequence_length=48), 0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "predictor" in name:
                parameter.normal_(0, 0.5, generator=torch.Generator().manual_seed(1))
    tokens = torch.randint(256, (5, 48), generator=torch.Generator().manual_seed(0))
    whole = model(tokens, causal=True)
    assert 0 < whole.routings[0].taken.float().mean() < 1
    logits, _ = decoded(model, tokens, [17, 1, 24, 9, 23])
    torch.testing.assert_close(logits, whole.logits, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("installed")
def test_it_is_planned_swept_fitted_and_drawn(
    modexp_cli: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny: list[str]
) -> None:
    assert modexp_cli("train", "--cfg", "job", "model=attention_routing") == 0
    assert "kind: attention_routing" in capsys.readouterr().out
    (tmp_path / "mine.yaml").write_text(
        "budgets: [1.0e+9]\n"
        "arms: {baseline: [model=baseline], mine: [model=attention_routing, model.capacity=0.25]}\n"
        f"grid: {{points: 1}}\noverrides: {json.dumps(tiny)}\n"
    )
    assert modexp_cli("plan", "mine.yaml") == 0
    assert "mine-" in capsys.readouterr().out
    assert modexp_cli("sweep", "mine.yaml") == 0
    rows = {row["arm"]: row for row in records(tmp_path / "runs/mine")}
    assert rows["mine"]["status"] == "done"
    assert rows["mine"]["loss"] != rows["mine"]["loss_topk"]
    assert 0.5 < rows["mine"]["relative_flops"] < 1
    assert (tmp_path / "runs/mine/isoflop.png").exists()


def test_without_the_package_its_kind_is_unknown(
    modexp_cli: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert modexp_cli("train", "model.kind=attention_routing") == 2
    assert "model.kind=attention_routing is not known" in capsys.readouterr().err
