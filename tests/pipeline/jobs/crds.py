"""KubeRay's schemas, as an API server applies them, but with unknown fields refused: a misspelt key is an error."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

FOLDER = Path(__file__).resolve().parents[4] / "shared" / "kuberay"
FILES = {"RayJob": "ray.io_rayjobs.yaml", "RayCronJob": "ray.io_raycronjobs.yaml"}
_ABOUT = {"name", "namespace", "labels", "annotations", "ownerReferences"}
_LABEL_CHARS = 63


def strict(schema: Any) -> Any:
    """The same schema, in which objects with named fields have no others."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and "additionalProperties" not in schema:
        made["additionalProperties"] = False
    return made


@lru_cache(maxsize=4)
def validator(kind: str) -> Draft7Validator:
    path = FOLDER / FILES[kind]
    if not path.is_file():
        pytest.skip(f"KubeRay's schemas are not there: {path}")
    versions = yaml.load(path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))["spec"]["versions"]
    found = next(version for version in versions if version["name"] == "v1")
    return Draft7Validator(strict(found["schema"]["openAPIV3Schema"]))


def errors(manifest: dict[str, Any]) -> list[str]:
    """What an API server that knows no other fields would refuse."""
    about = manifest["metadata"]
    said = [f"metadata: {sorted(set(about) - _ABOUT)}"] if set(about) - _ABOUT else []
    said += [f"label {value}" for value in about.get("labels", {}).values() if len(value) > _LABEL_CHARS]
    if manifest["kind"] == "ConfigMap":
        if set(manifest) != {"apiVersion", "kind", "metadata", "data"} or not all(
            isinstance(value, str) for value in manifest["data"].values()
        ):
            said.append("ConfigMap: other fields")
        return said
    found = validator(manifest["kind"]).iter_errors(manifest)
    return said + [f"{'.'.join(map(str, error.path))}: {error.message[:200]}" for error in found]
