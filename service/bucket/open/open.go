// Package open finds the bucket that a URL names. It is apart from package bucket because it knows
// every implementation.
package open

import (
	"fmt"
	"net/url"
	"path/filepath"

	"holdfast/service/bucket"
	"holdfast/service/bucket/dir"
)

// Bucket opens an existing bucket: file:///PATH is the directory /PATH.
func Bucket(rawURL string) (bucket.Bucket, error) {
	p, err := path(rawURL)
	if err != nil {
		return nil, err
	}
	return dir.Open(p)
}

// Create makes the bucket that the URL names and opens it; one that exists is opened as it is.
func Create(rawURL string) (bucket.Bucket, error) {
	p, err := path(rawURL)
	if err != nil {
		return nil, err
	}
	return dir.Create(p)
}

// Check says what is wrong with a bucket's URL.
func Check(rawURL string) error {
	_, err := path(rawURL)
	return err
}

// path returns the directory that a bucket's URL names.
func path(rawURL string) (string, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return "", fmt.Errorf("bucket address %q is not a URL; write file:///PATH", rawURL)
	}
	switch {
	case u.Scheme == "":
		return "", fmt.Errorf("bucket address %q has no scheme; for a directory write file:///PATH", rawURL)
	case u.Scheme != "file":
		return "", fmt.Errorf("bucket address %q: this version keeps buckets in directories only; write file:///PATH", rawURL)
	case u.Host != "" || u.User != nil || u.Opaque != "" || !filepath.IsAbs(u.Path):
		return "", fmt.Errorf("bucket address %q needs three slashes and an absolute path: file:///PATH", rawURL)
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return "", fmt.Errorf("bucket address %q has a part that begins with ? or #; write these as %%3F and %%23", rawURL)
	}
	return filepath.Clean(u.Path), nil
}
