// Package open finds the bucket that a URL names. It is apart from package bucket because it knows
// every implementation.
package open

import (
	"context"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"holdfast/service/bucket"
	"holdfast/service/bucket/dir"
	"holdfast/service/bucket/s3"
)

// reachTimeout bounds the first question to a store.
const reachTimeout = 30 * time.Second

// isS3 reports whether the URL is for package s3. Its parser is asked before any other sees it: a URL that was
// written with credentials in it must not be repeated in an error.
func isS3(rawURL string) bool {
	return len(rawURL) >= 3 && strings.EqualFold(rawURL[:3], "s3:")
}

// Bucket opens an existing bucket: file:///PATH is the directory /PATH, and s3.ParseAddress says what s3:// means. A
// store is not asked anything yet.
func Bucket(rawURL string) (bucket.Bucket, error) {
	if isS3(rawURL) {
		a, err := s3.ParseAddress(rawURL)
		if err != nil {
			return nil, err
		}
		return s3.Open(a)
	}
	p, err := path(rawURL)
	if err != nil {
		return nil, err
	}
	return dir.Open(p)
}

// Create makes the bucket that the URL names and opens it; one that exists is opened as it is. A bucket of a
// store is not made, because its owner decides how, but it must answer.
func Create(rawURL string) (bucket.Bucket, error) {
	if isS3(rawURL) {
		b, err := Bucket(rawURL)
		if err != nil {
			return nil, err
		}
		ctx, cancel := context.WithTimeout(context.Background(), reachTimeout)
		defer cancel()
		if _, err := b.List(ctx, "", "", 1); err != nil {
			return nil, fmt.Errorf("reach the bucket: %w", err)
		}
		return b, nil
	}
	p, err := path(rawURL)
	if err != nil {
		return nil, err
	}
	return dir.Create(p)
}

// Check says what is wrong with a bucket's URL.
func Check(rawURL string) error {
	if isS3(rawURL) {
		_, err := s3.ParseAddress(rawURL)
		return err
	}
	_, err := path(rawURL)
	return err
}

// path returns the directory that a bucket's URL names.
func path(rawURL string) (string, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return "", fmt.Errorf("the bucket's address is not a URL; write file:///PATH or s3://BUCKET/PREFIX")
	}
	switch {
	case u.Scheme == "":
		return "", fmt.Errorf("bucket address %q has no scheme; for a directory write file:///PATH, for a store s3://BUCKET/PREFIX", rawURL)
	case u.Scheme != "file":
		return "", fmt.Errorf("bucket address %q: a bucket is a directory, file:///PATH, or at a store, s3://BUCKET/PREFIX", u.Redacted())
	case u.Host != "" || u.User != nil || u.Opaque != "" || !filepath.IsAbs(u.Path):
		return "", fmt.Errorf("bucket address %q needs three slashes and an absolute path: file:///PATH", rawURL)
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return "", fmt.Errorf("bucket address %q has a part that begins with ? or #; write these as %%3F and %%23", rawURL)
	}
	return filepath.Clean(u.Path), nil
}
