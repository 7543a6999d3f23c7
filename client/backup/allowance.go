package backup

import (
	"fmt"
	"sync"
	"time"

	"holdfast"
	"holdfast/wire"
)

// allowance is what a machine with a daily cap may still store today, so that a run can commit what it has before
// the service refuses the rest: blocks that no archive refers to stay for two days only, and a first backup may
// take many. A nil allowance is without end.
type allowance struct {
	cap wire.Cap

	mu      sync.Mutex
	used    amount // today, and by this run
	pending amount // put, and not sealed: as if all of it were new
}

type amount struct{ bytes, blocks uint64 }

func newAllowance(c *wire.Cap) *allowance {
	if c == nil {
		return nil
	}
	return &allowance{cap: *c, used: amount{c.UsedBytes, c.UsedBlocks}}
}

// reserve is what is kept back of a cap for the blocks of the archive's tree that are written last.
func reserve(cap, least uint64) uint64 { return max(cap/16, min(cap/2, least)) }

const (
	reserveBytes  = 4 << 20
	reserveBlocks = 64
)

// put counts a block of so many bytes of plaintext.
func (a *allowance) put(plain int) {
	if a != nil {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.pending.bytes += holdfast.Billed(plain)
		a.pending.blocks++
	}
}

// settled says what became of a block that was put: its sealed size, or 0 if it was there.
func (a *allowance) settled(plain, sealed int) {
	if a == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.pending.bytes -= holdfast.Billed(plain)
	a.pending.blocks--
	if sealed > 0 {
		a.used.bytes += holdfast.Billed(sealed)
		a.used.blocks++
	}
}

// room reports whether a file of so many bytes may be stored today, and the archive be finished after it.
func (a *allowance) room(size uint64) bool {
	if a == nil {
		return true
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	bytes, blocks := a.used.bytes+a.pending.bytes+size, a.used.blocks+a.pending.blocks+size>>16
	return (a.cap.Bytes == 0 || bytes+reserve(a.cap.Bytes, reserveBytes) <= a.cap.Bytes) &&
		(a.cap.Blocks == 0 || blocks+reserve(a.cap.Blocks, reserveBlocks) <= a.cap.Blocks)
}

// refusal says about a run that stopped before the cap what the service would say about one that did not.
func (a *allowance) refusal() error {
	may := ""
	if a.cap.Bytes > 0 {
		may = fmt.Sprintf("%d bytes", a.cap.Bytes)
	}
	if a.cap.Blocks > 0 {
		if may != "" {
			may += " and "
		}
		may += fmt.Sprintf("%d blocks", a.cap.Blocks)
	}
	return &wire.Error{
		Code: wire.CodeCapExceeded, Cap: &a.cap,
		Message: fmt.Sprintf("This machine may store %s today, which is nearly used up, and may go on at %s; what was read until now is committed as a partial archive.",
			may, a.cap.Resets.Format(time.RFC3339)),
	}
}
