"""The house rules that the import linter does not know."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("orchestrator", "trainables")


@pytest.mark.parametrize(
    ("where", "line", "contract"),
    [
        ("orchestrator/ledger/state.py", "import orchestrator.compare", "rooms of orchestrator"),
        ("trainables/config.py", "from orchestrator import ledger", "rooms of orchestrator"),
        ("trainables/data/store.py", "import trainables.worker.serve", "rooms of trainables"),
        ("orchestrator/spec/run.py", "def f():\n    import ray.train", "ray:"),
        ("trainables/config.py", "import torch.nn as nn", "torch:"),
        ("orchestrator/engine/runner.py", "import mlflow", "mlflow:"),
    ],
)
def test_the_import_linter_finds_a_planted_violation(
    tmp_path: Path, where: str, line: str, contract: str
) -> None:
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("*.pyc"))
    (tmp_path / ".importlinter").write_text((ROOT / ".importlinter").read_text())
    with (tmp_path / where).open("a") as file:
        file.write(f"\n{line}\n")

    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as f; f()"]
    ran = subprocess.run(
        [*command, "--no-cache", "--no-logo"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1
    broken = [line for line in ran.stdout.splitlines() if " BROKEN" in line]
    assert any(line.startswith(contract) for line in broken), ran.stdout


def test_no_private_interface_of_a_library_is_imported() -> None:
    private = re.compile(r"^\s*(from|import) .*\b_(internal|private)\b", re.MULTILINE)
    for planted in ("from ray.train.v2._internal import a", "    import ray._private.worker"):
        assert private.search(planted)
    found = [
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if private.search(path.read_text(encoding="utf-8"))
    ]
    assert found == []


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


def test_hashed_requirements_are_those_of_the_constraints() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["tpe"]]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))

    text = (ROOT / "requirements-hashed.txt").read_text()
    entry = r"^([\w.-]+)==([\w.+]+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$"
    hashed = {name: version for name, version, _ in re.findall(entry, text, re.MULTILINE)}
    assert re.sub(entry, "", re.sub(r"^#.*$", "", text, flags=re.M), flags=re.M).strip() == ""
    assert hashed.items() <= pins.items()
    names = {requirement.split(">=")[0].split("[")[0] for requirement in wanted}
    assert names <= set(hashed)
