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
	var single bool
	c := &cobra.Command{
		Use:   "init --data DIR --bucket URL --address HOST:PORT",
		Short: "Make a new service",
		Long: `Make a new service: a data directory with the service's identity, and a bucket. A bucket that exists is
used as it is: several services may share one. To bring a service back, use holdfastd recover.

URL is file:///PATH, a directory that is made if it is not there, or s3://BUCKET/PREFIX?region=REGION, a bucket at
Amazon S3 that is there; &endpoint=https://HOST leads to another store that speaks its protocol. Credentials come from where
AWS tools find them: the environment, ~/.aws, or the role of the machine. A store that lacks what the
service needs is refused.

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
			if err := createData(c.Context(), dir, id, b, single); err != nil {
				return err
			}
			fmt.Fprintf(c.OutOrStdout(), "Made service %s.\nKeep a copy of %s elsewhere, and keep it secret: with the bucket it is the whole service.\n",
				id.Cell, filepath.Join(dir, identity.FileName))
			return nil
		},
	}
	dataFlag(c, &dir)
	singleFlag(c, &single)
	c.Flags().StringVar(&bucketURL, "bucket", "", "`URL` of where the data will lie, such as file:///srv/holdfast/bucket or s3://example/holdfast?region=eu-central-1")
	c.Flags().StringVar(&address, "address", "", "`HOST:PORT` where customers reach the service, such as backup.example.org:7440")
	return c
}
