"""README.md and docs/ -> build/site, a site that needs no server: `make docs`.

Pages are copied as they lie in the repository, so their links to each other hold; links to other files of it are kept
as text, for a site has no such files.
"""

import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
SOURCE = PROJECT / "build" / "site-source"
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "benchmarks/RESULTS.md",
    "docs/*.md",
    "docs/*.ipynb",
    "docs/*.png",
)
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)#:\s]+)(#[^)\s]*)?\)")


def copied() -> set[Path]:
    """Copy the pages; where they lie in the repository."""
    shutil.rmtree(SOURCE, ignore_errors=True)
    found = {path for pattern in PAGES for path in PROJECT.glob(pattern)}
    for path in found:
        (out := SOURCE / path.relative_to(PROJECT)).parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".md":
            out.write_text(_LINK.sub(partial(_of_site, page=path, pages=found), path.read_text()))
        else:
            shutil.copy(path, out)
    return found


def _of_site(link: re.Match[str], page: Path, pages: set[Path]) -> str:
    """The link where it leads to a page; else its words and the file."""
    target = (page.parent / link[2]).resolve()
    if target in pages or not target.exists():  # the latter is for the strict build to say
        return link[0]
    return f"{link[1]} (`{target.relative_to(PROJECT)}`)"


if __name__ == "__main__":
    copied()
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--clean"]
    sys.exit(subprocess.run(command, cwd=PROJECT, env=quiet).returncode)
