package protect_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/client/protect"
)

// TestCommandWithPlugin protects a key file with a plugin's recipient through the real command, opens it
// with the plugin's identity, and then takes the plugin away.
func TestCommandWithPlugin(t *testing.T) {
	recipient, identity := protect.InstallPlugin(t, "hftest")
	dir := t.TempDir()
	program := filepath.Join(dir, "holdfast")
	if out, err := exec.Command("go", "build", "-o", program, "holdfast/cmd/holdfast").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	key := filepath.Join(dir, "key")
	plain, err := os.ReadFile("../keyring/testdata/machine.key")
	if err != nil {
		t.Fatal(err)
	}
	id := filepath.Join(dir, "id")
	for path, text := range map[string][]byte{key: plain, id: []byte("# token\n" + identity + "\n")} {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	run := func(args ...string) (code int, stdout, stderr string) {
		t.Helper()
		cmd := exec.Command(program, append([]string{"--key", key}, args...)...)
		cmd.Env = append(os.Environ(), "HOME="+dir)
		var out, errs bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errs
		if err := cmd.Run(); err != nil && !errors.As(err, new(*exec.ExitError)) {
			t.Fatal(err)
		}
		return cmd.ProcessState.ExitCode(), out.String(), errs.String()
	}
	if code, out, errs := run("key", "protect", "--recipient", recipient, "--identity", id); code != 0 || errs != "" || !strings.Contains(out, "opens only with an identity of its 1 recipient now") {
		t.Fatalf("exit %d\n%s%s", code, out, errs)
	}
	sealed, err := os.ReadFile(key)
	if err != nil || !protect.Is(sealed) {
		t.Fatalf("%v\n%s", err, sealed)
	}
	if code, out, errs := run("key", "show", "--identity", id); code != 0 || !strings.Contains(out, "backup.example.org:7420") {
		t.Fatalf("exit %d\n%s%s", code, out, errs)
	}
	t.Setenv("PATH", dir)
	const says = "it needs the age plugin age-plugin-hftest, and it is not in PATH; install it\n"
	for _, args := range [][]string{
		{"key", "show", "--identity", id},
		{"key", "unprotect", "--identity", id},
		{"key", "protect", "--recipient", recipient, "--identity", id},
	} {
		if code, out, errs := run(args...); code != 1 || out != "" || !strings.HasSuffix(errs, says) || strings.Count(errs, "\n") != 1 {
			t.Errorf("%s: exit %d\n%s%s", args, code, out, errs)
		}
	}
	if now, err := os.ReadFile(key); err != nil || !bytes.Equal(now, sealed) {
		t.Errorf("a command that failed changed the file: %v", err)
	}
}
