package journal

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"holdfast"
	"holdfast/history"
	"holdfast/service/bucket"
	"holdfast/service/bucket/dir"
	"holdfast/service/segment"
	"holdfast/service/view"
	"holdfast/service/view/viewtest"
)

func benchName(i int) holdfast.Name {
	return sha256.Sum256(binary.BigEndian.AppendUint64(nil, uint64(i)))
}

func benchJournal(b *testing.B, on bucket.Bucket, viewDir string) (*Journal, *client) {
	cfg := config(on)
	cfg.Dir = viewDir
	j, err := Open(context.Background(), cfg)
	if err != nil {
		b.Fatal(err)
	}
	c := &client{Customer: viewtest.New(1), j: j}
	if err := errors.Join(c.enrol(context.Background()), c.record(context.Background(), c.Open())); err != nil {
		b.Fatal(err)
	}
	return j, c
}

// BenchmarkAppend stores blocks of 256 KiB through the sequencer into a directory and waits for the last
// to be acknowledged.
func BenchmarkAppend(b *testing.B) {
	on, err := dir.Create(filepath.Join(b.TempDir(), "bucket"))
	if err != nil {
		b.Fatal(err)
	}
	j, c := benchJournal(b, on, filepath.Join(b.TempDir(), "view"))
	sealed := make([]byte, 256<<10)
	ctx := context.Background()
	b.SetBytes(int64(len(sealed)))
	var last *Ticket
	for i := 0; b.Loop(); i++ {
		name := benchName(i)
		last, err = j.Append(ctx, func(tx *Tx) error {
			return tx.Stored(c.Session, name, holdfast.KindChunk, nil, sealed)
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	j.Flush()
	if err := errors.Join(last.Wait(ctx), j.Close(ctx)); err != nil {
		b.Fatal(err)
	}
}

// written is a journal in a directory.
type written struct {
	on   *dir.Bucket
	root string
	n    int // blocks
}

// writeJournal writes the journal of one customer's backups with that many blocks, about, to a directory. Bodies are
// tiny, trailers are what a client's blocks make: files of 64 chunks with a node each, one chunk in 16 of which
// some earlier run stored; a directory's node for each 64 files; and an archive, in a session of its own, for each 20
// directories, or what is left.
func writeJournal(b *testing.B, blocks, perSegment int) written {
	root := filepath.Join(b.TempDir(), "bucket")
	on, err := dir.Create(root)
	if err != nil {
		b.Fatal(err)
	}
	ctx := context.Background()
	j, c := benchJournal(b, on, "")
	v, _, err := view.NewReader(j.store).Vault(c.Vault)
	if err = errors.Join(err, j.Close(ctx)); err != nil {
		b.Fatal(err)
	}
	ch, err := findChain(ctx, config(on), 1<<63, anyChain)
	if err != nil {
		b.Fatal(err)
	}
	w := written{on, root, 0}
	pos, prev := ch.position()
	now := ch.time
	builder := segment.NewBuilder(testCell)
	inSegment := 0
	seal := func() {
		pos = pos.Next()
		sealed := builder.Seal(pos, prev)
		key := sealed.Key(testCell, pos, [8]byte{})
		if err := os.WriteFile(filepath.Join(root, filepath.FromSlash(key.String())), sealed.Body, 0o600); err != nil {
			b.Fatal(err)
		}
		prev = sealed.Hash
		builder.Reset()
		inSegment = 0
		now += 100
	}
	add := func(rec segment.Record) {
		if err := builder.AddRecord(now, rec); err != nil {
			b.Fatal(err)
		}
	}
	tell := func(r history.Record) {
		e := history.Stamp(c.Vault, v.N+1, v.Head, now*1e6, r, viewtest.LogKey())
		add(segment.History{Vault: c.Vault, Entry: e})
		v.N, v.Head = e.N, e.Head
		c.Accepted(r)
	}
	var sealedBlock [64]byte
	store := func(kind holdfast.Kind, links []holdfast.Name) holdfast.Name {
		slices.SortFunc(links, func(a, b holdfast.Name) int { return bytes.Compare(a[:], b[:]) })
		name := benchName(w.n)
		w.n++
		add(segment.Stored{
			Session: c.Session, Name: name, Kind: kind, Off: builder.AddBlock(sealedBlock[:]), Len: 64,
			Sum: [16]byte(name[8:]), Links: slices.Compact(links),
		})
		if inSegment++; inSegment == perSegment {
			seal()
		}
		return name
	}
	old := rand.New(rand.NewPCG(1, 1))
	var chunks []int // numbers of all chunks; only every 16th, to spare memory
	for w.n < blocks {
		tell(c.Open())
		var top []holdfast.Name
		for d := 0; d < 20 && w.n < blocks; d++ {
			var files []holdfast.Name
			for f := 0; f < 64 && w.n < blocks; f++ {
				var links []holdfast.Name
				for i := range 64 {
					if i%16 == 0 && len(chunks) > 0 {
						links = append(links, benchName(chunks[old.IntN(len(chunks))]))
						continue
					}
					if i == 1 {
						chunks = append(chunks, w.n)
					}
					links = append(links, store(holdfast.KindChunk, nil))
				}
				files = append(files, store(holdfast.KindTree, links))
			}
			top = append(top, store(holdfast.KindTree, files))
		}
		root := store(holdfast.KindArchive, top)
		tell(c.Commit(root))
	}
	if inSegment > 0 || builder.Records() > 0 {
		seal()
	}
	return w
}

// replaySizes are how many blocks the journals of BenchmarkReplay have: HOLDFAST_BLOCKS, or 100,000.
func replaySizes(b *testing.B) int {
	n, err := strconv.Atoi(cmp.Or(os.Getenv("HOLDFAST_BLOCKS"), "100000"))
	if err != nil || n < 1 {
		b.Fatal("HOLDFAST_BLOCKS is not a number of blocks")
	}
	return n
}

// BenchmarkReplay makes a view on disk from the trailers of a journal of HOLDFAST_BLOCKS blocks (100,000, if it is
// not set) that lies in a directory: with 64 blocks in a segment, as those of 256 KiB, and with 2,500.
//
// It reports blocks a second, the most memory that the heap had, and what the process had resident.
func BenchmarkReplay(b *testing.B) {
	blocks := replaySizes(b)
	for _, per := range []int{64, 2500} {
		b.Run(fmt.Sprintf("blocks=%d/segment=%d", blocks, per), func(b *testing.B) {
			w := writeJournal(b, blocks, per)
			cfg := config(w.on)
			ch, err := findChain(context.Background(), cfg, 1<<63, anyChain)
			if err != nil {
				b.Fatal(err)
			}
			var peak uint64
			n := 0
			var used time.Duration
			b.ResetTimer()
			for b.Loop() {
				viewDir := filepath.Join(b.TempDir(), "view")
				stop := watchHeap(&peak)
				used -= cpuTime()
				store, err := view.Open(viewDir)
				if err != nil {
					b.Fatal(err)
				}
				_, err = replay(context.Background(), cfg, store, ch.all())
				if err = errors.Join(err, store.Close()); err != nil {
					b.Fatal(err)
				}
				stop()
				used += cpuTime()
				n += w.n
				b.StopTimer()
				if err := os.RemoveAll(viewDir); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
			b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "blocks/s")
			b.ReportMetric(float64(used.Nanoseconds())/1e3/float64(n), "cpu-us/block")
			b.ReportMetric(float64(peak)/(1<<20), "peak-MiB")
		})
	}
}

// watchHeap raises peak to what the process takes of memory, as the runtime counts it and the database beside it,
// until stop is called.
func watchHeap(peak *uint64) (stop func()) {
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			*peak = max(*peak, resident())
			select {
			case <-done:
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	return func() { close(done); <-ended }
}

// resident returns what the process has resident, bytes; 0 where that is not known.
func resident() uint64 {
	raw, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	var size, pages uint64
	fmt.Sscan(string(raw), &size, &pages)
	return pages * uint64(os.Getpagesize())
}

// cpuTime returns what the process has used of its processors.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
