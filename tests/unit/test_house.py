"""The house rules: imports go down, every outside library has one home, files stay small."""

from __future__ import annotations

import ast
import fnmatch
import graphlib
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("orchestrator", "trainables")
MAX_LINES = 250

# DESIGN section 2, top to bottom; a module may import from its own layer and from those below.
# The longest pattern that fits counts: a module that is not named here stands beside the runner.
LAYERS = (
    ("orchestrator.__main__",),
    ("orchestrator.cli*",),
    ("orchestrator.*",),  # runner, plan, compare, claims, progress, tracking ...
    (
        *("orchestrator.trial*", "orchestrator.dispatcher*", "orchestrator.slots*"),
        *("orchestrator.scheduler*", "orchestrator.ledger*", "orchestrator.session*"),
        *("orchestrator.pool*", "orchestrator.cluster*", "orchestrator.pasha*"),
        *("orchestrator.orders*", "orchestrator.retention", "orchestrator.drawing"),
        *("orchestrator.autoscaler", "orchestrator.exclusive"),
    ),
    (
        *("orchestrator.spec*", "orchestrator.sweeps*", "orchestrator.spaces*"),
        *("orchestrator.identity", "orchestrator.limits", "orchestrator.overrides"),
        "orchestrator.budget",
        "orchestrator.sampling",
        *("orchestrator.places", "orchestrator.room"),
    ),
    ("orchestrator",),
    ("trainables.worker*",),
    ("trainables.*",),
    ("trainables.recipe", "trainables.assignment", "trainables.errors"),
    ("trainables",),
)

# Outside library -> the files that may import it. The longest matching name counts.
_TORCH_FREE = ("recipe.py", "assignment.py", "errors.py", "line.py", "backbones/catalog.py")
_TORCH_FREE += ("storage.py", "storage_link.py", "remote.py", "keep.py")
HOMES = {
    "numpy": ("orchestrator/*", "trainables/*"),
    "torch": ("trainables/*",),
    "timm": ("trainables/backbones*",),
    "safetensors": ("trainables/checkpoint*", "trainables/backbones*"),
    "torchvision": ("trainables/data/*",),
    "PIL": ("trainables/data/*",),
    "filelock": ("trainables/data/*", "trainables/remote.py", "orchestrator/session*.py"),
    "huggingface_hub": ("trainables/backbones/weights.py",),
    "sklearn": ("trainables/data/*", "orchestrator/compare/*"),
    "pyarrow": ("trainables/data/*", "orchestrator/ledger_tables.py", "orchestrator/compare/*"),
    "pyarrow.fs": ("trainables/storage*.py",),
    "ray": (
        *("trainables/worker*.py", "trainables/line.py", "orchestrator/slots.py"),
        *("orchestrator/scheduler.py", "orchestrator/runner.py", "orchestrator/dispatcher.py"),
        *("orchestrator/nodes.py", "orchestrator/jobs*.py", "trainables/worker_entry.py"),
        *("orchestrator/pool.py", "orchestrator/cluster.py", "orchestrator/trial.py"),
        "orchestrator/autoscaler.py",
    ),
    "ray.train": ("trainables/worker*.py", "orchestrator/slots.py"),
    "ray.job_submission": ("orchestrator/jobs.py",),
    "ray.tune": ("orchestrator/trial.py", "orchestrator/scheduler.py", "orchestrator/runner.py"),
    "mlflow": ("orchestrator/tracking_client.py", "orchestrator/tracking_models.py"),
    "matplotlib": ("orchestrator/compare/*",),
    # Sobol points: sampling imports it in the function that draws, so that no command waits for it.
    # Claims: Student's t where verdicts are reached, survival curves beside them.
    "scipy": ("orchestrator/compare/*", "orchestrator/claims/*", "orchestrator/sampling.py"),
    "optuna": ("orchestrator/sampling.py",),
    "statsmodels": ("orchestrator/compare/*",),
    "yaml": ("orchestrator/autoscaler.py",),
    "psutil": ("orchestrator/autoscaler.py", "orchestrator/cluster.py"),
    "click": ("orchestrator/cli*.py",),
    "rich": ("orchestrator/progress.py",),
}
NOT_AT_HOME = {
    "torch": tuple(f"trainables/{name}" for name in _TORCH_FREE),
}


def sources(root: Path) -> dict[str, Path]:
    """Module name -> file, of both packages."""
    found = {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(tree: ast.AST, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import, lazy and dynamic ones too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = module.split(".")[: None if is_package and node.level == 1 else -1]
                up = up[: len(up) - max(0, node.level - 1 - is_package)]
                base = ".".join([*up, *filter(None, [base])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = ast.unparse(node.func)
            if called.endswith(("import_module", "__import__", "lazy_import")):
                yield node.lineno, str(node.args[0].value)


def layer(module: str) -> int:
    """Index into LAYERS by the longest pattern that matches."""
    hits = [
        (len(pattern), index)
        for index, patterns in enumerate(LAYERS)
        for pattern in patterns
        if fnmatch.fnmatchcase(module, pattern)
    ]
    return max(hits)[1]


def own_module(name: str, modules: Iterable[str]) -> str:
    """The module of ours that a dotted import name reaches: the longest known prefix."""
    parts = name.split(".")
    known = set(modules)
    while len(parts) > 1 and ".".join(parts) not in known:
        parts.pop()
    return ".".join(parts)


def violations(root: Path) -> list[str]:
    """Every broken import rule under ``root``, one line each."""
    found: list[str] = []
    modules = sources(root)
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        where = path.relative_to(root).as_posix()
        rank = layer(module)
        tree = ast.parse(path.read_text())
        for line, name in imported(tree, module, path.name == "__init__.py"):
            top = name.split(".")[0]
            if top in PACKAGES:
                target = own_module(name, modules)
                target_rank = layer(target)
                if target != module and target not in PACKAGES:
                    graph.setdefault(module, set()).add(target)
                if target_rank < rank:
                    found.append(f"{where}:{line}: imports upward: {name}")
            elif top not in sys.stdlib_module_names:
                found += _homeless(where, line, name)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        found.append(f"import cycle: {' -> '.join(error.args[1])}")
    return found


def _homeless(where: str, line: int, name: str) -> list[str]:
    parts = name.split(".")
    prefixes = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
    library = next((prefix for prefix in prefixes if prefix in HOMES), None)
    if library is None:
        return [f"{where}:{line}: {parts[0]} has no home; give it one in HOMES"]
    at_home = any(fnmatch.fnmatchcase(where, home) for home in HOMES[library])
    banned = any(fnmatch.fnmatchcase(where, home) for home in NOT_AT_HOME.get(library, ()))
    if library == "torch" and where.startswith("trainables/data/"):
        banned = where != "trainables/data/batches.py"
    if at_home and not banned:
        return []
    return [f"{where}:{line}: {name} imported outside its home ({', '.join(HOMES[library])})"]


def test_imports_go_down_and_stay_at_home() -> None:
    assert not violations(ROOT)


@pytest.mark.parametrize(
    ("where", "code", "complaint"),
    [
        ("trainables/loop.py", "from orchestrator import ledger", "upward"),
        ("orchestrator/ledger.py", "def f():\n    import orchestrator.runner", "upward"),
        ("orchestrator/spec.py", "from .dispatcher import x", "upward"),
        ("trainables/recipe.py", "import torch.nn as nn", "outside its home"),
        ("trainables/data/store.py", "from torch import nn", "outside its home"),
        ("orchestrator/spec.py", "import ray", "outside its home"),
        ("orchestrator/dispatcher.py", "from ray import tune", "outside its home"),
        ("orchestrator/runner.py", "import mlflow", "outside its home"),
        ("orchestrator/cli.py", "import importlib\nimportlib.import_module('timm')", "outside"),
        ("trainables/loop.py", "import einops", "no home"),
        ("orchestrator/spec.py", "from orchestrator import gizmo", "upward"),
        ("orchestrator/slots.py", "import orchestrator.dispatcher", "cycle"),
    ],
)
def test_a_planted_violation_is_found(
    tmp_path: Path, where: str, code: str, complaint: str
) -> None:
    layout = {
        "orchestrator/__init__.py": "",
        "orchestrator/dispatcher.py": "import orchestrator.slots",
        "orchestrator/slots.py": "import ray.train",
        "orchestrator/gizmo.py": "",
        "orchestrator/ledger_tables.py": "import pyarrow as pa",
        "orchestrator/runner.py": "from ray import tune\nfrom orchestrator import ledger",
        "trainables/__init__.py": "",
        "trainables/data/batches.py": "import torch",
        "trainables/loop.py": "from trainables.data import batches",
    }
    for name, text in layout.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert violations(tmp_path) == []

    (tmp_path / where).write_text(code)
    assert any(complaint in line for line in violations(tmp_path))


@pytest.mark.parametrize("package", PACKAGES)
def test_files_fit_in_a_head(package: str) -> None:
    lengths = {
        path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines())
        for path in sorted((ROOT / package).rglob("*.py"))
    }
    assert {name: n for name, n in lengths.items() if n > MAX_LINES} == {}


def test_no_file_names_a_machine_or_a_registry() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    # Written in halves, so that this file does not name them either.
    names = ["/wo" + "rk/", "/tmp" + "/v/", "pypi" + ".org", "python" + "hosted.org"]
    names += ["download." + "pytorch.org", "registry." + "npmjs", "deb." + "debian.org"]
    names += ["/op" + "t/wheels", "/op" + "t/pypi", "/ro" + "ot/"]
    paths = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    found = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in paths
        if path.is_file()
        for name in names
        if name.encode() in path.read_bytes()
    ]
    assert found == []


def test_help_loads_no_heavy_library() -> None:
    script = (
        "import runpy, sys\n"
        "sys.argv = ['orchestrator', '--help']\n"
        "try:\n    runpy.run_module('orchestrator', run_name='__main__')\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "heavy = {'torch', 'ray', 'mlflow', 'timm', 'pandas', 'matplotlib', 'sklearn', 'scipy'}\n"
        "heavy |= {'optuna', 'sqlalchemy'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert "Usage" in ran.stdout
    assert ran.stdout.splitlines()[-1] == "HEAVY []"


def test_constraints_pin_every_requirement() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))

    names = [requirement.split(">=")[0].split("[")[0] for requirement in wanted]
    assert [name for name in names if name not in pins] == []
