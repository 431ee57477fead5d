"""How like its picture a caption is: the cosine of the caption's CLIP embedding and the medium's stored one. Opens no
medium, so captions of years are scored without reading a file.
"""

import numpy as np
import pyarrow as pa

from tokenmill.stages.embed.score_clip import ClipConfig
from tokenmill.stages.table.columns import CAPTIONS, MEDIA
from tokenmill.stages.table.rows import pick, replace


class ScoreLikeness:
    """Captions with the `embedding` of their media, float32 of length 1 -> `likeness`, about 0.1 (another thing) to
    0.4, and `likeness_by`, the model that said so. CLIP reads 77 tokens: of a longer caption the beginning counts.

    Costs one pass of the text tower. Raises ClipLoadError when it is made.
    """

    reads = pa.schema([CAPTIONS.field("caption"), MEDIA.field("embedding")])
    writes = pick(CAPTIONS, "likeness", "likeness_by")
    drops = ("embedding",)
    rows = "same"

    def __init__(self, config: ClipConfig, full_name: str):
        from tokenmill.stages.embed.models import ClipModel
        from tokenmill.stages.tokenize.tokenize import device_of_worker

        assert config.model is not None
        self._name, self._model = full_name, ClipModel(config.model, device_of_worker())

    def __call__(self, table: pa.Table) -> pa.Table:
        texts = [text or "" for text in table["caption"].to_pylist()]
        likeness: list[float] = []
        if texts:
            said = self._model.embed_texts(texts)
            seen = np.array(table["embedding"].to_pylist(), np.float32)
            likeness = (said * seen).sum(axis=1).astype(float).tolist()
        return replace(table, self.writes, {"likeness": likeness, "likeness_by": [self._name] * len(texts)}, self.drops)
