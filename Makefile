# criserver. `make help` lists the targets.

# A tag's name; else a development version with the commit; without git, the version in the program.
DESCRIBED := $(shell git describe --tags --always --dirty 2>/dev/null | sed 's/^v//;/^[0-9]*\./!s/^/0.1.0-dev+/')
VERSION ?= $(or $(DESCRIBED),0.1.0-dev)
PREFIX  ?= /usr/local
DESTDIR ?=
UNITDIR ?= /etc/systemd/system
FUZZTIME ?= 10s

GO       = go
PROGRAMS = criserver criserver-shim criserver-keeper criserver-cni
LDFLAGS  = -s -w -X main.version=$(VERSION)
BINDIR   = $(DESTDIR)$(PREFIX)/bin

export CGO_ENABLED = 0

.DEFAULT_GOAL := build
.PHONY: help prepare build test full unit e2e e2e-runc pull-kills bench bench-pull lint fuzz vm-test vm-systemd critest critest-vm kubelet-test oci-test demo install uninstall clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## static programs in bin/
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ $(addprefix ./cmd/,$(PROGRAMS))

prepare:
	hack/ci/prepare

test: prepare build ## all that CI runs: lint, unit, e2e, crictl-walk, critest, fuzz, vm-test (as root, 20-40 min)
	$(GO) run ./hack/ci -fuzztime $(FUZZTIME) lint unit e2e crictl-walk critest fuzz vm-test

full: FUZZTIME = 2m
full: test e2e-runc pull-kills critest vm-systemd critest-vm kubelet-test bench ## test with longer fuzzing, the daemon's tests through runc, and bench

unit: ## tests of the packages (as root)
	$(GO) run ./hack/ci unit

e2e: build ## tests of the real daemon, as its client (as root)
	$(GO) run ./hack/ci e2e

e2e-runc: build ## those tests of the real daemon that any runtime must pass, with runc as the handler (as root)
	$(GO) run ./hack/ci e2e-runc

pull-kills: build ## the daemon killed a hundred times amid pulls (as root, 10 min)
	$(GO) run ./hack/ci pull-kills

bench: build ## figures beside containerd with runc in the same run, as a table and bench/results.json (as root, 12 min)
	hack/bench/run

bench-pull: build ## figures: pulls of large images, ours and containerd's (as root)
	hack/benchpull/run

lint: ## gofmt, vet, staticcheck, cross-build for arm64
	$(GO) run ./hack/ci lint

fuzz: ## every fuzz target for FUZZTIME
	$(GO) run ./hack/ci -fuzztime $(FUZZTIME) fuzz

vm-test: build ## the happy path on Debian's kernel with cgroup v2, in a virtual machine
	$(GO) run ./hack/ci vm-test

vm-systemd: build ## the systemd cgroup driver, in a virtual machine whose init is systemd
	$(GO) run ./hack/ci vm-systemd

critest: build ## the suite of cri-tools with the native runtime and with runc (as root)
	$(GO) run ./hack/ci critest critest-runc

critest-vm: build ## the suite of cri-tools in the virtual machine: AppArmor and cgroup v2 (long)
	$(GO) run ./hack/ci critest-vm

kubelet-test: build ## the real kubelet with static pods, and the cost of probes (as root, 15 min)
	hack/kubelet/run -v -probes 5m -pods 50

oci-test: build ## OCI's validation suite with runc and criserver-oci (writes docs/oci-validation.md), and containerd on the latter (as root)
	hack/tools/runc/build
	hack/tools/containerd/build
	hack/oci-test

demo: build ## a pod with a web server on a temporary daemon, step by step (as root)
	hack/demo/run

install: build ## programs, systemd unit and default configuration; DESTDIR, PREFIX, UNITDIR
	install -d $(BINDIR) $(DESTDIR)$(UNITDIR) $(DESTDIR)/etc/criserver
	install -m 0755 $(addprefix bin/,criserver criserver-shim criserver-keeper) $(BINDIR)
	ln -sf criserver-shim $(BINDIR)/criserver-oci
	install -D -m 0755 bin/criserver-cni $(DESTDIR)/opt/cni/bin/criserver
	sed 's#@BINDIR@#$(PREFIX)/bin#' packaging/criserver.service > $(DESTDIR)$(UNITDIR)/criserver.service
	chmod 0644 $(DESTDIR)$(UNITDIR)/criserver.service
	test -e $(DESTDIR)/etc/criserver/config.toml || \
		install -m 0644 cmd/criserver/config/default.toml $(DESTDIR)/etc/criserver/config.toml

uninstall: ## what install put there, except the configuration; drain and stop the daemon first
	rm -f $(addprefix $(BINDIR)/,criserver criserver-shim criserver-keeper criserver-oci) $(DESTDIR)/opt/cni/bin/criserver
	rm -f $(DESTDIR)$(UNITDIR)/criserver.service

clean: ## what build and the tests made in the tree
	rm -rf bin hack/cache
