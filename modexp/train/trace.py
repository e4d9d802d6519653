"""Traces of what a machine does, for Perfetto or chrome://tracing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from modexp.train.hardware import wait


def write_trace(calls: Sequence[tuple[str, Callable[[], object]]], device: torch.device, path: Path) -> None:
    """Run each of ``calls`` under its name and write what was seen to ``path``."""
    from torch.profiler import ProfilerActivity, profile, record_function

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    wait(device)
    with profile(activities=activities) as trace:
        for name, call in calls:
            with record_function(name):
                call()
        wait(device)
    trace.export_chrome_trace(str(path))
