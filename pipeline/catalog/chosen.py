"""Which of its captions training reads of each medium."""

import pyarrow as pa
import pyarrow.compute as pc

from tokenmill import stages
from tokenmill.pipeline.catalog.tables import Catalog


def chosen_captions(catalog: Catalog, config: stages.CaptionConfig, use: tuple[str, ...] | None = None) -> pa.Table:
    """media_id, caption and captioner of each medium of which a caption counts, by `use`; null: the config's.

    Raises UserError for votes that are not to be read.
    """
    if use is not None:
        config = config.model_copy(update={"use": use})
    documents = catalog.media.scan(["media_id"], pc.field("kind") == "text")["media_id"].unique()
    rows = catalog.captions.scan(stages.TO_CHOOSE, pc.field("captioner").isin(["source", *config.use]))
    return stages.choose_captions(rows, config, documents, stages.caption_votes(config.votes))
