"""What a model sees of a medium."""

import numpy as np
import pytest
from PIL import Image

from tokenmill.stages.caption.pictures import Pictures, fitted, frame_times
from tokenmill.stages.table.rows import RowError
from tokenmill.storage.identity import clip_id, content_id


def medium(path, kind="image", **more):
    file_id = content_id([path.read_bytes()])
    place = {"uri": str(path), "member": None, "offset_bytes": None, "size_bytes": None, "file_id": file_id}
    return {**place, "kind": kind, "media_id": file_id, **more}


@pytest.fixture
def pictures() -> Pictures:
    return Pictures("", 5000, 12, 2000)


def test_images_fit_and_are_never_enlarged(tmp_path, texture, pictures):
    for number, (width, height) in enumerate([(300, 200), (40, 30), (2000, 3)]):
        path = tmp_path / f"{number}.png"
        Image.fromarray(texture(width, height)).save(path)
        (found,) = pictures.of(medium(path))
        assert found.shape[:2] == fitted(width, height, 5000)[::-1] and found.shape[0] * found.shape[1] <= 5000
    assert fitted(40, 30, 5000) == (40, 30)


def test_clips_give_evenly_spaced_frames(write_video, pictures):
    shades = [np.full((48, 64, 3), 4 * i, np.uint8) for i in range(60)]
    path = write_video("a.mp4", shades)
    file_id = content_id([path.read_bytes()])
    found = pictures.of(medium(path, "video", media_id=clip_id(file_id, 0.4, 2.4), start_s=0.4, end_s=2.4))
    assert len(found) == 12 and found[0].shape == (38, 51, 3)
    seen = [float(frame.mean()) for frame in found]
    expected = [4 * int(time_s * 25) for time_s in frame_times(0.4, 2.4, 12)]
    assert np.abs(np.array(seen) - expected).max() < 8


def test_what_changed_or_cannot_be_read_is_rejected(tmp_path, texture, pictures):
    path = tmp_path / "a.png"
    Image.fromarray(texture(64, 64)).save(path)
    known = medium(path)
    for change, reason in [
        (lambda: Image.fromarray(texture(64, 64, 1)).save(path), "changed"),
        (lambda: path.unlink(), "vanished"),
    ]:
        change()
        with pytest.raises(RowError) as rejected:
            pictures.of(known)
        assert rejected.value.columns["reject_reason"] == reason
