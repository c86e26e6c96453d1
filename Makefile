# Posthouse. "make help" lists the targets.
VERSION := $(shell sed -n 's/^\#\# \([0-9][^ ]*\).*/\1/p' CHANGELOG.md | head -n 1)
FUZZTIME ?= 10s
export SCHEDULES ?= 1000000
# Installs what the host lacks for a target: pkg/mailtest/setup.sh TARGET
SETUP := pkg/mailtest/setup.sh
GODIRS := daemons packaging pkg units
# Reproducible: the time of the last commit or, without a repository, of the last release.
export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || stat -c %Y CHANGELOG.md)

# Go, and what else keeps files for its user, has to know where: an environment without HOME gets it.
ifeq ($(HOME),)
export HOME := $(or $(shell getent passwd "$$(id -u)" | cut -d: -f6),$(CURDIR)/build/.home)
endif

# Where mkfs and the like are, of which setup.sh knows.
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin

# Tests look at modes, and make sockets, whose paths are short, and files that other users get to. What they start is no
# service of who has started this.
GO_TEST := umask 022; env -u TMPDIR -u NOTIFY_SOCKET go test

.DEFAULT_GOAL := help
# Whatever MAKEFLAGS has: each target may install something, and dpkg lets one do so at a time.
.NOTPARALLEL:
.PHONY: help build check test crash run stop bench simulate nightly docs deb rpm lint fuzz clean

help: ## this list
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

build: ## all programs, static, into build/bin
	rm -rf build/bin
	mkdir -p build/bin
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '-s -w' -o build/bin/ ./daemons/...
	go run ./packaging/static build/bin/*

docs: build ## man pages and shell completions into build/docs
	rm -rf build/docs
	build/bin/posthouse generate build/docs

check: ## formatting, vet, staticcheck, unit tests with the race detector, import rules, units
	$(SETUP) check
	@bad=$$(gofmt -l $(GODIRS)); if [ -n "$$bad" ]; then echo "gofmt: $$bad" >&2; exit 1; fi
	go vet ./...
	go vet -tags system ./...
	go tool staticcheck ./...
	export CGO_ENABLED=1; $(GO_TEST) -race -timeout 30m ./...
	$(GO_TEST) -timeout 30m -run TestSimulation ./daemons/qmgr

test: check deb rpm lint ## everything: check, packages, linters, and the packages in booted containers
	$(SETUP) test
	$(GO_TEST) -tags system -count=1 -timeout 30m -v ./pkg/mailtest/crash/ -every 16
	$(GO_TEST) -tags system -count=1 -timeout 60m ./pkg/mailtest/system/...

crash: ## daemons killed, power cut, and an error, at every system call of a message's way
	$(SETUP) crash
	$(GO_TEST) -tags system -count=1 -timeout 3h -v ./pkg/mailtest/crash/ -every 1
	$(GO_TEST) -tags system -count=1 -timeout 3h -v -run TestCrash ./pkg/mailtest/crash/ -every 1 -fs xfs

run: deb ## boot a container with the package and smtpd on 127.0.0.1:2525, and send mail through it
	$(SETUP) run
	pkg/mailtest/run.sh start

stop: ## end what make run started
	pkg/mailtest/run.sh stop

bench: deb ## Postfix and Posthouse side by side
	$(SETUP) bench
	pkg/mailtest/bench/run.sh

simulate: ## a modelled day of ten million messages through the scheduler, beside Postfix's rules
	go test ./daemons/qmgr/internal/simulate -run 'TestDay$$' -day -v -count=1 -timeout 60m

nightly: ## a million random schedules of qmgr with crashes, faults and commands, on all processors
	mkdir -p build
	go test -c -o build/qmgr.test ./daemons/qmgr
	@n=$$(nproc); each=$$((SCHEDULES / n)); first=$$(date +%s)0000000; pids=; \
	for i in $$(seq 0 $$((n - 1))); do \
		build/qmgr.test -test.run 'TestSimulation$$' -test.timeout 24h -first $$((first + i * each)) -schedules $$each & pids="$$pids $$!"; \
	done; \
	bad=0; for p in $$pids; do wait $$p || bad=1; done; exit $$bad

deb: build docs ## the Debian package into build/
	$(SETUP) deb
	packaging/deb/build.sh $(VERSION)

rpm: build docs ## the RPM package into build/
	$(SETUP) rpm
	packaging/rpm/build.sh $(VERSION)

lint: deb rpm
	$(SETUP) lint
	packaging/deb/lint.sh $(VERSION)
	packaging/rpm/lint.sh $(VERSION)

fuzz: ## every fuzz target for FUZZTIME (10s)
	@for package in $$(go list ./...); do \
		for target in $$(go test -list '^Fuzz' $$package | grep '^Fuzz'); do \
			echo "$$package $$target"; \
			go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 100x $$package || exit 1; \
		done; \
	done

clean: ## remove build/
	rm -rf build
