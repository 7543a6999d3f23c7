package main

import (
	"fmt"
	"os"
	"os/user"
	"time"

	"github.com/spf13/cobra"

	"holdfast/service/admin"
	"holdfast/service/segment"
)

func thawCommand() *cobra.Command {
	var dir, reason string
	c := &cobra.Command{
		Use:   "thaw --data DIR --reason TEXT",
		Short: "Let the service delete again after it froze all deleting",
		Long: `Let the service delete again after it froze all deleting, while it is running. holdfastd status says what it found.

The service freezes when its clock and the store's disagree by more than five minutes, when its clock is more than
14 days later than when it was last seen, and when the bucket does not have what was acknowledged. Backups and
restores go on; nothing is purged, expired or swept. It thaws by itself when the clocks have agreed for an hour (for a
day after a jump), but never after a contradiction: look for what is missing first. Thawing is refused while
the clocks disagree. Who thawed and why is recorded in the journal, for good.`,
		Args: exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			if err := required(c, "data", "reason"); err != nil {
				return err
			}
			if len(reason) > segment.MaxText {
				return usageError{fmt.Errorf("--reason takes at most %d bytes of text", segment.MaxText)}
			}
			ended, err := admin.Thaw(c.Context(), dir, operator(), reason)
			if err != nil {
				return err
			}
			for _, f := range ended {
				if _, err := fmt.Fprintf(c.OutOrStdout(), "thawed  frozen since %s (%s): %s\n", f.Since.Format(time.RFC3339), f.Reason, f.Found); err != nil {
					return err
				}
			}
			return nil
		},
	}
	dataFlag(c, &dir)
	c.Flags().StringVar(&reason, "reason", "", "`TEXT`: what was wrong, and why it is not any more; it is recorded")
	return c
}

// operator names who runs the program: behind sudo, who typed it.
func operator() string {
	if name := os.Getenv("SUDO_USER"); name != "" {
		return name
	}
	if u, err := user.Current(); err == nil && u.Username != "" {
		return u.Username
	}
	return fmt.Sprintf("uid %d", os.Getuid())
}
