package config

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/service/ledger"
)

func TestParse(t *testing.T) {
	c, err := Parse([]byte("[reclaim]\nevery = \"1d12h\"\nshare = 60\ncopy_per_hour = \"5GB\"\n[checkpoint]\nevery = \"off\"\nsegments = 5\n[scrub]\nsample = 7\ncycle = \"30d\"\nbytes_per_month = \"1TB\"\n[shadow]\nbytes_per_month = \"1GiB\"\n[money]\ncurrency = \"EUR\"\nstored = \"0.20\"\nout = \"0.000000000001\"\ngrace = \"30d\"\n"))
	want := Default()
	want.Reclaim.Every, want.Reclaim.Share, want.Reclaim.CopyPerHour = Duration{36 * time.Hour}, 60, 5e9
	want.Checkpoint = Checkpoint{Segments: 5}
	want.Scrub.Sample, want.Scrub.Cycle, want.Scrub.BytesPerMonth, want.Shadow.BytesPerMonth = 7, Duration{30 * 24 * time.Hour}, 1e12, 1<<30
	want.Money = Money{Currency: "EUR", Stored: Price{ledger.Unit / 5}, Out: Price{1}, Grace: Duration{30 * 24 * time.Hour}}
	if err != nil || c != want {
		t.Fatalf("%+v, %v, want %+v", c, err, want)
	}
	if c, err := Parse(nil); err != nil || c != Default() {
		t.Fatalf("an empty file is %+v, %v", c, err)
	}
	if c, err := Parse([]byte("[reclaim]\nevery = \"off\"\ncopy_per_hour = 100000000")); err != nil || c.Reclaim.Every.Duration != 0 || c.Reclaim.CopyPerHour != 100_000_000 {
		t.Fatalf("%+v, %v", c, err)
	}
	if p := c.Money.Prices(); p != (ledger.Prices{Stored: ledger.Unit / 5, Out: 1}) {
		t.Fatalf("prices %+v", p)
	}
	if err := Default().check(); err != nil {
		t.Fatal(err)
	}
}

func TestParseRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"[reclaim]\nshare = 75\nshares = 4\n":        "line 3: there is no key reclaim.shares",
		"\n[recalim]\nshare = 75\n":                  "line 2: there is no key recalim",
		"[reclaim]\nevery = \"soon\"\n":              "line 2, column 9: reclaim.every: ",
		"[reclaim]\nevery = \"-1h\"\n":               `"-1h" is no duration`,
		"[reclaim]\nevery = 3\n":                     `"3" is no duration`,
		"[reclaim]\nevery = \"1s\"\n":                `reclaim.every: 1s is not 1m0s to 720h0m0s, or "off"`,
		"[reclaim]\nshare = 100\n":                   "reclaim.share: 100 is not 0 to 99",
		"[reclaim]\nshare = \"75\"\n":                "line 2, column 9: ",
		"[reclaim]\ndeletes_per_hour = 0\n":          "reclaim.deletes_per_hour: 0 is not 1 to 100000",
		"[reclaim]\ncopy_per_hour = \"1MiB\"\n":      "reclaim.copy_per_hour: 1MiB is not 64MiB to 1PiB",
		"[reclaim]\ncopy_per_hour = \"lots\"\n":      `"lots" is no size`,
		"[reclaim]\ncopy_per_hour = \"99999999PiB\"": "is no size",
		"[checkpoint]\nsegments = 0\n":               "checkpoint.segments: 0 is not 1 to 1000000",
		"[checkpoint]\nevery = \"90d\"\n":            "checkpoint.every: 2160h0m0s is not",
		"[scrub]\ncycle = \"off\"\n":                 "scrub.cycle: it cannot be",
		"[scrub]\nsample = 101\n":                    "scrub.sample: 101 is not 0 to 100",
		"[shadow]\nevery = \"1m\"\n":                 "shadow.every: 1m0s is not",
		"[money]\nstored = \"0.20\"\n":               "money.currency: it is missing, and a price is set",
		"[money]\ncurrency = \"\"\nin = \"1\"":       "money.currency: it is missing",
		"[money]\ncurrency = \"E R\"":                `money.currency: "E R" is not 1 to 10 letters`,
		"[money]\ncurrency = \"€\"":                  `money.currency: "€" is not`,
		"[money]\ncurrency = \"ABCDEFGHIJK\"":        `is not 1 to 10 letters`,
		"[money]\ncurrency = \"EUR\"\nout = \"-1\"":  "money.out: -1.00 is below zero",
		"[money]\nstored = \"0,20\"\n":               "line 2, column 10: money.stored: ",
		"[money]\nstored = 2e-1\n":                   "it is no amount of money",
		"[money]\ngrace = \"29d\"\n":                 `money.grace: 696h0m0s is not 720h0m0s to 87600h0m0s`,
		"[money]\ngrace = \"off\"\n":                 `money.grace: it cannot be "off"`,
		"[reclaim\n":                                 "line 1, column ",
		strings.Repeat("#", 1<<17):                   "more than 65536 bytes",
	} {
		if c, err := Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), want) || c == Default() {
			t.Errorf("%.60q: %v, want %q", text, err, want)
		}
	}
}

func TestLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), FileName)
	if c, err := Load(path); err != nil || c != Default() {
		t.Fatalf("a file that is not there is %+v, %v", c, err)
	}
	os.WriteFile(path, []byte("nonsense = 1\n"), 0o600)
	if _, err := Load(path); !errors.Is(err, ErrWrong) || err.Error() != "the configuration cannot be used: "+path+": line 1: there is no key nonsense" {
		t.Fatal(err)
	}
	if _, err := Load(filepath.Dir(path)); err == nil || errors.Is(err, ErrWrong) {
		t.Fatalf("a directory: %v", err)
	}
}
