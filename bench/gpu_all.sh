#!/usr/bin/env bash
# All that needs a CUDA device, in calls of less than ten minutes: bench/gpu_all.sh test | sanitize | tune | bench, and
# behind them options of bench.gpu. Tables are in $OUT line by line, so that nothing is lost when a call is cut short.
# Needs torch with CUDA, triton, pytest, pytest-timeout and pytest-xdist. Builds the engine of the CPU, to compare with,
# and that of CUDA C++ where there is nvcc, unless both are there: fastsmc/_cpu*.so and fastsmc/_cuda*.so, built
# elsewhere for this Python.
set -euo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-build/gpu}
WORKERS=${WORKERS:-$(nproc)} # that compile kernels while one runs its own
mkdir -p build "$OUT"
export OUT PYTHONPATH=$PWD XLA_PYTHON_CLIENT_PREALLOCATE=false

build() {  # without pip: the module is put beside the sources, and kernels/ where they import it from
  python -c "from fastsmc import _cpu, _cuda; assert _cuda.device() == 'cuda'" 2>"$OUT/import.log" && return
  [ -x /usr/local/cuda/bin/nvcc ] && export PATH=$PATH:/usr/local/cuda/bin
  cmake -S . -B build/engines -DCMAKE_BUILD_TYPE=Release -DPython_EXECUTABLE="$(command -v python)" \
    -Dpybind11_DIR="$(python -m pybind11 --cmakedir)" -DFASTSMC_OUTPUT_DIR="$PWD/fastsmc" >"$OUT/cmake.log"
  cmake --build build/engines -j >>"$OUT/cmake.log"
}

# Without the file that needs ArviZ, which has no test of a device; interrupted, it tells what failed until then.
test_all() { OMP_NUM_THREADS=1 timeout -s INT "${SECONDS_OF_TESTS:-540}" \
  pytest -q -n "$WORKERS" -m gpu -p no:cacheprovider --timeout 240 \
  --junitxml="$OUT/gpu.xml" --ignore tests/integrations/test_arviz.py tests; }

# The smallest shapes, since every access is watched; the tools side by side, since that takes the host's time.
sanitize() {
  local tool failed=0
  local tests=(tests/test_{cuda_network,engine_weights,triton_graphs,triton_leapfrog,triton_mlp,triton_weights}.py)
  for tool in memcheck racecheck synccheck; do
    compute-sanitizer --tool "$tool" --target-processes all --log-file "build/$tool.%p" \
      env OMP_NUM_THREADS=1 pytest -q -n "$((WORKERS / 3))" -m "gpu and not large" -p no:cacheprovider "${tests[@]}" >"$OUT/$tool.log" 2>&1 &
  done
  wait
  for tool in memcheck racecheck synccheck; do
    echo "$tool: $(tail -1 "$OUT/$tool.log")"
    cat "build/$tool".* >>"$OUT/$tool.log"
    ! grep -h -A12 "ERROR SUMMARY: [1-9]\|RACECHECK SUMMARY: [1-9]\|=== .*Error\|=== .*[Hh]azard" "$OUT/$tool.log" || failed=1
  done
  return "$failed"
}

nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
python -c "import torch, triton; print('torch', torch.__version__, 'triton', triton.__version__)"
[ -e fastsmc/kernels ] || ln -s ../kernels fastsmc/kernels
build
all=()
while [ $# -gt 0 ] && [[ $1 != -* ]]; do all+=("$1") && shift; done
for what in "${all[@]:-test}"; do
  case $what in
    test) test_all ;;
    sanitize) sanitize ;;
    tune) python -m bench.gpu_tune ;;
    bench) python -m bench.gpu "$@" ;;
    *) echo "bench/gpu_all.sh: $what is not one of test, sanitize, tune, bench" >&2; exit 2 ;;
  esac
done
