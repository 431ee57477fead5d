"""tokenmill: from raw images, video and text to a trained, sampling next-token transformer.

    import tokenmill

    config = tokenmill.load_config("photos.yaml", ["sources.0.uri=photos"])
    for step in tokenmill.plan(config):      # what a run would read, compute and write, and why
        print(step.phase, step.why, step.num_read)
    tokenmill.run(config)                    # again: only what is new or changed
    dataset = tokenmill.open(config)         # or its root
    media = dataset.table("media")           # pyarrow; dataset.arrow_dataset("media") for DuckDB and polars
    pictures = tokenmill.sample(config, ["a red circle"])
    model = tokenmill.trained(config)        # model.draw_clips, go_on, caption, answer, write

Errors that a person can mend are `tokenmill.UserError`. Nothing heavy is imported before it is used.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tokenmill.storage.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from tokenmill.pipeline.catalog.dataset import Dataset
    from tokenmill.pipeline.config import RunConfig
    from tokenmill.pipeline.refresh.steps import Step
    from tokenmill.pipeline.reports.terminal import PhaseReport
    from tokenmill.pipeline.reports.trained import TrainedModel

__all__ = ["PHASES", "UserError", "load_config", "open", "plan", "run", "sample", "trained"]
PHASES = ("curate", "caption", "tokenize", "train")


def __getattr__(name: str) -> str:
    """`__version__`: what looks it up takes longer to import than all else here."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib.metadata

    return importlib.metadata.version("tokenmill")


def load_config(path: str | Path, sets: Sequence[str] = ()) -> "RunConfig":
    """A YAML config with overrides such as `curate.score.max_pixels=5000`. Raises ConfigError, which names the key."""
    from tokenmill.pipeline.config import load

    return load(path, list(sets))


def open(source: "str | Path | RunConfig", version: int | None = None) -> "Dataset":
    """The tables below a root (a folder or s3:// prefix), or below the root of a config or of a .yaml file, to be read.

    Raises CatalogError where there is no catalog, and for a version that is not there.
    """
    from tokenmill.pipeline.catalog.dataset import Dataset

    if isinstance(source, str | Path):
        root = load_config(source).root if Path(source).suffix in (".yaml", ".yml") else str(source)
        return Dataset(root, version)
    return Dataset(source.root, source.version if version is None else version)


def plan(config: "RunConfig", phases: Sequence[str] = PHASES) -> "list[Step]":
    """What a run of these phases would read, compute and write, and why. Changes nothing. Raises as `run` does."""
    from rich.console import Console

    from tokenmill.pipeline.run.runner import run_phases

    return run_phases(config, tuple(phases), "plan", Console(quiet=True), plan_only=True).steps


def run(config: "RunConfig", phases: Sequence[str] = PHASES, quiet: bool = False) -> "list[PhaseReport]":
    """Carry the phases out, in order; what each read and wrote. Done work is not done again.

    Raises ConfigError, PlanError or CatalogError before any work when something does not fit.
    """
    from rich.console import Console

    from tokenmill.pipeline.run.runner import run_phases

    return run_phases(config, tuple(phases), "run", Console(quiet=quiet)).reports


def sample(config: "RunConfig", prompts: Sequence[str], seeds: Sequence[int] | None = None) -> "np.ndarray":
    """One picture for each prompt from the newest trained model: uint8 (B, H, W, 3). `seeds`: one each, default 0.

    Raises CatalogError without a model.
    """
    import numpy as np

    return np.stack(trained(config).draw(prompts, seeds))


def trained(config: "RunConfig") -> "TrainedModel":
    """The newest trained model, to be asked for pictures of any size, clips, their continuation, captions, answers and
    texts. Raises CatalogError without one.
    """
    from tokenmill.pipeline.reports.trained import TrainedModel

    return TrainedModel(config)
