"""The token of Ray's clusters is its user's alone."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from orchestrator.ray_cluster.token import make_private, token_file, token_warnings


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def mode(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


def test_a_file_that_others_could_read_is_named_and_closed(home: Path) -> None:
    file = home / ".ray" / "auth_token"
    assert token_file() == file
    assert token_warnings() == []
    file.parent.mkdir()
    file.write_text("a" * 64)
    file.chmod(0o644)
    [line] = token_warnings()
    assert "0644" in line
    assert f"Fix: chmod 600 {file}" in line
    make_private(create=False)
    assert mode(file) == 0o600
    assert file.read_text() == "a" * 64
    assert token_warnings() == []


def test_a_token_is_made_private_and_once(home: Path) -> None:
    old = os.umask(0)
    try:
        threads = [threading.Thread(target=make_private, kwargs={"create": True}) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        os.umask(old)
    file = home / ".ray" / "auth_token"
    content = file.read_text()
    assert len(content) == 64
    assert mode(file) == 0o600
    assert mode(file.parent) == 0o700
    assert [path.name for path in file.parent.iterdir()] == ["auth_token"]
    make_private(create=True)
    assert file.read_text() == content


@pytest.mark.parametrize(
    ("name", "value"), [("RAY_AUTH_MODE", "disabled"), ("RAY_AUTH_TOKEN", "b" * 64)]
)
def test_no_token_is_made_where_none_is_asked_for(
    home: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    make_private(create=True)
    assert not (home / ".ray").exists()


def test_a_home_that_cannot_be_written_is_left_to_ray(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "file").write_text("")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(home / "file" / "token"))
    make_private(create=True)
    assert token_warnings() == []
