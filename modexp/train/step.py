"""One optimizer step: what the loop runs and what the benchmark times."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from modexp.config.root import Config
from modexp.models.build import build
from modexp.models.loss import training_loss
from modexp.models.transformer import Transformer
from modexp.train.hardware import autocast
from modexp.train.optimizer import clip_gradients, make_optimizer


class Stepper:
    """A model, its optimizer, and how the two are run on a device.

    B sequences a step, T tokens each, in micro-batches whose gradients add up.
    """

    def __init__(self, config: Config, device: torch.device, precision: str) -> None:
        self.device, self.precision = device, precision
        self.grad_clip = config.optim.grad_clip
        self.model: Transformer = build(config.model, config.data, config.seed).to(device)
        self.optimizer = make_optimizer(self.model, config.optim)
        self.forward: Any = torch.compile(self.model) if config.trainer.compile else self.model

    def step(self, batch: Tensor, micro: int, lr: float, seed: int) -> tuple[Tensor, Tensor]:
        """Train on ``batch`` (B, T + 1), ``micro`` sequences a pass, at rate ``lr``; ``seed`` is of the routers' noise.

        Returns the mean loss in nats a token and the norm of the gradient, both still on the device.
        """
        torch.manual_seed(seed)
        mean_loss = torch.zeros((), device=self.device)
        for chunk in batch.split(micro):
            with autocast(self.device, self.precision):
                output = self.forward(chunk[:, :-1])
            total, loss = training_loss(output, chunk[:, 1:])
            weight = len(chunk) / len(batch)
            (total * weight).backward()
            mean_loss += loss.detach() * weight
        norm = clip_gradients(self.model, self.grad_clip)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return mean_loss, norm
