# One environment in .venv; every target sets up what it needs.
PYTHON ?= python3
TORCH ?= torch==2.13.0
BENCH ?=
VENV := .venv
BIN := $(VENV)/bin
INTERPRETED := $(wildcard tests/test_triton_*.py tests/test_engine_*.py tests/test_device.py \
  tests/test_weights.py tests/test_hostile_arrays.py)
# without nvcc, the CUDA engine is its host twin
CUDA ?= $(if $(shell command -v nvcc),AUTO,HOST)
# the custom calls for JAX, where JAX is installed
JAX = $(shell $(BIN)/python -c "import jax.ffi; print(jax.ffi.include_dir())" 2>/dev/null)
BUILD = FASTSMC_CMAKE_ARGS="-DFASTSMC_CUDA=$(CUDA) -DFASTSMC_JAX_INCLUDE=$(JAX) $(FASTSMC_CMAKE_ARGS)"
ENGINE := $(wildcard csrc/*/*) CMakeLists.txt setup.py pyproject.toml

.PHONY: install demo test test-peers bench docs fuzz lint soak tsan wheel-check clean
RUNS ?= 20000
HOURS ?= 1
PEERS ?=

install: $(VENV)/.installed

demo: $(VENV)/.installed
	$(BIN)/fastsmc demo

# threads that wait must not take the other worker's cores
test: export OMP_WAIT_POLICY = passive
test: $(VENV)/.installed
	$(BIN)/pytest -n 2 --dist worksteal
	TRITON_INTERPRET=1 $(BIN)/pytest -n 2 --dist worksteal -m 'triton and not large' $(INTERPRETED)

# other libraries' own tests, on our functions
test-peers: $(VENV)/.bench
	$(BIN)/pip install -q absl-py chex stonesoup
	$(BIN)/python tests/peers -n 2 --dist worksteal $(PEERS)

bench: $(VENV)/.bench
	$(BIN)/python -m bench $(BENCH)

# hostile input, RUNS of each target, guided by coverage where there is atheris
fuzz: $(VENV)/.installed
	-$(BIN)/pip install -q --only-binary :all: 'atheris>=3'
	mkdir -p build
	cd build && ../$(BIN)/python ../tests/fuzz --runs $(RUNS)

# random configurations against the reference, recorded in bench/results/soak.csv
soak: $(VENV)/.installed
	$(BIN)/python -m bench.soak --seconds 0 --hours $(HOURS) --seed $$(date +%s) --record

# calls of the engine from many threads, under ThreadSanitizer
tsan: $(VENV)/.installed
	rm -rf build/tsan
	FASTSMC_CMAKE_ARGS="-DFASTSMC_SANITIZE=thread -DFASTSMC_LEVELS=avx2 -DFASTSMC_CUDA=OFF -DFASTSMC_JAX_INCLUDE=OFF" \
	  $(BIN)/pip install -q --no-deps --target build/tsan .
	cd build && PYTHONPATH=tsan OMP_NUM_THREADS=1 TSAN_OPTIONS=halt_on_error=1 \
	  LD_PRELOAD="$$(g++ -print-file-name=libtsan.so):$$(g++ -print-file-name=libstdc++.so)" \
	  ../$(BIN)/python ../tests/races.py

docs: $(VENV)/.installed
	$(BIN)/python -m sphinx -q -n -W --keep-going docs build/docs

lint: $(VENV)/.installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/clang-format --dry-run -Werror $(wildcard csrc/*/*.h csrc/*/*.cpp csrc/*/*.cu)

# the wheel, built from the source archive, must work where there is nothing but numpy
wheel-check: | $(BIN)/python
	$(BIN)/pip install -q 'build[uv]'
	rm -rf dist build/wheel
	$(BIN)/python -m build --installer uv
	$(PYTHON) -m venv build/wheel
	build/wheel/bin/pip install -q numpy
	build/wheel/bin/pip install -q --no-deps dist/*.whl
	cd build && wheel/bin/python -c "import fastsmc as fs, numpy as np; print(fs.systematic(np.arange(4.0), 0.5))"

clean:
	rm -rf $(VENV) build dist *.egg-info fastsmc/*.so .pytest_cache .ruff_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.torch: | $(BIN)/python
	$(BIN)/pip install '$(TORCH)'
	touch $@

$(VENV)/.installed: $(VENV)/.torch $(ENGINE)
	$(BUILD) $(BIN)/pip install -e '.[demo,test,lint,docs]'
	touch $@

$(VENV)/.bench: pyproject.toml | $(VENV)/.installed
	$(BIN)/pip install -e '.[bench]'
	$(BUILD) $(BIN)/pip install --no-deps -e .
	touch $@
