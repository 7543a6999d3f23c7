// Package config reads the operator's settings: the file config.toml in the data directory, which may be absent. It is
// strict: a key that it does not know, or a value that makes no sense, is an error that names it and its line, so that
// nobody believes to have set what is not set.
//
//	[reclaim]                     frees what nothing needs
//	every = "1h"                  between two runs; "off" runs it by hand only
//	share = 75                    percent: a segment of which no more than that is live is cleaned; 0 to 99
//	deletes_per_hour = 1000       objects, 1 to 100000
//	copy_per_hour = "16GiB"       bytes that cleaning copies; 64MiB at least
//
//	[checkpoint]                  writes the view into the bucket, so that a start is quick
//	every = "1d"                  between two runs; "off" makes them by hand only
//	segments = 256                that must have been added since the newest; 1 to 1000000
//
//	[scrub]                       reads what is stored and compares checksums
//	every = "1h"                  between two turns, which do what is due; "off" does it by hand only
//	cycle = "14d"                 in which the sample is read; 1d to 366d
//	sample = 0                    percent of the segments; 0: 100 where the bucket is a directory, else 2
//	bytes_per_month = 0           that may be read; 0: without limit
//
//	[shadow]                      makes the view anew from the bucket, beside the other, and compares
//	every = "1d"                  between two comparisons; "off" makes them by hand only
//	bytes_per_month = 0           of trailers that may be read; 0: without limit where the bucket is a directory, else 50GiB
//
//	[money]                       what use costs; nothing, if no price is set
//	currency = "EUR"              1 to 10 letters; to be given with any price
//	stored = "0"                  for 10^9 bytes, as they are billed, and a month of 365.25 / 12 days
//	in = "0"                      for 10^9 bytes stored
//	out = "0"                     for 10^9 bytes sent
//	grace = "90d"                 for which data is kept when an account is not paid; 30d to 3650d
//
// Durations are like "90m", "12h" or "7d"; sizes like "64MiB", "5GB" or 1000, bytes; prices like "0.20".
package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"

	"holdfast/service/ledger"
)

// FileName is the name of the file in the data directory.
const FileName = "config.toml"

// maxFile bounds the file, bytes.
const maxFile = 64 << 10

// Config is all that can be set.
type Config struct {
	Reclaim    Reclaim    `toml:"reclaim"`
	Checkpoint Checkpoint `toml:"checkpoint"`
	Scrub      Scrub      `toml:"scrub"`
	Shadow     Shadow     `toml:"shadow"`
	Money      Money      `toml:"money"`
}

// Reclaim sets the job that frees what nothing needs.
type Reclaim struct {
	Every          Duration `toml:"every"`
	Share          int      `toml:"share"`            // percent
	DeletesPerHour int      `toml:"deletes_per_hour"` // objects
	CopyPerHour    Size     `toml:"copy_per_hour"`
}

// Checkpoint sets the job that writes the view into the bucket.
type Checkpoint struct {
	Every    Duration `toml:"every"`
	Segments int      `toml:"segments"`
}

// Scrub sets the job that reads what is stored.
type Scrub struct {
	Every         Duration `toml:"every"`
	Cycle         Duration `toml:"cycle"`
	Sample        int      `toml:"sample"`          // percent; 0 is by the kind of bucket
	BytesPerMonth Size     `toml:"bytes_per_month"` // 0 is without limit
}

// Shadow sets the job that compares a second view with the first.
type Shadow struct {
	Every         Duration `toml:"every"`
	BytesPerMonth Size     `toml:"bytes_per_month"` // 0 is by the kind of bucket
}

// Money sets what use costs, and for how long data is kept that is not paid.
type Money struct {
	Currency string   `toml:"currency"` // "" if it is not given: then nothing costs anything
	Stored   Price    `toml:"stored"`   // of 10^9 bytes over a ledger.Month
	In       Price    `toml:"in"`       // of 10^9 bytes
	Out      Price    `toml:"out"`      // of 10^9 bytes
	Grace    Duration `toml:"grace"`
}

// Prices returns what is charged.
func (m Money) Prices() ledger.Prices {
	return ledger.Prices{Stored: m.Stored.Amount, In: m.In.Amount, Out: m.Out.Amount}
}

// minGrace and maxGrace bound how long data is kept that is not paid.
const (
	minGrace = ledger.MinGrace * time.Millisecond
	maxGrace = 3650 * 24 * time.Hour
	// maxCurrency bounds its name, letters.
	maxCurrency = 10
)

// check refuses a currency that an hledger journal would have to quote, and prices without one.
func (m Money) check() error {
	switch {
	case m.Currency == "" && m.Prices() != ledger.Prices{}:
		return errors.New("money.currency: it is missing, and a price is set; write it like \"EUR\"")
	case len(m.Currency) > maxCurrency || strings.Trim(m.Currency, letters) != "":
		return fmt.Errorf("money.currency: %q is not 1 to %d letters from A to Z", m.Currency, maxCurrency)
	}
	return nil
}

const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

// Default returns what holds for what the file does not say.
func Default() Config {
	return Config{
		Reclaim:    Reclaim{Every: Duration{time.Hour}, Share: 75, DeletesPerHour: 1000, CopyPerHour: 16 << 30},
		Checkpoint: Checkpoint{Every: Duration{24 * time.Hour}, Segments: 256},
		Scrub:      Scrub{Every: Duration{time.Hour}, Cycle: Duration{14 * 24 * time.Hour}},
		Shadow:     Shadow{Every: Duration{24 * time.Hour}},
		Money:      Money{Grace: Duration{90 * 24 * time.Hour}},
	}
}

// check refuses values that make no sense. Each error begins with the key.
func (c Config) check() error {
	r := c.Reclaim
	return errors.Join(
		r.Every.between("reclaim.every", time.Minute, 30*24*time.Hour),
		between("reclaim.share", int64(r.Share), 0, 99),
		between("reclaim.deletes_per_hour", int64(r.DeletesPerHour), 1, 100_000),
		r.CopyPerHour.between("reclaim.copy_per_hour", 64<<20, 1<<50),
		c.Scrub.Every.between("scrub.every", time.Minute, 24*time.Hour),
		c.Scrub.Cycle.between("scrub.cycle", 24*time.Hour, 366*24*time.Hour),
		c.Scrub.Cycle.given("scrub.cycle"),
		between("scrub.sample", int64(c.Scrub.Sample), 0, 100),
		c.Scrub.BytesPerMonth.between("scrub.bytes_per_month", 0, 1<<60),
		c.Shadow.Every.between("shadow.every", time.Hour, 366*24*time.Hour),
		c.Shadow.BytesPerMonth.between("shadow.bytes_per_month", 0, 1<<60),
		c.Checkpoint.Every.between("checkpoint.every", time.Minute, 30*24*time.Hour),
		between("checkpoint.segments", int64(c.Checkpoint.Segments), 1, 1_000_000),
		c.Money.check(),
		c.Money.Stored.check("money.stored"),
		c.Money.In.check("money.in"),
		c.Money.Out.check("money.out"),
		c.Money.Grace.between("money.grace", minGrace, maxGrace),
		c.Money.Grace.given("money.grace"),
	)
}

// ErrWrong is wrapped by an error of what the file says, as opposed to one of reading it.
var ErrWrong = errors.New("the configuration cannot be used")

// Load reads the file at path; one that is not there is Default. The error says what is wrong, where, and in a
// sentence that can be shown as it is. It wraps ErrWrong if a person has to change the file.
func Load(path string) (Config, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Default(), nil
	}
	if err != nil {
		return Config{}, fmt.Errorf("read the configuration: %w", err)
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return Config{}, fmt.Errorf("read the configuration: %w", err)
	}
	c, err := Parse(raw)
	if err != nil {
		return Config{}, fmt.Errorf("%w: %s: %w", ErrWrong, path, err)
	}
	return c, nil
}

// Parse decodes a file over Default.
func Parse(raw []byte) (Config, error) {
	if len(raw) > maxFile {
		return Config{}, fmt.Errorf("it has more than %d bytes", maxFile)
	}
	c := Default()
	err := toml.NewDecoder(bytes.NewReader(raw)).DisallowUnknownFields().Decode(&c)
	var unknown *toml.StrictMissingError
	var wrong *toml.DecodeError
	switch {
	case errors.As(err, &unknown):
		var all []error
		for i, e := range unknown.Errors {
			if i == maxErrors {
				break
			}
			line, _ := e.Position()
			all = append(all, fmt.Errorf("line %d: there is no key %s", line, strings.Join(e.Key(), ".")))
		}
		return Config{}, errors.Join(all...)
	case errors.As(err, &wrong):
		line, column := wrong.Position()
		key := ""
		if len(wrong.Key()) > 0 {
			key = strings.Join(wrong.Key(), ".") + ": "
		}
		return Config{}, fmt.Errorf("line %d, column %d: %s%s", line, column, key, strings.TrimPrefix(wrong.Error(), "toml: "))
	case err != nil:
		return Config{}, err
	}
	return c, c.check()
}

// maxErrors bounds the unknown keys that are named.
const maxErrors = 5

// Duration is a length of time in the file. 0 is "off". It is no number, so that none is taken for nanoseconds.
type Duration struct{ time.Duration }

// UnmarshalText decodes "off", or a number with a unit: s, m, h, d, several of them in descending order.
func (d *Duration) UnmarshalText(text []byte) error {
	s := string(text)
	if s == "off" {
		d.Duration = 0
		return nil
	}
	var days time.Duration
	if n, rest, ok := strings.Cut(s, "d"); ok {
		v, err := strconv.ParseUint(n, 10, 16)
		if err != nil {
			return fmt.Errorf("%q is no duration like \"90m\", \"12h\" or \"7d\"", s)
		}
		if days = time.Duration(v) * 24 * time.Hour; rest == "" {
			d.Duration = days
			return nil
		}
		s = rest
	}
	v, err := time.ParseDuration(s)
	if err != nil || v < 0 {
		return fmt.Errorf("%q is no duration like \"90m\", \"12h\" or \"7d\"", string(text))
	}
	d.Duration = days + v
	return nil
}

// between refuses what is outside; "off" is inside.
func (d Duration) between(key string, least, most time.Duration) error {
	if v := d.Duration; v != 0 && (v < least || v > most) {
		return fmt.Errorf("%s: %s is not %s to %s, or \"off\"", key, v, least, most)
	}
	return nil
}

// given refuses "off".
func (d Duration) given(key string) error {
	if d.Duration == 0 {
		return fmt.Errorf("%s: it cannot be \"off\"", key)
	}
	return nil
}

// Price is what something costs. It is decoded as a decimal text, exactly.
type Price struct{ ledger.Amount }

// UnmarshalText decodes what ledger.Parse does.
func (p *Price) UnmarshalText(text []byte) (err error) {
	p.Amount, err = ledger.Parse(string(text))
	return err
}

// check refuses a price below zero.
func (p Price) check(key string) error {
	if p.Amount < 0 {
		return fmt.Errorf("%s: %s is below zero", key, p.Amount)
	}
	return nil
}

// Size is a number of bytes in the file.
type Size uint64

// units of a Size, longer names first.
var units = []struct {
	name string
	n    uint64
}{
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40}, {"PiB", 1 << 50},
	{"kB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12}, {"PB", 1e15}, {"B", 1},
}

// UnmarshalText decodes a number with a unit, or without one.
func (s *Size) UnmarshalText(text []byte) error {
	t, n := strings.TrimSpace(string(text)), uint64(1)
	for _, u := range units {
		if number, ok := strings.CutSuffix(t, u.name); ok {
			t, n = strings.TrimSpace(number), u.n
			break
		}
	}
	v, err := strconv.ParseUint(t, 10, 64)
	if err != nil || v > math.MaxUint64/n {
		return fmt.Errorf("%q is no size like \"64MiB\" or \"5GB\"", text)
	}
	*s = Size(v * n)
	return nil
}

// String returns s in the largest unit that it is a multiple of.
func (s Size) String() string {
	for i := 4; i >= 0; i-- {
		if n := Size(units[i].n); s > 0 && s%n == 0 {
			return fmt.Sprintf("%d%s", s/n, units[i].name)
		}
	}
	return fmt.Sprintf("%dB", uint64(s))
}

func (s Size) between(key string, least, most Size) error {
	if s < least || s > most {
		return fmt.Errorf("%s: %s is not %s to %s", key, s, least, most)
	}
	return nil
}

func between(key string, v, least, most int64) error {
	if v < least || v > most {
		return fmt.Errorf("%s: %d is not %d to %d", key, v, least, most)
	}
	return nil
}
