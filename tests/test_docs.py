"""Links between pages lead somewhere, every page stands in the menu, and Python that a page shows runs."""

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import nbclient
import nbformat
import numpy as np
import pytest
import yaml
from PIL import Image

PROJECT = Path(__file__).resolve().parents[1]
PAGES = [
    *(PROJECT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *(PROJECT / "docs").glob("*.md"),
]
NOTEBOOKS = list((PROJECT / "docs").glob("*.ipynb"))
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in LINK.findall(text):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        there = (page.parent / name).resolve() if name else page
        assert there.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(there), f"{page.name}: {target}"


def test_every_page_stands_in_the_menu_of_the_site():
    def named(part: str | list | dict) -> set[str]:
        """Names of pages at any depth."""
        if isinstance(part, str):
            return {part}
        return {name for each in (part.values() if isinstance(part, dict) else part) for name in named(each)}

    menu = named(yaml.safe_load((PROJECT / "mkdocs.yml").read_text())["nav"])
    assert {str(page.relative_to(PROJECT)) for page in PAGES + NOTEBOOKS} | {"benchmarks/RESULTS.md"} == menu


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_shows_what_it_gave_and_no_machine(path):
    notebook = json.loads(path.read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not any(output["output_type"] == "error" or output.get("name") == "stderr" for output in outputs)
    assert not re.search(r"/(home|root|work|tmp)/", json.dumps(notebook))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_gives_what_it_shows(path, tmp_path):
    """Executed anew in an empty folder: the same words, and as many pictures; codes differ between CPUs."""
    notebook = nbformat.read(path, 4)
    shown = [_words(cell) for cell in notebook.cells]
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert [_words(cell) for cell in notebook.cells] == shown


def _words(cell: nbformat.NotebookNode) -> list[str]:
    """What a cell prints, then each other output in words; of a picture only that it is one."""
    outputs = cell.get("outputs", [])
    found = [
        "".join(output.text for output in outputs if output.get("name") == "stdout")
    ]  # in as many parts as it came
    for output in outputs:
        if output.output_type != "stream":
            found.append("a picture" if "image/png" in output.data else output.data["text/plain"])
    return found


@pytest.mark.slow
def test_the_site_is_built_without_a_broken_link():
    if find_spec("mkdocs") is None:
        pytest.skip("mkdocs is not installed: `make docs` installs it")
    done = subprocess.run([sys.executable, str(PROJECT / "docs" / "build.py")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (PROJECT / "build" / "site" / "docs" / "report.html").is_file()


@pytest.mark.slow
def test_python_of_the_page_with_others_runs(tmp_path):
    """In a folder with a root of eight pictures, after the commands that the page shows."""
    (tmp_path / "corpus").mkdir()
    rng = np.random.default_rng(0)
    for number in range(8):
        Image.fromarray(rng.integers(0, 255, (72, 96, 3), np.uint8)).save(tmp_path / "corpus" / f"{number}.png")
        (tmp_path / "corpus" / f"{number}.txt").write_text(f"noise number {number}")
    document = {
        "root": "runs/photos",
        "sources": [{"uri": "corpus"}],
        "curate": {"decide": {"image_rules": {"large": "width_px >= 32"}}},
        "tokenize": {"frames": {"area_px": 1024}},
    }
    (tmp_path / "photos.yaml").write_text(yaml.safe_dump(document))
    text = (PROJECT / "docs" / "with_others.md").read_text()
    commands = ["tokenmill run photos.yaml --phase curate --phase caption --phase tokenize"]
    for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL):
        commands += [line.removeprefix("$ ").replace("CONFIG", "photos.yaml") for line in block.splitlines()]
    for command in commands:
        words = [str(Path(sys.executable).parent / "tokenmill"), *command.split()[1:]]
        subprocess.run(words, cwd=tmp_path, check=True, capture_output=True, timeout=200)
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "noise number" in done.stdout and "(96, 72)" in done.stdout
    assert (tmp_path / "pictures" / "coco.json").is_file()
