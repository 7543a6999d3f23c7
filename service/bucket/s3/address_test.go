package s3

import (
	"strings"
	"testing"
)

func TestParseAddress(t *testing.T) {
	for raw, want := range map[string]Address{
		"s3://bucket":    {"bucket", "", "", "", true},
		"s3://bucket/":   {"bucket", "", "", "", true},
		"s3://bucket/a":  {"bucket", "a/", "", "", true},
		"s3://bucket/a/": {"bucket", "a/", "", "", true},
		"s3://my.bucket-1/A/b_c.d/e?region=eu-west-1":                       {"my.bucket-1", "A/b_c.d/e/", "", "eu-west-1", true},
		"s3://bucket/a?endpoint=https://s.example.org":                      {"bucket", "a/", "https://s.example.org", "us-east-1", false},
		"s3://bucket/a?endpoint=https://s.example.org/":                     {"bucket", "a/", "https://s.example.org", "us-east-1", false},
		"s3://bucket/a?endpoint=https%3A%2F%2Fs.example.org:9000&region=x":  {"bucket", "a/", "https://s.example.org:9000", "x", false},
		"s3://bucket/a?region=fr&style=host&endpoint=https://s.example.org": {"bucket", "a/", "https://s.example.org", "fr", true},
		"s3://bucket/a?style=path&endpoint=https://s.example.org":           {"bucket", "a/", "https://s.example.org", "us-east-1", false},
		"s3://bucket/a?endpoint=http://127.0.0.1:9000":                      {"bucket", "a/", "http://127.0.0.1:9000", "us-east-1", false},
		"s3://bucket/a?endpoint=http://[::1]:9000":                          {"bucket", "a/", "http://[::1]:9000", "us-east-1", false},
		"s3://bucket/a?endpoint=http://localhost:9000":                      {"bucket", "a/", "http://localhost:9000", "us-east-1", false},
		"s3://bucket/" + strings.Repeat("a", maxPrefix) + "?region=r":       {"bucket", strings.Repeat("a", maxPrefix) + "/", "", "r", true},
	} {
		if got, err := ParseAddress(raw); err != nil || got != want {
			t.Errorf("%s: %+v, %v; want %+v", raw, got, err, want)
		}
	}
}

// TestBadAddresses: each is refused with what to do, and nothing that may be a secret is repeated.
func TestBadAddresses(t *testing.T) {
	for raw, says := range map[string]string{
		"s3:":                             "s3://BUCKET/PREFIX",
		"s3:/bucket":                      "s3://BUCKET/PREFIX",
		"S3://bucket":                     "s3://BUCKET/PREFIX",
		"s3://":                           "name of the bucket is missing",
		"s3:///prefix":                    "name of the bucket is missing",
		"s3://Bucket":                     "not the name of a bucket",
		"s3://ab":                         "not the name of a bucket",
		"s3://-abc":                       "not the name of a bucket",
		"s3://a..b":                       "not the name of a bucket",
		"s3://bucket:9000/a":              "not the name of a bucket",
		"s3://" + strings.Repeat("a", 64): "not the name of a bucket",
		"s3://bucket--euw1-az1--x-s3/a":   "directory bucket",
		"s3://bucket/a//b":                "not a prefix",
		"s3://bucket//a":                  "not a prefix",
		"s3://bucket//":                   "not a prefix",
		"s3://bucket/a/../b":              "not a prefix",
		"s3://bucket/./a":                 "not a prefix",
		"s3://bucket/a%20b":               "not a prefix",
		"s3://bucket/a%0Ab":               "not a prefix",
		"s3://bucket/" + strings.Repeat("a", 201):             "not a prefix",
		"s3://bucket/a#b":                                     "begins with #",
		"s3://bucket/a#":                                      "begins with #",
		"s3://bucket/a%zz":                                    "not a URL",
		"s3://bucket/a?region=":                               `"region" must be there once`,
		"s3://bucket/a?region=a&region=b":                     `"region" must be there once`,
		"s3://bucket/a?region=EU%20WEST":                      "region is not the name",
		"s3://bucket/a?regoin=eu-west-1":                      `no parameter "regoin"`,
		"s3://bucket/a?style=path":                            "style is for an endpoint",
		"s3://bucket/a?endpoint=https://h&style=x":            "style is path",
		"s3://bucket/a?endpoint=h.example.org":                "endpoint must be https://HOST",
		"s3://bucket/a?endpoint=ftp://h":                      "endpoint must be https://HOST",
		"s3://bucket/a?endpoint=https://h/path":               "endpoint must be https://HOST",
		"s3://bucket/a?endpoint=https://h?x=1":                "endpoint must be https://HOST",
		"s3://bucket/a?endpoint=https://:9000":                "endpoint must be https://HOST",
		"s3://bucket/a?endpoint=http://10.0.0.1:9000":         "without TLS",
		"s3://bucket/a?endpoint=http://localhost.example.org": "without TLS",
		"s3://bucket/a?region=%zz":                            "cannot be read",
		// credentials
		"s3://AKIAEXAMPLE:hushhush@bucket/a":            "do not belong in it",
		"s3://AKIAEXAMPLE:hush/hushhush@bucket/a":       "do not belong in it",
		"s3://hushhush@bucket/a":                        "do not belong in it",
		"s3://bucket/a?access_key=hushhush":             "do not belong in it",
		"s3://bucket/a?secretKey=hushhush":              "do not belong in it",
		"s3://bucket/a?X-Amz-Credential=hushhush":       "do not belong in it",
		"s3://bucket/a?endpoint=https://hushhush:x@h":   "do not belong in it",
		"s3://bucket/a?endpoint=https://u:hushhush%40h": "do not belong in it",
	} {
		a, err := ParseAddress(raw)
		if err == nil || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "hushhush") {
			t.Errorf("%s: %+v, %v; want an error that says %q", raw, a, err, says)
		}
	}
}

func FuzzParseAddress(f *testing.F) {
	f.Add("s3://bucket/prefix?endpoint=https://h&region=r&style=host")
	f.Add("s3://u:p@bucket")
	f.Fuzz(func(t *testing.T, raw string) {
		a, err := ParseAddress(raw)
		if err != nil {
			return
		}
		if strings.ContainsAny(a.Bucket+a.Prefix+a.Region, "@?#%&= \n") || a.Bucket == "" || a.Prefix != "" && !strings.HasSuffix(a.Prefix, "/") || strings.Contains(a.Endpoint, "@") {
			t.Errorf("%q became %+v", raw, a)
		}
	})
}
