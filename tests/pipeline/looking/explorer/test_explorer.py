"""The page alive: who may ask, what is shown of what was asked, thresholds against judging anew, votes, markup."""

import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from rich.console import Console
from starlette.testclient import TestClient

from tests.pipeline.looking.report.test_report import Checked
from tests.stages.embed import tiny_clip
from tokenmill import storage
from tokenmill.pipeline.catalog.tables import Catalog
from tokenmill.pipeline.looking.explorer import likeness
from tokenmill.pipeline.looking.explorer.filters import COLUMNS
from tokenmill.pipeline.looking.explorer.likeness import Likeness
from tokenmill.pipeline.looking.explorer.server import application
from tokenmill.pipeline.looking.query import Tables
from tokenmill.pipeline.run.redecide import redecide
from tokenmill.pipeline.run.runner import run_phases
from tokenmill.stages.embed.models import ClipModel
from tokenmill.stages.table.columns import MEDIA
from tokenmill.tokenizer.drawings import read_drawings
from tokenmill.training.data.pairs import pairs_of

HOST = "127.0.0.1:8900"


def visitor(config, drawings=None, **more):
    app = application(config, "secret", frozenset({HOST}), drawings)
    return TestClient(app, base_url=f"http://{HOST}", **more)


@pytest.fixture
def page(root_of_markup, drawings):
    """Somebody who opened the printed address."""
    found = visitor(root_of_markup, drawings)
    assert found.get("/?token=secret").status_code == 200
    return found


def ids(answer):
    return re.findall(r'<li class="card" data-id="([0-9a-f]+)"', answer.text)


@pytest.mark.parametrize(
    "place", ["/", "/medium/x", "/preview/x", "/rules/image", "/copies", "/samples", "/drawing/b1"]
)
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
    rules = ("/rules/image", "/captions/source", "/copies", "/samples")
    for place in ("/", f"/medium/{first}?metadata=1", f"/medium/{first}/then", *rules):
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
    assert len(found["lost_media"]) == 2
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


def test_thresholds_of_captions_move_too(page, root_of_markup, tmp_path):
    assert 'href="/captions/source"' in page.get("/").text and page.get("/captions/source").status_code == 200
    found = page.get("/captions/source/judged?says_something.0=99").json()
    assert (found["kept"], found["before"], found["lost"]) == (0, 7, 7) and "number" in found["lost_media"][0][
        "caption"
    ]
    document = yaml.safe_load(found["yaml"])
    source = document["caption"]["captioners"]["source"]["rules"]
    assert source == {"says_something": "words >= 99"}
    words = page.get("/captions/source/judged?says_something.0=3").json()["kept"]
    given = root_of_markup.caption.model_dump() | {"captioners": {"source": {"engine": "source", "rules": source}}}
    copied = str(tmp_path / "root")
    shutil.copytree(root_of_markup.root, copied)
    anew = root_of_markup.model_copy(update={"root": copied, "caption": type(root_of_markup.caption)(**given)})
    run_phases(anew, ("caption",), "run", Console(quiet=True))
    assert (
        words == 7 and Tables(Catalog(copied)).value("select count(*) from captions where reject_reason is null") == 0
    )
    assert page.get("/captions/nobody").status_code == 404


def test_votes_say_how_rules_agree_and_stand_above_them(page, root_of_markup, tmp_path):
    here = {"origin": f"http://{HOST}"}
    kept, small = ids(page.get("/?verdict=kept")), ids(page.get("/?verdict=large"))
    for media_id, vote in ((kept[0], "reject"), (kept[1], "keep"), (small[0], "keep")):
        assert page.post("/vote", json={"media_id": media_id, "vote": vote}, headers=here).status_code == 200
    shown = page.get("/rules/image").text
    assert 'id="votes"' in shown and re.search(r'voted keep, <b id="keep">\d+</b> pass', shown)
    before = page.get("/rules/image/judged").json()["votes"]
    after = page.get("/rules/image/judged?large.0=1").json()["votes"]
    assert after["keep"][0] == after["keep"][1] >= 2 and after["keep"][0] > before["keep"][0]
    votes = f"{root_of_markup.root}/votes/media.jsonl"
    decide = root_of_markup.curate.decide.model_copy(update={"votes": votes})
    curate = root_of_markup.curate.model_copy(update={"decide": decide})
    copied = str(tmp_path / "root")
    shutil.copytree(root_of_markup.root, copied)
    anew = root_of_markup.model_copy(update={"root": copied, "curate": curate})
    told = visitor(anew)
    told.get("/?token=secret")
    shown = told.get("/rules/image/judged").json()
    redecide(anew, Console(quiet=True))
    tables = Tables(Catalog(copied))
    verdicts = {row["media_id"]: row["verdict"] for row in tables.rows("select media_id, verdict from judged")}
    assert (verdicts[kept[0]], verdicts[kept[1]], verdicts[small[0]]) == ("voted_out", "kept", "kept")
    assert sum(verdict == "kept" for verdict in verdicts.values()) == shown["kept"]
    redecide(anew.model_copy(update={"curate": root_of_markup.curate}), Console(quiet=True))
    back = {row["media_id"]: row["verdict"] for row in Tables(Catalog(copied)).rows("select * from judged")}
    assert (back[kept[0]], back[small[0]]) == ("kept", "large")


def test_the_better_of_two_drawings_is_a_vote_for_preferences(root_of_markup, drawings):
    page = visitor(root_of_markup, drawings)
    page.get("/?token=secret")
    here = {"origin": f"http://{HOST}"}
    Path(root_of_markup.root, "votes", "samples.jsonl").unlink(missing_ok=True)
    shown = page.get("/samples")
    assert "0 of 6 pairs" in shown.text and "<b>a ball <b>" not in shown.text
    seen = set()
    for _ in range(6):
        one, other = re.findall(r'data-sample="(\w+)"', page.get("/samples").text)
        assert one[0] == other[0] and frozenset((one, other)) not in seen, "two of one prompt, each pair once"
        seen.add(frozenset((one, other)))
        vote = {"chosen": max(one, other), "rejected": min(one, other), "by": "me"}
        assert page.post("/vote", json=vote, headers=here).status_code == 200
    assert "All pairs are compared" in page.get("/samples").text
    picture = Image.open(io.BytesIO(page.get("/drawing/b1").content))
    assert picture.size == (32, 32) and page.get("/drawing/nobody").status_code == 404
    for wrong in (
        {"chosen": "b1", "rejected": "b1"},
        {"chosen": "b1", "rejected": "c1"},
        {"chosen": "b1"},
        {"chosen": []},
    ):
        assert page.post("/vote", json=wrong, headers=here).status_code == 400
    pairs, undecided = pairs_of(read_drawings(drawings), [f"{root_of_markup.root}/votes/samples.jsonl"])
    chosen = [(row["chosen_id"], row["rejected_id"]) for row in pairs.to_pylist()]
    assert sorted(chosen) == [("b2", "b0"), ("c2", "c0")] and undecided == 0
    assert visitor(root_of_markup).get("/samples?token=secret").status_code == 404


def test_a_medium_tells_how_versions_had_it(page):
    kept, small = ids(page.get("/?verdict=kept"))[0], ids(page.get("/?verdict=large"))[0]
    assert re.search(r"<td>kept</td>", page.get(f"/medium/{kept}/then").text)
    assert re.search(r"<td>large</td>", page.get(f"/medium/{small}/then").text)


def test_a_root_in_a_store_is_looked_at_the_same(root_of_markup, s3):
    config = root_of_markup.model_copy(update={"root": f"{s3}/root"})
    run_phases(config, ("curate", "caption"), "run", Console(quiet=True))
    page = visitor(config)
    page.get("/?token=secret")
    kept = ids(page.get("/?verdict=kept"))
    assert len(kept) == 7 and page.get(f"/medium/{kept[0]}").status_code == 200
    assert page.get(f"/preview/{kept[0]}").headers["content-type"] == "image/webp"
    assert page.get("/rules/image/judged?large.0=105").json()["lost"] == 2
    vote = {"media_id": kept[0], "vote": "reject"}
    assert page.post("/vote", json=vote, headers={"origin": f"http://{HOST}"}).status_code == 200
    assert json.loads(storage.read_bytes(f"{s3}/root/votes/media.jsonl"))["vote"] == "reject"
    assert page.get("/rules/image/judged").json()["votes"] == {} and "reject" in page.get("/rules/image").text
    assert page.get("/rules/image/judged").json()["votes"] == {"reject": [0, 1]}


IDS = [f"{number:032x}" for number in range(200)]


def few_embeddings(folder, width=16, **placed):
    """Two hundred random unit embeddings, some in their places, and the shards of media that hold them."""
    made = np.random.default_rng(0).normal(size=(200, width)).astype(np.float32)
    made /= np.linalg.norm(made, axis=1, keepdims=True)
    for number, embedding in placed.items():
        made[int(number[1:])] = embedding
    lists = pa.array([*made.tolist(), None], MEDIA.field("embedding").type)
    rows = pa.table({"media_id": [*IDS, "f" * 32], "embedding": lists})
    files = []
    for start in range(0, 201, 64):
        files.append(str(folder / f"{start}.parquet"))
        pq.write_table(rows.slice(start, 64), files[-1])
    return made, files


def test_the_nearest_are_those_of_all_products(tmp_path, monkeypatch):
    monkeypatch.setattr(likeness, "_MULTIPLIED_ROWS", 128)
    embeddings, files = few_embeddings(tmp_path, 16 * 128)  # whole pages
    found = Likeness(files, None).of_medium(IDS[7], 10)
    products = embeddings @ embeddings[7]
    best = np.argsort(-products)[:10]
    assert found[0][0] == IDS[7] and found[0][1] == pytest.approx(1, abs=0.02)
    assert [value for _, value in found] == pytest.approx(products[best], abs=0.01)
    assert Likeness(files, None).of_medium("nobody", 3) == [] == Likeness([], None).of_medium(IDS[7], 3)
    with pytest.raises(ValueError, match=r"curate\.clip\.model"):
        Likeness(files, None).of_words("a lake", 3)


def test_words_find_the_media_that_the_model_puts_near(tmp_path):
    """A small CLIP of random weights; the medium whose embedding is that of the words comes first."""
    name = str(tiny_clip.save(tmp_path / "clip"))
    _, files = few_embeddings(tmp_path, 12, _42=ClipModel(name).embed_texts(["a red cat"])[0])
    found = Likeness(files, name).of_words("a red cat", 3)
    assert found[0][0] == IDS[42] and found[0][1] == pytest.approx(1, abs=0.02)
