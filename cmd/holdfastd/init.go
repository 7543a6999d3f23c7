package main

import (
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"holdfast/service/bucket/open"
	"holdfast/service/identity"
)

func initCommand() *cobra.Command {
	var dir, bucketURL, address string
	c := &cobra.Command{
		Use:   "init --data DIR --bucket file:///PATH --address HOST:PORT",
		Short: "Make a new service",
		Long: `Make a new service: a data directory with the service's identity, and a bucket. A bucket that exists is
used as it is: several services may share one. To bring a service back, use holdfastd recover.

HOST:PORT is where customers will reach the service; it becomes part of the tokens that they are given.`,
		Args: exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			if err := required(c, "data", "bucket", "address"); err != nil {
				return err
			}
			if err := vacant(dir); err != nil {
				return err
			}
			id, err := identity.New(bucketURL, address)
			if err != nil {
				return usageError{err}
			}
			if err := open.Check(bucketURL); err != nil {
				return usageError{err}
			}
			b, err := open.Create(bucketURL)
			if err != nil {
				return err
			}
			if err := createData(c.Context(), dir, id, b); err != nil {
				return err
			}
			fmt.Fprintf(c.OutOrStdout(), "Made service %s.\nKeep a copy of %s elsewhere, and keep it secret: with the bucket it is the whole service.\n",
				id.Cell, filepath.Join(dir, identity.FileName))
			return nil
		},
	}
	dataFlag(c, &dir)
	c.Flags().StringVar(&bucketURL, "bucket", "", "`URL` of where the data will lie, such as file:///srv/holdfast/bucket")
	c.Flags().StringVar(&address, "address", "", "`HOST:PORT` where customers reach the service, such as backup.example.org:7440")
	return c
}
