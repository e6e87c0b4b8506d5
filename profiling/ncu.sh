#!/usr/bin/env bash
# Hardware counters of our kernels on a GPU, clocks left alone:
#
#   bash profiling/ncu.sh OUT [CASE [SIZE [DTYPE]]]        (default: polar 5000 float32)
#
# Writes OUT/<case>-<size>-<dtype>.txt (details of each kernel's first launches) and the .ncu-rep beside it.
# Where counters are forbidden (gVisor, no privileges) it says so and leaves a torch.profiler listing instead.
set -uo pipefail
out=${1:?usage: profiling/ncu.sh OUT [CASE [SIZE [DTYPE]]]}
mkdir -p "$out" || exit 1
out=$(cd "$out" && pwd)
case=${2:-polar} size=${3:-5000} dtype=${4:-float32}
cd "$(dirname "$0")/.." || exit 1
work=(python3 profiling/cpu_profile.py --case "$case" --size "$size" --dtype "$dtype" --device cuda --repeats 2)
name=$out/$case-$size-$dtype
export PYTHONUNBUFFERED=1 PYTHONPATH="$PWD/kernels:$PWD${PYTHONPATH:+:$PYTHONPATH}"
timeout 120 "${work[@]}" --plain || exit 1  # compiles the kernels, so that ncu does not wait for it
if command -v ncu >/dev/null && timeout 240 ncu --clock-control none --set detailed --import-source no \
    --kernel-name 'regex:_(structure_factor|lattice_field|gaussian_pairs)_kernel' --launch-count 12 \
    --force-overwrite --export "$name" "${work[@]}" --plain; then
  ncu --import "$name.ncu-rep" --page details > "$name.txt"
  grep -E '_kernel|Duration|Throughput|Registers|Occupancy|Bank conflicts' "$name.txt"
else
  echo "ncu gave nothing: a listing from torch.profiler instead"
  timeout 120 "${work[@]}" | tee "$name.txt"
fi
