package keyring

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
)

// fieldNames are the fields that can be packed. The position of each is part of the format: new ones go
// to the end.
var fieldNames = []string{
	"holdfast-key", "holdfast-owner", "address", "service-key", "log-key", "vault", "owner", "group", "rights", "chunk",
	"machine-seed", "vault-secret", "read-seed", "group-secret", "history-key", "read-key", "words",
}

// The forms of a packed value.
const (
	formText   = 0 // as it stands
	formHex    = 1 // the bytes that lower-case hexadecimal stands for
	formBase64 = 2 // the bytes that padded base64 stands for
	formWords  = 3 // the seed that 24 words stand for
)

// Pack returns the fields of the text of a key or owner file in as few bytes as is simple, for paper. The
// check sum and the comments are left out. The error wraps ErrFile.
func Pack(text []byte) ([]byte, error) {
	if _, _, err := Inspect(text); err != nil {
		return nil, err
	}
	r, err := read(text)
	if err != nil {
		return nil, err
	}
	var out []byte
	for _, line := range r.lines[:len(r.lines)-1] {
		name, value, _ := strings.Cut(line, " ")
		at := slices.Index(fieldNames, name)
		if at < 0 {
			return nil, fmt.Errorf("%w: its field %s has no form on paper", ErrFile, name)
		}
		form, b := packValue(value)
		out = append(out, byte(form<<6|at+1))
		out = append(binary.BigEndian.AppendUint16(out, uint16(len(b))), b...)
	}
	return out, nil
}

func packValue(value string) (form int, b []byte) {
	if o, err := ParseWords(value); err == nil {
		return formWords, o.seed[:]
	}
	if b, err := hex.DecodeString(value); err == nil && len(b) >= 8 && hex.EncodeToString(b) == value {
		return formHex, b
	}
	if b, err := base64.StdEncoding.Strict().DecodeString(value); err == nil && len(b) >= 64 {
		return formBase64, b
	}
	return formText, []byte(value)
}

// Unpack returns the text of the file whose fields Pack has packed. The error wraps ErrFile.
func Unpack(packed []byte) ([]byte, error) {
	if len(packed) > maxFile {
		return nil, fmt.Errorf("%w: it is longer than %d bytes", ErrFile, maxFile)
	}
	var w writer
	for b := packed; len(b) > 0; {
		if len(b) < 3 || len(b)-3 < int(binary.BigEndian.Uint16(b[1:])) {
			return nil, fmt.Errorf("%w: its end is missing", ErrFile)
		}
		at, n := int(b[0]&0x3f)-1, int(binary.BigEndian.Uint16(b[1:]))
		if at < 0 || at >= len(fieldNames) {
			return nil, fmt.Errorf("%w: it has a field that this program does not know; a newer one may", ErrFile)
		}
		value := b[3 : 3+n]
		switch b[0] >> 6 {
		case formText:
			w.field(fieldNames[at], string(value))
		case formHex:
			w.hex(fieldNames[at], value)
		case formBase64:
			w.field(fieldNames[at], base64.StdEncoding.EncodeToString(value))
		case formWords:
			var o Owner
			if n != len(o.seed) {
				return nil, fmt.Errorf("%w: its words are not %d bytes", ErrFile, len(o.seed))
			}
			copy(o.seed[:], value)
			w.field(fieldNames[at], o.Words())
		}
		b = b[3+n:]
	}
	text := w.sum()
	m, f, err := Inspect(text)
	if err != nil {
		return nil, err
	}
	if m != nil {
		text = m.Encode()
	} else {
		text = f.Encode()
	}
	if again, err := Pack(text); err != nil || string(again) != string(packed) {
		return nil, fmt.Errorf("%w: its fields are not in their shortest form", ErrFile)
	}
	return text, nil
}
