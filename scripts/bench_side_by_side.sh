#!/usr/bin/env bash
# Twenty runs of a sweep side by side in one process, against four of them in processes of their own.
#
#   scripts/bench_side_by_side.sh [DIRECTORY]      # 20 minutes on two idle CPU cores
#
# All read their supervised stage from a cache that the first command fills. Before each run, and
# before the twenty, what was compiled is deleted; COMPILED=1 adds each run once more with it.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python} out=${1:-$root/runs/side_by_side}
page=experiments/larpo/objectives.py:cpu
cd "$root"
rm -rf "$out" && mkdir -p "$out"
out=$(cd "$out" && pwd)
export LARPO_CACHE=$out/cache

timed() { # NAME COMMAND...
  local name=$1 begin end
  shift
  begin=$(date +%s.%N)
  "$@" > "$out/log.txt" 2>&1 || { tail "$out/log.txt" >&2; exit 1; }
  end=$(date +%s.%N)
  echo "$name $(awk "BEGIN { print $end - $begin }")" | tee -a "$out/seconds.txt"
}

timed starts "$python" -m larpo_jax.sweep --config $page --workdir "$out/starts" --seeds 5 --only 0
for loss in pairwise.dpo listwise.listmle; do
  for seed in 0 1; do
    run=("$python" -m larpo_jax.main --config $page --config.seed=$seed --config.loss.name=$loss)
    rm -rf "$LARPO_CACHE/compiled"
    timed alone "${run[@]}" --workdir "$out/alone/$loss-$seed"
    if [[ ${COMPILED:-} ]]; then timed again "${run[@]}" --workdir "$out/again/$loss-$seed"; fi
  done
done
rm -rf "$LARPO_CACHE/compiled"
timed twenty "$python" -m larpo_jax.sweep --config $page --workdir "$out/twenty" --seeds 5 \
  --only 0,1,2,3
awk '$1 == "twenty" { each = $2 / 20 }
  $1 != "starts" && $1 != "twenty" { name[++n] = $1; took[n] = $2 }
  END { for (i = 1; i <= n; i++) printf "%s: %.1f s, %.2f times\n", name[i], took[i], took[i] / each
        printf "side by side: %.1f s each\n", each }' "$out/seconds.txt"
