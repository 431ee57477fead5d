"""Config models and command line -> docs/reference.md, the page of all keys, commands and options.

Made by `python -m tokenmill.pipeline.commands.reference > docs/reference.md`.
"""

from collections.abc import Iterator
from typing import Any, get_origin

import typer
from pydantic import BaseModel

from tokenmill.pipeline.commands.cli import app
from tokenmill.pipeline.config import RunConfig

_HEAD = """# Reference

Made by `python -m tokenmill.pipeline.commands.reference` from the config's models and the command line.
What only says how (`resources`, `cluster`, `curate.fetch_pace`) changes no result and enters no fingerprint.

## Config

Keys as `--set` takes them. A list's blocks stand below `KEY.0`, `KEY.1`, and so on; `NAME` is one of your own.
"""
_AS_ABOVE = "train.stages.NAME."  # begins titles of blocks that are explained where they stand for all stages


def reference() -> str:
    """The page, as Markdown."""
    lines = [_HEAD]
    for title, model in _blocks("", RunConfig):
        rows = [f"| `{name}` | {_default(field)} | {_cell(field.description)} |" for name, field in _values(model)]
        if rows and not title.startswith(_AS_ABOVE):
            said = (model.__doc__ or "").strip().split("\n\n")[0].replace("\n    ", " ")
            lines += [
                f"### {title or 'top level'}",
                "",
                said,
                "",
                "| key | default | |",
                "| --- | --- | --- |",
                *rows,
                "",
            ]
    lines += ["## Commands", ""]
    for name, command in _commands(typer.main.get_command(app), "tokenmill"):
        arguments = " ".join(p.metavar for p in command.params if p.param_type_name == "argument")
        lines += [f"### {name} {arguments}".rstrip(), "", command.help.replace("\n", " "), ""]
        options = [p for p in command.params if p.param_type_name == "option" and p.name != "help"]
        lines += [f"* `{p.opts[0]}`: {p.help}" for p in options] + [""]
    return "\n".join(lines).rstrip() + "\n"


def _blocks(prefix: str, model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    yield prefix, model
    for name, field in model.model_fields.items():
        below = f"{name}.NAME" if get_origin(field.annotation) is dict else name
        for inner in _models(field.annotation):
            yield from _blocks(f"{prefix}.{below}".lstrip("."), inner)


def _values(model: type[BaseModel]) -> list[tuple[str, Any]]:
    return [(name, field) for name, field in model.model_fields.items() if not list(_models(field.annotation))]


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from _models(inner)


def _default(field: Any) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return f"`{'null' if value is None else str(value).lower() if isinstance(value, bool) else value}`"


def _cell(text: str | None) -> str:
    return (text or "").replace("|", "\\|")


def _commands(group: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{prefix} {name}")
        else:
            yield f"{prefix} {name}", command


if __name__ == "__main__":
    print(reference(), end="")
