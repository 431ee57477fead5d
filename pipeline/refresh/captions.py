"""The plan of caption: for each captioner in use the media that have no row of it yet; nothing is written.

Captioners come in the order in which they hang on one another. What one is to do that reads captions of another which
has work itself, nobody knows before that is done: it is planned again then, by the same functions.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from tokenmill import stages
from tokenmill.pipeline.catalog.chosen import chosen_captions
from tokenmill.pipeline.catalog.tables import Catalog
from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.refresh import fingerprints
from tokenmill.pipeline.refresh.arrow import NO_IDS, differ, distinct, is_in
from tokenmill.pipeline.refresh.changed_keys import Why
from tokenmill.pipeline.refresh.forecast import forecast, spent_before
from tokenmill.pipeline.refresh.likeness import to_score
from tokenmill.pipeline.refresh.media import MediaSteps, media_todo
from tokenmill.pipeline.refresh.steps import Outlook, Step
from tokenmill.stages.table.columns import MEDIA, TO_CAPTION

_WHAT = "captions"


@dataclass(frozen=True)
class CaptionerPlan:
    """What one captioner is to do."""

    name: str
    fingerprints: list[str]  # of rows that stand; new rows have the first
    todo: pa.Table  # TO_CAPTION; where curate goes before, media_id alone; none where it is not known yet
    obsolete: pa.Array = field(default_factory=lambda: NO_IDS)  # ids of rows of captions put together before
    is_known: bool = True


@dataclass(frozen=True)
class CaptionPlan:
    """What the phase caption is to do."""

    steps: list[Step]
    captioners: list[CaptionerPlan]
    rejudged: Mapping[str, pa.Array]  # ids of media whose captions rules judge otherwise, by captioner
    is_exact: bool
    outlook: Outlook
    is_nothing: bool

    @property
    def todo(self) -> pa.Table:
        """media_id of all that is known to be asked, once for each captioner."""
        ids = [each.todo["media_id"].combine_chunks() for each in self.captioners]
        return pa.table({"media_id": pa.concat_arrays([NO_IDS, *ids])})


def plan_caption(config: RunConfig, catalog: Catalog, outlook: Outlook) -> CaptionPlan:
    """Kept media without a caption of a captioner in use, those whose source changes, and verdicts of other rules."""
    part = config.caption.what
    standing, why = fingerprints.of_captions(config), Why(config, catalog.root)
    spent = spent_before(catalog.root) if any(part.all[name].model for name in standing) else {}
    steps, plans, again = list[Step](), list[CaptionerPlan](), [outlook.recaptioned]
    rejudged = judged_otherwise(config, catalog)
    if rejudged:
        num = sum(len(ids) for ids in rejudged.values())
        steps.append(
            Step("caption", "caption rules changed", 0, "verdicts on stored columns", f"verdicts of {num} captions")
        )
    changes = set(rejudged)
    for name in standing:
        one = part.all[name]
        is_known = outlook.is_now and not changes & {*one.reads, *one.only_without}
        if one.reads or one.only_without:
            made = plan_captioner(config, catalog, name, outlook) if is_known else _unknown(name, standing[name])
        else:
            made = plan_captioner(config, catalog, name, outlook)
        plans.append(made)
        rows = catalog.captions.scan(["media_id", "fingerprint", "run_id"], pc.field("captioner") == name)
        told = MediaSteps(
            "caption", _WHAT if len(standing) == 1 else f"{_WHAT} by {name}", outlook, rows, made.fingerprints, why
        )
        told.costs = forecast(spent.get(name), one, made.todo.num_rows)
        if made.is_known:
            changed = told.tell_again(made.todo)
            told.tell_todo(made.todo, changed, "caption")
        else:
            given = ", ".join(dict.fromkeys([*one.reads, *one.only_without]))
            told.add(f"what {given} leave to {name}", None, told.what, f"their {told.what}")
        if len(made.obsolete) and told.is_nothing:
            told.add(f"captions that {name} put together are gone", 0, "", f"-{len(made.obsolete)} {told.what}")
        unlike = to_score(config, catalog, name, made.fingerprints, ["media_id"])["media_id"]
        if len(unlike):
            writes = f"verdicts of {len(unlike)} captions"
            told.add("rules read likeness", 0, f"likeness of {len(unlike)} captions", writes)
            again.append(distinct(unlike))
        told.close_quietly()
        steps += told.steps
        if not told.is_nothing:
            changes.add(name)
        again.append(made.todo["media_id"].combine_chunks())
    again += rejudged.values()
    is_nothing = not steps
    if is_nothing:
        done = catalog.captions.scan(["media_id"])["media_id"]
        steps.append(Step("caption", f"nothing: {len(pc.unique(done))} kept media captioned already", 0))
    after = replace(outlook, recaptioned=distinct(*again), captions_change=not is_nothing)
    is_exact = outlook.is_now and all(each.is_known for each in plans)
    return CaptionPlan(steps, plans, rejudged, is_exact, after, is_nothing)


def plan_captioner(config: RunConfig, catalog: Catalog, name: str, outlook: Outlook) -> CaptionerPlan:
    """What one captioner is to do, with the tables as they are."""
    part = config.caption.what
    one, standing = part.all[name], fingerprints.of_captions(config)[name]
    where = stages.Rule("where", one.where, MEDIA) if one.where else None
    columns = TO_CAPTION.names[:-1] if outlook.is_now else ["media_id", "kind"]
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
        rows = rows.select(TO_CAPTION.names[:-1]).append_column("read", texts)
    return CaptionerPlan(name, standing, rows, NO_IDS if obsolete is None else obsolete)


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


def _unknown(name: str, standing: list[str]) -> CaptionerPlan:
    return CaptionerPlan(name, standing, TO_CAPTION.empty_table(), is_known=False)


def judged_otherwise(config: RunConfig, catalog: Catalog) -> dict[str, pa.Array]:
    """Ids of media of which a caption has another verdict by the rules of its captioner, by captioner."""
    found = {}
    for name, rules in _rules(config).items():
        columns = ["media_id", *stages.columns_judged(rules)]
        rows = catalog.captions.scan(columns, pc.field("captioner") == name)
        if rows.num_rows:
            now = stages.judge_captions(rows, rules)
            is_other = pc.or_(*(differ(rows[column], now[column]) for column in ("reject_reason", "reject_detail")))
            if len(ids := distinct(rows.filter(is_other)["media_id"])):
                found[name] = ids
    return found


def rejudge(catalog: Catalog, rejudged: Mapping[str, pa.Array], config: RunConfig, run_id: str) -> None:
    """Write the verdicts of the rules of now on the stored columns of these captions."""
    for name, ids in rejudged.items():
        where = (pc.field("captioner") == name) & pc.field("media_id").isin(ids)
        note = {"run_id": run_id, "what": "caption rules changed"}
        catalog.captions.edit(where, partial(stages.judge_captions, rules=_rules(config)[name]), note)


def _rules(config: RunConfig) -> dict[str, dict[str, str]]:
    part = config.caption.what
    return {name: part.all[name].verdicts for name in dict.fromkeys(["source", *part.order])}
