package s3

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/smithy-go/logging"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"holdfast/service/bucket"
)

// load finds credentials and settings where AWS tools do.
func load(a Address) (aws.Config, error) {
	opts := []func(*config.LoadOptions) error{config.WithLogger(logging.Nop{})}
	if a.Region != "" {
		opts = append(opts, config.WithRegion(a.Region))
	}
	cfg, err := config.LoadDefaultConfig(context.Background(), opts...)
	if err != nil {
		return cfg, &bucket.Error{Class: bucket.ClassConfig, Err: fmt.Errorf("read the AWS settings: %w", err)}
	}
	if cfg.Region == "" {
		return cfg, refuse(bucket.ClassConfig, "the region is not known; write s3://%s?region=REGION, such as eu-central-1", a.Bucket+"/"+strings.TrimSuffix(a.Prefix, "/"))
	}
	return cfg, nil
}

// keys hands out credentials. The provider behind it keeps them and renews those of a role before they end.
type keys struct {
	from aws.CredentialsProvider

	mu    sync.Mutex
	known aws.Credentials // newest; what no text may show
}

// keysError reports that there are no credentials to sign with.
type keysError struct {
	err error
	had bool // there were some before
}

func (e *keysError) Error() string { return e.err.Error() }
func (e *keysError) Unwrap() error { return e.err }

// Retrieve implements aws.CredentialsProvider.
func (k *keys) Retrieve(ctx context.Context) (aws.Credentials, error) {
	c, err := aws.Credentials{}, errors.New("none are set")
	if k.from != nil {
		c, err = k.from.Retrieve(ctx)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if err != nil {
		return c, &keysError{err, k.known.HasKeys()}
	}
	k.known = c
	return c, nil
}

// hide takes credentials out of a text, if a store or a library put them there.
func (k *keys) hide(text string) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, s := range []string{k.known.SecretAccessKey, k.known.SessionToken, k.known.AccessKeyID} {
		if len(s) >= 4 { // else it is found in any text, and nobody's
			text = strings.ReplaceAll(text, s, "[hidden]")
		}
	}
	return text
}

// class says what it means that there are no credentials. Before there were any it is a matter of settings: nobody waits for
// that. A role whose renewal fails on the network comes back by itself.
func (e *keysError) class() bucket.Class {
	var n net.Error
	var sent *smithyhttp.RequestSendError
	var res *smithyhttp.ResponseError
	switch {
	case !e.had:
		return bucket.ClassDenied
	case errors.As(e.err, &res) && res.HTTPStatusCode() >= http.StatusInternalServerError, errors.As(e.err, &n), errors.As(e.err, &sent):
		return bucket.ClassConnection
	}
	return bucket.ClassDenied
}
