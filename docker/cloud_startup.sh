#!/bin/bash
# Start-up script of a GPU instance (user data on AWS, startup-script on Google Cloud) of an image
# with the NVIDIA driver, Docker and the NVIDIA container toolkit. Starts the training, and again
# after every boot: an instance that the provider takes away and gives back goes on.
#
# Fill in, or set in the environment:
set -euo pipefail
IMAGE=${IMAGE:?the image, by version or digest, as registry/kappaface_dist@sha256:...}
CONFIG=${CONFIG:-configs/glint360k.yaml}
DISK=${DISK:-/mnt/disk}  # outlives the instance; holds data/ and runs/
OVERRIDES=${OVERRIDES:-}  # one key=value a line

case $IMAGE in
  *:latest) echo "IMAGE is $IMAGE, which may be another one tomorrow: name a version or a digest" >&2; exit 1 ;;
esac
overrides=()
while IFS= read -r line; do
  [ -z "$line" ] || overrides+=("$line")
done <<< "$OVERRIDES"

mkdir -p "$DISK/runs"
chown 1000 "$DISK/runs"
# A script of its own: systemd reads spaces, quotes, % and $ in its own way, a shell as %q writes them.
start=(/usr/bin/docker run --name kappaface --gpus all --shm-size 8g --stop-timeout 100
  -e TORCH_ELASTIC_SHUTDOWN_TIMEOUT=90 -v "$DISK/data:/data:ro" -v "$DISK/runs:/runs"
  "$IMAGE" "$CONFIG" run.folder=/runs/cloud "${overrides[@]}")
{ echo '#!/bin/bash'; printf 'exec'; printf ' %q' "${start[@]}"; echo; } > /usr/local/bin/kappaface-start
chmod +x /usr/local/bin/kappaface-start
cat > /etc/systemd/system/kappaface.service <<UNIT
[Unit]
Requires=docker.service
After=docker.service network-online.target
[Service]
ExecStartPre=-/usr/bin/docker rm -f kappaface
ExecStart=/usr/local/bin/kappaface-start
# The provider's warning powers the machine down, which ends here: time for a checkpoint.
ExecStop=/usr/bin/docker stop --time 100 kappaface
TimeoutStopSec=110
# 0 is the end of the run or a stop by a signal; anything else a fault, to be tried again.
Restart=on-failure
RestartSec=30
[Install]
WantedBy=multi-user.target
UNIT
systemctl daemon-reload
systemctl enable --now kappaface.service
