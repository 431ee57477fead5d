"""The shape of the house: who may import whom, no cycle, no module too long, every room says what is in it."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

from tokenmill import stages

PROJECT = Path(__file__).resolve().parent.parent
PREFIX = "tokenmill."
GROUND = "storage"  # all stand on it, and it on nothing
HOUSES = {
    "storage": set(),
    "tokenizer": set(),
    "stages": {"tokenizer"},
    "training": {"tokenizer"},
    "pipeline": {"tokenizer", "stages", "training"},
}
# Inside each house: a room, and the rooms that it may import from. What stands at the top of a house is a room, too.
ROOMS: dict[str, str] = {
    "storage": "",
    "tokenizer": "",
    "tokenizer.vision": "",
    "tokenizer.vision.evaluation": "tokenizer tokenizer.vision",
    "tokenizer.vision.training": "tokenizer tokenizer.vision tokenizer.vision.evaluation",
    "stages": "stages.table stages.fetch stages.read stages.select stages.image stages.video stages.tokenize "
    "stages.embed stages.caption stages.caption.captioners stages.caption.texts",
    "stages.table": "",
    "stages.fetch": "stages.table",
    "stages.read": "stages.table stages.fetch",
    "stages.select": "stages.table",
    "stages.image": "stages.table stages.select",
    "stages.video": "stages.table stages.select stages.image",
    "stages.tokenize": "stages.table stages.read stages.image stages.video",
    "stages.embed": "stages.table stages.select stages.image stages.tokenize",
    "stages.caption.captioners": "stages.table stages.select",
    "stages.caption.engines": "stages.table stages.tokenize stages.caption.captioners",
    "stages.caption.texts": "stages.table stages.select stages.caption.captioners",
    "stages.caption": "stages.table stages.read stages.image stages.video stages.caption.captioners "
    "stages.caption.engines stages.caption.texts",
    "training": "",
    "training.data": "training",
    "training.model": "training",
    "training.checkpoints": "training",
    "training.tracking": "training",
    "training.parallel": "training training.model",
    "training.run": "training training.data training.model training.parallel training.sampling training.checkpoints "
    "training.tracking",
    "training.captioner": "training training.model training.run training.tracking",
    "training.sampling": "training",
    "training.evaluation": "training training.model training.sampling",
    "pipeline": "",
    "pipeline.catalog.log": "",
    "pipeline.catalog": "pipeline pipeline.catalog.log",
    "pipeline.reports": "pipeline pipeline.catalog",
    "pipeline.refresh": "pipeline pipeline.catalog",
    "pipeline.plan": "pipeline pipeline.catalog pipeline.refresh",
    "pipeline.flow": "pipeline pipeline.catalog pipeline.reports",
    "pipeline.serving": "",
    "pipeline.run": "pipeline pipeline.catalog pipeline.reports pipeline.refresh pipeline.plan pipeline.flow "
    "pipeline.serving",
    "pipeline.verify": "pipeline pipeline.catalog pipeline.catalog.log pipeline.reports pipeline.refresh",
    "pipeline.export": "pipeline pipeline.catalog pipeline.reports",
    "pipeline.vision": "pipeline pipeline.catalog pipeline.reports pipeline.flow pipeline.run",
    "pipeline.captioner": "pipeline pipeline.catalog pipeline.reports pipeline.flow pipeline.run",
    "pipeline.preferences": "pipeline pipeline.catalog",
    "pipeline.evaluation": "pipeline pipeline.catalog pipeline.reports pipeline.refresh pipeline.run "
    "pipeline.preferences",
    "pipeline.looking": "pipeline pipeline.catalog",
    "pipeline.looking.report": "pipeline pipeline.catalog pipeline.looking pipeline.reports pipeline.refresh",
    "pipeline.start": "pipeline pipeline.refresh pipeline.reports pipeline.serving",
    "pipeline.looking.explorer": "pipeline pipeline.catalog pipeline.looking pipeline.looking.report pipeline.reports",
    "pipeline.jobs": "pipeline",
    "pipeline.demo": "pipeline pipeline.catalog pipeline.reports pipeline.run pipeline.captioner",
    "pipeline.commands": "pipeline pipeline.catalog pipeline.reports pipeline.run pipeline.export pipeline.verify "
    "pipeline.vision pipeline.captioner pipeline.preferences pipeline.evaluation pipeline.jobs pipeline.demo "
    "pipeline.looking.report pipeline.looking.explorer pipeline.start",
}
MOST_ROOMS = 4
PATHS = sorted(path for house in HOUSES for path in (PROJECT / house).rglob("*.py"))


def dotted(path: Path) -> str:
    parts = path.relative_to(PROJECT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {dotted(path): path for path in PATHS}


def room_of(name: str) -> str:
    return name if MODULES[name].name == "__init__.py" else name.rpartition(".")[0]


def imports(name: str) -> set[str]:
    """Modules of ours that this one imports anywhere in it; a room itself only for the names that it exports."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & {PREFIX + known for known in MODULES}
            found |= submodules or {node.module}
    return {found_name.removeprefix(PREFIX) for found_name in found} & set(MODULES) - {name}


def rooms(name: str) -> set[str]:
    """Rooms that a module imports from, besides its own and the ground floor."""
    return {room_of(target) for target in imports(name)} - {room_of(name), GROUND}


@pytest.mark.parametrize("name", MODULES)
def test_imports_follow_the_arrows(name):
    house, allowed = name.split(".")[0], set(ROOMS[room_of(name)].split())
    for target in rooms(name):
        other = target.split(".")[0]
        assert target in allowed if other == house else other in HOUSES[house], f"{room_of(name)} -> {target}"


@pytest.mark.parametrize("name", MODULES)
def test_modules_know_few_rooms(name):
    is_door = MODULES[name].name == "__init__.py"  # a house's front door exports from all its rooms
    assert is_door or len(rooms(name)) <= MOST_ROOMS, sorted(rooms(name))


@pytest.mark.parametrize("name", MODULES)
def test_import_lists_are_short(name):
    """At most ten lines of ours, besides those from the ground floor and of doors, which export from all rooms."""
    if MODULES[name].name == "__init__.py":
        return
    nodes = [node for node in ast.parse(MODULES[name].read_text()).body if isinstance(node, ast.ImportFrom)]
    ours = [node for node in nodes if (node.module or "").startswith("tokenmill")]
    above = [node for node in ours if not (node.module or "").startswith(PREFIX + GROUND)]
    above = [node for node in above if [alias.name for alias in node.names] != [GROUND]]
    assert sum(node.end_lineno - node.lineno + 1 for node in above) <= 10


def assert_acyclic(graph: dict[str, set[str]]) -> None:
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name not in done:
            for target in graph[name]:
                visit(target, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_no_import_cycle():
    assert_acyclic({name: set(allowed.split()) for name, allowed in ROOMS.items()})
    assert_acyclic({name: imports(name) - {GROUND} for name in MODULES})


@pytest.mark.parametrize("name", MODULES)
def test_modules_are_documented_and_short(name):
    text = MODULES[name].read_text()
    assert ast.get_docstring(ast.parse(text)), "a module opens with what it turns into what"
    assert len(text.splitlines()) <= 400, "split it by meaning"


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_say_what_is_in_them(room):
    """In, out, and every file of the room with what it is, in reading order."""
    doc = ast.get_docstring(ast.parse(MODULES[room].read_text())) or ""
    if room not in HOUSES or room == GROUND:
        assert re.search(r"^In: .*Out: ", doc, re.MULTILINE | re.DOTALL), "what comes in, what goes out"
    listed = re.findall(r"^ +(\w+\.py) {2,}\S", doc, re.MULTILINE)
    assert sorted(listed) == sorted(
        path.name for path in MODULES[room].parent.glob("*.py") if path.name != "__init__.py"
    )


def test_every_folder_is_a_room_and_is_installed():
    assert {room_of(name) for name in MODULES} == set(ROOMS)
    packages = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert sorted(packages) == sorted(["tokenmill", "tokenmill.configs", *(PREFIX + room for room in ROOMS)])


def test_what_the_front_door_of_stages_gives_is_what_types_say():
    door = ast.parse(MODULES["stages"].read_text())
    typed = {alias.name for node in ast.walk(door) if isinstance(node, ast.ImportFrom) for alias in node.names}
    given = {name for names in stages._EXPORTED.values() for name in names.split()}
    assert given == typed - {"import_module", "TYPE_CHECKING", "Any"}
    assert all(hasattr(stages, name) for name in given)


def test_the_readme_names_every_room():
    lines = (PROJECT / "README.md").read_text().splitlines()
    for room in ROOMS:
        doc = ast.get_docstring(ast.parse(MODULES[room].read_text())) or ""
        name, first = room.split(".")[-1] + "/", doc.splitlines()[0].rstrip(".")
        assert any(line.split(maxsplit=1) == [name, first] for line in lines), f"{name:18}{first}"


def test_names_of_files_in_texts_are_true():
    """Every path of ours that a docstring, a comment or the README names exists."""
    texts = [*PATHS, *PROJECT.glob("*.md"), *(PROJECT / "benchmarks").glob("*.*"), *(PROJECT / "configs").glob("*")]
    for path in [*texts, *(PROJECT / "tests").rglob("*.py")]:
        if path.is_file():
            for named in re.findall(
                r"(?<![\w/.-])((?:storage|tokenizer|stages|training|pipeline|tests)/[\w/]+\.py)\b", path.read_text()
            ):
                assert (PROJECT / named).exists(), f"{path.relative_to(PROJECT)} names {named}"
