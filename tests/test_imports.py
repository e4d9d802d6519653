"""Arrows between rooms point one way, and heavy libraries load late."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import modexp

PACKAGE = Path(modexp.__file__).parent
HEAVY = {"torch", "hydra", "pandas", "datasets", "wandb", "matplotlib", "tokenizers"}

# room: what nothing in it may import, not even late
ROOMS = ("models", "train", "sampling", "sweep", "cli", "data")
NEVER = {
    "config": {"torch", "hydra", "pandas", "modexp.plan", *(f"modexp.{room}" for room in ROOMS)},
    "flops": {"torch", "hydra", "modexp.plan", *(f"modexp.{room}" for room in ROOMS)},
    "plan": {"torch", "hydra", *(f"modexp.{room}" for room in ROOMS)},
    "models": {"hydra", "modexp.plan", *(f"modexp.{room}" for room in ROOMS if room != "models"), "modexp.analysis"},
    "sampling": {"hydra", "modexp.sweep", "modexp.cli", "modexp.analysis", "modexp.plots"},
    "data": {"torch", "hydra", "modexp.models", "modexp.train", "modexp.sweep", "modexp.cli", "modexp.analysis"},
    "train": {"hydra", "modexp.sampling", "modexp.sweep", "modexp.cli", "modexp.analysis", "modexp.plots"},
    "sweep": {"hydra", "modexp.cli", "modexp.plots"},
    "analysis": {"torch", "hydra", "pandas", "modexp.plots", *(f"modexp.{room}" for room in ROOMS)},
    "plots": {"torch", "hydra", *(f"modexp.{room}" for room in ROOMS)},
}  # fmt: skip


def imported(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("room", NEVER)
def test_arrows_point_one_way(room: str) -> None:
    files = list((PACKAGE / room).rglob("*.py"))
    assert files
    for file in files:
        # modexp.data.config-like names: modexp.config.data is config's, modexp.data is the room
        reached = {n for n in imported(file) for bad in NEVER[room] if n == bad or n.startswith(bad + ".")}
        assert not reached, f"{file.relative_to(PACKAGE)} imports {', '.join(sorted(reached))}"


def loaded_by(code: str, cwd: Path) -> set[str]:
    program = f"import sys\n{code}\nprint(' '.join(m for m in {sorted(HEAVY)} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=cwd, check=True)
    return set(done.stdout.splitlines()[-1].split()) if done.stdout.strip() else set()


@pytest.mark.parametrize(
    ("words", "allowed"),
    [
        (["--help"], set()),
        (["plan", "--budget", "6e18"], {"hydra"}),
        (["plan", "--help"], set()),
        (["flops", "model=mod", "size=220m"], {"hydra"}),
        (["flops", "nowhere"], set()),
        (["train", "--cfg", "job"], {"hydra"}),
        (["sweep", "--budget", "6e18", "--dry-run"], {"hydra"}),
        (["sweep", "--budget", "6e18", "adapt=on", "guard=on", "--dry-run"], {"hydra"}),
        (["status", "--runs-dir", "nowhere"], set()),
        (["fit", "--runs-dir", "nowhere"], set()),
        (["eval", "nowhere"], set()),
        (["generate", "nowhere"], set()),
        (["bench", "decode", "--help"], set()),
        (["plot", "isoflop", "--runs-dir", "nowhere"], set()),
    ],
)
def test_commands_load_only_what_they_need(words: list[str], allowed: set[str], tmp_path: Path) -> None:
    code = f"from modexp.cli import run\ntry:\n    run({words!r})\nexcept SystemExit:\n    pass\nprint()"
    assert loaded_by(code, tmp_path) <= allowed


@pytest.mark.parametrize("command", ["fit", "compare"])
def test_a_fit_that_succeeds_loads_nothing_heavy(command: str, tmp_path: Path) -> None:
    """Every module a fit uses is loaded when it fits: surfaces, bootstrap, Akima, tables and sheets included."""
    code = (
        "from tests.studies import CHINCHILLA, on_surface, optimum\nimport modexp.analysis.records, numpy\n"
        "grid = numpy.geomspace(0.3, 3, 7)\n"
        "rows = [r | {'flops_per_token': 2 * r['params_total']} for arm in ('baseline', 'mod')"
        " for c in (1e18, 1e19, 1e20) for r in on_surface(c, optimum(c, CHINCHILLA)[0] * grid, CHINCHILLA, arm=arm)]\n"
        "modexp.analysis.records.records = lambda *_: rows\n"
        "import modexp.cli.fit\nmodexp.cli.fit.study_facts = lambda study: {}\n"
        f"from modexp.cli import run\nassert run([{command!r}, 'runs', '--json']) == 0\nprint()"
    )
    (tmp_path / "runs").mkdir()
    assert loaded_by(f"sys.path.insert(0, {str(Path(__file__).resolve().parents[1])!r})\n{code}", tmp_path) == set()


def test_importing_modexp_loads_nothing_heavy(tmp_path: Path) -> None:
    assert loaded_by("import modexp", tmp_path) == set()


def test_a_run_loads_no_tracker_and_no_hub(tmp_path: Path, tiny: list[str]) -> None:
    shape = ["model.n_layers=2", "model.d_model=16", "model.n_heads=2", "optim.batch_size=2", "budget=1e8"]
    code = f"from modexp.cli import run\nassert run({['train', *tiny, *shape]!r}) == 0\nprint()"
    assert loaded_by(code, tmp_path) == {"torch", "hydra"}
