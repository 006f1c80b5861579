# Grail. "make demo" shows it, "make test" checks it; both install what they need (as root) or name it.

GO      ?= go
BIN     := bin
ENGINE  ?=
export CGO_ENABLED := 0

.DEFAULT_GOAL := help
.PHONY: help build demo test model campaign test-crash test-linux test-nested bench lint images clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## build everything into bin/
	@images/setup build
	$(GO) build -trimpath -o $(BIN)/ ./mgmt/grailctl ./mgmt/graild ./hv/grailvm ./hv/grailport ./drivervms/net/grailnat
	$(GO) build -trimpath -o $(BIN)/drivers/blk ./drivervms/blk/guest
	$(GO) build -trimpath -o $(BIN)/drivers/net ./drivervms/net/guest
	$(GO) build -trimpath -o $(BIN)/drivers/console ./drivervms/console/guest
	$(GO) build -trimpath -o $(BIN)/examples/ ./personalities/native/examples/...
	$(GO) build -trimpath -o $(BIN)/ ./personalities/linux/graillinux
	for a in amd64 arm64; do GOARCH=$$a $(GO) build -trimpath -ldflags=-s -o $(BIN)/guests/$$a/grail-init ./personalities/linux/agent/init || exit; done

demo: build ## VMs hash, build and serve while their driver VMs are crashed; ENGINE=process does it without KVM
	@images/setup demo
	@$(GO) build -trimpath -o $(BIN)/ ./mgmt/demo
	@$(BIN)/demo $(if $(ENGINE),-engine $(ENGINE))

# Two packages at a time: each of them may start several VMs. Set GOTESTFLAGS for more, such as -run or -count.
test: lint ## run every test that this machine can run
	@images/setup test
	@$(GO) run ./mgmt/house/report -- $(GO) test -json -vet=off -p 2 -timeout 14m $(GOTESTFLAGS) ./...

model: ## check the models of the ring and its hand-over with spin, large bounds included
	@images/setup model
	@$(GO) test -count=1 -timeout 30m -run TestModels ./ring/model -full

campaign: build ## 10,000 faults of every kind in at most an hour, with verdicts, to campaign.json; QUICK=1: 3 minutes; SEED= repeats a run, ONE= one fault
	@$(if $(QUICK),,images/setup linux)
	@$(GO) build -trimpath -o $(BIN)/ ./mgmt/campaign
	@$(BIN)/campaign $(if $(QUICK),-quick) $(if $(SEED),-seed $(SEED)) $(if $(ONE),-one $(ONE)) $(if $(ENGINE),-engine $(ENGINE)) -o campaign.json

CRASHES ?= 1000
test-crash: build ## crash a driver VM at random under a verifying writer, CRASHES times (1000)
	@$(GO) build -trimpath -o $(BIN)/ ./mgmt/campaign
	@$(BIN)/campaign -crashes $(CRASHES) $(if $(ENGINE),-engine $(ENGINE))

KILLS ?= 300
test-linux: build ## crash drivers at random under fio and iperf3 in Linux VMs, KILLS times each (300)
	@images/setup linux
	@$(GO) build -trimpath -o $(BIN)/ ./mgmt/campaign
	@$(BIN)/campaign -linux -crashes $(KILLS) $(if $(ENGINE),-engine $(ENGINE))

test-nested: ## test engine kvm on an emulated AMD SVM machine
	@images/setup nested
	@images/nested/run

bench: build ## measure, compare with other programs, write bench.json; QUICK=1 takes under 3 minutes
	@images/setup bench
	@$(GO) build -trimpath -o $(BIN)/ ./mgmt/bench
	@$(BIN)/bench $(if $(QUICK),-quick) $(if $(ENGINE),-engine $(ENGINE)) -o bench.json

lint: ## gofmt and go vet
	@images/setup build
	@bad=$$($$($(GO) env GOROOT)/bin/gofmt -l $$($(GO) list -f '{{.Dir}}' ./...)); [ -z "$$bad" ] || { echo "gofmt -w is due for:"; echo "$$bad"; exit 1; }
	@$(GO) vet ./...

images: build ## build the guest programs and the files of the emulated test machine
	@images/setup nested
	@images/nested/run -make

clean: ## remove everything that was built
	rm -rf $(BIN) build bench.json campaign.json
