"""modexp compare: the arms of a study against its baseline, both readings of the claim."""

from __future__ import annotations

from dataclasses import asdict

from modexp.cli.common import (
    Parser,
    add_convention,
    add_json,
    add_study,
    note,
    one_name,
    parser,
    print_json,
    print_table,
    study_path,
    study_records,
)
from modexp.errors import UserError


def flags() -> Parser:
    p = parser(
        "compare",
        "Compare every arm with the baseline at every budget, runs paired by seed and FLOPs per token: difference of"
        " the best losses at equal training FLOPs, and FLOPs per forward pass and speed at equal loss.",
    )
    add_study(p)
    add_convention(p)
    add_json(p)
    p.add_argument(
        "--baseline", metavar="ARM", help="compare with this arm (default: baseline, or the first dense one)"
    )
    p.add_argument("words", nargs="*", metavar="STUDY")
    return p


def main(words: list[str]) -> int:
    args = flags().parse_intermixed_args(words)

    from modexp.analysis.equal_loss import compare_arms
    from modexp.analysis.isoflop import fit_study
    from modexp.analysis.points import shared_trunks
    from modexp.cli.fit_tables import note_dropped
    from modexp.wording import budget_text

    study = study_path(args.study or one_name(args.words, "") or None, args.runs_dir)
    rows = study_records(study, args.convention)
    fit = fit_study(rows, "flops_per_token", args.level, args.baseline)
    compared = compare_arms(fit)
    note_dropped(fit)
    for row in fit.rows() if compared else []:  # where nothing compares, the error says it
        if row["note"]:
            note(f"{row['arm']} at {budget_text(row['budget'])}: {row['note']}")
    if args.json:
        print_json({"baseline": fit.baseline, "level": fit.level, "arms": [asdict(c) for c in compared]})
        return 0
    if not compared:
        refused = [f"{c.arm} at {budget_text(c.budget)}: {c.refusal}" for c in fit.curves if c.refusal]
        raise UserError(
            "no arm can be compared: " + ("; ".join(refused) or f"{fit.baseline} is the only arm"),
            "modexp fit and modexp status say what is missing",
        )
    level = f"{fit.level:.0%}"
    columns = ("arm", "budget", "loss", f"{level} interval", "FLOPs per pass", f"{level} interval ", "speed", "note")
    lines = []
    for c in compared:
        d = c.difference
        lines.append(
            [
                d.arm,
                budget_text(d.budget),
                f"{d.difference:+.4f} ({d.relative:+.1%})",
                f"{d.low:+.4f} .. {d.high:+.4f}",
                "-" if c.flops is None else f"{c.flops:.2f}x",
                f"{ratio(c.flops_low)} .. {ratio(c.flops_high)}",
                ratio(c.speed),
                "" if d.distinguishable else "not distinguishable",
            ]
        )
    print_table(
        columns,
        lines,
        f"against {fit.baseline}: held-out loss (nats a token) at equal training FLOPs; FLOPs per forward pass and"
        " training speed at equal loss",
    )
    for c in compared:
        print(f"{c.difference.sentence}; {c.sentence}")
    if sentence := shared_trunks(rows):
        print(sentence)
    first = compared[0].difference
    note(
        f"noise {fit.noise.sd:.4f} nats a run ({fit.dof} degrees of freedom), correlation of pairs"
        f" {first.correlation:+.2f}. {fit.rule}"
    )
    return 0


def ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}x"
