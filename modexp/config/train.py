"""Optimizer, schedule, trainer, tracker: how a planned run is carried out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from modexp.config.base import neutral, one_of, require, unscientific

LR_RULES = ("width", "step-law")
BATCH_RULES = ("sqrt", "step-law")
PRECISIONS = ("auto", "fp32", "bf16")
DEVICES = ("auto", "cpu", "cuda")
PARALLELS = ("ddp", "fsdp")


@dataclass(frozen=True)
class OptimConfig:
    """AdamW. ``lr`` and ``batch_size`` are a number or the name of a rule (modexp/plan/hyperparameters.py)."""

    kind: str = "adamw"
    lr: float | int | str = "width"
    lr_scale: float = neutral(1.0)  # multiplies the rule's rate, as guard runs do
    batch_size: int | str = "sqrt"  # sequences a step
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    grad_clip: float = 1.0  # largest norm of the gradient

    def __post_init__(self) -> None:
        if isinstance(self.lr, str):
            one_of("optim.lr", self.lr, (*LR_RULES, "a number"))
        else:
            require(self.lr > 0, "optim.lr", self.lr, "is not positive", "name a rule: optim.lr=width")
        require(self.lr_scale > 0, "optim.lr_scale", self.lr_scale, "is not positive")
        if isinstance(self.batch_size, str):
            one_of("optim.batch_size", self.batch_size, (*BATCH_RULES, "a whole number"))
        else:
            require(self.batch_size >= 1, "optim.batch_size", self.batch_size, "is not positive")
        require(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "is negative")
        for key in ("beta1", "beta2"):
            require(0 <= getattr(self, key) < 1, f"optim.{key}", getattr(self, key), "is not in [0, 1)")
        require(self.eps > 0, "optim.eps", self.eps, "is not positive")
        require(self.grad_clip > 0, "optim.grad_clip", self.grad_clip, "is not positive")


@dataclass(frozen=True)
class ScheduleConfig:
    """Learning rate over the run: linear warm-up, then cosine over exactly the run's steps (sec. 3.6)."""

    kind: str = "cosine"
    warmup: float = 0.05  # share of the steps
    final_lr: float = 0.1  # rate at the last step over the peak

    def __post_init__(self) -> None:
        require(0 <= self.warmup < 1, "schedule.warmup", self.warmup, "is not a share of the steps in [0, 1)")
        require(0 <= self.final_lr <= 1, "schedule.final_lr", self.final_lr, "is not a share in [0, 1]")


@dataclass(frozen=True)
class WsdConfig(ScheduleConfig):
    """Warm-up, stable, decay: the rate stays at its peak until the last ``decay`` of the steps, over which it falls as
    1 - sqrt (Hagele et al. 2024, arXiv 2405.18392). Until there it does not depend on the run's length."""

    kind: str = "wsd"
    final_lr: float = 0.0
    decay: float = 0.2  # share of the steps

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.decay <= 1, "schedule.decay", self.decay, "is not a share of the steps in (0, 1]")
        both = self.warmup + self.decay
        require(both <= 1, "schedule.decay", self.decay, f"and schedule.warmup={self.warmup} take more than all steps")


@dataclass(frozen=True)
class TrainerConfig:
    """Where and how a run executes. Only ``precision`` and ``eval_sequences`` change its numbers."""

    precision: str = "auto"
    eval_sequences: int = 128  # of the validation split, the same ones every time
    device: str = unscientific("auto")
    devices: int | None = unscientific(None)  # processes a run, one a device; None: as many as torchrun started, or 1
    parallel: str = unscientific("ddp")  # what several processes share: ddp, the batch; fsdp, also the parameters
    threads: int = unscientific(1)  # of a process on CPU; small models are fastest on one
    micro_batch: int | str | None = unscientific("auto")  # sequences a process takes a pass; auto, null: by memory
    compile: bool | str = unscientific("auto")  # torch.compile; auto: where the run is long enough to repay it
    activation_checkpointing: bool = unscientific(False)  # blocks are computed again for their backward pass
    log_every: int = unscientific(10)  # steps
    num_evals: int = unscientific(5)  # validations over the run, the last at its end
    checkpoint_minutes: float = unscientific(10.0)
    keep_checkpoints: int = unscientific(2)

    def __post_init__(self) -> None:
        one_of("trainer.precision", self.precision, PRECISIONS)
        one_of("trainer.device", self.device, DEVICES)
        one_of("trainer.parallel", self.parallel, PARALLELS)
        require(self.compile in (True, False, "auto"), "trainer.compile", self.compile, "is not true, false or auto")
        require(self.devices is None or self.devices >= 1, "trainer.devices", self.devices, "is not positive")
        for key in ("eval_sequences", "threads", "log_every", "num_evals", "keep_checkpoints"):
            require(getattr(self, key) >= 1, f"trainer.{key}", getattr(self, key), "is not positive")
        micro = self.micro_batch_given
        require(micro is None or micro >= 1, "trainer.micro_batch", micro, "is not positive")
        rule = "is neither a number nor auto"
        require(micro is not None or self.micro_batch in ("auto", None), "trainer.micro_batch", self.micro_batch, rule)
        require(self.checkpoint_minutes >= 0, "trainer.checkpoint_minutes", self.checkpoint_minutes, "is negative")

    @property
    def micro_batch_given(self) -> int | None:
        """None where memory is to decide."""
        return self.micro_batch if isinstance(self.micro_batch, int) else None


@dataclass(frozen=True)
class TrackerConfig:
    kind: str = "none"


@dataclass(frozen=True)
class NoTracker(TrackerConfig):
    """metrics.jsonl alone."""

    kind: str = "none"


@dataclass(frozen=True)
class WandbTracker(TrackerConfig):
    """Weights & Biases as a mirror of metrics.jsonl."""

    kind: str = "wandb"
    project: str = "modexp"
    entity: str | None = None
    mode: str = "auto"  # auto: $WANDB_MODE, else offline without a key, else online
    tags: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        one_of("tracker.mode", self.mode, ("auto", "online", "offline"))


OPTIM_KINDS: dict[str, Any] = {"adamw": OptimConfig}
SCHEDULE_KINDS: dict[str, Any] = {"cosine": ScheduleConfig, "wsd": WsdConfig}
TRACKER_KINDS: dict[str, Any] = {"none": NoTracker, "wandb": WandbTracker}
