#!/usr/bin/env bash
# TRL and this project on the common work, in turn, each run in a process of its own; then the table.
#
#   scripts/bench_against.sh                       # h256_v8k h256_v32k h512_v32k: an hour or two
#   STEPS=5 WARMUP=2 ROUNDS=1 scripts/bench_against.sh tiny
#
# Every run of a peer is followed at once by the run of ours that it is compared with, and the whole
# is repeated ROUNDS times, so that a ratio is of two neighbours and its spread is seen. Have the
# machine to yourself: PyTorch's threads wait for one another and lose most where it is shared.
#
# Settings, by the environment:
#   LARPO_BENCH   the directory of the common work (../shared/bench beside this repository)
#   PYTHON        runs this project (python); PEER_PYTHON runs TRL (python), its own environment
#   OUT           the file of JSON lines, which is appended to (runs/bench.jsonl)
#   ROUNDS STEPS WARMUP    2, 20 and 5; the losses are compared over the first twenty steps
#   PARTS         which of "train lists generate" to run; GROWTH=1 adds the runs for the plots
#   VARIANTS      which of TRL's, as bench_trl.py names them
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bench=${LARPO_BENCH:-$root/../shared/bench}
if [[ ! -f $bench/bench_trl.py || ! -d $bench/specs ]]; then
  echo "no benchmark in $bench: put the common work there, or name its directory with LARPO_BENCH" >&2
  exit 2
fi
bench=$(cd "$bench" && pwd)
python=${PYTHON:-python} peer=${PEER_PYTHON:-python}
rounds=${ROUNDS:-2} timed=(--steps "${STEPS:-20}" --warmup "${WARMUP:-5}")
parts=" ${PARTS:-train lists generate} "
variants=${VARIANTS:-default fp32_nogc_precompute bf16_nogc_precompute
  bf16_weights_nogc_precompute fp32_nogc}
out=${OUT:-$root/runs/bench.jsonl}
mkdir -p "$(dirname "$out")"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if (($# == 0)); then set -- h256_v8k h256_v32k h512_v32k; fi

# PyTorch gains most by huge pages, so both sides have them.
export GLIBC_TUNABLES=glibc.malloc.hugetlb=1 PYTHONDONTWRITEBYTECODE=1 LARPO_BENCH=$bench
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}

# job SPEC AGAINST SIDE COMMAND...: one line of OUT. A crash as an interpreter ends does not spoil
# what it printed; a run that prints nothing is told of, and the rest goes on.
failed=0
job() {
  local spec=$1 against=$2 side=$3 line
  shift 3
  printf '%s, round %d: %s, %s\n' "$spec" "$round" "$against" "$side" >&2
  line=$("$@" 2>"$log" | tail -n 1) || true
  if [[ $line != "{"* ]]; then
    tail -n 5 "$log" >&2
    failed=1
    return
  fi
  printf '{"job": "%s", "against": "%s", "side": "%s", "round": %d, "result": %s}\n' \
    "$spec" "$against" "$side" "$round" "$line" >>"$out"
}
theirs() { (cd "$bench" && "$peer" "$@"); }
ours() { PYTHONPATH=$root "$python" "$root/scripts/$1" "${@:2}"; }

train() {
  local spec=$1 variant reference
  for variant in $variants; do
    reference=cached
    if [[ $variant == fp32_nogc ]]; then reference=live; fi
    job "$spec" "$variant" peer \
      theirs bench_trl.py "specs/$spec.json" --variant "$variant" "${timed[@]}"
    job "$spec" "$variant" ours ours bench_train.py "$spec" --reference "$reference" "${timed[@]}"
  done
}

eight=(--set data.groups_per_batch=4 --set data.responses=8 --loss listwise.listmle)
lists() {
  local layout
  for layout in rows lists; do
    job "$1" lists "$layout" ours bench_train.py "$1" "${eight[@]}" --layout "$layout" "${timed[@]}"
  done
}

generate() {
  job "$1" generate peer theirs bench_generate.py "specs/$1.json" --engine hf
  job "$1" generate ours ours bench_generate.py "$1"
  job "$1" candidates ours ours bench_generate.py "$1" --candidates 8 --prompts 1
}

growth() {
  local spec=$1 layout value
  for value in 2 4 8 16; do
    for layout in lists rows; do
      job "$spec" "growth/responses/$layout" "$value" ours bench_train.py "$spec" \
        --set data.groups_per_batch=4 --set "data.responses=$value" --loss listwise.listmle \
        --layout "$layout" "${timed[@]}"
    done
  done
  for value in 64 128 256 512; do
    job "$spec" growth/response_max/lists "$value" ours bench_train.py "$spec" \
      --set "data.response_max=$value" "${timed[@]}"
  done
  for value in 1 2 4; do
    XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$value" \
      job "$spec" growth/devices/lists "$value" ours bench_train.py "$spec" \
      --devices "$value" "${timed[@]}"
  done
  for value in 2 4 8; do
    job "$spec" growth/layers/lists "$value" ours bench_train.py "$spec" \
      --set "model.layers=$value" "${timed[@]}"
  done
}

for ((round = 1; round <= rounds; round++)); do
  for spec in "$@"; do
    for part in train generate; do
      if [[ $parts == *" $part "* ]]; then "$part" "$spec"; fi
    done
  done
  if [[ $parts == *" lists "* ]]; then lists "$1"; fi
done
round=1
if [[ ${GROWTH:-0} == 1 ]]; then growth "$1"; fi

PYTHONPATH=$root "$python" "$root/scripts/bench_table.py" "$out" || failed=1
exit "$failed"
