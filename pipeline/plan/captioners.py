"""The plan of one captioner: the media that lack a row of it, with all that it is to be shown of them."""

import json
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from tokenmill import stages
from tokenmill.pipeline.catalog.chosen import chosen_captions
from tokenmill.pipeline.catalog.tables import Catalog
from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.plan.likeness import to_score
from tokenmill.pipeline.refresh import fingerprints
from tokenmill.pipeline.refresh.arrow import NO_IDS, differ, distinct, is_in
from tokenmill.pipeline.refresh.media import media_todo
from tokenmill.pipeline.refresh.steps import NOW, Outlook


@dataclass(frozen=True)
class CaptionerPlan:
    """What one captioner is to do."""

    name: str
    fingerprints: list[str]  # of rows that stand; new rows have the first
    todo: pa.Table  # TO_CAPTION; where curate goes before, media_id alone; none where it is not known yet
    obsolete: pa.Array = field(default_factory=lambda: NO_IDS)  # ids of rows of captions put together before
    is_known: bool = True
    unlike: pa.Array = field(default_factory=lambda: NO_IDS)  # media whose captions lack the likeness that a rule reads


def plan_captioner(
    config: RunConfig, catalog: Catalog, name: str, outlook: Outlook = NOW, is_known: bool = True
) -> CaptionerPlan:
    """What one captioner is to do, with the tables as they are; `is_known`: captions that it hangs on do not change."""
    part = config.caption.what
    one, standing = part.all[name], fingerprints.of_captioner(config, name)
    unlike = distinct(to_score(config, catalog, name, standing, ["media_id"])["media_id"])
    if not is_known:
        return CaptionerPlan(name, standing, stages.TO_CAPTION.empty_table(), is_known=False, unlike=unlike)
    where = stages.Rule("where", one.where, stages.MEDIA) if one.where else None
    columns = stages.TO_CAPTION.names[:-1] if outlook.is_now else ["media_id", "kind"]
    columns = list(dict.fromkeys([*columns, *(where.columns if where else ())]))
    anew = [NO_IDS]
    anew += [outlook.recaptioned] if name in part.readers("source_caption") else []
    anew += [outlook.redescribed] if name in part.readers("metadata") else []
    read = obsolete = None
    if one.reads:
        read = captions_read(config, catalog, one.reads)
        obsolete = _obsolete(catalog, name, standing, read)
        anew.append(obsolete)
    mine = pc.field("captioner") == name
    rows = media_todo(catalog, catalog.captions, columns, standing, distinct(*anew), outlook, config.cluster, mine)
    kinds = {"all": ["image", "video"], "images": ["image"], "videos": ["video"]}[one.serves]
    if name == "source":
        kinds = [*(kinds if name in part.order else ()), "text"]
    rows = rows.filter(is_in(rows["kind"], pa.array(kinds)))
    if where is not None:
        rows = rows.filter(pc.fill_null(where(rows), False))
    if one.only_without:
        has = chosen_captions(catalog, part, one.only_without)["media_id"]
        rows = rows.filter(pc.invert(is_in(rows["media_id"], has)))
    texts = pa.nulls(rows.num_rows, pa.string())
    if read is not None:
        at = pc.index_in(rows["media_id"], value_set=read["media_id"].combine_chunks())
        rows, texts = rows.filter(pc.is_valid(at)), read["read"].take(at.drop_null())
    if outlook.is_now:
        rows = rows.select(stages.TO_CAPTION.names[:-1]).append_column("read", texts)
    return CaptionerPlan(name, standing, rows, NO_IDS if obsolete is None else obsolete, unlike=unlike)


def captions_read(config: RunConfig, catalog: Catalog, names: tuple[str, ...]) -> pa.Table:
    """media_id and, as a JSON object by captioner, the captions of `names`, of media of which all of them count."""
    found: dict[str, dict[str, str]] = {}
    for position, name in enumerate(names):
        rows = chosen_captions(catalog, config.caption.what, (name,))
        texts = dict(zip(rows["media_id"].to_pylist(), rows["caption"].to_pylist(), strict=True))
        known = found if position else dict.fromkeys(texts)
        found = {i: {**(found.get(i) or {}), name: texts[i]} for i in known if i in texts}
    read = [json.dumps(texts, ensure_ascii=False) for texts in found.values()]
    return pa.table({"media_id": pa.array(found, pa.string()), "read": pa.array(read, pa.string())})


def _obsolete(catalog: Catalog, name: str, standing: list[str], read: pa.Table) -> pa.Array:
    """Media whose row was made of other captions than those of now, or of such as there are no more."""
    where = (pc.field("captioner") == name) & pc.field("fingerprint").isin(standing)
    rows = catalog.captions.scan(["media_id", "inputs"], where)
    at = pc.index_in(rows["media_id"], value_set=read["media_id"].combine_chunks())
    now = pa.array([stages.inputs_id(text) for text in read["read"].take(at).to_pylist()], pa.string())
    return distinct(rows.filter(differ(rows["inputs"], pa.chunked_array([now])))["media_id"])
