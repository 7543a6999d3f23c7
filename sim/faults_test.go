package sim

import (
	"encoding/binary"
	"hash/fnv"
	"strings"
	"sync"
	"time"

	"holdfast/service/bucket/sim"
	"holdfast/service/segment"
)

// faults says what the calls of a bucket suffer, from (seed, operation, key, attempt) alone, so that a schedule does not
// depend on the order of goroutines. The random part of a key is left out: the n-th attempt to store a segment has the
// same fate in every run.
//
// Lists are never incomplete: a store that forgets what it acknowledged is refused, and nothing is promised on one
// (JOURNAL 9).
type faults struct {
	seed     uint64
	times    int // chances are multiplied by it
	injected *sometimes

	mu       sync.Mutex
	on       bool
	attempts map[string]int
}

// chances in a million calls.
var chances = []struct {
	kind  string
	n     int
	to    func(op sim.Op) bool
	fault func(draw uint64) sim.Fault
}{
	{"cursed", 3000, anyOp, nil}, // drawn on the key alone
	{"slow", 8000, anyOp, func(d uint64) sim.Fault { return sim.Fault{Slow: time.Duration(d % uint64(10*time.Second))} }},
	{"fails", 8000, anyOp, func(uint64) sim.Fault { return sim.Fault{Err: sim.ErrFault} }},
	{"fails, applied", 5000, sim.Op.Writes, func(uint64) sim.Fault { return sim.Fault{Err: sim.ErrFault, Applied: true} }},
	{"hangs", 1500, anyOp, func(uint64) sim.Fault { return sim.Fault{Hang: true} }},
	{"hangs, applied", 1500, sim.Op.Writes, func(uint64) sim.Fault { return sim.Fault{Hang: true, Applied: true} }},
	{"hangs, lands late", 1500, sim.Op.Writes, func(d uint64) sim.Fault {
		return sim.Fault{Hang: true, Late: time.Duration(d%uint64(10*time.Minute)) + 1}
	}},
	{"fails, lands in the end", 1500, sim.Op.Writes, func(uint64) sim.Fault { return sim.Fault{Err: sim.ErrFault, Late: sim.UntilLand} }},
	{"comes short", 3000, getOp, func(uint64) sim.Fault { return sim.Fault{Short: true} }},
	{"has a bit flipped", 3000, getOp, func(uint64) sim.Fault { return sim.Fault{Flip: true} }},
	{"is another object", 1500, getOp, func(uint64) sim.Fault { return sim.Fault{Wrong: true} }},
	{"is not there", 1000, getOp, func(uint64) sim.Fault { return sim.Fault{Hide: true} }},
}

func anyOp(sim.Op) bool    { return true }
func getOp(op sim.Op) bool { return op == sim.OpGet }

// suffer is for sim.Bucket.OnOp.
func (f *faults) suffer(op sim.Op, key string, _ int) sim.Fault {
	key = canon(key)
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.on || f.times == 0 {
		return sim.Fault{}
	}
	if f.attempts == nil {
		f.attempts = map[string]int{}
	}
	id := string(op) + " " + key
	f.attempts[id]++
	for _, c := range chances {
		if !c.to(op) {
			continue
		}
		if c.fault == nil {
			// An operation that fails three times at least, each time after its 4.88 s.
			if f.attempts[id] <= 3 && drawn(f.seed, c.kind, id, 0)%1_000_000 < uint64(c.n*f.times) && op != sim.OpNow {
				f.injected.reached(string(op) + " " + c.kind)
				return sim.Fault{Slow: sim.CursedDelay, Err: sim.ErrFault}
			}
			continue
		}
		if d := drawn(f.seed, c.kind, id, f.attempts[id]); d%1_000_000 < uint64(c.n*f.times) {
			f.injected.reached(string(op) + " " + c.kind)
			return c.fault(d >> 20)
		}
	}
	return sim.Fault{}
}

// set turns the faults on or off.
func (f *faults) set(on bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.on = on
}

// canon leaves the random part of a key out.
func canon(key string) string {
	if k, err := segment.ParseKey(key); err == nil {
		return segment.Prefix(k.Cell, k.Position)
	}
	if k, err := segment.ParseBundleKey(key); err == nil {
		k.Nonce = [8]byte{}
		return k.String()
	}
	if i := strings.Index(key, "/checkpoint/"); i >= 0 { // place, nonce and part
		dir, part, _ := strings.Cut(key[i+len("/checkpoint/"):], "/")
		if n := strings.LastIndexByte(dir, '-'); n > 0 {
			dir = dir[:n]
		}
		part, _, _ = strings.Cut(part, "-")
		return key[:i] + "/checkpoint/" + dir + "/" + part
	}
	return key
}

// drawn returns 64 bits that depend on its arguments and nothing else.
func drawn(seed uint64, what, key string, attempt int) uint64 {
	h := fnv.New64a()
	h.Write(binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, seed), uint64(attempt)))
	h.Write([]byte(what + "\x00" + key))
	x := h.Sum64()
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
