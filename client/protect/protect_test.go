package protect

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"filippo.io/age"
	"filippo.io/age/armor"
	"filippo.io/age/plugin"

	"holdfast/internal/part"
)

// TestMain is also the age plugin of the tests: started under a plugin's name it is one.
func TestMain(m *testing.M) {
	if name, ok := strings.CutPrefix(filepath.Base(os.Args[0]), "age-plugin-"); ok {
		os.Exit(pluginMain(name))
	}
	os.Exit(m.Run())
}

// pluginMain is a plugin whose token holds the identity that its data is: what a real one keeps in hardware.
func pluginMain(name string) int {
	p, err := plugin.New(name)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	p.HandleRecipient(func(data []byte) (age.Recipient, error) { return age.ParseX25519Recipient(string(data)) })
	p.HandleIdentity(func(data []byte) (age.Identity, error) {
		if string(data) == "broken" {
			return nil, errors.New("the token is not plugged in")
		}
		return age.ParseX25519Identity(string(data))
	})
	return p.Main()
}

// installPlugin puts a plugin into PATH for the test and returns a recipient and its identity.
func installPlugin(t testing.TB, name string) (recipient, identity string) {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("needs symbolic links")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.Symlink(self, filepath.Join(dir, "age-plugin-"+name)); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+string(os.PathListSeparator)+os.Getenv("PATH"))
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return plugin.EncodeRecipient(name, []byte(id.Recipient().String())), plugin.EncodeIdentity(name, []byte(id.String()))
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func say(t testing.TB) func(string) { return func(s string) { t.Log(s) } }

func lockFor(t testing.TB, names ...string) *Lock {
	t.Helper()
	l, err := Recipients(names, say(t))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func keyOf(t testing.TB, names ...string) Key {
	t.Helper()
	k, err := Identities(names, say(t))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func typing(passphrase string) Key {
	return Key{Passphrase: func() (string, error) { return passphrase, nil }}
}

func x25519(t testing.TB) *age.X25519Identity {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

var owner = "../keyring/testdata/owner.key"

// TestVectors opens files that were made once: by this package, and by age 1.1.1.
func TestVectors(t *testing.T) {
	id := keyOf(t, ReadList(read(t, "testdata/identity.txt"))...)
	for _, x := range []struct {
		file, text string
		key        Key
	}{
		{"protected.age", owner, typing("correct horse")},
		{"stock.age", owner, typing("correct horse")},
		{"recipient.age", "../keyring/testdata/machine.key", id},
	} {
		text, err := Open(read(t, "testdata/"+x.file), x.key)
		if err != nil || !bytes.Equal(text, read(t, x.text)) {
			t.Errorf("%s: %v", x.file, err)
		}
	}
}

// Every kind of recipient seals what its identity, and no other, opens.
func TestComesBack(t *testing.T) {
	text := read(t, owner)
	a, b := x25519(t), x25519(t)
	pq, err := age.GenerateHybridIdentity()
	if err != nil {
		t.Fatal(err)
	}
	pluginRecipient, pluginIdentity := installPlugin(t, "hftest")
	_, otherIdentity := installPlugin(t, "hftest")
	passphrase, err := Passphrase("open sesame")
	if err != nil {
		t.Fatal(err)
	}
	for name, x := range map[string]struct {
		lock  *Lock
		keys  []Key
		wrong Key
		err   error
	}{
		"passphrase": {passphrase, []Key{typing("open sesame"), passphrase.Opens()}, typing("open sesame "), ErrPassphrase},
		"recipient":  {lockFor(t, a.Recipient().String()), []Key{keyOf(t, a.String()), keyOf(t, b.String(), a.String())}, keyOf(t, b.String()), ErrIdentity},
		"two":        {lockFor(t, a.Recipient().String(), b.Recipient().String()), []Key{keyOf(t, a.String()), keyOf(t, b.String())}, keyOf(t, x25519(t).String()), ErrIdentity},
		"hybrid":     {lockFor(t, pq.Recipient().String()), []Key{keyOf(t, pq.String())}, keyOf(t, a.String()), ErrIdentity},
		"plugin":     {lockFor(t, pluginRecipient), []Key{keyOf(t, pluginIdentity), keyOf(t, otherIdentity, pluginIdentity)}, keyOf(t, otherIdentity), ErrIdentity},
		"no key":     {lockFor(t, a.Recipient().String()), nil, Key{}, ErrNoIdentity},
	} {
		sealed, err := x.lock.Seal(text)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !Is(sealed) || Is(text) || Bare(sealed) || bytes.Contains(sealed, []byte("holdfast-owner")) {
			t.Errorf("%s: not protected:\n%s", name, sealed)
		}
		for i, k := range x.keys {
			if back, err := Open(sealed, k); err != nil || !bytes.Equal(back, text) {
				t.Errorf("%s, key %d: %v", name, i, err)
			}
		}
		if back, err := Open(sealed, x.wrong); !errors.Is(err, x.err) || back != nil {
			t.Errorf("%s, the wrong key: %v", name, err)
		}
	}
}

// A plugin that is missing or fails is named; it does not matter where another identity opens the file.
func TestPlugins(t *testing.T) {
	text := read(t, owner)
	recipient, identity := installPlugin(t, "hftest")
	id := x25519(t)
	sealed, err := lockFor(t, recipient, id.Recipient().String()).Seal(text)
	if err != nil {
		t.Fatal(err)
	}
	broken := keyOf(t, plugin.EncodeIdentity("hftest", []byte("broken")))
	if _, err := Open(sealed, broken); err == nil || !strings.Contains(err.Error(), "hftest plugin") || !strings.Contains(err.Error(), "the token is not plugged in") {
		t.Errorf("a failing plugin: %v", err)
	}
	t.Setenv("PATH", t.TempDir())
	const says = "it needs the age plugin age-plugin-hftest, and it is not in PATH; install it"
	if _, err := lockFor(t, recipient).Seal(text); !errors.Is(err, ErrPlugin) || !strings.HasSuffix(err.Error(), says) {
		t.Errorf("seal without the plugin: %v", err)
	}
	if _, err := Open(sealed, keyOf(t, identity)); !errors.Is(err, ErrPlugin) || !strings.HasSuffix(err.Error(), says) {
		t.Errorf("open without the plugin: %v", err)
	}
	if back, err := Open(sealed, keyOf(t, identity, id.String())); err != nil || !bytes.Equal(back, text) {
		t.Errorf("another identity: %v", err)
	}
}

// The program age opens what we protect, and we what it does.
func TestStockAge(t *testing.T) {
	part.Need(t, "age")
	text := read(t, owner)
	id := x25519(t)
	dir := t.TempDir()
	idFile := filepath.Join(dir, "id")
	if err := os.WriteFile(idFile, []byte(id.String()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(in []byte, args ...string) []byte {
		t.Helper()
		cmd := exec.Command("age", args...)
		cmd.Stdin = bytes.NewReader(in)
		var errs bytes.Buffer
		cmd.Stderr = &errs
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("age %s: %v\n%s", args, err, &errs)
		}
		return out
	}
	sealed, err := lockFor(t, id.Recipient().String()).Seal(text)
	if err != nil {
		t.Fatal(err)
	}
	if got := run(sealed, "--decrypt", "-i", idFile); !bytes.Equal(got, text) {
		t.Errorf("age opens it as\n%s", got)
	}
	if back, err := Open(run(text, "--armor", "-r", id.Recipient().String()), keyOf(t, id.String())); err != nil || !bytes.Equal(back, text) {
		t.Errorf("what age made: %v", err)
	}
}

// withStanza returns a whole armored file that begins like one by passphrase, with this work factor.
func withStanza(args string) []byte {
	return Armor([]byte("age-encryption.org/v1\n-> scrypt " + args + "\n" + strings.Repeat("A", 43) + "\n--- " + strings.Repeat("A", 43) + "\n" + strings.Repeat("x", 48)))
}

// A file cannot make us work for minutes or take gigabytes, nor ask for a passphrase in vain.
func TestWorkIsBounded(t *testing.T) {
	const salt = "AAAAAAAAAAAAAAAAAAAAAA "
	asked := 0
	k := Key{Passphrase: func() (string, error) { asked++; return "x", nil }}
	for args, want := range map[string]error{
		salt + "20": ErrWork, salt + "22": ErrWork, salt + "30": ErrWork, salt + "62": ErrWork, salt + "99999999999999999999": ErrDamaged,
		salt + "0": ErrDamaged, salt + "-1": ErrDamaged, salt + "x": ErrDamaged, salt + "17 1": ErrDamaged, "AAAA": ErrDamaged,
	} {
		if _, err := Open(withStanza(args), k); !errors.Is(err, want) || asked != 0 {
			t.Errorf("%q: asked %d times: %v", args, asked, err)
		}
	}
	if maxWorkFactor > 19 {
		t.Error("opening a file may take 512 MiB at most")
	}
	// The largest that is allowed is tried.
	if _, err := Open(withStanza(salt+"1"), k); !errors.Is(err, ErrPassphrase) || asked != 1 {
		t.Errorf("asked %d times: %v", asked, err)
	}
	if _, err := Open(withStanza("AAAA 17"), k); !errors.Is(err, ErrDamaged) { // its salt
		t.Error(err)
	}
	if _, err := Open(bytes.Repeat([]byte("-"), MaxFile+1), k); !errors.Is(err, ErrDamaged) {
		t.Error(err)
	}
	if _, err := Unarmor(bytes.Repeat([]byte("-"), MaxFile+1)); !errors.Is(err, ErrDamaged) {
		t.Error(err)
	}
	// What Seal makes can be opened.
	var names []string
	for range 700 {
		names = append(names, x25519(t).Recipient().String())
	}
	if _, err := lockFor(t, names...).Seal(read(t, owner)); err == nil || !strings.Contains(err.Error(), "name fewer recipients") {
		t.Errorf("700 recipients: %v", err)
	}
}

// Errors of the passphrase's source come through, and are not taken for a wrong passphrase.
func TestAskingFails(t *testing.T) {
	gone := errors.New("no terminal")
	_, err := Open(read(t, "testdata/protected.age"), Key{Passphrase: func() (string, error) { return "", gone }})
	if !errors.Is(err, gone) || errors.Is(err, ErrDamaged) || errors.Is(err, ErrPassphrase) {
		t.Fatal(err)
	}
	if _, err := Open(read(t, "testdata/protected.age"), typing("")); !errors.Is(err, ErrPassphrase) {
		t.Fatal(err)
	}
	if _, err := Open(read(t, "testdata/protected.age"), Key{}); !errors.Is(err, ErrPassphrase) {
		t.Fatal(err)
	}
}

// Any flipped bit of a protected file is an error, or one of the spellings that armor forgives.
func TestDamage(t *testing.T) {
	text := read(t, owner)
	id := x25519(t)
	sealed, err := lockFor(t, id.Recipient().String()).Seal(text)
	if err != nil {
		t.Fatal(err)
	}
	k := keyOf(t, id.String())
	for i := range sealed {
		for bit := range 8 {
			b := bytes.Clone(sealed)
			b[i] ^= 1 << bit
			back, err := Open(b, k)
			if err == nil && !bytes.Equal(back, text) {
				t.Fatalf("bit %d of byte %d changes the text", bit, i)
			}
			if err != nil && !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrIdentity) {
				t.Fatalf("bit %d of byte %d: %v", bit, i, err)
			}
		}
		if _, err := Open(sealed[:i], k); err == nil && i < len(sealed)-1 {
			t.Fatalf("its first %d bytes are enough", i)
		}
	}
	if _, err := Open(append(bytes.Clone(sealed), "more"...), k); !errors.Is(err, ErrDamaged) {
		t.Fatal(err)
	}
}

// No passphrase goes together with recipients: anybody could have made such a file.
func TestPassphraseStandsAlone(t *testing.T) {
	l, err := Passphrase("x")
	if err != nil {
		t.Fatal(err)
	}
	l.recipients = append(l.recipients, x25519(t).Recipient())
	if _, err := l.Seal(nil); err == nil {
		t.Error("sealed")
	}
	two := Armor([]byte("age-encryption.org/v1\n-> scrypt AAAAAAAAAAAAAAAAAAAAAA 10\n" + strings.Repeat("A", 43) + "\n-> X25519 " + strings.Repeat("A", 43) + "\n" + strings.Repeat("A", 43) + "\n--- " + strings.Repeat("A", 43) + "\n"))
	if _, err := Open(two, typing("x")); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "a passphrase and recipients") {
		t.Error(err)
	}
	if _, err := Passphrase(""); err == nil {
		t.Error("an empty passphrase")
	}
}

// What is no recipient or identity is refused with a reason, and a secret is never repeated.
func TestNames(t *testing.T) {
	id := x25519(t).String()
	for name, says := range map[string]string{
		"":                     `"" is no age recipient; one begins with age1`,
		"ada@example.org":      "is no age recipient",
		"age1xyz":              "is no whole age recipient",
		"age1pq1xyz":           "is no whole age recipient",
		"age1tag1xyz":          "is no whole age recipient",
		"age1yubikey1xyz":      "is no whole age recipient",
		"ssh-ed25519 AAAA a@b": "SSH keys are no recipients here",
		id:                     "that is an age identity, which is secret",
		strings.ToLower(id):    "that is an age identity, which is secret",
	} {
		if _, err := Recipients([]string{name}, say(t)); err == nil || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), id[20:]) {
			t.Errorf("recipient %q: %v", name, err)
		}
	}
	if _, err := Recipients(nil, say(t)); err == nil {
		t.Error("no recipient")
	}
	for name, says := range map[string]string{
		"hello":                 "entry 2 of it is no age identity",
		"age1abc":               "it names a recipient",
		id[:40]:                 "entry 2 of it is no whole age identity",
		"AGE-SECRET-KEY-PQ-1XY": "entry 2 of it is no whole age identity",
		"AGE-PLUGIN-X-1XYZ":     "entry 2 of it is no whole age identity",
	} {
		if _, err := Identities([]string{id, name}, say(t)); err == nil || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), name) {
			t.Errorf("identity %q: %v", name, err)
		}
	}
	if _, err := Identities(nil, say(t)); err == nil {
		t.Error("no identity")
	}
	if got := ReadList([]byte("# x\r\n\n  a \r\nb\n#c\nd")); strings.Join(got, ",") != "a,b,d" {
		t.Errorf("%q", got)
	}
}

// FuzzOpen: no bytes hurt, and what opens is what was sealed in the form that age reads.
func FuzzOpen(f *testing.F) {
	id, err := age.ParseX25519Identity(ReadList(read(f, "testdata/identity.txt"))[0])
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range []string{"protected.age", "stock.age", "recipient.age"} {
		bare, err := Unarmor(read(f, "testdata/"+name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(bare, false)
		f.Add(read(f, "testdata/"+name), true)
	}
	f.Add(withStanza("AAAAAAAAAAAAAAAAAAAAAA 30"), true)
	f.Fuzz(func(t *testing.T, b []byte, armored bool) {
		if !armored { // the armor would keep the fuzzer out
			b = Armor(b)
		}
		k := Key{identities: []age.Identity{id}, Passphrase: func() (string, error) { return "", errors.New("not typed") }}
		text, err := Open(b, k)
		if err != nil {
			return
		}
		r, err := age.Decrypt(armor.NewReader(bytes.NewReader(b)), id)
		if err != nil {
			t.Fatal(err)
		}
		if want, err := io.ReadAll(r); err != nil || !bytes.Equal(text, want) {
			t.Fatalf("opened as %q, age opens it as %q, %v", text, want, err)
		}
		bare, err := Unarmor(b)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := Unarmor(Armor(bare)); err != nil || !bytes.Equal(again, bare) {
			t.Fatal(err)
		}
	})
}
