"""Where a run's checkpoints stand, and which of them are complete: those with the mark that is written last."""

from tokenmill import storage
from tokenmill.storage.errors import TrainingError

META = "meta.json"
_FOLDER, _PREFIX = "checkpoints", "step_"


def folder_uri(run_uri: str, step: int) -> str:
    """Where the checkpoint after `step` steps stands."""
    return storage.join(run_uri, _FOLDER, f"{_PREFIX}{step:06d}")


def all_folders(run_uri: str) -> list[str]:
    """Folders of checkpoints, and of remains of some."""
    folder = storage.join(run_uri, _FOLDER)
    return [storage.join(folder, name) for name in storage.list_names(folder) if name.startswith(_PREFIX)]


def complete_steps(run_uri: str) -> list[int]:
    """Steps of which there is a complete checkpoint, in ascending order."""
    return sorted(int(uri.rsplit("_", 1)[1]) for uri in all_folders(run_uri) if storage.exists(storage.join(uri, META)))


def newest_step(run_uri: str) -> int:
    """Steps done by the newest complete checkpoint; 0 without one."""
    return max(complete_steps(run_uri), default=0)


def latest(run_uri: str, plan_hash: str) -> int:
    """The same. Raises TrainingError when it belongs to another plan."""
    step = newest_step(run_uri)
    if not step:
        return 0
    meta = storage.read_json(storage.join(folder_uri(run_uri, step), META), "plan")
    if meta["plan"] != plan_hash:
        raise TrainingError(
            f"{folder_uri(run_uri, step)}: made with plan {meta['plan']}, this run's is {plan_hash}; "
            "train into another folder, or delete the checkpoints"
        )
    return step
