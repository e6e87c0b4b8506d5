#!/usr/bin/env bash
# Everything a GPU box can tell us, in one command and without a network:
#
#   bash bench/gpu.sh OUT [WHEELS ...]
#
# Runs the tests on the GPU, all benchmarks beside our peers, and the sweep of launch parameters, each under
# its own time limit and none stopping the others; leaves in OUT
#   run.log  <gpu>.csv (for bench/results/)  tune.csv  <gpu>.json (proposed tuned/<gpu>.json)  energy.png polar.png
# WHEELS are folders of wheels packed by shared/gpu/pack_wheels.sh (groups core peers warp); without them the
# peers are skipped. COMMIT names the commit where there is no git. LIMIT is the time for everything, seconds.
set -uo pipefail
out=${1:?usage: bench/gpu.sh OUT [WHEELS ...]}; shift
mkdir -p "$out" || exit 1
out=$(cd "$out" && pwd)
wheels=(); for folder in "$@"; do wheels+=("$(cd "$folder" && pwd)") || exit 1; done
cd "$(dirname "$0")/.." || exit 1
limit=${LIMIT:-570} device=${DEVICE:-cuda} quick=${QUICK:-}
commit=${COMMIT:-$(git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PYTHONUNBUFFERED=1 TRITON_DEFAULT_FP_FUSION=1 MPLCONFIGDIR="$work"
export PYTHONPATH="$PWD/kernels:$PWD${PYTHONPATH:+:$PYTHONPATH}"
summary=()

# part NAME SECONDS COMMAND...: run it for at most so long, and within the limit of everything
part() {
  local name=$1 most=$2 left=$((limit - SECONDS)) rc
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

export work commit
export -f versions install_wheels

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
# nvalchemi compiles itself for minutes on its first use: in the background, while the tests run
nvalchemi=(nvalchemi nvalchemi-pme)
timeout -k 5 300 python3 -m bench.run --device "$device" --quick --no-memory --provider "${nvalchemi[@]}" \
  --case polar energy polar_batch --mode forward_backward --out "$work/warm.csv" > "$work/warm.log" 2>&1 &
warming=$!
part tests 130 python3 -m pytest -q --maxfail=20 -p no:cacheprovider -m "(gpu or interpreter) and not slow" tests
for _ in $(seq 30); do kill -0 "$warming" 2>/dev/null && sleep 1; done
kill "$warming" 2>/dev/null
{ echo "=== warming nvalchemi"; cat "$work/warm.log"; } >> "$out/run.log"

run=(python3 -m bench.run "${options[@]}" --seconds 0.5)
peers=(torch graph-longrange torch-pme-ewald torch-pme-mesh)
part first 110 "${run[@]}" --budget 95 --mode forward_backward --dtype float32 --provider scfmlip "${peers[@]}" \
  --case polar polar_batch energy features energy_charges
part others 60 "${run[@]}" --budget 48 --mode forward_backward forward --provider scfmlip scfmlip-compat "${peers[@]}" \
  --case open_energy open_features structure_factor_1 lattice_field_1 structure_factor_2 lattice_field_2 \
  gaussian_pairs_1
part graphs 45 "${run[@]}" --budget 35 --graphs --case polar polar_batch energy --dtype float32 --provider scfmlip
part nvalchemi 45 "${run[@]}" --budget 30 --mode forward_backward --case polar energy polar_batch \
  --provider scfmlip "${nvalchemi[@]}"
sweeper=(env)
if [ "$device" = cpu ]; then sweeper+=(TRITON_INTERPRET=1); fi
part more 40 "${run[@]}" --budget 28 --mode double_backward forward --case energy features --dtype float32 \
  --provider scfmlip "${peers[@]}"
part float64 40 "${run[@]}" --budget 28 --mode forward_backward --dtype float64 --case polar energy \
  --provider scfmlip "${peers[@]}"
part tune 105 "${sweeper[@]}" python3 -m bench.tune "${sweep[@]}" --budget 90
part table 30 python3 -m bench.plot "$results" --table
part plots 40 python3 -m bench.plot "$results" --out "$work/plots"
for op in energy polar; do
  for figure in "$work"/plots/*-"$op"-forward_backward-float32-*.png; do
    if [ -e "$figure" ]; then cp "$figure" "$out/$op.png"; fi
  done
done
printf '%s\n' "${summary[@]}" | tee -a "$out/run.log"
ls -l "$out"
