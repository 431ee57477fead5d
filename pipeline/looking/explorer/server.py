"""`tokenmill explore`: the addresses of the page, and what each answers.

/                    media as a grid: kind, verdict, conditions on any column, order; near to a medium or to words
/medium/ID           all of one medium; /medium/ID/then as versions before had it
/preview/ID          its picture, drawn anew from its pixels: ?px=, ?moving=1; /rebuilt/ID from its codes
/rules/KIND          thresholds as sliders; /rules/KIND/judged?RULE.NUMBER=VALUE as JSON
/captions/NAME       the same of the captions by a captioner; /captions/NAME/judged
/samples             two drawings of a prompt to choose from: ?skip=N; /drawing/ID
/copies              groups of near duplicates
/vote                POST, JSON
"""

import secrets
import socket
import threading
from collections.abc import Callable
from functools import cache, partial
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from tokenmill import stages
from tokenmill.pipeline.catalog.tables import Catalog
from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.looking.explorer import medium, moved, votes
from tokenmill.pipeline.looking.explorer.filters import COLUMNS, OPERATORS, PAGE, Asked
from tokenmill.pipeline.looking.explorer.guard import Guard
from tokenmill.pipeline.looking.explorer.likeness import Likeness
from tokenmill.pipeline.looking.explorer.samples import Samples
from tokenmill.pipeline.looking.previews import Previews, webp
from tokenmill.pipeline.looking.query import Tables

_SIDES_PX = (160, 480, 960)
_FRAMES = 24
_NEAR = 60
_GROUPS = 40
_CARD = (
    "media_id, file_id, kind, uri, member, offset_bytes, size_bytes, start_s, end_s, width_px, height_px, duration_s, "
    "verdict, source_caption"
)


class Explorer:
    """What the addresses answer with. `drawings`: a folder of `tokenmill prefer draw`. Raises CatalogError without a
    catalog, TrainingError without drawings there.
    """

    def __init__(self, config: RunConfig, drawings: str | None = None):
        self._config = config
        self._tables = Tables(Catalog(config.root, config.version))
        self._likeness = Likeness(self._tables.catalog.media.files(), config.curate.clip.model)
        self._previews = threading.local()
        self._samples: Samples | None = None
        if drawings is not None:
            self._samples = Samples(drawings, config.tokenize.model, votes.uri_of(config.root, "samples"))
        self._moved: dict[tuple[str, str], moved.Moved] = {}
        self._lock = threading.Lock()

    def grid(self, request: Request) -> Response:
        """Media that were asked for."""
        lists = {name: request.query_params.getlist(name) for name in ("c", "o", "v")}
        asked = Asked.of(request.query_params, lists)
        words, near, said = request.query_params.get("words", ""), request.query_params.get("near", ""), ""
        rows: list[dict[str, Any]] = []
        total = 0
        try:
            where, values = asked.where()
            if near or words:
                found = self._likeness.of_medium(near, _NEAR) if near else self._likeness.of_words(words, _NEAR)
                likeness = dict(found)
                sql = f"select {_CARD} from judged where media_id in (select unnest(?)) and {where}"
                rows = self._tables.rows(sql, list(likeness), *values)
                rows = sorted(rows, key=lambda row: -likeness[row["media_id"]])
                for row in rows:
                    row["score"] = f"{likeness[row['media_id']]:.3f}"
                total = len(rows)
                said = "" if rows else "nothing near: media have no stored embeddings (curate.clip.store_embedding)"
            else:
                total = self._tables.value(f"select count(*) from judged where {where}", *values)
                shown = f', "{asked.sort}" as score' if asked.sort in COLUMNS else ""
                sql = f"select {_CARD}{shown} from judged where {where} order by {asked.order()} limit ? offset ?"
                rows = self._tables.rows(sql, *values, PAGE, asked.page * PAGE)
        except ValueError as error:
            said = str(error)
        verdicts = self._tables.rows("select verdict, count(*) as count from judged group by all order by count desc")
        return self._page(
            "grid.html", request, asked=asked, rows=rows, total=total, said=said, verdicts=verdicts,
            columns=list(COLUMNS), operators=list(OPERATORS), page_size=PAGE, words=words, near=near,
            takes_words=self._likeness.takes_words,
            votes=votes.votes(self._config.root),
        )  # fmt: skip

    def medium(self, request: Request) -> Response:
        """One medium."""
        media_id = request.path_params["media_id"]
        known = medium.known(self._tables, media_id)
        if known is None:
            return PlainTextResponse("no such medium\n", 404)
        shows_metadata = request.query_params.get("metadata") == "1"
        vote = votes.votes(self._config.root).get(media_id, "")
        return self._page(
            "medium.html", request, known=known, media_id=media_id, shows_metadata=shows_metadata, vote=vote
        )

    def then(self, request: Request) -> Response:
        """A medium in versions before."""
        media_id = request.path_params["media_id"]
        found = medium.history(self._tables.catalog, media_id)
        return self._page("then.html", request, found=found, media_id=media_id)

    def preview(self, request: Request) -> Response:
        """Its picture, by id alone."""
        side = request.query_params.get("px", "160")
        side_px = int(side) if side.isdigit() and int(side) in _SIDES_PX else _SIDES_PX[0]
        rows = self._tables.rows(f"select {_CARD} from judged where media_id = ?", request.path_params["media_id"])
        content = None
        if rows:
            if not hasattr(self._previews, "own"):
                self._previews.own = Previews(self._config.fetched)
            previews: Previews = self._previews.own
            if request.query_params.get("moving") == "1":
                content = previews.moving(rows[0], side_px, _FRAMES)
            else:
                content = previews.still(rows[0], side_px)
        return _picture(content)

    def rebuilt(self, request: Request) -> Response:
        """What the vision tokenizer makes of its codes."""
        with self._lock:
            frames = medium.rebuilt(self._tables, self._config.tokenize.model, request.path_params["media_id"])
        return _picture(None if frames is None else webp(list(frames)))

    def rules(self, request: Request, of: str) -> Response:
        """Thresholds as sliders."""
        name = request.path_params["name"]
        try:
            found = self._rules_of(of, name)
        except ValueError as error:
            return PlainTextResponse(f"{error}\n", 404)
        found.compare(votes.votes(self._config.root) if of == "rules" else {})
        return self._page(
            "rules.html",
            request,
            of=of,
            name=name,
            rules=found.rules,
            num_otherwise=found.num_otherwise,
            sliders=found.sliders(),
            now=found.judged({}),
        )

    def judged(self, request: Request, of: str) -> Response:
        """What other thresholds would do."""
        values: dict[tuple[str, int], float] = {}
        try:
            for key, value in request.query_params.items():
                name, _, number = key.rpartition(".")
                values[name, int(number)] = float(value)
            return JSONResponse(self._rules_of(of, request.path_params["name"]).judged(values))
        except ValueError as error:
            return JSONResponse({"error": str(error)}, 400)

    def copies(self, request: Request) -> Response:
        """Groups of near duplicates, the largest first."""
        groups = self._tables.rows(
            "select duplicate_of, count(*) + 1 as count, list(media_id order by distance, media_id)[:12] as others "
            "from duplicates where method <> ? group by all order by count desc, duplicate_of limit ?",
            stages.KEPT,
            _GROUPS,
        )
        return self._page("copies.html", request, groups=groups)

    def samples(self, request: Request) -> Response:
        """Two drawings to choose from."""
        if self._samples is None:
            return PlainTextResponse("no drawings: tokenmill explore CONFIG --drawings FOLDER\n", 404)
        skip = request.query_params.get("skip", "0")
        skipped = int(skip) if skip.isdecimal() and len(skip) < 9 else 0
        pair = self._samples.pair(skipped)
        return self._page("samples.html", request, pair=pair, skipped=skipped, folder=self._samples.folder)

    def drawing(self, request: Request) -> Response:
        """One of them."""
        frames = None if self._samples is None else self._samples.frames(request.path_params["sample_id"])
        return _picture(None if frames is None else webp(list(frames)))

    async def vote(self, request: Request) -> Response:
        """Keep what was chosen."""
        try:
            given = await request.json()
            if not isinstance(given, dict):
                raise ValueError("no vote: not an object of JSON")
            if self._samples is not None and "chosen" in given:
                line = self._samples.vote(given)
                return JSONResponse(
                    {"kept_in": await run_in_threadpool(votes.keep, self._config.root, "samples", line)}
                )
            media_id = given.get("media_id")
            sql = "select distinct captioner from captions where media_id = ?"
            known = {row["captioner"] for row in await run_in_threadpool(self._tables.rows, sql, str(media_id))}
            if not self._tables.value("select count(*) from media where media_id = ?", str(media_id)):
                raise ValueError("no such medium")
            uri = await run_in_threadpool(votes.vote, self._config.root, given, known)
        except ValueError as error:
            return JSONResponse({"error": str(error)}, 400)
        return JSONResponse({"kept_in": uri})

    def _rules_of(self, of: str, name: str) -> moved.Moved:
        with self._lock:
            if (of, name) not in self._moved:
                made = moved.of_media if of == "rules" else moved.of_captions
                self._moved[of, name] = made(self._config, self._tables, name)
            return self._moved[of, name]

    def _page(self, template: str, request: Request, **values: Any) -> Response:
        decide, part = self._config.curate.decide, self._config.caption.what
        kinds = [kind for kind, rules in (("image", decide.image_rules), ("video", decide.video_rules)) if rules]
        captioners = [name for name in dict.fromkeys(["source", *part.order]) if part.all[name].verdicts]
        about = {"kinds": kinds, "captioners": captioners, "has_samples": self._samples is not None}
        return HTMLResponse(_environment().get_template(template).render(query=request.query_params, **about, **values))


def application(config: RunConfig, token: str, hosts: frozenset[str], drawings: str | None = None) -> Starlette:
    """The page over a config's root, for whoever has the token, at these values of Host."""
    own = Explorer(config, drawings)
    routes: list[Any] = [
        Route("/", own.grid),
        Route("/medium/{media_id}", own.medium),
        Route("/medium/{media_id}/then", own.then),
        Route("/preview/{media_id}", own.preview),
        Route("/rebuilt/{media_id}", own.rebuilt),
        *(Route(f"/{of}/{{name}}", partial(own.rules, of=of)) for of in ("rules", "captions")),
        *(Route(f"/{of}/{{name}}/judged", partial(own.judged, of=of)) for of in ("rules", "captions")),
        Route("/copies", own.copies),
        Route("/samples", own.samples),
        Route("/drawing/{sample_id}", own.drawing),
        Route("/vote", own.vote, methods=["POST"]),
        Route("/favicon.ico", lambda request: Response(status_code=204)),
        Mount("/assets", StaticFiles(packages=[("tokenmill.pipeline.looking.explorer", "assets")])),
    ]
    return Starlette(routes=routes, middleware=[Middleware(Guard, token=token, hosts=hosts)])


def serve(config: RunConfig, host: str, port: int, on_open: Callable[[str], None], drawings: str | None = None) -> None:
    """Until Ctrl-C. `on_open` is told the address once, with its token; port 0 takes a free one."""
    import uvicorn

    token = secrets.token_urlsafe(24)
    with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as listening:
        port = listening.getsockname()[1]
        names = {host, "127.0.0.1", "localhost"} - {"0.0.0.0", "::"}
        hosts = frozenset(f"{name}:{port}" for name in names)
        app = application(config, token, hosts, drawings)
        shown = "127.0.0.1" if host in ("0.0.0.0", "::") else host
        on_open(f"http://{shown}:{port}/?token={token}")
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False, server_header=False))
        server.run(sockets=[listening])


def _picture(content: bytes | None) -> Response:
    if content is None:
        return PlainTextResponse("no picture\n", 404)
    return Response(content, media_type="image/webp", headers={"Cache-Control": "private, max-age=3600"})


@cache
def _environment() -> Environment:
    loader = PackageLoader("tokenmill.pipeline.looking.explorer", "templates")
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters["number"] = lambda value: f"{value:,}"
    made.filters["name"] = lambda row: (row["member"] or row["uri"]).rsplit("/", 1)[-1]
    made.filters["meaning"] = lambda verdict: stages.REASONS.get(verdict, "")
    made.globals["other_page"] = _other_page
    return made


def _other_page(query: Any, page: int) -> str:
    from urllib.parse import urlencode

    return "/?" + urlencode([(key, value) for key, value in query.multi_items() if key != "page"] + [("page", page)])
