"""How a model is spread over processes: DDP copies it, FSDP2 cuts every parameter. The model itself knows neither.

Both average gradients over N processes, so a loss is weighed by N before its backward pass: uneven shares add up.
"""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from modexp.config.root import Config
from modexp.errors import UserError
from modexp.models.loss import training_loss
from modexp.models.transformer import Transformer
from modexp.train.hardware import autocast, choose_compile
from modexp.train.recompute import averages_of, recompute
from modexp.train.world import World


class Objective(nn.Module):
    """A model and its loss: DDP must see which parameters reach the loss, not which reach some output."""

    def __init__(self, model: Transformer, device: torch.device, precision: str, compiled: bool = False) -> None:
        super().__init__()
        self.model, self.device, self.precision = model, device, precision
        # one graph, for one shape: a break would cost more than it is allowed to go unseen
        self.fast = compiled_alone(model) if compiled else model

    def forward(self, tokens: Tensor, targets: Tensor, usual: bool = True) -> tuple[Tensor, Tensor]:
        """What is minimised, and the language model's loss in nats a token; both of (B, T) tokens.

        A pass that is not of the ``usual`` size is not worth compiling for.
        """
        with autocast(self.device, self.precision):
            return training_loss((self.fast if usual else self.model)(tokens, targets))


def compiled_alone(model: Transformer) -> Any:
    import torch._dynamo

    # models share their code, and a benchmark holds many: each is compiled once, whatever the others were
    torch._dynamo.config.recompile_limit = 1024
    return torch.compile(model.forward, fullgraph=True, dynamic=False)


def spread(model: Transformer, config: Config, device: torch.device, precision: str, world: World) -> Any:
    """Bring ``model`` to its device, or its pieces to theirs; returns its :class:`Objective`, as it is to be called.
    Comes before the optimizer, which must know the pieces."""
    trainer = config.trainer
    compiled = choose_compile(trainer.compile, device, config.budget.flops)
    if trainer.activation_checkpointing:
        if averages_of(model) and compiled:  # a compiler cannot put them back while it computes a block again
            if trainer.compile is True:
                raise UserError(
                    f"trainer.compile=true does not go with trainer.activation_checkpointing=true in"
                    f" model={config.model.kind}, whose blocks keep running averages",
                    "leave one of them out",
                )
            compiled = False
        for block in model.blocks:
            recompute(block)
    if world.size > 1 and trainer.parallel == "fsdp":
        shard(model, device, compiled)
        return Objective(model, device, precision)
    model.to(device)
    objective = Objective(model, device, precision, compiled)
    if world.size == 1:
        return objective
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # a newer name of broadcast_buffers, which torch 2.11 lacks
        return DistributedDataParallel(
            objective,
            broadcast_buffers=False,  # the step keeps them alike
            gradient_as_bucket_view=True,
            find_unused_parameters=getattr(config.model, "gate", "") == "none",  # no gradient reaches such a router
        )


def shard(model: Transformer, device: torch.device, compiled: bool) -> None:
    """Cut block by block: no device ever holds more than its pieces and one block. Parameters stay fp32 and are
    gathered so, since routers compute in it; autocast does the rest, as in one process."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # a block returns a view, which nothing here changes in place
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for block in model.blocks:
        if compiled:
            compile_training(block)
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model.to(device)  # what is left: buffers


def compile_training(block: nn.Module) -> None:
    """FSDP's hooks stay outside of the graph; evaluation, whose shapes the data decide, is not compiled anywhere."""
    plain, compiled = block.forward, torch.compile(block.forward)
    block.forward = lambda *inputs: (compiled if block.training else plain)(*inputs)


def keeping_gradients(objective: Any, more: bool) -> AbstractContextManager[Any]:
    """Keep DDP from adding up gradients in a pass that ``more`` follow. FSDP does it in every pass: to keep whole
    gradients between passes is what it is there to avoid."""
    return objective.no_sync() if more and isinstance(objective, DistributedDataParallel) else nullcontext()


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that is cut over processes; every process must ask."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def cut_like(parameter: Any, value: Tensor) -> Tensor:
    """``value`` on the device of ``parameter`` and, where it has the same shape, cut as that is."""
    value = value.to(parameter.device)
    if not hasattr(parameter, "full_tensor") or value.shape != parameter.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    # every process read the same file and takes its own piece of it
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
