// Package paper puts key and owner files on paper, and gets them back: lines that a person can type, QR
// codes with the same lines, and the page that holds both.
//
// # Format
//
// What is to be kept is first made one string of bytes, the sheet:
//
//	version u8     1
//	kind u8        1 the fields of a key or owner file; 2 a protected file: the age file inside its armor
//	length u16     of content, big-endian, 1 to 6,000
//	content
//	check 8        first 8 bytes of SHA-256("holdfast/1/paper" 0x00, all bytes above)
//
// Content of kind 1 is the fields of the file in their order, without the last, check, each as:
//
//	field u8       bits 7 and 6 the form of the value, the others the number of the name
//	length u16     of value, big-endian
//	value          form 0: the text; 1: the bytes that its lower-case hexadecimal gives, if these are 8 or
//	               more; 2: the bytes that its padded base64 gives, if these are 64 or more; 3: the seed
//	               that 24 words give. 3 is chosen before 1, 1 before 2, 2 before 0
//
// The names, from number 1 on: holdfast-key, holdfast-owner, address, service-key, log-key, vault, owner,
// group, rights, chunk, machine-seed, vault-secret, read-seed, group-secret, history-key, read-key, words.
//
// The sheet is cut into pieces of 25 bytes, the last may be shorter, and each piece is one line:
//
//	number ":" data check
//
// number is decimal, from 1. data is the piece in base 32, the first bit the highest, filled up with zero
// bits, with the letters 0123456789ABCDEFGHJKMNPQRSTVWXYZ for 0 to 31. check is four letters: the first 20
// bits of SHA-256("holdfast/1/paper-line" 0x00, number as u16 big-endian, piece).
//
// For people, data is shown in groups of five letters with spaces between. A QR code holds some of the
// lines, in order, without spaces but one between two lines, as text of the code's alphanumeric mode.
//
// Who reads takes small letters for capitals, O for 0, I and L for 1, ignores spaces and hyphens, takes
// the lines in any order and any line twice, and takes a line without a number to follow the one before.
package paper

import (
	"bytes"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"holdfast/client/keyring"
	"holdfast/client/protect"
)

const (
	// MaxContent bounds what a sheet holds, bytes. That is more than any file has whose protection does
	// not name several recipients.
	MaxContent = 6000
	// MaxText bounds what is read of typed lines, bytes: everything three times, with spaces.
	MaxText = 64 << 10

	version   = 1
	piece     = 25 // bytes of a line
	checkSize = 4  // letters
	frame     = 4 + 8
	maxLines  = (MaxContent + frame + piece - 1) / piece

	kindFields    = 1
	kindProtected = 2
)

var (
	// ErrTooLong reports a file that does not fit.
	ErrTooLong = errors.New("too long for paper")
	// ErrLines reports typed text that is not what is on the paper.
	ErrLines = errors.New("this is not what the paper says")
)

var letters = base32.NewEncoding("0123456789ABCDEFGHJKMNPQRSTVWXYZ").WithPadding(base32.NoPadding)

// Sheet returns the sheet of a key or owner file, protected or not. The error wraps ErrTooLong,
// keyring.ErrFile or protect.ErrDamaged.
func Sheet(file []byte) ([]byte, error) {
	kind, content, err := kindFields, []byte(nil), error(nil)
	if protect.Is(file) {
		kind = kindProtected
		content, err = protect.Unarmor(file)
	} else {
		content, err = keyring.Pack(file)
	}
	if err != nil {
		return nil, err
	}
	if len(content) > MaxContent {
		return nil, fmt.Errorf("%w: it has %d bytes, and %d are the most; a file that is protected by a passphrase is short enough", ErrTooLong, len(content), MaxContent)
	}
	s := binary.BigEndian.AppendUint16([]byte{version, byte(kind)}, uint16(len(content)))
	s = append(s, content...)
	return append(s, sheetCheck(s)...), nil
}

func sheetCheck(s []byte) []byte {
	sum := sha256.Sum256(append([]byte("holdfast/1/paper\x00"), s...))
	return sum[:8]
}

// File returns the file that a sheet holds, and whether it is protected. The error wraps ErrLines.
func File(sheet []byte) (file []byte, protected bool, err error) {
	if len(sheet) < frame || len(sheet) != frame+int(binary.BigEndian.Uint16(sheet[2:])) {
		return nil, false, fmt.Errorf("%w: it is not as long as it says", ErrLines)
	}
	s, check := sheet[:len(sheet)-8], sheet[len(sheet)-8:]
	if !bytes.Equal(sheetCheck(s), check) {
		return nil, false, fmt.Errorf("%w: each line is right, but they are not of one paper", ErrLines)
	}
	if s[0] != version || s[1] != kindFields && s[1] != kindProtected {
		return nil, false, fmt.Errorf("%w: version %d, kind %d is not known to this program; a newer one may read it", ErrLines, s[0], s[1])
	}
	content := s[4:]
	if len(content) > MaxContent {
		return nil, false, fmt.Errorf("%w: its content has %d bytes", ErrLines, len(content))
	}
	if s[1] == kindProtected {
		if !protect.Bare(content) {
			return nil, false, fmt.Errorf("%w: what it holds is no age file", ErrLines)
		}
		return protect.Armor(content), true, nil
	}
	if file, err = keyring.Unpack(content); err != nil {
		return nil, false, fmt.Errorf("%w: %w", ErrLines, err)
	}
	return file, false, nil
}

// Lines returns the lines of a sheet without spaces.
func Lines(sheet []byte) (lines []string) {
	for p := range slices.Chunk(sheet, piece) {
		n := len(lines) + 1
		lines = append(lines, fmt.Sprintf("%d:%s%s", n, letters.EncodeToString(p), lineCheck(n, p)))
	}
	return lines
}

func lineCheck(n int, p []byte) string {
	b := binary.BigEndian.AppendUint16([]byte("holdfast/1/paper-line\x00"), uint16(n))
	sum := sha256.Sum256(append(b, p...))
	return letters.EncodeToString(sum[:3])[:checkSize]
}

// Spaced returns a line as it is shown to people: the number, the data in groups of five letters, the check.
func Spaced(line string) (number, data, check string) {
	number, rest, _ := strings.Cut(line, ":")
	data, check = rest[:len(rest)-checkSize], rest[len(rest)-checkSize:]
	var groups []string
	for g := range slices.Chunk([]byte(data), 5) {
		groups = append(groups, string(g))
	}
	return number, strings.Join(groups, " "), check
}

var numbered = regexp.MustCompile(`(?:^|\s)([0-9]{1,4})\s*:`)

// Read returns the sheet whose lines somebody typed, or scanned. The error wraps ErrLines and names each
// line that is wrong or missing.
func Read(text string) ([]byte, error) {
	if len(text) > MaxText {
		return nil, fmt.Errorf("%w: it is longer than %d bytes", ErrLines, MaxText)
	}
	pieces := map[int][]byte{}
	wrong := map[int]slip{} // lines that were never right
	last := 0
	for _, t := range typedLines(text) {
		if t.number == 0 {
			t.number = last + 1
		}
		last = t.number
		if last < 1 || last > maxLines {
			return nil, fmt.Errorf("%w: there is no line %d on it", ErrLines, last)
		}
		p, s := readLine(t.number, t.rest)
		switch {
		case p == nil:
			wrong[last] = s
		case pieces[last] != nil && !bytes.Equal(pieces[last], p):
			return nil, fmt.Errorf("%w: there are two different lines %d; they are of two papers", ErrLines, last)
		default:
			pieces[last] = p
		}
	}
	return join(pieces, wrong)
}

type typed struct {
	number int // 0: it has none
	rest   string
}

// typedLines cuts text where a line ends or a number and a colon begin another.
func typedLines(text string) (all []typed) {
	for line := range strings.Lines(strings.ReplaceAll(text, "\r", "\n")) {
		line = strings.TrimSpace(strings.TrimPrefix(line, "QR-Code:")) // as a well-known scanner begins
		if line == "" || line[0] == '#' {
			continue
		}
		begins := numbered.FindAllStringSubmatchIndex(line, -1)
		if len(begins) == 0 || strings.TrimSpace(line[:begins[0][0]]) != "" {
			first := line
			if len(begins) > 0 {
				first = line[:begins[0][0]]
			}
			all = append(all, bareLine(first))
		}
		for i, at := range begins {
			end := len(line)
			if i+1 < len(begins) {
				end = begins[i+1][0]
			}
			n, _ := strconv.Atoi(line[at[2]:at[3]]) // four digits at most
			if n == 0 {
				n = maxLines + 1 // no line has the number 0
			}
			all = append(all, typed{n, line[at[1]:end]})
		}
	}
	return all
}

// bareLine is a line without a colon: its number, if it has one, stands apart and is shorter than a group.
func bareLine(line string) typed {
	first, rest, more := strings.Cut(strings.TrimSpace(line), " ")
	if n, err := strconv.Atoi(strings.TrimSuffix(first, ".")); err == nil && more && len(first) < 5 && n > 0 {
		return typed{n, rest}
	}
	return typed{0, line}
}

// slip is what was typed in a line that is wrong.
type slip struct {
	count int  // of letters
	odd   rune // a letter that does not occur in lines, or 0
}

func (s slip) reason(want int) string {
	switch {
	case s.odd != 0:
		return fmt.Sprintf("%q does not occur in lines", s.odd)
	case s.count != want:
		return fmt.Sprintf("it has %d letters, not %d", s.count, want)
	}
	return "its letters do not fit its last four"
}

// lineLetters is how many letters a line has whose piece has n bytes.
func lineLetters(n int) int { return letters.EncodedLen(n) + checkSize }

// readLine returns the piece in the data and check of line n, or none and what is known of the mistake.
func readLine(n int, s string) ([]byte, slip) {
	var b []byte
	for _, c := range strings.ToUpper(s) {
		switch c {
		case ' ', '\t', '-':
			continue
		case 'O':
			c = '0'
		case 'I', 'L':
			c = '1'
		}
		if c > 'Z' || !strings.ContainsRune("0123456789ABCDEFGHJKMNPQRSTVWXYZ", c) {
			return nil, slip{odd: c}
		}
		b = append(b, byte(c))
	}
	wrong := slip{count: len(b)}
	if len(b) > lineLetters(piece) || len(b) <= checkSize {
		return nil, wrong
	}
	data, check := string(b[:len(b)-checkSize]), string(b[len(b)-checkSize:])
	p, err := letters.DecodeString(data)
	if err != nil || len(p) == 0 || letters.EncodeToString(p) != data || lineCheck(n, p) != check {
		return nil, wrong
	}
	return p, slip{}
}

// join puts the pieces together, or says which lines are wrong or missing.
func join(pieces map[int][]byte, wrong map[int]slip) ([]byte, error) {
	most := 0
	for n := range pieces {
		delete(wrong, n) // typed twice, once rightly
		most = max(most, n)
	}
	for n := range wrong {
		most = max(most, n)
	}
	if most == 0 {
		return nil, fmt.Errorf("%w: there is no line in it", ErrLines)
	}
	size := most * piece
	if first := pieces[1]; len(first) >= 4 { // it says how many there are
		size = frame + int(binary.BigEndian.Uint16(first[2:]))
		most = max(most, (size+piece-1)/piece)
	}
	var sheet []byte
	var bad, missing []string
	for n := 1; n <= min(most, maxLines); n++ {
		p, ok := pieces[n]
		s, slipped := wrong[n]
		switch {
		case slipped:
			want := max(1, min(piece, size-(n-1)*piece))
			bad = append(bad, fmt.Sprintf("line %d is wrong (%s)", n, s.reason(lineLetters(want))))
		case !ok:
			missing = append(missing, strconv.Itoa(n))
		}
		sheet = append(sheet, p...)
	}
	if len(missing) > 0 {
		are := "line " + missing[0] + " is missing"
		if len(missing) > 1 {
			are = "lines " + strings.Join(missing, ", ") + " are missing"
		}
		bad = append(bad, are)
	}
	if len(bad) > 0 {
		return nil, fmt.Errorf("%w: %s", ErrLines, strings.Join(bad, "; "))
	}
	return sheet, nil
}
