package s3

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"path"
	"slices"
	"strings"
)

// form is what an address looks like, for those who wrote it differently.
const form = "write s3://BUCKET/PREFIX?region=REGION, and &endpoint=https://HOST for a store that is not Amazon's"

// maxPrefix bounds a prefix in bytes: with a key it stays below the 1,024 bytes that S3 allows.
const maxPrefix = 200

// Address says which bucket, where. It holds no secrets: those come from where AWS tools look for them.
type Address struct {
	Bucket   string
	Prefix   string // of every key, ending in '/', or ""
	Endpoint string // https://HOST[:PORT], or http:// of this machine; "" is Amazon
	Region   string // "" takes the one that AWS tools are set to
	// Hosted has the bucket's name in the host (BUCKET.HOST) and not in the path (HOST/BUCKET). Amazon's always is.
	Hosted bool
}

// ParseAddress reads s3://BUCKET/PREFIX?endpoint=URL&region=REGION&style=path|host. An error says what to write instead,
// and repeats nothing that may be a secret.
func ParseAddress(raw string) (Address, error) {
	var a Address
	if err := a.parse(raw); err != nil {
		return Address{}, fmt.Errorf("bucket address: %w", err)
	}
	return a, nil
}

func (a *Address) parse(raw string) error {
	rest, ok := strings.CutPrefix(raw, "s3://")
	if !ok {
		return errors.New("it does not begin with s3://; " + form)
	}
	if place, _, _ := strings.Cut(rest, "?"); strings.Contains(place, "@") {
		return errSecret
	}
	u, err := url.Parse(raw)
	if err != nil {
		return errors.New("it is not a URL; " + form)
	}
	switch {
	case u.Fragment != "" || strings.Contains(raw, "#"):
		return errors.New("it has a part that begins with #; " + form)
	case u.Host == "":
		return errors.New("the name of the bucket is missing; " + form)
	}
	a.Bucket = u.Host
	if err := checkBucket(a.Bucket); err != nil {
		return err
	}
	if a.Prefix, err = parsePrefix(u); err != nil {
		return err
	}
	return a.parameters(u.RawQuery)
}

var errSecret = errors.New("credentials do not belong in it: it is stored and shown. Put them into the environment " +
	"(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or into ~/.aws/credentials of the service's user; " + form)

// checkBucket refuses what is not a general purpose bucket.
func checkBucket(name string) error {
	bad := func(r rune) bool { return !('a' <= r && r <= 'z' || '0' <= r && r <= '9' || r == '-' || r == '.') }
	switch {
	case len(name) < 3 || len(name) > 63 || strings.ContainsFunc(name, bad) || strings.Contains(name, "..") || strings.Trim(name, "-.") != name:
		return fmt.Errorf("%.80q is not the name of a bucket: 3 to 63 of a-z, 0-9, '-' and '.'", name)
	case strings.HasSuffix(name, "--x-s3"):
		return fmt.Errorf("%s is a directory bucket (S3 Express), which does not list in order; use a general purpose bucket", name)
	}
	return nil
}

func parsePrefix(u *url.URL) (string, error) {
	p := strings.Trim(u.Path, "/")
	if len(u.Path) <= 1 {
		return "", nil
	}
	bad := func(r rune) bool {
		return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("-_./", r))
	}
	if p == "" || len(p) > maxPrefix || strings.ContainsFunc(p, bad) || path.Clean("/"+p) != "/"+p || !slices.Contains([]string{"/" + p, "/" + p + "/"}, u.Path) {
		return "", fmt.Errorf("%.80q is not a prefix: names of a-z, A-Z, 0-9, '-', '_' and '.' joined by '/', at most %d bytes", u.Path, maxPrefix)
	}
	return p + "/", nil
}

// parameters reads what follows the question mark.
func (a *Address) parameters(query string) error {
	q, err := url.ParseQuery(query)
	if err != nil {
		return errors.New("what follows the question mark cannot be read; " + form)
	}
	for name, values := range q {
		if secret(name) {
			return errSecret
		}
		if len(values) != 1 || values[0] == "" {
			return fmt.Errorf("the parameter %q must be there once, with a value; %s", name, form)
		}
		v := values[0]
		switch name {
		case "endpoint":
			if err := checkEndpoint(v); err != nil {
				return err
			}
			a.Endpoint = strings.TrimSuffix(v, "/")
		case "region":
			if len(v) > 64 || strings.Trim(strings.ToLower(v), "abcdefghijklmnopqrstuvwxyz0123456789-_.") != "" {
				return errors.New("region is not the name of one, such as eu-central-1")
			}
			a.Region = v
		case "style":
			if v != "path" && v != "host" {
				return errors.New("style is path (HOST/BUCKET, for most stores) or host (BUCKET.HOST)")
			}
			a.Hosted = v == "host"
		default:
			return fmt.Errorf("there is no parameter %.40q; %s", name, form)
		}
	}
	if a.Endpoint == "" {
		if q.Has("style") {
			return errors.New("style is for an endpoint; Amazon's buckets are always found by host")
		}
		a.Hosted = true
	}
	if a.Endpoint != "" && a.Region == "" {
		a.Region = "us-east-1" // what most stores call theirs, or do not look at
	}
	return nil
}

// secret reports whether a parameter looks like one that would carry credentials.
func secret(name string) bool {
	n := strings.ToLower(name)
	for _, s := range []string{"key", "secret", "token", "password", "credential", "signature"} {
		if strings.Contains(n, s) {
			return true
		}
	}
	return false
}

// checkEndpoint refuses plain HTTP except to this machine. A signature proves who asks, but nothing proves who answers
// then: whoever sits on the line could acknowledge a segment that was never stored.
func checkEndpoint(v string) error {
	u, err := url.Parse(v)
	switch {
	case err == nil && u.User != nil:
		return errSecret
	case err != nil || u.Host == "" || u.Hostname() == "" || u.Scheme != "https" && u.Scheme != "http",
		strings.Trim(u.Path, "/") != "", u.RawQuery != "", u.ForceQuery, u.Fragment != "":
		return errors.New("endpoint must be https://HOST or https://HOST:PORT")
	case u.Scheme == "http" && !loopback(u.Hostname()):
		return fmt.Errorf("endpoint http://%s: without TLS anybody on the line could answer for the store; use https:// "+
			"(AWS_CA_BUNDLE names a file with a certificate authority of your own), or a tunnel that ends at 127.0.0.1", u.Host)
	}
	return nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
