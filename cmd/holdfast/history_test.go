package main

import (
	"strings"
	"testing"

	"holdfast"
)

// TestHeadCode: what is read aloud comes back, slips of hearing are forgiven, anything else is refused.
func TestHeadCode(t *testing.T) {
	h := holdfast.Head{1: 0x7f, 2: 0x80, 14: 7}
	code := headCode(17, h)
	if code != "17-01zr-0000-0000-0000-0000-0007" {
		t.Errorf("the code is %s", code)
	}
	for _, s := range []string{code, strings.ToUpper(code), " 17-o1zr-0000oooo-0000-0000-0007\n", "17-0lzr-0000-0000-0000-0000-0007", "17-0izr00000000000000000007"} {
		if n, got, err := parseCode(s); err != nil || n != 17 || got != code {
			t.Errorf("%q: %d, %s, %v", s, n, got, err)
		}
	}
	for _, s := range []string{"", "17", "0" + code[2:], code[:len(code)-1], code + "0", strings.Replace(code, "z", "u", 1), "x" + code} {
		if n, got, err := parseCode(s); err == nil {
			t.Errorf("%q was taken for %d, %s", s, n, got)
		}
	}
	other := h
	for i := range codeBytes {
		other[i]++
		if headCode(17, other) == code {
			t.Errorf("byte %d of the head does not count", i)
		}
		other[i]--
	}
}
