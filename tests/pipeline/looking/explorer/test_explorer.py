"""The page alive: who may ask, what is shown of what was asked, thresholds against judging anew, votes, markup."""

import io
import json
import re
import shutil

import numpy as np
import pyarrow as pa
import pytest
import yaml
from PIL import Image
from rich.console import Console
from starlette.testclient import TestClient

from tests.pipeline.looking.report.test_report import Checked
from tests.stages.embed import tiny_clip
from tokenmill import storage
from tokenmill.pipeline.catalog.tables import Catalog
from tokenmill.pipeline.looking.explorer.filters import COLUMNS
from tokenmill.pipeline.looking.explorer.likeness import Likeness
from tokenmill.pipeline.looking.explorer.server import application
from tokenmill.pipeline.looking.query import Tables
from tokenmill.pipeline.run.redecide import redecide
from tokenmill.stages.embed.models import ClipModel

HOST = "127.0.0.1:8900"


def visitor(config, **more):
    app = application(config, "secret", frozenset({HOST}))
    return TestClient(app, base_url=f"http://{HOST}", **more)


@pytest.fixture
def page(root_of_markup):
    """Somebody who opened the printed address."""
    found = visitor(root_of_markup)
    assert found.get("/?token=secret").status_code == 200
    return found


def ids(answer):
    return re.findall(r'<li class="card" data-id="([0-9a-f]+)"', answer.text)


@pytest.mark.parametrize("place", ["/", "/medium/x", "/preview/x", "/rules/image", "/copies", "/assets/explore.js"])
def test_without_the_token_nothing_is_told(root_of_markup, place):
    stranger = visitor(root_of_markup)
    for query in ("", "?token=wrong", "?token="):
        answer = stranger.get(place + query)
        assert answer.status_code == 401 and root_of_markup.root not in answer.text


def test_the_token_leaves_the_address_for_a_cookie_that_no_script_reads(root_of_markup):
    answer = visitor(root_of_markup).get("/?kind=image&token=secret", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/?kind=image")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie


def test_other_hosts_and_origins_are_refused(page):
    assert page.get("/", headers={"host": "evil.example:8900"}).status_code == 421
    vote = {"media_id": ids(page.get("/"))[0], "vote": "keep"}
    for origin in (None, "http://evil.example", "null"):
        headers = {} if origin is None else {"origin": origin}
        assert page.post("/vote", json=vote, headers=headers).status_code == 403
    long = {"media_id": "a" * 20_000, "vote": "keep"}
    assert page.post("/vote", json=long, headers={"origin": f"http://{HOST}"}).status_code == 413
    assert page.get("/vote").status_code == 405


def test_every_page_is_whole_and_runs_nothing_of_others(page):
    first = ids(page.get("/"))[0]
    for place in ("/", f"/medium/{first}?metadata=1", f"/medium/{first}/then", "/rules/image", "/copies"):
        answer = page.get(place)
        assert answer.status_code == 200, place
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy
        seen = Checked()
        seen.feed(answer.text)
        wrong = [each for each in seen.wrong if each != "no alt" and each[0] not in ("script", "img", "form")]
        assert not seen.open and not wrong, place
        assert "<script>alert" not in answer.text and "<img src=x" not in answer.text
        scripts = re.findall(r"<script[^>]*>", answer.text)
        assert scripts == ['<script src="/assets/explore.js" defer>']
    assert "&lt;script&gt;alert(1)" in page.get(f"/medium/{first}").text or "number" in page.get("/").text


def test_the_grid_shows_what_was_asked_for(page):
    assert len(ids(page.get("/"))) == 13 and len(ids(page.get("/?verdict=large"))) == 5
    assert len(ids(page.get("/?kind=image&verdict=kept"))) == 7
    few = page.get("/?c=width_px&o=>%3D&v=100&c=uri&o=has&v=%3Cb%3E&sort=width_px&falls=1")
    assert len(ids(few)) == 3 and "[&#39;" not in few.text
    sides = [float(value) for value in re.findall(r'<span class="faint">([\d.]+)</span>', few.text)]
    assert sides == sorted(sides, reverse=True) == [150, 130, 110]
    assert len(ids(page.get("/?c=uri&o=has&v=%25"))) == 0, "a sign of LIKE is itself"
    for query in ("c=nope&o=has&v=1", "c=uri&o=;drop&v=1", "c=width_px&o=>%3D&v=wide", "sort=1;drop"):
        answer = page.get(f"/?{query}")
        assert answer.status_code == 200 and 'role="status"' in answer.text
    assert "embedding" not in COLUMNS


def test_media_are_served_by_id_alone(page, root_of_markup):
    first = ids(page.get("/?sort=width_px&falls=1"))[0]
    picture = page.get(f"/preview/{first}?px=480")
    opened = Image.open(io.BytesIO(picture.content))
    assert picture.headers["content-type"] == "image/webp" and opened.size == (150, 150)
    for name in ("..%2F..%2Fetc%2Fpasswd", root_of_markup.sources[0].uri.replace("/", "%2F"), "0.png"):
        assert page.get(f"/preview/{name}").status_code == 404 and page.get(f"/medium/{name}").status_code == 404
    assert page.get("/assets/..%2Fserver.py").status_code == 404
    kept = ids(page.get("/?verdict=kept"))[0]
    rebuilt = Image.open(io.BytesIO(page.get(f"/rebuilt/{kept}").content))
    assert rebuilt.size == (32, 32)
    assert page.get(f"/rebuilt/{ids(page.get('/?verdict=large'))[0]}").status_code == 404


def test_a_threshold_that_is_moved_is_what_judging_anew_gives(page, root_of_markup, tmp_path):
    found = page.get("/rules/image/judged?large.0=105").json()
    assert (found["kept"], found["before"], found["gained"], found["lost"], found["open"]) == (5, 7, 0, 2, 0)
    assert len(found["lost_ids"]) == 2
    assert page.get("/rules/image/judged?large.0=55").json()["gained"] == 3
    copied = str(tmp_path / "root")
    shutil.copytree(root_of_markup.root, copied)
    rules = yaml.safe_load(found["yaml"])["curate"]["decide"]["image_rules"]
    decide = root_of_markup.curate.decide.model_copy(update={"image_rules": rules})
    curate = root_of_markup.curate.model_copy(update={"decide": decide})
    anew = root_of_markup.model_copy(update={"root": copied, "curate": curate})
    redecide(anew, Console(quiet=True))
    assert Tables(Catalog(copied)).value("select count(*) from judged where verdict = 'kept'") == found["kept"]
    for query in ("large.7=3", "none.0=3", "large.0=wide", "large=3"):
        assert page.get(f"/rules/image/judged?{query}").status_code == 400
    assert page.get("/rules/text").status_code == 404


def test_votes_are_lines_of_json(page, root_of_markup):
    here = {"origin": f"http://{HOST}"}
    kept = ids(page.get("/?verdict=kept"))
    for vote in ({"media_id": kept[0], "vote": "reject"}, {"media_id": kept[0], "better": "source"}):
        assert page.post("/vote", json=vote, headers=here).status_code == 200
    for wrong in ({"media_id": "nobody", "vote": "keep"}, {"media_id": kept[0], "vote": "maybe"}, ["keep"], {}):
        assert page.post("/vote", json=wrong, headers=here).status_code == 400
    votes, captions = (
        [json.loads(line) for line in storage.read_bytes(f"{root_of_markup.root}/votes/{name}.jsonl").splitlines()]
        for name in ("media", "captions")
    )
    assert (votes[-1]["media_id"], votes[-1]["vote"]) == (kept[0], "reject")
    assert captions[0]["better"] == "source" and captions[0]["than"] == []
    assert f'data-id="{kept[0]}" data-vote="reject"' in page.get("/").text


def test_a_medium_tells_how_versions_had_it(page):
    kept, small = ids(page.get("/?verdict=kept"))[0], ids(page.get("/?verdict=large"))[0]
    assert re.search(r"<td>kept</td>", page.get(f"/medium/{kept}/then").text)
    assert re.search(r"<td>large</td>", page.get(f"/medium/{small}/then").text)


class FewEmbeddings:
    """Tables with two hundred media of random unit embeddings."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.ids = [f"{number:032x}" for number in range(200)]
        made = rng.normal(size=(200, 16)).astype(np.float32)
        self.embeddings = made / np.linalg.norm(made, axis=1, keepdims=True)

    def value(self, sql):
        return 200 if "count" in sql else 16

    def rows(self, sql, media_id):
        return [{"embedding": self.embeddings[self.ids.index(media_id)].tolist()}] if media_id in self.ids else []

    def batches(self, sql, num_rows):
        for start in range(0, 200, 64):
            part = slice(start, start + 64)
            lists = pa.array(self.embeddings[part].tolist(), pa.list_(pa.float32()))
            yield pa.RecordBatch.from_arrays([pa.array(self.ids[part]), lists], ["media_id", "embedding"])


def test_the_nearest_are_those_of_all_products():
    tables = FewEmbeddings()
    found = Likeness(tables, None).of_medium(tables.ids[7], 10)
    products = tables.embeddings @ tables.embeddings[7]
    best = np.argsort(-products)[:10]
    assert found[0][0] == tables.ids[7] and found[0][1] == pytest.approx(1, abs=0.02)
    assert len({media_id for media_id, _ in found} & {tables.ids[place] for place in best}) >= 8, (
        "bfloat16 may swap near ones"
    )
    assert Likeness(tables, None).of_medium("nobody", 3) == []
    with pytest.raises(ValueError, match=r"curate\.clip\.model"):
        Likeness(tables, None).of_words("a lake", 3)


def test_words_find_the_media_that_the_model_puts_near(tmp_path):
    """A small CLIP of random weights; the medium whose embedding is that of the words comes first."""
    name = str(tiny_clip.save(tmp_path / "clip"))
    tables = FewEmbeddings()
    tables.embeddings = tables.embeddings[:, :12] / np.linalg.norm(tables.embeddings[:, :12], axis=1, keepdims=True)
    tables.embeddings[42] = ClipModel(name).embed_texts(["a red cat"])[0]
    tables.value = lambda sql: 200 if "count" in sql else 12
    found = Likeness(tables, name).of_words("a red cat", 3)
    assert found[0][0] == tables.ids[42] and found[0][1] == pytest.approx(1, abs=0.02)
