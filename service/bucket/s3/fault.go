package s3

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/aws/smithy-go"

	"holdfast/service/bucket"
)

// maxAfter bounds what a store may ask to wait.
const maxAfter = 10 * time.Minute

// refuse makes an error of a class.
func refuse(c bucket.Class, format string, a ...any) error {
	return &bucket.Error{Class: c, Err: fmt.Errorf(format, a...)}
}

func badKey(err error) error { return &bucket.Error{Class: bucket.ClassRefused, Err: err} }

// about says of which call and key an error is. Its class stays.
func about(op, key string, err error) error {
	if err == nil {
		return nil
	}
	e := &bucket.Error{Class: bucket.ClassOf(err), Err: fmt.Errorf("%s: %w", strings.TrimSpace(op+" "+key), err)}
	var inner *bucket.Error
	if errors.As(err, &inner) {
		e.After = inner.After
	}
	return e
}

// codes says of the error codes of S3 and of stores that speak its protocol what class they are, where the status does
// not say it.
var codes = map[string]bucket.Class{
	"NoSuchKey": bucket.ClassNotFound,

	"AccessDenied":                   bucket.ClassDenied,
	"AccountProblem":                 bucket.ClassDenied,
	"AllAccessDisabled":              bucket.ClassDenied,
	"ExpiredToken":                   bucket.ClassDenied,
	"ExpiredTokenException":          bucket.ClassDenied,
	"InvalidAccessKeyId":             bucket.ClassDenied,
	"InvalidSecurity":                bucket.ClassDenied,
	"InvalidToken":                   bucket.ClassDenied,
	"NotSignedUp":                    bucket.ClassDenied,
	"SignatureDoesNotMatch":          bucket.ClassDenied,
	"TokenRefreshRequired":           bucket.ClassDenied,
	"XAdminUserNotFound":             bucket.ClassDenied, // versitygw, with a 404
	"UnauthorizedAccess":             bucket.ClassDenied,
	"XMinioInvalidAccessKey":         bucket.ClassDenied,
	"AccessForbidden":                bucket.ClassDenied,
	"RequestTimeTooSkewed":           bucket.ClassClock,
	"RequestInTheFuture":             bucket.ClassClock,
	"RequestExpired":                 bucket.ClassClock,
	"BandwidthLimitExceeded":         bucket.ClassBusy,
	"ConditionalRequestConflict":     bucket.ClassBusy,
	"OperationAborted":               bucket.ClassBusy,
	"PriorRequestNotComplete":        bucket.ClassBusy,
	"RequestLimitExceeded":           bucket.ClassBusy,
	"RequestThrottled":               bucket.ClassBusy,
	"ServiceUnavailable":             bucket.ClassBusy,
	"SlowDown":                       bucket.ClassBusy,
	"SlowDownRead":                   bucket.ClassBusy,
	"SlowDownWrite":                  bucket.ClassBusy,
	"Throttling":                     bucket.ClassBusy,
	"ThrottlingException":            bucket.ClassBusy,
	"TooManyRequests":                bucket.ClassBusy,
	"XMinioServerNotInitialized":     bucket.ClassBusy,
	"RequestTimeout":                 bucket.ClassTimeout,
	"BadDigest":                      bucket.ClassCorrupt,
	"ContentSHA256Mismatch":          bucket.ClassCorrupt,
	"IncompleteBody":                 bucket.ClassCorrupt,
	"InvalidDigest":                  bucket.ClassCorrupt,
	"XAmzContentChecksumMismatch":    bucket.ClassCorrupt,
	"XAmzContentSHA256Mismatch":      bucket.ClassCorrupt,
	"EntityTooLarge":                 bucket.ClassFull,
	"InsufficientStorage":            bucket.ClassFull,
	"NoSpaceLeft":                    bucket.ClassFull,
	"QuotaExceeded":                  bucket.ClassFull,
	"ServiceQuotaExceededException":  bucket.ClassFull,
	"StorageFull":                    bucket.ClassFull,
	"XMinioAdminBucketQuotaExceeded": bucket.ClassFull,
	"XMinioStorageFull":              bucket.ClassFull,
	"InternalError":                  bucket.ClassServer,

	"AuthorizationHeaderMalformed": bucket.ClassConfig,
	"ExistingObjectIsDirectory":    bucket.ClassConfig, // versitygw, with a 409
	"InvalidObjectState":           bucket.ClassConfig,
	"MethodNotAllowed":             bucket.ClassConfig,
	"NoSuchBucket":                 bucket.ClassConfig,
	"ObjectParentIsFile":           bucket.ClassConfig,
	"NotImplemented":               bucket.ClassConfig,
	"TemporaryRedirect":            bucket.ClassConfig,
}

// classOfStatus is the class of an answer whose code says nothing.
func classOfStatus(status int) bucket.Class {
	switch {
	case status == http.StatusUnauthorized, status == http.StatusForbidden, status == http.StatusProxyAuthRequired:
		return bucket.ClassDenied
	case status == http.StatusRequestTimeout, status == http.StatusGatewayTimeout:
		return bucket.ClassTimeout
	case status == http.StatusTooManyRequests, status == http.StatusServiceUnavailable, status == http.StatusConflict:
		return bucket.ClassBusy
	case status == http.StatusInsufficientStorage, status == http.StatusRequestEntityTooLarge:
		return bucket.ClassFull
	case status == http.StatusNotImplemented, status == http.StatusHTTPVersionNotSupported:
		return bucket.ClassConfig
	case status >= 500:
		return bucket.ClassServer
	}
	return bucket.ClassConfig // 3xx, 4xx: what is asked, or who is asked, is wrong
}

// hint says what to do about an answer that a person must act on.
func (b *Bucket) hint(code string, x *answer) string {
	switch code {
	case "NoSuchBucket":
		return fmt.Sprintf("there is no bucket %s: correct its name, endpoint or region; only for a new service make it", b.addr.Bucket)
	case "PermanentRedirect", "TemporaryRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "MovedPermanently":
		if r := x.header.Get("X-Amz-Bucket-Region"); r != "" && len(r) < 64 {
			return fmt.Sprintf("the bucket is in the region %q; write region=%s into its address", r, r)
		}
		return "the bucket is in another region or at another endpoint; correct region or endpoint in its address"
	case "InvalidAccessKeyId", "XMinioInvalidAccessKey", "XAdminUserNotFound":
		return "the store does not know the access key; is it for this endpoint?"
	case "SignatureDoesNotMatch":
		return "the secret key is wrong, or region or endpoint are not those of the key"
	case "ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "InvalidToken":
		return "the temporary credentials have ended; put new ones there, or use a role"
	case "AccessDenied":
		return "these credentials lack a right; docs/storage.md lists what is needed"
	case "RequestTimeTooSkewed", "RequestInTheFuture", "RequestExpired":
		return "this machine's clock and the store's differ too much; set the wrong one"
	case "InvalidObjectState":
		return "a lifecycle rule moved the object to an archive class; restore it, and remove the rule"
	}
	return ""
}

// fault says what a request came to: the class, and a text without secrets.
func (b *Bucket) fault(ctx context.Context, x *answer, err error) error {
	var known *bucket.Error
	if errors.As(err, &known) {
		return &bucket.Error{Class: known.Class, After: known.After, Err: known.Err}
	}
	var none *keysError
	if errors.As(err, &none) && ctx.Err() == nil {
		return refuse(none.class(), "%s", b.keys.hide("no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, "+
			"or give the machine a role: "+brief(none.err.Error())))
	}
	var api smithy.APIError
	code, message := "", ""
	if errors.As(err, &api) {
		code, message = api.ErrorCode(), api.ErrorMessage()
	}
	switch {
	case x.status != 0 && (x.status/100 != 2 || code != ""):
		return b.answered(x, code, message)
	case errors.Is(ctx.Err(), context.Canceled):
		return refuse(bucket.ClassCanceled, "given up: %w", context.Canceled)
	case ctx.Err() != nil:
		return refuse(bucket.ClassTimeout, "no answer in time: %w", ctx.Err())
	case !x.sent:
		return refuse(bucket.ClassConfig, "the request could not be made: %s", b.keys.hide(brief(err.Error())))
	}
	return b.broken(x, err)
}

// answered is fault where the store answered.
func (b *Bucket) answered(x *answer, code, message string) error {
	// Where the store gives none the SDK invents them: "UnknownError", or the name of the status.
	const unknown = "UnknownError"
	if code == unknown || code == strings.ReplaceAll(http.StatusText(x.status), " ", "") && codes[code] == "" {
		code = ""
	}
	if message == unknown {
		message = ""
	}
	class, ok := codes[code]
	switch {
	case code == "NoSuchKey" && x.status != http.StatusNotFound:
		class = classOfStatus(x.status)
	case !ok:
		class = classOfStatus(x.status)
	}
	text := fmt.Sprintf("the store answered %d", x.status)
	for _, s := range []string{code, brief(message)} {
		if s != "" {
			text += " " + s
		}
	}
	if id := x.header.Get("X-Amz-Request-Id"); id != "" {
		text += fmt.Sprintf(" (request %.64q)", id)
	}
	if class == bucket.ClassConfig && code == "" {
		text += "; is the endpoint that of an S3 store?"
	}
	if h := b.hint(code, x); h != "" {
		text += "; " + h
	}
	e := &bucket.Error{Class: class, After: after(x.header.Get("Retry-After")), Err: errors.New(b.keys.hide(text))}
	if class == bucket.ClassNotFound {
		e.Err = fmt.Errorf("%w: %w", bucket.ErrNotFound, e.Err)
	}
	return e
}

// broken is fault where no answer, or not all of it, arrived.
func (b *Bucket) broken(x *answer, err error) error {
	var n net.Error
	var sys *net.OpError
	text := b.keys.hide(brief(root(err).Error()))
	var authority x509.UnknownAuthorityError
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &authority), errors.As(err, &name), errors.As(err, &invalid):
		return refuse(bucket.ClassConnection, "the store's certificate cannot be trusted: %s; AWS_CA_BUNDLE names a file with further authorities", text)
	case errors.As(err, &n) && n.Timeout():
		return refuse(bucket.ClassTimeout, "no answer in time: %s", text)
	case x.status == 0:
		return refuse(bucket.ClassConnection, "the store cannot be reached, or the connection broke: %s", text)
	case errors.Is(err, io.ErrUnexpectedEOF), errors.As(err, &sys), errors.As(err, &n):
		return refuse(bucket.ClassConnection, "the connection broke in the middle of the answer: %s", text)
	}
	return refuse(bucket.ClassCorrupt, "the store's answer cannot be read: %s", text)
}

// root takes the SDK's layers off an error.
func root(err error) error {
	for {
		switch err.(type) {
		case net.Error:
			return err
		}
		next := errors.Unwrap(err)
		if next == nil {
			return err
		}
		err = next
	}
}

// brief makes a text of others one short line.
func brief(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '\uFFFD' {
			return ' '
		}
		return r
	}, s)
	const most = 300
	if s = strings.Join(strings.Fields(s), " "); len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "..."
	}
	return s
}

// after reads a Retry-After: seconds, or a date.
func after(v string) time.Duration {
	var d time.Duration
	if n, err := strconv.Atoi(v); err == nil {
		d = time.Duration(min(n, int(maxAfter/time.Second))) * time.Second
	} else if t, err := http.ParseTime(v); err == nil {
		d = time.Until(t)
	}
	return min(max(d, 0), maxAfter)
}
