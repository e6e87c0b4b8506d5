#!/usr/bin/env bash
# Everything a GPU box can tell us, in one command and without a network:
#
#   bash bench/gpu.sh OUT [WHEELS ...]
#
# Benchmarks beside our peers, the sweep of launch parameters, tests and hardware counters, what is worth most
# first, each under its own time limit and none stopping the others; rows are written as they come. Leaves in OUT
#   run.log  ceiling.csv models.csv equilibration.csv fixed-point.csv <gpu>.csv (for bench/results/)
#   tune.csv <gpu>.json (proposed tuned/<gpu>.json)  ncu/  energy.png polar.png
# WHEELS are folders of wheels packed for a machine without a network (mace-torch, cuequivariance and its CUDA
# kernels, graph-longrange, torch-pme, nvalchemi-toolkit-ops); without them the peers are skipped. COMMIT names
# the commit where there is no git. LIMIT is the time for everything, seconds; QUICK=1 tries the script on the
# smallest sizes, STRETCH=10 gives each part ten times its time.
set -uo pipefail
out=${1:?usage: bench/gpu.sh OUT [WHEELS ...]}; shift
mkdir -p "$out" || exit 1
out=$(cd "$out" && pwd)
wheels=(); for folder in "$@"; do wheels+=("$(cd "$folder" && pwd)") || exit 1; done
cd "$(dirname "$0")/.." || exit 1
limit=${LIMIT:-470} device=${DEVICE:-cuda} quick=${QUICK:-} stretch=${STRETCH:-1}
commit=${COMMIT:-$(git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PYTHONUNBUFFERED=1 TRITON_DEFAULT_FP_FUSION=1 MPLCONFIGDIR="$work"
export PYTHONPATH="$PWD/kernels:$PWD${PYTHONPATH:+:$PYTHONPATH}"
summary=()

# part NAME SECONDS COMMAND...: run it for at most so long, and within the limit of everything
part() {
  local name=$1 most=$(($2 * stretch)) left=$((limit - SECONDS)) rc
  shift 2
  if [ "$left" -lt 15 ]; then summary+=("$name: no time left"); return; fi
  if [ "$most" -gt "$left" ]; then most=$left; fi
  echo "=== $name (at most $most s)"
  timeout -k 5 "$most" "$@" 2>&1 | tee "$work/$name.log"
  rc=${PIPESTATUS[0]}
  { echo "=== $name: exit $rc"; cat "$work/$name.log"; } >> "$out/run.log"
  summary+=("$name: exit $rc after $SECONDS s in all")
}

versions() {
  nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,clocks.max.mem --format=csv
  python3 -c 'import sys, torch, triton; print(sys.version.split()[0], torch.__version__, triton.__version__)
print(torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU")'
  echo "commit $commit"
}

install_wheels() {
  local folder
  mkdir -p "$work/wheels"
  for folder in "$@"; do cp "$folder"/* "$work/wheels/"; done
  bash "$work/wheels/install.sh" "$work/wheels" "$work/site" && rm -rf "$work/wheels"
}

# files side by side, and what failed once more at the end
tests_in_parallel() {
  local files
  files=$(grep -rlE 'mark\.(gpu|interpreter)' tests --include='test_*.py' | sort)
  if [ -n "${QUICK:-}" ]; then files=tests/kernels/test_grouped_dot.py; fi
  printf '%s\n' $files | xargs -P "${WORKERS:-6}" -I{} bash -c 'test_one "$1"' bash {}
  local rc=$?
  grep -hE '^(FAILED|ERROR)' "$work"/test-*.log 2>/dev/null
  return $rc
}
test_one() {
  local log; log=$work/test-$(echo "$1" | tr / -).log
  python3 -m pytest -q -rfE --maxfail=20 -p no:cacheprovider -m "(gpu or interpreter) and not slow" "$1" > "$log" 2>&1
  local rc=$?
  tail -n 1 "$log"
  [ "$rc" -eq 5 ] || return "$rc"  # 5: no test is marked so
}

export work commit COMMIT=$commit
export -f versions install_wheels tests_in_parallel test_one

name_of="import torch; from bench.record import device_name, slug; print(slug(device_name(torch.device('$device'))))"
gpu=$(python3 -c "$name_of")
results=$out/${gpu:-unknown}.csv
options=(--device "$device" --commit "$commit" --out "$results")
sweep=(--device "$device" --out "$out")
if [ -n "$quick" ]; then options+=(--quick) sweep+=(--quick); fi

part versions 60 bash -c versions
if [ ${#wheels[@]} -gt 0 ]; then
  part wheels 90 bash -c 'install_wheels "$@"' bash "${wheels[@]}"
  export PYTHONPATH="$PYTHONPATH:$work/site"
fi
# what is worth most comes first: a run that is cut off has it
if [ -n "$quick" ]; then
  plain=(mace-tiny) polar=(polar-tiny) few=(6) more=(6) solves=(8x2) points=(8) cell=(1 1 1) ceiling=(--mib 1 --edge 16)
  rules=(--rounds 1 --rules local --hidden-irreps 4x0e+4x1o --atoms 6)
else
  plain=(mace-medium) polar=(polar-s polar-m) few=(375) more=(1000) solves=(100x64 1000 10000x2) points=(1000)
  cell=(2 2 2) ceiling=() rules=()
fi
common=(--device "$device")
part ceiling 30 python3 -m bench.ceiling "${common[@]}" "${ceiling[@]}" --commit "$commit" --out "$out/ceiling.csv"
models=(python3 -m bench.models "${common[@]}" --mode forces --out "$out/models.csv")
part mace 60 "${models[@]}" --case "${plain[@]}" --size "${more[@]}"
part polar 90 "${models[@]}" --case "${polar[@]}" --size "${few[@]}"
part solves 45 python3 -m bench.equilibration "${common[@]}" --size "${solves[@]}" --out "$out/equilibration.csv"
run=(python3 -m bench.run "${options[@]}" --seconds 0.5)
peers=(torch graph-longrange torch-pme-ewald torch-pme-mesh)
part coulomb 80 "${run[@]}" --budget 65 --mode forward_backward --dtype float32 --provider scfmlip "${peers[@]}" \
  --case polar polar_batch energy features energy_charges
sweeper=(env)
if [ "$device" = cpu ]; then sweeper+=(TRITON_INTERPRET=1); fi
part tune 90 "${sweeper[@]}" python3 -m bench.tune "${sweep[@]}" --budget 65
part tests 80 bash -c tests_in_parallel
part ncu 45 bash profiling/ncu.sh "$out/ncu"
part fixed_point 30 python3 -m bench.fixed_point "${common[@]}" --atoms "${points[@]}" --out "$out/fixed-point.csv"
modes=(forces)
if [ "$device" != cpu ]; then modes+=(graph); fi
part rules 75 python3 -m bench.rules "${common[@]}" --repeat "${cell[@]}" --modes "${modes[@]}" "${rules[@]}" \
  --out "$out/rules.csv"
part graphs 30 "${run[@]}" --budget 20 --graphs --case polar energy --dtype float32 --provider scfmlip
part others 45 "${run[@]}" --budget 35 --mode forward_backward forward --provider scfmlip scfmlip-compat "${peers[@]}" \
  --case open_energy open_features structure_factor_1 lattice_field_1 structure_factor_2 lattice_field_2 \
  gaussian_pairs_1
part train 60 python3 -m bench.models "${common[@]}" --mode train --case "${plain[@]}" "${polar[@]}" --size "${few[@]}" \
  --out "$out/models.csv"
part float64 40 "${run[@]}" --budget 28 --mode forward_backward --dtype float64 --case polar energy \
  --provider scfmlip "${peers[@]}"
# nvalchemi compiles itself for minutes on its first use
part nvalchemi 120 "${run[@]}" --budget 100 --mode forward_backward --case polar energy polar_batch \
  --provider scfmlip nvalchemi nvalchemi-pme
part table 30 python3 -m bench.plot "$results" --table
part plots 40 python3 -m bench.plot "$results" --out "$work/plots"
for op in energy polar; do
  for figure in "$work"/plots/*-"$op"-forward_backward-float32-*.png; do
    if [ -e "$figure" ]; then cp "$figure" "$out/$op.png"; fi
  done
done
printf '%s\n' "${summary[@]}" | tee -a "$out/run.log"
ls -l "$out"
