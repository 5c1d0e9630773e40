# Two commands matter: `make demo` and `make test`. Each makes .venv and installs what it needs.
# Python 3.11 first (the version the figures were measured with), else a newer one.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
OUT ?= ddib-demo
# Test processes: two more than cores, because tests wait for nodes half of the time; at most four (each takes about 1.5 GB with the nodes it starts); `WORKERS=0` runs in one.
# Each computes with one thread, because the processes already fill the cores.
WORKERS ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) + 2)
# Executions of each parser in `make fuzz`, and the seconds after which it goes on to the next; 0 for no limit.
RUNS ?= 1000000
FUZZ_S ?= 0
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --numprocesses=$(WORKERS) --maxprocesses=4 --dist=worksteal
# Byte code is written when a module is first imported: compiling all 15,000 files takes half of the installation's time.
# So it must be written: with this variable, which images of containers set, each process would compile torch again.
unexport PYTHONDONTWRITEBYTECODE
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile --constraint constraints.txt

# A scanner that needs an older `cryptography` than constraints.txt has: it lies in an environment of its own.
SSLYZE := $(CURDIR)/build/sslyze/bin/sslyze

.PHONY: demo test test-fast test-long test-field test-ray test-web test-pacs docs check format format-check lint types layers drift size smoke path tables proto install clean dist release-tree bench trust chaos fuzz tls-scan sbom benchmarks pretrained help

help:  ## What there is to make
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 16

demo: $(VENV)/.node  ## Institutions on this machine: translate points, then pictures, there and back; write a report
	$(BIN)/ddib demo --out $(OUT)

test: $(VENV)/.dev  ## Every test, in parallel
	$(PYTEST)

test-fast: $(VENV)/.dev  ## The tests that are neither e2e nor slow, in parallel
	$(PYTEST) -m 'not e2e and not slow'

test-long: $(VENV)/.dev  ## Every test in its long form, with the further cases that `make test` leaves out (hours)
	$(PYTEST) --long --timeout 3600

test-ray: $(VENV)/.ray  ## What needs Ray: the executor ray, on a cluster of this machine
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/engine/test_executors.py

test-field: $(VENV)/.field  ## The module of 3D Slicer in a real scene, and derived datasets under the validator of BIDS
	PATH="$(CURDIR)/$(BIN):$$PATH" OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -rs tests/test_slicer.py tests/test_bids.py

# The browser and axe-core come from package registries: Playwright's own download of a browser is not used.
AXE := 4.14.1
test-web: $(VENV)/.browser  ## The pages in a real Chromium, over two real nodes: keyboard, 200 % zoom, axe-core
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || test -n "$$DDIB_CHROMIUM" || \
	{ test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core; } || \
	{ echo "make: no Chromium: apt-get install chromium (Debian), or DDIB_CHROMIUM=PROGRAM" >&2; exit 1; }
	@test -f build/web/axe.min.js || { mkdir -p build/web && cd build/web && npm pack --silent axe-core@$(AXE) && \
	tar xzf axe-core-$(AXE).tgz --strip-components=1 package/axe.min.js; }
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -rs tests/web

PACS := orthanc orthanc-dicomweb dcmtk dicom3tools dcm2niix
test-pacs: $(VENV)/.dev  ## Studies through a real Orthanc of Debian, there and back: C-STORE, C-MOVE and DICOMweb
	@command -v Orthanc >/dev/null && command -v dciodvfy >/dev/null && command -v storescu >/dev/null || \
	{ test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq && apt-get install -y -qq --no-install-recommends $(PACS); } || \
	{ echo "make: no Orthanc: apt-get install $(PACS) (Debian)" >&2; exit 1; }
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -rs tests/e2e/translation/test_orthanc.py

check: format-check lint layers drift size types path smoke  ## What CI runs: format, lint, layers, proto drift, size, types, the path of a picture, a smoke of each benchmark, tests
	$(MAKE) --no-print-directory test

format: $(VENV)/.dev  ## Rewrite the sources as the formatter wants them
	$(BIN)/ruff format . && $(BIN)/ruff check --fix-only --quiet .

format-check: $(VENV)/.dev
	$(BIN)/ruff format --check .

lint: $(VENV)/.dev
	$(BIN)/ruff check .

types: $(VENV)/.dev
	$(BIN)/mypy
	$(BIN)/mypy -p benchmarks

layers: $(VENV)/.dev
	$(BIN)/lint-imports

proto: $(VENV)/.dev  ## Generate ddib_fed/v1 from protos/
	$(BIN)/python protos/generate.py

drift: $(VENV)/.dev
	$(BIN)/python protos/generate.py --check

size: $(VENV)/.dev  ## Lines, modules, words, commands, options, keys and more beside the ceilings of benchmarks/budgets.toml
	$(BIN)/python -m benchmarks.size

path: $(VENV)/.dev  ## Whether docs/architecture.md lists the modules that one picture runs
	$(BIN)/python -m benchmarks.path --check

smoke: $(VENV)/.dev  ## Each benchmark on as little as shows that it runs
	$(BIN)/python -m benchmarks.smoke

tables: $(VENV)/.dev  ## The tables of the pages from docs/benchmarks, each marked where the code differs since
	$(BIN)/python -m benchmarks.tables

install: $(VENV)/.dev  ## The virtual environment, with everything for development

bench: $(VENV)/.dev  ## Every benchmark of speed (about an hour); writes docs/benchmarks/speed, fails when a bound is missed
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.speed.everything

trust: $(VENV)/.dev $(SSLYZE)  ## The long form of every test that holds a promise, but the chaos; writes docs/benchmarks/trust
	DDIB_SSLYZE=$(SSLYZE) OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.trust.report
	$(BIN)/python -m benchmarks.tables

tls-scan: $(VENV)/.dev $(SSLYZE)  ## Both ports under sslyze: TLS 1.3 alone, suites, curves, known holes, certificates
	DDIB_SSLYZE=$(SSLYZE) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -rs tests/security/test_tls_scan.py

chaos: $(VENV)/.dev  ## The long form of tests/chaos: kills, full disks, broken wires; writes docs/benchmarks/trust
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.trust.report chaos
	$(BIN)/python -m benchmarks.tables

fuzz: $(VENV)/.fuzz  ## Every parser of bytes from elsewhere under atheris, RUNS executions each (a day); writes docs/benchmarks/trust
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz.run --runs $(RUNS) --seconds $(FUZZ_S)
	$(BIN)/python -m benchmarks.tables

docs: $(VENV)/.dev  ## build/docs: the reference of the Python interface; fails on a dead link
	$(BIN)/python -m tests.api.reference build/docs

RELEASE ?= build/release
# What the wheels are built from; the extra `models` names no folder of this machine.
release-tree:
	rm -rf $(RELEASE) && mkdir -p $(RELEASE)
	cp -R LICENSE NOTICE README.md ddib_fed source_node target_node protos models $(RELEASE)
	sed 's| @ {root:uri}/models||' pyproject.toml > $(RELEASE)/pyproject.toml

dist: release-tree | $(BIN)/python  ## dist/: the wheels of a release, the client's and that of the models
	$(BIN)/python -m pip --disable-pip-version-check wheel --quiet --no-deps --wheel-dir dist $(RELEASE) $(RELEASE)/models

sbom: | $(BIN)/python  ## dist/ddib-fed.cdx.json: a CycloneDX bill of what a node needs
	rm -rf build/sbom && $(BIN)/python -m venv build/sbom/node && $(BIN)/python -m venv build/sbom/tool
	build/sbom/node/bin/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt '.[node]'
	build/sbom/tool/bin/python -m pip --disable-pip-version-check install --quiet 'cyclonedx-bom==7.5.0'
	mkdir -p dist && build/sbom/tool/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --output-file dist/ddib-fed.cdx.json build/sbom/node

benchmarks: $(VENV)/.dev  ## Measure the solvers again (80 minutes of one core; writes docs/benchmarks)
	$(BIN)/python -m benchmarks.points.solvers

POINTS := moons checkerboards concentric-rings parallel-squares concentric-squares parallel-rings
PICTURES := satellite relief etopo brain-t1 brain-t2

pretrained: $(VENV)/.dev  ## Train the shipped bundles again in build/pretrained, and their learned steps (points 20 minutes of CPU, pictures an hour)
	mkdir -p build/pretrained
	cd build/pretrained && for each in $(POINTS); do $(abspath $(BIN))/ddib model train --domain $$each --steps 2500 --seed 0 --dtype float16 --out $$each --force || exit 1; done
	$(BIN)/python -m benchmarks.pretrained_pictures
	for each in $(POINTS) $(PICTURES); do $(BIN)/ddib model tune build/pretrained/$$each --evaluations 12 16 20 || exit 1; done

$(VENV)/.fuzz: $(VENV)/.dev
	$(PIP) --editable '.[node,fuzz]'
	@touch $@

$(VENV)/.browser: $(VENV)/.dev
	$(PIP) --editable '.[node,browser]'
	@touch $@

$(VENV)/.field: $(VENV)/.dev
	$(PIP) --editable '.[node,field]'
	@touch $@

$(VENV)/.ray: $(VENV)/.dev
	$(PIP) --editable '.[node,ray]'
	@touch $@

$(SSLYZE): | $(BIN)/python
	$(BIN)/python -m venv build/sslyze
	build/sslyze/bin/python -m pip --disable-pip-version-check install --quiet 'sslyze==6.3.1'

clean:
	rm -rf $(VENV) ddib-demo build dist *.egg-info

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or newer found; on Debian or Ubuntu: apt-get install python3 python3-venv" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "make: $(PYTHON) has no venv module; on Debian or Ubuntu: apt-get install $$($(PYTHON) -c 'import sys; print("python3.%d-venv" % sys.version_info[1])')" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.node: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[node]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[node,data,colours,diffusers,geotiff,dicom,dev]'
	@touch $@ $(VENV)/.node
