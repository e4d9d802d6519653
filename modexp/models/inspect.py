"""What the routers make of one text, and how sure the model is of each next token.

L routed blocks, T tokens, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from modexp.config.model import ModelConfig
from modexp.errors import UserError
from modexp.models.transformer import Transformer


class Inspection(NamedTuple):
    layers: tuple[int, ...]  # indices of the routed blocks, from 0
    taken: np.ndarray  # (L, T) bool: went through
    weights: np.ndarray  # (L, T) router weights
    entropy: np.ndarray  # (T,) nats: of the distribution over the token that comes next
    is_causal: bool  # whether decisions were made token by token, or by a top-k over the text


@torch.no_grad()
def inspect(model: Transformer, config: ModelConfig, tokens: np.ndarray) -> Inspection:
    """One pass over ``tokens`` (T,), decided causally where the model can. UserError: no block that tokens pass by."""
    ids = torch.as_tensor(np.asarray(tokens, dtype=np.int64))[None]
    torch.manual_seed(0)  # of a router that draws its weights
    output = model(ids, causal=config.can_be_causal)
    # with experts there is a dimension more, and no block or bypass
    decisions = [routing for routing in output.routings if routing.taken.ndim == 2]
    if not decisions:
        raise UserError(f"model.kind={config.kind} has no block that tokens pass by", "name a run of model=mod, say")
    log_p = output.logits[0].float().log_softmax(dim=-1)  # (T, V)
    return Inspection(
        config.routed_layers(),
        torch.cat([routing.taken for routing in decisions]).cpu().numpy(),
        torch.cat([routing.weights for routing in decisions]).float().cpu().numpy(),
        -(log_p.exp() * log_p).sum(dim=-1).cpu().numpy(),
        config.can_be_causal,
    )
