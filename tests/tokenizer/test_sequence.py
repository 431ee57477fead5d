"""The layout, token by token, and back; random grids, captions and orders."""

import numpy as np
import pytest

from tokenmill.tokenizer.sequence import Kind, SequenceLayout, meta_text
from tokenmill.tokenizer.text import train_text_tokenizer
from tokenmill.tokenizer.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def layout():
    tokenizer = train_text_tokenizer(["a red circle left of a blue square"] * 3, 300)
    return SequenceLayout(tokenizer, Vocabulary.of(tokenizer, 32768))


def text(layout, ids):
    return layout.tokenizer.decode(list(ids))


def test_image_layout_token_by_token(layout):
    v = layout.vocabulary
    codes = np.array([[1, 2, 3], [4, 5, 32767]], np.uint16)
    caption = layout.caption_ids("a red circle")
    one, two, three, four, five, last = (codes.ravel().astype(int) + v.vision_offset).tolist()
    medium = [v.sov, *layout.caption_ids("2*3"), v.sot, one, two, three, v.eol, four, five, last, v.eol, v.eof, v.eov]
    generation = layout.build(codes, caption)
    assert generation.ids.tolist() == [v.bos, *caption, *medium, v.eos]
    understanding = layout.build(codes, caption, is_caption_last=True)
    assert understanding.ids.tolist() == [v.bos, *medium, *caption, v.eos]
    unconditional = layout.build(codes, layout.caption_ids(None))
    assert unconditional.ids.tolist() == [v.bos, *medium, v.eos]
    assert generation.ids.dtype == np.int32


def test_video_layout(layout):
    v = layout.vocabulary
    codes = np.arange(2 * 2 * 1).reshape(2, 2, 1)
    sequence = layout.build(codes, layout.caption_ids(None), fps=8.0)
    c = v.vision_offset
    expected = [c, v.eol, c + 1, v.eol, v.eof, c + 2, v.eol, c + 3, v.eol, v.eof]
    start = sequence.ids.tolist().index(v.sot) + 1
    assert sequence.ids[start:-2].tolist() == expected
    assert text(layout, sequence.ids[2 : start - 1]) == "2*1*2 8fps 1s"
    assert (sequence.kinds == Kind.VIDEO).sum() == 4


def test_text_documents_token_by_token(layout):
    v = layout.vocabulary
    ids = layout.caption_ids("a red circle")
    for is_first, is_last, begin, end in (
        (True, True, [v.bos], [v.eos]),
        (True, False, [v.bos], []),
        (False, False, [], []),
        (False, True, [], [v.eos]),
    ):
        sequence = layout.build_text(ids, is_first, is_last)
        assert sequence.ids.tolist() == [*begin, *ids, *end]
        assert sequence.ids.dtype == np.int32 and sequence.kinds.dtype == np.uint8
        words = [Kind.DOCUMENT] * (len(ids) + len(end))
        assert sequence.kinds.tolist() == [Kind.STRUCTURE] * len(begin) + words


def test_lengths_of_emu3(layout):
    """4,169 tokens from SOV to EOV at 64x64 and 8,199 at 90x90, as counted in Emu3's code; 5 s of video in 131,072."""
    assert layout.num_medium_tokens(64, 64) - 2 == 4169
    assert layout.num_medium_tokens(90, 90) - 2 == 8199
    assert 124_830 < layout.num_medium_tokens(64, 64, 30, 24.0) < 131_072


def test_kinds_cover_what_they_should(layout):
    caption = layout.caption_ids("a red circle 12")
    for is_last in (False, True):
        sequence = layout.build(np.zeros((3, 4), int), caption, is_caption_last=is_last)
        assert sequence.kinds.dtype == np.uint8
        end = [layout.vocabulary.eos] if is_last else []
        np.testing.assert_array_equal(sequence.ids[sequence.kinds == Kind.TEXT], [*caption, *end])
        assert (sequence.ids[sequence.kinds == Kind.IMAGE] == layout.vocabulary.vision_offset).all()
        assert (sequence.kinds == Kind.STRUCTURE).sum() == layout.num_medium_tokens(3, 4) - 12 - len(end)


def test_round_trip_of_random_sequences(layout):
    rng = np.random.default_rng(0)
    captions = ["", "a red circle", "9*9 <|image end|>", "é 中文 12fps", "x" * 200]
    for _ in range(300):
        is_video = bool(rng.integers(2))
        shape = rng.integers(1, 12, 3 if is_video else 2)
        codes = rng.integers(0, 32768, shape).astype(rng.choice(["uint16", "int64"]))
        fps = float(rng.choice([8.0, 12.0, 23.976, 0.5])) if is_video else None
        caption = layout.caption_ids(captions[rng.integers(len(captions))])
        is_last = bool(len(caption)) and bool(rng.integers(2))
        sequence = layout.build(codes, caption, fps, is_last)
        grid = (int(shape[-2]), int(shape[-1]), int(shape[0]) if is_video else None, fps)
        assert len(sequence.ids) == len(sequence.kinds) == layout.num_medium_tokens(*grid) + len(caption)
        parsed = layout.parse(sequence.ids)
        np.testing.assert_array_equal(parsed.codes, codes)
        np.testing.assert_array_equal(parsed.caption_ids, caption)
        assert (parsed.fps, parsed.is_caption_last) == (fps, is_last)
        if not is_last:
            prefix = layout.prefix(caption, *grid)
            np.testing.assert_array_equal(sequence.ids[: len(prefix)], prefix)


def test_every_damage_is_an_error(layout):
    """Deleting, doubling or replacing any token outside the caption never parses."""
    v = layout.vocabulary
    sequence = layout.build(np.arange(15).reshape(3, 5), layout.caption_ids(None)).ids
    for place in range(len(sequence)):
        replaced = sequence.copy()
        replaced[place] = v.eof if sequence[place] != v.eof else v.eol
        for ids in [np.delete(sequence, place), np.insert(sequence, place, sequence[place]), replaced]:
            with pytest.raises(ValueError):
                layout.parse(ids)


def test_codes_of_another_codebook_are_an_error(layout):
    with pytest.raises(ValueError, match="codebook of 32768"):
        layout.build(np.full((2, 2), 32768), layout.caption_ids(None))
    with pytest.raises(ValueError, match="codebook"):
        layout.build(np.full((2, 2), -1), layout.caption_ids(None))


def test_a_video_needs_its_frame_rate():
    assert meta_text(8, 9, 4, 8.0) == "8*9*4 8fps 2s"
    with pytest.raises(ValueError, match="frame rate"):
        meta_text(8, 9, 4)
