"""One worker of `tokenmill captioner train`: its training, then, by the first of them, the verdict on it."""

from typing import Any

from tokenmill.pipeline.captioner.job import Job


def train_worker(arguments: dict[str, Any]) -> None:
    """Train as `arguments` say: `job`, `resources`, `uri` of the folder, `clip` (a model's name or null)."""
    import torch
    from ray.train import get_context
    from ray.train.torch import get_device

    from tokenmill.pipeline.captioner.judge import judge
    from tokenmill.pipeline.captioner.report import write
    from tokenmill.tokenizer.vision.training.parallel import Workers
    from tokenmill.training.captioner.loop import train

    job: Job = arguments["job"]
    resources, uri = arguments["resources"], arguments["uri"]
    context = get_context()
    workers = Workers(context.get_world_rank(), context.get_world_size())
    torch.set_num_threads(resources.threads or max(1, round(resources.cpus_per_worker)))
    device = str(get_device()) if resources.use_gpu else "cpu"
    pairs, held_out = job.train, job.held_out
    model = train(job.config, resources, pairs, held_out, uri, key=job.key, device=device, workers=workers)
    if workers.rank == 0:
        found = judge(job, resources, held_out, model, arguments["clip"], device)
        found.notes += [f"left out: {count} {reason}" for reason, count in sorted(pairs.left_out.items())]
        write(found, uri, job)
