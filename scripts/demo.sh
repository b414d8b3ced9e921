#!/usr/bin/env bash
# From a fresh clone to a merged network: installs what is missing, builds, trains two networks on disjoint halves of
# the shipped handwritten digits (0-4 and 5-9) and merges them in seven ways. From any folder; safe to repeat.
#
#   scripts/demo.sh [DIR]     results go to DIR, by default build/demo in the project
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

case "${1:-}" in
  -h | --help) sed -n '2,5p' "${BASH_SOURCE[0]}" | cut -c3-; exit 0 ;;
  -*) die "unknown argument $1 (see --help)" ;;
esac
# Idle threads must not spin while others work on the same machine.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}
out=$(realpath -m "${1:-$root/build/demo}")
started=$SECONDS

"$root/scripts/setup.sh"
build_release lookaround-train mudsc-merge
built=$SECONDS

train() { # NAME CLASSES SEED
  step "train network $1 on the digits $2"
  "$build/tools/lookaround-train" --config "$root/configs/lookaround-train/demo.json" --overwrite \
    --set "data.train.classes=$2" --set "data.test.classes=$2" --seed "$3" --out "$out/$1" >"$out/$1.json"
}
mkdir -p "$out"
train low '[0,1,2,3,4]' 1
train high '[5,6,7,8,9]' 2

step "merge them: accuracy on all ten digits, and on each half among its own five"
"$build/tools/mudsc-merge" --config "$root/configs/mudsc-merge/demo.json" --overwrite \
  --set "models.0.script=$out/low/model.pt" --set "models.1.script=$out/high/model.pt" \
  --out "$out/merged" >"$out/merged.json"

cat >&2 <<EOF

Done in $((SECONDS - started)) s ($((built - started)) s to install and build). Everything is in $out.
Each row of the table is a network; the last seven are one network each, made of the first two without training.

Try next:
  another pair of networks          $root/scripts/demo.sh DIR (after changing the seeds in it)
  another share of weight space     mudsc-merge --config configs/mudsc-merge/demo.json --set compare='[{"balance":0.9}]' ...
  the merged network in Python      torch.jit.load("$out/merged/zip-dual-0.5/merged.pt")
  what a configuration may hold     $build/tools/mudsc-merge --print-schema
  the rest                          $root/docs/tools/mudsc-merge.md
EOF
