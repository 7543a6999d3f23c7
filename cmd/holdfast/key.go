package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

func newKey(g *globals) *cobra.Command {
	key := &cobra.Command{
		Use:   "key",
		Short: "Look after keys",
		Args:  cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, a []string) error {
			if len(a) > 0 {
				return usage("there is no command %q; `holdfast key --help` lists them", "key "+a[0])
			}
			return cmd.Help()
		},
	}
	key.AddCommand(&cobra.Command{
		Use:   "show",
		Short: "Say what this machine's key is for; shows no secret",
		Args:  args(cobra.NoArgs, "holdfast key show"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			m, err := g.machine()
			if err != nil {
				return err
			}
			path, err := g.keyPath()
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "key file  %s\nservice   %s\nvault     %s\nmachine   %s\ngroup     %s\nrights    %s\nchunks    %d KiB on average\nservice key  %x\nlog key      %x\n",
				path, m.Address, m.Vault, m.Signer(), m.Group, m.Rights, m.Chunk>>10, m.ServiceKey, m.LogKey)
			return nil
		},
	})
	key.AddCommand(newKeyProtect(g), newKeyUnprotect(g), newKeyPaper(g), newKeyList(g), newKeyEnrol(g), newKeyDerive(g), newKeyRevoke(g), newKeyRotateRead(g), newKeyUpdate(g))
	return key
}
