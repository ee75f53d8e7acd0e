"""The wheel, installed into an environment of its own, is the same command with all its files."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("orchestrator", "trainables")
NEEDED = ("pyproject.toml", "README.md", "LICENSE")


def run(*command: str | Path, cwd: Path) -> str:
    ran = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, env=ENV)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


ENV = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, without a registry."""
    for tool in ("pip", "setuptools"):
        try:
            version = importlib.metadata.version(tool)
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(f"{tool} is not installed here")
        if tool == "setuptools" and int(version.partition(".")[0]) < 77:
            pytest.skip(f"setuptools {version} is too old to build with")
    source = tmp_path_factory.mktemp("source")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in NEEDED:
        shutil.copy(ROOT / name, source)
    build = ("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", "dist", ".")
    run(*PIP, *build, cwd=source)
    (made,) = (source / "dist").iterdir()
    return made


def test_every_file_of_the_packages_is_in_the_wheel(wheel: Path) -> None:
    """Pools, templates, claims, options, constraints: whatever is beside the code."""
    sources = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    others = {Path(name).suffix for name in sources} - {".py"}
    assert {".toml", ".txt", ".md", ".typed"} <= others
    with zipfile.ZipFile(wheel) as packed:
        held = {name for name in packed.namelist() if name.startswith(PACKAGES)}
    assert held == sources


def test_the_installed_command_works_anywhere(wheel: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "env", cwd=tmp_path)
    python = tmp_path / "env" / "bin" / "python"
    run(*PIP[:3], "--python", python, *PIP[3:], "install", "--no-deps", wheel, cwd=tmp_path)
    # What it depends on comes from the environment of the tests, but for its editable install,
    # which a path in a .pth does not switch on.
    place = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))",
                     cwd=tmp_path).strip())  # fmt: skip
    (place / "of-the-tests.pth").write_text(sysconfig.get_path("purelib") + "\n")

    command = tmp_path / "env" / "bin" / "orchestrator"
    assert "Settle which vision backbone" in run(command, "--help", cwd=tmp_path)
    assert "small" in run(command, "pool", "list", cwd=tmp_path)
    assert "lr-lower-for-vit" in run(command, "claims", "list", cwd=tmp_path)
    where = "import orchestrator as bt; print(bt.__file__, bt.RunOptions().storage)"
    assert run(python, "-c", where, cwd=tmp_path).startswith(str(place))
