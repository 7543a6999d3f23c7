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
	dd := launch(t, nil, 0, "/bin/dd", "if=/dev/zero", "of=/dev/null", "bs=250M", "count=4") // which is seen to be large as well
	if n := peakAtExit(dd.cmd.Process.Pid); n < 240<<20 {
		t.Errorf("dd had %d MiB resident", n>>20)
	}
	dd.wait()
	large = nil
	if o := execute(t, nil, holdfast, "--version"); o.code != 0 || o.rss > maxClient/2 {
		t.Errorf("exit %d, %d MiB resident", o.code, o.rss>>20)
	}
}
