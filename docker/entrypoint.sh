#!/bin/sh
# --check                   what the image can do
# CONFIG.yaml [key=value]   train with one process per GPU (NPROC_PER_NODE to choose); on Kubernetes
#                           a TrainJob describes the processes
# anything else             runs as it is, e.g. python tools/evaluate.py ...
set -eu
cd /opt/kappaface_dist
case "${1:---check}" in
  --check)
    exec python /usr/local/lib/kappaface_dist/check.py
    ;;
  *.yaml)
    if [ -n "${PET_NNODES:-}" ]; then
      exec torchrun launch/train.py "$@"
    fi
    gpus=$(python -c 'import torch; print(max(torch.cuda.device_count(), 1))')
    # exec: the signals of docker stop must reach torchrun, which passes them on.
    # --local-addr: the host's own name need not be known to a resolver.
    exec torchrun --standalone --local-addr=127.0.0.1 --nproc_per_node="${NPROC_PER_NODE:-$gpus}" \
      --max-restarts="${MAX_RESTARTS:-3}" launch/train.py "$@"
    ;;
  *)
    exec "$@"
    ;;
esac
