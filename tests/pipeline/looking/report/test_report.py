"""The report: its numbers are those of the tables, its examples stand where they say, nothing in it can run or load."""

import base64
import io
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from tokenmill import storage
from tokenmill.pipeline.catalog.tables import Catalog, CatalogError
from tokenmill.pipeline.commands import look
from tokenmill.pipeline.looking.charts import curves, histogram
from tokenmill.pipeline.looking.query import Tables
from tokenmill.pipeline.looking.report import accounts, report as page, rules
from tokenmill.pipeline.looking.report.pictures import Pictures
from tokenmill.pipeline.run.redecide import redecide
from tokenmill.pipeline.run.runner import run_phases
from tokenmill.storage.errors import UserError

QUIET = Console(quiet=True)
VOID = {"meta", "img", "line", "rect", "polyline", "br", "link", "input"}


class Checked(HTMLParser):
    """Tags that open and close, and what could make a browser load or run something."""

    def __init__(self):
        super().__init__()
        self.open, self.wrong, self.ids, self.links = [], [], [], []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("script", "iframe", "object", "embed", "form") or any(name.startswith("on") for name in attrs):
            self.wrong.append((tag, attrs))
        if not attrs.get("src", "data:image/").startswith("data:image/"):
            self.wrong.append((tag, attrs))
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.links += [attrs["href"][1:]] if tag == "a" else []
        if tag == "img" and not attrs.get("alt"):
            self.wrong.append("no alt")

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.wrong.append(f"</{tag}>")


def checked(html):
    seen = Checked()
    seen.feed(html)
    assert not seen.open and not seen.wrong
    assert len(set(seen.ids)) == len(seen.ids) and set(seen.links) <= set(seen.ids), "links lead somewhere"
    assert "default-src 'none'" in html and html.startswith("<!DOCTYPE html>")
    return html


@pytest.fixture(scope="module")
def made(root_of_markup, tmp_path_factory):
    """One of this module's own, for some of its tests judge it anew."""
    root = tmp_path_factory.mktemp("report") / "root"
    shutil.copytree(root_of_markup.root, root)
    return root_of_markup.model_copy(update={"root": str(root)})


def test_the_funnel_is_that_of_the_tables_and_loses_nothing(made):
    steps = accounts.funnel(Tables(Catalog(made.root)))
    assert all(step.seen == step.kept + sum(reason.count for reason in step.reasons) for step in steps)
    by_name = {(step.name, step.kind): step for step in steps}
    images = by_name["media, by rules", "image"]
    assert (images.seen, images.kept) == (13, 7)
    assert {reason.name: reason.count for reason in images.reasons} == {"large": 5, "corrupt": 1}
    assert by_name["tokens", "image"].seen == by_name["captions by source", "image"].kept == 7
    assert by_name["files", "all"].kept == 13


def test_examples_of_a_rule_are_the_nearest_on_either_side(made):
    (kind,) = rules.rule_figures(made, Tables(Catalog(made.root)))
    (rule,) = kind.rules
    (scale,) = rule.scales
    assert (kind.num_scored, kind.num_kept, rule.count.alone, scale.value) == (12, 7, 5, 85.0)
    assert [value for _, value in scale.below] == [40, 50, 60, 70, 80]
    assert [value for _, value in scale.above] == [90, 100, 110, 120, 130, 140]


def test_the_page_shows_all_and_runs_nothing(made, tmp_path):
    size = page.write_report(made, str(tmp_path / "new" / "report.html"))
    html = checked((tmp_path / "new" / "report.html").read_text())
    assert size == (tmp_path / "new" / "report.html").stat().st_size < page.MOST_BYTES
    assert "<script>" not in html and "&lt;script&gt;alert(1)" in html and "&lt;b&gt;" in html
    for words in ("large", "min(width_px, height_px) &gt;= 85", "torn.jpg", "From files to tokens", "area_px: 1024"):
        assert words in html
    assert html.count("<svg") >= 1 and html.count("data:image/webp") >= 12
    again = page.report(made, seed=0)
    assert again.replace(made_at(again), "") == html.replace(made_at(html), "")


def made_at(html):
    return re.search(r"made ([^.]+)\.", html)[1]


def test_no_more_pictures_than_there_is_room_for(made, monkeypatch):
    monkeypatch.setattr(page, "_FOR_PICTURES", 12_000)
    html = checked(page.report(made))
    assert sum(len(each) for each in re.findall(r'src="(data:[^"]+)"', html)) < 13_000
    assert re.search(r"\d+ pictures found no room", html)


def test_another_version_beside_it(made):
    before = Catalog(made.root).tokens.version
    decide = made.curate.decide.model_copy(update={"image_rules": {"large": "min(width_px, height_px) >= 105"}})
    later = made.model_copy(update={"curate": made.curate.model_copy(update={"decide": decide})})
    redecide(later, QUIET)
    run_phases(later, ("caption", "tokenize"), "run", QUIET)
    html = checked(page.report(later, against=before))
    assert "kept → large: 2" in html
    with pytest.raises(CatalogError, match="there is no version 99"):
        page.report(later, against=99)
    redecide(made, QUIET)


def test_a_picture_shown_twice_is_drawn_once_and_takes_room_twice(tmp_path):
    Image.new("RGB", (50, 50), "red").save(tmp_path / "a.png")
    pictures = Pictures(str(tmp_path), 10_000)
    row = {"media_id": "a", "kind": "image", "uri": str(tmp_path / "a.png"), "member": None}
    first = pictures.still(row)
    left = pictures._left
    (tmp_path / "a.png").unlink()
    assert pictures.still(row) == first and 10_000 - left == left - pictures._left > 0
    assert Image.open(io.BytesIO(base64.b64decode(first.split(",")[1]))).size == (50, 50)


def test_charts_hold_every_value():
    values = np.random.default_rng(0).normal(size=1_000)
    svg = str(histogram(values[values > 0], values[values <= 0], [0.0]))
    bars = [float(height) for height in re.findall(r'class="(?:yes|no)"[^>]* height="([\d.]+)"', svg)]
    assert max(bars) <= 96 and 'class="mark"' in svg and "1,000 media" in svg
    assert str(histogram(np.array([]), np.array([3.0]), [3.0])).count("<rect") == 1
    assert curves({}) == "" and "a&lt;b 0.500" in curves({"a<b": (np.arange(3.0), np.array([3, 1, 0.5]))})


def test_a_run_leaves_one_where_something_changed(made, capsys, monkeypatch):
    config = made.model_copy(update={"root": made.root + "-2"})
    from tokenmill.pipeline.commands import phases

    monkeypatch.setattr(phases, "console", QUIET)
    phases._run(config, ("curate",), "curate", False)
    uri = page.report_uri(config.root)
    first = storage.read_bytes(uri)
    checked(first.decode())
    storage.delete_file(uri)
    phases._run(config, ("curate",), "curate", False)
    assert not storage.exists(uri), "nothing was new"
    monkeypatch.setattr(page, "report", lambda *_: (_ for _ in ()).throw(UserError("no room")))
    look.leave_report(config)  # says so, and fails nothing


def test_on_an_object_store(made, s3):
    config = made.model_copy(update={"root": f"{s3}/root"})
    run_phases(config, ("curate",), "curate", QUIET)
    assert page.write_report(config, f"{s3}/root/reports/report.html") > 5_000
    assert "12" in checked(storage.read_bytes(f"{s3}/root/reports/report.html").decode())
