package serve

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"holdfast"
	"holdfast/history"
	"holdfast/internal/enc"
	"holdfast/service/account"
	"holdfast/service/bucket/sim"
	"holdfast/service/journal"
	"holdfast/service/view"
	"holdfast/wire"
)

// TestWhole is the whole of a customer's life with one archive.
func TestWhole(t *testing.T) {
	inWorld(t, func(w *world) {
		for i, proto := range []string{"h2", "http/1.1"} {
			c := w.stranger()
			c.connect(proto)
			if h := c.hello(); h.You != "unknown" || h.State != wire.StateServing || h.Protocol != 1 || h.Cell != w.id.Cell.String() {
				w.Errorf("hello to a stranger: %+v", h)
			}
			w.ok(c.redeem(w.account(proto)), "redeem")
			if h := c.hello(); h.You != "account" {
				w.Errorf("hello after redeeming: %+v", h)
			}
			g := c.genesis()
			_, err := c.record(wire.PathRecords, g)
			w.ok(err, "genesis")
			_, err = c.record(wire.PathRecords, c.enrol(c, holdfast.RightsAll))
			w.ok(err, "enrol")
			sid := c.open()
			h := c.hello()
			if h.You != "machine" || h.Vault != c.vault.String() || h.Rights != "write,read,delete" || h.N != 3 ||
				h.Head != c.head.String() || h.Chain == nil || h.Chain.Seq != 1 || h.Chain.Prev != c.chain.Prev.String() {
				w.Errorf("hello to a machine: %+v", h)
			}

			got, err := c.have(sid, name(1), name(2))
			if err != nil || got != "0000" {
				w.Errorf("have before: %s, %v", got, err)
			}
			chunk := sealed(sid, holdfast.KindChunk, 1000)
			tree := sealed(sid, holdfast.KindTree, 500, name(1))
			root := sealed(sid, holdfast.KindArchive, 300, name(2))
			st, err := c.upload(sid, 1, frame(name(1), chunk), frame(name(2), tree))
			if err != nil || st != (wire.Stored{Stored: 2}) {
				w.Errorf("upload: %+v, %v", st, err)
			}
			st, err = c.upload(sid, 2, frame(name(1), chunk), frame(name(3), root))
			if err != nil || st != (wire.Stored{Stored: 1, Known: 1}) {
				w.Errorf("upload: %+v, %v", st, err)
			}
			got, err = c.have(sid, name(1), name(9), name(3))
			if err != nil || got != "010001" {
				w.Errorf("have after: %s, %v", got, err)
			}
			r := c.commitRecord(sid, name(3))
			e, err := c.record(wire.PathRecords, r)
			w.ok(err, "commit")
			again, err := c.record(wire.PathRecords, r)
			if err != nil || !bytes.Equal(e.Append(nil), again.Append(nil)) {
				w.Errorf("commit again: %v", err)
			}
			_, err = c.do("POST", path(wire.PathClose, sid), nil)
			w.ok(err, "close")
			_, err = c.have(sid, name(1))
			w.want(wire.CodeSessionGone, err, "have after close")
			_, err = c.do("POST", path(wire.PathClose, sid), nil)
			w.ok(err, "close again")

			frames, err := c.fetch(c.group, name(3), name(8), name(2), name(1))
			w.ok(err, "fetch")
			if len(frames) != 4 || frames[3].Name != name(8) || frames[3].Status != wire.FrameAbsent {
				t.Fatalf("fetched %d frames", len(frames))
			}
			want := map[holdfast.Name][]byte{name(1): chunk, name(2): tree, name(3): root}
			for _, f := range frames[:3] {
				if f.Status != wire.FrameBlock || !bytes.Equal(f.Sealed, want[f.Name]) {
					w.Errorf("block %s came back differently", f.Name)
				}
			}

			// The history verifies, whole and in parts.
			var v history.Vault
			for v.N < 4 {
				b, err := c.do("GET", wire.PathHistory+fmt.Sprintf("?after=%d", v.N), nil)
				w.ok(err, "history")
				for rd := enc.NewReader(b); rd.Len() > 0; {
					if err := v.Follow(history.ReadEntry(rd), w.id.LogKey().Public().(ed25519.PublicKey), c.hist); err != nil {
						t.Fatal(err)
					}
				}
			}
			if v.ID != c.vault || v.Head != c.head || len(v.Archives) != 1 || v.Archives[0].ID != r.ID() {
				w.Errorf("history: %+v", v)
			}
			b, err := c.do("GET", wire.PathHistory+"?after=4", nil)
			if err != nil || len(b) != 0 {
				w.Errorf("history after its end: %d bytes, %v", len(b), err)
			}

			var u wire.Usage
			b, err = c.do("GET", wire.PathUsage, nil)
			w.ok(err, "usage")
			w.ok(json.Unmarshal(b, &u), "usage")
			if size := len(chunk) + len(tree) + len(root); u.StoredBytes != uint64(size) || u.Blocks != 3 {
				w.Errorf("usage: %+v, want %d bytes", u, size)
			}
			if n := w.srv.Sessions(); n != 0 {
				w.Errorf("%d: %d sessions are left", i, n)
			}
		}
	})
}

// TestUsageIsExact compares the integral over an hour with what it must be.
func TestUsageIsExact(t *testing.T) {
	inWorld(t, func(w *world) {
		c := w.customer("a", holdfast.RightsAll)
		sid := c.open()
		block := sealed(sid, holdfast.KindChunk, 1000)
		_, err := c.upload(sid, 1, frame(name(1), block))
		w.ok(err, "upload")
		usage := func() (u wire.Usage, sec, ms int64) {
			b, err := c.do("GET", wire.PathUsage, nil)
			w.ok(err, "usage")
			w.ok(json.Unmarshal(b, &u), "usage")
			if _, err := fmt.Sscanf(u.ByteSeconds, "%d.%03d", &sec, &ms); err != nil {
				t.Fatalf("%q: %v", u.ByteSeconds, err)
			}
			return
		}
		u1, s1, ms1 := usage()
		later(time.Hour)
		u2, s2, ms2 := usage()
		want := int64(len(block)) * u2.AsOf.Sub(u1.AsOf).Milliseconds()
		if got := 1000*(s2-s1) + ms2 - ms1; got != want || want < int64(len(block))*3_600_000 {
			t.Errorf("integral grew by %d byte ms, want %d", got, want)
		}
	})
}

func TestByteSeconds(t *testing.T) {
	for _, c := range []struct {
		hi, lo uint64
		want   string
	}{{0, 0, "0.000"}, {0, 1, "0.001"}, {0, 1234567, "1234.567"}, {1, 0, "18446744073709551.616"}, {1<<64 - 1, 1<<64 - 1, "340282366920938463463374607431768211.455"}} {
		if got := byteSeconds(view.Integral{Hi: c.hi, Lo: c.lo}); got != c.want {
			t.Errorf("byteSeconds(%d, %d) = %s, want %s", c.hi, c.lo, got, c.want)
		}
	}
}

func TestTokens(t *testing.T) {
	inWorld(t, func(w *world) {
		secret := w.account("a")
		c, d := w.stranger(), w.stranger()
		w.want(wire.CodeTokenUnknown, c.redeem([32]byte{1}), "a secret that nobody issued")
		w.ok(c.redeem(secret), "redeem")
		w.ok(c.redeem(secret), "redeem again with the same key")
		w.want(wire.CodeTokenUsed, d.redeem(secret), "redeem with another key")
		if h := d.hello(); h.You != "unknown" {
			w.Errorf("a refused key is %q", h.You)
		}
		further, err := account.Token(w.Context(), w.j, "a")
		w.ok(err, "further token")
		w.want(wire.CodeBadRequest, c.redeem(further), "a second account for one key")

		late := w.account("b")
		later(account.TokenLife - time.Second)
		w.ok(d.redeem(late), "redeem in the last moment")
		later(2 * time.Second)
		w.ok(d.redeem(late), "the same key asks again, later")
		e := w.stranger()
		expired := w.account("c")
		later(account.TokenLife + time.Second)
		w.want(wire.CodeTokenExpired, e.redeem(expired), "redeem after a day")

		if _, err := account.Add(w.Context(), w.j, "a"); !errors.Is(err, view.ErrNameTaken) {
			w.Errorf("a second account of one name: %v", err)
		}
		if _, err := account.Token(w.Context(), w.j, "x"); !errors.Is(err, view.ErrNoAccount) {
			w.Errorf("a token for no account: %v", err)
		}
		for _, bad := range []string{"", " a", "a ", "a\n", "a\x00", "\xff", strings.Repeat("x", 201)} {
			if _, err := account.Add(w.Context(), w.j, bad); !errors.Is(err, account.ErrName) {
				w.Errorf("account %q: %v", bad, err)
			}
		}
		// A restart forgets nothing of this.
		w.stop()
		w.start()
		w.ok(d.redeem(late), "redeem again after a restart")
		w.want(wire.CodeTokenUsed, e.redeem(late), "a used token after a restart")
		for _, b := range []string{``, `{}`, `{"secret":"00"}`, `{"secret":"` + strings.Repeat("A", 64) + `"}`, `{"secret":1}`, strings.Repeat("x", wire.MaxJSON+1)} {
			_, err := e.do("POST", wire.PathRedeem, []byte(b))
			if code := wire.CodeOf(err); code != wire.CodeBadRequest && code != wire.CodeTooLarge {
				w.Errorf("redeem with %.40q: %v", b, err)
			}
		}
	})
}

func TestUnknownKeyAndWrongRight(t *testing.T) {
	inWorld(t, func(w *world) {
		all := w.customer("all", holdfast.RightsAll)
		sid := all.open()
		block := frame(name(1), sealed(sid, holdfast.KindChunk, 100))
		_, err := all.upload(sid, 1, block)
		w.ok(err, "upload")
		requests := func(c *client) map[string]error {
			r, _ := c.openRecord()
			errs := map[string]error{}
			_, errs["open"] = c.record(wire.PathSession, r)
			_, errs["have"] = c.have(sid, name(1))
			_, errs["blocks"] = c.upload(sid, 1, block)
			_, errs["close"] = c.do("POST", path(wire.PathClose, sid), nil)
			_, errs["fetch"] = c.fetch(c.group, name(1))
			_, errs["history"] = c.do("GET", wire.PathHistory+"?after=0", nil)
			_, errs["usage"] = c.do("GET", wire.PathUsage, nil)
			_, errs["commit"] = c.record(wire.PathRecords, c.commitRecord(sid, name(1)))
			return errs
		}
		stranger := w.stranger()
		_, err = stranger.record(wire.PathRecords, stranger.genesis())
		w.want(wire.CodeUnknownKey, err, "a stranger's genesis")
		for what, err := range requests(stranger) {
			w.want(wire.CodeUnknownKey, err, "a stranger: "+what)
		}
		half := w.stranger()
		w.ok(half.redeem(w.account("half")), "redeem")
		for what, err := range requests(half) {
			if what == "usage" {
				w.ok(err, what)
				continue
			}
			w.want(wire.CodeUnknownKey, err, "a key with an account only: "+what)
		}
		for what, err := range requests(w.customer("read", holdfast.RightRead)) {
			switch what {
			case "fetch", "history", "usage":
				w.ok(err, "a machine that may only read: "+what)
			default:
				w.want(wire.CodeForbidden, err, "a machine that may only read: "+what)
			}
		}
		errs := requests(w.customer("write", holdfast.RightWrite))
		w.want(wire.CodeForbidden, errs["fetch"], "a machine that may only write: fetch")
		w.want(wire.CodeSessionGone, errs["have"], "another vault's session: have")
		w.want(wire.CodeSessionGone, errs["blocks"], "another vault's session: blocks")
		w.ok(errs["close"], "closing another vault's session is nothing")
		if n := w.srv.Sessions(); n != 2 {
			w.Errorf("%d sessions are open, not those of the two machines that may write", n)
		}

		// What others have is not there for anybody else.
		other := w.customer("other", holdfast.RightsAll)
		frames, err := other.fetch(all.group, name(1))
		if err != nil || len(frames) != 1 || frames[0].Status != wire.FrameAbsent {
			w.Errorf("another vault's block: %v, %v", frames, err)
		}
	})
}

func TestAnotherServiceKeyIsRefused(t *testing.T) {
	inWorld(t, func(w *world) {
		c := w.stranger()
		cfg := wire.ClientConfig(c.tls, pub(newKey()))
		c.http.Transport.(*http.Transport).TLSClientConfig = cfg
		if _, err := c.do("GET", wire.PathHello, nil); !errors.Is(err, wire.ErrServiceKey) {
			w.Errorf("got %v, want ErrServiceKey", err)
		}
	})
}

func TestRecordsAreRefused(t *testing.T) {
	inWorld(t, func(w *world) {
		a := w.customer("a", holdfast.RightsAll)
		b := w.customer("b", holdfast.RightsAll)
		sid := a.open()
		_, err := a.upload(sid, 1, frame(name(1), sealed(sid, holdfast.KindArchive, 50)), frame(name(2), sealed(sid, holdfast.KindChunk, 50)))
		w.ok(err, "upload")
		post := func(c *client, path string, r history.Record) error { _, err := c.record(path, r); return err }

		_, err = a.record(wire.PathRecords, a.commitRecord(sid, name(9)))
		w.want(wire.CodeMissing, err, "a root that is not there")
		var e *wire.Error
		if errors.As(err, &e) && (len(e.Missing) != 1 || e.Missing[0] != name(9).String()) {
			w.Errorf("missing: %v", e.Missing)
		}
		w.want(wire.CodeBadRequest, post(a, wire.PathRecords, a.commitRecord(sid, name(2))), "a root that is a chunk")
		w.want(wire.CodeForbidden, post(b, wire.PathRecords, a.commitRecord(sid, name(1))), "another vault's machine hands in a commit")
		w.want(wire.CodeForbidden, post(b, wire.PathRecords, a.enrol(b, holdfast.RightsAll)), "another vault's machine hands in an enrolment")
		w.want(wire.CodeForbidden, post(a, wire.PathRecords, w.stranger().genesis()), "a machine founds a second vault")
		open, _ := a.openRecord()
		w.want(wire.CodeBadRequest, post(a, wire.PathRecords, open), "an open record as any other")
		w.want(wire.CodeBadRequest, post(a, wire.PathSession, a.commitRecord(sid, name(1))), "a commit record opens a session")
		_, err = a.do("POST", wire.PathRecords, []byte("nonsense"))
		w.want(wire.CodeBadRequest, err, "nonsense")
		_, err = a.do("POST", wire.PathRecords, make([]byte, holdfast.MaxRecord+1000))
		w.want(wire.CodeTooLarge, err, "a record that is too large")
		forged := a.commitRecord(sid, name(1))
		forged.Sig[0] ^= 1
		w.want(wire.CodeBadRequest, post(a, wire.PathRecords, forged), "a forged signature")
		impostor := *a
		impostor.sign = newKey()
		w.want(wire.CodeForbidden, post(a, wire.PathRecords, impostor.commitRecord(sid, name(1))), "a record signed by a stranger")

		stale := *a
		stale.chain = history.Link{}
		err = post(a, wire.PathRecords, stale.commitRecord(sid, name(1)))
		w.want(wire.CodeStaleChain, err, "a record that does not continue its chain")
		for _, seen := range []uint64{1, 1000} {
			b, err := history.ParseBody(a.commitRecord(sid, name(1)).Body)
			w.ok(err, "parse")
			b.SeenN, b.SeenHead = seen, holdfast.Head{9}
			w.want(wire.CodeBehind, post(a, wire.PathRecords, history.Sign(b, a.sign, holdfast.Key{})), "a record that cites a head which this service does not have")
		}
		if errors.As(err, &e) && (e.Chain == nil || e.Chain.Seq != 1 || e.Chain.Prev != a.chain.Prev.String()) {
			w.Errorf("chain: %+v", e.Chain)
		}
		w.ok(post(a, wire.PathRecords, a.commitRecord(sid, name(1))), "commit")

		// A key with an account founds one vault, and enrols itself only.
		c := w.stranger()
		w.ok(c.redeem(w.account("c")), "redeem")
		w.ok(post(c, wire.PathRecords, c.genesis()), "genesis")
		w.ok(post(c, wire.PathRecords, c.genesis()), "genesis again")
		second := *c
		second.owner = newKey()
		w.want(wire.CodeForbidden, post(&second, wire.PathRecords, second.genesis()), "a second vault")
		w.want(wire.CodeForbidden, post(c, wire.PathRecords, c.enrol(w.stranger(), holdfast.RightsAll)), "enrolling another key first")
		w.ok(post(c, wire.PathRecords, c.enrol(c, holdfast.RightsAll)), "enrol")
		w.ok(post(c, wire.PathRecords, c.enrol(c, holdfast.RightsAll)), "enrol again")
	})
}

func TestMalformedRequests(t *testing.T) {
	inWorld(t, func(w *world) {
		c := w.customer("a", holdfast.RightsAll)
		sid := c.open()
		chunk := sealed(sid, holdfast.KindChunk, 100)
		strange := sealed(holdfast.SessionID{1}, holdfast.KindChunk, 100)
		blocks := path(wire.PathBlocks, sid)
		for _, x := range []struct {
			what, method, path string
			body               []byte
			want               wire.Code
		}{
			{"no such request", "GET", "/v1/nothing", nil, wire.CodeNotFound},
			{"another version", "GET", "/v2/hello", nil, wire.CodeNotFound},
			{"wrong method", "POST", wire.PathHello, nil, wire.CodeBadRequest},
			{"history after nothing", "GET", wire.PathHistory, nil, wire.CodeBadRequest},
			{"session not in hex", "POST", "/v1/sessions/xyz/have", make([]byte, 32), wire.CodeBadRequest},
			{"session in capitals", "POST", path(wire.PathHave, sid), make([]byte, 31), wire.CodeBadRequest},
			{"no names", "POST", path(wire.PathHave, sid), nil, wire.CodeBadRequest},
			{"too many names", "POST", path(wire.PathHave, sid), make([]byte, 32*holdfast.MaxHave+32), wire.CodeTooLarge},
			{"no number", "POST", blocks, frame(name(1), chunk), wire.CodeBadRequest},
			{"number 0", "POST", blocks + "?seq=0", frame(name(1), chunk), wire.CodeBadRequest},
			{"empty batch", "POST", blocks + "?seq=1", nil, wire.CodeBadRequest},
			{"not frames", "POST", blocks + "?seq=1", []byte("nonsense"), wire.CodeBadRequest},
			{"cut frame", "POST", blocks + "?seq=1", frame(name(1), chunk)[:80], wire.CodeBadRequest},
			{"absent frame", "POST", blocks + "?seq=1", wire.AppendFrame(nil, wire.Frame{Status: wire.FrameAbsent}), wire.CodeBadRequest},
			{"not a block", "POST", blocks + "?seq=1", frame(name(1), make([]byte, 100)), wire.CodeBadRequest},
			{"strange session", "POST", blocks + "?seq=1", frame(name(1), strange), wire.CodeBadRequest},
			{"too large", "POST", blocks + "?seq=1", make([]byte, holdfast.MaxBatch+1), wire.CodeTooLarge},
			{"far ahead", "POST", blocks + "?seq=100", frame(name(1), chunk), wire.CodeOutOfOrder},
			{"no such session", "POST", path(wire.PathBlocks, holdfast.SessionID{9}) + "?seq=1", frame(name(1), chunk), wire.CodeSessionGone},
			{"group not in hex", "POST", "/v1/groups/0/fetch", make([]byte, 32), wire.CodeBadRequest},
			{"a name twice", "POST", path(wire.PathFetch, c.group), make([]byte, 64), wire.CodeBadRequest},
			{"a copy beyond the last", "POST", path(wire.PathFetch, c.group) + "?copy=256", make([]byte, 32), wire.CodeBadRequest},
			{"no number of a copy", "POST", path(wire.PathFetch, c.group) + "?copy=first", make([]byte, 32), wire.CodeBadRequest},
		} {
			for _, proto := range []string{"h2", "http/1.1"} {
				d := *c
				d.connect(proto)
				_, err := d.do(x.method, x.path, x.body)
				w.want(x.want, err, x.what+" by "+proto)
				d.http.CloseIdleConnections()
			}
		}
		// None of them took the turn away.
		_, err := c.upload(sid, 1, frame(name(1), chunk))
		w.ok(err, "upload")
		// A length that is not announced is read to its limit.
		r, _ := http.NewRequest("POST", "https://service"+blocks+"?seq=2", io.MultiReader(bytes.NewReader(make([]byte, holdfast.MaxBatch)), strings.NewReader("x")))
		_, err = c.request(r)
		w.want(wire.CodeTooLarge, err, "too large without a length")
		r, _ = http.NewRequest("POST", "https://service"+blocks+"?seq=2&flush=1", io.MultiReader(bytes.NewReader(frame(name(2), chunk))))
		_, err = c.request(r)
		w.ok(err, "a batch without a length")
	})
}

func TestMissingLinks(t *testing.T) {
	inWorld(t, func(w *world) {
		c := w.customer("a", holdfast.RightsAll)
		sid := c.open()
		tree := sealed(sid, holdfast.KindTree, 100, name(1), name(2))
		_, err := c.upload(sid, 1, frame(name(7), sealed(sid, holdfast.KindChunk, 10)), frame(name(3), tree))
		w.want(wire.CodeMissing, err, "a tree before its chunks")
		var e *wire.Error
		if errors.As(err, &e) && fmt.Sprint(e.Missing) != fmt.Sprint([]string{name(1).String(), name(2).String()}) {
			w.Errorf("missing: %v", e.Missing)
		}
		// The batch was refused whole, and its turn is still open.
		got, err := c.have(sid, name(7), name(3))
		if err != nil || got != "0000" {
			w.Errorf("have: %s, %v", got, err)
		}
		_, err = c.upload(sid, 1, frame(name(1), sealed(sid, holdfast.KindChunk, 10)))
		w.ok(err, "first child")
		_, err = c.upload(sid, 2, frame(name(2), sealed(sid, holdfast.KindChunk, 10)), frame(name(3), tree))
		w.ok(err, "second child and tree")
	})
}

func TestBatchesArriveInAnyOrder(t *testing.T) {
	inWorld(t, func(w *world) {
		c := w.customer("a", holdfast.RightsAll)
		sid := c.open()
		// Each batch's tree links to the tree of the batch before it: any other order is refused.
		const n = 8
		var wg sync.WaitGroup
		for k := n; k >= 1; k-- {
			var links []holdfast.Name
			if k > 1 {
				links = []holdfast.Name{name(k - 1)}
			}
			body := frame(name(k), sealed(sid, holdfast.KindTree, 1<<20, links...))
			wg.Go(func() {
				time.Sleep(time.Duration(n-k) * time.Second)
				st, err := c.upload(sid, k, body)
				if err != nil || st.Stored != 1 {
					w.Errorf("batch %d: %+v, %v", k, st, err)
				}
			})
		}
		wg.Wait()
		// Sent again, all of them, in the wrong order: known, every one.
		for k := n; k >= 1; k-- {
			st, err := c.upload(sid, k, frame(name(k), sealed(sid, holdfast.KindTree, 10)))
			if err != nil || st != (wire.Stored{Known: 1}) {
				w.Errorf("batch %d again: %+v, %v", k, st, err)
			}
		}
		start := time.Now()
		_, err := c.upload(sid, n+2, frame(name(99), sealed(sid, holdfast.KindChunk, 10)))
		w.want(wire.CodeOutOfOrder, err, "a batch whose predecessor never comes")
		if d := time.Since(start); d < turnPatience || d > turnPatience+time.Second {
			w.Errorf("it waited %v", d)
		}
	})
}

// TestDurableBeforeAnswer lets the bucket hang while a batch and a commit wait for their answers.
func TestDurableBeforeAnswer(t *testing.T) {
	inWorld(t, func(w *world) {
		c := w.customer("a", holdfast.RightsAll)
		c.open()
		w.stop()
		slow := false
		w.bucket = w.bucket.Store().Connect(3)
		w.bucket.OnOp(func(op sim.Op, _ string, _ int) sim.Fault {
			if slow && op == sim.OpPut {
				return sim.Fault{Slow: 3 * time.Second}
			}
			return sim.Fault{}
		})
		w.start()
		sid := c.open()
		slow = true
		start := time.Now()
		_, err := c.upload(sid, 1, frame(name(1), sealed(sid, holdfast.KindArchive, 10)))
		w.ok(err, "upload")
		if d := time.Since(start); d < 3*time.Second {
			w.Errorf("a batch was acknowledged after %v, its PUT takes 3 s", d)
		}
		start = time.Now()
		_, err = c.record(wire.PathRecords, c.commitRecord(sid, name(1)))
		w.ok(err, "commit")
		if d := time.Since(start); d < 3*time.Second {
			w.Errorf("a commit was acknowledged after %v, its PUT takes 3 s", d)
		}
		// Known blocks that are not durable yet are not answered sooner, and no body waits with them.
		time.AfterFunc(2*time.Second, func() {
			if free := w.srv.uploads.left(); free != uploadMemory {
				w.Errorf("%d bytes are free while uploads wait for their acknowledgement", free)
			}
		})
		block := frame(name(2), sealed(sid, holdfast.KindChunk, 10))
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() {
				start := time.Now()
				_, err := c.upload(sid, 2, block)
				if d := time.Since(start); err != nil || d < 3*time.Second {
					w.Errorf("acknowledged after %v, %v", d, err)
				}
			})
		}
		wg.Wait()
	})
}

func TestRestart(t *testing.T) {
	inWorld(t, func(w *world) {
		c := w.customer("a", holdfast.RightsAll)
		sid := c.open()
		open, _ := c.openRecord()
		_, err := c.record(wire.PathSession, open)
		w.ok(err, "open")
		c.advance(open)
		chunk := sealed(sid, holdfast.KindChunk, 100)
		_, err = c.upload(sid, 1, frame(name(1), chunk))
		w.ok(err, "upload")
		// This one is taken and not durable when the process dies.
		lost := make(chan error)
		go func() {
			_, err := c.do("POST", path(wire.PathBlocks, sid)+"?seq=2", frame(name(2), sealed(sid, holdfast.KindChunk, 100)))
			lost <- err
		}()
		synctest.Wait()
		w.crash()
		if err := <-lost; err == nil {
			w.Error("an upload that was lost was acknowledged")
		}
		w.start()
		_, err = c.have(sid, name(1))
		w.want(wire.CodeSessionGone, err, "a session of the process that died")
		_, err = c.record(wire.PathSession, open)
		w.want(wire.CodeSessionGone, err, "its open record again")

		second := c.open()
		got, err := c.have(second, name(1), name(2))
		if err != nil || got != "0100" {
			w.Errorf("have: %s, %v", got, err)
		}
		// The window, as it was sealed under the earlier session, in a batch with what is new.
		root := sealed(second, holdfast.KindArchive, 100, name(1), name(2))
		st, err := c.upload(second, 1, frame(name(1), chunk), frame(name(2), sealed(sid, holdfast.KindChunk, 100)), frame(name(3), root))
		if err != nil || st != (wire.Stored{Stored: 2, Known: 1}) {
			w.Errorf("upload: %+v, %v", st, err)
		}
		// A commit needs no session that lives: everything it refers to is there.
		r := c.commitRecord(second, name(3))
		w.stop()
		w.start()
		_, err = c.record(wire.PathRecords, r)
		w.ok(err, "commit after a restart")
		frames, err := c.fetch(c.group, name(1), name(2), name(3))
		if err != nil || len(frames) != 3 {
			w.Errorf("fetch: %d, %v", len(frames), err)
		}
	})
}

// TestAnotherMachinesSession: a block is taken only under a session of the same machine.
func TestAnotherMachinesSession(t *testing.T) {
	inWorld(t, func(w *world) {
		a := w.customer("a", holdfast.RightsAll)
		b := w.customer("b", holdfast.RightsAll)
		sa, sb := a.open(), b.open()
		_, err := a.upload(sa, 1, frame(name(1), sealed(sb, holdfast.KindChunk, 10)))
		w.want(wire.CodeBadRequest, err, "a block under another vault's session")

		// A second machine of the same vault, in the same group.
		m := *a
		m.tls, m.sign, m.chain = newKey(), newKey(), history.Link{}
		m.connect("h2")
		_, err = a.record(wire.PathRecords, a.enrol(&m, holdfast.RightsAll))
		w.ok(err, "enrol a second machine")
		_, err = m.upload(sa, 1, frame(name(1), sealed(sa, holdfast.KindChunk, 10)))
		w.want(wire.CodeSessionGone, err, "another machine's session")
		sm := m.open()
		_, err = m.upload(sm, 1, frame(name(1), sealed(sa, holdfast.KindChunk, 10)))
		w.want(wire.CodeBadRequest, err, "a block under another machine's session")
		w.want(wire.CodeForbidden, func() error { _, err := m.record(wire.PathRecords, a.commitRecord(sa, name(1))); return err }(), "another machine's commit")
	})
}

func TestSessionsAreBoundedAndForgotten(t *testing.T) {
	inWorld(t, func(w *world) {
		c := w.customer("a", holdfast.RightsAll)
		var sids []holdfast.SessionID
		for range maxPerKey + 2 {
			sids = append(sids, c.open())
			later(time.Second)
		}
		if n := w.srv.Sessions(); n != maxPerKey {
			w.Errorf("%d sessions are open", n)
		}
		_, err := c.have(sids[1], name(1))
		w.want(wire.CodeSessionGone, err, "the session unused for longest")
		last := sids[len(sids)-1]
		for range 4 {
			later(50 * time.Minute)
			_, err = c.have(last, name(1))
			w.ok(err, "a session in use")
		}
		later(sessionIdle + time.Second)
		_, err = c.have(last, name(1))
		w.want(wire.CodeSessionGone, err, "a session unused for an hour")
		c.open()
		if n := w.srv.Sessions(); n != 1 {
			w.Errorf("%d sessions are open", n)
		}
	})
}

// TestHaveIsAPromise: a block that nothing refers to counts as there only if it is young enough to stay.
func TestHaveIsAPromise(t *testing.T) {
	inWorld(t, func(w *world) {
		c := w.customer("a", holdfast.RightsAll)
		sid := c.open()
		_, err := c.upload(sid, 1, frame(name(1), sealed(sid, holdfast.KindChunk, 10)),
			frame(name(2), sealed(sid, holdfast.KindTree, 10, name(1))), frame(name(3), sealed(sid, holdfast.KindChunk, 10)))
		w.ok(err, "upload")
		later(view.Keep - time.Minute)
		sid = c.open()
		got, err := c.have(sid, name(1), name(2), name(3))
		if err != nil || got != "010101" {
			w.Errorf("within the time: %s, %v", got, err)
		}
		later(2 * time.Minute)
		got, err = c.have(sid, name(1), name(2), name(3))
		if err != nil || got != "010101" {
			w.Errorf("in a session that began within the time: %s, %v", got, err)
		}
		sid = c.open()
		got, err = c.have(sid, name(1), name(2), name(3))
		if err != nil || got != "010000" {
			w.Errorf("later: %s, %v", got, err)
		}
	})
}

// staller sends the head of a batch of size bytes and the first of them, and no more.
func (w *world) staller(ctx context.Context, wg *sync.WaitGroup, c *client, sid holdfast.SessionID, seq, size int) {
	rd, wr := io.Pipe()
	r, _ := http.NewRequestWithContext(ctx, "POST", "https://service"+path(wire.PathBlocks, sid)+fmt.Sprintf("?seq=%d", seq), rd)
	r.ContentLength = int64(size)
	wg.Go(func() {
		defer wr.Close()
		if _, err := c.request(r); err == nil {
			w.Error("half a body was taken")
		}
	})
	go wr.Write(make([]byte, 1000))
	synctest.Wait()
}

// TestMemoryIsBounded: bodies that do not come hold a bounded part of the memory, others get through, even when
// two vaults together hold all of it, and who waits too long is told that the service is busy.
func TestMemoryIsBounded(t *testing.T) {
	inWorld(t, func(w *world) {
		const size = 8 << 20
		var wg sync.WaitGroup
		ctx, cancel := context.WithCancel(w.Context())
		slow := w.customer("slow", holdfast.RightsAll)
		sid := slow.open()
		for k := 1; k <= 6; k++ {
			w.staller(ctx, &wg, slow, sid, k, size)
		}
		if free := w.srv.uploads.left(); free != uploadMemory-uploadShare {
			w.Errorf("%d bytes are free: one vault holds more than its share", free)
		}
		good := w.customer("good", holdfast.RightsAll)
		gs := good.open()
		_, err := good.upload(gs, 1, frame(name(1), sealed(gs, holdfast.KindChunk, 1000)))
		w.ok(err, "upload while another vault stalls")

		slow2 := w.customer("slow2", holdfast.RightsAll)
		sid = slow2.open()
		for k := 1; k <= 4; k++ {
			w.staller(ctx, &wg, slow2, sid, k, size)
		}
		if free := w.srv.uploads.left(); free != 0 {
			w.Errorf("%d bytes are free", free)
		}
		// Two that hold everything between them keep nobody out for longer than what is held can be held.
		start := time.Now()
		_, err = good.upload(gs, 2, frame(name(2), sealed(gs, holdfast.KindChunk, 1000)))
		if waited := time.Since(start); err != nil || waited < cutAfter || waited > cutAge+cutAgain {
			w.Errorf("upload while two vaults hold all memory: %v after %v", err, waited)
		}
		cancel()
		wg.Wait()
		synctest.Wait()
		if free := w.srv.uploads.left(); free != uploadMemory || len(w.srv.uploads.granted) != 0 {
			w.Errorf("%d bytes are free after everybody left", free)
		}
	})
}

// TestSlowAreNotCut: whoever holds no more than cutFloor keeps it, and those for whom nothing is left are told.
func TestSlowAreNotCut(t *testing.T) {
	inWorld(t, func(w *world) {
		var wg sync.WaitGroup
		ctx, cancel := context.WithCancel(w.Context())
		for i := range uploadMemory / cutFloor {
			c := w.customer(fmt.Sprint("slow", i), holdfast.RightsAll)
			w.staller(ctx, &wg, c, c.open(), 1, cutFloor)
		}
		good := w.customer("good", holdfast.RightsAll)
		gs := good.open()
		start := time.Now()
		_, err := good.upload(gs, 1, frame(name(2), sealed(gs, holdfast.KindChunk, 1000)))
		w.want(wire.CodeBusy, err, "upload while all memory is held")
		var e *wire.Error
		if errors.As(err, &e) && e.RetryAfter == 0 || time.Since(start) != memoryPatience {
			w.Errorf("%+v after %v", e, time.Since(start))
		}
		if free := w.srv.uploads.left(); free != 0 {
			w.Errorf("%d bytes are free: somebody was cut", free)
		}
		// Who is too slow for his size is cut off, and everything is free again.
		later(slowGrace + cutFloor*time.Second/slowRate)
		synctest.Wait()
		if free := w.srv.uploads.left(); free != uploadMemory {
			w.Errorf("%d bytes are free after the slow were cut off", free)
		}
		_, err = good.upload(gs, 1, frame(name(2), sealed(gs, holdfast.KindChunk, 1000)))
		w.ok(err, "upload afterwards")
		cancel()
		wg.Wait()
	})
}

func TestFetchInBucketOrder(t *testing.T) {
	inWorld(t, func(w *world) {
		c := w.customer("a", holdfast.RightsAll)
		sid := c.open()
		const n = 60
		want := map[holdfast.Name][]byte{}
		for k := 1; k <= n/10; k++ {
			var frames [][]byte
			for i := range 10 {
				b := sealed(sid, holdfast.KindChunk, 1+200_000*(i%4))
				want[name(n-10*(k-1)-i)] = b // in the bucket in the opposite order of the names
				frames = append(frames, frame(name(n-10*(k-1)-i), b))
			}
			_, err := c.upload(sid, k, frames...)
			w.ok(err, "upload")
			later(time.Second)
		}
		var names []holdfast.Name
		for i := range n {
			names = append(names, name(i+1))
		}
		before := w.bucket.Count(sim.OpGet)
		got, err := c.fetch(c.group, names...)
		w.ok(err, "fetch")
		gets := w.bucket.Count(sim.OpGet) - before
		if gets > n/10+2 || gets == 0 {
			w.Errorf("%d GETs for %d blocks in %d segments", gets, n, n/10)
		}
		if len(got) != n {
			t.Fatalf("%d blocks", len(got))
		}
		for i, f := range got {
			if f.Name != name(n-i) {
				t.Fatalf("block %d is %s: not in bucket order", i, f.Name)
			}
			if !bytes.Equal(f.Sealed, want[f.Name]) {
				t.Fatalf("block %s came back differently", f.Name)
			}
		}
		if w.srv.fetches.left() != fetchMemory {
			w.Errorf("%d bytes are free", w.srv.fetches.left())
		}
		// A client that leaves in the middle leaves nothing behind.
		ctx, cancel := context.WithCancel(w.Context())
		r, _ := http.NewRequestWithContext(ctx, "POST", "https://service"+path(wire.PathFetch, c.group), bytes.NewReader(wire.AppendNames(nil, names)))
		resp, err := c.http.Do(r)
		w.ok(err, "fetch")
		io.ReadFull(resp.Body, make([]byte, 1000))
		cancel()
		resp.Body.Close()
		later(time.Minute)
		synctest.Wait()
		if w.srv.fetches.left() != fetchMemory {
			w.Errorf("%d bytes are free after a client left", w.srv.fetches.left())
		}
	})
}

func TestPlan(t *testing.T) {
	at := func(seq uint64, off, n uint32) found {
		var f found
		f.Pos.Epoch, f.Pos.Seq, f.Off, f.Len = 1, seq, off, n
		return f
	}
	for _, c := range []struct {
		what string
		in   []found
		want []int // blocks of each read
	}{
		{"nothing", nil, nil},
		{"neighbours", []found{at(1, 100, 50), at(1, 0, 100), at(1, 150, 1)}, []int{3}},
		{"two segments", []found{at(2, 0, 100), at(1, 0, 100)}, []int{1, 1}},
		{"a gap as large as allowed", []found{at(1, 0, 100), at(1, 100+readGap, 100)}, []int{2}},
		{"a larger gap", []found{at(1, 0, 100), at(1, 101+readGap, 100)}, []int{1, 1}},
		{"a span as large as allowed", []found{at(1, 0, readSpan-10), at(1, readSpan-10, 10)}, []int{2}},
		{"a larger span", []found{at(1, 0, readSpan-10), at(1, readSpan-10, 11)}, []int{1, 1}},
		{"one large block", []found{at(1, 0, holdfast.MaxBlock), at(1, holdfast.MaxBlock, 1)}, []int{1, 1}},
	} {
		runs := plan(c.in)
		var got []int
		for _, r := range runs {
			got = append(got, len(r))
			if n := span(r); n > readSpan && len(r) > 1 || n > fetchShare {
				t.Errorf("%s: a read of %d bytes", c.what, n)
			}
		}
		if fmt.Sprint(got) != fmt.Sprint(c.want) {
			t.Errorf("%s: %v, want %v", c.what, got, c.want)
		}
	}
}

// TestScenarioS9 at the level of the protocol: damage in the bucket is told as such and never served, and
// one bad read is read again.
func TestScenarioS9FetchNeverServesDamage(t *testing.T) {
	inWorld(t, func(w *world) {
		c := w.customer("a", holdfast.RightsAll)
		sid := c.open()
		block := sealed(sid, holdfast.KindChunk, 1000)
		_, err := c.upload(sid, 1, frame(name(1), block), frame(name(2), sealed(sid, holdfast.KindChunk, 1000)))
		w.ok(err, "upload")
		var fault sim.Fault
		w.bucket.Store().Damage(blockObject(w), func(b []byte) []byte {
			i := bytes.Index(b, block)
			b[i+500] ^= 1
			return b
		})
		w.stop()
		w.bucket = w.bucket.Store().Connect(4)
		var mu sync.Mutex
		var seen int
		w.bucket.OnOp(func(op sim.Op, key string, _ int) sim.Fault {
			mu.Lock()
			defer mu.Unlock()
			if op == sim.OpGet && fault != (sim.Fault{}) {
				seen++
				if seen == 1 || fault.Err != nil {
					return fault
				}
			}
			return sim.Fault{}
		})
		w.start()
		check := func(what string) {
			t.Helper()
			frames, err := c.fetch(c.group, name(1), name(2))
			if err != nil || len(frames) != 2 || frames[0].Name != name(1) || frames[0].Status != wire.FrameDamaged || frames[1].Status != wire.FrameBlock {
				w.Errorf("%s: %v, %v", what, frames, err)
			}
		}
		check("a flipped bit in the bucket")
		for what, f := range map[string]sim.Fault{"flipped": {Flip: true}, "short": {Short: true}, "wrong": {Wrong: true}} {
			mu.Lock()
			fault, seen = f, 0
			mu.Unlock()
			check("and one " + what + " read")
		}
		mu.Lock()
		fault = sim.Fault{Err: sim.ErrFault}
		mu.Unlock()
		_, err = c.fetch(c.group, name(1), name(2))
		w.want(wire.CodeBackendDown, err, "the bucket does not answer")
		mu.Lock()
		fault = sim.Fault{}
		mu.Unlock()
		check("when the bucket answers again")
	})
}

// blockObject returns the key of the segment with the most bytes: the one with the blocks.
func blockObject(w *world) string {
	var best string
	var most int
	for _, k := range w.bucket.Store().Keys() {
		b, err := w.bucket.Get(w.Context(), k, 0, -1)
		if err != nil {
			w.Fatal(err)
		}
		if len(b) > most {
			best, most = k, len(b)
		}
	}
	return best
}

// TestStopped: when the journal has stopped, everybody is told so, and Serve returns its error.
func TestStopped(t *testing.T) {
	inWorld(t, func(w *world) {
		c := w.customer("a", holdfast.RightsAll)
		sid := c.open()
		w.bucket.Crash()
		_, err := c.upload(sid, 1, frame(name(1), sealed(sid, holdfast.KindChunk, 10)))
		if err == nil {
			w.Fatal("an upload was acknowledged by a service without a bucket")
		}
		w.want(wire.CodeStopped, err, "the upload that met it")
		if err := w.end(); !errors.Is(err, journal.ErrStopped) {
			w.Errorf("Serve returned %v", err)
		}
		w.end = nil
		w.j.Close(context.WithoutCancel(w.Context()))
		w.bucket = w.bucket.Store().Connect(5)
	})
}

// TestDrain: told to end, the service takes nothing new and finishes what is under way.
func TestDrain(t *testing.T) {
	inWorld(t, func(w *world) {
		c := w.customer("a", holdfast.RightsAll)
		sid := c.open()
		done := make(chan error)
		go func() {
			_, err := c.do("POST", path(wire.PathBlocks, sid)+"?seq=1", frame(name(1), sealed(sid, holdfast.KindChunk, 10)))
			done <- err
		}()
		synctest.Wait()
		w.srv.ending.Store(true)
		_, err := c.upload(sid, 2, frame(name(2), sealed(sid, holdfast.KindChunk, 10)))
		w.want(wire.CodeMaintenance, err, "an upload while the service ends")
		if h := c.hello(); h.State != wire.StateMaintenance {
			w.Errorf("state %q", h.State)
		}
		if got, err := c.fetch(c.group, name(5)); err != nil || len(got) != 1 {
			w.Errorf("a fetch while the service ends: %v", err)
		}
		start := time.Now()
		ended := make(chan error)
		go func() { ended <- w.end() }()
		if err := <-done; err != nil {
			w.Errorf("the upload under way: %v", err)
		}
		if d := time.Since(start); d > time.Second {
			w.Errorf("it took %v to be durable", d)
		}
		c.http.CloseIdleConnections()
		w.ok(<-ended, "serve")
		w.end = nil
		w.ok(w.j.Close(context.WithoutCancel(w.Context())), "close journal")
	})
}
