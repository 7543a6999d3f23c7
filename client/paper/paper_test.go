package paper

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"image"
	"image/color"
	"os"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/makiuchi-d/gozxing"
	zxing "github.com/makiuchi-d/gozxing/qrcode"

	"holdfast"
	"holdfast/client/keyring"
	"holdfast/client/protect"
)

var update = flag.Bool("update", false, "write testdata anew: only for a new version of the format")

// files are the texts of files that go to paper: the frozen ones of keyring, and a protected file.
func files(t testing.TB) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	for name, path := range map[string]string{
		"machine": "../keyring/testdata/machine.key", "write-only": "../keyring/testdata/write-only.key",
		"owner": "../keyring/testdata/owner.key", "protected": "../protect/testdata/protected.age",
	} {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		all[name] = text
	}
	return all
}

func sheetOf(t testing.TB, file []byte) []byte {
	t.Helper()
	s, err := Sheet(file)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// people returns lines as people see and type them.
func people(sheet []byte) (lines []string) {
	for _, l := range Lines(sheet) {
		number, data, check := Spaced(l)
		lines = append(lines, number+": "+data+" "+check)
	}
	return lines
}

// scan reads a QR code with a decoder that is not ours, from an image of the modules that the page draws.
func scan(t testing.TB, dark [][]bool) string {
	t.Helper()
	const scale = 4
	n := (len(dark) + 2*quiet) * scale
	img := image.NewGray(image.Rect(0, 0, n, n))
	for y := range n {
		for x := range n {
			my, mx := y/scale-quiet, x/scale-quiet
			c := color.Gray{255}
			if my >= 0 && mx >= 0 && my < len(dark) && mx < len(dark) && dark[my][mx] {
				c.Y = 0
			}
			img.SetGray(x, y, c)
		}
	}
	bmp, err := gozxing.NewBinaryBitmapFromImage(img)
	if err != nil {
		t.Fatal(err)
	}
	res, err := zxing.NewQRCodeReader().Decode(bmp, map[gozxing.DecodeHintType]any{gozxing.DecodeHintType_TRY_HARDER: true})
	if err != nil {
		t.Fatal(err)
	}
	return res.GetText()
}

// TestVectors fixes the lines of each kind of file.
func TestVectors(t *testing.T) {
	for name, file := range files(t) {
		path := "testdata/" + name + ".txt"
		got := strings.Join(people(sheetOf(t, file)), "\n") + "\n"
		if *update {
			if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s: lines are\n%s", name, got)
		}
	}
}

// What is printed comes back: typed, and scanned from the modules that the page draws.
func TestComesBack(t *testing.T) {
	for name, file := range files(t) {
		sheet := sheetOf(t, file)
		typed := strings.Join(people(sheet), "\n")
		var scanned []string
		for _, text := range Codes(sheet) {
			dark, err := modules(text)
			if err != nil {
				t.Fatal(err)
			}
			scanned = append(scanned, scan(t, dark))
		}
		reversed := people(sheet)
		for i := range len(reversed) / 2 {
			j := len(reversed) - 1 - i
			reversed[i], reversed[j] = reversed[j], reversed[i]
		}
		var bare []string // without numbers
		for _, l := range people(sheet) {
			_, l, _ = strings.Cut(l, ": ")
			bare = append(bare, l)
		}
		numberOnly := strings.ReplaceAll(typed, ":", "")
		for how, text := range map[string]string{
			"typed": typed, "small letters": strings.ToLower(typed), "CRLF": strings.ReplaceAll(typed, "\n", "\r\n"),
			"no spaces":  strings.ReplaceAll(typed, " ", ""),
			"no numbers": strings.Join(bare, "\n"), "no colons": numberOnly, "dots": strings.ReplaceAll(typed, ":", "."),
			"look-alikes":  strings.NewReplacer("0", "O", "1", "l").Replace(strings.Join(bare, "\n")),
			"out of order": strings.Join(reversed, "\n"), "twice": typed + "\n\n# again\n" + typed,
			"scanned": strings.Join(scanned, "\n"), "scanned into one line": strings.Join(scanned, " "), "scanned backwards": reverse(scanned), "scanned by zbarimg": "QR-Code:" + strings.Join(scanned, "\nQR-Code:") + "\n",
		} {
			back, err := Read(text)
			if err != nil || !bytes.Equal(back, sheet) {
				t.Errorf("%s, %s: %v", name, how, err)
				continue
			}
			got, protected, err := File(back)
			if err != nil || !bytes.Equal(got, file) || protected != (name == "protected") {
				t.Errorf("%s, %s: %v, %v\n%s", name, how, protected, err, got)
			}
		}
	}
}

func reverse(texts []string) (s string) {
	for _, t := range texts {
		s = t + "\n" + s
	}
	return s
}

// Every mistake in one letter is found in its line, and only there.
func TestNamesTheLine(t *testing.T) {
	sheet := sheetOf(t, files(t)["owner"])
	lines := people(sheet)
	const alphabet = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
	tried := 0
	for n, line := range lines {
		colon := strings.Index(line, ":")
		for i := colon + 2; i < len(line); i++ {
			if line[i] == ' ' {
				continue
			}
			for _, c := range []byte(alphabet) {
				if c == line[i] {
					continue
				}
				bad := append([]string{}, lines...)
				bad[n] = line[:i] + string(c) + line[i+1:]
				tried++
				if _, err := Read(strings.Join(bad, "\n")); !errors.Is(err, ErrLines) || !strings.Contains(err.Error(), fmt.Sprintf(": line %d is wrong", n+1)) || strings.Count(err.Error(), "line") != 1 {
					t.Fatalf("%q for %q: %v", bad[n], line, err)
				}
			}
		}
	}
	if tried < 8000 {
		t.Fatalf("only %d mistakes were tried", tried)
	}
}

// ownerOf returns the owner file of the vectors with other words.
func ownerOf(t testing.TB, seed byte) []byte {
	t.Helper()
	_, f, err := keyring.Inspect(files(t)["owner"])
	if err != nil {
		t.Fatal(err)
	}
	f.Owner = keyring.OwnerOf(holdfast.Key{seed})
	return f.Encode()
}

// What is wrong is said so that a person finds it.
func TestMistakes(t *testing.T) {
	lines := people(sheetOf(t, files(t)["owner"]))
	other := people(sheetOf(t, files(t)["machine"]))
	again := ownerOf(t, 2) // another owner at the same service
	with := func(n int, line string) string {
		l := append([]string{}, lines...)
		l[n-1] = line
		return strings.Join(l, "\n")
	}
	for name, x := range map[string]struct{ text, says string }{
		"nothing":          {"\n# nothing\n", "there is no line in it"},
		"a line missing":   {strings.Join(append(append([]string{}, lines[:3]...), lines[4:]...), "\n"), "line 4 is missing"},
		"the end missing":  {strings.Join(lines[:5], "\n"), "lines 6, 7, 8 are missing"},
		"the start":        {strings.Join(lines[2:], "\n"), "lines 1, 2 are missing"},
		"a letter missing": {with(3, lines[2][:19]+lines[2][20:]), "line 3 is wrong (it has 43 letters, not 44)"},
		"a letter more":    {with(3, lines[2]+"0"), "line 3 is wrong (it has 45 letters, not 44)"},
		"half a line":      {with(3, "3: ABC"), "line 3 is wrong (it has 3 letters, not 44)"},
		"no such letter":   {with(2, strings.Replace(lines[1], "S", "U", 1)), "line 2 is wrong ('U' does not occur in lines)"},
		"two mistakes":     {strings.NewReplacer(lines[1], lines[1][:10], "HW7ZQ", "HW7QZ").Replace(strings.Join(lines, "\n")), "line 2 is wrong (it has 6 letters, not 44); line 7 is wrong (its letters do not fit its last four)"},
		"swapped":          {strings.NewReplacer("4: ", "5: ", "5: ", "4: ").Replace(strings.Join(lines, "\n")), "line 4 is wrong (its letters do not fit its last four); line 5 is wrong (its letters do not fit its last four)"},
		"another paper":    {with(2, other[1]) + "\n" + other[5], "there are two different lines 6; they are of two papers"},
		"the last line":    {with(8, lines[7]+"0"), "line 8 is wrong (it has 17 letters, not 16)"},
		"line 0":           {"0: " + lines[0][3:], "there is no line 242 on it"},
		"line 900":         {"900: " + lines[0][3:], "there is no line 900 on it"},
		"too long":         {strings.Repeat("\n", MaxText+1), "it is longer than 65536 bytes"},
		"a file":           {string(files(t)["owner"]), "line 1 is wrong"},
		"another alphabet": {"1: ÀÉ \x00\xff", "line 1 is wrong ('À' does not occur in lines)"},
	} {
		_, err := Read(x.text)
		if !errors.Is(err, ErrLines) || !strings.Contains(err.Error(), x.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Six lines of one paper and the rest of another, each of them right.
	mixed, err := Read(strings.Join(append(append([]string{}, lines[:6]...), people(sheetOf(t, again))[6:]...), "\n"))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := File(mixed); !errors.Is(err, ErrLines) || !strings.Contains(err.Error(), "they are not of one paper") {
		t.Errorf("two papers: %v", err)
	}
	// A line that was typed wrongly and then rightly is right.
	if _, err := Read(lines[0][:12] + "\n" + strings.Join(lines, "\n")); err != nil {
		t.Error(err)
	}
}

// A sheet whose lines are right is still checked as a whole, and means nothing but one file.
func TestSheetIsStrict(t *testing.T) {
	for name, file := range files(t) {
		whole := sheetOf(t, file)
		for i := range whole {
			for bit := range 8 {
				s := bytes.Clone(whole)
				s[i] ^= 1 << bit
				if _, _, err := File(s); !errors.Is(err, ErrLines) {
					t.Fatalf("%s: bit %d of byte %d: %v", name, bit, i, err)
				}
			}
			if _, _, err := File(whole[:i]); !errors.Is(err, ErrLines) {
				t.Fatalf("%s: its first %d bytes: %v", name, i, err)
			}
		}
	}
	resum := func(s []byte) []byte { return append(s, sheetCheck(s)...) }
	owner := sheetOf(t, files(t)["owner"])
	fields := owner[4 : len(owner)-8]
	as := func(version, kind byte, content []byte) []byte {
		return resum(append([]byte{version, kind, byte(len(content) >> 8), byte(len(content))}, content...))
	}
	if _, _, err := File(as(1, 1, fields)); err != nil {
		t.Fatal(err)
	}
	for name, s := range map[string][]byte{
		"version 2":       as(2, 1, fields),
		"kind 3":          as(1, 3, fields),
		"no age file":     as(1, 2, fields),
		"nothing":         as(1, 1, nil),
		"a field less":    as(1, 1, fields[4:]),
		"a field more":    as(1, 1, append(bytes.Clone(fields), 3, 0, 1, 'x')),
		"unknown field":   as(1, 1, append(bytes.Clone(fields), 0x3f, 0, 1, 'x')),
		"field 0":         as(1, 1, append(bytes.Clone(fields), 0, 0, 1, 'x')),
		"half a field":    as(1, 1, append(bytes.Clone(fields), 3, 0)),
		"past its end":    as(1, 1, append(bytes.Clone(fields), 3, 0, 9, 'x')),
		"an injected row": as(1, 1, append([]byte{2, 0, 12, '1', '\n', 'g', 'r', 'o', 'u', 'p', ' ', '0', '0', '0', '0'}, fields[4:]...)),
		"too long":        as(1, 1, make([]byte, MaxContent+1)),
	} {
		if _, _, err := File(s); !errors.Is(err, ErrLines) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTooLong(t *testing.T) {
	long := protect.Armor(append([]byte("age-encryption.org/v1\n"), make([]byte, MaxContent)...))
	if _, err := Sheet(long); !errors.Is(err, ErrTooLong) {
		t.Fatal(err)
	}
	fits := protect.Armor(append([]byte("age-encryption.org/v1\n"), make([]byte, MaxContent-22)...))
	s := sheetOf(t, fits)
	back, err := Read(strings.Join(people(s), "\n"))
	if err != nil || !bytes.Equal(back, s) || len(Lines(s)) != maxLines {
		t.Fatalf("%d lines, %v", len(Lines(s)), err)
	}
	if file, _, err := File(back); err != nil || !bytes.Equal(file, fits) {
		t.Fatal(err)
	}
}

// The page asks for nothing from outside, runs nothing, and shows what it is given as text.
func TestPage(t *testing.T) {
	p := Page{
		Title: "<b>title", Use: "use & use", Then: "then", Vault: "vault-id", Address: `"><script>alert(1)</script>`, ServiceKey: "service-key-hex", LogKey: "log-key-hex",
		Words: "word word", Time: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Sheet: sheetOf(t, files(t)["machine"]),
	}
	html, err := p.HTML()
	if err != nil {
		t.Fatal(err)
	}
	text := string(html)
	for _, must := range append(people(p.Sheet), "&lt;b&gt;title", "use &amp; use", "vault-id", "service-key-hex", "log-key-hex", "word word", "2026-01-02 03:04 UTC", "holdfast key paper --read FILE --out KEYFILE") {
		must = strings.Replace(must, ": ", ":</span> ", 1)
		if i := strings.LastIndex(must, " "); strings.Contains(must, "</span>") {
			must = must[:i] + "<b>" + must[i+1:]
		}
		if !strings.Contains(text, must) {
			t.Errorf("the page lacks %q", must)
		}
	}
	for _, never := range []string{"<script", "http:", "https:", "//", "src=", "href", "@import", "url("} {
		if strings.Contains(text, never) {
			t.Errorf("the page has %q", never)
		}
	}
	// The picture is what was scanned in TestComesBack.
	dark, err := modules(Codes(p.Sheet)[0])
	if err != nil {
		t.Fatal(err)
	}
	if got := drawn(t, text, len(dark)); !reflect.DeepEqual(got, dark) {
		t.Error("the SVG does not show the modules")
	}
}

// drawn returns the modules that the paths of the page's first SVG paint.
func drawn(t *testing.T, page string, n int) [][]bool {
	t.Helper()
	dark := make([][]bool, n)
	for y := range dark {
		dark[y] = make([]bool, n)
	}
	_, path, _ := strings.Cut(page, `<path d="`)
	path, _, ok := strings.Cut(path, `"`)
	if !ok {
		t.Fatal("no path")
	}
	for _, run := range regexp.MustCompile(`M(\d+) (\d+)h(\d+)v1h-(\d+)z`).FindAllStringSubmatch(path, -1) {
		var v [4]int
		for i := range v {
			v[i], _ = strconv.Atoi(run[i+1])
		}
		if v[2] != v[3] {
			t.Fatalf("%s is no rectangle", run[0])
		}
		for x := v[0]; x < v[0]+v[2]; x++ {
			dark[v[1]-quiet][x-quiet] = true
		}
	}
	return dark
}

func FuzzRead(f *testing.F) {
	for _, file := range files(f) {
		sheet := sheetOf(f, file)
		f.Add(strings.Join(people(sheet), "\n"))
		f.Add(strings.Join(Codes(sheet), " "))
	}
	f.Add("1: 0000 0000\n2. O0\n3:")
	f.Fuzz(func(t *testing.T, text string) {
		sheet, err := Read(text)
		if err != nil {
			if !errors.Is(err, ErrLines) {
				t.Fatal(err)
			}
			return
		}
		again, err := Read(strings.Join(people(sheet), "\n"))
		if err != nil || !bytes.Equal(again, sheet) {
			t.Fatalf("%v\n%x\n%x", err, sheet, again)
		}
	})
}

func FuzzFile(f *testing.F) {
	for _, file := range files(f) {
		f.Add(sheetOf(f, file))
	}
	f.Fuzz(func(t *testing.T, sheet []byte) {
		if len(sheet) >= frame { // the check would keep the fuzzer out
			n := len(sheet) - 8
			sheet[2], sheet[3] = byte((n-4)>>8), byte(n-4)
			sheet = append(sheet[:n:n], sheetCheck(sheet[:n])...)
		}
		file, _, err := File(sheet)
		if err != nil {
			if !errors.Is(err, ErrLines) {
				t.Fatal(err)
			}
			return
		}
		if again, err := Sheet(file); err != nil || !bytes.Equal(again, sheet) {
			t.Fatalf("%v\n%x\n%x", err, sheet, again)
		}
	})
}
