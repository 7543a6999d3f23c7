package s3

import (
	"encoding/xml"
	"strings"
	"testing"
	"unicode/utf8"

	"holdfast/internal/ceiling"
)

const aList = `<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name><Contents><Key>a/1</Key><Size>7</Size></Contents></ListBucketResult>`

// TestMemoryCeiling: neither an address nor what a store answers makes its reader take much more memory than it is long.
func TestMemoryCeiling(t *testing.T) {
	ceiling.Check(t, ceiling.Ceiling{Fixed: 16 << 10, Factor: 24}, [][]byte{[]byte("s3://bucket/prefix?endpoint=https://store.example.org&region=r&style=host")}, nil,
		func(b []byte) { _, _ = ParseAddress(string(b)) })
	ceiling.Check(t, ceiling.Ceiling{Fixed: 32 << 10, Factor: 24}, [][]byte{[]byte(aList), []byte(strings.Repeat(aList[39:], 100))}, nil, func(b []byte) { answers(b) })
}

func answers(b []byte) {
	_ = whole(b, "ListBucketResult")
	_, _, _, _ = contentRange(string(b))
	after(string(b))
	brief(string(b))
}

func FuzzAnswers(f *testing.F) {
	f.Add([]byte(aList))
	f.Add([]byte("bytes 1-2/3"))
	f.Add([]byte("120"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if whole(b, "ListBucketResult") == nil {
			var v struct{ XMLName xml.Name }
			if err := xml.Unmarshal(b, &v); err != nil || v.XMLName.Local != "ListBucketResult" {
				t.Errorf("%q is no whole list: %v", b, err)
			}
		}
		if from, to, total, err := contentRange(string(b)); err == nil && (from < 0 || to < from || total < -1) {
			t.Errorf("%q is the range %d-%d/%d", b, from, to, total)
		}
		if d := after(string(b)); d < 0 || d > maxAfter {
			t.Errorf("%q asks to wait %v", b, d)
		}
		if s := brief(string(b)); len(s) > 400 || !utf8.ValidString(s) && utf8.Valid(b) || strings.ContainsAny(s, "\n\x1b") {
			t.Errorf("%q is told as %q", b, s)
		}
	})
}
