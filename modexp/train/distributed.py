"""Several processes that train one run, as torchrun starts them: gloo for what the host must know, NCCL among GPUs.

They agree through collectives while all goes well. A failure is told through the key-value store of their launcher,
which still answers when a collective never will.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from modexp.errors import Interrupted, ModexpError
from modexp.train.world import World

POLL = 0.25  # seconds between two looks at the store
GRACE = 10.0  # seconds after another's failure: a process stuck in a collective is ended, a tracker may close before


def join() -> Processes:
    """The processes that torchrun started, this one among them; output of all but the first goes nowhere."""
    local = int(os.environ.get("LOCAL_RANK", 0))
    gpus = torch.cuda.device_count()
    if local < gpus:
        torch.cuda.set_device(local)  # before NCCL and FSDP look
    store, rank, size = next(iter(dist.rendezvous("env://")))
    several = int(os.environ.get("LOCAL_WORLD_SIZE", size))
    backend = "cpu:gloo,cuda:nccl" if several <= gpus else "gloo"
    dist.init_process_group(backend, store=dist.PrefixStore("collectives", store), rank=rank, world_size=size)
    return Processes(dist.PrefixStore("modexp", store), rank, size)


class Processes(World):
    def __init__(self, store: Any, rank: int, size: int) -> None:
        self.store, self.rank, self.size = store, rank, size
        self.ended = threading.Event()
        self.silence: Any = open(os.devnull, "w")  # noqa: SIM115  as long as the process
        if not self.leads:
            sys.stdout = sys.stderr = self.silence
        threading.Thread(target=self.watch, args=(store.clone(),), daemon=True).start()

    # ---- agreement -----------------------------------------------------------------------------------------

    def sum(self, values: Tensor) -> Tensor:
        dist.all_reduce(values)
        return values

    def most(self, *numbers: float) -> tuple[float, ...]:
        # on the host, so that a GPU's queue is not waited for; doubles hold whole numbers up to 2^53
        values = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(values, dist.ReduceOp.MAX)
        return tuple(values.tolist())

    def barrier(self) -> None:
        self.most(0)

    # ---- what to do ----------------------------------------------------------------------------------------

    def order(self, path: str) -> None:
        self.store.set("order", json.dumps({"run": path}))

    def hear(self) -> dict[str, Any]:
        """The order: ``run``, or, where there is nothing to train, the exit ``code``.

        Polled: the first process may read text for hours, longer than any collective waits.
        """
        while not self.store.check(["order"]):
            time.sleep(POLL)
        return json.loads(self.store.get("order"))

    # ---- failure -------------------------------------------------------------------------------------------

    def first_to_fail(self, exit_code: int) -> bool:
        mine = json.dumps({"rank": self.rank, "code": exit_code})
        failure = json.loads(self.store.compare_set("failure", "", mine))
        first = failure["rank"] == self.rank
        sys.stderr = sys.__stderr__ if first else self.silence  # what the others meet are only its consequences
        return first

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        try:
            yield
        except Interrupted:  # all of them are, at the same step
            raise
        except ModexpError as error:
            self.first_to_fail(error.exit_code)
            raise
        except BaseException:
            self.first_to_fail(1)
            raise

    def watch(self, store: Any) -> None:
        """End this process where another failed and it does not notice, or where the launcher is gone."""
        while not self.ended.wait(POLL):
            try:
                if not store.check(["failure"]):
                    continue
                code = json.loads(store.get("failure"))["code"]
            except dist.DistError:
                code = 1
            if not self.ended.wait(GRACE):
                os._exit(code)

    def end(self, code: int) -> int:
        """Leave together: the exit code of this process, which is that of the first failure if there was one."""
        if self.leads and not self.store.check(["order"]):
            self.store.set("order", json.dumps({"code": code}))
        failed = self.store.check(["failure"])
        if failed:
            code = json.loads(self.store.get("failure"))["code"]
        else:
            self.barrier()  # gloo aborts now and then where a process leaves before the others are done
        self.ended.set()
        if failed or not self.leads:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            os._exit(code)  # a process group whose members are gone may abort when it is taken down
        dist.destroy_process_group()
        return code
