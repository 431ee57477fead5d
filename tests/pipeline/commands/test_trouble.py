"""docs/errors.md is what the definitions are, and every reason that is given is defined."""

import ast
import re
from pathlib import Path

import pytest

from tokenmill.pipeline.commands.trouble import page
from tokenmill.stages import REASONS
from tokenmill.stages.table.columns import KNOWN

PROJECT = Path(__file__).resolve().parents[3]
PAGE = PROJECT / "docs" / "errors.md"


def test_the_page_is_not_stale():
    assert PAGE.read_text() == page(), "python -m tokenmill.pipeline.commands.trouble > docs/errors.md"


def test_keys_of_the_config_that_it_names_exist():
    reference = (PROJECT / "docs" / "reference.md").read_text()
    blocks = re.split(r"^### ", reference, flags=re.MULTILINE)[1:]
    keys = {f"{block.split()[0]}.{key}" for block in blocks for key in re.findall(r"^\| `(\w+)`", block, re.MULTILINE)}
    known = keys | {block.split()[0] for block in blocks}
    named = re.findall(r"\b(?:cluster|curate|train|tokenize)(?:\.\w+)+", page())
    assert len(named) > 10 and set(named) <= known, set(named) - known


def given() -> dict[str, str]:
    """Reasons in the source: arguments of RowError and its kinds, and what a worker's end is called."""
    found = {}
    walk = PROJECT / "pipeline/refresh/walk.py"
    for path in [*(PROJECT / "stages").rglob("*.py"), *(PROJECT / "pipeline/flow").glob("*.py"), walk]:
        for node in ast.walk(ast.parse(path.read_text())):
            words = []
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("RowError", "TransientError"):
                words = [node.args[0]]
            elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("_refused", "ReplyError"):
                words = [node.args[1]]
            elif isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple) and path.parent.name == "flow":
                words = [node.value.elts[0]]
            for word in words:
                for each in ast.walk(word):
                    if isinstance(each, ast.Constant) and isinstance(each.value, str) and each.value.isidentifier():
                        found[each.value] = path.name
    return found


def test_every_reason_is_defined_and_every_definition_is_given():
    found = given()
    assert set(found) - {KNOWN, "reject_reason", "reject_detail"} == set(REASONS) - {"not_scored", "voted_out"}


@pytest.mark.parametrize("reason", REASONS)
def test_reasons_are_said_in_one_line(reason):
    assert "\n" not in REASONS[reason] and not REASONS[reason].endswith(".")
