"""A pack of the plan -> arrays of one fixed length, from ranged reads of row groups, in Parquet or in tars.

Captions are tokenized and sequences built when they are read (0.1 ms for an image of 8x8 codes), so that shards stay
free of any text vocabulary. Row groups stay in a cache of bounded size; one step is read ahead.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq

from tokenmill import storage
from tokenmill.storage.errors import DamagedError, TrainingError
from tokenmill.storage.failures import as_damaged
from tokenmill.tokenizer import webdataset_shards
from tokenmill.tokenizer.dialogue import Turn, build_dialogue
from tokenmill.tokenizer.sequence import Sequence, SequenceLayout
from tokenmill.training.data.dialogues import turns_of
from tokenmill.training.data.index import Index
from tokenmill.training.data.plan import Plan
from tokenmill.training.data.spoken import media_key
from tokenmill.training.data.text_pieces import piece_ids
from tokenmill.training.pack import Pack


class RowGroups:
    """Row groups of shards, read by range and kept while they fit into `cache_bytes`."""

    def __init__(self, shard_uris: list[str], cache_bytes: int):
        self._uris = shard_uris
        self._cache_bytes = cache_bytes
        self._footers: dict[int, pq.FileMetaData] = {}
        self._cached: OrderedDict[tuple[int, int], pa.Table] = OrderedDict()
        self._held_bytes = 0
        self.num_reads = 0

    def uri(self, shard: int) -> str:
        """Where a shard stands."""
        return self._uris[shard]

    def get(self, shard: int, row_group: int) -> pa.Table:
        """Columns media_id, codes, fps and caption of a row group. Raises DamagedError; OSError when a tar is gone."""
        key = (shard, row_group)
        if key in self._cached:
            self._cached.move_to_end(key)
            return self._cached[key]
        uri = self._uris[shard]
        is_tar = webdataset_shards.is_tar(uri)
        columns = ["media_id", "fps", "caption", *(webdataset_shards.CODES_PLACE if is_tar else ("codes",))]
        place = webdataset_shards.members_uri(uri) if is_tar else uri
        filesystem, path = storage.filesystem(place)
        try:
            with as_damaged(place), filesystem.open_input_file(path) as stream:
                file = pq.ParquetFile(stream, metadata=self._footers.get(shard), pre_buffer=True)
                self._footers[shard] = file.metadata
                table = file.read_row_group(row_group, columns=columns)
                table.validate(full=True)
        except OSError as error:
            if is_tar:
                raise
            raise DamagedError(uri, error) from error
        if is_tar:
            with as_damaged(uri):
                codes = webdataset_shards.read_codes(uri, table)
            table = table.drop_columns(webdataset_shards.CODES_PLACE).append_column("codes", codes)
        self.num_reads += 1
        self._cached[key] = table
        self._held_bytes += table.nbytes
        while self._held_bytes > self._cache_bytes and len(self._cached) > 1:
            self._held_bytes -= self._cached.popitem(last=False)[1].nbytes
        return table


class Loader:
    """Packs of a plan, built from shards."""

    def __init__(
        self,
        plan: Plan,
        index: Index,
        shard_uris: list[str],
        layout: SequenceLayout,
        pack_tokens: int,
        cache_bytes: int = 1 << 30,
        dialogues: pa.Table | None = None,
    ):
        self.plan, self._dialogues = plan, dialogues
        self._index = index
        self._layout = layout
        self._pack_tokens = pack_tokens
        self._groups = RowGroups(shard_uris, cache_bytes)

    def pack(self, number: int) -> Pack:
        """Pack `number` of the plan. Raises TrainingError when a shard is no longer the one that was planned."""
        slots = range(self.plan.starts[number], self.plan.starts[number + 1])
        return self.packed(sequence for slot in slots for sequence in self.sequences(slot))

    def packed(self, sequences: Iterable[Sequence]) -> Pack:
        """Sequences, which must fit, as one pack."""
        return Pack.of(sequences, self._pack_tokens, self._layout.vocabulary.pad)

    def names(self, number: int) -> list[str]:
        """The documents of pack `number`: media_ids, with `#` and its row those of a dialogue."""
        index, plan = self._index, self.plan
        names = []
        for document in plan.documents[plan.starts[number] : plan.starts[number + 1]].tolist():
            dialogue = f"#{index.dialogue[document]}" if len(index.dialogue) and index.dialogue[document] >= 0 else ""
            name = ""
            if index.shard[document] >= 0:
                table = self._groups.get(int(index.shard[document]), int(index.row_group[document]))
                name = table["media_id"][int(index.row[document])].as_py()
            names.append(name + dialogue)
        return names

    def sequences(self, slot: int) -> Iterable[Sequence]:
        """What stands in the pack for a slot of the plan."""
        return [self._sequence(slot)]

    def _sequence(self, slot: int) -> Sequence:
        index, document = self._index, int(self.plan.documents[slot])
        if index.shard[document] < 0:  # a dialogue about nothing seen
            return build_dialogue(self._layout, self._turns(document))
        row = int(index.row[document])
        table = self._groups.get(int(index.shard[document]), int(index.row_group[document]))
        piece = index.piece_of(document)
        if piece is not None:
            return self._text_sequence(document, piece, table["media_id"][row].as_py(), table["caption"][row].as_py())
        grid = index.grid[document]
        media_id, codes = table["media_id"][row].as_py(), table["codes"][row].values
        is_spoken = bool(index.is_dialogue[document])
        key = media_key(f"{media_id}#{index.dialogue[document]}" if is_spoken else media_id)
        if key != index.media[document] or codes is None or len(codes) != grid.prod():
            raise self._unplanned(document)
        is_video = bool(index.is_video[document])
        is_null = is_spoken or bool(self.plan.is_null_caption[slot])
        sequence = self._layout.build(
            codes.to_numpy().reshape(grid if is_video else grid[1:]),
            self._layout.caption_ids(None if is_null else table["caption"][row].as_py()),
            table["fps"][row].as_py() if is_video else None,
            bool(self.plan.is_caption_last[slot]),
        )
        if is_spoken:
            sequence = build_dialogue(self._layout, self._turns(document), sequence)
        of_text = int(index.caption_tokens[document]) if is_spoken or not is_null else 0
        if len(sequence.ids) != int(index.medium_tokens[document]) + of_text:
            raise self._unplanned(document)
        return sequence

    def _turns(self, document: int) -> list[Turn]:
        assert self._dialogues is not None
        return turns_of(self._dialogues, int(self._index.dialogue[document]))

    def _text_sequence(self, document: int, piece: int, media_id: str, text: str | None) -> Sequence:
        index = self._index
        num_text, num_structure = int(index.caption_tokens[document]), int(index.medium_tokens[document])
        start, skip = int(index.text_start[document]), int(index.text_skip[document])
        ids = piece_ids(text or "", start, skip, num_text, self._layout)
        if media_key(media_id, piece) != index.media[document] or len(ids) != num_text:
            raise self._unplanned(document)
        is_first = piece == 0
        return self._layout.build_text(ids, is_first, is_last=num_structure > is_first)

    def _unplanned(self, document: int) -> TrainingError:
        index = self._index
        return TrainingError(
            f"{self._groups.uri(int(index.shard[document]))}: row {index.row[document]} of row group "
            f"{index.row_group[document]} is not what was planned; "
            "give back the shards of the pinned tokens version, or train into another folder"
        )

    def steps(self, start: int, rank: int = 0, world: int = 1) -> Iterator[tuple[int, list[Pack]]]:
        """(step, packs of this rank) from step `start` to the end of the plan; one step is read ahead."""
        with ThreadPoolExecutor(1, thread_name_prefix="loader") as pool:

            def read(step: int) -> list[Pack]:
                return [self.pack(number) for number in self.plan.step_packs(step, rank, world)]

            ahead = pool.submit(read, start)
            for step in range(start, self.plan.num_steps):
                packs = ahead.result()
                if step + 1 < self.plan.num_steps:
                    ahead = pool.submit(read, step + 1)
                yield step, packs
