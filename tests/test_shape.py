"""The shape of the house: who may import whom, no cycle, no module too long, every module says what it is."""

import ast
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
LAYERS = {
    "tokenizer": {"tokenizer"},
    "stages": {"tokenizer", "stages"},
    "training": {"tokenizer", "training"},
    "pipeline": {"tokenizer", "stages", "training", "pipeline"},
}
MODULES = sorted(path for layer in LAYERS for path in (PROJECT / layer).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(PROJECT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    names = {module_name(module) for module in MODULES}
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return {name for name in found if name in names}


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_follow_the_arrows(path):
    layer = path.relative_to(PROJECT).parts[0]
    wrong = {name for name in imports(path) if name.split(".")[0] not in LAYERS[layer]}
    assert not wrong, f"{layer} may import {sorted(LAYERS[layer])}"


def test_no_import_cycle():
    graph = {module_name(path): imports(path) - {module_name(path)} for path in MODULES}
    # A package's own __init__ is imported with any of its modules and holds nothing.
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name not in done:
            for target in graph[name]:
                visit(target, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_modules_are_documented_and_short(path):
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text)), "a module opens with what it turns into what"
    assert len(text.splitlines()) <= 400, "split it by meaning"


def test_readme_tree_is_true():
    """Every file and folder that the README's tree names exists, and every module of the layers stands in it."""
    readme = (PROJECT / "README.md").read_text()
    tree = readme.split("<!-- tree -->")[1]
    named = {line.split()[0] for line in tree.splitlines() if line.strip() and not line.startswith("```")}
    missing = sorted(name for name in named if not (PROJECT / name).exists())
    assert not missing, f"the README names what is not there: {missing}"
    modules = {str(path.relative_to(PROJECT)) for path in MODULES if path.name != "__init__.py"}
    assert modules <= named, f"the README leaves out {sorted(modules - named)}"
