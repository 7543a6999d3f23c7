package jobs

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast"
	"holdfast/internal/ceiling"
	"holdfast/service/segment"
)

// written returns the content of a file after n writes, of a job that had as many turns.
func written(t *testing.T, n int) (path string, raw []byte) {
	t.Helper()
	path = filepath.Join(t.TempDir(), FileName)
	f, all, err := openFile(path)
	if err != nil || all != nil {
		t.Fatal(all, err)
	}
	for i := range n {
		if err := f.write([]*state{{Name: "job", Turns: uint64(i + 1)}}); err != nil {
			t.Fatal(err)
		}
	}
	f.close()
	if raw, err = os.ReadFile(path); err != nil || len(raw) != FileSize {
		t.Fatalf("%d bytes, %v", len(raw), err)
	}
	return path, raw
}

func turns(t *testing.T, path string) (uint64, error) {
	t.Helper()
	f, all, err := openFile(path)
	f.close()
	if len(all) == 0 {
		return 0, err
	}
	return all[0].Turns, err
}

// TestFileSurvives: whatever becomes of the write that was under way, what the one before said is there; whatever else
// becomes of the file, a new one is begun and that is said.
func TestFileSurvives(t *testing.T) {
	for n := range 5 {
		path, raw := written(t, n)
		if got, err := turns(t, path); got != uint64(n) || err != nil {
			t.Errorf("after %d writes: %d, %v", n, got, err)
		}
		if n < 2 {
			continue
		}
		newest := n % 2 * slotSize
		for _, at := range []int{0, 9, 17, headSize + 3, headSize + 40} {
			bad := bytes.Clone(raw)
			bad[newest+at] ^= 0x40
			os.WriteFile(path, bad, 0o600)
			if got, err := turns(t, path); got != uint64(n-1) || err != nil {
				t.Errorf("after %d writes, byte %d of the last one is wrong: %d, %v", n, at, got, err)
			}
			bad[slotSize-newest+at] ^= 0x40
			os.WriteFile(path, bad, 0o600)
			if got, err := turns(t, path); got != 0 || err == nil {
				t.Errorf("after %d writes, both are wrong: %d, %v", n, got, err)
			}
			if got, err := turns(t, path); got != 0 || err != nil {
				t.Errorf("it is not made anew: %d, %v", got, err)
			}
		}
		os.WriteFile(path, raw[:FileSize-1], 0o600)
		if got, err := turns(t, path); got != 0 || err == nil {
			t.Errorf("a file that is too short: %d, %v", got, err)
		}
	}
}

// TestFileHasRoom: the worst that jobs can say fits.
func TestFileHasRoom(t *testing.T) {
	text := cut(strings.Repeat("\x01<\u2028", 1000))
	var all []*state
	for range maxJobs {
		all = append(all, &state{
			Name: strings.Repeat("<", maxName), Turns: 1<<64 - 1, Began: time.Now(), Ended: time.Now(), Running: true, More: true, Did: 1<<64 - 1,
			Text: text, Error: text, Failures: 1 << 62, Open: time.Now(), Good: time.Now(), Month: "2026-11", Used: 1<<64 - 1,
			Memory: []byte(`"` + strings.Repeat("x", maxMemory-2) + `"`),
		})
	}
	raw, err := encodeSlot(1<<64-1, all)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := parseSlot(append(raw, make([]byte, slotSize-len(raw))...)); err != nil {
		t.Fatal(err)
	}
}

// TestMemoryCeiling: a damaged file whose check sum is right does not take much memory.
func TestMemoryCeiling(t *testing.T) {
	raw, err := encodeSlot(7, []*state{{Name: "job", Turns: 3, Began: time.Now(), Text: "text", Memory: []byte(`{"cursor":1}`)}, {Name: "other"}})
	if err != nil {
		t.Fatal(err)
	}
	many := append(raw[:headSize:headSize], "["+strings.Repeat("{},", 40_000)+"{}]"...)
	mend := func(in []byte) []byte {
		if n := len(in) - headSize - sha256.Size; n >= 0 {
			binary.BigEndian.PutUint32(in[16:], uint32(n))
			sum := sha256.Sum256(in[:headSize+n])
			copy(in[headSize+n:], sum[:])
		}
		return append(in, make([]byte, max(0, slotSize-len(in)))...)
	}
	ceiling.Check(t, ceiling.Ceiling{Fixed: 64 << 10, Factor: 4}, [][]byte{raw, append(many, make([]byte, sha256.Size)...)}, mend, func(b []byte) { parseSlot(b) })
}

// TestTurnFitsIntoAPlace: what a turn may use is no more than the place that it borrows from the journal has.
func TestTurnFitsIntoAPlace(t *testing.T) {
	if place := segment.Target + holdfast.MaxBatch; Memory > place {
		t.Errorf("a turn may use %d bytes, and the place of a segment has %d", Memory, place)
	}
}

func FuzzSlot(f *testing.F) {
	raw, err := encodeSlot(7, []*state{{Name: "job", Turns: 3, Memory: []byte("{}")}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Fuzz(func(t *testing.T, raw []byte) {
		if len(raw) > slotSize {
			return
		}
		n, all, err := parseSlot(append(raw, make([]byte, slotSize-len(raw))...))
		if err != nil {
			return
		}
		if _, err := encodeSlot(n, all); err != nil {
			t.Fatal(err)
		}
	})
}
