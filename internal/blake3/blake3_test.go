package blake3

import (
	"encoding/hex"
	"testing"
)

// The input of BLAKE3's published test vectors is the bytes 0, 1, ..., 250, 0, 1, ...; their key is the
// text below. These are three of them.
func TestPublishedVectors(t *testing.T) {
	var key [32]byte
	copy(key[:], "whats the Elvish word for friend")
	for _, v := range []struct {
		n          int
		sum, keyed string
	}{
		{0, "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262", "92b2b75604ed3c761f9d6f62392c8a9227ad0ea3f09573e783f1498a4ed60d26"},
		{1, "2d3adedff11b61f14c886e35afa036736dcd87a74d27b5c1510225d0f592e213", "6d7878dfff2f485635d39013278ae14f1454b8c0a3a2d34bc1ab38228a80c95b"},
		{1024, "42214739f095a406f3fc83deb889744ac00df831c10daa55189b5d121c855af7", "75c46f6f3d9eb4f55ecaaee480db732e6c2105546f1e675003687c31719c7ba4"},
	} {
		in := make([]byte, v.n)
		for i := range in {
			in[i] = byte(i % 251)
		}
		if s := Sum(in); hex.EncodeToString(s[:]) != v.sum {
			t.Errorf("Sum of %d bytes: %x, want %s", v.n, s, v.sum)
		}
		if s := Keyed(key, in); hex.EncodeToString(s[:]) != v.keyed {
			t.Errorf("Keyed of %d bytes: %x, want %s", v.n, s, v.keyed)
		}
	}
}

func TestPartsAreOneInput(t *testing.T) {
	key := [32]byte{1}
	in := make([]byte, 5000)
	for i := range in {
		in[i] = byte(i)
	}
	want := Keyed(key, in)
	if got := Keyed(key, in[:1], nil, in[1:3000], in[3000:]); got != want {
		t.Fatal("parts change the keyed hash")
	}
	if Sum(in[:77], in[77:]) != Sum(in) {
		t.Fatal("parts change the plain hash")
	}
	h := NewKeyed(key)
	h.Write(in[:3000])
	if h.Sum32() != Keyed(key, in[:3000]) {
		t.Fatal("the streaming hash differs")
	}
	h.Write(in[3000:])
	if h.Sum32() != want {
		t.Fatal("writing on after a sum differs")
	}
}
