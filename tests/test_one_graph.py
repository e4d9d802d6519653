"""A step run otherwise, compiled as one graph, blocks computed again, the loss in chunks: its numbers stay."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from modexp.cli.compose import configuration
from modexp.config.data import DataConfig
from modexp.config.model import BaselineConfig
from modexp.config.root import Config
from modexp.errors import UserError
from modexp.kinds import KINDS, ledger
from modexp.models import head
from modexp.models.build import assemble, build
from modexp.models.loss import training_loss
from modexp.train.hardware import choose_compile
from modexp.train.recompute import recompute
from modexp.train.step import Stepper

SHAPE = ["model.n_layers=4", "model.d_model=32", "model.n_heads=2", "data=python", "data.sequence_length=64"]


def config_of(kind: str, *words: str) -> Config:
    return configuration([f"model={kind}", *SHAPE, *words])


def losses(config: Config, batches: int = 3) -> list[float]:
    """Of a few steps of 5 sequences in passes of 2, 2 and 1."""
    stepper = Stepper(config, torch.device("cpu"), "fp32")
    tokens = torch.randint(256, (batches, 5, 65), generator=torch.Generator().manual_seed(0))
    return [stepper.step(batch, 2, 1e-2, seed)[0].item() for seed, batch in enumerate(tokens)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_one_graph_compiled_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph break raises, and so does a second compilation; the compiler's front end is real, its back end is not."""
    import torch._dynamo as dynamo

    dynamo.reset()
    dynamo.utils.counters.clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    with dynamo.config.patch(error_on_recompile=True):
        found = losses(config_of(kind, "trainer.compile=true"))
    assert found == pytest.approx(losses(config_of(kind)), abs=1e-4)
    assert dynamo.utils.counters["stats"]["unique_graphs"] == 1
    dynamo.reset()


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # the compiler does so itself
def test_the_loss_in_chunks_is_part_of_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._dynamo as dynamo

    dynamo.reset()
    monkeypatch.setattr(head, "CHUNK_LOGITS", 256 * 40)  # 40 tokens of 128
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    found = losses(config_of("mod", "trainer.compile=true"))
    assert found == pytest.approx(losses(config_of("mod")), abs=1e-4)
    dynamo.reset()


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_that_are_computed_again_train_to_the_same_bits(kind: str) -> None:
    """Running averages included: they move once a step, and the second time decisions are those of the first."""
    again = config_of(kind, "trainer.activation_checkpointing=true")
    assert losses(again) == losses(config_of(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_computed_again_is_counted_beside_the_ledger(kind: str) -> None:
    config = config_of(kind)
    with torch.device("meta"):
        model = assemble(config.model, config.data)
        tokens = torch.zeros(1, 64, dtype=torch.long)
    for block in model.blocks:
        recompute(block)
    with FlopCounterMode(display=False) as counter:
        training_loss(model(tokens, tokens))[0].backward()
    books = ledger(config.model, config.data)
    assert books.recomputed() > 0
    assert counter.get_total_flops() == books.training() + books.recomputed()


def test_running_averages_are_not_compiled_and_computed_again() -> None:
    words = ["trainer.compile=true", "trainer.activation_checkpointing=true"]
    with pytest.raises(UserError, match=r"trainer.compile=true does not go with trainer.activation_checkpointing=true"):
        Stepper(config_of("mod_threshold", *words), torch.device("cpu"), "fp32")


def test_auto_compiles_long_runs_on_a_gpu() -> None:
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert choose_compile("auto", gpu, 6e18)
    assert not choose_compile("auto", gpu, 1e15)
    assert not choose_compile("auto", cpu, 6e18)
    assert choose_compile(True, cpu, 1.0)
    assert not choose_compile(False, gpu, 6e18)
    with pytest.raises(UserError, match=r"trainer.compile=yes is not true, false or auto"):
        replace(config_of("baseline").trainer, compile="yes")


@pytest.mark.parametrize("tied", [False, True])
def test_the_loss_in_chunks_is_the_loss_at_once(tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against logits of all tokens and PyTorch's own cross-entropy; the last of 5 chunks is shorter."""
    data = DataConfig(vocab_size=1000, sequence_length=48)
    model = build(BaselineConfig(n_layers=2, d_model=32, n_heads=2, tie_embeddings=tied), data, seed=0)
    tokens = torch.randint(1000, (2, 3, 48), generator=torch.Generator().manual_seed(0))
    wanted = F.cross_entropy(model(tokens[0]).logits.flatten(0, 1), tokens[1].flatten())
    expected = torch.autograd.grad(wanted, list(model.parameters()))
    for limit in ("CHUNK_LOGITS", "EVAL_LOGITS"):
        monkeypatch.setattr(head, limit, 30_999)  # 30 tokens of 144
    found = model(tokens[0], tokens[1]).loss
    assert found.item() == pytest.approx(wanted.item(), abs=1e-6)
    for one, other in zip(torch.autograd.grad(found, list(model.parameters())), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
    with torch.no_grad():
        assert model(tokens[0], tokens[1]).loss.item() == pytest.approx(wanted.item(), abs=1e-6)


def test_chunks_take_no_more_flops_and_less_memory_than_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "CHUNK_LOGITS", 1000 * 16)
    with torch.device("meta"):
        x, weight = torch.empty(2, 64, 8, requires_grad=True), torch.empty(1000, 8, requires_grad=True)
        targets = torch.empty(2, 64, dtype=torch.long)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            largest = max([largest, *(t.numel() for t in torch.utils._pytree.tree_leaves(out) if hasattr(t, "numel"))])
            return out

    with Watch(), FlopCounterMode(display=False) as counter:
        head.head_loss(x, weight, targets).backward()
    assert counter.get_total_flops() == 3 * 2 * 128 * 8 * 1000
    assert largest <= 1000 * 16


def test_averages_that_moved_to_a_device_are_put_back_too() -> None:
    """There a block has other buffers than when its forward pass was wrapped."""
    found = []
    for again in (False, True):
        config = config_of("mod_threshold")
        model = build(config.model, config.data, seed=0).train()
        for block in model.blocks if again else ():
            recompute(block)
        model._apply(torch.clone)
        tokens = torch.randint(256, (4, 64), generator=torch.Generator().manual_seed(0))
        training_loss(model(tokens, tokens))[0].backward()
        found.append({name: buffer.tolist() for name, buffer in model.named_buffers() if "rope" not in name})
    assert found[0] == found[1]
    assert found[0]
