package bucket_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"syscall"
	"testing"

	"holdfast/service/bucket"
)

// liar answers every List with the same page.
type liar struct {
	bucket.Bucket
	page []bucket.Object
}

func (l liar) List(context.Context, string, string, int) ([]bucket.Object, error) { return l.page, nil }

// A store whose list is out of order, repeats itself or answers another question must not make a
// recovery skip segments or run for ever.
func TestListAllRefusesALyingStore(t *testing.T) {
	full := make([]bucket.Object, bucket.MaxList)
	for i := range full {
		full[i].Key = fmt.Sprintf("p/%04d", i)
	}
	swapped := slices.Clone(full)
	swapped[5], swapped[6] = swapped[6], swapped[5]
	for what, page := range map[string][]bucket.Object{
		"repeats":      full,
		"out of order": swapped,
		"duplicate":    {{Key: "p/1"}, {Key: "p/1"}},
		"other prefix": {{Key: "q/1"}},
	} {
		n := 0
		err := bucket.ListAll(t.Context(), liar{page: page}, "p/", "", func(bucket.Object) error { n++; return nil })
		if err == nil || n > bucket.MaxList {
			t.Errorf("%s: %d objects, %v", what, n, err)
		}
	}
	stop := errors.New("stop")
	if err := bucket.ListAll(t.Context(), liar{page: full}, "p/", "", func(bucket.Object) error { return stop }); err != stop {
		t.Errorf("the callback's error came back as %v", err)
	}
}

// What the operating system says about a directory or a connection is of the class that says what to do.
func TestClassOf(t *testing.T) {
	file := func(e syscall.Errno) error {
		return fmt.Errorf("put k: %w", &os.PathError{Op: "write", Path: "p", Err: e})
	}
	line := func(e error) error { return fmt.Errorf("put k: %w", &net.OpError{Op: "read", Net: "tcp", Err: e}) }
	for _, c := range []struct {
		err  error
		want bucket.Class
	}{
		{nil, bucket.ClassOK},
		{fmt.Errorf("get k: %w", bucket.ErrNotFound), bucket.ClassNotFound},
		{fmt.Errorf("get k: %w", bucket.ErrShort), bucket.ClassRefused},
		{fmt.Errorf("swap k: %w", bucket.ErrChanged), bucket.ClassRefused},
		{file(syscall.ENOSPC), bucket.ClassFull},
		{file(syscall.EDQUOT), bucket.ClassFull},
		{file(syscall.EIO), bucket.ClassServer},
		{file(syscall.EROFS), bucket.ClassServer},
		{file(syscall.EACCES), bucket.ClassDenied},
		{line(os.NewSyscallError("connect", syscall.ECONNREFUSED)), bucket.ClassConnection},
		{line(os.NewSyscallError("read", syscall.ECONNRESET)), bucket.ClassConnection},
		{line(errors.New("use of closed network connection")), bucket.ClassConnection},
		{line(os.ErrDeadlineExceeded), bucket.ClassTimeout},
		{fmt.Errorf("get k: %w", context.DeadlineExceeded), bucket.ClassTimeout},
		{fmt.Errorf("get k: %w", context.Canceled), bucket.ClassCanceled},
		{fmt.Errorf("get k: %w", &bucket.Error{Class: bucket.ClassBusy, Err: errors.New("SlowDown")}), bucket.ClassBusy},
		{bucket.ErrDown, bucket.ClassOpen},
		{bucket.ErrSpent, bucket.ClassOpen},
		{errors.New("anything"), bucket.ClassServer},
	} {
		if got := bucket.ClassOf(c.err); got != c.want {
			t.Errorf("%v is of class %s, want %s", c.err, got, c.want)
		}
	}
}
