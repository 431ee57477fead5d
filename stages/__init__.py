"""One verb per file: each stage is a class that turns one Arrow table of media into the next, with or without Ray.

Rooms in the order that a medium passes them: `table/` (what a stage is), `read/` and `fetch/`, `image/`, `video/`,
`embed/`, `select/`, then captions in `caption/` and codes in `tokenize/`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenmill.stages.caption.caption import Caption as Caption
    from tokenmill.stages.caption.captioners.config import (
        CaptionConfig as CaptionConfig,
        CaptionerConfig as CaptionerConfig,
        CaptionError as CaptionError,
        check_reachable as check_reachable,
        model_identity as model_identity,
    )
    from tokenmill.stages.caption.captioners.prompts import Prompt as Prompt, load_prompt as load_prompt
    from tokenmill.stages.caption.journal import (
        answers_of as answers_of,
        clear_all_answers as clear_all_answers,
        clear_answers as clear_answers,
        last_answer_s as last_answer_s,
    )
    from tokenmill.stages.caption.texts.choose import TO_CHOOSE as TO_CHOOSE, choose_captions as choose_captions
    from tokenmill.stages.caption.texts.text import inputs_id as inputs_id, tidy as tidy
    from tokenmill.stages.caption.texts.verdicts import (
        JudgeCaptions as JudgeCaptions,
        columns_judged as columns_judged,
        judge_captions as judge_captions,
    )
    from tokenmill.stages.embed.likeness import ScoreLikeness as ScoreLikeness
    from tokenmill.stages.embed.score_clip import (
        ClipConfig as ClipConfig,
        ScoreClip as ScoreClip,
        clip_identity as clip_identity,
        filled_columns as filled_columns,
    )
    from tokenmill.stages.fetch.config import FetchConfig as FetchConfig, FetchPace as FetchPace
    from tokenmill.stages.image.pixels import Picture as Picture
    from tokenmill.stages.image.score import ScoreImages as ScoreImages, ScoreImagesConfig as ScoreImagesConfig
    from tokenmill.stages.image.text_area import TextConfig as TextConfig
    from tokenmill.stages.image.views import make_view as make_view
    from tokenmill.stages.read.formats import HEAD_BYTES as HEAD_BYTES, sniff as sniff
    from tokenmill.stages.read.media_bytes import Places as Places
    from tokenmill.stages.read.read import Read as Read, ReadConfig as ReadConfig
    from tokenmill.stages.select.decide import (
        RULE as RULE,
        Decide as Decide,
        DecideConfig as DecideConfig,
        chosen as chosen,
        columns_chosen_by as columns_chosen_by,
    )
    from tokenmill.stages.select.duplicates import KEPT as KEPT, DuplicatesConfig as DuplicatesConfig
    from tokenmill.stages.select.expensive import Lazy as Lazy, states as states
    from tokenmill.stages.select.rules import Measure as Measure, Rule as Rule
    from tokenmill.stages.select.votes import caption_votes as caption_votes, media_votes as media_votes
    from tokenmill.stages.table.chain import StageSpec as StageSpec
    from tokenmill.stages.table.columns import (
        KNOWN as KNOWN,
        MEDIA as MEDIA,
        PLACES as PLACES,
        TO_CAPTION as TO_CAPTION,
    )
    from tokenmill.stages.table.reasons import REASONS as REASONS
    from tokenmill.stages.table.rows import RowError as RowError, words as words
    from tokenmill.stages.tokenize.frames import LoadFramesConfig as LoadFramesConfig, bucket as bucket
    from tokenmill.stages.tokenize.load_frames import LoadFrames as LoadFrames
    from tokenmill.stages.tokenize.tokenize import Tokenize as Tokenize, TokenizeConfig as TokenizeConfig
    from tokenmill.stages.video.decode import BrokenVideoError as BrokenVideoError, Video as Video
    from tokenmill.stages.video.frames import frames_at as frames_at
    from tokenmill.stages.video.split import SplitVideos as SplitVideos, SplitVideosConfig as SplitVideosConfig

# The stages and their configs, and what opens one medium, for the conductor; each is imported when it is asked for.
_EXPORTED = {
    "read.read": "Read ReadConfig",
    "read.formats": "HEAD_BYTES sniff",
    "read.media_bytes": "Places",
    "fetch.config": "FetchConfig FetchPace",
    "image.pixels": "Picture",
    "image.score": "ScoreImages ScoreImagesConfig",
    "image.text_area": "TextConfig",
    "image.views": "make_view",
    "video.decode": "BrokenVideoError Video",
    "video.frames": "frames_at",
    "video.split": "SplitVideos SplitVideosConfig",
    "embed.likeness": "ScoreLikeness",
    "embed.score_clip": "ScoreClip ClipConfig clip_identity filled_columns",
    "select.decide": "RULE Decide DecideConfig chosen columns_chosen_by",
    "select.expensive": "Lazy states",
    "select.rules": "Measure Rule",
    "select.duplicates": "KEPT DuplicatesConfig",
    "select.votes": "caption_votes media_votes",
    "caption.caption": "Caption",
    "caption.journal": "answers_of clear_all_answers clear_answers last_answer_s",
    "caption.texts.choose": "TO_CHOOSE choose_captions",
    "caption.texts.text": "inputs_id tidy",
    "caption.texts.verdicts": "JudgeCaptions columns_judged judge_captions",
    "caption.captioners.prompts": "Prompt load_prompt",
    "caption.captioners.config": "CaptionConfig CaptionerConfig CaptionError check_reachable model_identity",
    "tokenize.frames": "LoadFramesConfig bucket",
    "tokenize.load_frames": "LoadFrames",
    "tokenize.tokenize": "Tokenize TokenizeConfig",
    "table.chain": "StageSpec",
    "table.columns": "KNOWN MEDIA PLACES TO_CAPTION",
    "table.reasons": "REASONS",
    "table.rows": "RowError words",
}


def __getattr__(name: str) -> Any:
    for module, names in _EXPORTED.items():
        if name in names.split():
            return globals().setdefault(name, getattr(import_module(f"{__name__}.{module}"), name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
