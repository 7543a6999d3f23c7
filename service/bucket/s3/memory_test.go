package s3

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strconv"
	"testing"
)

// TestNoCopies: a Put of a segment holds no copy of it, and a Get what it returns and nothing more.
func TestNoCopies(t *testing.T) {
	body := bytes.Repeat([]byte("0123456789abcdef"), 1<<20)
	size := int64(len(body))
	b := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut {
			_, _ = io.Copy(io.Discard, r.Body)
			return
		}
		var from, to int64
		if n, _ := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &from, &to); n == 2 {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to, size))
			w.Header().Set("Content-Length", strconv.FormatInt(to+1-from, 10))
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(body[from : to+1])
			return
		}
		w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
		_, _ = w.Write(body)
	})
	const slack = 1 << 20 // buffers of both ends, and what the SDK makes of a request
	for name, c := range map[string]struct {
		holds int64
		call  func(context.Context) error
	}{
		"put": {0, func(ctx context.Context) error { return b.Put(ctx, "k", body) }},
		"get": {size, func(ctx context.Context) error {
			got, err := b.Get(ctx, "k", 0, -1)
			if int64(len(got)) != size {
				err = fmt.Errorf("%d bytes, %w", len(got), err)
			}
			return err
		}},
		"get a range": {size - 2, func(ctx context.Context) error { _, err := b.Get(ctx, "k", 1, size-2); return err }},
	} {
		took := int64(1) << 62
		for range 4 { // the least of a few: the first call makes what later ones use
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			if err := c.call(t.Context()); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			runtime.ReadMemStats(&after)
			took = min(took, int64(after.TotalAlloc-before.TotalAlloc))
		}
		if took > c.holds+slack {
			t.Errorf("%s allocates %d bytes, want at most %d", name, took, c.holds+slack)
		}
	}
}
