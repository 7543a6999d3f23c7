package dir_test

import (
	"path/filepath"
	"testing"

	"holdfast/service/bucket"
	"holdfast/service/bucket/buckettest"
	"holdfast/service/bucket/dir"
)

func TestConformance(t *testing.T) {
	buckettest.Conformance(t, func(t testing.TB) bucket.Bucket { return create(t) })
}

func create(t testing.TB) *dir.Bucket {
	b, err := dir.Create(filepath.Join(t.TempDir(), "bucket"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}
