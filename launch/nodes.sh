#!/usr/bin/env bash
# Stage 1 or 2 on any number of machines that share the repository, the shards and the output folder.
#
#   HOSTFILE=launch/hostfile.example launch/nodes.sh STAGE CONFIG [key.path=value ...]    on the first machine, with ssh
#   NODE_RANK=0 MASTER_ADDR=node-a HOSTFILE=... launch/nodes.sh STAGE CONFIG ...          on every machine, without ssh
#
# STAGE: stage1 or stage2. NODE_RANK counts the lines of HOSTFILE from 0. train.global_batch must equal micro_batch x accumulation x all slots.
source "$(dirname "$0")/common.sh"

case ${1:-} in
  stage1) script=src/fiber/stage1_coarse.py ;;
  stage2) script=src/fiber/stage2_fine.py ;;
  *) echo "error: launch/nodes.sh STAGE CONFIG [key.path=value ...]; STAGE is stage1 or stage2, got '${1:-}'" >&2; exit 2 ;;
esac
shift
hostfile=${HOSTFILE:?set HOSTFILE to a file like launch/hostfile.example}
options=(--hostfile "$hostfile" --master_port "${MASTER_PORT:-29500}")
[[ -n ${MASTER_ADDR:-} ]] && options+=(--master_addr "$MASTER_ADDR")
if [[ -n ${NODE_RANK:-} ]]; then
  options+=(--no_ssh --node_rank "$NODE_RANK")
else
  # With ssh only NCCL_* and PYTHON* variables travel by themselves; the launcher reads the others from this file.
  environment=$(mktemp)
  trap 'rm -f "$environment"' EXIT
  for name in OMP_NUM_THREADS DS_ACCELERATOR GLOO_SOCKET_IFNAME HF_HOME HF_HUB_OFFLINE "${!WANDB_@}"; do
    [[ -n ${!name:-} ]] && echo "$name=${!name}" >>"$environment"
  done
  export DS_ENV_FILE=$environment
fi
deepspeed "${options[@]}" "$script" --config "$@"
