"""The device of a run: which one, how precise, how fast at best, how much it holds."""

from __future__ import annotations

import ctypes
import os
import platform
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch

from modexp.errors import UserError
from modexp.models.fused import product

# On CPUs that multiply in bf16 (AMX, AVX512-BF16), bf16 pays from this width on: without AMX it is two fifths faster,
# at width 128 a fifth. Narrower still, casting costs what it saves.
CPU_BF16_WIDTH = 256

COMPILE_FLOPS = 1e17  # some minutes of a current GPU


def choose_device(wanted: str) -> torch.device:
    """``auto``: the GPU if there is one; of several processes on a machine, each its own."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("trainer.device=cuda, but torch sees no CUDA device", "try trainer.device=cpu")
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    processes, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
    if processes > gpus:
        raise UserError(
            f"{processes} processes on a machine where torch sees {gpus} CUDA devices",
            f"torchrun --nproc-per-node {gpus}, or trainer.device=cpu",
        )
    return torch.device("cuda", int(os.environ["LOCAL_RANK"])) if processes > 1 else torch.device("cuda")


def prepare(device: torch.device, threads: int) -> None:
    """What a process settles before it computes on a CPU: its threads, and that it keeps the memory that it frees."""
    if device.type == "cpu":
        torch.set_num_threads(threads)
        keep_freed_memory()


def keep_freed_memory() -> None:
    """glibc hands blocks above 32 MB back to the kernel when they are freed, and a page fault brings in every 4 kB of
    them again: casts and gradients of large weights then take six times as long. Elsewhere, nothing is done."""
    trim_threshold, mmap_max = -1, -4  # their names in malloc.h
    if libc := glibc():
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, -1)  # never


@cache
def glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


def choose_precision(wanted: str, device: torch.device, widths: Iterable[int]) -> str:
    """``auto`` is bf16 where the hardware has it and every width of the study gains, so that no curve mixes two."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    has_units = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return "bf16" if has_units and min(widths) >= CPU_BF16_WIDTH else "fp32"


def choose_compile(wanted: bool | str, device: torch.device, flops: float) -> bool:
    """``auto``: on a GPU, for a run of so many FLOPs that it repays the minute that compiling takes. On a CPU compiling
    gains too little."""
    return wanted is True or (wanted == "auto" and device.type == "cuda" and flops >= COMPILE_FLOPS)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()


def runs_ahead(device: torch.device) -> bool:
    """Whether the host goes on to the next step while the device is at work on this one."""
    return device.type == "cuda"


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@torch.no_grad()
def matmul_limit(device: torch.device, precision: str, n: int | None = None) -> float:
    """FLOP/s of a square matmul, n x n, as models do it on this device, the best of a few: what MFU is measured
    against."""
    n = n or (4096 if device.type == "cuda" else 512)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.ones(n, n, device=device, dtype=dtype) for _ in range(2))
    return 2 * n**3 / least_seconds(lambda: product(a, b), device)


def least_seconds(call: Callable[[], object], device: torch.device) -> float:
    """The best of a few."""
    best = float("inf")
    for _ in range(6):
        wait(device)
        start = time.perf_counter()
        call()
        wait(device)
        best = min(best, time.perf_counter() - start)
    return best


def memory_free(device: torch.device) -> int:
    """Bytes a run may take: of a GPU what is free; of the machine as large a share as its threads are of the cores, so
    that runs side by side do not each count on the same bytes; and no more than what Slurm gave its job."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    share = round(total * min(1.0, torch.get_num_threads() / (os.cpu_count() or 1)))
    given = os.environ.get("SLURM_MEM_PER_NODE", "")  # MiB; unset where a job has no limit, 0 where it has the node
    if not given.isdigit() or not int(given):
        return share
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return min(share, max(0, int(given) * 2**20 // processes - resident("VmRSS")))


def is_out_of_memory(error: BaseException) -> bool:
    """Of a GPU, or of the machine, where torch raises a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def release(device: torch.device) -> None:
    """Give what the allocator keeps of freed tensors back, for blocks of other sizes."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    trim(device)


def trim(device: torch.device) -> None:
    """As :func:`release`, on a CPU alone, whose heap is left with holes: for where GPUs need not pay."""
    if device.type == "cpu" and (libc := glibc()):
        libc.malloc_trim(0)


def peak_memory(device: torch.device) -> int:
    """Most bytes that this process has held: of a GPU what tensors took, else what was resident, libraries included."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resident("VmHWM")


def resident(key: str) -> int:
    """Bytes of this process in memory, now (``VmRSS``) or at most (``VmHWM``); where there is no /proc, at most."""
    try:
        with open("/proc/self/status") as file:
            return next(1024 * int(line.split()[1]) for line in file if line.startswith(key))
    except (FileNotFoundError, StopIteration):
        import resource

        largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return largest if platform.system() == "Darwin" else 1024 * largest


def process_began() -> float:
    """When this process started, in seconds as time.monotonic() counts them; where there is no /proc, now."""
    try:
        with open("/proc/self/stat") as file, open("/proc/uptime") as uptime:
            ticks = int(file.read().rpartition(")")[2].split()[19])  # field 22, starttime: proc(5)
            age = float(uptime.read().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")
        return time.monotonic() - age
    except (FileNotFoundError, ValueError, IndexError):
        return time.monotonic()


def describe(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
