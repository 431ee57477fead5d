"""What `tokenmill sample` makes of a model: files of each kind, words, equal for equal seeds, and clear refusals."""

import json
import re
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import tokenmill
from tokenmill.pipeline.commands.cli import app
from tokenmill.pipeline.reports.media_file import read_medium
from tokenmill.pipeline.reports.samples import Sample, write_samples
from tokenmill.pipeline.reports.trained import TrainedModel
from tokenmill.pipeline.reports.video_file import write_video
from tokenmill.storage.errors import UserError

FRAMES = np.random.default_rng(0).integers(0, 256, (10, 6, 6, 3), np.uint8).repeat(8, 1).repeat(12, 2)  # 72x48 px


def call(config: Path, *options: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["sample", str(config), *map(str, options)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("media")
    Image.fromarray(FRAMES[0]).save(folder / "still.png")
    write_video(folder / "clip.mp4", list(FRAMES), 12)
    (folder / "broken.png").write_bytes((folder / "still.png").read_bytes()[:90])
    (folder / "text.txt").write_text("nothing to see")
    return {path.stem: path for path in folder.iterdir()}


def test_a_grid_of_prompts_sizes_and_seeds(trained_config, tmp_path):
    """One row for each prompt and size, one column for each seed; the same again."""
    options = [
        "--prompt",
        "a circle",
        "--prompt",
        "a house",
        "--size",
        "64x64",
        "--size",
        "1:2",
        "--seed",
        1,
        "--seed",
        2,
    ]
    said = call(trained_config, *options, "--out", tmp_path / "a.png")
    assert "8 pictures of 48x88, 64x64 px" in said
    grid = Image.open(tmp_path / "a.png")
    assert grid.size == (2 * 64 + 2, 4 * 88 + 3 * 2)
    call(trained_config, *options, "--out", tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    call(trained_config, *options, "--out", tmp_path / "c.png", "--top-k", 3, "--top-p", 0.5, "--guidance", 1)
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "c.png").read_bytes()


def test_a_folder_says_what_was_asked(trained_config, tmp_path):
    out = tmp_path / "folder"
    told = json.loads(call(trained_config, "--prompt", "a circle", "--seed", 3, "--seed", 4, "--out", out, "--json"))
    lines = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert [(line["file"], line["seed"]) for line in lines] == [("0000.png", 3), ("0001.png", 4)]
    assert [each["out"] for each in told] == [str(out / line["file"]) for line in lines]
    assert all(Image.open(each["out"]).size == (each["width_px"], each["height_px"]) == (64, 64) for each in told)


def test_clips_as_mp4_and_as_strips(trained_config, tmp_path):
    options = ["--prompt", "a circle", "--video", 0.6, "--size", "48x32", "--seed", 1, "--seed", 2]
    assert "2 clips of 48x32 px, 0.667 s at 12 fps" in call(trained_config, *options, "--out", tmp_path / "a.mp4")
    with av.open(str(tmp_path / "a.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert container.streams.video[0].average_rate == 12
    assert len(frames) == 8 and frames[0].shape == (32, 2 * 48 + 2, 3)
    call(trained_config, *options, "--out", tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").size == (8 * 50 - 2, 2 * 34 - 2)


def test_a_clip_goes_on(trained_config, media, tmp_path):
    """From a file as tokenizing sees it: its frames, 8 of which fill groups, then as many as were asked for."""
    options = ["--continue", media["clip"], "--video", 0.3, "--out", tmp_path / "out", "--json"]
    (told,) = json.loads(call(trained_config, *options, "--prompt", "a circle"))
    assert (told["num_given"], told["num_frames"]) == (8, 12) and (told["width_px"], told["height_px"]) == (80, 56)
    config = tokenmill.load_config(trained_config)
    model = tokenmill.trained(config)
    clip = read_medium(media["clip"], config.tokenize.frames, model.factor)
    assert clip.frames.shape == (8, 56, 80, 3) and clip.fps == 12
    (made,) = model.go_on([clip], 0.3, ["a circle"], [0])
    shown = model._pixels.decode_clips(model._codes(clip)[None])[0]
    np.testing.assert_array_equal(made[:8], shown)
    assert made.shape == (12, 56, 80, 3)


def test_words_of_media_questions_and_beginnings(trained_config, media):
    told = json.loads(call(trained_config, "--caption", media["still"], "--caption", media["clip"], "--json"))
    assert [each["file"] for each in told] == [str(media["still"]), str(media["clip"])]
    assert all(each["caption"] for each in told)
    plain = call(trained_config, "--caption", media["still"])
    assert plain.startswith(f"{media['still']}: ".split("/")[0])
    asked = ["--ask", "what is it?", "--ask", "why?", "--of", media["still"], "--of", media["clip"], "--json"]
    told = json.loads(call(trained_config, *asked))
    assert [(each["file"], each["question"]) for each in told] == [
        (str(media[name]), question) for name in ("still", "clip") for question in ("what is it?", "why?")
    ]
    (told,) = json.loads(call(trained_config, "--ask", "why?", "--json"))
    assert "file" not in told and told["answer"]
    hot = ["--text", "a red", "--text", "", "--temperature", 3, "--json", "--seed", 1, "--seed", 2]
    told = json.loads(call(trained_config, *hot))
    assert [(each["text"], each["seed"]) for each in told] == [("a red", 1), ("a red", 2), ("", 1), ("", 2)]
    assert len({each["more"] for each in told}) > 1 and told == json.loads(call(trained_config, *hot))


def test_progress_is_told_off_a_terminal_too(trained_config, tmp_path, monkeypatch):
    monkeypatch.setattr("tokenmill.pipeline.reports.terminal._PLAIN_EVERY_S", 0.0)
    said = call(trained_config, "--prompt", "a circle", "--out", tmp_path / "a.png")
    assert re.search(r"sample: 0/64 tokens\n +sample: 16/64 tokens", said) and "sample: 64/64 tokens" in said


REFUSED = [
    (["--prompt", "a", "--size", "50x64"], "multiples of 8 px, such as 48x64"),
    (["--prompt", "a", "--size", "large"], "give pixels as 96x64, or an aspect as 3:2"),
    (["--prompt", "a", "--size", "256x256"], "does not fit the model's context of 300"),
    (["--prompt", "a", "--out", "a.jpg"], "give a .png, a .mp4, or a folder"),
    (["--prompt", "a", "--out", "a.mp4"], "pictures do not move"),
    (["--prompt", "a", "--video", "0.01"], "give 0.33 s or more"),
    (["--prompt", "a", "--video", "1", "--stage", "stage1"], "trained on image, text, so it draws no clips"),
    (["--prompt", "a", "--stage", "stage3"], "no stage 'stage3'; there are stage1, stage2"),
    (["--prompt", "a", "--set", "root=/nowhere"], "no trained model of stage stage2 yet; run `tokenmill train CONFIG`"),
    (["--continue", "{still}", "--video", "1"], "a picture has no motion to continue"),
    (["--caption", "{broken}"], "broken.png: corrupt: "),
    (["--caption", "{text}"], "neither a picture nor a video"),
    (["--caption", "nowhere.png"], "nowhere.png: No such file"),
    (["--prompt", "a", "--top-p", "2"], "top_p"),
]


@pytest.mark.parametrize(
    ("options", "message"), REFUSED, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_what_cannot_be_made_is_one_message(trained_config, media, options, message):
    with pytest.raises(UserError, match=re.escape(message)):
        call(trained_config, *(option.format(**media) for option in options))


WRONG = [
    ([], "nothing was given"),
    (["--prompt", "a", "--text", "b"], "--prompt and --text was given"),
    (["--text", "a", "--size", "64x64"], "--size does not go with --text"),
    (["--caption", "a.png", "--out", "b.png"], "--out does not go with --caption"),
    (["--continue", "a.mp4"], "--continue needs --video"),
    (["--continue", "a.mp4", "--video", "1", "--prompt", "a", "--prompt", "b"], "one for all, or one each"),
]


@pytest.mark.parametrize(
    ("options", "message"), WRONG, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_a_wrong_command_line_says_what_is_wrong(trained_config, options, message):
    said = call(trained_config, *options, code=2)
    assert message in " ".join(re.sub("[│╭╮╰╯─]", " ", said).split())


def test_what_a_model_from_elsewhere_learned_is_not_asked(trained_config, media):
    """Its past is unknown: it may draw clips."""
    config = tokenmill.load_config(trained_config, ["train.only=[stage1]"])
    model = TrainedModel(config)
    stage = config.train.stages["stage1"]
    began = stage.model_copy(update={"model": stage.model.model_copy(update={"init_from": "BAAI/Emu3-Stage1"})})
    stages = config.train.stages | {"stage1": began}
    model._config = config.model_copy(update={"train": config.train.model_copy(update={"stages": stages})})
    assert model.draw_clips(["a"], 0.3)[0].shape == (4, 64, 64, 3)


def test_clips_of_several_sizes_play_side_by_side(tmp_path):
    """The last frame of a shorter one stays; odd sides get another line."""
    clips = [FRAMES[:4, :33], FRAMES[:8, :, :40]]
    write_samples([Sample(clip, {}) for clip in clips], 1, 23.976, tmp_path / "a.mp4")
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert float(container.streams.video[0].average_rate) == pytest.approx(23.976, abs=1e-3)
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 8 and frames[0].shape == (98, 72, 3)
    np.testing.assert_allclose(frames[3][:33].astype(int), frames[7][:33].astype(int), atol=40)
