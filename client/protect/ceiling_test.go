package protect

import (
	"errors"
	"testing"

	"filippo.io/age"

	"holdfast/internal/ceiling"
)

// TestMemoryCeiling: no protected file makes its reader take much more memory than it is long. How much work a
// passphrase's file may ask for is bounded apart, and not begun without one. An age chunk is 64 KiB.
func TestMemoryCeiling(t *testing.T) {
	id, err := age.ParseX25519Identity(ReadList(read(t, "testdata/identity.txt"))[0])
	if err != nil {
		t.Fatal(err)
	}
	var seeds [][]byte
	for _, name := range []string{"protected.age", "stock.age", "recipient.age"} {
		bare, err := Unarmor(read(t, "testdata/"+name))
		if err != nil {
			t.Fatal(err)
		}
		seeds = append(seeds, bare)
	}
	k := Key{identities: []age.Identity{id}, Passphrase: func() (string, error) { return "", errors.New("not typed") }}
	ceiling.Check(t, ceiling.Ceiling{Fixed: 512 << 10, Factor: 32}, seeds, nil, func(b []byte) { Open(Armor(b), k) })
}
