package catalog

import (
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/internal/ceiling"
)

// TestMemoryCeiling: no file in a catalog's place makes its reader take much more memory than it is long.
func TestMemoryCeiling(t *testing.T) {
	path := filepath.Join(t.TempDir(), "catalog")
	text, err := os.ReadFile("testdata/catalog.hex")
	if err != nil {
		t.Fatal(err)
	}
	seed, err := hex.DecodeString(strings.Join(strings.Fields(string(text)), ""))
	if err != nil {
		t.Fatal(err)
	}
	ceiling.Check(t, ceiling.Ceiling{Fixed: 1 << 20, Factor: 60}, [][]byte{seed}, nil, func(b []byte) {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		read(path, key, bound)
	})
}
