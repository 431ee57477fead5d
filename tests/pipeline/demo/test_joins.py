"""Scenes that a web page says something of: packed with it, and what is right of them is known."""

import json
import tarfile

from tokenmill.pipeline.demo.captions import hide_captions, true_captions
from tokenmill.pipeline.demo.joins import OF_THE_WEB, _examples, pack_of_the_web
from tokenmill.pipeline.demo.scenes import write_corpus


def test_a_pack_holds_scenes_with_what_their_pages_say(tmp_path):
    write_corpus(tmp_path, num_images=80, num_videos=1)
    hidden, true = hide_captions(tmp_path), true_captions(80)
    before = {file.name: file.read_bytes() for file in (tmp_path / "images").glob("*.png")}
    right = pack_of_the_web(tmp_path, hidden, true)
    assert len(right) == OF_THE_WEB and right.keys() < hidden
    after = {file.name for file in (tmp_path / "images").glob("*.png")}
    assert after == before.keys() - right.keys()
    with tarfile.open(tmp_path / "web" / "scenes.tar") as pack:
        found = {member.name: pack.extractfile(member).read() for member in pack}
    assert {name for name in found if name.endswith(".png")} == right.keys()
    for name, caption in right.items():
        assert found[name] == before[name]
        page = json.loads(found[name.replace(".png", ".json")])["alt"]
        seen, _, told = caption.partition(", ")
        assert seen == true[name] and told.removeprefix("by ") in page and seen not in page


def test_examples_are_joined_as_scenes_are():
    lines = [json.loads(line) for line in _examples("own", ["a red circle", "a blue square"])]
    for line in lines:
        seen, _, told = line["caption"].partition(", ")
        assert line["captions"] == {"own": seen} and told.removeprefix("by ") in line["metadata"]["alt"]
    assert {line["captions"]["own"] for line in lines} == {"a red circle", "a blue square"}
