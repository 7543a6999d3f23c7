package steady

import (
	"testing"

	"holdfast/service/bucket"
	"holdfast/service/bucket/buckettest"
	"holdfast/service/bucket/dir"
	"holdfast/service/bucket/sim"
)

func TestConformanceOverSim(t *testing.T) {
	buckettest.Conformance(t, func(testing.TB) bucket.Bucket { return New(sim.New(1), Config{}) })
}

func TestConformanceOverDir(t *testing.T) {
	buckettest.Conformance(t, func(t testing.TB) bucket.Bucket {
		b, err := dir.Create(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		return New(b, Config{})
	})
}

func BenchmarkGet(b *testing.B) {
	plain := sim.New(1)
	body := make([]byte, 4096)
	if err := plain.Put(b.Context(), "k", body); err != nil {
		b.Fatal(err)
	}
	for name, s := range map[string]bucket.Bucket{"plain": plain, "steady": New(plain, Config{})} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if _, err := s.Get(b.Context(), "k", 0, 4096); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(name+"/put", func(b *testing.B) {
			for b.Loop() {
				if err := s.Put(b.Context(), "k", body); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
