"""The code as it is here -> a folder with package and metadata, which Ray ships to all nodes of a job as it is.

Of a checkout a wheel is built and unpacked; an installed version is copied file by file. Unlike a wheel among Ray's
`py_modules` this asks pip nothing on the nodes: that would install torch anew on each, under all others.
"""

import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory

from tokenmill.pipeline.jobs.states import JobError

PROJECT = Path(__file__).resolve().parents[2]
_WHEEL_TIMEOUT_S = 300


def put_code(folder: Path) -> None:
    """Write `tokenmill/` and its .dist-info into `folder`. Raises JobError."""
    if (PROJECT / "pyproject.toml").is_file():
        with TemporaryDirectory() as there, zipfile.ZipFile(build_wheel(Path(there))) as wheel:
            wheel.extractall(folder)
        return
    for file in metadata.files("tokenmill") or ():
        if ".." not in file.parts and "__pycache__" not in file.parts:  # .. are scripts beside the interpreter
            target = folder / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path(str(file.locate())), target)


def build_wheel(folder: Path) -> Path:
    """The wheel of this checkout, in `folder`. Raises JobError."""
    with TemporaryDirectory() as copy:  # setuptools leaves its build folder in the checkout, and packs what is in it
        ignored = shutil.ignore_patterns(".*", "build", "runs", "*.egg-info", "__pycache__", "tests", "benchmarks")
        source = shutil.copytree(PROJECT, Path(copy) / "tokenmill", ignore=ignored)
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", str(source)]
        done = subprocess.run(
            [*command, "--wheel-dir", str(folder)], capture_output=True, text=True, timeout=_WHEEL_TIMEOUT_S
        )
    made = list(folder.glob("tokenmill-*.whl"))
    if done.returncode or not made:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise JobError(
            f"{PROJECT}: no wheel could be built of the checkout: {said[-1] if said else 'pip said nothing'}; "
            "install setuptools, or set jobs.ray.code: installed"
        )
    return made[0]
