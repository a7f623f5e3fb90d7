#!/usr/bin/env bash
# All that needs a CUDA device, in calls of less than ten minutes: bench/gpu_all.sh test | sanitize | tune | bench
# Needs torch with CUDA, triton and pytest. Builds the engine of the CPU, to compare with, and that of CUDA C++ where
# there is nvcc, unless both are there: fastsmc/_cpu*.so and fastsmc/_cuda*.so, built elsewhere for this Python.
set -euo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-build/gpu}
mkdir -p "$OUT"
export PYTHONPATH=$PWD

build() {  # without pip: the module is put beside the sources, and kernels/ where they import it from
  python -c "from fastsmc import _cpu, _cuda; assert _cuda.device() == 'cuda'" 2>"$OUT/import.log" && return
  [ -x /usr/local/cuda/bin/nvcc ] && export PATH=$PATH:/usr/local/cuda/bin
  cmake -S . -B build/engines -DCMAKE_BUILD_TYPE=Release -DPython_EXECUTABLE="$(command -v python)" \
    -Dpybind11_DIR="$(python -m pybind11 --cmakedir)" -DFASTSMC_OUTPUT_DIR="$PWD/fastsmc" >"$OUT/cmake.log"
  cmake --build build/engines -j >>"$OUT/cmake.log"
}

test_all() { pytest -q -m gpu -p no:cacheprovider --junitxml="$OUT/gpu.xml" tests; }

sanitize() {  # the smallest shapes: every access is watched
  local tool failed=0
  for tool in memcheck racecheck synccheck; do
    compute-sanitizer --tool "$tool" --error-exitcode 1 --log-file "$OUT/$tool.log" \
      pytest -q -m "gpu and not large" -p no:cacheprovider tests/test_{triton,engine,cuda}_*.py ||
      { failed=1; tail -30 "$OUT/$tool.log"; }
  done
  return "$failed"
}

tune() { python -m bench.gpu_tune && cp kernels/tiles.csv "$OUT/"; }

bench() { python -m bench.gpu && cp bench/results/gpu.csv fastsmc/choice.csv "$OUT/"; }

nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
python -c "import torch, triton; print('torch', torch.__version__, 'triton', triton.__version__)"
[ -e fastsmc/kernels ] || ln -s ../kernels fastsmc/kernels
build
for what in "${@:-test}"; do
  case $what in
    test) test_all ;;
    sanitize) sanitize ;;
    tune) tune ;;
    bench) bench ;;
    *) echo "bench/gpu_all.sh: $what is not one of test, sanitize, tune, bench" >&2; exit 2 ;;
  esac
done
