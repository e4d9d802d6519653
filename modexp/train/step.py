"""One optimizer step: what the loop runs and what the benchmark times."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from modexp.config.root import Config
from modexp.models.build import build
from modexp.models.stochastic import part_of
from modexp.models.transformer import Transformer
from modexp.train.hardware import is_out_of_memory, release, trim
from modexp.train.optimizer import clip_gradients, make_optimizer
from modexp.train.parallel import keeping_gradients, spread
from modexp.train.recompute import averages_of
from modexp.train.world import ALONE, World


class OutOfMemory(Exception):
    """The passes of a step do not fit; fewer sequences a pass may."""


class Stepper:
    """A model, its optimizer, and how the two are run on a device.

    B sequences a step, T tokens each, shared among processes and in micro-batches: whatever the split, gradients,
    averages and noise are those of one pass over all of them, to rounding.
    """

    def __init__(self, config: Config, device: torch.device, precision: str, world: World = ALONE) -> None:
        self.device, self.world = device, world
        self.grad_clip = config.optim.grad_clip
        self.model: Transformer = build(config.model, config.data, config.seed)
        self.objective: Any = spread(self.model, config, device, precision, world)
        self.optimizer = make_optimizer(self.model, config.optim)
        self.averages = averages_of(self.model)  # that a pass moves

    def step(self, batch: Tensor, micro: int, lr: float, seed: int) -> tuple[Tensor, Tensor]:
        """Train on ``batch`` (B, T + 1), ``micro`` sequences a pass, at rate ``lr``; ``seed`` is of the routers' noise.

        Returns the mean loss in nats a token and the norm of the gradient, both still on the device. Raises
        :class:`OutOfMemory` where the passes do not fit; the model is then as it was before, for another try.
        """
        mean_loss = self.passes_or_nothing(batch, micro, seed)
        norm = clip_gradients(self.model, self.grad_clip)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        begins = not self.optimizer.state
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if begins:  # its moments now lie among what the first pass has freed, where later ones would not fit
            trim(self.device)
        return mean_loss, norm

    def passes_or_nothing(self, batch: Tensor, micro: int, seed: int) -> Tensor:
        before = [average.clone() for average in self.averages]
        try:
            return self.passes(batch, micro, seed, before)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).partition("\n")[0] or type(error).__name__
        # here, where the error and with it the frames that hold the activations are gone
        self.optimizer.zero_grad(set_to_none=True)
        for average, old in zip(self.averages, before, strict=True):
            average.copy_(old)
        release(self.device)
        raise OutOfMemory(reason)

    def passes(self, batch: Tensor, micro: int, seed: int, before: list[Tensor]) -> Tensor:
        """Forward and backward, pass by pass, each from the running averages ``before``; the mean loss."""
        B = len(batch)
        passes = self.world.passes(B, micro)
        means = [torch.zeros((), device=self.device), *map(torch.zeros_like, self.averages)]
        for number, part in enumerate(passes, 1):
            # a process whose share is done goes along with any sequence, of no weight: the others wait for it
            chunk = batch[part.start : part.stop] if part else batch[:1]
            weight = len(part) / B
            for average, value in zip(self.averages, before, strict=True):
                average.copy_(value)
            torch.manual_seed(seed)
            with (
                part_of(B, part.start if part else 0, self.device),
                keeping_gradients(self.objective, number < len(passes)),
            ):
                total, loss = self.objective(chunk[:, :-1], chunk[:, 1:], len(chunk) == micro)
                (total * (weight * self.world.size)).backward()
            for mean, value in zip(means, [loss.detach(), *self.averages], strict=True):
                mean += value * weight
        mean_loss, *moved = self.together(means)
        for average, value in zip(self.averages, moved, strict=True):
            average.copy_(value)
        return mean_loss

    def together(self, means: list[Tensor]) -> list[Tensor]:
        """Each summed over the processes, all in one message."""
        flat = self.world.sum(torch.cat([mean.flatten() for mean in means]))
        return [piece.view_as(mean) for piece, mean in zip(flat.split([m.numel() for m in means]), means, strict=True)]
