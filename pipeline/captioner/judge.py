"""What a trained captioner writes of held-out media, beside the true captions: by the engine that will use it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from tokenmill import storage
from tokenmill.pipeline.captioner.job import Job
from tokenmill.stages import CaptionerConfig, make_view
from tokenmill.stages.caption.engines.engine import Answer, Request
from tokenmill.stages.caption.engines.transformers_engine import TransformersEngine
from tokenmill.stages.embed.models import ClipModel
from tokenmill.training.captioner.config import CaptionerTrainConfig, CaptionerTrainResources
from tokenmill.training.captioner.pairs import Example, Pairs
from tokenmill.training.captioner.scores import cider, same


@dataclass
class Verdict:
    """Held-out pairs, what was written of each (null: nothing), and figures of all."""

    examples: list[Example]
    written: list[str | None]
    right: list[bool]
    figures: dict[str, float | int]
    notes: list[str] = field(default_factory=list)


def asked(config: CaptionerTrainConfig, model: str, batch: int, reads: Sequence[str] = ()) -> CaptionerConfig:
    """The captioner that this training makes, as `caption.captioners` takes it; `reads`: whose captions it joins."""
    names = ("prompt", "video_prompt", "serves", "max_pixels", "num_frames", "max_frame_pixels")
    how = {name: getattr(config.ask, name) for name in names} | {"reads": reads}
    sampling = {"max_tokens": config.ask.max_tokens}
    whole = {"engine": "transformers", "model": model, "sampling": sampling, "resources": {"batch": batch}}
    return CaptionerConfig.model_validate(how | whole)


def judge(
    job: Job,
    resources: CaptionerTrainResources,
    held_out: Pairs,
    model_uri: str,
    clip: str | None = None,
    device: str = "cpu",
) -> Verdict:
    """Figures of at most `judge_media` held-out media: `exact`, the share of captions that are the true one; `cider`,
    CIDEr-D, 0..10; with the CLIP model named by `clip` also `clip_written` and `clip_true`, the mean cosine of picture
    and caption.
    """
    numbers = range(min(len(held_out), resources.judge_media))
    examples = [example for number in numbers if (example := held_out.load(number)) is not None]
    with storage.local_folder(model_uri) as folder:
        engine = TransformersEngine(asked(job.config, str(folder), resources.judge_batch, job.names))
        requests = [(i, Request(example.pictures, example.prompt)) for i, example in enumerate(examples)]
        answers = dict(engine.answers(iter(requests)))
    found = [answers[i] for i in range(len(examples))]
    written = [answer.text if isinstance(answer, Answer) else None for answer in found]
    true = [example.caption for example in examples]
    right = same(written, true)
    figures: dict[str, float | int] = {"judged": len(examples)}
    if examples:
        figures |= {"exact": float(np.mean(right)), "cider": float(np.mean(cider(written, true)))}
        if clip is not None and not job.names:
            figures |= _likeness(ClipModel(clip, device), examples, written)
    return Verdict(examples, written, right, figures)


def _likeness(model: ClipModel, examples: list[Example], written: list[str | None]) -> dict[str, float]:
    """Mean cosine of pictures and captions; of a clip its middle frame is seen."""
    side = model.size_px
    views = [make_view(example.pictures[len(example.pictures) // 2], side) for example in examples]
    seen = model.embed_images(np.stack([np.frombuffer(view, np.uint8).reshape(side, side, 3) for view in views]))
    said = model.embed_texts([text or "" for text in written])
    true = model.embed_texts([example.caption for example in examples])
    return {"clip_written": float((seen * said).sum(1).mean()), "clip_true": float((seen * true).sum(1).mean())}
