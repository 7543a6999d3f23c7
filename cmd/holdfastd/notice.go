package main

import (
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"holdfast/service/identity"
	"holdfast/service/notice"
	"holdfast/wire"
)

func noticeCommand() *cobra.Command {
	var dir string
	var clear bool
	c := &cobra.Command{
		Use:   "notice --data DIR [TEXT | --clear]",
		Short: "Say something to all customers, such as until when there is maintenance",
		Long: fmt.Sprintf(`Say something to all customers: TEXT is one line of at most %d bytes. It is shown by every command of theirs, and with
every refusal, until it is replaced or cleared. It stays over restarts. A running service says it within a second;
while the service is stopped nobody is told anything. Without TEXT, print what is said at the moment.`, wire.MaxNotice),
		Args: cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			if err := required(c, "data"); err != nil {
				return err
			}
			if len(args) > 1 || clear && len(args) > 0 {
				return usageError{fmt.Errorf("usage: %s; put the text in quotes; see %s --help", c.UseLine(), c.CommandPath())}
			}
			if _, err := identity.Load(filepath.Join(dir, identity.FileName)); err != nil {
				return notThere(err, dir)
			}
			switch {
			case clear:
				return notice.Clear(dir)
			case len(args) == 1:
				if err := notice.Check(args[0]); err != nil {
					return usageError{err}
				}
				return notice.Set(dir, args[0])
			}
			text, err := notice.Read(dir)
			if err == nil && text != "" {
				_, err = fmt.Fprintln(c.OutOrStdout(), text)
			}
			return err
		},
	}
	dataFlag(c, &dir)
	c.Flags().BoolVar(&clear, "clear", false, "say nothing any more")
	return c
}
