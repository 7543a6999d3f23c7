package s3

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/xml"
	"errors"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"

	"holdfast/service/bucket"
)

// What bounds a connection, and how many there are. The deadline of a call is the caller's.
const (
	dialTimeout   = 10 * time.Second
	tlsTimeout    = 10 * time.Second
	headerTimeout = 2 * time.Minute // of an answer, after the request was sent
	idleTimeout   = 30 * time.Second
	continueAfter = time.Second // for which a large Put waits to hear that its body is wanted
	maxConns      = 64          // to the store that are kept, and as many fresh ones
	readBuffer    = 4 << 10     // bytes, of each connection
	writeBuffer   = 64 << 10    // bytes, of each connection
	maxHeader     = 64 << 10    // of an answer, bytes

	maxErrorBody = 64 << 10 // of an answer that is no success, and of one that needs none, bytes
	maxListBody  = 8 << 20  // a thousand keys of the greatest length, every byte escaped, are half of that
)

// line carries requests to the store: over a pool of connections, or each over its own.
type line struct{ pooled, fresh *http.Transport }

// newLine takes from cfg what AWS tools are set to trust (AWS_CA_BUNDLE). Proxies are those of the environment.
func newLine(cfg aws.Config) (*line, error) {
	pooled := &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            (&net.Dialer{Timeout: dialTimeout, KeepAlive: 15 * time.Second}).DialContext,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    tlsTimeout,
		ResponseHeaderTimeout:  headerTimeout,
		ExpectContinueTimeout:  continueAfter,
		IdleConnTimeout:        idleTimeout,
		MaxIdleConns:           maxConns,
		MaxIdleConnsPerHost:    maxConns,
		MaxConnsPerHost:        maxConns,
		MaxResponseHeaderBytes: maxHeader,
		ReadBufferSize:         readBuffer,
		WriteBufferSize:        writeBuffer,
		DisableCompression:     true,
		Protocols:              new(http.Protocols),
	}
	pooled.Protocols.SetHTTP1(true)
	if c, ok := cfg.HTTPClient.(*awshttp.BuildableClient); ok {
		if t := c.GetTransport().TLSClientConfig; t != nil {
			pooled.TLSClientConfig.RootCAs = t.RootCAs
		}
	} else if cfg.HTTPClient != nil {
		return nil, errors.New("the AWS settings ask for an HTTP client of their own")
	}
	fresh := pooled.Clone()
	fresh.DisableKeepAlives = true
	return &line{pooled, fresh}, nil
}

// answer is what came back on the line for one request. A Get, a List and so on expects one.
type answer struct {
	limit int64  // of a good answer's body, bytes
	root  string // if not "", the body must be a whole XML document with this root

	sent   bool // the request was made; what fails before that is about ourselves
	status int  // 0: no answer
	header http.Header
	length int64 // as the header says; -1 if it does not
}

type answerKey struct{}

// expect returns a ctx for one request, and where its answer will be noted.
func expect(ctx context.Context, limit int64) (context.Context, *answer) {
	x := &answer{limit: limit, header: http.Header{}, length: -1}
	return context.WithValue(ctx, answerKey{}, x), x
}

// errLong reports an answer that is longer than the question allows.
var errLong = refuse(bucket.ClassCorrupt, "the store sends more than it was asked for")

// Do implements the SDK's client. It sends r once and follows no redirect.
func (l *line) Do(r *http.Request) (*http.Response, error) {
	x, ok := r.Context().Value(answerKey{}).(*answer)
	if !ok {
		return nil, errors.New("s3: a request that expects no answer")
	}
	t := l.pooled
	if bucket.IsFresh(r.Context()) {
		t = l.fresh
	}
	x.sent = true
	res, err := t.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	x.status, x.header, x.length = res.StatusCode, res.Header, res.ContentLength
	if res.StatusCode/100 != 2 {
		res.Body = &cutBody{res.Body, maxErrorBody, io.EOF}
		return res, nil
	}
	res.Body = &cutBody{res.Body, max(x.limit, maxErrorBody), errLong}
	if x.root == "" {
		return res, nil
	}
	doc, err := io.ReadAll(res.Body)
	res.Body.Close()
	if err != nil {
		return nil, err
	}
	if err := whole(doc, x.root); err != nil {
		return nil, err
	}
	res.Body = io.NopCloser(bytes.NewReader(doc))
	return res, nil
}

// cutBody ends with an error of its own where the body goes on after left bytes.
type cutBody struct {
	io.ReadCloser
	left int64
	end  error
}

// Read implements io.Reader.
func (c *cutBody) Read(p []byte) (int, error) {
	if c.left == 0 {
		n, err := c.ReadCloser.Read(p[:min(len(p), 1)])
		if n > 0 {
			err = c.end
		}
		return 0, err
	}
	n, err := c.ReadCloser.Read(p[:min(int64(len(p)), c.left)])
	c.left -= int64(n)
	return n, err
}

// whole reports whether doc is one XML element named root, with an end. A decoder that only looks for what it knows takes
// an error, half a list or nothing at all for a list that is empty.
func whole(doc []byte, root string) error {
	d := xml.NewDecoder(bytes.NewReader(doc))
	name, depth := "", 0
	for {
		t, err := d.Token()
		if err == io.EOF && name == root {
			return nil
		}
		if err != nil {
			return refuse(bucket.ClassCorrupt, "what the store answered is not a whole list (%d bytes, %.40q)", len(doc), doc[:min(len(doc), 40)])
		}
		switch t := t.(type) {
		case xml.StartElement:
			if depth == 0 && name != "" || depth == 0 && t.Name.Local != root {
				return refuse(bucket.ClassCorrupt, "the store answered with %.40q where a list was asked for", t.Name.Local)
			}
			if depth++; name == "" {
				name = t.Name.Local
			}
		case xml.EndElement:
			depth--
		}
	}
}
