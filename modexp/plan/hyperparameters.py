"""Named rules for the learning rate and the batch, each from this run's own size N, tokens D and width d."""

from __future__ import annotations

from modexp.config.train import OptimConfig

# Peak rate 3e-3 sqrt(128 / d): the power of the width is that of Vaswani et al. 2017, equation 3; the constant was
# measured here on byte models of width 16 to 64: see docs/tuning.md.
LR_AT_WIDTH_128 = 3e-3

# Li et al. 2025, "Predictable Scale: Part I, Step Law" (arXiv 2503.04715), equation 1:
# rate = 1.79 N^-0.713 D^0.307 and batch = 0.58 D^0.571 tokens; N without embeddings, D in tokens.
STEP_LAW_LR = (1.79, -0.713, 0.307)
STEP_LAW_BATCH = (0.58, 0.571)

# Tokens a step = sqrt(D) / 4. The exponent is what large runs find (.47: Zhang et al. 2024, arXiv 2410.21676; .571:
# Li et al. 2025); the constant was measured here on byte models of 14 k to 230 k parameters, where the step law's
# batches, fitted from 2^15 tokens up, leave too few steps: see docs/tuning.md.
SQRT_BATCH = 0.25

# what a plan and a methods sheet say of a rule
LR_SOURCES = {
    "width": "3e-3 sqrt(128 / d); the power from Vaswani et al. 2017, eq. 3, the constant measured: docs/tuning.md",
    "step-law": "1.79 N^-0.713 D^0.307; Li et al. 2025, eq. 1",
    "constant": "as given",
}
BATCH_SOURCES = {
    "sqrt": "sqrt(D) / 4 tokens; the power near Zhang et al. 2024 and Li et al. 2025, the constant measured:"
    " docs/tuning.md",
    "step-law": "0.58 D^0.571 tokens; Li et al. 2025, eq. 1",
    "constant": "as given",
}


def lr_peak(optim: OptimConfig, width: int, params_non_embedding: int, tokens: float) -> float:
    """Highest learning rate of the schedule: the rule's, times ``optim.lr_scale``."""
    if optim.lr == "width":
        rate = LR_AT_WIDTH_128 * (128 / width) ** 0.5
    elif optim.lr == "step-law":
        scale, of_params, of_tokens = STEP_LAW_LR
        rate = scale * params_non_embedding**of_params * tokens**of_tokens
    else:
        rate = float(optim.lr)
    return optim.lr_scale * rate


def batch_sequences(optim: OptimConfig, tokens: float, sequence_length: int) -> int:
    """Sequences a step. A whole number near the rule's, not a power of two: no jump in the middle of a curve."""
    if optim.batch_size == "sqrt":
        return max(1, round(SQRT_BATCH * tokens**0.5 / sequence_length))
    if optim.batch_size == "step-law":
        scale, of_tokens = STEP_LAW_BATCH
        return max(1, round(scale * tokens**of_tokens / sequence_length))
    return int(optim.batch_size)
