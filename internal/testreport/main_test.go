package main

import (
	"fmt"
	"strings"
	"testing"
)

func TestReport(t *testing.T) {
	const in = `{"Action":"output","Package":"p","Test":"TestA","Output":"=== RUN TestA\n"}
{"Action":"pass","Package":"p","Test":"TestA","Elapsed":0.1}
{"Action":"output","Package":"p","Test":"TestB","Output":"    b_test.go:7: no rsync here\n"}
{"Action":"skip","Package":"p","Test":"TestB"}
{"Action":"output","Package":"p","Test":"TestC","Output":"    c_test.go:9: seven is not eight\n"}
{"Action":"fail","Package":"p","Test":"TestC"}
{"Action":"fail","Package":"p","Elapsed":2}
{"ImportPath":"q","Action":"build-output","Output":"q/q.go:1: syntax error\n"}
{"Action":"fail","Package":"q","Elapsed":0}
`
	var out strings.Builder
	ok, err := report(strings.NewReader(in), &out)
	if err != nil || ok {
		t.Fatalf("report = %v, %v; want false without an error", ok, err)
	}
	for _, want := range []string{"skip p TestB: no rsync here\n", "seven is not eight", "q/q.go:1: syntax error", "FAIL p 2.0s\n", "\n1 passed, 2 failed, 1 skipped\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, &out)
		}
	}
	if strings.Contains(out.String(), "RUN TestA") {
		t.Errorf("output of a test that passed:\n%s", &out)
	}

	ok, err = report(strings.NewReader(strings.SplitAfter(in, "\n")[1]), &out)
	if err != nil || !ok {
		t.Errorf("report of a pass = %v, %v; want true", ok, err)
	}

	if ok, _ := report(strings.NewReader(""), &out); ok {
		t.Error("report of nothing at all is a pass")
	}
}

func TestReportNamesWhatIsSlow(t *testing.T) {
	var in, out strings.Builder
	for i := range 20 {
		for _, pkg := range []string{"slow", "quick"} {
			fmt.Fprintf(&in, `{"Action":"pass","Package":"%s","Test":"Test%d/part","Elapsed":99}`+"\n", pkg, i)
			fmt.Fprintf(&in, `{"Action":"pass","Package":"%s","Test":"Test%d","Elapsed":%d.5}`+"\n", pkg, i, i)
		}
	}
	in.WriteString(`{"Action":"pass","Package":"quick","Elapsed":59.9}
{"Action":"fail","Package":"slow","Elapsed":60.1}
`)
	if _, err := report(strings.NewReader(in.String()), &out); err != nil {
		t.Fatal(err)
	}
	var want strings.Builder
	want.WriteString("ok   quick 59.9s\nFAIL slow 60.1s\n")
	for i := 19; i >= 5; i-- {
		fmt.Fprintf(&want, "     %7.1fs Test%d\n", float64(i)+0.5, i)
	}
	if got := out.String(); !strings.HasPrefix(got, want.String()+"80 passed, 1 failed") {
		t.Errorf("got\n%s\nwant\n%s", got, &want)
	}
}
