#!/usr/bin/env bash
# From a fresh clone to a merged network: installs what is missing, builds, trains two networks on disjoint halves of
# the shipped handwritten digits (0-4 and 5-9) and merges them in seven ways. From any folder; safe to repeat.
#
#   scripts/demo.sh [--seed N] [DIR]
#
# DIR receives the results (build/demo in the project); the networks' seeds are N and N + 1 (1 and 2).
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

seed=1
out=$root/build/demo
while [ $# -gt 0 ]; do
  case "$1" in
    -h | --help) sed -n '2,7p' "${BASH_SOURCE[0]}" | cut -c3-; exit 0 ;;
    --seed) [[ "${2:-}" =~ ^[0-9]+$ ]] || die "--seed needs a number"; seed=$2; shift ;;
    -*) die "unknown argument $1 (see --help)" ;;
    *) out=$(realpath -m "$1") ;;
  esac
  shift
done
started=$SECONDS

"$root/scripts/setup.sh"
build_release lookaround-train mudsc-merge
built=$SECONDS

# Idle threads must not spin while others work on the same machine.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}

train() { # NAME CLASSES SEED
  step "train network $1 on the digits $2"
  "$build/tools/lookaround-train" --config "$root/configs/lookaround-train/demo.json" --overwrite \
    --set "data.train.classes=$2" --set "data.test.classes=$2" --seed "$3" --out "$out/$1" >"$out/$1.json"
}
mkdir -p "$out" || die "cannot write to $out"
train low '[0,1,2,3,4]' "$seed"
train high '[5,6,7,8,9]' "$((seed + 1))"

step "merge them: accuracy on all ten digits, and on each half among its own five"
"$build/tools/mudsc-merge" --config "$root/configs/mudsc-merge/demo.json" --overwrite \
  --set "models.0.script=$out/low/model.pt" --set "models.1.script=$out/high/model.pt" \
  --out "$out/merged" >"$out/merged.json"

cat >&2 <<EOF

Done in $((SECONDS - started)) s, $((built - started)) s of them to install and build. Everything is in $out.
The first two rows are the networks as trained, the third needs both of them; each row below is one network of the
same size, made of the two without training.

Try next:
  other networks     $root/scripts/demo.sh --seed 3
  another balance    $build/tools/mudsc-merge --config $root/configs/mudsc-merge/demo.json \\
                       --set 'compare=[{"balance": 0.2}, {"balance": 0.8}]' --out /tmp/balance
  in Python          torch.jit.load("$out/merged/zip-dual-0.5/merged.pt")
  every key          $build/tools/mudsc-merge --print-schema
  the manual         $root/docs/tools/mudsc-merge.md
EOF
