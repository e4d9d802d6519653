"""One optimizer step: what the loop runs and what the benchmark times."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from modexp.config.root import Config
from modexp.models.build import build
from modexp.models.loss import training_loss
from modexp.models.transformer import Transformer
from modexp.train.hardware import autocast, is_out_of_memory, release
from modexp.train.optimizer import clip_gradients, make_optimizer


class OutOfMemory(Exception):
    """The passes of a step do not fit; fewer sequences a pass may."""


class Stepper:
    """A model, its optimizer, and how the two are run on a device.

    B sequences a step, T tokens each, in micro-batches whose gradients add up.
    """

    def __init__(self, config: Config, device: torch.device, precision: str) -> None:
        self.device, self.precision = device, precision
        self.grad_clip = config.optim.grad_clip
        self.model: Transformer = build(config.model, config.data, config.seed).to(device)
        kept = self.model.state_dict().keys()
        self.buffers = [b for name, b in self.model.named_buffers() if name in kept]  # running estimates of routers
        self.optimizer = make_optimizer(self.model, config.optim)
        self.forward: Any = torch.compile(self.model) if config.trainer.compile else self.model

    def step(self, batch: Tensor, micro: int, lr: float, seed: int) -> tuple[Tensor, Tensor]:
        """Train on ``batch`` (B, T + 1), ``micro`` sequences a pass, at rate ``lr``; ``seed`` is of the routers' noise.

        Returns the mean loss in nats a token and the norm of the gradient, both still on the device. Raises
        :class:`OutOfMemory` where the passes do not fit; the model is then as it was before, for another try.
        """
        mean_loss = self.passes_or_nothing(batch, micro, seed)
        norm = clip_gradients(self.model, self.grad_clip)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return mean_loss, norm

    def passes_or_nothing(self, batch: Tensor, micro: int, seed: int) -> Tensor:
        before = [buffer.clone() for buffer in self.buffers]
        try:
            return self.passes(batch, micro, seed)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).partition("\n")[0] or type(error).__name__
        # here, where the error and with it the frames that hold the activations are gone
        self.optimizer.zero_grad(set_to_none=True)
        for buffer, old in zip(self.buffers, before, strict=True):
            buffer.copy_(old)
        release(self.device)
        raise OutOfMemory(reason)

    def passes(self, batch: Tensor, micro: int, seed: int) -> Tensor:
        """Forward and backward, chunk by chunk; the mean loss."""
        torch.manual_seed(seed)
        mean_loss = torch.zeros((), device=self.device)
        for chunk in batch.split(micro):
            with autocast(self.device, self.precision):
                output = self.forward(chunk[:, :-1])
            total, loss = training_loss(output, chunk[:, 1:])
            weight = len(chunk) / len(batch)
            (total * weight).backward()
            mean_loss += loss.detach() * weight
        return mean_loss
