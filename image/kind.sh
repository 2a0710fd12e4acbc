#!/usr/bin/env bash
# `make kind`: a cluster in Docker (kind-config.yaml) with the image built here, the chart, and the sample with the Sim engine. No GPU.
# Run again, it goes on from what is there. `kind delete cluster --name penstock` takes all of it away.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { echo "make kind: $*" >&2; exit 1; }

step() { echo "== $*"; }

missing=()
for program in docker kind kubectl helm; do
  command -v "$program" >/dev/null || missing+=("$program")
done
if [ ${#missing[@]} -gt 0 ]; then
  fail "not on the PATH: ${missing[*]}. Docker: https://docs.docker.com/engine/install, kind: https://kind.sigs.k8s.io, kubectl: https://kubernetes.io/docs/tasks/tools, Helm: https://helm.sh"
fi
docker info >/dev/null 2>&1 || fail "Docker's daemon does not answer; start it, or see what 'docker info' says"

version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)
image=penstock:$version
kubectl() { command kubectl --context kind-penstock "$@"; }

step "image $image"
BUILDER=docker IMAGE=$image image/build.sh
if kind get clusters 2>/dev/null | grep -qx penstock; then
  step "cluster: it is there"
else
  step "cluster (about a minute)"
  kind create cluster --config kind-config.yaml --wait 120s
fi
step "image into the cluster"
kind load docker-image "$image" --name penstock
step "chart (at most 5 minutes)"
helm --kube-context kind-penstock upgrade --install penstock charts/penstock --namespace penstock-system --create-namespace \
  --set router.service.type=NodePort --set router.service.nodePort=30800 --wait --timeout 5m >/dev/null
# The same version may have been built anew: its Pods would go on with the older image.
kubectl -n penstock-system rollout restart deployment >/dev/null
kubectl -n penstock-system rollout status deployment/penstock-router --timeout 5m
step "sample (at most 5 minutes)"
kubectl apply --server-side -f manifests/samples/sim-pd.yaml
kubectl wait modelservice/sim --for condition=Ready --timeout 5m
cat <<'END'

Ready: http://127.0.0.1:8000/v1  model sim

  curl -N http://127.0.0.1:8000/v1/chat/completions -H 'content-type: application/json' \
    -d '{"model": "sim", "stream": true, "messages": [{"role": "user", "content": "hello"}]}'
  kubectl --context kind-penstock get penstock,pods
  kubectl --context kind-penstock scale workerpool/sim-decode --replicas=4
  kind delete cluster --name penstock
END
