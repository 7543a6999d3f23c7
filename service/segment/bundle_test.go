package segment

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"holdfast/internal/ceiling"
)

// run returns the trailers of three segments that follow one another: the last of an epoch, and two of the next.
func run(t testing.TB) (trailers [][]byte) {
	t.Helper()
	add := func(b *Builder, pos Position, prev [32]byte) [32]byte {
		s := b.Seal(pos, prev)
		trailers = append(trailers, s.Body[len(s.Body)-int(s.TrailerLen):])
		return s.Hash
	}
	last := add(small(t, 300), Position{6, 9}, hash(30))
	b := NewBuilder(cell)
	if err := b.AddRecord(1_800_000_001_000, Takeover{Epoch: 7, Claim: half(1), Host: half(2), Table: []Accepted{{6, 9, last}}}); err != nil {
		t.Fatal(err)
	}
	last = add(b, Position{7, 0}, last)
	add(small(t, 1), Position{7, 1}, last)
	return trailers
}

// small returns a Builder with one record.
func small(t testing.TB, n uint64) *Builder {
	b := NewBuilder(cell)
	if err := b.AddRecord(1_800_000_002_000, Metered{Account: half(5), Names: n}); err != nil {
		t.Fatal(err)
	}
	return b
}

func bundle(t testing.TB, trailers ...[]byte) (BundleKey, []byte) {
	t.Helper()
	b := NewBundleBuilder(cell)
	for _, raw := range trailers {
		if err := b.Add(raw); err != nil {
			t.Fatal(err)
		}
	}
	return b.Finish([8]byte{0xf0, 1, 2, 3, 4, 5, 6, 7})
}

// unbundle reads a whole bundle.
func unbundle(k BundleKey, raw []byte) (trailers [][]byte, err error) {
	r := NewBundleReader(k, bytes.NewReader(raw), int64(len(raw)))
	for {
		t, h, err := r.Next()
		if err == io.EOF {
			return trailers, nil
		}
		if err != nil {
			if _, _, again := r.Next(); again == nil || again == io.EOF {
				return nil, fmt.Errorf("an error that goes away: %w", err)
			}
			return trailers, err
		}
		if key, size := h.Key(t); key.Position != h.Position || size != int64(h.BodySize)+int64(len(t)) || key.Hash != HashOf(t) {
			return nil, fmt.Errorf("segment %s has the key %s", h.Position, key)
		}
		trailers = append(trailers, bytes.Clone(t))
	}
}

// The bytes of testdata/bundle.json are the format: they never change.
func TestBundleVector(t *testing.T) {
	const file = "testdata/bundle.json"
	k, raw := bundle(t, run(t)...)
	got, err := json.MarshalIndent(map[string]string{"key": k.String(), "object": hex.EncodeToString(raw)}, "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	want, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
		t.Fatalf("%s was missing; it has been made: look at it and commit it", file)
	}
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("the format changed: got\n%s", got)
	}
}

func TestBundleRoundTrip(t *testing.T) {
	trailers := run(t)
	for n := 1; n <= len(trailers); n++ {
		k, raw := bundle(t, trailers[:n]...)
		if first, last := k.First, k.Last; first != (Position{6, 9}) || last != []Position{{6, 9}, {7, 0}, {7, 1}}[n-1] || k.Hash != HashOf(trailers[n-1]) {
			t.Errorf("%d trailers are called %s", n, k)
		}
		if len(raw) != minBundle+4*n+len(slices.Concat(trailers[:n]...)) {
			t.Errorf("%d bytes", len(raw))
		}
		got, err := unbundle(k, raw)
		if err != nil || !slices.EqualFunc(got, trailers[:n], bytes.Equal) {
			t.Errorf("%d trailers came back as %d: %v", n, len(got), err)
		}
		if h, err := ParseHead(trailers[n-1]); err != nil || h.Position != k.Last || h.Cell != cell {
			t.Errorf("head %v: %v", h, err)
		}
	}
}

// Every bit of a bundle, and of its key, counts.
func TestBundleDamage(t *testing.T) {
	trailers := run(t)
	k, raw := bundle(t, trailers...)
	for i := range raw {
		for bit := range 8 {
			bad := bytes.Clone(raw)
			bad[i] ^= 1 << bit
			if _, err := unbundle(k, bad); !errors.Is(err, ErrFormat) {
				t.Fatalf("bit %d of byte %d: %v", bit, i, err)
			}
		}
		if _, err := unbundle(k, raw[:i]); !errors.Is(err, ErrFormat) {
			t.Fatalf("cut after %d bytes: %v", i, err)
		}
		short := NewBundleReader(k, bytes.NewReader(raw[:i]), int64(len(raw))) // shorter than it was listed
		for err := error(nil); err == nil; {
			if _, _, err = short.Next(); err == io.EOF {
				t.Fatalf("ended after %d bytes of %d", i, len(raw))
			}
		}
	}
	if _, err := unbundle(k, append(bytes.Clone(raw), 0)); !errors.Is(err, ErrFormat) {
		t.Errorf("a byte more: %v", err)
	}
	for what, change := range map[string]func(*BundleKey){
		"cell":  func(k *BundleKey) { k.Cell[7]++ },
		"first": func(k *BundleKey) { k.First.Seq-- },
		"last":  func(k *BundleKey) { k.Last.Seq++ },
		"hash":  func(k *BundleKey) { k.Hash[31]++ },
	} {
		bad := k
		change(&bad)
		if _, err := unbundle(bad, raw); !errors.Is(err, ErrFormat) {
			t.Errorf("another %s: %v", what, err)
		}
	}
	if _, err := unbundle(k, raw); err != nil {
		t.Error(err)
	}
	// The nonce is not in the bytes.
	k.Nonce[0]++
	if _, err := unbundle(k, raw); err != nil {
		t.Error(err)
	}
	none := slices.Concat([]byte(bundleMagic), cell[:], []byte{0, 0, 0, 0}, []byte(bundleEnd))
	if _, err := unbundle(k, none); !errors.Is(err, ErrFormat) {
		t.Errorf("no trailers: %v", err)
	}
	broken := errors.New("the line broke")
	r := NewBundleReader(k, io.MultiReader(bytes.NewReader(raw[:100]), failing{broken}), int64(len(raw)))
	if _, _, err := r.Next(); !errors.Is(err, broken) || errors.Is(err, ErrFormat) {
		t.Errorf("a source that fails: %v", err)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func TestBundleRefuses(t *testing.T) {
	trailers := run(t)
	stranger := NewBuilder([8]byte{1})
	if err := stranger.AddRecord(1, Metered{Account: half(5), Names: 1}); err != nil {
		t.Fatal(err)
	}
	seal := func(b *Builder, pos Position, prev [32]byte) []byte {
		s := b.Seal(pos, prev)
		return s.Body[len(s.Body)-int(s.TrailerLen):]
	}
	for what, next := range map[string][]byte{
		"the same again":    trailers[0],
		"one left out":      trailers[2],
		"another chain":     seal(small(t, 1), Position{6, 10}, hash(1)),
		"another cell":      seal(stranger, Position{6, 10}, HashOf(trailers[0])),
		"a gap":             seal(small(t, 1), Position{6, 11}, HashOf(trailers[0])),
		"the middle of one": seal(small(t, 1), Position{7, 1}, HashOf(trailers[0])),
		"an earlier epoch":  seal(small(t, 1), Position{5, 10}, HashOf(trailers[0])),
		"no trailer":        []byte("HOLDSEG1"),
	} {
		b := NewBundleBuilder(cell)
		if err := b.Add(trailers[0]); err != nil {
			t.Fatal(err)
		}
		if err := b.Add(next); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", what, err)
		}
		// What was refused left no trace.
		if err := b.Add(trailers[1]); err != nil {
			t.Errorf("after %s: %v", what, err)
		}
		k, raw := b.Finish([8]byte{})
		if _, err := unbundle(k, raw); err != nil {
			t.Errorf("after %s: %v", what, err)
		}
	}
}

// What a bundle holds at most, to the byte.
func TestBundleLimits(t *testing.T) {
	prev := hash(30)
	sized := func(seq uint64, n int) []byte { // a trailer of n bytes
		t.Helper()
		b := small(t, 1)
		for b.Size()+200 <= n {
			if err := b.AddRecord(1_800_000_002_000, Metered{Account: half(5), Names: 1}); err != nil {
				t.Fatal(err)
			}
		}
		m := b.Mark()
		for pad := 1; pad <= 200; pad++ {
			if err := b.AddRecord(1_800_000_002_000, Frozen{Reason: ReasonClocks, Text: strings.Repeat("x", pad)}); err != nil {
				t.Fatal(err)
			}
			if c := *b; c.Size() >= n-4 {
				if s := c.Seal(Position{1, seq}, prev); int(s.TrailerLen) == n {
					prev = s.Hash
					return s.Body
				}
			}
			b.Undo(m)
		}
		t.Fatalf("no trailer of %d bytes", n)
		return nil
	}
	b := NewBundleBuilder(cell)
	for seq := range uint64(MaxBundled) {
		raw := sized(seq+1, 200)
		if !b.Fits(len(raw)) {
			t.Fatalf("trailer %d does not fit", seq)
		}
		if err := b.Add(raw); err != nil {
			t.Fatal(err)
		}
	}
	if b.Fits(200) {
		t.Errorf("more than %d trailers", MaxBundled)
	}
	k, raw := b.Finish([8]byte{})
	if got, err := unbundle(k, raw); err != nil || len(got) != MaxBundled {
		t.Errorf("%d trailers: %v", len(got), err)
	}
	more := bytes.Clone(raw)
	binary.BigEndian.PutUint32(more[bundleHead-4:], MaxBundled+1)
	if _, err := unbundle(k, more); !errors.Is(err, ErrFormat) {
		t.Errorf("one more is claimed: %v", err)
	}

	// One of two has what is left of the limit, then a byte more.
	for over := range 2 {
		prev = hash(30)
		first := sized(1, 4<<20)
		second := sized(2, MaxBundle-minBundle-4-len(first)-4+over)
		b := NewBundleBuilder(cell)
		if err := b.Add(first); err != nil {
			t.Fatal(err)
		}
		if b.Fits(len(second)) != (over == 0) {
			t.Fatalf("%d bytes over: fits %v", over, over == 1)
		}
		k, raw := k, slices.Concat([]byte(bundleMagic), cell[:], []byte{0, 0, 0, 2}, u32(len(first)), first, u32(len(second)), second, []byte(bundleEnd))
		k.First, k.Last, k.Hash = Position{1, 1}, Position{1, 2}, prev
		if _, err := unbundle(k, raw); (err == nil) != (over == 0) {
			t.Errorf("%d bytes over: %v", over, err)
		}
	}
	// One alone may be larger.
	prev = hash(30)
	big := sized(1, MaxBundle+1000)
	k, raw = bundle(t, big)
	if got, err := unbundle(k, raw); err != nil || !bytes.Equal(got[0], big) {
		t.Errorf("a large trailer alone: %v", err)
	}
}

func u32(n int) []byte { return binary.BigEndian.AppendUint32(nil, uint32(n)) }

func TestBundleKeys(t *testing.T) {
	k := BundleKey{Cell: cell, First: Position{1, 2}, Last: Position{3, 0xabc}, Nonce: [8]byte{9}, Hash: hash(1)}
	s := k.String()
	if got, err := ParseBundleKey(s); err != nil || got != k {
		t.Fatal(got, err)
	}
	if !strings.HasPrefix(s, BundlePrefix(cell)) {
		t.Fatal(s)
	}
	for i := range s {
		for _, c := range []string{"", "0", "g", "A", "/", "-", " ", "00", "+"} {
			bad := s[:i] + c + s[i+1:]
			if got, err := ParseBundleKey(bad); err == nil && got.String() != bad {
				t.Fatalf("%q was read as %q", bad, got)
			} else if err != nil && !errors.Is(err, ErrFormat) {
				t.Fatal(err)
			}
		}
	}
	back := k
	back.First, back.Last = k.Last, k.First
	segment := Key{Cell: cell, Trailer: 1000}.String()
	for _, bad := range []string{"", segment, back.String(), s + "/", s + "-", "/" + s, s[1:], strings.ToUpper(s)} {
		if _, err := ParseBundleKey(bad); !errors.Is(err, ErrFormat) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, err := ParseKey(s); err == nil {
		t.Error("a bundle passes for a segment")
	}
}

func FuzzParseBundleKey(f *testing.F) {
	f.Add(BundleKey{Cell: cell}.String())
	f.Fuzz(func(t *testing.T, s string) {
		if k, err := ParseBundleKey(s); err == nil && k.String() != s {
			t.Fatalf("%q was read as %q", s, k)
		}
	})
}

// What is read as a bundle is written as the same bytes.
func FuzzBundle(f *testing.F) {
	k, raw := bundle(f, run(f)...)
	f.Add(raw, k.String())
	one, single := bundle(f, run(f)[0])
	f.Add(single, one.String())
	f.Fuzz(func(t *testing.T, raw []byte, key string) {
		k, err := ParseBundleKey(key)
		if err != nil {
			return
		}
		all, err := unbundle(k, raw)
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Fatal(err)
			}
			// Try again with a key that fits: it stops nearly every mutation.
			n := len(all)
			if n == 0 {
				return
			}
			first, _ := ParseHead(all[0])
			last, _ := ParseHead(all[n-1])
			k = BundleKey{Cell: first.Cell, First: first.Position, Last: last.Position, Nonce: k.Nonce, Hash: HashOf(all[n-1])}
			if all, err = unbundle(k, raw); err != nil {
				return
			}
		}
		b := NewBundleBuilder(k.Cell)
		for _, trailer := range all {
			if err := b.Add(trailer); err != nil {
				t.Fatal(err)
			}
		}
		if again, out := b.Finish(k.Nonce); again != k || !bytes.Equal(out, raw) {
			t.Fatalf("%x was read as %x", raw, out)
		}
	})
}

// A bundle makes its reader take its own size, and no more than that whatever it claims.
func TestBundleMemoryCeiling(t *testing.T) {
	k, raw := bundle(t, run(t)...)
	ceiling.Check(t, ceiling.Ceiling{Fixed: 16 << 10, Factor: 6}, [][]byte{raw}, nil, func(b []byte) { unbundle(k, b) })
	ceiling.Check(t, ceiling.Ceiling{Fixed: 4 << 10, Factor: 8}, [][]byte{[]byte(k.String())}, nil, func(b []byte) { ParseBundleKey(string(b)) })
	ceiling.Check(t, ceiling.Ceiling{Fixed: 4 << 10, Factor: 8}, run(t), nil, func(b []byte) { ParseHead(b) })
}
