"""The plan of caption: for each captioner in use the media that have no row of it yet; nothing is written.

Captioners come in the order in which they hang on one another. What one is to do that reads captions of another which
has work itself, nobody knows before that is done: it is planned again then, by the same functions.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from tokenmill.pipeline.catalog.tables import Catalog
from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.plan.caption_verdicts import judged_otherwise
from tokenmill.pipeline.plan.captioners import CaptionerPlan, plan_captioner
from tokenmill.pipeline.plan.forecast import forecast, spent_before
from tokenmill.pipeline.refresh import fingerprints
from tokenmill.pipeline.refresh.arrow import NO_IDS, distinct
from tokenmill.pipeline.refresh.changed_keys import Why
from tokenmill.pipeline.refresh.media import MediaSteps
from tokenmill.pipeline.refresh.steps import NOW, Outlook, Step

_WHAT = "captions"


@dataclass(frozen=True)
class CaptionPlan:
    """What the phase caption is to do."""

    steps: list[Step]
    captioners: list[CaptionerPlan]
    rejudged: Mapping[str, pa.Array]  # ids of media whose captions rules judge otherwise, by captioner
    is_exact: bool
    outlook: Outlook
    is_nothing: bool

    @classmethod
    def nothing(cls, told: list[str]) -> "CaptionPlan":
        """Where all is as it is to be."""
        return cls([Step("caption", why, 0) for why in told], [], {}, True, NOW, True)

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
        is_known = (
            not (one.reads or one.only_without) or outlook.is_now and not changes & {*one.reads, *one.only_without}
        )
        plan = plan_captioner(config, catalog, name, outlook, is_known)
        rows = catalog.captions.scan(["media_id", "fingerprint", "run_id"], pc.field("captioner") == name)
        what = _WHAT if len(standing) == 1 else f"{_WHAT} by {name}"
        told = MediaSteps("caption", what, outlook, rows, plan.fingerprints, why)
        told.costs = forecast(spent.get(name), one, plan.todo.num_rows)
        _tell(plan, told, ", ".join(dict.fromkeys([*one.reads, *one.only_without])))
        plans.append(plan)
        steps += told.steps
        if not told.is_nothing:
            changes.add(name)
        again += [plan.todo["media_id"].combine_chunks(), plan.unlike]
    again += rejudged.values()
    is_nothing = not steps
    if is_nothing:
        done = catalog.captions.scan(["media_id"])["media_id"]
        steps.append(Step("caption", f"nothing: {len(pc.unique(done))} kept media captioned already", 0))
    after = replace(outlook, recaptioned=distinct(*again), captions_change=not is_nothing)
    is_exact = outlook.is_now and all(each.is_known for each in plans)
    return CaptionPlan(steps, plans, rejudged, is_exact, after, is_nothing)


def _tell(plan: CaptionerPlan, told: MediaSteps, given: str) -> None:
    """The steps of one captioner; `given`: the captioners on which it hangs."""
    if plan.is_known:
        again = told.tell_again(plan.todo)
        told.tell_todo(plan.todo, again, "caption")
    else:
        told.add(f"what {given} leave to {plan.name}", None, told.what, f"their {told.what}")
    if len(plan.obsolete) and told.is_nothing:
        told.add(f"captions that {plan.name} put together are gone", 0, "", f"-{len(plan.obsolete)} {told.what}")
    if number := len(plan.unlike):
        told.add("rules read likeness", 0, f"likeness of {number} media", f"verdicts of their {told.what}")
    told.close_quietly()
