package main

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"holdfast/service/bucket"
	"holdfast/service/requests"
)

// july fills a history with two quiet hours, and then hours in which some requests fail for ever after 4.88 s.
func july(h *requests.History, end time.Time) {
	at := end.Add(-6 * time.Hour)
	add := func(op bucket.Op, class bucket.Class, n, same int, took time.Duration, bytes int64, exhausted, hedge bool) {
		h.Add(requests.Attempt{Op: op, Class: class, N: n, Same: same, Hedge: hedge, Exhausted: exhausted, Began: at, Took: took, Bytes: bytes})
	}
	for i := 0; at.Before(end); i++ {
		cursed := end.Sub(at) < 4*time.Hour && i%40 == 0
		switch {
		case cursed:
			add(bucket.OpPut, bucket.ClassServer, 1, 0, 4880*time.Millisecond, 16<<20, false, false)
			at = at.Add(5 * time.Second)
			add(bucket.OpGet, bucket.ClassOK, 1, 0, 20*time.Millisecond, 48, false, false)
			add(bucket.OpPut, bucket.ClassServer, 2, 1, 4881*time.Millisecond, 16<<20, true, false)
			add(bucket.OpPut, bucket.ClassOK, 1, 0, 700*time.Millisecond, 16<<20, false, true)
			add(bucket.OpGet, bucket.ClassServer, 1, 0, 4879*time.Millisecond, 48, false, false)
		case i%500 == 7:
			add(bucket.OpPut, bucket.ClassConnection, 1, 0, 3*time.Millisecond, 16<<20, false, false)
			add(bucket.OpPut, bucket.ClassOK, 2, 1, 650*time.Millisecond, 16<<20, false, false)
		default:
			add(bucket.OpPut, bucket.ClassOK, 1, 0, time.Duration(500+i%300)*time.Millisecond, 16<<20, false, false)
		}
		add(bucket.OpGet, bucket.ClassOK, 1, 0, time.Duration(15+i%10)*time.Millisecond, 48, false, false)
		at = at.Add(10 * time.Second)
	}
	add(bucket.OpList, bucket.ClassOK, 1, 0, 130*time.Millisecond, 0, false, false)
}

// What an operator reads in the first minute: that certain requests fail for ever, how long they take to, since when, and
// that other requests do not.
func TestRequestsShowJuly2016(t *testing.T) {
	h := requests.New()
	july(h, time.Now())
	var b strings.Builder
	if err := printRequests(&b, h.Report(24*time.Hour)); err != nil {
		t.Fatal(err)
	}
	out := b.String()
	for _, want := range []string{
		`(?s)!! failures of put are correlated: a\s+request\s+that\s+failed\s+once\s+fails\s+again\s+in\s+8\d\s+%\s+of\s+cases`,
		`4\.88 s; first seen`,
		`(?m)^put +\d+ +\d+ +75 +35 +[0-9.]+ +35 +35  server 70, connection 5$`,
		`(?m)^put +\d+ ms +\d+ ms +\d+ ms +4\.88 s +4\.88 s +4\.88 s +9\d %$`,
		`(?m)^put +1\.\d % of \d+ +8\d % of 40 +- +-$`,
		`(?m)^[0-9-]+ [0-9:]+ +\d+ +\d+ +\d+ +90 % +\d+ +4\.88 s$`,
		`(?m)^[0-9-]+ [0-9:]+ +put +2 +1  4\.88 s +16777216  server$`,
	} {
		if !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("%s is not in\n%s", want, out)
		}
	}
	for line := range strings.Lines(out) {
		if len(line) > 130 {
			t.Errorf("%d bytes wide: %s", len(line), line)
		}
	}
	if t.Failed() || testing.Verbose() {
		t.Log("\n" + out)
	}
}
