"""Servers of engine `vllm`, which a run starts itself: how many, on what, by which command."""

from pydantic import Field

from tokenmill.storage.identity import Resources


class ManagedResources(Resources):
    """How the servers of engine vllm are started; changes no caption."""

    servers: int | None = Field(None, description="Null: as many as there are GPUs for, one without GPUs.", gt=0)
    gpus_per_server: int = Field(1, description="A model that needs several is split over them. 0: on CPUs.", ge=0)
    command: str | None = Field(
        None,
        description="Path of `vllm`, or of the python of an environment that has it; it shares none with tokenmill.",
        min_length=1,
    )
    args: tuple[str, ...] = Field(
        default=(), strict=False, description="More of `vllm serve`. What changes answers asks nothing anew."
    )
    start_timeout_s: float = Field(
        1200.0, description="Until a server is healthy. Small: large models never start; large: errors late.", gt=0
    )
    restarts: int = Field(5, description="Of one server that dies, in one run; then the others do its work.", ge=0)
