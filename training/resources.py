"""How a model is trained (`TrainResources`), what is looked at meanwhile (`Monitor`): never part of a fingerprint."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tokenmill.storage.identity import Resources


class WorkerResources(Resources):
    """How many workers train, and what each reserves. Never changes what is computed."""

    num_workers: int = Field(1, description="Too many wait for CPUs or GPUs; one: no data parallelism.", gt=0)
    use_gpu: bool = Field(False, description="One GPU per worker; false trains on the CPU.")
    cpus_per_worker: float = Field(1.0, description="CPUs that each worker reserves.", gt=0)
    threads: int | None = Field(
        None, description="CPU threads per worker; more than there are CPUs is slow. Null: cpus_per_worker.", gt=0
    )
    max_failures: int = Field(
        3,
        description="Losses of workers or machines that are gone on from, one after the other without a new checkpoint "
        "in between: few end at a bad hour, many repeat what always kills. Other errors end it at once.",
        ge=0,
    )


class Parallel(Resources):
    """How the workers of a training share its work: data x context x tensor of them."""

    data: int | None = Field(
        None,
        description="Groups of workers with packs of their own; more than data.batch_packs stand idle. Null: as many "
        "as the workers make.",
        gt=0,
    )
    context: int = Field(
        1,
        description="Workers that share the tokens of a pack, and each its attention by heads: more hold longer "
        "contexts, and send more. Times tensor it must divide num_heads.",
        gt=0,
    )
    tensor: int = Field(
        1,
        description="Workers that share each matrix of the layers: must divide num_heads, num_kv_heads and "
        "intermediate_size. More hold wider layers, and send most; spreads the weights over all workers too.",
        gt=0,
    )

    @property
    def per_pack(self) -> int:
        """Workers that share a pack."""
        return self.context * self.tensor

    def check(self, num_heads: int, num_kv_heads: int, intermediate_size: int) -> None:
        """Raises ValueError where a model of such layers cannot be shared out."""
        for name, size, parts, number in (
            ("num_heads", num_heads, "context x tensor", self.per_pack),
            ("num_kv_heads", num_kv_heads, "tensor", self.tensor),
            ("intermediate_size", intermediate_size, "tensor", self.tensor),
        ):
            if size % number:
                raise ValueError(f"resources.parallel: {parts} = {number} must divide the model's {name} {size}")


class TrainResources(WorkerResources):
    """How a run is spread over machines. Never changes what is computed."""

    parallel: Parallel = Parallel()

    min_workers: int | None = Field(
        None,
        description="With no room for num_workers it runs with fewer, down to these, and grows when there is. Of both, "
        "the groups must divide data.batch_packs, and numbers that do are used. Few are slow; null: it waits.",
        gt=0,
    )
    spread_model: bool = Field(
        False, description="False: every worker holds the whole model. True: weights are spread over workers (FSDP2)."
    )
    recompute: bool = Field(False, description="True computes activations twice and needs far less memory.")
    cache_mb: int = Field(1_024, description="Shard data that a worker keeps; too little reads it again.", gt=0)
    log_every_steps: int = Field(1, description="Often writes many lines, rarely shows nothing for long.", gt=0)
    checkpoint_every_steps: int = Field(500, description="Often costs time, rarely loses more at a crash.", gt=0)
    keep_checkpoints: int = Field(2, description="Newest checkpoints that stay; each is three times the model.", gt=0)

    def sizes(self, batch_packs: int) -> list[int]:
        """The numbers of workers that a run may have. Raises ValueError when they do not suit `parallel`, or the two
        ends not the batch.
        """
        of_pack = self.parallel.per_pack
        self._check_groups()
        if self.min_workers is None:
            return [self.num_workers]
        if self.min_workers > self.num_workers:
            raise ValueError(
                f"resources.min_workers {self.min_workers} is more than resources.num_workers {self.num_workers}"
            )
        for name in ("min_workers", "num_workers"):
            number, rest = divmod(getattr(self, name), of_pack)
            if rest or batch_packs % number:
                fitting = ", ".join(str(size * of_pack) for size in range(1, batch_packs + 1) if not batch_packs % size)
                groups = "" if of_pack == 1 else f" in groups of {of_pack} (resources.parallel)"
                raise ValueError(
                    f"resources.{name} {getattr(self, name)}{groups} must divide data.batch_packs {batch_packs}, so "
                    f"that all workers have as much to do: {fitting} do"
                )
        sizes = range(self.min_workers, self.num_workers + 1, of_pack)
        return [size for size in sizes if batch_packs % (size // of_pack) == 0]

    def _check_groups(self) -> None:
        """Raises ValueError where num_workers cannot be shared out as `parallel` says."""
        part = self.parallel
        if self.num_workers % part.per_pack:
            raise ValueError(
                f"resources.num_workers {self.num_workers} must be a multiple of parallel.context {part.context} x "
                f"parallel.tensor {part.tensor} = {part.per_pack}"
            )
        if part.data is None:
            return
        if part.data * part.per_pack != self.num_workers:
            raise ValueError(
                f"resources.num_workers {self.num_workers} is not parallel.data {part.data} x context {part.context} x "
                f"tensor {part.tensor} = {part.data * part.per_pack}; change one of them, or leave parallel.data out"
            )
        if self.min_workers is not None:
            raise ValueError(
                "parallel.data says how many groups there are, min_workers that they change; leave one out"
            )


class Monitor(Resources):
    """What is looked at while a model trains, and who is told. Never changes what is computed."""

    validate_every_steps: int = Field(
        500, description="Where data.held_out is not 0, and at the end: often costs time, rarely shows it late.", gt=0
    )
    validate_packs: int = Field(
        64, description="Of the held-out ones, the same each time: few are noisy, many take long.", gt=0
    )
    sample_every_steps: int | None = Field(
        None, description="Draws prompts, and at the end: often costs time. Null: never.", gt=0
    )
    prompts: list[Annotated[str, Field(min_length=1)]] = Field(
        [], description="Captions to draw while it trains, on a grid as `sample` says; many take long."
    )
    track: list[Literal["tensorboard", "wandb", "mlflow"]] = Field(
        ["tensorboard"],
        description="Who is told beside log.jsonl: tensorboard, wandb, mlflow; these two need `pip install "
        "tokenmill[wandb]` or `[mlflow]` and their own environment variables where the command runs.",
    )

    @model_validator(mode="after")
    def _prompts_are_drawn(self) -> "Monitor":
        if (self.sample_every_steps is None) != (not self.prompts):
            raise ValueError("sample_every_steps and prompts: give both, or neither")
        return self
