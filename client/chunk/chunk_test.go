package chunk

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/big"
	"math/rand/v2"
	"os"
	"testing"
	"testing/iotest"
	"time"

	"holdfast"
	"holdfast/client/keyring"
)

var update = flag.Bool("update", false, "write testdata anew: only for a new version of the format")

func testCuts() *keyring.Cuts {
	m := keyring.OwnerOf(holdfast.Key{1}).NewMachine(holdfast.VaultID{2}, holdfast.GroupID{3}, holdfast.RightWrite, 1<<18)
	k := m.GroupKeys()
	return &k.Data
}

// random returns n bytes that depend on seed only.
func random(seed uint64, n int) []byte {
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	b := make([]byte, n)
	r.Read(b)
	return b
}

// periodic returns n bytes that repeat after period random ones.
func periodic(seed uint64, period, n int) []byte {
	b := bytes.Repeat(random(seed, period), n/period+1)
	return b[:n]
}

// reference cuts data by the letter of the package comment, with none of its tricks.
func reference(data []byte, c *keyring.Cuts, avg int) []int {
	block, _ := aes.NewCipher(c.Cut[:])
	limit := new(big.Int).Lsh(big.NewInt(1), 72)
	threshold := limit.Div(limit, big.NewInt(int64(avg-avg/4))).Uint64()
	out, iv := make([]byte, 64), make([]byte, 16)
	border := func(w []byte) bool {
		var h uint64
		for _, b := range w {
			h = 2*h + c.Gear[b]
		}
		if h >= 1<<56 {
			return false
		}
		cipher.NewCBCEncrypter(block, iv).CryptBlocks(out, w)
		return binary.LittleEndian.Uint64(out[48:]) < threshold
	}
	var sizes []int
	for len(data) > 0 {
		n := min(len(data), 4*avg)
		for p := avg / 4; p < n; p++ {
			if border(data[p-64 : p]) {
				n = p
				break
			}
		}
		sizes = append(sizes, n)
		data = data[n:]
	}
	return sizes
}

// cut returns the sizes of the chunks of r, and fails if together they are not want.
func cut(t testing.TB, r io.Reader, c *keyring.Cuts, avg int, want []byte) []int {
	t.Helper()
	ch := New(r, c, avg)
	var sizes []int
	var buf []byte
	for {
		var err error
		buf, err = ch.Next(buf)
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.HasPrefix(want, buf) {
			t.Fatalf("chunk %d is not what was read", len(sizes))
		}
		want = want[len(buf):]
		sizes = append(sizes, len(buf))
	}
	if len(want) != 0 {
		t.Fatalf("%d bytes are missing at the end", len(want))
	}
	return sizes
}

func equal(t *testing.T, got, want []int) {
	t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("sizes %v, want %v", got, want)
	}
}

func TestMatchesReference(t *testing.T) {
	c := testCuts()
	cases := map[string][]byte{
		"empty": {}, "one": {7}, "min": random(1, 256), "min+1": random(1, 257),
		"max": make([]byte, 4096), "max+1": make([]byte, 4097),
		"random": random(2, 200<<10),
		"mixed":  bytes.Join([][]byte{random(3, 5000), make([]byte, 9000), periodic(4, 3, 7000), random(3, 5000), periodic(5, 100, 20000)}, nil),
	}
	for _, p := range []int{1, 2, 3, 5, 31, 63, 64, 65, 127, 200, 300, 1000, 3000} {
		for seed := range uint64(5) {
			cases[fmt.Sprintf("period %d seed %d", p, seed)] = periodic(seed, p, 20<<10)
		}
	}
	for b := range 256 {
		cases[fmt.Sprintf("constant %d", b)] = bytes.Repeat([]byte{byte(b)}, 9<<10)
	}
	for name, data := range cases {
		t.Run(name, func(t *testing.T) {
			equal(t, cut(t, bytes.NewReader(data), c, 1024, data), reference(data, c, 1024))
		})
	}
}

// Tables made so that repetitions are candidates everywhere: the memo must not change a border.
func TestMatchesReferenceDegenerate(t *testing.T) {
	for seed := range uint64(40) {
		c := testCuts()
		c.Cut[0] = byte(seed)
		r := rand.New(rand.NewPCG(seed, 1))
		for i := range c.Gear {
			if seed%2 == 0 {
				c.Gear[i] = 0
			} else {
				c.Gear[i] >>= 64 - r.IntN(64)
			}
		}
		var data []byte
		for len(data) < 30<<10 {
			switch r.IntN(4) {
			case 0:
				data = append(data, random(r.Uint64(), r.IntN(300))...)
			case 1:
				data = append(data, periodic(r.Uint64(), 1+r.IntN(100), r.IntN(3000))...)
			case 2:
				data = append(data, make([]byte, r.IntN(3000))...)
			case 3:
				if len(data) > 500 {
					data = append(data, data[len(data)-500:]...)
				}
			}
		}
		equal(t, cut(t, bytes.NewReader(data), c, 1024, data), reference(data, c, 1024))
	}
}

func TestReadSizesDoNotMatter(t *testing.T) {
	c := testCuts()
	data := random(1, 300<<10)
	want := reference(data, c, 4096)
	for _, r := range []io.Reader{
		bytes.NewReader(data),
		iotest.HalfReader(bytes.NewReader(data)),
		iotest.OneByteReader(bytes.NewReader(data)),
		iotest.DataErrReader(bytes.NewReader(data)),
	} {
		equal(t, cut(t, r, c, 4096, data), want)
	}
}

func TestReset(t *testing.T) {
	c := testCuts()
	ch := New(bytes.NewReader(random(1, 100<<10)), c, 4096)
	if _, err := ch.Next(nil); err != nil {
		t.Fatal(err)
	}
	data := random(2, 50<<10)
	ch.Reset(bytes.NewReader(data))
	var sizes []int
	for {
		b, err := ch.Next(nil)
		if err == io.EOF {
			break
		}
		sizes = append(sizes, len(b))
	}
	equal(t, sizes, reference(data, c, 4096))
}

// A read error is never passed over, and never turns into the end of the file.
func TestReadError(t *testing.T) {
	broken := errors.New("broken")
	for _, n := range []int{0, 1, 5000, 100 << 10} {
		ch := New(io.MultiReader(bytes.NewReader(random(1, n)), iotest.ErrReader(broken)), testCuts(), 4096)
		got := 0
		for {
			b, err := ch.Next(nil)
			if err == nil {
				got += len(b)
				continue
			}
			if err != broken {
				t.Fatalf("after %d bytes: %v", n, err)
			}
			break
		}
		if got > n {
			t.Fatalf("%d bytes of %d", got, n)
		}
		if _, err := ch.Next(nil); err != broken {
			t.Fatalf("the second time: %v", err)
		}
	}
	if _, err := New(stuck{}, testCuts(), 4096).Next(nil); err != io.ErrNoProgress {
		t.Fatal(err)
	}
}

type stuck struct{}

func (stuck) Read([]byte) (int, error) { return 0, nil }

func TestSizes(t *testing.T) {
	const avg = 16 << 10
	data := random(1, 32<<20)
	sizes := cut(t, bytes.NewReader(data), testCuts(), avg, data)
	for i, n := range sizes {
		if n > 4*avg || n < avg/4 && i < len(sizes)-1 {
			t.Fatalf("chunk %d has %d bytes", i, n)
		}
	}
	if mean := len(data) / len(sizes); mean < avg*9/10 || mean > avg*11/10 {
		t.Fatalf("mean %d, want about %d", mean, avg)
	}
}

func TestInsertionMovesFewBorders(t *testing.T) {
	const avg = 16 << 10
	data := random(1, 4<<20)
	ends := func(b []byte) map[int]bool {
		m, at := map[int]bool{}, 0
		for _, n := range cut(t, bytes.NewReader(b), testCuts(), avg, b) {
			at += n
			m[len(b)-at] = true // counted from the end
		}
		return m
	}
	before, after := ends(data), ends(append([]byte{1}, data...))
	moved := 0
	for e := range before {
		if !after[e] {
			moved++
		}
	}
	if moved > 5 {
		t.Fatalf("%d of %d borders moved", moved, len(before))
	}
}

// Borders depend on both secrets.
func TestKeysMatter(t *testing.T) {
	data := random(1, 256<<10)
	a, b, d := testCuts(), testCuts(), testCuts()
	b.Cut[0]++
	d.Gear[0]++
	want := fmt.Sprint(cut(t, bytes.NewReader(data), a, 4096, data))
	for _, c := range []*keyring.Cuts{b, d} {
		if fmt.Sprint(cut(t, bytes.NewReader(data), c, 4096, data)) == want {
			t.Fatal("another key, the same borders")
		}
	}
}

// counting counts how often mac is computed.
type counting struct {
	cipher.Block
	n *int
}

func (c counting) Encrypt(dst, src []byte) { *c.n++; c.Block.Encrypt(dst, src) }

// TestRepetitionsAreCheap: no repetition is cut at less than half the speed of random data. What could cost more
// is mac, which takes about 50 times as long as a step of gear; random data has one candidate, and so one mac,
// in 256 bytes, a fifth of the whole. With at most twice as many, no more than a third is lost. Each table of
// gear makes about one constant in 256 a candidate everywhere, so several are tried. BenchmarkWorst measures it.
func TestRepetitionsAreCheap(t *testing.T) {
	const size, avg = 1 << 20, 64 << 10
	count := func(c *keyring.Cuts, data []byte) int {
		ch := New(bytes.NewReader(data), c, avg)
		n := 0
		ch.mac = counting{ch.mac, &n}
		for {
			if _, err := ch.Next(nil); err != nil {
				return n / 4
			}
		}
	}
	bound := size / 256 * 2
	everywhere := 0 // constants that are candidates at every position
	for key := range byte(6) {
		m := keyring.OwnerOf(holdfast.Key{1, key}).NewMachine(holdfast.VaultID{2}, holdfast.GroupID{3}, holdfast.RightWrite, 1<<18)
		keys := m.GroupKeys()
		c := &keys.Data
		if n := count(c, random(uint64(key), size)); n < bound/4 || n > bound {
			t.Fatalf("random data: %d computations where about %d belong", n, bound/2)
		}
		for b := range 256 {
			if c.Gear[b]*(1<<64-1) < 1<<56 { // sum over 64 shifts of one value
				everywhere++
			}
			if n := count(c, bytes.Repeat([]byte{byte(b)}, size)); n > bound {
				t.Errorf("key %d, constant %d: %d computations", key, b, n)
			}
		}
		for p := 1; p <= 64; p++ {
			if n := count(c, periodic(uint64(p), p, size)); n > bound {
				t.Errorf("key %d, period %d: %d computations", key, p, n)
			}
		}
	}
	if everywhere == 0 {
		t.Error("no constant was a candidate everywhere: try other keys")
	}
	flat := testCuts()
	flat.Gear = [256]uint64{} // every position is a candidate
	if n := count(flat, make([]byte, size)); n > bound {
		t.Errorf("zeros under a flat table: %d computations", n)
	}
}

func TestNewPanics(t *testing.T) {
	for _, avg := range []int{0, 512, 3000, 2 << 20, -1024} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("average %d was accepted", avg)
				}
			}()
			New(nil, testCuts(), avg)
		}()
	}
	New(nil, testCuts(), MinAverage)
	New(nil, testCuts(), MaxAverage)
}

type vectors struct {
	Comment string   `json:"comment"`
	Gear    string   `json:"gear"` // 256 x u64 big-endian
	Cut     string   `json:"cut"`
	Streams []stream `json:"streams"`
}

type stream struct {
	Average int    `json:"average"`
	Unit    string `json:"unit"`   // hex; the stream is this, repeated
	Times   int    `json:"times"`  // how often
	Sizes   []int  `json:"chunks"` // their sizes
}

func TestVectors(t *testing.T) {
	const file = "testdata/vectors.json"
	c := testCuts()
	if *update {
		v := vectors{Comment: "stream = unit repeated; chunks = sizes in order", Cut: hex.EncodeToString(c.Cut[:])}
		var gear []byte
		for _, g := range c.Gear {
			gear = binary.BigEndian.AppendUint64(gear, g)
		}
		v.Gear = hex.EncodeToString(gear)
		for _, s := range []stream{
			{Average: 1024, Unit: hex.EncodeToString(random(1, 6000)), Times: 3},
			{Average: 1024, Unit: "00", Times: 10000},
			{Average: 1024, Unit: hex.EncodeToString(random(2, 300)), Times: 30},
			{Average: 2048, Unit: hex.EncodeToString(random(3, 4000)), Times: 5},
			{Average: 262144, Unit: hex.EncodeToString(random(4, 6007)), Times: 500},
			{Average: 1024, Unit: "01", Times: 256},
			{Average: 1024, Unit: "01", Times: 0},
		} {
			unit, _ := hex.DecodeString(s.Unit)
			s.Sizes = append([]int{}, reference(bytes.Repeat(unit, s.Times), c, s.Average)...)
			v.Streams = append(v.Streams, s)
		}
		b, _ := json.MarshalIndent(v, "", "\t")
		if err := os.WriteFile(file, append(b, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var v vectors
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	var k keyring.Cuts
	raw, _ := hex.DecodeString(v.Gear)
	for i := range k.Gear {
		k.Gear[i] = binary.BigEndian.Uint64(raw[8*i:])
	}
	raw, _ = hex.DecodeString(v.Cut)
	copy(k.Cut[:], raw)
	for _, s := range v.Streams {
		unit, _ := hex.DecodeString(s.Unit)
		data := bytes.Repeat(unit, s.Times)
		equal(t, cut(t, bytes.NewReader(data), &k, s.Average, data), s.Sizes)
	}
}

func FuzzChunker(f *testing.F) {
	f.Add(random(1, 3000), uint8(0), uint16(1))
	f.Add([]byte{0}, uint8(1), uint16(9000))
	f.Add([]byte("abc"), uint8(2), uint16(4000))
	f.Fuzz(func(t *testing.T, unit []byte, key uint8, times uint16) {
		if len(unit)*int(times) > 16<<10 {
			return
		}
		c := testCuts()
		c.Cut[0] = key
		if key%2 == 1 { // many candidates
			for i := range c.Gear {
				c.Gear[i] >>= key % 64
			}
		}
		data := bytes.Repeat(unit, int(times))
		equal(t, cut(t, bytes.NewReader(data), c, 1024, data), reference(data, c, 1024))
	})
}

func benchmark(b *testing.B, data []byte) {
	ch := New(nil, testCuts(), 256<<10)
	b.SetBytes(int64(len(data)))
	buf := make([]byte, 0, 1<<20)
	for b.Loop() {
		ch.Reset(bytes.NewReader(data))
		for {
			var err error
			if buf, err = ch.Next(buf); err != nil {
				break
			}
		}
	}
}

func BenchmarkRandom(b *testing.B) { benchmark(b, random(1, 16<<20)) }
func BenchmarkZeros(b *testing.B)  { benchmark(b, make([]byte, 16<<20)) }

// BenchmarkConstants is the worst of 256 constants, one after another; and each table has about one that
// makes every position a candidate.
func BenchmarkConstants(b *testing.B) {
	var data []byte
	for c := range 256 {
		data = append(data, bytes.Repeat([]byte{byte(c)}, 4<<20/64)...)
	}
	benchmark(b, data)
}

// BenchmarkWorst reports how fast the slowest of 256 constants and of all periods up to 64 is cut, as a share of
// the speed of random data. It belongs above 0.5.
func BenchmarkWorst(b *testing.B) {
	const size = 4 << 20
	ch := New(nil, testCuts(), 256<<10)
	buf := make([]byte, 0, 1<<20)
	once := func(data []byte, times int) time.Duration { // the best of them
		best := time.Hour
		for range times {
			began := time.Now()
			ch.Reset(bytes.NewReader(data))
			for {
				var err error
				if buf, err = ch.Next(buf); err != nil {
					break
				}
			}
			best = min(best, time.Since(began))
		}
		return best
	}
	even := once(random(1, size), 50)
	ratio := 1e9
	try := func(data []byte) {
		r := float64(even) / float64(once(data, 3))
		if r < 0.9 { // or something else took the processor
			r = float64(even) / float64(once(data, 50))
		}
		ratio = min(ratio, r)
	}
	for b.Loop() {
		for c := range 256 {
			try(bytes.Repeat([]byte{byte(c)}, size))
		}
		for p := 2; p <= 64; p++ {
			try(periodic(uint64(p), p, size))
		}
	}
	b.ReportMetric(ratio, "of-random-speed")
}

func BenchmarkPeriods(b *testing.B) {
	for _, p := range []int{2, 3, 7, 8, 16, 33, 64, 512} {
		b.Run(fmt.Sprint(p), func(b *testing.B) { benchmark(b, periodic(uint64(p), p, 16<<20)) })
	}
}
