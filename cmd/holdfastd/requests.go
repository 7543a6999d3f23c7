package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"holdfast/service/admin"
	"holdfast/service/bucket"
	"holdfast/service/requests"
)

// shownFailures is how many of the newest failures are printed one by one.
const shownFailures = 10

func requestsCommand() *cobra.Command {
	var dir string
	var asJSON bool
	var since time.Duration
	c := &cobra.Command{
		Use:   "requests --data DIR",
		Short: "Say how the bucket has answered: latency, failures, and whether they repeat",
		Long: `Say how the bucket has answered the service: how many attempts at each operation were answered or failed and
how, how long that took, and how likely a request is to fail again that failed before. If it is much likelier than any
other, the store fails certain requests and not others; the service abandons those for new ones.

It asks the running service. While the service is stopped, it reads what the service has written, and says how old
that is. The history goes back 40 days, and by minutes for an hour; it holds no keys of objects.

"Exhausted" counts requests that failed as often as they may be tried and were abandoned for others, or given up.
"Hedges" were begun beside a request that was slow; they "won" if they were answered first. "Alike" is the share of
failures that took about as long as their median.`,
		Args: exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			if err := required(c, "data"); err != nil {
				return err
			}
			if since <= 0 {
				return usageError{fmt.Errorf("--since %s is not a time before now; write 90m or 48h", since)}
			}
			r, err := admin.GetRequests(c.Context(), dir, since)
			if errors.Is(err, admin.ErrNotServing) {
				r, err = readRequests(dir, since)
			}
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(c.OutOrStdout(), r)
			}
			return printRequests(c.OutOrStdout(), r)
		},
	}
	dataFlag(c, &dir)
	c.Flags().BoolVar(&asJSON, "json", false, "for programs")
	c.Flags().DurationVar(&since, "since", 24*time.Hour, "how far back, `TIME` such as 30m or 48h")
	return c
}

// readRequests reads the history of a service that does not run. One that is damaged in parts is better than none.
func readRequests(dir string, since time.Duration) (requests.Report, error) {
	path := filepath.Join(dir, requests.FileName)
	r, err := requests.Read(path, since)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return r, fmt.Errorf("%s has no history of requests; holdfastd serve begins one", dir)
	case errors.Is(err, requests.ErrDamaged):
		fmt.Fprintf(os.Stderr, "holdfastd: %s: %v; this is what can be read of it\n", path, err)
		return r, nil
	}
	return r, err
}

// printRequests writes a report for people.
func printRequests(w io.Writer, r requests.Report) error {
	var b strings.Builder
	fmt.Fprintf(&b, "Requests to the bucket from %s to %s UTC\n", r.From.Format("2006-01-02 15:04"), r.To.Format("2006-01-02 15:04"))
	if !r.Saved.IsZero() {
		fmt.Fprintf(&b, "The service is not running; this is what it had written %s ago.\n", r.To.Sub(r.Saved).Round(time.Second))
	}
	if len(r.Ops) == 0 {
		b.WriteString("\nThere were none.\n")
		_, err := io.WriteString(w, b.String())
		return err
	}
	b.WriteString("\n")
	for _, v := range r.Verdicts {
		fmt.Fprintf(&b, "%s\n", wrapped("!! "+v, 100, "   "))
	}
	if len(r.Verdicts) == 0 {
		b.WriteString("Nothing stands out: no request is much likelier to fail because it failed before.\n")
	}
	b.WriteString("\n")
	counts := [][]string{{"", "attempts", "answered", "failed", "exhausted", "per hour", "hedges", "won", "  what failed"}}
	took := [][]string{{"time to", "answer: median", "99 %", "longest", "fail: median", "99 %", "longest", "alike"}}
	again := [][]string{{"chance of failing", "at first", "after 1 failure", "after 2", "after 3 or more"}}
	for _, o := range r.Ops {
		op := string(o.Op)
		counts = append(counts, []string{op, fmt.Sprint(o.Attempts), fmt.Sprint(o.Answered), fmt.Sprint(o.Failed), fmt.Sprint(o.Exhausted), fmt.Sprintf("%.1f", o.PerHour),
			fmt.Sprint(o.Hedges), fmt.Sprint(o.Won), "  " + troubles(o.Classes)})
		bad := []string{"-", "-", "-", "-"}
		if o.Failed > 0 {
			bad = []string{brief(o.Bad.Median), brief(o.Bad.P99), brief(o.Bad.Max), requests.Percent(o.Alike)}
		}
		took = append(took, append([]string{op, brief(o.Good.Median), brief(o.Good.P99), brief(o.Good.Max)}, bad...))
		row := []string{op}
		for _, c := range o.Same {
			row = append(row, chance(c))
		}
		again = append(again, row)
	}
	table(&b, counts)
	table(&b, took)
	table(&b, again)
	when := [][]string{{"when (UTC)", "attempts", "failed", "repeated", "failed again", "exhausted", "failures took"}}
	for _, p := range r.When {
		row := []string{p.Begin.Format("2006-01-02 15:04"), fmt.Sprint(p.Attempts), fmt.Sprint(p.Failed), "-", "-", fmt.Sprint(p.Exhausted), "-"}
		if p.Repeated.Tried > 0 {
			row[3], row[4] = fmt.Sprint(p.Repeated.Tried), requests.Percent(p.Repeated.P())
		}
		if p.Failed > 0 {
			row[6] = brief(p.Bad)
		}
		when = append(when, row)
	}
	table(&b, when)
	if len(r.Failures) > 0 {
		last := [][]string{{"newest failures (UTC)", "operation", "attempt", "failed before", "took", "bytes", "  class"}}
		for _, f := range r.Failures[:min(len(r.Failures), shownFailures)] {
			last = append(last, []string{f.Began.Format("2006-01-02 15:04:05"), string(f.Op), fmt.Sprint(f.Attempt), fmt.Sprint(f.Same), brief(f.Took), fmt.Sprint(f.Bytes), "  " + string(f.Class)})
		}
		table(&b, last)
	}
	_, err := io.WriteString(w, strings.TrimSuffix(b.String(), "\n"))
	return err
}

// troubles names the classes that are not answers, in their order.
func troubles(classes map[bucket.Class]uint64) string {
	var out []string
	for _, c := range bucket.Classes {
		if n := classes[c]; n > 0 && !c.Answer() {
			out = append(out, fmt.Sprintf("%s %d", c, n))
		}
	}
	return strings.Join(out, ", ")
}

// brief writes seconds with three digits that matter.
func brief(s float64) string {
	switch {
	case s < 0.01:
		return fmt.Sprintf("%.1f ms", s*1e3)
	case s < 1:
		return fmt.Sprintf("%.0f ms", s*1e3)
	case s < 10:
		return fmt.Sprintf("%.2f s", s)
	}
	return fmt.Sprintf("%.1f s", s)
}

func chance(c requests.Chance) string {
	if c.Tried == 0 {
		return "-"
	}
	return fmt.Sprintf("%s of %d", requests.Percent(c.P()), c.Tried)
}

// table writes rows with the first column to the left and the others to the right, except those that begin with a space, and
// an empty line.
func table(b *strings.Builder, rows [][]string) {
	width := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			width[i] = max(width[i], utf8.RuneCountInString(cell))
		}
	}
	for _, row := range rows {
		var line strings.Builder
		for i, cell := range row {
			pad := strings.Repeat(" ", width[i]-utf8.RuneCountInString(cell))
			switch {
			case i == 0:
				line.WriteString(cell + pad)
			case strings.HasPrefix(cell, " "):
				line.WriteString(cell)
			default:
				line.WriteString("  " + pad + cell)
			}
		}
		b.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
	b.WriteString("\n")
}

// wrapped breaks text between words into lines of at most width, of which all but the first begin with indent.
func wrapped(text string, width int, indent string) string {
	var b strings.Builder
	at := 0
	for i, word := range strings.Split(text, " ") {
		n := utf8.RuneCountInString(word)
		switch {
		case i == 0:
		case at+1+n > width:
			b.WriteString("\n" + indent)
			at = len(indent)
		default:
			b.WriteByte(' ')
			at++
		}
		b.WriteString(word)
		at += n
	}
	return b.String()
}
