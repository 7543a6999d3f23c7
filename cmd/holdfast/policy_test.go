package main

import (
	"testing"

	"holdfast/history"
)

func TestWithin(t *testing.T) {
	for s, want := range map[string]uint64{"1h": 3600, "36h": 129600, "30d": 30 * 86400, "8w": 56 * 86400, "2y": 730 * 86400, "200y": history.MaxWithin} {
		if got, err := parseWithin(s); err != nil || got != want {
			t.Errorf("%s: %d, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "3", "d", "0d", "-1d", "1.5d", "3m", "201y", "99999999999999999999d", "1 d"} {
		if got, err := parseWithin(s); err == nil {
			t.Errorf("%q was taken for %d", s, got)
		}
	}
}

func TestRulesInWords(t *testing.T) {
	for want, p := range map[string]history.Policy{
		"keep everything":                   {},
		"keep 7 last, 30 daily":             {Last: 7, Daily: 30},
		"keep 1 yearly, all within 36h0m0s": {Yearly: 1, Within: 36 * 3600},
		"keep all within 1 day":             {Within: 86400},
	} {
		if got := rules(p); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
