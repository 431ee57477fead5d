"""The pictures of docs/, from the demo's root: python docs/screenshots.py runs/demo/demo.yaml

Needs Chromium (`apt-get install chromium`), which nothing else does.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from tokenmill.pipeline.config import load
from tokenmill.pipeline.looking.report.report import write_report

DOCS = Path(__file__).resolve().parent
WIDTH_PX, HEIGHT_PX = 1240, 1180


def picture(page: Path, out: Path, is_dark: bool) -> None:
    """The top of a page as a browser shows it."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("no Chromium here: apt-get install chromium")
    size = f"--window-size={WIDTH_PX},{HEIGHT_PX}"
    dark = ["--blink-settings=preferredColorScheme=0"] if is_dark else []
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    subprocess.run(
        [browser, *quiet, *dark, size, f"--screenshot={out}", page.as_uri()], check=True, capture_output=True
    )
    Image.open(out).convert("P", palette=Image.Palette.ADAPTIVE, colors=128).save(out, optimize=True)


def main() -> None:
    config = load(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder, "report.html")
        write_report(config, str(page))
        picture(page, DOCS / "report.png", is_dark=False)


if __name__ == "__main__":
    main()
