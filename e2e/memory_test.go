//go:build linux

package e2e

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"path/filepath"
	"testing"

	"holdfast/internal/s3server"
	"holdfast/service/identity"
	"holdfast/wire"
)

// TestScenarioS3Memory has many clients at a time upload and then fetch many small files and some large ones, through a slow
// line between the service and its store, which is when queues fill, and beside strangers who say
// hello and stay. The service stays below its ceiling, every client below its own, and what comes
// back is what was stored.
func TestScenarioS3Memory(t *testing.T) {
	clients, files, large := bySize(8, 16), bySize(300, 1000), bySize[int64](16<<20, 32<<20)
	p, l := behindLine(t, onS3(t, s3server.Versity))
	s := newServiceAt(t, p, nil)
	dir := scratch(t)
	all := make([]*client, clients)
	for i := range all {
		name := fmt.Sprintf("c%02d", i)
		write(t, filepath.Join(dir, name, "name"), name)
		smallTree(t, dir, name, uint64(300+i), files)
		writeNoise(t, filepath.Join(dir, name, "large"), uint64(400+i), large)
		all[i] = newClient(t, s)
	}
	idle(t, s, 60) // a network may have 128, and the clients come from the same
	slow := func(upstream bool) toxic {
		return toxic{kind: "bandwidth", upstream: upstream, toxicity: 1, attributes: map[string]int{"rate": 12 << 10}} // KB/s, of each connection
	}
	most := int64(0)
	together := func(args func(i int) []string) {
		t.Helper()
		runs := make([]*process, clients)
		for i, c := range all {
			runs[i] = c.begin(args(i)...)
		}
		for i, r := range runs {
			o := r.wait() // which holds the client to its ceiling
			if o.code != 0 {
				t.Errorf("client %d: exit %d\n%s", i, o.code, o.stderr)
			}
			most = max(most, o.rss)
		}
	}
	l.with(func() {
		together(func(i int) []string { return []string{"create", "-C", dir, "s", fmt.Sprintf("c%02d", i)} })
	}, slow(true))
	stored := s.peak()
	l.with(func() {
		together(func(i int) []string {
			return []string{"extract", "s", "--target", filepath.Join(dir, fmt.Sprintf("out%02d", i))}
		})
	}, slow(false))
	t.Logf("%d clients: the service had %d MiB resident after backups and %d MiB after restores, of %d; a client %d MiB at most, of %d",
		clients, stored>>20, s.peak()>>20, maxService>>20, most>>20, maxClient>>20)
	for i := range all {
		name := fmt.Sprintf("c%02d", i)
		same(t, filepath.Join(dir, name), filepath.Join(dir, fmt.Sprintf("out%02d", i), name))
	}
}

// idle opens n connections to s that say hello, are answered, and stay until the end of the test.
func idle(t *testing.T, s *service, n int) {
	t.Helper()
	id, err := identity.Load(filepath.Join(s.data, identity.FileName))
	if err != nil {
		t.Fatal(err)
	}
	for range n {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		c, err := tls.Dial("tcp", s.address, wire.ClientConfig(key, wire.PublicKey(id.TLSKey().Public().(ed25519.PublicKey))))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: holdfast\r\n\r\n", wire.PathHello)
		if _, err := c.Read(make([]byte, 1)); err != nil {
			t.Fatalf("a stranger is not answered: %v", err)
		}
	}
}
