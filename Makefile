# Countinghouse. `make help` lists what there is.

GO        ?= go
TOOL      := $(GO) tool -modfile=tools/generate/go.mod
LINT      := $(GO) tool -modfile=tools/lint/go.mod golangci-lint
HELM      := $(GO) tool -modfile=tools/helm/go.mod helm
HELM4     := $(GO) tool -modfile=tools/helm4/go.mod helm
CHART     := charts/countinghouse
# Everything on; a helm that is built as a tool assumes an old Kubernetes.
CHARTARGS := --namespace system --kube-version v1.30.0 --api-versions countinghouse.io/v1/InstrumentShard --values charts/testdata/values.yaml
BIN       := bin
FUZZTIME  ?= 10s
DEMO_ARGS ?=
IMAGE     ?= countinghouse:dev
SHARDS    ?= 1000
BENCH_ARGS ?=
E2E_KILLS ?= 20
GIT_DESC  := $(shell git describe --always --dirty 2>/dev/null || echo unknown)
STAMP     := -X github.com/countinghouse/countinghouse/version.Build=$(GIT_DESC)
LDFLAGS   := -ldflags "$(STAMP)"

.DEFAULT_GOAL := help
.PHONY: help demo test kube check chart generate bench bench-quick build images e2e kind-up kind-down fuzz clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: build ## trade on one machine while a storage leader is killed, and prove that nothing was lost
	@$(BIN)/countinghouse demo $(DEMO_ARGS)

test: kube ## run every test that needs no cluster, with the race detector where it makes sense
	@$(HELM) version --short >/dev/null # which the chart's tests use, and which takes minutes to build once
	$(GO) test -race -timeout 8m ./...
	$(GO) -C bench test -timeout 8m ./...
	$(GO) test -timeout 2m ./storagenode/stablestore
	$(GO) test -timeout 2m -run TestTenThousand ./storagenode
	$(GO) test -timeout 10m -run TestOperatorStopped ./controllers
	$(GO) test -timeout 12m -run APIServer -skip ManyShards ./api/v1 ./controllers
	$(GO) test -timeout 15m -run APIServerManyShards ./controllers -shards=$(SHARDS)

kube: ## the Kubernetes API server and etcd that tests run against, from Go modules (minutes the first time)
	$(GO) run ./internal/apiserver/build

check: chart ## formatting, vet, lint, the chart, stale generated code
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { echo "not gofmt-ed:"; gofmt -l $$(git ls-files '*.go'); exit 1; }
	$(GO) vet ./...
	$(LINT) run ./...
	$(GO) -C e2e vet ./...
	cd e2e && $(GO) tool -modfile=../tools/lint/go.mod golangci-lint run --config ../.golangci.yml ./...
	$(GO) -C bench vet ./...
	cd bench && $(GO) tool -modfile=../tools/lint/go.mod golangci-lint run --config ../.golangci.yml ./...
	$(MAKE) --no-print-directory generate
	@git diff --exit-code --stat -- '*.pb.go' api config $(CHART)/files || { echo "generated code is stale: run 'make generate' and commit the result"; exit 1; }

generate: ## code from the .proto files, the CRD and deep copies from api/, RBAC from controllers/
	$(TOOL) buf lint
	$(TOOL) buf generate
	$(TOOL) controller-gen object crd paths=./api/... output:crd:dir=config/crd
	$(TOOL) controller-gen rbac:roleName=countinghouse-operator paths=./controllers/... output:rbac:dir=config/rbac
	cp config/crd/countinghouse.io_instrumentshards.yaml $(CHART)/files/crd.yaml
	cp config/rbac/role.yaml $(CHART)/files/role.yaml

chart: ## lint the Helm chart and render it with Helm 3 and 4, which must agree but for empty lines
	@mkdir -p $(BIN)/chart
	$(HELM) lint --strict $(CHART) --values charts/testdata/values.yaml --kube-version v1.30.0
	$(HELM4) lint --strict $(CHART) --values charts/testdata/values.yaml --kube-version v1.30.0
	@$(HELM) template x $(CHART) $(CHARTARGS) >$(BIN)/chart/helm3.yaml
	@$(HELM4) template x $(CHART) $(CHARTARGS) >$(BIN)/chart/helm4.yaml
	@diff -bB $(BIN)/chart/helm3.yaml $(BIN)/chart/helm4.yaml

bench: ## measure beside peers and floors: tables, and JSON in bench/out (BENCH_ARGS: see bench -help)
	$(GO) -C bench run . $(BENCH_ARGS)

bench-quick: ## three minutes of bench, one run of each case that shows most: bench/out/quick.json
	$(GO) -C bench run . -quick $(BENCH_ARGS)

fuzz: ## every fuzz target for FUZZTIME each
	@for pkg in $$($(GO) list ./...); do \
	  for target in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz'); do \
	    echo "$$pkg $$target"; \
	    $(GO) test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) $$pkg || exit 1; \
	  done; \
	done

build: ## the programs, in bin/
	@mkdir -p $(BIN)
	$(GO) build $(LDFLAGS) -o $(BIN)/ ./cmd/...

images: ## the container image IMAGE: static programs, from scratch
	@mkdir -p $(BIN)/image
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags "-s -w $(STAMP)" -o $(BIN)/image/ ./cmd/operator ./cmd/storagenode ./cmd/exchange ./cmd/countinghouse
	DOCKER_BUILDKIT=0 docker build --quiet --tag $(IMAGE) --file Dockerfile $(BIN)/image

e2e: ## on a kind cluster that it creates: install, trade, and take away what can be (Docker; KIND_NODE_IMAGE, see e2e/doc.go)
	E2E_KILLS=$(E2E_KILLS) $(GO) -C e2e test -v -count 1 -timeout 40m .

kind-up: images ## a kind cluster with the images on it, to try things on
	$(GO) -C e2e run ./kindup -image $(IMAGE)

kind-down: ## delete the cluster of kind-up
	$(GO) -C e2e tool kind delete cluster --name countinghouse

clean: ## remove what the targets made
	rm -rf $(BIN) bench/out
