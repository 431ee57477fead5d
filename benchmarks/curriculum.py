"""Emu3's curriculum on drawn scenes, in minutes: two stages of pre-training, then quality, understanding, preferences.

The corpus is a web in small: of 1,600 pictures two fifths are blurred and have the caption of another scene; 600 clips
show a shape that crosses the picture. Everything is judged exactly (pipeline/demo/judge.py), on scenes, clips and
questions that no training saw:

    quality         share of pictures wholly as their prompts say, before and after fine-tuning on the sharp ones
    preferences     two drawings of a prompt, one right and one wrong by the judge: margin of rewards of pairs held out,
                    and next-token loss of true pictures, before and after
    understanding   captions of unseen pictures wholly right, answers right to the letter
    continuation    the second half of unseen clips: PSNR against copying the last frame that was given

Configs are configs/emu3_*_small.yaml. Leaves `curriculum.png` beside the root.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import ImageFilter
from rich.console import Console
from rich.table import Table

from tokenmill import storage
from tokenmill.pipeline.catalog.models import newest
from tokenmill.pipeline.config import RunConfig, load
from tokenmill.pipeline.demo import scenes
from tokenmill.pipeline.demo.judge import judge
from tokenmill.pipeline.demo.questions import dialogues, questions
from tokenmill.pipeline.demo.scenes import Scene
from tokenmill.pipeline.preferences.drawings import draw_each
from tokenmill.pipeline.preferences.page import decoded
from tokenmill.pipeline.reports.media_file import read_medium
from tokenmill.pipeline.reports.sheet import Picture, SheetSection, contact_sheet
from tokenmill.pipeline.reports.video_file import write_video
from tokenmill.pipeline.run.runner import run_phases
from tokenmill.storage import cpu
from tokenmill.tokenizer.drawings import read_drawings
from tokenmill.tokenizer.vision.vision_tokenizer import VisionTokenizer
from tokenmill.training.config import LossWeights, ModelConfig, PreferenceConfig
from tokenmill.training.data.pairs import PairLoader, pair_index, pairs_of
from tokenmill.training.data.plan import make_plan
from tokenmill.training.model.model import PackLoss, build_model
from tokenmill.training.model.preference import PreferenceLoss
from tokenmill.training.sampling.choose import Choice
from tokenmill.training.sampling.media import Grid
from tokenmill.training.sampling.sampler import Sampler

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
NUM_IMAGES, NUM_CLIPS, NUM_FRAMES = 1_600, 600, 24
POOR = 0.4
NUM_JUDGED, NUM_PROMPTS = 48, 192  # unseen scenes: to judge by, and to draw for choices
NUM_UNSEEN_CLIPS = 24
EACH = 8
ON_CPU = torch.device("cpu")
CONSOLE = Console(width=120)


def write_corpus(folder: Path) -> tuple[list[Scene], list[dict]]:
    """Pictures, clips, captions, questions. Returns the scenes and clips that are in none of them."""
    rng = np.random.default_rng(1)
    train, unseen = scenes.split(0, NUM_IMAGES, NUM_JUDGED + NUM_PROMPTS)
    images, videos = folder / "images", folder / "videos"
    images.mkdir(parents=True)
    videos.mkdir()
    captions, spoken = [], []
    for number, scene in enumerate(train):
        name = f"scene_{number:04d}.png"
        picture, caption = scenes.draw(scene, 64, rng), scene.caption
        if rng.random() < POOR:
            picture = picture.filter(ImageFilter.GaussianBlur(1.5))
            caption = train[rng.integers(len(train))].caption
        picture.save(images / name)
        captions.append({"file": name, "caption": caption})
        spoken.append(dialogues(f"images/{name}", scene))
    (images / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in captions))
    (folder / ".dialogues.jsonl").write_text("".join(spoken))
    seen: set[tuple] = set()
    clips: list[dict] = []
    while len(clips) < NUM_CLIPS + NUM_UNSEEN_CLIPS:
        kinds = (scenes.SHAPES, scenes.COLOURS, scenes.MOTIONS)
        shape, colour, motion = (str(rng.choice(list(names))) for names in kinds)
        lane, background = int(rng.integers(6)), int(rng.integers(2))
        if (key := (shape, colour, motion, lane, background)) in seen:
            continue
        seen.add(key)
        frames = scenes.draw_motion(shape, colour, motion, scenes.BACKGROUNDS[background], NUM_FRAMES, lane)
        clips.append({"frames": frames, "caption": f"a {colour} {shape} moves {motion}"})
    for number, clip in enumerate(clips[:NUM_CLIPS]):
        path = videos / f"clip_{number:04d}.mp4"
        write_video(path, clip["frames"], scenes.FPS)
        path.with_suffix(".txt").write_text(clip["caption"] + "\n")
    return unseen, clips[NUM_CLIPS:]


def config_of(name: str, folder: Path, *sets: str) -> RunConfig:
    corpus = folder / "corpus"
    return load(CONFIGS / f"emu3_{name}_small.yaml", [
        f"root={folder / 'root'}", f"sources.0.uri={corpus}", f"sources.1.uri={corpus / 'images' / 'captions.jsonl'}",
        "curate.decide.image_rules.sharp=sharpness >= 0", "cluster.num_cpus=2", *sets,
    ])  # fmt: skip


def train(config: RunConfig, *stages: str) -> None:
    only = config.train.model_copy(update={"only": list(stages)})
    phases = ("curate", "caption", "tokenize", "train")
    run_phases(config.model_copy(update={"train": only}), phases, "run", CONSOLE)


def model_of(config: RunConfig, stage: str) -> str:
    found = newest(config.root, config.train, stage)
    assert found is not None, stage
    return found


def drawn(config: RunConfig, stage: str, judged: Sequence[Scene], seeds: int = 2) -> tuple[float, list[Picture]]:
    """Share of pictures wholly right, and the pictures."""
    how = config.sample
    sampler = Sampler.load(model_of(config, stage))
    asked = [(scene, seed) for scene in judged for seed in range(seeds)]
    choice = Choice(how.top_k, 1.0, how.temperature, how.guidance)
    prompts, numbers = [scene.caption for scene, _ in asked], [seed for _, seed in asked]
    codes = sampler.draw(prompts, Grid(how.grid_h, how.grid_w), choice, numbers)
    pictures = VisionTokenizer.load(config.tokenize.model).decode_images(np.stack(codes))
    verdicts = [judge(picture, scene).all_right for picture, (scene, _) in zip(pictures, asked, strict=True)]
    triples = zip(pictures, prompts, verdicts, strict=True)
    return float(np.mean(verdicts)), [Picture(picture, prompt, ok) for picture, prompt, ok in triples]


def understood(config: RunConfig, unseen: Sequence[Scene]) -> tuple[float, float]:
    """Shares of unseen pictures captioned wholly right, and of questions answered to the letter."""
    rng = np.random.default_rng(7)
    frames = np.stack([np.asarray(scenes.draw(scene, 64, rng).convert("RGB")) for scene in unseen])
    codes = VisionTokenizer.load(config.tokenize.model).encode_images(frames)
    said = Sampler.load(model_of(config, "read")).caption(list(codes))
    right = np.mean([text.strip() == scene.caption for text, scene in zip(said, unseen, strict=True)])
    pairs = list(zip(unseen, codes, strict=True))
    asked = [(question, answer, one) for scene, one in pairs for question, answer in questions(scene)]
    told = Sampler.load(model_of(config, "answer")).answer([each[0] for each in asked], [each[2] for each in asked])
    exact = np.mean([text.strip() == answer for text, (_, answer, _) in zip(told, asked, strict=True)])
    return float(right), float(exact)


def psnr_db(one: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(1e-9, np.mean((one.astype(float) - other.astype(float)) ** 2))))


def as_tokenized(config: RunConfig, clips: Sequence[dict], folder: Path) -> np.ndarray:
    """Clips as files, read as the corpus was: at the size and rate that training saw, uint8 (N, T, H, W, 3)."""
    folder.mkdir()
    frames = []
    for number, clip in enumerate(clips):
        path = folder / f"{number:04d}.mp4"
        write_video(path, clip["frames"], scenes.FPS)
        frames.append(read_medium(path, config.tokenize.frames, 8).frames)
    return np.stack(frames)


def continued(config: RunConfig, clips: Sequence[dict], folder: Path) -> tuple[float, float, float, list[Picture]]:
    """Share of clips where going on beats copying the last frame, mean PSNR of both, and strips."""
    tokenizer = VisionTokenizer.load(config.tokenize.model)
    frames = as_tokenized(config, clips, folder / "unseen")
    codes = tokenizer.encode_clips(frames)
    half = codes.shape[1] // 2
    sampler = Sampler.load(model_of(config, "stage2"))
    captions = [clip["caption"] for clip in clips]
    greedy = Choice(temperature=0, guidance=1)
    whole = sampler.go_on(list(codes[:, :half]), captions, codes.shape[1] - half, float(scenes.FPS), greedy)
    made = tokenizer.decode_clips(np.stack(whole))
    start = half * 4
    ours = [psnr_db(one[start:], true[start:]) for one, true in zip(made, frames, strict=True)]
    copied = [psnr_db(np.repeat(true[start - 1 : start], len(true) - start, 0), true[start:]) for true in frames]
    strips = [
        Picture(np.concatenate([np.concatenate(list(each[::4]), axis=1) for each in (true, one)]), caption, a > b)
        for true, one, caption, a, b in list(zip(frames, made, captions, ours, copied, strict=True))[:6]
    ]
    return float(np.mean(np.array(ours) > copied)), float(np.mean(ours)), float(np.mean(copied)), strips


def vote(config: RunConfig, folder: Path, prompts: Sequence[Scene]) -> tuple[Path, Path]:
    """Draw each prompt, and choose by the judge a right and a wrong one; votes to learn from, and votes held out."""
    by_prompt = {scene.caption: scene for scene in prompts}
    warm = config.model_copy(update={"sample": config.sample.model_copy(update={"temperature": 1.0, "guidance": 1.0})})
    only = warm.train.model_copy(update={"only": ["qft"]})
    warm = warm.model_copy(update={"train": only})
    draw_each(warm, list(by_prompt), EACH, 100, str(folder / "drawings"), CONSOLE)
    table = read_drawings(str(folder / "drawings"))
    judged: dict[str, dict[bool, str]] = {}
    columns = (table["sample_id"].to_pylist(), table["prompt"].to_pylist(), decoded(warm, table))
    for name, prompt, picture in zip(*columns, strict=True):
        judged.setdefault(prompt, {}).setdefault(judge(picture, by_prompt[prompt]).all_right, name)
    mixed = [each for each in judged.values() if len(each) == 2]
    votes = [{"chosen": each[True], "rejected": each[False], "by": "judge"} for each in mixed]
    cut = len(votes) * 2 // 3
    paths = folder / "votes.jsonl", folder / "votes-held-out.jsonl"
    for path, part in zip(paths, (votes[:cut], votes[cut:]), strict=True):
        path.write_text("".join(json.dumps(line) + "\n" for line in part))
    CONSOLE.print(f"{len(votes)} of {len(judged)} prompts have right and wrong drawings; {len(votes) - cut} held out")
    return paths


def preferred(
    config: RunConfig, folder: Path, held_out: Path, judged: Sequence[Scene]
) -> dict[str, tuple[float, float]]:
    """Before and after the stage of preferences, on pairs held out and true pictures: margin of rewards, share of pairs
    with the chosen one likelier, next-token loss of true pictures.
    """
    table, _ = pairs_of(read_drawings(str(folder / "drawings")), [str(held_out)])
    stage = config.train.stages["dpo"]
    frames = np.stack([np.asarray(scenes.draw(scene, 64, np.random.default_rng(9)).convert("RGB")) for scene in judged])
    codes = VisionTokenizer.load(config.tokenize.model).encode_images(frames)
    found = []
    for name in ("qft", "dpo"):
        uri = model_of(config, name)
        sampler = Sampler.load(uri)
        index, _ = pair_index(table, sampler.layout, stage.data)
        plan = make_plan(index, stage.data, 0, None, 1)
        loader = PairLoader(plan, index, table, sampler.layout, stage.data.pack_tokens)
        part = PreferenceConfig(samples="-", votes=["-"])
        given = ModelConfig(init_from=storage.join(uri, "model"), dropout=0.0)
        lm = build_model(given, sampler.layout.vocabulary, 512, 0)
        model = PreferenceLoss(lm, part).eval()
        values = np.zeros((len(table), 2))
        with torch.no_grad():
            for numbers, pack in loader.all_pairs():
                *inputs, _ = model.inputs(pack, ON_CPU)
                values[numbers] = model(*inputs, None).numpy().reshape(-1, 2)
            plain = PackLoss(lm, LossWeights(0.0, 1.0)).eval()
            captions = [sampler.layout.caption_ids(scene.caption) for scene in judged]
            parts = [sampler.layout.build(*each) for each in zip(codes, captions, strict=True)]
            sums = [plain(*plain.inputs(loader.packed([each]), ON_CPU))[1] for each in parts]
        image = torch.stack(sums).sum(0)[:, 1]  # Kind.IMAGE
        found.append((values, float(image[0] / image[1])))
    (before, ntp_before), (after, ntp_after) = found
    margins = stage.preferences.beta * ((after - before)[:, 0] - (after - before)[:, 1])  # type: ignore[union-attr]
    return {
        "margin": (0.0, float(margins.mean())),
        "right": (float((before[:, 0] > before[:, 1]).mean()), float((after[:, 0] > after[:, 1]).mean())),
        "ntp": (ntp_before, ntp_after),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of corpus, root and pictures; emptied by nobody")
    folder = parser.parse_args().folder
    start = time.monotonic()
    unseen, clips = write_corpus(folder / "corpus")
    judged, prompts = unseen[:NUM_JUDGED], unseen[NUM_JUDGED:]
    tune = config_of("sft", folder, f"train.stages.answer.data.dialogues={folder / 'corpus' / '.dialogues.jsonl'}")
    train(tune, "stage1", "stage2", "read", "answer")
    quality = config_of("qft", folder)
    train(quality, "qft")
    votes, held_out = vote(quality, folder, prompts)
    choose = config_of(
        "dpo", folder, f"train.stages.dpo.preferences.samples={folder / 'drawings'}",
        f"train.stages.dpo.preferences.votes=[{votes}]",
    )  # fmt: skip
    train(choose, "dpo")

    table = Table(title=f"Curriculum, {cpu.describe()}", title_justify="left")
    for column in ("what", "before", "after"):
        table.add_column(column, justify="left" if column == "what" else "right")
    shares = {stage: drawn(choose, stage, judged) for stage in ("stage2", "qft", "dpo")}
    table.add_row("pictures wholly right, stage2 -> qft", *(f"{shares[stage][0]:.1%}" for stage in ("stage2", "qft")))
    table.add_row("pictures wholly right, qft -> dpo", *(f"{shares[stage][0]:.1%}" for stage in ("qft", "dpo")))
    after = preferred(choose, folder, held_out, judged)
    table.add_row("margin of rewards, pairs held out", *(f"{value:.3f}" for value in after["margin"]))
    table.add_row("chosen likelier than rejected", *(f"{value:.1%}" for value in after["right"]))
    table.add_row("next-token loss of true pictures", *(f"{value:.4f}" for value in after["ntp"]))
    captions, answers = understood(tune, judged)
    table.add_row("captions of unseen pictures wholly right", "", f"{captions:.1%}")
    table.add_row("answers right to the letter", "", f"{answers:.1%}")
    beats, ours, copied, strips = continued(tune, clips, folder)
    table.add_row("clips gone on better than the last frame copied", "", f"{beats:.1%}")
    table.add_row("their PSNR, dB: copied -> gone on", f"{copied:.1f}", f"{ours:.1f}")
    CONSOLE.print(table)
    sections = [
        SheetSection(f"After {name}: {share:.1%} right", shown[:24:2]) for name, (share, shown) in shares.items()
    ]
    sections.append(SheetSection("Clips: true above, gone on from the middle below", strips))
    contact_sheet(sections, folder / "curriculum.png")
    CONSOLE.print(f"{folder / 'curriculum.png'}; {time.monotonic() - start:.0f} s in all")


if __name__ == "__main__":
    main()
