package paper

import (
	"bytes"
	"fmt"
	"html/template"
	"slices"
	"strings"
	"time"

	"github.com/boombuler/barcode/qr"
)

// codeText bounds the text of one QR code, characters: at level M that is version 25, 117 modules wide,
// which a telephone reads from paper.
const codeText = 1450

// quiet is the width of the white margin that a QR code needs, modules.
const quiet = 4

// Page is what is printed.
type Page struct {
	Title      string // what the key is of
	Use        string // what it is good for
	Then       string // the command that uses the file when it is back, if there is one for that
	Vault      string
	Address    string // of the service
	ServiceKey string
	LogKey     string
	Words      string // the owner's, where the page may show them
	Protected  bool
	Time       time.Time
	Sheet      []byte
}

// Codes returns the texts of the QR codes of a sheet: as few codes as will do, of like size.
func Codes(sheet []byte) (texts []string) {
	lines := Lines(sheet)
	all := len(strings.Join(lines, " "))
	codes := (all + codeText - 1) / codeText
	for part := range slices.Chunk(lines, (len(lines)+codes-1)/codes) {
		texts = append(texts, strings.Join(part, " "))
	}
	return texts
}

// modules returns the dark modules of the QR code of text, by row and column.
func modules(text string) ([][]bool, error) {
	code, err := qr.Encode(text, qr.M, qr.AlphaNumeric)
	if err != nil {
		return nil, fmt.Errorf("make QR code: %w", err)
	}
	n := code.Bounds().Dx()
	dark := make([][]bool, n)
	for y := range dark {
		dark[y] = make([]bool, n)
		for x := range dark[y] {
			r, _, _, _ := code.At(x, y).RGBA()
			dark[y][x] = r == 0
		}
	}
	return dark, nil
}

// svg draws the modules as one path, a rectangle for each run in a row.
func svg(dark [][]bool) template.HTML {
	var b strings.Builder
	n := len(dark) + 2*quiet
	fmt.Fprintf(&b, `<svg viewBox="0 0 %d %d" shape-rendering="crispEdges"><path d="`, n, n)
	for y, row := range dark {
		for x := 0; x < len(row); x++ {
			from := x
			for x < len(row) && row[x] {
				x++
			}
			if x > from {
				fmt.Fprintf(&b, "M%d %dh%dv1h-%dz", from+quiet, y+quiet, x-from, x-from)
			}
		}
	}
	b.WriteString(`"/></svg>`)
	return template.HTML(b.String()) // numbers and fixed text only
}

type spacedLine struct{ Number, Data, Check string }

// HTML returns the page: one file that asks for nothing else and runs nothing.
func (p Page) HTML() ([]byte, error) {
	var view struct {
		Page
		Codes []template.HTML
		Lines []spacedLine
		Class string
	}
	view.Page = p
	for _, text := range Codes(p.Sheet) {
		dark, err := modules(text)
		if err != nil {
			return nil, err
		}
		view.Codes = append(view.Codes, svg(dark))
	}
	for _, l := range Lines(p.Sheet) {
		n, data, check := Spaced(l)
		view.Lines = append(view.Lines, spacedLine{n, data, check})
	}
	view.Class = "few"
	if len(view.Lines) > 24 {
		view.Class = "many"
	}
	if len(view.Codes) > 2 {
		view.Class += " codes"
	}
	var out bytes.Buffer
	if err := page.Execute(&out, view); err != nil {
		return nil, fmt.Errorf("make page: %w", err)
	}
	return out.Bytes(), nil
}

var page = template.Must(template.New("page").Parse(`<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Holdfast: {{.Title}}</title>
<style>
@page { size: A4; margin: 10mm }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 190mm; font: 9pt/1.3 sans-serif; color: #000; background: #fff }
h1 { font-size: 15pt; margin: 0 0 1.5mm }
h2 { font-size: 10pt; margin: 2.5mm 0 1mm }
p { margin: 0 0 1.5mm }
code, dd, .line, .words { font-family: monospace }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .4mm 3mm; margin: 0 }
dt { font-weight: bold } dd { margin: 0; overflow-wrap: anywhere }
.qr { display: flex; flex-wrap: wrap; gap: 2mm; justify-content: center; margin: 1.5mm 0 }
svg { width: 78mm; height: 78mm; background: #fff }
.codes svg { width: 46mm; height: 46mm }
.line { white-space: pre; break-inside: avoid }
.line b { padding: 0 .6em }
.few .line { font-size: 10.5pt; line-height: 1.35 }
.many .lines { columns: 2; column-gap: 4mm }
.many .line { font-size: 7pt; line-height: 1.14 }
.number { display: inline-block; width: 2.6em; text-align: right }
.words { font-size: 10.5pt }
</style>
</head>
<body class="{{.Class}}">
<h1>Holdfast: {{.Title}}</h1>
<p>{{.Use}}</p>
<dl>
<dt>vault</dt><dd>{{.Vault}}</dd>
<dt>service</dt><dd>{{.Address}}</dd>
<dt>service-key</dt><dd>{{.ServiceKey}}</dd>
<dt>log-key</dt><dd>{{.LogKey}}</dd>
<dt>printed</dt><dd>{{.Time.Format "2006-01-02 15:04 MST"}}</dd>
</dl>
{{- if .Words}}
<h2>The 24 words</h2>
<p class="words">{{.Words}}</p>
{{- end}}
<h2>The way back in</h2>
<p>Scan {{if eq (len .Codes) 1}}the code{{else}}the {{len .Codes}} codes, in any order,{{end}} with any QR reader, or type the lines, and save the text as FILE. Then
<code>holdfast key paper --read FILE --out KEYFILE</code> checks every line and writes the {{if .Protected}}protected file{{else}}file{{end}}.
{{- if .Then}} On a bare machine, <code>{{.Then}}</code> goes on from there.{{end}} Small letters will do;
O counts as 0, I and L as 1, and spaces do not count. The four letters at the end of a line check it, so that a slip is found in its line.
Without this program: docs/format/1-keys-and-blocks.md of Holdfast describes these lines, byte by byte.</p>
<div class="qr">{{range .Codes}}{{.}}{{end}}</div>
<div class="lines">
{{- range .Lines}}
<div class="line"><span class="number">{{.Number}}:</span> {{.Data}}<b>{{.Check}}</b></div>
{{- end}}
</div>
</body>
</html>
`))
