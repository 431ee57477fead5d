"""`tokenmill init`: a look at a folder or a prefix -> a config file that fits it, and what a first run will do."""

import contextlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from tokenmill import storage
from tokenmill.pipeline.config import ConfigError, load
from tokenmill.pipeline.reports.terminal import shown
from tokenmill.pipeline.start.fitted import Fitted, config_text, name_of, sources_for
from tokenmill.pipeline.start.schema import SCHEMA_FILE
from tokenmill.pipeline.start.there import There, look

_WORDS = {"image": "images", "video": "videos", "other": "other files"}
_OF_MEMBERS = {"image": "images", "video": "videos", "url": "URLs", "text": "documents"}


@dataclass(frozen=True)
class Init:
    """Where the config goes; `out` and `root` null: beside where the command was called, outside the place itself."""

    place: str
    out: Path | None = None
    root: str | None = None
    is_forced: bool = False
    most: int = 10_000


def init(wanted: Init, console: Console) -> Path:
    """Look, write the config, say what it found. Raises ConfigError before anything is written."""
    place = _absolute(wanted.place)
    out = (wanted.out or _out_of(place)).expanduser().absolute()
    root = _absolute(wanted.root) if wanted.root else str(out.parent / "runs" / name_of(place))
    if _is_within(root, place):
        raise ConfigError(f"{root}: this root would lie within {place}, and be read as media; give another with --root")
    if out.exists() and not wanted.is_forced:
        raise ConfigError(f"{out}: is there already; --force writes it anew, --out FILE writes another")
    there = look(place, wanted.most)
    sources = sources_for(there)
    if not any(source.is_on for source in sources):
        raise ConfigError(
            f"{place}: among {there.num_listed:,} files there are no images, videos, tars of media, or tables of "
            "images, URLs or texts; docs/sources.md says what can be read"
        )
    text = config_text(there, sources, root, str(SCHEMA_FILE))
    _write(out, text)
    _say(there, sources, out, root, console)
    return out


def _absolute(uri: str) -> str:
    try:
        return storage.absolute(uri)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _out_of(place: str) -> Path:
    """Where the command was called; where that is in the place itself, beside the place: a config is no medium."""
    here = Path.cwd()
    name = f"{name_of(place)}.yaml"
    if storage.is_remote(place) or not _is_within(str(here), place):
        return here / name
    return Path(place).parent / name


def _is_within(inner: str, outer: str) -> bool:
    if storage.is_remote(inner) != storage.is_remote(outer):
        return False
    if not storage.is_remote(inner):
        inner, outer = str(Path(inner).resolve()), str(Path(outer).resolve())
    return inner == outer or inner.startswith(f"{outer.rstrip('/')}/")


def _write(out: Path, text: str) -> None:
    """The config, once it is known to load."""
    written = out.with_name(f".{out.name}.new")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        written.write_text(text)
        load(written)
        written.replace(out)
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written: {error.strerror}; give another place with --out") from None
    finally:
        with contextlib.suppress(OSError):
            written.unlink()


def _say(there: There, sources: list[Fitted], out: Path, root: str, console: Console) -> None:
    def say(text: str) -> None:
        console.print(shown(text, 2_000), highlight=False)

    of = "all" if there.is_all else "the first"
    say(f"Looked at {of} {there.num_listed:,} files of {there.uri}, {_size(there.num_bytes)}:")
    for line in [*_of_files(there), *_of_containers(there)]:
        say(f"  {line}")
    say(f"Wrote {out}. A first run will")
    for line in _will_do(there, sources, root):
        say(f"  {line}")
    path = _typed(out)
    say("Next")
    for command, what in (
        (f"tokenmill run {path} --plan", "what would be read and computed; does nothing"),
        (f"tokenmill run {path} --phase curate", "measure and judge, no model"),
        (f"tokenmill report {path}", "a page of what was kept, what was not, and why"),
    ):
        say(f"  {command}    # {what}")


def _of_files(there: There) -> list[str]:
    counts = [f"{there.files[kind]:,} {words}" for kind, words in _WORDS.items() if there.files[kind]]
    if there.sidecars:
        counts.append(f"{len(there.sidecars):,} captions in .txt beside them")
    if there.caption_lists:
        counts.append(f"{len(there.caption_lists):,} captions.jsonl")
    return [", ".join(counts)] if counts else []


def _of_containers(there: There) -> list[str]:
    lines = []
    for kind, what in (
        ("webdataset", "tars"),
        ("parquet", "tables of media"),
        ("urls", "lists of URLs"),
        ("text", "tables of documents"),
        (None, "tars and tables that no source opens"),
    ):
        mine = [each for each in there.all_containers if each.kind == kind]
        if not mine:
            continue
        opened = [each for each in there.containers if each.kind == kind]
        holds = sum((each.holds for each in opened), Counter[str]())
        said = ", ".join(f"{holds[of]} {words}" for of, words in _OF_MEMBERS.items() if holds[of])
        num_looked, with_caption = sum(e.num_looked for e in opened), sum(e.num_captions for e in opened)
        if said and kind != "text":
            said += f", {with_caption} with a caption"
        about = f"; the first {num_looked} members of {len(opened)}: {said}" if said else ""
        lines.append(f"{len(mine):,} {what}{about}")
    return lines


def _will_do(there: There, sources: list[Fitted], root: str) -> list[str]:
    """By phase. Members of containers are not counted: that is what reading them is."""
    kinds = [each.kind for each in sources if each.is_on]
    at_least = "" if there.is_all else "at least "
    reads = []
    if "files" in kinds:
        reads.append(f"{at_least}{there.files['image'] + there.files['video']:,} files")
    for kind, words in (("webdataset", "tars"), ("parquet", "tables"), ("text", "tables of documents")):
        if kind in kinds:
            reads.append(f"{at_least}{sum(each.kind == kind for each in there.all_containers):,} {words}")
    if "urls" in kinds:
        reads.append(f"what {sum(each.kind == 'urls' for each in there.all_containers):,} lists of URLs name, by HTTP")
    has_media = any(kind != "text" for kind in kinds)
    lines = [f"curate: read {', '.join(reads)}; measure each medium, reject by the rules, find equal ones"]
    if has_media:
        is_said = there.sidecars or there.caption_lists or any(each.num_captions for each in there.containers)
        captions = (
            "take the captions that came with the media" if is_said else "none came with the media, none are made"
        )
        lines.append(f"caption: {captions}; the config shows how a model writes them")
        lines.append("tokenize: code what is kept with the built-in tokenizer, which needs no download")
    lines.append("train: a small model on this machine, two passes over the tokens")
    lines.append(f"and write only below {root}; your files stay where they are, and as they are")
    if off := sorted({each.kind for each in sources if not each.is_on}):
        lines.append(f"Sources left as comments: {', '.join(off)}; see the config")
    return lines


def _size(num_bytes: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.1f} {unit}"
    return f"{num_bytes} bytes"


def _typed(path: Path) -> str:
    """As one would type it here."""
    here = Path.cwd()
    text = str(path.relative_to(here) if path.is_relative_to(here) else path)
    return f"'{text}'" if " " in text else text
