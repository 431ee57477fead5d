"""Score media by a model that embeds pictures: aesthetic, likeness to the caption, watermark, not safe for work.

The model sees the small views that the decode made (stages/image/views.py), in batches across rows, on a GPU where
there is one. Without a model nothing is scored and nothing is invented: the columns stay null, and the plan says so.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from tokenmill.stages.image.views import stack_views
from tokenmill.stages.select.expensive import add_scored
from tokenmill.stages.table.columns import MEDIA
from tokenmill.stages.table.rows import pick, replace, values_of
from tokenmill.storage.identity import Config, content_id, fingerprint_of

_HEADS = {"aesthetic": False, "watermark": True, "nsfw": True}  # whether its score is a share


class ClipConfig(Config):
    """Which model, and which of its scores."""

    model: str | None = Field(
        default=None,
        min_length=1,
        description="Null: off. An OpenCLIP `ViT-L-14/openai`, a hub name or a folder; another than the heads' own "
        "model gives scores without meaning.",
    )
    aesthetic_head: str | None = Field(default=None, description="LAION's linear head as safetensors; null: no score.")
    watermark_head: str | None = Field(default=None, description="A linear head as safetensors; null: no score.")
    nsfw_head: str | None = Field(default=None, description="A linear head as safetensors; null: no score.")
    similarity: bool = Field(default=True, description="Score the likeness of picture and source caption.")
    store_embedding: bool = Field(default=False, description="True stores 4 bytes a dimension for each medium.")
    view_px: int = Field(default=224, gt=0, description="Side of the pictures that the model takes.")

    @model_validator(mode="after")
    def _model_is_given(self) -> "ClipConfig":
        heads = [name for name in _HEADS if getattr(self, f"{name}_head") is not None]
        if self.model is None and (heads or self.store_embedding):
            what = f"{heads[0]}_head" if heads else "store_embedding"
            raise ValueError(f"{what} needs curate.clip.model: a hub name or a folder of the model it was trained on")
        return self


def filled_columns(config: ClipConfig) -> set[str]:
    """The score columns that this config really fills."""
    if config.model is None:
        return set()
    names = {name for name in _HEADS if getattr(config, f"{name}_head") is not None}
    return (
        names | ({"similarity"} if config.similarity else set()) | ({"embedding"} if config.store_embedding else set())
    )


def clip_identity(config: ClipConfig) -> str:
    """Of the model's weights, the heads' files and what is scored, wherever the files lie."""
    from tokenmill.stages.embed.models import model_identity

    paths = [getattr(config, f"{name}_head") for name in _HEADS]
    digests = [None if path is None else content_id([Path(path).expanduser().read_bytes()]) for path in paths]
    model = None if config.model is None else model_identity(config.model)
    return fingerprint_of("clip", model, digests, config.similarity, config.store_embedding, config.view_px)


class ScoreClip:
    """Rows with `views` -> `aesthetic` (the least of a clip's views, Emu3 2.1), `similarity` (their mean), `watermark`,
    `nsfw` (the most), `embedding` (their mean, of length 1). `views` are dropped.

    Rejects nothing. Costs one forward pass per view. Raises ClipLoadError and HeadError when it is made.
    """

    reads = pa.schema([*pick(MEDIA, "kind", "source_caption", "scored"), pa.field("views", pa.large_binary())])
    writes = pick(MEDIA, "aesthetic", "similarity", "watermark", "nsfw", "embedding", "scored")
    drops = ("views",)
    rows = "same"

    def __init__(self, config: ClipConfig, full_name: str | None = None):
        self._config = config
        self._full_name = full_name or "clip"
        if config.model is None:
            return
        from tokenmill.stages.embed.linear_heads import Head
        from tokenmill.stages.embed.models import ClipLoadError, ClipModel
        from tokenmill.stages.tokenize.tokenize import device_of_worker

        self._model = ClipModel(config.model, device_of_worker())
        if self._model.size_px != config.view_px:
            raise ClipLoadError(f"{config.model} takes {self._model.size_px} px; set curate.clip.view_px to that")
        paths = {name: getattr(config, f"{name}_head") for name in _HEADS}
        self._heads = {
            name: Head(path, self._model.dim, _HEADS[name]) for name, path in paths.items() if path is not None
        }

    def __call__(self, table: pa.Table) -> pa.Table:
        values = values_of(table, self.writes)
        if self._config.model is not None:
            views, owners = stack_views(table["views"], self._config.view_px)
            if len(views):
                self._score(values, self._model.embed_images(views), owners, table["source_caption"].to_pylist())
        return replace(table, self.writes, values, self.drops)

    def _score(
        self, values: dict[str, list], embedded: np.ndarray, owners: np.ndarray, captions: list[str | None]
    ) -> None:
        rows = np.unique(owners)
        scores = {name: head(embedded) for name, head in self._heads.items()}
        wanted = [row for row in rows if captions[row]] if self._config.similarity else []
        texts = self._model.embed_texts([captions[row] or "" for row in wanted]) if wanted else np.empty((0, 1))
        text_of = dict(zip(wanted, texts, strict=True))
        for row in rows:
            mine = owners == row
            for name, column in scores.items():
                values[name][row] = float(column[mine].min() if name == "aesthetic" else column[mine].max())
            if row in text_of:
                values["similarity"][row] = float((embedded[mine] @ text_of[row]).mean())
            if self._config.store_embedding:
                mean = embedded[mine].mean(axis=0)
                values["embedding"][row] = (mean / np.linalg.norm(mean)).tolist()
            values["scored"][row] = add_scored(values["scored"][row], self._full_name)
