"""Columns of the tables `sources`, `media` and `captions`, as Arrow schemas.

One row of `media` is one still image, one clip of a video, one text document, or one file that could not become any of
these; its `reject_reason` says why (null = kept). Scores are stored as measured; thresholds live in the config's rules.
"""

import pyarrow as pa

# What a measurement of a medium may find. Units are in the names; shares are 0..1.
SCORES = pa.schema(
    [
        pa.field("aspect", pa.float64()),  # longer side / shorter side
        pa.field("sharpness", pa.float64()),  # variance of the Laplacian of the luma at the scoring size
        pa.field("luminance", pa.float64()),  # mean luma, 0..255
        pa.field("contrast", pa.float64()),  # standard deviation of the luma, 0..255
        pa.field("colourfulness", pa.float64()),  # Hasler & Suesstrunk 2003, 0 = grey
        pa.field("chroma", pa.float64()),  # colour that luma does not explain, 0..128; grey and sepia are near 0
        pa.field("noise", pa.float64()),  # standard deviation of the luma's noise at the scoring size (Immerkaer 1996)
        pa.field("border", pa.float64()),  # share of the area in flat bars at the edges
        pa.field("jpeg_quality", pa.float64()),  # 1..100 from the quantization table; null unless JPEG
        pa.field("phash", pa.string()),  # 64-bit DCT hash, 16 hex digits; of the middle sample of a clip
        pa.field("flow", pa.float64()),  # mean optical-flow magnitude / shorter edge, at 2 FPS (Emu3 2.1); clips only
        pa.field("flicker", pa.float64()),  # mean |change of mean luma| between neighbouring frames, 0..255; clips only
        pa.field("text_area", pa.float64()),  # share of the picture under text boxes; clips: mean over their samples
        pa.field("text_boxes", pa.int32()),  # text boxes; clips: the most in one sample
        pa.field("aesthetic", pa.float64()),  # LAION's head on CLIP, about 1..10; clips: the least of three frames
        pa.field("similarity", pa.float64()),  # cosine of the CLIP embeddings of picture and source caption
        pa.field("watermark", pa.float64()),  # share of confidence in a watermark, 0..1, by a head on CLIP
        pa.field("nsfw", pa.float64()),  # the same for what is not safe for work
    ]
)

MEDIA = pa.schema(
    [
        pa.field("media_id", pa.string(), nullable=False),
        pa.field("file_id", pa.string(), nullable=False),  # content id of the file; = media_id unless this is a clip
        pa.field("kind", pa.string(), nullable=False),  # image | video | text | unknown
        pa.field("uri", pa.string(), nullable=False),
        pa.field("member", pa.string()),  # of a container at `uri`: name in a tar, url in a list, column:row of a table
        pa.field("offset_bytes", pa.int64()),  # where the member of a tar begins
        pa.field("start_s", pa.float64()),  # clips: [start_s, end_s) in the file's presentation time
        pa.field("end_s", pa.float64()),
        pa.field("width_px", pa.int32()),  # as shown: EXIF orientation and video rotation applied
        pa.field("height_px", pa.int32()),
        pa.field("fps", pa.float64()),  # mean frame rate of the video
        pa.field("duration_s", pa.float64()),  # of the clip; null for images
        pa.field("num_frames", pa.int32()),  # frames decoded in the clip; frames of an animated image
        pa.field("format", pa.string()),  # by content: jpeg, png, ... or the video codec
        pa.field("container_format", pa.string()),  # by content, of a video's file: mp4, matroska, ...
        pa.field("size_bytes", pa.int64()),  # of the file
        pa.field("extension_fits", pa.bool_()),  # the content, of one of its names at least; null: no name has one
        pa.field("source_caption", pa.string()),  # a text document: all of it
        pa.field("metadata", pa.string()),  # what else the source said of it, a JSON object
        pa.field("rotation_deg", pa.int32()),  # counter-clockwise, as the container asks for; clips only
        pa.field("variable_fps", pa.bool_()),  # the frames' times are not evenly spaced; clips only
        *SCORES,
        pa.field("embedding", pa.list_(pa.float32())),  # of CLIP, of length 1; null unless asked for
        pa.field("scored", pa.string()),  # expensive scorers that ran: "text clip"; the others' scores are null
        pa.field("reject_reason", pa.string()),  # null = kept
        pa.field("reject_detail", pa.string()),  # the decoder's own words, or the rule
        pa.field("fingerprint", pa.string(), nullable=False),
        pa.field("run_id", pa.string(), nullable=False),
    ]
)

# A row for each medium and captioner, of a long clip for each span of it.
CAPTIONS = pa.schema(
    [
        pa.field("media_id", pa.string(), nullable=False),
        pa.field("captioner", pa.string(), nullable=False),
        pa.field("span", pa.int32()),  # number of the span of a long clip, from 0; null = the whole medium
        pa.field("start_s", pa.float64()),  # of the span, in the file's presentation time
        pa.field("end_s", pa.float64()),
        pa.field("caption", pa.string()),  # whole, also where it does not count; null: there is none
        pa.field("model", pa.string()),  # as the config names it
        pa.field("prompt", pa.string()),  # name and version
        pa.field("finish_reason", pa.string()),  # of a model's answer: stop, length, or a server's own word
        pa.field("tokens_in", pa.int32()),  # as the model counts them, pictures included
        pa.field("tokens_out", pa.int32()),
        pa.field("seconds", pa.float64()),  # from request to answer; of a batch its share
        pa.field("inputs", pa.string()),  # digest of the captions that were put together
        # What rules read; null of the source's own until a rule asks.
        pa.field("words", pa.int32()),
        pa.field("truncated", pa.bool_()),  # cut off at max_tokens
        pa.field("refused", pa.bool_()),  # `I cannot`, `As an AI` and the like
        pa.field("boilerplate", pa.bool_()),  # begins with `The image shows` and the like
        pa.field("leaked", pa.bool_()),  # repeats the prompt, or holds special tokens
        pa.field("repeated", pa.float64()),  # share of 4-grams that stood there before, 0..1
        pa.field("invented", pa.int32()),  # numbers and quoted names that none of the captions put together has
        pa.field("likeness", pa.float64()),  # cosine of caption and medium by CLIP; null until a rule asks
        pa.field("likeness_by", pa.string()),  # the model that said so, `clip:identity`
        pa.field("language", pa.string()),  # ISO 639-1, by py3langid; null until a rule asks
        pa.field("reject_reason", pa.string()),
        pa.field("reject_detail", pa.string()),  # the rule, or the server's words
        pa.field("fingerprint", pa.string(), nullable=False),
        pa.field("run_id", pa.string(), nullable=False),
    ]
)

SOURCES = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("member", pa.string()),  # of the container at `uri`; null = the file or the container itself
        pa.field("offset_bytes", pa.int64()),  # where a member of a tar begins
        pa.field("etag", pa.string(), nullable=False),  # the store's, also for members; locally mtime in ns and size
        pa.field("size_bytes", pa.int64(), nullable=False),
        pa.field("status", pa.string(), nullable=False),  # present | gone
        pa.field("file_id", pa.string()),  # content id as last read; null of a container that was read whole
        pa.field("caption", pa.string()),  # the source's own
        pa.field("caption_etag", pa.string()),  # of the sidecar or the captions.jsonl row; null = no caption
        pa.field("metadata", pa.string()),  # of a member, a JSON object
        pa.field("fingerprint", pa.string(), nullable=False),  # of the curate phase that read it
        pa.field("last_seen_run", pa.string(), nullable=False),  # the last run in which the object's state changed
    ]
)

# What the planner hands to the curate phase: one row per file to read.
LISTED = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("size_bytes", pa.int64()),
        pa.field("source_caption", pa.string()),
    ]
)

# The same of a container: what it is, and which of its members are known; and of an entry that cannot be read: why.
UNPACK = pa.schema(
    [
        # webdataset | parquet | urls | text | captions (with malformed lines); null = a file of its own
        pa.field("container", pa.string()),
        pa.field("column", pa.string()),  # that holds bytes, urls or texts; null: found by its name
        pa.field("caption_column", pa.string()),
        pa.field("known_members", pa.list_(pa.string())),  # measured already, with the content of `known_ids`
        pa.field("known_ids", pa.list_(pa.string())),
        pa.field("only", pa.list_(pa.string())),  # members to take; null = all
        pa.field("refused", pa.string()),  # reason: detail
    ]
)

VANISHED = "vanished"  # the reason of a row whose file went before it was read: it is read again where it comes back
CHANGED = "changed"  # the reason of a medium whose place held other bytes than those curated; it is tried again
KNOWN = "known"  # the reason of a row that only says that a member is still there; it becomes no row of `media`

# Where a medium is, for the phases that read it again, and what the planner hands to them.
PLACES = pa.schema(
    [
        MEDIA.field(name)
        for name in ["media_id", "file_id", "kind", "uri", "member", "offset_bytes", "size_bytes", "start_s", "end_s"]
    ]
)
TO_CAPTION = pa.schema(
    # `read`: the captions to put together, a JSON object by captioner
    [*PLACES, MEDIA.field("source_caption"), MEDIA.field("metadata"), pa.field("read", pa.string())]
)
TO_TOKENIZE = PLACES.append(CAPTIONS.field("caption"))
