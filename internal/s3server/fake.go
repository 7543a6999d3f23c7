package s3server

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// Lack is a promise that a Fake does not keep, without any error, or says that it does not.
type Lack string

// What a Fake may lack.
const (
	LacksNothing    Lack = ""
	IgnoresCreate   Lack = "ignores If-None-Match"
	IgnoresReplace  Lack = "ignores If-Match"
	RacesConditions Lack = "looks whether a condition holds, and writes a little later"
	NoConditions    Lack = "answers 501 to conditions"
	NoTags          Lack = "gives objects no ETag"
	HidesNewest     Lack = "lists what was there before the newest write"
	IgnoresRanges   Lack = "answers every read with the whole object"
	NoDate          Lack = "sends no Date"
)

// Fake is a store in memory that speaks S3's protocol as far as package s3 needs it, and lacks what it is told to. It looks
// at no signature. Requests are counted.
type Fake struct {
	Lacks Lack

	mu      sync.Mutex
	objects map[string][]byte
	newest  string
	asked   []string // METHOD PATH?QUERY of every request
}

// StartFake starts one on a port of this machine, until the test ends, and returns the address of its bucket.
func StartFake(t testing.TB, f *Fake) string {
	srv := httptest.NewServer(f)
	t.Cleanup(srv.Close)
	return FakeURL(srv.URL)
}

// FakeURL returns the address of the bucket of a Fake that is served at an endpoint.
func FakeURL(endpoint string) string {
	return fmt.Sprintf("s3://%s/cell?endpoint=%s", BucketName, url.QueryEscape(endpoint))
}

// Asked returns METHOD PATH?QUERY of every request so far.
func (f *Fake) Asked() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.asked)
}

// Keys returns what is stored, in order.
func (f *Fake) Keys() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.keys()
}

func (f *Fake) keys() []string {
	var out []string
	for k := range f.objects {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// ServeHTTP implements http.Handler.
func (f *Fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.asked = append(f.asked, r.Method+" "+r.URL.RequestURI())
	f.mu.Unlock()
	if f.Lacks == NoDate {
		w.Header()["Date"] = nil
	}
	w.Header().Set("X-Amz-Request-Id", "FAKE")
	key, ok := strings.CutPrefix(r.URL.Path, "/"+BucketName)
	if !ok {
		Refuse(w, http.StatusNotFound, "NoSuchBucket", "")
		return
	}
	key = strings.TrimPrefix(key, "/")
	switch {
	case key == "" && r.Method == http.MethodGet:
		f.list(w, r.URL.Query())
	case r.Method == http.MethodPut:
		f.put(w, r, key)
	case r.Method == http.MethodGet:
		f.get(w, r, key)
	case r.Method == http.MethodDelete:
		f.mu.Lock()
		delete(f.objects, key)
		f.mu.Unlock()
		w.WriteHeader(http.StatusNoContent)
	default:
		Refuse(w, http.StatusMethodNotAllowed, "MethodNotAllowed", "")
	}
}

// Refuse answers with an error as S3 does.
func Refuse(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	fmt.Fprintf(w, "%s<Error><Code>%s</Code><Message>%s</Message><RequestId>FAKE</RequestId></Error>", xml.Header, code, message)
}

func tagOf(body []byte) string { return fmt.Sprintf(`"%.16x"`, sha256.Sum256(body)) }

func checksum(body []byte) string {
	h := sha256.Sum256(body)
	return base64.StdEncoding.EncodeToString(h[:])
}

func (f *Fake) put(w http.ResponseWriter, r *http.Request, key string) {
	body, err := io.ReadAll(io.LimitReader(r.Body, 256<<20))
	if err != nil {
		return
	}
	if want := r.Header.Get("X-Amz-Checksum-Sha256"); want != "" && want != checksum(body) {
		Refuse(w, http.StatusBadRequest, "BadDigest", "")
		return
	}
	if (r.Header.Get("If-Match") != "" || r.Header.Get("If-None-Match") != "") && f.Lacks == NoConditions {
		Refuse(w, http.StatusNotImplemented, "NotImplemented", "A header you provided implies functionality that is not implemented.")
		return
	}
	if f.Lacks == RacesConditions {
		f.mu.Lock()
		ok := f.holds(r, key)
		f.mu.Unlock()
		if ok {
			time.Sleep(20 * time.Millisecond) // it is a race: others must come in between
			r.Header.Del("If-Match")
			r.Header.Del("If-None-Match")
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, there := f.objects[key]; !there && r.Header.Get("If-Match") != "" && f.Lacks != IgnoresReplace {
		Refuse(w, http.StatusNotFound, "NoSuchKey", "")
		return
	}
	if !f.holds(r, key) {
		Refuse(w, http.StatusPreconditionFailed, "PreconditionFailed", "")
		return
	}
	if f.objects == nil {
		f.objects = map[string][]byte{}
	}
	f.objects[key], f.newest = body, key
	f.describe(w, body)
}

// holds reports whether the conditions of a write do. mu is held.
func (f *Fake) holds(r *http.Request, key string) bool {
	is, there := f.objects[key]
	if r.Header.Get("If-None-Match") == "*" && there && f.Lacks != IgnoresCreate {
		return false
	}
	tag := r.Header.Get("If-Match")
	return tag == "" || f.Lacks == IgnoresReplace || there && tag == tagOf(is)
}

// describe sends what S3 says of an object in headers.
func (f *Fake) describe(w http.ResponseWriter, body []byte) {
	if f.Lacks != NoTags {
		w.Header().Set("ETag", tagOf(body))
	}
	w.Header().Set("X-Amz-Checksum-Sha256", checksum(body))
}

func (f *Fake) get(w http.ResponseWriter, r *http.Request, key string) {
	f.mu.Lock()
	body, there := f.objects[key]
	f.mu.Unlock()
	if !there {
		Refuse(w, http.StatusNotFound, "NoSuchKey", "")
		return
	}
	var from, to int
	n, _ := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &from, &to)
	if n == 0 || f.Lacks == IgnoresRanges {
		f.describe(w, body)
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		_, _ = w.Write(body)
		return
	}
	if from >= len(body) {
		Refuse(w, http.StatusRequestedRangeNotSatisfiable, "InvalidRange", "")
		return
	}
	if n == 1 || to >= len(body) {
		to = len(body) - 1
	}
	if f.Lacks != NoTags {
		w.Header().Set("ETag", tagOf(body))
	}
	w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to, len(body)))
	w.Header().Set("Content-Length", strconv.Itoa(to+1-from))
	w.WriteHeader(http.StatusPartialContent)
	_, _ = w.Write(body[from : to+1])
}

func (f *Fake) list(w http.ResponseWriter, q url.Values) {
	most, err := strconv.Atoi(q.Get("max-keys"))
	if err != nil || most > 1000 {
		most = 1000
	}
	after := max(q.Get("start-after"), q.Get("continuation-token"))
	type line struct {
		Key  string
		Size int
	}
	res := struct {
		XMLName               xml.Name `xml:"ListBucketResult"`
		Name, Prefix          string
		EncodingType          string `xml:",omitempty"`
		IsTruncated           bool
		NextContinuationToken string `xml:",omitempty"`
		Contents              []line
	}{Name: BucketName, Prefix: q.Get("prefix"), EncodingType: q.Get("encoding-type")}
	f.mu.Lock()
	for _, k := range f.keys() {
		if k <= after || !strings.HasPrefix(k, q.Get("prefix")) || f.Lacks == HidesNewest && k == f.newest {
			continue
		}
		if len(res.Contents) == most {
			res.IsTruncated = true
			break
		}
		res.NextContinuationToken = k
		name := k
		if res.EncodingType == "url" {
			name = url.QueryEscape(k)
		}
		res.Contents = append(res.Contents, line{name, len(f.objects[k])})
	}
	f.mu.Unlock()
	if !res.IsTruncated {
		res.NextContinuationToken = ""
	}
	w.Header().Set("Content-Type", "application/xml")
	_ = xml.NewEncoder(w).Encode(res)
}
