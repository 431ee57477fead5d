"""Why a row is rejected: every reason that a stage or a flow may give, and what happened. docs/errors.md is made of it.

The names of a config's rules are reasons, too; their threshold is what happened.
"""

REASONS = {
    "unreadable": "the bytes could not be had: no permission, no such file any more, a download that ended early",
    "not_a_file": "a link, a device or a sparse file in a tar",
    "changed": "the file is another than the one that was listed or curated; run again",
    "empty_file": "no bytes, or an empty field of a table",
    "unknown_format": "the first bytes are those of no known image or video format",
    "unsupported_format": "a known format that is not decoded here, or pixels without a defined range",
    "unsupported_codec": "no decoder for the video stream",
    "corrupt": "the decoder failed at once",
    "broken_tail": "the decoder failed after good frames; what is before counts",
    "no_frames": "a video stream without a frame that can be decoded",
    "no_video_stream": "a container of sound or subtitles alone",
    "animated": "an image of several frames",
    "too_many_pixels": "more than `max_pixels` of `curate.score`, `curate.split` or `tokenize.frames`",
    "too_many_bytes": "more than `curate.read.max_image_bytes` or `curate.read.max_video_bytes`",
    "too_long": "not read beyond `curate.split.max_duration_s`; what is before counts",
    "too_few_frames": "a clip too short for a group of frames at `tokenize.frames.clip_fps`",
    "aspect": "longer than `tokenize.frames.max_aspect` times its width",
    "empty_container": "a tar or a table without a member",
    "corrupt_container": "of a tar or a table; what stands before the damage is kept",
    "no_medium": "of a tar: a caption or metadata, and no image or video of this key",
    "no_column": "of a table: no column holds what is looked for; name it in `sources`",
    "bad_url": "not a URL with http:// or https:// and a host, or one with a password in it",
    "private_address": "the host is not on the public internet; see `curate.fetch.allow_private`",
    "no_such_host": "the name of the host is unknown",
    "bad_certificate": "the host's certificate is not to be trusted",
    "connection_failed": "no connection, or it broke off; `curate.fetch_pace.retry_failed=true` tries again",
    "timed_out": "the server was silent for too long, tried again like the one before; or the file held its worker "
    "for `cluster.medium_timeout_s`",
    "http_client_error": "the server says that the request is wrong: 404 and others from 400 on",
    "http_server_error": "the server failed: 500 and others; tried again like `connection_failed`",
    "rate_limited": "the server asks for fewer requests; tried again like `connection_failed`",
    "bad_response": "an answer that is no HTTP, or of an encoding that nobody asked for",
    "too_many_redirects": "from URL to URL without an end",
    "robots_disallowed": "robots.txt asks to stay away",
    "opted_out": "the site asks not to be trained on",
    "worker_died": "the file killed its worker twice when it was alone in it",
    "not_scored": "the verdict hangs on scores that the next run computes",
}
