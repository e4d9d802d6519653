"""Checkpoints: safetensors and JSON, written whole or not at all, read without unpickling anything."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from modexp.errors import RunFailed
from modexp.files import unwritable
from modexp.train.parallel import cut_like, whole
from modexp.train.world import ALONE, World

TENSORS = ("model.safetensors", "optimizer.safetensors")


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Adam's moments and step counts, by the name of their parameter."""
    names = {id(p): name for name, p in model.named_parameters()}
    return {f"{names[id(p)]}/{key}": value for p, state in optimizer.state.items() for key, value in state.items()}


def restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    parameters = dict(model.named_parameters())
    for key, value in tensors.items():
        name, _, kind = key.rpartition("/")
        parameter = parameters[name]
        # a step count stays where the optimizer keeps it: on the parameter's device under fused AdamW
        optimizer.state[parameter][kind] = cut_like(parameter, value)


def gathered(tensors: dict[str, Tensor], world: World) -> dict[str, Tensor]:
    """Whole and contiguous, in the process that writes them; one after another, so that no device holds them all."""
    # in order of name: that of a file just read is not the same in every process
    found = ((name, whole(tensors[name].detach())) for name in sorted(tensors))
    return {name: (tensor.cpu() if world.size > 1 else tensor).contiguous() for name, tensor in found if world.leads}


def stored(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name; a tied head appears once, under the embedding's."""
    kept = model.state_dict().keys()
    return {**dict(model.named_parameters()), **{n: b for n, b in model.named_buffers() if n in kept}}


def write_synced(path: Path, content: bytes) -> int:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return zlib.crc32(content)


def save(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    keep: int,
    world: World = ALONE,
) -> Path:
    """Write ``folder/step-N`` beside its place, rename it there, then drop all but the last ``keep`` up to it. Later
    ones are dropped too: they were passed over as damaged. Of several processes all must ask, and the first one
    writes."""
    final = folder / f"step-{state['step']:09d}"
    weights, moments = gathered(stored(model), world), gathered(optimizer_tensors(model, optimizer), world)
    if not world.leads:
        return final
    temporary = folder / f".{final.name}.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        sums = {
            "model.safetensors": write_synced(temporary / "model.safetensors", save_tensors(weights)),
            "optimizer.safetensors": write_synced(temporary / "optimizer.safetensors", save_tensors(moments)),
        }
        sums["state.json"] = sum_of(state)
        write_synced(temporary / "state.json", json.dumps({**state, "crc32": sums}).encode())
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)  # a full disk needs the space
        raise unwritable(folder, error) from None
    if final.exists():  # a resumed run saves at the same step again
        shutil.rmtree(final)
    os.replace(temporary, final)
    there = saved(folder)
    end = there.index(final) + 1
    for old in (*there[: max(0, end - keep)], *there[end:]):
        shutil.rmtree(old, ignore_errors=True)
    for leftover in folder.glob(".step-*"):  # of processes killed while they wrote
        shutil.rmtree(leftover, ignore_errors=True)
    return final


def sum_of(state: dict[str, Any]) -> int:
    """Of the state itself, whichever way JSON writes it: a flipped digit would still be JSON."""
    return zlib.crc32(json.dumps(state, sort_keys=True).encode())


def saved(folder: Path) -> list[Path]:
    """Checkpoints, oldest first."""
    return sorted(folder.glob("step-*")) if folder.exists() else []


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """Weights, optimizer tensors and state of one checkpoint; raises ValueError if it is damaged."""
    try:
        state = json.loads((path / "state.json").read_text())
        sums = state.pop("crc32")
        if sums.keys() != {*TENSORS, "state.json"} or sums["state.json"] != sum_of(state):
            raise ValueError("state.json is damaged")
        contents = {name: (path / name).read_bytes() for name in TENSORS}
        for name, content in contents.items():
            if zlib.crc32(content) != sums[name]:
                raise ValueError(f"{name} is damaged")
        return (
            load_tensors(contents["model.safetensors"]),
            load_tensors(contents["optimizer.safetensors"]),
            state,
        )
    except (OSError, LookupError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None


def load_weights(model: nn.Module, tensors: dict[str, Tensor], where: Path) -> None:
    own = stored(model)
    if own.keys() != tensors.keys() or any(own[n].shape != t.shape for n, t in tensors.items()):
        raise RunFailed(f"{where} holds the weights of another model")
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(cut_like(own[name], tensor))
