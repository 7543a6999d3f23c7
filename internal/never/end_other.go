//go:build !linux

package never

import "os"

// end writes slot at that place of f and syncs it, writes said to standard error (and sorry, if the first failed), the
// line to also unless that is nil, and ends the process with ExitStatus.
func end(f *os.File, slot []byte, at int64, said, sorry []byte, also *os.File, line []byte) {
	_, err := f.WriteAt(slot, at)
	if err == nil {
		err = f.Sync()
	}
	os.Stderr.Write(said)
	if err != nil || len(slot) == 0 {
		os.Stderr.Write(sorry)
	}
	if also != nil {
		also.Write(line)
	}
	os.Exit(ExitStatus)
}
