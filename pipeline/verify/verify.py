"""`tokenmill verify`: all checks in order, and with `--repair` what is found set right before the next check looks.

Logs come first, for they say which files there are; then the files; then what one table says of another, by the files
that are whole. A repair holds the lease of the root. It computes nothing: it takes away and marks, and the next run
does what hangs on that, and no more.
"""

import json
from collections import Counter
from collections.abc import Iterable

from rich.console import Console

from tokenmill.pipeline.catalog.lease import held, new_run_id
from tokenmill.pipeline.catalog.tables import Catalog, CatalogError
from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.refresh import fingerprints
from tokenmill.pipeline.reports.terminal import shown, table
from tokenmill.pipeline.verify import documents, files, logs, outputs
from tokenmill.pipeline.verify.problems import FOLDER, Aside, Problem
from tokenmill.pipeline.verify.references import References

_SHOWN = 50


class Verified:
    """What was looked at and found."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.num_files: Counter[str] = Counter()
        self.is_repaired = False

    @property
    def open(self) -> list[Problem]:
        """What is wrong still, and no next run sets right."""
        return [
            problem
            for problem in self.problems
            if not problem.is_harmless and not (self.is_repaired and problem.mend is not None)
        ]


def verify(config: RunConfig, deep: bool = False, repair: bool = False) -> Verified:
    """Look through the root of `config`; with `repair`, set right what can be. Raises CatalogError without one."""
    catalog = Catalog(config.root)
    if not any(table.exists() for table in catalog):
        raise CatalogError(f"{catalog.root}: no catalog there; nothing to verify")
    if not repair:
        return _looked(config, catalog, deep, None)
    run_id = new_run_id()
    with held(catalog, run_id, "verify"):
        return _looked(config, catalog, deep, Aside(catalog.root, run_id))


def _looked(config: RunConfig, catalog: Catalog, deep: bool, aside: Aside | None) -> Verified:
    made = Verified()
    made.is_repaired = aside is not None

    def take(found: Iterable[Problem]) -> bool:
        """Keep problems, and mend them when that is asked for; true when there are none left."""
        found = list(found)
        made.problems += found
        for problem in found:
            if aside is not None and problem.mend is not None:
                problem.mend(aside)
        return all(problem.is_harmless or (aside is not None and problem.mend is not None) for problem in found)

    found, recorded = documents.find(catalog.root)
    take(found)
    whole: dict[str, list[str]] = {}
    for each in catalog:
        of_log = logs.find(each, recorded.get(each.name, 0))
        if not take(of_log):
            continue
        try:
            _ = each.delta
        except CatalogError as error:
            take([logs.unopened(each, error)])
            continue
        codes = files.Codes(fingerprints.standing_tokens(config), fingerprints.codebook_size(config)) if deep else None
        found, whole[each.name] = files.find(each, codes)
        made.num_files[each.name] = len(whole[each.name]) + len(found)
        if aside is not None and each is catalog.media and (found or of_log):
            files.mark_videos_in_parts(catalog, whole[each.name], aside)
        take(found)
        whole[each.name] = each.files() if aside is not None else whole[each.name]
        if not take(files.find_twice(each, whole[each.name])):
            continue
        whole[each.name] = each.files() if aside is not None else whole[each.name]
    if len(whole) == len(list(catalog)):
        take(References(catalog, whole, config.fetched).find(deep))
    take(outputs.find_exports(catalog.root))
    take(outputs.find_trainings(catalog.root))
    return made


def print_verified(config: RunConfig, deep: bool, repair: bool, as_json: bool, console: Console) -> bool:
    """Verify, and say what was found; true when all is well, or will be after the next run."""
    found = verify(config, deep, repair)
    if as_json:
        document = {
            "problems": [problem.as_dict() for problem in found.problems],
            "num_open": len(found.open),
            "num_files": dict(found.num_files),
            "repaired": found.is_repaired,
        }
        console.print(json.dumps(document, indent=1), markup=False, highlight=False, soft_wrap=True)
        return not found.open
    if found.problems:
        made = table("What is wrong", "kind", "where", "what", "hangs on it")
        for problem in found.problems[:_SHOWN]:
            where = problem.uri.removeprefix(f"{Catalog(config.root).root}/")
            made.add_row(problem.kind, shown(where), shown(problem.what), shown(problem.hangs_on_it))
        console.print(made)
        if len(found.problems) > _SHOWN:
            console.print(f"... and {len(found.problems) - _SHOWN} more; --json lists all", highlight=False)
    num_files = sum(found.num_files.values())
    said = f"{num_files} data files {'decoded' if deep else 'of the right size and checksum'}"
    num_mended = len([problem for problem in found.problems if problem.mend is not None])
    if found.open:
        hopeless = [problem for problem in found.open if problem.mend is None]
        what = f"{len(found.open)} problems"
        how = "`tokenmill verify CONFIG --repair` sets aside what is broken" if not repair else ""
        how = f"{len(hopeless)} of them cannot be mended from what is left" if hopeless else how
        console.print(f"{what}; {how}", style="red", highlight=False)
    elif repair and num_mended:
        where = f"{Catalog(config.root).root}/{FOLDER}"
        console.print(f"{num_mended} problems repaired, what was broken is in {where}; now run `tokenmill run CONFIG`")
    else:
        console.print(f"Nothing is wrong: {said}", highlight=False)
    return not found.open
