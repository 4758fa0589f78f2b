# Every target does all its own set-up; it needs Go, gcc, make, git and the module proxy.
# `make interop` also installs Debian and npm packages (as root, or through sudo).

GO      ?= go
DEMO_SECONDS ?= 30
TPM ?= auto
FUZZTIME ?= 10s
BENCHTIME ?= 1s
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
BUILD   := CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w'

OVERLAY := $(CURDIR)/_build/tls/overlay.json

# An installed toolchain: the files of one that go downloads itself cannot be laid over.
export GOTOOLCHAIN := local
# Everything is built and tested with what the overlay adds to crypto/tls (doc/secure-transport.md).
# Here private keys may come from files, for simulators and tests. A release is built without the
# tag, and has not even the code for it (make cross).
export GOFLAGS := -overlay=$(OVERLAY) -tags=development
# make FIPS=1: the FIPS 140-3 module of Go, switched on. gatewayd version names the suites that it removes.
ifeq ($(FIPS),1)
export GOFIPS140 := v1.0.0
endif
# A test that needs the overlay fails without it, and does not skip.
export NEED_TLS_OVERLAY := 1

.PHONY: help swtpm build demo test lint fuzz soak interop bench cross overlay test-tls generate clean

help: ## print this list
	@awk -F ':[a-z ]*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: overlay ## gatewayd and gatewaysim into bin/
	@mkdir -p bin
	$(BUILD) -o bin/ ./cmd/gatewayd ./cmd/gatewaysim

demo: build swtpm ## monitor, gateway and platform live for DEMO_SECONDS (30); CAPTURE=FILE replays a recording, SCENARIO=tunnel shows devices with TLS of their own, TPM=none needs no swtpm
	@bin/gatewaysim demo --gatewayd bin/gatewayd --seconds $(DEMO_SECONDS) --tpm $(TPM) $(if $(CAPTURE),--capture '$(CAPTURE)') $(if $(SCENARIO),--scenario '$(SCENARIO)')

# The arithmetic of big numbers and curves has no memory that goroutines share: it is not watched, which
# makes certificates and handshakes several times as fast. The race detector's wait of a second at the
# end of each process finds nothing in tests that wait for their goroutines.
UNWATCHED := -gcflags=crypto/internal/fips140/bigmod=-race=false -gcflags=crypto/internal/fips140/nistec/...=-race=false

test: export GORACE := atexit_sleep_ms=50
test: overlay swtpm ## all tests, with the race detector
	$(GO) test -race $(UNWATCHED) ./...

# The emulated TPM, where this machine lets us install it unasked. Without it the demo has a key in a
# file, and the tests that need a TPM are skipped.
swtpm:
	@command -v swtpm >/dev/null || [ "$(TPM)" = none ] || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
		{ apt-get install -y -qq --no-install-recommends swtpm >/dev/null 2>&1 || { apt-get update -qq && apt-get install -y -qq --no-install-recommends swtpm >/dev/null; }; }; } || \
		echo 'swtpm is not installed (Debian: apt-get install swtpm): the demo has its key in a file, and tests of the TPM are skipped'

lint: overlay ## formatting, vet, staticcheck
	@out=$$(gofmt -l $$(git ls-files '*.go')); [ -z "$$out" ] || { echo "gofmt wants changes in:"; echo "$$out"; exit 1; }
	$(GO) vet ./...
	GOFLAGS= $(GO) run $(STATICCHECK) ./...

fuzz: overlay ## every parser of outside bytes for FUZZTIME (10s) each
	@GO='$(GO)' test/fuzz.sh $(FUZZTIME)

soak: overlay ## power cuts and kills by the hundred (some minutes)
	GATEWAY_SPOOL_KILLS=1000 GATEWAY_SPOOL_CUTS=20000 $(GO) test -count=1 -timeout 60m -run 'Kill|PowerCut|Cut' -v ./spool

interop: overlay ## parsers and peers that this project did not write; installs them
	test/interop/install.sh
	GATEWAY_INTEROP=1 $(GO) test -count=1 ./test/interop/...

bench: build ## figures, each beside a peer in the same run
	test/bench.sh $(BENCHTIME)

cross: export GOFLAGS := -overlay=$(OVERLAY)
cross: overlay ## the firmware binaries for arm64 and armv7, stripped and without file keys
	@mkdir -p bin/arm64 bin/armv7
	GOOS=linux GOARCH=arm64 $(BUILD) -o bin/arm64/ ./cmd/gatewayd
	GOOS=linux GOARCH=arm GOARM=7 $(BUILD) -o bin/armv7/ ./cmd/gatewayd
	@for b in bin/arm64/gatewayd bin/armv7/gatewayd; do \
		if grep -q 'gatewayd/keystore/keyfile' $$b; then echo "$$b takes private keys from files: no release may"; exit 1; fi; done
	@ls -l bin/arm64/gatewayd bin/armv7/gatewayd

overlay: ## the edited crypto/tls that the build lays over the stock one
	@GOFLAGS= $(GO) run ./tlsoverlay/gen

test-tls: ## Go's own tests of crypto/tls, and ours inside it, under the overlay
	GOFLAGS= $(GO) run ./tlsoverlay/gen -tests -out _build/tls-tests
	@test/stock_tls.sh _build/tls-tests/overlay.json
	GOFLAGS= NEED_TLS_OVERLAY= $(GO) test -count=1 -run 'Without' ./tlsoverlay ./tlspolicy ./cmd/gatewayd

generate: overlay ## the tables that are made from CSV
	$(GO) generate ./...

clean: ## remove what was built
	rm -rf bin _build
