//go:build linux

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	nouns "holdfast"
	"holdfast/client/keyring"
	"holdfast/client/protect"
	"holdfast/history"
	"holdfast/internal/durable"
	"holdfast/internal/part"
)

// An age identity for these tests, its recipient, and the recipient of somebody else.
const (
	testIdentity  = "AGE-SECRET-KEY-10M6ZCGRDYAR8CFLLCFAX42QVFNK47ZF4ZD58Z60PWX5CYGTD7RFQLF2MTE"
	testRecipient = "age1p88d9uejg30whk7nzyn4s2kwml3qge99h8d5h05rq3l3lx92re8qfgz4as"
	elsewhere     = "age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj"
)

// keys is a directory with the files that the tests of protection work on.
type keys struct {
	t     *testing.T
	dir   string
	owner keyring.OwnerFile
	m     *keyring.Machine
}

func newKeys(t *testing.T) *keys {
	t.Helper()
	k := &keys{t: t, dir: scratch(t)}
	o := keyring.NewOwner()
	k.m = o.NewMachine(nouns.VaultID{1}, keyring.NewGroup(), nouns.RightsAll, history.DefaultChunk)
	k.m.Address = "backup.example.org:7440"
	k.owner = keyring.OwnerFile{Owner: o, Vault: k.m.Vault, Address: k.m.Address}
	if err := k.m.Save(k.path("key"), nil); err != nil {
		t.Fatal(err)
	}
	if err := keyring.SaveOwner(k.path("owner"), k.owner, nil); err != nil {
		t.Fatal(err)
	}
	k.write("id", testIdentity+"\n")
	k.write("pw", "correct horse\n")
	k.write("wrong", "incorrect horse\n")
	return k
}

func (k *keys) path(name string) string { return filepath.Join(k.dir, name) }

func (k *keys) write(name, text string) {
	k.t.Helper()
	if err := os.WriteFile(k.path(name), []byte(text), 0o600); err != nil {
		k.t.Fatal(err)
	}
}

func (k *keys) read(name string) []byte {
	k.t.Helper()
	b, err := os.ReadFile(k.path(name))
	if err != nil {
		k.t.Fatal(err)
	}
	return b
}

// command is holdfast with these arguments, in the directory and away from any terminal.
func (k *keys) command(args ...string) *exec.Cmd {
	cmd := exec.Command(holdfast, args...)
	cmd.Dir = k.dir
	cmd.Env = []string{"HOME=" + k.dir, "HOLDFAST_KEY=" + k.path("key"), "PATH=" + os.Getenv("PATH")}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	return cmd
}

func (k *keys) run(stdin string, args ...string) (o outcome) {
	k.t.Helper()
	cmd := k.command(args...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	if err := cmd.Run(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		k.t.Fatal(err)
	}
	return outcome{code: cmd.ProcessState.ExitCode(), stdout: out.String(), stderr: errs.String()}
}

func (k *keys) ok(args ...string) outcome {
	k.t.Helper()
	o := k.run("", args...)
	if o.code != 0 {
		k.t.Fatalf("holdfast %s: exit %d\n%s", strings.Join(args, " "), o.code, o.stderr)
	}
	return o
}

// fails runs a command that must fail with this code and say one line that has this in it.
func (k *keys) fails(code int, says string, args ...string) {
	k.t.Helper()
	o := k.run("", args...)
	if o.code != code || !strings.Contains(o.stderr, says) || strings.Count(o.stderr, "\n") != 1 || o.stdout != "" {
		k.t.Errorf("holdfast %s: exit %d, want %d, and %q\n%s%s", strings.Join(args, " "), o.code, code, says, o.stdout, o.stderr)
	}
}

// TestProtect takes a key and an owner file through every kind of protection and back, byte for byte.
func TestProtect(t *testing.T) {
	t.Parallel()
	k := newKeys(t)
	k.write("list", "# who\n"+elsewhere+"\n"+testRecipient+"\n")
	for _, file := range []string{"key", "owner"} {
		plain := k.read(file)
		for _, x := range []struct {
			how, by []string
			says    string
		}{
			{[]string{"--new-passphrase-file", "pw"}, []string{"--passphrase-file", "pw"}, "opens only with the passphrase now"},
			{[]string{"--recipient", testRecipient}, []string{"--identity", "id"}, "opens only with an identity of its 1 recipient now"},
			{[]string{"--recipient", elsewhere, "--recipient", testRecipient}, []string{"--identity", "id"}, "an identity of its 2 recipients"},
			{[]string{"--recipients-file", "list"}, []string{"--identity", "id"}, "an identity of its 2 recipients"},
		} {
			if file == "owner" && x.by[0] == "--passphrase-file" {
				continue // takes long, and is the same
			}
			if o := k.ok(append(append([]string{"key", "protect", file}, x.how...), x.by...)...); !strings.Contains(o.stdout, x.says) || o.stderr != "" {
				t.Errorf("%s: %s%s", x.how, o.stdout, o.stderr)
			}
			sealed := k.read(file)
			if !protect.Is(sealed) || bytes.Contains(sealed, []byte("seed")) {
				t.Fatalf("%s: not protected:\n%s", x.how, sealed)
			}
			if st, err := os.Stat(k.path(file)); err != nil || st.Mode().Perm() != 0o600 {
				t.Errorf("%v %v", st.Mode(), err)
			}
			if file == "key" {
				if o := k.ok(append([]string{"key", "show"}, x.by...)...); !strings.Contains(o.stdout, k.m.Vault.String()) {
					t.Errorf("%s", o.stdout)
				}
			}
			k.ok(append([]string{"key", "unprotect", file}, x.by...)...)
			if !bytes.Equal(k.read(file), plain) {
				t.Fatalf("%s: it came back as\n%s", x.how, k.read(file))
			}
		}
	}
	// From one protection to another, never unprotected.
	k.ok("key", "protect", "--new-passphrase-file", "pw")
	k.ok("key", "protect", "--new-passphrase-file", "wrong", "--passphrase-file", "pw")
	k.fails(1, "the passphrase is wrong", "key", "show", "--passphrase-file", "pw")
	k.ok("key", "protect", "--recipient", testRecipient, "--passphrase-file", "wrong", "--identity", "id")
	// An identity file may itself be protected by a passphrase, as age-keygen's often are.
	l, err := protect.Passphrase("correct horse")
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := l.Seal([]byte(testIdentity))
	if err != nil {
		t.Fatal(err)
	}
	k.write("sealed-id", string(sealed))
	k.ok("key", "show", "--identity", "sealed-id", "--passphrase-file", "pw")
	k.fails(1, "read identity file sealed-id: the passphrase is wrong", "key", "show", "--identity", "sealed-id", "--passphrase-file", "wrong")
	// The environment names the same.
	cmd := k.command("key", "show")
	cmd.Env = append(cmd.Env, "HOLDFAST_IDENTITY="+k.path("sealed-id"), "HOLDFAST_PASSPHRASE_FILE="+k.path("pw"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	// Whose identity is not here cannot be checked, and that is said.
	o := k.ok("key", "protect", "owner", "--recipient", elsewhere)
	if !strings.Contains(o.stderr, "it was not checked that owner opens, because its recipient's identity is not here") {
		t.Errorf("%s", o.stderr)
	}
}

// TestProtectedSentences: each thing that can go wrong is one sentence that says what to do, and changes
// nothing.
func TestProtectedSentences(t *testing.T) {
	t.Parallel()
	k := newKeys(t)
	plain := k.read("key")
	lock, err := protect.Recipients([]string{elsewhere}, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	other, err := lock.Seal(plain)
	if err != nil {
		t.Fatal(err)
	}
	k.write("other", string(other))
	k.write("damaged", strings.Replace(string(other), "YWdl", "*Wdl", 1))
	mine, err := protect.Recipients([]string{testRecipient}, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	half, err := mine.Seal(plain)
	if err != nil {
		t.Fatal(err)
	}
	k.write("cut", string(half[:len(half)/2]))
	bare, err := protect.Unarmor(other)
	if err != nil {
		t.Fatal(err)
	}
	k.write("bare", string(bare))
	k.write("no-key", string(protect.Armor(bare[:0])))
	k.write("empty", "")
	k.write("lines", "a\nb\n")
	k.write("long", strings.Repeat("x", 2000))
	k.write("open", "x")
	os.Chmod(k.path("open"), 0o644)
	k.write("not-id", testRecipient+"\n")
	k.write("not-list", "# none\n")
	k.ok("key", "protect", "--new-passphrase-file", "pw")
	sealed := k.read("key")
	show := []string{"key", "show"}
	with := func(more ...string) []string { return append(show[:2:2], more...) }

	k.fails(1, "read key file "+k.path("key")+": it is protected by a passphrase, and there is no terminal to type the passphrase on; name a file that holds it with --passphrase-file or HOLDFAST_PASSPHRASE_FILE", show...)
	k.fails(1, "read key file "+k.path("key")+": the passphrase is wrong, or the file is damaged; try again, or with another copy", with("--passphrase-file", "wrong")...)
	k.fails(1, "read passphrase file: open absent: no such file or directory", with("--passphrase-file", "absent")...)
	k.fails(1, "read passphrase file empty: it is empty", with("--passphrase-file", "empty")...)
	k.fails(1, "read passphrase file lines: it has several lines; a passphrase is one", with("--passphrase-file", "lines")...)
	k.fails(1, "read passphrase file long: it is longer than 1024 bytes", with("--passphrase-file", "long")...)
	k.fails(1, "read passphrase file open: other users can read it; run: chmod 600 open", with("--passphrase-file", "open")...)
	k.fails(1, "read key file other: it is protected for an age recipient, and no identity was given; name the age identity file that opens it with --identity or HOLDFAST_IDENTITY", with("--key", "other")...)
	k.fails(1, "read key file other: it is protected for another age recipient: none of the identities opens it; name the right identity file with --identity", with("--key", "other", "--identity", "id")...)
	k.fails(1, "read identity file: open absent: no such file or directory", with("--key", "other", "--identity", "absent")...)
	k.fails(1, "read identity file not-id: it names a recipient, which opens nothing; the identity begins with AGE-", with("--key", "other", "--identity", "not-id")...)
	k.fails(1, "read identity file not-list: there is no age identity in it", with("--key", "other", "--identity", "not-list")...)
	k.fails(1, "read identity file pw: entry 1 of it is no age identity; one begins with AGE-SECRET-KEY- or AGE-PLUGIN-", with("--key", "other", "--identity", "pw")...)
	k.fails(1, "read key file damaged: its protection is damaged", with("--key", "damaged", "--identity", "id")...)
	k.fails(1, "read key file cut: its protection is damaged", with("--key", "cut", "--identity", "id")...)
	k.fails(1, "read key file no-key: its protection is damaged", with("--key", "no-key", "--identity", "id")...)
	k.fails(1, "read key file bare: not a whole key file: it is an age file without armor; make it anew with age --armor", with("--key", "bare", "--identity", "id")...)

	k.fails(2, "say how to protect it: --passphrase, or --recipient AGE1...", "key", "protect")
	k.fails(2, "either by a passphrase or for recipients", "key", "protect", "owner", "--passphrase", "--recipient", testRecipient)
	k.fails(2, "is no age recipient; one begins with age1", "key", "protect", "owner", "--recipient", "ada")
	k.fails(2, "there is no recipient", "key", "protect", "owner", "--recipients-file", "not-list")
	k.fails(2, "usage: holdfast key protect", "key", "protect", "a", "b", "--passphrase")
	k.fails(1, "there is no terminal to type the passphrase on; name a file that holds it with --new-passphrase-file", "key", "protect", "owner", "--passphrase")
	k.fails(1, "read recipients file: open absent: no such file or directory", "key", "protect", "owner", "--recipients-file", "absent")
	k.fails(1, "there is no key file absent; name the file, or make one with `holdfast init`", "key", "protect", "absent", "--recipient", testRecipient)
	k.fails(1, "not a whole key file", "key", "protect", "pw", "--recipient", testRecipient)
	k.fails(1, "owner is not protected", "key", "unprotect", "owner")
	if err := os.Link(k.path("owner"), k.path("second")); err != nil {
		t.Fatal(err)
	}
	k.fails(1, "owner has 2 names (hard links), and the others would keep what it holds now; remove them first", "key", "protect", "owner", "--recipient", testRecipient, "--identity", "id")

	if !bytes.Equal(k.read("key"), sealed) || !bytes.Equal(k.read("owner"), k.owner.Encode()) {
		t.Error("a command that failed changed a file")
	}
	noTemporaries(t, k.dir)
}

func noTemporaries(t *testing.T, dir string) {
	t.Helper()
	es, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range es {
		if strings.HasPrefix(e.Name(), durable.TempPrefix) {
			t.Errorf("%s was left behind", e.Name())
		}
	}
}

// TestProtectThroughLinks: a symbolic link stays one, and the file behind it is what is protected.
func TestProtectThroughLinks(t *testing.T) {
	t.Parallel()
	k := newKeys(t)
	if err := os.Mkdir(k.path("real"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Rename(k.path("key"), k.path("real/key")), os.Symlink("real/key", k.path("key"))); err != nil {
		t.Fatal(err)
	}
	k.ok("key", "protect", "--recipient", testRecipient, "--identity", "id")
	if st, err := os.Lstat(k.path("key")); err != nil || st.Mode().Type() != fs.ModeSymlink {
		t.Errorf("%v %v", st.Mode(), err)
	}
	if !protect.Is(k.read("real/key")) {
		t.Error("the file behind the link still holds the key")
	}
	part.Need(t, part.Root)
	if err := os.Chown(k.path("real/key"), 4242, 4343); err != nil {
		t.Fatal(err)
	}
	k.ok("key", "unprotect", "--identity", "id")
	st, err := os.Stat(k.path("real/key"))
	if err != nil {
		t.Fatal(err)
	}
	if x := st.Sys().(*syscall.Stat_t); x.Uid != 4242 || x.Gid != 4343 || st.Mode().Perm() != 0o600 {
		t.Errorf("it belongs to %d:%d, %v", x.Uid, x.Gid, st.Mode())
	}
}

// traced runs a command under strace, with more arguments for that.
func (k *keys) traced(strace []string, args ...string) error {
	k.t.Helper()
	cmd := k.command(args...)
	path, err := exec.LookPath("strace")
	if err != nil {
		k.t.Fatal(err)
	}
	cmd.Path, cmd.Args = path, append(append(append([]string{"strace", "-f", "-qq"}, strace...), holdfast), args...)
	return cmd.Run()
}

// rewriting are the commands that rewrite a file, by whether it is protected before.
var rewriting = map[bool][]string{
	false: {"key", "protect", "--recipient", testRecipient, "--identity", "id"},
	true:  {"key", "unprotect", "--identity", "id"},
}

// TestProtectKilled kills the program at the system calls that it makes while it protects a file, or takes
// the protection away. There is always one whole file, the old or the new.
func TestProtectKilled(t *testing.T) {
	t.Parallel()
	part.Need(t, "strace")
	k := newKeys(t)
	plain := k.read("key")
	k.ok(rewriting[false]...)
	before := map[bool][]byte{false: plain, true: k.read("key")}
	id, err := protect.Identities([]string{testIdentity}, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	for was, args := range rewriting {
		old, changed := 0, 0
		// strace counts the calls of each thread, so that some are hit more than once and others by chance.
		for _, call := range []string{"openat", "read", "write", "fchmod", "fchmodat", "fsync", "close", "renameat", "exit_group"} {
			for n := 1; n < 40; n++ {
				if err := os.WriteFile(k.path("key"), before[was], 0o600); err != nil {
					t.Fatal(err)
				}
				if k.traced([]string{"-o", "/dev/null", "-e", "trace=" + call, "-e", fmt.Sprintf("inject=%s:signal=SIGKILL:when=%d", call, n)}, args...) == nil {
					break
				}
				text := k.read("key")
				if protect.Is(text) == was {
					old++
				} else {
					changed++
				}
				if protect.Is(text) {
					if text, err = protect.Open(text, id); err != nil {
						t.Fatalf("killed at %s %d: %v", call, n, err)
					}
				}
				if !bytes.Equal(text, plain) {
					t.Fatalf("killed at %s %d, the file holds\n%s", call, n, text)
				}
			}
		}
		t.Logf("protected before: %v; %d kills left the old file, %d the new", was, old, changed)
		if old < 10 || changed < 1 {
			t.Error("too few kills")
		}
	}
}

// TestProtectOrder: the file is written beside the old one, synced, read back, and renamed over it, once;
// then the directory is synced. Nothing else ever writes to the old one. So a cut of the power at any
// moment leaves one of the two.
func TestProtectOrder(t *testing.T) {
	t.Parallel()
	part.Need(t, "strace")
	k := newKeys(t)
	for _, was := range []bool{false, true} {
		log := filepath.Join(scratch(t), "log")
		if err := k.traced([]string{"-y", "-o", log, "-e", "trace=openat,write,read,fsync,fdatasync,renameat,renameat2,rename,link,linkat,unlink,unlinkat,truncate,ftruncate"}, rewriting[was]...); err != nil {
			t.Fatal(err)
		}
		raw, err := os.ReadFile(log)
		if err != nil {
			t.Fatal(err)
		}
		var steps []string
		for line := range strings.Lines(string(raw)) {
			_, call, _ := strings.Cut(strings.TrimSpace(line), " ")
			call = strings.TrimSpace(call)
			name, rest, _ := strings.Cut(call, "(")
			if name == "read" || name == "write" || strings.HasSuffix(name, "sync") || name == "ftruncate" {
				rest, _, _ = strings.Cut(rest, ">") // what is read and written may name files as well
				rest += ">"
			}
			temp, key := strings.Contains(rest, k.dir+"/"+durable.TempPrefix), strings.Contains(rest, k.path("key"))
			switch {
			case name == "openat" && key && !temp:
				if !strings.Contains(rest, "O_RDONLY") {
					t.Errorf("it opens the file itself to write: %s", call)
				}
			case name == "openat" && temp && strings.Contains(rest, "O_CREAT"):
				steps = append(steps, "create")
			case name == "write" && temp:
				steps = append(steps, "write")
			case name == "fsync" && temp:
				steps = append(steps, "sync")
			case name == "read" && temp:
				steps = append(steps, "read back")
			case name == "openat" && temp && strings.Contains(rest, "O_RDONLY"):
			case strings.HasPrefix(name, "rename") && temp && key:
				steps = append(steps, "rename")
			case name == "fsync" && strings.Contains(rest, k.dir+">"):
				steps = append(steps, "sync directory")
			case temp || key && name != "read" && name != "openat":
				t.Errorf("it also does %s", call)
			}
		}
		got := strings.Join(slices.Compact(steps), ", ")
		if want := "create, write, sync, read back, rename, sync directory"; !strings.HasPrefix(got, want) || strings.Count(got, "rename") != 1 {
			t.Errorf("protected before: %v; it did %q, want %q", was, got, want)
		}
	}
}

// terminal is a pseudo terminal that a program runs on.
type terminal struct {
	t      *testing.T
	master *os.File
	cmd    *exec.Cmd
	seen   strings.Builder
}

// ioctl leaves f as it is; f.Fd would take its deadlines away.
func ioctl(t *testing.T, f *os.File, request uintptr, arg unsafe.Pointer) {
	t.Helper()
	conn, err := f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	err = conn.Control(func(fd uintptr) {
		if _, _, e := syscall.Syscall(syscall.SYS_IOCTL, fd, request, uintptr(arg)); e != 0 {
			t.Error(e)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}

// onTerminal starts holdfast on a terminal of its own.
func (k *keys) onTerminal(args ...string) *terminal {
	k.t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		k.t.Skipf("no pseudo terminals: %v", err)
	}
	k.t.Cleanup(func() { master.Close() })
	var number, unlock uint32
	ioctl(k.t, master, syscall.TIOCSPTLCK, unsafe.Pointer(&unlock))
	ioctl(k.t, master, syscall.TIOCGPTN, unsafe.Pointer(&number))
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		k.t.Fatal(err)
	}
	defer slave.Close()
	tm := &terminal{t: k.t, master: master, cmd: k.command(args...)}
	tm.cmd.Stdin, tm.cmd.Stdout, tm.cmd.Stderr = slave, slave, slave
	tm.cmd.SysProcAttr.Setctty = true
	if err := tm.cmd.Start(); err != nil {
		k.t.Fatal(err)
	}
	return tm
}

// answer waits for the program to show this and answers.
func (tm *terminal) answer(shown, typed string) {
	tm.t.Helper()
	tm.await(shown)
	if _, err := io.WriteString(tm.master, typed); err != nil {
		tm.t.Fatal(err)
	}
}

func (tm *terminal) await(shown string) {
	tm.t.Helper()
	tm.master.SetReadDeadline(time.Now().Add(20 * time.Second))
	from := tm.seen.Len()
	b := make([]byte, 4096)
	for !strings.Contains(tm.seen.String()[from:], shown) {
		n, err := tm.master.Read(b)
		tm.seen.Write(b[:n])
		if err != nil {
			tm.t.Fatalf("waiting for %q: %v\n%s", shown, err, tm.seen.String())
		}
	}
}

// end returns the exit code and all that the terminal showed.
func (tm *terminal) end() (int, string) {
	tm.t.Helper()
	tm.master.SetReadDeadline(time.Now().Add(20 * time.Second))
	b := make([]byte, 4096)
	for {
		n, err := tm.master.Read(b)
		tm.seen.Write(b[:n])
		if err != nil { // EIO: nobody has the other end any more
			break
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { tm.cmd.Process.Kill() })
	defer stop()
	tm.cmd.Wait()
	return tm.cmd.ProcessState.ExitCode(), tm.seen.String()
}

// TestTypedPassphrase types on a terminal, which never shows what was typed.
func TestTypedPassphrase(t *testing.T) {
	t.Parallel()
	k := newKeys(t)
	plain := k.read("key")
	twice := func(first, second string) (int, string) {
		tm := k.onTerminal("key", "protect", "--passphrase")
		tm.answer("New passphrase:", first+"\r")
		if first != "" {
			tm.answer("The same again:", second+"\r")
		}
		return tm.end()
	}
	for _, x := range []struct{ first, second, says string }{
		{"sesame", "sesam", "the two passphrases differ; nothing was written, try again"},
		{"", "", "an empty passphrase protects nothing; nothing was written"},
		{strings.Repeat("x", 1025), "", "a passphrase has at most 1024 bytes"},
	} {
		if len(x.first) > 1024 {
			tm := k.onTerminal("key", "protect", "--passphrase")
			tm.answer("New passphrase:", x.first+"\r")
			if code, shown := tm.end(); code != 1 || !strings.Contains(shown, x.says) {
				t.Errorf("exit %d\n%s", code, shown)
			}
			continue
		}
		if code, shown := twice(x.first, x.second); code != 1 || !strings.Contains(shown, x.says) {
			t.Errorf("%q, %q: exit %d\n%s", x.first, x.second, code, shown)
		}
	}
	if !bytes.Equal(k.read("key"), plain) {
		t.Fatal("a command that failed changed the file")
	}
	if code, shown := twice("open sesame", "open sesame"); code != 0 || strings.Contains(shown, "sesame") {
		t.Fatalf("exit %d\n%s", code, shown)
	}
	for typed, want := range map[string]int{"open sesame": 0, "open sesam": 1} {
		tm := k.onTerminal("key", "show")
		tm.answer("Passphrase of "+k.path("key")+":", typed+"\r")
		if code, shown := tm.end(); code != want || strings.Contains(shown, "sesam") || strings.Contains(shown, "the passphrase is wrong") != (want == 1) {
			t.Errorf("%q: exit %d, want %d\n%s", typed, code, want, shown)
		}
	}
	// The passphrase file may be another file's: on a terminal that is no end.
	tm := k.onTerminal("key", "show", "--passphrase-file", "wrong")
	tm.answer(", which that in wrong is not:", "open sesame\r")
	if code, shown := tm.end(); code != 0 {
		t.Errorf("exit %d\n%s", code, shown)
	}
	// Interrupted at the question: the terminal is as it was, and the exit code says why.
	for how, interrupt := range map[string]func(tm *terminal){
		"control-C": func(tm *terminal) { io.WriteString(tm.master, "\x03") },
		"SIGINT":    func(tm *terminal) { tm.cmd.Process.Signal(syscall.SIGINT) },
		"SIGTERM":   func(tm *terminal) { tm.cmd.Process.Signal(syscall.SIGTERM) },
	} {
		tm := k.onTerminal("key", "show")
		tm.await("Passphrase of")
		if tm.echoes() {
			t.Errorf("%s: the terminal shows what is typed", how)
		}
		interrupt(tm)
		code, shown := tm.end()
		if code != 130 || !strings.Contains(shown, "interrupted") || strings.Count(shown, "holdfast: ") != 1 {
			t.Errorf("%s: exit %d\n%s", how, code, shown)
		}
		if !tm.echoes() {
			t.Errorf("%s: the terminal does not show any more what is typed", how)
		}
	}
}

// echoes reports whether the terminal shows what is typed.
func (tm *terminal) echoes() bool {
	tm.t.Helper()
	var s syscall.Termios
	ioctl(tm.t, tm.master, syscall.TCGETS, unsafe.Pointer(&s))
	return s.Lflag&syscall.ECHO != 0
}
