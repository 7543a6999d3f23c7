// Package buckettest holds every implementation of bucket.Bucket to the same promises.
package buckettest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/service/bucket"
)

// Conformance tests the bucket that open returns; each call of open must return a new and empty one.
func Conformance(t *testing.T, open func(t testing.TB) bucket.Bucket) {
	for _, c := range []struct {
		name string
		test func(t *testing.T, b bucket.Bucket)
	}{
		{"PutGet", testPutGet},
		{"Ranges", testRanges},
		{"Absent", testAbsent},
		{"Keys", testKeys},
		{"List", testList},
		{"ListPages", testListPages},
		{"Delete", testDelete},
		{"Swap", testSwap},
		{"SwapRace", testSwapRace},
		{"PutIsWhole", testPutIsWhole},
		{"BodyIsCopied", testBodyIsCopied},
		{"Cancelled", testCancelled},
		{"Now", testNow},
		{"Probe", testProbe},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, open(t)) })
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func want(t testing.TB, b bucket.Bucket, key string, body []byte) {
	t.Helper()
	got, err := b.Get(t.Context(), key, 0, -1)
	must(t, err)
	if !bytes.Equal(got, body) {
		t.Fatalf("%s holds %.40q (%d bytes), want %.40q (%d bytes)", key, got, len(got), body, len(body))
	}
}

func testPutGet(t *testing.T, b bucket.Bucket) {
	for i, n := range []int{0, 1, 4095, 4096, 1 << 20, 17 << 20} {
		key, body := fmt.Sprintf("cell/log/%d", i), bytes.Repeat([]byte{byte(i), 7}, (n+1)/2)[:n]
		must(t, b.Put(t.Context(), key, body))
		want(t, b, key, body)
	}
	must(t, b.Put(t.Context(), "cell/log/5", []byte("shorter")))
	want(t, b, "cell/log/5", []byte("shorter"))
}

func testRanges(t *testing.T, b bucket.Bucket) {
	body := []byte("0123456789")
	must(t, b.Put(t.Context(), "k", body))
	for off := int64(0); off <= 10; off++ {
		got, err := b.Get(t.Context(), "k", off, -1)
		if err != nil || !bytes.Equal(got, body[off:]) {
			t.Errorf("from %d: %q, %v", off, got, err)
		}
		for n := int64(0); n <= 12; n++ {
			got, err := b.Get(t.Context(), "k", off, n)
			if off+n > 10 {
				if !errors.Is(err, bucket.ErrShort) {
					t.Errorf("%d at %d: %q, %v; want ErrShort", n, off, got, err)
				}
			} else if err != nil || !bytes.Equal(got, body[off:off+n]) {
				t.Errorf("%d at %d: %q, %v", n, off, got, err)
			}
		}
	}
	for _, r := range [][2]int64{{11, -1}, {11, 0}, {-1, 1}, {-1, -1}, {1, 1<<63 - 1}, {1<<63 - 1, 1<<63 - 1}} {
		if got, err := b.Get(t.Context(), "k", r[0], r[1]); !errors.Is(err, bucket.ErrShort) {
			t.Errorf("%d at %d: %q, %v; want ErrShort", r[1], r[0], got, err)
		}
	}
}

func testAbsent(t *testing.T, b bucket.Bucket) {
	must(t, b.Put(t.Context(), "a/b/c", []byte("x")))
	for _, key := range []string{"z", "a", "a/b", "a/b/d", "a/x/c", "a/b/c/d"} {
		if got, err := b.Get(t.Context(), key, 0, -1); !errors.Is(err, bucket.ErrNotFound) {
			t.Errorf("get %s: %q, %v; want ErrNotFound", key, got, err)
		}
		if err := b.Delete(t.Context(), key); err != nil {
			t.Errorf("delete %s: %v", key, err)
		}
	}
	want(t, b, "a/b/c", []byte("x"))
}

func testKeys(t *testing.T, b bucket.Bucket) {
	long := strings.Repeat("a", 200)
	for _, key := range []string{"", "/", "/a", "a/", "a//b", ".", "..", "a/..", "a/../b", ".a", "a/.tmp", "A", "a b", "a\x00", "ä", "a\\b", "a*", long + "a",
		strings.Join([]string{long, long, long}, "/")} {
		for op, err := range map[string]error{
			"put":    b.Put(t.Context(), key, nil),
			"get":    second(b.Get(t.Context(), key, 0, -1)),
			"delete": b.Delete(t.Context(), key),
			"swap":   b.Swap(t.Context(), key, nil, []byte("x")),
		} {
			if !errors.Is(err, bucket.ErrKey) {
				t.Errorf("%s %.20q: %v; want ErrKey", op, key, err)
			}
		}
	}
	for _, key := range []string{"b", "b-._", "0/1/2/3", long, strings.Join([]string{"c" + long[1:], long, long[:110]}, "/")} {
		must(t, b.Put(t.Context(), key, []byte("x")))
	}
}

func second[T any](_ T, err error) error { return err }

// listed is a set of keys whose order by bytes differs from the order of a walk of directories.
var listed = []string{"a-b", "a-b0/x", "a.b", "a/b", "a/b-c", "a/c/0", "a/c/1", "a/c-", "a/d", "a0", "ab/c", "b/x-1", "b/x-2", "b0"}

func testList(t *testing.T, b bucket.Bucket) {
	slices.Sort(listed)
	for i, k := range listed {
		must(t, b.Put(t.Context(), k, make([]byte, i)))
	}
	prefixes := []string{"", "a", "a/", "a/c", "a/c/", "a-", "b/x-", "c", "a/b/", "zz", "ab/c", "."}
	afters := append([]string{"", "a", "a/", "a/c/", "a/c.", "a/zz", "b/", "zz", "b/x-"}, listed...)
	for _, p := range prefixes {
		for _, a := range afters {
			for _, max := range []int{0, 1, 3, 100} {
				var exp []bucket.Object
				for i, k := range listed {
					if strings.HasPrefix(k, p) && k > a && (max == 0 || len(exp) < max) {
						exp = append(exp, bucket.Object{Key: k, Size: int64(i)})
					}
				}
				got, err := b.List(t.Context(), p, a, max)
				if err != nil || !slices.Equal(got, exp) {
					t.Fatalf("list %q after %q, %d: %v, %v; want %v", p, a, max, got, err, exp)
				}
			}
		}
	}
}

func testListPages(t *testing.T, b bucket.Bucket) {
	const n = 2*bucket.MaxList + 1
	var wg sync.WaitGroup
	for w := range 16 {
		wg.Go(func() {
			for i := w; i < n; i += 16 {
				if err := b.Put(t.Context(), fmt.Sprintf("p/%02d/%02d", i/50, i%50), nil); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if page, err := b.List(t.Context(), "p/", "", n); err != nil || len(page) != bucket.MaxList {
		t.Fatalf("a page of %d, %v; want %d", len(page), err, bucket.MaxList)
	}
	i := 0
	must(t, bucket.ListAll(t.Context(), b, "p/", "", func(o bucket.Object) error {
		if k := fmt.Sprintf("p/%02d/%02d", i/50, i%50); o.Key != k {
			return fmt.Errorf("%s where %s belongs", o.Key, k)
		}
		i++
		return nil
	}))
	if i != n {
		t.Fatalf("%d objects listed, want %d", i, n)
	}
}

func testDelete(t *testing.T, b bucket.Bucket) {
	must(t, b.Put(t.Context(), "a/b", []byte("x")))
	for range 2 {
		must(t, b.Delete(t.Context(), "a/b"))
		if _, err := b.Get(t.Context(), "a/b", 0, -1); !errors.Is(err, bucket.ErrNotFound) {
			t.Fatalf("get: %v, want ErrNotFound", err)
		}
		if l, err := b.List(t.Context(), "", "", 0); err != nil || len(l) > 0 {
			t.Fatalf("list: %v, %v", l, err)
		}
	}
	must(t, b.Put(t.Context(), "a/b", []byte("y")))
	want(t, b, "a/b", []byte("y"))
}

func testSwap(t *testing.T, b bucket.Bucket) {
	changed := func(err error) {
		t.Helper()
		if !errors.Is(err, bucket.ErrChanged) {
			t.Fatalf("%v, want ErrChanged", err)
		}
	}
	ctx := t.Context()
	changed(b.Swap(ctx, "c/epoch", []byte("1"), []byte("2")))
	changed(b.Swap(ctx, "c/epoch", []byte{}, []byte("2")))
	must(t, b.Swap(ctx, "c/epoch", nil, []byte("1")))
	want(t, b, "c/epoch", []byte("1"))
	changed(b.Swap(ctx, "c/epoch", nil, []byte("2")))
	changed(b.Swap(ctx, "c/epoch", []byte{}, []byte("2")))
	changed(b.Swap(ctx, "c/epoch", []byte("0"), []byte("2")))
	changed(b.Swap(ctx, "c/epoch", []byte("11"), []byte("2")))
	want(t, b, "c/epoch", []byte("1"))
	must(t, b.Swap(ctx, "c/epoch", []byte("1"), []byte("22")))
	want(t, b, "c/epoch", []byte("22"))
	must(t, b.Swap(ctx, "c/epoch", []byte("22"), []byte{}))
	changed(b.Swap(ctx, "c/epoch", nil, []byte("2")))
	must(t, b.Swap(ctx, "c/epoch", []byte{}, []byte("3")))
	want(t, b, "c/epoch", []byte("3"))
}

// testSwapRace lets 8 writers count to 160 in one object: a lost update leaves the count short.
func testSwapRace(t *testing.T, b bucket.Bucket) {
	const writers, each = 8, 20
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			if err := Count(t.Context(), b, "count", each); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	want(t, b, "count", fmt.Append(nil, writers*each))
}

// Count adds 1 to the decimal number in the object, n times, by Swap.
func Count(ctx context.Context, b bucket.Bucket, key string, n int) error {
	for n > 0 {
		old, err := b.Get(ctx, key, 0, -1)
		v := 0
		switch {
		case errors.Is(err, bucket.ErrNotFound):
			old = nil
		case err != nil:
			return err
		default:
			if _, err := fmt.Sscan(string(old), &v); err != nil {
				return fmt.Errorf("count in %q: %w", old, err)
			}
		}
		err = b.Swap(ctx, key, old, fmt.Append(nil, v+1))
		switch {
		case err == nil:
			n--
		case !errors.Is(err, bucket.ErrChanged):
			return err
		}
	}
	return nil
}

// testPutIsWhole reads an object while it is replaced again and again.
func testPutIsWhole(t *testing.T, b bucket.Bucket) {
	bodies := [][]byte{bytes.Repeat([]byte("a"), 300_000), bytes.Repeat([]byte("b"), 200_000)}
	must(t, b.Put(t.Context(), "w", bodies[0]))
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			if err := b.Put(ctx, "w", bodies[i%2]); err != nil && ctx.Err() == nil {
				t.Error(err)
			}
		}
	})
	for range 200 {
		got, err := b.Get(t.Context(), "w", 0, -1)
		if err != nil || !bytes.Equal(got, bodies[0]) && !bytes.Equal(got, bodies[1]) {
			t.Errorf("a torn object of %d bytes, %v", len(got), err)
			break
		}
		l, err := b.List(t.Context(), "w", "", 0)
		if err != nil || len(l) != 1 || l[0].Size != 300_000 && l[0].Size != 200_000 {
			t.Errorf("a torn list: %v, %v", l, err)
			break
		}
	}
	cancel()
	wg.Wait()
}

func testBodyIsCopied(t *testing.T, b bucket.Bucket) {
	body, swap := []byte("mine"), []byte("ours")
	must(t, b.Put(t.Context(), "p", body))
	must(t, b.Swap(t.Context(), "s", nil, swap))
	copy(body, "XXXX")
	copy(swap, "XXXX")
	for k, exp := range map[string]string{"p": "mine", "s": "ours"} {
		got, err := b.Get(t.Context(), k, 0, -1)
		must(t, err)
		if string(got) != exp {
			t.Errorf("%s became %q", k, got)
		}
		copy(got, "YYYY")
		want(t, b, k, []byte(exp))
	}
}

func testCancelled(t *testing.T, b bucket.Bucket) {
	must(t, b.Put(t.Context(), "k", []byte("x")))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for op, err := range map[string]error{
		"put":    b.Put(ctx, "k2", []byte("y")),
		"get":    second(b.Get(ctx, "k", 0, -1)),
		"list":   second(b.List(ctx, "", "", 0)),
		"delete": b.Delete(ctx, "k"),
		"swap":   b.Swap(ctx, "k3", nil, []byte("y")),
		"now":    second(b.Now(ctx)),
	} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v, want context.Canceled", op, err)
		}
	}
	want(t, b, "k", []byte("x"))
}

func testNow(t *testing.T, b bucket.Bucket) {
	before := time.Now()
	now, err := b.Now(t.Context())
	must(t, err)
	if now.Before(before.Add(-2*time.Second)) || now.After(time.Now().Add(2*time.Second)) {
		t.Fatalf("the store's clock says %v, ours %v", now, before)
	}
}

func testProbe(t *testing.T, b bucket.Bucket) {
	for range 3 {
		must(t, bucket.Probe(t.Context(), b, "cell/"))
	}
	left, err := b.List(t.Context(), "cell/", "", 0)
	must(t, err)
	if len(left) != 0 {
		t.Errorf("the probe left %v", left)
	}
}
