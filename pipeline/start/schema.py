"""The config's models -> a JSON Schema, by which editors complete keys, show what each is for, and mark mistakes.

Two things are looser than the models: a config that `extends` another says only what differs, so what must be there
is asked for in items of lists alone, which are replaced whole; and null takes away one of the other's names.

Made by `python -m tokenmill.pipeline.start.schema > configs/schema.json`.
"""

import json
from pathlib import Path
from typing import Any

from tokenmill.pipeline.config import RunConfig

SCHEMA_FILE = Path(__file__).resolve().parents[2] / "configs" / "schema.json"
_EXTENDS = {
    "type": "string",
    "description": "Another config, a path from this one's folder; this one says what differs.",
}
_WHOLE = ("Source", "Toleration")  # items of lists


def schema() -> dict[str, Any]:
    """The JSON Schema, of draft 2020-12."""
    made = RunConfig.model_json_schema()
    for name, definition in made["$defs"].items():
        if name not in _WHOLE:
            definition.pop("required", None)
        for key in definition.get("properties", {}).values():
            _allow_null_names(key)
    made.pop("required")
    made["anyOf"] = [{"required": ["root", "sources"]}, {"required": ["extends"]}]
    made["properties"] = {"extends": _EXTENDS, **made["properties"]}
    made["title"] = "tokenmill config"
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made}


def _allow_null_names(key: dict[str, Any]) -> None:
    of_names = key.get("additionalProperties")
    if isinstance(of_names, dict) and "$ref" in of_names:
        key["additionalProperties"] = {"anyOf": [of_names, {"type": "null"}]}


def schema_text() -> str:
    """As it is written: sorted, so that a change of the models is a change of its lines."""
    return json.dumps(schema(), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    print(schema_text(), end="")
