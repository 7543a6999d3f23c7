package paper

import (
	"strings"
	"testing"

	"holdfast/internal/ceiling"
)

// TestMemoryCeiling: nothing that is typed or scanned makes its reader take much more memory than it is long.
func TestMemoryCeiling(t *testing.T) {
	var sheets, typed [][]byte
	for _, file := range files(t) {
		sheet := sheetOf(t, file)
		sheets, typed = append(sheets, sheet), append(typed, []byte(strings.Join(people(sheet), "\n")))
	}
	ceiling.Check(t, ceiling.Ceiling{Fixed: 256 << 10, Factor: 64}, typed[:1], nil, func(b []byte) { Read(string(b)) })
	mend := func(sheet []byte) []byte {
		if len(sheet) < frame {
			return sheet
		}
		n := len(sheet) - 8
		sheet[2], sheet[3] = byte((n-4)>>8), byte(n-4)
		return append(sheet[:n:n], sheetCheck(sheet[:n])...)
	}
	ceiling.Check(t, ceiling.Ceiling{Fixed: 256 << 10, Factor: 32}, sheets, mend, func(b []byte) { File(b) })
}
