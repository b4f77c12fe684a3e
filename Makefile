# The only entry: `make` alone lists what there is.

PREFIX ?= /usr/local
SYSCONFDIR ?= /etc
CARGO ?= cargo
TARGET := $(or $(CARGO_TARGET_DIR),target)
LAB := tests/lab/lab
BINARY := $(TARGET)/release/xl-snapshot
FAULTY := $(TARGET)/release/examples/xl-snapshot-faults

.PHONY: help setup build faulty check test test-all mixed soak bench demo lab install deb clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

setup: ## install what building and testing need (Debian 12 or 13, root); NEED=build: only building
	@tests/lab/setup-host $(NEED)

build: setup ## build the program
	@$(CARGO) build --release --locked

# The program, but that it fails on command.
faulty: build
	@$(CARGO) build --release --locked --example xl-snapshot-faults

# In the release profile, whose build the lab needs anyway: what both need is built once. Debian 12's own Rust comes without clippy.
check: setup ## the quick part of the tests: format, lints, unit tests, real qemu-img
	@rm -rf target/reliability target/lab/*/logs/*/reliability
	@$(CARGO) fmt --all --check
	@if $(CARGO) clippy --version >/dev/null 2>&1; then \
		$(CARGO) clippy --release --workspace --all-targets --locked -- -D warnings; \
	else echo 'no cargo-clippy: the lints were not run' >&2; fi
	@$(CARGO) test --release --workspace --locked --quiet

test: setup ## check, then real Xen in the lab: the scenarios on this machine's release, a core on the other
	@tests/lab/test $(SLOW)

test-all: SLOW := --slow
test-all: test ## the same with the slow scenarios (HVM guests), everything on both releases, and mixed

mixed: setup ## snapshots of Xen 4.17 on Xen 4.20 and back, in one lab after the other
	@for suite in $$($(LAB) suites); do XL_LAB_SUITE=$$suite tests/lab/program || exit 1; done
	@tests/lab/mixed

soak: faulty ## hundreds of kills at random moments, hours of hostile input (SOAK_ROUNDS, HOSTILE_SECONDS)
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

lab: setup ## start the lab with the program in it (XL_LAB_SUITE): tests/lab/lab ssh, tests/lab/lab down
	@tests/lab/program
	@$(LAB) up

# Manual pages and completions are made by build.rs, in cargo's own directory. The package has the same
# files: this is the only list of them.
TO = $(DESTDIR)$(PREFIX)
UNITS = $(TO)/lib/systemd/system
SETTINGS = $(DESTDIR)$(SYSCONFDIR)/default/xl-snapshot
SHARE = $(shell ls -td $(TARGET)/release/build/xl-snapshot-*/out/share | head -n 1)
ZSH := site-functions
install: ## install the program, its manual pages, completions and systemd units (PREFIX, DESTDIR)
	@test -x $(BINARY) || { echo "run 'make build' first" >&2; exit 1; }
	install -D -m 0755 $(BINARY) $(TO)/sbin/xl-snapshot
	install -D -m 0644 -t $(TO)/share/man/man1 $(SHARE)/man/*.1
	install -D -m 0644 -t $(TO)/share/man/man5 $(SHARE)/man/*.5
	install -D -m 0644 $(SHARE)/completions/xl-snapshot.bash $(TO)/share/bash-completion/completions/xl-snapshot
	install -D -m 0644 -t $(TO)/share/zsh/$(ZSH) $(SHARE)/completions/_xl-snapshot
	install -D -m 0644 -t $(TO)/share/fish/vendor_completions.d $(SHARE)/completions/xl-snapshot.fish
	for unit in xl-snapshot@.service xl-snapshot@.timer xl-snapshot-backup@.service xl-snapshot-backup@.timer; do \
		sed 's,@SBINDIR@,$(PREFIX)/sbin,; s,@SYSCONFDIR@,$(SYSCONFDIR),' share/systemd/$$unit.in | \
		install -D -m 0644 /dev/stdin $(UNITS)/$$unit || exit; done
	test -e $(SETTINGS) || install -D -m 0644 share/systemd/default $(SETTINGS)
	install -D -m 0644 -t $(TO)/share/doc/xl-snapshot/examples cfg-examples/*
	install -D -m 0644 -t $(TO)/share/doc/xl-snapshot README.md BENCHMARKS.md
	install -D -m 0644 -t $(TO)/share/doc/xl-snapshot/docs docs/*.md
	install -D -m 0644 -t $(TO)/share/doc/xl-snapshot/docs/pictures docs/pictures/*.svg
	install -D -m 0644 CHANGELOG.md $(TO)/share/doc/xl-snapshot/changelog

# Debian's zsh looks elsewhere for packages' completions than for its own. With SUITE, in a Debian of that
# suite (tests/lab/in-suite): the package is then in target/SUITE/debian.
ifdef SUITE
deb: setup
	@$(CARGO) fetch --quiet --locked
	@XL_LAB_SUITE=$(SUITE) tests/lab/in-suite make NEED=build deb
else
deb: build ## build the Debian package for this release, or SUITE=bookworm|trixie: target/debian/*.deb
	@rm -rf $(TARGET)/package $(TARGET)/debian
	@$(MAKE) --no-print-directory --silent install DESTDIR=$(TARGET)/package PREFIX=/usr ZSH=vendor-completions
	@share/debian/build $(TARGET)/package $(TARGET)/debian
endif

clean: ## remove what was built, the lab's disk included
	@for suite in $$($(LAB) suites); do XL_LAB_SUITE=$$suite $(LAB) down 2>/dev/null || true; done
	@rm -rf target
