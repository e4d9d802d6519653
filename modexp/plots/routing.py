"""Where a model spends its compute on a text (MoD paper, Fig. 5): a map of block and bypass by token and routed block,
the router weights, and how a token's engagement goes with the entropy of the model's prediction at it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.stats

from modexp.plots import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 7.2  # inches
MAX_LINES = 8  # of the map; statistics use all tokens
ROW = 0.09  # inches a routed block takes in a line of the map
BLOCK, BYPASS = style.oklch(0.47, 0.125, 45.0), (0.88, 0.88, 0.88)
SIGNS = {" ": "\u2423", "\n": "\u21b5", "\t": "\u2192", "\ufffd": "\u25a1"}


@dataclass(frozen=True)
class Text:
    """One text as a model routed it. L routed blocks, T tokens."""

    pieces: Sequence[str]  # (T,)
    layers: Sequence[int]  # (L,)
    taken: np.ndarray  # (L, T) bool
    weights: np.ndarray  # (L, T)
    entropy: np.ndarray  # (T,) nats
    rule: str  # who decided, for the note
    is_logit: bool = False  # weights were trained as logits: drawn behind a sigmoid

    @property
    def engagement(self) -> np.ndarray:
        """Share of the routed blocks that a token went through, (T,)."""
        return self.taken.mean(axis=0)

    @property
    def shown(self) -> np.ndarray:
        return 1 / (1 + np.exp(-self.weights)) if self.is_logit else self.weights


def draw(text: Text, out_dir: Path, stem: str = "routing", *, title: str = "", unit: str = "token") -> style.Drawn:
    """Write stem.png, stem.svg, stem.csv (one row a token and block) and stem_tokens.csv (one row a token)."""
    narrow = all(len(piece) <= 1 for piece in text.pieces)
    per_line = min(len(text.pieces), 80 if narrow else 48)
    num_lines = min(MAX_LINES, math.ceil(len(text.pieces) / per_line))
    mapped = min(len(text.pieces), num_lines * per_line)
    notes = [f"decided by {text.rule}; {text.taken.mean():.1%} of the decisions are for the block"]
    if mapped < len(text.pieces):
        notes.append(f"the map shows the first {mapped} of {len(text.pieces)} {unit}s, the panels below all of them")
    note = style.wrapped(notes, WIDTH)
    labels = [label_of(piece) for piece in text.pieces[:mapped]]
    longest = max(map(len, labels))

    with style.context():
        from matplotlib.patches import Patch

        line = ROW * max(len(text.layers), 3) + (0.2 if narrow else 0.12 + 0.062 * longest)
        foot = style.footer_height(1, len(note.splitlines()))
        figure = style.new_figure(WIDTH, num_lines * line + 2.5 + foot)
        grid = figure.add_gridspec(3, 1, height_ratios=[num_lines * line, 2.3, foot])
        lines = grid[0].subgridspec(num_lines, 1)
        for i in range(num_lines):
            part = slice(i * per_line, min((i + 1) * per_line, mapped))
            axes = figure.add_subplot(lines[i])
            draw_line(axes, text, part, per_line, labels[part], narrow)
            if i == num_lines // 2:
                axes.set_ylabel("block")
        below = grid[1].subgridspec(1, 2)
        draw_weights(figure.add_subplot(below[0]), text)
        draw_engagement(figure.add_subplot(below[1]), text, unit)
        if title:
            figure.suptitle(title)
        handles = [
            Patch(facecolor=BLOCK, label="through the block"),
            Patch(facecolor=BYPASS, edgecolor="0.6", linewidth=0.5, label="past it"),
        ]
        style.footer(figure.add_subplot(grid[2]), [[handle] for handle in handles], note)
        paths = style.save(figure, out_dir / stem)
    paths.append(style.save_csv(decision_rows(text), out_dir / f"{stem}.csv"))
    paths.append(style.save_csv(token_rows(text), out_dir / f"{stem}_tokens.csv"))
    return style.Drawn(paths, note)


def draw_line(axes: Axes, text: Text, part: slice, per_line: int, labels: Sequence[str], narrow: bool) -> None:
    """One line of the map: routed blocks upwards, tokens along the axis."""
    from matplotlib.colors import ListedColormap

    cells = text.taken[:, part].astype(float)  # (L, tokens of the line)
    axes.pcolormesh(cells, cmap=ListedColormap([BYPASS, BLOCK]), vmin=0, vmax=1, edgecolors="white", linewidth=0.4)
    axes.set_xlim(0, per_line)  # a short last line keeps its tokens below those above
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, pad=1.5)
    axes.set_xticks(np.arange(len(labels)) + 0.5, labels, fontsize=5.5 if narrow else 6, rotation=0 if narrow else 90)
    for label in axes.get_xticklabels():
        label.set_fontfamily("DejaVu Sans Mono")
    step = math.ceil(len(text.layers) / 8)
    at = range(0, len(text.layers), step)
    axes.set_yticks([i + 0.5 for i in at], [str(text.layers[i]) for i in at], fontsize=6)


def draw_weights(axes: Axes, text: Text) -> None:
    shown = text.shown
    edges = [float(e) for e in (np.linspace(0, 1, 41) if text.is_logit else np.histogram_bin_edges(shown, 40))]
    groups = [shown[text.taken], shown[~text.taken]]
    axes.hist(groups, bins=edges, stacked=True, color=[BLOCK, BYPASS], edgecolor="0.35", linewidth=0.3, zorder=2)
    if text.is_logit:
        axes.axvline(0.5, color=style.GREY, linewidth=0.8)
        axes.set_title(f"{(shown > 0.5).mean():.1%} of the weights lie above 0.5", fontsize=7.5)
    axes.set_xlabel("sigmoid of the router weight" if text.is_logit else "router weight")
    axes.set_ylabel("decisions")


def draw_engagement(axes: Axes, text: Text, unit: str) -> None:
    """Tokens, faintly, and the mean of each level of engagement with its standard error."""
    levels = len(text.layers)
    count = text.taken.sum(axis=0)
    jitter = np.random.default_rng(0).uniform(-0.22, 0.22, len(count))
    axes.plot(count + jitter, text.entropy, ".", color=BLOCK, markersize=2.5, alpha=0.35, zorder=2)
    for level in range(levels + 1):
        mine = text.entropy[count == level]
        if len(mine):
            error = mine.std(ddof=1) / math.sqrt(len(mine)) if len(mine) > 1 else 0.0
            axes.errorbar(level, mine.mean(), error, fmt="s", color="black", markersize=4, capsize=2.5, zorder=3)
    rho = correlation(text)
    if rho is not None:
        axes.set_title(f"rank correlation {rho:+.2f} over {len(count)} {unit}s", fontsize=7.5)
    axes.set_xlim(-0.5, levels + 0.5)
    step = math.ceil((levels + 1) / 9)
    axes.set_xticks(range(0, levels + 1, step))
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"routed blocks that a {unit} goes through")
    axes.set_ylabel("entropy of the\nprediction (nats)")


def correlation(text: Text) -> float | None:
    """Spearman's, of engagement and entropy; None where all tokens are alike in one of them."""
    if np.ptp(text.engagement) == 0 or np.ptp(text.entropy) == 0:
        return None
    return float(scipy.stats.spearmanr(text.engagement, text.entropy).statistic)


def label_of(piece: str) -> str:
    """A token as an axis can show it: blanks as signs, a box for what the font lacks, at most ten letters."""
    from matplotlib.font_manager import findfont, get_font

    font = get_font(findfont("DejaVu Sans Mono"))
    letters = "".join(SIGNS.get(letter, letter) for letter in piece)
    known = "".join(c if font.get_char_index(ord(c)) and c.isprintable() else "\u25a1" for c in letters)
    return known if len(known) <= 10 else known[:9] + "\u2026"


def decision_rows(text: Text) -> list[dict[str, Any]]:
    return [
        {
            "position": t,
            "token": text.pieces[t],
            "block": layer,
            "router_weight": float(text.weights[i, t]),
            "taken": int(text.taken[i, t]),
        }
        for t in range(len(text.pieces))
        for i, layer in enumerate(text.layers)
    ]


def token_rows(text: Text) -> list[dict[str, Any]]:
    rows = zip(text.pieces, text.engagement, text.entropy, strict=True)
    return [
        {"position": t, "token": piece, "engagement": float(engaged), "entropy": float(entropy)}
        for t, (piece, engaged, entropy) in enumerate(rows)
    ]
