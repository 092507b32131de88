#!/bin/bash
# Build the image over a plain Python base and train in it; no registry and no Docker daemon needed.
#
#     sudo docker/test_image.sh          (Debian: apt install buildah debootstrap; 10 to 20 minutes)
#
# The base is a Debian with Python, made by debootstrap, or BASE_ROOTFS, a folder with one.
# BUILD_OPTIONS go to buildah, e.g. "--volume /opt/wheels:/opt/wheels:ro" for a folder of wheels.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
storage=(--root "$work/storage" --runroot "$work/run" --storage-driver "${STORAGE_DRIVER:-overlay}")
buildah() { command buildah "${storage[@]}" "$@"; }
trap 'buildah rm --all >/dev/null 2>&1 || true; rm -rf "$work"' EXIT
export BUILDAH_ISOLATION=chroot

rootfs=${BASE_ROOTFS:-$work/rootfs}
[ -d "$rootfs/usr" ] || debootstrap --variant=minbase \
  --include=python3,python3-venv,ca-certificates bookworm "$rootfs" "${DEBIAN_MIRROR:-http://deb.debian.org/debian}"
base=$(buildah from scratch)
buildah copy -q "$base" "$rootfs" /
buildah commit -q "$base" plain-python
buildah rm "$base" >/dev/null

# shellcheck disable=SC2086  # several words
buildah build ${BUILD_OPTIONS:-} --format docker --pull-never --build-arg BASE_IMAGE=localhost/plain-python \
  --build-arg PIP_OPTIONS="${PIP_OPTIONS:-}" -f docker/Dockerfile -t kappaface_dist .

container=$(buildah from --pull-never kappaface_dist)
entry=/usr/local/lib/kappaface_dist/entrypoint.sh
in_image() { buildah run --user trainer --env OMP_NUM_THREADS=1 "$container" -- "$@"; }
[ "$(in_image id -u)" = 1000 ]
in_image "$entry" --check
in_image "$entry" python tools/make_faces.py /tmp/faces --identities 30 --unseen-identities 10 --image-size 32
in_image env NPROC_PER_NODE=2 "$entry" configs/quickstart.yaml data.train=/tmp/faces/train.rec \
  data.image_size=32 data.batch_size=12 evaluate.sets.unseen=/tmp/faces/unseen.bin \
  run.folder=/runs/test run.steps=20 optimizer.warmup_epochs=0
in_image sh -c 'test "$(python -c "import json; print(json.load(open(\"/runs/test/summary.json\"))[\"steps\"])")" = 20'
echo "the image builds, passes --check and trained 20 steps"
