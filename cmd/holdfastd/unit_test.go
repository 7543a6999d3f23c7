package main

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"holdfast/internal/part"
)

// unit is what the service is run with.
const unit = "../../packaging/holdfastd.service"

// settings returns the settings of the unit's section [Service]; one that stands twice is joined by spaces.
func settings(t *testing.T) map[string]string {
	t.Helper()
	raw, err := os.ReadFile(unit)
	if err != nil {
		t.Fatal(err)
	}
	_, text, ok := strings.Cut(string(raw), "[Service]\n")
	if !ok {
		t.Fatal("the unit has no section [Service]")
	}
	text, _, _ = strings.Cut(text, "\n[")
	all := map[string]string{}
	for line := range strings.Lines(text) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(k, "#") {
			all[k] = strings.TrimSpace(all[k] + " " + v)
		}
	}
	return all
}

// TestUnit: systemd takes the unit without a word, and finds little that it could do beyond its work.
func TestUnit(t *testing.T) {
	part.Need(t, "systemd-analyze")
	raw, err := os.ReadFile(unit)
	if err != nil {
		t.Fatal(err)
	}
	const program = "ExecStart=/usr/local/bin/holdfastd serve --data /var/lib/holdfast\n"
	if !strings.Contains(string(raw), program) {
		t.Fatalf("the unit does not start %s", program)
	}
	self, err := os.Executable() // verify wants the program to be there
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "holdfastd.service")
	text := strings.Replace(string(raw), "/usr/local/bin/holdfastd serve", self+" serve", 1)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("systemd-analyze", "verify", path).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
	out, err := exec.Command("systemd-analyze", "security", "--offline=true", "--threshold=20", unit).CombinedOutput()
	if err != nil {
		t.Errorf("systemd-analyze security finds more than 2.0: %v\n%s", err, out)
	}
	m := regexp.MustCompile(`Overall exposure level for \S+: ([0-9.]+)`).FindSubmatch(out)
	if m == nil {
		t.Fatalf("systemd-analyze security gives no level:\n%s", out)
	}
	level, err := strconv.ParseFloat(string(m[1]), 64)
	if err != nil || level > 2.0 {
		t.Errorf("the exposure level is %s, more than 2.0\n%s", m[1], out)
	}
	t.Logf("exposure level %.1f", level)
}

// TestUnitAndProgram: what the unit says about the program is true of it.
func TestUnitAndProgram(t *testing.T) {
	u := settings(t)
	prevented := strings.Fields(u["RestartPreventExitStatus"])
	want := map[string]bool{}
	for _, code := range []int{exitUsage, exitDamaged, exitNever, exitLost} {
		want[strconv.Itoa(code)] = true
	}
	if got := slices.Sorted(slices.Values(prevented)); !slices.Equal(got, slices.Sorted(maps.Keys(want))) {
		t.Errorf("systemd does not restart after %v, want %v", got, slices.Sorted(maps.Keys(want)))
	}
	if slices.Contains(prevented, strconv.Itoa(exitFailed)) || u["Restart"] != "on-failure" {
		t.Errorf("a service that failed is not started again: Restart=%s, not after %v", u["Restart"], prevented)
	}
	for _, x := range []struct {
		setting string
		least   time.Duration
	}{
		{"TimeoutStopSec", closePatience + 20*time.Second + 30*time.Second}, // serve's drainPatience, and some
		{"TimeoutStartSec", 20 * time.Minute},
		{"WatchdogSec", time.Minute},
	} {
		text := u[x.setting]
		if _, err := strconv.Atoi(text); err == nil {
			text += "s"
		}
		if got, err := time.ParseDuration(strings.Replace(text, "min", "m", 1)); err != nil || got < x.least {
			t.Errorf("%s=%s is less than %v: %v", x.setting, u[x.setting], x.least, err)
		}
	}
	if u["Type"] != "notify" || u["StateDirectory"] != "holdfast" || u["UMask"] != "0077" {
		t.Errorf("Type=%s StateDirectory=%s UMask=%s", u["Type"], u["StateDirectory"], u["UMask"])
	}
	max, err := strconv.Atoi(strings.TrimSuffix(u["MemoryMax"], "M"))
	if err != nil || max < 300*5/4 || max > 1024 {
		t.Errorf("MemoryMax=%s; the process alone may have 300 MiB", u["MemoryMax"])
	}
	users, err := os.ReadFile("../../packaging/holdfastd.sysusers")
	if err != nil || !strings.Contains(string(users), "\nu "+u["User"]+" ") {
		t.Errorf("packaging/holdfastd.sysusers does not make the user %s: %v", u["User"], err)
	}
}
