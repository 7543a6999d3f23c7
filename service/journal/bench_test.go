package journal

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"path/filepath"
	"testing"

	"holdfast"
	"holdfast/service/bucket"
	"holdfast/service/bucket/dir"
	"holdfast/service/bucket/sim"
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

// BenchmarkReplay makes a view on disk from the trailers of a journal of small blocks: 400 segments of
// 2,500 records each, a million in all.
func BenchmarkReplay(b *testing.B) {
	const perSegment, segments = 2500, 120
	mem := sim.New(1)
	j, c := benchJournal(b, mem, "")
	if err := j.Close(context.Background()); err != nil {
		b.Fatal(err)
	}
	ctx := context.Background()
	cfg := config(mem)
	ch, err := findChain(ctx, cfg, 1<<63, anyChain)
	if err != nil {
		b.Fatal(err)
	}
	pos, prev := ch.position()
	builder := segment.NewBuilder(testCell)
	for s := range segments {
		builder.Reset()
		off := builder.AddBlock(make([]byte, 64))
		for i := range perSegment {
			if err := builder.AddRecord(ch.time, segment.Stored{
				Session: c.Session, Name: benchName(s*perSegment + i), Kind: holdfast.KindChunk, Off: off, Len: 64,
			}); err != nil {
				b.Fatal(err)
			}
		}
		pos = pos.Next()
		sealed := builder.Seal(pos, prev)
		key := sealed.Key(testCell, pos, [8]byte{})
		if err := mem.Put(ctx, key.String(), sealed.Body); err != nil {
			b.Fatal(err)
		}
		prev = sealed.Hash
	}
	if ch, err = findChain(ctx, cfg, 1<<63, anyChain); err != nil {
		b.Fatal(err)
	}
	b.ResetTimer()
	n := 0
	for b.Loop() {
		store, err := view.Open(filepath.Join(b.TempDir(), "view"))
		if err != nil {
			b.Fatal(err)
		}
		records, err := replay(ctx, cfg, store, ch.all())
		if err = errors.Join(err, store.Close()); err != nil {
			b.Fatal(err)
		}
		n += records
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "records/s")
}
