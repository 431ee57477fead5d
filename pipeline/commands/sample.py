"""`tokenmill sample`: what the command line asks of a trained model -> calls of it, files and lines."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from tokenmill.pipeline.commands import completion
from tokenmill.pipeline.commands.options import AsJson, ConfigPath, Sets, console, load

if TYPE_CHECKING:
    from tokenmill.pipeline.reports.media_file import Medium
    from tokenmill.pipeline.reports.samples import Sample
    from tokenmill.pipeline.reports.trained import TrainedModel


def sample(
    config: ConfigPath,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", help="What to draw; repeatable. With --continue: what it shows.")
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option("--size", help="In pixels, 96x64, or an aspect, 3:2; repeatable. Default: the config's grid."),
    ] = None,
    video: Annotated[float | None, typer.Option("--video", help="Draw clips of so many seconds.", min=0)] = None,
    continued: Annotated[
        list[Path] | None, typer.Option("--continue", help="A video to continue by --video seconds; repeatable.")
    ] = None,
    caption: Annotated[
        list[Path] | None, typer.Option("--caption", help="A picture or video to describe; repeatable.")
    ] = None,
    ask: Annotated[list[str] | None, typer.Option("--ask", help="A question; repeatable.")] = None,
    of: Annotated[
        list[Path] | None, typer.Option("--of", help="A picture or video that the questions are about; repeatable.")
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option("--text", help="The beginning of a text to go on with; repeatable.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="A .png or .mp4 with all, or a folder. Default: sample.png, for clips sample.mp4."),
    ] = None,
    seed: Annotated[
        list[int] | None, typer.Option("--seed", help="Repeatable; everything is made with each. Default: 0.")
    ] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", help="For sample.top_k.")] = None,
    top_p: Annotated[float | None, typer.Option("--top-p", help="For sample.top_p.")] = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", help="For sample.temperature; of words sample.text_temperature.")
    ] = None,
    guidance: Annotated[float | None, typer.Option("--guidance", help="For sample.guidance.")] = None,
    stage: Annotated[
        str | None,
        typer.Option(
            "--stage",
            help="Of train.stages: the newest model of this one. Default: the last.",
            autocompletion=completion.stages,
        ),
    ] = None,
    as_json: AsJson = False,
    sets: Sets = None,
) -> None:
    """Draw pictures or clips, continue clips, describe, answer and write with the trained model."""
    given = {"--prompt": prompt, "--continue": continued, "--caption": caption, "--ask": ask, "--text": text}
    kinds = [name for name, values in given.items() if values and (name != "--prompt" or not continued)]
    if len(kinds) != 1:
        said = " and ".join(kinds) or "nothing"
        raise typer.BadParameter(f"give one of {', '.join(given)}; {said} was given")
    kind = kinds[0]
    draws = kind in ("--prompt", "--continue")
    for name, value, fits in (
        ("--of", of, kind == "--ask"),
        ("--size", size, kind == "--prompt"),
        ("--video", video, draws),
        ("--out", out, draws),
        ("--guidance", guidance, draws),
    ):
        if value is not None and not fits:
            raise typer.BadParameter(f"{name} does not go with {kind}")
    if continued and video is None:
        raise typer.BadParameter("--continue needs --video: how many seconds more")
    if continued and prompt and len(prompt) not in (1, len(continued)):
        raise typer.BadParameter(f"{len(continued)} videos and {len(prompt)} prompts; give one for all, or one each")
    heat = "temperature" if draws else "text_temperature"
    over = {"top_k": top_k, "top_p": top_p, heat: temperature, "guidance": guidance}
    changed = [f"sample.{name}={value}" for name, value in over.items() if value is not None]
    changed += [f"train.only=[{stage}]"] if stage else []
    loaded = load(config, [*(sets or []), *changed])

    from tokenmill.pipeline.reports.media_file import read_medium
    from tokenmill.pipeline.reports.samples import check_out
    from tokenmill.pipeline.reports.trained import TrainedModel

    is_clip = video is not None
    out = out or Path("sample.mp4" if is_clip else "sample.png")
    if draws:
        check_out(out, is_clip)
    with _told(as_json) as told:
        model = TrainedModel(loaded, told)

        def read(paths: list[Path] | None) -> "list[Medium]":
            return [read_medium(path, loaded.tokenize.frames, model.factor) for path in paths or []]

        seeds, made, words = seed or [0], list["Sample"](), list[dict]()
        if draws:
            if continued:
                made = _continue(model, continued, read(continued), prompt, video or 0, seeds)
            else:
                made = _draw(model, prompt or [], size, video, seeds)
        elif kind == "--caption":
            words = _describe(model, caption or [], read(caption), seeds)
        elif kind == "--ask":
            words = _answer(model, ask or [], of or [], read(of), seeds)
        else:
            words = _write(model, text or [], seeds)
    if draws:
        _keep(made, len(seeds), model.fps, out, as_json)
    elif as_json:
        print(json.dumps(words, indent=1, ensure_ascii=False))
    else:
        _say(words, len(seeds) > 1)


@contextmanager
def _told(as_json: bool) -> "Iterator":
    """What hears of tokens done: a bar, or a line every few seconds."""
    from tokenmill.pipeline.reports.terminal import Meter, PhaseReport

    place = Console(stderr=True) if as_json else console
    with Meter(place, PhaseReport("sample"), 0, "tokens") as meter:

        def told(done: int, total: int) -> None:
            meter.total = total
            meter.at(done, "")

        yield told


def _draw(
    model: "TrainedModel", prompts: list[str], sizes: list[str] | None, seconds: float | None, seeds: list[int]
) -> "list[Sample]":
    """One row for each prompt and size, one column for each seed."""
    from tokenmill.pipeline.reports.samples import Sample

    chosen = [model.size_of(size) for size in sizes] if sizes else [None]
    asked = [(prompt, size, seed) for prompt in prompts for size in chosen for seed in seeds]
    texts, seeds_each = [prompt for prompt, _, _ in asked], [seed for _, _, seed in asked]
    wanted = [size for _, size, _ in asked if size is not None] or None
    if seconds is None:
        made = model.draw(texts, seeds_each, wanted)
    else:
        made = model.draw_clips(texts, seconds, seeds_each, wanted)
    return [
        Sample(pixels, {"prompt": prompt, "seed": seed}) for pixels, (prompt, _, seed) in zip(made, asked, strict=True)
    ]


def _continue(
    model: "TrainedModel",
    paths: list[Path],
    clips: "list[Medium]",
    prompts: list[str] | None,
    seconds: float,
    seeds: list[int],
) -> "list[Sample]":
    from tokenmill.pipeline.reports.samples import Sample

    captions = prompts or [""]
    captions = captions * len(paths) if len(captions) == 1 else captions
    asked = [(*each, seed) for each in zip(paths, clips, captions, strict=True) for seed in seeds]
    _, given, texts, seeds_each = zip(*asked, strict=True)
    made = model.go_on(given, seconds, texts, seeds_each)
    return [
        Sample(pixels, {"file": str(path), "prompt": text, "seed": seed, "num_given": len(clip.frames)})
        for pixels, (path, clip, text, seed) in zip(made, asked, strict=True)
    ]


def _describe(model: "TrainedModel", paths: list[Path], media: "list[Medium]", seeds: list[int]) -> list[dict]:
    asked = [(path, medium, seed) for path, medium in zip(paths, media, strict=True) for seed in seeds]
    texts = model.caption([medium for _, medium, _ in asked], [seed for _, _, seed in asked])
    return [
        {"file": str(path), "seed": seed, "caption": said} for (path, _, seed), said in zip(asked, texts, strict=True)
    ]


def _answer(
    model: "TrainedModel", questions: list[str], paths: list[Path], media: "list[Medium]", seeds: list[int]
) -> list[dict]:
    seen: list[tuple[Path | None, Medium | None]] = [*zip(paths, media, strict=True)] or [(None, None)]
    asked = [(path, medium, question, seed) for path, medium in seen for question in questions for seed in seeds]
    texts = model.answer([each[2] for each in asked], [each[1] for each in asked], [each[3] for each in asked])
    return [
        ({} if path is None else {"file": str(path)}) | {"question": question, "seed": seed, "answer": said}
        for (path, _, question, seed), said in zip(asked, texts, strict=True)
    ]


def _write(model: "TrainedModel", beginnings: list[str], seeds: list[int]) -> list[dict]:
    asked = [(beginning, seed) for beginning in beginnings for seed in seeds]
    texts = model.write([beginning for beginning, _ in asked], [seed for _, seed in asked])
    return [{"text": begun, "seed": seed, "more": more} for (begun, seed), more in zip(asked, texts, strict=True)]


def _keep(made: "list[Sample]", columns: int, fps: float, out: Path, as_json: bool) -> None:
    from tokenmill.pipeline.reports.samples import write_samples

    paths = write_samples(made, columns, fps, out)
    if as_json:
        print(
            json.dumps([{"out": str(path)} | each.as_dict() for path, each in zip(paths, made, strict=True)], indent=1)
        )
        return
    sizes = sorted({f"{each.pixels.shape[-2]}x{each.pixels.shape[-3]}" for each in made})
    what = "clips" if made[0].is_clip else "pictures"
    length = f", {len(made[0].pixels) / fps:.3g} s at {fps:g} fps" if made[0].is_clip else ""
    count = f"1 {what[:-1]}" if len(made) == 1 else f"{len(made)} {what}"
    console.print(f"{count} of {', '.join(sizes)} px{length} in {out}", highlight=False)


def _say(said: list[dict], with_seed: bool) -> None:
    from tokenmill.pipeline.reports.terminal import shown

    for each in said:
        *before, last = (name for name in each if name != "seed")
        seed = f" (seed {each['seed']})" if with_seed else ""
        begun = " ".join(each[name] for name in before)
        mark = "" if last == "more" else ": "
        console.print(f"{shown(begun)}{seed}{mark}{shown(each[last], 2000)}", highlight=False, soft_wrap=True)
