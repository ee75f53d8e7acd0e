#!/usr/bin/env bash
# One run on machines that Slurm gives: sbatch cluster/slurm.sh (README.md, "Slurm and machines of
# your own"). Submit it from the checkout, in the environment of `make demo`, on a file system that
# all nodes share.
#SBATCH --job-name=vit-cifar10
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --time=08:00:00
# Two minutes before the end the run is asked to stop, and the job queues again: it goes on by name.
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

export PATH="$SLURM_SUBMIT_DIR/.venv/bin:$PATH"
export RAY_AUTH_MODE=token SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
ray get-auth-token --generate >/dev/null # once; the home is shared, so every node has it

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}')
# Ports and folders by job, because jobs share nodes.
port=$((20000 + SLURM_JOB_ID % 10000))
gcs="$address:$port"
common=(--block --num-cpus="$SLURM_CPUS_PER_TASK" --dashboard-agent-listen-port=0)

srun --nodes=1 --ntasks=1 --overlap --nodelist="$head" \
    ray start --head "${common[@]}" --node-ip-address="$address" --port="$port" \
    --dashboard-host=127.0.0.1 --dashboard-port=$((port + 10000)) \
    --temp-dir="/tmp/ray-$SLURM_JOB_ID" &
others=$((${#nodes[@]} - 1))
if [ "$others" -gt 0 ]; then
    for _ in $(seq 60); do ray health-check --address "$gcs" 2>/dev/null && break; sleep 1; done
    srun --nodes="$others" --ntasks="$others" --overlap --exclude="$head" \
        ray start --address="$gcs" "${common[@]}" &
fi

export RAY_ADDRESS="$gcs"
# A run has as many slots as there are nodes when it starts: wait for all, at most 5 minutes.
python - "${#nodes[@]}" <<'PYTHON'
import sys, time
import ray

for _ in range(60):
    try:
        ray.init(logging_level="ERROR", log_to_driver=False, ignore_reinit_error=True)
        if sum(node["Alive"] for node in ray.nodes()) >= int(sys.argv[1]):
            break
    except ConnectionError:
        pass
    time.sleep(5)
else:
    sys.exit(f"not all of {sys.argv[1]} nodes joined the head within 5 minutes")
PYTHON

asked=0
trap 'asked=1; kill -TERM "$run"' TERM
python -m orchestrator sweep vit --name "$SLURM_JOB_NAME" --dataset cifar10 --scale small \
    --gpus-per-worker 1 --cpus-per-worker "$SLURM_CPUS_PER_TASK" --storage "$SLURM_SUBMIT_DIR/runs" &
run=$!
code=0
wait "$run" || code=$?
# The trap ends the first wait before the run has ended.
[ "$asked" -eq 0 ] || { code=0; wait "$run" || code=$?; scontrol requeue "$SLURM_JOB_ID"; }
exit "$code" # and with it all that srun has started
