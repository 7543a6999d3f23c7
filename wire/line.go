package wire

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Line returns b as one line that people copy: prefix, and in unpadded URL-safe base64 b and the first 4 bytes of its
// SHA-256, against mistakes of copying.
func Line(prefix string, b []byte) string {
	sum := sha256.Sum256(b)
	return prefix + base64.RawURLEncoding.EncodeToString(append(slices.Clip(b), sum[:4]...))
}

// ParseLine returns the bytes in a line of at most limit bytes; white space around it and in it is ignored. Its errors
// are for the person who copied it.
func ParseLine(prefix, s string, limit int) ([]byte, error) {
	if len(s) > limit {
		return nil, fmt.Errorf("it is longer than %d bytes", limit)
	}
	rest, ok := strings.CutPrefix(strings.Join(strings.Fields(s), ""), prefix)
	if !ok {
		return nil, errors.New("it begins otherwise")
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(rest)
	if err != nil || len(b) < 4 {
		return nil, errors.New("it is cut off or altered")
	}
	b, check := b[:len(b)-4], b[len(b)-4:]
	if sum := sha256.Sum256(b); !bytes.Equal(sum[:4], check) {
		return nil, errors.New("its check sum is wrong")
	}
	return b, nil
}
