"""Where trained models stand: `<root>/training/<key>`, one folder for each pair of train config and pinned tokens
version.
"""

from tokenizer import storage
from tokenizer.identity import fingerprint
from training.config import TrainConfig
from training.job import DONE


def _suffix(config: TrainConfig) -> str:
    return fingerprint("train", config)[:8]


def run_uri(root: str, config: TrainConfig, tokens_version: int, export_id: str | None = None) -> str:
    """The folder of the training of `config` on that version of the tokens, from the table or from an export."""
    export = "" if export_id is None else f"{export_id[:8]}-"
    return storage.join(root, "training", f"v{tokens_version:06d}-{export}{_suffix(config)}")


def finished(root: str) -> list[str]:
    """Folders of finished trainings, by tokens version."""
    folder = storage.join(storage.absolute(root), "training")
    uris = [storage.join(folder, name) for name in storage.list_names(folder)]
    return [uri for uri in uris if storage.exists(storage.join(uri, DONE))]


def newest(root: str, config: TrainConfig) -> str | None:
    """The finished training of `config` on the newest tokens version, or None."""
    found = [uri for uri in finished(root) if uri.endswith(_suffix(config))]
    return found[-1] if found else None
