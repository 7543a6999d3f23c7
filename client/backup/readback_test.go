package backup_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"holdfast/client/backup"
	"holdfast/client/remote"
	"holdfast/client/remote/remotetest"
	"holdfast/client/seal"
)

// TestReadBack: what the service has under the names of a new archive is looked at after the commit. Garbage that
// somebody else stored under them does no harm as long as there is a good copy as well.
func TestReadBack(t *testing.T) {
	f := remotetest.New(t)
	f.Links = true
	c := f.Enrol(remote.Options{})
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), bytes.Repeat([]byte("content "), 40_000), 0o644); err != nil {
		t.Fatal(err)
	}
	run := func() (backup.Result, error) {
		return backup.Run(t.Context(), backup.Config{Machine: f.Machine, Client: c, Series: "s", Base: dir, Roots: []string{"."}})
	}
	if _, err := run(); err != nil || f.Served["fetch"] != 1 {
		t.Fatalf("%d fetches, %v", f.Served["fetch"], err)
	}
	spoil := func() {
		for n, b := range f.Blocks {
			f.Copies[n] = [][]byte{b}
			f.Blocks[n] = bytes.Clone(b)
			f.Blocks[n][len(b)-1] ^= 1
		}
	}
	spoil()
	if _, err := run(); err != nil {
		t.Errorf("with a good copy of each block: %v", err)
	}
	spoil()
	clear(f.Copies)
	for n := range f.Blocks {
		f.Blocks[n][0] ^= 0x80
	}
	r, err := run()
	if !errors.Is(err, backup.ErrNotKept) || !errors.Is(err, seal.ErrDamaged) || r.Archive.N == 0 {
		t.Errorf("with no good copy of any block: archive %d, %v", r.Archive.N, err)
	}
	// A machine that only writes is not given the answer.
	fetched, m := f.Served["fetch"], *f.Machine
	m.V, m.ReadSeed = nil, nil
	if _, err := backup.Run(t.Context(), backup.Config{Machine: &m, Client: c, Series: "s", Base: dir, Roots: []string{"."}}); err != nil || f.Served["fetch"] != fetched {
		t.Errorf("without the right to read: %d fetches, %v", f.Served["fetch"]-fetched, err)
	}
}
