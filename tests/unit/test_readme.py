"""README and the pages below it: every command is in README and has help, command lines parse,
links resolve."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from orchestrator.cli.main import group
from orchestrator.spec.named_sweeps import family_sweep, resolve
from orchestrator.spec.overrides import apply_sets

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# docs/reference.md is made from the code; a test of its own compares it.
PAGES = [ROOT / "README.md", ROOT / "benchmarks" / "README.md"] + [
    path for path in sorted((ROOT / "docs").glob("*.md")) if path.name != "reference.md"
]


def commands(inside: click.Group = group, prefix: str = "") -> Iterator[tuple[str, click.Command]]:
    for name, command in inside.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


def command_lines() -> list[list[str]]:
    """Arguments of every CLI call in a shell block."""
    found = []
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
        for line in block.splitlines():
            call = re.search(r"(?:^|-- )(?:python -m )?orchestrator (.*)", line)
            if call:
                found.append(shlex.split(call[1]))
    return found


@pytest.mark.parametrize(("name", "command"), list(commands()), ids=lambda value: str(value))
def test_every_command_and_option_has_help_and_the_readme_tells_of_it(
    name: str, command: click.Command
) -> None:
    assert command.help
    assert f"`orchestrator {name}" in README
    for option in command.params:
        if isinstance(option, click.Option) and option.name != "port":
            assert option.help, f"{name} --{option.name}"


@pytest.mark.parametrize("arguments", command_lines(), ids=" ".join)
def test_every_command_line_parses(arguments: list[str]) -> None:
    inside: click.Command = group
    while isinstance(inside, click.Group):
        name = arguments.pop(0)
        assert name in inside.commands
        inside = inside.commands[name]
    context = inside.make_context(name, arguments)
    targets = context.params.get("target") or context.params.get("candidate") or ()
    targets = [targets] if isinstance(targets, str) else list(targets)
    made = [resolve(one) for one in targets if ".py:" not in one] or [family_sweep("vit")]
    assert apply_sets(made, context.params.get("set", ()))


def test_the_readme_holds_enough_to_check() -> None:
    assert len(command_lines()) > 12
    first = README.index("```sh")
    makes = "make demo\nmake test\nmake test-cluster\nmake test-faults\n"
    assert README[first:].startswith(f"```sh\n{makes}")


def test_the_sweep_of_the_docs_is_a_target(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "search.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "sweeps.py").write_text(code)
    made = resolve(f"{tmp_path}/sweeps.py:careful")
    assert made.trials == 12
    assert made.mistakes() == []
    assert str(made.space["recipe.learning_rate"]) == "log(0.0001, 0.001)"


def test_the_picture_is_small_and_has_words() -> None:
    (picture,) = re.findall(r"!\[([^\]]+)\]\(([^)]+)\)", README)
    words, path = picture
    assert len(words.split()) > 10
    assert (ROOT / path).read_bytes().startswith(b"\x89PNG")
    assert (ROOT / path).stat().st_size <= 200_000


def headings(page: Path) -> set[str]:
    """Anchors of a page, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve_to_pages_and_to_their_headings(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?://)([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in headings(target), link


def test_the_readme_names_every_page_and_is_short() -> None:
    assert all(str(page.relative_to(ROOT)) in README for page in PAGES[1:])
    assert len(README.splitlines()) <= 250


def test_every_benchmark_is_named_and_every_named_one_is_there() -> None:
    text = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    programs = {path.stem for path in (ROOT / "benchmarks").glob("[!_]*.py")}
    commands = re.findall(r"^python -m benchmarks\.(\w+)", text, re.MULTILINE)
    assert set(commands) < programs
    assert [name for name in commands if f"\n- `{name}`: " not in text] == []
    assert [name for name in programs if f"`{name}`" not in text] == []


def test_exit_codes_are_those_of_the_help() -> None:
    assert group.help
    for code in re.findall(r"^\| (\d+) \|", README, re.MULTILINE):
        assert re.search(rf"\b{code}\b", group.help), code
