# make demo   a backup and a restore to look at, in about a minute; needs Go and make only
# make build  the programs, into bin/
# make test   everything a change must pass: vet, staticcheck, tests, fuzzing
# make sim    many seeds of the simulation: SEEDS=2000 and TOWNS=100, or as you say
# make orders every order of what frees and what needs, enumerated; some minutes
# make sim-year  a simulated year of 200 customers, with its figures; YEAR=12 for a twelfth of it
# make help   the targets

SHELL := /bin/sh
GO ?= go
FUZZTIME ?= 2s
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2

# What runs on customers' machines must build for each of these.
CLIENT := ./client/... ./cmd/holdfast
SYSTEMS := darwin freebsd windows

# Where goroutines meet; the race detector is run on these only, and on the small forms of their tests, because it is slow.
# The go command takes packages in this order, and so the longest goes first.
RACE := ./service/journal ./client/backup ./client/remote ./client/seal ./client/restore ./client/target \
	./service/bucket/... ./service/room ./service/serve ./service/account ./service/billing ./service/jobs

# The packages whose tests take longest, in that order; all others go beside and after them.
LONGEST := ./e2e ./sim ./service/journal ./docs/models

# One seed again: go test ./sim -run 'TestSeeds$' -seed N -v
SEEDS ?= 2000
TOWNS ?= 100
YEAR ?= 1

.PHONY: help demo build test static tests vet staticcheck unit race fuzz sim orders sim-year clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

demo:
	@CGO_ENABLED=0 $(GO) run ./internal/demo $(if $(TREE),-tree "$(TREE)")

build:
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/ ./cmd/...

test: static tests

static: vet staticcheck

tests: race fuzz unit

vet:
	$(GO) vet ./...
	@for os in $(SYSTEMS); do \
		echo "GOOS=$$os $(GO) vet $(CLIENT)"; \
		CGO_ENABLED=0 GOOS=$$os $(GO) vet $(CLIENT) || exit 1; \
	done

# Staticcheck is fetched by the go command. Without a network it is skipped, unless it is required.
staticcheck:
	@if $(GO) run $(STATICCHECK) -version >/dev/null 2>&1; then \
		echo "staticcheck ./..."; $(GO) run $(STATICCHECK) ./...; \
	else \
		echo "skip staticcheck: cannot get $(STATICCHECK)"; \
		case ",$$HOLDFAST_REQUIRE," in *,staticcheck,*) exit 1;; esac; \
	fi

# The race detector needs a C compiler.
race:
	@if command -v "$$($(GO) env CC)" >/dev/null 2>&1; then \
		echo "$(GO) test -race"; \
		HOLDFAST_HEAVY= CGO_ENABLED=1 $(GO) test -race -short -timeout 30m -json $(RACE) | $(GO) run ./internal/testreport; \
	else \
		echo "skip race: no C compiler"; \
		case ",$$HOLDFAST_REQUIRE," in *,gcc,*) exit 1;; esac; \
	fi

# Each fuzz target for FUZZTIME. What a target has found before is among its seeds and runs with the tests.
# The go command sometimes reports the end of the time itself as a failure without a failing input
# ("context deadline exceeded"); that, and nothing else, is tried again.
fuzz:
	@grep -rHoE '^func Fuzz[A-Za-z0-9_]+' --include='*_test.go' . | sort | \
	while IFS=: read -r file fn; do \
		fn=$${fn#func }; dir=$$(dirname "$$file"); \
		for try in 1 2 3 last; do \
			echo "fuzz $$dir $$fn $(FUZZTIME)"; \
			out=$$($(GO) test -run '^$$' -fuzz "^$$fn\$$" -fuzztime $(FUZZTIME) "$$dir" 2>&1 </dev/null) && break; \
			case "$$try $$out" in \
				last*|*"Failing input"*) echo "$$out"; exit 1;; \
				*"context deadline exceeded"*) ;; \
				*) echo "$$out"; exit 1;; \
			esac; \
		done; \
	done

unit:
	@echo "$(GO) test ./..."; $(GO) test -json -timeout 80m $(LONGEST) ./... | $(GO) run ./internal/testreport

sim:
	@s=$$(mktemp); { $(GO) test ./sim -run '^(TestSeeds|TestTowns)$$' -seeds $(SEEDS) -towns $(TOWNS) -timeout 10h -v 2>&1; echo $$? >$$s; } \
		| grep -v '^ *\(===\|--- PASS\).*/'; r=$$(cat $$s); rm -f $$s; exit $$r

# One order again: HOLDFAST_ORDERS="0 0 1" go test ./service/journal -run '^TestScenarioS10WholeLife$' -v
orders:
	@s=$$(mktemp); { HOLDFAST_ORDERS=all $(GO) test ./service/journal -run '^TestScenarioS(4|6|10)' -timeout 10h -v 2>&1; echo $$? >$$s; } \
		| grep -v '^ *\(===\|--- PASS\).*/'; r=$$(cat $$s); rm -f $$s; exit $$r

sim-year:
	HOLDFAST_YEAR=$(YEAR) $(GO) test ./sim -run '^TestYear$$' -timeout 10h -v

clean:
	rm -rf bin
