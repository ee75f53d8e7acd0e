"""What processes of ours start with, on machines and in directories of all kinds."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator import process


def test_a_users_files_are_not_taken_for_libraries(tmp_path: Path) -> None:
    for name in ("mlflow", "json", "click"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(f'{__file__} was imported')\n")
    (tmp_path / "mine.py").write_text("")
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "__init__.py").write_text("raise SystemExit('ray was imported')\n")
    commands = [
        [sys.executable, "-m", "orchestrator", "--help"],
        process.python_module("orchestrator", "--help"),
    ]
    for command in commands:
        ran = subprocess.run(
            command,
            cwd=tmp_path,
            env=process.module_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
    names = process.shadowing_names(tmp_path)
    assert names == ["click.py", "json.py", "mlflow.py", "ray"]
    assert process.shadowing_names(tmp_path / "ray") == []


@pytest.mark.parametrize("letters", [10, 90])
def test_a_long_temporary_folder_gives_ray_a_short_one(
    letters: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/" + "t" * letters)
    folder = process.socket_folder()
    assert (folder is None) == (letters == 10)
    if folder is not None:
        longest = len(f"{folder}{process.RAY_SOCKET}")
        assert longest <= process.LONGEST_SOCKET_PATH


def test_a_user_id_without_an_entry_has_a_name_and_must_set_home(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unknown(*_: object) -> None:
        raise KeyError("uid not found")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "LOGNAME", "USER", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    process.prepare_process()
    assert os.environ["USER"] == f"uid{os.getuid()}"
    (line,) = process.home_mistakes()
    assert "export HOME=" in line
    assert not process.has_usable_home()
    monkeypatch.setenv("HOME", "/tmp")
    assert process.home_mistakes() == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    (line,) = process.folder_mistakes(file / "below", "the folder", "another")
    assert str(file) in line
    assert "is a file" in line
    assert process.folder_mistakes(tmp_path / "a" / "b", "the folder", "another") == []


def test_a_traceback_goes_to_a_file_of_this_users_alone() -> None:
    try:
        raise ValueError("ü" * 3)
    except ValueError as error:
        file = process.write_traceback(error)
    assert file is not None
    assert file.stat().st_mode & 0o777 == 0o600
    assert "ValueError: üüü" in file.read_text(encoding="utf-8")
    file.unlink()
