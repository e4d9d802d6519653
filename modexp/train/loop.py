"""Training of one planned run, from the directory that plans it to the result that ends it. Read top to bottom."""

from __future__ import annotations

import os
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modexp.config.root import Config
from modexp.data.corpus import Corpus, open_corpus
from modexp.errors import Interrupted, ModexpError, RunFailed, UserError
from modexp.files import write_json
from modexp.plan.memory import micro_batch
from modexp.runs import RunDir, check_config
from modexp.train import checkpoint
from modexp.train.branch import starts
from modexp.train.evaluate import evaluate
from modexp.train.hardware import choose_device, describe, matmul_limit, memory_free, peak_memory, prepare, runs_ahead
from modexp.train.outcome import Consumed, outcome, run_info
from modexp.train.progress import Progress
from modexp.train.rows import Diverged, Rows
from modexp.train.schedule import planned_lr
from modexp.train.signals import Stop
from modexp.train.step import OutOfMemory, Stepper
from modexp.train.trackers import Tracker, start
from modexp.train.world import ALONE, World


@dataclass
class State(Consumed):
    """What a checkpoint holds beside tensors."""

    loss_sum: float = 0.0  # of the steps since the last row of metrics
    loss_steps: int = 0
    micro: int = 0  # sequences a pass of a process: another split of the batch would round its gradient otherwise


def train(directory: Path, began: float | None = None, world: World = ALONE) -> dict[str, Any]:
    """Train the run planned in ``directory`` to its end and return its result; a finished run is only read.

    ``began`` is when the work for it did, in seconds as time.monotonic() counts them: by default, now. A run
    that was stopped goes on from its last checkpoint and ends with the same bits. All processes of ``world`` call this;
    the first of them writes. Raises :class:`~modexp.errors.ModexpError` with a sentence, which error.txt keeps.
    """
    run = RunDir(directory)
    with world.failing_together(), run.locked() if world.leads else nullcontext():
        if world.leads:
            run.error_path.unlink(missing_ok=True)
        world.barrier()
        result = run.result()
        if result is not None:
            return result
        try:
            with Stop() as stop:
                return Training(run, stop, began, world).to_the_end()
        except Interrupted:
            raise
        except KeyboardInterrupt:
            world.first_to_fail(Interrupted.exit_code)
            raise Interrupted(f"{run.path} was stopped", "the same command goes on from its last checkpoint") from None
        except ModexpError as error:
            if world.first_to_fail(error.exit_code):
                run.fail(str(error))
            raise
        except Exception as error:
            sentence = f"{run.path} failed: {type(error).__name__}: {error}"
            if world.first_to_fail(RunFailed.exit_code):
                run.fail(sentence)
            if os.environ.get("MODEXP_DEBUG") == "1":
                raise
            raise RunFailed(sentence, "MODEXP_DEBUG=1 shows the traceback") from error


class Training:
    def __init__(self, run: RunDir, stop: Stop, began: float | None = None, world: World = ALONE) -> None:
        self.run, self.stop, self.world = run, stop, world
        self.began = time.monotonic() if began is None else began
        self.config: Config = run.config()
        check_config(run, self.config)
        self.promise = run.plan()
        self.plan: dict[str, Any] = self.promise["plan"]
        self.share = -(-self.plan["batch_size"] // world.size)  # of a step's sequences, that a process has at most
        self.precision: str = self.promise["precision"]
        self.text: dict[str, Any] = self.promise["data"]  # as planned: a cache may have grown since
        trainer = self.config.trainer
        if world.size > self.plan["batch_size"]:
            raise UserError(f"{world.size} processes share steps of {self.plan['batch_size']} sequences", "start fewer")
        if trainer.devices not in (None, world.size):
            say(f"trainer.devices={trainer.devices} was planned; going on with what was started: {world.size}")

        self.device = choose_device(trainer.device)
        prepare(self.device, trainer.threads)
        self.corpus = corpus_of(self.config, self.promise)
        if world.leads:
            self.corpus.keep_tokenizer(run.path)
        self.held_out = torch.from_numpy(self.corpus.validation(trainer.eval_sequences))
        if len(self.held_out) < trainer.eval_sequences:
            say(f"the held-out text holds {len(self.held_out)} of the {trainer.eval_sequences} sequences asked for")
        self.stepper = Stepper(self.config, self.device, self.precision, world)
        self.model, self.optimizer = self.stepper.model, self.stepper.optimizer
        self.state = self.resume()
        self.seconds_before = self.state.wall_seconds  # of the attempts before this one
        self.state.micro = trainer.micro_batch_given or self.state.micro or self.fitting_micro_batch()
        self.state.micro = min(self.state.micro, self.share)
        self.loss_sum = torch.tensor(self.state.loss_sum, device=self.device)
        self.limit = matmul_limit(self.device, self.precision) * world.size
        steps, evals = self.plan["steps"], trainer.num_evals
        self.branch_steps = set(self.promise.get("branch_steps", ()))  # where other runs leave this one
        self.eval_steps = {round(i * steps / evals) for i in range(1, evals + 1)}

    # ---- the way there -------------------------------------------------------------------------------------

    def resume(self) -> State:
        """The newest checkpoint that can be read, of a branch at last its trunk's, or the beginning."""
        for path in starts(self.run):
            damage = ""
            try:
                tensors, moments, stored = checkpoint.read(path)
            except ValueError as error:
                damage = str(error)
            if self.world.most(bool(damage))[0]:
                say(f"{path} is passed over: {damage or 'another process cannot read it'}")
                continue
            checkpoint.load_weights(self.model, tensors, path)
            checkpoint.restore_optimizer(self.model, self.optimizer, moments)
            if self.world.leads:
                if "rows" in stored:
                    self.run.write_metrics(stored["rows"])
                self.run.cut_metrics(stored["step"])
            return State(**{key: stored[key] for key in State.__dataclass_fields__ if key in stored})
        if self.world.leads:
            self.run.cut_metrics(0)
        return State()

    def fitting_micro_batch(self) -> int:
        params, free = self.plan["params_total"], memory_free(self.device)
        again = self.config.trainer.activation_checkpointing
        micro = micro_batch(self.config.model, self.config.data, self.share, params, free, self.precision, again)
        return -int(self.world.most(-micro)[0])  # what the fullest device holds

    def to_the_end(self) -> dict[str, Any]:
        tracker = Tracker()
        if self.world.leads:
            tracker = start(self.config.tracker, run_info(self.run, self.config, self.promise), say)
        exit_code = 1
        summary: dict[str, Any] = {}
        try:
            if self.world.most(self.stop.signal)[0]:  # asked while the text was being read
                raise Interrupted(f"{self.run.path} was stopped before a step", "the same command starts it")
            with Progress(self.run.name, self.plan["steps"]) as progress:
                reason = ""
                try:
                    self.steps(tracker, progress)
                except Diverged as loss:
                    reason = str(loss)
            self.account()
            consumed = Consumed(**{f.name: getattr(self.state, f.name) for f in fields(Consumed)})
            if self.world.leads:
                summary = outcome(self.run, self.config, self.promise, consumed, reason, describe(self.device))
                summary |= {"held_out_sequences": len(self.held_out), "processes": self.world.size}
                self.run.check_claim()
                write_json(self.run.result_path, summary)
            self.world.barrier()
            summary = self.run.result() or {}
            exit_code = 0 if summary["status"] == "done" else 1
            return summary
        finally:
            tracker.finish(summary, exit_code)

    def steps(self, tracker: Tracker, progress: Progress) -> None:
        """Run the steps that are left. Raises Diverged."""
        state, plan, trainer = self.state, self.plan, self.config.trainer
        last_saved = time.monotonic()
        with open(self.run.metrics_path if self.world.leads else os.devnull, "a") as metrics:
            bytes_per_token = self.text["train_bytes_per_token"]
            rows = Rows(metrics, tracker, progress, state, plan, bytes_per_token, self.limit, self.device)
            while state.step < plan["steps"]:
                lr, norm = self.step()
                rows.settle()  # what was marked before this step, which keeps the device at work
                due = state.step in self.eval_steps or state.step == plan["steps"]
                if due or state.step % trainer.log_every == 0:
                    rows.mark(lr, state.loss_steps, self.loss_sum, norm)
                    self.loss_sum.zero_()
                    state.loss_steps = 0
                if due or not runs_ahead(self.device) or state.step in self.branch_steps:
                    rows.settle(self.evaluate if due else None)
                if state.step in self.branch_steps:
                    rows.count()
                    self.save_branch()
                finished, minutes = state.step == plan["steps"], (time.monotonic() - last_saved) / 60
                # a signal to one process is one to all, and so is a look at its clock
                asked, late = self.world.most(self.stop.signal, minutes > trainer.checkpoint_minutes)
                if finished or asked or late:
                    rows.settle()
                    rows.count()
                    if self.world.leads:
                        os.fsync(metrics.fileno())
                    self.save()
                    last_saved = time.monotonic()
                if asked and not finished:
                    raise Interrupted(
                        f"{self.run.path} was stopped at step {state.step} of {plan['steps']}",
                        "its state is saved; the same command goes on from there",
                    )

    # ---- one step ------------------------------------------------------------------------------------------

    def step(self) -> tuple[float, torch.Tensor]:
        """One optimizer step on the next batch; returns its rate and the gradient norm, still on the device."""
        state, plan = self.state, self.plan
        last = state.step == plan["steps"] - 1
        batch_size = plan["last_batch_size"] if last else plan["batch_size"]
        batch = self.batch(state.sequences, state.sequences + batch_size)
        noise = self.config.seed * 2**31 + state.step  # a function of the step, not of history
        lr = planned_lr(self.config.schedule, plan, state.step)
        loss, norm = self.fitting_step(batch, lr, noise)
        self.loss_sum += loss
        state.step += 1
        state.sequences += batch_size
        state.loss_steps += 1
        return lr, norm

    def fitting_step(self, batch: torch.Tensor, lr: float, noise: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The step; where memory runs out, the same step of the same batch in passes half as large."""
        while True:
            try:
                return self.stepper.step(batch, self.state.micro, lr, noise)
            except OutOfMemory as error:
                reason = str(error)
            if self.world.size > 1:  # it cannot go back alone: the others are waiting in the middle of a pass
                raise RunFailed(
                    f"{self.run.path}: one of {self.world.size} processes ran out of memory with {self.state.micro}"
                    f" sequences a pass: {reason}",
                    f"set trainer.micro_batch={max(1, self.state.micro // 2)}, which leaves the batch as planned; the"
                    " run goes on from its last checkpoint",
                )
            if self.state.micro == 1:
                raise RunFailed(
                    f"{self.run.path} does not fit into memory with one sequence a pass: {reason}",
                    "choose a smaller size, a shorter data.sequence_length or a larger device",
                )
            self.state.micro //= 2
            say(f"out of memory at step {self.state.step}: from here {self.state.micro} sequences a pass")

    def batch(self, begin: int, end: int) -> torch.Tensor:
        """Sequences ``begin`` to ``end`` of the order that the seed fixes, (end - begin, T + 1)."""
        batch = torch.from_numpy(np.ascontiguousarray(self.corpus.batch(self.config.seed, begin, end)))
        if self.device.type == "cuda":
            batch = batch.pin_memory()
        return batch.to(self.device, non_blocking=True)

    # ---- what is written down ------------------------------------------------------------------------------

    def evaluate(self) -> dict[str, float]:
        begin = time.perf_counter()
        self.model.eval()
        row = evaluate(
            self.model,
            self.config.model,
            self.held_out,
            self.device,
            self.precision,
            self.text["validation_bytes_per_token"],
            self.world,
        )
        self.model.train()
        self.state.eval_seconds += time.perf_counter() - begin
        return row

    def account(self) -> None:
        """Bring up to date what this run has taken; memory is that of the process which took most."""
        self.state.wall_seconds = self.seconds_before + time.monotonic() - self.began
        peak = int(self.world.most(peak_memory(self.device))[0])
        self.state.peak_memory_bytes = max(self.state.peak_memory_bytes, peak)

    def save(self) -> None:
        self.run.check_claim()
        self.account()
        self.state.loss_sum = self.loss_sum.item()
        checkpoint.save(
            self.run.checkpoints,
            self.model,
            self.optimizer,
            dict(vars(self.state)),
            self.config.trainer.keep_checkpoints,
            self.world,
        )

    def save_branch(self) -> None:
        """What a branch starts from: the state and the rows so far; the wall time is the trunk's own."""
        if not (self.run.branches / f"step-{self.state.step:09d}").exists():  # a branch may be reading it
            self.state.loss_sum = self.loss_sum.item()
            state = {**vars(self.state), "shared_sequences": self.state.sequences, "wall_seconds": 0.0}
            state["rows"] = self.run.metrics()
            checkpoint.save(self.run.branches, self.model, self.optimizer, state, len(self.branch_steps), self.world)


def corpus_of(config: Config, promise: dict[str, Any]) -> Corpus:
    """The tokens that the plan was made on; other text is refused."""
    plan = promise["plan"]
    return open_corpus(config.data, promise["data"]["content_hash"], *needed_tokens(plan["sequences"], config))


def needed_tokens(sequences: int, config: Config) -> tuple[int, int]:
    """Training and validation tokens that ``sequences`` steps through the data and the fixed set ask for."""
    T = config.data.sequence_length
    return sequences * T + 1, config.trainer.eval_sequences * T + 1


def say(sentence: str) -> None:
    print(f"modexp: {sentence}", file=sys.stderr, flush=True)
