package source

import (
	"errors"
	"fmt"
	"path"
	"strings"
)

// Rules are compiled exclude patterns. A nil *Rules excludes nothing.
//
// A pattern is a shell glob for whole components of an archive path: "*", "?" and "[...]" match inside one
// component, names with a leading dot too; "**" as a component of its own matches any number of components, and
// at the end at least one. A pattern matches a path if it matches the whole of it or what is left after
// removing leading components: "*.o" matches "src/a.o". A leading "/" allows only the whole path. A trailing "/"
// allows only directories. A backslash takes the next character literally. What lies in an excluded directory
// is excluded with it.
type Rules struct{ rules []rule }

type rule struct {
	text  string
	parts []string // "**" among them; never two in a row
	dirs  bool     // matches directories only
}

// CompileExclude compiles patterns; its error names the pattern that is wrong.
func CompileExclude(patterns []string) (*Rules, error) {
	rs := &Rules{}
	for _, text := range patterns {
		r, err := compile(text)
		if err != nil {
			return nil, fmt.Errorf("exclude pattern %q: %w", text, err)
		}
		rs.rules = append(rs.rules, r)
	}
	return rs, nil
}

func compile(text string) (rule, error) {
	r := rule{text: text}
	rest, anchored := strings.CutPrefix(text, "/")
	rest, r.dirs = strings.CutSuffix(rest, "/")
	if rest == "" {
		return r, errors.New("it matches nothing: write a name or a glob")
	}
	if !anchored {
		r.parts = append(r.parts, "**")
	}
	parts := strings.Split(rest, "/")
	for i, p := range parts {
		switch {
		case p == "" || p == "." || p == "..":
			return r, fmt.Errorf("component %q never occurs in an archive path", p)
		case strings.IndexByte(p, 0) >= 0:
			return r, errors.New("it contains a NUL byte, which no name does")
		case p == "**":
			if i == len(parts)-1 {
				r.parts = append(r.parts, "*") // at the end, at least one component
			}
			if n := len(r.parts); n > 0 && r.parts[n-1] == "**" {
				continue
			}
		default:
			p = shellClass(p)
			if _, err := path.Match(p, ""); err != nil {
				return r, errors.New("its brackets or backslashes do not end")
			}
		}
		r.parts = append(r.parts, p)
	}
	return r, nil
}

// shellClass rewrites the shell's "[!" as the "[^" that path.Match knows.
func shellClass(p string) string {
	b := []byte(p)
	for i, class := 0, false; i < len(b); i++ {
		switch {
		case b[i] == '\\':
			i++
		case class:
			class = b[i] != ']'
		case b[i] == '[':
			class = true
			if i+1 < len(b) && b[i+1] == '!' {
				b[i+1] = '^'
			}
		}
	}
	return string(b)
}

// match returns the first pattern that excludes the archive path, or "".
func (rs *Rules) match(p string, dir bool) string {
	if rs == nil || len(rs.rules) == 0 {
		return ""
	}
	parts := strings.Split(p, "/")
	for i := range rs.rules {
		r := &rs.rules[i]
		if (dir || !r.dirs) && matchParts(r.parts, parts) {
			return r.text
		}
	}
	return ""
}

// matchParts matches components. Only the last "**" met needs to be tried again: what an earlier one could
// take more, the later one can take as well. The cost is bounded by the product of the lengths.
func matchParts(pat, parts []string) bool {
	p, s := 0, 0
	star, from := -1, 0
	for s < len(parts) {
		switch {
		case p < len(pat) && pat[p] == "**":
			star, from = p, s
			p++
		case p < len(pat) && matchPart(pat[p], parts[s]):
			p++
			s++
		case star >= 0:
			from++
			p, s = star+1, from
		default:
			return false
		}
	}
	for p < len(pat) && pat[p] == "**" {
		p++
	}
	return p == len(pat)
}

func matchPart(pat, name string) bool {
	if pat == "*" || pat == name {
		return true
	}
	ok, _ := path.Match(pat, name) // compile has checked the syntax
	return ok
}
