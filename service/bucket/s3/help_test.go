package s3

import (
	"crypto/sha256"
	"encoding/base64"
)

func sha(b []byte) [32]byte { return sha256.Sum256(b) }

func sha64(b []byte) string {
	h := sha256.Sum256(b)
	return base64.StdEncoding.EncodeToString(h[:])
}
