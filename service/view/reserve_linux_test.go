package view

import (
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/never"
	"holdfast/internal/part"
)

// TestDeletesOnReserve: on a disk of which no more than Reserve is free, all rows of a view of any size can be deleted, each
// with a row about that, and a large view gets smaller.
func TestDeletesOnReserve(t *testing.T) {
	rows, disk := 50_000, int64(288<<20)
	if part.Heavy() {
		rows, disk = 200_000, 640<<20
	}
	dir := t.TempDir()
	part.SmallDisk(t, dir, disk)
	t.Cleanup(never.Catch(func(e never.Event) { panic(e) }))
	s, err := Open(filepath.Join(dir, "view"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()

	rng := rand.New(rand.NewPCG(1, 2))
	noise := rand.NewChaCha8([32]byte{1})
	name := func(kind byte, i int) string {
		return string(binary.BigEndian.AppendUint64([]byte{kind}, uint64(i)*0x9e3779b97f4a7c15)) // far from one another
	}
	inTurn := func(fn func(l *Layer, i int)) {
		order := rng.Perm(rows)
		for len(order) > 0 {
			l := NewLayer(nil)
			for _, i := range order[:min(500, len(order))] {
				fn(l, i)
			}
			order = order[min(500, len(order)):]
			if err := s.Commit(l); err != nil {
				t.Fatal(err)
			}
		}
	}
	value := func(n int) []byte {
		v := make([]byte, n)
		noise.Read(v)
		return v
	}
	inTurn(func(l *Layer, i int) { l.rows[name(0xf0, i)] = value(2000) })

	free := func() int64 {
		var st syscall.Statfs_t
		if err := syscall.Statfs(dir, &st); err != nil {
			t.Fatal(err)
		}
		return int64(st.Bavail) * st.Bsize
	}
	settled := func() {
		t.Helper()
		for quiet, tries := 0, 0; quiet < 20; tries++ {
			if m := s.db.Metrics(); m.Compact.NumInProgress == 0 && m.Flush.NumInProgress == 0 {
				quiet++
			} else {
				quiet = 0
			}
			if tries > 10_000 {
				t.Fatal("the database does not come to rest")
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	settled()
	filler, err := os.Create(filepath.Join(dir, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer filler.Close()
	if free() < Reserve {
		t.Fatalf("%d bytes are free: the disk of this test is too small", free())
	}
	if _, err := filler.Write(make([]byte, free()-Reserve)); err != nil {
		t.Fatal(err)
	}
	before, least := free(), free()
	inTurn(func(l *Layer, i int) {
		l.rows[name(0xf0, i)] = nil
		if i%10 == 0 {
			l.rows[name(0xf1, i)] = value(300)
		}
		if i%100 == 0 {
			least = min(least, free())
		}
	})
	settled()
	t.Logf("%d rows deleted: %d of %d bytes were used at most, %d are free now", rows, before-least, before, free())
	if part.Heavy() && free() < before { // a small view is not merged as soon
		t.Errorf("after all deletes %d bytes are free, and %d were", free(), before)
	}
	for i := range rows {
		if v, err := s.Get([]byte(name(0xf0, i))); err != nil || v != nil {
			t.Fatalf("row %d is there: %v", i, err)
		}
	}
}
