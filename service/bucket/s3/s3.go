// Package s3 keeps a bucket at Amazon S3 or a store that speaks its protocol.
//
// # Requests
//
// A call is one HTTP request (Swap: a read and a write; List: one for each page, where a store answers shorter pages than
// it is asked for or holds foreign keys), and none is repeated here: package steady does that, and knows what was asked before. net/http alone
// sends a read again if a connection that had been idle turns out to be closed. Redirects are not followed. Connections
// are HTTP/1.1: one that is stuck holds up one call. A ctx of bucket.Fresh has a connection of its own, which is closed afterwards.
//
// # What is trusted
//
// A Put carries the SHA-256 of its body, signed, and as the object's checksum: a store that received something else refuses
// it. If the store answers a checksum it must be ours. A Get returns exactly the bytes that were asked for: status,
// Content-Range and length are compared with the question, and a whole object with its checksum, if the store sends one. The
// caller verifies content. A list must be a whole XML document of the right kind, with keys in order.
//
// # Memory
//
// Put and Swap hold the caller's body and no copy of it; Get allocates what it returns, once; List reads at most
// maxListBody and makes objects of it. Beside that each connection has two buffers, readBuffer and writeBuffer. Answers that are
// longer than what was asked for are cut off.
package s3

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	sdk "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go/logging"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"holdfast/service/bucket"
)

const (
	// maxSwap bounds an object that is compared by Swap, bytes.
	maxSwap = 64 << 10
	// maxPages bounds the requests of one List.
	maxPages = 1000
	// clockKey is asked for to see a Date. It is no key of a bucket, so nothing is there.
	clockKey = ".clock"
)

// Bucket is a bucket of a store, or what is below a prefix in it. It needs no Close.
type Bucket struct {
	addr   Address
	client *sdk.Client
	keys   *keys
}

var _ bucket.Bucket = (*Bucket)(nil)

// Open makes ready to use a bucket and asks nothing of the store yet. Credentials, and the region if the address has none,
// come from the environment, the shared files of AWS tools, or the role of the instance or container. The endpoint
// comes from the address alone: it says where the data are.
func Open(a Address) (*Bucket, error) {
	cfg, err := load(a)
	if err != nil {
		return nil, fmt.Errorf("open bucket %s: %w", a.Bucket, err)
	}
	b := &Bucket{addr: a, keys: &keys{from: cfg.Credentials}}
	line, err := newLine(cfg)
	if err != nil {
		return nil, fmt.Errorf("open bucket %s: %w", a.Bucket, err)
	}
	b.client = sdk.NewFromConfig(cfg, func(o *sdk.Options) {
		o.BaseEndpoint = nil // what the environment says
		if a.Endpoint != "" {
			o.BaseEndpoint = aws.String(a.Endpoint)
		}
		o.UsePathStyle = !a.Hosted
		o.Credentials = b.keys
		o.HTTPClient = line
		o.Retryer = aws.NopRetryer{}
		o.RetryMaxAttempts = 0
		o.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
		o.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired
		o.DisableS3ExpressSessionAuth = aws.Bool(true)
		o.ClientLogMode = 0
		o.Logger = logging.Nop{} // what matters is in the errors
	})
	return b, nil
}

func (b *Bucket) key(key string) *string { return aws.String(b.addr.Prefix + key) }

// put is Put with a condition: ifMatch is an ETag, ifNone forbids that there is an object.
func (b *Bucket) put(ctx context.Context, key string, body []byte, ifMatch string, ifNone bool) (*answer, error) {
	if len(body) > bucket.MaxObject {
		return nil, refuse(bucket.ClassConfig, "%d bytes exceed the limit of %d", len(body), bucket.MaxObject)
	}
	sum := sha256.Sum256(body)
	want := base64.StdEncoding.EncodeToString(sum[:])
	in := &sdk.PutObjectInput{
		Bucket: &b.addr.Bucket, Key: b.key(key), Body: bytes.NewReader(body), ContentLength: aws.Int64(int64(len(body))),
		ChecksumSHA256: &want,
	}
	if ifMatch != "" {
		in.IfMatch = &ifMatch
	}
	if ifNone {
		in.IfNoneMatch = aws.String("*")
	}
	ctx, x := expect(ctx, 0)
	out, err := b.client.PutObject(ctx, in, signed(sum))
	if err != nil {
		return x, b.fault(ctx, x, err)
	}
	if got := aws.ToString(out.ChecksumSHA256); got != "" && got != want {
		return x, refuse(bucket.ClassCorrupt, "the store says that what it has got has the SHA-256 %.60q; it was sent %s", got, want)
	}
	return x, nil
}

// signed has the body's hash in the signature, over TLS too, and computed once.
func signed(sum [32]byte) func(*sdk.Options) {
	set := middleware.InitializeMiddlewareFunc("PayloadHash", func(ctx context.Context, in middleware.InitializeInput, next middleware.InitializeHandler) (middleware.InitializeOutput, middleware.Metadata, error) {
		return next.HandleInitialize(v4.SetPayloadHash(ctx, hex.EncodeToString(sum[:])), in)
	})
	return func(o *sdk.Options) {
		o.APIOptions = append(o.APIOptions, func(s *middleware.Stack) error { return s.Initialize.Add(set, middleware.After) })
	}
}

// Put implements bucket.Bucket.
func (b *Bucket) Put(ctx context.Context, key string, body []byte) error {
	if err := bucket.CheckKey(key); err != nil {
		return badKey(err)
	}
	_, err := b.put(ctx, key, body, "", false)
	return about("put", key, err)
}

// Get implements bucket.Bucket.
func (b *Bucket) Get(ctx context.Context, key string, off, n int64) ([]byte, error) {
	if err := bucket.CheckKey(key); err != nil {
		return nil, badKey(err)
	}
	body, _, err := b.get(ctx, key, off, n)
	return body, about("get", key, err)
}

// get returns the bytes, and the object's ETag.
func (b *Bucket) get(ctx context.Context, key string, off, n int64) ([]byte, string, error) {
	if off < 0 || off > bucket.MaxObject || n > bucket.MaxObject-off {
		return nil, "", short(off, n)
	}
	// No range is empty. Where nothing, or nobody knows how much, is asked for from an offset, the byte before
	// it says whether the object reaches that far, and is taken off again.
	r := span{off: off, n: n}
	if off > 0 && n <= 0 {
		r.off--
		r.cut = 1
		if n == 0 {
			r.n = 1
		}
	}
	if n == 0 && off == 0 { // any object will do, but there is one
		r = span{n: 1, cut: 1, any: true}
	}
	return b.ask(ctx, key, r)
}

// ask is get of a span.
func (b *Bucket) ask(ctx context.Context, key string, r span) ([]byte, string, error) {
	in := &sdk.GetObjectInput{Bucket: &b.addr.Bucket, Key: b.key(key)}
	if !r.whole() {
		in.Range = aws.String(r.header())
	}
	ctx, x := expect(ctx, r.limit())
	var opts []func(*sdk.Options)
	if r.whole() {
		opts = append(opts, checksumMode)
	}
	out, err := b.client.GetObject(ctx, in, opts...)
	if x.status == http.StatusRequestedRangeNotSatisfiable {
		if r.any {
			return []byte{}, "", nil
		}
		return nil, "", r.short()
	}
	if err != nil {
		return nil, "", b.fault(ctx, x, err)
	}
	defer out.Body.Close()
	body, err := r.read(x, out.Body)
	if err != nil {
		return nil, "", b.fault(ctx, x, err)
	}
	if err := verify(r, body, aws.ToString(out.ChecksumSHA256)); err != nil {
		return nil, "", err
	}
	if int64(len(body)) < r.cut {
		return nil, "", r.short()
	}
	return body[r.cut:], aws.ToString(out.ETag), nil
}

func short(off, n int64) error {
	return &bucket.Error{Class: bucket.ClassRefused, Err: fmt.Errorf("%d bytes at %d: %w", n, off, bucket.ErrShort)}
}

// checksumMode has the store send the checksum of the object. The SDK has a switch that also verifies it; we do
// that ourselves, to know what failed.
func checksumMode(o *sdk.Options) {
	o.APIOptions = append(o.APIOptions, smithyhttp.SetHeaderValue("X-Amz-Checksum-Mode", "ENABLED"))
}

// verify compares a whole object with the checksum that its writer gave it. Checksums of parts have a '-'.
func verify(r span, body []byte, sum string) error {
	if !r.whole() || sum == "" || strings.Contains(sum, "-") {
		return nil
	}
	if is := sha256.Sum256(body); sum != base64.StdEncoding.EncodeToString(is[:]) {
		return refuse(bucket.ClassCorrupt, "what arrived does not have the checksum that the store keeps with it")
	}
	return nil
}

// span is the range that is asked of the store.
type span struct {
	off, n int64 // bytes; n < 0: to the end
	cut    int64 // bytes at the beginning that the caller did not ask for
	any    bool  // what is in the object does not matter
	less   bool  // the object may end before
}

// short is the error of an object that does not reach as far as its caller asked.
func (r span) short() error { return short(r.off+r.cut, max(r.n-r.cut, -1)) }

func (r span) whole() bool { return r.off == 0 && r.n < 0 }

func (r span) header() string {
	if r.n < 0 {
		return fmt.Sprintf("bytes=%d-", r.off)
	}
	return fmt.Sprintf("bytes=%d-%d", r.off, r.off+r.n-1)
}

// limit is how many bytes an answer may have.
func (r span) limit() int64 {
	if r.n < 0 {
		return bucket.MaxObject
	}
	return r.n
}

// read reads the answer to r, whose shape must be that of the question.
func (r span) read(x *answer, body io.Reader) ([]byte, error) {
	length := x.length
	switch x.status {
	case http.StatusOK:
		// The whole object. That is an answer to a range only if it is the same.
		if r.off > 0 || r.n >= 0 && length != r.n {
			if r.any && length == 0 {
				return make([]byte, r.cut), nil
			}
			if r.off == 0 && length >= 0 && length < r.n {
				if r.less {
					break
				}
				return nil, r.short()
			}
			return nil, refuse(bucket.ClassConfig, "the store, or a proxy before it, ignores ranges: %s was answered with the whole object; "+
				"this one cannot be used", r.header())
		}
	case http.StatusPartialContent:
		from, to, total, err := contentRange(x.header.Get("Content-Range"))
		switch {
		case err != nil || r.whole() || from != r.off || r.n >= 0 && to-from+1 > r.n || total >= 0 && to >= total || length >= 0 && length != to-from+1:
			return nil, refuse(bucket.ClassCorrupt, "%s was answered with Content-Range %.60q and %d bytes", r.header(), x.header.Get("Content-Range"), length)
		case r.less && to+1 == total:
		case r.n >= 0 && to-from+1 < r.n && to+1 == total:
			_, _ = io.CopyN(io.Discard, body, maxErrorBody) // so that the connection can be used again
			return nil, r.short()
		case r.n >= 0 && to-from+1 < r.n, r.n < 0 && total >= 0 && to+1 != total:
			return nil, refuse(bucket.ClassCorrupt, "%s was answered with a part of it, %.60q", r.header(), x.header.Get("Content-Range"))
		}
		length = to - from + 1
	default:
		return nil, refuse(bucket.ClassServer, "the store answered a read with %d", x.status)
	}
	if length < 0 {
		return nil, refuse(bucket.ClassCorrupt, "the store does not say how long the object is")
	}
	if length > bucket.MaxObject {
		return nil, refuse(bucket.ClassCorrupt, "%d bytes exceed the limit of %d for an object", length, bucket.MaxObject)
	}
	p := make([]byte, length)
	if _, err := io.ReadFull(body, p); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	var more [1]byte
	if n, err := io.ReadFull(body, more[:]); n > 0 {
		return nil, errLong
	} else if err != io.EOF {
		return nil, err
	}
	return p, nil
}

// contentRange reads "bytes FROM-TO/TOTAL"; total is -1 if it is "*".
func contentRange(v string) (from, to, total int64, err error) {
	v, ok := strings.CutPrefix(v, "bytes ")
	span, size, ok2 := strings.Cut(v, "/")
	first, last, ok3 := strings.Cut(span, "-")
	if !ok || !ok2 || !ok3 {
		return 0, 0, 0, errors.New("not a range")
	}
	total = -1
	var errs [3]error
	from, errs[0] = strconv.ParseInt(first, 10, 64)
	to, errs[1] = strconv.ParseInt(last, 10, 64)
	if size != "*" {
		total, errs[2] = strconv.ParseInt(size, 10, 64)
	}
	if err := errors.Join(errs[:]...); err != nil || from < 0 || to < from || to-from >= 1<<40 {
		return 0, 0, 0, errors.New("not a range")
	}
	return from, to, total, nil
}

// List implements bucket.Bucket. Keys that are none of a bucket are passed over.
func (b *Bucket) List(ctx context.Context, prefix, after string, max int) ([]bucket.Object, error) {
	if max <= 0 || max > bucket.MaxList {
		max = bucket.MaxList
	}
	if prefix != "" && bucket.CheckKey(prefix) != nil && bucket.CheckKey(prefix+"0") != nil {
		return nil, nil // no key begins like that, and some stores refuse the question
	}
	out, err := b.list(ctx, prefix, after, max)
	if err != nil {
		return nil, about("list", strconv.Quote(prefix), err)
	}
	return out, nil
}

func (b *Bucket) list(ctx context.Context, prefix, after string, max int) ([]bucket.Object, error) {
	var out []bucket.Object
	in := &sdk.ListObjectsV2Input{
		Bucket: &b.addr.Bucket, Prefix: b.key(prefix), MaxKeys: aws.Int32(int32(max)), EncodingType: types.EncodingTypeUrl,
	}
	last := ""
	if after != "" {
		last = *b.key(after)
		in.StartAfter = &last
	}
	for range maxPages {
		page, more, err := b.page(ctx, in, last)
		if err != nil {
			return nil, err
		}
		for _, o := range page {
			last = o.Key
			o.Key = strings.TrimPrefix(o.Key, b.addr.Prefix)
			if bucket.CheckKey(o.Key) == nil {
				out = append(out, o)
			}
			if len(out) == max {
				return out, nil
			}
		}
		if more == "" {
			return out, nil
		}
		in.ContinuationToken = &more
	}
	return nil, refuse(bucket.ClassCorrupt, "%d pages of a list held fewer than %d objects: what else is in this bucket? Give the service a prefix of its own", maxPages, max)
}

// page asks for one page and returns its objects, with their full keys, all after last, and the token for the next page; "" if there is none.
func (b *Bucket) page(ctx context.Context, in *sdk.ListObjectsV2Input, last string) (page []bucket.Object, more string, err error) {
	ctx, x := expect(ctx, maxListBody)
	x.root = "ListBucketResult"
	res, err := b.client.ListObjectsV2(ctx, in)
	if err != nil {
		return nil, "", b.fault(ctx, x, err)
	}
	page = make([]bucket.Object, 0, len(res.Contents))
	for _, o := range res.Contents {
		key := aws.ToString(o.Key)
		if res.EncodingType == types.EncodingTypeUrl {
			if key, err = url.QueryUnescape(key); err != nil {
				return nil, "", refuse(bucket.ClassCorrupt, "the store lists a key that cannot be decoded")
			}
		}
		if key <= last || !strings.HasPrefix(key, *in.Prefix) || aws.ToInt64(o.Size) < 0 {
			return nil, "", refuse(bucket.ClassCorrupt, "the store lists %.200q after %.200q, asked for %.200q", key, last, *in.Prefix)
		}
		last = key
		page = append(page, bucket.Object{Key: key, Size: aws.ToInt64(o.Size)})
	}
	if aws.ToBool(res.IsTruncated) {
		if more = aws.ToString(res.NextContinuationToken); more == "" {
			return nil, "", refuse(bucket.ClassCorrupt, "the store's list is cut off and does not say how to go on")
		}
	}
	return page, more, nil
}

// Delete implements bucket.Bucket. In a bucket with versions the newest one is hidden, and the store keeps it.
func (b *Bucket) Delete(ctx context.Context, key string) error {
	if err := bucket.CheckKey(key); err != nil {
		return badKey(err)
	}
	ctx, x := expect(ctx, 0)
	_, err := b.client.DeleteObject(ctx, &sdk.DeleteObjectInput{Bucket: &b.addr.Bucket, Key: b.key(key)})
	if err != nil {
		err = b.fault(ctx, x, err)
	}
	if errors.Is(err, bucket.ErrNotFound) {
		err = nil
	}
	return about("delete", key, err)
}

// Swap implements bucket.Bucket by a read, a comparison, and a write on condition that the object still has the ETag that was read.
func (b *Bucket) Swap(ctx context.Context, key string, old, new []byte) error {
	if err := bucket.CheckKey(key); err != nil {
		return badKey(err)
	}
	return about("swap", key, b.swap(ctx, key, old, new))
}

func (b *Bucket) swap(ctx context.Context, key string, old, new []byte) error {
	if len(new) > maxSwap {
		return refuse(bucket.ClassConfig, "%d bytes exceed the limit of %d", len(new), maxSwap)
	}
	changed := &bucket.Error{Class: bucket.ClassRefused, Err: bucket.ErrChanged}
	etag := ""
	if old != nil {
		// More than old, and never as much as the last time: a store may fail one request for ever, and a claim must not
		// hang on that one.
		r := span{n: -1}
		if len(old) > 0 { // no range is of an empty object
			r = span{n: int64(len(old)) + 1 + rand.Int64N(maxSwap), less: true}
		}
		is, tag, err := b.ask(ctx, key, r)
		switch {
		case errors.Is(err, bucket.ErrNotFound), errors.Is(err, bucket.ErrShort): // there is none, or it is empty
			return changed
		case err != nil:
			return err
		case !bytes.Equal(is, old):
			return changed
		case tag == "":
			return &bucket.Error{Class: bucket.ClassConfig, Err: fmt.Errorf("%w: it gives objects no ETag, so that none can be replaced on condition", bucket.ErrUnconditional)}
		}
		etag = tag
	}
	x, err := b.put(ctx, key, new, etag, old == nil)
	switch {
	case err == nil:
		return nil
	case x != nil && x.status == http.StatusPreconditionFailed, errors.Is(err, bucket.ErrNotFound):
		return changed // not there, on condition that it is as it was
	case x != nil && x.status == http.StatusNotImplemented:
		return &bucket.Error{Class: bucket.ClassConfig, Err: fmt.Errorf("%w: it does not know conditional writes (%w)", bucket.ErrUnconditional, err)}
	}
	// Among these is 409, a conflict with another write at the same time. It was not applied, but neither is it
	// known that the object has changed: the other may have failed as well. Who reads again finds out.
	return err
}

// Now implements bucket.Bucket: the Date of the answer to a read of an object that is not there. It is that of
// whatever answers, exact to a second.
func (b *Bucket) Now(ctx context.Context) (time.Time, error) {
	ctx, x := expect(ctx, bucket.MaxObject)
	out, err := b.client.GetObject(ctx, &sdk.GetObjectInput{Bucket: &b.addr.Bucket, Key: b.key(clockKey), Range: aws.String("bytes=0-0")})
	if err == nil {
		out.Body.Close()
	} else if err = b.fault(ctx, x, err); errors.Is(err, bucket.ErrNotFound) {
		err = nil
	}
	if err != nil {
		return time.Time{}, about("now", "", err)
	}
	t, err := http.ParseTime(x.header.Get("Date"))
	if err != nil {
		return time.Time{}, about("now", "", refuse(bucket.ClassConfig, "the store's answers have no Date, so its clock is not known"))
	}
	return t, nil
}
