"""Secrets that tests plant in the environment, and look for in all that a job leaves and shows."""

from pathlib import Path

PLANTED = {
    "AWS_ACCESS_KEY_ID": "PLANTEDACCESSKEY0001",
    "AWS_SECRET_ACCESS_KEY": "planted/secret+key/0002",
    "HF_TOKEN": "hf_planted0003planted",
    "OPENAI_API_KEY": "sk-planted0004planted",
    "REDIS_PASSWORD": "planted-redis-0005",
}


def found_in_text(text: str) -> list[str]:
    """Names of those whose values stand in it."""
    return [name for name, value in PLANTED.items() if value in text]


def found_under(folder: Path) -> list[str]:
    """Files that hold one, as bytes."""
    values = [value.encode() for value in PLANTED.values()]
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return [str(path) for path in files if any(value in path.read_bytes() for value in values)]
