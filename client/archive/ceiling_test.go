package archive_test

import (
	"testing"

	"holdfast/client/archive"
	"holdfast/client/archive/archivetest"
	"holdfast/internal/ceiling"
)

// TestMemoryCeiling: no page, root or list of verdicts makes its reader take much more memory than it is long,
// whatever a hostile writer put into it. An entry in memory is about ten times its shortest encoding.
func TestMemoryCeiling(t *testing.T) {
	c := ceiling.Ceiling{Fixed: 16 << 10, Factor: 60}
	ceiling.Check(t, c, [][]byte{encodePage(sample(), 2), encodePage(archivetest.Entries(1, 20), 100)}, nil, func(b []byte) { decodePage(b) })
	root, _, err := sampleRoot().Encode()
	if err != nil {
		t.Fatal(err)
	}
	ceiling.Check(t, c, [][]byte{root}, nil, func(b []byte) { archive.ParseRoot(b) })
	ceiling.Check(t, c, [][]byte{writeVerdicts(t, sampleVerdicts())[0]}, nil, func(b []byte) {
		var r archive.VerdictReader
		r.Chunk(b, func(archive.Verdict) error { return nil })
	})
}
