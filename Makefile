# The only entry: `make` alone lists what there is.

PREFIX ?= /usr/local
SYSCONFDIR ?= /etc
CARGO ?= cargo
LAB := tests/lab/lab
BINARY := target/release/xl-snapshot
FAULTY := target/release/examples/xl-snapshot-faults
CARGO_DEB := 3.8.0

.PHONY: help setup build check test test-all soak bench demo lab install deb clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

setup: ## install what building and testing need (Debian 12, root)
	@tests/lab/setup-host

build: setup ## build the program
	@$(CARGO) build --release --locked

# In the release profile, whose build the lab needs anyway.
check: setup ## the quick part of the tests: format, lints, unit tests, real qemu-img
	@rm -rf target/reliability target/lab/logs/*/reliability
	@$(CARGO) fmt --all --check
	@$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	@$(CARGO) test --release --workspace --locked --quiet

# The lab's disk is made by the network and one processor, the program by the other.
test: setup ## check, then the scenarios on a real Xen host in the lab
	@mkdir -p target; tests/lab/build-dom0 >target/lab-build.log 2>&1 & image=$$!; \
	$(MAKE) --no-print-directory check build && \
	{ wait $$image || { cat target/lab-build.log; exit 1; }; }
	@$(MAKE) --no-print-directory deb
	@$(LAB) install $(BINARY) $(FAULTY) target/debian/xl-snapshot_*.deb
	@$(LAB) run $(SLOW) && tests/reliability

test-all: SLOW := --slow
test-all: test ## the same, with the slow scenarios (HVM guests)

soak: build ## hundreds of kills at random moments, hours of hostile input (SOAK_ROUNDS, HOSTILE_SECONDS)
	@$(CARGO) build --release --locked --example xl-snapshot-faults
	@HOSTILE_SECONDS=$${HOSTILE_SECONDS:-600} $(CARGO) test --release --locked --test hostile -- --nocapture
	@$(LAB) install $(BINARY) $(FAULTY)
	@$(LAB) run soak && tests/reliability

bench: build ## measure the pause and the whole beside what one would do by hand (BENCH_ROUNDS)
	@mkdir -p target/bench
	@gcc -O2 -Wall -Wextra -Werror -o target/bench/xl-snapshot-bench tests/bench/watch.c \
		$$(pkg-config --cflags --libs xenlight xentoollog) -lxenctrl
	@$(LAB) install $(BINARY) target/bench/xl-snapshot-bench
	@$(LAB) run bench && tests/bench/report | tee target/bench.md

demo: setup ## a snapshot and a revert of a running guest, told by their real output
	@mkdir -p target; tests/lab/build-dom0 >target/lab-build.log 2>&1 & image=$$!; \
	$(MAKE) --no-print-directory build && \
	{ wait $$image || { cat target/lab-build.log; exit 1; }; }
	@tests/lab/demo

lab: build ## start the lab with the program in it: tests/lab/lab ssh, tests/lab/lab down
	@$(LAB) up
	@$(LAB) install $(BINARY)

# Manual pages and completions are made by build.rs, in cargo's own directory. The package has the same
# files: this is the only list of them.
TO = $(DESTDIR)$(PREFIX)
UNITS = $(TO)/lib/systemd/system
SETTINGS = $(DESTDIR)$(SYSCONFDIR)/default/xl-snapshot
SHARE = $(shell ls -td target/release/build/xl-snapshot-*/out/share | head -n 1)
ZSH := site-functions
install: ## install the program, its manual pages, completions and systemd units (PREFIX, DESTDIR)
	@test -x $(BINARY) || { echo "run 'make build' first" >&2; exit 1; }
	install -D -m 0755 $(BINARY) $(TO)/sbin/xl-snapshot
	install -D -m 0644 -t $(TO)/share/man/man1 $(SHARE)/man/*.1
	install -D -m 0644 -t $(TO)/share/man/man5 $(SHARE)/man/*.5
	install -D -m 0644 $(SHARE)/completions/xl-snapshot.bash $(TO)/share/bash-completion/completions/xl-snapshot
	install -D -m 0644 -t $(TO)/share/zsh/$(ZSH) $(SHARE)/completions/_xl-snapshot
	install -D -m 0644 -t $(TO)/share/fish/vendor_completions.d $(SHARE)/completions/xl-snapshot.fish
	for unit in service timer; do sed 's,@SBINDIR@,$(PREFIX)/sbin,; s,@SYSCONFDIR@,$(SYSCONFDIR),' \
		share/systemd/xl-snapshot@.$$unit.in | install -D -m 0644 /dev/stdin $(UNITS)/xl-snapshot@.$$unit || exit; done
	test -e $(SETTINGS) || install -D -m 0644 share/systemd/default $(SETTINGS)
	install -D -m 0644 -t $(TO)/share/doc/xl-snapshot/examples cfg-examples/*
	install -D -m 0644 -t $(TO)/share/doc/xl-snapshot README.md BENCHMARKS.md
	install -D -m 0644 -t $(TO)/share/doc/xl-snapshot/docs docs/*.md
	install -D -m 0644 -t $(TO)/share/doc/xl-snapshot/docs/pictures docs/pictures/*.svg
	install -D -m 0644 CHANGELOG.md $(TO)/share/doc/xl-snapshot/changelog

# cargo-deb is compiled without optimisation, which would take longer than it saves for a small package,
# and stays in target/. Debian's zsh looks elsewhere for packages' completions than for its own.
deb: export PATH := $(CURDIR)/target/tools/bin:$(PATH)
deb: build ## build the Debian package: target/debian/*.deb
	@test "$$($(CARGO) deb --version 2>/dev/null)" = "cargo-deb $(CARGO_DEB)" || \
	$(CARGO) install --quiet --locked --debug --no-default-features --version =$(CARGO_DEB) \
		--root target/tools --target-dir target/tools/build cargo-deb
	@rm -rf target/package target/debian
	@$(MAKE) --no-print-directory --silent install DESTDIR=target/package PREFIX=/usr ZSH=vendor-completions
	@$(CARGO) deb --no-build --no-strip --quiet

clean: ## remove what was built, the lab's disk included
	@$(LAB) down 2>/dev/null || true
	@rm -rf target
