package seal

import (
	"bytes"
	"fmt"
	"runtime"
	"sync"

	"github.com/klauspost/compress/zstd"

	"holdfast"
)

// maxWindow bounds what an encoder looks back on, and so its memory; chunks are hardly ever larger.
const maxWindow = 1 << 20

// buffers hold compressed payloads while they are built or checked.
var buffers = sync.Pool{New: func() any { return new([]byte) }}

// maxCoders bounds how many compress or decompress at a time: a state of the encoder is 1.5 MB and more.
const maxCoders = 8

// One encoder and one decoder serve the process; a call waits for a free state.
var (
	encoder = sync.OnceValue(func() *zstd.Encoder {
		e, err := zstd.NewWriter(nil,
			zstd.WithEncoderConcurrency(min(runtime.GOMAXPROCS(0), maxCoders)),
			zstd.WithEncoderLevel(zstd.SpeedDefault),
			zstd.WithWindowSize(maxWindow),
			zstd.WithLowerEncoderMem(true),
			zstd.WithEncoderCRC(false)) // the name is the check
		if err != nil {
			panic("seal: encoder: " + err.Error()) // only options that contradict do this
		}
		return e
	})
	decoder = sync.OnceValue(func() *zstd.Decoder {
		d, err := zstd.NewReader(nil,
			zstd.WithDecoderConcurrency(min(runtime.GOMAXPROCS(0), maxCoders)),
			zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxMemory(holdfast.MaxPlain),
			zstd.WithDecodeAllCapLimit(true)) // never beyond the length that the block states
		if err != nil {
			panic("seal: decoder: " + err.Error()) // only options that contradict do this
		}
		return d
	})
)

// compress returns the frames of plain, each compressed on its own, in *scratch; nil if that is not
// shorter than plain. What it returns was decompressed and compared: an encoder's fault must not lose data.
func compress(scratch *[]byte, plain []byte, frames []int) []byte {
	if frames == nil {
		frames = []int{len(plain)}
	}
	out, rest := (*scratch)[:0], plain
	for _, n := range frames {
		out = encoder().EncodeAll(rest[:n], out)
		rest = rest[n:]
	}
	*scratch = out
	if len(out) >= len(plain) {
		return nil
	}
	check := buffers.Get().(*[]byte)
	defer buffers.Put(check)
	if cap(*check) < len(plain) {
		*check = make([]byte, len(plain))
	}
	back, err := decoder().DecodeAll(out, (*check)[:0:len(plain)])
	if err != nil || !bytes.Equal(back, plain) {
		return nil
	}
	return out
}

// decompress returns the n bytes that payload's frames decompress to.
func decompress(payload []byte, n int) ([]byte, error) {
	plain, err := decoder().DecodeAll(payload, make([]byte, 0, n))
	if err != nil {
		return nil, fmt.Errorf("decompress: %w", err)
	}
	if len(plain) != n {
		return nil, fmt.Errorf("decompress: %d bytes where %d belong", len(plain), n)
	}
	return plain, nil
}
