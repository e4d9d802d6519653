"""What only a GPU can show: `make test-gpu`. The speed bars: `modexp bench step` and `modexp bench decode` there."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch

from modexp.cli.compose import configuration
from modexp.kinds import KINDS
from modexp.models.build import build
from modexp.sampling.decode import Decoder, in_bf16, padded
from modexp.train.loop import train
from modexp.train.outcome import Consumed
from modexp.train.progress import Progress
from modexp.train.rows import Rows
from modexp.train.step import Stepper
from modexp.train.trackers import Tracker
from tests.test_train import MOD, planned

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
SHAPE = ["model.n_layers=4", "model.d_model=256", "model.n_heads=4", "data=python", "data.sequence_length=256"]


def stepper_of(kind: str, *words: str) -> Stepper:
    return Stepper(configuration([f"model={kind}", *SHAPE, *words]), torch.device("cuda"), "bf16")


def batch_of(seed: int) -> torch.Tensor:
    return torch.randint(256, (8, 257), generator=torch.Generator().manual_seed(seed)).cuda()


@pytest.mark.parametrize("compiled", ["true", "false"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_step_waits_for_the_device(kind: str, compiled: str) -> None:
    """Two passes a step: what goes on between passes may not wait either."""
    stepper = stepper_of(kind, f"trainer.compile={compiled}")
    for seed in range(3):
        stepper.step(batch_of(seed), 4, 1e-3, seed)
    batch = batch_of(3)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss, norm = stepper.step(batch, 4, 1e-3, 3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert loss.isfinite()
    assert norm.isfinite()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_compiled_again_after_the_first_step(kind: str) -> None:
    import torch._dynamo as dynamo

    dynamo.reset()
    stepper = stepper_of(kind, "trainer.compile=true")
    stepper.step(batch_of(0), 4, 1e-3, 0)
    with dynamo.config.patch(error_on_recompile=True):
        for seed in range(1, 4):
            stepper.step(batch_of(seed)[: 7 + seed % 2], 4, 1e-3, seed)  # the last pass of a step may be smaller
    dynamo.reset()


@pytest.mark.parametrize("kind", KINDS)
def test_cached_decoding_on_a_gpu_is_the_whole_forward(kind: str) -> None:
    config = configuration([f"model={kind}", *SHAPE])
    model = build(config.model, config.data, 0).cuda().eval()
    prompts = [torch.arange(3, 3 + n).remainder(256).tolist() for n in (5, 1, 9)]
    tokens, valid = padded(prompts, torch.device("cuda"))
    found = Decoder(model, 3, 32).logits(tokens, valid)
    with torch.inference_mode():
        for row, prompt in enumerate(prompts):
            whole = model(torch.tensor([prompt], device="cuda"), causal=True).logits[0, -1]
            torch.testing.assert_close(found[row], whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize("kind", KINDS)
def test_recorded_steps_are_the_whole_forward(kind: str, batch: int, precision: str) -> None:
    """Twice: what is recorded in the first turn is replayed in the second."""
    config = configuration([f"model={kind}", *SHAPE])
    model = build(config.model, config.data, 0).cuda().eval()
    if precision == "bf16":
        in_bf16(model)
    tokens = torch.randint(256, (batch, 64), generator=torch.Generator().manual_seed(0)).cuda()
    decoder = Decoder(model, batch, 64)
    with torch.inference_mode():
        whole = model(tokens, causal=True).logits.float()
    for _ in range(2):
        decoder.clear()
        found = [decoder.logits(tokens[:, :8])]
        found += [decoder.logits(tokens[:, n : n + 1]) for n in range(8, 64)]
        difference = (torch.stack(found, dim=1) - whole[:, 7:]).abs()
        if kind == "mod_stochastic":  # each pass draws noise of its own, and so must each replay
            counts = decoder.states[1].cache.used
            assert int(counts.min()) > 0
            assert int(counts.max()) < 64
            assert batch == 1 or len(counts.unique()) > 1
        elif precision == "fp32":
            assert difference.max() < 1e-4
        else:  # rounding may move a token to another expert
            assert difference.flatten().quantile(0.95) < 0.1
    assert decoder.steps is not None
    assert all(stage.graph is not None for stage in decoder.steps.stages)


@pytest.mark.parametrize("kind", ["baseline", "moe", "mod"])
def test_no_recorded_step_of_many_rows_waits_for_the_device(kind: str) -> None:
    config = configuration([f"model={kind}", *SHAPE])
    model = build(config.model, config.data, 0).cuda().eval()
    tokens = batch_of(0).repeat(4, 1)
    decoder = Decoder(model, len(tokens), 64)
    decoder.logits(tokens[:, :8])
    decoder.logits(tokens[:, 8:9])
    token = tokens[:, 9:10].contiguous()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        logits = decoder.logits(token)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert logits.isfinite().all()


def test_a_row_is_marked_without_a_wait() -> None:
    device, file = torch.device("cuda"), io.StringIO()
    plan = {"sequence_length": 64, "training_flops_per_sequence": 1e6}
    with Progress("run", 10) as progress:
        consumed = Consumed()
        rows = Rows(file, Tracker(), progress, consumed, plan, 1.0, 1e12, device)
        consumed.step, consumed.sequences = 2, 8
        loss_sum, norm = torch.full((), 6.0, device=device), torch.full((), 0.5, device=device)
        torch.cuda._sleep(10**8)
        torch.cuda.set_sync_debug_mode("error")
        try:
            rows.mark(1e-3, 2, loss_sum, norm)
            loss_sum.zero_()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        rows.settle()
    row = json.loads(file.getvalue())
    assert (row["step"], row["train/loss"], row["train/grad_norm"]) == (2, 3.0, 0.5)
    assert consumed.train_seconds > 0.01, "time is the device's own"


def test_trains_on_a_gpu(tmp_path: Path, tiny: list[str]) -> None:
    overrides = [o for o in tiny if "threads" not in o]
    run = planned(tmp_path / "r", [*overrides, *MOD, "budget=2e10", "trainer.device=cuda"])
    assert train(run.path)["loss"] < 5.0
