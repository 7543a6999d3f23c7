// Package part lets a test say which part of its surroundings it needs: a program, root, a compiler.
// A user who lacks the part sees the test skipped with a reason; where the environment variable
// HOLDFAST_REQUIRE names the part (comma-separated, as .ci/run does), lacking it fails the test.
//
// Tests that take minutes or gigabytes run only with HOLDFAST_HEAVY=1.
package part

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// The parts that are not simply programs of the same name.
const (
	Root  = "root"  // the effective user is root
	ACL   = "acl"   // setfacl and getfacl
	Attr  = "attr"  // setfattr and getfattr
	Tmpfs = "tmpfs" // a small file system can be mounted; see SmallDisk
)

// Need skips t unless every named part is there, and fails it if the missing part is required.
func Need(t testing.TB, parts ...string) {
	t.Helper()
	for _, p := range parts {
		why := lacking(p)
		if why == "" {
			continue
		}
		if Required(p) {
			t.Fatalf("part %q is required by HOLDFAST_REQUIRE, but %s", p, why)
		}
		t.Skipf("part %q: %s", p, why)
	}
}

// Required reports whether HOLDFAST_REQUIRE names the part.
func Required(part string) bool {
	for p := range strings.SplitSeq(os.Getenv("HOLDFAST_REQUIRE"), ",") {
		if strings.TrimSpace(p) == part {
			return true
		}
	}
	return false
}

// Heavy reports whether tests that take minutes or gigabytes are wanted.
func Heavy() bool { return os.Getenv("HOLDFAST_HEAVY") == "1" }

// NeedHeavy skips t unless Heavy.
func NeedHeavy(t testing.TB) {
	t.Helper()
	if !Heavy() {
		t.Skip("takes minutes or gigabytes: set HOLDFAST_HEAVY=1")
	}
}

// lacking says why a part is not there, or nothing.
func lacking(part string) string {
	var programs []string
	switch part {
	case Root:
		if os.Geteuid() != 0 {
			return "this is not root"
		}
		return ""
	case Tmpfs:
		return noTmpfs()
	case ACL:
		programs = []string{"setfacl", "getfacl"}
	case Attr:
		programs = []string{"setfattr", "getfattr"}
	default:
		programs = []string{part}
	}
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			return p + " is not installed"
		}
	}
	return ""
}
