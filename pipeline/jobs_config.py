"""The config of where jobs run: schedulers, and the shapes of the machines that each phase gets.

All of it is how, nothing what: none of it enters a fingerprint or the name of a job. Secrets stand here by name alone.
"""

import re
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator

from tokenmill.storage.identity import Resources

Phase = Literal["curate", "caption", "tokenize", "train"]
Scheduler = Literal["ray", "kuberay", "slurm"]
Variable = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Label = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]  # of Kubernetes
_SLURM_TIME = r"^(\d+-\d{1,2}(:\d{2}){0,2}|\d+(:\d{2}){0,2}|UNLIMITED)$"
_ONE_LINE = r"^[^\n\r\s'\"]+$"


class Toleration(Resources):
    """A taint of Kubernetes' nodes that the machines of a shape may stand on."""

    key: str = Field(description="Of the taint.", min_length=1)
    value: str | None = Field(None, description="Null: any.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(None, description="Null: any.")


class Shape(Resources):
    """Machines of one kind, for a phase."""

    nodes: int = Field(1, description="Small takes long; large waits long in the queue, and idles at the end.", gt=0)
    min_nodes: int | None = Field(
        None,
        description="Slurm starts with so many, Kubernetes scales down to it. Small starts soon, and waits for "
        "machines where there is work for them. Null: `nodes`.",
        ge=0,
    )
    cpus: int | None = Field(None, description="Of a node. Null: all that Slurm's nodes have; 8 in Kubernetes.", gt=0)
    memory_gb: int | None = Field(
        None,
        description="Of a node, 2^30 bytes. Small: the scheduler kills workers; null: all of Slurm's node, 32 in "
        "Kubernetes.",
        gt=0,
    )
    gpus: int = Field(0, description="Of a node; stages use them as their `resources` say.", ge=0)
    partition: str | None = Field(None, description="Of Slurm; null: its default.", pattern=_ONE_LINE)
    constraint: str | None = Field(None, description="Features of Slurm's nodes, such as a100|h100.", pattern=_ONE_LINE)
    node_selector: dict[str, str] = Field({}, description="Labels of Kubernetes' nodes.")
    tolerations: list[Toleration] = Field([], description="Taints of Kubernetes' nodes that are no hindrance.")

    @model_validator(mode="after")
    def _min_is_no_max(self) -> "Shape":
        if self.min_nodes is not None and self.min_nodes > self.nodes:
            raise ValueError(f"min_nodes {self.min_nodes} is more than nodes {self.nodes}: lower it")
        return self


class OnRay(Resources):
    """A Ray cluster that is up, by its Jobs API."""

    address: str | None = Field(
        None,
        description="Of the dashboard, http://HOST:8265; null: RAY_ADDRESS, else http://127.0.0.1:8265.",
        pattern=r"^https?://[^\s/@]+/?$",
    )
    code: Literal["shipped", "installed"] = Field(
        "shipped",
        description="shipped: this code, as a wheel of the checkout or as it is installed here, goes along with each "
        "job; installed: the cluster's own. Its packages are always the cluster's.",
    )
    driver_cpus: float = Field(
        0.0, description="0: the driver runs on the head, unreserved; more: on any node with so many free.", ge=0
    )


class OnKubeRay(Resources):
    """Kubernetes with the KubeRay operator: a RayJob, or a RayCronJob where there is a schedule."""

    namespace: Label = Field("default", description="Where the job and its pods are.")
    image: str | None = Field(
        None, description="With tokenmill and its packages (deploy/Dockerfile); needed.", pattern=_ONE_LINE
    )
    secret: Label | None = Field(None, description="The Secret whose keys are the names in cluster.nodes.secrets.")
    queue: Label | None = Field(None, description="Kueue's local queue, which then starts the job. Null: at once.")
    schedule: str | None = Field(
        None,
        description="Cron's five fields: a refresh again and again, such as `0 3 * * *`. Null: once.",
        min_length=1,
    )
    head_cpus: int = Field(
        4, description="Small: the driver's listing and commits take long; no stage runs there.", gt=0
    )
    head_memory_gb: int = Field(
        16, description="Small: Kubernetes kills the driver of a large corpus (docs/design.md, Scale).", gt=0
    )
    retries: int = Field(
        3, description="Of a failed job on a new cluster, from what was committed. Large repeats what fails.", ge=0
    )
    keep_s: int = Field(
        3600, description="Of a job that ended, before its cluster's pods and logs go. Small hides failures.", ge=0
    )
    idle_s: int = Field(
        300, description="Without work before a node above min_nodes goes. Small: phases wait for nodes anew.", gt=0
    )
    redis: str | None = Field(
        None,
        description="HOST:PORT of a Redis, by which a cluster survives the death of its head; its password is "
        "REDIS_PASSWORD in cluster.nodes.secrets. Null: a lost head is a retry.",
        pattern=_ONE_LINE,
    )
    volumes: dict[Label, str] = Field(
        {}, description="PersistentVolumeClaims and where all pods mount them; an s3:// root needs none."
    )

    @field_validator("schedule")
    @classmethod
    def _is_cron(cls, schedule: str | None) -> str | None:
        if schedule is not None and len(schedule.split()) != 5:
            raise ValueError("write cron's five fields: minute, hour, day, month, weekday, such as `0 3 * * *`")
        return schedule


class OnSlurm(Resources):
    """Slurm: an allocation in which a Ray cluster is started, and ended with the job."""

    account: str | None = Field(None, description="That is charged; null: your default.", pattern=_ONE_LINE)
    qos: str | None = Field(None, description="Null: your default.", pattern=_ONE_LINE)
    time_limit: str = Field(
        "24:00:00",
        description="Small: stops and requeues often; large: waits long in the queue.",
        pattern=_SLURM_TIME,
    )
    warn_s: int = Field(
        180,
        description="Before the time limit, for committing, a checkpoint and requeueing. Small: Slurm kills first; "
        "large: nothing is computed meanwhile.",
        ge=10,
    )
    exclusive: bool = Field(
        True, description="False shares nodes with other jobs, where the partition does: set cpus and memory_gb then."
    )
    folder: str | None = Field(
        None,
        description="On a disk that all nodes share: scripts, configs and logs. Null: ROOT/runs/jobs.",
        min_length=1,
    )
    environment: str | None = Field(
        None,
        description="The virtual environment on the nodes with tokenmill in it. Null: the one that submits.",
        min_length=1,
    )


class Jobs(Resources):
    """Where `tokenmill submit` runs phases, and on which machines."""

    on: Scheduler | None = Field(None, description="ray, kuberay or slurm where --on is left out.")
    shapes: dict[Phase | Literal["default"], Shape] = Field(
        {}, description="By phase; `default` is that of phases without their own."
    )
    env: dict[Variable, str] = Field(
        {}, description="Variables that are no secret, such as AWS_ENDPOINT_URL; everybody can read them."
    )
    ray: OnRay = OnRay()
    kuberay: OnKubeRay = OnKubeRay()
    slurm: OnSlurm = OnSlurm()

    @field_validator("env")
    @classmethod
    def _env_is_no_secret(cls, env: dict[str, str]) -> dict[str, str]:
        for name in env:
            if re.search(r"SECRET|TOKEN(?!IZERS|MILL_)|PASSW|CREDENTIAL|KEY", name, re.IGNORECASE):
                raise ValueError(
                    f"{name} sounds like a secret: put its name into cluster.nodes.secrets, its value nowhere"
                )
        return env

    def shape(self, phase: str) -> Shape:
        """The machines of a phase."""
        shapes: dict[str, Shape] = {str(name): shape for name, shape in self.shapes.items()}
        return shapes.get(phase) or shapes.get("default") or Shape()
