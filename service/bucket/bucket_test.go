package bucket_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
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
