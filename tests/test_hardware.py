"""What a process settles before it computes, told by the kernel's own counters, each in a process of its own."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

from modexp.train.hardware import memory_free, resident

FAULTS = """
import resource, sys, torch
from modexp.train.hardware import prepare
if sys.argv[1] == "prepared":
    prepare(torch.device("cpu"), 1)
    assert torch.get_num_threads() == 1
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
counts = []
for _ in range(30):
    before = faults()
    torch.ones(2**24)  # 64 MB, freed at once
    counts.append(faults() - before)
print(sum(counts[-8:]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc's habit that is changed")
def test_freed_memory_is_used_again() -> None:
    def faults(how: str) -> int:
        done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
        return int(done.stdout)

    blocks, pages = 8, 2**26 // 4096
    if faults("as it comes") < blocks * pages * 0.9:
        pytest.skip("this machine brings memory in by larger pages")
    assert faults("prepared") < pages


RELEASE = """
import torch
from modexp.train.hardware import prepare, release, resident
device = torch.device("cpu")
prepare(device, 1)
freed = torch.ones(2**24)  # 64 MB
above = torch.ones(2**10)  # what lies above keeps the heap from shrinking
held = resident("VmRSS")
del freed
kept = resident("VmRSS")
release(device)
print(held - kept, held - resident("VmRSS"), len(above))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="elsewhere nothing is kept")
def test_what_is_kept_can_be_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", RELEASE], capture_output=True, text=True, check=True)
    before, after, _ = map(int, done.stdout.split())
    assert before < 2**20, "what is freed is kept"
    assert after > 0.9 * 2**26, "until it is given back"


def test_a_slurm_job_counts_on_the_memory_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    alone = memory_free(cpu)
    for given, expected in (("", alone), ("0", alone), ("100000000", alone)):
        monkeypatch.setenv("SLURM_MEM_PER_NODE", given)
        assert memory_free(cpu) == expected
    gib = resident("VmRSS") // 2**30 + 1
    monkeypatch.setenv("SLURM_MEM_PER_NODE", str(1024 * gib))
    assert 0 < memory_free(cpu) <= min(alone, gib * 2**30)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4096")
    assert memory_free(cpu) == 0
