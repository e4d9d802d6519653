"""modexp flops: where a model's FLOPs go, term by term, and what every way of counting makes of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from modexp.cli.common import Parser, add_json, note, one_name, parser, print_json, print_table, split_words
from modexp.config.data import DataConfig
from modexp.config.model import ModelConfig
from modexp.errors import RunFailed, UserError
from modexp.flops.ledger import CONVENTIONS, Ledger
from modexp.flops.transformer import dense_twin
from modexp.kinds import ledger


def flags() -> Parser:
    p = parser("flops", "Print a model's ledger of FLOPs beside its dense twin's. Trains nothing.")
    p.add_argument(
        "--convention", metavar="CONVENTION", help="a way to count, or all of them (default: budget.convention)"
    )
    p.add_argument("--budget", metavar="FLOPS", help="to which size=auto fits the model, as in modexp train")
    p.add_argument("--verify", action="store_true", help="compare with PyTorch's FlopCounterMode; exit code 1 if apart")
    add_json(p)
    p.add_argument("words", nargs="*", metavar="RUN | key=value", help="a run directory, or settings as of train")
    return p


def main(words: list[str]) -> int:
    args = flags().parse_intermixed_args(words)
    if args.convention not in (None, "all", *CONVENTIONS):
        choices = ", ".join((*CONVENTIONS, "all"))
        raise UserError(f"--convention {args.convention} is not a way to count", f"choose one of: {choices}")

    names, overrides = split_words(args.words)
    if args.budget is not None:
        overrides.append(budget_override(args.budget))
    run = one_name(names, "")
    account = of_run(Path(run), overrides) if run else of_settings(overrides)
    convention = account.convention if args.convention in (None, "all") else args.convention
    found = verified(account) if args.verify else None
    if args.json:
        print_json(to_json(account, convention) | ({} if found is None else {"verified": found}))
    elif args.convention == "all":
        print_conventions(account)
        print_models(account, convention)
    else:
        print_terms(account, convention)
        print_models(account, convention)
    if found is not None:
        tell_verified(found)
    return 0


@dataclass(frozen=True)
class Account:
    """A model's ledger, beside that of the dense model of the same shape. ``convention`` is its budget's."""

    model: ModelConfig
    data: DataConfig
    books: Ledger
    convention: str

    @cached_property
    def twin(self) -> Ledger:
        return ledger(dense_twin(self.model), self.data)


def budget_override(budget: str) -> str:
    from modexp.cli.compose import budgets_of

    if len(budgets_of([budget])) != 1:
        raise UserError(f"--budget {budget} is not one number of FLOPs", "write it as --budget 6e18")
    return f"budget.flops={budget}"


def of_settings(overrides: list[str]) -> Account:
    """The model that ``modexp train`` would make of the same words."""
    from modexp.cli.compose import configuration
    from modexp.plan.run import resolve_shape

    config = resolve_shape(configuration(overrides))
    return Account(config.model, config.data, ledger(config.model, config.data), config.budget.convention)


def of_run(path: Path, overrides: list[str]) -> Account:
    """The ledger that a run stored when it was planned."""
    from modexp.files import read_json
    from modexp.runs import RunDir

    run = RunDir(path)
    if not run.plan_path.exists():
        raise UserError(f"{path} holds no plan.json", "name a run directory, runs/STUDY/RUN, or settings as key=value")
    if overrides:
        raise UserError(f"{overrides[0]} cannot change {path}", "a run keeps its settings: leave out one of the two")
    promise = read_json(run.plan_path, "plan", "ledger")
    config = run.config()
    try:
        books = Ledger.from_json(promise["ledger"], promise["plan"]["sequence_length"])
    except UserError as error:
        raise UserError(f"{run.plan_path}: {error.sentence}", error.next_step) from None
    return Account(config.model, config.data, books, promise["plan"]["convention"])


# ---- numbers -------------------------------------------------------------------------------------------------


def recomputed(books: Ledger) -> int:
    """FLOPs a sequence by which a flash backward exceeds the ledger: it computes the scores once more, for it kept
    none (Dao et al. 2022, sec. 3.1)."""
    return books.forward("matmul", "attention.scores")


def sums(books: Ledger, convention: str) -> dict[str, float]:
    T = books.sequence_length
    return {
        "forward_per_token": books.forward(convention) / T,
        "training_per_token": books.training(convention) / T,
        "training_per_sequence": books.training(convention),
    }


def parameters(books: Ledger, convention: str) -> dict[str, float]:
    """A model's size four ways."""
    return {
        "total": books.params_total,
        "non_embedding": books.params_non_embedding,
        "active": books.params_active,
        "flops_per_token": books.forward(convention) / books.sequence_length,
    }


def under(account: Account, convention: str) -> dict[str, Any]:
    """A model under one convention; ``relative_flops`` is forward, over the dense twin, as plans have it."""
    books, twin = account.books, account.twin
    return {
        **sums(books, convention),
        "relative_flops": books.forward(convention) / twin.forward(convention),
        "relative_to_matmul": books.training(convention) / books.training("matmul"),
        "description": CONVENTIONS[convention].description,
    }


def term_rows(books: Ledger, convention: str) -> list[dict[str, Any]]:
    """One row a term, those of a kind of block together; FLOPs of all blocks of that kind."""
    blocks = list(dict.fromkeys(term.block for term in books.terms))
    rows = []
    for term in sorted(books.terms, key=lambda t: blocks.index(t.block)):
        one = Ledger((term,), books.sequence_length)
        rows.append(
            {
                "block": term.block,
                "term": term.name,
                "blocks": term.count,
                "tokens": round(term.share * books.sequence_length),
                "forward_per_sequence": one.forward(convention),
                **sums(one, convention),
                "share": one.training(convention) / books.training(convention),
            }
        )
    return rows


def to_json(account: Account, convention: str) -> dict[str, Any]:
    layers, width, heads = account.model.shape
    return {
        "model": asdict(account.model) | {"n_layers": layers, "d_model": width, "n_heads": heads},
        "vocab_size": account.data.vocab_size,
        "sequence_length": account.books.sequence_length,
        "convention": convention,
        "terms": term_rows(account.books, convention),
        "parameters": parameters(account.books, convention),
        "dense_twin": parameters(account.twin, convention) | sums(account.twin, convention),
        "conventions": {name: under(account, name) for name in CONVENTIONS},
        "flash_backward_recomputes": recomputed(account.books),
    }


def verified(account: Account) -> dict[str, dict[str, int]]:
    """The ledger and what PyTorch counts of the model itself, of one sequence."""
    from modexp.models.count import counted

    books = account.books
    mine = {"forward": books.forward(), "backward": books.backward(), "parameters": books.params_total}
    theirs = counted(account.model, account.data)._asdict()
    return {key: {"ledger": mine[key], "pytorch": theirs[key]} for key in mine}


def tell_verified(found: dict[str, dict[str, int]]) -> None:
    """One line on stderr. RunFailed if the two differ."""
    apart = {key: both["ledger"] - both["pytorch"] for key, both in found.items()}
    if any(apart.values()):
        differences = ", ".join(f"{key} by {difference:+,}" for key, difference in apart.items() if difference)
        raise RunFailed(
            f"the ledger and PyTorch's count of one sequence differ: {differences}",
            "the function that makes this kind's ledger is wrong, or the stored ledger is not this model's",
        )
    exact = ", ".join(f"{key} {both['pytorch']:,}" for key, both in found.items())
    note(f"verified, to the last FLOP of one sequence (matmul): PyTorch counts {exact}")


# ---- tables --------------------------------------------------------------------------------------------------


def print_terms(account: Account, convention: str) -> None:
    rows = term_rows(account.books, convention)
    counted = [row for row in rows if row["training_per_sequence"]]
    lines = [
        [
            row["block"],
            row["term"],
            str(row["blocks"]),
            f"{row['tokens']:,}",
            f"{row['forward_per_token']:.3e}",
            f"{row['forward_per_sequence']:.3e}",
            f"{row['training_per_sequence']:.3e}",
            f"{row['share']:.2%}" if row["share"] >= 1e-4 else "<0.01%",
        ]
        for row in counted
    ]
    columns = ("block", "term", "blocks", "tokens", "forward/token", "forward/seq", "training/seq", "of total")
    print_table(columns, lines, f"{convention}: {CONVENTIONS[convention].description}", ("forward/seq", "blocks"))
    left_out = dict.fromkeys(row["term"] for row in rows if not row["training_per_sequence"])
    if left_out:
        note(f"counted as nothing under {convention}: {', '.join(left_out)}")


def print_conventions(account: Account) -> None:
    lines = []
    for name in CONVENTIONS:
        row = under(account, name)
        numbers = [f"{row[key]:.3e}" for key in ("forward_per_token", "training_per_token", "training_per_sequence")]
        ratios = [f"{row[key]:.4f}" for key in ("relative_flops", "relative_to_matmul")]
        lines.append([name, *numbers, *ratios, row["description"]])
    columns = ("convention", "forward/token", "training/token", "training/seq", "x twin", "x matmul", "note")
    print_table(columns, lines, optional=("training/token",))
    note("x twin: forward, over the dense model of the same shape; x matmul: training, over matmul's count")


def print_models(account: Account, convention: str) -> None:
    """The model and its dense twin: FLOPs, and parameters in total, without embeddings, active."""
    books, twin = account.books, account.twin

    def numbers(of: Ledger) -> list[float]:
        sizes = parameters(of, convention)
        return [*sums(of, convention).values(), sizes["total"], sizes["non_embedding"], sizes["active"]]

    mine, dense = numbers(books), numbers(twin)
    lines = [
        [name, *(f"{value:.3e}" for value in values[:3]), *(f"{value:,}" for value in values[3:])]
        for name, values in ((account.model.kind, mine), ("dense twin", dense))
    ]
    lines.append(["ratio", *(f"{a / b:.4f}" for a, b in zip(mine, dense, strict=True))])
    layers, width, heads = account.model.shape
    title = (
        f"L{layers} d{width}, {heads} heads, {books.sequence_length} tokens a sequence,"
        f" vocabulary {account.data.vocab_size:,}; counted: {convention}"
    )
    columns = (
        "model", "forward/token", "training/token", "training/seq", "params", "non-embedding", "active",
    )  # fmt: skip
    print_table(columns, lines, title, ("training/token", "non-embedding"))
    again = recomputed(books)
    note(
        f"a flash backward computes the scores once more: {again:.3e} FLOPs a sequence,"
        f" {again / books.training('matmul'):.2%} of training by matmul; in no budget"
    )
