package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"holdfast"
	"holdfast/client/keyring"
	"holdfast/client/restore"
	"holdfast/history"
	"holdfast/internal/pipenet"
	"holdfast/wire"
)

// Ways to run the program that many lies share.
func list(w *world) said      { return w.run("list") }
func createIt(w *world) said  { w.write("docs/new", 300<<10); return w.create("docs") }
func extractIt(w *world) said { return w.extract("docs") }

// init makes a vault with a token. The service learns the machine's keys when it redeems that: only with
// them it can hold records to the rules.
func (w *world) init() said {
	before := w.svc.Hook
	w.svc.Hook = func(rw http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, "/redeem") {
			m, err := keyring.Load(w.key, nil)
			if err != nil {
				w.t.Error(err)
			}
			w.svc.Machine, w.svc.Vault, w.svc.Entries = m, &history.Vault{}, nil
		}
		return before != nil && before(rw, r)
	}
	m := w.svc.NewMachine(holdfast.GroupID{}, holdfast.RightsAll)
	return w.run("init", "--token", wire.Token{ServiceKey: m.ServiceKey, LogKey: m.LogKey, Address: m.Address}.String())
}

// filled lets the vault that init made have what other worlds have.
func (w *world) filled(s said) said {
	if s.code != 0 {
		return s
	}
	w.ok("create", "-C", w.dir, "docs", "docs")
	w.ok("create", "-C", w.dir, "photos", "photos")
	return s
}

// refuse has the service refuse requests of which the path ends so.
func (w *world) refuse(path string, code wire.Code) {
	w.svc.Hook = func(rw http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, path) {
			return false
		}
		rw.WriteHeader(code.Status())
		json.NewEncoder(rw).Encode(wire.Error{Code: code, Message: "The service refuses this for a reason that is not true.", Missing: []string{holdfast.Name{7}.String()}})
		return true
	}
}

// back runs init --recover with the owner's words on a bare machine, which it returns.
func (w *world) back() (said, *world) {
	o := w.elsewhere()
	o.key = filepath.Join(w.t.TempDir(), "key")
	o.typed = w.svc.Owner.Words()
	m := w.svc.Machine
	s := o.run("init", "--recover", "--address", m.Address, "--service-key", hex.EncodeToString(m.ServiceKey[:]), "--log-key", hex.EncodeToString(m.LogKey[:]))
	if s.code != 0 {
		o.afterwards(nothing)
	}
	return s, o
}

func recoverIt(w *world) said {
	s, _ := w.back()
	return s
}

// vaults has the service answer with these as the owner's.
func (w *world) vaults(ids ...holdfast.VaultID) {
	v := wire.Vaults{Vaults: []string{}}
	for _, id := range ids {
		v.Vaults = append(v.Vaults, id.String())
	}
	b, err := json.Marshal(v)
	if err != nil {
		w.t.Fatal(err)
	}
	owner := w.svc.Machine.Owner
	w.tell(hex.EncodeToString(owner[:]), func(_, _ []byte) []byte { return b })
}

// code returns the head code that the machine would read aloud.
func (w *world) code() string {
	_, code, _ := strings.Cut(w.ok("history").out, "head code  ")
	return strings.TrimSpace(code)
}

// keyed has every connection end at somebody with another TLS key.
func keyed(w *world) {
	w.dial = func(context.Context, string, string) (net.Conn, error) {
		near, far := pipenet.Pipe()
		go tls.Server(far, wire.ServerConfig(ed25519.NewKeyFromSeed(make([]byte, 32)))).Handshake()
		return near, nil
	}
}

// tampered is a connection on which somebody repeats or exchanges what the service sent after the handshake.
type tampered struct {
	net.Conn
	swap  bool
	reads int
	held  []byte
	last  []byte
}

func (c *tampered) Read(p []byte) (int, error) {
	if len(c.held) > 0 {
		n := copy(p, c.held)
		c.held = c.held[n:]
		return n, nil
	}
	n, err := c.Conn.Read(p)
	if c.reads++; err != nil || c.reads < 3 {
		c.last = bytes.Clone(p[:max(n, 0)])
		return n, err
	}
	piece := bytes.Clone(p[:n])
	if c.swap {
		n, err = c.Conn.Read(p)
		c.held = piece
		return n, err
	}
	c.held = piece
	return copy(p, c.last), nil
}

func (w *world) tamper(swap bool) {
	w.dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := w.svc.Pipe(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return &tampered{Conn: conn, swap: swap}, nil
	}
}

// neverAsked runs what people run and checks that no request of that name came.
func neverAsked(name string) func(w *world) said {
	return func(w *world) said {
		w.code()
		w.ok("verify")
		s := createIt(w)
		w.ok("extract", "photos", "--target", w.t.TempDir()+"/out")
		w.ok("key", "list")
		if n := w.svc.Served[name]; n > 0 || w.svc.Served["fetch"] == 0 {
			w.t.Errorf("%d requests %s", n, name)
		}
		return s
	}
}

// helloLies runs what people run while every hello is another lie, or none.
func helloLies(w *world) said {
	asked := 0
	w.svc.Hook = func(rw http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path != wire.PathHello {
			return false
		}
		asked++
		switch asked % 4 {
		case 0:
			panic(http.ErrAbortHandler)
		case 1:
			json.NewEncoder(rw).Encode(wire.Hello{Protocol: 7, State: wire.StateStopped, LogKey: strings.Repeat("11", 32), You: "revoked", N: 1, Head: strings.Repeat("22", 32), Notice: "\x1b[2J", Credit: &wire.Credit{State: "\x1b[2J", Days: -1}})
		case 2:
			rw.WriteHeader(http.StatusTeapot)
		case 3:
			rw.Write([]byte("{"))
		}
		return true
	}
	w.code()
	w.ok("verify")
	s := createIt(w)
	w.ok("extract", "photos", "--target", w.t.TempDir()+"/out")
	w.ok("key", "list")
	if asked < 4 {
		w.t.Errorf("hello was asked for %d times", asked)
	}
	return s
}

// byService returns a record that the service makes of archives, at the end of its chain.
func (w *world) byService(t history.Type, ids ...holdfast.RecordID) history.Record {
	return w.says(t, history.SortIDs(ids).Encode())
}

// says returns a record of the service's own over fields.
func (w *world) says(t history.Type, fields []byte) history.Record {
	return history.SignByService(history.Body{
		Type: t, Vault: w.svc.Vault.ID, Seq: w.svc.Vault.Service.Seq, Prev: w.svc.Vault.Service.Prev, Fields: fields,
	}, w.svc.LogKey)
}

// by returns a record that a machine signs at the end of its chain.
func (w *world) by(m *keyring.Machine, t history.Type, fields []byte) history.Record {
	link := w.svc.Vault.Machines[m.Signer()].Chain
	return history.Sign(history.Body{Type: t, Vault: w.svc.Vault.ID, Seq: link.Seq, Prev: link.Prev, Fields: fields}, m.SignKey(), m.Hist)
}

// added shows the history with one more record, stamped that long after the newest.
func (w *world) added(r history.Record, later time.Duration) said {
	v := w.svc.Vault
	w.show(append(slices.Clone(w.svc.Entries), history.Stamp(v.ID, v.N+1, v.Head, v.Time+int64(later), r, w.svc.LogKey)))
	return list(w)
}

// archives returns the IDs of the archives of docs.
func (w *world) archives() (ids []holdfast.RecordID) {
	for _, a := range w.svc.Vault.OfSeries(w.svc.Machine.Series("docs")) {
		ids = append(ids, a.ID)
	}
	return ids
}

// revised has the service answer requests to add records with what change makes of the true entry, given the
// vault as it was before.
func (w *world) revised(path string, change func(e history.Entry) []byte) {
	w.tell(path, func(_, answer []byte) []byte { return change(entry(answer)) })
}

// forgotten has the service answer the first record that comes with its entry, and then deny it.
func (w *world) forgotten(path string) {
	w.tell(path, func(_, answer []byte) []byte {
		e := entry(answer)
		w.svc.Entries = w.svc.Entries[:e.N-1]
		v := &history.Vault{}
		for _, x := range w.svc.Entries {
			if err := v.Follow(x, w.svc.LogKey.Public().(ed25519.PublicKey), w.svc.Machine.Hist); err != nil {
				w.t.Error(err)
			}
		}
		w.svc.Vault = v
		w.svc.Lie = nil
		return answer
	})
}

// leaves returns those of the names that are chunks or packs.
func (w *world) leaves(names []holdfast.Name) (out []holdfast.Name) {
	for _, n := range names {
		if h, _, err := wire.ParseBlockHeader(w.svc.Blocks[n]); err == nil && h.Kind.Leaf() {
			out = append(out, n)
		}
	}
	return out
}

// lost makes an archive of docs, and then has the service lose or alter a part of its blocks.
func (w *world) lost(harm func(leaves []holdfast.Name)) said {
	n := len(w.svc.Order)
	w.ok("create", "-C", w.dir, "docs", "docs")
	w.write("docs/new", 300<<10)
	if s := createIt(w); s.code != 0 {
		return s
	}
	harm(w.leaves(w.svc.Order[n:]))
	return w.run("verify", "docs")
}

// told is every lie, in the order of the table in docs/security.md.
var told = []lie{
	{
		at: "the connection", how: "drop, withhold, delay", told: "nothing answers", code: 5, note: "nobody can tell it from trouble", says: "cannot be reached",
		run: func(w *world) said {
			w.dial = func(context.Context, string, string) (net.Conn, error) {
				near, far := pipenet.Pipe()
				w.t.Cleanup(func() { far.Close() })
				return near, nil
			}
			return list(w)
		},
	},
	{
		at: "the connection", how: "swap, fork", told: "it ends at somebody with another TLS key", want: "wire.ErrServiceKey", code: 4, says: "not the service",
		run: func(w *world) said { keyed(w); return list(w) },
	},
	{
		at: "the connection", how: "replay", told: "somebody repeats a piece of what the service sent", code: 5, note: "TLS ends the connection", says: "cannot be reached",
		run: func(w *world) said { w.tamper(false); return list(w) },
	},
	{
		at: "the connection", how: "re-order", told: "somebody exchanges two pieces of what the service sent", code: 5, note: "TLS ends the connection", says: "cannot be reached",
		run: func(w *world) said { w.tamper(true); return list(w) },
	},
	{
		at: "the connection", how: "roll back", told: "an older version of TLS is offered", code: 5, note: "the handshake fails", says: "cannot be reached",
		run: func(w *world) said {
			w.dial = func(context.Context, string, string) (net.Conn, error) {
				near, far := pipenet.Pipe()
				c := wire.ServerConfig(ed25519.NewKeyFromSeed(make([]byte, 32)))
				c.MinVersion, c.MaxVersion, c.CurvePreferences = tls.VersionTLS12, tls.VersionTLS12, nil
				go func() { tls.Server(far, c).Handshake(); far.Close() }()
				return near, nil
			}
			return list(w)
		},
	},
	{
		at: "GET /v1/hello", how: "drop, swap, replay, withhold, fork, roll back, re-order, delay", told: "whatever it says, another log key included",
		note: "of it only the operator's notice is shown, and that the account is not paid; the keys come from the token and the key file", run: helloLies,
	},
	{
		at: "GET /v1/hello", how: "fork", told: "it says that the account is nearly used up", note: "it is said, and nothing follows from it: nobody can tell it from the truth", says: "new backups stop in 7 days, on 2026-12-01",
		run: func(w *world) said {
			w.svc.Credit = &wire.Credit{State: wire.CreditLow, Days: 7, End: time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC)}
			return createIt(w)
		},
	},
	{
		at: "GET /v1/hello", how: "fork", told: "it says that the account stands as none can", note: "nothing is said of it",
		run: func(w *world) said {
			w.svc.Credit = &wire.Credit{State: "\x1b[2J", Days: -7}
			s := createIt(w)
			if s.warn != "" || strings.Contains(s.out, "credit") {
				w.t.Errorf("said: %q%q", s.warn, s.out)
			}
			return s
		},
	},
	{
		at: "POST /v1/redeem", how: "drop", told: "it says that it does not know the token", code: 1, note: "a wrong token looks the same; no key file stays", says: "refuses this",
		run: func(w *world) said { w.refuse("/redeem", wire.CodeTokenUnknown); return w.init() }, end: nothing,
	},
	{
		at: "POST /v1/redeem", how: "replay", told: "it says that the token was redeemed before", code: 1, note: "no key file stays", says: "refuses this",
		run: func(w *world) said { w.refuse("/redeem", wire.CodeTokenUsed); return w.init() }, end: nothing,
	},
	{
		at: "POST /v1/redeem", how: "swap", told: "another service takes the token", want: "wire.ErrServiceKey", code: 4,
		run: func(w *world) said { keyed(w); return w.init() }, end: nothing,
	},
	{
		at: "POST /v1/redeem", how: "fork, roll back, re-order", told: "it answers nonsense", note: "nothing of the answer is used",
		run: func(w *world) said {
			w.tell("redeem", func(_, _ []byte) []byte { return []byte("]") })
			return w.filled(w.init())
		},
	},
	{
		at: "POST /v1/redeem", how: "withhold, delay", told: "it never answers", code: 5, note: "no key file stays", says: "cannot be reached",
		run: func(w *world) said { w.silent("redeem"); return w.init() }, end: nothing,
	},
	{
		at: "GET /v1/vaults", how: "drop, roll back", told: "it does not list the vault", code: 1, note: "nobody can tell it from the wrong service; the owner file names the vault, the words do not", says: "no vault of this owner",
		run: func(w *world) said { w.vaults(); return recoverIt(w) },
	},
	{
		at: "GET /v1/vaults", how: "swap", told: "it lists another customer's vault, and enrols the machine there", want: "history.ErrTag", code: 4,
		run: func(w *world) said {
			other := worldOf(w.t, 7)
			v := other.svc.Vault
			w.vaults(v.ID)
			list := w.svc.Lie
			entries := slices.Clone(other.svc.Entries)
			w.svc.Hook = func(rw http.ResponseWriter, r *http.Request) bool {
				switch {
				case strings.HasSuffix(r.URL.Path, "/records"):
					b, _ := io.ReadAll(r.Body)
					rec, err := history.ParseRecord(b)
					if err != nil {
						w.t.Error(err)
					}
					e := history.Stamp(v.ID, v.N+1, v.Head, v.Time, rec, w.svc.LogKey)
					entries = append(entries, e)
					rw.Write(e.Append(nil))
				case strings.HasSuffix(r.URL.Path, "/history"):
					rw.Write(encode(entries, 0))
				default:
					return false
				}
				return true
			}
			w.svc.Lie = list
			return recoverIt(w)
		},
	},
	{
		at: "GET /v1/vaults", how: "replay, fork", told: "it leads to an older vault of the same owner", want: "history.ErrOrder", code: 4,
		note: "`init --recover` says \"freshness unverified\", and `history --expect-head` finds it", says: "is expected",
		run: func(w *world) said {
			code := w.code()
			w.dial = worldOf(w.t, 1).svc.Pipe
			s, o := w.back()
			if s.code != 0 || !strings.Contains(s.warn, "freshness unverified") {
				w.t.Errorf("init --recover: exit %d\n%s%s", s.code, s.warn, s.line)
			}
			return o.run("history", "--expect-head", code)
		},
	},
	{
		at: "GET /v1/vaults", how: "re-order", told: "it lists another vault before the owner's", code: 1, note: "which is which is not guessed", says: "2 vaults of this owner",
		run: func(w *world) said { w.vaults(holdfast.VaultID{1}, w.svc.Vault.ID); return recoverIt(w) },
	},
	{
		at: "GET /v1/vaults", how: "withhold, delay", told: "it never answers", code: 5, note: "no key file stays", says: "cannot be reached",
		run: func(w *world) said {
			owner := w.svc.Machine.Owner
			w.silent(hex.EncodeToString(owner[:]))
			return recoverIt(w)
		},
	},
	{
		at: "POST /v1/records", how: "drop", told: "it answers with an entry that is not in the history afterwards", want: "history.ErrOrder", code: 4, note: "at the next contact, and from then on", says: "saw record",
		run: func(w *world) said {
			w.forgotten("records")
			if s := createIt(w); s.code != 0 {
				return s
			}
			return list(w)
		}, end: forked,
	},
	{
		at: "POST /v1/records", how: "swap", told: "it answers with the entry of another record", want: "history.ErrOrder", code: 4, says: "another record",
		run: func(w *world) said {
			w.revised("records", func(history.Entry) []byte { return w.svc.Entries[0].Append(nil) })
			return createIt(w)
		},
	},
	{
		at: "POST /v1/records", how: "replay", told: "it answers as it did to the commit before", want: "history.ErrOrder", code: 4, says: "another record",
		run: func(w *world) said {
			w.revised("records", func(history.Entry) []byte { return w.svc.Entries[w.find(history.TypeCommit, 0)].Append(nil) })
			return createIt(w)
		},
	},
	{
		at: "POST /v1/records", how: "withhold", told: "it adds the record and never says so", code: 5, note: "the archive is there, as the next run finds", says: "cannot be reached",
		run: func(w *world) said {
			n := len(w.archives())
			w.away("records", true)
			s := createIt(w)
			if len(w.archives()) != n+1 {
				w.t.Errorf("%d archives where %d were", len(w.archives()), n)
			}
			return s
		},
	},
	{
		at: "POST /v1/records", how: "fork", told: "it puts the record after another head than it showed", want: "history.ErrHead", code: 4,
		run: func(w *world) said {
			w.revised("records", func(e history.Entry) []byte { return w.restamp(e, e.N, holdfast.Head{1}, e.Time) })
			return createIt(w)
		},
	},
	{
		at: "POST /v1/records", how: "roll back", told: "it names a place that another record has", want: "history.ErrOrder", code: 4, says: "another one",
		run: func(w *world) said {
			w.revised("records", func(e history.Entry) []byte { return w.restamp(e, e.N-1, holdfast.Head{1}, e.Time) })
			return w.run("freeze")
		},
	},
	{
		at: "POST /v1/records", how: "re-order", told: "it names a later place than the one where it shows the record", want: "history.ErrOrder", code: 4, says: "does not show it there",
		run: func(w *world) said {
			w.revised("records", func(e history.Entry) []byte { return w.restamp(e, e.N+1, e.Head, e.Time) })
			return w.run("freeze")
		},
	},
	{
		at: "POST /v1/records", how: "delay", told: "it stamps a commit two hours ahead", want: "backup.ErrClock", code: 4, note: "the archive is made and whole", says: "in the future",
		run: func(w *world) said {
			w.svc.Skew = 2 * time.Hour
			s := createIt(w)
			if !strings.Contains(s.out, "docs@") {
				w.t.Errorf("the archive is not told of:\n%s", s.out)
			}
			time.Sleep(3 * time.Hour) // until the true time has caught up
			return s
		},
	},
	{
		at: "POST /v1/records", how: "delay", told: "it stamps a commit two hours in the past", want: "backup.ErrClock", code: 4, note: "the archive is made and whole", says: "in the past",
		run: func(w *world) said {
			time.Sleep(5 * time.Hour)
			w.svc.Skew = -2 * time.Hour
			return createIt(w)
		},
	},
	{
		at: "POST /v1/records", how: "delay", told: "it answers after ten minutes", code: 5, note: "nobody can tell it from trouble", says: "cannot be reached",
		run: func(w *world) said { w.late("records", 10*time.Minute); return createIt(w) },
	},
	{
		at: "GET /v1/history", how: "drop", told: "a machine's record is left out, under new heads", want: "history.ErrChain", code: 4, note: "by machines that remember nothing as well",
		run: func(w *world) said {
			i := w.find(history.TypeCommit, 0)
			w.show(w.stamped(slices.Delete(slices.Clone(w.svc.Entries), i, i+1)...))
			return list(w.elsewhere())
		},
	},
	{
		at: "GET /v1/history", how: "drop", told: "the owner's last record is left out, under new heads", want: "history.ErrSeen", code: 4, note: "by machines that remember nothing as well",
		run: func(w *world) said {
			i := w.find(history.TypePolicy, 0)
			w.show(w.stamped(slices.Delete(slices.Clone(w.svc.Entries), i, i+1)...))
			return list(w.elsewhere())
		},
	},
	{
		at: "GET /v1/history", how: "swap", told: "another customer's whole history", want: "history.ErrTag", code: 4,
		run: func(w *world) said { w.show(worldOf(w.t, 7).svc.Entries); return list(w) },
	},
	{
		at: "GET /v1/history", how: "swap", told: "the history of another vault of the same owner", want: "history.ErrOrder", code: 4, says: "another vault's genesis",
		run: func(w *world) said { w.show(worldOf(w.t, 1).svc.Entries); return list(w) },
	},
	{
		at: "GET /v1/history", how: "swap", told: "another vault's record in place of one", want: "history.ErrFormat", code: 4, says: "another vault",
		run: func(w *world) said {
			i := w.find(history.TypeCommit, 0)
			all := slices.Clone(w.svc.Entries)
			all[i].Record = worldOf(w.t, 7).svc.Entries[i].Record
			w.show(w.stamped(all...))
			return list(w)
		},
	},
	{
		at: "GET /v1/history", how: "swap", told: "two sessions' wraps exchanged", want: "history.ErrSignature", code: 4,
		run: func(w *world) said {
			all := slices.Clone(w.svc.Entries)
			i, j := w.find(history.TypeOpen, 0), w.find(history.TypeOpen, 1)
			a, aw := openOf(all[i])
			b, bw := openOf(all[j])
			all[i].Record.Body, all[j].Record.Body = a(bw), b(aw)
			w.show(w.stamped(all...))
			return list(w)
		},
	},
	{
		at: "GET /v1/history", how: "replay", told: "the first answer again to each request", want: "history.ErrOrder", code: 4, says: "record 1 where",
		run: func(w *world) said {
			w.tell("history", func(_, _ []byte) []byte { return encode(w.svc.Entries, 0) })
			return list(w)
		},
	},
	{
		at: "GET /v1/history", how: "withhold", told: "the newest records are not shown to a machine that never saw them", note: "\"freshness unverified\" is said: nothing on this machine can tell", says: "freshness unverified",
		run: func(w *world) said { w.show(w.svc.Entries[:4]); return list(w.elsewhere()) },
	},
	{
		at: "GET /v1/history", how: "withhold", told: "the same, and somebody reads the head code of another machine aloud", want: "history.ErrOrder", code: 4, note: "by `history --expect-head`", says: "only 4 records",
		run: func(w *world) said {
			code := w.code()
			w.show(w.svc.Entries[:4])
			return w.elsewhere().run("history", "--expect-head", code)
		},
	},
	{
		at: "GET /v1/history", how: "fork", told: "the newest record at another time", want: "history.ErrOrder", code: 4, says: "saw another head there",
		run: func(w *world) said { w.show(w.later(len(w.svc.Entries)-1, 1)); return list(w) },
	},
	{
		at: "GET /v1/history", how: "fork", told: "an older record at another time", want: "history.ErrSeen", code: 4, note: "by machines that remember nothing as well",
		run: func(w *world) said { w.show(w.later(1, 1)); return list(w.elsewhere()) },
	},
	{
		at: "GET /v1/history", how: "fork", told: "two machines see two newest records, and compare head codes", want: "history.ErrOrder", code: 4, note: "by `history --expect-head`", says: "is expected",
		run: func(w *world) said {
			code := w.code()
			w.show(w.later(len(w.svc.Entries)-1, 1))
			return w.another(holdfast.GroupID{5}, holdfast.RightsAll).run("history", "--expect-head", code)
		},
	},
	{
		at: "GET /v1/history", how: "fork", told: "a machine that was shown another newest record sees the true one", want: "history.ErrOrder", code: 4, says: "saw another head there",
		run: func(w *world) said {
			o := w.another(holdfast.GroupID{5}, holdfast.RightsAll)
			w.show(w.later(len(w.svc.Entries)-1, 1))
			o.ok("list")
			w.svc.Lie = nil
			return list(o)
		},
	},
	{
		at: "GET /v1/history", how: "fork", told: "heads signed with another log key", want: "history.ErrSignature", code: 4,
		run: func(w *world) said {
			own := w.svc.LogKey
			w.svc.LogKey = ed25519.NewKeyFromSeed(make([]byte, 32))
			w.show(w.stamped(w.svc.Entries...))
			w.svc.LogKey = own
			return list(w.elsewhere())
		},
	},
	{
		at: "GET /v1/history", how: "fork", told: "a time that the head does not cover", want: "history.ErrHead", code: 4,
		run: func(w *world) said {
			all := slices.Clone(w.svc.Entries)
			all[3].Time++
			w.show(all)
			return list(w)
		},
	},
	{
		at: "GET /v1/history", how: "fork", told: "an archive is purged before it could no longer be brought back", want: "history.ErrTooEarly", code: 4,
		run: func(w *world) said {
			id := w.archives()[0]
			w.svc.Rule(history.TypeDelete, history.IDs{id}.Encode())
			s := w.added(w.byService(history.TypePurge, id), time.Hour)
			w.svc.Rule(history.TypeUndelete, history.IDs{id}.Encode())
			return s
		},
	},
	{
		at: "GET /v1/history", how: "fork", told: "an archive is purged although deleting is frozen", want: "history.ErrFrozen", code: 4,
		run: func(w *world) said {
			id := w.archives()[0]
			w.svc.Rule(history.TypeDelete, history.IDs{id}.Encode())
			w.svc.Rule(history.TypeFreeze, nil)
			s := w.added(w.byService(history.TypePurge, id), 8*24*time.Hour)
			w.svc.Rule(history.TypeUndelete, history.IDs{id}.Encode())
			return s
		},
	},
	{
		at: "GET /v1/history", how: "fork", told: "an archive younger than 30 days expires", want: "history.ErrTooEarly", code: 4, says: "30 days",
		run: func(w *world) said { return w.added(w.byService(history.TypeExpire, w.archives()[0]), 29*24*time.Hour) },
	},
	{
		at: "GET /v1/history", how: "fork", told: "an archive expires that the policy keeps", want: "history.ErrKept", code: 4,
		run: func(w *world) said { return w.added(w.byService(history.TypeExpire, w.archives()[0]), 31*24*time.Hour) },
	},
	{
		at: "GET /v1/history", how: "fork", told: "an archive lapses although nobody owes anything", want: "history.ErrPaid", code: 4,
		run: func(w *world) said { return w.added(w.byService(history.TypeLapse, w.archives()[0]), 400*24*time.Hour) },
	},
	{
		at: "GET /v1/history", how: "fork", told: "an archive lapses before the time that was announced", want: "history.ErrTooEarly", code: 4,
		run: func(w *world) said {
			w.svc.Rule(history.TypeArrears, history.Arrears{Until: time.Now().Add(60 * 24 * time.Hour).UnixNano()}.Encode())
			s := w.added(w.byService(history.TypeLapse, w.archives()[0]), 59*24*time.Hour)
			w.svc.Rule(history.TypeArrears, history.Arrears{}.Encode())
			return s
		},
	},
	{
		at: "GET /v1/history", how: "fork", told: "archives are announced to lapse in less than 30 days", want: "history.ErrTooEarly", code: 4, says: "30 days",
		run: func(w *world) said {
			until := time.Unix(0, w.svc.Vault.Time).Add(30 * 24 * time.Hour)
			return w.added(w.says(history.TypeArrears, history.Arrears{Until: until.UnixNano()}.Encode()), time.Second)
		},
	},
	{
		at: "GET /v1/history", how: "fork", told: "the service signs a delete", want: "history.ErrSigner", code: 4,
		run: func(w *world) said { return w.added(w.byService(history.TypeDelete, w.archives()[0]), time.Hour) },
	},
	{
		at: "GET /v1/history", how: "fork", told: "a stolen key deletes the last archive of a series, and the service lets it", want: "history.ErrNeedsOwner", code: 4,
		run: func(w *world) said {
			return w.added(w.by(w.svc.Machine, history.TypeDelete, history.IDs{w.archives()[0]}.Encode()), time.Hour)
		},
	},
	{
		at: "GET /v1/history", how: "fork", told: "a machine that only writes deletes, and the service lets it", want: "history.ErrRights", code: 4,
		run: func(w *world) said {
			m := w.writer()
			return w.added(w.by(m, history.TypeDelete, history.IDs{w.archives()[0]}.Encode()), time.Hour)
		},
	},
	{
		at: "GET /v1/history", how: "fork", told: "a revoked machine goes on, and the service lets it", want: "history.ErrRevoked", code: 4,
		run: func(w *world) said {
			m := w.writer()
			w.svc.Rule(history.TypeRevoke, history.Revoke{Signer: m.Signer(), Since: time.Now().UnixNano()}.Encode())
			return w.added(w.by(m, history.TypeFreeze, nil), time.Hour)
		},
	},
	{
		at: "GET /v1/history", how: "fork", told: "a record whose signature holds, by somebody who does not have the vault's history key", want: "history.ErrTag", code: 4,
		run: func(w *world) said {
			m := *w.svc.Machine
			m.Hist = holdfast.Key{1}
			return w.added(w.by(&m, history.TypeFreeze, nil), time.Hour)
		},
	},
	{
		at: "GET /v1/history", how: "roll back", told: "the history ends before what this machine saw", want: "history.ErrOrder", code: 4, says: "ends at record 4",
		run: func(w *world) said { w.show(w.svc.Entries[:4]); return list(w) },
	},
	{
		at: "GET /v1/history", how: "roll back", told: "there is no history", want: "history.ErrOrder", code: 4, says: "no history",
		run: func(w *world) said { w.show(nil); return list(w) },
	},
	{
		at: "GET /v1/history", how: "re-order", told: "two records of one machine exchanged, under new heads", want: "history.ErrChain", code: 4, note: "by machines that remember nothing as well",
		run: func(w *world) said { w.show(w.exchanged(2, 3)); return list(w.elsewhere()) },
	},
	{
		at: "GET /v1/history", how: "re-order", told: "a machine's record and the owner's exchanged, under new heads", want: "history.ErrSeen", code: 4, note: "by machines that remember nothing as well",
		run: func(w *world) said { w.show(w.exchanged(3, 4)); return list(w.elsewhere()) },
	},
	{
		at: "GET /v1/history", how: "delay", told: "stamps run backwards", want: "history.ErrOrder", code: 4, says: "runs backwards",
		run: func(w *world) said { w.show(w.later(len(w.svc.Entries)-1, -time.Hour)); return list(w) },
	},
	{
		at: "GET /v1/history", how: "delay", told: "all stamps are a day later", want: "history.ErrSeen", code: 4,
		run: func(w *world) said {
			all := slices.Clone(w.svc.Entries)
			for i := range all {
				all[i].Time += int64(24 * time.Hour)
			}
			w.show(w.stamped(all...))
			return list(w)
		},
	},
	{
		at: "GET /v1/history", how: "delay", told: "the newest record is stamped two days ahead, so that a delay seems over", note: "a warning, and the next backup ends with `backup.ErrClock`; a wrong clock must not keep anybody from restoring", says: "in the future",
		run: func(w *world) said {
			w.svc.Skew = 48 * time.Hour
			w.svc.Rule(history.TypeThaw, nil)
			s := list(w)
			w.svc.Skew = 0
			time.Sleep(49 * time.Hour)
			return s
		},
	},
	{
		at: "GET /v1/history", how: "withhold, delay", told: "it never answers", code: 5, note: "nobody can tell it from trouble", says: "cannot be reached",
		run: func(w *world) said { w.silent("history"); return list(w) },
	},
	{
		at: "POST /v1/sessions", how: "drop", told: "it answers with an entry that is not in the history afterwards", want: "history.ErrOrder", code: 4, note: "and from then on", says: "refuses a record",
		run: func(w *world) said { w.forgotten("sessions"); return createIt(w) }, end: forked,
	},
	{
		at: "POST /v1/sessions", how: "drop", told: "it forgets every session at once", want: "remote.ErrProtocol", code: 4, says: "in a row",
		run: func(w *world) said { w.refuse("/sessions", wire.CodeSessionGone); return createIt(w) },
	},
	{
		at: "POST /v1/sessions", how: "swap", told: "it answers with the entry of another record", want: "history.ErrOrder", code: 4, says: "another record",
		run: func(w *world) said {
			w.revised("sessions", func(history.Entry) []byte { return w.svc.Entries[0].Append(nil) })
			return createIt(w)
		},
	},
	{
		at: "POST /v1/sessions", how: "replay", told: "it answers as it did to the session before", want: "history.ErrOrder", code: 4, says: "another record",
		run: func(w *world) said {
			w.revised("sessions", func(history.Entry) []byte { return w.svc.Entries[w.find(history.TypeOpen, 0)].Append(nil) })
			return createIt(w)
		},
	},
	{
		at: "POST /v1/sessions", how: "drop", told: "it says that the account is not paid", code: 5, note: "nobody can tell it from the truth but the operator; reading goes on", says: "pay, then run the same command again",
		run: func(w *world) said { w.refuse("/sessions", wire.CodeOutOfCredit); return createIt(w) },
	},
	{
		at: "POST /v1/sessions", how: "withhold", told: "it never answers", code: 5, note: "nobody can tell it from trouble", says: "cannot be reached",
		run: func(w *world) said { w.silent("sessions"); return createIt(w) },
	},
	{
		at: "POST /v1/sessions", how: "fork", told: "it puts the record after another head than it showed", want: "history.ErrHead", code: 4,
		run: func(w *world) said {
			w.revised("sessions", func(e history.Entry) []byte { return w.restamp(e, e.N, holdfast.Head{1}, e.Time) })
			return createIt(w)
		},
	},
	{
		at: "POST /v1/sessions", how: "roll back", told: "it names a place that another record has", want: "history.ErrOrder", code: 4, says: "another one",
		run: func(w *world) said {
			w.revised("sessions", func(e history.Entry) []byte { return w.restamp(e, e.N-1, holdfast.Head{1}, e.Time) })
			return createIt(w)
		},
	},
	{
		at: "POST /v1/sessions", how: "re-order", told: "it names a later place than the one where it shows the record", want: "history.ErrOrder", code: 4, says: "does not show it there",
		run: func(w *world) said {
			w.revised("sessions", func(e history.Entry) []byte { return w.restamp(e, e.N+1, e.Head, e.Time) })
			return createIt(w)
		},
	},
	{
		at: "POST /v1/sessions", how: "delay", told: "it stamps the record before the one that it follows", want: "history.ErrOrder", code: 4, says: "runs backwards",
		run: func(w *world) said {
			w.revised("sessions", func(e history.Entry) []byte {
				return w.restamp(e, e.N, w.svc.Entries[e.N-2].Head, w.svc.Entries[e.N-2].Time-1)
			})
			return createIt(w)
		},
	},
	{
		at: "POST .../have", how: "drop", told: "fewer answers than questions", want: "remote.ErrProtocol", code: 4, says: "answers to",
		run: func(w *world) said {
			w.tell("have", func(_, answer []byte) []byte { return answer[1:] })
			return createIt(w)
		},
	},
	{
		at: "POST .../have", how: "swap", told: "yes for blocks that are not there, and the commit is taken", want: "backup.ErrNotKept", code: 4, says: "block ",
		run: func(w *world) said { w.svc.Links = false; w.yes(); return createIt(w) }, end: broken,
	},
	{
		at: "POST .../have", how: "swap", told: "yes for blocks that are not there, and the commit is refused", want: "backup.ErrHave", code: 4, note: "nothing is committed", says: "block ",
		run: func(w *world) said { w.yes(); return createIt(w) },
	},
	{
		at: "POST .../have", how: "fork", told: "yes for one block that is not there, and the commit is taken", want: "remote.ErrAbsent", code: 4,
		note: "by `create` if the block is one of the four that it reads back, else by `verify`",
		run: func(w *world) said {
			w.svc.Links = false
			once := false
			w.tell("have", func(_, answer []byte) []byte {
				if i := bytes.IndexByte(answer, 0); i >= 0 && !once {
					once, answer[i] = true, 1
				}
				return answer
			})
			createIt(w)
			return w.run("verify", "docs")
		}, end: broken,
	},
	{
		at: "POST .../have", how: "replay", told: "the answer to an earlier question", want: "remote.ErrProtocol", code: 4, says: "answers to",
		run: func(w *world) said {
			var old []byte
			w.tell("have", func(_, answer []byte) []byte { old = bytes.Clone(answer); return answer })
			w.ok("create", "-C", w.dir, "docs", "docs")
			w.tell("have", func(_, _ []byte) []byte { return old })
			w.write("docs/new", 3<<20)
			return w.create("docs")
		},
	},
	{
		at: "POST .../have", how: "withhold, roll back", told: "no for blocks that are there", note: "they are sent again, and nothing is lost",
		run: func(w *world) said {
			w.tell("have", func(_, answer []byte) []byte { return make([]byte, len(answer)) })
			w.write("docs/new", 300<<10)
			return w.elsewhere().create("docs")
		},
	},
	{
		at: "POST .../have", how: "re-order", told: "the answers in another order", want: "backup.ErrHave", code: 4, note: "nothing is committed",
		run: func(w *world) said {
			w.tell("have", func(_, answer []byte) []byte { slices.Reverse(answer); return answer })
			w.write("docs/new", 300<<10)
			return w.elsewhere().create("docs")
		},
	},
	{
		at: "POST .../have", how: "delay", told: "it answers after ten minutes", code: 5, note: "nobody can tell it from trouble", says: "cannot be reached",
		run: func(w *world) said { w.late("have", 10*time.Minute); return createIt(w) },
	},
	{
		at: "POST .../blocks", how: "drop", told: "it says that blocks are stored, keeps none, and takes the commit", want: "backup.ErrNotKept", code: 4, says: "block ",
		run: func(w *world) said {
			w.svc.Links = false
			w.tell("blocks", func(asked, answer []byte) []byte {
				for _, f := range frames(asked) {
					delete(w.svc.Blocks, f.Name)
				}
				return answer
			})
			return createIt(w)
		}, end: broken,
	},
	{
		at: "POST .../blocks", how: "drop", told: "it forgets the session at every batch", want: "remote.ErrProtocol", code: 4, says: "in a row",
		run: func(w *world) said { w.refuse("/blocks", wire.CodeSessionGone); return createIt(w) },
	},
	{
		at: "POST .../blocks", how: "drop", told: "it refuses every batch for want of blocks that it was sent", want: "backup.ErrHave", code: 4, note: "nothing is committed",
		says: "block 070000", run: func(w *world) said { w.refuse("/blocks", wire.CodeMissing); return createIt(w) },
	},
	{
		at: "POST .../blocks", how: "swap", told: "it keeps two blocks under each other's names", want: "seal.ErrDamaged", code: 4, note: "by `verify`", says: "docs/",
		run: func(w *world) said {
			return w.lost(func(l []holdfast.Name) {
				w.svc.Blocks[l[0]], w.svc.Blocks[l[1]] = w.svc.Blocks[l[1]], w.svc.Blocks[l[0]]
			})
		}, end: broken,
	},
	{
		at: "POST .../blocks", how: "replay", told: "it answers as to another batch", note: "only the number of new blocks is used, for people to see",
		run: func(w *world) said {
			w.tell("blocks", func(_, _ []byte) []byte { return []byte(`{"stored": 100000, "known": -1}`) })
			return createIt(w)
		},
	},
	{
		at: "POST .../blocks", how: "withhold", told: "it keeps the blocks and never says so", code: 5, note: "the next run finds them", says: "cannot be reached",
		run: func(w *world) said { w.away("blocks", true); return createIt(w) },
	},
	{
		at: "POST .../blocks", how: "fork", told: "it gives another reader other bytes than were sent", want: "seal.ErrDamaged", code: 4, note: "by `verify`", says: "docs/",
		run: func(w *world) said {
			o := w.another(holdfast.GroupID{5}, holdfast.RightsAll)
			w.ok("create", "-C", w.dir, "docs", "docs")
			w.tell("fetch", chunks(flip))
			return o.run("verify", "docs")
		},
	},
	{
		at: "POST .../blocks", how: "roll back", told: "it loses a block after the commit", want: "remote.ErrAbsent", code: 4, note: "by `verify`", says: "docs/",
		run: func(w *world) said {
			return w.lost(func(l []holdfast.Name) { delete(w.svc.Blocks, l[0]) })
		}, end: broken,
	},
	{
		at: "POST .../blocks", how: "re-order", told: "it says of every batch that it came too early", code: 5, note: "nobody can tell it from trouble", says: "does not serve",
		run: func(w *world) said {
			w.refuse("/blocks", wire.CodeOutOfOrder)
			w.write("docs/new", 300<<10)
			return w.run("create", "-C", w.dir, "docs", "docs", "--patience", "2s") // it is asked again 20 times a second
		},
	},
	{
		at: "POST .../blocks", how: "delay", told: "it answers after ten minutes", code: 5, note: "nobody can tell it from trouble", says: "cannot be reached",
		run: func(w *world) said { w.late("blocks", 10*time.Minute); return createIt(w) },
	},
	{
		at: "POST .../close", how: "drop, swap, replay, fork, roll back, re-order", told: "it answers nonsense", note: "nothing of the answer is used",
		run: func(w *world) said {
			w.tell("close", func(_, _ []byte) []byte { return []byte("]") })
			return createIt(w)
		},
	},
	{
		at: "POST .../close", how: "withhold, delay", told: "it never answers", note: "the archive is committed by then; the client does not wait",
		run: func(w *world) said { w.silent("close"); return createIt(w) },
	},
	{
		at: "POST .../fetch", how: "drop", told: "it says that it has no such block", want: "remote.ErrAbsent", code: 4, says: "docs/",
		run: func(w *world) said { w.tell("fetch", chunks(status(wire.FrameAbsent))); return extractIt(w) },
	},
	{
		at: "POST .../fetch", how: "drop", told: "the last block of each answer is left out", code: 5, note: "asked for again, until patience ends", says: "early",
		run: func(w *world) said {
			w.tell("fetch", chunks(func(all []wire.Frame) []wire.Frame { return all[:len(all)-1] }))
			return extractIt(w)
		},
	},
	{
		at: "POST .../fetch", how: "drop", told: "each answer ends inside a block", code: 5, note: "asked for again, until patience ends", says: "cannot be reached",
		run: func(w *world) said {
			w.tell("fetch", func(_, answer []byte) []byte { return answer[:40] })
			return extractIt(w)
		},
	},
	{
		at: "POST .../fetch", how: "swap", told: "another customer's block", want: "seal.ErrDamaged", code: 4, says: "docs/",
		run: func(w *world) said { w.instead(worldOf(w.t, 7)); return extractIt(w) },
	},
	{
		at: "POST .../fetch", how: "swap", told: "a block of another group of the vault", want: "seal.ErrDamaged", code: 4, says: "docs/",
		run: func(w *world) said {
			o := w.another(holdfast.GroupID{5}, holdfast.RightsAll)
			n := len(w.svc.Order)
			if s := o.create("photos"); s.code != 0 {
				return s
			}
			other := w.svc.Blocks[w.leaves(w.svc.Order[n:])[0]]
			w.tell("fetch", chunks(func(all []wire.Frame) []wire.Frame { all[0].Sealed = other; return all }))
			return extractIt(w)
		},
	},
	{
		at: "POST .../fetch", how: "swap", told: "the root of another archive", want: "seal.ErrDamaged", code: 4, says: "archive",
		run: func(w *world) said {
			docs, photos := w.svc.Vault.Archives[0].Commit.Root, w.svc.Vault.Archives[1].Commit.Root
			w.tell("fetch", func(_, answer []byte) []byte {
				all := frames(answer)
				for i := range all {
					if all[i].Name == docs && all[i].Status == wire.FrameBlock {
						all[i].Sealed = w.svc.Blocks[photos]
					}
				}
				return unframes(all)
			})
			return extractIt(w)
		},
	},
	{
		at: "POST .../fetch", how: "replay", told: "a block twice", want: "remote.ErrProtocol", code: 4, says: "not asked for",
		run: func(w *world) said {
			w.tell("fetch", chunks(func(all []wire.Frame) []wire.Frame { return append(all[:1:1], all...) }))
			return extractIt(w)
		},
	},
	{
		at: "POST .../fetch", how: "replay", told: "an older copy of the block, from another session", note: "same name, same bytes",
		run: func(w *world) said {
			other := map[holdfast.Name][]byte{}
			w.svc.Lie = func(r *http.Request, asked, answer []byte) []byte {
				switch {
				case strings.HasSuffix(r.URL.Path, "/have"):
					return make([]byte, len(answer))
				case strings.HasSuffix(r.URL.Path, "/blocks"):
					for _, f := range frames(asked) {
						other[f.Name] = bytes.Clone(f.Sealed)
					}
				}
				return answer
			}
			w.elsewhere().create("docs")
			w.tell("fetch", chunks(func(all []wire.Frame) []wire.Frame {
				for i, f := range all {
					if other[f.Name] == nil || bytes.Equal(other[f.Name], f.Sealed) {
						w.t.Errorf("there is no other copy of block %.8s", f.Name)
					}
					all[i].Sealed = other[f.Name]
				}
				return all
			}))
			return extractIt(w)
		},
	},
	{
		at: "POST .../fetch", how: "withhold", told: "it says that its copy is damaged", want: "remote.ErrDamaged", code: 4, says: "docs/",
		run: func(w *world) said { w.tell("fetch", chunks(status(wire.FrameDamaged))); return extractIt(w) },
	},
	{
		at: "POST .../fetch", how: "fork", told: "other bytes", want: "seal.ErrDamaged", code: 4, says: "docs/",
		run: func(w *world) said { w.tell("fetch", chunks(flip)); return extractIt(w) },
	},
	{
		at: "POST .../fetch", how: "roll back", told: "it has no block of the newest archive", want: "remote.ErrAbsent", code: 4, note: "the archive before can be read",
		run: func(w *world) said {
			old, n := w.name("docs", 0), len(w.svc.Order)
			if s := createIt(w); s.code != 0 {
				return s
			}
			fresh := w.svc.Order[n:]
			w.tell("fetch", func(_, answer []byte) []byte {
				all := frames(answer)
				for i := range all {
					if slices.Contains(fresh, all[i].Name) {
						all[i].Status, all[i].Sealed = wire.FrameAbsent, nil
					}
				}
				return unframes(all)
			})
			if s := w.extract(old); s.code != 0 {
				w.t.Errorf("the archive before: exit %d, %s", s.code, s.line)
			}
			return extractIt(w)
		},
	},
	{
		at: "POST .../fetch", how: "re-order", told: "blocks in another order", note: "any order is right",
		run: func(w *world) said {
			w.tell("fetch", func(_, answer []byte) []byte {
				all := frames(answer)
				slices.Reverse(all)
				return unframes(all)
			})
			return extractIt(w)
		},
	},
	{
		at: "POST .../fetch", how: "re-order", told: "two blocks under each other's names", want: "seal.ErrDamaged", code: 4, says: "docs/",
		run: func(w *world) said {
			w.tell("fetch", chunks(func(all []wire.Frame) []wire.Frame {
				all[0].Sealed, all[1].Sealed = all[1].Sealed, all[0].Sealed
				return all
			}))
			return extractIt(w)
		},
	},
	{
		at: "POST .../fetch", how: "withhold, delay", told: "it never answers", code: 5, note: "nobody can tell it from trouble; what is restored stays", says: "cannot be reached",
		run: func(w *world) said { w.silent("fetch"); return extractIt(w) },
	},
	{
		at: "GET /v1/usage", how: "drop, replay, fork, roll back, re-order", told: "more is left of a daily cap than is true", note: "a backup ends where the service refuses more, and goes on the next day; without a cap only `holdfast account` asks",
		run: func(w *world) said {
			if s := neverAsked("usage")(w); s.code != 0 {
				return s
			}
			return w.capped(`{"account": "00000000000000000000000000000001", "today": {"bytes": 1000000000000}}`)
		},
	},
	{
		at: "GET /v1/usage", how: "drop, replay, fork, roll back, re-order", told: "it claims that a daily cap is used up", code: 5, note: "what was read is committed as a partial archive", says: "may store",
		run: func(w *world) said {
			return w.capped(`{"account": "00000000000000000000000000000001", "today": {"bytes": 1000000000, "used_bytes": 1000000000}}`)
		},
	},
	{
		at: "GET /v1/usage", how: "swap", told: "it answers nonsense", want: "remote.ErrProtocol", code: 4,
		run: func(w *world) said { return w.capped("]") },
	},
	{
		at: "GET /v1/usage", how: "swap", told: "of money it says what is no amount, or acts upon a terminal", want: "remote.ErrProtocol", code: 4, says: "money that is none",
		run: func(w *world) said {
			var s said
			for _, m := range []wire.Money{
				{Balance: "\x1b[2J", Daily: "0", Stored: "0", In: "0", Out: "0"},
				{Balance: "0", Daily: "0", Stored: "0", In: "0", Out: "0", Currency: "EUR\n\u009b2J"},
				{Balance: "0", Daily: strings.Repeat("1", 1000), Stored: "0", In: "0", Out: "0"},
				{Balance: "0", Daily: "0", Stored: "0", In: "0", Out: "0", Credit: &wire.Credit{State: "\u202e", Days: -1}},
			} {
				w.svc.Money = &m
				if s = w.run("account", "--json"); s.code != 4 || s.out != "" {
					return s
				}
			}
			return s
		},
	},
	{
		at: "GET /v1/usage", how: "fork", told: "it invents what was used, what it costs and what was paid", note: "`holdfast account` shows it, and nothing follows from it: nobody can tell it from the truth", says: "-1000.00 gold",
		run: func(w *world) said {
			w.svc.Money = &wire.Money{Balance: "-1000.00", Daily: "99", Currency: "gold", Stored: "3", In: "3", Out: "3", Credit: &wire.Credit{State: wire.CreditLapsed, End: time.Now()}}
			if s := createIt(w); s.code != 0 {
				return s
			}
			return w.run("account")
		},
	},
	{
		at: "GET /v1/usage", how: "withhold, delay", told: "it never answers", code: 5, note: "nobody can tell it from trouble", says: "cannot be reached",
		run: func(w *world) said { w.silent("usage"); return w.capped("") },
	},
}

// capped has a machine with a daily cap make an archive while the service answers so to what is left of it.
func (w *world) capped(answer string) said {
	w.t.Helper()
	m := w.svc.NewMachine(holdfast.GroupID{5}, holdfast.RightsAll)
	e := m.Enrol()
	e.DayBytes = 1e9
	w.svc.Rule(history.TypeEnrol, e.Encode())
	o := w.elsewhere()
	o.key = filepath.Join(w.t.TempDir(), "key")
	o.save(m)
	before := w.svc.Served["usage"]
	w.tell("usage", func(_, _ []byte) []byte { return []byte(answer) })
	s := o.create("docs")
	if answer != "" && w.svc.Served["usage"] == before {
		w.t.Error("nobody asked")
	}
	return s
}

// later returns the true history with another stamp on one entry.
func (w *world) later(i int, by time.Duration) []history.Entry {
	all := slices.Clone(w.svc.Entries)
	all[i].Time += int64(by)
	return w.stamped(all...)
}

// exchanged returns the true history with two records exchanged; the stamps stay.
func (w *world) exchanged(i, j int) []history.Entry {
	all := slices.Clone(w.svc.Entries)
	all[i].Record, all[j].Record = all[j].Record, all[i].Record
	return w.stamped(all...)
}

// writer enrols a machine that only writes.
func (w *world) writer() *keyring.Machine {
	m := w.svc.NewMachine(holdfast.GroupID{6}, holdfast.RightWrite)
	w.svc.Rule(history.TypeEnrol, m.Enrol().Encode())
	return m
}

// yes has the service claim to have every block.
func (w *world) yes() {
	w.tell("have", func(_, answer []byte) []byte { return bytes.Repeat([]byte{1}, len(answer)) })
}

// instead has the service send other's blocks where chunks and packs are asked for.
func (w *world) instead(other *world) {
	theirs := other.svc.Blocks[other.leaves(other.svc.Order)[0]]
	w.tell("fetch", chunks(func(all []wire.Frame) []wire.Frame { all[0].Sealed = theirs; return all }))
}

// name returns the nth archive of a series as SERIES@TIME.
func (w *world) name(series string, nth int) string {
	a := w.svc.Vault.OfSeries(w.svc.Machine.Series(series))[nth]
	return restore.Name(w.svc.Vault, series, a)
}

func flip(all []wire.Frame) []wire.Frame {
	b := bytes.Clone(all[0].Sealed)
	b[len(b)/2] ^= 1
	all[0].Sealed = b
	return all
}

func status(code uint8) func(all []wire.Frame) []wire.Frame {
	return func(all []wire.Frame) []wire.Frame {
		all[0].Status, all[0].Sealed = code, nil
		return all
	}
}

// openOf returns the wrap of an open record, and its body with another wrap.
func openOf(e history.Entry) (with func(wrap [history.WrapSize]byte) []byte, wrap [history.WrapSize]byte) {
	b, err := history.ParseBody(e.Record.Body)
	if err != nil {
		panic(err)
	}
	o, err := history.ParseOpen(b.Fields)
	if err != nil {
		panic(err)
	}
	return func(wrap [history.WrapSize]byte) []byte {
		o.Wrap = wrap
		b.Fields = o.Encode()
		return b.Encode()
	}, o.Wrap
}
