package s3

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"holdfast/internal/s3server"
	"holdfast/service/bucket"
)

// whose answers which access key a request was signed with.
func whose(r *http.Request) string {
	_, rest, _ := strings.Cut(r.Header.Get("Authorization"), "Credential=")
	key, _, _ := strings.Cut(rest, "/")
	return key
}

// TestCredentials: they are found where AWS tools find them.
func TestCredentials(t *testing.T) {
	var key, token string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		key, token = whose(r), r.Header.Get("X-Amz-Security-Token")
	}))
	defer srv.Close()
	file := filepath.Join(t.TempDir(), "credentials")
	text := "[default]\naws_access_key_id = AKIADEFAULT\naws_secret_access_key = x\n[backup]\naws_access_key_id = AKIABACKUP\naws_secret_access_key = y\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		env        map[string]string
		key, token string
	}{
		{map[string]string{"AWS_ACCESS_KEY_ID": "AKIAENV", "AWS_SECRET_ACCESS_KEY": "z"}, "AKIAENV", ""},
		{map[string]string{"AWS_ACCESS_KEY_ID": "AKIAENV", "AWS_SECRET_ACCESS_KEY": "z", "AWS_SESSION_TOKEN": "tt"}, "AKIAENV", "tt"},
		{map[string]string{"AWS_SHARED_CREDENTIALS_FILE": file}, "AKIADEFAULT", ""},
		{map[string]string{"AWS_SHARED_CREDENTIALS_FILE": file, "AWS_PROFILE": "backup"}, "AKIABACKUP", ""},
		{map[string]string{"AWS_SHARED_CREDENTIALS_FILE": file, "AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1", "AWS_MAX_ATTEMPTS": "7"}, "AKIADEFAULT", ""},
	} {
		settings(t)
		for k, v := range c.env {
			t.Setenv(k, v)
		}
		key, token = "", ""
		if err := opened(t, srv.URL).Put(t.Context(), "k", nil); err != nil || key != c.key || token != c.token {
			t.Errorf("%v: signed by %q with token %q, %v", c.env, key, token, err)
		}
	}
}

// What the environment says of an endpoint would put the data elsewhere than the address does.
func TestEndpointIsTheAddress(t *testing.T) {
	settings(t)
	t.Setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
	t.Setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
	b, err := Open(Address{Bucket: "bucket", Region: "eu-west-1", Hosted: true})
	if err != nil {
		t.Fatal(err)
	}
	if e := b.client.Options().BaseEndpoint; e != nil {
		t.Errorf("requests go to %s", *e)
	}
}

func TestNoCredentials(t *testing.T) {
	settings(t)
	b := opened(t, "http://127.0.0.1:1")
	for op, call := range calls {
		if err := isError(call(t.Context(), b), bucket.ClassDenied, object[op], "AWS_ACCESS_KEY_ID"); err != nil {
			t.Errorf("%s: %v", op, err)
		}
	}
	t.Setenv("AWS_PROFILE", "nobody")
	a, err := ParseAddress("s3://bucket/p?region=eu-west-1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(a); err == nil || !strings.Contains(err.Error(), "nobody") {
		t.Errorf("a profile that is not there: %v", err)
	}
	t.Setenv("AWS_PROFILE", "")
	if a, err = ParseAddress("s3://bucket/p"); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(a); err == nil || !strings.Contains(err.Error(), "region=") {
		t.Errorf("no region: %v", err)
	}
}

// TestRole: a role's credentials are renewed before they end. When nobody can be asked for new ones that is trouble on the
// network, and no lack of rights, if there were some before.
func TestRole(t *testing.T) {
	var n atomic.Int64
	status := http.StatusOK
	lifetime := time.Minute // shorter than what is renewed ahead of time, so every call asks
	role := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if status != http.StatusOK {
			w.WriteHeader(status)
			fmt.Fprint(w, `{"code":"Trouble","message":"later"}`)
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]string{
			"AccessKeyId": fmt.Sprintf("AKIAROLE%d", n.Add(1)), "SecretAccessKey": "rolesecretrolesecret", "Token": "roletoken", "Expiration": time.Now().Add(lifetime).UTC().Format(time.RFC3339),
		})
	}))
	defer role.Close()
	var key string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { key = whose(r) }))
	defer srv.Close()
	open := func() *Bucket {
		settings(t)
		t.Setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", role.URL)
		return opened(t, srv.URL)
	}
	b := open()
	for want := range 3 {
		if err := b.Put(t.Context(), "k", nil); err != nil {
			t.Fatal(err)
		}
		if k := fmt.Sprintf("AKIAROLE%d", want+1); key != k {
			t.Errorf("call %d was signed by %s, want %s", want, key, k)
		}
		b.keys.from.(interface{ Invalidate() }).Invalidate() // as if they had ended
	}
	status = http.StatusForbidden
	if err := isError(b.Put(t.Context(), "k", nil), bucket.ClassDenied, "credentials"); err != nil {
		t.Error(err)
	}
	role.Close()
	if err := isError(b.Put(t.Context(), "k", nil), bucket.ClassConnection, "credentials"); err != nil {
		t.Error(err)
	}
	if err := isError(open().Put(t.Context(), "k", nil), bucket.ClassDenied, "credentials"); err != nil {
		t.Errorf("never any: %v", err)
	}
}

// TestSecretsStaySecret: whatever a store answers, no error shows what we sign with.
func TestSecretsStaySecret(t *testing.T) {
	b := serve(t, func(w http.ResponseWriter, r *http.Request) {
		all := testKey + " " + testSecret + " " + testToken
		w.Header().Set("X-Amz-Request-Id", all)
		w.Header().Set("X-Amz-Bucket-Region", testSecret)
		s3server.Refuse(w, http.StatusForbidden, all, all+"\n"+strings.Repeat(all, 300))
	})
	for op, call := range calls {
		err := call(t.Context(), b)
		if no := isError(err, bucket.ClassDenied, object[op]); no != nil {
			t.Error(no)
		}
		if len(err.Error()) > 2000 || strings.ContainsAny(err.Error(), "\n\x1b") {
			t.Errorf("%d bytes: %q", len(err.Error()), err)
		}
		for e := err; e != nil; e = errors.Unwrap(e) {
			if strings.Contains(e.Error(), testSecret) {
				t.Errorf("%T shows it", e)
			}
		}
	}
}
