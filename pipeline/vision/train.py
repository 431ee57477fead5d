"""`tokenmill tokenizer train`: a vision tokenizer trained on the kept media of the catalog, by Ray Train.

Curates first (a known corpus is not read again). Then every worker holds the kept images and clips in memory, at the
sizes that the config names, at most `max_data_mb` of them in the order of their ids, which is random, and trains as
tokenizer/vision/training/loop.py says. An interrupted training goes on from its checkpoint.
"""

from rich.console import Console

from tokenmill import storage
from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.flow.training import train_on_workers
from tokenmill.pipeline.vision.kept import kept_media
from tokenmill.pipeline.vision.worker import Job, train_worker
from tokenmill.storage.run_log import Record


def train_tokenizer(config: RunConfig, out: str | None, console: Console) -> None:
    """Train on the catalog's kept media and save under `out` (default ROOT/tokenizer).

    Raises CatalogError without media, TrainingError when the media or the folder do not suit the training.
    """
    part = config.tokenizer
    media = kept_media(config, "tokenizer train", console)
    uri = storage.absolute(out or storage.join(config.root, "tokenizer"))
    job = Job(part.train, part.resources, config.tokenize.frames, media, uri, config.fetched)
    if part.train.is_trained(job.data_id, uri):
        console.print(f"Trained already, on these media: {uri}/model", highlight=False)
        return
    kinds = media["kind"].to_pylist()
    console.print(
        f"Training on {kinds.count('image')} images and {kinds.count('video')} clips; "
        f"{part.resources.num_workers} worker(s)",
        highlight=False,
    )
    arguments, dtype = {"job": job}, part.train.dtype
    train_on_workers(
        config.cluster, train_worker, arguments, part.resources, uri, dtype, part.train.steps, _told, console
    )
    console.print(
        f"Model in {uri}/model; use it with --set tokenize.model={uri}/model\n"
        f"Look at {uri}/reconstructions.png and {uri}/loss.png",
        highlight=False,
    )


def _told(record: Record) -> str:
    return f"loss {record['loss']:.4f}  PSNR {record['psnr']:.1f} dB  codes {record['codes_used']}"
