package main

import (
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// pathDoc is a path in JSON, which has no way to write bytes that are not UTF-8.
type pathDoc struct {
	Path string `json:"path"`
	Raw  string `json:"path_base64,omitempty"` // set where Path cannot show the exact bytes
}

func pathOf(p string) pathDoc {
	if utf8.ValidString(p) {
		return pathDoc{Path: p}
	}
	return pathDoc{strings.ToValidUTF8(p, "\ufffd"), base64.StdEncoding.EncodeToString([]byte(p))}
}

// quote returns a path as a line of text can show it: as it is, or quoted as in Go where it holds
// anything that a terminal would act upon.
func quote(p string) string {
	if utf8.ValidString(p) && !strings.ContainsFunc(p, func(r rune) bool { return !unicode.IsPrint(r) }) && !strings.HasPrefix(p, `"`) {
		return p
	}
	return strconv.Quote(p)
}

// size returns a number of bytes for people.
func size(n uint64) string {
	if n < 1<<10 {
		return plural(n, "byte")
	}
	f := float64(n)
	unit := 0
	for f >= 1<<10 && unit < 6 {
		f /= 1 << 10
		unit++
	}
	return fmt.Sprintf("%.1f %ciB", f, "?KMGTPE"[unit])
}

func plural(n uint64, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
