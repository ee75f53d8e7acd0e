"""The worker side's docstrings: present, with the shapes of arrays and every error by name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ENGINE = Path(__file__).parents[2] / "trainables"
ARRAYS = {"Tensor", "NDArray", "Images", "Labels", "Digests", "Tensors"}


def public(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    """Functions and classes of a module, and methods of those classes, that others may use."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                methods = (m for m in node.body if isinstance(m, ast.FunctionDef))
                yield from (m for m in methods if not m.name.startswith("_"))


def gaps(source: str) -> list[str]:
    """What docstrings leave out, one line each."""
    found = []
    for node in public(ast.parse(source)):
        doc = ast.get_docstring(node)
        if not doc:
            found.append(f"{node.name} has no docstring")
        elif isinstance(node, ast.FunctionDef):
            unnamed = sorted(error for error in raised(node) if error not in doc)
            found += [f"{node.name} does not name {error}" for error in unnamed]
            if takes_arrays(node) and not any(word in doc for word in ("(", "scalar")):
                found.append(f"{node.name} gives no shape")
    return found


def raised(function: ast.FunctionDef) -> set[str]:
    """Names of the errors that the function itself raises; a helper's are the helper's."""
    calls = (n for n in ast.walk(function) if isinstance(n, ast.Call))
    names = {"UserError" for c in calls if ast.unparse(c.func) == "raise_if_any"}
    for node in ast.walk(function):
        match node:
            case ast.Raise(exc=ast.Call(func=ast.Name(id=name))):
                names.add(name)
    return names


def takes_arrays(function: ast.FunctionDef) -> bool:
    """Whether arguments or result are tensors or arrays, by the annotations."""
    parts = [function.args, *([function.returns] if function.returns else [])]
    names = (n for part in parts for n in ast.walk(part))
    return any(isinstance(n, ast.Name | ast.Attribute) and _last(n) in ARRAYS for n in names)


def _last(node: ast.Name | ast.Attribute) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr


@pytest.mark.parametrize(
    "path", sorted(ENGINE.rglob("*.py")), ids=lambda p: p.relative_to(ENGINE).as_posix()
)
def test_docstrings_give_shapes_and_errors(path: Path) -> None:
    assert gaps(path.read_text(encoding="utf-8")) == []


def test_what_a_docstring_leaves_out_is_found() -> None:
    told = '''
def bare(): ...
def shapeless(x: Tensor):
    """Of x."""
def silent():
    """Nothing to tell."""
    raise KeyError("x")
def good(x: np.NDArray[int]):
    """Of x (N,). Raises ``KeyError``."""
    raise KeyError("x")
'''
    assert gaps(told) == [
        "bare has no docstring",
        "shapeless gives no shape",
        "silent does not name KeyError",
    ]
