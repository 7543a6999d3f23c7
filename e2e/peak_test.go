//go:build linux

package e2e

import (
	"bytes"
	"os"
	"testing"
)

// TestPeakIsTheProgramsOwn: a test process that was large once does not make every program look large.
func TestPeakIsTheProgramsOwn(t *testing.T) {
	large := bytes.Repeat([]byte{1}, maxClient+50<<20)
	if len(large) == 0 || statusField(t, os.Getpid(), "VmHWM") < maxClient {
		t.Fatal("this process is not large")
	}
	if execute(t, nil, holdfast, "--version"); large[0] != 1 { // no fault of the program either, while it is large
		t.Fatal("it is large no more")
	}
	large = nil
	if o := execute(t, nil, holdfast, "--version"); o.code != 0 || o.rss > maxClient/2 {
		t.Errorf("exit %d, %d MiB resident", o.code, o.rss>>20)
	}
}
