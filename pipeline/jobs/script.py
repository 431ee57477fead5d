"""A job -> the script that `sbatch` takes: a Ray cluster over the allocation, and the run on its first node.

Each node runs `ray start --block` as a step of its own, so that Slurm ends what it began, and nothing else; `ray
symmetric-run` would do with `ray stop`, which ends every Ray process of the user on a node, those of other jobs too.
The run is a child of the script: a warning before the time limit or a preemption goes to it as SIGTERM, upon which it
commits what is finished, or writes a checkpoint, and ends; then the job is put into the queue again and goes on.

A node whose step ended gets another one, and is in Ray again, as long as it is in the allocation: Slurm takes it out
for good when it was silent for SlurmdTimeout (kill_running_job_by_node_name in src/slurmctld/job_mgr.c), which leaves
the job smaller (--no-kill). The loss of the first one starts the job again (--requeue).
"""

import shlex
import sys

from tokenmill.pipeline.jobs.job import Job
from tokenmill.pipeline.jobs.states import JobError
from tokenmill.pipeline.jobs_config import OnSlurm, Shape

ALWAYS_EXPORTED = ("HOME", "USER", "LOGNAME", "LANG", "PATH")
COMMENT = "tokenmill"
_BODY = r"""
set -u
rm -f "$job.ended"
end() { echo "$SLURM_JOB_ID $1" > "$job.ended"; exit "$1"; }
trap 'end 143' TERM
driver= again=
trap 'trap "" USR1; again=yes; echo "the time limit or a preemption is near; to be continued in the queue"
    [ -z "$driver" ] || kill -TERM "$driver" 2> /dev/null' USR1
address_of() { # of a node, from the names that Slurm knows it by
    local name ip
    name=$(scontrol show node "$1" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
    ip=$(getent ahostsv4 "$name" | awk '{print $1; exit}')
    case $ip in '' | 127.*) ip=$(hostname -I | awk '{print $1}') ;; esac
    echo "$ip"
}
export -f address_of
head=$(address_of "$SLURMD_NODENAME") port=$((20000 + SLURM_JOB_ID % 10000))
export head port
is_up() { (exec 3<> "/dev/tcp/$head/$port") 2> /dev/null; }
export -f is_up
say() { echo "$(date -u +%FT%TZ) $*"; }
say "job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, start ${SLURM_RESTART_COUNT:-0}, Ray at $head:$port"

# Ray's processes on a node live as long as a step of its own. Before a preemption Slurm sends SIGTERM to steps alone:
# the head's task hands it on, and Ray does not hear of it, for the run needs Ray until it has ended.
deaf() { exec python -c 'import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
os.execvp(sys.argv[1], sys.argv[1:])' "$@"; }
node_of_ray() { # in the place of this shell, with these words of `ray start`
    local ip
    ip=$(address_of "$SLURMD_NODENAME")
    deaf ray start "$@" --block --node-ip-address="$ip" --num-cpus="$cpus" --num-gpus="$gpus" >&2
}
lead() {
    trap 'kill -USR1 $script' TERM
    node_of_ray --head --port="$port" --include-dashboard=false &
    while kill -0 $! 2> /dev/null; do wait $!; code=$?; done
    exit "$code"
}
join() { # the head's Ray; a line every few seconds says that this is alive
    (trap '' TERM; while kill -0 $$ && echo "$SLURM_STEP_ID"; do sleep 3; done 2> /dev/null) &
    until is_up; do sleep 0.2; done
    node_of_ray --address="$head:$port"
}
export -f deaf node_of_ray lead join
script=$$
export script
on_node() { # a step of one task, in the place of this shell: what to do there
    local node=$1
    shift
    exec srun --export=ALL --overlap --nodes=1 --ntasks=1 --cpu-bind=none --nodelist="$node" "$@" 2>> "$job.ray.log"
}
is_ours() { # is a node, or nobody can say
    local ours
    ours=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%N) || return 0
    scontrol show hostnames "$ours" | grep -qxF "$1"
}
is_at_work() { (on_node "$1" timeout 60 scontrol listpids "$SLURM_JOB_ID.$2") > /dev/null; }
# A node in Ray: where its step has ended, another one begins. srun does not see that of a machine that died and came
# back, so the step says that it is alive; where it is silent, as on a machine with too much to do, the node is asked.
keep() {
    local lines step srun was_there=
    while is_ours "$1"; do
        exec {lines}< <(on_node "$1" bash -c join)
        srun=$!
        if read -r -t 120 -u "$lines" step; then
            [ -z "$was_there" ] || say "$1 is back: its Ray is begun again"
            was_there=yes
            while read -r -t 15 -u "$lines" || { [ $? -gt 128 ] && is_at_work "$1" "$step"; }; do :; done
            say "$1: its Ray has ended, or the machine does not answer"
            scancel --signal=KILL "$SLURM_JOB_ID.$step" 2> /dev/null
        fi
        kill "$srun" 2> /dev/null
        exec {lines}<&-
        sleep 5
    done
    say "$1: Slurm has taken it out of the job, which goes on without it"
}
steps() { squeue --noheader --steps --jobs="$SLURM_JOB_ID" --format=%i | grep '\.[0-9]*$'; }
: > "$job.ray.log"
on_node "$SLURMD_NODENAME" bash -c lead &
leader=$!
keepers=
for node in $(scontrol show hostnames "$SLURM_JOB_NODELIST" | grep -vxF "$SLURMD_NODENAME"); do
    keep "$node" &
    keepers="$keepers $!"
    disown
done
until is_up; do
    kill -0 "$leader" 2> /dev/null || { echo "Ray did not start; see $job.ray.log"; end 1; }
    sleep 0.2
done

"${run[@]}" --set "cluster.address=$head:$port" --set "cluster.nodes.min_nodes=$SLURM_JOB_NUM_NODES" &
driver=$!
trap 'again=; kill -TERM "$driver" 2> /dev/null' TERM
[ -z "$again" ] || kill -TERM "$driver"
wait "$driver"; code=$?
while [ "$code" -gt 128 ] && kill -0 "$driver" 2> /dev/null; do wait "$driver"; code=$?; done  # a trap ends a wait
trap '' USR1
[ -z "$keepers" ] || kill $keepers 2> /dev/null
scancel --signal=KILL $(steps) 2> /dev/null || kill "$leader" 2> /dev/null
wait "$leader"
for _ in {1..20}; do [ -n "$(steps)" ] || break; sleep 0.5; done # so that nodes are free when the job ends
if [ -n "$again" ] && [ "$code" != 0 ] && [ "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)" = RUNNING ]; then
    trap '' TERM # which comes next, and then the end of this script
    scontrol requeue "$SLURM_JOB_ID" && sleep 600
fi
end "$code"
"""


def script(job: Job, name: str, folder: str) -> str:
    """The text. `folder` is where its config, log and end are. Raises JobError for names that Slurm cannot take."""
    config, shape = job.jobs.slurm, job.shapes[job.phases]
    lines = [f"#SBATCH {option}" for option in _options(job, name, folder, config, shape)]
    environment = config.environment or sys.prefix
    # Slurm's variable is set before the step, whose own one tells of its one task.
    cpus = f"{shape.cpus}" if shape.cpus else '"${SLURM_CPUS_ON_NODE%%(*}"'
    settings = [
        f"export job={shlex.quote(f'{folder}/{name}')}",
        f'export PATH={shlex.quote(environment)}/bin:"$PATH"',
        "export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 RAY_TRAIN_V2_ENABLED=1",
        "RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \\n') && export RAY_AUTH_TOKEN",
        f"export cpus={cpus} gpus={shape.gpus}",
        *(f"export {variable}={shlex.quote(value)}" for variable, value in sorted(job.jobs.env.items())),
        f"run=(tokenmill {shlex.join(job.command(f'{folder}/{name}.yaml'))})",
    ]
    return "\n".join(["#!/bin/bash", *lines, "", *settings, _BODY.strip()]) + "\n"


def _options(job: Job, name: str, folder: str, config: OnSlurm, shape: Shape) -> list[str]:
    for text in (folder, job.root):
        if set(text) & set("\"'\\%\n\r"):
            raise JobError(f"{text}: Slurm takes no quotes, backslashes or % there: choose another jobs.slurm.folder")
    at_least = shape.nodes if shape.min_nodes is None else max(1, shape.min_nodes)
    nodes = f"{shape.nodes}" if at_least == shape.nodes else f"{at_least}-{shape.nodes}"
    memory = f"{shape.memory_gb}G" if shape.memory_gb else "0" if config.exclusive else None
    asked = {
        "job-name": name,
        "comment": f'"{COMMENT} {" ".join(job.phases)} {job.root}"',
        "output": f'"{folder}/{name}.log"',
        "open-mode": "append",
        "account": config.account,
        "qos": config.qos,
        "partition": shape.partition,
        "constraint": f'"{shape.constraint}"' if shape.constraint else None,
        "nodes": nodes,
        "ntasks-per-node": "1",
        "cpus-per-task": shape.cpus,
        "mem": memory,
        "gpus-per-node": shape.gpus or None,
        "time": config.time_limit,
        "signal": f"B:USR1@{config.warn_s}",
        "dependency": "singleton",
        "kill-on-invalid-dep": "yes",
        "export": ",".join([*ALWAYS_EXPORTED, *job.secrets]),
    }
    flags = ["requeue", "no-kill", *(["exclusive"] if config.exclusive else [])]
    return [f"--{key}={value}" for key, value in asked.items() if value is not None] + [f"--{flag}" for flag in flags]
